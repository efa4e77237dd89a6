//! Floor 5: restore: plan (pure), lay back, fetch WAL, recovery settings.
//!
//! [`prepare`] says where a restore lands and changes nothing; [`restore`] lays the backup and writes the recovery; [`start::Start`] runs the server;
//! [`fetch::answer`] is what the server then calls for WAL.

pub mod ahead;
mod beside;
pub mod choose;
mod commits;
mod configure;
pub mod decide;
pub mod fetch;
mod fits;
mod ground;
pub mod hand_over;
mod keep;
mod later;
pub mod lay;
mod left_out;
mod listing;
mod look;
pub mod near;
mod occupant;
pub mod only;
mod pack;
pub mod plan;
pub mod plan_file;
mod port;
pub mod prefetch;
mod pulse;
pub mod recovering;
pub mod recovery;
mod refuse;
mod rehearse;
pub mod report;
pub mod scan;
pub mod scratch;
mod sent;
pub mod server;
mod set_back;
pub mod settings;
mod settled;
mod shared;
pub mod sound;
mod spaces;
pub mod start;
pub mod stock;
mod stopped;
pub mod target;
mod weigh;
pub mod windows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use choose::{Choice, Wanted};
pub use configure::{Options, Restored};
pub use only::{Only, Pick};
pub use plan_file::Access;
pub use port::demand_free as demand_free_port;
pub use rehearse::rehearse;
pub use report::{PlacedShown, Plan};
pub use target::{Action, Target};
pub use weigh::replayed;

pub use crate::archive::path;

use recovery::Scratch;

use crate::archive::Archive;
use crate::archive::backups::BackupList;
use crate::error::{Class, Error, Kind, Result};
use crate::pg::TimelineId;
use crate::seal::content::map::File;

/// A restore that is known to lead to its target.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub choice: Choice,
    pub target: Target,
    /// The same for people and scripts.
    pub plan: Plan,
    /// Bytes that are written, by the tablespace's object id, 0 for the data directory; known once it was weighed.
    pub laid: BTreeMap<u32, u64>,
    /// `postgresql.auto.conf` and `postgresql.conf`, as far as the backup has them; known with these.
    pub configuration: Vec<File>,
    /// `None`: all databases.
    pub only: Option<Arc<Only>>,
}

impl Prepared {
    fn of(archive: &Archive, wanted: &Wanted, choice: Choice) -> Prepared {
        let plan = Plan::of(&choice, &wanted.target, archive.names.segment_size);
        let target = wanted.target.clone();
        Prepared { choice, target, plan, laid: BTreeMap::new(), configuration: Vec::new(), only: None }
    }

    /// The same restore, of these databases alone. Reads the WAL up to the landing.
    pub async fn only(self, archive: &Archive, pick: Pick<'_>) -> Result<Prepared> {
        self.only_and_changed(archive, pick, &BTreeMap::new()).await
    }

    /// The same, and of `classes` (databases, and the numbers of the files of their `pg_class`) those in which relations were made, or renamed, since the backup.
    pub async fn only_and_changed(
        self,
        archive: &Archive,
        pick: Pick<'_>,
        classes: &BTreeMap<u32, u32>,
    ) -> Result<Prepared> {
        let only = Only::choose(archive, &self.choice, pick, classes).await?;
        let plan = self.plan.only(&only);
        Ok(Prepared { plan, only: Some(Arc::new(only)), ..self })
    }
}

/// Chooses the backup and computes the landing. Reads the archive, changes nothing.
pub async fn prepare(archive: &Archive, wanted: &Wanted) -> Result<Prepared> {
    let list = stock::backups(archive).await?;
    if let Some(id) = &wanted.backup {
        stock::demand_read(&list, id)?;
    }
    if list.complete.is_empty()
        && let Some(error) = stock::lost(archive).await?
    {
        return Err(error);
    }
    let inventory = archive.inventory().await?;
    let choice = choose::choose(archive, &inventory, &list.complete, wanted).await?;
    let choice = sound::prefer(archive, &inventory, &list.complete, wanted, choice).await;
    let choice = choose::compared(archive, &inventory, &list.complete, wanted, choice).await?;
    if wanted.timeline.is_none() && wanted.backup.is_none() {
        demand_no_newer(&list, choice.path.target())?;
    }
    Ok(Prepared::of(archive, wanted, choice))
}

/// On which timeline the newest backup lies decides where a restore goes that names none: one that cannot be read must not be passed over in silence.
fn demand_no_newer(list: &BackupList, chosen: TimelineId) -> Result<()> {
    let Some((id, error)) = list.unread().find(|(id, _)| id.timeline() > chosen) else { return Ok(()) };
    let text = format!(
        "backup {id} of timeline {} cannot be read, and without it this would go to timeline {chosen}: {error}",
        id.timeline()
    );
    Err(Error::new(error.kind(), text).hint(format!(
        "Put it back from another copy of the repository, or say `--target-timeline {chosen}` if that is what you want."
    )))
}

/// The timeline on which a backup was taken: `id`, or else the newest one. What `--target-timeline current` means.
pub async fn timeline_of(archive: &Archive, id: Option<&str>) -> Result<TimelineId> {
    let newest = match id {
        None => archive.newest_backup().await?,
        Some(id) => {
            let list = stock::backups(archive).await?;
            stock::demand_read(&list, id)?;
            list.complete.into_iter().find(|m| m.id.as_str() == id)
        }
    };
    if newest.is_none()
        && let Some(error) = stock::lost(archive).await?
    {
        return Err(error);
    }
    newest.map(|m| m.stop_timeline).ok_or_else(|| {
        let which = id.map(|id| format!(" {id}")).unwrap_or_default();
        Error::new(Kind::Target, format!("the archive has no complete backup{which}"))
            .hint("walrecv list shows the backups")
    })
}

/// Everything that can be refused before a byte is copied: directories, tablespaces, paths, a server at work, too little room. Changes nothing. Where the
/// tablespaces would go.
pub fn check(prepared: &Prepared, options: &Options) -> Result<Vec<PlacedShown>> {
    if let Some(Scratch { directory, port }) = &options.scratch {
        let hint = "name a shorter --pgdata: a scratch server has its socket in it; nothing was changed";
        scratch::demand_socket(directory, *port).map_err(|error| error.hint(hint))?;
    }
    let ground = ground::look(prepared, options)?;
    fits::demand(prepared, &ground)?;
    Ok(PlacedShown::of(&prepared.choice.manifest, &ground.tablespaces))
}

/// Lays the backup back and writes the recovery settings and the plan. The target directories must be absent, empty, or left by an
/// interrupted restore, which is gone on with; with [`Options::delta`] the data directory may be one of the same cluster. Otherwise nothing is changed. Success
/// means everything is synced.
pub async fn restore(
    archive: &Archive,
    access: Access,
    prepared: &Prepared,
    options: &Options,
    progress: lay::Progress<'_>,
) -> Result<Restored> {
    // Held to the end: a second restore into the same place must not take this one for interrupted.
    let mut claimed = ground::claim(prepared, options)?;
    let filled = fill(archive, access, prepared, options, &claimed, progress).await;
    if filled.as_ref().is_err_and(|error| error.class() == Class::Unsynced) {
        claimed.doubt();
    }
    filled
}

/// Everything from the first file to pg_control.
async fn fill(
    archive: &Archive,
    access: Access,
    prepared: &Prepared,
    options: &Options,
    claimed: &ground::Claimed,
    progress: lay::Progress<'_>,
) -> Result<Restored> {
    let (manifest, ground) = (&prepared.choice.manifest, &claimed.ground);
    let only = prepared.only.as_deref();
    let (mut listing, lost) = match listing::Listing::begin(archive, manifest, ground, only.is_none()).await? {
        listing::Begun::Said(listing) => (Some(*listing), None),
        listing::Begun::Unsaid => (None, None),
        listing::Begun::Lost(lost) => (None, Some(lost)),
    };
    lost.iter().for_each(|lost| tracing::warn!("{lost}"));
    let mut laid = lay::lay(archive, manifest, only, ground, options.jobs, progress, &mut listing).await?;
    laid.removed = lay::prune(ground, &laid.paths, listing.is_some())?;
    if listing.as_ref().is_some_and(|listing| !listing.writes()) {
        lay::server_manifest(archive, manifest, ground).await?;
    }
    let mut restored = configure::configure(archive, access, prepared, options, claimed, &laid).await?;
    if let Some(listing) = listing {
        listing.finish(manifest, ground, &laid, &restored.written)?;
    }
    lay::seal_off(ground, laid, options.jobs).await?;
    restored.warnings.extend(lost);
    Ok(restored)
}

/// A tablespace that goes elsewhere: `OLD=NEW`, both absolute. A `\` before `=` makes it part of a path.
pub fn parse_mapping(text: &str) -> Result<(PathBuf, PathBuf)> {
    let mut sides = [String::new(), String::new()];
    let mut second = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let [old, new] = &mut sides;
        let side = if second { new } else { old };
        match c {
            '\\' if chars.peek() == Some(&'=') => side.extend(chars.next()),
            '=' if !second => second = true,
            c => side.push(c),
        }
    }
    let [old, new] = sides.map(PathBuf::from);
    if second && old.is_absolute() && new.is_absolute() {
        return Ok((old, new));
    }
    Err(Error::new(Kind::Usage, format!("expected OLD=NEW with absolute paths, found {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        let pair = |a: &str, b: &str| (PathBuf::from(a), PathBuf::from(b));
        assert_eq!(parse_mapping("/a=/b").unwrap(), pair("/a", "/b"));
        assert_eq!(parse_mapping("/a\\=x=/b\\=y").unwrap(), pair("/a=x", "/b=y"));
        assert_eq!(parse_mapping("/a=/b=c").unwrap(), pair("/a", "/b=c"));
        for bad in ["", "/a", "a=/b", "/a=b", "=", "/a="] {
            assert_eq!(parse_mapping(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_backup_of_a_newer_timeline_that_cannot_be_read_is_not_passed_over() {
        let name = "clusters/main/1-16/backups/20260131T020000Z-00000002-0000000003000028-1a2b";
        let unreadable = vec![
            (name.to_owned(), Error::new(Kind::Repository, "a bad sector")),
            ("clusters/main/1-16/backups/notes.txt".to_owned(), Error::new(Kind::Corrupt, "no backup's name")),
        ];
        let list = BackupList { unreadable, ..BackupList::default() };
        let error = demand_no_newer(&list, TimelineId(1)).unwrap_err();
        assert!(error.kind() == Kind::Repository && error.to_string().contains("a bad sector"), "{error}");
        assert!(error.advice().is_some_and(|hint| hint.contains("--target-timeline 1")));
        // WAL leads past it from an older one.
        assert!(demand_no_newer(&list, TimelineId(2)).is_ok());
    }
}
