//! WAL records: header, block references, main data (`access/xlogrecord.h`).

use super::cursor::Cursor;
use super::{Lsn, MajorVersion};

/// Resource manager XLOG.
pub const RM_XLOG: u8 = 0;
/// Resource manager Transaction.
pub const RM_XACT: u8 = 1;
/// Resource manager Storage.
pub const RM_SMGR: u8 = 2;
/// Resource manager Database.
pub const RM_DBASE: u8 = 4;
/// Resource manager Tablespace.
pub const RM_TBLSPC: u8 = 5;
/// Resource manager RelMap.
pub const RM_RELMAP: u8 = 7;
/// Resource manager Standby.
pub const RM_STANDBY: u8 = 8;
/// Resource manager Heap2.
pub const RM_HEAP2: u8 = 9;
/// Resource manager Heap.
pub const RM_HEAP: u8 = 10;
/// `XLOG_SWITCH` of [`RM_XLOG`]: the rest of the segment is zero.
pub const XLOG_SWITCH: u8 = 0x40;
/// `XLOG_OVERWRITE_CONTRECORD` of [`RM_XLOG`].
pub const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// The last of the built-in resource managers (`rmgrlist.h`), the same in every supported version.
const RM_MAX_BUILTIN: u8 = 21;
/// `RM_MIN_CUSTOM_ID`: extensions may have their own since 15.
const RM_MIN_CUSTOM: u8 = 128;
/// Bytes in a page of a relation (`BLCKSZ`).
const BLOCK_SIZE: u16 = 8192;

/// One checked record (`XLogRecord`, `access/xlogrecord.h`).
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// First byte of the record header.
    pub start: Lsn,
    /// End of the record, rounded up to 8: where the next record begins at the earliest. For a WAL switch: the end of
    /// the segment.
    pub end: Lsn,
    /// End of its own bytes, rounded up to 8: before `end` only for a WAL switch, behind which zeros follow that say nothing.
    pub written: Lsn,
    /// `xl_prev`.
    pub prev: Lsn,
    pub xid: u32,
    pub rmid: u8,
    pub info: u8,
    /// `xl_tot_len`.
    pub total_len: u32,
    pub crc: u32,
    /// Bytes after the 24-byte header, for the records that [`super::xact::wanted`] names (those that mean something to
    /// [`super::xact::note`]) or whose bodies the scanner was told to [keep](super::scan::WalScanner::keeping), up to
    /// [`super::scan::MAX_BODY`]; else `None`.
    pub body: Option<&'a [u8]>,
}

/// The fixed part at the start of each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub total_len: u32,
    pub xid: u32,
    pub prev: Lsn,
    pub info: u8,
    pub rmid: u8,
    pub padding: u16,
    pub crc: u32,
}

impl RecordHeader {
    /// `SizeOfXLogRecord`.
    pub const SIZE: usize = 24;
    /// Bytes of the header that the CRC covers, after the body: all before the CRC itself.
    pub const COVERED: usize = 20;

    #[inline]
    pub fn parse(b: &[u8; 24]) -> RecordHeader {
        RecordHeader {
            total_len: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            xid: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            prev: Lsn(u64::from_le_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]])),
            info: b[16],
            rmid: b[17],
            padding: u16::from_le_bytes([b[18], b[19]]),
            crc: u32::from_le_bytes([b[20], b[21], b[22], b[23]]),
        }
    }

    /// A WAL switch.
    #[inline]
    pub fn is_switch(&self) -> bool {
        self.rmid == RM_XLOG && self.info & 0xF0 == XLOG_SWITCH
    }
}

/// The longest record that a server of this version can write and read back: `XLogRecordMaxSize` (16 and later), else
/// what fits the reader's buffer (`allocate_recordbuf`, `xlogreader.c`: whole pages below `MaxAllocSize`).
pub fn max_total_len(version: MajorVersion) -> u32 {
    if version >= MajorVersion::V16 { 1020 << 20 } else { 0x3FFF_DFFF }
}

/// Whether a record of this version may name this resource manager (`RmgrIdIsValid`).
#[inline]
pub fn rmid_is_valid(rmid: u8, version: MajorVersion) -> bool {
    rmid <= RM_MAX_BUILTIN || (rmid >= RM_MIN_CUSTOM && version >= MajorVersion::V15)
}

/// A relation's files on disk (`RelFileLocator`, `RelFileNode` before 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationFile {
    pub tablespace: u32,
    pub database: u32,
    pub number: u32,
}

/// A full-page image inside a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockImage {
    /// Bytes in the record.
    pub len: u16,
    pub hole_offset: u16,
    pub hole_len: u16,
    /// `bimg_info` as it stands; its bits differ between 14 and 15.
    pub info: u8,
}

/// One page of a relation that a record changes (`DecodedBkpBlock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReference {
    pub id: u8,
    pub relation: RelationFile,
    /// 0 main, 1 free space map, 2 visibility map, 3 initialisation.
    pub fork: u8,
    pub block: u32,
    pub image: Option<BlockImage>,
    /// The page is made anew by the record, whatever stood there (`BKPBLOCK_WILL_INIT`).
    pub will_init: bool,
    /// Bytes of data for this page beside the image.
    pub data_len: u16,
}

impl BlockReference {
    /// Whether replay needs nothing of the page that stands there: the record has all of it, or makes it anew (`XLogReadBufferForRedoExtended`).
    /// An image without `BKPIMAGE_APPLY` is only there to be compared (`wal_consistency_checking`).
    pub fn is_whole(&self, version: MajorVersion) -> bool {
        let apply = if version >= MajorVersion::V15 { 0x02 } else { 0x04 };
        self.will_init || self.image.is_some_and(|image| image.info & apply != 0)
    }
}

/// What follows the block references of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Replication origin, where the record has one.
    pub origin: Option<u16>,
    /// Top-level transaction of a subtransaction (14 and later, `wal_level` logical).
    pub top_xid: Option<u32>,
    /// The resource manager's own data.
    pub main: &'a [u8],
}

/// Walks the body of a record (all after its 24-byte header) by the rules of `DecodeXLogRecord` (`xlogreader.c`),
/// calling `block` for each block reference. The error says what was wrong.
pub fn decode<'a>(
    body: &'a [u8],
    version: MajorVersion,
    block: &mut dyn FnMut(&BlockReference),
) -> Result<Payload<'a>, String> {
    const CUT: &str = "the record ends inside its block headers";
    let mut fields = Cursor::new(body);
    let mut payload = Payload { origin: None, top_xid: None, main: &[] };
    let mut blocks = Blocks { version, last: None, relation: None, data: 0 };
    let mut main_len = 0;
    while fields.len() > blocks.data {
        match fields.u8().ok_or(CUT)? {
            255 => {
                main_len = fields.u8().ok_or(CUT)? as usize;
                break;
            }
            254 => {
                main_len = fields.u32().ok_or(CUT)? as usize;
                break;
            }
            253 => payload.origin = Some(fields.u16().ok_or(CUT)?),
            252 if version >= MajorVersion::V14 => payload.top_xid = Some(fields.u32().ok_or(CUT)?),
            id @ 0..=32 => block(&blocks.read(id, &mut fields)?),
            id => return Err(format!("unknown block id {id}")),
        }
    }
    if blocks.data.checked_add(main_len) != Some(fields.len()) {
        let claimed = blocks.data as u64 + main_len as u64;
        return Err(format!("the record's parts claim {claimed} bytes, {} are there", fields.len()));
    }
    fields.take(blocks.data).ok_or(CUT)?;
    payload.main = fields.rest();
    Ok(payload)
}

/// The block references of one record, in the order of their ids.
struct Blocks {
    version: MajorVersion,
    last: Option<u8>,
    relation: Option<RelationFile>,
    /// Bytes of images and data that the references read so far claim.
    data: usize,
}

impl Blocks {
    fn read(&mut self, id: u8, fields: &mut Cursor<'_>) -> Result<BlockReference, String> {
        let cut = || format!("the record ends inside block reference {id}");
        if self.last.is_some_and(|last| id <= last) {
            return Err(format!("block id {id} out of order"));
        }
        self.last = Some(id);
        let flags = fields.u8().ok_or_else(cut)?;
        let data_len = fields.u16().ok_or_else(cut)?;
        let (fork, has_image, has_data) = (flags & 0x0F, flags & 0x10 != 0, flags & 0x20 != 0);
        if fork > 3 {
            return Err(format!("block reference {id} names fork {fork}"));
        }
        if has_data != (data_len > 0) {
            return Err(format!("block reference {id} has {data_len} bytes of data against its flags {flags:02X}"));
        }
        let image = if has_image { Some(self.image(id, fields)?) } else { None };
        if flags & 0x80 == 0 {
            let mut relation =
                || Some(RelationFile { tablespace: fields.u32()?, database: fields.u32()?, number: fields.u32()? });
            self.relation = Some(relation().ok_or_else(cut)?);
        }
        let relation =
            self.relation.ok_or_else(|| format!("block reference {id} repeats a relation, none came before"))?;
        let block = fields.u32().ok_or_else(cut)?;
        self.data += data_len as usize + image.map_or(0, |i| i.len as usize);
        Ok(BlockReference { id, relation, fork, block, image, will_init: flags & 0x40 != 0, data_len })
    }

    fn image(&self, id: u8, fields: &mut Cursor<'_>) -> Result<BlockImage, String> {
        let cut = || format!("the record ends inside block reference {id}");
        let mut begin = || Some((fields.u16()?, fields.u16()?, fields.u8()?));
        let (len, hole_offset, info) = begin().ok_or_else(cut)?;
        // BKPIMAGE_IS_COMPRESSED until 14; then one bit for each of pglz, lz4 and zstd.
        let compression_bits = if self.version >= MajorVersion::V15 { 0x1C } else { 0x02 };
        let compressed = info & compression_bits != 0;
        let has_hole = info & 0x01 != 0;
        let hole_len = match (compressed, has_hole) {
            (true, true) => fields.u16().ok_or_else(cut)?,
            (true, false) => 0,
            (false, _) => BLOCK_SIZE.checked_sub(len).ok_or_else(|| format!("image {id} has {len} bytes"))?,
        };
        let valid = match has_hole {
            true => hole_offset > 0 && hole_len > 0 && len < BLOCK_SIZE,
            false => hole_offset == 0 && hole_len == 0 && (compressed == (len != BLOCK_SIZE)),
        };
        if !valid {
            return Err(format!(
                "image {id} of {len} bytes has a hole of {hole_len} at {hole_offset}, flags {info:02X}"
            ));
        }
        Ok(BlockImage { len, hole_offset, hole_len, info })
    }
}
