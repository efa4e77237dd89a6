//! When a slot that nobody advances will be lost: from what the server shows and the pace at which it writes WAL. Computes, never asks.

use std::time::Duration;

use tokio::time::Instant;

use super::observe::SlotHealth;
use super::slot::SlotRow;
use crate::pg::Lsn;

/// A longer forecast says nothing.
const FAR: Duration = Duration::from_secs(366 * 86_400);

/// The pace of a server, smoothed over several looks.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    last: Option<(Instant, Lsn)>,
    /// Bytes of WAL per second.
    rate: Option<f64>,
}

impl Pace {
    /// The server was at `position` at `now`. The first look only begins the measurement; one that goes backwards (another server) begins it anew.
    pub fn look(&mut self, now: Instant, position: Lsn) {
        if let Some((then, before)) = self.last {
            let seconds = now.duration_since(then).as_secs_f64();
            if position < before {
                self.rate = None;
            } else if seconds > 0.0 {
                let new = position.since(before) as f64 / seconds;
                self.rate = Some(self.rate.map_or(new, |old| (old + new) / 2.0));
            } else {
                return;
            }
        }
        self.last = Some((now, position));
    }

    /// Bytes of WAL per second, once it was looked twice.
    pub fn rate(&self) -> Option<u64> {
        self.rate.map(|rate| rate.round() as u64)
    }
}

/// What the server holds back for the slot, and for how long it can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    pub row: SlotRow,
    /// Bytes of WAL per second that the server writes.
    pub rate: Option<u64>,
}

/// When the slot will be lost if nothing advances it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `max_slot_wal_keep_size` is not set: the WAL grows until the server's disk is full, whose size no connection tells.
    Disk,
    /// The limit is reached, or the slot is lost.
    Now,
    /// At this pace.
    In(Duration),
    /// At this pace never, or not within a year.
    Far,
    /// The limit is known, the pace is not.
    Unknown,
}

impl Outlook {
    pub fn limit(&self) -> Limit {
        let status = self.row.wal_status.as_deref();
        if self.row.is_lost() || status == Some("unreserved") {
            return Limit::Now;
        }
        match (self.row.safe_wal_size, self.rate) {
            (None, _) => Limit::Disk,
            (Some(..=0), _) => Limit::Now,
            (Some(_), None) => Limit::Unknown,
            (Some(_), Some(0)) => Limit::Far,
            (Some(left), Some(rate)) => {
                let left = Duration::from_secs(left.unsigned_abs() / rate);
                if left > FAR { Limit::Far } else { Limit::In(left) }
            }
        }
    }

    /// Whether so many bytes wait on the slot, and nobody is taking them.
    pub fn is_at(&self, limit: u64) -> bool {
        self.row.active_pid.is_none() && self.row.retained().is_some_and(|retained| retained >= limit)
    }

    /// For whoever watches.
    pub fn health(&self, polled_at: Instant) -> SlotHealth {
        SlotHealth {
            restart_lsn: self.row.restart_lsn,
            retained_bytes: self.row.retained(),
            wal_status: self.row.wal_status.clone(),
            safe_wal_size: self.row.safe_wal_size,
            limit: self.row.limit,
            full_in_seconds: match self.limit() {
                Limit::Now => Some(0),
                Limit::In(left) => Some(left.as_secs()),
                Limit::Disk | Limit::Far | Limit::Unknown => None,
            },
            wal_bytes_per_second: self.rate,
            polled_at,
        }
    }

    /// Whether someone has to act within `soon`.
    pub fn is_urgent(&self, soon: Duration) -> bool {
        match self.limit() {
            Limit::Now => true,
            Limit::In(left) => left <= soon,
            Limit::Disk | Limit::Far | Limit::Unknown => false,
        }
    }

    /// One line for a person.
    pub fn describe(&self) -> String {
        let size = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let retained = self.row.retained().map_or("an unknown amount".to_owned(), size);
        let pace = self.rate.map_or(String::new(), |rate| format!(" at {}/s", size(rate)));
        let more = self.row.safe_wal_size.map_or(String::new(), |left| size(left.max(0).unsigned_abs()));
        match self.limit() {
            Limit::Disk => {
                format!(
                    "{retained} of WAL wait on the slot{pace}; max_slot_wal_keep_size is not set, so the limit is the server's disk"
                )
            }
            Limit::Now if self.row.is_lost() => "the slot is lost: the server has let go of its WAL".to_owned(),
            Limit::Now => format!("{retained} of WAL wait on the slot{pace}; the next checkpoint may remove it"),
            Limit::In(left) => {
                format!(
                    "{retained} of WAL wait on the slot{pace}; after {more} more, in about {}, it is lost",
                    span(left)
                )
            }
            Limit::Far | Limit::Unknown => {
                format!("{retained} of WAL wait on the slot{pace}; after {more} more it is lost")
            }
        }
    }
}

/// Two units of time are enough for a forecast.
pub fn span(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0 => format!("{} s", time.as_secs()),
        1..=119 => format!("{minutes} min"),
        120..=2879 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", minutes / 1440, minutes / 60 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlook(status: &str, safe: Option<i64>, rate: Option<u64>) -> Outlook {
        let row = SlotRow {
            restart_lsn: Some(Lsn(0)),
            current: Some(Lsn(5_000_000)),
            wal_status: Some(status.to_owned()),
            safe_wal_size: safe,
            ..SlotRow::default()
        };
        Outlook { row, rate }
    }

    #[test]
    fn the_limit_comes_from_what_is_left_and_the_pace() {
        let minute = Duration::from_secs(60);
        assert_eq!(outlook("extended", Some(6_000_000), Some(100_000)).limit(), Limit::In(minute));
        assert!(outlook("extended", Some(6_000_000), Some(100_000)).is_urgent(minute));
        assert!(!outlook("extended", Some(6_000_001), Some(1000)).is_urgent(minute));
        assert_eq!(outlook("reserved", None, Some(1)).limit(), Limit::Disk);
        assert_eq!(outlook("reserved", Some(1), Some(0)).limit(), Limit::Far);
        assert_eq!(outlook("reserved", Some(1), None).limit(), Limit::Unknown);
        assert_eq!(outlook("unreserved", Some(-5), Some(7)).limit(), Limit::Now);
        assert_eq!(outlook("lost", None, Some(7)).limit(), Limit::Now);
        let text = outlook("extended", Some(6_000_000), Some(100_000)).describe();
        assert!(text.contains("5.0 MB") && text.contains("1 min") && text.contains("0.1 MB/s"), "{text}");
    }

    #[test]
    fn the_pace_is_told_where_the_limit_is_a_disk_that_nobody_knows() {
        let health = outlook("extended", None, Some(100_000)).health(Instant::now());
        assert_eq!((health.full_in_seconds, health.wal_bytes_per_second), (None, Some(100_000)));
    }

    #[test]
    fn a_slot_that_somebody_uses_is_at_no_limit() {
        let mut outlook = outlook("extended", None, None);
        assert!(outlook.is_at(5_000_000) && !outlook.is_at(5_000_001));
        outlook.row.active_pid = Some(77);
        assert!(!outlook.is_at(1));
    }

    #[test]
    fn the_pace_needs_two_looks_and_forgets_another_server() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        pace.look(at(0), Lsn(1000));
        assert_eq!(pace.rate(), None);
        pace.look(at(10), Lsn(2000));
        assert_eq!(pace.rate(), Some(100));
        pace.look(at(20), Lsn(5000));
        assert_eq!(pace.rate(), Some(200));
        pace.look(at(30), Lsn(10));
        assert_eq!(pace.rate(), None);
        pace.look(at(40), Lsn(20));
        assert_eq!(pace.rate(), Some(1));
    }

    #[test]
    fn spans_are_short() {
        let text = |seconds| span(Duration::from_secs(seconds));
        assert_eq!(
            (text(59), text(3600), text(7300), text(200_000)),
            ("59 s".into(), "60 min".into(), "2 h 1 min".into(), "2 d 7 h".into())
        );
    }
}
