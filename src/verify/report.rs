//! What was found, for people and for scripts. The names are stable.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::seal::content::event::{Outcome, Spoiled, Verified};

/// Problems that are named; what goes beyond is counted.
pub const NAMED: usize = 10_000;
/// Backups of which left-overs are named.
pub const LEFT_OVER: usize = 1000;
/// Pages with a wrong checksum that are named.
pub const BAD_PAGES: usize = 1000;

/// In what way something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// The store says that it is not there, and something needs it.
    Missing,
    /// Its bytes are cut, changed, or not what others say of them.
    Damaged,
    /// Sealed with other keys, or by someone who has none.
    Unauthentic,
    /// WAL that is not stored.
    Gap,
    /// The store did not give it: neither good nor bad is known.
    Unreadable,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Name in the repository; for a gap the segments.
    pub object: String,
    pub flaw: Flaw,
    pub expected: String,
    pub found: String,
    /// Backups that need it. One that takes other frames of a damaged pack than those that are hit restores all the same, which only a restore tells. Where it is
    /// unreadable, nothing is known of them.
    pub hurts: BTreeSet<String>,
    /// Backups that can be restored, but not to every moment that the archive otherwise holds.
    pub limits: BTreeSet<String>,
}

/// How one backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Whole,
    /// Something that it needs is missing or damaged.
    Hurt,
    /// Something that it needs could not be read.
    Unknown,
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub id: String,
    pub state: State,
    /// WAL behind it is missing or damaged.
    pub limited: bool,
}

/// WAL that is stored without a hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    pub timeline: u32,
    pub from: String,
    pub to: String,
}

/// A gap that an event explains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenHole {
    pub timeline: u32,
    pub from: String,
    pub to: String,
    pub reason: String,
    /// A complete backup lies behind it.
    pub closed_by_backup: bool,
}

/// WAL that a server wrote under `wal_level = minimal`: it is stored, and what was done then is not all in it. No restore gets past it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenMinimal {
    pub timeline: u32,
    /// From this record on.
    pub lsn: String,
    /// A complete backup lies behind it.
    pub closed_by_backup: bool,
}

/// A data page whose checksum does not fit. It was stored so: the server had it so, or was writing it at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadPage {
    /// The backup that stored it.
    pub backup: String,
    pub path: String,
    pub page: u64,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    pub manifests: u64,
    pub map_parts: u64,
    /// Packs that are there with the right length; deep: whose every frame opens.
    pub packs: u64,
    pub server_manifests: u64,
    /// Segments, parts and ends of timelines: listed; deep: opened.
    pub wal_objects: u64,
    pub tails: u64,
    pub histories: u64,
    /// Files that wrap the repository identity and are as they were stored.
    pub key_files: u64,
    /// Those of them that the private key at hand opens; null: there is none.
    pub key_files_opened: Option<u64>,
    pub group_summaries: u64,
    /// Events, intents, tombstones, plans, heartbeats, cluster file.
    pub others: u64,
    /// Runs of maps that were compared with contents lists (deep).
    pub runs: u64,
    /// Data pages that were opened (deep).
    pub pages: u64,
    /// Of those in a cluster with checksums: right, not to be judged (written while the backup ran), torn (the backup's own WAL replaces them), wrong.
    pub pages_good: u64,
    pub pages_newer: u64,
    pub pages_torn: u64,
    pub pages_bad: u64,
    /// WAL records that were read and whose CRC-32C fits (deep).
    pub wal_records: u64,
    /// Bytes that were fetched.
    pub bytes: u64,
}

/// What nothing refers to: interrupted backups, backups under way, what an expiry has yet to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOver {
    pub objects: u64,
    pub bytes: u64,
    /// By backup, at most [`LEFT_OVER`] of them. One that should be there stands here where somebody removed its manifest.
    pub backups: Vec<LeftOverOf>,
}

/// What one backup without a manifest left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOverOf {
    pub id: String,
    pub objects: u64,
    pub bytes: u64,
    /// It was given up, which a tombstone says.
    pub given_up: bool,
}

/// The whole result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub version: u32,
    pub cluster: String,
    pub system_identifier: String,
    pub deep: bool,
    /// The one backup that was looked at; null: everything.
    pub only: Option<String>,
    pub outcome: Outcome,
    pub milliseconds: u64,
    pub backups: Vec<Verdict>,
    pub wal: Vec<Range>,
    pub recorded_holes: Vec<SeenHole>,
    /// What was recorded of WAL that leads nowhere, although it is stored.
    pub minimal_wal: Vec<SeenMinimal>,
    pub problems: Vec<Problem>,
    pub problems_not_named: u64,
    /// Backups that an earlier deep check found hurt, and this quick one has not read again.
    pub remembered: Vec<String>,
    /// What the event says again of earlier ones, whether it was looked at or not.
    #[serde(skip)]
    pub carried: Vec<String>,
    #[serde(skip)]
    pub spoiled: Spoiled,
    pub checked: Checked,
    pub left_over: LeftOver,
    pub bad_pages: Vec<BadPage>,
}

impl Report {
    pub const VERSION: u32 = 1;

    /// As it is noted in the repository.
    pub fn event(&self) -> Verified {
        let of = |state| {
            let those = self.backups.iter().filter(move |verdict| verdict.state == state);
            those.map(|verdict| verdict.id.clone()).collect()
        };
        Verified {
            deep: self.deep,
            seconds: self.milliseconds.div_ceil(1000),
            only: self.only.clone(),
            outcome: self.outcome,
            problems: self.problems.len() as u64 + self.problems_not_named,
            whole: of(State::Whole),
            hurt: of(State::Hurt),
            unknown: of(State::Unknown),
            remembered: self.carried.clone(),
            spoiled: self.spoiled.clone(),
        }
    }
}

/// What all problems come to: what is certain counts before what is not known.
pub fn outcome(flaws: impl Iterator<Item = Flaw> + Clone) -> Outcome {
    let any = |wanted: &[Flaw]| flaws.clone().any(|flaw| wanted.contains(&flaw));
    if any(&[Flaw::Missing, Flaw::Damaged, Flaw::Unauthentic]) {
        Outcome::Corrupt
    } else if any(&[Flaw::Gap]) {
        Outcome::Gap
    } else if any(&[Flaw::Unreadable]) {
        Outcome::Unreadable
    } else {
        Outcome::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_is_neither_good_nor_corrupt() {
        let of = |flaws: &[Flaw]| outcome(flaws.iter().copied());
        assert_eq!(of(&[]), Outcome::Ok);
        assert_eq!(of(&[Flaw::Unreadable]), Outcome::Unreadable);
        assert_eq!(of(&[Flaw::Unreadable, Flaw::Gap]), Outcome::Gap);
        assert_eq!(of(&[Flaw::Unreadable, Flaw::Gap, Flaw::Missing]), Outcome::Corrupt);
        for flaw in [Flaw::Missing, Flaw::Damaged, Flaw::Unauthentic] {
            assert_eq!(of(&[flaw]), Outcome::Corrupt);
        }
    }
}
