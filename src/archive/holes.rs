//! Holes that were recorded, and whether a backup has made them a matter of the past.

use std::collections::{BTreeMap, BTreeSet};

use super::Archive;
use super::path::Path;
use crate::error::{Kind, Result};
use crate::pg::{Lsn, TimelineHistory, TimelineId};
use crate::seal::content::event::Hole;
use crate::seal::content::manifest::Manifest;

impl Archive {
    /// The holes that no complete backup lies behind, in the order in which they were given up: nothing can be restored past these yet.
    pub async fn open_holes(&self) -> Result<Vec<Hole>> {
        let holes = self.holes().await?;
        self.still_open(holes).await
    }

    /// Which of these holes no complete backup lies behind.
    pub async fn still_open(&self, holes: Vec<Hole>) -> Result<Vec<Hole>> {
        if holes.is_empty() {
            return Ok(holes);
        }
        let backups = self.list_backups().await?.complete;
        self.open_among(holes, &backups).await
    }

    /// Which of these holes none of these backups lies behind.
    pub async fn open_among(&self, mut holes: Vec<Hole>, backups: &[Manifest]) -> Result<Vec<Hole>> {
        if holes.is_empty() {
            return Ok(holes);
        }
        let mut paths = BTreeMap::new();
        for timeline in backups.iter().map(|backup| backup.timeline).collect::<BTreeSet<_>>() {
            paths.insert(timeline, self.path_of_holes(timeline).await?);
        }
        let is_behind = |backup: &Manifest, hole: &Hole| {
            paths.get(&backup.timeline).is_some_and(|path| is_behind(path, backup.start, hole))
        };
        holes.retain(|hole| !backups.iter().any(|backup| is_behind(backup, hole)));
        Ok(holes)
    }

    /// Which of these holes are in the past of a server on this timeline. A hole on a branch that was left before it is nothing that this server lacks.
    pub async fn holes_of(&self, mut holes: Vec<Hole>, timeline: TimelineId) -> Result<Vec<Hole>> {
        // Nothing is told of a timeline of which no history is stored, but the first.
        if let Some(history) = self.known_history(timeline).await? {
            let path = Path::of(&history);
            holes.retain(|hole| lies_on(&path, hole));
        }
        Ok(holes)
    }

    /// What is known of the way to a timeline: nothing but its own part where its history is not stored, or damaged, so that too many holes stay open.
    async fn path_of_holes(&self, timeline: TimelineId) -> Result<Path> {
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

/// Whether a backup that begins at `start` at the end of this path needs nothing of what is missing.
fn is_behind(path: &Path, start: Lsn, hole: &Hole) -> bool {
    start >= hole.to && lies_on(path, hole)
}

/// Whether a path goes through a hole, or begins in it: another branch may be further on, and says nothing of this one.
fn lies_on(path: &Path, hole: &Hole) -> bool {
    let before_fork = |leg: &super::path::Leg| leg.end.is_none_or(|fork| hole.from < fork);
    path.holds(hole.to_timeline, hole.to) || path.leg(hole.from_timeline).is_some_and(before_fork)
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

    fn hole(from: (u32, u64), to: (u32, u64)) -> Hole {
        let (from_timeline, to_timeline) = (TimelineId(from.0), TimelineId(to.0));
        Hole { from_timeline, from: Lsn(from.1), to_timeline, to: Lsn(to.1), reason: "removed".to_owned() }
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
