//! A file that another program writes for a person: under a name of its own until it is whole.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{durable, private};
use crate::error::{Error, Kind, Result};

/// The unfinished file; dropped, it goes.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Staged {
    /// Beside `target`, which must not be there, with `mode`.
    pub fn create(target: &Path, mode: u32) -> Result<Staged> {
        let taken =
            || Error::new(Kind::Usage, format!("{} already exists", target.display())).hint("name another file");
        if std::fs::symlink_metadata(target).is_ok() {
            return Err(taken());
        }
        let name = target
            .file_name()
            .ok_or_else(|| Error::new(Kind::Usage, format!("{} is no name of a file", target.display())))?;
        let mut token = [0; 4];
        getrandom::fill(&mut token).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let path = target.with_file_name(format!(".{}.walrecv-{:08x}", name.display(), u32::from_le_bytes(token)));
        let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let file = open.map_err(|e| {
            let hint = "name a file in a folder that is there, and that this user may write to";
            durable::failed("cannot make", &path, e).or_hint(hint)
        })?;
        Ok(Staged { file, path, target: target.to_owned() })
    }

    /// For the program that writes it.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| durable::failed("cannot share", &self.path, e))
    }

    /// Gives it its name, durably; its length.
    pub fn commit(self) -> Result<u64> {
        self.file.sync_all().map_err(|e| durable::failed("cannot sync", &self.path, e))?;
        let length = self.file.metadata().map_err(|e| durable::failed("cannot look at", &self.path, e))?.len();
        match std::fs::hard_link(&self.path, &self.target) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(taken_meanwhile(&self.target)),
            // Not every file system has links.
            Err(_) => rename_new(&self.path, &self.target)?,
            Ok(()) => {}
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| durable::failed("cannot sync", folder, e))?;
        Ok(length)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        private::forget(&self.path);
    }
}

/// Renames, and replaces nothing. What a file system cannot promise is not done.
fn rename_new(path: &Path, target: &Path) -> Result<()> {
    renameat_with(CWD, path, CWD, target, RenameFlags::NOREPLACE).map_err(|error| match error {
        Errno::EXIST => taken_meanwhile(target),
        error => durable::failed("cannot rename to", target, error.into())
            .hint("name a file on another file system, one that has links"),
    })
}

fn taken_meanwhile(target: &Path) -> Error {
    Error::new(Kind::Usage, format!("{} has come into being meanwhile", target.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn without_links_nothing_is_replaced_either() {
        let dir = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|name| dir.path().join(name));
        std::fs::write(&own, "whole").unwrap();
        std::fs::write(&other, "somebody else's").unwrap();
        assert_eq!(rename_new(&own, &other).unwrap_err().kind(), Kind::Usage);
        assert_eq!((std::fs::read(&own).unwrap(), std::fs::read(&other).unwrap().len()), (b"whole".to_vec(), 15));
        std::fs::remove_file(&other).unwrap();
        rename_new(&own, &other).unwrap();
        assert!(!own.exists() && std::fs::read(&other).unwrap() == b"whole");
    }

    #[test]
    fn a_file_is_whole_or_not_there_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("orders.sql");
        let entries = || std::fs::read_dir(dir.path()).unwrap().count();
        let staged = Staged::create(&target, 0o600).unwrap();
        staged.file().unwrap().write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(staged);
        assert_eq!(entries(), 0);
        let staged = Staged::create(&target, 0o600).unwrap();
        staged.file().unwrap().write_all(b"whole").unwrap();
        assert_eq!(staged.commit().unwrap(), 5);
        assert_eq!((std::fs::read(&target).unwrap().as_slice(), entries()), (&b"whole"[..], 1));
        assert_eq!(Staged::create(&target, 0o600).unwrap_err().kind(), Kind::Usage);
        let nowhere = Staged::create(&dir.path().join("no/such/folder"), 0o600).unwrap_err();
        assert!(nowhere.advice().is_some_and(|hint| hint.contains("a folder that is there")), "{nowhere}");
        std::fs::remove_file(&target).unwrap();
        let late = Staged::create(&target, 0o600).unwrap();
        std::fs::write(&target, "somebody else's").unwrap();
        assert_eq!(late.commit().unwrap_err().kind(), Kind::Usage);
        assert_eq!((std::fs::read(&target).unwrap().as_slice(), entries()), (&b"somebody else's"[..], 1));
    }
}
