//! A file of records in ascending order of their keys, found by key.
//!
//! ```text
//! magic (8) | block: what it belongs to | blocks of records | block: first key and place of each block | block: trailer (fixed length)
//! ```
//!
//! The trailer is written last, so a file that was not finished is refused.

use std::path::Path;
use std::sync::Arc;

use super::Pair;
use super::block::{BlockWriter, Blocks, HEAD, refused};
use crate::disk::durable;
use crate::disk::medium::Disk;
use crate::error::{Error, Kind, Result};
use crate::seal::content::varint::{Cursor, put, put_bytes};

const MAGIC: &[u8; 8] = b"wrsort01";
/// Bytes of records in a block: what one look reads.
const BLOCK: usize = 16 << 10;
/// Place of the index, records.
const TRAILER: usize = 16;
pub(super) const WHAT: &str = "sorted file";

/// Appends a record to a block: the key without what it shares with the one before.
pub(super) fn encode(out: &mut Vec<u8>, previous: &[u8], key: &[u8], value: &[u8]) {
    let shared = previous.iter().zip(key).take_while(|(a, b)| a == b).count();
    put(out, shared as u64);
    put_bytes(out, key.get(shared..).unwrap_or_default());
    put_bytes(out, value);
}

/// Writes a file. It is none before [`SortedWriter::finish`].
pub struct SortedWriter {
    blocks: BlockWriter,
    block: Vec<u8>,
    last: Vec<u8>,
    index: Vec<u8>,
    records: u64,
}

impl SortedWriter {
    /// A new file, readable by its owner alone, in place of any that stands there.
    pub fn create(path: &Path, belongs: &[u8]) -> Result<SortedWriter> {
        let blocks = BlockWriter::create(path, MAGIC, belongs)?;
        Ok(SortedWriter { blocks, block: Vec::new(), last: Vec::new(), index: Vec::new(), records: 0 })
    }

    /// Adds a record. A key that is not above the one before is `Kind::Failed`.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.records > 0 && key <= self.last.as_slice() {
            let text = format!("{} comes after {}", key.escape_ascii(), self.last.escape_ascii());
            return Err(Error::new(Kind::Failed, format!("{}: {text}", self.blocks.path.display())));
        }
        if self.block.is_empty() {
            put(&mut self.index, self.blocks.at);
            put_bytes(&mut self.index, key);
            self.last.clear();
        }
        encode(&mut self.block, &self.last, key, value);
        self.last.clear();
        self.last.extend_from_slice(key);
        self.records += 1;
        if self.block.len() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<()> {
        if !self.block.is_empty() {
            self.blocks.block(&self.block)?;
            self.block.clear();
        }
        Ok(())
    }

    /// Completes the file; it is durable when this returns.
    pub fn finish(mut self) -> Result<()> {
        self.end()?;
        self.blocks.sync()?;
        durable::sync_dirs(&Disk, durable::parent(&self.blocks.path), durable::parent(&self.blocks.path))
    }

    /// Completes a file that nobody but this process is to read: nothing waits for the disk.
    pub fn finish_for_now(mut self) -> Result<()> {
        self.end()?;
        self.blocks.flush()
    }

    fn end(&mut self) -> Result<()> {
        self.end_block()?;
        let mut trailer = self.blocks.at.to_le_bytes().to_vec();
        trailer.extend_from_slice(&self.records.to_le_bytes());
        self.blocks.block(&self.index)?;
        self.blocks.block(&trailer)
    }
}

/// A finished file. Memory: the first keys of its blocks (about a five-hundredth of the file) and one block.
pub struct SortedFile {
    blocks: Arc<Blocks>,
    first: u64,
    /// Place and first key of each block.
    index: Vec<(u64, Box<[u8]>)>,
    /// Where the last block ends.
    end: u64,
    records: u64,
    /// The block that was read last.
    recent: Option<(u64, Vec<u8>)>,
}

impl SortedFile {
    /// Opens a finished file. `None`: there is none. One that was not finished, is damaged here, or belongs to something else is `Kind::Corrupt`;
    /// blocks of records are checked when they are read.
    pub fn open(path: &Path, belongs: &[u8]) -> Result<Option<SortedFile>> {
        let Some((blocks, first)) = Blocks::open(path, MAGIC, belongs)? else { return Ok(None) };
        let at = blocks.len.checked_sub((HEAD + TRAILER) as u64).filter(|at| *at >= first);
        let at = at.ok_or_else(|| refused(path, "it was not finished"))?;
        let (trailer, end) = blocks.block(at)?;
        let (Some(place), Some(records)) = (number(&trailer, 0), number(&trailer, 8)) else {
            return Err(refused(path, "it was not finished"));
        };
        if trailer.len() != TRAILER || end != blocks.len || !(first..at).contains(&place) {
            return Err(refused(path, "it was not finished"));
        }
        let (bytes, behind) = blocks.block(place)?;
        if behind != at {
            return Err(refused(path, "its index is not where it should be"));
        }
        let index = index(&bytes).map_err(|e| refused(path, &e))?;
        Ok(Some(SortedFile { blocks: Arc::new(blocks), first, index, end: place, records, recent: None }))
    }

    /// Records in it.
    pub fn len(&self) -> u64 {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The value under a key.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let behind = self.index.partition_point(|(_, first)| **first <= *key);
        let Some((at, _)) = behind.checked_sub(1).and_then(|n| self.index.get(n)) else { return Ok(None) };
        let at = *at;
        let block = match self.recent.take_if(|(place, _)| *place == at) {
            Some((_, block)) => block,
            None => self.blocks.block(at)?.0,
        };
        let found = find(&block, key).map_err(|e| refused(&self.blocks.path, &e));
        self.recent = Some((at, block));
        found
    }

    /// All records in order.
    pub fn walk(&self) -> Walk {
        Walk {
            blocks: self.blocks.clone(),
            at: self.first,
            end: self.end,
            block: RecordBlock::default(),
            left: self.records,
        }
    }

    /// Reads everything once: `Kind::Corrupt` where anything is damaged.
    pub fn verify(&self) -> Result<()> {
        let mut walk = self.walk();
        while walk.next_pair()?.is_some() {}
        Ok(())
    }
}

/// All records of a file in order. Memory: one block.
pub struct Walk {
    blocks: Arc<Blocks>,
    at: u64,
    end: u64,
    block: RecordBlock,
    left: u64,
}

impl Walk {
    pub fn next_pair(&mut self) -> Result<Option<Pair>> {
        loop {
            if let Some(pair) = self.block.next_pair().map_err(|e| refused(&self.blocks.path, &e))? {
                self.left =
                    self.left.checked_sub(1).ok_or_else(|| refused(&self.blocks.path, "it has too many records"))?;
                return Ok(Some(pair));
            }
            if self.at >= self.end {
                return match self.left {
                    0 => Ok(None),
                    left => Err(refused(&self.blocks.path, &format!("{left} records are missing"))),
                };
            }
            let (bytes, next) = self.blocks.block(self.at)?;
            self.at = next;
            self.block = RecordBlock::new(bytes);
        }
    }
}

/// The records of one block, one after the other.
#[derive(Default)]
pub(super) struct RecordBlock {
    bytes: Vec<u8>,
    at: usize,
    key: Vec<u8>,
}

impl RecordBlock {
    pub fn new(bytes: Vec<u8>) -> RecordBlock {
        RecordBlock { bytes, at: 0, key: Vec::new() }
    }

    pub fn next_pair(&mut self) -> Result<Option<Pair>, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let mut cursor = Cursor::new(WHAT, rest);
        let value = record(&mut cursor, &mut self.key)?.to_vec();
        self.at = self.bytes.len() - cursor.rest().len();
        Ok(Some((self.key.clone(), value)))
    }
}

/// Decodes the next record: `key` is the one before and becomes its own.
fn record<'a>(cursor: &mut Cursor<'a>, key: &mut Vec<u8>) -> Result<&'a [u8], String> {
    let text = |e: crate::seal::content::Malformed| e.to_string();
    let shared = cursor.number().map_err(text)?;
    if shared > key.len() as u64 {
        return Err("a key shares more than the one before has".to_owned());
    }
    key.truncate(shared as usize);
    key.extend_from_slice(cursor.bytes().map_err(text)?);
    cursor.bytes().map_err(text)
}

fn find(block: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let (mut cursor, mut found) = (Cursor::new(WHAT, block), Vec::new());
    while !cursor.is_empty() {
        let value = record(&mut cursor, &mut found)?;
        match found.as_slice().cmp(key) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(Some(value.to_vec())),
            std::cmp::Ordering::Greater => break,
        }
    }
    Ok(None)
}

/// Where a block begins, and its first key.
type First = (u64, Box<[u8]>);

fn index(bytes: &[u8]) -> Result<Vec<First>, String> {
    let (mut cursor, mut all) = (Cursor::new(WHAT, bytes), Vec::new());
    let text = |e: crate::seal::content::Malformed| e.to_string();
    while !cursor.is_empty() {
        let at = cursor.number().map_err(text)?;
        all.push((at, cursor.bytes().map_err(text)?.into()));
    }
    Ok(all)
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
