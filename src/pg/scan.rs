//! WalScanner: feed WAL bytes as they arrive, get checked records; every page header, CRC-32C and previous-record link
//! is verified.
//!
//! The machine reads like `XLogReadRecord` (`access/transam/xlogreader.c`), turned inside out: it is given bytes
//! instead of asking for pages, so that any cut of the input gives the same records and the same error. Nothing is
//! copied but headers that a cut or a page border splits, and the bodies that [`super::xact::wanted`] names where they
//! do not lie in one piece.

use super::page::{self, PAGE_SIZE};
use super::record::Record;
use super::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};

mod pages;
mod partial;
mod records;

use partial::Partial;

/// Longest body that [`Record::body`] gives; a commit of more than 60 million subtransactions would pass it.
pub const MAX_BODY: usize = 256 << 20;

/// What the WAL that is fed must belong to.
#[derive(Clone, Copy, Debug)]
pub struct ScanConfig {
    pub version: MajorVersion,
    pub system: SystemIdentifier,
    /// The timeline that is read. Pages may belong to it or, before its fork, to lower ones; numbers never decrease.
    pub timeline: TimelineId,
    pub segment_size: SegmentSize,
}

/// Start (`xl_prev` of the next record), and CRC of the last record that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub start: Lsn,
    /// As [`Record::end`].
    pub end: Lsn,
    pub crc: u32,
}

/// Why WAL was refused: what was expected, what was found, and where: the start of the page or record that
/// is wrong, or the byte that should be zero.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL at {at}: {problem}")]
pub struct Invalid {
    pub at: Lsn,
    pub problem: String,
}

/// The machine. Starts at a page border (usually a segment's start) or at the end of a record; skips the continuation
/// of a record that began before the start.
#[derive(Debug)]
pub struct WalScanner {
    config: ScanConfig,
    /// Records beyond those of [`super::xact::wanted`] whose bodies are kept, by resource manager and info.
    also: Option<fn(u8, u8) -> bool>,
    start: Lsn,
    received: Lsn,
    checked: Lsn,
    last: Option<Mark>,
    place: Place,
    /// Timeline of the last page; 0 before the first.
    page_timeline: TimelineId,
    /// Bytes of a page header that a cut splits.
    page_header: [u8; page::LONG_HEADER],
    partial: Partial,
    overwrite: Option<Overwritten>,
    /// End of the continuation that was passed over.
    skipped: Option<Lsn>,
    failed: Option<Invalid>,
}

/// What the byte at `received` belongs to, page headers aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A new record.
    Between,
    /// The record in `partial`.
    Inside,
    /// A record that began before the start; so many of its bytes are still to come.
    Skipping(u32),
    /// What stands behind a WAL switch, up to the end of the segment.
    Switched(Lsn),
    /// Zeros after the end of WAL.
    Ended,
}

/// The page that was entered voids a record.
#[derive(Clone, Copy, Debug)]
struct Overwritten {
    /// Where that record began; unknown when before the start.
    record: Option<Lsn>,
}

type Sink<'s> = &'s mut dyn FnMut(&Record<'_>);

impl WalScanner {
    /// `start` is a page border, or the start of a record; the first record's `xl_prev` is unknown.
    pub fn new(config: ScanConfig, start: Lsn) -> WalScanner {
        let in_page = start.0 % PAGE_SIZE;
        let header = page::header_len(start.align_down(PAGE_SIZE), &config) as u64;
        let possible = in_page == 0 || (in_page >= header && in_page.is_multiple_of(8));
        let problem =
            || "no record starts there: neither a page border nor an aligned place after a page header".into();
        WalScanner {
            config,
            also: None,
            start,
            received: start,
            checked: start,
            last: None,
            place: Place::Between,
            page_timeline: TimelineId(0),
            page_header: [0; page::LONG_HEADER],
            partial: Partial::new(),
            overwrite: None,
            skipped: None,
            failed: (!possible).then(|| Invalid { at: start, problem: problem() }),
        }
    }

    /// Goes on after a record that is known to be good, usually the last one of what is stored: starts at `mark.end`,
    /// and the next record must name `mark.start` as its predecessor.
    pub fn resume(config: ScanConfig, mark: Mark) -> WalScanner {
        WalScanner { last: Some(mark), ..WalScanner::new(config, mark.end) }
    }

    /// Keeps the bodies of more records (by resource manager and info) than those that [`super::xact::wanted`] names. To be said before anything is fed.
    pub fn keeping(self, also: fn(u8, u8) -> bool) -> WalScanner {
        WalScanner { also: Some(also), ..self }
    }

    /// Checks the next bytes, calling `sink` for each record that is complete, its padding included. Any cut of the
    /// input gives the same records. After an error the scanner refuses everything; [`WalScanner::checked`] stays good.
    ///
    /// For bytes that a server says it has flushed: there, a record of length zero or a page without a header is an
    /// error.
    pub fn feed(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<(), Invalid> {
        self.run(bytes, false, sink)?;
        Ok(())
    }

    /// As [`WalScanner::feed`], for WAL that may end and be filled up with zeros: a segment file, or a tail that was
    /// laid out at full length. Gives the end of WAL, which is [`WalScanner::checked`], once a record of length zero or
    /// a page header of zeros is found; all bytes after it must be zero too. A record that such zeros interrupt at a
    /// page border is not part of the WAL. Zeros that begin inside a page *and* inside a record are damage (a server's
    /// flush never ends there), so feed no byte beyond the known end of a prefix that was cut elsewhere.
    pub fn feed_until_end(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<Option<Lsn>, Invalid> {
        self.run(bytes, true, sink)?;
        Ok((self.place == Place::Ended).then_some(self.checked))
    }

    /// End of all bytes that were fed; after an error, about where it was found.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// End of the last checked record (8-aligned; after a WAL switch, the end of the segment once that has come);
    /// the start while there is none. Never above [`WalScanner::received`].
    pub fn checked(&self) -> Lsn {
        self.checked
    }

    /// The last checked record; before there is one, the mark that scanning was resumed from.
    pub fn last(&self) -> Option<Mark> {
        self.last
    }

    /// End of the record that began before the start, padding included, once it has been passed over: nothing of it was checked.
    pub fn skipped(&self) -> Option<Lsn> {
        self.skipped
    }

    /// Start of the record whose bytes are still arriving. `None` between records, inside one that began before the
    /// start, and after an error.
    pub fn pending(&self) -> Option<Lsn> {
        (self.place == Place::Inside && self.failed.is_none()).then_some(self.partial.start)
    }

    fn run(&mut self, bytes: &[u8], may_end: bool, sink: Sink<'_>) -> Result<(), Invalid> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let before = self.received;
            if let Err(invalid) = self.step(rest, may_end, sink) {
                self.failed = Some(invalid.clone());
                return Err(invalid);
            }
            rest = rest.get(self.received.since(before) as usize..).unwrap_or_default();
        }
        Ok(())
    }

    /// Takes at least one byte of `bytes`, none beyond the page, and moves `received` by as many.
    fn step(&mut self, bytes: &[u8], may_end: bool, sink: Sink<'_>) -> Result<(), Invalid> {
        match self.place {
            Place::Switched(end) => {
                self.switched(bytes, end);
                return Ok(());
            }
            Place::Ended => return self.ended(bytes, may_end),
            _ => {}
        }
        let page = self.received.align_down(PAGE_SIZE);
        if page.0.checked_add(self.config.segment_size.bytes()).is_none() {
            return Err(invalid(page, "positions end here"));
        }
        let in_page = self.received.since(page) as usize;
        let room = PAGE_SIZE as usize - in_page;
        let bytes = bytes.get(..room).unwrap_or(bytes);
        if in_page < page::header_len(page, &self.config) {
            return self.page_header(bytes, page, in_page, may_end);
        }
        match self.place {
            Place::Between => self.whole_records(bytes, may_end, sink),
            Place::Skipping(left) => self.skip(bytes, left),
            _ => self.inside(bytes, may_end, sink),
        }
    }
}

const PADDING: &str = "expected zeros between the end of a record and the next multiple of 8";

#[cold]
fn invalid(at: Lsn, problem: impl Into<String>) -> Invalid {
    Invalid { at, problem: problem.into() }
}
