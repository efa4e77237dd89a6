//! What earlier checks found. A quick look reads too little to take back what a deep one found, and its result is what people see until the next one.

use std::collections::BTreeSet;

use super::Flaw;
use super::backups::Shelf;
use super::look::{Look, Trouble};
use crate::archive::verdicts::{LOOKED_AT, hurt_deep};
use crate::error::{Context, Result};

/// Backups that a deep check found hurt stay so, until another one finds them whole. Returns which those are.
pub async fn look(look: &Look<'_>, shelf: &Shelf) -> Result<Vec<String>> {
    let checks =
        look.patiently(|| look.archive.verified(LOOKED_AT)).await.context("cannot read what was found earlier")?;
    let hurt = hurt_deep(checks.iter().map(|(_, check)| check));
    let mut remembered = Vec::new();
    for id in shelf.ids().filter(|id| hurt.contains(id)) {
        let found = "a deep check found it hurt, and a quick one cannot take that back: see `walrecv verify --deep`";
        let trouble = Trouble { flaw: Flaw::Damaged, found: found.to_owned() };
        let name = look.archive.names.backup(&id);
        look.blame(&name, "a backup that is whole", trouble, BTreeSet::from([id.clone()]));
        remembered.push(id);
    }
    Ok(remembered)
}
