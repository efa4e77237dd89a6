//! Group summaries: one object that says what hundreds of segments say of themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, StreamExt};

use super::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::repo::names::WalObject;
use crate::repo::{Found, Put, WalGroup};
use crate::seal::content::group::GroupSummary;
use crate::seal::content::summary::Summary;
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;
use crate::seal::opener::{open_index, read_header};
use crate::seal::sealer::{Compression, seal_index};

/// Objects whose beginnings are read at the same time.
const AT_ONCE: usize = 8;

/// An object with WAL, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalEntry {
    pub name: String,
    /// Bytes of the object.
    pub size: u64,
    /// A `.partial`: its start is only known when it is read.
    pub partial: bool,
    /// Of the segment or part; of the segment for a `.partial`.
    pub start: Lsn,
}

/// One folder of WAL, as listed.
#[derive(Clone, Debug, Default)]
pub struct GroupListing {
    /// Ascending by start.
    pub entries: Vec<WalEntry>,
    /// A group summary is stored.
    pub summary: bool,
}

/// Summaries of some objects, by name.
#[derive(Debug, Default)]
pub struct Heads {
    pub found: BTreeMap<String, Summary>,
    /// Objects whose beginning is damaged, with the reason.
    pub damaged: Vec<(String, Error)>,
    /// How many were read.
    pub read: u64,
}

impl Archive {
    /// What stands in a group's folder.
    pub async fn list_group(&self, group: WalGroup) -> Result<GroupListing> {
        let mut listing = GroupListing::default();
        for listed in self.repo.list(&self.names.group_folder(group)).await? {
            let (segment, part, partial) = match self.parse(&listed.name) {
                Some(WalObject::Segment { segment, part }) => (segment, part, false),
                Some(WalObject::Partial { segment }) => (segment, None, true),
                Some(WalObject::GroupSummary(_)) => {
                    listing.summary = true;
                    continue;
                }
                _ => continue,
            };
            let start = segment.start() + u64::from(part.unwrap_or(0)) * crate::repo::names::PART_BYTES;
            listing.entries.push(WalEntry { name: listed.name, size: listed.size, partial, start });
        }
        listing.entries.sort_by_key(|entry| (entry.start, entry.partial));
        Ok(listing)
    }

    /// The stored summary of a group; `None` when there is none. A damaged one is `Kind::Corrupt`: it is an index, so a reader may go on without it.
    pub async fn group_summary(&self, group: WalGroup) -> Result<Option<GroupSummary>> {
        let name = self.names.group_summary(group);
        let Some(object) = self.repo.get(&name).await? else { return Ok(None) };
        let claims = self.claims(ObjectKind::GroupSummary, group.timeline, group.first);
        let content = open_index(&object, &claims, &*self.keys).map_err(|e| refused(&name, e))?;
        let decoded = GroupSummary::decode(&content, group.first);
        decoded.map(Some).map_err(|bad| Error::new(Kind::Corrupt, bad.to_string()).context(&name))
    }

    /// Reads the beginnings of objects, several at once. One that is gone is in neither list.
    pub async fn heads(&self, group: WalGroup, entries: &[&WalEntry]) -> Result<Heads> {
        let mut heads = Heads { read: entries.len() as u64, ..Heads::default() };
        let reads: Vec<_> = entries.iter().map(|entry| self.head_of(group, entry)).collect();
        let mut reading = stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some((name, found)) = reading.next().await {
            match found {
                Ok(Some(summary)) => _ = heads.found.insert(name, summary),
                Ok(None) => {}
                Err(error) if error.kind() == Kind::Corrupt => heads.damaged.push((name, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(heads)
    }

    /// The summaries of all complete objects with WAL in a group, ascending; of one whose beginning is damaged there is none, and the caller has to read it.
    pub async fn summaries_in(&self, group: WalGroup) -> Result<Vec<Summary>> {
        let listing = self.list_group(group).await?;
        let mut found: BTreeMap<Lsn, Summary> = BTreeMap::new();
        if listing.summary {
            match self.group_summary(group).await {
                Ok(summary) => {
                    found.extend(summary.unwrap_or_default().segments.into_iter().map(|one| (one.start, one)));
                }
                // An index: the objects still tell of themselves.
                Err(error) if error.kind() == Kind::Corrupt => tracing::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        let unlisted: Vec<&WalEntry> =
            listing.entries.iter().filter(|entry| !entry.partial && !found.contains_key(&entry.start)).collect();
        let heads = self.heads(group, &unlisted).await?;
        for (name, error) in &heads.damaged {
            tracing::warn!("what {name} holds is not known: {error}");
        }
        found.extend(heads.found.into_values().map(|one| (one.start, one)));
        Ok(found.into_values().collect())
    }

    async fn head_of(&self, group: WalGroup, entry: &WalEntry) -> (String, Result<Option<Summary>>) {
        let found = if entry.partial {
            let size = self.names.segment_size;
            let segment = crate::pg::SegmentName::new(group.timeline, size.segment_of(entry.start), size);
            self.partial_summary(segment).await
        } else {
            let claims = self.claims(ObjectKind::Segment, group.timeline, entry.start);
            self.read_summary(&entry.name, &claims).await
        };
        (entry.name.clone(), found)
    }

    /// Makes the summary of a group from what is stored in it now, and stores it; `false` when one is stored already, or nothing that it could speak of. The caller
    /// knows that no more will come: what does is not in it, and costs its readers a read each.
    /// does is not in it, and costs its readers a read each.
    pub async fn put_group_summary(&self, keys: &WriterKeys, group: WalGroup, give_up: Duration) -> Result<bool> {
        let listing = self.list_group(group).await?;
        if listing.summary || listing.entries.is_empty() {
            return Ok(false);
        }
        let entries: Vec<&WalEntry> = listing.entries.iter().collect();
        let mut heads = self.heads(group, &entries).await?;
        for (name, error) in &heads.damaged {
            tracing::warn!("{name} is not in the summary of its group: {error}");
        }
        let mut summary = GroupSummary::default();
        for entry in entries {
            if let Some(head) = heads.found.remove(&entry.name) {
                if entry.partial { summary.partials.push(head) } else { summary.segments.push(head) }
            }
        }
        let name = self.names.group_summary(group);
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let claims = self.claims(ObjectKind::GroupSummary, group.timeline, group.first);
        let sealed = seal_index(keys, claims, salt, Compression::Zstd(3), &summary.encode());
        let judge = |head: &[u8]| match read_header(head) {
            Ok((header, _)) if header.salt == salt => Found::Ours,
            // Another run's: it may list less, which is no lie.
            Ok((header, _)) if header.claims == claims => Found::Equal,
            _ => Found::Different,
        };
        Ok(self.repo.put_once(&name, &sealed.bytes, &judge, give_up).await? != Put::Equal)
    }
}
