//! When commits arrived: how long each takes to become durable, and how old the oldest one is that is not. Pure; the pipeline owns it.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

use crate::pg::Lsn;
use crate::stats::StreamStats;

/// Commits that arrive so close together count as having arrived when the first of them did.
const TOGETHER: Duration = Duration::from_millis(1);

/// What has arrived and is not durable yet.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Messages that were not checked yet: their ends, and when they arrived.
    messages: VecDeque<(Lsn, Instant)>,
    /// Commits that are not durable yet: end of the last one of a group, and when the first one arrived.
    commits: VecDeque<(Lsn, Instant)>,
}

impl Arrivals {
    /// Bytes up to `end` arrived.
    pub fn arrived(&mut self, end: Lsn, at: Instant) {
        self.messages.push_back((end, at));
    }

    /// Records up to `checked` were read; `commits` are the ends of the first and the last commit among the new ones.
    pub fn checked(&mut self, checked: Lsn, commits: Option<RangeInclusive<Lsn>>) {
        while let Some((end, at)) = self.messages.front().copied() {
            if let Some(commits) = &commits
                && end >= *commits.start()
                && self.commits.back().is_none_or(|(last, _)| last < commits.end())
            {
                self.commit(end.min(*commits.end()), at);
            }
            if end > checked {
                return;
            }
            self.messages.pop_front();
        }
    }

    fn commit(&mut self, end: Lsn, at: Instant) {
        match self.commits.back_mut() {
            Some((last, first)) if at.saturating_duration_since(*first) < TOGETHER => *last = end.max(*last),
            Some((last, _)) if *last >= end => {}
            _ => self.commits.push_back((end, at)),
        }
    }

    /// Everything up to `durable` is durable: records how long its commits took.
    pub fn durable(&mut self, durable: Lsn, now: Instant, stats: &StreamStats) {
        while let Some((_, at)) = self.commits.front().copied().filter(|(end, _)| *end <= durable) {
            stats.time_to_durable.record(now.saturating_duration_since(at), 1, now);
            self.commits.pop_front();
        }
    }

    /// When the oldest commit arrived that is not durable yet.
    pub fn oldest(&self) -> Option<Instant> {
        self.commits.front().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_commit_counts_from_the_message_that_brought_its_last_byte() {
        let (mut arrivals, stats) = (Arrivals::default(), StreamStats::default());
        let start = Instant::now();
        arrivals.arrived(Lsn(1000), start);
        arrivals.arrived(Lsn(2000), start + millis(100));
        arrivals.arrived(Lsn(3000), start + millis(200));
        // The commit begins in the first message and ends in the second; the third brought half a record.
        arrivals.checked(Lsn(2500), Some(Lsn(1200)..=Lsn(1200)));
        assert_eq!(arrivals.oldest(), Some(start + millis(100)));
        arrivals.durable(Lsn(1100), start + millis(300), &stats);
        assert_eq!(stats.time_to_durable.total().count, 0);
        arrivals.durable(Lsn(1200), start + millis(350), &stats);
        assert_eq!((stats.time_to_durable.total().count, arrivals.oldest()), (1, None));
        let took = stats.time_to_durable.total().max;
        assert!((250_000..255_000).contains(&took), "{took}");
    }

    #[test]
    fn every_message_between_two_commits_is_counted_and_none_twice() {
        let (mut arrivals, stats) = (Arrivals::default(), StreamStats::default());
        let start = Instant::now();
        for n in 1..=5 {
            arrivals.arrived(Lsn(n * 1000), start + millis(n * 10));
        }
        arrivals.checked(Lsn(2500), Some(Lsn(500)..=Lsn(2400)));
        arrivals.checked(Lsn(2600), None);
        arrivals.checked(Lsn(5000), Some(Lsn(2700)..=Lsn(4100)));
        arrivals.durable(Lsn(4100), start + millis(60), &stats);
        assert_eq!(stats.time_to_durable.total().count, 5);
        assert_eq!(arrivals.oldest(), None);
    }

    #[test]
    fn many_small_commits_take_little_room() {
        let mut arrivals = Arrivals::default();
        let start = Instant::now();
        for n in 1..=100_000u64 {
            arrivals.arrived(Lsn(n * 100), start + Duration::from_micros(n));
            arrivals.checked(Lsn(n * 100), Some(Lsn(n * 100)..=Lsn(n * 100)));
        }
        assert!(arrivals.commits.len() <= 101 && arrivals.messages.is_empty(), "{}", arrivals.commits.len());
    }

    #[test]
    fn half_a_record_on_an_idle_server_is_no_commit_that_waits() {
        let mut arrivals = Arrivals::default();
        arrivals.arrived(Lsn(1000), Instant::now());
        arrivals.checked(Lsn(900), None);
        assert_eq!(arrivals.oldest(), None);
    }
}
