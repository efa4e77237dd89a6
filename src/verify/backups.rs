//! The backups that there are, and PostgreSQL's own manifests of them.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt};
use sha2::{Digest, Sha256};

use super::bits::Bits;
use super::look::{Look, Trouble};
use crate::archive::lost::Lost;
use crate::error::{Context, Error, Kind, Result};
use crate::seal::content::manifest::{Backup, Manifest, Tombstone};
use crate::seal::content::{BackupId, hex};
use crate::seal::header::{KeyClass, ObjectKind};

/// Manifests read side by side.
const AT_ONCE: usize = 8;

/// The backups that are looked at.
#[derive(Debug, Default)]
pub struct Shelf {
    /// Oldest first; their places are the numbers in [`Bits`].
    pub manifests: Vec<Manifest>,
    numbers: BTreeMap<String, usize>,
    /// Under whose names stands something that does not read as a manifest, or nothing any more.
    pub unread: BTreeSet<String>,
    pub given_up: BTreeSet<String>,
}

impl Shelf {
    pub fn number(&self, id: &str) -> Option<usize> {
        self.numbers.get(id).copied()
    }

    /// Ids of these backups.
    pub fn names(&self, bits: &Bits) -> BTreeSet<String> {
        bits.iter().filter_map(|number| Some(self.manifests.get(number)?.id.to_string())).collect()
    }

    /// All that are looked at, readable or not.
    pub fn ids(&self) -> impl Iterator<Item = String> {
        let all: BTreeSet<String> = self.numbers.keys().chain(&self.unread).cloned().collect();
        all.into_iter()
    }

    fn add(&mut self, mut manifests: Vec<Manifest>) {
        manifests.sort_by(|a, b| a.id.cmp(&b.id));
        self.numbers = manifests.iter().enumerate().map(|(number, m)| (m.id.to_string(), number)).collect();
        self.manifests = manifests;
    }
}

/// Reads every manifest, or the one that was asked for.
pub async fn shelf(look: &Look<'_>) -> Result<Shelf> {
    let archive = look.archive;
    let prefix = format!("{}/backups", archive.names.root());
    let listed = look.patiently(|| archive.repo.list(&prefix)).await.context("cannot list the backups")?;
    let ids = listed.iter().filter_map(|entry| BackupId::parse(entry.name.rsplit('/').next()?).ok());
    let wanted: Vec<BackupId> = ids.filter(|id| look.options.only.as_ref().is_none_or(|only| only == id)).collect();
    if let (Some(only), true) = (&look.options.only, wanted.is_empty()) {
        return Err(unknown(only));
    }
    let mut shelf = Shelf::default();
    let mut manifests = Vec::new();
    let mut reading = stream::iter(wanted.into_iter().map(|id| read(look, id))).buffer_unordered(AT_ONCE);
    while let Some((id, found)) = reading.next().await {
        match found {
            Ok(Backup::Complete(manifest)) => {
                look.count(|checked| checked.manifests += 1);
                manifests.push(*manifest);
            }
            Ok(Backup::GivenUp(tombstone)) if look.options.only.is_some() => return Err(none_any_more(&tombstone)),
            Ok(Backup::GivenUp(_)) => {
                look.count(|checked| checked.others += 1);
                shelf.given_up.insert(id.to_string());
            }
            // Deleted since it was listed.
            Err(Trouble { flaw: super::Flaw::Missing, .. }) if look.options.only.is_some() => return Err(unknown(&id)),
            Err(Trouble { flaw: super::Flaw::Missing, .. }) => {}
            Err(trouble) => {
                let hurts = BTreeSet::from([id.to_string()]);
                shelf.unread.insert(id.to_string());
                look.blame(&archive.names.backup(id.as_str()), "the manifest of this backup", trouble, hurts);
            }
        }
    }
    shelf.add(manifests);
    Ok(shelf)
}

fn unknown(id: &BackupId) -> Error {
    Error::new(Kind::Usage, format!("there is no backup {id}")).hint("`walrecv list` shows the backups")
}

/// The error for a backup that was deleted, or never became one: of that nothing good can be said.
fn none_any_more(tombstone: &Tombstone) -> Error {
    let Tombstone { id, created_at, reason, .. } = tombstone;
    Error::new(Kind::Usage, format!("{id} is no backup: it was given up at {created_at}: {reason}"))
        .hint("`walrecv list` shows the backups")
}

/// Looks once more at what was found complete, when everything else has been looked at. What an expiry has deleted meanwhile is no backup any more, and
/// neither whole nor hurt; a manifest that is gone otherwise is missing. Returns those that are none any more.
pub async fn vanished(look: &Look<'_>, shelf: &mut Shelf) -> Result<BTreeSet<String>> {
    let ids: Vec<BackupId> = shelf.manifests.iter().map(|manifest| manifest.id.clone()).collect();
    let again = |id: BackupId| async move { (standing(look, &id).await, id) };
    let mut reading = stream::iter(ids.into_iter().map(again)).buffer_unordered(AT_ONCE);
    let (mut gone, mut absent) = (BTreeSet::new(), Vec::new());
    while let Some((now, id)) = reading.next().await {
        match now {
            Standing::GivenUp => _ = gone.insert(id.to_string()),
            Standing::Absent => absent.push(id),
            Standing::AsBefore => {}
        }
    }
    drop(reading);
    if !absent.is_empty() {
        // An expiry names what it deletes before it does, and leaves a tombstone before that plan goes.
        let list = look.patiently(|| look.archive.list_plans()).await?;
        for id in absent {
            let deleted = list.plans.iter().any(|stored| stored.plan.deletes(&id));
            if deleted || matches!(standing(look, &id).await, Standing::GivenUp) {
                gone.insert(id.to_string());
                continue;
            }
            let expected = "the manifest of a backup, which was there a moment ago and which no expiry deleted";
            let hurts = BTreeSet::from([id.to_string()]);
            look.blame(&look.archive.names.backup(id.as_str()), expected, Trouble::missing(), hurts);
        }
    }
    shelf.numbers.retain(|id, _| !gone.contains(id));
    match &look.options.only {
        Some(only) if gone.contains(only.as_str()) => Err(unknown(only)),
        _ => Ok(gone),
    }
}

/// What stands under a backup's name by now.
enum Standing {
    GivenUp,
    Absent,
    /// Or it cannot be told.
    AsBefore,
}

async fn standing(look: &Look<'_>, id: &BackupId) -> Standing {
    match look.patient(id.as_str(), || look.archive.backup(id)).await {
        Ok(None) => Standing::Absent,
        Ok(Some(Backup::GivenUp(_))) => Standing::GivenUp,
        _ => Standing::AsBefore,
    }
}

/// Finds backups whose manifest is gone although nobody deleted them: other objects of theirs are there, and something says that they were complete.
pub async fn lost(look: &Look<'_>, shelf: &mut Shelf, present: &BTreeSet<BackupId>) -> Result<()> {
    let known = |id: &&BackupId| {
        let id = id.as_str();
        shelf.number(id).is_some() || shelf.unread.contains(id) || shelf.given_up.contains(id)
    };
    let suspects: BTreeSet<BackupId> = present.iter().filter(|id| !known(id)).cloned().collect();
    let ask = || look.archive.lost(suspects.clone(), &shelf.manifests, &[]);
    // Better one false alarm than silence: where a plan cannot be read, an expiry may have deleted them.
    let (Lost::Known(lost) | Lost::Unclear(lost, _)) = look.patiently(ask).await?;
    for (id, why) in lost {
        let expected = format!("the manifest of a backup: {why}, and no expiry deleted it");
        let hurts = BTreeSet::from([id.to_string()]);
        look.blame(&look.archive.names.backup(id.as_str()), &expected, Trouble::missing(), hurts);
        shelf.unread.insert(id.to_string());
    }
    Ok(())
}

async fn read(look: &Look<'_>, id: BackupId) -> (BackupId, Result<Backup, Trouble>) {
    let name = look.archive.names.backup(id.as_str());
    let (archive, of) = (look.archive.clone(), id.clone());
    let whole_name = name.clone();
    let open =
        move |bytes: bytes::Bytes| archive.open_backup(&of, &bytes).map_err(|error| Trouble::of(&error, &whole_name));
    (id, look.object(&name, KeyClass::Index, open).await)
}

/// PostgreSQL's own manifests: every part, the length, the SHA-256.
pub async fn server_manifests(look: &Look<'_>, shelf: &Shelf) {
    let all = shelf.manifests.iter().map(|manifest| server_manifest(look, manifest));
    stream::iter(all).buffer_unordered(look.options.jobs.max(1)).collect::<Vec<()>>().await;
}

async fn server_manifest(look: &Look<'_>, manifest: &Manifest) {
    let Some(stored) = &manifest.server_manifest else { return };
    let hurts = || BTreeSet::from([manifest.id.to_string()]);
    let (mut len, mut hash, mut whole) = (0, Sha256::new(), true);
    for part in 0..stored.parts {
        let name = look.archive.names.server_manifest(manifest.id.as_str(), part);
        match look.index(&name, ObjectKind::ServerManifest, part).await {
            Ok(plain) => {
                len += plain.len() as u64;
                hash.update(&plain);
            }
            Err(trouble) => {
                whole = false;
                look.blame(&name, "a part of PostgreSQL's backup_manifest", trouble, hurts());
            }
        }
    }
    let sha256 = hex(&hash.finalize());
    if whole && (len, sha256.as_str()) != (stored.len, stored.sha256.as_str()) {
        // Parts do not say which they are: any of them may be another one.
        let name = format!("{}/manifests/{}", look.archive.names.root(), manifest.id);
        let expected = format!("parts of {} bytes together with SHA-256 {}", stored.len, stored.sha256);
        look.blame(&name, &expected, Trouble::damaged(format!("{len} bytes with SHA-256 {sha256}")), hurts());
    }
    look.count(|checked| checked.server_manifests += u64::from(whole));
}
