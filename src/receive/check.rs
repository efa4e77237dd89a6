//! Every byte is checked before a commit that waits for it is released: the scanner's rules, the comparison with what earlier runs stored, and the summary
//! of what went by.

use std::borrow::Cow;
use std::ops::Range;

use super::compare::{Comparison, Differs};
use crate::pg::record::{RM_XLOG, Record, XLOG_OVERWRITE_CONTRECORD};
use crate::pg::scan::{Invalid, ScanConfig, WalScanner};
use crate::pg::switch::blank;
use crate::pg::{Lsn, xact};

/// Why bytes were refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Differs(#[from] Differs),
    /// An earlier run told the server of the head of this record, as it does when the server stops, and never saw all of it. It is received again from the
    /// object before `start` on.
    #[error("the record that began before {start} and ends at {end} was never checked")]
    Headless { start: Lsn, end: Lsn },
    /// The repository is an earlier state of the one that was written to: what this run stored is looked for, and received again.
    #[error("{0} is gone from the repository, where this run stored it")]
    SetBack(String),
    /// Not the server's fault: the segment is received again.
    #[error("the tail cannot be read back: {0}")]
    Forgotten(String),
}

/// The record that the first one of a run must name as the one before it, and the stored object that it is known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub record: Lsn,
    pub object: String,
}

/// What is known of the WAL before the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub link: Option<Link>,
    /// Where the slot stood: up to there earlier runs have reported.
    pub reported: Option<Lsn>,
}

/// Checks a stream of WAL from one start on.
pub struct Check {
    config: ScanConfig,
    scanner: WalScanner,
    comparison: Comparison,
    /// Until the first record has come.
    link: Option<Link>,
    /// What lies behind the last WAL switch, in the same segment.
    switch: Option<Range<Lsn>>,
    start: Lsn,
    /// Up to where earlier runs have reported, where that is known: of records that end later they may have seen the head only.
    known: Option<Lsn>,
}

impl Link {
    /// What a first record proves that names another one: the server has other WAL before it than is stored. A record that says that the one before it was
    /// broken off names the last whole one, which may lie further back.
    fn broken_by(self, first: &Record<'_>) -> Option<Differs> {
        let voids = first.rmid == RM_XLOG && first.info & 0xF0 == XLOG_OVERWRITE_CONTRECORD;
        let broken = first.prev != self.record && !voids;
        // The first record that a server writes after pg_resetwal names none.
        let named = Some(first.prev).filter(|prev| *prev != Lsn(0)).unwrap_or(self.record);
        broken.then(|| Differs { name: self.object, from: named.min(self.record), to: first.start })
    }
}

impl Check {
    pub fn new(config: ScanConfig, start: Lsn, comparison: Comparison, known: Known) -> Check {
        let Known { link, reported: known } = known;
        Check { config, scanner: WalScanner::new(config, start), comparison, link, switch: None, start, known }
    }

    /// The next bytes; `sink` is shown each record that ends in them, with its meaning. What counts are these bytes, with zeros behind each WAL switch.
    pub fn feed<'b>(
        &mut self,
        bytes: &'b [u8],
        sink: &mut dyn FnMut(&Record<'_>, &xact::Note),
    ) -> Result<Cow<'b, [u8]>, Refused> {
        let at = self.scanner.received();
        let version = self.config.version;
        let (mut problem, mut broken) = (None, None);
        let mut blanked = Cow::Borrowed(bytes);
        let (link, switch) = (&mut self.link, &mut self.switch);
        switch.iter().for_each(|switch| blank(&mut blanked, at, switch));
        self.scanner.feed(bytes, &mut |record| {
            broken = broken.take().or(link.take().and_then(|link| link.broken_by(record)));
            if record.written < record.end {
                blank(&mut blanked, at, switch.insert(record.written..record.end));
            }
            match xact::note(record, version) {
                Ok(note) => sink(record, &note),
                Err(text) => problem = problem.take().or(Some(Invalid { at: record.start, problem: text })),
            }
        })?;
        if let Some(end) = self.scanner.skipped()
            && let Some(known) = self.known.take()
            && end > known
        {
            return Err(Refused::Headless { start: self.start, end });
        }
        if let Some(differs) = broken {
            return Err(Refused::Differs(differs));
        }
        if let Some(invalid) = problem {
            return Err(invalid.into());
        }
        self.comparison.feed(at, &blanked)?;
        Ok(blanked)
    }

    /// End of all bytes that were fed.
    pub fn received(&self) -> Lsn {
        self.scanner.received()
    }

    /// End of the last checked record.
    pub fn checked(&self) -> Lsn {
        self.scanner.checked()
    }

    /// `lsn`, or where the comparison has come to if that is lower. Bytes that an earlier run has differently must not get into a second tail: whoever reads
    /// the two would find that they disagree, about bytes that were acknowledged.
    pub fn keepable(&self, lsn: Lsn) -> Lsn {
        self.compared().map_or(lsn, |compared| lsn.min(compared))
    }

    /// Up to where stored copies were compared; `None` when nothing is left to compare.
    pub fn compared(&self) -> Option<Lsn> {
        self.comparison.limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_wal_before_the_first_record_is_told_from_where_it_differs() {
        let told = |prev: u64| {
            let (start, end) = (Lsn(0x500), Lsn(0x540));
            let first = Record {
                start,
                end,
                written: end,
                prev: Lsn(prev),
                xid: 0,
                rmid: RM_XLOG,
                info: 0,
                total_len: 64,
                crc: 0,
                body: None,
            };
            let link = Link { record: Lsn(0x480), object: "wal/x".to_owned() };
            link.broken_by(&first).map(|differs| (differs.from.0, differs.to.0))
        };
        assert_eq!(told(0x480), None);
        assert_eq!((told(0x4C0), told(0x400)), (Some((0x480, 0x500)), Some((0x400, 0x500))));
        assert_eq!(told(0), Some((0x480, 0x500)), "the first record after pg_resetwal names none");
    }
}
