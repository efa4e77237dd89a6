//! Runs of this `state_dir` that ended without a backup: they are given up for good, and what they stored may be used by the next one.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::BackupOptions;
use super::completed::Completed;
use super::earlier::Earlier;
use super::finish::made_by;
use super::state::{host, state_id};
use super::take::blocking;
use crate::archive::Archive;
use crate::error::{Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::intent::Intent;
use crate::seal::content::manifest::{Backup, Tombstone};
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;

/// The dead runs whose packs the next backup may use, once it has announced that it does: those of this `state_dir`, whose lock the caller holds, and
/// begun behind the newest complete backup (what older ones had stored was used, or has changed since), and sealed for the same identity. Where
/// everything is to be stored, only those that were to store everything too. Whatever goes wrong here costs space and time, and stops no backup.
pub async fn runs(archive: &Archive, ring: &WriterRing, options: &BackupOptions) -> Vec<BackupId> {
    // Without a state_dir no run knows which others were its own.
    let Some(dir) = options.state_dir.clone() else { return Vec::new() };
    let found = async {
        let completed = Completed::of(&dir, archive);
        let (state, noted) = blocking(move || Ok((state_id(Some(&dir))?, completed.ids()?))).await?;
        let newest = Earlier::list(archive).await?.next().await?.map(|manifest| manifest.id);
        give_up(archive, &ring.fresh()?, &state, newest.as_ref(), &noted, options.put_limit).await
    };
    let dead = found.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "what interrupted backups stored is not used");
        Vec::new()
    });
    let identity = ring.identity();
    let usable = |intent: &Intent| (intent.full || !options.full) && intent.identity == identity;
    dead.into_iter().filter(usable).map(|intent| intent.id).collect()
}

/// Finds the runs of `state` after `newest` that ended without a backup, and gives them up. `noted` are known to have been complete.
///
/// Errors: a listing or a tombstone that fails. What cannot be read is passed over.
pub(super) async fn give_up(
    archive: &Archive,
    keys: &WriterKeys,
    state: &str,
    newest: Option<&BackupId>,
    noted: &[BackupId],
    limit: Duration,
) -> Result<Vec<Intent>> {
    let announced = archive.announced().await?.into_iter().map(|(id, _)| id);
    let mut dead = Vec::new();
    let begun: BTreeSet<BackupId> =
        announced.filter(|id| newest.is_none_or(|newest| id.by_start(newest).is_gt())).collect();
    let lost = archive.lost(begun.clone(), [], noted).await?.known()?;
    for (id, why) in &lost {
        tracing::error!(
            "the manifest of backup {id} is gone, and no expiry deleted it: {why}; put it back from a copy"
        );
    }
    for id in begun.into_iter().filter(|id| !lost.contains_key(id)) {
        match give_up_one(archive, keys, state, &id, limit).await {
            Ok(found) => dead.extend(found),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Key) => {
                tracing::warn!(%id, %error, "what an interrupted backup stored is not used");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(dead)
}

/// The intent of one that is dead.
async fn give_up_one(
    archive: &Archive,
    keys: &WriterKeys,
    state: &str,
    id: &BackupId,
    limit: Duration,
) -> Result<Option<Intent>> {
    // A copy of a `state_dir` on another host has the same state, and may be at work.
    match archive.intent(id).await?.filter(|intent| intent.state == state && intent.host == host()) {
        Some(intent) => Ok(bury(archive, keys, id, limit).await?.then_some(intent)),
        None => Ok(None),
    }
}

/// Makes sure that no manifest can come any more; `false`: there is one.
async fn bury(archive: &Archive, keys: &WriterKeys, id: &BackupId, limit: Duration) -> Result<bool> {
    if let Some(found) = archive.backup(id).await? {
        return Ok(matches!(found, Backup::GivenUp(_)));
    }
    let tombstone = Tombstone {
        version: Tombstone::VERSION,
        id: id.clone(),
        created_at: Timestamp::now(),
        reason: "it ended before it was complete, and the next backup with its state_dir found that".to_owned(),
        made_by: made_by(),
        deleted: false,
    };
    let claims = archive.claims(ObjectKind::Tombstone, TimelineId(0), Lsn(0));
    let name = archive.names.backup(id.as_str());
    match archive.put_index(keys, &name, claims, &tombstone.encode(), limit).await {
        Ok(()) => Ok(true),
        // Its manifest was on its way all the time, or somebody else gave it up.
        Err(error) if error.kind() == Kind::Diverged => {
            Ok(matches!(archive.backup(id).await?, Some(Backup::GivenUp(_))))
        }
        Err(error) => Err(error.context("cannot give up an interrupted backup")),
    }
}
