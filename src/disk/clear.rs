//! Making room for a backup in a directory where something stands: what the backup does not have goes, old WAL is set aside.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::lay::{Owner, failed, make_dir, sync};
use crate::error::Result;

/// What becomes of something that stands in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays; in a directory the same is asked of everything.
    Keep,
    /// It stays as it is.
    Leave,
    Remove,
}

/// Removes what stands below `directory` and shall not, links as links. `path` is what the directory is called in the backup; `fate` is asked with such paths.
/// Returns how many files, links and directories were removed, each directory counted once.
pub fn prune(directory: &Path, path: &[u8], fate: &dyn Fn(&[u8]) -> Fate) -> Result<u64> {
    let mut removed = 0;
    let mut waiting = vec![(directory.to_path_buf(), path.to_vec())];
    while let Some((directory, path)) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).map_err(|e| failed("read the directory", &directory, e))? {
            let entry = entry.map_err(|e| failed("read the directory", &directory, e))?;
            let place = entry.path();
            let is_dir = entry.file_type().map_err(|e| failed("look at", &place, e))?.is_dir();
            let name = entry.file_name();
            let below = if path.is_empty() { name.as_bytes().to_vec() } else { [&path, name.as_bytes()].join(&b'/') };
            match fate(&below) {
                Fate::Keep if is_dir => waiting.push((place, below)),
                Fate::Keep | Fate::Leave => {}
                Fate::Remove => {
                    let gone = if is_dir { std::fs::remove_dir_all(&place) } else { std::fs::remove_file(&place) };
                    gone.map_err(|e| failed("remove", &place, e))?;
                    removed += 1;
                }
            }
        }
    }
    Ok(removed)
}

/// Moves the files of `directory`, and those of its directories that are not empty, into a new directory `name` in it, all synced; `leave` names what stays. Empty
/// directories stay too. `None` where nothing was to be moved, or there is no such directory.
pub fn set_aside(
    directory: &Path,
    name: &str,
    leave: &dyn Fn(&OsStr) -> bool,
    owner: Option<Owner>,
) -> Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(failed("read the directory", directory, e)),
    };
    let aside = directory.join(name);
    let mut moved = false;
    for entry in entries {
        let entry = entry.map_err(|e| failed("read the directory", directory, e))?;
        let place = entry.path();
        let is_dir = entry.file_type().map_err(|e| failed("look at", &place, e))?.is_dir();
        let empty = |place: &Path| std::fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none());
        if place == aside || leave(&entry.file_name()) || (is_dir && empty(&place)) {
            continue;
        }
        if !moved {
            make_dir(&aside, 0o700, owner)?;
            moved = true;
        }
        std::fs::rename(&place, aside.join(entry.file_name())).map_err(|e| failed("move", &place, e))?;
    }
    if moved {
        sync(&aside)?;
        sync(directory)?;
    }
    Ok(moved.then_some(aside))
}

/// A path without links, as far as it is there; the rest as it is.
pub fn resolved(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|above| Some((above, std::fs::canonicalize(above).ok()?)));
    match there.and_then(|(above, real)| Some((real, path.strip_prefix(above).ok()?))) {
        Some((real, rest)) if !rest.as_os_str().is_empty() => real.join(rest),
        Some((real, _)) => real,
        None => path.to_path_buf(),
    }
}

/// Removes a directory with all that is in it, where it is there.
pub fn remove_tree(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", directory, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &Path, files: &[&str]) {
        for file in files {
            let place = root.join(file);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, file).unwrap();
        }
    }

    fn list(root: &Path) -> Vec<String> {
        let mut out = Vec::new();
        let mut waiting = vec![root.to_path_buf()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                out.push(entry.path().strip_prefix(root).unwrap().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    waiting.push(entry.path());
                }
            }
        }
        out.sort();
        out
    }

    #[test]
    fn what_shall_not_be_there_goes_and_nothing_behind_a_link() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tree(outside.path(), &["x"]);
        tree(root.path(), &["base/1/a", "base/1/b", "base/2/a", "left/x", "keep", "gone"]);
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("kept link")).unwrap();
        let removed = prune(root.path(), b"", &|path| match path {
            b"left" => Fate::Leave,
            b"base" | b"base/1" | b"base/1/a" | b"keep" | b"kept link" => Fate::Keep,
            _ => Fate::Remove,
        });
        assert_eq!(removed.unwrap(), 4);
        assert_eq!(list(root.path()), ["base", "base/1", "base/1/a", "keep", "kept link", "left", "left/x"]);
        assert_eq!(list(outside.path()), ["x"]);
        // In a tablespace paths begin with its own.
        let asked = std::cell::RefCell::new(Vec::new());
        let fate = |path: &[u8]| {
            asked.borrow_mut().push(String::from_utf8_lossy(path).into_owned());
            Fate::Keep
        };
        assert_eq!(prune(&root.path().join("base"), b"pg_tblspc/7", &fate).unwrap(), 0);
        assert_eq!(asked.into_inner(), ["pg_tblspc/7/1", "pg_tblspc/7/1/a"]);
    }

    #[test]
    fn files_are_set_aside_once() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), &["000000010000000000000001", "archive_status/x.ready", "walrecv/plan.json"]);
        std::fs::create_dir(root.path().join("summaries")).unwrap();
        let leave = |name: &OsStr| name == "walrecv";
        let moved = set_aside(root.path(), "aside", &leave, None).unwrap();
        assert_eq!(moved, Some(root.path().join("aside")));
        let expected =
            ["aside", "aside/000000010000000000000001", "aside/archive_status", "aside/archive_status/x.ready"];
        assert_eq!(list(root.path())[..4], expected);
        assert_eq!(list(root.path())[4..], ["summaries", "walrecv", "walrecv/plan.json"]);
        assert_eq!(set_aside(root.path(), "aside", &leave, None).unwrap(), None);
        assert_eq!(set_aside(&root.path().join("absent"), "aside", &leave, None).unwrap(), None);
        remove_tree(&root.path().join("walrecv")).unwrap();
        remove_tree(&root.path().join("walrecv")).unwrap();
        assert!(!root.path().join("walrecv").exists());
    }
}
