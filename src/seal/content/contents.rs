//! Frame 0 of a pack: what each of its frames holds. With the packs alone a lost map can be made again, and what an interrupted backup stored can be
//! found and used.

use super::varint::{Cursor, put, put_bytes};
use super::{BackupId, Malformed};
use crate::seal::sealer::FRAME_BYTES;

const VERSION: u64 = 1;
const WHAT: &str = "contents list of a pack";

/// In what a piece of a file is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Pages of 8192 bytes.
    Pages,
    Bytes,
}

impl Unit {
    /// Bytes in one unit.
    pub fn bytes(self) -> u64 {
        match self {
            Unit::Pages => 8192,
            Unit::Bytes => 1,
        }
    }
}

/// A run of one file's bytes inside a frame; the pieces of a frame follow one another without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Relative to the data directory, tablespaces under `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    pub unit: Unit,
    /// First page, or byte offset, in the file.
    pub first: u64,
    /// Pages or bytes.
    pub count: u64,
}

/// The contents list: `frames[0]` belongs to frame 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub backup: BackupId,
    /// Number of the pack in its backup.
    pub number: u32,
    pub frames: Vec<Vec<Piece>>,
}

/// Builds a contents list as a pack fills.
#[derive(Clone, Debug)]
pub struct ContentsWriter {
    out: Vec<u8>,
    previous: Vec<u8>,
    first_piece: bool,
}

impl ContentsWriter {
    pub fn new(backup: &BackupId, number: u32) -> ContentsWriter {
        let mut out = Vec::new();
        put(&mut out, VERSION);
        put_bytes(&mut out, backup.as_str().as_bytes());
        put(&mut out, u64::from(number));
        ContentsWriter { out, previous: Vec::new(), first_piece: true }
    }

    /// Adds a piece to the current frame, or to the next one when `new_frame`.
    pub fn push(&mut self, new_frame: bool, path: &[u8], unit: Unit, first: u64, count: u64) {
        let begin = u64::from(new_frame || self.first_piece);
        self.first_piece = false;
        put(&mut self.out, 1 + begin + 2 * u64::from(unit == Unit::Bytes));
        let shared = self.previous.iter().zip(path).take_while(|(a, b)| a == b).count();
        put(&mut self.out, shared as u64);
        put_bytes(&mut self.out, path.get(shared..).unwrap_or_default());
        put(&mut self.out, first);
        put(&mut self.out, count);
        self.previous.clear();
        self.previous.extend_from_slice(path);
    }

    /// Whether a piece with such a path still fits frame 0.
    pub fn has_room_for(&self, path: &[u8]) -> bool {
        self.out.len() + path.len() + 64 <= FRAME_BYTES
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

impl Contents {
    /// Reads frame 0 of the pack `number` of `backup`; a list of another pack is refused.
    pub fn decode(frame0: &[u8], backup: &BackupId, number: u32) -> Result<Contents, Malformed> {
        let mut cursor = Cursor::new(WHAT, frame0);
        let version = cursor.number()?;
        if version != VERSION {
            return Err(cursor.bad(format!("version {version} is not supported (expected {VERSION})")));
        }
        let found = (cursor.bytes()?, cursor.small()?);
        if found != (backup.as_str().as_bytes(), number) {
            let (of, n) = (String::from_utf8_lossy(found.0), found.1);
            return Err(cursor.bad(format!("expected pack {number} of {backup}, found pack {n} of {of}")));
        }
        let mut frames: Vec<Vec<Piece>> = Vec::new();
        let mut path = Vec::new();
        while !cursor.is_empty() {
            let tag = cursor.number()?.wrapping_sub(1);
            if tag > 3 {
                return Err(cursor.bad(format!("unknown mark {}", tag.wrapping_add(1))));
            }
            let shared = cursor.number()?;
            if shared > path.len() as u64 {
                return Err(cursor.bad("a path shares more than the previous one has"));
            }
            path.truncate(shared as usize);
            path.extend_from_slice(cursor.bytes()?);
            let unit = if tag & 2 == 0 { Unit::Pages } else { Unit::Bytes };
            let piece = Piece { path: path.clone(), unit, first: cursor.number()?, count: cursor.number()? };
            if tag & 1 == 1 {
                frames.push(vec![piece]);
            } else {
                frames.last_mut().ok_or_else(|| cursor.bad("the first piece begins no frame"))?.push(piece);
            }
        }
        Ok(Contents { backup: backup.clone(), number, frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> BackupId {
        BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap()
    }

    #[test]
    fn comes_back_and_refuses_other_packs_and_cuts() {
        let mut writer = ContentsWriter::new(&id(), 7);
        writer.push(false, b"base/5/1259", Unit::Pages, 0, 4);
        writer.push(false, b"base/5/1259_fsm", Unit::Pages, 0, 3);
        writer.push(true, b"PG_VERSION", Unit::Bytes, 0, 3);
        let bytes = writer.finish();
        let contents = Contents::decode(&bytes, &id(), 7).unwrap();
        assert_eq!(contents.frames.len(), 2);
        assert_eq!(contents.frames[0][1].path, b"base/5/1259_fsm");
        let last = Piece { path: b"PG_VERSION".to_vec(), unit: Unit::Bytes, first: 0, count: 3 };
        assert_eq!(contents.frames[1], [last]);
        assert!(Contents::decode(&bytes, &id(), 8).is_err());
        for cut in 0..bytes.len() {
            if let Ok(shorter) = Contents::decode(&bytes[..cut], &id(), 7) {
                assert!(shorter.frames.iter().flatten().count() < 3, "cut at {cut}");
            }
        }
    }
}
