//! Finished objects on their way out: each waits until it is sealed, and until the record that crosses its end is checked. What a spool gets of it waits for
//! that record only: the spool takes everything in the order in which it came.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::object::Ended;
use super::spool::Rest;
use crate::pg::Lsn;

/// How often those are looked at while nothing arrives.
const SEALED_YET: Duration = Duration::from_millis(5);

/// One of them, and what the spool does not have of it.
struct Held {
    object: Ended,
    rest: Option<Rest>,
    since: Instant,
}

impl Held {
    /// Whether the record behind it is still waited for.
    fn is_early(&self, checked: Lsn, limit: Duration) -> bool {
        self.object.place.end > checked && self.since.elapsed() < limit
    }
}

/// How long a finished object waits for the rest of the record that crosses its end.
pub fn hold_limit(flush_interval: Duration) -> Duration {
    flush_interval.min(Duration::from_secs(1))
}

/// In order.
#[derive(Default)]
pub struct Queue(VecDeque<Held>);

impl Queue {
    pub fn push(&mut self, object: Ended, rest: Option<Rest>) {
        self.0.push_back(Held { object, rest, since: Instant::now() });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in memory, at most.
    pub fn memory(&self) -> u64 {
        let rest = |held: &Held| held.rest.as_ref().map_or(0, Rest::memory);
        self.0.iter().map(|held| held.object.memory() + rest(held)).sum()
    }

    /// Whether one is still being sealed beside the stream at the end of the next one: that is waited for, since they must not pile up.
    pub fn is_behind(&self) -> bool {
        self.0.iter().any(|held| !held.object.is_sealed())
    }

    /// The first that is left for the spool, if the record behind its object is checked, or has not been for long enough; with `all` in any case.
    pub fn rest(&mut self, checked: Lsn, flush_interval: Duration, all: bool) -> Option<Rest> {
        let limit = hold_limit(flush_interval);
        let ready = |held: &&mut Held| all || !held.is_early(checked, limit);
        self.0.iter_mut().take_while(ready).find_map(|held| held.rest.take())
    }

    /// The first, if it is sealed and the record behind it is checked, or has not been for long enough; with `all` in any case.
    pub fn next(&mut self, checked: Lsn, flush_interval: Duration, all: bool) -> Option<Ended> {
        let limit = hold_limit(flush_interval);
        // What is left for the spool is asked for first.
        let ready =
            |held: &mut Held| all || (held.object.is_sealed() && held.rest.is_none() && !held.is_early(checked, limit));
        self.0.pop_front_if(ready).map(|held| held.object)
    }

    /// When to look for the next one, if nothing happens before.
    pub fn due(&self, flush_interval: Duration) -> Option<Instant> {
        let held = self.0.front()?;
        let due = held.since + hold_limit(flush_interval);
        if held.object.is_sealed() || due > Instant::now() {
            return Some(due);
        }
        // The same moment until that has passed, so that it is told once.
        let looks = held.since.elapsed().as_nanos() / SEALED_YET.as_nanos() + 1;
        Some(held.since + SEALED_YET * u32::try_from(looks).unwrap_or(u32::MAX))
    }
}
