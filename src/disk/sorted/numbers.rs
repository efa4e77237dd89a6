//! A long row of 64-bit numbers, read from any place on.

use std::path::Path;

use super::block::{BlockWriter, Blocks, HEAD, refused};
use super::file::number;
use crate::disk::durable;
use crate::disk::medium::Disk;
use crate::error::Result;

const MAGIC: &[u8; 8] = b"wrnums01";
/// Numbers in a block: what one look reads.
const BLOCK: usize = 1024;
/// Bytes of a whole block.
const STEP: u64 = (HEAD + BLOCK * 8) as u64;
/// How many numbers there are.
const TRAILER: usize = 8;

/// Writes a row. It is none before [`NumberWriter::finish`].
pub struct NumberWriter {
    blocks: BlockWriter,
    block: Vec<u8>,
    count: u64,
}

impl NumberWriter {
    /// A new file, readable by its owner alone, in place of any that stands there.
    pub fn create(path: &Path, belongs: &[u8]) -> Result<NumberWriter> {
        Ok(NumberWriter { blocks: BlockWriter::create(path, MAGIC, belongs)?, block: Vec::new(), count: 0 })
    }

    pub fn push(&mut self, number: u64) -> Result<()> {
        self.block.extend_from_slice(&number.to_le_bytes());
        self.count += 1;
        if self.block.len() < BLOCK * 8 {
            return Ok(());
        }
        self.blocks.block(&self.block)?;
        self.block.clear();
        Ok(())
    }

    /// Numbers so far: the place of the next one.
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Completes the file; it is durable when this returns.
    pub fn finish(mut self) -> Result<()> {
        if !self.block.is_empty() {
            self.blocks.block(&self.block)?;
        }
        self.blocks.block(&self.count.to_le_bytes())?;
        self.blocks.sync()?;
        let above = durable::parent(&self.blocks.path);
        durable::sync_dirs(&Disk, above, above)
    }
}

/// A finished row. Memory: one block.
pub struct NumberFile {
    blocks: Blocks,
    first: u64,
    count: u64,
    /// The block that was read last, by number.
    recent: Option<(u64, Vec<u8>)>,
}

impl NumberFile {
    /// Opens a finished row. `None`: there is none. One that was not finished or belongs to something else is `Kind::Corrupt`; blocks are checked
    /// when they are read.
    pub fn open(path: &Path, belongs: &[u8]) -> Result<Option<NumberFile>> {
        let Some((blocks, first)) = Blocks::open(path, MAGIC, belongs)? else { return Ok(None) };
        let unfinished = || refused(path, "it was not finished");
        let at = blocks.len.checked_sub((HEAD + TRAILER) as u64).filter(|at| *at >= first).ok_or_else(unfinished)?;
        let count = number(&blocks.block(at)?.0, 0).ok_or_else(unfinished)?;
        let bytes = count.checked_mul(8).and_then(|b| b.checked_add(count.div_ceil(BLOCK as u64) * HEAD as u64));
        if bytes != Some(at - first) {
            return Err(unfinished());
        }
        Ok(Some(NumberFile { blocks, first, count, recent: None }))
    }

    /// How many numbers there are.
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number at a place, cheap from one to the next. `Kind::Corrupt` where it is damaged or there is none.
    pub fn get(&mut self, place: u64) -> Result<u64> {
        if place >= self.count {
            return Err(refused(&self.blocks.path, &format!("it has {} numbers, not number {place}", self.count)));
        }
        let block = place / BLOCK as u64;
        if self.recent.as_ref().is_none_or(|(held, _)| *held != block) {
            self.recent = Some((block, self.blocks.block(self.first + block * STEP)?.0));
        }
        let bytes = self.recent.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        let found = number(bytes, (place % BLOCK as u64) as usize * 8);
        found.ok_or_else(|| refused(&self.blocks.path, &format!("number {place} is missing")))
    }
}
