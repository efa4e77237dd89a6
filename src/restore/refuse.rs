//! What is told where a target cannot be reached, with the nearest that can. Words only.

use super::choose::PassedOver;
use super::near;
use super::path::Beyond;
use super::plan::{Landing, Met, Refusal, precedes};
use super::scan::Hole;
use super::target::Target;
use crate::error::{Error, Kind};
use crate::pg::Lsn;
use crate::pg::xact::PgTime;
use crate::seal::content::manifest::Manifest;

/// A newer backup was read from its beginning on.
pub const NOT_MET: &str = "the target is not met from there to where a newer backup begins";

/// Why a backup is passed over. `newer`: where a newer one begins, from which it was looked for already.
pub fn why(refusal: &Refusal, hole: Option<Hole>, newer: Option<Lsn>) -> String {
    let missing = hole.map(|hole| format!(", since {hole}")).unwrap_or_default();
    match refusal {
        Refusal::BeforeConsistency { at, consistent_at } => {
            format!("recovery would stop at {at}, before the backup is consistent at {consistent_at}")
        }
        Refusal::NotBefore { began } => {
            let when = began.map(|time| format!(", since it began at {time}")).unwrap_or_default();
            format!("it may hold commits after the target{when}")
        }
        Refusal::NotReached { .. } if newer.is_some() => format!("{NOT_MET}{missing}"),
        Refusal::NotReached { end, .. } => format!("the target is not met from there to {end}{missing}"),
        Refusal::WalEndsEarly { end, stored_to } => {
            format!("its WAL ends at {end}, before the end of the backup at {stored_to}{missing}")
        }
        Refusal::Minimal { at } => {
            format!("the server went on under wal_level = minimal at {at}, past which nothing can be recovered")
        }
    }
}

pub fn gap(hole: &Hole, landing: &Landing) -> Error {
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
pub fn cut_off(manifest: &Manifest, end: Lsn, hole: Option<Hole>) -> Error {
    let missing = hole.map(|hole| format!(": {hole}")).unwrap_or_default();
    let message = format!(
        "WAL can be read to {end} only, and backup {} shows that it was stored to {}{missing}",
        manifest.id, manifest.stop
    );
    Error::new(Kind::Gap, message)
        .hint("bring that WAL back from another copy of the repository; or name an older backup with --backup, and lose what came after")
}

pub fn not_reached(target: &Target, refusal: &Refusal, hole: Option<Hole>) -> Error {
    let Refusal::NotReached { last_commit, last_record, end, complete_through } = refusal else {
        return Error::new(Kind::Target, format!("{} cannot be reached", target.describe()));
    };
    let last = match last_commit {
        Some(c) => format!("the last commit is transaction {} at {} ({})", c.xid, c.time, c.start),
        None => "no commit follows the newest backup".to_owned(),
    };
    if let Some(hole) = hole {
        let message = format!("{hole}, so recovery can go to {end} only: {last}");
        let nearest = nearest(*last_record);
        return Error::new(Kind::Gap, message)
            .hint(format!("{nearest}; what lies behind the gap needs a backup after it"));
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

/// What is looked for is nowhere in what is stored, and some of that is missing.
pub fn not_searched(target: &Target, hole: &Hole) -> Error {
    let message =
        format!("{hole}: {} may lie there, and is not in what is stored of the way up to it", target.describe());
    Error::new(Kind::Gap, message)
        .hint("bring that WAL back from another copy of the repository; without it choose a target that is stored (walrecv find)")
}

/// The last moment of WAL that can be read.
fn nearest(last_record: Lsn) -> String {
    format!("the nearest that can be reached is --target-lsn {last_record}")
}

const BRING_BACK: &str = "or put the object back from another copy of the repository";

/// WAL is damaged on the way. `reached`: how far recovery can go; `None` where that is not to the end of the backup.
pub fn damaged(damage: Error, reached: Option<&Refusal>) -> Error {
    let Some(Refusal::NotReached { last_commit, last_record, end, .. }) = reached else {
        return damage.hint(format!("choose a target before the end of that backup, from an older one; {BRING_BACK}"));
    };
    let last = last_commit.map(|c| format!(": the last commit is transaction {} at {}", c.xid, c.time));
    let damage = damage.context(format_args!("recovery can go to {end} only{}", last.unwrap_or_default()));
    damage.hint(format!("{}; {BRING_BACK}", nearest(*last_record)))
}

/// The same, from an older backup.
pub fn nearest_short_of_damage(reached: &Refusal) -> String {
    match reached {
        Refusal::NotReached { last_record, .. } => {
            format!("{}, from an older backup; {BRING_BACK}", nearest(*last_record))
        }
        _ => BRING_BACK.to_owned(),
    }
}

/// No backup leads there.
pub fn unreachable(
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
            m.id,
            PgTime::from_unix_micros(m.stopped_at.as_microsecond()),
            m.stop
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
                "it is older than {first}, the oldest that ended since the oldest backup on the way: no backup leads there, or it had not ended"
            )
        }
        Some((first, last)) => {
            format!(
                "transactions from {first} to {last} ended there: it wrote nothing, or had not ended; walrecv find tells those that did much"
            )
        }
    }
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
}
