//! Backups whose manifest is gone although nobody deleted them: by hand, by a rule of the store, by a failed disk.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt};

use super::Archive;
use super::events::AT_ONCE;
use crate::error::{Error, Result};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::Manifest;

/// Bytes of a day at the beginning of names of backups and of events: `20260131T020000Z`.
const DAY: usize = 8;

/// Number of the sign that a backup leaves when its manifest is stored, among its signs of life, which begin at 1.
pub const COMPLETE: u32 = 0;

/// What [`Archive::lost`] found.
pub enum Lost {
    /// Those that are lost, with what says that they were complete.
    Known(BTreeMap<BackupId, String>),
    /// An unfinished expiry may have deleted them: its plan cannot be read.
    Unclear(BTreeMap<BackupId, String>, Error),
}

impl Lost {
    /// Errors: the plan that cannot be read.
    pub fn known(self) -> Result<BTreeMap<BackupId, String>> {
        match self {
            Lost::Known(lost) => Ok(lost),
            Lost::Unclear(_, error) => Err(error),
        }
    }
}

impl Archive {
    /// Of these backups, under whose names nothing was found, those that were complete, and what says so. A manifest names a backup as its parent, or a map of
    /// it, only where that was complete; a backup left a sign that its manifest was stored; a check that found it whole had its manifest; `noted` are known to
    /// have been complete. Backups that an unfinished expiry deletes or a finished one noted as deleted, and those under whose name something stands by now,
    /// are none of them.
    ///
    /// Errors: the store. An event that does not open tells nothing.
    pub async fn lost<'a>(
        &self,
        mut suspects: BTreeSet<BackupId>,
        complete: impl IntoIterator<Item = &'a Manifest>,
        noted: &[BackupId],
    ) -> Result<Lost> {
        let mut lost = BTreeMap::new();
        for id in noted {
            lost.extend(suspects.take(id).map(|id| (id, "this host noted that it was complete".to_owned())));
        }
        for manifest in complete {
            let maps = manifest.maps.iter().map(|map| &map.backup);
            for id in manifest.parent.iter().chain(maps) {
                lost.extend(suspects.take(id).map(|id| (id, format!("backup {} builds on it", manifest.id))));
            }
        }
        self.signed(&mut suspects, &mut lost).await?;
        self.found_whole(&mut suspects, &mut lost).await?;
        if lost.is_empty() {
            return Ok(Lost::Known(lost));
        }
        // An expiry names what it deletes before it does, and leaves a tombstone before that plan goes: asked in this order, nothing of it is missed.
        let mut list = self.list_plans().await?;
        let noted_deleted = self.noted_deleted().await?;
        let mut found = BTreeMap::new();
        for (id, why) in lost {
            let deleted =
                noted_deleted.contains(id.as_str()) || list.plans.iter().any(|stored| stored.plan.deletes(&id));
            if !deleted && self.repo.head(&self.names.backup(id.as_str())).await?.is_none() {
                found.insert(id, why);
            }
        }
        match list.unreadable.pop().filter(|_| !found.is_empty()) {
            None => Ok(Lost::Known(found)),
            Some((name, error)) => {
                Ok(Lost::Unclear(found, error.context(format!("an unfinished plan cannot be read ({name})"))))
            }
        }
    }

    /// Moves those that left a sign that they were complete.
    async fn signed(&self, suspects: &mut BTreeSet<BackupId>, lost: &mut BTreeMap<BackupId, String>) -> Result<()> {
        let look = |id: BackupId| async move {
            let sign = self.repo.head(&self.names.alive(id.as_str(), COMPLETE)).await?;
            Ok::<_, Error>(sign.map(|_| id))
        };
        let mut looking = stream::iter(suspects.clone().into_iter().map(look)).buffer_unordered(AT_ONCE);
        while let Some(found) = looking.next().await {
            let Some(id) = found?.and_then(|id| suspects.take(&id)) else { continue };
            lost.insert(id, "it left a sign that its manifest was stored".to_owned());
        }
        Ok(())
    }

    /// Moves those that a check has found whole, newest checks first.
    async fn found_whole(
        &self,
        suspects: &mut BTreeSet<BackupId>,
        lost: &mut BTreeMap<BackupId, String>,
    ) -> Result<()> {
        let Some(oldest) = suspects.first().cloned() else { return Ok(()) };
        let mut names = self.event_names("verified").await?;
        // The check of a day may be of another host's clock than the backup; that they are a day apart is another matter.
        let oldest = oldest.as_str().get(..DAY);
        names.retain(|name| name.rsplit('/').next().and_then(|leaf| leaf.get(..DAY)) >= oldest);
        let mut reading = stream::iter(names.into_iter().map(|name| self.check(name))).buffered(AT_ONCE);
        while let Some(check) = reading.next().await {
            let Some((at, check)) = check? else { continue };
            for id in check.whole.iter().filter_map(|text| BackupId::parse(text).ok()) {
                lost.extend(suspects.take(&id).map(|id| (id, format!("a check at {at} found it whole"))));
            }
            if suspects.is_empty() {
                break;
            }
        }
        Ok(())
    }
}
