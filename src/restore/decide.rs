//! What `wal-fetch` answers, from what is known. Pure; the archive and the disk are asked by `fetch`.
//!
//! The answers matter because of what PostgreSQL makes of them (`RestoreArchivedFile`): 1 to 125 ends a targeted recovery and
//! opens the database, above 125 stops the server. So [`Verdict::Absent`] is only said of what is known not to exist.

use std::collections::BTreeSet;

use super::path::Path;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;

/// A file that PostgreSQL asks its restore command for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Segment(SegmentName),
    History(TimelineId),
}

impl Wanted {
    /// From `%f`. Recovery of 13 to 18 asks for nothing else.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Wanted> {
        let history = || TimelineId::from_history_name(name).map(Wanted::History);
        SegmentName::parse(name, size).map(Wanted::Segment).or_else(history)
    }
}

/// What a plan says of a request before the archive is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Not part of the recovery: no need to ask.
    Absent,
    /// These first bytes must exist, zeros follow. Where the segment's own object is shorter, those of `donors` hold the
    /// same bytes: timelines that were forked off later in this segment.
    Segment { bytes: u64, donors: Vec<TimelineId> },
    /// A history file, which must exist when the plan read it.
    History { must: bool },
}

/// The part of a plan that binds `wal-fetch`: no byte past `end` belongs to the recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The path that the plan read, to the archive's end.
    pub path: Path,
    /// The timeline on which the recovery ends; it may be left later on the path.
    pub target: TimelineId,
    pub end: Lsn,
    /// Timelines on the path whose history files the plan read.
    pub histories: BTreeSet<TimelineId>,
}

impl Bounds {
    /// The timeline of the path that holds the last byte below `end`, so that the recovery's own history is in order.
    pub fn target_for(path: &Path, end: Lsn) -> TimelineId {
        let holds = path.legs.iter().find(|leg| leg.end.is_none_or(|fork| end <= fork));
        holds.map_or(path.target(), |leg| leg.timeline)
    }

    pub fn order(&self, wanted: Wanted) -> Order {
        let segment = match wanted {
            Wanted::History(timeline) => return Order::History { must: self.histories.contains(&timeline) },
            Wanted::Segment(segment) => segment,
        };
        let Some(leg) = self.path.leg(segment.timeline) else { return Order::Absent };
        let left = leg.end.map_or(self.end, |fork| fork.min(self.end));
        if segment.timeline > self.target || left <= leg.begin || leg.begin >= segment.end() {
            return Order::Absent;
        }
        let bytes = left.since(segment.start()).min(segment.size.bytes());
        if bytes == 0 {
            return Order::Absent;
        }
        let sources = self.path.sources(segment.number, segment.size);
        let donors = sources.iter().rev().map(|leg| leg.timeline).filter(|t| *t > segment.timeline).collect();
        Order::Segment { bytes, donors }
    }
}

/// What the archive holds of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Nothing,
    Prefix(u64),
    Complete,
}

/// A stored timeline that left the requested one at `fork`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    pub timeline: TimelineId,
    pub fork: Lsn,
    /// WAL of its first segment is stored.
    pub has_wal: bool,
    /// Its history lies in the caller's pg_wal: the caller follows it, or came from it.
    pub followed: bool,
}

/// The caller's own file of the requested name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    Absent,
    /// The tail holds every valid byte of it.
    Contained,
    /// It may hold WAL that the tail lacks.
    Ahead,
}

/// What is known when there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub stored: Stored,
    /// WAL of this timeline after this segment is stored.
    pub later: bool,
    pub children: Vec<Child>,
    pub own: Own,
    /// The heartbeat of this timeline that speaks of the most WAL: all up to there was stored.
    pub beat: Option<Heartbeat>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first bytes of the segment, zeros after them.
    Serve(u64),
    Absent,
    /// Said with the reason.
    Unknown(String),
}

/// The answer for a segment without a plan: a standby, pg_rewind, a restore command written by hand.
pub fn without_plan(segment: SegmentName, known: &Known) -> Verdict {
    let stored = match known.stored {
        Stored::Nothing => 0,
        Stored::Prefix(bytes) => bytes,
        Stored::Complete => segment.size.bytes(),
    };
    let left_inside = |child: &&Child| child.fork < segment.end();
    if let Some(child) = known.children.iter().filter(left_inside).filter(|c| c.followed).min_by_key(|c| c.fork) {
        return past_a_fork(segment, child, stored);
    }
    if let Some(child) = known.children.iter().filter(left_inside).find(|c| !c.has_wal) {
        let (timeline, fork) = (child.timeline, child.fork);
        let reason = format!("timeline {timeline} left at {fork}, but its WAL from there is not stored");
        return Verdict::Unknown(reason);
    }
    let end = segment.start() + stored;
    let left_later = known.children.iter().find(|child| child.fork > end);
    if known.stored != Stored::Complete
        && let Some(beat) = proof_of_more(known, end)
    {
        return Verdict::Unknown(format!(
            "only {stored} bytes of it are stored, and the heartbeat of {} shows that WAL was stored to {}",
            beat.time, beat.lsn
        ));
    }
    match (known.stored, left_later) {
        (Stored::Complete, _) => Verdict::Serve(stored),
        (Stored::Prefix(_), _) if known.later => {
            Verdict::Unknown("only its beginning is stored, but later WAL is".to_owned())
        }
        // Whoever takes the zeros behind it for the end opens a server that lacks what was committed before the fork.
        (Stored::Prefix(_), Some(Child { timeline, fork, .. })) => {
            Verdict::Unknown(format!("only its beginning is stored, but timeline {timeline} left at {fork}"))
        }
        (Stored::Prefix(_), None) if known.own == Own::Ahead => Verdict::Absent,
        (Stored::Prefix(_), None) => Verdict::Serve(stored),
        (Stored::Nothing, _) if known.later => Verdict::Unknown("it is not stored, but later WAL is".to_owned()),
        (Stored::Nothing, _) => match known.children.first() {
            Some(child) => Verdict::Unknown(format!("it is not stored, but timeline {} is", child.timeline)),
            None => Verdict::Absent,
        },
    }
}

/// A heartbeat that shows that WAL past `end` was stored. None counts of a timeline that another left: what an old primary did past the fork is no part of what
/// goes on, and what is missed before it the fork shows.
fn proof_of_more(known: &Known, end: Lsn) -> Option<Heartbeat> {
    known.beat.filter(|beat| known.children.is_empty() && beat.lsn > end)
}

/// The caller follows a timeline that left this one before the segment's end: nothing past the fork may be replayed.
fn past_a_fork(segment: SegmentName, child: &Child, stored: u64) -> Verdict {
    let keep = child.fork.since(segment.start());
    match keep {
        0 => Verdict::Absent,
        _ if stored >= keep => Verdict::Serve(keep),
        _ => Verdict::Unknown(format!(
            "timeline {} left at {}, only {stored} bytes before it are stored",
            child.timeline, child.fork
        )),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
