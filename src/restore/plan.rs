//! Where a recovery will end, by the server's own rules, before a byte is copied. Pure: records in, landing out.
//!
//! The rules are those of `recoveryStopsBefore`, `recoveryStopsAfter` and `CheckRecoveryConsistency`
//! (`xlogrecovery.c`; up to 14 `xlog.c`). They run from the redo point of one backup, so the landing depends on the backup.

use std::collections::BTreeSet;

use super::target::Target;
use crate::pg::xact::{Note, PgTime};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;

/// Commits at or before a target time that lie after the stop are listed up to this many.
const LISTED_MISSED: usize = 20;

/// A checked record as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub start: Lsn,
    pub end: Lsn,
    /// End of its own bytes: before `end` for a WAL switch, whose zeros need not be there.
    pub written: Lsn,
    /// Of the transaction resource manager, of whatever kind.
    pub transaction: bool,
    /// Of a checkpoint: when it began, whole seconds by the server's clock.
    pub checkpoint: Option<PgTime>,
    pub note: Note,
}

/// The backup that a recovery begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Where replay begins.
    pub redo: Lsn,
    /// Start of the checkpoint record of that redo point.
    pub checkpoint: Lsn,
    /// Recovery is consistent no earlier: the end of the backup, or before it where that is a standby's.
    pub consistent_at: Lsn,
    /// End of the backup: its WAL was stored to here.
    pub stored_to: Lsn,
    /// When the backup was complete, by the clock of the host that took it.
    pub stopped_at: PgTime,
}

/// A commit in WAL: the record from `start` to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub xid: u32,
    pub time: PgTime,
    pub start: Lsn,
    pub end: Lsn,
}

/// A tablespace that recovery makes where its path says, whatever the backup's own are mapped to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeTablespace {
    pub oid: u32,
    /// Absolute.
    pub location: Vec<u8>,
    /// Start of the record.
    pub at: Lsn,
}

/// Why recovery ends where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The server stops by itself before this record, which it has to see.
    Before { start: Lsn, end: Lsn },
    /// The server stops by itself after this record.
    After { start: Lsn, end: Lsn },
    /// The WAL of the archive ends: asked for (`Latest`).
    EndOfWal,
    /// The target is met where the WAL ends, but no record would stop the server there: no target is set, the WAL is cut. A time is met when
    /// nothing was committed up to it since the last commit, and the archive is known complete through it; a position that excludes what starts there, when
    /// all before it is read.
    Cut,
}

/// The exact place where a recovery lands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landing {
    /// The last commit that is replayed; `None` when none follows the backup's redo point.
    pub last_commit: Option<Commit>,
    /// The first commit that is not replayed, as far as was looked.
    pub next_commit: Option<Commit>,
    /// Commits replayed since the backup's redo point.
    pub commits: u64,
    /// End of the last record that is replayed.
    pub replayed: Lsn,
    /// Start of the last record that is replayed.
    pub last_record: Lsn,
    /// WAL that the server must be given: past it everything may be zero. Below `replayed` where that is the end of the zeros behind a WAL switch, which the
    /// server takes for granted (`XLogReadRecord`, `xlogreader.c`) and an archive that ends among them need not have.
    pub needed: Lsn,
    pub timeline: TimelineId,
    pub stop: Stop,
    /// Commits with a time at or before the target that lie after the stop, as far as was looked: the first ones.
    pub missed: Vec<Commit>,
    /// How many such were seen.
    pub missed_count: u64,
    /// How far was looked for them.
    pub looked: Lsn,
    /// Tablespaces at paths of their own that are made on the way.
    pub tablespaces: Vec<MadeTablespace>,
    /// The transaction that is the target did not commit.
    pub rolled_back: bool,
    /// The transaction that the record ends at which the server stops.
    pub ended: Option<u32>,
}

/// What was seen of what a target may have meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Names of restore points.
    pub points: BTreeSet<String>,
    /// The first and the last in the order of transaction ids that ended.
    pub xids: Option<(u32, u32)>,
    /// The transaction of which the target was a part.
    pub whole: Option<u32>,
}

impl Landing {
    /// Where WAL ends, and not at a record that stops the server.
    pub fn is_at_the_end(&self) -> bool {
        matches!(self.stop, Stop::EndOfWal | Stop::Cut)
    }
}

impl Met {
    /// Whether what was seen shows that there is no such target further on: it was part of another.
    pub fn rules_out(&self, target: &Target) -> bool {
        matches!(target, Target::Xid { .. }) && self.whole.is_some()
    }

    pub fn join(&mut self, other: Met) {
        self.points.extend(other.points);
        if let Some((first, last)) = other.xids {
            self.ended(first);
            self.ended(last);
        }
        self.whole = self.whole.or(other.whole);
    }

    fn ended(&mut self, xid: u32) {
        let (first, last) = self.xids.unwrap_or((xid, xid));
        self.xids =
            Some((if precedes(xid, first) { xid } else { first }, if precedes(last, xid) { xid } else { last }));
    }
}

/// `TransactionIdPrecedes` (`access/transam/transam.c`).
pub fn precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Names of restore points that are kept, at most.
const KEPT_POINTS: usize = 10_000;

/// Why this backup cannot reach the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server would stop before the backup is consistent: an older backup is needed.
    BeforeConsistency { at: Lsn, consistent_at: Lsn },
    /// Nothing shows that the backup was taken before the target time: it may hold later commits, whose WAL is not replayed.
    NotBefore { began: Option<PgTime> },
    /// WAL ends, or cannot be read further, without a record that stops the recovery.
    /// `last_record`: where the last one starts. `complete_through`: up to where it is known that nothing is missing.
    NotReached { last_commit: Option<Commit>, last_record: Lsn, end: Lsn, complete_through: Option<PgTime> },
    /// WAL ends before the end of the backup.
    WalEndsEarly { end: Lsn, stored_to: Lsn },
    /// The record at `at` says that the server went on under `wal_level = minimal`: what was done then is not all in WAL, and recovery ends in an error
    /// (`CheckRequiredParameterValues`; 13 goes on where nobody may read meanwhile, with tables that lack rows).
    Minimal { at: Lsn },
}

/// Follows a recovery from one backup, record by record.
#[derive(Clone, Debug)]
pub struct Walk {
    target: Target,
    origin: Origin,
    /// When the backup's checkpoint began.
    began: Option<PgTime>,
    /// Time of the first commit or abort after the redo point.
    first_ended: Option<PgTime>,
    replayed: Lsn,
    last_record: Lsn,
    needed: Lsn,
    last_commit: Option<Commit>,
    next_commit: Option<Commit>,
    commits: u64,
    complete_through: Option<PgTime>,
    known: Vec<Heartbeat>,
    stop: Option<Stop>,
    /// Start of the record that no recovery goes past.
    minimal: Option<Lsn>,
    missed: Vec<Commit>,
    missed_count: u64,
    looked: Lsn,
    tablespaces: Vec<MadeTablespace>,
    rolled_back: bool,
    ended: Option<u32>,
    met: Met,
}

impl Walk {
    pub fn new(target: Target, origin: Origin) -> Walk {
        let redo = origin.redo;
        Walk {
            target,
            origin,
            began: None,
            first_ended: None,
            replayed: redo,
            last_record: redo,
            needed: redo,
            last_commit: None,
            next_commit: None,
            commits: 0,
            complete_through: None,
            known: Vec::new(),
            stop: None,
            minimal: None,
            missed: Vec::new(),
            missed_count: 0,
            looked: redo,
            tablespaces: Vec::new(),
            rolled_back: false,
            ended: None,
            met: Met::default(),
        }
    }

    /// What was seen of what the target may have meant.
    pub fn met(&self) -> &Met {
        &self.met
    }

    /// A subtransaction that ends with the transaction `whole`: no record of its own would meet a target.
    pub fn see_part(&mut self, part: u32, whole: u32) {
        if matches!(self.target, Target::Xid { xid, .. } if xid == part) {
            self.met.whole = Some(whole);
        }
    }

    /// Heartbeats of the timelines on the path, none of them past the fork where the path leaves its timeline.
    pub fn knowing(mut self, known: Vec<Heartbeat>) -> Walk {
        self.known = known;
        self
    }

    /// Whether it is decided how this recovery ends.
    pub fn stopped(&self) -> bool {
        self.stop.is_some() || self.minimal.is_some()
    }

    /// What a target that lies behind what was read is refused with, where WAL is damaged.
    pub fn here(&self) -> Refusal {
        let (last_commit, last_record, end) = (self.last_commit, self.last_record, self.replayed);
        Refusal::NotReached { last_commit, last_record, end, complete_through: None }
    }

    /// The same; `None` where that is before the end of the backup.
    pub fn cut_here(&self) -> Option<Refusal> {
        let consistent = self.replayed >= self.origin.stored_to.max(self.origin.consistent_at);
        consistent.then(|| self.here())
    }

    /// The next record in order. After the stop, records are only looked through for commits that the stop leaves out.
    pub fn see(&mut self, record: &Seen) {
        self.looked = record.end;
        if self.stopped() {
            return self.look_past(record);
        }
        if record.start == self.origin.checkpoint {
            self.began = record.checkpoint;
        }
        if let Some((_, time)) = record.note.ended() {
            self.first_ended = self.first_ended.or(Some(time));
            // Something was committed after a heartbeat's position by a time at which that said there was nothing: its clock, or its server, was another.
            self.known.retain(|beat| beat.lsn > record.start || beat.time < time);
            self.complete_through = self.complete_through.filter(|through| *through < time);
        }
        self.needed = record.written;
        if self.stops_before(record) {
            self.stop_at(Stop::Before { start: record.start, end: record.end }, record);
            return self.look_past(record);
        }
        if record.note.is_minimal() {
            self.minimal = Some(record.start);
            return;
        }
        self.replay(record);
        if self.stops_after(record) {
            self.stop_at(Stop::After { start: record.start, end: record.end }, record);
        }
    }

    fn stop_at(&mut self, stop: Stop, record: &Seen) {
        self.stop = Some(stop);
        self.ended = record.note.ended().map(|(xid, _)| xid);
        // It ends the transaction that is the target, and not with a commit.
        self.rolled_back = matches!(self.target, Target::Xid { .. }) && matches!(record.note, Note::Abort { .. });
    }

    /// The landing, when WAL ends here or enough was seen. `timeline` is the path's last one with WAL up to here.
    pub fn finish(self, timeline: TimelineId) -> Result<Landing, Refusal> {
        let (end, consistent_at, stored_to) = (self.replayed, self.origin.consistent_at, self.origin.stored_to);
        if let Some(at) = self.minimal {
            return Err(Refusal::Minimal { at });
        }
        let stop = match self.stop {
            Some(Stop::Before { start, .. }) if end < consistent_at => {
                return Err(Refusal::BeforeConsistency { at: start, consistent_at });
            }
            Some(Stop::After { start, .. }) if end < consistent_at => {
                return Err(Refusal::BeforeConsistency { at: start, consistent_at });
            }
            Some(_) if !self.backup_is_older() => return Err(Refusal::NotBefore { began: self.began }),
            Some(stop) => stop,
            // Consistent or not: WAL that was there is gone, and its end is not the end of what was committed.
            None if end < stored_to => return Err(Refusal::WalEndsEarly { end, stored_to }),
            None => match self.end_of_wal() {
                Some(_) if !self.backup_is_older() => return Err(Refusal::NotBefore { began: self.began }),
                Some(stop) => stop,
                None => {
                    let (last_commit, last_record) = (self.last_commit, self.last_record);
                    return Err(Refusal::NotReached {
                        last_commit,
                        last_record,
                        end,
                        complete_through: self.through(),
                    });
                }
            },
        };
        Ok(Landing {
            last_commit: self.last_commit,
            next_commit: self.next_commit,
            commits: self.commits,
            replayed: end,
            last_record: self.last_record,
            needed: self.needed,
            timeline,
            stop,
            missed: self.missed,
            missed_count: self.missed_count,
            looked: self.looked,
            tablespaces: self.tablespaces,
            rolled_back: self.rolled_back,
            ended: self.ended,
        })
    }

    /// Whether a time target is known to lie after everything that was committed before the redo point, by a clock that was not set back shortly before
    /// ([`super::set_back`] looks for that). Recovery does not see those commits: it would stop at the first later one and call the target reached.
    fn backup_is_older(&self) -> bool {
        let Target::Time { time, .. } = self.target else { return true };
        let by_wal = self.first_ended.is_some_and(|first| first <= time);
        // The checkpoint's time is cut to the second; the other host's clock decides inside that second only.
        let by_clock = self.began.is_some_and(|began| {
            PgTime(began.0.saturating_add(1_000_000)) <= time || (began <= time && self.origin.stopped_at <= time)
        });
        by_wal || by_clock
    }

    /// What the end of WAL means when no record stopped the recovery.
    fn end_of_wal(&self) -> Option<Stop> {
        match &self.target {
            Target::Latest => Some(Stop::EndOfWal),
            Target::Immediate => Some(Stop::Cut),
            // Whatever comes later starts at or behind the target.
            Target::Lsn { lsn, inclusive: false } if self.replayed >= *lsn => Some(Stop::Cut),
            Target::Time { time, .. } if self.through().is_some_and(|through| through > *time) => Some(Stop::Cut),
            _ => None,
        }
    }

    /// Through which moment what was read is known to be all: a heartbeat counts once everything up to it was read.
    fn through(&self) -> Option<PgTime> {
        let covered = self.known.iter().filter(|beat| beat.lsn <= self.replayed).map(|beat| beat.time);
        covered.chain(self.complete_through).max()
    }

    fn stops_before(&self, record: &Seen) -> bool {
        match (&self.target, &record.note) {
            (Target::Immediate, _) => self.replayed >= self.origin.consistent_at,
            (Target::Lsn { lsn, inclusive: false }, _) => record.start >= *lsn,
            (Target::Xid { xid, inclusive: false }, note) => note.ended().is_some_and(|(ended, _)| ended == *xid),
            (Target::Time { time, inclusive }, note) => {
                note.ended().is_some_and(|(_, at)| at > *time || (!inclusive && at == *time))
            }
            _ => false,
        }
    }

    fn stops_after(&self, record: &Seen) -> bool {
        match (&self.target, &record.note) {
            (Target::Name(wanted), Note::RestorePoint { name, .. }) => name == wanted,
            (Target::Lsn { lsn, inclusive: true }, _) => record.start >= *lsn,
            (Target::Xid { xid, inclusive: true }, note) => note.ended().is_some_and(|(ended, _)| ended == *xid),
            // Only after looking at what kind of record it is: elsewhere the server goes on and stops before the next one.
            (Target::Immediate, _) => record.transaction && self.replayed >= self.origin.consistent_at,
            _ => false,
        }
    }

    fn replay(&mut self, record: &Seen) {
        match (&self.target, &record.note) {
            (Target::Name(_), Note::RestorePoint { name, .. }) if self.met.points.len() < KEPT_POINTS => {
                self.met.points.insert(name.clone());
            }
            (Target::Xid { .. }, note) => note.ended().iter().for_each(|(xid, _)| self.met.ended(*xid)),
            _ => {}
        }
        self.replayed = record.end;
        self.last_record = record.start;
        match &record.note {
            &Note::Commit { xid, time, .. } => {
                self.commits += 1;
                self.last_commit = Some(Commit { xid, time, start: record.start, end: record.end });
            }
            // The server's clock when it wrote this: nothing earlier is still to come, unless it is set back.
            Note::RestorePoint { time, .. } => self.complete_through = self.complete_through.max(Some(*time)),
            // Any other lies in the data directory.
            Note::TablespaceMade { oid, location } if location.starts_with(b"/") => {
                self.tablespaces.push(MadeTablespace { oid: *oid, location: location.clone(), at: record.start });
            }
            _ => {}
        }
    }

    fn look_past(&mut self, record: &Seen) {
        let Note::Commit { xid, time, .. } = record.note else { return };
        let commit = Commit { xid, time, start: record.start, end: record.end };
        self.next_commit.get_or_insert(commit);
        let wanted = self.target.takes(time);
        self.missed_count += u64::from(wanted);
        if wanted && self.missed.len() < LISTED_MISSED {
            self.missed.push(commit);
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
