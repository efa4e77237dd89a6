//! Commits up to a target time in some WAL, counted one by one where no summary tells.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::path::Path;
use super::plan::Commit;
use super::scan::Route;
use super::target::Target;
use crate::archive::Archive;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::xact::{self, Note, PgTime};
use crate::pg::{Lsn, SegmentNumber};
use crate::seal::content::summary::Summary;

/// What the summaries of a segment's objects tell of the records that end in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tells {
    pub bytes: u64,
    pub commits: u64,
    /// Of commits and rollbacks.
    pub times: Option<(PgTime, PgTime)>,
    /// Some record begins in it, and ends in it.
    begins: bool,
    /// Of some object without a record, which speaks of bytes alone; not of the zeros behind a switch.
    pub is_mute: bool,
    is_switched: bool,
}

/// So many segments are read, at most, for what is told beside a landing.
pub const READ: usize = 16;

/// The same of the segments of a path. Of one that is not complete no summary tells.
#[derive(Debug, Default)]
pub struct Told(pub BTreeMap<SegmentNumber, Tells>);

impl Told {
    /// Of the segments from the one with `from` on.
    pub async fn of(archive: &Archive, path: &Path, from: Lsn) -> Result<Told> {
        let size = archive.names.segment_size;
        let mut told = Told::default();
        let see = |summary: &Summary| told.see(size.segment_of(summary.start), summary);
        archive.summaries_along(path, size.segment_of(from).start(size), see).await?;
        Ok(told)
    }

    /// The objects of a segment come in order.
    fn see(&mut self, number: SegmentNumber, summary: &Summary) {
        let tells = self.0.entry(number).or_default();
        tells.bytes += summary.end.since(summary.start);
        tells.commits += summary.commits;
        tells.begins |= summary.first_record.is_some();
        tells.is_mute |= summary.records == 0 && !tells.is_switched;
        tells.is_switched |= summary.switched;
        let both = tells.times.into_iter().chain(summary.times);
        tells.times = both.reduce(|(a, b), (earliest, latest)| (a.min(earliest), b.max(latest)));
    }

    /// Where reading has to begin to see every record that ends in segment `number`; not before `first`.
    pub fn reading_from(&self, number: SegmentNumber, first: SegmentNumber) -> SegmentNumber {
        let mut from = number.0;
        while from > first.0 {
            from -= 1;
            if self.0.get(&SegmentNumber(from)).is_none_or(|tells| tells.begins) {
                break;
            }
        }
        SegmentNumber(from)
    }
}

/// Which commits count: up to the target, by records that start at or after `begin` and end in `segments`.
#[derive(Clone, Debug)]
pub struct Wish<'t> {
    pub target: &'t Target,
    pub begin: Lsn,
    pub segments: RangeInclusive<SegmentNumber>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub commits: u64,
    /// In the order of WAL.
    pub first: Option<Commit>,
    /// By time; of equal ones the last in WAL.
    pub newest: Option<Commit>,
    /// Some of that WAL is missing or damaged.
    pub is_short: bool,
}

impl Counted {
    pub fn join(&mut self, other: Counted) {
        self.commits += other.commits;
        self.first = self.first.or(other.first);
        self.newest = newest(self.newest, other.newest);
        self.is_short |= other.is_short;
    }

    fn see(&mut self, commit: Commit) {
        self.join(Counted { commits: 1, first: Some(commit), newest: Some(commit), is_short: false });
    }
}

fn newest(one: Option<Commit>, other: Option<Commit>) -> Option<Commit> {
    one.into_iter().chain(other).max_by_key(|commit| (commit.time, commit.start))
}

impl Route<'_> {
    /// Reads segments from `from` on, to the end of the wish: a record that ends in the first of its segments may have begun before that. What cannot be read is
    /// told, and refuses nothing.
    pub async fn count(&self, wish: &Wish<'_>, from: SegmentNumber) -> Counted {
        let mut counted = Counted::default();
        let mut scanner = None;
        let mut number = from;
        while number <= *wish.segments.end() {
            let read = self.count_one(wish, number, &mut scanner, &mut counted).await;
            let is_whole = read.unwrap_or_else(|error| {
                tracing::warn!("what WAL beside the restore holds is not all known: {error}");
                false
            });
            if !is_whole {
                scanner = None;
                counted.is_short |= wish.segments.contains(&number);
            }
            number = number.next();
        }
        counted
    }

    /// Whether the segment is there as far as its WAL went.
    async fn count_one(
        &self,
        wish: &Wish<'_>,
        number: SegmentNumber,
        scanner: &mut Option<WalScanner>,
        counted: &mut Counted,
    ) -> Result<bool> {
        let size = self.archive.names.segment_size;
        let (name, bytes) = self.archive.read_along(self.path, number, self.inventory).await?;
        let first = wish.segments.start().start(size);
        let mut problem = None;
        let scanner = scanner.get_or_insert_with(|| {
            let (version, system) = (self.version, self.archive.names.system);
            let config = ScanConfig { version, system, timeline: self.path.target(), segment_size: size };
            WalScanner::new(config, number.start(size))
        });
        let fed = scanner.feed(&bytes, &mut |record| match xact::note(record, self.version) {
            Ok(Note::Commit { xid, time, .. }) => {
                let counts = record.start >= wish.begin && record.end > first && wish.target.takes(time);
                if counts {
                    counted.see(Commit { xid, time, start: record.start, end: record.end });
                }
            }
            Ok(_) => {}
            Err(what) => problem = Some(what),
        });
        match fed.map_err(|invalid| invalid.to_string()).err().or(problem) {
            Some(what) => Err(Error::new(Kind::Corrupt, what)).context(name),
            None if bytes.len() as u64 == size.bytes() => Ok(true),
            None => Ok(self.path.beyond(self.inventory, number, name.start() + bytes.len() as u64, size).is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_behind_a_switch_are_told_and_a_part_without_a_record_is_not() {
        let part = |at: u64, records: u64, switched: bool| {
            let first_record = (records > 0).then_some(Lsn(at));
            Summary { records, switched, first_record, ..Summary::of(Lsn(at), Lsn(at + 100), [0; 32]) }
        };
        let tells = |parts: &[Summary]| {
            let mut told = Told::default();
            parts.iter().for_each(|part| told.see(SegmentNumber(7), part));
            told.0.remove(&SegmentNumber(7)).expect("a segment")
        };
        let switched = tells(&[part(0, 5, true), part(100, 0, false), part(200, 0, false)]);
        assert_eq!((switched.is_mute, switched.bytes), (false, 300));
        assert!(tells(&[part(0, 5, false), part(100, 0, false), part(200, 3, true)]).is_mute);
    }

    #[test]
    fn reading_begins_where_a_record_does() {
        let tells = |begins| Tells { begins, ..Tells::default() };
        let told =
            Told([(3, true), (4, false), (5, false)].map(|(n, begins)| (SegmentNumber(n), tells(begins))).into());
        let from = |number, first| told.reading_from(SegmentNumber(number), SegmentNumber(first)).0;
        assert_eq!([from(6, 0), from(5, 0), from(6, 4), from(4, 4)], [3, 3, 4, 4]);
        assert_eq!(from(3, 0), 2, "of that nothing is told");
    }
}
