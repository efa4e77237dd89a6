//! What WAL is stored: listed once, then asked without further requests.

use std::collections::{BTreeMap, BTreeSet};

use super::Archive;
use crate::error::Result;
use crate::pg::{SegmentName, SegmentNumber, TimelineHistory, TimelineId};

/// The stored WAL of one timeline, by name (nothing opened yet).
#[derive(Clone, Debug, Default)]
pub struct TimelineStock {
    /// Segments whose object (or all of whose parts) exist.
    pub complete: BTreeSet<SegmentNumber>,
    /// Segments of which only some parts exist: which ones.
    pub parts: BTreeMap<SegmentNumber, BTreeSet<u32>>,
    pub partial: BTreeSet<SegmentNumber>,
    /// Segments with tail objects: names relative to the repository.
    pub tails: BTreeMap<SegmentNumber, Vec<String>>,
}

#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub timelines: BTreeMap<TimelineId, TimelineStock>,
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
}

impl Archive {
    /// Lists `wal/` and `tail/` and reads all history files. A history file that PostgreSQL would refuse is `Kind::Corrupt`.
    pub async fn inventory(&self) -> Result<Inventory> {
        todo!()
    }
}

impl Inventory {
    /// Whether anything after (or a longer form of) this segment is stored on its timeline.
    pub fn anything_after(&self, _segment: SegmentName) -> bool {
        todo!()
    }

    /// Highest segment with anything stored on a timeline.
    pub fn last(&self, _timeline: TimelineId) -> Option<SegmentNumber> {
        todo!()
    }
}
