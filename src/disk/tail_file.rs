//! The tail of an open segment on a local disk: one preallocated, zeroed file; one write and one fdatasync per flush; no byte written twice.
//!
//! Overwriting zeros that are on the disk already needs no change of the file's metadata, so a flush costs half of what it does in a
//! growing file. The zeros are really written: blocks that `fallocate` only reserved would have to be marked as written at each flush.
//!
//! Zeros are a favour, never a condition: where the disk is too full for them the file grows with what is written.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::durable::{self, Staging};
use super::lane::Beside;
use super::medium::{Ground, Handle, Identity};
use crate::error::{Error, Kind, Result};
use crate::pg::{DurableLsn, Lsn, SystemIdentifier, TimelineId};

/// What the file grows by when the preallocated part is full.
const STEP: u64 = 1 << 20;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A synced file without a name, of zeros or of what nobody needs any more, made ahead so that the next segment's first flush does not wait for it. Dropping
/// deletes it.
pub struct PreparedTail {
    staging: Staging,
    allocated: u64,
    private: bool,
}

/// An open tail file. After a failed write or sync it is dead: every later call fails, and the caller goes on in a new file.
#[derive(Debug)]
pub struct TailFile {
    medium: Ground,
    file: Arc<dyn Handle>,
    path: PathBuf,
    identity: Identity,
    written: u64,
    /// A sync has succeeded since the file has its name.
    synced: bool,
    /// End of what may be written without a change of the file's metadata.
    allocated: u64,
    /// Zeros that are being written from `allocated` on: up to where.
    extension: Option<(u64, Beside<io::Result<()>>)>,
    /// The disk had no room for zeros.
    full: bool,
    dead: Option<String>,
}

impl PreparedTail {
    /// Writes and syncs `preallocate` zero bytes in `directory` (made if missing), which is on the file system of the tails to come. A file without zeros
    /// where the disk has no room for them.
    pub fn prepare(medium: &Ground, directory: &Path, preallocate: u64) -> Result<PreparedTail> {
        durable::create_dirs(&**medium, directory)?;
        PreparedTail::zeroed(medium, directory, preallocate, false)
    }

    /// As [`PreparedTail::prepare`]; nobody but the owner may reach the file, or the folders that are made for it.
    pub fn prepare_private(medium: &Ground, directory: &Path, preallocate: u64) -> Result<PreparedTail> {
        medium.private_folder(directory)?;
        PreparedTail::zeroed(medium, directory, preallocate, true)
    }

    /// A file of `allocated` bytes that held another tail; what it holds is on the disk, and means nothing.
    pub(super) fn again(staging: Staging, allocated: u64) -> PreparedTail {
        PreparedTail { staging, allocated, private: false }
    }

    /// Bytes that can be written before the file has to grow.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    fn zeroed(medium: &Ground, directory: &Path, preallocate: u64, private: bool) -> Result<PreparedTail> {
        let staging = Staging::create(medium, &directory.join("tail"), if private { 0o600 } else { 0o666 })?;
        let zeroed = write_slowly(&*staging.file, preallocate).and_then(|()| staging.file.sync_all());
        match zeroed {
            Ok(()) => Ok(PreparedTail { staging, allocated: preallocate, private }),
            Err(e) if is_full(&e) && preallocate > 0 => {
                // What zeros there are go with this file: the room may be just what the next flush needs.
                drop(staging);
                PreparedTail::zeroed(medium, directory, 0, private)
            }
            Err(e) => Err(durable::failed("cannot preallocate a tail file in", directory, e)),
        }
    }

    /// Writes `preamble`, syncs, and gives the file its name, durably with every directory above it. Fails when the name is taken.
    pub fn adopt(self, path: &Path, preamble: &[u8]) -> Result<TailFile> {
        let medium = self.staging.medium.clone();
        match self.private {
            // What is made here is synced below, with everything above the file.
            true => medium.private_folder(durable::parent(path))?,
            false => durable::create_dirs(&*medium, durable::parent(path))?,
        }
        let file = self.staging.file.clone();
        let identity = file.look().map_err(|e| durable::failed("cannot look at a tail file for", path, e))?.identity();
        let mut tail = TailFile {
            medium: medium.clone(),
            file,
            path: path.to_owned(),
            identity,
            written: 0,
            synced: false,
            allocated: self.allocated,
            extension: None,
            full: false,
            dead: None,
        };
        tail.append(preamble)?;
        tail.sync_data()?;
        if !self.staging.link(path)? {
            return Err(Error::new(Kind::Failed, format!("tail file {} already exists", path.display())));
        }
        if let Err(error) = durable::sync_above(&*medium, path) {
            tail.give_up();
            return Err(error);
        }
        Ok(tail)
    }
}

impl TailFile {
    /// Creates the file with `preallocate` zero bytes, writes `preamble`, syncs file and directories. Fails when it exists.
    pub fn create(medium: &Ground, path: &Path, preallocate: u64, preamble: &[u8]) -> Result<TailFile> {
        PreparedTail::prepare(medium, durable::parent(path), preallocate)?.adopt(path, preamble)
    }

    /// Writes sealed frames at the end of what was written; the file grows when the zeros are used up.
    pub fn append(&mut self, sealed: &[u8]) -> Result<()> {
        let end = self.written + sealed.len() as u64;
        self.alive()?;
        if end > self.allocated {
            // Nobody else may be writing zeros where these bytes go.
            self.settle()?;
        }
        let wrote = self.file.write_all_at(sealed, self.written);
        self.survive("write", wrote)?;
        self.written = end;
        self.allocated = self.allocated.max(end);
        Ok(())
    }

    /// Sees to it that there are zeros for at least `ahead` more bytes, written and synced beside the flushes. To be called after each of them.
    pub fn reserve(&mut self, ahead: u64) -> Result<()> {
        self.alive()?;
        if self.extension.as_ref().is_some_and(|(_, work)| work.is_finished()) {
            self.settle()?;
        }
        let wanted = self.written + ahead;
        if wanted > self.allocated && self.extension.is_none() && !self.full {
            let (from, to) = (self.allocated, wanted.next_multiple_of(STEP));
            let (file, path, medium) = (self.file.clone(), self.path.clone(), self.medium.clone());
            let work = self.medium.lane().beside("extend", move || {
                // Opened before anything is written: a failed write-back is told to each open file once, and the flushes must not miss theirs.
                let own = medium.open(&path)?;
                write_zeros(&*file, from, to)?;
                own.sync_data()
            });
            self.extension = work.map(|work| (to, work));
        }
        Ok(())
    }

    /// Waits for zeros that are being written.
    pub fn settle(&mut self) -> Result<()> {
        let Some((to, work)) = self.extension.take() else { return Ok(()) };
        match work.join() {
            Some(Ok(())) => self.allocated = to,
            Some(Err(error)) if is_full(&error) => self.full = true,
            Some(Err(error)) => return self.survive("extend", Err(error)),
            // The work died: there may be zeros or none.
            None => self.full = true,
        }
        Ok(())
    }

    /// fdatasync. On success everything appended is durable and the witness for `claim` (system, timeline, end LSN of what was appended) is returned. A file
    /// that no longer stands under its name (deleted, or its disk unmounted) can be synced still, but nobody would find it.
    pub fn sync(&mut self, claim: (SystemIdentifier, TimelineId, Lsn)) -> Result<DurableLsn> {
        self.sync_here()?;
        Ok(DurableLsn::witness(claim.0, claim.1, claim.2))
    }

    /// As [`TailFile::sync`], for a file that is in no repository: that is durable on this host proves nothing more.
    pub fn sync_here(&mut self) -> Result<()> {
        self.sync_data()?;
        let found = self.stands_under_its_name();
        self.survive("find again", found)?;
        self.synced = true;
        Ok(())
    }

    /// The end of a file that failed. `false`: it does not stand under its name any more, and what was synced in it is lost. One in which nothing was synced
    /// but its preamble is deleted: on a full disk each attempt would leave another one, and take the room that the next needs.
    pub fn give_up(&mut self) -> bool {
        match self.stands_under_its_name() {
            Ok(()) => {
                if !self.synced {
                    // What stays is found empty.
                    let _ = self.medium.remove_file(&self.path);
                }
                true
            }
            // Without an answer it is taken to be there: a file that is dead is only read.
            Err(error) => !is_gone(&error),
        }
    }

    /// Bytes appended so far, the preamble included.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that can be appended before the file has to grow.
    pub fn room(&self) -> u64 {
        self.allocated.saturating_sub(self.written)
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
        if self.medium.identify(&self.path)? == self.identity {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::NotFound, "another file stands under its name"))
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

/// Whether nothing, or something else, stands under the name.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether there is no room, which takes nothing away from what was written and synced.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// Zeros from the start of a file, on the disk part by part: a flush of another file, for which somebody waits, finds no long queue there.
fn write_slowly(file: &dyn Handle, to: u64) -> io::Result<()> {
    let mut at = 0;
    while at < to {
        let end = to.min(at + STEP);
        write_zeros(file, at, end)?;
        if end < to {
            file.sync_data()?;
        }
        at = end;
    }
    Ok(())
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
