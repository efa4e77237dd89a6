//! What a run is going to do, for a person to agree to, before anything is announced.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Needed, Spared, Standing, State, View, Waits};
use crate::error::Kind;
use crate::seal::content::BackupId;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::plan::Deletion;

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub objects: u64,
    pub bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What goes, what stays and why.
#[derive(Clone, Debug, Default)]
pub struct Proposal {
    /// Complete backups that are deleted; `None` where the manifest cannot be read.
    pub delete: Vec<(BackupId, Option<Box<Manifest>>)>,
    /// Backups that were asked for, or that an earlier run was to delete, and that stay for now.
    pub spared: Vec<(BackupId, Spared)>,
    /// Backups that were asked for and are none (any more).
    pub already: Vec<BackupId>,
    /// Backups that never were complete, and are given up.
    pub give_up: Vec<BackupId>,
    /// Backups whose left-over objects go.
    pub sweep: Vec<BackupId>,
    /// What becomes free in this run.
    pub now: Amount,
    /// What becomes free in a run after `delete_delay`, as far as it is known.
    pub later: Amount,
    /// Complete backups that stay.
    pub kept: usize,
    /// Why nothing can be swept.
    pub blocked: Option<(Kind, String)>,
    /// Backups whose manifest is gone, by no expiry, and what says that they were complete.
    pub lost: Vec<(BackupId, String)>,
    /// Unfinished plans that have nothing left to do.
    pub finished: usize,
    pub(super) wanted: Vec<Deletion>,
}

impl Proposal {
    /// Whether there is anything to do now.
    pub fn acts(&self) -> bool {
        !self.delete.is_empty() || !self.give_up.is_empty() || !self.sweep.is_empty() || self.finished > 0
    }
}

/// What the maps of those that stay name, and of those that somebody may still be reading.
pub(super) struct Claims {
    pub kept: Needed,
    pub recent: Needed,
}

impl Claims {
    fn has(&self, id: &BackupId, part: &super::plan::Part) -> bool {
        self.kept.has(id, part.what) || self.recent.has(id, part.what)
    }
}

/// The proposal from a look; `claims` leave out the backups that `proposal.delete` names.
pub(super) fn fill(proposal: &mut Proposal, view: &View, claims: &Claims, waits: &Waits) {
    let deleted: BTreeSet<&BackupId> = proposal.delete.iter().map(|(id, _)| id).collect();
    proposal.kept = view.complete().filter(|manifest| !deleted.contains(&manifest.id)).count();
    let at_once = waits.delete_delay.is_zero() && proposal.blocked.is_none();
    for id in view.ids() {
        let state = view.state(id, waits);
        let dies = matches!(state, State::Stale | State::Stray | State::Deleted);
        if dies {
            proposal.give_up.push(id.clone());
        }
        let dead = dies || deleted.contains(id) || matches!(state, State::GivenUp(_));
        if !dead || view.reused(id, waits).is_some() {
            continue;
        }
        let due = proposal.blocked.is_none() && view.is_due(id, waits) || at_once;
        let (mut going, mut staying) = (Amount::default(), Amount::default());
        for part in view.leftovers(id, &claims.kept) {
            if due && !claims.has(id, part) { going.add(part.bytes) } else { staying.add(part.bytes) }
        }
        let bare = view.tombstone_is_due(id, waits);
        if due && !dies && !deleted.contains(id) && (going.objects > 0 || bare) {
            proposal.sweep.push(id.clone());
        }
        proposal.now.objects += going.objects;
        proposal.now.bytes += going.bytes;
        proposal.later.objects += staying.objects;
        proposal.later.bytes += staying.bytes;
    }
    let lost = view.lost.iter().filter(|(id, _)| !deleted.contains(id));
    proposal.lost = lost.map(|(id, why)| (id.clone(), why.clone())).collect();
    let done = |plan| view.is_finished(plan, &claims.kept, waits);
    proposal.finished = view.plans.iter().filter(|stored| done(&stored.plan)).count();
}

/// The manifests of what goes, for people.
pub(super) fn with_manifests(go: &[Deletion], view: &View) -> Vec<(BackupId, Option<Box<Manifest>>)> {
    let manifests: BTreeMap<&BackupId, &Standing> = view.backups.iter().collect();
    let found = |id: &BackupId| match manifests.get(id) {
        Some(Standing::Complete(manifest)) => Some(manifest.clone()),
        _ => None,
    };
    go.iter().map(|deletion| (deletion.backup.clone(), found(&deletion.backup))).collect()
}
