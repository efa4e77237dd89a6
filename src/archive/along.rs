//! WAL along a path of timelines, segment by segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::Archive;
use super::inventory::Inventory;
use super::path::Path;
use super::read::SegmentBytes;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber};
use crate::repo::names::PART_BYTES;
use crate::seal::content::summary::Summary;

/// So many groups are asked for their summaries at a time.
const AT_ONCE: usize = 8;

impl Archive {
    /// Shows the summary of every object with WAL that begins at or after `from` on this path, without opening contents. What none speaks of, the open segment
    /// above all, is not shown.
    pub async fn summaries_along(&self, path: &Path, from: Lsn, mut see: impl FnMut(&Summary)) -> Result<()> {
        for leg in &path.legs {
            let counts = |start: Lsn| start >= from && leg.end.is_none_or(|end| start < end);
            let mut groups = self.groups(leg.timeline).await?;
            groups.retain(|group| {
                leg.end.is_none_or(|end| group.first < end) && !group.ends_by(leg.begin) && !group.ends_by(from)
            });
            let mut asked = stream::iter(groups.into_iter().map(|group| self.summaries_in(group))).buffered(AT_ONCE);
            while let Some(summaries) = asked.next().await {
                summaries?.iter().filter(|summary| counts(summary.start)).for_each(&mut see);
            }
        }
        Ok(())
    }

    /// Bytes of the objects with the WAL of this path from `from` to `to`, as they are stored: what [`Archive::read_along`] fetches for it.
    pub async fn stored_along(&self, path: &Path, from: Lsn, to: Lsn) -> Result<u64> {
        let size = self.names.segment_size;
        let (first, last) = (size.segment_of(from), size.segment_before(to));
        // Of each segment the bytes of its objects, and whether they are all of it.
        let mut listed: BTreeMap<SegmentName, (u64, bool)> = BTreeMap::new();
        for leg in &path.legs {
            let mut groups = self.groups(leg.timeline).await?;
            groups.retain(|group| group.first < last.end(size) && !group.ends_by(first.start(size)));
            for group in groups {
                for entry in self.list_group(group).await?.entries {
                    let segment = SegmentName::new(leg.timeline, size.segment_of(entry.start), size);
                    let (bytes, whole) = listed.entry(segment).or_default();
                    *bytes += entry.size;
                    *whole |= !entry.partial && entry.start + PART_BYTES >= segment.end();
                }
            }
        }
        let mut total = 0;
        for number in (first.0..=last.0).map(SegmentNumber) {
            for leg in path.sources(number, size) {
                let segment = SegmentName::new(leg.timeline, number, size);
                let (bytes, whole) = listed.get(&segment).copied().unwrap_or_default();
                total += bytes;
                if whole && path.keep(segment) == size.bytes() {
                    break;
                }
                let tails = self.repo.list(&self.names.tail_folder(segment)).await?;
                total += tails.iter().filter(|_| !whole).map(|tail| tail.size).sum::<u64>();
            }
        }
        Ok(total)
    }

    /// As [`Archive::read_along`], in a task of its own, so that it goes on while other bytes are looked at.
    pub async fn read_ahead(
        &self,
        path: &Arc<Path>,
        number: SegmentNumber,
        inventory: &Arc<Inventory>,
    ) -> Result<(SegmentName, Bytes)> {
        let (archive, path, inventory) = (self.clone(), path.clone(), inventory.clone());
        let task = tokio::spawn(async move { archive.read_along(&path, number, &inventory).await });
        task.await.map_err(|e| Error::new(Kind::Failed, "a segment was not read").caused_by(e))?
    }

    /// The bytes of a segment that count on this path, from its start: from the newest timeline that has it, and a parent's only up to the fork. Empty where
    /// nothing is stored.
    pub async fn read_along(
        &self,
        path: &Path,
        number: SegmentNumber,
        inventory: &Inventory,
    ) -> Result<(SegmentName, Bytes)> {
        let size = self.names.segment_size;
        let sources = path.sources(number, size);
        let newest = sources.first().map_or(path.target(), |leg| leg.timeline);
        let mut best = (SegmentName::new(newest, number, size), Bytes::new());
        for leg in sources {
            let name = SegmentName::new(leg.timeline, number, size);
            let keep = path.keep(name) as usize;
            let bytes = match self.read_segment(name, Some(inventory)).await.context(name)? {
                Some(SegmentBytes::Complete(bytes)) if keep == bytes.len() => return Ok((name, bytes)),
                Some(SegmentBytes::Complete(bytes) | SegmentBytes::Prefix(bytes)) => {
                    bytes.slice(..bytes.len().min(keep))
                }
                None => continue,
            };
            // A child that has only just begun may hold less of the common beginning than its parent.
            if bytes.len() > best.1.len() {
                best = (name, bytes);
            }
        }
        Ok(best)
    }
}
