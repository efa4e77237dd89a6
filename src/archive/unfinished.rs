//! Backups that have begun and are none: under way, or interrupted.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Archive;
use super::backups::BackupList;
use super::lost::COMPLETE;
use crate::error::{Context, Kind, Result};
use crate::seal::content::BackupId;
use crate::seal::content::intent::Intent;
use crate::seal::content::manifest::Tombstone;

/// Of so many, the newest ones, it is looked at what they have stored.
const MEASURED: usize = 8;
/// Looked at side by side.
const AT_ONCE: usize = 8;

/// A backup that was announced, and is neither complete nor deleted.
#[derive(Clone, Debug)]
pub struct Unfinished {
    pub id: BackupId,
    /// What it announced; `None`: that cannot be read.
    pub intent: Option<Intent>,
    /// When the store took that.
    pub announced: SystemTime,
    /// That it was given up: nothing makes it complete any more.
    pub given_up: Option<Tombstone>,
    /// It left the sign that its manifest was stored, and there is none, by no expiry.
    pub lost: bool,
    /// What it has stored; `None`: not looked at, since there are newer ones.
    pub stored: Option<Stored>,
}

/// What a backup has stored that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub packs: u64,
    /// Of the packs.
    pub bytes: u64,
    /// When the store took something of it last: its intent, a pack, a sign of life.
    pub moved: SystemTime,
}

impl Archive {
    /// The backups of which `announced` speaks that are none, oldest first. `announced` is what [`Archive::announced`] gave before `list` was read, so that none
    /// is missed and none that completes meanwhile is taken for unfinished.
    ///
    /// Opens the intents of those alone, and lists what the newest of them have stored.
    pub async fn unfinished(
        &self,
        announced: Vec<(BackupId, SystemTime)>,
        list: &BackupList,
    ) -> Result<Vec<Unfinished>> {
        let complete = list.complete.iter().map(|manifest| manifest.id.clone());
        let stands: BTreeSet<BackupId> = complete.chain(list.unread().map(|(id, _)| id)).collect();
        let tombstone = |id: &BackupId| list.given_up.iter().find(|tombstone| tombstone.id == *id);
        let mut those: Vec<_> = announced
            .into_iter()
            .filter(|(id, _)| !stands.contains(id) && tombstone(id).is_none_or(|tombstone| !tombstone.deleted))
            .collect();
        those.sort();
        let old = those.len().saturating_sub(MEASURED);
        let look = |(place, (id, at)): (usize, (BackupId, SystemTime))| {
            let given_up = tombstone(&id).cloned();
            async move { self.one_unfinished(id, at, given_up, place >= old).await }
        };
        let looking = stream::iter(those.into_iter().enumerate().map(look)).buffered(AT_ONCE);
        Ok(looking.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }

    /// `None`: it became complete, or was swept, since it was listed.
    async fn one_unfinished(
        &self,
        id: BackupId,
        announced: SystemTime,
        given_up: Option<Tombstone>,
        measured: bool,
    ) -> Result<Option<Unfinished>> {
        let intent = match self.intent(&id).await {
            Ok(Some(intent)) => Some(intent),
            Ok(None) => return Ok(None),
            Err(error) if error.is_transient() || error.kind() == Kind::Repository => return Err(error),
            Err(_) => None,
        };
        let sign = self.names.alive(id.as_str(), COMPLETE);
        let lost = given_up.is_none() && self.repo.head(&sign).await?.is_some();
        if lost && self.is_settled(&id).await? {
            return Ok(None);
        }
        let stored = if measured { Some(self.stored_by(&id, announced).await?) } else { None };
        Ok(Some(Unfinished { id, intent, announced, given_up, lost, stored }))
    }

    /// Whether an expiry deletes it, or noted that it has, or something stands under its name by now. Asked in this order nothing of an expiry is missed: it
    /// names what it deletes before it does, and leaves a tombstone before that plan goes.
    async fn is_settled(&self, id: &BackupId) -> Result<bool> {
        let deleted = self.list_plans().await?.plans.iter().any(|stored| stored.plan.deletes(id));
        let settled = deleted || self.repo.head(&self.names.backup(id.as_str())).await?.is_some();
        Ok(settled || self.noted_deleted().await?.contains(id.as_str()))
    }

    async fn stored_by(&self, id: &BackupId, announced: SystemTime) -> Result<Stored> {
        let root = self.names.root();
        let list = async |folder: &str| {
            let listed = self.repo.list(&format!("{root}/{folder}/{id}")).await;
            listed.context("cannot list what a backup under way has stored")
        };
        let (packs, signs) = tokio::try_join!(list("packs"), list("alive"))?;
        let moved = packs.iter().chain(&signs).map(|entry| entry.modified).fold(announced, SystemTime::max);
        Ok(Stored { packs: packs.len() as u64, bytes: packs.iter().map(|entry| entry.size).sum(), moved })
    }
}
