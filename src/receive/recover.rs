//! After a crash: what a spool has beyond the repository goes there, as it is sealed, before any server is asked for anything.
//!
//! A file is deleted only once the repository has all of its bytes. One that somebody writes to is locked, and none of this run's business.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::object::{Place as Span, object_bytes};
use super::observe::{Observer, ReceiveEvent};
use super::put::{demand_whole, own_claims};
use super::run::Run;
use super::spool::list;
use super::stream::asked_to_stop;
use super::{GIVE_UP, Place};
use crate::archive::{Archive, refused};
use crate::disk::durable;
use crate::disk::medium::{Form, Ground, Handle};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, SegmentName};
use crate::repo::names::{WalObject, parse_wal_object};
use crate::repo::{ClusterNames, Found, Put};
use crate::seal::header::{Header, ObjectKind};
use crate::seal::opener::{OpenFailed, read_header};
use crate::seal::tail::tail_extent;

/// What a crash leaves of a file that never got its name is left over for sure when it is as old as this.
const STAGING_AGE: std::time::Duration = std::time::Duration::from_secs(60);

/// No file of a spool is larger, even where every frame holds one short record of 16 MiB of them, and zeros stand behind. What is larger is somebody else's,
/// and is not read into memory.
const LARGEST: u64 = 256 << 20;

/// A file of the spool, by its name.
struct Left {
    names: ClusterNames,
    segment: SegmentName,
    run: String,
    path: PathBuf,
}

impl Run {
    /// Empties the spool into the repository, however long it is away; `false` when asked to stop.
    pub(super) async fn recover_spool(&mut self) -> Result<bool> {
        let Some(root) = self.options.spool_dir.clone() else { return Ok(true) };
        loop {
            let waited = tokio::select! {
                recovered = recover(&self.place, &root, &self.observer) => match recovered {
                    Ok(()) => {
                        self.backoff.reset();
                        return Ok(true);
                    }
                    Err(error) if error.is_transient() => error,
                    Err(error) => return Err(error),
                },
                () = asked_to_stop(&mut self.stop) => return Ok(false),
            };
            self.observer.warn(format!("the spool cannot be put into the repository yet: {waited}"));
            tokio::select! {
                () = tokio::time::sleep(self.backoff.next_delay()) => {}
                () = asked_to_stop(&mut self.stop) => return Ok(false),
            }
        }
    }
}

/// Puts what the spool of this cluster has beyond the repository there, and deletes the files that are not needed any more. A file that is not understood, or
/// belongs to something else, is left alone with a warning. An error that may pass means that the rest of the files were not looked at.
pub async fn recover(place: &Place, root: &Path, observer: &Observer) -> Result<()> {
    let (medium, folder) = (place.repo.medium().clone(), root.join(&place.cluster));
    let cluster = place.cluster.clone();
    let found = place.repo.lane().run(move || find(&medium, &folder, &cluster)).await?;
    let (left, strange) = match found {
        Ok(found) => found,
        Err(error) => {
            observer.warn(format!("the spool cannot be looked through: {error}"));
            return Ok(());
        }
    };
    for path in strange {
        observer.warn(format!("{} is no file of a spool: it is left alone", path.display()));
    }
    if left.is_empty() {
        return Ok(());
    }
    let known = Archive::incarnations(&place.repo, &place.cluster).await?;
    for file in left {
        if !known.contains(&file.names) {
            let (path, root) = (file.path.display(), file.names.root());
            observer
                .warn(format!("{path} belongs to {root}, of which this repository knows nothing: it is left alone"));
            continue;
        }
        let archive = Archive { repo: place.repo.clone(), names: file.names.clone(), keys: place.reader.clone() };
        match settle(&archive, &file, observer).await {
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => observer.warn(format!("{} is left in the spool: {error}", file.path.display())),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// The spool's files of a cluster, and what else is there.
fn find(medium: &Ground, folder: &Path, cluster: &str) -> Result<(Vec<Left>, Vec<PathBuf>)> {
    durable::clean_staging(&**medium, folder, STAGING_AGE)?;
    let (mut left, mut strange) = (Vec::new(), Vec::new());
    for (incarnation, form) in list(medium, folder)? {
        let folder = folder.join(&incarnation);
        match ClusterNames::parse_incarnation(cluster, &incarnation).filter(|_| form == Form::Directory) {
            Some(names) => find_below(medium, &folder, &names, "tail", &mut left, &mut strange)?,
            None => strange.push(folder),
        }
    }
    Ok((left, strange))
}

/// Names below an incarnation are those below `tail/` in a repository.
fn find_below(
    medium: &Ground,
    folder: &Path,
    names: &ClusterNames,
    above: &str,
    left: &mut Vec<Left>,
    strange: &mut Vec<PathBuf>,
) -> Result<()> {
    for (name, form) in list(medium, folder)? {
        let (path, relative) = (folder.join(&name), format!("{above}/{name}"));
        match (form, parse_wal_object(&relative, names.segment_size)) {
            (Form::Directory, _) if relative.split('/').count() < 4 => {
                find_below(medium, &path, names, &relative, left, strange)?;
            }
            (Form::File, Some(WalObject::TailOpen { segment, run })) => {
                left.push(Left { names: names.clone(), segment, run, path });
            }
            (Form::File, _) if durable::is_staging(&name) => {}
            _ => strange.push(path),
        }
    }
    Ok(())
}

/// The file and its bytes, locked; `None` where somebody writes to it, or it is gone.
fn read(medium: &Ground, path: &Path) -> Result<Option<(Box<dyn Handle>, Bytes)>> {
    let failed = |e| durable::failed("cannot read", path, e);
    let file = match medium.open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    // A file system without locks: nobody can be asked.
    if let Ok(false) = file.try_lock() {
        return Ok(None);
    }
    let len = file.look().map_err(failed)?.len;
    if len > LARGEST {
        let text = format!("it has {len} bytes, expected at most {LARGEST}");
        return Err(Error::new(Kind::Corrupt, text));
    }
    let bytes = file.read_at(0, len).map_err(failed)?;
    Ok(Some((file, bytes.into())))
}

/// Sees to it that the repository has all that is valid in the file, and deletes it.
async fn settle(archive: &Archive, file: &Left, observer: &Observer) -> Result<()> {
    let (medium, lane) = (archive.repo.medium().clone(), archive.repo.lane());
    let (path, ground) = (file.path.clone(), medium.clone());
    let Some((lock, bytes)) = lane.clone().run(move || read(&ground, &path)).await?? else { return Ok(()) };
    if !bytes.iter().all(|byte| *byte == 0) {
        put(archive, file, &bytes, observer).await?;
    }
    let path = file.path.clone();
    lane.run(move || {
        durable::remove(&*medium, &path)?;
        // The segment's and the timeline's folder, where nothing else is in them.
        for folder in path.ancestors().skip(1).take(2) {
            let _ = medium.remove_dir(folder);
        }
        drop(lock);
        Ok(())
    })
    .await?
}

/// Puts the valid bytes, unless the repository has them.
async fn put(archive: &Archive, file: &Left, bytes: &Bytes, observer: &Observer) -> Result<()> {
    let name = archive.names.tail_open(file.segment, &file.run);
    let (header, _) = read_header(bytes).map_err(|problem| unreadable(&problem))?;
    demand_own(archive, file.segment, &header)?;
    let start = header.claims.start;
    let claims = archive.claims(ObjectKind::Tail, file.segment.timeline, start);
    let extent = tail_extent(bytes, &claims, &*archive.keys).map_err(|problem| refused("it", problem))?;
    let end = start + extent.plain;
    if extent.plain > object_bytes(archive.names.segment_size) {
        return Err(Error::new(Kind::Corrupt, format!("it holds {} bytes of WAL", extent.plain)));
    }
    if extent.plain == 0 {
        return Ok(());
    }
    if archive.end_in(file.segment).await? >= end {
        return demand_sound(archive, file.segment, (start, end)).await.map_err(unproven);
    }
    let judge = |head: &[u8]| match read_header(head) {
        Ok((found, _)) if found.salt == header.salt => Found::Ours,
        _ => Found::Different,
    };
    let valid = bytes.slice(..extent.sealed);
    let put = archive.repo.put_once(&name, std::slice::from_ref(&valid), &judge, GIVE_UP).await.map_err(last_copy)?;
    if put != Put::Created && archive.repo.get(&name).await.map_err(unproven)?.is_none_or(|stored| stored != valid) {
        return Err(last_copy(Error::new(Kind::Corrupt, format!("{name} is stored already, and is damaged"))));
    }
    observer.tell(ReceiveEvent::Recovered { segment: file.segment, upto: end });
    Ok(())
}

/// How far a segment is stored was measured in its tails, and taken from the names of its objects: those must be whole too.
async fn demand_sound(archive: &Archive, segment: SegmentName, (start, end): (Lsn, Lsn)) -> Result<()> {
    let mut at = start;
    while at < end {
        let span = Span::of(at, segment.timeline, segment.size);
        let name = archive.names.segment(span.segment, span.part);
        let Some(object) = archive.repo.get(&name).await? else { break };
        let claims = archive.claims(ObjectKind::Segment, segment.timeline, span.start);
        demand_whole(&object, &name, &claims, &*archive.keys)?;
        at = span.end;
    }
    let name = archive.names.partial(segment);
    if at < end
        && let Some(object) = archive.repo.get(&name).await?
    {
        let claims = archive.claims(ObjectKind::Partial, segment.timeline, start);
        demand_whole(&object, &name, &own_claims(&object, &claims), &*archive.keys)?;
    }
    Ok(())
}

/// What stands in the repository for the file is damaged, or cannot be read: the file stays. The WAL is there by its name, so nothing waits for a disk or a store
/// that may never give it back: whoever waited here would never come to a server.
fn unproven(error: Error) -> Error {
    if !error.is_transient() {
        return last_copy(error);
    }
    let text = format!(
        "what is stored of it cannot be read ({error}), and this may be the last good copy: the next start looks again"
    );
    Error::new(Kind::Repository, text)
}

/// What stands in the repository for the file is damaged: the file stays.
fn last_copy(error: Error) -> Error {
    if !matches!(error.kind(), Kind::Corrupt | Kind::Diverged) {
        return error;
    }
    let text = format!(
        "what is stored of it is damaged ({error}), and this may be the last good copy: move the damaged object out of the repository, keep it, and start the \
         receiver again, which stores this one"
    );
    Error::new(Kind::Corrupt, text)
}

fn demand_own(archive: &Archive, segment: SegmentName, header: &Header) -> Result<()> {
    let found = header.claims;
    if found.repository != archive.keys.repository() {
        return Err(Error::new(Kind::Diverged, "it belongs to another repository"));
    }
    let expected = archive.claims(ObjectKind::Tail, segment.timeline, found.start);
    if found != expected || found.start < segment.start() || found.start >= segment.end() {
        return Err(Error::new(Kind::Diverged, "it is not what its name says"));
    }
    Ok(())
}

fn unreadable(problem: &OpenFailed) -> Error {
    Error::new(Kind::Corrupt, format!("its header cannot be read: {problem}"))
}
