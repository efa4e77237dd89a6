//! The mark of a restore: it stands in a directory from before the first byte is laid until the last one is synced, and is locked meanwhile.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::durable;
use super::lay::{Owner, create, failed, give, make_dir, sync};
use super::medium::Disk;
use crate::error::{Error, Kind, Result};

/// Name of the mark.
pub const MARK: &str = ".walrecv-restore";
/// Without it no server starts: it is taken away first and comes back last.
pub const CONTROL: &str = "global/pg_control";
const RUNNING: &str = "another restore is filling this directory";
/// No mark is longer.
const LONGEST: u64 = 64 << 10;

/// What stands in a directory that a restore is to fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is absent or empty.
    Nothing,
    /// A restore has begun to fill it and has not completed it: what its mark says.
    Begun(Vec<u8>),
    /// Something else, such as.
    Occupied(String),
}

/// Looks, and changes nothing. `lost+found` counts as nothing, and so does a mark alone.
pub fn look(path: &Path) -> Result<Found> {
    let Some(what) = occupied(path)? else { return Ok(Found::Nothing) };
    let place = path.join(MARK);
    let control = path.join(CONTROL);
    if !place.is_file() || control.try_exists().map_err(|e| failed("look for", &control, e))? {
        return Ok(Found::Occupied(what));
    }
    Ok(read(path)?.map_or(Found::Occupied(what), Found::Begun))
}

/// What the mark of a directory says, where there is one.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let place = path.join(MARK);
    let mark = match File::open(&place) {
        Ok(mark) => mark,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(failed("open", &place, e)),
    };
    let mut content = Vec::new();
    mark.take(LONGEST).read_to_end(&mut content).map_err(|e| failed("read", &place, e))?;
    Ok(Some(content))
}

/// `Kind::Usage` where another restore is at work in the directory.
pub fn idle(path: &Path) -> Result<()> {
    let place = path.join(MARK);
    // For writing, which NFS demands of a lock of one's own.
    match OpenOptions::new().write(true).open(&place) {
        Ok(mark) => lock(&mark, path, &place),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(failed("open", &place, e)),
    }
}

/// `None` when `path` is absent or an empty directory; else what is in the way.
fn occupied(path: &Path) -> Result<Option<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == ErrorKind::NotADirectory => return Ok(Some("it is no directory".to_owned())),
        Err(e) => return Err(failed("read the directory", path, e)),
    };
    for entry in entries {
        let name = entry.map_err(|e| failed("read the directory", path, e))?.file_name();
        if name != MARK && name != "lost+found" {
            return Ok(Some(format!("it contains {}", name.display())));
        }
    }
    Ok(None)
}

/// Makes the directory where it is not there, and marks it: synced, and locked for as long as the file that is returned is open. Whether what stands there may
/// be filled is the caller's to say. `Kind::Usage` where another restore is at work.
pub fn claim(path: &Path, content: &[u8], owner: Option<Owner>) -> Result<File> {
    let place = path.join(MARK);
    let mark = match OpenOptions::new().read(true).write(true).open(&place) {
        Ok(mark) => mark,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            if let Some(parent) = parent {
                durable::create_dirs(&Disk, parent)?;
            }
            if !path.is_dir() {
                make_dir(path, 0o700, owner)?;
                parent.map_or(Ok(()), sync)?;
            }
            create(&place, 0o600)?
        }
        Err(e) => return Err(failed("open", &place, e)),
    };
    lock(&mark, path, &place)?;
    write(&mark, content).map_err(|e| failed("write", &place, e))?;
    give(&place, owner)?;
    sync(path)?;
    Ok(mark)
}

/// Has a mark say something else, and syncs it. One write, that leaves no moment in which the mark says nothing; a longer text that was there ends in blanks.
pub fn write(mark: &File, content: &[u8]) -> std::io::Result<()> {
    let there = mark.metadata()?.len().min(LONGEST) as usize;
    let mut text = content.to_vec();
    text.resize(content.len().max(there), b' ');
    mark.write_all_at(&text, 0)?;
    mark.sync_all()
}

/// Whether a directory can be made or filled there, as far as one can tell beforehand: `Kind::Failed` on a read-only file system, or without the right.
pub fn demand_writable(path: &Path) -> Result<()> {
    let Some(there) = path.ancestors().find(|place| place.exists()) else { return Ok(()) };
    rustix::fs::access(there, rustix::fs::Access::WRITE_OK).map_err(|e| failed("write into", there, e.into()))
}

/// Takes the lock, and makes sure that the mark is still the directory's. A file system that has no locks tells nothing of others, so it is no reason to refuse.
fn lock(mark: &File, path: &Path, place: &Path) -> Result<()> {
    let running = || {
        Error::new(Kind::Usage, format!("{} is occupied: {RUNNING}", path.display()))
            .hint("wait for it, or restore into another directory")
    };
    match mark.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(running()),
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => return Err(failed("lock", place, e)),
    }
    // Whoever held it may have finished in between.
    let (own, there) = (mark.metadata().map_err(|e| failed("look at", place, e))?, std::fs::symlink_metadata(place));
    match there.is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
        true => Ok(()),
        false => Err(running()),
    }
}

/// Takes pg_control away, durably: from here on no server starts on what is being changed.
pub fn take_control(root: &Path) -> Result<()> {
    let place = root.join(CONTROL);
    match std::fs::remove_file(&place) {
        Ok(()) => sync(&root.join("global")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", &place, e)),
    }
}

/// Takes the mark away: the restore is complete.
pub fn unmark(path: &Path) -> Result<()> {
    let mark = path.join(MARK);
    std::fs::remove_file(&mark).map_err(|e| failed("remove", &mark, e))?;
    sync(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_directory_is_told() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/data");
        assert_eq!(look(&path).unwrap(), Found::Nothing);
        std::fs::create_dir_all(path.join("lost+found")).unwrap();
        assert_eq!(look(&path).unwrap(), Found::Nothing);
        std::fs::write(path.join("x"), "").unwrap();
        assert_eq!(look(&path).unwrap(), Found::Occupied("it contains x".to_owned()));
        assert_eq!(look(&path.join("x")).unwrap(), Found::Occupied("it is no directory".to_owned()));
        idle(&path).unwrap();
        idle(&path.join("x")).unwrap();

        drop(claim(&path, b"{}", None).unwrap());
        assert_eq!(look(&path).unwrap(), Found::Begun(b"{}".to_vec()));
        std::fs::create_dir(path.join("global")).unwrap();
        std::fs::write(path.join(CONTROL), "x").unwrap();
        assert!(matches!(look(&path).unwrap(), Found::Occupied(_)), "a complete one is somebody's");
        take_control(&path).unwrap();
        take_control(&path).unwrap();
        assert_eq!(look(&path).unwrap(), Found::Begun(b"{}".to_vec()));
        unmark(&path).unwrap();
        assert!(matches!(look(&path).unwrap(), Found::Occupied(_)));
    }

    #[test]
    fn a_directory_is_filled_by_one_restore_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/data");
        let first = claim(&path, b"a long text", None).unwrap();
        for refused in [idle(&path), claim(&path, b"other", None).map(drop)] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), Kind::Usage);
            assert!(refused.to_string().contains(RUNNING), "{refused}");
        }
        drop(first);
        idle(&path).unwrap();
        let second = claim(&path, b"other", None).unwrap();
        assert_eq!(std::fs::read(path.join(MARK)).unwrap(), b"other      ");
        // One that was opened just before the restore that held it was done is no mark any more.
        let late = OpenOptions::new().write(true).open(path.join(MARK)).unwrap();
        unmark(&path).unwrap();
        drop(second);
        assert!(lock(&late, &path, &path.join(MARK)).is_err());
    }
}
