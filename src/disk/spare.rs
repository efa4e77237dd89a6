//! A tail file whose bytes are needed no more, to be written again: its blocks are on the disk already, so the next tail need not be zeroed.
//!
//! Whoever still reads it under its old name must notice: it loses that name durably before a byte of it changes, and frames of another tail are none of the
//! next one, by their salt.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::durable::{self, Staging};
use super::medium::Ground;
use super::tail_file::PreparedTail;
use crate::error::Result;

/// One at most, of those who write tails of one timeline.
#[derive(Clone, Default)]
pub struct Spare(Arc<Shelf>);

#[derive(Default)]
struct Shelf {
    wanted: AtomicU64,
    file: Mutex<Option<PreparedTail>>,
}

impl Spare {
    /// From now on files with room for so many bytes are wanted; 0: none.
    pub fn want(&self, bytes: u64) {
        self.0.wanted.store(bytes, Ordering::SeqCst);
    }

    pub fn take(&self) -> Option<PreparedTail> {
        let taken = self.0.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.filter(|tail| self.fits(tail.allocated()))
    }

    /// Takes the file at `path` from under its name, and from under its folder's where nothing else is in that; until it is written again it stands below
    /// `directory` without one. `false`: it is none to be written again, and still stands there. Nobody may need its bytes any more.
    pub fn retire(&self, medium: &Ground, path: &Path, directory: &Path) -> Result<bool> {
        if self.0.wanted.load(Ordering::SeqCst) == 0 || self.is_there() {
            return Ok(false);
        }
        let Some(staging) = Staging::reuse(medium, path, &directory.join("tail"))? else { return Ok(false) };
        let _ = medium.remove_dir(durable::parent(path));
        let len = staging.file.look().map_err(|e| durable::failed("cannot look at", path, e))?.len;
        if self.fits(len) {
            *self.0.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(PreparedTail::again(staging, len));
        }
        Ok(true)
    }

    fn is_there(&self) -> bool {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Large enough, and not so large that it would only take room.
    fn fits(&self, len: u64) -> bool {
        let wanted = self.0.wanted.load(Ordering::SeqCst);
        wanted > 0 && len >= wanted && len / 2 <= wanted
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::medium::disk;
    use super::super::tail_file::TailFile;
    use super::*;

    const ROOM: u64 = 64 << 10;

    #[test]
    fn a_file_is_written_again_once_it_has_lost_its_name() {
        let (medium, folder) = (disk(), tempfile::tempdir().unwrap());
        let (first, second) = (folder.path().join("5/a.open"), folder.path().join("6/b.open"));
        let spare = Spare::default();
        let mut tail = TailFile::create(&medium, &first, ROOM, b"preamble").unwrap();
        tail.append(&[7; 1000]).unwrap();
        tail.sync_here().unwrap();
        // None is wanted.
        assert!(!spare.retire(&medium, &first, folder.path()).unwrap() && first.exists());
        spare.want(ROOM);
        // Somebody writes to it.
        assert!(!spare.retire(&medium, &first, folder.path()).unwrap() && first.exists());
        drop(tail);
        assert!(spare.retire(&medium, &first, folder.path()).unwrap());
        assert!(!first.parent().unwrap().exists());
        let inode = |path: &Path| medium.look(path).unwrap().inode;
        let tail = spare.take().unwrap().adopt(&second, b"another").unwrap();
        assert_eq!((tail.written(), tail.room()), (7, ROOM - 7));
        drop(tail);
        let bytes = fs::read(&second).unwrap();
        assert_eq!((bytes.len() as u64, &bytes[..9]), (ROOM, &b"anothere\x07"[..]));
        // Under that name only.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let own = inode(&second);
        assert!(spare.take().is_none() && spare.retire(&medium, &second, folder.path()).unwrap());
        // One is enough, and one that nobody takes goes with its owner.
        let third = folder.path().join("7/c.open");
        drop(TailFile::create(&medium, &third, ROOM, b"").unwrap());
        assert!(!spare.retire(&medium, &third, folder.path()).unwrap() && inode(&third) != own);
        drop(spare);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_of_another_size_are_not_kept() {
        let (medium, folder) = (disk(), tempfile::tempdir().unwrap());
        let spare = Spare::default();
        for (wanted, len, kept) in [(ROOM, ROOM, true), (ROOM, ROOM / 2, false), (ROOM, 3 * ROOM, false)] {
            let path = folder.path().join("a.open");
            drop(TailFile::create(&medium, &path, len, b"").unwrap());
            spare.want(wanted);
            assert!(spare.retire(&medium, &path, folder.path()).unwrap() && !path.exists());
            assert_eq!(spare.take().is_some(), kept, "{wanted} {len}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
