//! Where a run begins: decided from what the server says and what is stored, without I/O.
//!
//! The rule behind everything here: the start is never above what is stored (that would leave a silent hole) and never above the slot's position (the first
//! status would let go of WAL that nobody has). What lies between the start and the end of the archive is received again and compared.

use std::collections::BTreeMap;

use super::object::Place;
use crate::archive::inventory::{Inventory, NEWEST, TimelineStock};
use crate::pg::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use crate::seal::content::event::Hole;
use crate::seal::sealer::OBJECT_BYTES;

/// Segments that a killed run may have stored above a hole: its puts in flight.
pub const PUTS_IN_FLIGHT: u64 = 4;
// What is decided here sees only the newest segments.
const _: () = assert!(PUTS_IN_FLIGHT < NEWEST);

/// What is known of the slot's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotPosition {
    /// Streaming without a slot.
    NoSlot,
    /// There is a slot, but this server and connection cannot tell its position (13 and 14 without SQL).
    Unknown,
    /// The slot exists and reserves no WAL. Not `certain` where the server does not say whether it has lost what it reserved before (without SQL).
    Unreserved {
        certain: bool,
    },
    At(Lsn),
}

/// What the server says.
#[derive(Clone, Copy, Debug)]
pub struct ServerView<'a> {
    pub timeline: TimelineId,
    /// Current position (IDENTIFY_SYSTEM).
    pub position: Lsn,
    /// The path to `timeline`.
    pub history: &'a TimelineHistory,
    pub slot: SlotPosition,
    pub segment_size: SegmentSize,
}

/// What is stored.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub inventory: &'a Inventory,
    /// Per timeline, the end of the stored `.partial` of the segment that holds its switch point.
    pub partial_ends: &'a BTreeMap<TimelineId, Lsn>,
    /// Holes that were given up: what is in them is not asked for again.
    pub holes: &'a [Hole],
}

/// Where to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub timeline: TimelineId,
    pub lsn: Lsn,
    /// End of what is stored on this server's path; `None` for an empty archive.
    pub stored: Option<Lsn>,
    /// Stored timelines that this server's history does not know: other branches, left as they are.
    pub strangers: Vec<TimelineId>,
    /// A stored timeline went on past the point where this server's history left it: the dead branch is kept.
    pub dead_branch: Option<(TimelineId, Lsn)>,
}

/// Decides the start.
pub fn decide(server: &ServerView<'_>, known: &Known<'_>) -> Start {
    let archive = archive_end(server, known);
    let size = server.segment_size;
    let whole = |lsn: Lsn| lsn.align_down(size.bytes());
    let mut start = match (&archive, server.slot) {
        (Some(end), _) => (end.timeline, end.lsn),
        (None, SlotPosition::At(lsn)) => (server.history.timeline_at(lsn), whole(lsn)),
        (None, _) => (server.timeline, whole(server.position)),
    };
    let mut lower = |lsn: Lsn| {
        if whole(lsn) < start.1 {
            start = (server.history.timeline_at(lsn), whole(lsn));
        }
    };
    if let SlotPosition::At(lsn) = server.slot {
        lower(lsn);
    }
    lower(server.position);
    if let (SlotPosition::Unknown, Some(end)) = (server.slot, &archive) {
        // Where the slot stands is not known, and the first status may move it forward past what an earlier run stored and never reported. What is
        // stored further down than that run's puts in flight, it saw durable itself.
        lower(proven(known.inventory.timelines.get(&end.timeline), end.lsn, size));
    }
    let on_path = |timeline: &TimelineId| server.history.begin_of(*timeline).is_some();
    Start {
        timeline: start.0,
        lsn: start.1,
        stored: archive.as_ref().map(|end| end.lsn),
        strangers: known.inventory.timelines.keys().copied().filter(|t| !on_path(t)).collect(),
        dead_branch: archive.and_then(|end| end.dead_branch),
    }
}

struct ArchiveEnd {
    timeline: TimelineId,
    lsn: Lsn,
    dead_branch: Option<(TimelineId, Lsn)>,
}

/// The lowest start from which on everything that puts in flight may have left behind is received again.
fn proven(stock: Option<&TimelineStock>, end: Lsn, size: SegmentSize) -> Lsn {
    let number = size.segment_of(end);
    let back = |n: &u64| SegmentNumber(number.0.saturating_sub(*n));
    let stored = |n: SegmentNumber| stock.is_some_and(|stock| stock.complete.contains(&n));
    let run = (1..=PUTS_IN_FLIGHT).take_while(|n| stored(back(n))).count() as u64;
    back(&run).start(size)
}

/// Where the stored WAL on the server's path ends, as a place to go on from.
fn archive_end(server: &ServerView<'_>, known: &Known<'_>) -> Option<ArchiveEnd> {
    let size = server.segment_size;
    let mut path: Vec<TimelineId> = server.history.ancestors.iter().map(|a| a.timeline).collect();
    path.push(server.timeline);
    let (index, timeline, end) = path.iter().enumerate().rev().find_map(|(index, timeline)| {
        let behind_hole = known.holes.iter().filter(|h| h.to_timeline == *timeline).map(|h| h.to).max();
        let stock = known.inventory.timelines.get(timeline);
        // Where the timeline before is stored, this one is from its fork on: it was not expired, so what is missing there was never stored.
        let before = index.checked_sub(1).and_then(|before| path.get(before)).copied();
        let before = before.filter(|before| known.inventory.timelines.contains_key(before));
        let fork = before.and_then(|before| server.history.switch_point_of(before));
        let stored = stock.and_then(|stock| stored_end(stock, size, behind_hole, fork));
        Some((index, *timeline, stored.or(behind_hole)?))
    })?;
    let Some(switch_point) = server.history.switch_point_of(timeline) else {
        return Some(ArchiveEnd { timeline, lsn: end, dead_branch: None });
    };
    // A hole that was given up on the way to another branch's WAL is none here if this server still has what is missing.
    let crossed = known.holes.iter().filter(|h| h.from_timeline == timeline && h.from < switch_point);
    if let Some(hole) = crossed.filter(|h| h.to > switch_point && h.to_timeline == timeline).min_by_key(|h| h.from) {
        return Some(ArchiveEnd { timeline, lsn: hole.from.align_down(size.bytes()), dead_branch: None });
    }
    // It says nothing of what lies below: an object before it may have been the slower put.
    let joined = Place::of(switch_point, timeline, size).start <= end;
    let partial_end = known.partial_ends.get(&timeline).copied().filter(|_| joined).unwrap_or_default();
    if end.max(partial_end) < switch_point {
        return Some(ArchiveEnd { timeline, lsn: end, dead_branch: None });
    }
    // The timeline is stored to its end. The next one begins with a copy of the segment that holds the fork.
    let next = path.get(index + 1).copied().unwrap_or(server.timeline);
    let dead_branch = (end > switch_point).then_some((timeline, switch_point));
    Some(ArchiveEnd { timeline: next, lsn: switch_point.align_down(size.bytes()), dead_branch })
}

/// End of the stored WAL of one timeline, at the border of an object. A hole among the highest segments, which a killed run leaves when a later put was
/// faster than an earlier one, counts as the end. What only tails hold does not count: it is received again. Nothing below `from` counts: it lies before a
/// hole that was given up. A timeline that begins at a `fork` has a segment for that too: its put may have been the slow one. Where the archive begins is known
/// from nothing, and what is missing below its lowest segment was promised to nobody.
pub fn stored_end(stock: &TimelineStock, size: SegmentSize, from: Option<Lsn>, fork: Option<Lsn>) -> Option<Lsn> {
    let floor = from.map_or(SegmentNumber(0), |lsn| size.segment_of(lsn));
    let fork = fork.filter(|_| from.is_none()).map(|fork| size.segment_of(fork));
    let from_fork = |lowest: SegmentNumber| fork.map_or(lowest, |fork| fork.min(lowest));
    let mut complete = stock.complete.range(floor..);
    let first_missing = match (complete.next(), complete.next_back().or(stock.complete.last())) {
        (Some(&lowest), Some(&highest)) => {
            let in_flight = SegmentNumber(highest.0.saturating_sub(PUTS_IN_FLIGHT)).max(from_fork(lowest));
            (in_flight.0..=highest.0 + 1).map(SegmentNumber).find(|n| !stock.complete.contains(n))
        }
        _ => {
            let begun = [
                stock.parts.range(floor..).next().map(|(number, _)| number),
                stock.partial.range(floor..).next(),
                stock.tails.range(floor..).next().map(|(number, _)| number),
            ];
            // However far above the fork they are: puts of objects that are not settled hold up no piece of a tail.
            begun.into_iter().flatten().min().copied().map(from_fork)
        }
    }?;
    let part_bytes = OBJECT_BYTES.min(size.bytes());
    let parts = stock.parts.get(&first_missing);
    let whole_parts = parts.map_or(0, |p| (0u32..).take_while(|n| p.contains(n)).count() as u64);
    Some(first_missing.start(size) + whole_parts * part_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::Ancestor;

    const MIB: u64 = 1 << 20;

    fn size(mib: u64) -> SegmentSize {
        SegmentSize::new(mib * MIB).unwrap()
    }

    fn stock(complete: &[u64]) -> TimelineStock {
        TimelineStock { complete: complete.iter().map(|n| SegmentNumber(*n)).collect(), ..TimelineStock::default() }
    }

    fn inventory(timelines: Vec<(u32, TimelineStock)>) -> Inventory {
        Inventory {
            timelines: timelines.into_iter().map(|(t, s)| (TimelineId(t), s)).collect(),
            ..Inventory::default()
        }
    }

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let ancestors = ancestors.iter().map(|(t, l)| Ancestor { timeline: TimelineId(*t), switch_point: Lsn(*l) });
        TimelineHistory { timeline: TimelineId(timeline), ancestors: ancestors.collect() }
    }

    fn server(history: &TimelineHistory, position: u64, slot: SlotPosition) -> ServerView<'_> {
        ServerView { timeline: history.timeline, position: Lsn(position), history, slot, segment_size: size(1) }
    }

    fn start(
        history: &TimelineHistory,
        position: u64,
        slot: SlotPosition,
        timelines: Vec<(u32, TimelineStock)>,
        partials: &[(u32, u64)],
    ) -> (u32, u64) {
        let partials = partials.iter().map(|(t, l)| (TimelineId(*t), Lsn(*l))).collect();
        let stored = inventory(timelines);
        let known = Known { inventory: &stored, partial_ends: &partials, holes: &[] };
        let start = decide(&server(history, position, slot), &known);
        (start.timeline.0, start.lsn.0)
    }

    fn decided(view: &ServerView<'_>, timelines: Vec<(u32, TimelineStock)>, holes: &[Hole]) -> Start {
        let stored = inventory(timelines);
        decide(view, &Known { inventory: &stored, partial_ends: &BTreeMap::new(), holes })
    }

    fn hole(from: (u32, u64), to: (u32, u64)) -> Hole {
        Hole {
            from_timeline: TimelineId(from.0),
            from: Lsn(from.1),
            to_timeline: TimelineId(to.0),
            to: Lsn(to.1),
            reason: String::new(),
        }
    }

    #[test]
    fn behind_a_hole_that_was_given_up_only_what_is_stored_there_counts() {
        let one = history(1, &[]);
        let holes = [hole((1, 5 * MIB + 9), (1, 8 * MIB))];
        let go = |slot, stored: &[u64]| {
            let start = decided(&server(&one, 99 * MIB, slot), vec![(1, stock(stored))], &holes);
            (start.timeline.0, start.lsn.0)
        };
        let at = |mib| SlotPosition::At(Lsn(mib * MIB));
        assert_eq!(go(at(8), &[3, 4]), (1, 8 * MIB), "nothing is stored behind it yet");
        assert_eq!(go(at(20), &[3, 4, 8, 9]), (1, 10 * MIB), "the hole is not taken for puts of a killed run");
        assert_eq!(go(at(20), &[3, 4, 8, 10]), (1, 9 * MIB), "but a new one is");
        assert_eq!(go(at(9), &[3, 4, 8, 9, 10]), (1, 9 * MIB), "never above the slot");
    }

    #[test]
    fn a_hole_up_to_another_timeline_and_one_on_a_dead_branch() {
        let two = history(2, &[(1, 8 * MIB + 100)]);
        let view = server(&two, 20 * MIB, SlotPosition::At(Lsn(12 * MIB)));
        let start = decided(&view, vec![(1, stock(&[3, 4]))], &[hole((1, 5 * MIB), (2, 11 * MIB))]);
        assert_eq!((start.timeline, start.lsn), (TimelineId(2), Lsn(11 * MIB)));
        // Given up on timeline 1 past the fork; this server may still have what is missing before the fork.
        let start = decided(&view, vec![(1, stock(&[3, 4, 10, 11]))], &[hole((1, 5 * MIB), (1, 10 * MIB))]);
        assert_eq!((start.timeline, start.lsn), (TimelineId(1), Lsn(5 * MIB)));
    }

    #[test]
    fn where_the_slot_is_unknown_what_puts_in_flight_may_have_left_is_received_again() {
        let one = history(1, &[]);
        let go = |stored: &[u64]| start(&one, 99 * MIB, SlotPosition::Unknown, vec![(1, stock(stored))], &[]);
        assert_eq!(go(&[2, 3, 4, 5, 6, 7]), (1, 4 * MIB));
        assert_eq!(go(&[6, 7]), (1, 6 * MIB));
        assert_eq!(go(&[3, 4, 6, 7]), (1, 3 * MIB), "from the hole that a killed run left");
    }

    #[test]
    fn the_put_of_a_timeline_s_first_segment_may_be_the_one_that_was_lost() {
        let two = history(2, &[(1, 5 * MIB + 100)]);
        let with = |before: &[u64], stored: &[u64], slot| {
            let mut timelines = vec![(2, stock(stored))];
            if !before.is_empty() {
                timelines.push((1, stock(before)));
            }
            start(&two, 99 * MIB, slot, timelines, &[(1, 5 * MIB + 100)])
        };
        // Whether the slot was moved, or made anew, or is not known.
        for slot in [SlotPosition::At(Lsn(8 * MIB)), SlotPosition::NoSlot, SlotPosition::Unknown] {
            assert_eq!(with(&[3, 4], &[6], slot), (2, 5 * MIB), "{slot:?}");
        }
        assert_eq!(with(&[3, 4], &[5, 6], SlotPosition::NoSlot), (2, 7 * MIB));
        assert_eq!(
            with(&[3, 4], &[6, 7, 8, 9, 10, 11], SlotPosition::NoSlot),
            (2, 12 * MIB),
            "an old one is not asked for"
        );
        assert_eq!(with(&[], &[6], SlotPosition::NoSlot), (2, 7 * MIB), "what was there before it was expired");
    }

    /// A killed run handed on the last segment before the fork and the end of the timeline together.
    #[test]
    fn the_end_of_a_timeline_says_nothing_of_the_segment_before_it() {
        let two = history(2, &[(1, 8 * MIB + 100)]);
        let end = [(1, 8 * MIB + 100)];
        let go = |stored: &[u64], slot| start(&two, 20 * MIB, slot, vec![(1, stock(stored))], &end);
        assert_eq!(go(&[5, 6], SlotPosition::NoSlot), (1, 7 * MIB));
        assert_eq!(go(&[5, 6], SlotPosition::At(Lsn(12 * MIB))), (1, 7 * MIB), "made anew on the new primary");
        assert_eq!(go(&[5, 6], SlotPosition::Unknown), (1, 5 * MIB));
        assert_eq!(go(&[5, 6, 7], SlotPosition::NoSlot), (2, 8 * MIB));
        // It is all there is: the archive began in the segment of the fork.
        let mut only = TimelineStock::default();
        only.partial.insert(SegmentNumber(8));
        assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, vec![(1, only)], &end), (2, 8 * MIB));
        // Of a segment in parts it is the part that counts.
        let fork = 4 * 64 * MIB + 40 * MIB;
        let (two, ends) = (history(2, &[(1, fork)]), [(TimelineId(1), Lsn(fork))].into());
        for (parts, expected) in [(vec![0], (1, fork - 24 * MIB)), (vec![0, 1], (2, fork - 40 * MIB))] {
            let mut large = stock(&[3]);
            large.parts.insert(SegmentNumber(4), parts.into_iter().collect());
            large.partial.insert(SegmentNumber(4));
            let stored = inventory(vec![(1, large)]);
            let known = Known { inventory: &stored, partial_ends: &ends, holes: &[] };
            let view = ServerView { segment_size: size(64), ..server(&two, fork + 100 * MIB, SlotPosition::NoSlot) };
            let start = decide(&view, &known);
            assert_eq!((start.timeline.0, start.lsn.0), expected);
        }
    }

    #[test]
    fn a_timeline_of_which_no_segment_is_complete_is_received_from_its_fork_on() {
        let two = history(2, &[(1, 5 * MIB + 100)]);
        let mut tail = TimelineStock::default();
        tail.tails.insert(SegmentNumber(9), vec!["tail".to_owned()]);
        let mut end = TimelineStock::default();
        end.partial.insert(SegmentNumber(6));
        let end_of_one = [(1, 5 * MIB + 100)];
        for stored in [tail.clone(), end] {
            let timelines = vec![(1, stock(&[3, 4])), (2, stored)];
            assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, timelines, &end_of_one), (2, 5 * MIB));
        }
        // Nor does it where the timeline before was expired, or behind a hole.
        assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, vec![(2, tail.clone())], &[]), (2, 9 * MIB));
        let view = server(&two, 20 * MIB, SlotPosition::NoSlot);
        let given_up = [hole((1, 5 * MIB), (2, 9 * MIB))];
        assert_eq!(decided(&view, vec![(1, stock(&[3, 4])), (2, tail)], &given_up).lsn, Lsn(9 * MIB));
    }

    #[test]
    fn an_empty_archive_begins_at_the_slot_or_at_the_server() {
        let one = history(1, &[]);
        assert_eq!(start(&one, 9 * MIB + 5, SlotPosition::At(Lsn(3 * MIB + 7)), vec![], &[]), (1, 3 * MIB));
        assert_eq!(start(&one, 9 * MIB + 5, SlotPosition::NoSlot, vec![], &[]), (1, 9 * MIB));
        assert_eq!(start(&one, 9 * MIB + 5, SlotPosition::Unreserved { certain: true }, vec![], &[]), (1, 9 * MIB));
        let two = history(2, &[(1, 5 * MIB + 100)]);
        assert_eq!(start(&two, 9 * MIB, SlotPosition::At(Lsn(3 * MIB + 7)), vec![], &[]), (1, 3 * MIB));
    }

    #[test]
    fn never_above_the_slot_and_never_above_what_is_stored() {
        let one = history(1, &[]);
        let stored = || vec![(1, stock(&[3, 4, 5]))];
        assert_eq!(start(&one, 99 * MIB, SlotPosition::At(Lsn(5 * MIB + 1)), stored(), &[]), (1, 5 * MIB));
        assert_eq!(start(&one, 99 * MIB, SlotPosition::At(Lsn(8 * MIB + 1)), stored(), &[]), (1, 6 * MIB));
        assert_eq!(start(&one, 99 * MIB, SlotPosition::NoSlot, stored(), &[]), (1, 6 * MIB));
    }

    #[test]
    fn a_server_that_is_behind_the_archive_is_compared_from_where_it_stands() {
        let one = history(1, &[]);
        assert_eq!(start(&one, 4 * MIB + 9, SlotPosition::NoSlot, vec![(1, stock(&[3, 4, 5]))], &[]), (1, 4 * MIB));
    }

    #[test]
    fn a_hole_that_a_killed_run_left_is_filled_an_old_one_is_not_asked_for() {
        assert_eq!(stored_end(&stock(&[3, 4, 6, 7]), size(1), None, None), Some(Lsn(5 * MIB)));
        assert_eq!(stored_end(&stock(&[3, 4, 9]), size(1), None, None), Some(Lsn(5 * MIB)));
        assert_eq!(stored_end(&stock(&[3, 4, 6, 7, 8, 9, 10]), size(1), None, None), Some(Lsn(11 * MIB)));
        assert_eq!(stored_end(&stock(&[3]), size(1), None, None), Some(Lsn(4 * MIB)));
        assert_eq!(stored_end(&stock(&[]), size(1), None, None), None);
    }

    #[test]
    fn only_a_tail_is_stored() {
        let mut only_tail = stock(&[]);
        only_tail.tails.insert(SegmentNumber(7), vec!["tail".to_owned()]);
        assert_eq!(stored_end(&only_tail, size(1), None, None), Some(Lsn(7 * MIB)));
    }

    #[test]
    fn whole_parts_of_a_large_segment_count() {
        let mut large = stock(&[3]);
        large.parts.insert(SegmentNumber(4), [0, 1, 3].into_iter().collect());
        assert_eq!(stored_end(&large, size(64), None, None), Some(Lsn(4 * 64 * MIB + 32 * MIB)));
    }

    #[test]
    fn an_unfinished_older_timeline_is_finished_first() {
        let two = history(2, &[(1, 8 * MIB + 100)]);
        assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, vec![(1, stock(&[3, 4, 5]))], &[]), (1, 6 * MIB));
        // Received up to the segment of the fork, no partial: the end of the old timeline is still wanted.
        assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, vec![(1, stock(&[6, 7]))], &[]), (1, 8 * MIB));
        let finished = [(1, 8 * MIB + 100)];
        assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, vec![(1, stock(&[6, 7]))], &finished), (2, 8 * MIB));
        let short = [(1, 8 * MIB + 50)];
        assert_eq!(start(&two, 20 * MIB, SlotPosition::NoSlot, vec![(1, stock(&[6, 7]))], &short), (1, 8 * MIB));
    }

    #[test]
    fn stored_past_the_fork_is_a_dead_branch_and_the_new_timeline_begins_at_the_fork() {
        let two = history(2, &[(1, 8 * MIB + 100)]);
        let view = server(&two, 20 * MIB, SlotPosition::At(Lsn(12 * MIB)));
        let start = decided(&view, vec![(1, stock(&[7, 8, 9, 10]))], &[]);
        assert_eq!((start.timeline, start.lsn), (TimelineId(2), Lsn(8 * MIB)));
        assert_eq!(start.dead_branch, Some((TimelineId(1), Lsn(8 * MIB + 100))));
    }

    #[test]
    fn the_newest_stored_timeline_of_the_path_decides() {
        let three = history(3, &[(1, 8 * MIB + 100), (2, 12 * MIB)]);
        let stored = vec![(1, stock(&[6, 7])), (2, stock(&[8, 9])), (4, stock(&[8]))];
        let view = server(&three, 20 * MIB, SlotPosition::NoSlot);
        let start = decided(&view, stored, &[]);
        assert_eq!((start.timeline, start.lsn), (TimelineId(2), Lsn(10 * MIB)));
        assert_eq!(start.strangers, vec![TimelineId(4)]);
        // Timeline 2 ended exactly at a border: nothing of it is left to receive.
        let stored = vec![(2, stock(&[8, 9, 10, 11]))];
        let start = decided(&view, stored, &[]);
        assert_eq!((start.timeline, start.lsn, start.dead_branch), (TimelineId(3), Lsn(12 * MIB), None));
    }

    #[test]
    fn a_slot_on_an_older_timeline_pulls_the_start_back_to_it() {
        let two = history(2, &[(1, 8 * MIB + 100)]);
        let stored = vec![(1, stock(&[6, 7])), (2, stock(&[8, 9]))];
        assert_eq!(start(&two, 20 * MIB, SlotPosition::At(Lsn(7 * MIB + 3)), stored, &[]), (1, 7 * MIB));
    }
}
