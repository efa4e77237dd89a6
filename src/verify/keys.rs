//! The files that wrap the repository identity: without any of them nothing that is stored can be opened, by anyone.

use std::collections::BTreeSet;

use super::Flaw;
use super::backups::Shelf;
use super::look::{Look, Trouble};
use crate::error::{Context, Result};
use crate::keys::setup;

/// Looks at each file of the configured identity. One that is damaged shuts out its own recipient; where none is sound, no backup can be restored.
pub async fn look(look: &Look<'_>, shelf: &Shelf, identity: &str) -> Result<()> {
    let folder = format!("keys/{}", setup::short_name(identity));
    let listed = look.patiently(|| look.archive.repo.list(&folder)).await;
    let listed = listed.context("cannot list the key files")?;
    let (mut sound, mut troubles) = (0, Vec::new());
    for name in listed.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(".age")) {
        match file(look, &name).await {
            Ok(()) => sound += 1,
            Err(trouble) => troubles.push((name, trouble)),
        }
    }
    look.count(|checked| checked.key_files += sound);
    let all = || shelf.ids().collect::<BTreeSet<String>>();
    let hurts = if sound == 0 { all() } else { BTreeSet::new() };
    if sound == 0 && troubles.is_empty() {
        let expected =
            "the repository identity, wrapped for a recipient: without it nothing that is stored can be opened";
        look.blame(&folder, expected, Trouble::missing(), hurts);
        return Ok(());
    }
    for (name, trouble) in troubles {
        look.blame(&name, "the repository identity, wrapped for a recipient", trouble, hurts.clone());
    }
    Ok(())
}

/// What can be seen without a private key. What looks wrong is read once more.
async fn file(look: &Look<'_>, name: &str) -> Result<(), Trouble> {
    let mut last = Trouble::missing();
    for _ in 0..2 {
        last = match look.patient(name, || look.archive.repo.get(name)).await {
            Ok(Some(bytes)) => match setup::demand_wrapped(&bytes) {
                Ok(()) => return Ok(()),
                Err(error) => Trouble { flaw: Flaw::Damaged, found: error.to_string() },
            },
            Ok(None) => Trouble::missing(),
            Err(trouble) => return Err(trouble),
        };
    }
    Err(last)
}
