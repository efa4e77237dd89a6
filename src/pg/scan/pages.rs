//! The scanner at page headers, and in bytes that belong to no record.

use super::super::Lsn;
use super::super::page::{self, PageBegin};
use super::{Invalid, Overwritten, PADDING, Place, WalScanner, invalid};

impl WalScanner {
    /// Collects a page header, and checks it when it is complete.
    pub(super) fn page_header(&mut self, bytes: &[u8], page: Lsn, have: usize, may_end: bool) -> Result<(), Invalid> {
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
    pub(super) fn left(&self) -> u32 {
        match self.place {
            Place::Skipping(left) => left,
            Place::Inside => self.partial.left(),
            _ => 0,
        }
    }

    /// Passes over a record that began before the start, and its padding.
    pub(super) fn skip(&mut self, bytes: &[u8], left: u32) -> Result<(), Invalid> {
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
            self.skipped = Some(self.received);
        }
        Ok(())
    }

    /// The rest of a segment after a WAL switch, which says nothing. The server that switched writes zeros, page headers included (`CopyXLogRecordToWAL`,
    /// `xlog.c`); a standby may have replayed the switch before those came, and has in their place what its file held before.
    pub(super) fn switched(&mut self, bytes: &[u8], end: Lsn) {
        self.received = end.min(self.received + bytes.len() as u64);
        if self.received == end {
            self.checked = end;
            self.place = Place::Between;
        }
    }

    pub(super) fn ended(&mut self, bytes: &[u8], may_end: bool) -> Result<(), Invalid> {
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
