//! Reading WAL: a segment as one run of bytes, whichever objects hold it.

use bytes::Bytes;

use super::Archive;
use super::inventory::Inventory;
use crate::error::Result;
use crate::pg::{SegmentName, TimelineId};
use crate::seal::content::summary::Summary;

/// The stored bytes of one segment, from its start.
#[derive(Clone, Debug)]
pub enum SegmentBytes {
    /// All of it.
    Complete(Bytes),
    /// The durable prefix: complete parts, `.partial`, tail files and pieces of any runs joined. Overlaps must agree (`Kind::Diverged`).
    Prefix(Bytes),
}

impl Archive {
    /// `None`: the store proved that nothing of the segment exists. A listed tail that is gone when read means look again (segment sealed meanwhile), never absent.
    pub async fn read_segment(
        &self,
        _segment: SegmentName,
        _inventory: Option<&Inventory>,
    ) -> Result<Option<SegmentBytes>> {
        todo!()
    }

    /// The summaries (frame 0) of a complete segment's objects, in order.
    pub async fn summaries(&self, _segment: SegmentName) -> Result<Option<Vec<Summary>>> {
        todo!()
    }

    /// Raw bytes of a history file.
    pub async fn history(&self, _timeline: TimelineId) -> Result<Option<Bytes>> {
        todo!()
    }
}
