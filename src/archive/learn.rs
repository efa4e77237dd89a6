//! Bringing a catalog up to what the repository holds: from nothing, or from where it was left.
//!
//! Names are listed folder by folder; what is new is read from the group's summary, and only what that does not list from the objects themselves. Every folder is
//! noted as a whole and in order, so whatever is cut off leaves a catalog that is right up to somewhere and is continued from there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures::stream::{self, StreamExt};

use super::Archive;
use super::group::{GroupListing, WalEntry};
use crate::catalog::{Catalog, Fact, Identity, Object, Shared};
use crate::error::{Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::WalGroup;
use crate::repo::names::WalObject;
use crate::seal::content::summary::Summary;

/// Folders looked at beside one another.
const FOLDERS: usize = 4;
/// For fewer objects than this a group's summary is not fetched.
const FEW: usize = 3;
/// WAL in one folder.
const GROUP: u64 = crate::seal::content::group::GROUP_BYTES;

/// How much of the repository is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything; what is noted and no longer stored is forgotten.
    All,
    /// What may have been stored since the catalog was last up to date: of each timeline the folder of the last noted object, the one before it, and all after it.
    New,
}

/// What was done, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    pub folders: u64,
    /// Of so many.
    pub all_folders: u64,
    /// Objects that were noted.
    pub objects: u64,
    /// Objects that were forgotten.
    pub gone: u64,
    /// Group summaries that were read.
    pub summaries: u64,
    /// Objects whose beginning was read.
    pub heads: u64,
    /// What is damaged and so not in the catalog, with the reason.
    pub damaged: Vec<String>,
}

/// What one folder brought.
#[derive(Default)]
struct Folder {
    facts: Vec<Fact>,
    learned: Learned,
}

impl Archive {
    /// What a catalog of this archive belongs to.
    pub fn identity(&self) -> Identity {
        Identity {
            repository: self.keys.repository(),
            cluster: self.names.cluster.clone(),
            system: self.names.system,
            segment_size: self.names.segment_size,
        }
    }

    /// Brings `catalog` up to date and tells `progress` after every folder. The repository secret is enough. Damage in the repository is told in the result
    /// and ends nothing.
    pub async fn learn(
        &self,
        catalog: &Shared,
        scope: Scope,
        progress: &(dyn Fn(&Learned) + Send + Sync),
    ) -> Result<Learned> {
        self.learn_but(catalog, scope, &|_, _| false, progress).await
    }

    /// The same, where an object that starts at such a place, and is no `.partial`, is not forgotten although it is not stored any more.
    pub async fn learn_but(
        &self,
        catalog: &Shared,
        scope: Scope,
        keeps: &(dyn Fn(TimelineId, Lsn) -> bool + Send + Sync),
        progress: &(dyn Fn(&Learned) + Send + Sync),
    ) -> Result<Learned> {
        let mut learned = Learned::default();
        let timelines = self.learn_top(catalog, scope, &mut learned).await?;
        let mut groups = Vec::new();
        for timeline in timelines {
            let mut folders = self.groups(timeline).await?;
            if scope == Scope::New {
                let last = catalog.with(move |c| c.last(timeline)).await?;
                let last = last.map(|last| WalGroup::of(timeline, last));
                let known = folders.iter().position(|group| last.is_some_and(|last| *group >= last));
                let known = known.unwrap_or(if last.is_some() { folders.len() } else { 0 });
                folders.drain(..known.saturating_sub(1));
            }
            groups.extend(folders);
        }
        learned.all_folders = groups.len() as u64;
        let folders: Vec<_> = groups.into_iter().map(|group| self.learn_group(catalog, group, keeps)).collect();
        let mut looking = stream::iter(folders).buffered(FOLDERS);
        while let Some(folder) = looking.next().await {
            let folder = folder?;
            if !folder.facts.is_empty() {
                catalog.with(move |c| c.apply(&folder.facts, SystemTime::now())).await?;
            }
            learned.folders += 1;
            learned.objects += folder.learned.objects;
            learned.gone += folder.learned.gone;
            learned.summaries += folder.learned.summaries;
            learned.heads += folder.learned.heads;
            learned.damaged.extend(folder.learned.damaged);
            progress(&learned);
        }
        Ok(learned)
    }

    /// What a catalog of this archive says that is made anew, without a file.
    pub async fn fresh_catalog(&self, progress: &(dyn Fn(&Learned) + Send + Sync)) -> Result<(Shared, Learned)> {
        let shared = Shared::new(Catalog::in_memory(&self.identity())?, self.repo.lane());
        let learned = self.learn(&shared, Scope::All, progress).await?;
        Ok((shared, learned))
    }

    /// Histories, and what is gone as a whole; the timelines of which WAL is stored.
    async fn learn_top(&self, catalog: &Shared, scope: Scope, learned: &mut Learned) -> Result<Vec<TimelineId>> {
        let top = self.repo.children(&format!("{}/wal", self.names.root())).await?;
        let mut timelines: Vec<TimelineId> =
            top.folders.iter().filter_map(|folder| TimelineId::from_folder(folder)).collect();
        timelines.sort_unstable();
        let known = catalog.with(|c| c.histories()).await?;
        let mut facts = Vec::new();
        let mut stored = Vec::new();
        for listed in &top.objects {
            let Some(WalObject::History { timeline }) = self.parse(&listed.name) else { continue };
            stored.push(timeline);
            if known.contains_key(&timeline) && scope == Scope::New {
                continue;
            }
            match self.history(timeline).await {
                Ok(Some(content)) => facts.push(Fact::History { timeline, content: content.to_vec() }),
                Ok(None) => {}
                Err(error) if error.kind() == Kind::Corrupt => learned.damaged.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        facts.extend(known.into_keys().filter(|timeline| !stored.contains(timeline)).map(Fact::NoHistory));
        if scope == Scope::All {
            let gone = self.gone_folders(catalog, &timelines).await?;
            learned.gone += gone.iter().filter(|fact| matches!(fact, Fact::Gone { .. })).count() as u64;
            facts.extend(gone);
        }
        catalog.with(move |c| c.apply(&facts, SystemTime::now())).await?;
        Ok(timelines)
    }

    /// What is noted of folders that do not exist any more.
    async fn gone_folders(&self, catalog: &Shared, timelines: &[TimelineId]) -> Result<Vec<Fact>> {
        let mut folders = Vec::new();
        for timeline in timelines {
            folders.extend(self.groups(*timeline).await?);
        }
        let (objects, groups) = catalog.with(|c| Ok((c.objects()?, c.groups()?))).await?;
        let is_gone = |timeline, lsn| folders.binary_search(&WalGroup::of(timeline, lsn)).is_err();
        let objects = objects.into_iter().filter(|object| is_gone(object.timeline, object.start));
        let objects = objects.map(|o| Fact::Gone { timeline: o.timeline, start: o.start, partial: o.partial });
        let groups = groups.into_iter().filter(|(timeline, first)| is_gone(*timeline, *first));
        Ok(objects.chain(groups.map(|(timeline, first)| Fact::NoGroup { timeline, first })).collect())
    }

    async fn learn_group(
        &self,
        catalog: &Shared,
        group: WalGroup,
        keeps: &(dyn Fn(TimelineId, Lsn) -> bool + Send + Sync),
    ) -> Result<Folder> {
        let listing = self.list_group(group).await?;
        let (timeline, first) = (group.timeline, group.first);
        let known = catalog.with(move |c| c.known(timeline, first, first + GROUP)).await?;
        let mut folder = Folder::default();
        folder.facts.push(match listing.summary {
            true => Fact::Group { timeline, first },
            false => Fact::NoGroup { timeline, first },
        });
        let noted: BTreeMap<(Lsn, bool), u64> =
            known.iter().map(|((start, partial), size)| ((self.place_of(*start, *partial), *partial), *size)).collect();
        let is_noted = |entry: &&WalEntry| noted.get(&(entry.start, entry.partial)) == Some(&entry.size);
        let missing: Vec<&WalEntry> = listing.entries.iter().filter(|entry| !is_noted(entry)).collect();
        self.learn_missing(group, &listing, missing, &mut folder).await?;
        let listed: BTreeSet<(Lsn, bool)> =
            listing.entries.iter().map(|entry| (self.place_of(entry.start, entry.partial), entry.partial)).collect();
        for (start, partial) in known.keys().copied() {
            let kept = !partial && keeps(timeline, start);
            if !kept && !listed.contains(&(self.place_of(start, partial), partial)) {
                folder.learned.gone += 1;
                folder.facts.push(Fact::Gone { timeline, start, partial });
            }
        }
        Ok(folder)
    }

    /// What a name tells of where an object starts: a `.partial` begins somewhere in its segment.
    fn place_of(&self, start: Lsn, partial: bool) -> Lsn {
        if partial { start.align_down(self.names.segment_size.bytes()) } else { start }
    }

    /// Finds the summaries of objects that are not noted: in the group's summary, or at their beginnings.
    async fn learn_missing(
        &self,
        group: WalGroup,
        listing: &GroupListing,
        missing: Vec<&WalEntry>,
        folder: &mut Folder,
    ) -> Result<()> {
        let mut listed: BTreeMap<(Lsn, bool), Summary> = BTreeMap::new();
        if listing.summary && missing.len() >= FEW {
            folder.learned.summaries += 1;
            match self.group_summary(group).await {
                Ok(found) => {
                    let found = found.unwrap_or_default();
                    listed.extend(found.segments.into_iter().map(|summary| ((summary.start, false), summary)));
                }
                Err(error) if error.kind() == Kind::Corrupt => folder.learned.damaged.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let unlisted = |entry: &&&WalEntry| !listed.contains_key(&(entry.start, entry.partial));
        let unlisted: Vec<&WalEntry> = missing.iter().filter(unlisted).copied().collect();
        let mut heads = self.heads(group, &unlisted).await?;
        folder.learned.heads += heads.read;
        folder.learned.damaged.extend(heads.damaged.drain(..).map(|(_, error)| error.to_string()));
        for entry in missing {
            let summary = listed.remove(&(entry.start, entry.partial)).or_else(|| heads.found.remove(&entry.name));
            if let Some(summary) = summary {
                folder.learned.objects += 1;
                let object = Object::of(group.timeline, entry.partial, entry.size, &summary);
                folder.facts.push(Fact::Object(object));
            }
        }
        Ok(())
    }
}
