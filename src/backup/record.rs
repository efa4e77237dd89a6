//! What is remembered of each file between its last byte and the map.
//!
//! A file is a row of *chunks* of 8192 bytes, the last one perhaps shorter (in a file of pages none is). For each chunk one of three things is
//! true, and [`Record`] is the one place where that is written down:
//!
//! - it is **zero**: in a row with [`What::Zero`];
//! - it is **stored**, by this backup or an interrupted one whose packs it uses: in a row with [`What::Stored`];
//! - it is **the parent's**: in no row. Only where `base` is the size of the parent's file at this path, of the same kind, and only for a chunk that the
//!   parent has with the same length.

use std::sync::Arc;

use super::cache::{Known, damaged, kind_code, kind_of};
use super::places::Places;
use crate::error::{Error, Kind, Result};
use crate::seal::content::Malformed;
use crate::seal::content::map::{Entry, EntryKind, PackPlace, Run, Source};
use crate::seal::content::varint::{Cursor, put, put_bytes, put_signed};
use crate::seal::page_hash::CHUNK;

/// Bytes in a chunk.
const STEP: u64 = CHUNK as u64;

/// One path of the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub size: u64,
    pub mode: u32,
    pub mtime: i64,
    pub link: Vec<u8>,
    /// Whether it goes into the map (backup_label and tablespace_map go into the manifest).
    pub mapped: bool,
    /// Size of the parent's file that this one was compared with; `None`: every chunk is in a row.
    pub base: Option<u64>,
    /// Place of its first page hash among those that are kept for the next backup.
    pub hashes: u64,
    /// Ascending, without overlaps.
    pub rows: Vec<Row>,
}

/// Consecutive chunks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Number of the first chunk.
    pub first: u64,
    pub count: u64,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Zero,
    /// Stored without interruption from here on, over as many frames of the pack as it took.
    Stored(Place),
}

/// A place in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub pack: PackIndex,
    pub frame: u32,
    /// In the frame's plaintext.
    pub offset: u32,
}

/// A pack, by its place in [`Packs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackIndex {
    /// Of this backup.
    Own(u32),
    /// Of an interrupted backup, by its number among those whose packs may be used.
    Found(u32),
}

/// The packs that places are in.
#[derive(Default)]
pub struct Packs {
    /// Of this backup.
    pub own: Places,
    /// Of interrupted backups.
    pub found: Places,
}

impl Packs {
    fn get(&mut self, index: PackIndex) -> Result<Option<Arc<PackPlace>>> {
        match index {
            PackIndex::Own(number) => self.own.get(number),
            PackIndex::Found(number) => self.found.get(number),
        }
    }
}

impl Record {
    pub fn new(path: Vec<u8>, kind: EntryKind, size: u64) -> Record {
        let (link, rows) = (Vec::new(), Vec::new());
        Record { path, kind, size, mode: 0, mtime: 0, link, mapped: true, base: None, hashes: 0, rows }
    }

    /// A directory that no archive names.
    pub fn directory(path: Vec<u8>) -> Record {
        Record { mode: 0o700, ..Record::new(path, EntryKind::Directory, 0) }
    }

    /// Chunks of the whole file.
    pub fn chunks(&self) -> u64 {
        if self.is_file() { self.size.div_ceil(STEP) } else { 0 }
    }

    /// Notes that a chunk is zero. Chunks are noted in ascending order.
    pub fn zero(&mut self, chunk: u64) {
        match self.rows.last_mut() {
            Some(row) if row.what == What::Zero && row.first + row.count == chunk => row.count += 1,
            _ => self.rows.push(Row { first: chunk, count: 1, what: What::Zero }),
        }
    }

    /// Notes where chunks are stored. The bytes of a file come in order and nothing comes between, so in one pack a row just goes on.
    pub fn stored(&mut self, first: u64, count: u64, place: Place) {
        match self.rows.last_mut() {
            Some(Row { first: before, count: many, what: What::Stored(start) })
                if start.pack == place.pack && *before + *many == first =>
            {
                *many += count;
            }
            _ => self.rows.push(Row { first, count, what: What::Stored(place) }),
        }
    }

    /// Notes where one chunk stands that an interrupted backup stored. Its pack was filled with other things in between, perhaps, so a row goes on
    /// only where the frame does.
    pub fn found(&mut self, chunk: u64, place: Place) {
        match self.rows.last_mut() {
            Some(Row { first, count, what: What::Stored(start) })
                if (start.pack, start.frame) == (place.pack, place.frame)
                    && *first + *count == chunk
                    && u64::from(start.offset) + *count * STEP == u64::from(place.offset) =>
            {
                *count += 1;
            }
            _ => self.rows.push(Row { first: chunk, count: 1, what: What::Stored(place) }),
        }
    }

    /// Bytes of `count` chunks from `first` on: fewer than 8192 each only at the end of the file.
    pub fn bytes_of(&self, first: u64, count: u64) -> u64 {
        let end = (first + count).saturating_mul(STEP).min(self.size);
        end.saturating_sub(first * STEP)
    }

    /// The map's entry: rows cut at the borders of frames.
    pub fn entry(&self, packs: &mut Packs) -> Result<Entry> {
        let mut runs = Vec::new();
        let mut covered = 0;
        for row in &self.rows {
            covered += row.count;
            self.cut(row, packs, &mut runs)?;
        }
        let complete = covered == self.chunks();
        if !complete && self.base.is_none() {
            return Err(self.wrong("not every page of it has a place"));
        }
        let (path, link) = (self.path.clone(), self.link.clone());
        let Record { kind, size, mode, mtime, .. } = *self;
        Ok(Entry { path, kind, size, mode, mtime, link, complete, runs })
    }

    fn cut(&self, row: &Row, packs: &mut Packs, runs: &mut Vec<Run>) -> Result<()> {
        let Some(unit) = self.kind.unit().map(|unit| unit.bytes()) else {
            return Err(self.wrong("it has no content"));
        };
        let (mut at, mut left) = (row.first * STEP, self.bytes_of(row.first, row.count));
        let What::Stored(Place { pack, mut frame, mut offset }) = row.what else {
            runs.push(Run { first: at / unit, count: left / unit, source: Source::Zero });
            return Ok(());
        };
        if left == 0 {
            return Ok(());
        }
        let Some(place) = packs.get(pack)? else { return Err(self.wrong("its pack is not known")) };
        while left > 0 {
            let room = place.frames.get(frame as usize).map_or(0, |f| f.plain_len.saturating_sub(offset));
            let taken = u64::from(room).min(left);
            if taken == 0 || taken % STEP != 0 && taken != left {
                return Err(self.wrong(&format!("{row:?} is in no frame")));
            }
            let source = Source::Pack { pack: place.clone(), frame, offset };
            runs.push(Run { first: at / unit, count: taken / unit, source });
            (at, left, frame, offset) = (at + taken, left - taken, frame + 1, 0);
        }
        Ok(())
    }

    /// What is kept of it for the next backup.
    pub fn known(&self) -> Known {
        let Record { kind, size, mode, mtime, hashes, .. } = *self;
        Known { kind, size, mode, mtime, link: self.link.clone(), hashes }
    }

    /// Everything but the path.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![kind_code(self.kind), u8::from(self.mapped)];
        put(&mut out, self.size);
        put(&mut out, u64::from(self.mode));
        put_signed(&mut out, self.mtime);
        put_bytes(&mut out, &self.link);
        put(&mut out, self.hashes);
        put(&mut out, u64::from(self.base.is_some()));
        put(&mut out, self.base.unwrap_or_default());
        for row in &self.rows {
            put(&mut out, row.first);
            put(&mut out, row.count);
            match row.what {
                What::Zero => put(&mut out, 0),
                What::Stored(place) => {
                    let code = match place.pack {
                        PackIndex::Own(number) => 2 * u64::from(number) + 1,
                        PackIndex::Found(number) => 2 * u64::from(number) + 2,
                    };
                    put(&mut out, code);
                    put(&mut out, u64::from(place.frame));
                    put(&mut out, u64::from(place.offset));
                }
            }
        }
        out
    }

    pub fn decode(path: Vec<u8>, bytes: &[u8]) -> Result<Record> {
        Record::decoded(path, bytes).map_err(damaged)
    }

    fn decoded(path: Vec<u8>, bytes: &[u8]) -> Result<Record, Malformed> {
        let mut cursor = Cursor::new("record of a file", bytes);
        let kind = kind_of(cursor.byte()?).ok_or_else(|| cursor.bad("unknown kind of file"))?;
        let mapped = cursor.byte()? != 0;
        let (size, mode, mtime) = (cursor.number()?, cursor.small()?, cursor.signed()?);
        let (link, hashes) = (cursor.bytes()?.to_vec(), cursor.number()?);
        let (compared, base) = (cursor.number()? != 0, cursor.number()?);
        let mut rows = Vec::new();
        while !cursor.is_empty() {
            let (first, count) = (cursor.number()?, cursor.number()?);
            let what = match cursor.number()?.checked_sub(1) {
                None => What::Zero,
                Some(code) => {
                    let number = u32::try_from(code / 2).map_err(|_| cursor.bad("a pack's number is too large"))?;
                    let pack = if code % 2 == 0 { PackIndex::Own(number) } else { PackIndex::Found(number) };
                    What::Stored(Place { pack, frame: cursor.small()?, offset: cursor.small()? })
                }
            };
            rows.push(Row { first, count, what });
        }
        let base = compared.then_some(base);
        Ok(Record { path, kind, size, mode, mtime, link, mapped, base, hashes, rows })
    }

    /// Only a mistake of ours leads here; a map that names bytes which are not there must not be written.
    fn wrong(&self, problem: &str) -> Error {
        Error::new(Kind::Failed, format!("the record of {}: {problem}", self.shown()))
    }

    pub fn is_file(&self) -> bool {
        matches!(self.kind, EntryKind::Pages | EntryKind::Bytes)
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}
