//! The name of a base backup: when and where it began, and four random digits.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::pg::{Lsn, TimelineId};

/// `<UTC start yyyymmddThhmmssZ>-<timeline, 8 hex digits>-<start LSN, 16 hex digits>-<4 random hex digits>`: names sort by
/// time, and say without opening anything from where a backup needs WAL. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackupId(Arc<str>);

/// The text is not a backup's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a backup id: {0:?} (expected a name like 20260131T020000Z-00000001-0000000003000028-1a2b)")]
pub struct NotABackupId(pub String);

impl BackupId {
    /// `random` keeps two backups apart that begin in one second at one position.
    pub fn new(started: Timestamp, timeline: TimelineId, start: Lsn, random: u16) -> BackupId {
        let time = started.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ");
        BackupId(format!("{time}-{:08X}-{:016X}-{random:04x}", timeline.0, start.0).into())
    }

    /// Reads a name back; anything else, other letter cases included, is refused.
    pub fn parse(text: &str) -> Result<BackupId, NotABackupId> {
        let id = BackupId(text.into());
        let fields = id.fields();
        let same = fields.and_then(|(time, timeline, start, random)| {
            let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
            let time = time.to_zoned(TimeZone::UTC).ok()?.timestamp();
            Some(BackupId::new(time, timeline, start, random) == id && timeline.0 > 0)
        });
        if same == Some(true) { Ok(id) } else { Err(NotABackupId(text.to_owned())) }
    }

    fn fields(&self) -> Option<(&str, TimelineId, Lsn, u16)> {
        let mut parts = self.0.split('-');
        let time = parts.next()?;
        let timeline = u32::from_str_radix(parts.next()?, 16).ok()?;
        let start = u64::from_str_radix(parts.next()?, 16).ok()?;
        let random = u16::from_str_radix(parts.next()?, 16).ok()?;
        Some((time, TimelineId(timeline), Lsn(start), random))
    }

    /// The order in which backups began, by what they name of WAL: a clock that was ahead for one of them changes nothing. That of names is the order of clocks.
    pub fn by_start(&self, other: &BackupId) -> Ordering {
        let start = |id: &BackupId| (id.timeline(), id.start());
        start(self).cmp(&start(other)).then_with(|| self.cmp(other))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The timeline on which the backup began.
    pub fn timeline(&self) -> TimelineId {
        self.fields().map_or(TimelineId(0), |f| f.1)
    }

    /// The position from which the backup needs WAL.
    pub fn start(&self) -> Lsn {
        self.fields().map_or(Lsn::INVALID, |f| f.2)
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_ahead_makes_no_backup_the_newest() {
        let id = |second, timeline, start| {
            BackupId::new(Timestamp::from_second(second).unwrap(), TimelineId(timeline), Lsn(start), 1)
        };
        let order = [id(9, 1, 10), id(3, 1, 20), id(4, 1, 20), id(1, 2, 5)];
        assert!(order.is_sorted_by(|a, b| a.by_start(b).is_lt()) && !order.is_sorted());
    }

    #[test]
    fn names_come_back_and_sort_by_time() {
        let time = Timestamp::from_second(1_769_824_800).unwrap();
        let id = BackupId::new(time, TimelineId(26), Lsn(0x3_0000_0028), 0x1a2b);
        assert_eq!(id.as_str(), "20260131T020000Z-0000001A-0000000300000028-1a2b");
        assert_eq!(BackupId::parse(id.as_str()), Ok(id.clone()));
        assert_eq!((id.timeline(), id.start()), (TimelineId(26), Lsn(0x3_0000_0028)));
        assert!(BackupId::new(Timestamp::from_second(1_769_824_801).unwrap(), TimelineId(1), Lsn(0), 0) > id);
    }

    #[test]
    fn refuses_what_is_no_name() {
        for bad in [
            "",
            "20260131T020000Z-00000000-0000000300000028-1a2b",
            "20260131T020000Z-0000001a-0000000300000028-1a2b",
            "20260131T020000Z-0000001A-0000000300000028-1A2B",
            "20260231T020000Z-0000001A-0000000300000028-1a2b",
            "20260131T020000Z-0000001A-0000000300000028-1a2b-",
            "20260131T020000Z-0000001A-300000028-1a2b",
            "../x",
        ] {
            assert_eq!(BackupId::parse(bad), Err(NotABackupId(bad.to_owned())), "{bad}");
        }
    }
}
