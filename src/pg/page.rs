//! WAL pages: the header at the start of each, and every rule it must keep (`access/xlog_internal.h`).

use super::cursor::Cursor;
use super::scan::ScanConfig;
use super::{Lsn, SystemIdentifier, TimelineId};

/// Bytes in one WAL page (`XLOG_BLCKSZ`). A build option of PostgreSQL; walrecv serves servers with the default.
pub const PAGE_SIZE: u64 = 8192;

/// `SizeOfXLogShortPHD`.
pub const SHORT_HEADER: usize = 24;

/// `SizeOfXLogLongPHD`: the first page of a segment.
pub const LONG_HEADER: usize = 40;

/// `XLP_FIRST_IS_CONTRECORD`: the page begins inside a record.
const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// `XLP_LONG_HEADER`.
const LONG: u16 = 0x0002;
/// `XLP_ALL_FLAGS`. 0x0004, `XLP_BKP_REMOVABLE`, depends on backups that are running and proves nothing.
const ALL_FLAGS: u16 = 0x000F;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record whose continuation belongs here was lost in a crash, and is void.
const FIRST_IS_OVERWRITE: u16 = 0x0008;

/// Bytes of the header of the page that begins at `page`.
pub fn header_len(page: Lsn, config: &ScanConfig) -> usize {
    if config.segment_size.offset_of(page) == 0 { LONG_HEADER } else { SHORT_HEADER }
}

/// What a valid page header says beyond what was known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    pub timeline: TimelineId,
    pub begins: PageBegin,
}

/// What the first byte after a page header belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageBegin {
    /// A new record.
    Record,
    /// A record from an earlier page; this many of its bytes are still to come (`xlp_rem_len`).
    Continuation(u32),
    /// `XLOG_OVERWRITE_CONTRECORD`, which voids the record that was to continue here.
    Overwrite,
}

/// Checks the header of the page at `page` by the rules of `XLogReaderValidatePageHeader`
/// (`access/transam/xlogreader.c`), and that its padding is zero and its flags agree with `xlp_rem_len`. `least` is the
/// timeline of the page before. `header` has [`header_len`] bytes. The error says what was wrong.
pub fn check_header(header: &[u8], page: Lsn, config: &ScanConfig, least: TimelineId) -> Result<PageHeader, String> {
    let short = || format!("a page header of {} bytes", header.len());
    let mut fields = Cursor::new(header);
    let mut begin = || Some((fields.u16()?, fields.u16()?, fields.u32()?, fields.u64()?, fields.u32()?, fields.u32()?));
    let (magic, info, timeline, address, rem_len, padding) = begin().ok_or_else(short)?;

    let expected = config.version.wal_magic();
    if magic != expected {
        return Err(wrong_magic(header, magic, expected));
    }
    if info & !ALL_FLAGS != 0 {
        return Err(format!("unknown flags in page header: {info:04X}"));
    }
    let long = header_len(page, config) == LONG_HEADER;
    if (info & LONG != 0) != long {
        let (wanted, found) = if long { ("long", "short") } else { ("short", "long") };
        return Err(format!("expected a {wanted} page header, found a {found} one"));
    }
    if address != page.0 {
        return Err(format!("the page says that it belongs at {}", Lsn(address)));
    }
    if timeline == 0 || timeline > config.timeline.0 || timeline < least.0 {
        return Err(format!(
            "the page belongs to timeline {timeline}, expected one from {} to {}",
            least.0.max(1),
            config.timeline
        ));
    }
    if padding != 0 {
        return Err(format!("padding of page header is {padding:08X}, expected zero"));
    }
    if long {
        check_long(&mut fields, config)?;
    }
    let begins = match (info & FIRST_IS_CONTRECORD != 0, info & FIRST_IS_OVERWRITE != 0, rem_len) {
        (false, false, 0) => PageBegin::Record,
        (true, false, 1..) => PageBegin::Continuation(rem_len),
        (false, true, 0) => PageBegin::Overwrite,
        _ => return Err(format!("page flags {info:04X} disagree with {rem_len} bytes of continuation")),
    };
    Ok(PageHeader { timeline: TimelineId(timeline), begins })
}

fn wrong_magic(header: &[u8], magic: u16, expected: u16) -> String {
    if header.iter().all(|b| *b == 0) {
        return format!("the page header is zero, expected magic number {expected:04X}");
    }
    match super::MajorVersion::from_wal_magic(magic) {
        Some(other) => {
            format!("magic number {magic:04X} of PostgreSQL {other} in page header, expected {expected:04X}")
        }
        None => format!("magic number {magic:04X} in page header, expected {expected:04X}"),
    }
}

fn check_long(fields: &mut Cursor<'_>, config: &ScanConfig) -> Result<(), String> {
    let mut rest = || Some((fields.u64()?, fields.u32()?, fields.u32()?));
    let (system, segment_size, page_size) = rest().ok_or("the long page header is cut off")?;
    if system != config.system.0 {
        let system = SystemIdentifier(system);
        return Err(format!("the page belongs to system {system}, expected {}", config.system));
    }
    if segment_size as u64 != config.segment_size.bytes() {
        let expected = config.segment_size.bytes();
        return Err(format!("the page is of segments of {segment_size} bytes, expected {expected}"));
    }
    if page_size as u64 != PAGE_SIZE {
        return Err(format!("WAL pages of {page_size} bytes, expected {PAGE_SIZE}"));
    }
    Ok(())
}
