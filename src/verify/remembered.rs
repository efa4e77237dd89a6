//! What earlier checks found hurt. A quick look reads too little to take that back, and its result is what people see until the next one.

use std::collections::BTreeSet;

use super::Flaw;
use super::backups::Shelf;
use super::look::{Look, Trouble};
use crate::error::{Context, Result};

/// Newest checks that are asked. Each quick one says again what it was told.
const CHECKS: usize = 16;

/// Backups that a noted check found hurt stay so, until one that opens every byte finds them whole.
pub async fn look(look: &Look<'_>, shelf: &Shelf) -> Result<()> {
    let hurt =
        look.patiently(|| look.archive.found_hurt(CHECKS)).await.context("cannot read what was found earlier")?;
    for id in shelf.ids().filter(|id| hurt.contains(id)) {
        let found =
            "an earlier check found it hurt, and a quick one cannot take that back: see `walrecv verify --deep`";
        let trouble = Trouble { flaw: Flaw::Damaged, found: found.to_owned() };
        let name = look.archive.names.backup(&id);
        look.blame(&name, "a backup that is whole", trouble, BTreeSet::from([id]));
    }
    Ok(())
}
