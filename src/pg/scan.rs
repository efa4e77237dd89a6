//! WalScanner: feed WAL bytes as they arrive, get checked records; every page header, CRC-32C and previous-record link is verified.
//!
//! The machine reads like `XLogReadRecord` (`access/transam/xlogreader.c`), turned inside out: it is given bytes instead of
//! asking for pages, so that any cut of the input gives the same records and the same error. Nothing is copied but headers that a cut or a page
//! border splits, and the bodies that [`xact::wanted`] names where they do not lie in one piece.

use super::cursor::Cursor;
use super::page::{self, PAGE_SIZE, PageBegin};
use super::partial::{Partial, Step};
use super::record::{self, RM_XLOG, Record, RecordHeader, XLOG_OVERWRITE_CONTRECORD};
use super::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId, xact};

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

/// The machine. Starts at a page border (usually a segment's start) or at the end of a record; skips the continuation of a record that
/// began before the start.
#[derive(Debug)]
pub struct WalScanner {
    config: ScanConfig,
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
    /// Zeros after a WAL switch, up to the end of the segment.
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
            start,
            received: start,
            checked: start,
            last: None,
            place: Place::Between,
            page_timeline: TimelineId(0),
            page_header: [0; page::LONG_HEADER],
            partial: Partial::new(),
            overwrite: None,
            failed: (!possible).then(|| Invalid { at: start, problem: problem() }),
        }
    }

    /// Goes on after a record that is known to be good, usually the last one of what is stored: starts at `mark.end`, and the next record must name
    /// `mark.start` as its predecessor.
    pub fn resume(config: ScanConfig, mark: Mark) -> WalScanner {
        WalScanner { last: Some(mark), ..WalScanner::new(config, mark.end) }
    }

    /// Checks the next bytes, calling `sink` for each record that is complete, its padding included. Any cut of the input gives the same records.
    /// After an error the scanner refuses everything; [`WalScanner::checked`] stays good.
    ///
    /// For bytes that a server says it has flushed: there, a record of length zero or a page without a header is an error.
    pub fn feed(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<(), Invalid> {
        self.run(bytes, false, sink)?;
        Ok(())
    }

    /// As [`WalScanner::feed`], for WAL that may end and be filled up with zeros: a segment file, or a tail that was laid out at full length. Gives the end
    /// of WAL, which is [`WalScanner::checked`], once a record of length zero or a page header of zeros is found; all bytes after it must be
    /// zero too. A record that such zeros interrupt at a page border is not part of the WAL. Zeros that begin inside a page *and* inside a
    /// record are damage (a server's flush never ends there), so feed no byte beyond the known end of a prefix that was cut elsewhere.
    pub fn feed_until_end(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<Option<Lsn>, Invalid> {
        self.run(bytes, true, sink)?;
        Ok((self.place == Place::Ended).then_some(self.checked))
    }

    /// End of all bytes that were fed; after an error, about where it was found.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// End of the last checked record (8-aligned; after a WAL switch, the end of the segment once its zeros have come);
    /// the start while there is none. Never above [`WalScanner::received`].
    pub fn checked(&self) -> Lsn {
        self.checked
    }

    /// The last checked record; before there is one, the mark that scanning was resumed from.
    pub fn last(&self) -> Option<Mark> {
        self.last
    }

    /// Start of the record whose bytes are still arriving. `None` between records, inside one that began before the start, and after an error.
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
            Place::Switched(end) => return self.switched(bytes, end),
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

    /// Collects a page header, and checks it when it is complete.
    fn page_header(&mut self, bytes: &[u8], page: Lsn, have: usize, may_end: bool) -> Result<(), Invalid> {
        let len = page::header_len(page, &self.config);
        let part = bytes.get(..len - have).unwrap_or(bytes);
        if let Some(into) = self.page_header.get_mut(have..have + part.len()) {
            into.copy_from_slice(part);
        }
        self.received.0 += part.len() as u64;
        if have + part.len() < len {
            return Ok(());
        }
        let header = self.page_header.get(..len).unwrap_or_default();
        if may_end && header.iter().all(|b| *b == 0) {
            self.place = Place::Ended;
            return Ok(());
        }
        let header = page::check_header(header, page, &self.config, self.page_timeline)
            .map_err(|problem| invalid(page, problem))?;
        self.page_timeline = header.timeline;
        self.place = self.enter(page, header.begins).map_err(|problem| invalid(page, problem))?;
        Ok(())
    }

    /// What a page begins with must be what the page before it ended with.
    fn enter(&mut self, page: Lsn, begins: PageBegin) -> Result<Place, String> {
        // Only there can a record be under way that is not known.
        let first = page == self.start && self.last.is_none();
        let left = self.left();
        match begins {
            PageBegin::Record if left == 0 => Ok(Place::Between),
            PageBegin::Record => {
                Err(format!("expected {left} more bytes of a record, but the page begins with a new one"))
            }
            PageBegin::Continuation(found) if found == left => Ok(self.place),
            PageBegin::Continuation(found) if first => Ok(Place::Skipping(found)),
            PageBegin::Continuation(found) => {
                Err(format!("expected {left} more bytes of a record, the page announces {found}"))
            }
            PageBegin::Overwrite if left > 0 || first => {
                self.overwrite = Some(Overwritten { record: self.pending() });
                Ok(Place::Between)
            }
            PageBegin::Overwrite => Err("the page voids a record, but the one before it is complete".into()),
        }
    }

    /// Bytes, without padding, that are still to come of the record at a page border.
    fn left(&self) -> u32 {
        match self.place {
            Place::Skipping(left) => left,
            Place::Inside => self.partial.left(),
            _ => 0,
        }
    }

    /// The hot path: records that lie whole in `bytes`, which end with the page at the latest.
    fn whole_records(&mut self, bytes: &[u8], may_end: bool, sink: Sink<'_>) -> Result<(), Invalid> {
        let mut rest = bytes;
        while let Some((head, after)) = rest.split_first_chunk::<{ RecordHeader::SIZE }>() {
            let header = RecordHeader::parse(head);
            if may_end && header.total_len == 0 {
                break;
            }
            let start = self.received;
            self.check_length(header.total_len).map_err(|problem| invalid(start, problem))?;
            let body_len = header.total_len as usize - RecordHeader::SIZE;
            let padding_len = body_len.wrapping_neg() % 8;
            let Some((body, next)) = after.split_at_checked(body_len) else { break };
            let Some((padding, next)) = next.split_at_checked(padding_len) else { break };
            self.check_header(&header, start).map_err(|problem| invalid(start, problem))?;
            if padding.iter().any(|b| *b != 0) {
                return Err(invalid(start, PADDING));
            }
            let kept = (xact::wanted(header.rmid, header.info) && body_len <= MAX_BODY).then_some(body);
            let size = (RecordHeader::SIZE + body_len + padding_len) as u64;
            let record = self.record(start, start + size, &header, kept);
            self.check_content(&record, head, crc32c::crc32c(body)).map_err(|problem| invalid(start, problem))?;
            self.received.0 += size;
            self.pass(&record);
            sink(&record);
            rest = next;
            if self.place != Place::Between {
                return Ok(());
            }
        }
        if !rest.is_empty() {
            self.partial.begin(self.received);
            self.place = Place::Inside;
        }
        Ok(())
    }

    /// A record that a cut or a page border splits.
    fn inside(&mut self, bytes: &[u8], may_end: bool, sink: Sink<'_>) -> Result<(), Invalid> {
        let start = self.partial.start;
        let (taken, step) = self.partial.take(bytes);
        match step {
            Step::Length if may_end && self.partial.total_len() == 0 => {
                self.received.0 += taken as u64;
                self.place = Place::Ended;
                return Ok(());
            }
            Step::Length => self.check_length(self.partial.total_len()).map_err(|problem| invalid(start, problem))?,
            Step::Header => {
                let header = RecordHeader::parse(&self.partial.header);
                self.check_header(&header, start).map_err(|problem| invalid(start, problem))?;
                self.partial.accept(&header);
            }
            Step::Body { zero_padding: false } => return Err(invalid(start, PADDING)),
            Step::Body { .. } | Step::More => {}
        }
        self.received.0 += taken as u64;
        if !self.partial.complete() {
            return Ok(());
        }
        // Lent out so that the record may borrow its body while the rest of the scanner moves on.
        let partial = std::mem::replace(&mut self.partial, Partial::new());
        let header = RecordHeader::parse(&partial.header);
        let record = self.record(start, self.received, &header, partial.body());
        let checked = self.check_content(&record, &partial.header, partial.crc);
        if checked.is_ok() {
            self.pass(&record);
            sink(&record);
        }
        self.partial = partial;
        checked.map_err(|problem| invalid(start, problem))
    }

    fn record<'b>(&self, start: Lsn, end: Lsn, header: &RecordHeader, body: Option<&'b [u8]>) -> Record<'b> {
        Record {
            start,
            end: if header.is_switch() { end.align_up(self.config.segment_size.bytes()) } else { end },
            prev: header.prev,
            xid: header.xid,
            rmid: header.rmid,
            info: header.info,
            total_len: header.total_len,
            crc: header.crc,
            body,
        }
    }

    #[inline]
    fn check_length(&self, total_len: u32) -> Result<(), String> {
        let max = record::max_total_len(self.config.version);
        if (RecordHeader::SIZE as u32..=max).contains(&total_len) {
            return Ok(());
        }
        Err(format!("a record of {total_len} bytes, expected {} to {max}", RecordHeader::SIZE))
    }

    /// `ValidXLogRecordHeader`.
    #[inline]
    fn check_header(&self, header: &RecordHeader, start: Lsn) -> Result<(), String> {
        let follows = match self.last {
            Some(last) => header.prev == last.start,
            None => header.prev < start,
        };
        if follows && header.padding == 0 && record::rmid_is_valid(header.rmid, self.config.version) {
            return Ok(());
        }
        Err(self.wrong_header(header, start))
    }

    #[cold]
    fn wrong_header(&self, header: &RecordHeader, start: Lsn) -> String {
        if !record::rmid_is_valid(header.rmid, self.config.version) {
            return format!("PostgreSQL {} has no resource manager {}", self.config.version, header.rmid);
        }
        if header.padding != 0 {
            return format!("padding of record header is {:04X}, expected zero", header.padding);
        }
        match self.last {
            Some(last) => format!("the record names {} as the one before it, expected {}", header.prev, last.start),
            None => format!("the record names {} as the one before it, expected less than {start}", header.prev),
        }
    }

    /// The CRC (`ValidXLogRecord`), and that a page which voids a record begins with the record that says so.
    #[inline]
    fn check_content(&mut self, record: &Record<'_>, header: &[u8], body_crc: u32) -> Result<(), String> {
        let covered = header.get(..RecordHeader::COVERED).unwrap_or_default();
        let crc = crc32c::crc32c_append(body_crc, covered);
        if crc != record.crc {
            return Err(format!("the record has CRC {crc:08X}, its header says {:08X}", record.crc));
        }
        let voids = record.rmid == RM_XLOG && record.info & 0xF0 == XLOG_OVERWRITE_CONTRECORD;
        if voids || self.overwrite.is_some() { self.check_overwrite(record, voids) } else { Ok(()) }
    }

    /// `VerifyOverwriteContrecord` (`xlogrecovery.c`).
    #[cold]
    fn check_overwrite(&mut self, record: &Record<'_>, voids: bool) -> Result<(), String> {
        let overwritten = match self.overwrite.take() {
            // Scanning began behind the header of the page, which would have told.
            None if voids && self.last.is_none() && self.page_timeline.0 == 0 => Overwritten { record: None },
            None => return Err("the record voids another one, but its page does not".into()),
            Some(_) if !voids => return Err("the page voids a record, but its first record does not say which".into()),
            Some(overwritten) => overwritten,
        };
        let main = record::decode(record.body.unwrap_or_default(), self.config.version, &mut |_| ())?.main;
        let named = Lsn(Cursor::new(main).u64().ok_or("the record that voids another one does not name it")?);
        match overwritten.record {
            Some(expected) if expected != named => Err(format!("the record voids {named}, expected {expected}")),
            None if named >= record.start => Err(format!("the record voids {named}, which is not before it")),
            _ => Ok(()),
        }
    }

    /// The record is good: what comes next?
    #[inline]
    fn pass(&mut self, record: &Record<'_>) {
        self.last = Some(Mark { start: record.start, end: record.end, crc: record.crc });
        self.checked = self.received;
        self.place = if record.end > self.received { Place::Switched(record.end) } else { Place::Between };
    }

    /// Passes over a record that began before the start, and its padding.
    fn skip(&mut self, bytes: &[u8], left: u32) -> Result<(), Invalid> {
        if left > 0 {
            let taken = bytes.len().min(left as usize);
            self.received.0 += taken as u64;
            self.place = Place::Skipping(left - taken as u32);
        } else {
            let padding = self.received.0.wrapping_neg() % 8;
            self.zeros(bytes.get(..padding as usize).unwrap_or(bytes), PADDING)?;
        }
        if self.place == Place::Skipping(0) && self.received.0.is_multiple_of(8) {
            self.place = Place::Between;
        }
        Ok(())
    }

    /// The rest of a segment after a WAL switch (`CopyXLogRecordToWAL`, `xlog.c`): zero, page headers included.
    fn switched(&mut self, bytes: &[u8], end: Lsn) -> Result<(), Invalid> {
        let left = usize::try_from(end.since(self.received)).unwrap_or(usize::MAX);
        self.zeros(bytes.get(..left).unwrap_or(bytes), "expected only zeros after a WAL switch")?;
        if self.received == end {
            self.checked = end;
            self.place = Place::Between;
        }
        Ok(())
    }

    fn ended(&mut self, bytes: &[u8], may_end: bool) -> Result<(), Invalid> {
        if !may_end {
            return Err(invalid(self.received, format!("the WAL has ended at {}", self.checked)));
        }
        self.zeros(bytes, "expected only zeros after the end of WAL")
    }

    /// Takes `bytes`, all of which must be zero.
    fn zeros(&mut self, bytes: &[u8], problem: &str) -> Result<(), Invalid> {
        // By blocks first: comparing whole chunks is as fast as reading them.
        let clean = bytes.chunks(4096).take_while(|chunk| chunk.iter().fold(0, |any, b| any | b) == 0);
        let clean: usize = clean.map(<[u8]>::len).sum();
        let rest = bytes.get(clean..).unwrap_or_default();
        match rest.iter().position(|b| *b != 0) {
            None => {
                self.received.0 += bytes.len() as u64;
                Ok(())
            }
            Some(at) => Err(invalid(self.received + (clean + at) as u64, problem)),
        }
    }
}

const PADDING: &str = "expected zeros between the end of a record and the next multiple of 8";

#[cold]
fn invalid(at: Lsn, problem: impl Into<String>) -> Invalid {
    Invalid { at, problem: problem.into() }
}
