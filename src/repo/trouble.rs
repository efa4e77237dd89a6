//! What is said of objects that cannot be stored for a while: a line when that begins, one a minute while it lasts, one when it is over. A full disk fails
//! several attempts a second, for hours.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two lines.
const PACE: Duration = Duration::from_secs(60);
/// For so long nothing has failed when it is over: on a full disk small objects still find room between two large ones.
const QUIET: Duration = Duration::from_secs(10);

/// Of one repository.
#[derive(Default)]
pub struct Trouble(Mutex<State>);

#[derive(Default)]
struct State {
    /// Objects that have failed and are tried again.
    pending: u64,
    /// Since it began, as far as it was told.
    told: Option<Told>,
    /// When the last line was, of whatever.
    line: Option<Instant>,
}

struct Told {
    began: Instant,
    failed: u64,
    last: Instant,
    /// In a line of its own.
    said: bool,
}

impl Trouble {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt has failed and is made again; the line that is due.
    pub fn failed(&self, name: &str, error: &dyn std::fmt::Display) -> Option<String> {
        let (mut state, now) = (self.state(), Instant::now());
        let line = state.line;
        let told = state.told.get_or_insert(Told { began: now, failed: 0, last: now, said: false });
        (told.failed, told.last) = (told.failed + 1, now);
        let (failed, lasts) = (told.failed, now.duration_since(told.began).as_secs());
        if line.is_some_and(|line| now.duration_since(line) < PACE) {
            return None;
        }
        told.said = true;
        state.line = Some(now);
        Some(match failed {
            1 => format!("{name} is not stored yet: {error}; trying again, and telling so once a minute"),
            _ => format!(
                "{name} is not stored yet: {error}; {failed} attempts to store objects have failed in {lasts} s"
            ),
        })
    }

    /// An object was stored; the line that says that it is over.
    pub fn stored(&self) -> Option<String> {
        let mut state = self.state();
        let over = state.pending == 0 && state.told.as_ref().is_some_and(|told| told.last.elapsed() >= QUIET);
        let told = state.told.take_if(|_| over)?;
        let lasted = told.last.duration_since(told.began).as_secs();
        told.said.then(|| format!("objects are stored again (failed attempts: {}, in {lasted} s)", told.failed))
    }

    /// One object that fails; it does so until the value goes.
    pub fn pending(&self) -> Pending<'_> {
        self.state().pending += 1;
        Pending(self)
    }
}

pub struct Pending<'a>(&'a Trouble);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.pending = state.pending.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_disk_is_told_once_a_minute_until_it_is_over() {
        let (trouble, mut lines) = (Trouble::default(), Vec::new());
        let large = trouble.pending();
        for attempt in 0..480 {
            lines.extend(trouble.failed("packs/1", &"no space left on device"));
            // Small ones find room.
            if attempt % 3 == 0 {
                lines.extend(trouble.stored());
            }
            tokio::time::sleep(Duration::from_millis(625)).await;
        }
        assert_eq!(lines.len(), 5, "{lines:#?}");
        assert!(lines[0].starts_with("packs/1 is not stored yet: no space left on device; trying again"), "{lines:#?}");
        assert!(lines[4].contains("attempts to store objects have failed in 2"), "{lines:#?}");
        tokio::time::sleep(QUIET).await;
        assert_eq!(trouble.stored(), None, "one is still tried");
        drop(large);
        let over = trouble.stored().expect("it is over");
        assert!(over.starts_with("objects are stored again (failed attempts: 480, in 299 s)"), "{over}");
        assert_eq!(trouble.stored(), None, "said once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_is_not_over_because_a_small_object_was_stored() {
        let trouble = Trouble::default();
        let large = trouble.pending();
        assert!(trouble.failed("packs/1", &"full").is_some());
        drop(large);
        assert_eq!(trouble.stored(), None);
        tokio::time::sleep(QUIET).await;
        assert!(trouble.stored().is_some());
        // Again within the minute: no line of its own, at either end.
        assert_eq!(trouble.failed("packs/2", &"full"), None);
        tokio::time::sleep(QUIET).await;
        assert_eq!(trouble.stored(), None);
    }
}
