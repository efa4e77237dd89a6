//! One look at everything that an expiry decides by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures::stream::{self, StreamExt};

use super::plan::{Announced, Part, Standing, View};
use crate::archive::Archive;
use crate::archive::backups::by_position;
use crate::error::{Context, Error, Kind, Result};
use crate::repo::names::parse_backup_part;
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Backup, Manifest};

/// Manifests read at the same time.
const AT_ONCE: usize = 8;
/// Looks, in the order that makes the outcome safe although nothing stands still:
///
/// 1. plans: what others delete is named before it goes;
/// 2. what backups left, and only then intents: who stores a pack has an intent by then;
/// 3. then `backups/`, until a listing shows no new name: a backup that commits while its parent is deleted is not missed between the two;
/// 4. of what has left objects and no name there: whether it was complete.
///
/// A plan that cannot be read is an error: it may speak of anything.
pub async fn look(archive: &Archive) -> Result<View> {
    let mut list = archive.list_plans().await?;
    if let Some((name, error)) = list.unreadable.pop() {
        return Err(error.context(format!("an unfinished plan cannot be read ({name})")).hint(
            "put it back from a copy of the repository, or delete that object once no expiry runs, and run this again",
        ));
    }
    let parts = parts(archive).await?;
    let intents = intents(archive).await?;
    let backups = standings(archive).await?;
    let mut view = View { backups, intents, parts, plans: list.plans, ..View::default() };
    let without: BTreeSet<BackupId> = view.ids().into_iter().filter(|id| view.has_nothing(id)).cloned().collect();
    view.lost = archive.lost(without, view.complete(), &[]).await?.known()?;
    Ok(view)
}

/// Finds out whether anything can be restored from the backups that stay, the newest first, until that is so of one: by what checks have found, and by whether
/// its own WAL is stored.
pub async fn judge(archive: &Archive, view: &mut View, goes: &(dyn Fn(&BackupId) -> bool + Sync)) -> Result<()> {
    let planned = |id: &BackupId| view.plans.iter().any(|stored| stored.plan.deletes(id));
    let mut stay: Vec<Manifest> = view.complete().filter(|m| !goes(&m.id) && !planned(&m.id)).cloned().collect();
    stay.sort_by(by_position);
    let verdicts = archive.verdicts().await?;
    // Where every backup lacks some, that is what there is.
    let one_has_all = view.complete().any(|manifest| manifest.absent_tablespaces.is_empty());
    for manifest in stay.into_iter().rev() {
        let why = match verdicts.is_hurt(manifest.id.as_str()) {
            true => Some("`walrecv verify` found it hurt, and none of every byte has found it whole since".to_owned()),
            false if one_has_all && !manifest.absent_tablespaces.is_empty() => {
                Some("the server did not find the files of a tablespace when it was taken".to_owned())
            }
            false => archive.lacks_wal(&manifest).await?,
        };
        match why {
            Some(why) => _ = view.unfit.insert(manifest.id, why),
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Everything below `packs/`, `maps/`, `manifests/` and `alive/`, and the intents, by backup. Other names are not ours to judge.
async fn parts(archive: &Archive) -> Result<BTreeMap<BackupId, Vec<Part>>> {
    let root = archive.names.root();
    let mut parts: BTreeMap<BackupId, Vec<Part>> = BTreeMap::new();
    for folder in ["packs", "maps", "manifests", "alive", "intents"] {
        let listed = archive.repo.list(&format!("{root}/{folder}")).await.context("cannot list what backups left")?;
        for entry in listed {
            let relative = entry.name.strip_prefix(&root).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
            let Some((backup, what)) = parse_backup_part(relative) else { continue };
            let Ok(id) = BackupId::parse(backup) else { continue };
            let part = Part { what, bytes: entry.size, modified: entry.modified, name: entry.name };
            parts.entry(id).or_default().push(part);
        }
    }
    Ok(parts)
}

async fn intents(archive: &Archive) -> Result<BTreeMap<BackupId, Announced>> {
    let list = archive.list_intents().await?;
    let mut intents = BTreeMap::new();
    for stored in list.intents {
        // A name that is none may be of a later version: what it stands for is not known.
        let reuses = stored.intent.reuses.iter().map(|text| BackupId::parse(text).ok()).collect();
        intents.insert(stored.intent.id, Announced { modified: stored.modified, reuses });
    }
    for dark in list.unreadable {
        tracing::warn!("intent {} cannot be read: {}", dark.id, dark.error);
        intents.insert(dark.id, Announced { modified: dark.modified, reuses: None });
    }
    Ok(intents)
}

/// What stands under the names of backups. A listing is no snapshot: it is repeated until it shows nothing new, and what was complete once stays so.
async fn standings(archive: &Archive) -> Result<BTreeMap<BackupId, Standing>> {
    let prefix = format!("{}/backups", archive.names.root());
    let mut known: BTreeMap<BackupId, Backup> = BTreeMap::new();
    let mut dark: BTreeMap<BackupId, Error> = BTreeMap::new();
    loop {
        let listed = archive.repo.list(&prefix).await.context("cannot list the backups")?;
        let mut times = BTreeMap::new();
        for entry in listed {
            let last = entry.name.rsplit('/').next().unwrap_or_default();
            if let Ok(id) = BackupId::parse(last)
                && archive.names.backup(id.as_str()) == entry.name
            {
                times.insert(id, entry.modified);
            }
        }
        let new: Vec<BackupId> =
            times.keys().filter(|id| !known.contains_key(*id) && !dark.contains_key(*id)).cloned().collect();
        if new.is_empty() {
            return Ok(settled(known, dark, &times));
        }
        let read = |id: BackupId| async move { (archive.backup(&id).await, id) };
        let mut reading = stream::iter(new.into_iter().map(read)).buffer_unordered(AT_ONCE);
        while let Some((found, id)) = reading.next().await {
            match found {
                Ok(Some(found)) => _ = known.insert(id, found),
                // Deleted since it was listed: the next listing tells what has become of it.
                Ok(None) => {}
                // A bad sector: what no disk gives back is as good as damaged, and says nothing of the rest.
                Err(error) if error.is_of_the_disk() => _ = dark.insert(id, error.recast(Kind::Corrupt)),
                // The store itself: not a word about the object.
                Err(error) if error.is_transient() || error.kind() == Kind::Repository => return Err(error),
                Err(error) => _ = dark.insert(id, error),
            }
        }
    }
}

/// `times` are those of the last listing: what was read is not younger, so a tombstone never gets the time of the manifest before it.
fn settled(
    known: BTreeMap<BackupId, Backup>,
    dark: BTreeMap<BackupId, Error>,
    times: &BTreeMap<BackupId, SystemTime>,
) -> BTreeMap<BackupId, Standing> {
    let mut standings = BTreeMap::new();
    for (id, found) in known {
        let standing = match (found, times.get(&id)) {
            (Backup::Complete(manifest), _) => Standing::Complete(manifest),
            (Backup::GivenUp(_), Some(since)) => Standing::GivenUp(*since),
            // Swept since.
            (Backup::GivenUp(_), None) => continue,
        };
        standings.insert(id, standing);
    }
    standings.extend(dark.into_iter().map(|(id, e)| (id, Standing::Dark(e.kind(), e.to_string()))));
    standings
}
