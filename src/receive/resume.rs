//! Where a run begins: decided from what the server says and what is stored, without I/O.
//!
//! The rule behind everything here: the start is never above what is stored (that would leave a silent hole) and never above the slot's position (the first
//! status would let go of WAL that nobody has). What lies between the start and the end of the archive is received again and compared.

use std::collections::BTreeMap;

use crate::archive::inventory::{Inventory, NEWEST, TimelineStock};
use crate::pg::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
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

/// Decides the start. `partial_ends` gives, per timeline, the end of the stored `.partial` of the segment that holds its switch point.
pub fn decide(server: &ServerView<'_>, inventory: &Inventory, partial_ends: &BTreeMap<TimelineId, Lsn>) -> Start {
    let archive = archive_end(server, inventory, partial_ends);
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
    let on_path = |timeline: &TimelineId| server.history.begin_of(*timeline).is_some();
    Start {
        timeline: start.0,
        lsn: start.1,
        stored: archive.as_ref().map(|end| end.lsn),
        strangers: inventory.timelines.keys().copied().filter(|t| !on_path(t)).collect(),
        dead_branch: archive.and_then(|end| end.dead_branch),
    }
}

struct ArchiveEnd {
    timeline: TimelineId,
    lsn: Lsn,
    dead_branch: Option<(TimelineId, Lsn)>,
}

/// Where the stored WAL on the server's path ends, as a place to go on from.
fn archive_end(
    server: &ServerView<'_>,
    inventory: &Inventory,
    partial_ends: &BTreeMap<TimelineId, Lsn>,
) -> Option<ArchiveEnd> {
    let size = server.segment_size;
    let mut path: Vec<TimelineId> = server.history.ancestors.iter().map(|a| a.timeline).collect();
    path.push(server.timeline);
    let (index, timeline, end) = path.iter().enumerate().rev().find_map(|(index, timeline)| {
        let stock = inventory.timelines.get(timeline)?;
        Some((index, *timeline, stored_end(stock, size)?))
    })?;
    let Some(switch_point) = server.history.switch_point_of(timeline) else {
        return Some(ArchiveEnd { timeline, lsn: end, dead_branch: None });
    };
    let partial_end = partial_ends.get(&timeline).copied().unwrap_or_default();
    if end.max(partial_end) < switch_point {
        return Some(ArchiveEnd { timeline, lsn: end, dead_branch: None });
    }
    // The timeline is stored to its end. The next one begins with a copy of the segment that holds the fork.
    let next = path.get(index + 1).copied().unwrap_or(server.timeline);
    let dead_branch = (end > switch_point).then_some((timeline, switch_point));
    Some(ArchiveEnd { timeline: next, lsn: switch_point.align_down(size.bytes()), dead_branch })
}

/// End of the stored WAL of one timeline, at the border of an object. A hole among the highest segments, which a killed run leaves when a later put was
/// faster than an earlier one, counts as the end. What only tails hold does not count: it is received again.
pub fn stored_end(stock: &TimelineStock, size: SegmentSize) -> Option<Lsn> {
    let first_missing = match (stock.complete.first(), stock.complete.last()) {
        (Some(&lowest), Some(&highest)) => {
            let in_flight = SegmentNumber(highest.0.saturating_sub(PUTS_IN_FLIGHT)).max(lowest);
            (in_flight.0..=highest.0 + 1).map(SegmentNumber).find(|n| !stock.complete.contains(n))
        }
        _ => {
            let begun = [stock.parts.keys().next(), stock.partial.first(), stock.tails.keys().next()];
            begun.into_iter().flatten().min().copied()
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
        let start = decide(&server(history, position, slot), &inventory(timelines), &partials);
        (start.timeline.0, start.lsn.0)
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
        assert_eq!(start(&one, 99 * MIB, SlotPosition::Unknown, stored(), &[]), (1, 6 * MIB));
    }

    #[test]
    fn a_server_that_is_behind_the_archive_is_compared_from_where_it_stands() {
        let one = history(1, &[]);
        assert_eq!(start(&one, 4 * MIB + 9, SlotPosition::NoSlot, vec![(1, stock(&[3, 4, 5]))], &[]), (1, 4 * MIB));
    }

    #[test]
    fn a_hole_that_a_killed_run_left_is_filled_an_old_one_is_not_asked_for() {
        assert_eq!(stored_end(&stock(&[3, 4, 6, 7]), size(1)), Some(Lsn(5 * MIB)));
        assert_eq!(stored_end(&stock(&[3, 4, 9]), size(1)), Some(Lsn(5 * MIB)));
        assert_eq!(stored_end(&stock(&[3, 4, 6, 7, 8, 9, 10]), size(1)), Some(Lsn(11 * MIB)));
        assert_eq!(stored_end(&stock(&[3]), size(1)), Some(Lsn(4 * MIB)));
        assert_eq!(stored_end(&stock(&[]), size(1)), None);
    }

    #[test]
    fn only_a_tail_is_stored() {
        let mut only_tail = stock(&[]);
        only_tail.tails.insert(SegmentNumber(7), vec!["tail".to_owned()]);
        assert_eq!(stored_end(&only_tail, size(1)), Some(Lsn(7 * MIB)));
    }

    #[test]
    fn whole_parts_of_a_large_segment_count() {
        let mut large = stock(&[3]);
        large.parts.insert(SegmentNumber(4), [0, 1, 3].into_iter().collect());
        assert_eq!(stored_end(&large, size(64)), Some(Lsn(4 * 64 * MIB + 32 * MIB)));
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
        let decided = decide(&view, &inventory(vec![(1, stock(&[7, 8, 9, 10]))]), &BTreeMap::new());
        assert_eq!((decided.timeline, decided.lsn), (TimelineId(2), Lsn(8 * MIB)));
        assert_eq!(decided.dead_branch, Some((TimelineId(1), Lsn(8 * MIB + 100))));
    }

    #[test]
    fn the_newest_stored_timeline_of_the_path_decides() {
        let three = history(3, &[(1, 8 * MIB + 100), (2, 12 * MIB)]);
        let stored = vec![(1, stock(&[6, 7])), (2, stock(&[8, 9])), (4, stock(&[8]))];
        let view = server(&three, 20 * MIB, SlotPosition::NoSlot);
        let decided = decide(&view, &inventory(stored), &BTreeMap::new());
        assert_eq!((decided.timeline, decided.lsn), (TimelineId(2), Lsn(10 * MIB)));
        assert_eq!(decided.strangers, vec![TimelineId(4)]);
        // Timeline 2 ended exactly at a border: nothing of it is left to receive.
        let stored = vec![(2, stock(&[8, 9, 10, 11]))];
        let decided = decide(&view, &inventory(stored), &BTreeMap::new());
        assert_eq!((decided.timeline, decided.lsn, decided.dead_branch), (TimelineId(3), Lsn(12 * MIB), None));
    }

    #[test]
    fn a_slot_on_an_older_timeline_pulls_the_start_back_to_it() {
        let two = history(2, &[(1, 8 * MIB + 100)]);
        let stored = vec![(1, stock(&[6, 7])), (2, stock(&[8, 9]))];
        assert_eq!(start(&two, 20 * MIB, SlotPosition::At(Lsn(7 * MIB + 3)), stored, &[]), (1, 7 * MIB));
    }
}
