//! A backup that a noted check found hurt is restored only where no other one lands at the same place.

use super::choose::{self, Choice, PassedOver, Wanted};
use super::{Prepared, stock};
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::error::{Error, Kind, Result};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{File, Source};

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
            let passed = newer.map(|manifest| PassedOver {
                backup: manifest.id.to_string(),
                why: why.to_owned(),
                cut_off: false,
            });
            other.passed_over.extend(passed);
            other
        }
        _ => choice,
    }
}

/// A restore that lands where `first` does, from a backup that nothing is known against and that is none of `damaged`; `None`: there is none. Reads WAL again.
pub async fn instead(
    archive: &Archive,
    wanted: &Wanted,
    first: &Prepared,
    damaged: &[PassedOver],
) -> Result<Option<Prepared>> {
    let list = stock::backups(archive).await?;
    let verdicts = archive.verdicts().await.unwrap_or_default();
    let is_passed = |id: &str| damaged.iter().any(|passed| passed.backup == id);
    let fit = |manifest: &&Manifest| !verdicts.is_hurt(manifest.id.as_str()) && !is_passed(manifest.id.as_str());
    let others: Vec<Manifest> = list.complete.iter().filter(fit).cloned().collect();
    let timeline = Some(first.choice.path.target());
    let wanted = Wanted { target: wanted.target.clone(), timeline, backup: None };
    let inventory = archive.inventory().await?;
    match choose::choose(archive, &inventory, &others, &wanted).await {
        Ok(mut other) if lands_alike(&other, &first.choice) => {
            other.passed_over.splice(..0, damaged.iter().cloned());
            other.later.clone_from(&first.choice.later);
            other.beside.clone_from(&first.choice.beside);
            other.unknown.clone_from(&first.choice.unknown);
            Ok(Some(Prepared::of(archive, &wanted, other)))
        }
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), Kind::Target | Kind::Gap | Kind::Corrupt) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Backups that are looked at for a way out.
const LOOKED: usize = 8;

/// The newest other backup that leads to the same place and needs nothing of what `error` names; what keeps it from being found is no news beside that error.
pub async fn way_out(archive: &Archive, wanted: &Wanted, first: &Prepared, error: &Error) -> Option<String> {
    let text = error.to_string();
    let passed = |prepared: &Prepared| PassedOver {
        backup: prepared.choice.manifest.id.to_string(),
        why: String::new(),
        cut_off: false,
    };
    let mut damaged = vec![passed(first)];
    for _ in 0..LOOKED {
        let other = instead(archive, wanted, first, &damaged).await.ok()??;
        let mut hit = false;
        let mut see = |file: File| {
            hit |= file.runs.iter().any(|run| match &run.source {
                Source::Pack { pack, .. } => names(&text, &archive.names.pack(pack.backup.as_str(), pack.number)),
                _ => false,
            });
        };
        // Reads all its maps, too.
        if archive.each_file(&other.choice.manifest, &mut see).await.is_ok() && !hit {
            return Some(other.choice.manifest.id.to_string());
        }
        damaged.push(passed(&other));
    }
    None
}

/// Whether a text names an object whose name ends in a number.
fn names(text: &str, object: &str) -> bool {
    text.match_indices(object).any(|(at, _)| !text[at + object.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

fn lands_alike(one: &Choice, other: &Choice) -> bool {
    let place = |choice: &Choice| {
        let landing = &choice.landing;
        (choice.path.target(), landing.timeline, landing.replayed, landing.needed, landing.last_commit)
    };
    place(one) == place(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pack_is_not_the_eleventh() {
        let name = "clusters/main/1-16/packs/20260131T020000Z/1";
        assert!(
            names(&format!("{name} is missing"), name)
                && names(name, name)
                && names(&format!("{name}2, {name}: cut"), name)
        );
        assert!(!names(&format!("{name}2 is missing"), name) && !names("", name));
    }
}
