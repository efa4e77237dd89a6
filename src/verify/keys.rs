//! The files that wrap the repository identity: without any of them nothing that is stored can be opened, by anyone.

use std::collections::BTreeSet;

use super::backups::Shelf;
use super::look::{Look, Trouble};
use crate::archive::key_files;
use crate::error::Result;
use crate::keys::setup;
use crate::repo::names;

/// Looks at each file of the configured identity. One that is damaged shuts out its own recipient; where none is whole, no backup can be restored.
pub async fn look(look: &Look<'_>, shelf: &Shelf, identity: &str) -> Result<()> {
    let repo = &look.archive.repo;
    let (mut whole, mut opened, mut troubles, mut readable) = (0, 0, Vec::new(), false);
    for name in look.patiently(|| key_files::listed(repo, identity)).await? {
        match file(look, &name).await {
            Ok(opens) => (whole, opened) = (whole + 1, opened + u64::from(opens)),
            Err(trouble) => match renamed(look, &name, identity).await {
                Some(trouble) => {
                    readable = true;
                    troubles.push((name, trouble));
                }
                None => troubles.push((name, trouble)),
            },
        }
    }
    look.count(|checked| {
        checked.key_files += whole;
        checked.key_files_opened = look.options.opens.as_ref().map(|_| opened);
    });
    let hurts = if whole == 0 && !readable { shelf.ids().collect::<BTreeSet<String>>() } else { BTreeSet::new() };
    if whole == 0 && troubles.is_empty() {
        let expected =
            "the repository identity, wrapped for a recipient: without it nothing that is stored can be opened";
        look.blame(&names::key_folder(&setup::short_name(identity)), expected, Trouble::missing(), hurts);
        return Ok(());
    }
    for (name, trouble) in troubles {
        look.blame(&name, "the repository identity, wrapped for a recipient, as it was stored", trouble, hurts.clone());
    }
    Ok(())
}

/// Whether the private key at hand opens a file that is whole.
async fn file(look: &Look<'_>, name: &str) -> Result<bool, Trouble> {
    let (repo, secret) = (&look.archive.repo, look.archive.keys.secret());
    let read = look.patient(name, || key_files::read(repo, secret, name)).await;
    let bytes = read?.ok_or_else(Trouble::missing)?;
    let Some(opens) = look.options.opens.clone() else { return Ok(false) };
    let opened = repo.lane().run(move || opens(&bytes)).await;
    Ok(opened.unwrap_or(false))
}

/// What opens is whole, whatever its name says, but a writer without a private key cannot know it.
async fn renamed(look: &Look<'_>, name: &str, identity: &str) -> Option<Trouble> {
    let opens = look.options.opens.clone()?;
    let bytes = look.archive.repo.get(name).await.ok()??;
    let file = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".age");
    let recipient = file.rsplit_once('-').map_or(file, |(recipient, _)| recipient);
    let right = key_files::name_of(look.archive.keys.secret(), identity, recipient, &bytes);
    let opened = look.archive.repo.lane().run(move || opens(&bytes)).await;
    let found =
        format!("the private key at hand opens it, but its name is not that of its bytes: rename it to {right}");
    opened.unwrap_or(false).then(|| Trouble::damaged(found))
}
