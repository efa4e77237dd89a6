//! The tail of an open segment on a local disk: one preallocated, zeroed file; one write and one fdatasync per flush; no byte written twice.
//!
//! Overwriting zeros that are on the disk already needs no change of the file's metadata, so a flush costs half of what it does in a
//! growing file. The zeros are really written: blocks that `fallocate` only reserved would have to be marked as written at each flush.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::durable::{self, Staging};
use super::medium::{Ground, Handle};
use crate::error::{Error, Kind, Result};
use crate::pg::{DurableLsn, Lsn, SystemIdentifier, TimelineId};

/// What the file grows by when the preallocated part is full.
const STEP: u64 = 1 << 20;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A zeroed, synced file without a name, made ahead so that the next segment's first flush does not wait for it. Dropping deletes it.
pub struct PreparedTail {
    staging: Staging,
    allocated: u64,
}

/// An open tail file. After a failed write or sync it is dead: every later call fails, and the caller goes on in a new file.
#[derive(Debug)]
pub struct TailFile {
    medium: Ground,
    file: Arc<dyn Handle>,
    path: PathBuf,
    written: u64,
    allocated: u64,
    dead: Option<String>,
}

impl PreparedTail {
    /// Writes and syncs `preallocate` zero bytes in `directory` (made if missing), which is on the file system of the tails to come.
    pub fn prepare(medium: &Ground, directory: &Path, preallocate: u64) -> Result<PreparedTail> {
        durable::create_dirs(&**medium, directory)?;
        let staging = Staging::create(medium, &directory.join("tail"), 0o666)?;
        let zeroed = write_zeros(&*staging.file, 0, preallocate).and_then(|()| staging.file.sync_all());
        zeroed.map_err(|e| durable::failed("cannot preallocate a tail file in", directory, e))?;
        Ok(PreparedTail { staging, allocated: preallocate })
    }

    /// Writes `preamble`, syncs, and gives the file its name, durably with every directory above it. Fails when the name is taken.
    pub fn adopt(self, path: &Path, preamble: &[u8]) -> Result<TailFile> {
        let medium = self.staging.medium.clone();
        durable::create_dirs(&*medium, durable::parent(path))?;
        let file = self.staging.file.clone();
        let (ground, path_of) = (medium.clone(), path.to_owned());
        let mut tail =
            TailFile { medium: ground, file, path: path_of, written: 0, allocated: self.allocated, dead: None };
        tail.append(preamble)?;
        tail.sync_data()?;
        if !self.staging.link(path)? {
            return Err(Error::new(Kind::Failed, format!("tail file {} already exists", path.display())));
        }
        durable::sync_above(&*medium, path)?;
        Ok(tail)
    }
}

impl TailFile {
    /// Creates the file with `preallocate` zero bytes, writes `preamble`, syncs file and directories. Fails when it exists.
    pub fn create(medium: &Ground, path: &Path, preallocate: u64, preamble: &[u8]) -> Result<TailFile> {
        PreparedTail::prepare(medium, durable::parent(path), preallocate)?.adopt(path, preamble)
    }

    /// Writes sealed frames at the end of what was written; extends (zeroed) when the preallocated part is full.
    pub fn append(&mut self, sealed: &[u8]) -> Result<()> {
        let end = self.written + sealed.len() as u64;
        self.alive()?;
        let wrote = self.file.write_all_at(sealed, self.written);
        self.survive("write", wrote)?;
        self.written = end;
        if end > self.allocated {
            self.allocated = end;
            self.reserve(1)?;
        }
        Ok(())
    }

    /// Zeroes further room so that at least `ahead` bytes can be appended without growing. To be called between flushes.
    pub fn reserve(&mut self, ahead: u64) -> Result<()> {
        self.alive()?;
        let wanted = self.written + ahead;
        if wanted > self.allocated {
            let target = wanted.next_multiple_of(STEP);
            let zeroed = write_zeros(&*self.file, self.allocated, target);
            self.survive("extend", zeroed)?;
            self.allocated = target;
        }
        Ok(())
    }

    /// fdatasync. On success everything appended is durable and the witness for `claim` (system, timeline, end LSN of what was appended) is returned. A file
    /// that no longer stands under its name (deleted, or its disk unmounted) can be synced still, but nobody would find it.
    pub fn sync(&mut self, claim: (SystemIdentifier, TimelineId, Lsn)) -> Result<DurableLsn> {
        self.sync_data()?;
        let found = self.stands_under_its_name();
        self.survive("find again", found)?;
        Ok(DurableLsn::witness(claim.0, claim.1, claim.2))
    }

    /// Bytes appended so far, the preamble included.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that can be appended before the file has to grow.
    pub fn room(&self) -> u64 {
        self.allocated - self.written
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sync_data(&mut self) -> Result<()> {
        self.alive()?;
        let synced = self.file.sync_data();
        self.survive("sync", synced)
    }

    fn stands_under_its_name(&self) -> io::Result<()> {
        let (own, named) = (self.file.look()?, self.medium.look(&self.path)?);
        if (own.device, own.inode) == (named.device, named.inode) {
            return Ok(());
        }
        Err(io::Error::other("another file stands under its name"))
    }

    fn alive(&self) -> Result<()> {
        match &self.dead {
            None => Ok(()),
            Some(cause) => Err(self.gone(cause)),
        }
    }

    /// Passes a result on; a failure is the end of this file.
    fn survive(&mut self, what: &str, result: io::Result<()>) -> Result<()> {
        result.map_err(|cause| {
            let text = format!("cannot {what}: {cause}");
            let error = self.gone(&text);
            self.dead = Some(text);
            error
        })
    }

    /// Transient: the bytes are in memory still and belong into a new file.
    fn gone(&self, cause: &str) -> Error {
        Error::new(Kind::Repository, format!("tail file {} is unusable: {cause}", self.path.display()))
            .transient()
            .hint("Check the disk, its free space and the kernel log.")
    }
}

fn write_zeros(file: &dyn Handle, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let len = (to - at).min(ZEROS.len() as u64) as usize;
        file.write_all_at(&ZEROS[..len], at)?;
        at += len as u64;
    }
    Ok(())
}
