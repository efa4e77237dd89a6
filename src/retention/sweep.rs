//! What nothing needs any more goes: the last steps of an expiry.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt};

use super::expire::{Expiry, Outcome};
use super::look::look;
use super::plan::{Part, State, View, Waits};
use super::propose::Claims;
use crate::error::Result;
use crate::repo::names::BackupPart;
use crate::seal::content::BackupId;
use crate::seal::content::plan::{Plan, PlanId};

/// Objects deleted at the same time.
const AT_ONCE: usize = 8;

impl Expiry {
    /// Sweeps what the plan names and is due, by a fresh look; then takes away the plans of which nothing is left to do.
    pub(super) async fn sweep(&mut self, plan: &Plan, waits: &Waits, outcome: &mut Outcome) -> Result<()> {
        let mut view = look(&self.archive).await?;
        let claims = self.claims(&view, &[], waits, &mut outcome.blocked).await?;
        if outcome.blocked.is_none() {
            let ids: BTreeSet<BackupId> = plan.backups().cloned().collect();
            for id in &ids {
                self.sweep_one(id, &mut view, &claims, waits, outcome).await;
            }
        }
        self.finish(plan, &view, &claims, waits, outcome).await;
        Ok(())
    }

    /// Packs, maps and server manifests; then the intent; then the tombstone.
    async fn sweep_one(&self, id: &BackupId, view: &mut View, claims: &Claims, waits: &Waits, outcome: &mut Outcome) {
        if !view.is_due(id, waits) {
            return;
        }
        let unneeded = view.leftovers(id, &claims.kept).filter(|part| !claims.recent.has(id, part.what));
        let (intent, parts): (Vec<Part>, Vec<Part>) = unneeded.cloned().partition(|p| p.what == BackupPart::Intent);
        if !self.remove(id, parts, view, outcome).await || !self.remove(id, intent, view, outcome).await {
            return;
        }
        if view.tombstone_is_due(id, waits) {
            let name = self.archive.names.backup(id.as_str());
            match self.archive.repo.delete(&name).await {
                Ok(()) => _ = view.backups.remove(id),
                Err(error) => outcome.failures.push(error.context(format_args!("cannot delete {name}"))),
            }
        }
    }

    /// Deletes these, and from the view what is gone. Whether all of them are.
    async fn remove(&self, id: &BackupId, parts: Vec<Part>, view: &mut View, outcome: &mut Outcome) -> bool {
        let delete = |part: Part| async move { (self.archive.repo.delete(&part.name).await, part) };
        let mut deleting = stream::iter(parts.into_iter().map(delete)).buffer_unordered(AT_ONCE);
        let (mut gone, mut all) = (BTreeSet::new(), true);
        while let Some((deleted, part)) = deleting.next().await {
            match deleted {
                Ok(()) => {
                    outcome.freed.add(part.bytes);
                    gone.insert(part.name);
                }
                Err(error) => {
                    all = false;
                    outcome.failures.push(error.context(format_args!("cannot delete {}", part.name)));
                }
            }
        }
        if let Some(left) = view.parts.get_mut(id) {
            if left.iter().any(|part| part.what == BackupPart::Intent && gone.contains(&part.name)) {
                view.intents.remove(id);
            }
            left.retain(|part| !gone.contains(&part.name));
            if left.is_empty() {
                view.parts.remove(id);
            }
        }
        all
    }

    /// The run's own plan goes unless something failed, or something that it deleted, or was to delete, is left; those of others only when no run can
    /// find anything to delete by them.
    async fn finish(&self, plan: &Plan, view: &View, claims: &Claims, waits: &Waits, outcome: &mut Outcome) {
        let done = |id: &BackupId| match view.state(id, waits) {
            State::Unknown => true,
            State::GivenUp(_) => view.leftovers(id, &claims.kept).next().is_none(),
            _ => false,
        };
        let readable = outcome.blocked.is_none();
        // A deletion that failed may still be under way: until somebody has seen what became of it, nobody may use what it was to delete.
        let certain = outcome.failures.is_empty();
        let deleted = || readable && plan.delete.iter().all(|deletion| done(&deletion.backup));
        let own = certain && (plan.delete.is_empty() || deleted());
        let others = view.plans.iter().map(|stored| &stored.plan).filter(|other| other.id != plan.id);
        let finished = others.filter(|other| readable && view.is_finished(other, &claims.kept, waits));
        let going: Vec<PlanId> = finished.map(|other| &other.id).chain(own.then_some(&plan.id)).cloned().collect();
        for id in going {
            let name = self.archive.names.plan(id.as_str());
            match self.archive.repo.delete(&name).await {
                Ok(()) => outcome.unfinished &= id != plan.id,
                Err(error) => outcome.failures.push(error.context(format_args!("cannot delete {name}"))),
            }
        }
    }
}
