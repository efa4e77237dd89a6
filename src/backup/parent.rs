//! Which earlier backup a new one builds on: by blocks that the server says have changed, by the page hashes that are kept here, or by both.
//!
//! Everything that a backup reuses is of one complete backup, which its intent names (and of interrupted ones, which are [`orphans`](super::orphans)): the
//! files that its maps list, its maps, its page hashes.
//! Where anything speaks against it, everything is stored.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::runtime::Handle;

use super::BackupOptions;
use super::begin::Local;
use super::cache::{Cache, Shelf};
use super::diff::Parent;
use super::earlier::Earlier;
use super::held::Held;
use super::incremental::{self, Wanted};
use super::layers;
use super::parent_files::ParentFiles;
use super::past::Past;
use super::survivors::{self, Due, Space, Survivors};
use super::take::blocking;
use crate::archive::Archive;
use crate::archive::verdicts::Verdicts;
use crate::disk::scratch::Scratch;
use crate::error::{Kind, Result};
use crate::net::Connection;
use crate::pg::MajorVersion;
use crate::seal::content::BackupId;
use crate::seal::content::event::Spoiled;
use crate::seal::content::manifest::{Backup, Manifest};

/// What the repository tells, whatever the server will say: read while it is being connected to.
#[derive(Default)]
pub struct Survey<'a> {
    /// What checks have found: what is missing of a backup would be missing in every one after it.
    verdicts: Verdicts,
    /// Nothing is built on what needs any of it.
    spoiled: Arc<Spoiled>,
    /// Complete ones; `None`: none is to be built on.
    earlier: Option<Earlier<'a>>,
    files: Option<FilesOf>,
}

/// A backup and its files, or why it cannot be built on.
type FilesOf = (BackupId, Result<ParentFiles, String>);

/// What there is to build on, before the server is asked and anyone is told.
pub struct Choice {
    /// It is time to store survivors anew: the transfer is full.
    due: Option<Due>,
    /// For an incremental transfer: the newest complete backup, or why there is none.
    pub newest: Result<Manifest, String>,
    /// The newest complete backup whose page hashes are here, or why there is none.
    pub hashed: Result<Hashed, String>,
    /// Nothing is built on what needs any of it.
    spoiled: Arc<Spoiled>,
    /// Those of `newest`; where there is none, perhaps those of `hashed`.
    files: Option<FilesOf>,
}

/// A complete backup whose page hashes are here.
pub struct Hashed {
    pub manifest: Box<Manifest>,
    pub cache: Cache,
}

/// The backup that is built on, announced or about to be.
pub struct Reuse {
    pub id: BackupId,
    /// Read already, or not.
    pub files: Option<ParentFiles>,
    pub cache: Option<Cache>,
    due: Option<Due>,
    spoiled: Arc<Spoiled>,
}

/// A parent that may be used: nobody deletes it any more.
pub struct Chosen {
    pub manifest: Manifest,
    /// What files are compared with.
    pub parent: Parent,
}

/// Reads what [`choose`] asks of the repository, and the files of the newest backup, which nearly always is the parent.
///
/// Errors: a repository that does not answer.
pub async fn survey<'a>(archive: &'a Archive, local: &Local, options: &BackupOptions) -> Result<Survey<'a>> {
    if options.full {
        return Ok(Survey::default());
    }
    let newest = async {
        let mut earlier = Earlier::list(archive).await?;
        let newest = earlier.next().await?;
        Ok((earlier, newest))
    };
    let (verdicts, (mut earlier, newest)) = tokio::try_join!(archive.verdicts(), newest)?;
    let (spoiled, mut read) = (Arc::new(verdicts.spoiled()), None);
    if let Some(newest) = newest {
        read = Some((newest.id.clone(), files(archive, &newest, &spoiled, &local.scratch).await?));
        earlier.put_back(newest);
    }
    Ok(Survey { verdicts, spoiled, earlier: Some(earlier), files: read })
}

/// Looks for them. `past` is that of the server, or why the transfer shall be full, whatever it can be compared with.
///
/// Errors: a repository or a server that does not answer. Manifests and page hashes that are damaged are no parent.
pub async fn choose(
    archive: &Archive,
    connection: &mut Connection,
    local: &Local,
    options: &BackupOptions,
    past: Result<Past<'_>, String>,
    survey: Survey<'_>,
) -> Result<Choice> {
    let Survey { verdicts, spoiled, earlier, files: mut read } = survey;
    let Some(earlier) = earlier.filter(|_| !options.full) else {
        let asked = || "a full transfer was asked for".to_owned();
        return Ok(Choice { due: None, newest: Err(asked()), hashed: Err(asked()), spoiled, files: None });
    };
    let fitness = Fitness::ask(verdicts, connection, local).await?;
    let newest = match past {
        Err(why) => Err(why),
        Ok(_) if connection.version() < MajorVersion::V17 => Err(incremental::too_old(connection.version())),
        Ok(past) => newest(archive, connection, past, &fitness, earlier).await?,
    };
    let hashed = match &local.shelf {
        Some(shelf) => hashed(archive, shelf, &fitness).await?,
        None => Err("no state_dir is given, which keeps page hashes".to_owned()),
    };
    // What the next backup would build on tells; where that is the server's increment, all pages have to be seen once.
    let parent = newest.as_ref().ok().or_else(|| hashed.as_ref().ok().map(|hashed| &*hashed.manifest));
    let space = |p: &Manifest| {
        let space = Space { started: p.started_at, survivors: p.survivors_at, sizes: &p.sizes };
        survivors::due(space, Timestamp::now(), options.full_every)
    };
    let due = parent.and_then(space);
    let newest = match &due {
        Some(due) => newest.and_then(|_| Err(due.why.clone())),
        None => newest,
    };
    if let Ok(parent) = &newest
        && read.as_ref().is_none_or(|(id, _)| *id != parent.id)
    {
        read = Some((parent.id.clone(), files(archive, parent, &spoiled, &local.scratch).await?));
    }
    Ok(Choice { due, newest, hashed, spoiled, files: read })
}

/// The newest complete backup in the server's past, or why the server shall not be asked for what has changed since.
async fn newest(
    archive: &Archive,
    connection: &mut Connection,
    mut past: Past<'_>,
    fitness: &Fitness,
    mut earlier: Earlier<'_>,
) -> Result<Result<Manifest, String>> {
    let Some(parent) = past.newest(archive, connection, &mut earlier).await? else {
        let none = match earlier.any() {
            true => "no earlier backup lies in the server's past",
            false => "there is no earlier backup to build on",
        };
        return Ok(Err(none.to_owned()));
    };
    if let Err(why) = fitness.of(&parent) {
        return Ok(Err(why));
    }
    let led = past.leads_from(archive, &parent).await?;
    Ok(led.and_then(|()| unseen(parent)))
}

/// What speaks against a parent.
struct Fitness {
    /// What checks have found: what is missing of a backup would be missing in every one after it.
    verdicts: Verdicts,
    checksums: bool,
    identity: Option<String>,
}

impl Fitness {
    async fn ask(verdicts: Verdicts, connection: &mut Connection, local: &Local) -> Result<Fitness> {
        let checksums = connection.show("data_checksums").await? == "on";
        Ok(Fitness { verdicts, checksums, identity: local.identity.clone() })
    }

    /// What is known without its maps; a parent that no check has looked at may still need what is known to be [`Spoiled`].
    fn of(&self, parent: &Manifest) -> Result<(), String> {
        match self.verdicts.is_hurt(parent.id.as_str()) {
            true => Err(format!("`walrecv verify` found backup {} hurt", parent.id)),
            false => self.alone(parent),
        }
    }

    /// What the manifest tells.
    fn alone(&self, parent: &Manifest) -> Result<(), String> {
        // pg_checksums rewrites every page, and no WAL tells of it: the server's summaries do not know.
        if (parent.control.data_checksum_version != 0) != self.checksums {
            let said = if self.checksums { "on" } else { "off" };
            return Err(format!("data_checksums is {said}, and was not at backup {}", parent.id));
        }
        // Whoever gave up the old private key could not read what is reused.
        if parent.identity != self.identity {
            let name = |identity: &Option<String>| identity.clone().unwrap_or_else(|| "no identity".to_owned());
            let (now, then) = (name(&self.identity), name(&parent.identity));
            return Err(format!("contents are sealed for {now} now, those of backup {} for {then}", parent.id));
        }
        Ok(())
    }
}

/// Whether what the server does not send is the parent's, whatever it is. Pages with a wrong checksum have to be seen each time: a repair beside the server
/// leaves no WAL, and each backup names those that it has. Compared by their hashes they are pages like all others.
fn unseen(parent: Manifest) -> Result<Manifest, String> {
    match parent.bad_page_count {
        0 => Ok(parent),
        bad => Err(format!("backup {} has {bad} pages with a wrong checksum", parent.id)),
    }
}

/// The newest complete backup whose page hashes are on the shelf. What stands there of backups that never became complete is removed.
async fn hashed(archive: &Archive, shelf: &Shelf, fitness: &Fitness) -> Result<Result<Hashed, String>> {
    let looked = shelf.clone();
    let held = blocking(move || Ok(looked.held())).await?;
    let mut why = "no page hashes of an earlier backup are kept here".to_owned();
    for id in held {
        match archive.backup(&id).await {
            Ok(Some(Backup::Complete(manifest))) => {
                if let Err(why) = fitness.of(&manifest) {
                    return Ok(Err(why));
                }
                let (shelf, of) = (shelf.clone(), id.clone());
                match blocking(move || Ok(shelf.open(&of))).await? {
                    Some(cache) => return Ok(Ok(Hashed { manifest, cache })),
                    None => why = format!("the page hashes of backup {id} are damaged, or were kept with another key"),
                }
            }
            Ok(_) => shelf.forget(&id),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Key) => {
                tracing::warn!(%error, "backup {id} cannot be reused");
                why = format!("the manifest of backup {id} cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Err(why))
}

impl Choice {
    /// The parent of an incremental transfer with its files, or why there can be none.
    pub fn wanted(&self) -> Wanted<'_> {
        let parent = self.newest.as_ref().map_err(String::clone)?;
        match &self.files {
            Some((id, Ok(files))) if *id == parent.id => Ok((parent, files)),
            Some((id, Err(why))) if *id == parent.id => Err(why.clone()),
            _ => Err(format!("the files of backup {} were not read", parent.id)),
        }
    }

    /// What is built on, now that the server has said how it sends, and what the manifest says of that: `why_full` is the server's side of it.
    pub fn settle(self, why_full: Option<String>) -> (Option<Reuse>, Option<String>) {
        let (newest, spoiled) = (self.newest.ok().map(|manifest| manifest.id), self.spoiled);
        let mut read = self.files;
        let mut files_of = |id: &BackupId| read.take_if(|(of, _)| of == id).and_then(|(_, files)| files.ok());
        let Some(why) = why_full else {
            // Hashes of any other backup say nothing of what is not sent.
            let cache = self.hashed.ok().filter(|hashed| Some(&hashed.manifest.id) == newest.as_ref());
            let cache = cache.map(|hashed| hashed.cache);
            let reuse = newest.map(|id| Reuse { files: files_of(&id), id, cache, due: None, spoiled });
            return (reuse, None);
        };
        match self.hashed {
            Ok(Hashed { manifest, cache }) => {
                let files = files_of(&manifest.id);
                (Some(Reuse { id: manifest.id, files, cache: Some(cache), due: self.due, spoiled }), Some(why))
            }
            Err(nothing) => (None, Some(everything(&why, &nothing))),
        }
    }
}

/// Why the server sent everything, and why everything was stored.
pub fn everything(sent: &str, stored: &str) -> String {
    if sent == stored { sent.to_owned() } else { format!("{sent}; all of it is stored: {stored}") }
}

/// The look after the announcement: only now is it known that nobody deletes what the parent needs. The inner error is why it cannot be built on.
pub async fn look(archive: &Archive, reuse: Reuse, scratch: &Arc<Scratch>) -> Result<Result<Chosen, String>> {
    let Reuse { id, files, cache, due, spoiled } = reuse;
    let manifest = match announced(archive, &id).await? {
        Ok(manifest) => manifest,
        Err(why) => return Ok(Err(why)),
    };
    let files = match files {
        Some(files) => Ok(files),
        None => self::files(archive, &manifest, &spoiled, scratch).await?,
    };
    let files = match files {
        Ok(files) => files,
        Err(why) => return Ok(Err(why)),
    };
    if let Err(why) = stored(archive, &id, &files.held).await? {
        return Ok(Err(why));
    }
    let (files, survivors) = match due {
        Some(due) => find(archive, &manifest, files, due).await?,
        None => (files, None),
    };
    Ok(Ok(Chosen { manifest, parent: Parent { files, cache, survivors } }))
}

impl Reuse {
    /// What files are compared with, where all of that is here, and what is left to [`Pledge::look`].
    pub fn ready(self) -> Result<(Parent, Pledge), Box<Reuse>> {
        match self {
            Reuse { id, files: Some(mut files), cache, due: None, .. } => {
                let held = std::mem::take(&mut files.held);
                Ok((Parent { files, cache, survivors: None }, Pledge { id, held }))
            }
            other => Err(Box::new(other)),
        }
    }
}

/// A parent that is compared with already, and of which it is not known yet whether it may be built on.
pub struct Pledge {
    id: BackupId,
    held: Held,
}

impl Pledge {
    /// As [`look`]: its manifest, or why it cannot be built on.
    pub async fn look(&self, archive: &Archive) -> Result<Result<Manifest, String>> {
        let manifest = match announced(archive, &self.id).await? {
            Ok(manifest) => manifest,
            Err(why) => return Ok(Err(why)),
        };
        Ok(stored(archive, &self.id, &self.held).await?.map(|()| manifest))
    }
}

/// The manifest of a backup that an intent names by now, or why it is not to be built on.
async fn announced(archive: &Archive, id: &BackupId) -> Result<Result<Manifest, String>> {
    let parent = archive.look_before_reuse(Some(id)).await?.parent;
    Ok(parent.inspect_err(|why| tracing::warn!("backup {id} is not built on: {why}")))
}

/// Whether all packs of a backup are there. What was deleted beside walrecv, or never reached the disk, would be missing in every backup from here on.
async fn stored(archive: &Archive, id: &BackupId, held: &Held) -> Result<Result<(), String>> {
    let Some(lost) = held.lost(archive).await? else { return Ok(Ok(())) };
    tracing::error!("backup {id} cannot be built on, nor restored: {lost}; `walrecv verify` tells what else is hurt");
    Ok(Err(format!("of what backup {id} needs, {lost}")))
}

/// What of the parent is stored anew.
async fn find(
    archive: &Archive,
    parent: &Manifest,
    files: ParentFiles,
    due: Due,
) -> Result<(ParentFiles, Option<Survivors>)> {
    tracing::info!("what lives in nearly empty packs is stored anew: {}", due.why);
    let (maps, read) = (parent.maps.clone(), layers::from_repository(archive, &Handle::current()));
    blocking(move || {
        let survivors = Survivors::find(&maps, &read, &files.held, due.shreds)?;
        Ok((files, Some(survivors)))
    })
    .await
}

/// Reads the parent's maps; the inner error is why it cannot be built on.
pub async fn files(
    archive: &Archive,
    parent: &Manifest,
    spoiled: &Spoiled,
    scratch: &Arc<Scratch>,
) -> Result<Result<ParentFiles, String>> {
    let found = |what: &str| Ok(Err(format!("`walrecv verify` found {what}, which backup {} needs", parent.id)));
    if let Some(map) = parent.maps.iter().find(|map| spoiled.maps.contains(map.backup.as_str())) {
        return found(&format!("a map of backup {} hurt", map.backup));
    }
    let (maps, scratch) = (parent.maps.clone(), scratch.clone());
    let read = layers::from_repository(archive, &Handle::current());
    match blocking(move || ParentFiles::read(&maps, &read, &scratch)).await {
        Err(error) if error.kind() == Kind::Corrupt => {
            tracing::error!("backup {} cannot be built on: {error}", parent.id);
            Ok(Err(format!("backup {} cannot be built on: {error}", parent.id)))
        }
        Ok(files) => match files.held.find(|backup, number| spoiled.has_pack(backup.as_str(), number)) {
            Some(pack) => found(&format!("{pack} hurt")),
            None => Ok(Ok(files)),
        },
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::orphans::tests::manifest_of;
    use super::*;

    #[test]
    fn what_only_another_key_opens_is_no_parent() {
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let at = |name: Option<&str>| Manifest { identity: name.map(str::to_owned), ..manifest_of(&id) };
        let fit = |now: Option<&str>, then: Option<&str>| {
            let identity = now.map(str::to_owned);
            Fitness { verdicts: Verdicts::default(), checksums: true, identity }.alone(&at(then))
        };
        assert_eq!((fit(None, None), fit(Some("a1"), Some("a1"))), (Ok(()), Ok(())));
        for (now, then) in [(Some("b2"), Some("a1")), (Some("b2"), None), (None, Some("a1"))] {
            let why = fit(now, then).unwrap_err();
            assert!(why.contains(now.unwrap_or("no identity")) && why.contains(then.unwrap_or("no identity")), "{why}");
        }
    }
}
