//! Files that are there after a power cut: created whole, synced, with every directory above them.
//!
//! A file is written under a staging name beside its place, synced, and only then linked to its name, which fails when the name is taken.
//! A sync that failed is never repeated on the same file: the kernel may have dropped the bytes and would answer success the second time.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use super::medium::{Disk, Form, Ground, Handle, Medium, disk};
use crate::error::{Error, Kind, Result};

const STAGING_PREFIX: &str = ".staging-";
/// Parts that are smaller are written together: frames of lz4 have some ten KiB, and a write for each costs a tenth of the CPU time of a drain.
const GATHER: usize = 256 << 10;

/// Creates `path` (which must not exist) with `bytes` and `mode`, synced, its directory synced. Never leaves half a file under the name.
/// `mode` is what `open` is given: the umask holds. An existing file is `Kind::Usage`.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if create_once(&disk(), path, &[bytes], mode)? {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{} already exists", path.display())))
}

/// As [`create_new`] from several slices; `false` when the name is taken. What stands there then is a question for the caller, and not
/// known to be durable.
pub fn create_once<B: AsRef<[u8]>>(medium: &Ground, path: &Path, parts: &[B], mode: u32) -> Result<bool> {
    let staging = Staging::write(medium, path, parts, mode)?;
    if !staging.link(path)? {
        return Ok(false);
    }
    sync_dir(&**medium, parent(path))?;
    Ok(true)
}

/// Replaces or creates `path` atomically (temporary file, fsync, rename, directory fsync).
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    Replacement::begin(path, mode)?.finish(bytes)
}

/// What [`replace`] does in two steps, so that a place that cannot be written shows before there is anything to write.
pub struct Replacement {
    staging: Staging,
    path: PathBuf,
}

impl Replacement {
    pub fn begin(path: &Path, mode: u32) -> Result<Replacement> {
        if path.is_dir() {
            return Err(Error::new(Kind::Usage, format!("{} is a directory", path.display())));
        }
        Ok(Replacement { staging: Staging::create(&disk(), path, mode)?, path: path.to_owned() })
    }

    pub fn finish(self, bytes: &[u8]) -> Result<()> {
        let Replacement { staging, path } = self;
        staging.fill(&path, &[bytes])?;
        Disk.rename(&staging.path, &path).map_err(|e| failed("cannot rename to", &path, e))?;
        sync_dir(&Disk, parent(&path))
    }
}

/// Creates all missing directories down to `path`, each synced into its parent.
pub fn create_dirs(medium: &dyn Medium, path: &Path) -> Result<()> {
    match medium.look(path) {
        Ok(found) if found.form == Form::Directory => return Ok(()),
        Ok(_) => return Err(Error::new(Kind::Failed, format!("{} is not a directory", path.display()))),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed("cannot look at", path, e)),
    }
    let above = parent(path);
    create_dirs(medium, above)?;
    match medium.create_dir(path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(failed("cannot create directory", path, e)),
        _ => sync_dir(medium, above),
    }
}

/// Syncs `path` and every directory above it up to and including `root`: before something found counts as durable.
pub fn sync_found(medium: &dyn Medium, path: &Path, root: &Path) -> Result<()> {
    let file = medium.open(path).map_err(|e| failed("cannot open", path, e))?;
    file.sync_all().map_err(|e| sync_failed("file", path, e))?;
    sync_dirs(medium, parent(path), root)
}

/// Syncs `dir` and every directory above it up to and including `root`; nothing when `dir` is not below it.
pub fn sync_dirs(medium: &dyn Medium, dir: &Path, root: &Path) -> Result<()> {
    dir.ancestors().take_while(|a| a.starts_with(root)).try_for_each(|above| sync_dir(medium, above))
}

/// Syncs every directory above `path` on its file system. Above the first one, directories that this user may not open are left out:
/// he cannot have made them either.
pub fn sync_above(medium: &dyn Medium, path: &Path) -> Result<()> {
    let path = std::path::absolute(path).map_err(|e| failed("cannot resolve", path, e))?;
    let first = parent(&path);
    let device = |dir: &Path| medium.look(dir).map(|seen| seen.device).map_err(|e| failed("cannot look at", dir, e));
    let own = device(first)?;
    sync_dir(medium, first)?;
    for above in first.ancestors().skip(1) {
        if device(above)? != own {
            break;
        }
        match medium.open(above) {
            Ok(dir) => dir.sync_all().map_err(|e| sync_failed("directory", above, e))?,
            Err(e) if e.kind() == ErrorKind::PermissionDenied => break,
            Err(e) => return Err(failed("cannot open directory", above, e)),
        }
    }
    Ok(())
}

/// Deletes `path` durably; a missing file is no error.
pub fn remove(medium: &dyn Medium, path: &Path) -> Result<()> {
    match medium.remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("cannot delete", path, e)),
        _ => {}
    }
    // Also when the file was missing: an earlier deletion may not have reached the disk.
    match medium.open(parent(path)) {
        Ok(dir) => dir.sync_all().map_err(|e| sync_failed("directory", parent(path), e)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("cannot open directory", parent(path), e)),
    }
}

/// Keeps everyone but the owner out of a directory.
pub fn make_private(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|e| failed("cannot set the mode of", path, e))
}

/// Deletes a directory if nothing is in it, durably.
pub fn remove_empty_dir(path: &Path) -> Result<()> {
    Disk.remove_dir(path).map_err(|e| failed("cannot delete directory", path, e))?;
    sync_dir(&Disk, parent(path))
}

/// Whether a file name is that of a staging file, which no listing shows.
pub fn is_staging(name: &str) -> bool {
    name.starts_with(STAGING_PREFIX)
}

/// Deletes what crashes left: staging files below `root` that nobody holds and that have not changed for `older_than`. Says how many.
pub fn clean_staging(medium: &dyn Medium, root: &Path, older_than: Duration) -> Result<u64> {
    let entries = match medium.list(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(failed("cannot list", root, e)),
    };
    let mut cleaned = 0;
    for (name, form) in entries {
        let path = root.join(&name);
        if form == Form::Directory {
            cleaned += clean_staging(medium, &path, older_than)?;
        } else if form == Form::File && name.to_str().is_some_and(is_staging) {
            cleaned += u64::from(clean_one(medium, &path, older_than)?);
        }
    }
    Ok(cleaned)
}

fn clean_one(medium: &dyn Medium, path: &Path, older_than: Duration) -> Result<bool> {
    let look = || -> io::Result<bool> {
        let file = medium.open(path)?;
        let age = SystemTime::now().duration_since(file.look()?.modified).unwrap_or_default();
        let abandoned = age >= older_than && unheld(&*file)?;
        if abandoned {
            medium.remove_file(path)?;
        }
        Ok(abandoned)
    };
    match look() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        other => other.map_err(|e| failed("cannot delete staging file", path, e)),
    }
}

/// Whether nobody holds a staging file. Where a file system has no locks nothing tells that, so what stands there stays: a little space, and the job that cleans
/// goes on.
fn unheld(file: &dyn Handle) -> io::Result<bool> {
    match file.try_lock() {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(false),
        answer => answer,
    }
}

/// A file that has no name of its own yet. Its lock tells [`clean_staging`] that somebody still wants it; dropping deletes it.
pub(super) struct Staging {
    path: PathBuf,
    pub(super) file: Arc<dyn Handle>,
    pub(super) medium: Ground,
}

impl Staging {
    /// A new, empty, locked file in the directory where `place` will be.
    pub(super) fn create(medium: &Ground, place: &Path, mode: u32) -> Result<Staging> {
        let path = Staging::name(place);
        let file = medium.create(&path, mode).map_err(|e| failed("cannot create a file for", place, e))?;
        Ok(Staging { path, file: file.into(), medium: medium.clone() })
    }

    /// The file at `path`, taken from under its name, durably. `None`: somebody may still write to it, or it is gone.
    pub(super) fn reuse(medium: &Ground, path: &Path, place: &Path) -> Result<Option<Staging>> {
        let file = match medium.reopen(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| failed("cannot open", path, e))?,
        };
        // Where nobody can be asked, nobody is known to have left it.
        if !matches!(file.try_lock(), Ok(true)) {
            return Ok(None);
        }
        let to = Staging::name(place);
        match medium.rename(path, &to) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            renamed => renamed.map_err(|e| failed("cannot rename", path, e))?,
        }
        let staging = Staging { path: to, file: file.into(), medium: medium.clone() };
        sync_dir(&**medium, parent(place))?;
        sync_dir(&**medium, parent(path))?;
        Ok(Some(staging))
    }

    fn name(place: &Path) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        parent(place).join(format!("{STAGING_PREFIX}{}-{clock}-{count}", std::process::id()))
    }

    fn write<B: AsRef<[u8]>>(medium: &Ground, place: &Path, parts: &[B], mode: u32) -> Result<Staging> {
        let staging = Staging::create(medium, place, mode)?;
        staging.fill(place, parts)?;
        Ok(staging)
    }

    fn fill<B: AsRef<[u8]>>(&self, place: &Path, parts: &[B]) -> Result<()> {
        let (mut gathered, mut at) = (Vec::new(), 0);
        let mut write = |bytes: &[u8]| {
            let written = self.file.write_all_at(bytes, at).map_err(|e| failed("cannot write", place, e));
            at += bytes.len() as u64;
            written
        };
        for part in parts.iter().map(AsRef::as_ref) {
            if gathered.len() + part.len() > GATHER {
                write(&gathered)?;
                gathered.clear();
            }
            match part.len() >= GATHER {
                true => write(part)?,
                false => gathered.extend_from_slice(part),
            }
        }
        write(&gathered)?;
        self.file.sync_all().map_err(|e| failed("cannot sync", place, e))
    }

    /// Gives the file its name, unless that is taken (`false`). The directory is not synced yet.
    pub(super) fn link(&self, place: &Path) -> Result<bool> {
        match self.medium.link(&self.path, place) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(failed("cannot create", place, e)),
        }
        .inspect(|_| {
            // Before the directory is synced, so that one sync covers both; what stays is cleaned up later.
            let _ = self.medium.remove_file(&self.path);
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.medium.remove_file(&self.path);
    }
}

pub(in crate::disk) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => path,
    }
}

pub fn sync_dir(medium: &dyn Medium, dir: &Path) -> Result<()> {
    let open = medium.open(dir).map_err(|e| failed("cannot open directory", dir, e))?;
    open.sync_all().map_err(|e| sync_failed("directory", dir, e))
}

/// Something that stands under its name and could not be synced: final, because a second attempt may succeed without having written it.
fn sync_failed(what: &str, path: &Path, cause: io::Error) -> Error {
    Error::new(Kind::Failed, format!("cannot sync {what} {}", path.display()))
        .caused_by(cause)
        .unsynced()
        .hint("Check the disk and the kernel log, then start again: what is stored there is not known to be durable.")
}

/// What a failed call means: some failures pass by themselves, the others wait for a person.
pub fn failed(what: &str, path: &Path, cause: io::Error) -> Error {
    let code = Errno::from_io_error(&cause);
    let full = matches!(code, Some(Errno::NOSPC | Errno::DQUOT));
    let denied = matches!(code, Some(Errno::ACCESS | Errno::PERM | Errno::ROFS));
    let passing = matches!(
        code,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR | Errno::IO | Errno::STALE)
            | Some(Errno::TIMEDOUT | Errno::NOENT | Errno::BUSY)
    );
    let error = Error::new(Kind::Failed, format!("{what} {}", path.display())).caused_by(cause);
    match (full, denied) {
        (true, _) => error.transient().hint("Free space on this file system."),
        (_, true) => error.hint(
            "Let the user that walrecv runs as read and write there, and check that the file system is writable.",
        ),
        _ if passing => error.transient(),
        _ => error,
    }
}
