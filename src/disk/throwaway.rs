//! A folder for something large that shall leave nothing: it goes with its holder, and what a killed holder left is found by the next one.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lay::{self, Owner};
use super::lock::LockFile;
use super::{durable, private};
use crate::error::{Error, Kind, Result};

const PREFIX: &str = "walrecv-scratch-";
const LOCK: &str = ".lock";
/// Somebody may still be writing into it while it is removed: so often it is tried, and so long is waited in between.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// The folder, and beside it the lock that says that its holder lives.
#[derive(Debug)]
pub struct Throwaway {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: LockFile,
}

impl Throwaway {
    /// A new folder in `parent`, which must be there, for `owner` alone.
    pub fn make(parent: &Path, owner: Option<Owner>) -> Result<Throwaway> {
        if !parent.is_dir() {
            return Err(Error::new(Kind::Usage, format!("{} is no folder", parent.display())));
        }
        loop {
            let mut token = [0; 4];
            getrandom::fill(&mut token).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
            let path = parent.join(format!("{PREFIX}{:08x}", u32::from_le_bytes(token)));
            let lock_path = lock_path(&path);
            // Whoever looks for what others left may have it for a moment, and then it is gone.
            let lock = LockFile::take(&lock_path)?.filter(|lock| lock.stands_at(&lock_path));
            if let Some(lock) = lock.filter(|_| !path.exists()) {
                let made = Throwaway { path, lock_path, _lock: lock };
                lay::make_dir(&made.path, 0o700, owner)?;
                return Ok(made);
            }
        }
    }

    /// Those in `parent` whose holder is gone. Those of other users are passed over, and what another than this user or `owner` has put there: who ends a server
    /// for it, or removes it, would be led astray.
    pub fn left_in(parent: &Path, owner: Option<Owner>) -> Vec<Throwaway> {
        let own = rustix::process::geteuid().as_raw();
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let ours = names.filter_map(|name| {
            let name = name.strip_suffix(LOCK)?;
            name.starts_with(PREFIX).then(|| parent.join(name))
        });
        ours.filter_map(|path| {
            let lock_path = lock_path(&path);
            if !lock_path.symlink_metadata().is_ok_and(|lock| lock.is_file() && lock.uid() == own) {
                return None;
            }
            let lock = LockFile::take(&lock_path).ok()??;
            // Only now: nobody makes it any more.
            let folder = path.symlink_metadata();
            let ours = |folder: std::fs::Metadata| {
                folder.is_dir() && (folder.uid() == own || owner.is_some_and(|owner| folder.uid() == owner.uid))
            };
            if !folder.map_or_else(|e| e.kind() == ErrorKind::NotFound, ours) {
                return None;
            }
            lock.stands_at(&lock_path).then_some(Throwaway { path, lock_path, _lock: lock })
        })
        .collect()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) -> Result<()> {
        let mut tries = TRIES;
        loop {
            match std::fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound && tries == 0 => {
                    return Err(durable::failed("cannot remove", &self.path, error));
                }
                _ if !self.path.exists() => break,
                _ => {}
            }
            tries = tries.saturating_sub(1);
            std::thread::sleep(PAUSE);
        }
        private::forget(&self.lock_path);
        Ok(())
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!("{error}");
        }
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LOCK);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_and_what_a_dead_holder_left_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let entries = || std::fs::read_dir(dir.path()).unwrap().count();
        let alive = Throwaway::make(dir.path(), None).unwrap();
        std::fs::create_dir(alive.path().join("in it")).unwrap();
        assert_eq!(entries(), 2);
        assert!(Throwaway::left_in(dir.path(), None).is_empty(), "its holder lives");
        // As a killed process leaves them: a folder with its lock, and one that came no further than its lock.
        let dead = dir.path().join(format!("{PREFIX}00000001"));
        std::fs::create_dir_all(dead.join("data")).unwrap();
        std::fs::write(lock_path(&dead), "").unwrap();
        std::fs::write(dir.path().join(format!("{PREFIX}00000002{LOCK}")), "").unwrap();
        // Somebody else's.
        std::fs::create_dir(dir.path().join("other.lock")).unwrap();
        let found = Throwaway::left_in(dir.path(), None);
        assert_eq!(found.len(), 2);
        assert!(found.iter().any(|one| one.path() == dead));
        drop(found);
        assert_eq!(entries(), 3, "the one that lives, its lock, and what is none of ours");
        drop(alive);
        assert_eq!(entries(), 1);
        assert!(Throwaway::make(&dir.path().join("absent"), None).is_err());
    }

    #[test]
    fn what_others_have_put_there_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(format!("{PREFIX}{name}"));
        std::fs::create_dir(dir.path().join("production")).unwrap();
        // A folder that leads elsewhere, and a lock that does.
        std::os::unix::fs::symlink(dir.path().join("production"), at("0")).unwrap();
        std::fs::write(lock_path(&at("0")), "").unwrap();
        std::os::unix::fs::symlink(dir.path().join("made"), lock_path(&at("1"))).unwrap();
        assert!(Throwaway::left_in(dir.path(), None).is_empty());
        assert!(!dir.path().join("made").exists() && at("0").is_symlink());
        if rustix::process::geteuid().is_root() {
            let (owner, other) = (Owner { uid: 4711, gid: 4711 }, Owner { uid: 4712, gid: 4712 });
            for (name, lock, folder) in [("2", None, owner), ("3", None, other), ("4", Some(owner), owner)] {
                lay::make_dir(&at(name), 0o700, Some(folder)).unwrap();
                std::fs::write(lock_path(&at(name)), "").unwrap();
                lay::give(&lock_path(&at(name)), lock).unwrap();
            }
            let found = Throwaway::left_in(dir.path(), Some(owner));
            assert_eq!(found.iter().map(Throwaway::path).collect::<Vec<_>>(), [at("2")]);
        }
    }
}
