//! Numbers of one stream: counters that the hot path only stores into, and histograms that are touched once a flush or put.
//!
//! Positions are plain numbers here: this is the cellar, which knows nothing of PostgreSQL.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

/// A number that one task writes and others read. No order between several of them is promised.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
}

/// Span of one part of the recent times, and how many parts are kept.
const PART: Duration = Duration::from_secs(60);
const PARTS: usize = 5;
/// Times are kept as microseconds up to an hour, to two significant digits.
const LONGEST: u64 = 3_600_000_000;

/// How long something takes: since start, and over the last five minutes.
#[derive(Debug)]
pub struct Timing(Mutex<Windows>);

#[derive(Debug)]
struct Windows {
    total: Option<Histogram<u32>>,
    /// Newest last, each with the minute it belongs to.
    recent: VecDeque<(u64, Histogram<u32>)>,
    since: Instant,
}

/// Some times, summed up. In microseconds, to two significant digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing(Mutex::new(Windows { total: None, recent: VecDeque::new(), since: Instant::now() }))
    }
}

impl Timing {
    /// `times` times of the same length, at `now`.
    pub fn record(&self, took: Duration, times: u32, now: Instant) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST);
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = windows.part(now);
        windows.forget(part);
        if windows.recent.back().is_none_or(|(newest, _)| *newest != part) {
            windows.recent.extend(histogram().map(|empty| (part, empty)));
        }
        let Windows { total, recent, .. } = &mut *windows;
        if total.is_none() {
            *total = histogram();
        }
        for histogram in total.iter_mut().chain(recent.back_mut().map(|(_, histogram)| histogram)) {
            histogram.saturating_record_n(micros, times);
        }
    }

    /// Since start.
    pub fn total(&self) -> Quantiles {
        let windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.total.as_ref().map_or_else(Quantiles::default, quantiles)
    }

    /// Over the last four to five minutes before `now`.
    pub fn recent(&self, now: Instant) -> Quantiles {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = windows.part(now);
        windows.forget(part);
        let Some(mut sum) = histogram() else { return Quantiles::default() };
        // The bounds are the same everywhere, so nothing is lost.
        windows.recent.iter().for_each(|(_, histogram)| _ = sum.add(histogram));
        quantiles(&sum)
    }
}

impl Windows {
    fn part(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() / PART.as_secs()
    }

    fn forget(&mut self, part: u64) {
        while self.recent.front().is_some_and(|(oldest, _)| oldest + PARTS as u64 <= part) {
            self.recent.pop_front();
        }
    }
}

/// The bounds are right, so there always is one.
fn histogram() -> Option<Histogram<u32>> {
    Histogram::new_with_bounds(1, LONGEST, 2).ok()
}

fn quantiles(histogram: &Histogram<u32>) -> Quantiles {
    if histogram.is_empty() {
        return Quantiles::default();
    }
    let at = |quantile| histogram.value_at_quantile(quantile);
    Quantiles { count: histogram.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: histogram.max() }
}

/// What one stream counts. Positions are LSNs of the timeline that is streamed now.
#[derive(Debug)]
pub struct StreamStats {
    pub started: Instant,
    /// End of what was taken from the server.
    pub received: Number,
    /// End of the last checked record.
    pub verified: Number,
    /// End of what is durable in the repository without a hole.
    pub durable: Number,
    /// The flush position that the server was told.
    pub reported: Number,
    /// How far the server said it holds WAL.
    pub server_end: Number,
    /// Bytes of WAL since start: taken, and made durable.
    pub bytes_received: Number,
    pub bytes_durable: Number,
    /// From the arrival of a commit's record to its durability.
    pub time_to_durable: Timing,
    /// When the oldest commit arrived that is not durable yet: microseconds after `started`, plus one; 0 for none.
    oldest_commit: Number,
    /// Commit records received.
    pub commits: Number,
    /// Flushes of the open segment's tail: how many, of how many bytes of WAL, how long.
    pub flushes: Number,
    pub flushed_bytes: Number,
    pub flush_time: Timing,
    /// Objects put: how many, of how many bytes, attempts that failed, and how long until each was settled.
    pub puts: Number,
    pub put_bytes: Number,
    pub put_errors: Number,
    pub put_time: Timing,
    /// Bytes in memory, raw and sealed, that were not handed on; and bytes on their way to the repository.
    pub held_bytes: Number,
    pub queued_bytes: Number,
    pub reconnects: Number,
    pub stalls: Number,
    heart: Mutex<Heartbeats>,
}

/// What is known of the server's clock. Times are microseconds of that clock since 2000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heartbeats {
    /// The archive is complete through the time, up to the position.
    pub complete: Option<(u64, i64)>,
    /// The last stamp of the server, and when it arrived.
    pub clock: Option<(i64, Instant)>,
}

impl Default for StreamStats {
    fn default() -> StreamStats {
        StreamStats {
            started: Instant::now(),
            received: Number::default(),
            verified: Number::default(),
            durable: Number::default(),
            reported: Number::default(),
            server_end: Number::default(),
            bytes_received: Number::default(),
            bytes_durable: Number::default(),
            time_to_durable: Timing::default(),
            oldest_commit: Number::default(),
            commits: Number::default(),
            flushes: Number::default(),
            flushed_bytes: Number::default(),
            flush_time: Timing::default(),
            puts: Number::default(),
            put_bytes: Number::default(),
            put_errors: Number::default(),
            put_time: Timing::default(),
            held_bytes: Number::default(),
            queued_bytes: Number::default(),
            reconnects: Number::default(),
            stalls: Number::default(),
            heart: Mutex::default(),
        }
    }
}

impl StreamStats {
    /// When the oldest commit arrived that is not durable yet.
    pub fn set_oldest_commit(&self, arrived: Option<Instant>) {
        let micros = |at: Instant| at.saturating_duration_since(self.started).as_micros() as u64;
        self.oldest_commit.set(arrived.map_or(0, |at| micros(at) + 1));
    }

    /// Age of the oldest commit that is not durable yet.
    pub fn oldest_commit_age(&self, now: Instant) -> Option<Duration> {
        let arrived = self.oldest_commit.get().checked_sub(1)?;
        Some(now.saturating_duration_since(self.started + Duration::from_micros(arrived)))
    }

    /// About once a second.
    pub fn set_heart(&self, complete: Option<(u64, i64)>, clock: Option<(i64, Instant)>) {
        let mut heart = self.heart.lock().unwrap_or_else(PoisonError::into_inner);
        // A new connection has proven nothing yet; what an earlier one proved stays true.
        heart.complete = complete.or(heart.complete);
        heart.clock = clock.or(heart.clock);
    }

    pub fn heart(&self) -> Heartbeats {
        *self.heart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush of the tail.
    pub fn flushed(&self, bytes: u64, took: Duration, now: Instant) {
        self.flushes.add(1);
        self.flushed_bytes.add(bytes);
        self.flush_time.record(took, 1, now);
    }

    /// A put that is settled.
    pub fn put(&self, bytes: u64, took: Duration, now: Instant) {
        self.puts.add(1);
        self.put_bytes.add(bytes);
        self.put_time.record(took, 1, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_times_go_and_the_total_stays() {
        let timing = Timing::default();
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        timing.record(Duration::from_millis(10), 99, later(1));
        timing.record(Duration::from_secs(2), 1, later(30));
        let now = timing.recent(later(31));
        assert_eq!((now.count, now.p50 / 1000, now.max / 100_000), (100, 10, 20));
        assert!(now.p99 < 11_000 && now.p999 > 1_900_000, "{now:?}");
        timing.record(Duration::from_millis(1), 1, later(200));
        assert_eq!(timing.recent(later(200)).count, 101);
        assert_eq!(timing.recent(later(310)).count, 1, "the first minute is older than five");
        assert_eq!(timing.recent(later(1000)), Quantiles::default());
        assert_eq!(timing.total().count, 101);
    }

    #[test]
    fn times_past_the_range_stay_at_its_end() {
        let timing = Timing::default();
        timing.record(Duration::MAX, 1, Instant::now());
        timing.record(Duration::ZERO, 1, Instant::now());
        let total = timing.total();
        assert_eq!(total.count, 2);
        assert!(total.max >= LONGEST, "{total:?}");
    }

    #[test]
    fn the_age_of_the_oldest_commit_grows_until_there_is_none() {
        let stats = StreamStats::default();
        let now = stats.started + Duration::from_secs(10);
        assert_eq!(stats.oldest_commit_age(now), None);
        stats.set_oldest_commit(Some(stats.started));
        assert_eq!(stats.oldest_commit_age(now), Some(Duration::from_secs(10)));
        stats.set_oldest_commit(None);
        assert_eq!(stats.oldest_commit_age(now), None);
    }
}
