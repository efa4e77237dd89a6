//! What may be deleted, what is spared, and why. Pure: decided from what a look found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::archive::plans::StoredPlan;
use crate::error::{Error, Kind, Result};
use crate::repo::names::BackupPart;
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Manifest, MapRef};
use crate::seal::content::plan::{Deletion, Plan, PlanId};

/// What stands under `backups/<id>`.
#[derive(Clone, Debug)]
pub enum Standing {
    Complete(Box<Manifest>),
    /// A tombstone, and when the store took it.
    GivenUp(SystemTime),
    /// It cannot be read: a backup may be behind it.
    Dark(Kind, String),
}

/// An intent.
#[derive(Clone, Debug)]
pub struct Announced {
    pub modified: SystemTime,
    /// `None`: it cannot be read, so it may reuse anything.
    pub reuses: Option<BTreeSet<BackupId>>,
}

/// An object that a backup left.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub what: BackupPart,
    pub bytes: u64,
    pub modified: SystemTime,
}

/// Everything that one look found. What was complete at any moment of the look counts as complete.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub backups: BTreeMap<BackupId, Standing>,
    pub intents: BTreeMap<BackupId, Announced>,
    pub parts: BTreeMap<BackupId, Vec<Part>>,
    pub plans: Vec<StoredPlan>,
    /// Backups whose manifest is gone although nobody deleted it, and what says that they were complete.
    pub lost: BTreeMap<BackupId, String>,
    /// Complete backups from which nothing can be restored, as far as is known, and why: they are no reason to delete another one.
    pub unfit: BTreeMap<BackupId, String>,
}

/// What a backup is, by all that was found of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Complete,
    /// Something stands under its name that cannot be read.
    Dark,
    /// A tombstone has stood under its name since then: it is no backup and becomes none.
    GivenUp(SystemTime),
    /// An expiry has deleted its manifest and did not come to leave a tombstone.
    Deleted,
    /// It was complete and its manifest is gone, by no expiry: as long as that may be put back, nothing of it goes.
    Lost,
    /// It has begun, and is neither complete nor given up.
    Live,
    /// As live, but nothing of it has moved for so long that it counts as dead.
    Stale,
    /// Objects without an intent: nobody is behind them.
    Stray,
    /// Nothing is there.
    Unknown,
}

/// How long what is waited for, and since when: all by the storage's clock.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    pub now: SystemTime,
    /// From a tombstone to the deletion of what the backup left.
    pub delete_delay: Duration,
    /// From the last movement of a backup to giving it up.
    pub intent_stale: Duration,
    /// From a tombstone to its own deletion, at least.
    pub tombstone_life: Duration,
}

impl Waits {
    /// Whether so much time has passed. None is always over, even where something happened after `now` was taken.
    fn over(&self, since: SystemTime, wait: Duration) -> bool {
        wait.is_zero() || since.checked_add(wait).is_some_and(|end| end <= self.now)
    }
}

/// Why a backup that should go stays for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spared {
    /// A running backup reuses what it stored.
    Reused { by: BackupId },
    /// The intent of a running backup cannot be read: it may reuse anything.
    DarkIntent { of: BackupId },
    /// No complete backup would be left, or none from which anything can be restored: one of those that would be, and why.
    Last { unfit: Option<(BackupId, String)> },
}

impl View {
    pub fn state(&self, id: &BackupId, waits: &Waits) -> State {
        match self.backups.get(id) {
            Some(Standing::Complete(_)) => return State::Complete,
            Some(Standing::GivenUp(since)) => return State::GivenUp(*since),
            Some(Standing::Dark(..)) => return State::Dark,
            None => {}
        }
        if self.plans.iter().any(|stored| stored.plan.deletes(id)) {
            // A plan deletes only what was complete.
            return State::Deleted;
        }
        if self.lost.contains_key(id) {
            return State::Lost;
        }
        match (self.intents.get(id), self.parts.get(id)) {
            (None, None) => State::Unknown,
            (None, Some(_)) => State::Stray,
            (Some(intent), parts) => {
                let parts = parts.into_iter().flatten().map(|part| part.modified);
                let moved = parts.fold(intent.modified, SystemTime::max);
                if waits.over(moved, waits.intent_stale) { State::Stale } else { State::Live }
            }
        }
    }

    /// Whether neither manifest nor tombstone stands under its name, and no plan says why.
    pub fn has_nothing(&self, id: &BackupId) -> bool {
        !self.backups.contains_key(id) && !self.plans.iter().any(|stored| stored.plan.deletes(id))
    }

    /// Why nothing may be given up or swept: where no complete backup is seen, and maps are there of one of which nothing tells that it is none any more, the
    /// folder of backups may be missing.
    pub fn bare(&self, force: bool) -> Option<(Kind, String)> {
        let mapped = |parts: &Vec<Part>| parts.iter().any(|part| matches!(part.what, BackupPart::Map(_)));
        let mut whose = self.parts.iter().filter(|(id, parts)| mapped(parts) && self.has_nothing(id)).map(|(id, _)| id);
        let id = whose.next().filter(|_| !force && self.complete().next().is_none())?;
        let text = format!(
            "no complete backup is seen, and {id} has left maps, so nothing is given up and no space is freed; --force does it all the same"
        );
        Some((Kind::Retention, text))
    }

    /// Every id of which anything is there.
    pub fn ids(&self) -> BTreeSet<&BackupId> {
        let planned = self.plans.iter().flat_map(|stored| stored.plan.delete.iter().map(|deletion| &deletion.backup));
        self.backups.keys().chain(self.intents.keys()).chain(self.parts.keys()).chain(planned).collect()
    }

    pub fn complete(&self) -> impl Iterator<Item = &Manifest> {
        self.backups.values().filter_map(|standing| match standing {
            Standing::Complete(manifest) => Some(&**manifest),
            _ => None,
        })
    }

    /// Whether a backup that may still be completed reuses what `id` stored. A stale one may, until its tombstone was seen.
    pub fn reused(&self, id: &BackupId, waits: &Waits) -> Option<Spared> {
        let may_complete = |by: &BackupId| matches!(self.state(by, waits), State::Live | State::Stale);
        let live = self.intents.iter().filter(|(by, _)| may_complete(by));
        live.filter(|(by, _)| *by != id).find_map(|(by, intent)| match &intent.reuses {
            None => Some(Spared::DarkIntent { of: by.clone() }),
            Some(reuses) if reuses.contains(id) => Some(Spared::Reused { by: by.clone() }),
            Some(_) => None,
        })
    }

    /// Which of these manifests go now, and why the others stay. `own` is the plan that speaks of them: what other plans delete counts as gone.
    pub fn deletable(
        &self,
        wanted: &[Deletion],
        own: Option<&PlanId>,
        waits: &Waits,
    ) -> (Vec<Deletion>, Vec<(BackupId, Spared)>) {
        let (mut go, mut stay) = (Vec::new(), Vec::new());
        let others = || self.plans.iter().map(|stored| &stored.plan).filter(|plan| Some(&plan.id) != own);
        let going = |id: &BackupId| wanted.iter().any(|d| d.backup == *id) || others().any(|plan| plan.deletes(id));
        let some_left = self.complete().any(|manifest| !going(&manifest.id) && !self.unfit.contains_key(&manifest.id));
        for deletion in wanted {
            if !matches!(self.state(&deletion.backup, waits), State::Complete | State::Dark | State::Lost) {
                continue;
            }
            match self.reused(&deletion.backup, waits) {
                Some(why) => stay.push((deletion.backup.clone(), why)),
                None if some_left || deletion.forced => go.push(deletion.clone()),
                None => stay.push((deletion.backup.clone(), Spared::Last { unfit: self.an_unfit() })),
            }
        }
        (go, stay)
    }

    /// One from which nothing can be restored, as far as is known, and why.
    fn an_unfit(&self) -> Option<(BackupId, String)> {
        self.unfit.iter().next_back().map(|(id, why)| (id.clone(), why.clone()))
    }

    /// The maps of backups that were deleted less than `delete_delay` ago: somebody may still be restoring them.
    pub fn recently_deleted(&self, waits: &Waits) -> Vec<&MapRef> {
        let mut maps = Vec::new();
        for deletion in self.plans.iter().flat_map(|stored| &stored.plan.delete) {
            let recent = match self.state(&deletion.backup, waits) {
                State::GivenUp(since) => !waits.over(since, waits.delete_delay),
                State::Deleted => !waits.delete_delay.is_zero(),
                _ => false,
            };
            if recent {
                maps.extend(&deletion.maps);
            }
        }
        maps
    }

    /// What of a backup that is none may go, apart from its tombstone, if it may go at all now.
    pub fn leftovers<'a>(&'a self, id: &BackupId, needed: &'a Needed) -> impl Iterator<Item = &'a Part> {
        let owner = id.clone();
        self.parts.get(id).into_iter().flatten().filter(move |part| !needed.has(&owner, part.what))
    }

    /// Whether what this backup left may be swept now, by its tombstone and by what live backups reuse.
    pub fn is_due(&self, id: &BackupId, waits: &Waits) -> bool {
        match self.state(id, waits) {
            State::GivenUp(since) => waits.over(since, waits.delete_delay) && self.reused(id, waits).is_none(),
            _ => false,
        }
    }

    /// Whether the tombstone itself may go: nothing else is left, no plan needs it to see that its manifest is gone, and no writer sleeps so long.
    pub fn tombstone_is_due(&self, id: &BackupId, waits: &Waits) -> bool {
        let State::GivenUp(since) = self.state(id, waits) else { return false };
        let planned = self.plans.iter().any(|stored| stored.plan.deletes(id));
        let bare = !planned && !self.parts.contains_key(id) && !self.intents.contains_key(id);
        bare && waits.over(since, waits.delete_delay) && waits.over(since, waits.tombstone_life)
    }

    /// Whether nothing is left that any run could still delete by this plan: only then may somebody else than its own run take it away, since a
    /// backup that begins afterwards may use what it named.
    pub fn is_finished(&self, plan: &Plan, needed: &Needed, waits: &Waits) -> bool {
        plan.backups().all(|id| match self.state(id, waits) {
            State::Unknown => true,
            // A manifest that was there before the tombstone: it never goes by this plan.
            State::Complete => !plan.deletes(id),
            State::GivenUp(_) => self.leftovers(id, needed).next().is_none(),
            State::Dark | State::Lost | State::Deleted | State::Live | State::Stale | State::Stray => false,
        })
    }
}

/// What maps name: packs, and the maps themselves.
#[derive(Clone, Debug, Default)]
pub struct Needed {
    pub packs: BTreeMap<BackupId, BTreeSet<u32>>,
    pub maps: BTreeSet<BackupId>,
}

impl Needed {
    /// Server manifests, intents and signs of life are needed by their own backup alone.
    pub fn has(&self, id: &BackupId, what: BackupPart) -> bool {
        match what {
            BackupPart::Pack(number) => self.packs.get(id).is_some_and(|numbers| numbers.contains(&number)),
            BackupPart::Map(_) => self.maps.contains(id),
            BackupPart::ServerManifest(_) | BackupPart::Intent | BackupPart::Alive(_) => false,
        }
    }
}

/// What was asked for by name, sorted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub delete: Vec<Deletion>,
    /// No backups (any more): there is nothing to delete but what they left.
    pub already: Vec<BackupId>,
}

/// Reads what was asked for against what is there; with what older plans began. Refuses what does not exist, what is running, what cannot be
/// read (without `force`) and what would leave no backup (without `force`).
pub fn wanted(view: &View, asked: &[BackupId], force: bool, waits: &Waits) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let mut unknown = Vec::new();
    for id in asked.iter().collect::<BTreeSet<_>>() {
        match view.state(id, waits) {
            State::Complete => {
                wanted.delete.push(Deletion { backup: id.clone(), maps: maps_of(view, id), forced: force })
            }
            State::Dark => wanted.delete.push(dark(view, id, force)?),
            State::Lost if force => wanted.delete.push(Deletion { backup: id.clone(), maps: Vec::new(), forced: true }),
            State::Lost => return Err(lost(id, view)),
            State::Live => return Err(running(id)),
            State::Unknown => unknown.push(id),
            State::GivenUp(_) | State::Deleted | State::Stale | State::Stray => wanted.already.push(id.clone()),
        }
    }
    if let Some(id) = unknown.first() {
        return Err(no_such(id, view));
    }
    for older in view.plans.iter().flat_map(|stored| &stored.plan.delete) {
        let begun = matches!(view.state(&older.backup, waits), State::Complete | State::Dark);
        match wanted.delete.iter_mut().find(|deletion| deletion.backup == older.backup) {
            Some(known) => known.forced |= older.forced,
            None if begun => wanted.delete.push(older.clone()),
            None => {}
        }
    }
    let (_, spared) = view.deletable(&wanted.delete, None, waits);
    match spared.iter().find(|(id, why)| matches!(why, Spared::Last { .. }) && asked.contains(id)) {
        Some((id, _)) => Err(last(id, view)),
        None => Ok(wanted),
    }
}

fn maps_of(view: &View, id: &BackupId) -> Vec<MapRef> {
    match view.backups.get(id) {
        Some(Standing::Complete(manifest)) => manifest.maps.clone(),
        _ => Vec::new(),
    }
}

fn dark(view: &View, id: &BackupId, force: bool) -> Result<Deletion> {
    match view.backups.get(id) {
        Some(Standing::Dark(Kind::Corrupt, _)) if force => {
            Ok(Deletion { backup: id.clone(), maps: Vec::new(), forced: true })
        }
        Some(Standing::Dark(kind, problem)) => {
            let error = Error::new(*kind, format!("backup {id} cannot be read: {problem}"));
            Err(match kind {
                Kind::Corrupt => error.hint("see whether a copy can be put back; `--force` deletes it all the same"),
                Kind::Key => error.hint("give the repository secret that it was sealed with: force deletes no backup that another key opens"),
                _ => error.hint("use a version of walrecv that reads it: force deletes nothing that this one does not know"),
            })
        }
        _ => Err(no_such(id, view)),
    }
}

fn lost(id: &BackupId, view: &View) -> Error {
    let why = view.lost.get(id).map_or("", String::as_str);
    Error::new(Kind::Corrupt, format!("the manifest of backup {id} is gone, and no expiry deleted it: {why}"))
        .hint("see whether a copy can be put back; `--force` gives the backup up for good")
}

fn running(id: &BackupId) -> Error {
    Error::new(Kind::Retention, format!("backup {id} has begun and is neither complete nor given up"))
        .hint("stop it where it runs; what a killed backup left goes by itself when nothing of it has moved for a day")
}

fn no_such(id: &BackupId, view: &View) -> Error {
    let known: Vec<&str> = view.complete().map(|manifest| manifest.id.as_str()).collect();
    let hint = match known.is_empty() {
        true => "no complete backup is stored".to_owned(),
        false => format!("there are: {}", known.join(", ")),
    };
    Error::new(Kind::Usage, format!("there is no backup {id}")).hint(hint)
}

fn last(id: &BackupId, view: &View) -> Error {
    let unfit = view.an_unfit().map(|(unfit, why)| format!("; nothing can be restored from {unfit}: {why}"));
    let text = match view.complete().count() {
        _ if let Some(unfit) = &unfit => format!("no backup would be left to restore from without {id}{unfit}"),
        1 => format!("backup {id} is the last complete one"),
        count => format!("all {count} complete backups would be gone, {id} among them"),
    };
    Error::new(Kind::Retention, text)
        .hint("take a new backup first; `--force` deletes it all the same, and nothing can be restored then")
}
