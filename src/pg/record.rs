//! WAL records: header, CRC-32C, and what a record is to the rest of walrecv.

use super::Lsn;

/// One checked record (`XLogRecord`, `access/xlogrecord.h`).
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// First byte of the record header.
    pub start: Lsn,
    /// End of the record, rounded up to 8: where the next record begins at the earliest. For a WAL switch: the end of the segment.
    pub end: Lsn,
    /// `xl_prev`.
    pub prev: Lsn,
    pub xid: u32,
    pub rmid: u8,
    pub info: u8,
    /// `xl_tot_len`.
    pub total_len: u32,
    pub crc: u32,
    /// Bytes after the 24-byte header, when the resource manager is XLOG (0), Transaction (1) or one that `xact::wanted` names; else `None`.
    pub body: Option<&'a [u8]>,
}
