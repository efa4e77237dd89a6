//! WAL along a path of timelines, segment by segment.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::Archive;
use super::inventory::Inventory;
use super::path::Path;
use super::read::SegmentBytes;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber};
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
