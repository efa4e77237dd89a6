//! A WAL record whose bytes are still arriving, cut by page borders or by the end of what was fed.

use super::super::record::RecordHeader;
use super::super::{Lsn, record_crc};
use super::MAX_BODY;

/// Room for a body that is kept from record to record.
const KEPT_BODY: usize = 1 << 20;

/// The record: its header, the CRC of its body so far, and the body where somebody wants it.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) start: Lsn,
    /// Bytes that have come, header and padding included.
    pub(super) got: u32,
    pub(super) header: [u8; RecordHeader::SIZE],
    /// Of the body so far.
    pub(super) crc: u32,
    wanted: bool,
    body: Vec<u8>,
}

/// What the bytes that were taken completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    More,
    /// The length of the record.
    Length,
    /// The header.
    Header,
    /// Body or padding; the padding must be checked.
    Body { zero_padding: bool },
}

impl Partial {
    pub(super) fn new() -> Partial {
        let header = [0; RecordHeader::SIZE];
        Partial { start: Lsn(0), got: 0, header, crc: 0, wanted: false, body: Vec::new() }
    }

    /// Begins a record at `start`; keeps the room of the last one's body, unless that was huge.
    pub(super) fn begin(&mut self, start: Lsn) {
        self.start = start;
        self.got = 0;
        self.crc = 0;
        self.wanted = false;
        self.body.clear();
        self.body.shrink_to(KEPT_BODY);
    }

    /// `xl_tot_len`, known from the fourth byte on: it never lies on two pages, since records start 8-aligned.
    pub(super) fn total_len(&self) -> u32 {
        let [a, b, c, d, ..] = self.header;
        u32::from_le_bytes([a, b, c, d])
    }

    /// Bytes without padding that are still to come.
    pub(super) fn left(&self) -> u32 {
        self.total_len().saturating_sub(self.got)
    }

    /// Whether header, body and padding are all here.
    pub(super) fn complete(&self) -> bool {
        self.got as usize >= RecordHeader::SIZE && self.got == self.padded_len()
    }

    pub(super) fn padded_len(&self) -> u32 {
        self.total_len().next_multiple_of(8)
    }

    /// The body, where the header was [accepted](Partial::accept) as of a wanted record.
    pub(super) fn body(&self) -> Option<&[u8]> {
        self.wanted.then_some(&self.body)
    }

    /// The header is good: what follows is body, `wanted` or not.
    pub(super) fn accept(&mut self, header: &RecordHeader, wanted: bool) {
        let fits = header.total_len as usize - RecordHeader::SIZE.min(header.total_len as usize) <= MAX_BODY;
        self.wanted = fits && wanted;
    }

    /// Takes bytes up to the next thing to check; the count of those taken, and what they completed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Step) {
        let got = self.got as usize;
        if got < RecordHeader::SIZE {
            let (until, done) = if got < 4 { (4, Step::Length) } else { (RecordHeader::SIZE, Step::Header) };
            let part = bytes.get(..until - got).unwrap_or(bytes);
            if let Some(into) = self.header.get_mut(got..got + part.len()) {
                into.copy_from_slice(part);
            }
            self.got += part.len() as u32;
            return (part.len(), if got + part.len() == until { done } else { Step::More });
        }
        let body = bytes.get(..self.left() as usize).unwrap_or(bytes);
        self.crc = record_crc::append(self.crc, body);
        if self.wanted {
            self.body.extend_from_slice(body);
        }
        self.got += body.len() as u32;
        let after = bytes.get(body.len()..).unwrap_or_default();
        let to_pad = if self.left() == 0 { self.padded_len() - self.got } else { 0 };
        let padding = after.get(..to_pad as usize).unwrap_or(after);
        self.got += padding.len() as u32;
        (body.len() + padding.len(), Step::Body { zero_padding: padding.iter().all(|b| *b == 0) })
    }
}
