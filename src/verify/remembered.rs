//! What earlier checks found. A quick look reads too little to take back what a deep one found, and its result is what people see until the next one.

use std::collections::{BTreeMap, BTreeSet};

use super::Flaw;
use super::backups::Shelf;
use super::look::{Look, Trouble};
use super::report::{Report, State};
use crate::archive::verdicts::Verdicts;
use crate::error::{Context, Result};

/// What the checks before this one say.
pub async fn ask(look: &Look<'_>) -> Result<Verdicts> {
    look.patiently(|| look.archive.verdicts()).await.context("cannot read what was found earlier")
}

/// Backups that a deep check found hurt stay so, until another one finds them whole: a quick one blames them. Returns which those are.
pub fn blame(look: &Look<'_>, shelf: &Shelf, told: &Verdicts) -> Vec<String> {
    let hurt: BTreeSet<&String> = told.hurt_deep().filter(|_| !look.options.deep).collect();
    let mut remembered = Vec::new();
    for id in shelf.ids().filter(|id| hurt.contains(id)) {
        let found = "a deep check found it hurt, and a quick one cannot take that back: see `walrecv verify --deep`";
        let trouble = Trouble { flaw: Flaw::Damaged, found: found.to_owned() };
        let name = look.archive.names.backup(&id);
        look.blame(&name, "a backup that is whole", trouble, BTreeSet::from([id.clone()]));
        remembered.push(id);
    }
    remembered
}

/// Puts into the report what its event shall say again, so that nobody has to look further back: what this check has not judged by every byte itself. A deep one
/// of everything has judged all that it could read, and what it did not see is gone.
pub fn carry(report: &mut Report, told: &Verdicts) {
    let seen: BTreeMap<&str, State> = report.backups.iter().map(|one| (one.id.as_str(), one.state)).collect();
    let open = |id: &&String| match seen.get(id.as_str()) {
        _ if !report.deep => true,
        Some(state) => *state == State::Unknown,
        None => report.only.is_some(),
    };
    let carried: Vec<String> = told.hurt_deep().filter(open).cloned().collect();
    if !carried.is_empty() {
        report.spoiled.merge(&told.spoiled());
    }
    report.carried = carried;
}
