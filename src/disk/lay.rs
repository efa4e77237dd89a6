//! Laying a data directory back: files at full size, written in place by several threads, fsync of all before success. Owned by restore.
//!
//! Also the one file that `wal-fetch` hands to PostgreSQL.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Kind, Result};

/// A user and group of this host, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

fn failed(what: &str, path: &Path, cause: std::io::Error) -> Error {
    Error::new(Kind::Failed, format!("cannot {what} {}", path.display())).caused_by(cause)
}

/// Gives a file or directory to `owner`; without one it stays with this process's user. Links are not followed.
pub fn give(path: &Path, owner: Option<Owner>) -> Result<()> {
    let Some(Owner { uid, gid }) = owner else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|e| failed("change the owner of", path, e))
}

/// Makes one directory (its parent must exist) with exactly this mode; an existing one keeps its content.
pub fn make_dir(path: &Path, mode: u32, owner: Option<Owner>) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(failed("create the directory", path, e)),
        Ok(()) => {}
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(|e| failed("set the mode of", path, e))?;
    give(path, owner)
}

/// `None` when `path` is absent or an empty directory; else what is in the way. `lost+found` counts as nothing.
pub fn occupied(path: &Path) -> Result<Option<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(Some("it is no directory".to_owned())),
        Err(e) => return Err(failed("read the directory", path, e)),
    };
    for entry in entries {
        let name = entry.map_err(|e| failed("read the directory", path, e))?.file_name();
        if name != "lost+found" {
            return Ok(Some(format!("it contains {}", name.display())));
        }
    }
    Ok(None)
}

/// Stands in a directory that a restore has begun to fill: such a directory may be emptied and begun again.
const MARK: &str = ".walrecv-restore";

/// Claims `path` for a restore: absent, empty, or left by an interrupted one (which is then cleared). Anything else is `Kind::Usage`, and nothing
/// is changed. While the mark that is returned is open, no other restore may claim the directory.
pub fn claim(path: &Path, owner: Option<Owner>) -> Result<File> {
    let left = if interrupted(path) { Some(lock_left(path)?) } else { None };
    // Looked at again under the lock: whoever held it may have finished in between.
    let in_the_way = match &left {
        Some(Some(_)) if interrupted(path) => None,
        Some(None) => Some(RUNNING.to_owned()),
        _ => occupied(path)?,
    };
    if let Some(what) = in_the_way {
        return Err(Error::new(Kind::Usage, format!("{} is occupied: {what}", path.display()))
            .hint("restore into a new or empty directory"));
    }
    if let Some(mark) = left.flatten() {
        clear(path)?;
        make_dir(path, 0o700, owner)?;
        return Ok(mark);
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| failed("create the directory", parent, e))?;
    }
    make_dir(path, 0o700, owner)?;
    let place = path.join(MARK);
    let mark = create(&place, 0o600)?;
    if !lock(&mark, &place)? {
        return Err(Error::new(Kind::Usage, format!("{} is occupied: {RUNNING}", path.display())));
    }
    mark.sync_all().map_err(|e| failed("sync", &place, e))?;
    give(&place, owner)?;
    sync(path)?;
    Ok(mark)
}

/// What a claimed directory would be refused for; nothing is changed.
pub fn claimable(path: &Path) -> Result<Option<String>> {
    match interrupted(path) {
        true => Ok(lock_left(path)?.is_none().then(|| RUNNING.to_owned())),
        false => occupied(path),
    }
}

const RUNNING: &str = "another restore is filling this directory";

/// Whether a restore has begun to fill the directory and has not completed it.
fn interrupted(path: &Path) -> bool {
    path.join(MARK).is_file() && !path.join("global/pg_control").exists()
}

/// Opens and locks the mark of an interrupted restore; `None` when that restore still runs.
fn lock_left(path: &Path) -> Result<Option<File>> {
    let place = path.join(MARK);
    // For writing, which NFS demands of a lock of one's own.
    let mark = OpenOptions::new().write(true).open(&place).map_err(|e| failed("open", &place, e))?;
    Ok(lock(&mark, &place)?.then_some(mark))
}

/// Whether the lock is ours. A file system that has no locks tells nothing of others, so it is no reason to refuse.
fn lock(mark: &File, place: &Path) -> Result<bool> {
    match mark.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(e)) => Err(failed("lock", place, e)),
    }
}

/// Takes the mark away: the restore is complete.
pub fn unmark(path: &Path) -> Result<()> {
    let mark = path.join(MARK);
    std::fs::remove_file(&mark).map_err(|e| failed("remove", &mark, e))?;
    sync(path)
}

/// Empties a directory but for the mark, whose lock keeps others away.
fn clear(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).map_err(|e| failed("read the directory", path, e))? {
        let entry = entry.map_err(|e| failed("read the directory", path, e))?;
        if entry.file_name() == MARK || entry.file_name() == "lost+found" {
            continue;
        }
        let place = entry.path();
        let directory = entry.file_type().map_err(|e| failed("look at", &place, e))?.is_dir();
        let removed = if directory { std::fs::remove_dir_all(&place) } else { std::fs::remove_file(&place) };
        removed.map_err(|e| failed("remove", &place, e))?;
    }
    Ok(())
}

/// Where a path of a backup goes: the data directory, or the place of a tablespace.
#[derive(Clone, Debug)]
pub struct Ground {
    pub root: PathBuf,
    /// Tablespace directories by oid; their files are named `pg_tblspc/<oid>/…`.
    pub tablespaces: Vec<(u32, PathBuf)>,
    pub owner: Option<Owner>,
}

impl Ground {
    /// The place of a path of the backup. A path that would leave the ground is refused.
    pub fn place(&self, path: &[u8]) -> Result<PathBuf> {
        let relative = Path::new(OsStr::from_bytes(path));
        let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || path.is_empty() || path.contains(&0) {
            return Err(Error::new(Kind::Corrupt, format!("the backup names a path outside itself: {relative:?}")));
        }
        for (oid, base) in &self.tablespaces {
            if let Ok(rest) = relative.strip_prefix(format!("pg_tblspc/{oid}")) {
                return Ok(base.join(rest));
            }
        }
        Ok(self.root.join(relative))
    }

    pub fn directory(&self, path: &[u8], mode: u32) -> Result<()> {
        make_dir(&self.place(path)?, mode, self.owner)
    }

    /// A new file of `size` zero bytes, none of them written: what is never written stays a hole.
    pub fn file(&self, path: &[u8], size: u64, mode: u32) -> Result<()> {
        let place = self.place(path)?;
        let file = create(&place, mode)?;
        file.set_len(size).map_err(|e| failed("set the size of", &place, e))?;
        give(&place, self.owner)
    }

    /// A new file with this content, synced.
    pub fn whole_file(&self, path: &[u8], content: &[u8], mode: u32) -> Result<()> {
        let place = self.place(path)?;
        let mut file = create(&place, mode)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| failed("write", &place, e))?;
        give(&place, self.owner)
    }

    /// A file made before, to write parts of it in place.
    pub fn open(&self, path: &[u8]) -> Result<Laid> {
        let place = self.place(path)?;
        let file = OpenOptions::new().write(true).open(&place).map_err(|e| failed("open", &place, e))?;
        Ok(Laid { file, place })
    }
}

/// A link at an absolute place, replacing none.
pub fn link(place: &Path, target: &Path, owner: Option<Owner>) -> Result<()> {
    std::os::unix::fs::symlink(target, place).map_err(|e| failed("create the link", place, e))?;
    give(place, owner)
}

fn create(place: &Path, mode: u32) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(place);
    let file = file.map_err(|e| failed("create", place, e))?;
    file.set_permissions(PermissionsExt::from_mode(mode)).map_err(|e| failed("set the mode of", place, e))?;
    Ok(file)
}

/// An open file of the ground.
pub struct Laid {
    file: File,
    place: PathBuf,
}

impl Laid {
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| failed("write", &self.place, e))
    }
}

/// Syncs every file and directory below `root`, `root` itself and its parent, with `jobs` threads. Links are not followed.
pub fn sync_tree(root: &Path, jobs: usize) -> Result<()> {
    let mut all = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(directory) = all.get(next).cloned() {
        next += 1;
        if !directory.symlink_metadata().map_err(|e| failed("look at", &directory, e))?.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&directory).map_err(|e| failed("read the directory", &directory, e))? {
            let entry = entry.map_err(|e| failed("read the directory", &directory, e))?;
            let kind = entry.file_type().map_err(|e| failed("look at", &entry.path(), e))?;
            if kind.is_file() || kind.is_dir() {
                all.push(entry.path());
            }
        }
    }
    all.extend(root.parent().map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p.to_path_buf() }));
    let taken = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(path) = all.get(taken.fetch_add(1, Ordering::Relaxed)) {
            sync(path)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err(Error::new(Kind::Failed, "a thread that synced files panicked"));
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(panicked))
    })
}

/// Syncs one file or directory.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| failed("sync", path, e))
}

/// Puts a file for PostgreSQL at `path`: written under a temporary name beside it, filled up with zeros to `size`, renamed. Not synced: PostgreSQL
/// does that itself, and a lost file is asked for again.
pub fn hand_over(path: &Path, content: &[u8], size: u64) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".walrecv.{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.set_len(size)?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        failed("write", path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(root: &Path) -> Ground {
        Ground { root: root.join("data"), tablespaces: vec![(16384, root.join("space"))], owner: None }
    }

    #[test]
    fn lays_files_with_holes_modes_and_tablespaces() {
        let root = tempfile::tempdir().unwrap();
        let ground = ground(root.path());
        make_dir(&ground.root, 0o700, None).unwrap();
        make_dir(&root.path().join("space"), 0o700, None).unwrap();
        ground.directory(b"base", 0o750).unwrap();
        ground.file(b"base/1", 1 << 20, 0o640).unwrap();
        ground.open(b"base/1").unwrap().write_at(b"page", 8192).unwrap();
        ground.file(b"pg_tblspc/16384/x", 5, 0o600).unwrap();
        ground.whole_file(b"PG_VERSION", b"15\n", 0o600).unwrap();
        link(&ground.root.join("link"), Path::new("PG_VERSION"), None).unwrap();
        sync_tree(&ground.root, 3).unwrap();
        let meta = std::fs::metadata(ground.root.join("base/1")).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (1 << 20, 0o640));
        assert_eq!(std::fs::metadata(root.path().join("space/x")).unwrap().len(), 5);
        assert_eq!(&std::fs::read(ground.root.join("base/1")).unwrap()[8190..8197], b"\0\0page\0");
        assert!(ground.file(b"base/1", 1, 0o600).is_err(), "nothing is written over");
    }

    #[test]
    fn a_path_that_leaves_the_ground_is_refused() {
        let ground = ground(Path::new("/nowhere"));
        for bad in [&b"../x"[..], b"/etc/passwd", b"a/../../b", b"", b"a\0b", b"./x"] {
            assert_eq!(ground.place(bad).unwrap_err().kind(), Kind::Corrupt, "{bad:?}");
        }
        assert!(ground.place(b"pg_tblspc/163840").unwrap().starts_with("/nowhere/data"));
    }

    #[test]
    fn an_occupied_directory_is_named() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(occupied(&root.path().join("absent")).unwrap(), None);
        std::fs::create_dir(root.path().join("lost+found")).unwrap();
        assert_eq!(occupied(root.path()).unwrap(), None);
        std::fs::write(root.path().join("x"), "").unwrap();
        assert_eq!(occupied(root.path()).unwrap().as_deref(), Some("it contains x"));
        assert_eq!(occupied(&root.path().join("x")).unwrap().as_deref(), Some("it is no directory"));
    }

    #[test]
    fn only_what_an_interrupted_restore_left_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        let (ours, theirs) = (root.path().join("a/b/ours"), root.path().join("theirs"));
        let running = claim(&ours, None).unwrap();
        std::fs::create_dir(ours.join("base")).unwrap();
        std::fs::write(ours.join("base/1"), "x").unwrap();
        assert_eq!(claim(&ours, None).unwrap_err().kind(), Kind::Usage, "the first one still runs");
        assert_eq!(claimable(&ours).unwrap().as_deref(), Some(RUNNING));
        assert!(ours.join("base/1").exists());
        drop(running);
        assert_eq!(claimable(&ours).unwrap(), None);
        let again = claim(&ours, None).unwrap();
        assert!(!ours.join("base").exists() && ours.join(MARK).exists());
        assert_eq!(claimable(&ours).unwrap().as_deref(), Some(RUNNING));
        drop(again);
        std::fs::create_dir(ours.join("global")).unwrap();
        std::fs::write(ours.join("global/pg_control"), "x").unwrap();
        assert_eq!(claim(&ours, None).unwrap_err().kind(), Kind::Usage, "a complete one is somebody's");
        std::fs::create_dir(&theirs).unwrap();
        std::fs::write(theirs.join("x"), "x").unwrap();
        assert_eq!(claim(&theirs, None).unwrap_err().kind(), Kind::Usage);
        assert!(theirs.join("x").exists() && !theirs.join(MARK).exists());
    }

    #[test]
    fn a_file_is_handed_over_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("RECOVERYXLOG");
        std::fs::write(&path, "old").unwrap();
        hand_over(&path, b"abc", 6).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc\0\0\0");
        assert!(hand_over(&root.path().join("absent/x"), b"abc", 3).is_err());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
