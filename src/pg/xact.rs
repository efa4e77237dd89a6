//! What recovery and `list` need to know of a record: commits, aborts, restore points, checkpoints, settings, and tablespaces.

use std::fmt;

use super::cursor::Cursor;
use super::record::{
    RM_TBLSPC, RM_XACT, RM_XLOG, Record, RelationFile, XLOG_OVERWRITE_CONTRECORD, XLOG_SWITCH, decode,
};
use super::{Lsn, MajorVersion, TimelineId};

/// Microseconds since 2000-01-01 00:00:00 UTC (`TimestampTz`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(pub i64);

/// Microseconds from 1970 to 2000, where `TimestampTz` begins.
const EPOCH: i64 = 946_684_800_000_000;

impl PgTime {
    /// Microseconds since 1970-01-01 00:00:00 UTC; times past the number range (PostgreSQL has none) stay at its end.
    pub fn to_unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH)
    }

    /// From microseconds since 1970-01-01 00:00:00 UTC; times before the number range stay at its start.
    pub fn from_unix_micros(micros: i64) -> PgTime {
        PgTime(micros.saturating_sub(EPOCH))
    }
}

/// In UTC with microseconds, as PostgreSQL's server prints and reads it: `2026-02-03 04:05:06.000007+00`.
impl fmt::Display for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: i64 = 86_400_000_000;
        let (year, month, day) = civil_date(self.0.div_euclid(DAY));
        let micros = self.0.rem_euclid(DAY);
        let seconds = micros / 1_000_000;
        let (h, m, s, fraction) = (seconds / 3600, seconds / 60 % 60, seconds % 60, micros % 1_000_000);
        write!(f, "{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}.{fraction:06}+00")
    }
}

/// Year, month and day of a day counted from 2000-01-01, in the Gregorian calendar continued both ways.
fn civil_date(day: i64) -> (i64, i64, i64) {
    // Years that begin on 1 March put the leap day last, so one formula gives the month; 2000-03-01 is day 60.
    let day = day - 60;
    let (cycle, in_cycle) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let century = (in_cycle / 36_524).min(3);
    let in_century = in_cycle - century * 36_524;
    let four = in_century / 1461;
    let in_four = in_century - four * 1461;
    let single = (in_four / 365).min(3);
    let in_year = in_four - single * 365;
    let month = (in_year * 5 + 2) / 153;
    let date = in_year - (month * 153 + 2) / 5 + 1;
    let year = 2000 + cycle * 400 + century * 100 + four * 4 + single + i64::from(month >= 10);
    (year, (month + 2) % 12 + 1, date)
}

/// The meaning of a record, as far as recovery targets and plans ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Commit, or commit prepared: then `xid` is the two-phase transaction's.
    Commit {
        xid: u32,
        time: PgTime,
        /// Relation files that go with this commit: drops, truncations, rewrites.
        dropped_relations: u32,
    },
    /// Abort, or abort prepared.
    Abort {
        xid: u32,
        time: PgTime,
    },
    RestorePoint {
        /// In the encoding of the database it was made in; bytes that are not UTF-8 are replaced.
        name: String,
        time: PgTime,
    },
    Checkpoint {
        redo: Lsn,
        timeline: TimelineId,
        previous_timeline: TimelineId,
        shutdown: bool,
    },
    EndOfRecovery {
        timeline: TimelineId,
        previous_timeline: TimelineId,
    },
    /// End of the base backup that began at `start` (`XLOG_BACKUP_END`).
    BackupEnd {
        start: Lsn,
    },
    Switch,
    ParameterChange(Parameters),
    /// CREATE TABLESPACE: whoever replays it makes the tablespace at this path of his own host (`create_tablespace_directories`, `commands/tablespace.c`).
    TablespaceMade {
        oid: u32,
        /// As it was given; empty for one inside the data directory (15 and later).
        location: Vec<u8>,
    },
    Other,
}

/// Settings of the primary that a hot standby's must not be below (`XLOG_PARAMETER_CHANGE`, pg_control).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
    pub wal_level: i32,
}

impl Note {
    /// The transaction that the record ends, and when: all that time and xid targets look at.
    pub fn ended(&self) -> Option<(u32, PgTime)> {
        match self {
            Note::Commit { xid, time, .. } | Note::Abort { xid, time } => Some((*xid, *time)),
            _ => None,
        }
    }

    /// Whether the server goes on under `wal_level = minimal` (`WAL_LEVEL_MINIMAL`, `access/xlog.h`): from there on not all that is done is in WAL.
    pub fn is_minimal(&self) -> bool {
        matches!(self, Note::ParameterChange(new) if new.wal_level == 0)
    }
}

/// `XLOG_TBLSPC_CREATE`.
const TABLESPACE_CREATE: u8 = 0x00;

/// Whether [`note`] reads the body of such a record; the scanner keeps it only then. Images, data changes, prepared
/// states and invalidations are passed over.
#[inline]
pub fn wanted(rmid: u8, info: u8) -> bool {
    match rmid {
        RM_XLOG => {
            matches!(info & 0xF0, 0x00 | 0x10 | XLOG_SWITCH | 0x50 | 0x60 | 0x70 | 0x90 | XLOG_OVERWRITE_CONTRECORD)
        }
        RM_XACT => matches!(info & 0x70, 0x00 | 0x20 | 0x30 | 0x40),
        RM_TBLSPC => info & 0xF0 == TABLESPACE_CREATE,
        _ => false,
    }
}

/// Reads a checked record. A record of a known kind with an impossible body is `Err`, with what was wrong.
pub fn note(record: &Record<'_>, version: MajorVersion) -> Result<Note, String> {
    if !wanted(record.rmid, record.info) {
        return Ok(Note::Other);
    }
    if let Some(ending) = ending(record, version)? {
        let Ending { xid, time, dropped, .. } = ending;
        let dropped_relations = (dropped.len() / 12) as u32;
        return Ok(if ending.abort {
            Note::Abort { xid, time }
        } else {
            Note::Commit { xid, time, dropped_relations }
        });
    }
    let main = decode(kept(record)?, version, &mut |_| ())?.main;
    let note = match record.rmid {
        RM_TBLSPC => tablespace(Cursor::new(main)),
        _ => xlog(record.info & 0xF0, Cursor::new(main), version),
    };
    note.ok_or_else(|| short(record, main))
}

/// `xl_tblspc_create_rec` (`commands/tablespace.h`): the path ends with a zero byte.
fn tablespace(mut main: Cursor<'_>) -> Option<Note> {
    let oid = main.u32()?;
    let end = main.rest().iter().position(|b| *b == 0)?;
    Some(Note::TablespaceMade { oid, location: main.take(end)?.to_vec() })
}

/// Records of the resource manager XLOG (`catalog/pg_control.h`, `access/xlog_internal.h`).
/// When a checkpoint began, in whole seconds by the server's clock (`CheckPoint.time`, `catalog/pg_control.h`); `None` for other records. It is
/// read before the redo point is fixed, so WAL before that point is not younger than the second that begins here.
pub fn checkpoint_time(record: &Record<'_>, version: MajorVersion) -> Option<PgTime> {
    if record.rmid != RM_XLOG || !matches!(record.info & 0xF0, 0x00 | 0x10) {
        return None;
    }
    let main = decode(record.body?, version, &mut |_| ()).ok()?.main;
    let seconds = main.get(64..72)?.try_into().ok().map(i64::from_le_bytes)?;
    Some(PgTime::from_unix_micros(seconds.checked_mul(1_000_000)?))
}

fn xlog(kind: u8, mut main: Cursor<'_>, version: MajorVersion) -> Option<Note> {
    Some(match kind {
        0x00 | 0x10 => Note::Checkpoint {
            redo: Lsn(main.u64()?),
            timeline: TimelineId(main.u32()?),
            previous_timeline: TimelineId(main.u32()?),
            shutdown: kind == 0x00,
        },
        XLOG_SWITCH => Note::Switch,
        0x50 => Note::BackupEnd { start: Lsn(main.u64()?) },
        0x60 => Note::ParameterChange(Parameters {
            max_connections: main.i32()?,
            max_worker_processes: main.i32()?,
            max_wal_senders: main.i32()?,
            max_prepared_transactions: main.i32()?,
            max_locks_per_transaction: main.i32()?,
            wal_level: main.i32()?,
        }),
        0x70 => {
            let time = PgTime(main.i64()?);
            let name = main.take(64)?;
            let name = name.split(|b| *b == 0).next()?;
            Note::RestorePoint { name: String::from_utf8_lossy(name).into_owned(), time }
        }
        0x90 => {
            let _time = main.i64()?;
            let note =
                Note::EndOfRecovery { timeline: TimelineId(main.u32()?), previous_timeline: TimelineId(main.u32()?) };
            if version >= MajorVersion::V17 {
                let _wal_level = main.i32()?;
            }
            note
        }
        _ => Note::Other,
    })
}

/// A commit or an abort, with what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending<'a> {
    /// The transaction that ends: the prepared one, where one is finished.
    pub xid: u32,
    pub time: PgTime,
    pub abort: bool,
    /// Database in which it ran, where the record says it.
    pub database: Option<u32>,
    subtransactions: &'a [u8],
    dropped: &'a [u8],
}

impl Ending<'_> {
    /// Subtransactions that end with it.
    pub fn subtransactions(&self) -> impl Iterator<Item = u32> + '_ {
        let (words, _) = self.subtransactions.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word))
    }

    /// Relation files that go: of an abort, those that it had made.
    pub fn dropped(&self) -> impl Iterator<Item = RelationFile> + '_ {
        let mut fields = Cursor::new(self.dropped);
        std::iter::from_fn(move || {
            Some(RelationFile { tablespace: fields.u32()?, database: fields.u32()?, number: fields.u32()? })
        })
    }
}

/// What a commit or abort says; `None` for every other record.
pub fn ending<'a>(record: &Record<'a>, version: MajorVersion) -> Result<Option<Ending<'a>>, String> {
    if record.rmid != RM_XACT || !matches!(record.info & 0x70, 0x00 | 0x20 | 0x30 | 0x40) {
        return Ok(None);
    }
    let main = decode(kept(record)?, version, &mut |_| ())?.main;
    transaction(record, Cursor::new(main), version).map(Some).ok_or_else(|| short(record, main))
}

/// The body of a record that was to be kept.
pub(super) fn kept<'a>(record: &Record<'a>) -> Result<&'a [u8], String> {
    record.body.ok_or_else(|| {
        format!("the record at {} of {} bytes is longer than walrecv reads", record.start, record.total_len)
    })
}

pub(super) fn short(record: &Record<'_>, main: &[u8]) -> String {
    format!("the record at {} has only {} bytes of main data", record.start, main.len())
}

/// Commits and aborts (`ParseCommitRecord`, `ParseAbortRecord`, `access/rmgrdesc/xactdesc.c`).
fn transaction<'a>(record: &Record<'a>, mut main: Cursor<'a>, version: MajorVersion) -> Option<Ending<'a>> {
    let kind = record.info & 0x70;
    let (abort, prepared) = (matches!(kind, 0x20 | 0x40), matches!(kind, 0x30 | 0x40));
    let time = PgTime(main.i64()?);
    let xinfo = if record.info & 0x80 != 0 { main.u32()? } else { 0 };
    let list = |main: &mut Cursor<'a>, bit: u32, size: usize| match xinfo & bit {
        0 => Some(&[][..]),
        _ => {
            let count = main.u32()? as usize;
            main.take(count.checked_mul(size)?)
        }
    };
    let mut database = None;
    if xinfo & 0x001 != 0 {
        database = Some(main.u32()?);
        let _tablespace = main.u32()?;
    }
    let subtransactions = list(&mut main, 0x002, 4)?;
    let dropped = list(&mut main, 0x004, 12)?;
    let _dropped_stats = list(&mut main, 0x100, if version >= MajorVersion::V18 { 16 } else { 12 })?;
    let _invalidations = list(&mut main, 0x008, 16)?;
    let two_phase = if xinfo & 0x010 != 0 { Some(main.u32()?) } else { None };
    // The transaction that ends is the prepared one; the record itself belongs to whoever finished it.
    let xid = if prepared { two_phase? } else { record.xid };
    Some(Ending { xid, time, abort, database, subtransactions, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_the_calendar_has_them() {
        for (unix, text) in [
            (0, "1970-01-01 00:00:00.000000+00"),
            (951_782_399, "2000-02-28 23:59:59.000000+00"),
            (951_782_400, "2000-02-29 00:00:00.000000+00"),
            (951_868_800, "2000-03-01 00:00:00.000000+00"),
            (1_709_164_800, "2024-02-29 00:00:00.000000+00"),
            (1_767_225_599, "2025-12-31 23:59:59.000000+00"),
            (1_767_225_600, "2026-01-01 00:00:00.000000+00"),
            (4_107_542_400, "2100-03-01 00:00:00.000000+00"),
            (4_107_456_000, "2100-02-28 00:00:00.000000+00"),
            (-1, "1969-12-31 23:59:59.000000+00"),
        ] {
            let time = PgTime::from_unix_micros(unix * 1_000_000);
            assert_eq!(time.to_string(), text);
            assert_eq!(time.to_unix_micros(), unix * 1_000_000);
        }
        assert_eq!(PgTime(-1).to_string(), "1999-12-31 23:59:59.999999+00");
        assert!(PgTime(i64::MAX).to_unix_micros() == i64::MAX && !PgTime(i64::MIN).to_string().is_empty());
    }
}
