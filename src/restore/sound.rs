//! A backup that a noted check found hurt is restored only where no other one lands at the same place.

use super::choose::{self, Choice, PassedOver, Wanted};
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::seal::content::manifest::Manifest;

/// The same landing from a backup that nothing is known against, if `choice` is of one that was found hurt. What the checks say cannot be read without it being a
/// reason to restore nothing.
pub async fn prefer(
    archive: &Archive,
    inventory: &Inventory,
    backups: &[Manifest],
    wanted: &Wanted,
    choice: Choice,
) -> Choice {
    let verdicts = archive.verdicts().await.unwrap_or_else(|error| {
        tracing::warn!("what checks have found of the backups cannot be read: {error}");
        Default::default()
    });
    let is_hurt = |manifest: &Manifest| verdicts.is_hurt(manifest.id.as_str());
    if !is_hurt(&choice.manifest) {
        return choice;
    }
    let choice = Choice { hurt: true, ..choice };
    if wanted.backup.is_some() {
        return choice;
    }
    let sound: Vec<Manifest> = backups.iter().filter(|manifest| !is_hurt(manifest)).cloned().collect();
    match choose::choose(archive, inventory, &sound, wanted).await {
        Ok(mut other) if lands_alike(&other, &choice) => {
            let newer = backups.iter().filter(|manifest| is_hurt(manifest) && manifest.start > other.manifest.start);
            let why = "a noted check found it hurt, and this restore lands at the same place without it";
            let passed = newer.map(|manifest| PassedOver { backup: manifest.id.to_string(), why: why.to_owned() });
            other.passed_over.extend(passed);
            other
        }
        _ => choice,
    }
}

fn lands_alike(one: &Choice, other: &Choice) -> bool {
    let place = |choice: &Choice| {
        let landing = &choice.landing;
        (choice.path.target(), landing.timeline, landing.replayed, landing.needed, landing.last_commit)
    };
    place(one) == place(other)
}
