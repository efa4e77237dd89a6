//! A folder for what a run writes for itself alone, which goes with it.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{durable, private};
use crate::error::{Error, Kind, Result};

/// A folder of this run. Dropped, it is removed with all that is in it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// The folder at `path`, empty: what a run that was killed left there is removed. For whoever holds the lock that keeps such runs apart.
    pub fn at(path: PathBuf) -> Result<Scratch> {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(durable::failed("cannot remove", &path, error));
            }
            _ => {}
        }
        private::folder(&path)?;
        Ok(Scratch { path })
    }

    /// A new folder among the system's temporary files, which no other user can have made or can look into.
    pub fn temporary() -> Result<Scratch> {
        let mut token = [0; 8];
        getrandom::fill(&mut token).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let path = std::env::temp_dir().join(format!("walrecv-{:016x}", u64::from_le_bytes(token)));
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| durable::failed("cannot make", &path, e))?;
        Ok(Scratch { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::debug!(%error, "{} stays", self.path.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_empty_at_first_closed_to_others_and_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/sort-main");
        std::fs::create_dir_all(path.join("left")).unwrap();
        std::fs::write(path.join("left/file"), "over").unwrap();
        for scratch in [Scratch::at(path.clone()).unwrap(), Scratch::temporary().unwrap()] {
            let folder = scratch.path().to_owned();
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
            assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
            std::fs::write(folder.join("file"), "").unwrap();
            drop(scratch);
            assert!(!folder.exists());
        }
        assert!(dir.path().join("state").exists());
    }
}
