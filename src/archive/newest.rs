//! The last commit of the open segment: of what no summary tells yet.

use super::Archive;
use super::inventory::Inventory;
use super::read::SegmentBytes;
use crate::error::{Error, Kind, Result};
use crate::pg::record::Record;
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::xact::{self, Note, PgTime};
use crate::pg::{Lsn, MajorVersion, SegmentName};

impl Archive {
    /// The time of the last commit or abort in the stored beginning of a segment, of records that end by `to`: the newest one may be of a clock that was set back.
    /// `None` where there is none, where nothing is stored of it, and where this reader's keys open no contents. Fetches what is stored of the segment.
    ///
    /// Errors: the store; `Kind::Corrupt` for WAL that is damaged.
    pub async fn last_in(&self, segment: SegmentName, to: Lsn, inventory: &Inventory) -> Result<Option<PgTime>> {
        let bytes = match self.read_segment(segment, Some(inventory)).await {
            Ok(Some(SegmentBytes::Complete(bytes) | SegmentBytes::Prefix(bytes))) => bytes,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == Kind::Key => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = bytes.get(..to.since(segment.start()) as usize).unwrap_or(&bytes);
        let magic = bytes.first_chunk::<2>().map(|magic| u16::from_le_bytes(*magic));
        let Some(version) = magic.and_then(MajorVersion::from_wal_magic) else { return Ok(None) };
        let config =
            ScanConfig { version, system: self.names.system, timeline: segment.timeline, segment_size: segment.size };
        let mut last = None;
        let mut see = |record: &Record<'_>| {
            if let Ok(Note::Commit { time, .. } | Note::Abort { time, .. }) = xact::note(record, version) {
                last = Some(time);
            }
        };
        let scanned = WalScanner::new(config, segment.start()).feed_until_end(bytes, &mut see);
        scanned.map_err(|invalid| Error::new(Kind::Corrupt, invalid.to_string()).context(segment))?;
        Ok(last)
    }
}
