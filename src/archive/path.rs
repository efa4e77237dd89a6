//! The path through timelines that a recovery, or whoever reads WAL as one would, follows, with the fork at which each timeline is left. Pure.

use std::collections::BTreeSet;

use super::inventory::Inventory;
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};

/// One timeline of a path: its WAL counts from `begin` up to `end`; `None` for the last one, which ends where the WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    pub timeline: TimelineId,
    pub begin: Lsn,
    pub end: Option<Lsn>,
}

/// The timelines from the first to the target timeline, oldest first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub legs: Vec<Leg>,
}

/// What shows that WAL went on where nothing more of it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Later WAL is stored.
    Stored,
    /// By its history this timeline left the one before it there.
    Fork { timeline: TimelineId, at: Lsn },
    /// A heartbeat, which is stored once all WAL up to its position is.
    Heartbeat { lsn: Lsn, time: PgTime },
}

impl std::fmt::Display for Beyond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Beyond::Stored => write!(f, "later WAL is stored"),
            Beyond::Fork { timeline, at } => write!(f, "timeline {timeline} left at {at}"),
            Beyond::Heartbeat { lsn, time } => {
                write!(f, "the heartbeat of {time} shows that WAL was stored to {lsn}")
            }
        }
    }
}

impl Path {
    pub fn of(history: &TimelineHistory) -> Path {
        let mut begin = Lsn(0);
        let mut legs = Vec::with_capacity(history.ancestors.len() + 1);
        for ancestor in &history.ancestors {
            legs.push(Leg { timeline: ancestor.timeline, begin, end: Some(ancestor.switch_point) });
            begin = ancestor.switch_point;
        }
        legs.push(Leg { timeline: history.timeline, begin, end: None });
        Path { legs }
    }

    /// The timeline on which the path ends: `recovery_target_timeline`.
    pub fn target(&self) -> TimelineId {
        self.legs.last().map_or(TimelineId(1), |leg| leg.timeline)
    }

    pub fn leg(&self, timeline: TimelineId) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.timeline == timeline)
    }

    /// Whether a backup that ended at `lsn` on `timeline` lies on this path: not past the point where it left that timeline.
    pub fn holds(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.leg(timeline).is_some_and(|leg| leg.end.is_none_or(|end| lsn <= end) && lsn >= leg.begin)
    }

    /// The timelines under whose names the server looks for a segment, in its order: newest first, none that begins in a
    /// later segment (`XLogFileReadAnyTLI`), and none that was left before the segment.
    pub fn sources(&self, number: SegmentNumber, size: SegmentSize) -> Vec<Leg> {
        let (start, end) = (number.start(size), number.end(size));
        let covers = |leg: &&Leg| leg.begin < end && leg.end.is_none_or(|fork| fork > start);
        self.legs.iter().rev().filter(covers).copied().collect()
    }

    /// How many bytes of a segment belong to this path when it is read under `timeline`'s name.
    pub fn keep(&self, segment: SegmentName) -> u64 {
        match self.leg(segment.timeline) {
            Some(leg) if leg.begin < segment.end() => {
                leg.end.unwrap_or(Lsn(u64::MAX)).since(segment.start()).min(segment.size.bytes())
            }
            _ => 0,
        }
    }

    /// The timeline to which the byte at `lsn` belongs.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let holds = |leg: &&Leg| leg.end.is_none_or(|end| lsn < end);
        self.legs.iter().find(holds).map_or(self.target(), |leg| leg.timeline)
    }

    /// What shows that WAL of this path was written past `reached`, where what is stored of a segment ends: then that is no end.
    pub fn beyond(
        &self,
        inventory: &Inventory,
        number: SegmentNumber,
        reached: Lsn,
        size: SegmentSize,
    ) -> Option<Beyond> {
        let after = |leg: &Leg| inventory.last(leg.timeline).is_some_and(|last| last > number);
        if self.legs.iter().any(|leg| after(leg) && leg.end.is_none_or(|fork| fork > number.end(size))) {
            return Some(Beyond::Stored);
        }
        let pairs = self.legs.iter().zip(self.legs.iter().skip(1));
        let mut forks = pairs.filter_map(|(leg, next)| Some(Beyond::Fork { timeline: next.timeline, at: leg.end? }));
        forks.rfind(|fork| matches!(fork, Beyond::Fork { at, .. } if *at > reached))
    }
}

/// The path to `wanted`, or to the newest timeline on which a backup of `backups` (timeline and end of each) lies.
/// `known` are the timelines of which WAL or a history is stored. `None` when no backup lies on the path; an error when a history that decides is damaged or
/// missing.
pub fn choose(
    inventory: &Inventory,
    known: &BTreeSet<TimelineId>,
    backups: &[(TimelineId, Lsn)],
    wanted: Option<TimelineId>,
) -> Result<Option<Path>> {
    let carried = |timeline: TimelineId| -> Result<Option<Path>> {
        let path = Path::of(&inventory.demand_history(timeline)?);
        Ok(backups.iter().any(|(timeline, end)| path.holds(*timeline, *end)).then_some(path))
    };
    let candidates: Vec<TimelineId> = match wanted {
        Some(timeline) => known.get(&timeline).copied().into_iter().collect(),
        None => known.iter().rev().copied().collect(),
    };
    candidates.into_iter().find_map(|timeline| carried(timeline).transpose()).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::pg::timeline::Ancestor;

    const MB: u64 = 1 << 20;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        let ancestors =
            ancestors.iter().map(|(t, l)| Ancestor { timeline: TimelineId(*t), switch_point: Lsn(*l) }).collect();
        TimelineHistory { timeline: TimelineId(timeline), ancestors }
    }

    fn size() -> SegmentSize {
        SegmentSize::new(MB).unwrap()
    }

    fn sources(path: &Path, number: u64) -> Vec<u32> {
        path.sources(SegmentNumber(number), size()).iter().map(|leg| leg.timeline.0).collect()
    }

    #[test]
    fn a_segment_with_a_fork_is_asked_of_the_child_first() {
        let path = Path::of(&history(3, &[(1, 5 * MB + 100), (2, 9 * MB)]));
        assert_eq!(sources(&path, 4), [1]);
        assert_eq!(sources(&path, 5), [2, 1]);
        assert_eq!(sources(&path, 6), [2]);
        assert_eq!(sources(&path, 8), [2]);
        assert_eq!(sources(&path, 9), [3], "a fork on a border: the parent's next segment is past it");
        let keep = |t: u32, n: u64| path.keep(SegmentName::new(TimelineId(t), SegmentNumber(n), size()));
        assert_eq!([keep(1, 4), keep(1, 5), keep(1, 6)], [MB, 100, 0]);
        assert_eq!([keep(2, 4), keep(2, 5), keep(2, 8), keep(2, 9)], [0, MB, MB, 0]);
        assert_eq!(keep(3, 9), MB);
        assert_eq!(keep(4, 9), 0, "not on the path");
    }

    #[test]
    fn wal_went_on_where_some_is_stored_later_or_a_timeline_left_later() {
        let path = Path::of(&history(3, &[(1, 5 * MB + 100), (2, 9 * MB)]));
        let mut inventory = Inventory::default();
        let beyond = |inventory: &Inventory, reached: u64| {
            path.beyond(inventory, SegmentNumber(reached / MB), Lsn(reached), size())
        };
        let nine = Beyond::Fork { timeline: TimelineId(3), at: Lsn(9 * MB) };
        assert_eq!([5 * MB + 50, 5 * MB + 100, 9 * MB - 1].map(|at| beyond(&inventory, at)), [Some(nine); 3]);
        assert_eq!(beyond(&inventory, 9 * MB), None, "all up to the last fork is there");
        assert_eq!(beyond(&inventory, 9 * MB + 5), None);
        inventory.timelines.entry(TimelineId(2)).or_default().complete.insert(SegmentNumber(7));
        assert_eq!(beyond(&inventory, 5 * MB + 50), Some(Beyond::Stored));
        assert_eq!(beyond(&inventory, 7 * MB + 50), Some(nine));
    }

    #[test]
    fn two_forks_in_one_segment() {
        let path = Path::of(&history(3, &[(1, 5 * MB + 100), (2, 5 * MB + 200)]));
        assert_eq!(sources(&path, 5), [3, 2, 1]);
        assert_eq!(path.keep(SegmentName::new(TimelineId(2), SegmentNumber(5), size())), 200);
    }

    #[test]
    fn the_newest_timeline_that_descends_from_a_backup_is_followed() {
        let histories = [history(2, &[(1, 5 * MB)]), history(3, &[(1, 2 * MB)])];
        let histories = histories.into_iter().map(|h| (h.timeline, h)).collect();
        let inventory = Inventory { histories, ..Inventory::default() };
        let known: BTreeSet<_> = [1, 2, 3].map(TimelineId).into();
        let target = |backups: &[(TimelineId, Lsn)], wanted| {
            choose(&inventory, &known, backups, wanted).unwrap().map(|p| p.target().0)
        };
        let (early, late) = ((TimelineId(1), Lsn(MB)), (TimelineId(1), Lsn(4 * MB)));
        assert_eq!(target(&[early], None), Some(3));
        assert_eq!(target(&[late], None), Some(2), "timeline 3 left timeline 1 before this backup ended");
        assert_eq!(target(&[late], Some(TimelineId(3))), None);
        assert_eq!(target(&[late], Some(TimelineId(1))), Some(1));
        assert_eq!(target(&[(TimelineId(1), Lsn(6 * MB))], None), Some(1), "a dead branch ends on itself");
        assert_eq!(target(&[early], Some(TimelineId(9))), None);
    }

    #[test]
    fn a_damaged_history_is_an_error_only_where_it_decides() {
        let histories = [history(2, &[(1, 5 * MB)]), history(4, &[(1, 5 * MB), (2, 7 * MB)])];
        let mut inventory =
            Inventory { histories: histories.into_iter().map(|h| (h.timeline, h)).collect(), ..Inventory::default() };
        let known: BTreeSet<_> = [1, 2, 3, 4].map(TimelineId).into();
        let backups = [(TimelineId(1), Lsn(MB))];
        let target = |inventory: &Inventory, wanted: Option<u32>| {
            let path = choose(inventory, &known, &backups, wanted.map(TimelineId));
            path.map(|path| path.map(|path| path.target().0)).map_err(|e| (e.kind(), e.to_string()))
        };
        inventory.damaged.insert(TimelineId(3), "wal/00000003.history is cut".to_owned());
        assert_eq!(target(&inventory, None), Ok(Some(4)), "a newer timeline is known");
        assert_eq!(target(&inventory, Some(2)), Ok(Some(2)));
        let (kind, text) = target(&inventory, Some(3)).unwrap_err();
        assert!(kind == Kind::Corrupt && text.contains("00000003.history"), "{text}");
        inventory.histories.remove(&TimelineId(4));
        inventory.damaged.insert(TimelineId(4), "wal/00000004.history is cut".to_owned());
        assert_eq!(target(&inventory, None).unwrap_err().0, Kind::Corrupt, "the newest may be the one that is wanted");
        assert_eq!(target(&inventory, Some(1)), Ok(Some(1)));
    }
}
