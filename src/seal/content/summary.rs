//! Summary of a segment: frame 0 of its object.

use serde::{Deserialize, Serialize};

use super::{Malformed, hex, unhex};
use crate::pg::record::Record;
use crate::pg::xact::{Note, PgTime};
use crate::pg::{Lsn, TimelineId};

const WHAT: &str = "summary";
/// Longest encoded summary: with it, header and frame 0 fit the first 8 KiB of the object.
pub const SUMMARY_BYTES: usize = 6 << 10;
/// Most entries of each of the lists; the encoding may keep fewer restore points.
const MOST: usize = 32;

/// What is known of one segment (or part, or `.partial`) without opening its content. JSON. It speaks of the records that end in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub start: Lsn,
    pub end: Lsn,
    /// Keyed BLAKE3 of the bytes from `start` to `end`.
    pub hash: [u8; 32],
    pub records: u64,
    pub commits: u64,
    pub aborts: u64,
    pub checkpoints: u64,
    /// Earliest and latest time of a commit or abort record (they do not grow steadily).
    pub times: Option<(PgTime, PgTime)>,
    /// Lowest and highest transaction id of a record, as numbers: at a wraparound the span holds nearly all.
    pub xids: Option<(u32, u32)>,
    /// First record that starts at or after `start`: where reading may begin.
    pub first_record: Option<Lsn>,
    pub last_record: Option<LastRecord>,
    pub restore_points: Vec<RestorePoint>,
    /// There are more restore points than are listed: scan.
    pub more_restore_points: bool,
    /// Where a timeline began: ends of recovery, and checkpoints that say so.
    pub timelines: Vec<TimelineStart>,
    /// Base backups that ended here.
    pub backup_ends: Vec<BackupEnd>,
    /// There are more `timelines` or `backup_ends` than are listed: scan.
    pub more_notes: bool,
    /// The segment was left early (`pg_switch_wal`): zeros follow the last record.
    pub switched: bool,
}

/// The last record that ends in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    #[serde(with = "lsn_text")]
    pub start: Lsn,
    #[serde(with = "lsn_text")]
    pub end: Lsn,
    pub crc: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    pub name: String,
    #[serde(with = "time_number")]
    pub time: PgTime,
    /// End of its record, as `pg_create_restore_point` returned it.
    #[serde(with = "lsn_text")]
    pub lsn: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStart {
    /// Start of the record that says it.
    #[serde(with = "lsn_text")]
    pub at: Lsn,
    #[serde(with = "timeline_number")]
    pub timeline: TimelineId,
    #[serde(with = "timeline_number")]
    pub previous: TimelineId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEnd {
    /// Where the backup began (`XLOG_BACKUP_END` names it).
    #[serde(with = "lsn_text")]
    pub start: Lsn,
    /// End of the record: recovery from the backup is consistent here.
    #[serde(with = "lsn_text")]
    pub end: Lsn,
}

impl Summary {
    /// A summary of bytes in which no record ends.
    pub fn of(start: Lsn, end: Lsn, hash: [u8; 32]) -> Summary {
        SummaryBuilder::new(start).finish(end, hash)
    }

    /// JSON of at most [`SUMMARY_BYTES`]; restore points that do not fit are left out, and that is said.
    pub fn encode(&self) -> Vec<u8> {
        let mut stored = Stored::from(self);
        loop {
            let out = serde_json::to_vec(&stored).expect("numbers and strings are valid JSON");
            if out.len() <= SUMMARY_BYTES {
                return out;
            }
            stored.more_restore_points = true;
            if stored.restore_points.pop().is_none() {
                stored.more_notes = true;
                stored.timelines.truncate(stored.timelines.len() / 2);
                stored.backup_ends.truncate(stored.backup_ends.len() / 2);
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Summary, Malformed> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| Malformed::new(WHAT, error))?;
        Summary::try_from(stored)
    }
}

impl TryFrom<Stored> for Summary {
    type Error = Malformed;

    fn try_from(stored: Stored) -> Result<Summary, Malformed> {
        let hash = unhex(&stored.hash)
            .ok_or_else(|| Malformed::new(WHAT, format!("hash {:?}, expected 64 hexadecimal digits", stored.hash)))?;
        if stored.end < stored.start {
            return Err(Malformed::new(WHAT, format!("ends at {} before its start {}", stored.end, stored.start)));
        }
        Ok(Summary {
            start: stored.start,
            end: stored.end,
            hash,
            records: stored.records,
            commits: stored.commits,
            aborts: stored.aborts,
            checkpoints: stored.checkpoints,
            times: stored.times.map(|(min, max)| (PgTime(min), PgTime(max))),
            xids: stored.xids,
            first_record: stored.first_record.0,
            last_record: stored.last_record,
            restore_points: stored.restore_points,
            more_restore_points: stored.more_restore_points,
            timelines: stored.timelines,
            backup_ends: stored.backup_ends,
            more_notes: stored.more_notes,
            switched: stored.switched,
        })
    }
}

/// As in frame 0; the length is not limited here.
impl Serialize for Summary {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Stored::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Summary {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Summary, D::Error> {
        Summary::try_from(Stored::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Gathers a summary, record by record.
#[derive(Clone, Debug)]
pub struct SummaryBuilder {
    summary: Summary,
}

impl SummaryBuilder {
    pub fn new(start: Lsn) -> SummaryBuilder {
        SummaryBuilder {
            summary: Summary {
                start,
                end: start,
                hash: [0; 32],
                records: 0,
                commits: 0,
                aborts: 0,
                checkpoints: 0,
                times: None,
                xids: None,
                first_record: None,
                last_record: None,
                restore_points: Vec::new(),
                more_restore_points: false,
                timelines: Vec::new(),
                backup_ends: Vec::new(),
                more_notes: false,
                switched: false,
            },
        }
    }

    /// Adds a record that ends in these bytes: `record.end` is above `start` and not above the end that [`SummaryBuilder::finish`] is given.
    pub fn add(&mut self, record: &Record<'_>, note: &Note) {
        let summary = &mut self.summary;
        summary.records += 1;
        if summary.first_record.is_none() && record.start >= summary.start {
            summary.first_record = Some(record.start);
        }
        summary.last_record = Some(LastRecord { start: record.start, end: record.end, crc: record.crc });
        span(&mut summary.xids, Some(record.xid).filter(|xid| *xid != 0));
        match note {
            Note::Commit { xid, time, .. } => {
                summary.commits += 1;
                span(&mut summary.times, Some(*time));
                span(&mut summary.xids, Some(*xid).filter(|xid| *xid != 0));
            }
            Note::Abort { xid, time } => {
                summary.aborts += 1;
                span(&mut summary.times, Some(*time));
                span(&mut summary.xids, Some(*xid).filter(|xid| *xid != 0));
            }
            Note::RestorePoint { name, time } => {
                let point = RestorePoint { name: name.clone(), time: *time, lsn: record.end };
                keep(&mut summary.restore_points, point, &mut summary.more_restore_points);
            }
            Note::Checkpoint { timeline, previous_timeline, .. } => {
                summary.checkpoints += 1;
                if timeline != previous_timeline {
                    self.timeline(record.start, *timeline, *previous_timeline);
                }
            }
            Note::EndOfRecovery { timeline, previous_timeline } => {
                self.timeline(record.start, *timeline, *previous_timeline);
            }
            Note::BackupEnd { start } => {
                let ended = BackupEnd { start: *start, end: record.end };
                keep(&mut summary.backup_ends, ended, &mut summary.more_notes);
            }
            Note::Switch => summary.switched = true,
            Note::ParameterChange(_) | Note::TablespaceMade { .. } | Note::Other => {}
        }
    }

    fn timeline(&mut self, at: Lsn, timeline: TimelineId, previous: TimelineId) {
        let begun = TimelineStart { at, timeline, previous };
        keep(&mut self.summary.timelines, begun, &mut self.summary.more_notes);
    }

    /// `hash` is the keyed hash of the bytes from the start to `end`.
    pub fn finish(mut self, end: Lsn, hash: [u8; 32]) -> Summary {
        self.summary.end = end;
        self.summary.hash = hash;
        self.summary
    }
}

fn span<T: Ord + Copy>(span: &mut Option<(T, T)>, value: Option<T>) {
    if let Some(value) = value {
        let (min, max) = span.unwrap_or((value, value));
        *span = Some((min.min(value), max.max(value)));
    }
}

fn keep<T>(list: &mut Vec<T>, entry: T, more: &mut bool) {
    if list.len() < MOST {
        list.push(entry);
    } else {
        *more = true;
    }
}

/// The JSON members, in this order. Members that are not known are skipped, so that later versions may add some.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(with = "lsn_text")]
    start: Lsn,
    #[serde(with = "lsn_text")]
    end: Lsn,
    hash: String,
    records: u64,
    commits: u64,
    aborts: u64,
    checkpoints: u64,
    times: Option<(i64, i64)>,
    xids: Option<(u32, u32)>,
    first_record: MaybeLsn,
    last_record: Option<LastRecord>,
    restore_points: Vec<RestorePoint>,
    more_restore_points: bool,
    timelines: Vec<TimelineStart>,
    backup_ends: Vec<BackupEnd>,
    more_notes: bool,
    switched: bool,
}

impl From<&Summary> for Stored {
    fn from(summary: &Summary) -> Stored {
        Stored {
            start: summary.start,
            end: summary.end,
            hash: hex(&summary.hash),
            records: summary.records,
            commits: summary.commits,
            aborts: summary.aborts,
            checkpoints: summary.checkpoints,
            times: summary.times.map(|(min, max)| (min.0, max.0)),
            xids: summary.xids,
            first_record: MaybeLsn(summary.first_record),
            last_record: summary.last_record,
            restore_points: summary.restore_points.clone(),
            more_restore_points: summary.more_restore_points,
            timelines: summary.timelines.clone(),
            backup_ends: summary.backup_ends.clone(),
            more_notes: summary.more_notes,
            switched: summary.switched,
        }
    }
}

/// An LSN as text, or null.
struct MaybeLsn(Option<Lsn>);

impl Serialize for MaybeLsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.map(|lsn| lsn.to_string()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MaybeLsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<MaybeLsn, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse()).transpose().map(MaybeLsn).map_err(serde::de::Error::custom)
    }
}

/// LSNs as PostgreSQL prints them.
mod lsn_text {
    use super::*;

    pub fn serialize<S: serde::Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Microseconds since 2000-01-01 00:00:00 UTC.
mod time_number {
    use super::*;

    pub fn serialize<S: serde::Serializer>(time: &PgTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.0)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PgTime, D::Error> {
        i64::deserialize(deserializer).map(PgTime)
    }
}

mod timeline_number {
    use super::*;

    pub fn serialize<S: serde::Serializer>(timeline: &TimelineId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(timeline.0)
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<TimelineId, D::Error> {
        u32::deserialize(deserializer).map(TimelineId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(start: u64, end: u64, xid: u32) -> Record<'static> {
        let (prev, crc) = (Lsn(start - 8), start as u32);
        Record {
            start: Lsn(start),
            end: Lsn(end),
            written: Lsn(end),
            prev,
            xid,
            rmid: 0,
            info: 0,
            total_len: 30,
            crc,
            body: None,
        }
    }

    #[test]
    fn gathers_what_plans_ask_for() {
        let mut builder = SummaryBuilder::new(Lsn(0x100_0000));
        let add =
            |builder: &mut SummaryBuilder, start, xid, note: Note| builder.add(&record(start, start + 32, xid), &note);
        // Begun in the segment before.
        add(&mut builder, 0xFF_FFF0, 700, Note::Other);
        add(&mut builder, 0x100_0040, 0, Note::Other);
        let commit = |xid, time| Note::Commit { xid, time: PgTime(time), dropped_relations: 0 };
        add(&mut builder, 0x100_0060, 0, commit(650, 5_000));
        add(&mut builder, 0x100_0080, 702, Note::Abort { xid: 702, time: PgTime(-3) });
        add(&mut builder, 0x100_00A0, 0, Note::RestorePoint { name: "vor \"dem\" Umbau".into(), time: PgTime(9_999) });
        let (two, one) = (TimelineId(2), TimelineId(1));
        add(&mut builder, 0x100_00C0, 0, Note::EndOfRecovery { timeline: two, previous_timeline: one });
        let checkpoint =
            |timeline| Note::Checkpoint { redo: Lsn(1), timeline, previous_timeline: two, shutdown: false };
        add(&mut builder, 0x100_00E0, 0, checkpoint(two));
        add(&mut builder, 0x100_0100, 0, Note::BackupEnd { start: Lsn(0x42) });
        add(&mut builder, 0x100_0120, 0, Note::Switch);
        let summary = builder.finish(Lsn(0x200_0000), [0xEE; 32]);

        assert_eq!((summary.records, summary.commits, summary.aborts, summary.checkpoints), (9, 1, 1, 1));
        assert_eq!(summary.times, Some((PgTime(-3), PgTime(5_000))), "restore points do not count");
        assert_eq!(summary.xids, Some((650, 702)));
        assert_eq!(summary.first_record, Some(Lsn(0x100_0040)));
        let last = LastRecord { start: Lsn(0x100_0120), end: Lsn(0x100_0140), crc: 0x100_0120 };
        assert_eq!(summary.last_record, Some(last));
        assert_eq!(summary.restore_points[0].lsn, Lsn(0x100_00C0));
        assert_eq!(summary.timelines, [TimelineStart { at: Lsn(0x100_00C0), timeline: two, previous: one }]);
        assert_eq!(summary.backup_ends, [BackupEnd { start: Lsn(0x42), end: Lsn(0x100_0120) }]);
        assert!(summary.switched && !summary.more_restore_points && !summary.more_notes);
        assert_eq!(Summary::decode(&summary.encode()), Ok(summary));
    }

    #[test]
    fn never_longer_than_six_kibibytes() {
        let mut builder = SummaryBuilder::new(Lsn(u64::MAX - 9));
        for at in 0..200 {
            let name = "\u{1}".repeat(63);
            let time = PgTime(i64::MIN + at as i64);
            builder.add(&record(u64::MAX - 9, u64::MAX, u32::MAX), &Note::RestorePoint { name, time });
            builder.add(&record(u64::MAX - 9, u64::MAX, 3), &Note::BackupEnd { start: Lsn(u64::MAX) });
            let (timeline, previous_timeline) = (TimelineId(u32::MAX), TimelineId(u32::MAX - 1));
            builder.add(&record(u64::MAX - 9, u64::MAX, 3), &Note::EndOfRecovery { timeline, previous_timeline });
        }
        let summary = builder.finish(Lsn(u64::MAX), [0xFF; 32]);
        let encoded = summary.encode();
        assert!(encoded.len() <= SUMMARY_BYTES, "{} bytes", encoded.len());
        let read = Summary::decode(&encoded).unwrap();
        assert!(read.more_restore_points && read.more_notes);
        assert!(!read.timelines.is_empty() && !read.backup_ends.is_empty());
        let kept = read.restore_points.len();
        assert_eq!(read.restore_points[..], summary.restore_points[..kept]);
    }

    #[test]
    fn refuses_what_no_writer_writes() {
        let good = String::from_utf8(Summary::of(Lsn(16), Lsn(32), [1; 32]).encode()).unwrap();
        assert!(Summary::decode(good.as_bytes()).is_ok());
        for (from, to) in [("0/10", "0/30"), ("0101", "01"), ("\"records\":0", "\"records\":-1"), ("}", "")] {
            assert!(Summary::decode(good.replacen(from, to, 1).as_bytes()).is_err(), "{from} → {to}");
        }
    }
}
