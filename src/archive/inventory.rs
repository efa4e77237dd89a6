//! What WAL is stored: listed once, then asked without further requests.

use std::collections::{BTreeMap, BTreeSet};

use super::Archive;
use crate::error::Result;
use crate::pg::{SegmentName, SegmentNumber, TimelineHistory, TimelineId};
use crate::repo::names::{WalObject, parts_of};

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
        let root = self.names.root();
        // Tails first: a segment that is completed between the two listings is then seen twice, never missed.
        let mut listed = self.repo.list(&format!("{root}/tail")).await?;
        listed.extend(self.repo.list(&format!("{root}/wal")).await?);
        let mut inventory = Inventory::default();
        let mut histories = Vec::new();
        for entry in listed {
            match self.parse(&entry.name) {
                Some(WalObject::History { timeline }) => histories.push(timeline),
                Some(object) => inventory.add(entry.name, object),
                None => {}
            }
        }
        inventory.complete_parts(parts_of(self.names.segment_size));
        for timeline in histories {
            // Gone since it was listed: expired.
            if let Some(history) = self.parsed_history(timeline).await? {
                inventory.histories.insert(timeline, history);
            }
        }
        Ok(inventory)
    }
}

impl Inventory {
    fn add(&mut self, name: String, object: WalObject) {
        let segment = match object {
            WalObject::History { .. } | WalObject::GroupSummary { .. } => return,
            WalObject::Segment { segment, .. }
            | WalObject::Partial { segment }
            | WalObject::TailPiece { segment, .. }
            | WalObject::TailOpen { segment, .. } => segment,
        };
        let (stock, number) = (self.timelines.entry(segment.timeline).or_default(), segment.number);
        match object {
            WalObject::Segment { part: None, .. } => _ = stock.complete.insert(number),
            WalObject::Segment { part: Some(part), .. } => _ = stock.parts.entry(number).or_default().insert(part),
            WalObject::Partial { .. } => _ = stock.partial.insert(number),
            _ => stock.tails.entry(number).or_default().push(name),
        }
    }

    /// Segments of which all parts are there are complete.
    fn complete_parts(&mut self, parts: Option<u32>) {
        for stock in self.timelines.values_mut() {
            let whole = |found: &BTreeSet<u32>| Some(found.len() as u32) == parts;
            let complete = stock.parts.iter().filter(|(_, found)| whole(found)).map(|(number, _)| *number);
            stock.complete.extend(complete);
            stock.parts.retain(|_, found| !whole(found));
        }
    }

    /// Whether anything of this segment is stored.
    pub fn holds(&self, segment: SegmentName) -> bool {
        self.timelines.get(&segment.timeline).is_some_and(|stock| {
            let number = &segment.number;
            stock.complete.contains(number)
                || stock.parts.contains_key(number)
                || stock.partial.contains(number)
                || stock.tails.contains_key(number)
        })
    }

    /// Names of the tail files and pieces of a segment.
    pub fn tails(&self, segment: SegmentName) -> &[String] {
        let stock = self.timelines.get(&segment.timeline);
        stock.and_then(|stock| stock.tails.get(&segment.number)).map_or(&[], Vec::as_slice)
    }

    /// Whether anything after (or a longer form of) this segment is stored on its timeline: a later segment in any form, or this one
    /// complete.
    pub fn anything_after(&self, segment: SegmentName) -> bool {
        let complete = |stock: &TimelineStock| stock.complete.contains(&segment.number);
        self.timelines.get(&segment.timeline).is_some_and(complete)
            || self.last(segment.timeline).is_some_and(|last| last > segment.number)
    }

    /// Highest segment with anything stored on a timeline.
    pub fn last(&self, timeline: TimelineId) -> Option<SegmentNumber> {
        let stock = self.timelines.get(&timeline)?;
        let tops = [stock.complete.last(), stock.parts.keys().last(), stock.partial.last(), stock.tails.keys().last()];
        tops.into_iter().flatten().max().copied()
    }

    /// Lowest segment with anything stored on a timeline.
    pub fn first(&self, timeline: TimelineId) -> Option<SegmentNumber> {
        let stock = self.timelines.get(&timeline)?;
        let ends =
            [stock.complete.first(), stock.parts.keys().next(), stock.partial.first(), stock.tails.keys().next()];
        ends.into_iter().flatten().min().copied()
    }
}
