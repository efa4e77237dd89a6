//! Writing a map: entries in, parts out.
//!
//! A part is a row of blocks of 256 KiB, so that each is one frame and can be read by itself. A block holds whole records; zeros fill it up.

use std::collections::HashMap;

use super::super::varint::{put, put_bytes, put_signed};
use super::{BackupId, Entry, EntryKind, PackPlace, Run, Source, VERSION};
use crate::seal::sealer::FRAME_BYTES;

pub(super) const END: u8 = 0;
pub(super) const PACK: u8 = 1;
pub(super) const ENTRY: u8 = 2;
pub(super) const MORE_RUNS: u8 = 3;
pub(super) const COMPLETE: u8 = 1;

/// A part ends about here. Whoever reads sixteen maps together holds a part of each, and each part names its packs anew.
const PART_BYTES: usize = 4 << 20;
/// Longest encoded run: five numbers.
const RUN_BYTES: usize = 40;
/// Runs in one record: with the packs they name it stays far below a part.
const RUNS: usize = 512;

pub(super) fn kind_code(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Absent => 0,
        EntryKind::Pages => 1,
        EntryKind::Bytes => 2,
        EntryKind::Directory => 3,
        EntryKind::Symlink => 4,
    }
}

/// Builds the parts of one map. Memory: one part.
pub struct MapWriter {
    backup: BackupId,
    part: u32,
    out: Vec<u8>,
    finished: Vec<Vec<u8>>,
    /// Packs that this part has named, by number of naming.
    packs: HashMap<(BackupId, u32), u64>,
    /// The previous path in this block.
    previous: Vec<u8>,
}

impl MapWriter {
    pub fn new(backup: BackupId) -> MapWriter {
        let mut writer = MapWriter {
            backup,
            part: 0,
            out: Vec::new(),
            finished: Vec::new(),
            packs: HashMap::new(),
            previous: Vec::new(),
        };
        writer.begin_part();
        writer
    }

    /// Adds an entry and returns the parts that are full. Entries must come in ascending order of their paths, runs in order and inside
    /// their frames: the reader refuses a map that breaks this.
    pub fn push(&mut self, entry: &Entry) -> Vec<Vec<u8>> {
        let first = entry.runs.get(..RUNS).unwrap_or(&entry.runs);
        let head_len = entry.path.len() + entry.link.len() + 64;
        self.record(first, head_len, |previous, out| {
            out.push(ENTRY);
            let shared = previous.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
            put(out, shared as u64);
            put_bytes(out, entry.path.get(shared..).unwrap_or_default());
            out.push(kind_code(entry.kind));
            out.push(if entry.complete { COMPLETE } else { 0 });
            put(out, entry.size);
            put(out, u64::from(entry.mode));
            put_signed(out, entry.mtime);
            put_bytes(out, &entry.link);
        });
        self.previous.clear();
        self.previous.extend_from_slice(&entry.path);
        for runs in entry.runs.get(RUNS..).unwrap_or_default().chunks(RUNS) {
            self.record(runs, 1, |_, out| out.push(MORE_RUNS));
        }
        std::mem::take(&mut self.finished)
    }

    /// The last parts; a map has at least one.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.finished.push(self.out);
        self.finished
    }

    /// Writes one record and, before it, the packs that this part has not named yet.
    fn record(&mut self, runs: &[Run], head_len: usize, head: impl Fn(&[u8], &mut Vec<u8>)) {
        let packs: Vec<Vec<u8>> = runs.iter().filter_map(|r| self.encode_new_pack(r)).collect();
        let packs_len: usize = packs.iter().map(Vec::len).sum();
        // A block may stay up to half empty before a pack that does not fit, and both ends may fall inside a block.
        let most = packs_len * 2 + 2 * FRAME_BYTES;
        if self.out.len() + most > PART_BYTES && self.out.len() > FRAME_BYTES {
            self.finished.push(std::mem::take(&mut self.out));
            self.part += 1;
            self.begin_part();
            return self.record(runs, head_len, head);
        }
        for pack in packs {
            self.make_room(pack.len());
            self.out.extend_from_slice(&pack);
        }
        self.make_room(head_len + 10 + runs.len() * RUN_BYTES);
        head(&self.previous, &mut self.out);
        put(&mut self.out, runs.len() as u64);
        let mut end = 0;
        for run in runs {
            self.encode_run(run, end);
            end = run.first + run.count;
        }
    }

    fn encode_run(&mut self, run: &Run, end: u64) {
        put(&mut self.out, run.first.wrapping_sub(end));
        put(&mut self.out, run.count);
        match &run.source {
            Source::Zero => put(&mut self.out, 0),
            Source::Pack { pack, frame, offset } => {
                let known = self.packs.get(&(pack.backup.clone(), pack.number)).copied().unwrap_or_default();
                put(&mut self.out, known + 1);
                put(&mut self.out, u64::from(*frame));
                put(&mut self.out, u64::from(*offset));
            }
        }
    }

    /// The record of a run's pack when this part has not named it yet.
    fn encode_new_pack(&mut self, run: &Run) -> Option<Vec<u8>> {
        let Source::Pack { pack, .. } = &run.source else { return None };
        let next = self.packs.len() as u64;
        let key = (pack.backup.clone(), pack.number);
        if self.packs.contains_key(&key) {
            return None;
        }
        self.packs.insert(key, next);
        let mut out = vec![PACK];
        encode_pack(pack, &mut out);
        Some(out)
    }

    fn begin_part(&mut self) {
        self.packs.clear();
        self.previous.clear();
        put(&mut self.out, VERSION);
        put_bytes(&mut self.out, self.backup.as_str().as_bytes());
        put(&mut self.out, u64::from(self.part));
    }

    /// Begins a new block unless `len` bytes fit this one. In a new block the first path shares nothing with the one before.
    fn make_room(&mut self, len: usize) {
        let used = self.out.len() % FRAME_BYTES;
        if used == 0 || used + len > FRAME_BYTES {
            self.out.resize(self.out.len().next_multiple_of(FRAME_BYTES), END);
            self.previous.clear();
        }
    }
}

fn encode_pack(pack: &PackPlace, out: &mut Vec<u8>) {
    put_bytes(out, pack.backup.as_str().as_bytes());
    put(out, u64::from(pack.number));
    put(out, pack.len);
    put_bytes(out, &pack.header);
    put(out, pack.frames.len() as u64);
    put(out, pack.frames.first().map_or(0, |f| f.offset));
    for frame in &pack.frames {
        put(out, u64::from(frame.len));
        put(out, u64::from(frame.plain_len));
    }
}
