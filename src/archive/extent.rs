//! How far the stored WAL reaches, found without the identity.

use std::collections::BTreeSet;

use super::Archive;
use super::inventory::Inventory;
use super::join::reach;
use super::read::{LOOKS, unsettled};
use super::tails::Looks;
use crate::error::{Error, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use crate::repo::names::{PART_BYTES, WalObject, parts_of};

impl Archive {
    /// End of the stored WAL of a timeline, tails included; `None` when nothing is stored. It is the end of the last run without a hole:
    /// whether the runs before it are joined is [`Archive::contiguous_from`]'s question.
    pub async fn durable_end(&self, timeline: TimelineId) -> Result<Option<Lsn>> {
        let root = self.names.root();
        let folder = format!("{root}/tail/{:08X}", timeline.0);
        // Tails first: a segment that is completed meanwhile is then found among the objects.
        let open = self.repo.folders(&folder).await?;
        let size = self.names.segment_size;
        let mut numbers: BTreeSet<SegmentNumber> =
            open.iter().filter_map(|name| SegmentName::parse(name, size)).map(|segment| segment.number).collect();
        if let Some(last) = self.groups(timeline).await?.last() {
            for entry in self.repo.list(&self.names.group_folder(*last)).await? {
                if let Some(WalObject::Segment { segment, .. } | WalObject::Partial { segment }) =
                    self.parse(&entry.name)
                {
                    numbers.insert(segment.number);
                }
            }
        }
        for number in numbers.into_iter().rev() {
            let segment = SegmentName::new(timeline, number, size);
            let end = self.end_in(segment).await?;
            if end > segment.start() {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// The newest timeline up to `until` of which any WAL is stored, and its end as [`Archive::durable_end`] gives it.
    pub async fn newest_end(&self, until: TimelineId) -> Result<Option<(TimelineId, Lsn)>> {
        let root = self.names.root();
        let mut folders = self.repo.folders(&format!("{root}/tail")).await?;
        folders.extend(self.repo.folders(&format!("{root}/wal")).await?);
        let timelines: BTreeSet<TimelineId> = folders.iter().filter_map(|name| TimelineId::from_folder(name)).collect();
        for timeline in timelines.into_iter().rev().filter(|timeline| *timeline <= until) {
            if let Some(end) = self.durable_end(timeline).await? {
                return Ok(Some((timeline, end)));
            }
        }
        Ok(None)
    }

    /// End of the WAL of a timeline that is stored without a hole from the byte at `lsn` on; `None` when that byte is not stored.
    pub async fn contiguous_from(&self, timeline: TimelineId, lsn: Lsn) -> Result<Option<Lsn>> {
        self.run_from(timeline, lsn, Lsn(u64::MAX)).await
    }

    /// The same for somebody to whom it is enough that the run reaches `enough`: what is stored from there on is not looked at.
    pub(super) async fn run_from(&self, timeline: TimelineId, lsn: Lsn, enough: Lsn) -> Result<Option<Lsn>> {
        let size = self.names.segment_size;
        let mut segment = SegmentName::new(timeline, size.segment_of(lsn), size);
        let mut group = String::new();
        let mut complete = BTreeSet::new();
        loop {
            if segment.start() >= enough {
                return Ok(Some(segment.start()));
            }
            if group != segment.group() {
                group = segment.group();
                complete = self.complete_in(segment).await?;
            }
            if !complete.contains(&segment.number) {
                // Not listed as complete: measured, or completed since.
                let end = self.end_in(segment).await?;
                if end < segment.end() {
                    return Ok((end > lsn).then_some(end));
                }
            }
            segment.number = segment.number.next();
        }
    }

    /// As [`Archive::contiguous_from`], with the complete segments of an inventory that lists everything from `lsn` on: only where they end is looked at.
    pub async fn contiguous_in(&self, inventory: &Inventory, timeline: TimelineId, lsn: Lsn) -> Result<Option<Lsn>> {
        let size = self.names.segment_size;
        let run = inventory.first_open(timeline, size.segment_of(lsn));
        let segment = SegmentName::new(timeline, run, size);
        let end = self.end_in(segment).await?;
        if end < segment.end() {
            return Ok((end > lsn).then_some(end));
        }
        // Completed since.
        self.contiguous_from(timeline, lsn.max(segment.start())).await
    }

    /// Complete segments of the 4 GiB of WAL that this segment belongs to.
    pub async fn complete_in(&self, segment: SegmentName) -> Result<BTreeSet<SegmentNumber>> {
        let parts = parts_of(segment.size).unwrap_or(1) as usize;
        let folder = format!("{}/wal/{:08X}/{}", self.names.root(), segment.timeline.0, segment.group());
        let mut found: Vec<SegmentNumber> = Vec::new();
        for entry in self.repo.list(&folder).await? {
            if let Some(WalObject::Segment { segment, .. }) = self.parse(&entry.name) {
                found.push(segment.number);
            }
        }
        found.sort_unstable();
        let whole = found.chunk_by(|a, b| a == b).filter(|same| same.len() == parts);
        Ok(whole.filter_map(|same| same.first().copied()).collect())
    }

    /// Where the stored bytes of a segment end, counted without a hole from its start (which is returned when nothing is stored). Of a segment that ends in
    /// damage nothing counts: nobody can read it, as [`Archive::read_segment`] says.
    pub async fn end_in(&self, segment: SegmentName) -> Result<Lsn> {
        self.measure(segment).await.map(|(end, _)| end)
    }

    /// What is damaged in a segment that is not complete, where nothing else holds its bytes.
    pub async fn damage_in(&self, segment: SegmentName) -> Result<Option<Error>> {
        self.measure(segment).await.map(|(_, damage)| damage)
    }

    async fn measure(&self, segment: SegmentName) -> Result<(Lsn, Option<Error>)> {
        let mut looks = Looks::new(None);
        for _ in 0..LOOKS {
            let objects = self.measure_objects(segment).await?;
            if reach(objects.clone()) == segment.size.bytes() {
                return Ok((segment.end(), None));
            }
            let Some(names) = looks.listed.take() else {
                looks.listed = Some(self.tails_of(segment).await?);
                continue;
            };
            if let Some(partial) = self.measure_partial(segment).await? {
                looks.add(self.names.partial(segment), partial);
            }
            let all = looks.look(names, |name| self.piece_span(name), |name| self.measure_tail(segment, name)).await?;
            if !all || looks.doubts(&objects) {
                continue;
            }
            let (mut extents, damages) = looks.settled();
            extents.extend(objects);
            let end = reach(extents);
            return Ok(match damages.demand_covered(end) {
                Ok(()) => (segment.start() + end, None),
                Err(damage) => {
                    tracing::warn!("segment {segment} counts for nothing while a tail of it is damaged: {damage}");
                    (segment.start(), Some(damage))
                }
            });
        }
        Err(unsettled(segment))
    }

    /// Whether the object, or all parts, of a segment are stored.
    pub async fn is_complete(&self, segment: SegmentName) -> Result<bool> {
        Ok(reach(self.measure_objects(segment).await?) == segment.size.bytes())
    }

    /// Starts of the objects of a segment that are there: its own, or those of its parts.
    pub async fn stored_objects(&self, segment: SegmentName) -> Result<Vec<Lsn>> {
        let mut starts = Vec::new();
        for (name, start) in self.objects_of(segment) {
            if self.repo.head(&name).await?.is_some() {
                starts.push(start);
            }
        }
        Ok(starts)
    }

    async fn measure_objects(&self, segment: SegmentName) -> Result<Vec<(u64, u64)>> {
        let share = segment.size.bytes().min(PART_BYTES);
        let starts = self.stored_objects(segment).await?;
        Ok(starts.into_iter().map(|start| start.since(segment.start())).map(|from| (from, from + share)).collect())
    }
}
