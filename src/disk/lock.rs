//! A lock that one process at a time can hold, and that goes with the process however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::durable;
use super::medium::Disk;
use crate::error::Result;

/// A held lock on a file, which stays behind, empty and unlocked, when this is dropped.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock, or answers `None` where another process holds it. Makes the file and the directories above it.
    pub fn take(path: &Path) -> Result<Option<LockFile>> {
        if let Some(above) = path.parent() {
            durable::create_dirs(&Disk, above)?;
        }
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = open.map_err(|e| durable::failed("cannot open", path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(LockFile { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(durable::failed("cannot lock", path, e)),
        }
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
        assert!(first.is_some());
        assert!(LockFile::take(&path).unwrap().is_none());
        drop(first);
        assert!(LockFile::take(&path).unwrap().is_some());
    }
}
