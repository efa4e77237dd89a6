//! The server's own manifest against what was received, while it passes; and its bytes into parts.
//!
//! A server lists files in the order in which it sent them, so one is compared after the other. Where the order differs, what is left of both is sorted and
//! compared as a whole.

use std::cmp::Ordering;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::sealing::Sealing;
use super::upload::Outbox;
use crate::disk::scratch::Scratch;
use crate::disk::sorted::{Merged, Pair, Sorter};
use crate::error::{Error, Kind, Result};
use crate::pg::manifest::{Checksum, ManifestItem, ManifestReader};
use crate::pg::{Lsn, SystemIdentifier};
use crate::seal::content::hex;
use crate::seal::content::manifest::ServerManifest;
use crate::seal::content::varint::{Cursor, put, put_bytes};
use crate::seal::header::ObjectKind;
use crate::seal::sealer::OBJECT_BYTES;

/// Memory for each of the two lists that are sorted.
const MEMORY: usize = 2 << 20;

/// A file as it was received, or as the manifest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    path: Vec<u8>,
    size: u64,
    /// `None`: the manifest has another checksum, or none.
    crc: Option<u32>,
}

/// What was received, in that order.
pub struct Arrivals {
    scratch: Arc<Scratch>,
    list: Sorter,
}

impl Arrivals {
    pub fn new(scratch: Arc<Scratch>) -> Arrivals {
        Arrivals { list: Sorter::new(scratch.path(), MEMORY), scratch }
    }

    /// A file under the name, and of the size, with which it was sent: those of an incremental file are its own.
    pub fn push(&mut self, path: &[u8], size: u64, crc: u32) -> Result<()> {
        let listed = Listed { path: path.to_vec(), size, crc: Some(crc) };
        self.list.push(&self.list.len().to_be_bytes(), &listed.encode())
    }
}

/// Reads backup_manifest. Memory: one part of it, and a few MiB.
pub struct ServerCheck {
    reader: ManifestReader,
    compared: Compared,
    hash: Sha256,
    len: u64,
    part: Vec<u8>,
    parts: u32,
}

struct Compared {
    scratch: Arc<Scratch>,
    arrived: Merged,
    /// What is left of the manifest, once the order differs.
    later: Option<Sorter>,
    /// The file that was received where the order began to differ.
    passed: Option<Listed>,
    system: SystemIdentifier,
    start: Lsn,
    /// A failure of the disk, which is no fault of the manifest.
    failed: Option<Error>,
}

impl ServerCheck {
    pub fn new(arrivals: Arrivals, system: SystemIdentifier, start: Lsn) -> Result<ServerCheck> {
        let Arrivals { scratch, list } = arrivals;
        let compared =
            Compared { scratch, arrived: list.finish()?, later: None, passed: None, system, start, failed: None };
        Ok(ServerCheck {
            reader: ManifestReader::new(),
            compared,
            hash: Sha256::new(),
            len: 0,
            part: Vec::new(),
            parts: 0,
        })
    }

    pub fn push(&mut self, mut bytes: &[u8], sealing: &mut Sealing, outbox: &Outbox) -> Result<()> {
        let compared = &mut self.compared;
        let read = self.reader.push(bytes, &mut |item| compared.item(item));
        if let Some(error) = self.compared.failed.take() {
            return Err(error);
        }
        read.map_err(refused)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(OBJECT_BYTES as usize - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = rest;
            if self.part.len() as u64 == OBJECT_BYTES {
                self.store(sealing, outbox)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, sealing: &mut Sealing, outbox: &Outbox) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        outbox.send(sealing.index(ObjectKind::ServerManifest, self.parts, &part)?)?;
        self.parts += 1;
        Ok(())
    }

    /// The manifest has ended and named every file that was received.
    pub fn finish(mut self, sealing: &mut Sealing, outbox: &Outbox) -> Result<ServerManifest> {
        self.reader.finish().map_err(refused)?;
        if !self.part.is_empty() {
            self.store(sealing, outbox)?;
        }
        self.compared.finish()?;
        Ok(ServerManifest { parts: self.parts, len: self.len, sha256: hex(&self.hash.finalize()) })
    }
}

impl Compared {
    fn item(&mut self, item: ManifestItem) -> Result<(), String> {
        match item {
            ManifestItem::System(found) if found != self.system => {
                Err(format!("it is of system {found}, this server is {}", self.system))
            }
            ManifestItem::WalRange { start, .. } if start < self.start => {
                Err(format!("it needs WAL from {start}, the backup begins at {}", self.start))
            }
            ManifestItem::File { path, size, checksum } => {
                let crc = if let Checksum::Crc32c(crc) = checksum { Some(crc) } else { None };
                self.file(Listed { path, size, crc })
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, named: Listed) -> Result<(), String> {
        if self.later.is_none() {
            match self.next_arrived() {
                Ok(Some(arrived)) if arrived.path == named.path => return arrived.compare(&named),
                Ok(other) => {
                    self.passed = other;
                    self.later = Some(Sorter::new(self.scratch.path(), MEMORY));
                }
                Err(error) => return self.fails(error),
            }
        }
        let added = self.later.as_mut().map_or(Ok(()), |later| later.push(&named.path, &named.encode()));
        added.or_else(|error| self.fails(error))
    }

    /// Ends the manifest's reading; the error itself is what is told.
    fn fails(&mut self, error: Error) -> Result<(), String> {
        self.failed = Some(error);
        Err(String::new())
    }

    fn next_arrived(&mut self) -> Result<Option<Listed>> {
        self.arrived.next_pair()?.map(listed).transpose()
    }

    /// Both lists have ended, or what is left of them says the same.
    fn finish(mut self) -> Result<()> {
        let mut left = Sorter::new(self.scratch.path(), MEMORY);
        if let Some(passed) = self.passed.take() {
            left.push(&passed.path, &passed.encode())?;
        }
        while let Some(arrived) = self.next_arrived()? {
            left.push(&arrived.path, &arrived.encode())?;
        }
        let later = self.later.unwrap_or_else(|| Sorter::new(self.scratch.path(), MEMORY));
        compare(left.finish()?, later.finish()?)
    }
}

/// Compares what is left, both in order of their paths.
fn compare(mut arrived: Merged, mut named: Merged) -> Result<()> {
    let (mut a, mut b) = (next(&mut arrived)?, next(&mut named)?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.path.cmp(&other.path),
        };
        if let (Ordering::Less, Some(one)) = (order, &a) {
            let shown = String::from_utf8_lossy(&one.path);
            return Err(refused(format!("{shown} was received, but the manifest does not name it")));
        }
        let (Some(one), Some(other)) = (a, &b) else {
            let shown = b.map(|other| String::from_utf8_lossy(&other.path).into_owned()).unwrap_or_default();
            return Err(refused(format!("it names {shown:?}, which was not received, or not so often")));
        };
        if order == Ordering::Greater {
            let shown = String::from_utf8_lossy(&other.path);
            return Err(refused(format!("it names {shown:?}, which was not received, or not so often")));
        }
        one.compare(other).map_err(refused)?;
        (a, b) = (next(&mut arrived)?, next(&mut named)?);
    }
}

fn next(from: &mut Merged) -> Result<Option<Listed>> {
    from.next_pair()?.map(listed).transpose()
}

impl Listed {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.path);
        put(&mut out, self.size);
        put(&mut out, self.crc.map_or(0, |crc| u64::from(crc) + 1));
        out
    }

    /// `self` was received, `named` is the manifest's.
    fn compare(&self, named: &Listed) -> Result<(), String> {
        let shown = String::from_utf8_lossy(&self.path);
        if self.size != named.size {
            return Err(format!("{shown:?} has {} bytes, received were {}", named.size, self.size));
        }
        match (named.crc, self.crc) {
            (Some(crc), Some(received)) if crc != received => {
                Err(format!("the CRC-32C of {shown:?} is {crc:08x}, of what was received {received:08x}"))
            }
            _ => Ok(()),
        }
    }
}

fn listed((_, bytes): Pair) -> Result<Listed> {
    let read = || {
        let mut cursor = Cursor::new("list of files", &bytes);
        let (path, size) = (cursor.bytes()?.to_vec(), cursor.number()?);
        Ok(Listed { path, size, crc: cursor.number()?.checked_sub(1).map(|crc| crc as u32) })
    };
    read().map_err(super::cache::damaged)
}

fn refused(problem: impl ToString) -> Error {
    Error::new(Kind::Corrupt, problem.to_string())
        .context("what was received is not what the server's manifest says")
        .hint("Take the backup again; if it happens again, look for faulty memory or network hardware.")
}
