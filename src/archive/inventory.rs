//! What WAL is stored: listed once, then asked without further requests.

use std::collections::{BTreeMap, BTreeSet};

use super::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use crate::repo::WalGroup;
use crate::repo::names::{PART_BYTES, WalObject, parts_of};

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

/// How many of a timeline's newest segments [`Archive::newest`] lists at least: whoever looks for holes that a killed run left looks no deeper.
pub const NEWEST: u64 = 8;

impl TimelineStock {
    /// Starts of the objects from segment `first` on: whole segments, or parts of large ones.
    pub fn objects_from(&self, first: SegmentNumber, size: SegmentSize) -> BTreeSet<Lsn> {
        let at = |number: SegmentNumber, part: u32| number.start(size) + u64::from(part) * PART_BYTES;
        let complete = self.complete.range(first..);
        let whole = complete.flat_map(|number| (0..parts_of(size).unwrap_or(1)).map(|part| at(*number, part)));
        let parts = self.parts.range(first..);
        whole.chain(parts.flat_map(|(number, parts)| parts.iter().map(|part| at(*number, *part)))).collect()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub timelines: BTreeMap<TimelineId, TimelineStock>,
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Timelines whose stored history is damaged, or one that PostgreSQL would refuse, and what is wrong with it. Whoever needs to know where
    /// such a timeline comes from must not go on: see [`Inventory::demand_history`].
    pub damaged: BTreeMap<TimelineId, String>,
    /// Timelines that a heartbeat speaks of: WAL of them was stored.
    pub beats: BTreeSet<TimelineId>,
    /// Timelines after the first of which WAL or a heartbeat is stored and no history, which is stored before any WAL: the same holds for these.
    pub missing: BTreeSet<TimelineId>,
}

impl Archive {
    /// Lists `wal/` and `tail/` and reads all history files.
    pub async fn inventory(&self) -> Result<Inventory> {
        let (mut inventory, histories) = self.stock().await?;
        // A listing is no snapshot: what it did not show is asked for by name.
        let timelines: BTreeSet<TimelineId> = inventory.with_a_past().into_iter().chain(histories).collect();
        for timeline in timelines {
            match self.parsed_history(timeline).await {
                Ok(Some(history)) => _ = inventory.histories.insert(timeline, history),
                Ok(None) if inventory.with_a_past().contains(&timeline) => _ = inventory.missing.insert(timeline),
                // Gone since it was listed.
                Ok(None) => {}
                Err(error) if error.kind() == Kind::Corrupt => {
                    inventory.damaged.insert(timeline, error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(inventory)
    }

    /// Lists `wal/` and `tail/`: the inventory without histories, and the timelines of which one is stored.
    pub async fn stock(&self) -> Result<(Inventory, Vec<TimelineId>)> {
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
        Ok((inventory, histories))
    }

    /// Of every timeline what is stored from the position on that `from` gives for it, and the newest segments (at least [`NEWEST`]). Older segments are left out,
    /// and no history is read: a few small listings, whatever the archive's size.
    pub async fn newest(&self, from: impl Fn(TimelineId) -> Lsn) -> Result<Inventory> {
        let root = self.names.root();
        let mut inventory = Inventory::default();
        // Tails first, as above.
        for entry in self.repo.list(&format!("{root}/tail")).await? {
            if let Some(object) = self.parse(&entry.name) {
                inventory.add(entry.name, object);
            }
        }
        let parts = parts_of(self.names.segment_size);
        for folder in self.repo.folders(&format!("{root}/wal")).await? {
            let Some(timeline) = TimelineId::from_folder(&folder) else { continue };
            for group in self.groups(timeline).await?.into_iter().rev() {
                if group.ends_by(from(timeline)) && inventory.knows_newest(timeline) {
                    break;
                }
                for entry in self.repo.list(&self.names.group_folder(group)).await? {
                    if let Some(object) = self.parse(&entry.name) {
                        inventory.add(entry.name, object);
                    }
                }
                inventory.complete_parts(parts);
            }
        }
        Ok(inventory)
    }

    /// The newest timeline after `than` of which any WAL is stored, and where its last segment begins of which any is. Two listings where there is none.
    pub async fn newer_timeline(&self, than: TimelineId) -> Result<Option<(TimelineId, Lsn)>> {
        let root = self.names.root();
        let mut folders = self.repo.folders(&format!("{root}/tail")).await?;
        folders.extend(self.repo.folders(&format!("{root}/wal")).await?);
        if !folders.iter().filter_map(|folder| TimelineId::from_folder(folder)).any(|timeline| timeline > than) {
            return Ok(None);
        }
        let inventory = self.newest(|_| Lsn(u64::MAX)).await?;
        let mut newer = inventory.timelines.keys().rev().copied().take_while(|timeline| *timeline > than);
        let size = self.names.segment_size;
        Ok(newer.find_map(|timeline| Some((timeline, inventory.last(timeline)?.start(size)))))
    }

    /// The groups of a timeline of which anything is stored, in order.
    pub async fn groups(&self, timeline: TimelineId) -> Result<Vec<WalGroup>> {
        let folders = self.repo.folders(&self.names.timeline_folder(timeline)).await?;
        let parsed = folders.iter().filter_map(|folder| WalGroup::parse(folder));
        let mut groups: Vec<WalGroup> = parsed.filter(|group| group.timeline == timeline).collect();
        groups.sort_unstable();
        Ok(groups)
    }
}

impl Inventory {
    fn add(&mut self, name: String, object: WalObject) {
        let segment = match object {
            WalObject::History { .. } | WalObject::GroupSummary(_) => return,
            WalObject::Heartbeat { timeline, .. } => {
                self.beats.insert(timeline);
                return;
            }
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

    /// Timelines after the first that WAL or a heartbeat is stored of: each has a history, which is stored before.
    pub fn with_a_past(&self) -> BTreeSet<TimelineId> {
        let all = self.timelines.keys().chain(&self.beats).copied();
        all.filter(|timeline| *timeline > TimelineId(1)).collect()
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

    /// Whether the complete segments that were listed reach far enough down.
    fn knows_newest(&self, timeline: TimelineId) -> bool {
        let Some(stock) = self.timelines.get(&timeline) else { return false };
        let (Some(first), Some(last)) = (stock.complete.first(), stock.complete.last()) else { return false };
        last.0 - first.0 >= NEWEST
    }

    /// Where a timeline comes from. `Kind::Corrupt` when its stored history is damaged, or none is stored: only the first one has none, and the server
    /// itself refuses any other without (`validateRecoveryParameters` of xlogrecovery.c).
    pub fn demand_history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        self.demand_sound(timeline)?;
        match self.histories.get(&timeline) {
            Some(history) => Ok(history.clone()),
            None if timeline <= TimelineId(1) => Ok(TimelineHistory::root(timeline)),
            None => Err(history_missing(timeline)),
        }
    }

    /// Refuses a damaged history; none at all may do where that of a later timeline tells the way.
    pub fn demand_sound(&self, timeline: TimelineId) -> Result<()> {
        self.damaged.get(&timeline).map_or(Ok(()), |problem| Err(not_known(timeline, problem)))
    }

    /// Timelines of which something is stored and that nobody knows the way to, with the reason.
    pub fn unknown(&self) -> impl Iterator<Item = (TimelineId, String)> {
        let damaged = self.damaged.iter().map(|(timeline, problem)| (*timeline, problem.clone()));
        damaged.chain(self.missing.iter().map(|timeline| (*timeline, not_stored(*timeline))))
    }

    /// Whether a known timeline left this one, or one may have whose history cannot be read.
    pub fn is_left(&self, timeline: TimelineId) -> bool {
        let known = self.histories.values().any(|history| history.switch_point_of(timeline).is_some());
        known || self.damaged.keys().chain(&self.missing).any(|other| *other > timeline)
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

    /// The first segment from this one on that is not complete.
    pub fn first_open(&self, timeline: TimelineId, from: SegmentNumber) -> SegmentNumber {
        let complete = self.timelines.get(&timeline).map(|stock| stock.complete.range(from..));
        complete.into_iter().flatten().fold(from, |open, number| if *number == open { open.next() } else { open })
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

/// No history is stored of a timeline of which WAL is.
pub fn history_missing(timeline: TimelineId) -> Error {
    not_known(timeline, &not_stored(timeline))
}

fn not_stored(timeline: TimelineId) -> String {
    format!("wal/{:08X}.history is not stored, although a receiver stores it before any WAL", timeline.0)
}

fn not_known(timeline: TimelineId, problem: &str) -> Error {
    Error::new(Kind::Corrupt, format!("where timeline {timeline} comes from is not known: {problem}")).hint(
        "Restore the file from another copy of the repository, let `walrecv receive` store it from a server that has it, or name a timeline that does not need it.",
    )
}
