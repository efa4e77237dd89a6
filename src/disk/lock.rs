//! A lock that one process at a time can hold, and that goes with the process however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::durable;
use super::medium::Disk;
use crate::error::Result;

/// A held lock on a file, which stays behind, unlocked, when this is dropped.
#[derive(Debug)]
pub struct LockFile {
    file: File,
}

/// Longest note that is read.
const NOTE: usize = 4096;

impl LockFile {
    /// Takes the lock, or answers `None` where another process holds it. Makes the file and the directories above it.
    pub fn take(path: &Path) -> Result<Option<LockFile>> {
        if let Some(above) = path.parent() {
            durable::create_dirs(&Disk, above)?;
        }
        LockFile::open(path)
    }

    /// The same with directories below `root` alone: where that is gone, an error.
    pub fn take_below(root: &Path, path: &Path) -> Result<Option<LockFile>> {
        let above: Vec<&Path> = path.ancestors().skip(1).take_while(|above| *above != root).collect();
        for folder in above.into_iter().rev() {
            match std::fs::create_dir(folder) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(durable::failed("cannot create directory", folder, e));
                }
                _ => {}
            }
        }
        LockFile::open(path)
    }

    fn open(path: &Path) -> Result<Option<LockFile>> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = open.map_err(|e| durable::failed("cannot open", path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(LockFile { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(durable::failed("cannot lock", path, e)),
        }
    }

    /// Whether another process holds the lock; changes nothing. `None`: there is none, or this user may not ask.
    pub fn is_held(path: &Path) -> Option<bool> {
        match File::open(path).ok()?.try_lock_shared() {
            Ok(()) => Some(false),
            Err(TryLockError::WouldBlock) => Some(true),
            Err(TryLockError::Error(_)) => None,
        }
    }

    /// Whether the lock still stands at `path`: a file of that name made later would be another lock.
    pub fn stands_at(&self, path: &Path) -> bool {
        let own = self.file.metadata().map(|own| (own.dev(), own.ino()));
        own.is_ok_and(|own| super::ahead::identity(path) == Some(own))
    }

    /// Leaves a note for whoever finds the lock taken. Best effort: without it nothing is wrong.
    pub fn note(&self, text: &str) {
        let written = self.file.set_len(0).and_then(|()| self.file.write_all_at(text.as_bytes(), 0));
        if let Err(error) = written {
            tracing::debug!(%error, "no note in a lock file");
        }
    }

    /// What the holder of a taken lock has noted: one line, if anything.
    pub fn noted(path: &Path) -> Option<String> {
        let mut note = vec![0; NOTE];
        let read = File::open(path).and_then(|file| file.read_at(&mut note, 0)).ok()?;
        note.truncate(read);
        let line = String::from_utf8_lossy(&note).lines().next().unwrap_or_default().trim().to_owned();
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join("backup.lock");
        let first = LockFile::take(&path).unwrap();
        assert_eq!(LockFile::noted(&path), None);
        let held = first.as_ref().expect("a lock");
        held.note("a longer note than the next one\nand another line");
        held.note("process 7");
        assert!(LockFile::take(&path).unwrap().is_none());
        assert_eq!(LockFile::noted(&path).as_deref(), Some("process 7"));
        assert!(held.stands_at(&path));
        drop(first);
        let second = LockFile::take(&path).unwrap().expect("a lock");
        std::fs::remove_file(&path).unwrap();
        assert!(!second.stands_at(&path));
        std::fs::write(&path, "").unwrap();
        assert!(!second.stands_at(&path), "another file");
    }

    #[test]
    fn a_root_that_is_gone_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data/pg_wal");
        let path = root.join("walrecv/ahead/lock");
        assert!(LockFile::take_below(&root, &path).is_err());
        assert!(!dir.path().join("data").exists());
        std::fs::create_dir_all(&root).unwrap();
        assert!(LockFile::take_below(&root, &path).unwrap().is_some());
    }
}
