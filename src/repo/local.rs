//! A repository in a local directory: one file per object, created under its name by a hard link, every directory above it synced.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::backend::{Answer, Backend, Children, Listed, Piece};
use super::root::Root;
use crate::disk::durable;
use crate::disk::medium::{Form, Medium, Seen};
use crate::error::{Class, Error, Kind, Result};

/// Deepest tree below a repository's root, so that a symbolic link that leads back up is found out.
const DEPTH: usize = 16;

/// Below these, folders come with their first object and go with their last one.
const OWN_FOLDERS: [&str; 4] = ["/tail/", "/packs/", "/maps/", "/manifests/"];

pub(super) struct LocalBackend {
    root: Arc<Root>,
}

impl LocalBackend {
    pub(super) fn new(root: Arc<Root>) -> LocalBackend {
        LocalBackend { root }
    }

    /// Runs blocking file work away from the async tasks.
    fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Root, &Path) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let root = self.root.clone();
        let path = root.path.join(name);
        let lane = root.medium.lane();
        let job = move || {
            root.demand()?;
            let done = work(&root, &path).map_err(into_repository)?;
            // Unmounted meanwhile, it was done to whatever stands there now.
            root.demand()?;
            Ok(done)
        };
        async move { lane.run(job).await? }.boxed()
    }
}

impl Backend for LocalBackend {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        let parts = parts.to_vec();
        self.run(name, move |Root { path: root, medium, folders, .. }, path| {
            let above = path.parent().unwrap_or(root);
            // A folder that vanishes in between (an emptied tail) is a transient error: the caller tries again.
            durable::create_dirs(&**medium, above)?;
            match durable::create_once(medium, path, &parts, 0o666)? {
                // The folders may be as new as the object: their own names must reach the disk too.
                true => folders.sync(&**medium, above, root).map(|()| Answer::Created),
                false => Ok(Answer::Taken),
            }
        })
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        let range = range.unwrap_or(0..u64::MAX);
        self.run(name, move |root, path| found(path, read_file(&*root.medium, path, range, u64::MAX)))
    }

    fn whole<'a>(&'a self, name: &'a str, most: u64) -> BoxFuture<'a, Result<Option<Piece>>> {
        self.run(name, move |root, path| found(path, read_file(&*root.medium, path, 0..u64::MAX, most)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let prefix = prefix.to_owned();
        self.run(&prefix.clone(), move |root, path| {
            let mut found = Vec::new();
            walk(&*root.medium, path, &prefix, DEPTH, &mut found)?;
            Ok(found)
        })
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        self.run(prefix, move |root, path| {
            let entries = entries(&*root.medium, path)?;
            Ok(entries.into_iter().filter(|(_, seen)| seen.form == Form::Directory).map(|(name, _)| name).collect())
        })
    }

    fn children<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Children>> {
        let above = prefix.to_owned();
        self.run(prefix, move |root, path| {
            let mut children = Children::default();
            for (name, seen) in entries(&*root.medium, path)? {
                match seen.form {
                    Form::Directory => children.folders.push(name),
                    Form::File => children.objects.push(listed(&above, &name, &seen)),
                    _ => {}
                }
            }
            Ok(children)
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let own = |folder: &str| OWN_FOLDERS.iter().any(|above| folder.contains(above));
        let passing = name.rsplit_once('/').is_some_and(|(folder, _)| own(folder));
        self.run(name, move |root, path| {
            durable::remove(&*root.medium, path)?;
            if let (true, Some(folder)) = (passing, path.parent()) {
                // Every segment's tail and every backup has folders of its own: they would pile up. Not empty, or gone already: leave it.
                let _ = root.medium.remove_dir(folder);
            }
            Ok(())
        })
    }

    fn settle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.run(name, |root, path| durable::sync_found(&*root.medium, path, &root.path))
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        let (root, medium) = (self.root.path.clone(), self.root.medium.clone());
        let lane = medium.lane();
        let job = move || {
            let made = durable::create_dirs(&*medium, &root).and_then(|()| durable::sync_above(&*medium, &root));
            made.map_err(into_repository)
        };
        async move { lane.run(job).await? }.boxed()
    }
}

/// What reading a file says of the object of that name.
fn found(path: &Path, read: std::io::Result<Piece>) -> Result<Option<Piece>> {
    match read {
        Ok(piece) => Ok(Some(piece)),
        // A folder, or a file where a folder would have to be: no object has this name.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) => {
            Ok(None)
        }
        Err(e) => Err(cannot("read", path, e)),
    }
}

/// Bytes of a file, none of one that is longer than `most`.
fn read_file(medium: &dyn Medium, path: &Path, range: Range<u64>, most: u64) -> std::io::Result<Piece> {
    let file = medium.open(path)?;
    let seen = file.look()?;
    if seen.form == Form::Directory {
        return Err(ErrorKind::IsADirectory.into());
    }
    let size = seen.len;
    if size > most {
        return Ok(Piece { bytes: Bytes::new(), size, modified: seen.modified });
    }
    let (start, end) = (range.start.min(size), range.end.min(size));
    let bytes = file.read_at(start, end.saturating_sub(start))?;
    demand_unchanged(medium, path, &seen)?;
    Ok(Piece { bytes: Bytes::from(bytes), size, modified: seen.modified })
}

/// After the file at `path` was read: a tail that is no longer needed is written again as another one, once it has lost its name, and what was read of it then is
/// gone.
fn demand_unchanged(medium: &dyn Medium, path: &Path, read: &Seen) -> std::io::Result<()> {
    match path.extension().is_some_and(|form| form == "open") && medium.identify(path)? != read.identity() {
        true => Err(ErrorKind::NotFound.into()),
        false => Ok(()),
    }
}

fn walk(medium: &dyn Medium, dir: &Path, prefix: &str, depth: usize, found: &mut Vec<Listed>) -> Result<()> {
    if depth == 0 {
        return Err(Error::new(Kind::Repository, format!("folders below {} are nested too deep", dir.display())));
    }
    for (name, seen) in entries(medium, dir)? {
        if seen.form == Form::Directory {
            walk(medium, &dir.join(&name), &below(prefix, &name), depth - 1, found)?;
        } else if seen.form == Form::File {
            found.push(listed(prefix, &name, &seen));
        }
    }
    Ok(())
}

fn listed(prefix: &str, name: &str, seen: &Seen) -> Listed {
    Listed { name: below(prefix, name), size: seen.len, modified: seen.modified }
}

fn below(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

/// What stands in a directory that may be missing, without hidden files (staging among them) and what vanishes while being looked at.
fn entries(medium: &dyn Medium, dir: &Path) -> Result<Vec<(String, Seen)>> {
    let listing = match medium.list(dir) {
        Ok(listing) => listing,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(cannot("list", dir, e)),
    };
    let mut found = Vec::new();
    for (name, _) in listing {
        let Some(name) = name.to_str().filter(|n| !n.starts_with('.')).map(str::to_owned) else {
            continue;
        };
        let path = dir.join(&name);
        match medium.look(&path) {
            Ok(seen) => found.push((name, seen)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(cannot("look at", &path, e)),
        }
    }
    Ok(found)
}

fn cannot(what: &str, path: &Path, cause: std::io::Error) -> Error {
    durable::failed(&format!("cannot {what}"), path, cause)
}

/// Errors of `disk` speak of files; here they are errors of the repository. But a refusal of the repository may pass and is tried again, and a failed sync
/// must not be: the second one may succeed without having written anything. It keeps its kind.
fn into_repository(error: Error) -> Error {
    if error.class() == Class::Unsynced {
        return error;
    }
    error.recast(Kind::Repository)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::medium::Disk;

    #[test]
    fn a_failed_sync_is_no_refusal_that_may_pass() {
        // A device that cannot be synced stands for a disk that fails.
        let error = durable::sync_found(&Disk, Path::new("/dev/null"), Path::new("/")).unwrap_err();
        assert_eq!(into_repository(error).kind(), Kind::Failed);
        let error = durable::sync_found(&Disk, Path::new("/etc/passwd/none"), Path::new("/")).unwrap_err();
        assert_eq!(into_repository(error).kind(), Kind::Repository);
    }

    #[test]
    fn a_tail_that_lost_its_name_while_it_was_read_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let [tail, other] = ["run.open", "other"].map(|name| folder.path().join(name));
        let unchanged = |path: &Path, read: &Seen| demand_unchanged(&Disk, path, read).map_err(|e| e.kind());
        std::fs::write(&tail, "one").unwrap();
        let read = Disk.look(&tail).unwrap();
        assert_eq!(unchanged(&tail, &read), Ok(()));
        std::fs::rename(&tail, &other).unwrap();
        assert_eq!(unchanged(&tail, &read), Err(ErrorKind::NotFound));
        std::fs::write(&tail, "one").unwrap();
        assert_eq!(unchanged(&tail, &read), Err(ErrorKind::NotFound), "another file under its name");
        // What is no tail is never written again.
        assert_eq!(unchanged(&other, &Disk.look(&tail).unwrap()), Ok(()));
    }

    #[test]
    fn a_bad_sector_is_still_known_as_one() {
        let of = |code| cannot("read", Path::new("/x"), std::io::Error::from_raw_os_error(code));
        let [bad, stale] = [5, 116].map(|code| into_repository(of(code)));
        assert!(bad.is_of_the_disk() && bad.is_transient() && bad.kind() == Kind::Repository, "{bad}");
        assert!(!stale.is_of_the_disk() && stale.is_transient(), "{stale}");
    }
}
