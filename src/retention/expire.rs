//! An expiry from the first look to the event: each step durable before the next.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::ExpireOptions;
use super::look::{judge, look};
use super::needed::Maps;
use super::plan::{self, Spared, Standing, State, View, Waits};
use super::propose::{Amount, Claims, Proposal, fill, with_manifests};
use crate::archive::Archive;
use crate::disk::lock::LockFile;
use crate::error::{Context, Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::event::{Expired, What};
use crate::seal::content::manifest::{Backup, MapRef, Tombstone};
use crate::seal::content::plan::{Deletion, Plan, PlanId};
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;

/// How often a manifest that comes back (its writer never heard that it was stored) is deleted again.
const DELETE_ATTEMPTS: u32 = 4;
/// By how much this host's clock may be ahead of the store's.
const CLOCK_AHEAD: Duration = Duration::from_secs(3600);

/// What a run did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The plan that it announced; `None` where there was nothing to do.
    pub plan: Option<PlanId>,
    /// Whether that plan stands until a later run finishes it.
    pub unfinished: bool,
    pub deleted: Vec<BackupId>,
    pub spared: Vec<(BackupId, Spared)>,
    pub given_up: Vec<BackupId>,
    /// What was swept.
    pub freed: Amount,
    /// Why nothing was swept.
    pub blocked: Option<(Kind, String)>,
    /// What went wrong for single objects: a later run tries them again.
    pub failures: Vec<Error>,
}

/// One run. It holds the lock of its cluster on this host as long as it lives.
pub struct Expiry {
    pub(super) archive: Archive,
    pub(super) options: ExpireOptions,
    pub(super) maps: Maps,
    _lock: Option<LockFile>,
}

impl Expiry {
    /// `Kind::Busy` where another one runs on this host. Those of other hosts are not known: they do each other no harm.
    pub async fn begin(archive: Archive, options: ExpireOptions) -> Result<Expiry> {
        let lock = match options.state_dir.clone() {
            None => None,
            Some(dir) => {
                let path = dir.join(format!("expire-{}.lock", archive.names.cluster));
                let shown = path.display().to_string();
                let taken = archive.repo.lane().run(move || LockFile::take(&path)).await??;
                let text = || format!("an expiry of cluster {} is running: {shown} is locked", archive.names.cluster);
                let busy = || Error::new(Kind::Busy, text()).hint("wait for it to end, or stop it");
                Some(taken.ok_or_else(busy)?)
            }
        };
        Ok(Expiry { archive, options, maps: Maps::default(), _lock: lock })
    }

    pub(super) fn waits(&self, now: SystemTime) -> Waits {
        let ExpireOptions { delete_delay, intent_stale, tombstone_life, .. } = self.options;
        Waits { now, delete_delay, intent_stale, tombstone_life }
    }

    /// What the run would do. Changes nothing. Refusals: `Kind::Usage` for backups that do not exist, `Kind::Retention` for the last complete
    /// one and for one that is still being taken.
    pub async fn propose(&mut self) -> Result<Proposal> {
        let mut view = look(&self.archive).await?;
        let waits = self.waits(self.options.now);
        if !self.options.force && deletes(&view, &self.options.backups) {
            judge(&self.archive, &mut view, &|id| self.options.backups.contains(id)).await?;
        }
        let wanted = plan::wanted(&view, &self.options.backups, self.options.force, &waits)?;
        let (go, spared) = view.deletable(&wanted.delete, None, &waits);
        let mut proposal = Proposal { spared, already: wanted.already, ..Default::default() };
        proposal.delete = with_manifests(&go, &view);
        let claims = self.claims(&view, &go, &waits, &mut proposal.blocked).await?;
        fill(&mut proposal, &view, &claims, &waits);
        proposal.wanted = go;
        Ok(proposal)
    }

    /// What is needed once `go` is deleted. Sets why nothing may be swept, where something cannot be read.
    pub(super) async fn claims(
        &mut self,
        view: &View,
        go: &[Deletion],
        waits: &Waits,
        blocked: &mut Option<(Kind, String)>,
    ) -> Result<Claims> {
        let goes = |id: &BackupId| go.iter().any(|deletion| deletion.backup == *id);
        let staying = view.complete().filter(|manifest| !goes(&manifest.id));
        let kept: Vec<MapRef> = staying.flat_map(|manifest| manifest.maps.iter().cloned()).collect();
        let unreadable = view.dark(&goes).or_else(|| view.gone(&goes)).or_else(|| view.bare(self.options.force));
        let (kept, dark) = self.maps.needed(&self.archive, kept).await?;
        *blocked = unreadable.or(dark.first().map(|(_, error)| (error.kind(), error.to_string())));
        // Where such a map cannot be read, nobody can go on restoring by it either.
        let recent = view.recently_deleted(waits).into_iter().cloned().collect();
        let (recent, _) = self.maps.needed(&self.archive, recent).await?;
        Ok(Claims { kept, recent })
    }

    /// Does what was proposed, as far as it still holds once it is announced. Errors end the run where it is; what goes wrong for one object
    /// alone is in the outcome.
    pub async fn carry_out(&mut self, ring: &WriterRing, proposal: &Proposal) -> Result<Outcome> {
        let mut outcome = Outcome { spared: proposal.spared.clone(), ..Outcome::default() };
        if !proposal.acts() {
            outcome.blocked = proposal.blocked.clone();
            return Ok(outcome);
        }
        let keys = ring.fresh()?;
        let plan = self.announced(proposal)?;
        let now = self.archive.put_plan(&keys, &plan, self.options.put_limit).await?;
        self.demand_clock(&plan, now).await?;
        outcome.plan = Some(plan.id.clone());
        outcome.unfinished = true;
        let waits = self.waits(now);
        let mut view = look(&self.archive).await?;
        if plan.delete.iter().any(|deletion| !deletion.forced) {
            judge(&self.archive, &mut view, &|id| plan.deletes(id)).await?;
        }
        self.give_up(&keys, &view, &plan, &waits, &mut outcome).await;
        self.delete(&keys, &view, &plan, &waits, &mut outcome).await;
        self.sweep(&plan, &waits, &mut outcome).await?;
        self.record(&keys, &plan, &mut outcome).await;
        Ok(outcome)
    }

    /// What the plan names was chosen by this host's clock. Where that is ahead, backups that are being taken look dead, and no later one would be built on them
    /// while the plan stands: it goes again, before anything is done by it. `now` is when the store took it.
    async fn demand_clock(&self, plan: &Plan, now: SystemTime) -> Result<()> {
        let ahead = self.options.now.duration_since(now).unwrap_or_default();
        if ahead <= CLOCK_AHEAD {
            return Ok(());
        }
        self.archive.repo.delete(&self.archive.names.plan(plan.id.as_str())).await?;
        let text = format!("this host's clock is {} minutes ahead of the store's", ahead.as_secs() / 60);
        Err(Error::new(Kind::Retention, text)
            .hint("Set the clock and run this again: by a wrong one a backup that is being taken looks dead. Nothing was deleted."))
    }

    fn announced(&self, proposal: &Proposal) -> Result<Plan> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let created_at = Timestamp::try_from(self.options.now)
            .map_err(|e| Error::new(Kind::Failed, "this host's clock is out of range").caused_by(e))?;
        Ok(Plan {
            version: Plan::VERSION,
            id: PlanId::new(created_at, random),
            cluster: self.archive.names.cluster.clone(),
            system: self.archive.names.system,
            created_at,
            delete: proposal.wanted.clone(),
            sweep: proposal.give_up.iter().chain(&proposal.sweep).cloned().collect(),
            made_by: made_by(),
            host: self.options.host.clone(),
            user: self.options.user.clone(),
        })
    }

    /// Tombstones for what is dead and has none. A manifest may still win: then it is a backup.
    async fn give_up(&self, keys: &WriterKeys, view: &View, plan: &Plan, waits: &Waits, outcome: &mut Outcome) {
        let reason = |id: &BackupId| match view.state(id, waits) {
            State::Deleted => Some((format!("deleted; noted by expiry {}", plan.id), true)),
            State::Stale if plan.names(id) => {
                Some((format!("nothing of it had moved for {:?}", waits.intent_stale), false))
            }
            State::Stray if plan.names(id) => Some(("left without an intent".to_owned(), false)),
            _ => None,
        };
        if view.bare(self.options.force).is_some() {
            return;
        }
        let dead: Vec<_> = view.ids().into_iter().filter_map(|id| Some((id.clone(), reason(id)?))).collect();
        for (id, (reason, deleted)) in dead {
            match self.bury(keys, &id, reason, deleted).await {
                Ok(true) => outcome.given_up.push(id),
                Ok(false) => tracing::info!("backup {id} was completed at the last moment"),
                Err(error) => outcome.failures.push(error.context(format_args!("backup {id} could not be given up"))),
            }
        }
    }

    async fn delete(&self, keys: &WriterKeys, view: &View, plan: &Plan, waits: &Waits, outcome: &mut Outcome) {
        let (go, spared) = view.deletable(&plan.delete, Some(&plan.id), waits);
        for (id, why) in spared {
            outcome.spared.push((id, why));
        }
        for deletion in go {
            let id = deletion.backup;
            match self.delete_manifest(keys, &id, &plan.id).await {
                Ok(()) => outcome.deleted.push(id),
                Err(error) => outcome.failures.push(error.context(format_args!("backup {id} could not be deleted"))),
            }
        }
    }

    /// The manifest goes, durably; then a tombstone takes its name, so that nothing brings it back.
    async fn delete_manifest(&self, keys: &WriterKeys, id: &BackupId, plan: &PlanId) -> Result<()> {
        for _ in 0..DELETE_ATTEMPTS {
            // Another expiry may have been here: its tombstone must stay.
            match self.archive.backup(id).await {
                Ok(Some(Backup::GivenUp(_))) => return Ok(()),
                // A damaged manifest was asked for by force, or one on a bad sector.
                Err(error) if error.kind() != Kind::Corrupt && !error.is_of_the_disk() => return Err(error),
                _ => self.archive.repo.delete(&self.archive.names.backup(id.as_str())).await?,
            }
            if self.bury(keys, id, format!("deleted by expiry {plan}"), true).await? {
                return Ok(());
            }
        }
        Err(Error::new(Kind::Busy, "its manifest comes back again and again: its writer still tries to store it")
            .hint("run this again when that backup has ended"))
    }

    /// Puts a tombstone; `false`: a manifest stands there.
    async fn bury(&self, keys: &WriterKeys, id: &BackupId, reason: String, deleted: bool) -> Result<bool> {
        let tombstone = Tombstone {
            version: Tombstone::VERSION,
            id: id.clone(),
            created_at: Timestamp::now(),
            reason,
            made_by: made_by(),
            deleted,
        };
        let name = self.archive.names.backup(id.as_str());
        let claims = self.archive.claims(ObjectKind::Tombstone, TimelineId(0), Lsn(0));
        let put = self.archive.put_index(keys, &name, claims, &tombstone.encode(), self.options.put_limit).await;
        match put {
            Ok(()) => Ok(true),
            // Something stands there: which of the two?
            Err(error) if error.kind() == Kind::Diverged => match self.archive.backup(id).await? {
                Some(Backup::GivenUp(_)) => Ok(true),
                _ => Ok(false),
            },
            Err(error) => Err(error),
        }
    }

    /// Leaves an event of what was done.
    async fn record(&self, keys: &WriterKeys, plan: &Plan, outcome: &mut Outcome) {
        if outcome.deleted.is_empty() && outcome.given_up.is_empty() && outcome.freed.objects == 0 {
            return;
        }
        let text = |ids: &[BackupId]| ids.iter().map(BackupId::to_string).collect();
        let what = What::Expiry(Expired {
            plan: plan.id.to_string(),
            deleted: text(&outcome.deleted),
            given_up: text(&outcome.given_up),
            objects: outcome.freed.objects,
            bytes: outcome.freed.bytes,
            host: plan.host.clone(),
            user: plan.user.clone(),
        });
        let put = self.archive.put_event(keys, what, self.options.put_limit).await;
        if let Err(error) = put.context("the event of this expiry could not be stored") {
            outcome.failures.push(error);
        }
    }
}

impl View {
    /// Why nothing may be swept: what cannot be read, and does not go itself, may name any pack.
    fn dark(&self, goes: &dyn Fn(&BackupId) -> bool) -> Option<(Kind, String)> {
        self.backups.iter().find_map(|(id, standing)| match standing {
            Standing::Dark(kind, problem) if !goes(id) => Some((*kind, problem.clone())),
            _ => None,
        })
    }

    /// The same of a manifest that is gone: put back, it would name packs, too.
    fn gone(&self, goes: &dyn Fn(&BackupId) -> bool) -> Option<(Kind, String)> {
        let (id, why) = self.lost.iter().find(|(id, _)| !goes(id))?;
        Some((Kind::Corrupt, format!("the manifest of backup {id} is gone, and no expiry deleted it: {why}")))
    }
}

/// Whether this run may delete anything: what was asked for, or what an older one was to.
fn deletes(view: &View, asked: &[BackupId]) -> bool {
    !asked.is_empty() || view.plans.iter().any(|stored| !stored.plan.delete.is_empty())
}

fn made_by() -> String {
    concat!("walrecv ", env!("CARGO_PKG_VERSION")).to_owned()
}
