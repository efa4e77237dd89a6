//! Reading a map: parts in, entries out.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::super::varint::Cursor;
use super::write::{COMPLETE, END, ENTRY, MORE_RUNS, PACK};
use super::{BackupId, Entry, EntryKind, PackPlace, Run, Source, VERSION, WHAT};
use crate::seal::content::Malformed;
use crate::seal::sealer::{FRAME_BYTES, FramePlace};

/// Decodes the parts of one map in order and checks everything that a restore relies on: paths ascend and stay inside the data directory,
/// runs ascend, end inside the file, and lie inside their frames. Memory: one part.
pub struct MapReader {
    backup: BackupId,
    part: u32,
    parts: u32,
    blocks: VecDeque<Vec<u8>>,
    packs: Vec<Arc<PackPlace>>,
    /// Decoded entries of the current block; the last one may still get more runs.
    entries: VecDeque<Entry>,
    last_path: Vec<u8>,
}

impl MapReader {
    /// The map that `backup` wrote in `parts` parts.
    pub fn new(backup: BackupId, parts: u32) -> MapReader {
        let (blocks, packs, entries) = Default::default();
        MapReader { backup, part: 0, parts, blocks, packs, entries, last_path: Vec::new() }
    }

    /// The part that [`MapReader::next`] cannot go on without; `None` when an entry can be had, or there are no more.
    pub fn wants_part(&mut self) -> Result<Option<u32>, Malformed> {
        self.fill()?;
        Ok((self.entries.len() < 2 && self.part < self.parts).then_some(self.part))
    }

    /// Gives the part that was asked for.
    pub fn feed(&mut self, plain: &[u8]) -> Result<(), Malformed> {
        let mut blocks = plain.chunks(FRAME_BYTES);
        let mut first = Cursor::new(WHAT, blocks.next().unwrap_or_default());
        let version = first.number()?;
        if version != VERSION {
            return Err(first.bad(format!("version {version} is not supported (expected {VERSION})")));
        }
        let found = (first.bytes()?, first.small()?);
        if found != (self.backup.as_str().as_bytes(), self.part) {
            let (of, n) = (String::from_utf8_lossy(found.0), found.1);
            return Err(first.bad(format!("expected part {} of {}, found part {n} of {of}", self.part, self.backup)));
        }
        self.part += 1;
        self.packs.clear();
        self.blocks.push_back(first.rest().to_vec());
        self.blocks.extend(blocks.map(<[u8]>::to_vec));
        Ok(())
    }

    /// The next entry; `None` when a part is wanted or the map has ended.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Malformed> {
        if self.wants_part()?.is_some() {
            return Ok(None);
        }
        Ok(self.entries.pop_front())
    }

    /// Decodes blocks until one whole entry is known to have all its runs.
    fn fill(&mut self) -> Result<(), Malformed> {
        while self.entries.len() < 2 {
            let Some(block) = self.blocks.pop_front() else { return Ok(()) };
            self.decode_block(&block)?;
        }
        Ok(())
    }

    fn decode_block(&mut self, block: &[u8]) -> Result<(), Malformed> {
        let mut cursor = Cursor::new(WHAT, block);
        let mut in_block = Vec::new();
        while !cursor.is_empty() {
            match cursor.byte()? {
                END if cursor.rest().iter().all(|b| *b == END) => return Ok(()),
                PACK => self.packs.push(Arc::new(pack(&mut cursor)?)),
                ENTRY => {
                    let entry = self.entry(&mut cursor, &mut in_block)?;
                    self.last_path.clone_from(&entry.path);
                    self.entries.push_back(entry);
                }
                MORE_RUNS => {
                    let mut entry = self.entries.pop_back().ok_or_else(|| cursor.bad("runs belong to no entry"))?;
                    self.runs(&mut cursor, &mut entry)?;
                    self.entries.push_back(entry);
                }
                other => return Err(cursor.bad(format!("unknown record {other}"))),
            }
        }
        Ok(())
    }

    fn entry(&self, cursor: &mut Cursor<'_>, in_block: &mut Vec<u8>) -> Result<Entry, Malformed> {
        let shared = cursor.number()?;
        if shared > in_block.len() as u64 {
            return Err(cursor.bad("a path shares more than the previous one has"));
        }
        in_block.truncate(shared as usize);
        in_block.extend_from_slice(cursor.bytes()?);
        let path = in_block.clone();
        let shown = || String::from_utf8_lossy(&path).into_owned();
        if !is_inside(&path) {
            return Err(cursor.bad(format!("path {:?} is not inside the data directory", shown())));
        }
        if path <= self.last_path {
            return Err(cursor.bad(format!("path {:?} is out of order", shown())));
        }
        let kind = match cursor.byte()? {
            0 => EntryKind::Absent,
            1 => EntryKind::Pages,
            2 => EntryKind::Bytes,
            3 => EntryKind::Directory,
            4 => EntryKind::Symlink,
            other => return Err(cursor.bad(format!("unknown kind {other} of {:?}", shown()))),
        };
        let complete = cursor.byte()? & COMPLETE != 0;
        let (size, mode, mtime) = (cursor.number()?, cursor.small()?, cursor.signed()?);
        let link = cursor.bytes()?.to_vec();
        if kind == EntryKind::Pages && size % 8192 != 0 {
            return Err(cursor.bad(format!("{:?} is made of pages and {size} bytes long", shown())));
        }
        let mut entry = Entry { path, kind, size, mode, mtime, link, complete, runs: Vec::new() };
        self.runs(cursor, &mut entry)?;
        Ok(entry)
    }

    fn runs(&self, cursor: &mut Cursor<'_>, entry: &mut Entry) -> Result<(), Malformed> {
        let count = cursor.number()?;
        let mut end = 0;
        for _ in 0..count {
            let run = self.run(cursor, entry, end)?;
            end = run.first + run.count;
            entry.runs.push(run);
        }
        Ok(())
    }

    /// One run; `end` is where the previous one of the same record ended.
    fn run(&self, cursor: &mut Cursor<'_>, entry: &Entry, end: u64) -> Result<Run, Malformed> {
        let bad = |cursor: &Cursor<'_>, problem: String| {
            Err(cursor.bad(format!("{problem} in {:?}", String::from_utf8_lossy(&entry.path))))
        };
        let (gap, count) = (cursor.number()?, cursor.number()?);
        let Some(unit) = entry.kind.unit() else { return bad(cursor, "a run".to_owned()) };
        let known_end = entry.runs.last().map_or(0, |r| r.first + r.count);
        let first = end.saturating_add(gap);
        let fits = first.checked_add(count).and_then(|e| e.checked_mul(unit.bytes())).is_some_and(|e| e <= entry.size);
        if count == 0 || first < known_end || !fits {
            return bad(cursor, format!("impossible run of {count} at {first}"));
        }
        let number = cursor.number()?;
        if number == 0 {
            return Ok(Run { first, count, source: Source::Zero });
        }
        let (frame, offset) = (cursor.small()?, cursor.small()?);
        let Some(pack) = usize::try_from(number - 1).ok().and_then(|n| self.packs.get(n)) else {
            return bad(cursor, format!("a run names pack {number} of {}", self.packs.len()));
        };
        let room = pack.frames.get(frame as usize).map_or(0, |f| u64::from(f.plain_len));
        if frame == 0 || (count * unit.bytes()).saturating_add(u64::from(offset)) > room {
            return bad(cursor, format!("a run at {first} leaves frame {frame} of pack {}", pack.number));
        }
        Ok(Run { first, count, source: Source::Pack { pack: pack.clone(), frame, offset } })
    }
}

fn pack(cursor: &mut Cursor<'_>) -> Result<PackPlace, Malformed> {
    let id = String::from_utf8_lossy(cursor.bytes()?).into_owned();
    let backup = BackupId::parse(&id).map_err(|e| cursor.bad(e.to_string()))?;
    let (number, len) = (cursor.small()?, cursor.number()?);
    let header = Bytes::copy_from_slice(cursor.bytes()?);
    let count = cursor.number()?;
    let mut offset = cursor.number()?;
    let mut frames = Vec::new();
    for _ in 0..count {
        let place = FramePlace { offset, len: cursor.small()?, plain_len: cursor.small()? };
        offset = offset.saturating_add(u64::from(place.len));
        frames.push(place);
    }
    if offset > len {
        return Err(cursor.bad(format!("the frames of pack {number} of {backup} end at {offset}, the pack at {len}")));
    }
    Ok(PackPlace { backup, number, len, header, frames })
}

/// Relative, not empty, and no component that leads elsewhere: a restore creates files by these names.
fn is_inside(path: &[u8]) -> bool {
    let plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    path.split(|b| *b == b'/').all(plain)
}
