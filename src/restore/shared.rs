//! Whether a place outside the data directory that is to be overwritten belongs to another data directory too: a copy of a data directory has the links of the
//! original, and whatever is laid through them is laid over that one's files.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::occupant;
use crate::disk::ahead;
use crate::disk::lay::Ground;
use crate::error::{Error, Kind, Result};

/// Another data directory, as it is seen from here.
struct Other {
    /// Where to look for it, and how to call it.
    root: PathBuf,
    shown: String,
    /// Where its absolute links lead.
    top: PathBuf,
}

/// `Kind::Usage` where `pg_wal` or a tablespace of this ground lies outside the data directory, in a place that a running server uses too, or the data directory
/// that was the last to be started with these files.
pub fn demand_own(ground: &Ground) -> Result<()> {
    let outside = outside(ground);
    if outside.is_empty() {
        return Ok(());
    }
    let own = ahead::identity(&ground.root);
    for other in others(&ground.root)?.filter(|other| ahead::identity(&other.root) != own) {
        for (name, place) in &outside {
            let Some(found) = other.links().find(|(_, theirs)| ahead::identity(theirs) == ahead::identity(place))
            else {
                continue;
            };
            let (root, real) = (ground.root.display(), real(place));
            let message = format!(
                "{name} of {root} lies in {}, which is {} of {}: {root} looks like a copy of that",
                real.display(),
                found.0,
                other.shown
            );
            return Err(Error::new(Kind::Usage, message).hint(
                "restore into an empty directory, or replace the links in this one by directories of its own; nothing was changed",
            ));
        }
    }
    Ok(())
}

/// What is there and lies elsewhere than in the data directory, by its name in that.
pub fn outside(ground: &Ground) -> Vec<(String, PathBuf)> {
    let wal = ground.root.join("pg_wal");
    let wal = wal.is_symlink().then_some(("pg_wal".to_owned(), wal));
    let spaces = ground.tablespaces.iter().map(|(oid, place)| (format!("tablespace {oid}"), place.clone()));
    wal.into_iter().chain(spaces).filter(|(_, place)| ahead::identity(place).is_some()).collect()
}

/// Where a place really is.
pub fn real(place: &Path) -> PathBuf {
    std::fs::canonicalize(place).unwrap_or_else(|_| place.to_owned())
}

/// Those of running servers, and the one that the server's own note names: a copy has the note of the original.
fn others(root: &Path) -> Result<impl Iterator<Item = Other> + use<>> {
    let running = occupant::servers()?.map(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let root = process.join("cwd");
        let path = std::fs::read_link(&root).unwrap_or_else(|_| root.clone());
        Other { shown: format!("{}, where server process {pid} runs", path.display()), top: process.join("root"), root }
    });
    let noted = started_last(root).map(|path| Other {
        shown: format!("{}, the data directory that postmaster.opts names", path.display()),
        top: PathBuf::from("/"),
        root: path,
    });
    Ok(running.chain(noted))
}

/// The data directory with which a server was started last on these files (`CreateOptsFile`, `postmaster.c`), where it says so.
fn started_last(root: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(root.join("postmaster.opts")).ok()?;
    let words: Vec<&str> = text.trim_end().split(" \"").map(|word| word.trim_matches('"')).collect();
    let path = words.windows(2).find(|pair| pair[0] == "-D").map(|pair| pair[1]);
    let path = path.or_else(|| words.iter().find_map(|word| word.strip_prefix("-D").filter(|path| !path.is_empty())));
    path.map(PathBuf::from).filter(|path| path.is_absolute() && path.is_dir())
}

impl Other {
    /// `pg_wal` and the tablespaces, with where they are.
    fn links(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let spaces = std::fs::read_dir(self.root.join("pg_tblspc")).into_iter().flatten().flatten();
        let spaces = spaces.map(|entry| (format!("tablespace {}", entry.file_name().display()), entry.path()));
        let wal = ("pg_wal".to_owned(), self.root.join("pg_wal"));
        std::iter::once(wal).chain(spaces).map(|(name, path)| (name, self.followed(path)))
    }

    /// As that server follows it, which may run in a container.
    fn followed(&self, path: PathBuf) -> PathBuf {
        match std::fs::read_link(&path) {
            Ok(target) if target.is_absolute() => {
                let below = target.components().filter(|part| matches!(part, Component::Normal(_)));
                let below: Vec<&OsStr> = below.map(|part| part.as_os_str()).collect();
                self.top.join(below.into_iter().collect::<PathBuf>())
            }
            _ => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disk::lay::Over;

    fn ground(root: &Path, space: &Path) -> Ground {
        Ground { root: root.to_owned(), tablespaces: vec![(16400, space.to_owned())], owner: None, over: Over::Kept }
    }

    #[test]
    fn a_copy_is_not_laid_over_the_places_of_its_original() {
        let dir = tempfile::tempdir().unwrap();
        let [data, copy, wal, space, other] =
            ["data", "copy", "wal", "space", "other"].map(|name| dir.path().join(name));
        for folder in [&data, &copy, &wal, &space, &other] {
            fs::create_dir(folder).unwrap();
        }
        for root in [&data, &copy] {
            fs::create_dir(root.join("pg_tblspc")).unwrap();
            symlink(&wal, root.join("pg_wal")).unwrap();
            symlink(&space, root.join("pg_tblspc/16400")).unwrap();
            fs::write(root.join("postmaster.opts"), format!("/usr/bin/postgres \"-D\" \"{}\"\n", data.display()))
                .unwrap();
        }
        demand_own(&ground(&data, &space)).unwrap();
        let refused = |ground: &Ground| demand_own(ground).unwrap_err().to_string();
        let text = refused(&ground(&copy, &other));
        assert!(text.contains(&format!("pg_wal of {}", copy.display())) && text.contains("postmaster.opts"), "{text}");
        fs::remove_file(copy.join("pg_wal")).unwrap();
        fs::create_dir(copy.join("pg_wal")).unwrap();
        assert!(refused(&ground(&copy, &space)).contains("tablespace 16400"));
        demand_own(&ground(&copy, &other)).unwrap();
        // The note is not all: a server that runs.
        fs::remove_file(copy.join("postmaster.opts")).unwrap();
        demand_own(&ground(&copy, &space)).unwrap();
        let mut child = occupant::stand_in(&data, dir.path());
        let found = demand_own(&ground(&copy, &space));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.unwrap_err().to_string().contains(&format!("server process {}", child.id())));
        // The original may be anywhere by now.
        fs::rename(&data, dir.path().join("moved")).unwrap();
        symlink(&copy, &data).unwrap();
        fs::write(copy.join("postmaster.opts"), format!("postgres \"-D\" \"{}\"\n", data.display())).unwrap();
        demand_own(&ground(&copy, &space)).unwrap();
    }
}
