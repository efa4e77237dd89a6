//! Laying a data directory back: files at full size, written in place by several threads, fsync of all before success. Owned by restore.
//!
//! Also the one file that `wal-fetch` hands to PostgreSQL.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind, Result};

/// A user and group of this host, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Paths that wait to be synced, at most.
const AHEAD: usize = 1024;

pub(super) fn failed(what: &str, path: &Path, cause: std::io::Error) -> Error {
    Error::new(Kind::Failed, format!("cannot {what} {}", path.display())).caused_by(cause)
}

/// A write or a sync that failed: the kernel may have dropped what it was to put on the disk, and goes on showing it.
fn lost(what: &str, path: &Path, cause: std::io::Error) -> Error {
    failed(what, path, cause).unsynced()
}

/// Gives a file or directory to `owner`; without one it stays with this process's user. Links are not followed.
pub fn give(path: &Path, owner: Option<Owner>) -> Result<()> {
    let Some(Owner { uid, gid }) = owner else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|e| failed("change the owner of", path, e))
}

/// Makes one directory (its parent must exist) with exactly this mode; an existing one keeps its content.
pub fn make_dir(path: &Path, mode: u32, owner: Option<Owner>) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(failed("create the directory", path, e)),
        Ok(()) => {}
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(|e| failed("set the mode of", path, e))?;
    give(path, owner)
}

/// Ends the name of a file that is about to take the place of another.
const NEW: &str = ".walrecv-new";
/// Bytes that are looked at together for zeros.
const ZEROED: usize = 256 << 10;

/// What stands already where a backup is laid: nothing, or an older state of the same cluster, or what an interrupted restore left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Nothing,
    /// What is right of it is kept.
    Kept,
    /// It goes: a write or a sync failed there, so that what is read of it need not be what is on the disk.
    Doubted,
}

/// Where a path of a backup goes: the data directory, or the place of a tablespace.
#[derive(Clone, Debug)]
pub struct Ground {
    pub root: PathBuf,
    /// Tablespace directories by oid; their files are named `pg_tblspc/<oid>/…`.
    pub tablespaces: Vec<(u32, PathBuf)>,
    pub owner: Option<Owner>,
    pub over: Over,
}

impl Ground {
    /// Something stands there that may be kept or replaced.
    pub fn is_occupied(&self) -> bool {
        self.over != Over::Nothing
    }

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

    /// A directory. Where something stands it keeps its content; what is no directory goes. Of links only that of `pg_wal` stays, which may lie on a disk
    /// of its own, and what the place of a tablespace is called.
    pub fn directory(&self, path: &[u8], mode: u32) -> Result<()> {
        let place = self.place(path)?;
        if let (true, Some(there)) = (self.is_occupied(), there(&place)?) {
            let may_lead = path == b"pg_wal" || self.tablespaces.iter().any(|(_, base)| *base == place);
            if !(there.is_dir() || may_lead && place.is_dir()) {
                std::fs::remove_file(&place).map_err(|e| failed("remove", &place, e))?;
            }
        }
        make_dir(&place, mode, self.owner)
    }

    /// A file of `size` bytes: `false` where it is new, and none of its bytes is written (what is never written stays a hole); `true` where one stood
    /// there, whose bytes stay as far as they go. A file with a second name may be a snapshot's too, which must not change: it is made anew. What is kept is
    /// read from the disk, not from memory, as far as the file system allows.
    pub fn file(&self, path: &[u8], size: u64, mode: u32) -> Result<bool> {
        let place = self.place(path)?;
        let there = if self.is_occupied() { there(&place)? } else { None };
        let may_stay = |there: &std::fs::Metadata| there.is_file() && there.nlink() == 1;
        let kept = self.over == Over::Kept && there.as_ref().is_some_and(may_stay);
        let file = match &there {
            Some(_) if kept => {
                let file = OpenOptions::new().write(true).open(&place).map_err(|e| failed("open", &place, e))?;
                set_mode(&file, &place, mode)?;
                // After a sync that failed, memory may show pages that are not on the disk.
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                file
            }
            Some(there) => {
                let directory = there.is_dir();
                let removed = if directory { std::fs::remove_dir_all(&place) } else { std::fs::remove_file(&place) };
                removed.map_err(|e| failed("remove", &place, e))?;
                create(&place, mode)?
            }
            None => create(&place, mode)?,
        };
        file.set_len(size).map_err(|e| failed("set the size of", &place, e))?;
        give(&place, self.owner)?;
        Ok(kept && there.is_some_and(|there| there.len() > 0))
    }

    /// As [`Ground::file`], with nothing kept of what stood there.
    pub fn new_file(&self, path: &[u8], size: u64, mode: u32) -> Result<()> {
        let place = self.place(path)?;
        if self.is_occupied() && there(&place)?.is_some_and(|there| !there.is_dir()) {
            std::fs::remove_file(&place).map_err(|e| failed("remove", &place, e))?;
        }
        self.file(path, size, mode).map(|_| ())
    }

    /// A file with this content, synced; it takes the place of one that stands there in one step.
    pub fn whole_file(&self, path: &[u8], content: &[u8], mode: u32) -> Result<()> {
        let place = self.place(path)?;
        let mut name = place.as_os_str().to_owned();
        name.push(NEW);
        let new = PathBuf::from(name);
        // Left by an interrupted restore.
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("remove", &new, e)),
            _ => {}
        }
        let mut file = create(&new, mode)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| lost("write", &new, e))?;
        give(&new, self.owner)?;
        std::fs::rename(&new, &place).map_err(|e| failed("rename to", &place, e))
    }

    /// A file made before, to write parts of it in place.
    pub fn open(&self, path: &[u8]) -> Result<Laid> {
        let place = self.place(path)?;
        let file = OpenOptions::new().read(true).write(true).open(&place).map_err(|e| failed("open", &place, e))?;
        Ok(Laid { file, place })
    }
}

/// A link at an absolute place; it replaces another link, or an empty directory, and nothing else.
pub fn link(place: &Path, target: &Path, owner: Option<Owner>) -> Result<()> {
    match there(place)? {
        Some(there) if there.is_symlink() => std::fs::remove_file(place).map_err(|e| failed("remove", place, e))?,
        Some(there) if there.is_dir() => std::fs::remove_dir(place).map_err(|e| failed("remove", place, e))?,
        _ => {}
    }
    std::os::unix::fs::symlink(target, place).map_err(|e| failed("create the link", place, e))?;
    give(place, owner)
}

pub(super) fn create(place: &Path, mode: u32) -> Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(place);
    let file = file.map_err(|e| failed("create", place, e))?;
    set_mode(&file, place, mode)?;
    Ok(file)
}

fn set_mode(file: &File, place: &Path, mode: u32) -> Result<()> {
    file.set_permissions(PermissionsExt::from_mode(mode)).map_err(|e| failed("set the mode of", place, e))
}

/// What stands at a place, links not followed.
fn there(place: &Path) -> Result<Option<std::fs::Metadata>> {
    match place.symlink_metadata() {
        Ok(there) => Ok(Some(there)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("look at", place, e)),
    }
}

/// An open file of the ground.
pub struct Laid {
    file: File,
    place: PathBuf,
}

impl Laid {
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| lost("write", &self.place, e))
    }

    /// Lets the disk begin with what stands in these bytes. Nothing is waited for, and nothing is safe before the sync, which also tells what failed.
    pub fn write_back(&self, range: Range<u64>) {
        let len = NonZeroU64::new(range.end.saturating_sub(range.start));
        // Of a range that is to be forgotten, Linux writes back what has changed (mm/fadvise.c, generic_fadvise) and forgets only what had not.
        let _ = rustix::fs::fadvise(&self.file, range.start, len, rustix::fs::Advice::DontNeed);
    }

    /// Fills the buffer from `offset` on.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|e| failed("read", &self.place, e))
    }

    /// Makes `len` bytes from `offset` on zero: writes where they are not, or cannot be read.
    pub fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let (mut buffer, mut at) = (vec![0; ZEROED], offset);
        let end = offset.saturating_add(len);
        while at < end {
            let part = buffer.get_mut(..ZEROED.min((end - at) as usize)).unwrap_or_default();
            let unreadable = match self.file.read_exact_at(part, at) {
                // The disk's, such as EIO, and not that the file has ended.
                Err(e) if e.raw_os_error().is_some() => true,
                read => read.map(|()| false).map_err(|e| failed("read", &self.place, e))?,
            };
            if unreadable || part.iter().any(|b| *b != 0) {
                part.fill(0);
                self.write_at(part, at)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }
}

/// Syncs every file and directory below `root`, `root` itself and its parent, with `jobs` threads. Links are not followed. Memory: directories that are still to
/// be read, and [`AHEAD`] paths.
pub fn sync_tree(root: &Path, jobs: usize) -> Result<()> {
    let (to, from) = std::sync::mpsc::sync_channel::<PathBuf>(AHEAD);
    let from = Mutex::new(from);
    let next = || from.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let work = || -> Result<()> {
        let mut synced = Ok(());
        // Whoever walks must not wait for a thread that has failed.
        while let Ok(path) = next() {
            synced = synced.and_then(|()| sync(&path));
        }
        synced
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let gone = |_| Error::new(Kind::Failed, "nobody syncs files any more");
        let walked = walk(root, &mut |path| to.send(path).map_err(gone));
        drop(to);
        let panicked = |_| Err(Error::new(Kind::Failed, "a thread that synced files panicked"));
        let synced = threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(panicked));
        walked.and(synced)
    })
}

/// Names everything that [`sync_tree`] syncs. Where `root` is a symbolic link, that is what it leads to, and the directory that the link is in.
fn walk(root: &Path, found: &mut dyn FnMut(PathBuf) -> Result<()>) -> Result<()> {
    let mut directories = Vec::new();
    let is_link = root.symlink_metadata().map_err(|e| failed("look at", root, e))?.is_symlink();
    let target = root.canonicalize().map_err(|e| failed("look at", root, e))?;
    if is_link {
        found(above(root))?;
    }
    let root = target.as_path();
    if root.symlink_metadata().map_err(|e| failed("look at", root, e))?.is_dir() {
        directories.push(root.to_path_buf());
    }
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).map_err(|e| failed("read the directory", &directory, e))? {
            let entry = entry.map_err(|e| failed("read the directory", &directory, e))?;
            let kind = entry.file_type().map_err(|e| failed("look at", &entry.path(), e))?;
            if kind.is_dir() {
                directories.push(entry.path());
            }
            if kind.is_file() || kind.is_dir() {
                found(entry.path())?;
            }
        }
    }
    found(root.to_path_buf())?;
    found(above(root))
}

/// The directory that a path is in.
fn above(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_path_buf(),
        None => path.to_path_buf(),
    }
}

/// Syncs one file or directory. One that fails is `Class::Unsynced`: what stands there counts for nothing.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| lost("sync", path, e))
}

/// Puts a file for PostgreSQL at `path`: written under a temporary name beside it, filled up with zeros to `size`, renamed. Not synced: PostgreSQL
/// does that itself, and a lost file is asked for again.
pub fn hand_over(path: &Path, content: &[u8], size: u64) -> Result<()> {
    let (mut file, temporary) = beside(path).map_err(|e| failed("write", path, e))?;
    let written = (|| {
        file.set_len(0)?;
        file.write_all(content)?;
        file.set_len(size)?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        failed("write", path, e)
    })
}

/// A file beside `path`, and its name: always the same, so that the next call takes over what a killed one left. It is held while it is written, and who finds
/// it held, as by a call that outlived its server, or cannot hold it, writes under a name of his own.
fn beside(path: &Path) -> std::io::Result<(File, PathBuf)> {
    let named = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let open = |name: &Path| OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name);
    let usual = named(".walrecv");
    if let Ok(file) = open(&usual)
        && file.try_lock().is_ok()
        // Its last holder may have renamed it since it was opened: then it is the server's.
        && file.metadata().is_ok_and(|own| super::ahead::identity(&usual) == Some((own.dev(), own.ino())))
    {
        return Ok((file, usual));
    }
    let own = named(&format!(".walrecv.{}", std::process::id()));
    Ok((open(&own)?, own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn ground(root: &Path) -> Ground {
        Ground {
            root: root.join("data"),
            tablespaces: vec![(16384, root.join("space"))],
            owner: None,
            over: Over::Nothing,
        }
    }

    #[test]
    fn a_file_for_the_server_takes_over_what_a_killed_call_left_and_nothing_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("RECOVERYXLOG");
        let usual = dir.path().join("RECOVERYXLOG.walrecv");
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        std::fs::write(&usual, [7; 5000]).unwrap();
        hand_over(&place, b"wal", 8).unwrap();
        assert_eq!(
            (std::fs::read(&place).unwrap(), names()),
            (b"wal\0\0\0\0\0".to_vec(), 1),
            "nothing is left beside it"
        );

        std::fs::write(&usual, b"half").unwrap();
        let held = OpenOptions::new().write(true).open(&usual).unwrap();
        held.try_lock().unwrap();
        hand_over(&place, b"next", 4).unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"next");
        assert_eq!(std::fs::read(&usual).unwrap(), b"half", "somebody writes it");
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
    fn what_stands_there_is_kept_or_replaced() {
        let root = tempfile::tempdir().unwrap();
        let ground = Ground { over: Over::Kept, ..ground(root.path()) };
        let at = |name: &str| ground.root.join(name);
        let (outside, wal) = (root.path().join("outside"), root.path().join("wal"));
        for directory in [&ground.root, &at("base"), &at("base/2"), &outside, &wal] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(at("base/1"), "a longer one").unwrap();
        std::fs::write(outside.join("1"), "not ours").unwrap();
        std::fs::hard_link(outside.join("1"), at("base/two names")).unwrap();
        std::os::unix::fs::symlink(outside.join("1"), at("base/3")).unwrap();
        std::os::unix::fs::symlink(&outside, at("log")).unwrap();
        std::os::unix::fs::symlink(&wal, at("pg_wal")).unwrap();

        assert!(ground.file(b"base/1", 8, 0o640).unwrap());
        assert_eq!(std::fs::read(at("base/1")).unwrap(), b"a longer");
        assert_eq!(std::fs::metadata(at("base/1")).unwrap().permissions().mode() & 0o777, 0o640);
        for replaced in ["base/2", "base/3", "base/two names", "base/new"] {
            assert!(!ground.file(replaced.as_bytes(), 3, 0o600).unwrap(), "{replaced}");
            assert_eq!(std::fs::read(at(replaced)).unwrap(), [0; 3], "{replaced}");
        }
        ground.new_file(b"base/1", 9, 0o600).unwrap();
        assert_eq!(std::fs::read(at("base/1")).unwrap(), [0; 9], "nothing is kept");
        ground.directory(b"log", 0o700).unwrap();
        ground.directory(b"pg_wal", 0o700).unwrap();
        assert!(at("log").is_dir() && !at("log").is_symlink() && at("pg_wal").is_symlink());
        assert_eq!(std::fs::read(outside.join("1")).unwrap(), b"not ours");
        ground.whole_file(b"base/1", b"whole", 0o600).unwrap();
        assert_eq!(std::fs::read(at("base/1")).unwrap(), b"whole");
        // Nothing that cannot be relied upon.
        assert!(ground.file(b"base/1", 5, 0o600).unwrap());
        let doubted = Ground { over: Over::Doubted, ..ground };
        assert!(!doubted.file(b"base/1", 5, 0o600).unwrap());
        assert_eq!(std::fs::read(doubted.root.join("base/1")).unwrap(), [0; 5]);
    }

    #[test]
    fn what_was_not_written_or_synced_is_known_as_that() {
        let root = tempfile::tempdir().unwrap();
        let tablespaces = vec![(1, PathBuf::from("/dev"))];
        let ground = Ground { root: root.path().to_path_buf(), tablespaces, owner: None, over: Over::Nothing };
        // A device that is full, or cannot be synced, stands for a disk that fails.
        let full = ground.open(b"pg_tblspc/1/full").unwrap().write_at(b"page", 0).unwrap_err();
        assert_eq!(full.class(), Class::Unsynced, "{full}");
        let failed = sync_tree(Path::new("/dev/null"), 1).unwrap_err();
        assert_eq!(failed.class(), Class::Unsynced, "{failed}");
        let absent = ground.open(b"absent").map(drop).unwrap_err();
        assert_ne!(absent.class(), Class::Unsynced, "{absent}");
    }

    #[test]
    fn bytes_are_made_zero_where_they_are_not() {
        let root = tempfile::tempdir().unwrap();
        let ground = Ground { root: root.path().to_path_buf(), ..ground(root.path()) };
        std::fs::write(root.path().join("x"), vec![7; ZEROED * 2 + 9]).unwrap();
        ground.open(b"x").unwrap().zero(3, ZEROED as u64 + 5).unwrap();
        let content = std::fs::read(root.path().join("x")).unwrap();
        let zeros: Vec<usize> = (0..content.len()).filter(|at| content[*at] == 0).collect();
        assert_eq!(zeros, (3..ZEROED + 8).collect::<Vec<_>>());
        assert!(ground.open(b"x").unwrap().zero(ZEROED as u64 * 2, 10).is_err(), "past the end");
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

    #[test]
    fn a_tree_is_synced_where_its_place_is_a_link() {
        let root = tempfile::tempdir().unwrap();
        let (tree, link) = (root.path().join("disk/tree"), root.path().join("link"));
        std::fs::create_dir_all(tree.join("below")).unwrap();
        std::fs::write(tree.join("below/file"), "content").unwrap();
        std::os::unix::fs::symlink(&tree, &link).unwrap();
        let named = |root: &Path| {
            let mut found = std::collections::BTreeSet::new();
            walk(root, &mut |path| {
                found.insert(path.canonicalize().unwrap());
                Ok(())
            })
            .unwrap();
            found
        };
        let mut expected = named(&tree);
        assert!(expected.contains(&tree.join("below/file").canonicalize().unwrap()));
        expected.insert(root.path().canonicalize().unwrap());
        assert_eq!(named(&link), expected);
        sync_tree(&link, 2).unwrap();
    }
}
