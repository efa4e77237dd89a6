//! What expiries are going to delete, and what that means for a backup that begins.

use std::time::{Duration, SystemTime};

use futures::stream::{self, StreamExt};

use super::{Archive, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::manifest::{Backup, Manifest};
use crate::seal::content::plan::{Plan, PlanId};
use crate::seal::content::{BackupId, Malformed};
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;
use crate::seal::opener::open_index;

/// Plans read at the same time.
const AT_ONCE: usize = 8;

/// A plan, and when the store took it, by the store's own clock.
#[derive(Clone, Debug)]
pub struct StoredPlan {
    pub plan: Plan,
    pub modified: SystemTime,
}

/// Everything under `plans/`: what stands there is not finished.
#[derive(Debug, Default)]
pub struct PlanList {
    /// Oldest first.
    pub plans: Vec<StoredPlan>,
    /// Objects that stand there and cannot be read, with the reason: each may name any backup.
    pub unreadable: Vec<(String, Error)>,
}

impl PlanList {
    /// Whether anything of this backup may be going to be deleted.
    pub fn names(&self, id: &BackupId) -> bool {
        self.why(id).is_some()
    }

    /// Whether a backup is going to be deleted that began after this one, and may have used what it stored.
    pub fn delete_after(&self, id: &BackupId) -> bool {
        let mut deleted = self.plans.iter().flat_map(|stored| &stored.plan.delete);
        deleted.any(|deletion| deletion.backup.by_start(id).is_gt())
    }

    /// Why that may be, in words.
    pub fn why(&self, id: &BackupId) -> Option<String> {
        if let Some((name, error)) = self.unreadable.first() {
            let same = error.to_string();
            let said =
                same.strip_prefix(name.as_str()).map_or(same.as_str(), |rest| rest.trim_start_matches([':', ' ']));
            return Some(format!(
                "the plan of an expiry, {name}, cannot be read: it may be deleting backup {id}: {said}"
            ));
        }
        let stored = self.plans.iter().find(|stored| stored.plan.names(id))?;
        Some(format!("an expiry may be deleting backup {id}: plan {} names it", stored.plan.id))
    }
}

/// What a backup finds that has announced what it reuses.
#[derive(Debug)]
pub struct Look {
    /// Ask [`PlanList::names`] before the packs of an interrupted backup are used, and list those packs after this look.
    pub plans: PlanList,
    /// The parent's manifest, or why it cannot be used.
    pub parent: std::result::Result<Manifest, String>,
}

impl Archive {
    /// Reads every plan. A store that fails, for a listing or for one plan, fails the whole; a plan that is damaged, or sealed with another key, does not.
    pub async fn list_plans(&self) -> Result<PlanList> {
        let prefix = format!("{}/plans", self.names.root());
        let listed = self.repo.list(&prefix).await.context("cannot list the plans of expiries")?;
        let read = |name: String, modified: SystemTime| async move {
            let found = self.plan(&name).await;
            (name, modified, found)
        };
        // What is not named as a plan is none: it was put there by somebody else, and speaks of nothing.
        let ours = |name: &str| {
            let leaf = name.rsplit('/').next().unwrap_or_default();
            let ours = PlanId::parse(leaf).is_some() && self.names.plan(leaf) == name;
            if !ours {
                tracing::warn!("{name} is not named as the plan of an expiry is, and is passed over");
            }
            ours
        };
        let listed = listed.into_iter().filter(|entry| ours(&entry.name));
        let mut reading = stream::iter(listed.map(|l| read(l.name, l.modified))).buffer_unordered(AT_ONCE);
        let mut list = PlanList::default();
        while let Some((name, modified, found)) = reading.next().await {
            match found {
                Ok(Some(plan)) => list.plans.push(StoredPlan { plan, modified }),
                // Finished since it was listed.
                Ok(None) => {}
                Err(error) if error.is_transient() && !error.is_of_the_disk() => {
                    return Err(error.context(format_args!("the plan of an expiry, {name}, cannot be read")));
                }
                Err(error) => list.unreadable.push((name, error)),
            }
        }
        list.plans.sort_by(|a, b| a.plan.id.cmp(&b.plan.id));
        list.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(list)
    }

    async fn plan(&self, name: &str) -> Result<Option<Plan>> {
        let last = name.rsplit('/').next().unwrap_or_default();
        let Some(id) = PlanId::parse(last) else { return Ok(None) };
        let Some(object) = self.repo.get(name).await? else { return Ok(None) };
        let claims = self.claims(ObjectKind::Plan, TimelineId(0), Lsn(0));
        let plain = open_index(&object, &claims, self.keys.as_ref()).map_err(|failed| refused(name, failed))?;
        let malformed = |bad: Malformed| Error::new(Kind::Corrupt, bad.to_string()).context(name);
        let plan = Plan::decode(&plain, &id).map_err(malformed)?;
        self.demand_cluster(name, &plan.cluster).map(|()| Some(plan))
    }

    /// Announces an expiry; durable when this returns. When the store took it, by the store's own clock.
    pub async fn put_plan(&self, keys: &WriterKeys, plan: &Plan, give_up: Duration) -> Result<SystemTime> {
        let name = self.names.plan(plan.id.as_str());
        let claims = self.claims(ObjectKind::Plan, TimelineId(0), Lsn(0));
        self.put_index(keys, &name, claims, &plan.encode(), give_up).await.context("cannot announce the expiry")?;
        let stored = self.repo.head(&name).await?;
        let gone = || Error::new(Kind::Repository, format!("{name} is gone a moment after it was stored"));
        stored.map(|listed| listed.modified).ok_or_else(gone)
    }

    /// The look after the announcement: a backup asks this once its intent, which names the parent, is durable, and uses the parent only where this
    /// gives its manifest. An expiry whose plan is not seen here sees the intent, or has deleted the manifest before its plan went: so plans are
    /// listed first and the manifest is read after that, in this order.
    pub async fn look_before_reuse(&self, parent: Option<&BackupId>) -> Result<Look> {
        let plans = self.list_plans().await?;
        let parent = match parent {
            None => Err("no backup was named".to_owned()),
            Some(id) => match plans.why(id) {
                Some(why) => Err(why),
                None => match self.backup(id).await? {
                    Some(Backup::Complete(manifest)) => Ok(*manifest),
                    _ => Err(format!("backup {id} was deleted")),
                },
            },
        };
        Ok(Look { plans, parent })
    }
}
