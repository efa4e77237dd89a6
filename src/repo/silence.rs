//! A store that takes requests and answers none. Once that has gone on for a while nobody waits for it object by object: one request at a time finds out
//! whether it is back, and all others are told at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What is known of how a store answers.
pub(super) struct Silence {
    /// A silence that is shorter may pass within the patience of each request.
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the first request was sent of those that had no answer since the last one that had, and when the last of them was given up.
    since: Option<(Instant, Instant)>,
    /// A request is under way although the limit has passed.
    probing: bool,
}

/// A request that may be sent.
pub(super) struct Turn<'a> {
    silence: &'a Silence,
    began: Instant,
    probes: bool,
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Silence {
        Silence { limit, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long no request has been answered, once that is longer than the limit.
    pub(super) fn lasts(&self) -> Option<Duration> {
        self.of(&self.state(), Instant::now())
    }

    /// Where nothing was asked for as long, nothing is known.
    fn of(&self, state: &State, now: Instant) -> Option<Duration> {
        let (first, _) = state.since.filter(|(_, last)| now - *last < self.limit)?;
        Some(now - first).filter(|silent| *silent >= self.limit)
    }

    /// Whether a request is to be sent; if not, how long the store has been silent: another request waits for it already.
    pub(super) fn turn(&self) -> Result<Turn<'_>, Duration> {
        let began = Instant::now();
        let mut state = self.state();
        match self.of(&state, began) {
            Some(silent) if state.probing => Err(silent),
            silent => {
                state.probing |= silent.is_some();
                Ok(Turn { silence: self, began, probes: silent.is_some() })
            }
        }
    }

    /// What was asked for when it `began` has not come in time.
    pub(super) fn unanswered(&self, began: Instant) {
        let (limit, now) = (self.limit, Instant::now());
        let mut state = self.state();
        // One that was asked long after the last one is another silence.
        let first = state.since.filter(|(_, last)| began - *last < limit).map_or(began, |(first, _)| first);
        state.since = Some((first.min(began), now));
    }

    /// The store has answered, whatever it said.
    pub(super) fn is_over(&self) {
        self.state().since = None;
    }
}

impl Turn<'_> {
    /// No answer came in time.
    pub(super) fn unanswered(&self) {
        self.silence.unanswered(self.began);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.probes {
            self.silence.state().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_request_at_a_time_waits_for_a_store_that_has_been_silent_for_long() {
        let silence = Silence::new(Duration::from_secs(60));
        let wait = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        for _ in 0..4 {
            let (one, other) = (silence.turn(), silence.turn());
            assert!(one.is_ok() && other.is_ok(), "a silence that may pass");
            wait(15).await;
            one.unwrap().unanswered();
        }
        assert_eq!(silence.lasts(), Some(Duration::from_secs(60)));
        let probe = silence.turn().unwrap();
        wait(5).await;
        assert_eq!(silence.turn().err(), Some(Duration::from_secs(65)));
        drop(probe);
        let probe = silence.turn().unwrap();
        assert!(silence.turn().is_err());
        silence.is_over();
        assert!(silence.lasts().is_none() && silence.turn().is_ok());
        drop(probe);
        // Another silence is counted from its own beginning, also where nobody asked for long.
        let lost = async || {
            let turn = silence.turn().unwrap();
            wait(15).await;
            turn.unanswered();
        };
        lost().await;
        for _ in 0..2 {
            wait(3600).await;
            assert!(silence.turn().is_ok() && silence.turn().is_ok() && silence.lasts().is_none());
            lost().await;
            assert!(silence.lasts().is_none() && silence.turn().is_ok());
        }
    }
}
