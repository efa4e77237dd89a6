//! What is asked of the disk, one call at a time: the seam at which a simulated disk takes the place of the operating system's.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::lane::Lane;
use super::private;
use crate::error::Result;

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    File,
    Directory,
    Other,
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub form: Form,
    pub len: u64,
    pub modified: SystemTime,
    /// The file system that it is on.
    pub device: u64,
    /// Which file of that file system it is, whatever its name.
    pub inode: u64,
    /// When it was made, where the file system keeps that: with the inode, which is used again, it tells a file from all others that there ever were.
    pub made: Option<SystemTime>,
}

impl Seen {
    pub fn identity(&self) -> Identity {
        Identity { device: self.device, inode: self.inode }
    }
}

/// Which file something is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

/// File systems and nothing more: no retries, no order, no durability of their own. Names are absolute, or relative to the working directory.
pub trait Medium: Send + Sync + fmt::Debug {
    /// Where its calls are made: those of a real disk block.
    fn lane(&self) -> Lane {
        Lane::Threads
    }

    /// A new, empty, locked file, to read and write. `mode` as for open(2).
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn Handle>>;

    /// A file or directory that is there, to read and to sync.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>>;

    /// A file that is there, to read and to write.
    fn reopen(&self, path: &Path) -> io::Result<Box<dyn Handle>>;

    /// Gives a file a second name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove_file(&self, path: &Path) -> io::Result<()>;

    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// A folder of mode 0700, and those above it: see [`private::folder`].
    fn private_folder(&self, path: &Path) -> Result<()> {
        private::folder(path)
    }

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Symbolic links are followed.
    fn look(&self, path: &Path) -> io::Result<Seen>;

    /// Which file stands under a name, symbolic links followed, without asking for anything else. Linux gives a file that is written a new, exact time of
    /// change only if somebody has asked for the last one: whoever asks between two writes makes the second one change the inode (`fill_mg_cmtime`).
    fn identify(&self, path: &Path) -> io::Result<Identity> {
        self.look(path).map(|seen| seen.identity())
    }

    /// Names and forms in a directory, symbolic links not followed, in no order. "Not found" is said of the directory alone: what goes while it is listed is
    /// left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Form)>>;
}

/// An open file or directory.
pub trait Handle: Send + Sync + fmt::Debug {
    /// One write, which may be short.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// Bytes from `at` on, at most `len`; fewer only at the end of the file.
    fn read_at(&self, at: u64, len: u64) -> io::Result<Vec<u8>>;

    /// fdatasync(2).
    fn sync_data(&self) -> io::Result<()>;

    /// fsync(2).
    fn sync_all(&self) -> io::Result<()>;

    fn look(&self) -> io::Result<Seen>;

    /// Takes the lock of this file; `false` where somebody else has it.
    fn try_lock(&self) -> io::Result<bool>;

    /// Writes until all is written.
    fn write_all_at(&self, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self.write_at(bytes, at) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            bytes = bytes.get(written..).unwrap_or_default();
            at += written as u64;
        }
        Ok(())
    }
}

/// A medium that several owners share.
pub type Ground = Arc<dyn Medium>;

/// The operating system's file systems, shared.
pub fn disk() -> Ground {
    Arc::new(Disk)
}

/// The operating system's file systems.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Medium for Disk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn Handle>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)?;
        match file.try_lock() {
            // A file system without locks: nobody can tell that it is held, and so nobody takes it for left over.
            Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Unsupported => {
                let _ = fs::remove_file(path);
                Err(e)
            }
            _ => Ok(Box::new(file)),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(File::open(path)?))
    }

    fn reopen(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        seen(&fs::metadata(path)?)
    }

    #[cfg(target_os = "linux")]
    fn identify(&self, path: &Path) -> io::Result<Identity> {
        use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
        use rustix::io::Errno;
        match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
            Ok(found) if found.stx_mask & StatxFlags::INO.bits() != 0 => {
                Ok(Identity { device: makedev(found.stx_dev_major, found.stx_dev_minor), inode: found.stx_ino })
            }
            // An old kernel, or a sandbox that does not know the call.
            Ok(_) | Err(Errno::NOSYS | Errno::PERM) => self.look(path).map(|seen| seen.identity()),
            Err(error) => Err(error.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Form)>> {
        let entries = fs::read_dir(dir)?;
        still_there(entries.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), form(entry.file_type()?))))))
    }
}

impl Handle for File {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, at)
    }

    fn read_at(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let size = self.metadata()?.len();
        let mut bytes = vec![0; size.saturating_sub(at).min(len) as usize];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn look(&self) -> io::Result<Seen> {
        seen(&self.metadata()?)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Of the entries of a directory those that have not gone. Where a file system does not tell forms in its listing (NFS, XFS without `ftype`) each is asked for,
/// and one that has gone by then must not make the whole directory look as if it were not there.
fn still_there(entries: impl Iterator<Item = io::Result<(OsString, Form)>>) -> io::Result<Vec<(OsString, Form)>> {
    entries.filter(|entry| !matches!(entry, Err(error) if error.kind() == ErrorKind::NotFound)).collect()
}

fn seen(meta: &Metadata) -> io::Result<Seen> {
    let form = form(meta.file_type());
    let (device, inode, made) = (meta.dev(), meta.ino(), meta.created().ok());
    Ok(Seen { form, len: meta.len(), modified: meta.modified()?, device, inode, made })
}

fn form(kind: fs::FileType) -> Form {
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Form::File,
        (_, true) => Form::Directory,
        _ => Form::Other,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_goes_while_a_directory_is_listed_takes_nothing_else_along() {
        let entry = |name: &str| Ok((OsString::from(name), Form::File));
        let failed = |code| Err(io::Error::from_raw_os_error(code));
        let found = still_there([entry("a"), failed(Errno::NOENT.raw_os_error()), entry("b")].into_iter()).unwrap();
        assert_eq!(found, [entry("a").unwrap(), entry("b").unwrap()]);
        let unreadable = still_there([entry("a"), failed(Errno::IO.raw_os_error()), entry("b")].into_iter());
        assert_eq!(unreadable.unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Disk.list(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_identified_by_whatever_name_as_by_a_look_at_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link, other) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        let file = Disk.create(&path, 0o600).unwrap();
        let own = file.look().unwrap().identity();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Disk.create(&other, 0o600).unwrap();
        for (name, same) in [(&path, true), (&link, true), (&other, false)] {
            assert_eq!(Disk.identify(name).unwrap(), Disk.look(name).unwrap().identity());
            assert_eq!(Disk.identify(name).unwrap() == own, same, "{}", name.display());
        }
        fs::remove_file(&path).unwrap();
        for gone in [&path, &link] {
            assert_eq!(Disk.identify(gone).unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}
