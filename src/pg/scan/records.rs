//! The scanner inside records.

use super::super::cursor::Cursor;
use super::super::record::{self, RM_XLOG, Record, RecordHeader, XLOG_OVERWRITE_CONTRECORD};
use super::super::{Lsn, record_crc, xact};
use super::partial::{Partial, Step};
use super::{Invalid, MAX_BODY, Mark, Overwritten, PADDING, Place, Sink, WalScanner, invalid};

impl WalScanner {
    /// The hot path: records that lie whole in `bytes`, which end with the page at the latest.
    pub(super) fn whole_records(&mut self, bytes: &[u8], may_end: bool, sink: Sink<'_>) -> Result<(), Invalid> {
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
            let kept = (self.wants(&header) && body_len <= MAX_BODY).then_some(body);
            let size = (RecordHeader::SIZE + body_len + padding_len) as u64;
            let record = self.record(start, start + size, &header, kept);
            self.check_content(&record, head, record_crc::append(0, body))
                .map_err(|problem| invalid(start, problem))?;
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
    pub(super) fn inside(&mut self, bytes: &[u8], may_end: bool, sink: Sink<'_>) -> Result<(), Invalid> {
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
                let wanted = self.wants(&header);
                self.partial.accept(&header, wanted);
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

    #[inline]
    fn wants(&self, header: &RecordHeader) -> bool {
        let (rmid, info) = (header.rmid, header.info);
        xact::wanted(rmid, info) || self.also.is_some_and(|also| also(rmid, info))
    }

    fn record<'b>(&self, start: Lsn, end: Lsn, header: &RecordHeader, body: Option<&'b [u8]>) -> Record<'b> {
        Record {
            start,
            end: if header.is_switch() { end.align_up(self.config.segment_size.bytes()) } else { end },
            written: end,
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
        let crc = record_crc::append(body_crc, covered);
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
}
