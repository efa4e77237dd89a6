//! Chooses the backup and the path: the newest backup from which the server's own rules lead to the target.

use super::decide::Bounds;
use super::later::{Later, later};
use super::path::{self, Beyond, Path};
use super::plan::{Landing, Met, Origin, Refusal, Stop, Walk, precedes};
use super::scan::{Hole, Read, Route};
use super::target::Target;
use super::{left_out, near};
use crate::archive::Archive;
use crate::archive::heartbeat::LostEnd;
use crate::archive::inventory::Inventory;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::{Parameters, PgTime};
use crate::pg::{Lsn, SegmentName, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;
use crate::seal::content::manifest::Manifest;

/// What the person asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub target: Target,
    pub timeline: Option<TimelineId>,
    /// Only this backup.
    pub backup: Option<String>,
}

/// A backup that was looked at and passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    pub backup: String,
    pub why: String,
    /// Its own WAL is not all there: nothing can be restored from it.
    pub cut_off: bool,
}

/// A backup, a path and the landing that they lead to.
#[derive(Clone, Debug)]
pub struct Choice {
    pub manifest: Manifest,
    /// A noted check found it hurt.
    pub hurt: bool,
    pub path: Path,
    pub landing: Landing,
    pub passed_over: Vec<PassedOver>,
    /// The highest settings announced in pg_control and the WAL that is replayed.
    pub parameters: Parameters,
    /// What leads round tablespaces that recovery would make, where it makes any.
    pub way_round: Option<String>,
    /// Behind what was looked through commits up to the target follow from here on: see [`left_out::beyond`].
    pub more_left_out: Option<Lsn>,
    /// Where the newest timeline was taken for the latest: others that go on later.
    pub later: Vec<Later>,
}

/// Reads WAL until the landing is known. Changes nothing. `Kind::Target` with the nearest that can be reached; `Kind::Gap`
/// where WAL that must exist is missing.
pub async fn choose(archive: &Archive, inventory: &Inventory, backups: &[Manifest], wanted: &Wanted) -> Result<Choice> {
    wanted.target.check()?;
    let (path, candidates) = candidates(inventory, backups, wanted)?;
    let known = known(archive, &path, &wanted.target).await?;
    let mut passed_over = elsewhere(backups, &candidates, wanted, &path);
    // A newer backup was read from here to the end without meeting the target: it can only lie before.
    let mut until = None;
    let mut minimal = None;
    // Where nothing but that a transaction or a name is not there was found: to where it was looked for.
    let mut unmet = None;
    let mut met = Met::default();
    for manifest in &candidates {
        let route = Route { archive, inventory, path: &path, version: version(manifest)? };
        let walk = Walk::new(wanted.target.clone(), origin(manifest)).knowing(known.clone());
        let mut read = route.read(walk, manifest.start, until).await?;
        if until.is_none() && read.hole.is_none() && !read.walk.stopped() {
            read.hole = lost_end(archive, inventory, &path).await?;
        }
        let (hole, parameters) = (read.hole, parameters(manifest, &read));
        met.join(read.walk.met().clone());
        let refusal = match finish(read, &path) {
            Ok(landing) => {
                // Where the target is met, what is missing behind it does not matter.
                if let Some(hole) = hole.filter(|_| landing.stop == Stop::EndOfWal) {
                    return Err(gap(&hole, &landing));
                }
                return landed(&route, backups, wanted, manifest, landing, parameters, passed_over).await;
            }
            Err(refusal) => refusal,
        };
        let searched = matches!(wanted.target, Target::Name(_) | Target::Xid { .. });
        let newer = until;
        match &refusal {
            Refusal::NotReached { end, .. } if searched => {
                if passed_over.is_empty() {
                    unmet = Some(*end);
                }
                until = Some(manifest.start);
            }
            // Nothing was committed since this backup: a commit later than the target may lie before it, on the way from an older one.
            Refusal::NotReached { last_commit: None, .. } if matches!(wanted.target, Target::Time { .. }) => {}
            Refusal::NotReached { .. } => return Err(not_reached(&wanted.target, &refusal, hole)),
            // Its manifest proves that WAL was stored which is gone: the end of what is left is not the latest.
            Refusal::WalEndsEarly { end, .. } if matches!(wanted.target, Target::Latest) => {
                return Err(cut_off(manifest, *end, hole));
            }
            Refusal::Minimal { at } => minimal = minimal.or(Some(*at)),
            _ => {}
        }
        if hole.is_some() || !matches!(refusal, Refusal::NotReached { .. }) {
            unmet = None;
        }
        let (why, cut_off) = (why(&refusal, hole, newer), matches!(refusal, Refusal::WalEndsEarly { .. }));
        passed_over.push(PassedOver { backup: manifest.id.to_string(), why, cut_off });
    }
    let unmet = unmet.filter(|_| passed_over.len() == candidates.len());
    Err(unreachable(&wanted.target, &candidates, &passed_over, minimal, (&met, unmet)))
}

/// What is told of a landing beside it.
async fn landed(
    route: &Route<'_>,
    backups: &[Manifest],
    wanted: &Wanted,
    manifest: &Manifest,
    landing: Landing,
    parameters: Parameters,
    passed_over: Vec<PassedOver>,
) -> Result<Choice> {
    let Route { archive, inventory, path, .. } = *route;
    // Recovery ends there, and the server takes no timeline but the first without its history.
    inventory.demand_history(landing.timeline)?;
    let way_round = super::spaces::way_round(backups, manifest, path, &landing);
    let more_left_out = left_out::beyond(route, landing.looked, &wanted.target).await?;
    let by_default = wanted.timeline.is_none() && matches!(wanted.target, Target::Latest);
    let later = if by_default { later(archive, inventory, backups, path, &landing).await? } else { Vec::new() };
    let (manifest, path, hurt) = (manifest.clone(), path.clone(), false);
    Ok(Choice { manifest, hurt, path, landing, passed_over, parameters, way_round, more_left_out, later })
}

/// The end of the path's WAL is none where a heartbeat shows that there was more.
async fn lost_end(archive: &Archive, inventory: &Inventory, path: &Path) -> Result<Option<Hole>> {
    let Some(LostEnd { from, beat }) = archive.lost_end(inventory, path.target()).await? else { return Ok(None) };
    let size = archive.names.segment_size;
    let from = from.max(path.legs.last().map_or(Lsn(0), |leg| leg.begin));
    let segment = SegmentName::new(path.target(), size.segment_of(from), size);
    Ok(Some(Hole { segment, shown_by: Beyond::Heartbeat { lsn: beat.lsn, time: beat.time } }))
}

/// What is known of times at which nothing was committed on this path.
async fn known(archive: &Archive, path: &Path, target: &Target) -> Result<Vec<Heartbeat>> {
    let mut known = Vec::new();
    if let Target::Time { .. } = target {
        for leg in &path.legs {
            let beats = archive.heartbeats(leg.timeline).await?;
            known.extend(beats.into_iter().filter(|beat| speaks_of(beat, leg.end)));
        }
    }
    Ok(known)
}

/// Whether a heartbeat speaks of the part of its timeline that was left at `fork`. One past it speaks of another history, and so may one right there: an old
/// primary that nobody writes to any more goes on proving that its WAL ends at the fork.
fn speaks_of(beat: &Heartbeat, fork: Option<Lsn>) -> bool {
    fork.is_none_or(|fork| beat.lsn < fork)
}

/// The path, and the backups on it, newest first.
fn candidates<'a>(
    inventory: &Inventory,
    backups: &'a [Manifest],
    wanted: &Wanted,
) -> Result<(Path, Vec<&'a Manifest>)> {
    if backups.is_empty() {
        let error = Error::new(Kind::Target, "the archive has no complete backup");
        return Err(error.hint("take one with walrecv backup"));
    }
    let named = |m: &&Manifest| wanted.backup.as_deref().is_none_or(|id| m.id.as_str() == id);
    let mut candidates: Vec<&Manifest> = backups.iter().filter(named).collect();
    if let (true, Some(id)) = (candidates.is_empty(), &wanted.backup) {
        let error = Error::new(Kind::Usage, format!("there is no complete backup {id}"));
        return Err(error.hint("walrecv list shows the backups"));
    }
    let ends: Vec<_> = candidates.iter().map(|m| (m.stop_timeline, m.stop)).collect();
    let known = inventory
        .timelines
        .keys()
        .chain(inventory.histories.keys())
        .chain(inventory.damaged.keys())
        .chain(ends.iter().map(|e| &e.0));
    let known = known.copied().collect();
    let path = path::choose(inventory, &known, &ends, wanted.timeline)?.ok_or_else(|| {
        let timeline = wanted.timeline.map_or("any timeline".to_owned(), |t| format!("timeline {t}"));
        Error::new(Kind::Target, format!("no complete backup lies on the way to {timeline}"))
            .hint("walrecv list shows the timelines of the backups")
    })?;
    // The server asks for the history of every timeline on its way; the last one tells of all.
    for leg in &path.legs {
        inventory.demand_sound(leg.timeline)?;
    }
    candidates.retain(|m| path.holds(m.stop_timeline, m.stop));
    candidates.sort_by_key(|m| std::cmp::Reverse((m.stop, m.start)));
    Ok((path, candidates))
}

/// Backups that are newer than all on the way and lie on another.
fn elsewhere(backups: &[Manifest], candidates: &[&Manifest], wanted: &Wanted, path: &Path) -> Vec<PassedOver> {
    let newest = candidates.iter().map(|m| m.stopped_at).max();
    let newer = backups.iter().filter(|m| wanted.backup.is_none() && Some(m.stopped_at) > newest);
    let why = format!("it does not lie on the way to timeline {}", path.target());
    newer.map(|m| PassedOver { backup: m.id.to_string(), why: why.clone(), cut_off: false }).collect()
}

fn origin(manifest: &Manifest) -> Origin {
    Origin {
        redo: manifest.start,
        checkpoint: manifest.checkpoint,
        consistent_at: manifest.consistent(),
        stored_to: manifest.stop,
        stopped_at: PgTime::from_unix_micros(manifest.stopped_at.as_microsecond()),
    }
}

fn version(manifest: &Manifest) -> Result<crate::pg::MajorVersion> {
    manifest.major().ok_or_else(|| {
        Error::new(Kind::Version, format!("backup {} is of server version {}", manifest.id, manifest.version_num))
    })
}

/// The landing with the timeline on which its last needed byte lies.
fn finish(read: Read, path: &Path) -> Result<Landing, Refusal> {
    let mut landing = read.walk.finish(path.target())?;
    landing.timeline = Bounds::target_for(path, landing.needed);
    Ok(landing)
}

fn parameters(manifest: &Manifest, read: &Read) -> Parameters {
    let control = &manifest.control;
    let at_backup = Parameters {
        max_connections: control.max_connections,
        max_worker_processes: control.max_worker_processes,
        max_wal_senders: control.max_wal_senders,
        max_prepared_transactions: control.max_prepared_transactions,
        max_locks_per_transaction: control.max_locks_per_transaction,
        wal_level: control.wal_level,
    };
    read.parameters.map_or(at_backup, |later| super::scan::highest(at_backup, later))
}

/// `newer`: where a newer backup begins, from which it was looked for already.
fn why(refusal: &Refusal, hole: Option<Hole>, newer: Option<Lsn>) -> String {
    let missing = hole.map(|hole| format!(", since {hole}")).unwrap_or_default();
    match refusal {
        Refusal::BeforeConsistency { at, consistent_at } => {
            format!("recovery would stop at {at}, before the backup is consistent at {consistent_at}")
        }
        Refusal::NotBefore { began } => {
            let when = began.map(|time| format!(", since it began at {time}")).unwrap_or_default();
            format!("it may hold commits after the target{when}")
        }
        Refusal::NotReached { .. } if newer.is_some() => {
            format!("the target is not met from there to where a newer backup begins{missing}")
        }
        Refusal::NotReached { end, .. } => format!("the target is not met from there to {end}{missing}"),
        Refusal::WalEndsEarly { end, stored_to } => {
            format!("its WAL ends at {end}, before the end of the backup at {stored_to}{missing}")
        }
        Refusal::Minimal { at } => {
            format!("the server went on under wal_level = minimal at {at}, past which nothing can be recovered")
        }
    }
}

fn gap(hole: &Hole, landing: &Landing) -> Error {
    let Landing { replayed, last_record, .. } = landing;
    let message = format!("{hole}: recovery can go to {replayed} only");
    let reachable = format!("a target up to {replayed} can be reached, such as --target-lsn {last_record}");
    Error::new(Kind::Gap, message).hint(match hole.shown_by {
        Beyond::Stored => reachable,
        Beyond::Heartbeat { .. } => {
            format!("bring that WAL back from another copy of the repository; without it {reachable}")
        }
        Beyond::Fork { timeline, .. } => {
            format!(
                "let walrecv receive fetch what is missing from a server of timeline {timeline}; without it {reachable}"
            )
        }
    })
}

/// The WAL ends before the end of a backup.
fn cut_off(manifest: &Manifest, end: Lsn, hole: Option<Hole>) -> Error {
    let missing = hole.map(|hole| format!(": {hole}")).unwrap_or_default();
    let message = format!(
        "WAL can be read to {end} only, and backup {} shows that it was stored to {}{missing}",
        manifest.id, manifest.stop
    );
    Error::new(Kind::Gap, message)
        .hint("bring that WAL back from another copy of the repository; or name an older backup with --backup, and lose what came after")
}

fn not_reached(target: &Target, refusal: &Refusal, hole: Option<Hole>) -> Error {
    let Refusal::NotReached { last_commit, end, complete_through } = refusal else {
        return Error::new(Kind::Target, format!("{} cannot be reached", target.describe()));
    };
    let last = match last_commit {
        Some(c) => format!("the last commit is transaction {} at {} ({})", c.xid, c.time, c.start),
        None => "no commit follows the newest backup".to_owned(),
    };
    if let Some(hole) = hole {
        let message = format!("{hole}, so recovery can go to {end} only: {last}");
        return Error::new(Kind::Gap, message).hint("choose a target before the gap, or a backup after it");
    }
    let message = format!("{} cannot be reached: the archive ends at {end}, and {last}", target.describe());
    // Before a commit the server stops by itself, whoever has heard how long after it nothing was committed.
    let until = (*complete_through).max(last_commit.map(|commit| commit.time));
    let hint = match (target, until) {
        (Target::Time { .. }, Some(until)) => {
            format!("the archive is complete through {until}: restore with --latest, or to a time before that")
        }
        (Target::Time { .. }, None) => {
            "PostgreSQL stops at a commit after the target time, and none is stored: restore with --latest, or to an earlier time"
                .to_owned()
        }
        (Target::Lsn { lsn, .. }, _) if lsn <= end => format!(
            "no record that starts there is stored yet: --target-lsn {lsn} --exclusive restores all before it, and so does --latest now"
        ),
        _ => "restore with --latest, or to an earlier target".to_owned(),
    };
    Error::new(Kind::Target, message).hint(hint)
}

/// No backup leads there.
fn unreachable(
    target: &Target,
    candidates: &[&Manifest],
    passed_over: &[PassedOver],
    minimal: Option<Lsn>,
    (met, unmet): (&Met, Option<Lsn>),
) -> Error {
    let oldest = candidates.iter().min_by_key(|m| m.start);
    let reasons = match (unmet, oldest) {
        (Some(end), Some(oldest)) => {
            format!("none such is stored from the start of backup {} ({}) to {end}", oldest.id, oldest.start)
        }
        _ => reasons(passed_over),
    };
    let message = format!("{} cannot be reached; {reasons}", target.describe());
    let cut_off = |m: &Manifest| passed_over.iter().any(|one| one.cut_off && one.backup == m.id.as_str());
    let earliest = candidates.iter().filter(|m| !cut_off(m)).min_by_key(|m| m.stop);
    if let (None, false) = (earliest, candidates.is_empty()) {
        return Error::new(Kind::Gap, message)
            .hint("bring the missing WAL back from another copy of the repository, or take a new backup");
    }
    if let Some(at) = minimal {
        return Error::new(Kind::Target, message).hint(format!(
            "--target-lsn {at} --exclusive is the last moment before that; later ones need a backup that was taken after it"
        ));
    }
    let hint = match (target, earliest) {
        (Target::Name(name), _) => no_such_name(name, met),
        (Target::Xid { xid, .. }, _) => no_such_transaction(*xid, met),
        (_, Some(m)) => format!(
            "the earliest that can be reached is the end of backup {} ({}): --target-lsn {}",
            m.id, m.stopped_at, m.stop
        ),
        (_, None) => "walrecv list shows the backups".to_owned(),
    };
    Error::new(Kind::Target, message).hint(hint)
}

/// Of many backups the newest ones, and the oldest.
fn reasons(passed_over: &[PassedOver]) -> String {
    let told = |p: &PassedOver| format!("backup {}: {}", p.backup, p.why);
    let mut all: Vec<String> = passed_over.iter().map(told).collect();
    if let (Some(last), true) = (passed_over.last(), all.len() > SOME) {
        let left_out = all.len() - SOME;
        all.truncate(SOME - 1);
        all.push(format!("{left_out} more that are older; backup {}: {}", last.backup, last.why));
    }
    all.join("; ")
}

/// What a name may have meant.
fn no_such_name(name: &str, met: &Met) -> String {
    let near = near::nearest(name, met.points.iter().map(String::as_str));
    let some = |names: &[String]| names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    match (near.is_empty(), met.points.len()) {
        (_, 0) => {
            "no restore point is stored since the oldest backup on the way; walrecv find tells what was done, and when"
                .to_owned()
        }
        (false, _) => format!("names like it: {}", some(&near)),
        (true, 1..=SOME) => format!("there are: {}", some(&met.points.iter().cloned().collect::<Vec<_>>())),
        (true, more) => {
            format!("none of {more} restore points has a name like it; walrecv find tells them, with times")
        }
    }
}

/// So many names are told.
const SOME: usize = 5;

/// Why a transaction does not end in what is stored.
fn no_such_transaction(xid: u32, met: &Met) -> String {
    if let Some(whole) = met.whole {
        return format!("it was a subtransaction of {whole}, and ended with that: --target-xid {whole}");
    }
    match met.xids {
        None => "no transaction ended since the oldest backup on the way".to_owned(),
        Some((_, last)) if precedes(last, xid) => {
            format!(
                "it is newer than {last}, the newest that ended in what is stored: it had not ended, or what it did is not stored yet"
            )
        }
        Some((first, _)) if precedes(xid, first) => {
            format!(
                "it is older than {first}, the oldest that ended since the oldest backup on the way: no backup leads there"
            )
        }
        Some((first, last)) => {
            format!(
                "transactions from {first} to {last} ended there: it wrote nothing, or had not ended; walrecv find tells those that did much"
            )
        }
    }
}

/// The WAL segments that a recovery reads: from `start` to `needed`.
pub fn segments(size: crate::pg::SegmentSize, start: Lsn, needed: Lsn) -> u64 {
    size.segment_before(needed).0.saturating_sub(size.segment_of(start).0) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_hundreds_of_backups_some_are_told() {
        let passed: Vec<PassedOver> =
            (0..700).map(|n| PassedOver { backup: format!("b{n}"), why: format!("w{n}"), cut_off: false }).collect();
        assert_eq!(reasons(&passed[..2]), "backup b0: w0; backup b1: w1");
        assert_eq!(reasons(&passed[..5]).matches("backup").count(), 5);
        let told = reasons(&passed);
        assert!(
            told.starts_with("backup b0: w0; ") && told.ends_with("; 695 more that are older; backup b699: w699"),
            "{told}"
        );
        assert_eq!(told.matches("backup b").count(), 5);
    }

    #[test]
    fn an_old_primary_that_stands_at_the_fork_says_nothing_of_the_new_timeline() {
        let beat = |lsn| Heartbeat { lsn: Lsn(lsn), time: PgTime(5) };
        assert!(speaks_of(&beat(99), Some(Lsn(100))) && speaks_of(&beat(100), None));
        assert!(!speaks_of(&beat(100), Some(Lsn(100))) && !speaks_of(&beat(101), Some(Lsn(100))));
    }
}
