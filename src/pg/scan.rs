//! WalScanner: feed WAL bytes as they arrive, get checked records; every page header, CRC-32C and previous-record link is verified.

use super::record::Record;
use super::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};

/// What the WAL that is fed must belong to.
#[derive(Clone, Copy, Debug)]
pub struct ScanConfig {
    pub version: MajorVersion,
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    pub segment_size: SegmentSize,
}

/// Start (`xl_prev` of the next record), and CRC of the last record that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub start: Lsn,
    pub end: Lsn,
    pub crc: u32,
}

/// Why WAL was refused: what was expected, what was found, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL at {at}: {problem}")]
pub struct Invalid {
    pub at: Lsn,
    pub problem: String,
}

/// The machine. Starts at a page border (usually a segment's start) or at the end of a record; skips the continuation of a record that
/// began before the start.
#[derive(Debug)]
pub struct WalScanner {}

impl WalScanner {
    /// `start` is a page border, or the start of a record.
    pub fn new(_config: ScanConfig, _start: Lsn) -> WalScanner {
        todo!()
    }

    /// Checks the next bytes, calling `sink` for each record that is complete. Any cut of the input gives the same records.
    /// After an error the scanner refuses everything.
    pub fn feed(&mut self, _bytes: &[u8], _sink: &mut dyn FnMut(&Record<'_>)) -> Result<(), Invalid> {
        todo!()
    }

    /// End of all bytes that were fed.
    pub fn received(&self) -> Lsn {
        todo!()
    }

    /// End of the last checked record (8-aligned; after a WAL switch, the end of the segment once its zeros have come);
    /// the start while there is none.
    pub fn checked(&self) -> Lsn {
        todo!()
    }

    /// The last checked record.
    pub fn last(&self) -> Option<Mark> {
        todo!()
    }

    /// Start of the record whose bytes are still arriving.
    pub fn pending(&self) -> Option<Lsn> {
        todo!()
    }
}
