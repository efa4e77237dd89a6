//! Finished objects on their way out: each waits until it is sealed, and until the record that crosses its end is checked.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::object::Ended;
use super::spool::Rest;
use crate::pg::Lsn;

/// Most of them that are being sealed beside the stream.
const UNSEALED: usize = 1;
/// How often those are looked at while nothing arrives.
const SEALED_YET: Duration = Duration::from_millis(5);

/// One of them, and what of it goes to the spool with it.
pub struct Held {
    pub object: Ended,
    pub rest: Option<Rest>,
    since: Instant,
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
        self.0.iter().map(|held| held.object.memory()).sum()
    }

    /// Whether what is sealed beside the stream, and slower than it comes, has to be waited for: it must not pile up.
    pub fn is_behind(&self) -> bool {
        self.0.iter().filter(|held| !held.object.is_sealed()).count() > UNSEALED
    }

    /// The first, if it is sealed and the record behind it is checked, or has not been for long enough.
    pub fn next(&mut self, checked: Lsn, flush_interval: Duration) -> Option<Held> {
        let limit = hold_limit(flush_interval);
        let is_early = |held: &Held| held.object.place.end > checked && held.since.elapsed() < limit;
        self.0.pop_front_if(|held| held.object.is_sealed() && !is_early(held))
    }

    /// The first, as it is.
    pub fn pop(&mut self) -> Option<Held> {
        self.0.pop_front()
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
