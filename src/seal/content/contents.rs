//! Frame 0 of a pack: what each of its frames holds, with the hash of every page. With the packs alone a lost map can be made again, and what an interrupted
//! backup stored can be found, compared and used.

use super::varint::{Cursor, put, put_bytes};
use super::{BackupId, Malformed};
use crate::seal::page_hash::{CHUNK, PageHash};
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

/// Most pages (or chunks of 8192 bytes) in one piece, since no piece leaves its frame.
const CHUNKS: usize = FRAME_BYTES / CHUNK;

/// The mark behind which the lengths stand.
const END: u64 = 0;
/// Most bytes of all lengths: 16 MiB of frames that are full but for less than a page, and a last one.
const LENGTHS: usize = 512;

/// A run of one file's bytes inside a frame; the pieces of a frame follow one another without gaps. It begins at a multiple of 8192 bytes of the file, and ends
/// at one or at the end of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Relative to the data directory, tablespaces under `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    pub unit: Unit,
    /// First page, or byte offset, in the file.
    pub first: u64,
    /// Pages or bytes.
    pub count: u64,
    /// Of each page, or of each 8192 bytes, the last of which may be fewer.
    pub hashes: Vec<PageHash>,
}

/// The contents list: `frames[0]` belongs to frame 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub backup: BackupId,
    /// Number of the pack in its backup.
    pub number: u32,
    pub frames: Vec<Vec<Piece>>,
    /// Bytes of each frame as stored, frame header included, `stored[0]` of frame 1: with them the pack can be used without a map. Empty where the
    /// list does not say.
    pub stored: Vec<u32>,
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

    /// Adds a piece to the current frame, or to the next one when `new_frame`. It must have as many hashes as chunks: the reader refuses anything else.
    pub fn push(&mut self, new_frame: bool, piece: &Piece) {
        let Piece { path, unit, first, count, hashes } = piece;
        let begin = u64::from(new_frame || self.first_piece);
        self.first_piece = false;
        put(&mut self.out, 1 + begin + 2 * u64::from(*unit == Unit::Bytes));
        let shared = self.previous.iter().zip(path).take_while(|(a, b)| a == b).count();
        put(&mut self.out, shared as u64);
        put_bytes(&mut self.out, path.get(shared..).unwrap_or_default());
        put(&mut self.out, *first);
        put(&mut self.out, *count);
        hashes.iter().for_each(|hash| self.out.extend_from_slice(&hash.0.to_le_bytes()));
        self.previous.clear();
        self.previous.extend_from_slice(path);
    }

    /// Whether a piece with such a path still fits frame 0.
    pub fn has_room_for(&self, path: &[u8]) -> bool {
        self.out.len() + path.len() + 64 + CHUNKS * size_of::<u64>() + LENGTHS <= FRAME_BYTES
    }

    /// Says how long each frame is as stored, after the last piece.
    pub fn lengths(&mut self, stored: &[u32]) {
        put(&mut self.out, END);
        stored.iter().for_each(|len| put(&mut self.out, u64::from(*len)));
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

impl Contents {
    /// Whether `len` bytes at byte `offset` of a frame's plaintext are those from byte `first` of the file `path`; else what stands there. A map says so: written by
    /// other code at another time, under an authentication of its own, so that where the two agree no page comes from a wrong place.
    pub fn stands(&self, frame: u32, offset: u32, path: &[u8], first: u64, len: u64) -> Result<(), String> {
        self.walk(frame, offset, path, first, len, &mut |_, _, _| ())
    }

    /// As [`Contents::stands`], with the hash of each 8192 of these bytes, the last time of fewer; `None` where the list has no hashes for just these bytes, because
    /// they begin or end inside of what was hashed as one.
    pub fn hashes(
        &self,
        frame: u32,
        offset: u32,
        path: &[u8],
        first: u64,
        len: u64,
    ) -> Result<Option<Vec<PageHash>>, String> {
        let chunk = CHUNK as u64;
        let (mut hashes, mut done) = (Some(Vec::new()), 0);
        self.walk(frame, offset, path, first, len, &mut |piece, from, to| {
            let ends = to % chunk == 0 || to == piece.count.saturating_mul(piece.unit.bytes());
            let whole = from % chunk == 0 && ends && done % chunk == 0;
            done += to - from;
            let found = piece.hashes.get((from / chunk) as usize..to.div_ceil(chunk) as usize);
            match (&mut hashes, found.filter(|_| whole)) {
                (Some(known), Some(found)) => known.extend_from_slice(found),
                _ => hashes = None,
            }
        })?;
        Ok(hashes)
    }

    /// Goes through the pieces that hold these bytes, and says of each from where to where in it they lie.
    fn walk(
        &self,
        frame: u32,
        offset: u32,
        path: &[u8],
        first: u64,
        len: u64,
        take: &mut dyn FnMut(&Piece, u64, u64),
    ) -> Result<(), String> {
        let pieces = (frame as usize).checked_sub(1).and_then(|index| self.frames.get(index));
        let Some(pieces) = pieces else { return Err(format!("the pack lists {} frames", self.frames.len())) };
        let (mut begin, mut from) = (u64::from(offset), first);
        let end = begin.saturating_add(len);
        let mut place = 0u64;
        for piece in pieces {
            let unit = piece.unit.bytes();
            let until = place.saturating_add(piece.count.saturating_mul(unit));
            if (place..until).contains(&begin) {
                let says = piece.first.saturating_mul(unit).saturating_add(begin - place);
                if piece.path != path || says != from {
                    let shown = String::from_utf8_lossy(&piece.path);
                    return Err(format!("the pack says that bytes at {says} of {shown:?} stand there"));
                }
                let taken = until.min(end) - begin;
                take(piece, begin - place, begin - place + taken);
                (begin, from) = (begin + taken, from + taken);
                if begin == end {
                    return Ok(());
                }
            }
            place = until;
        }
        Err(format!("the pack's list of that frame ends at byte {place}"))
    }

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
        let (mut path, mut stored) = (Vec::new(), Vec::new());
        while !cursor.is_empty() {
            let mark = cursor.number()?;
            if mark == END {
                stored = frames.iter().map(|_| cursor.small()).collect::<Result<_, _>>()?;
                if !cursor.is_empty() {
                    return Err(cursor.bad("more lengths than frames"));
                }
                break;
            }
            let tag = mark.wrapping_sub(1);
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
            let (first, count) = (cursor.number()?, cursor.number()?);
            let piece = Piece { path: path.clone(), unit, first, count, hashes: hashes(&mut cursor, unit, count)? };
            if tag & 1 == 1 {
                frames.push(vec![piece]);
            } else {
                frames.last_mut().ok_or_else(|| cursor.bad("the first piece begins no frame"))?.push(piece);
            }
        }
        Ok(Contents { backup: backup.clone(), number, frames, stored })
    }
}

fn hashes(cursor: &mut Cursor<'_>, unit: Unit, count: u64) -> Result<Vec<PageHash>, Malformed> {
    let chunks = count.div_ceil(CHUNK as u64 / unit.bytes());
    if count == 0 || chunks > CHUNKS as u64 {
        return Err(cursor.bad(format!("a piece of {count} is in no frame")));
    }
    let (bytes, _) = cursor.take(chunks * 8)?.as_chunks::<8>();
    Ok(bytes.iter().map(|b| PageHash(u64::from_le_bytes(*b))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> BackupId {
        BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap()
    }

    #[test]
    fn comes_back_and_refuses_other_packs_and_cuts() {
        let piece = |path: &[u8], unit, first, count, hashes: &[u64]| {
            let hashes = hashes.iter().map(|h| PageHash(*h)).collect();
            Piece { path: path.to_vec(), unit, first, count, hashes }
        };
        let pieces = [
            piece(b"base/5/1259", Unit::Pages, 0, 4, &[1, 2, u64::MAX, 4]),
            piece(b"base/5/1259_fsm", Unit::Pages, 7, 3, &[5, 6, 7]),
            piece(b"PG_VERSION", Unit::Bytes, 0, 3, &[8]),
            piece(b"pg_xact/0000", Unit::Bytes, 16384, 8193, &[9, 10]),
        ];
        let mut writer = ContentsWriter::new(&id(), 7);
        for (number, piece) in pieces.iter().enumerate() {
            writer.push(number == 2, piece);
        }
        assert_eq!(Contents::decode(&writer.clone().finish(), &id(), 7).unwrap().stored, [0; 0]);
        let with = |lengths: &[u32]| {
            let mut writer = writer.clone();
            writer.lengths(lengths);
            writer.finish()
        };
        for wrong in [&[][..], &[1], &[1, 2, 3]] {
            assert!(Contents::decode(&with(wrong), &id(), 7).is_err(), "two frames, lengths {wrong:?}");
        }
        let bytes = with(&[300, 262_172]);
        let contents = Contents::decode(&bytes, &id(), 7).unwrap();
        assert_eq!(contents.frames, [pieces[..2].to_vec(), pieces[2..].to_vec()]);
        assert_eq!(contents.stored, [300, 262_172]);
        assert!(Contents::decode(&bytes, &id(), 8).is_err());
        for cut in 0..bytes.len() {
            if let Ok(shorter) = Contents::decode(&bytes[..cut], &id(), 7) {
                assert!(shorter.stored.is_empty(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn hashes_are_those_of_just_these_bytes() {
        let mut writer = ContentsWriter::new(&id(), 7);
        let hash = |n: u64| PageHash(n);
        let pages = Piece {
            path: b"base/5/1259".to_vec(),
            unit: Unit::Pages,
            first: 4,
            count: 3,
            hashes: [1, 2, 3].map(hash).to_vec(),
        };
        writer.push(true, &pages);
        writer.push(false, &Piece { first: 7, count: 1, hashes: vec![hash(4)], ..pages.clone() });
        let rest =
            Piece { path: b"x".to_vec(), unit: Unit::Bytes, first: 8192, count: 8200, hashes: vec![hash(5), hash(6)] };
        writer.push(false, &rest);
        let contents = Contents::decode(&writer.finish(), &id(), 7).unwrap();
        let page = 8192;
        let of = |offset: u32, first: u64, len: u64| contents.hashes(1, offset, b"base/5/1259", first, len);
        let some = |numbers: &[u64]| Ok(Some(numbers.iter().map(|n| PageHash(*n)).collect::<Vec<_>>()));
        assert_eq!(of(0, 4 * page, 4 * page), some(&[1, 2, 3, 4]));
        assert_eq!(of(8192, 5 * page, page), some(&[2]));
        assert_eq!(of(16384, 6 * page, 2 * page), some(&[3, 4]), "over the border of two pieces");
        assert_eq!(of(100, 4 * page + 100, page), Ok(None), "it begins inside of a page");
        assert_eq!(of(0, 4 * page, page + 1), Ok(None), "it ends inside of a page");
        for (offset, first) in [(0, 5 * page), (8192, 4 * page)] {
            assert!(of(offset, first, page).is_err(), "another page stands there");
        }
        assert!(of(16384, 6 * page, 3 * page).is_err(), "the last of them is another file's");
        let other = |offset, first, len| contents.hashes(1, offset, b"x", first, len);
        assert_eq!(other(32768, 8192, 8200), some(&[5, 6]));
        assert_eq!(other(32768 + 8192, 16384, 8), some(&[6]));
        assert_eq!(other(32768 + 8192, 16384, 7), Ok(None));
    }

    #[test]
    fn pieces_that_fit_no_frame_are_refused() {
        for (unit, count) in [(Unit::Pages, 33), (Unit::Bytes, 262_145), (Unit::Pages, 0), (Unit::Pages, u64::MAX)] {
            let mut writer = ContentsWriter::new(&id(), 7);
            let hashes = vec![PageHash(1); 33];
            writer.push(true, &Piece { path: b"a".to_vec(), unit, first: 0, count, hashes });
            assert!(Contents::decode(&writer.finish(), &id(), 7).is_err(), "{count}");
        }
    }

    #[test]
    fn a_list_with_room_for_a_piece_stays_within_its_frame() {
        let mut writer = ContentsWriter::new(&id(), 0);
        let mut pieces = 0;
        while writer.has_room_for(&[b'x'; 1024]) {
            let path = format!("{pieces:09}{}", "x".repeat(1015)).into_bytes();
            writer.push(
                true,
                &Piece { path, unit: Unit::Pages, first: u64::MAX, count: 32, hashes: vec![PageHash(2); 32] },
            );
            pieces += 1;
        }
        let bytes = writer.finish();
        assert!(pieces > 100 && bytes.len() <= FRAME_BYTES, "{pieces} pieces, {} bytes", bytes.len());
    }
}
