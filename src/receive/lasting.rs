//! What was stored must stay. A repository may go back in time under a running receiver: a file system that is put back, a copy of yesterday. The names of new
//! objects are free there, so each put succeeds, and the WAL between is gone, of which the server knows that it is durable. So what was stored is looked for now
//! and then; where it is gone, or a start finds less than this run or the catalog of this host knows of, it is asked for again. What the server has let go of is a
//! hole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::object::Place;
use super::prepare::Stored;
use super::resume::{SlotPosition, Start};
use super::run::Run;
use super::server::Server;
use crate::archive::Archive;
use crate::archive::inventory::{Inventory, TimelineStock};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};
use crate::repo::WalGroup;

/// What is not found is looked for once more, after so long: a store may be late to show what it has.
pub(super) const AGAIN: Duration = Duration::from_secs(2);

/// More segments than this are looked for in listings.
const FEW: usize = 4;

/// Stretches of one timeline, each without a hole, in order.
type Stretches = Vec<(Lsn, Lsn)>;

/// Whole objects that this run stored. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lasting(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    stored: BTreeMap<TimelineId, Stretches>,
    /// How far what was stored has been looked for.
    looked: BTreeMap<TimelineId, Lsn>,
    missing: Option<Missing>,
}

/// WAL that was stored, and is gone from the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub timeline: TimelineId,
    pub from: Lsn,
    pub to: Lsn,
}

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Missing { timeline, from, to } = self;
        write!(
            f,
            "WAL from {from} to {to} of timeline {timeline} was stored, and is gone from the repository, as if that had been put back to an earlier time"
        )
    }
}

impl Lasting {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is stored.
    pub fn add(&self, timeline: TimelineId, from: Lsn, to: Lsn) {
        let mut known = self.known();
        let stretches = known.stored.entry(timeline).or_default();
        stretches.push((from, to));
        *stretches = joined(std::mem::take(stretches));
    }

    fn of(&self, timeline: TimelineId) -> Stretches {
        self.known().stored.get(&timeline).cloned().unwrap_or_default()
    }

    /// What is being asked for again.
    pub fn missing(&self) -> Option<Missing> {
        self.known().missing
    }

    /// Whether an object that starts there is asked for again: the catalog, which the next run asks, does not forget it before it is stored, or in a hole.
    pub fn awaits(&self, timeline: TimelineId, start: Lsn) -> bool {
        self.missing()
            .is_some_and(|missing| missing.timeline == timeline && (missing.from..missing.to).contains(&start))
    }

    fn set_missing(&self, missing: Option<Missing>) {
        self.known().missing = missing;
    }

    /// A segment that this run stored and that is not there any more: of those since the last look, and the last one before. A repository that went back in time
    /// since then lacks one of them, whatever was stored in it afterwards.
    pub async fn gone(&self, archive: &Archive, timeline: TimelineId) -> Result<Option<String>> {
        let size = archive.names.segment_size;
        let stored = self.of(timeline);
        let Some(end) = stored.last().map(|(_, to)| *to) else { return Ok(None) };
        let looked = self.known().looked.get(&timeline).copied().unwrap_or_default();
        let floor = size.segment_of(Lsn(looked.0.saturating_sub(size.bytes())));
        let mut there = BTreeSet::new();
        let wanted = lacking(&stored, &there, size, floor, end);
        if wanted.len() > FEW {
            let groups: BTreeSet<WalGroup> = wanted.iter().map(|n| WalGroup::of(timeline, n.start(size))).collect();
            for group in groups {
                let any = SegmentName::new(timeline, size.segment_of(group.first), size);
                there.extend(archive.complete_in(any).await?);
            }
        }
        for number in wanted.into_iter().filter(|number| !there.contains(number)) {
            let segment = SegmentName::new(timeline, number, size);
            if !is_there(archive, segment).await? {
                return Ok(Some(archive.names.segment(segment, None)));
            }
        }
        self.known().looked.insert(timeline, end);
        Ok(None)
    }
}

/// Whether a segment is stored, looked at twice.
async fn is_there(archive: &Archive, segment: SegmentName) -> Result<bool> {
    if archive.is_complete(segment).await? {
        return Ok(true);
    }
    tokio::time::sleep(AGAIN).await;
    archive.is_complete(segment).await
}

/// The same stretches, those that meet as one.
fn joined(mut stretches: Stretches) -> Stretches {
    stretches.sort_unstable();
    let mut found: Stretches = Vec::new();
    for (from, to) in stretches {
        match found.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => found.push((from, to)),
        }
    }
    found
}

/// The segments that lie whole in these stretches, at or above `floor` and below `limit`, without those that are `there`.
fn lacking(
    stretches: &Stretches,
    there: &BTreeSet<SegmentNumber>,
    size: SegmentSize,
    floor: SegmentNumber,
    limit: Lsn,
) -> Vec<SegmentNumber> {
    let mut found = Vec::new();
    for (from, to) in stretches {
        let first = size.segment_of(Lsn(from.0.saturating_add(size.bytes() - 1))).max(floor);
        let end = size.segment_of((*to).min(limit));
        found.extend((first.0..end.0).map(SegmentNumber).filter(|number| !there.contains(number)));
    }
    found
}

/// The stretch around a segment of which nothing is there: down to what is stored below, where anything is, and up to what is stored above, or to `limit`.
fn around(number: SegmentNumber, there: &BTreeSet<SegmentNumber>, size: SegmentSize, limit: Lsn) -> (Lsn, Lsn) {
    let below = there.range(..number).next_back().map_or(number, |below| below.next());
    let above = there.range(number..).next().map_or(limit, |above| above.start(size));
    (below.start(size), above)
}

impl Run {
    /// Where something is missing below the start that this run or an earlier one on this host has stored, the start moves down to it.
    pub(super) async fn go_to_missing(
        &mut self,
        archive: &Archive,
        server: &Server,
        inventory: &Inventory,
        start: &mut Start,
    ) -> Result<()> {
        let found = self.find_missing(archive, server, inventory, start).await?;
        if let Some(lost) = found {
            self.tell_missing(lost);
            (start.timeline, start.lsn) = (lost.timeline, lost.from);
        }
        self.lasting.set_missing(found);
        Ok(())
    }

    async fn find_missing(
        &self,
        archive: &Archive,
        server: &Server,
        inventory: &Inventory,
        start: &Start,
    ) -> Result<Option<Missing>> {
        let path = server.history.ancestors.iter().map(|ancestor| ancestor.timeline).chain([server.identity.timeline]);
        for timeline in path.filter(|timeline| *timeline <= start.timeline) {
            let switch_point = server.history.switch_point_of(timeline);
            let limit = if timeline == start.timeline { start.lsn } else { switch_point.unwrap_or(start.lsn) };
            let (own, noted) = (self.lasting.of(timeline), self.noted(archive, timeline).await);
            let missing = Expected { timeline, own, noted, limit }.missing(archive, inventory).await?;
            if missing.is_some() {
                return Ok(missing);
            }
        }
        Ok(None)
    }

    /// How far the catalog of this host knows that a timeline was durable, as far as this server goes along with it. As in [`Run::noted`].
    pub(super) async fn reached(
        &self,
        archive: &Archive,
        server: &Server,
        timeline: TimelineId,
    ) -> Option<(TimelineId, Lsn)> {
        let durable = self.of_catalog(archive, move |catalog| catalog.reached(timeline)).await??.0;
        Some((timeline, server.history.switch_point_of(timeline).map_or(durable, |fork| durable.min(fork))))
    }

    /// The repository may end before what was acknowledged: it was put back while no receiver ran.
    pub(super) fn compare_end(
        &mut self,
        reached: Option<(TimelineId, Lsn)>,
        start: &Start,
        stored: &Stored,
        size: SegmentSize,
    ) {
        let timeline = start.timeline;
        let reached = reached.filter(|(known, _)| *known == timeline).map(|(_, lsn)| lsn);
        let object = |lsn: &Lsn| Place::of(*lsn, timeline, size).end;
        let objects = stored.objects.last().map(object);
        let tails = stored.tails.iter().map(|tail| tail.end()).max();
        let ends = [start.stored, objects, tails];
        let from = ends.into_iter().flatten().fold(start.lsn, Lsn::max);
        let found = reached.filter(|to| *to > from).map(|to| Missing { timeline, from, to });
        if let Some(lost) = found.filter(|found| self.put_back != Some(*found)) {
            self.tell_missing(lost);
        }
        self.put_back = found;
    }

    /// What was stored behind a place and is gone from the repository.
    pub(super) fn put_back_behind(&self, timeline: TimelineId, from: Lsn) -> Option<Missing> {
        let lost = self.put_back.filter(|lost| lost.timeline == timeline && from < lost.to)?;
        Some(Missing { from, ..lost })
    }

    fn tell_missing(&self, lost: Missing) {
        self.observer.warn(format!(
            "{lost}: the server is asked for it again; if what was there before still exists, put it back (docs/guide/gaps.md)"
        ));
    }

    /// What the catalog of this host knows of. It is an index: where it cannot be read, what this run stored is all that is known. A run with a temporary slot is to
    /// store a backup's WAL, and leaves the rest to the receiver.
    async fn noted(&self, archive: &Archive, timeline: TimelineId) -> Stretches {
        self.of_catalog(archive, move |catalog| catalog.ranges(timeline)).await.unwrap_or_default()
    }

    async fn of_catalog<T: Send + 'static>(
        &self,
        archive: &Archive,
        ask: impl FnOnce(&Catalog) -> Result<T> + Send + 'static,
    ) -> Option<T> {
        let path = self.options.catalog.clone().filter(|_| !self.options.temporary_slot)?;
        let identity = archive.identity();
        let read = move || Catalog::read(&path, &identity)?.as_ref().map(ask).transpose();
        let read = archive.repo.lane().run(read).await.and_then(|read| read);
        read.unwrap_or_else(|error| {
            tracing::info!("what the catalog knows of cannot be compared with what is stored: {error}");
            None
        })
    }

    /// What is asked for again lies below the slot, which must not be set back to it: the server may let go of a slot that holds back too much.
    pub(super) fn is_silent_while_asking_again(&mut self, server: &Server) {
        if let (Some(_), SlotPosition::At(lsn), Some(pipeline)) =
            (self.lasting.missing(), server.slot, &mut self.pipeline)
        {
            pipeline.ledger.silent_below(lsn);
        }
    }

    /// What was missing is a hole by now.
    pub(super) fn is_given_up(&self) {
        self.lasting.set_missing(None);
    }
}

/// What is known to have been stored of one timeline, below a limit.
struct Expected {
    timeline: TimelineId,
    own: Stretches,
    noted: Stretches,
    limit: Lsn,
}

impl Expected {
    /// The segments at or above `floor` that are not among those that are `there`. Where nothing is stored below, what only the catalog knows of may have been
    /// removed by somebody who needs it no more.
    fn lacking(&self, there: &BTreeSet<SegmentNumber>, size: SegmentSize, floor: SegmentNumber) -> Vec<SegmentNumber> {
        let mut lost = lacking(&self.own, there, size, floor, self.limit);
        let noted = lacking(&self.noted, there, size, floor, self.limit).into_iter();
        lost.extend(noted.filter(|number| there.range(..*number).next().is_some()));
        lost.sort_unstable();
        lost
    }

    /// The lowest stretch that is not there, and lies in no hole that was given up. What the inventory lists is looked at, and more only where something is missing
    /// at its lower end.
    async fn missing(&self, archive: &Archive, inventory: &Inventory) -> Result<Option<Missing>> {
        if self.own.is_empty() && self.noted.is_empty() {
            return Ok(None);
        }
        let (size, timeline) = (archive.names.segment_size, self.timeline);
        let none = TimelineStock::default();
        let mut there = inventory.timelines.get(&timeline).unwrap_or(&none).complete.clone();
        // Folders are listed as a whole.
        let begin = |number: &SegmentNumber| size.segment_of(WalGroup::of(timeline, number.start(size)).first);
        let mut floor = there.first().map_or(size.segment_of(self.limit), begin);
        let mut lost = self.lacking(&there, size, floor);
        let all = |floor| lacking(&joined([&*self.own, &*self.noted].concat()), &there, size, floor, self.limit);
        if there.is_empty() || all(floor).first().is_some_and(|lost| there.first().is_some_and(|lowest| lost < lowest))
        {
            for group in archive.groups(timeline).await?.into_iter().rev() {
                let first = size.segment_of(group.first);
                if first < floor {
                    floor = first;
                    there.extend(archive.complete_in(SegmentName::new(timeline, first, size)).await?);
                    lost = self.lacking(&there, size, floor);
                    if lost.first().is_none_or(|lost| there.first().is_some_and(|lowest| lowest < lost)) {
                        break;
                    }
                }
            }
            if there.is_empty() {
                lost = self.lacking(&there, size, SegmentNumber(0));
            }
        }
        if lost.is_empty() {
            return Ok(None);
        }
        let holes = archive.holes().await?;
        let given_up = |number: &SegmentNumber| {
            let (start, end) = (number.start(size), number.end(size));
            let mut here = holes.iter().filter(|hole| (hole.from_timeline..=hole.to_timeline).contains(&timeline));
            here.any(|hole| hole.from < end && start < hole.to)
        };
        let Some(first) = lost.into_iter().find(|number| !given_up(number)) else { return Ok(None) };
        // A listing may be late.
        if is_there(archive, SegmentName::new(timeline, first, size)).await? {
            return Ok(None);
        }
        let (from, to) = around(first, &there, size, self.limit);
        Ok(Some(Missing { timeline, from, to }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(MIB).unwrap()
    }

    fn numbers(numbers: &[u64]) -> BTreeSet<SegmentNumber> {
        numbers.iter().copied().map(SegmentNumber).collect()
    }

    #[test]
    fn what_was_stored_is_joined_and_compared_with_what_is_there() {
        let lasting = Lasting::default();
        for (from, to) in [(3, 4), (5, 6), (4, 5), (8, 9)] {
            lasting.add(TimelineId(1), Lsn(from * MIB), Lsn(to * MIB));
        }
        let stretches = lasting.of(TimelineId(1));
        assert_eq!(stretches, [(Lsn(3 * MIB), Lsn(6 * MIB)), (Lsn(8 * MIB), Lsn(9 * MIB))]);
        let lost = |there: &[u64], floor, limit| {
            let found = lacking(&stretches, &numbers(there), size(), SegmentNumber(floor), Lsn(limit));
            found.into_iter().map(|number| number.0).collect::<Vec<_>>()
        };
        assert_eq!(lost(&[3, 4, 5, 8], 0, 20 * MIB), [0; 0]);
        assert_eq!(lost(&[3], 0, 20 * MIB), [4, 5, 8]);
        assert_eq!(lost(&[3], 5, 20 * MIB), [5, 8], "below nothing was listed");
        assert_eq!(lost(&[3], 0, 5 * MIB + 7), [4], "the rest is received anyway");
    }

    #[test]
    fn a_part_of_a_segment_says_nothing_of_the_segment() {
        let part = vec![(Lsn(3 * MIB + 10), Lsn(5 * MIB + 10))];
        assert_eq!(lacking(&part, &BTreeSet::new(), size(), SegmentNumber(0), Lsn(20 * MIB)), [SegmentNumber(4)]);
    }

    #[test]
    fn what_is_missing_reaches_from_what_is_stored_below_to_what_is_stored_above() {
        let there = numbers(&[1, 2, 9]);
        let go = |number, limit| {
            let (from, to) = around(SegmentNumber(number), &there, size(), Lsn(limit * MIB));
            (from.0 / MIB, to.0 / MIB)
        };
        assert_eq!(go(5, 20), (3, 9), "an earlier run's too, whatever this host knows of it");
        assert_eq!(go(12, 20), (10, 20));
        assert_eq!(go(0, 20), (0, 1), "nothing is stored below");
    }
}
