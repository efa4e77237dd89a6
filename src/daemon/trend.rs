//! Whether a stream that is behind comes nearer. Computes, never asks.

use std::time::Duration;

use tokio::time::Instant;

use super::report::Behind;

/// A stream that has come no nearer for so long is not catching up.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The least that a stream was behind since it fell behind. While much WAL is fetched the seconds grow until it is there, and the bytes shrink; a server that
/// writes faster than the repository takes makes both grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trend {
    least: Option<(Behind, Instant)>,
}

impl Trend {
    /// So far behind it is now; `None` where it is close behind.
    pub fn look(&mut self, now: Instant, behind: Option<Behind>) {
        let Some(behind) = behind else {
            self.least = None;
            return;
        };
        let Some((least, at)) = &mut self.least else {
            self.least = Some((behind, now));
            return;
        };
        let fewer = nearer(&mut least.bytes, behind.bytes);
        if nearer(&mut least.seconds, behind.seconds) || fewer {
            *at = now;
        }
    }

    /// For how long it has come no nearer, where that is too long.
    pub fn falls_behind(&self, now: Instant) -> Option<Duration> {
        let lasted = now.saturating_duration_since(self.least?.1);
        (lasted >= PATIENCE).then_some(lasted)
    }
}

/// Keeps the smaller of two; whether it is the new one.
fn nearer<T: PartialOrd + Copy>(least: &mut Option<T>, now: Option<T>) -> bool {
    let smaller = match (*least, now) {
        (Some(least), Some(now)) => now < least,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    if smaller {
        *least = now;
    }
    smaller
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(bytes: u64, seconds: f64) -> Option<Behind> {
        Some(Behind { bytes: Some(bytes), seconds: Some(seconds), oldest_commit_seconds: None })
    }

    /// Looks once a second for so long; what is said in the end.
    fn after(seconds: u64, at: impl Fn(u64) -> Option<Behind>) -> Option<Duration> {
        let (mut trend, start) = (Trend::default(), Instant::now());
        let moment = |second| start + Duration::from_secs(second);
        (0..=seconds).for_each(|second| trend.look(moment(second), at(second)));
        trend.falls_behind(moment(seconds))
    }

    #[test]
    fn a_stream_that_only_gets_further_behind_is_told_after_minutes() {
        let grows = |second: u64| behind(second << 20, second as f64);
        assert_eq!(after(PATIENCE.as_secs() - 1, grows), None);
        assert_eq!(after(PATIENCE.as_secs() + 60, grows), Some(PATIENCE + Duration::from_secs(60)));
        let stands = |second: u64| behind((100 + second % 7) << 20, 50.0 + (second % 7) as f64);
        assert!(after(PATIENCE.as_secs(), stands).is_some(), "nor does one that stands still catch up");
    }

    #[test]
    fn a_backlog_that_is_fetched_is_no_matter_although_its_age_grows() {
        assert_eq!(after(3600, |second| behind((4000 - second) << 20, second as f64)), None);
        assert_eq!(after(3600, |second| behind(100 << 20, 4000.0 - second as f64)), None);
    }

    #[test]
    fn whoever_was_close_behind_meanwhile_begins_anew() {
        let now_and_then = |second: u64| behind(second << 20, second as f64).filter(|_| !second.is_multiple_of(200));
        assert_eq!(after(3600, now_and_then), None);
    }
}
