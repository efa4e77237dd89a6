//! A repository in a local directory: one file per object, created under its name by a hard link, every directory above it synced.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::backend::{Answer, Backend, Listed, Piece};
use crate::disk::durable;
use crate::error::{Class, Error, Kind, Result};

/// Deepest tree below a repository's root, so that a symbolic link that leads back up is found out.
const DEPTH: usize = 16;

pub(super) struct LocalBackend {
    root: PathBuf,
}

impl LocalBackend {
    pub(super) fn new(root: PathBuf) -> LocalBackend {
        LocalBackend { root }
    }

    /// Runs blocking file work away from the async tasks.
    fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Path, &Path) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let root = self.root.clone();
        let path = root.join(name);
        let job = tokio::task::spawn_blocking(move || {
            demand_root(&root)?;
            work(&root, &path).map_err(into_repository)
        });
        async move { job.await.map_err(|e| Error::new(Kind::Failed, "a file task died").caused_by(e))? }.boxed()
    }
}

impl Backend for LocalBackend {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        let parts = parts.to_vec();
        self.run(name, move |root, path| {
            let above = path.parent().unwrap_or(root);
            // A folder that vanishes in between (an emptied tail) is a transient error: the caller tries again.
            durable::create_dirs(above)?;
            match durable::create_once(path, &parts, 0o666)? {
                // The directories above may be as new as the object: their own names must reach the disk too.
                true => durable::sync_dirs(above.parent().unwrap_or(root), root).map(|()| Answer::Created),
                false => Ok(Answer::Taken),
            }
        })
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        self.run(name, move |_, path| match read_file(path, range) {
            Ok(piece) => Ok(Some(piece)),
            // A folder, or a file where a folder would have to be: no object has this name.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) => {
                Ok(None)
            }
            Err(e) => Err(cannot("read", path, e)),
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let prefix = prefix.to_owned();
        self.run(&prefix.clone(), move |_, path| {
            let mut found = Vec::new();
            walk(path, &prefix, DEPTH, &mut found)?;
            Ok(found)
        })
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        self.run(prefix, move |_, path| {
            let entries = entries(path)?;
            Ok(entries.into_iter().filter(|(_, meta)| meta.is_dir()).map(|(name, _)| name).collect())
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let tail = name.rsplit_once('/').is_some_and(|(folder, _)| folder.contains("/tail/"));
        self.run(name, move |_, path| {
            durable::remove(path)?;
            if let (true, Some(folder)) = (tail, path.parent()) {
                // Every segment has a tail folder of its own: they would pile up. Not empty, or gone already: leave it.
                let _ = fs::remove_dir(folder);
            }
            Ok(())
        })
    }

    fn settle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.run(name, |root, path| durable::sync_found(path, root))
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        let root = self.root.clone();
        let job = tokio::task::spawn_blocking(move || {
            durable::create_dirs(&root).and_then(|()| durable::sync_above(&root)).map_err(into_repository)
        });
        async move { job.await.map_err(|e| Error::new(Kind::Failed, "a file task died").caused_by(e))? }.boxed()
    }
}

/// Without the root nothing can be known: its disk may not be mounted, and "no such file" would be a lie.
fn demand_root(root: &Path) -> Result<()> {
    let missing = |text: String| {
        Error::new(Kind::Repository, text)
            .hint("Mount the disk that holds the repository, correct the URL, or make a repository with walrecv init.")
    };
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(missing(format!("repository {} is not a directory", root.display()))),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(missing(format!("repository directory {} does not exist", root.display())))
        }
        Err(e) => Err(cannot("open repository", root, e)),
    }
}

fn read_file(path: &Path, range: Option<Range<u64>>) -> std::io::Result<Piece> {
    let mut file = fs::File::open(path)?;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let size = meta.len();
    let range = range.unwrap_or(0..u64::MAX);
    let (start, end) = (range.start.min(size), range.end.min(size));
    let len = end.saturating_sub(start);
    let mut bytes = Vec::with_capacity(len as usize);
    file.seek(SeekFrom::Start(start))?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(Piece { bytes: Bytes::from(bytes), size, modified: meta.modified()? })
}

fn walk(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<Listed>) -> Result<()> {
    if depth == 0 {
        return Err(Error::new(Kind::Repository, format!("folders below {} are nested too deep", dir.display())));
    }
    for (name, meta) in entries(dir)? {
        let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if meta.is_dir() {
            walk(&dir.join(&name), &full, depth - 1, found)?;
        } else if meta.is_file() {
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.push(Listed { name: full, size: meta.len(), modified });
        }
    }
    Ok(())
}

/// What stands in a directory that may be missing, without hidden files (staging among them) and what vanishes while being looked at.
fn entries(dir: &Path) -> Result<Vec<(String, fs::Metadata)>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(cannot("list", dir, e)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|e| cannot("list", dir, e))?;
        let Some(name) = entry.file_name().to_str().filter(|n| !n.starts_with('.')).map(str::to_owned) else {
            continue;
        };
        match fs::metadata(entry.path()) {
            Ok(meta) => found.push((name, meta)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(cannot("look at", &entry.path(), e)),
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
    let mut new = Error::new(Kind::Repository, error.to_string());
    if let Some(advice) = error.advice() {
        new = new.hint(advice);
    }
    if error.is_transient() { new.transient() } else { new }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_sync_is_no_refusal_that_may_pass() {
        // A device that cannot be synced stands for a disk that fails.
        let error = durable::sync_found(Path::new("/dev/null"), Path::new("/")).unwrap_err();
        assert_eq!(into_repository(error).kind(), Kind::Failed);
        let error = durable::sync_found(Path::new("/etc/passwd/none"), Path::new("/")).unwrap_err();
        assert_eq!(into_repository(error).kind(), Kind::Repository);
    }
}
