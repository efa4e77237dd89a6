//! The operating system's disk, with a test that is told of calls before they are made, and may let them fail.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walrecv::disk::medium::{Disk, Form, Handle, Identity, Medium, Seen};

/// A call that a test may want to see, and the path that it is made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Open(PathBuf),
    Link(PathBuf),
    /// fsync(2) of a file or directory that was opened or created under this name.
    Sync(PathBuf),
    Lock(PathBuf),
}

type Hook = Arc<dyn Fn(Call) -> io::Result<()> + Send + Sync>;

#[derive(Clone)]
pub struct HookedDisk(Hook);

struct Hooked(Box<dyn Handle>, PathBuf, Hook);

impl HookedDisk {
    pub fn new(hook: impl Fn(Call) -> io::Result<()> + Send + Sync + 'static) -> HookedDisk {
        HookedDisk(Arc::new(hook))
    }

    fn hooked(&self, opened: io::Result<Box<dyn Handle>>, path: &Path) -> io::Result<Box<dyn Handle>> {
        opened.map(|file| Box::new(Hooked(file, path.to_path_buf(), self.0.clone())) as Box<dyn Handle>)
    }
}

impl fmt::Debug for HookedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookedDisk")
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooked({})", self.1.display())
    }
}

impl Medium for HookedDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn Handle>> {
        self.hooked(Disk.create(path, mode), path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        (self.0)(Call::Open(path.to_path_buf()))?;
        self.hooked(Disk.open(path), path)
    }

    fn reopen(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        self.hooked(Disk.reopen(path), path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.0)(Call::Link(to.to_path_buf()))?;
        Disk.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Disk.remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir(path)
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        Disk.look(path)
    }

    fn identify(&self, path: &Path) -> io::Result<Identity> {
        Disk.identify(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Form)>> {
        Disk.list(dir)
    }
}

impl Handle for Hooked {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.0.write_at(bytes, at)
    }

    fn read_at(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        self.0.read_at(at, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        (self.2)(Call::Sync(self.1.clone()))?;
        self.0.sync_all()
    }

    fn look(&self) -> io::Result<Seen> {
        self.0.look()
    }

    fn try_lock(&self) -> io::Result<bool> {
        (self.2)(Call::Lock(self.1.clone()))?;
        self.0.try_lock()
    }
}
