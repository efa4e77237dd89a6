//! What is remembered of each file between its last byte and the map.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::seal::content::map::{Entry, EntryKind, PackPlace, Run, Source, Unit};

/// One path of the backup.
#[derive(Clone, Debug)]
pub struct Record {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub size: u64,
    pub mode: u32,
    pub mtime: i64,
    pub link: Vec<u8>,
    /// CRC-32C of the content.
    pub crc: u32,
    /// Whether it goes into the map (backup_label and tablespace_map go into the manifest).
    pub mapped: bool,
    pub stored: Vec<Stored>,
}

/// A row of pages or bytes that was stored without interruption in one pack, over as many frames as it took. What no row covers is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub first: u64,
    pub count: u64,
    pub pack: u32,
    /// Where the row begins.
    pub frame: u32,
    pub offset: u32,
}

impl Record {
    /// A directory that no archive names.
    pub fn directory(path: Vec<u8>) -> Record {
        let (kind, stored) = (EntryKind::Directory, Vec::new());
        Record { path, kind, size: 0, mode: 0o700, mtime: 0, link: Vec::new(), crc: 0, mapped: true, stored }
    }

    /// Adds what was stored. The bytes of a file come in order and nothing comes between, so in one pack a row just goes on.
    pub fn add(&mut self, new: Stored) {
        match self.stored.last_mut() {
            Some(last) if last.pack == new.pack && last.first + last.count == new.first => last.count += new.count,
            _ => self.stored.push(new),
        }
    }

    /// The map's entry: rows cut at the borders of frames, zeros named.
    pub fn entry(&self, packs: &[Arc<PackPlace>]) -> Result<Entry> {
        let mut runs = Vec::new();
        if let Some(unit) = self.kind.unit() {
            let mut at = 0;
            for row in &self.stored {
                zeros(&mut runs, at, row.first);
                at = row.first + row.count;
                self.cut(row, unit, packs, &mut runs)?;
            }
            zeros(&mut runs, at, self.size / unit.bytes());
        }
        let (path, link) = (self.path.clone(), self.link.clone());
        let Record { kind, size, mode, mtime, .. } = *self;
        Ok(Entry { path, kind, size, mode, mtime, link, complete: true, runs })
    }

    fn cut(&self, row: &Stored, unit: Unit, packs: &[Arc<PackPlace>], runs: &mut Vec<Run>) -> Result<()> {
        let Stored { mut first, mut count, pack, mut frame, mut offset } = *row;
        while count > 0 {
            let place = packs.get(pack as usize);
            let room =
                place.and_then(|p| p.frames.get(frame as usize)).map_or(0, |f| f.plain_len.saturating_sub(offset));
            let (Some(pack), taken) = (place, (u64::from(room) / unit.bytes()).min(count)) else {
                return Err(self.lost(row));
            };
            if taken == 0 {
                return Err(self.lost(row));
            }
            runs.push(Run { first, count: taken, source: Source::Pack { pack: pack.clone(), frame, offset } });
            (first, count, frame, offset) = (first + taken, count - taken, frame + 1, 0);
        }
        Ok(())
    }

    /// Only a mistake of ours leads here; a map that names bytes which are not there must not be written.
    fn lost(&self, row: &Stored) -> Error {
        Error::new(Kind::Failed, format!("{row:?} of {} is in no frame", self.shown()))
    }

    pub fn is_file(&self) -> bool {
        matches!(self.kind, EntryKind::Pages | EntryKind::Bytes)
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

fn zeros(runs: &mut Vec<Run>, from: u64, to: u64) {
    if to > from {
        runs.push(Run { first: from, count: to - from, source: Source::Zero });
    }
}
