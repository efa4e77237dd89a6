//! What no restore gets past, holes that were recorded and WAL that was written under `wal_level = minimal`, and whether a backup has made it a matter of the past.

use std::collections::{BTreeMap, BTreeSet};

use super::Archive;
use super::path::Path;
use crate::error::{Kind, Result};
use crate::pg::{Lsn, TimelineHistory, TimelineId};
use crate::seal::content::event::{Hole, MinimalWal};
use crate::seal::content::manifest::Manifest;

/// What no restore gets past that begins before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    Hole(Hole),
    Minimal(MinimalWal),
}

impl Barrier {
    /// Where restores that begin before it end.
    fn from(&self) -> (TimelineId, Lsn) {
        match self {
            Barrier::Hole(hole) => (hole.from_timeline, hole.from),
            Barrier::Minimal(alarm) => (alarm.timeline, alarm.lsn),
        }
    }

    /// From where on a backup has it behind itself.
    pub fn to(&self) -> (TimelineId, Lsn) {
        match self {
            Barrier::Hole(hole) => (hole.to_timeline, hole.to),
            Barrier::Minimal(alarm) => (alarm.timeline, alarm.lsn + 1),
        }
    }
}

impl Archive {
    /// Everything of that kind that was recorded: of each kind in the order in which that was.
    pub async fn barriers(&self) -> Result<Vec<Barrier>> {
        let holes = self.holes().await?.into_iter().map(Barrier::Hole);
        Ok(holes.chain(self.minimal_wal().await?.into_iter().map(Barrier::Minimal)).collect())
    }

    /// Those that no complete backup lies behind, in the same order: nothing can be restored past these yet.
    pub async fn open_barriers(&self) -> Result<Vec<Barrier>> {
        let recorded = self.barriers().await?;
        self.still_open(recorded).await
    }

    /// Which of these no complete backup lies behind.
    pub async fn still_open(&self, recorded: Vec<Barrier>) -> Result<Vec<Barrier>> {
        if recorded.is_empty() {
            return Ok(recorded);
        }
        let backups = self.list_backups().await?.complete;
        self.open_among(recorded, &backups).await
    }

    /// Which of these none of these backups lies behind.
    pub async fn open_among(&self, mut recorded: Vec<Barrier>, backups: &[Manifest]) -> Result<Vec<Barrier>> {
        if recorded.is_empty() {
            return Ok(recorded);
        }
        let mut paths = BTreeMap::new();
        for timeline in backups.iter().map(|backup| backup.timeline).collect::<BTreeSet<_>>() {
            paths.insert(timeline, self.path_to(timeline).await?);
        }
        let is_behind = |backup: &Manifest, barrier: &Barrier| {
            paths.get(&backup.timeline).is_some_and(|path| is_behind(path, backup.start, barrier))
        };
        recorded.retain(|barrier| !backups.iter().any(|backup| is_behind(backup, barrier)));
        Ok(recorded)
    }

    /// Which of these are in the past of a server on this timeline. What lies on a branch that was left before it is no matter of this server.
    pub async fn barriers_of(&self, mut barriers: Vec<Barrier>, timeline: TimelineId) -> Result<Vec<Barrier>> {
        // Nothing is told of a timeline of which no history is stored, but the first.
        if let Some(history) = self.known_history(timeline).await? {
            let path = Path::of(&history);
            barriers.retain(|barrier| lies_on(&path, barrier));
        }
        Ok(barriers)
    }

    /// What is known of the way to a timeline: nothing but its own part where its history is not stored, or damaged, so that too much stays open.
    async fn path_to(&self, timeline: TimelineId) -> Result<Path> {
        let history = self.known_history(timeline).await?;
        Ok(Path::of(&history.unwrap_or_else(|| TimelineHistory::root(timeline))))
    }

    async fn known_history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        match self.parsed_history(timeline).await {
            Ok(None) if timeline == TimelineId(1) => Ok(Some(TimelineHistory::root(timeline))),
            Err(error) if error.kind() == Kind::Corrupt => Ok(None),
            other => other,
        }
    }
}

/// Whether a backup that begins at `start` at the end of this path needs nothing that lies before the end of this.
fn is_behind(path: &Path, start: Lsn, barrier: &Barrier) -> bool {
    start >= barrier.to().1 && lies_on(path, barrier)
}

/// Whether a path goes through it, or begins in it: another branch may be further on, and says nothing of this one.
fn lies_on(path: &Path, barrier: &Barrier) -> bool {
    let ((from_timeline, from), (to_timeline, to)) = (barrier.from(), barrier.to());
    let before_fork = |leg: &super::path::Leg| leg.end.is_none_or(|fork| from < fork);
    path.holds(to_timeline, to) || path.leg(from_timeline).is_some_and(before_fork)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::Ancestor;

    fn path(timeline: u32, ancestors: &[(u32, u64)]) -> Path {
        let ancestor =
            |&(timeline, at): &(u32, u64)| Ancestor { timeline: TimelineId(timeline), switch_point: Lsn(at) };
        let ancestors = ancestors.iter().map(ancestor).collect();
        Path::of(&TimelineHistory { timeline: TimelineId(timeline), ancestors })
    }

    fn hole(from: (u32, u64), to: (u32, u64)) -> Barrier {
        let (from_timeline, to_timeline) = (TimelineId(from.0), TimelineId(to.0));
        let reason = "removed".to_owned();
        Barrier::Hole(Hole { from_timeline, from: Lsn(from.1), to_timeline, to: Lsn(to.1), reason })
    }

    #[test]
    fn a_backup_that_began_after_wal_of_no_use_is_behind_it() {
        let at = |timeline, lsn| Barrier::Minimal(MinimalWal { timeline: TimelineId(timeline), lsn: Lsn(lsn) });
        assert!(is_behind(&path(1, &[]), Lsn(501), &at(1, 500)));
        assert!(!is_behind(&path(1, &[]), Lsn(500), &at(1, 500)), "its redo point may be the record before");
        assert!(is_behind(&path(2, &[(1, 600)]), Lsn(700), &at(1, 500)));
        assert!(!is_behind(&path(2, &[(1, 500)]), Lsn(700), &at(1, 500)), "promoted before it");
        assert!(!lies_on(&path(2, &[(1, 500)]), &at(1, 500)) && !lies_on(&path(2, &[(1, 100)]), &at(3, 500)));
    }

    #[test]
    fn a_backup_is_behind_a_hole_on_its_own_path_only() {
        let on_two = hole((2, 500), (2, 600));
        assert!(is_behind(&path(2, &[(1, 100)]), Lsn(600), &on_two));
        assert!(!is_behind(&path(2, &[(1, 100)]), Lsn(599), &on_two), "it begins in the hole");
        assert!(is_behind(&path(3, &[(1, 100), (2, 700)]), Lsn(800), &on_two), "promoted behind the hole");
        assert!(is_behind(&path(3, &[(1, 100), (2, 600)]), Lsn(600), &on_two));
        for fork in [400, 500] {
            assert!(!is_behind(&path(3, &[(1, 100), (2, fork)]), Lsn(800), &on_two), "promoted before it, by a drill");
        }
        let on_three = hole((3, 500), (3, 600));
        assert!(!is_behind(&path(2, &[(1, 100)]), Lsn(800), &on_three), "a newer timeline's");
        assert!(!is_behind(&path(4, &[(1, 100), (2, 300)]), Lsn(800), &on_three), "a timeline that was left out");
    }

    #[test]
    fn a_hole_across_a_failover_ends_with_a_backup_of_the_new_primary() {
        for from in [200, 300, 400] {
            let failover = hole((1, from), (2, 600));
            assert!(is_behind(&path(2, &[(1, 300)]), Lsn(700), &failover));
            assert!(is_behind(&path(3, &[(1, 300), (2, 800)]), Lsn(900), &failover));
        }
        // The server went on from within the hole.
        let inside = path(4, &[(1, 300), (2, 550)]);
        assert!(is_behind(&inside, Lsn(600), &hole((1, 200), (2, 600))));
        assert!(!is_behind(&inside, Lsn(599), &hole((1, 200), (2, 600))));
    }

    #[test]
    fn a_hole_is_no_matter_of_a_server_that_left_before_it() {
        let on_three = hole((3, 500), (3, 600));
        assert!(lies_on(&path(3, &[(2, 300)]), &on_three) && lies_on(&path(4, &[(2, 300), (3, 700)]), &on_three));
        assert!(!lies_on(&path(2, &[(1, 100)]), &on_three), "production went back");
        assert!(!lies_on(&path(4, &[(1, 100), (2, 300)]), &on_three));
    }
}
