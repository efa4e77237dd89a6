//! Sorting more than memory holds: full buffers are sorted and written one behind the other into a file without a name, and merged at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

use super::Pair;
use super::block::{BlockWriter, Blocks, refused};
use super::file::{RecordBlock, encode};
use crate::disk::private;
use crate::error::Result;

/// Bytes of records that are read at a time from each sorted run.
const BLOCK: usize = 32 << 10;

/// Where a record stands in the buffer.
#[derive(Clone, Copy)]
struct Slot {
    at: u32,
    key: u32,
    value: u32,
}

/// Takes records in any order. Equal keys are kept, in the order in which they came.
pub struct Sorter {
    folder: PathBuf,
    /// Bytes that the buffer may hold.
    memory: usize,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    file: Option<BlockWriter>,
    /// Where each run begins and ends in the file.
    runs: Vec<(u64, u64)>,
    records: u64,
}

impl Sorter {
    /// `folder` is made when it is needed, for this user alone; what is written there has no name. `memory` is what is held at most, some MiB; at
    /// the end it is 32 KiB for each run.
    pub fn new(folder: &Path, memory: usize) -> Sorter {
        let memory = memory.clamp(1 << 10, 1 << 30);
        let (bytes, slots, runs) = Default::default();
        Sorter { folder: folder.to_owned(), memory, bytes, slots, file: None, runs, records: 0 }
    }

    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let needed = key.len() + value.len() + size_of::<Slot>();
        let held = self.bytes.len() + self.slots.len() * size_of::<Slot>();
        if held + needed > self.memory && !self.slots.is_empty() {
            self.spill()?;
        }
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.slots.push(Slot { at, key: key.len() as u32, value: value.len() as u32 });
        self.records += 1;
        Ok(())
    }

    /// Records so far.
    pub fn len(&self) -> u64 {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        // Slots stand in the order in which they came.
        self.slots
            .sort_unstable_by(|a, b| key(bytes, *a).cmp(key(bytes, *b)).then((a.at, a.value).cmp(&(b.at, b.value))));
    }

    fn spill(&mut self) -> Result<()> {
        self.sort();
        if self.file.is_none() {
            private::folder(&self.folder)?;
            self.file = Some(BlockWriter::nameless(&self.folder)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let from = file.at;
        let (mut block, mut last): (Vec<u8>, &[u8]) = Default::default();
        for slot in &self.slots {
            let key = key(&self.bytes, *slot);
            encode(&mut block, last, key, value(&self.bytes, *slot));
            last = key;
            if block.len() >= BLOCK {
                file.block(&block)?;
                block.clear();
                last = &[];
            }
        }
        if !block.is_empty() {
            file.block(&block)?;
        }
        self.runs.push((from, file.at));
        self.bytes.clear();
        self.slots.clear();
        Ok(())
    }

    /// All records in ascending order of their keys.
    pub fn finish(mut self) -> Result<Merged> {
        if self.file.is_some() {
            self.spill()?;
            (self.bytes, self.slots) = Default::default();
        } else {
            self.sort();
        }
        let file = self.file.take().map(BlockWriter::into_blocks).transpose()?;
        let runs = self.runs.into_iter().map(|(at, end)| Run { at, end, block: RecordBlock::default() }).collect();
        let mut merged =
            Merged { file, runs, heads: BinaryHeap::new(), bytes: self.bytes, slots: self.slots.into_iter() };
        for run in 0..merged.runs.len() {
            merged.advance(run)?;
        }
        Ok(merged)
    }
}

fn key(bytes: &[u8], slot: Slot) -> &[u8] {
    let at = slot.at as usize;
    bytes.get(at..at + slot.key as usize).unwrap_or_default()
}

fn value(bytes: &[u8], slot: Slot) -> &[u8] {
    let at = slot.at as usize + slot.key as usize;
    bytes.get(at..at + slot.value as usize).unwrap_or_default()
}

struct Run {
    at: u64,
    end: u64,
    block: RecordBlock,
}

/// Key, run, value.
type Head = (Vec<u8>, usize, Vec<u8>);

/// What a [`Sorter`] sorted.
pub struct Merged {
    file: Option<Blocks>,
    runs: Vec<Run>,
    /// The next record of each run.
    heads: BinaryHeap<Reverse<Head>>,
    /// What never left memory, where there are no runs.
    bytes: Vec<u8>,
    slots: std::vec::IntoIter<Slot>,
}

impl Merged {
    pub fn next_pair(&mut self) -> Result<Option<Pair>> {
        if let Some(slot) = self.slots.next() {
            return Ok(Some((key(&self.bytes, slot).to_vec(), value(&self.bytes, slot).to_vec())));
        }
        let Some(Reverse((key, run, value))) = self.heads.pop() else { return Ok(None) };
        self.advance(run)?;
        Ok(Some((key, value)))
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let (Some(run), Some(file)) = (self.runs.get_mut(number), &self.file) else { return Ok(()) };
        loop {
            if let Some((key, value)) = run.block.next_pair().map_err(|e| refused(&file.path, &e))? {
                self.heads.push(Reverse((key, number, value)));
                return Ok(());
            }
            if run.at >= run.end {
                return Ok(());
            }
            let (bytes, next) = file.block(run.at)?;
            run.at = next;
            run.block = RecordBlock::new(bytes);
        }
    }
}
