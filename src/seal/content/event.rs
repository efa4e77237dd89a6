//! Events: what happened to an archive that nobody may overlook later. Small index objects, one for each.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Malformed;
use super::text::{self, shown};
use crate::pg::{Lsn, SystemIdentifier, TimelineId};

const VERSION: u32 = 1;

/// JSON; fields that a reader does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub version: u32,
    #[serde(with = "shown")]
    pub at: Timestamp,
    pub cluster: String,
    #[serde(with = "text::system")]
    pub system: SystemIdentifier,
    /// Program and version.
    pub made_by: String,
    #[serde(flatten)]
    pub what: What,
}

/// What happened: `"event"` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    Hole(Hole),
    CorruptWal(CorruptWal),
    MinimalWal(MinimalWal),
    Verified(Verified),
    Expiry(Expired),
    Drill(Drill),
    /// Of a later version of walrecv.
    #[serde(other)]
    Unknown,
}

/// WAL that the archive lacks and never gets: given up, so that streaming could go on behind it. Nothing is restored across it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    #[serde(with = "text::timeline")]
    pub from_timeline: TimelineId,
    /// First byte that is missing.
    #[serde(with = "shown")]
    pub from: Lsn,
    #[serde(with = "text::timeline")]
    pub to_timeline: TimelineId,
    /// First byte behind the hole: the start of a segment.
    #[serde(with = "shown")]
    pub to: Lsn,
    pub reason: String,
}

/// WAL that failed its checks twice. Nothing from there on was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptWal {
    #[serde(with = "text::timeline")]
    pub timeline: TimelineId,
    #[serde(with = "shown")]
    pub lsn: Lsn,
    pub problem: String,
}

/// The record that begins there says that the server went on under `wal_level = minimal`: what was done then is not all in WAL. Nothing is restored past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinimalWal {
    #[serde(with = "text::timeline")]
    pub timeline: TimelineId,
    #[serde(with = "shown")]
    pub lsn: Lsn,
}

/// The archive, or one backup of it, was read back and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Every byte was opened, not only what names, lengths and indexes tell.
    pub deep: bool,
    /// How long it took: what was noted meanwhile it need not have seen.
    #[serde(default)]
    pub seconds: u64,
    /// What was looked at: everything, or only this backup and its WAL.
    pub only: Option<String>,
    pub outcome: Outcome,
    /// Problems that were found.
    pub problems: u64,
    /// Backups of which nothing that they need is missing or damaged.
    pub whole: Vec<String>,
    /// Backups that need something which is missing or damaged.
    pub hurt: Vec<String>,
    /// Backups of which something could not be read, so that nothing is known.
    pub unknown: Vec<String>,
    /// What earlier deep checks found hurt, and this one has not judged by every byte: said again, since those may be too far back to be asked. Also such as this
    /// one did not look at, and such as were deleted.
    #[serde(default)]
    pub remembered: Vec<String>,
    /// What is missing or damaged of what these backups need: no new one builds on it.
    #[serde(default)]
    pub spoiled: Spoiled,
}

/// Packs and maps that are missing or damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoiled {
    /// Numbers of packs by the backup that stored them; none: more than [`Spoiled::NAMED`], so any of its packs may be meant.
    #[serde(default)]
    pub packs: BTreeMap<String, BTreeSet<u32>>,
    /// Backups that stored the maps.
    #[serde(default)]
    pub maps: BTreeSet<String>,
}

impl Spoiled {
    /// Packs of one backup that are named, so that the event stays small.
    pub const NAMED: usize = 1000;

    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.maps.is_empty()
    }

    pub fn add_packs(&mut self, backup: &str, numbers: impl IntoIterator<Item = u32>) {
        let all = self.packs.get(backup).is_some_and(BTreeSet::is_empty);
        let named = self.packs.entry(backup.to_owned()).or_default();
        named.extend(numbers);
        if all || named.len() > Self::NAMED {
            named.clear();
        }
    }

    pub fn has_pack(&self, backup: &str, number: u32) -> bool {
        self.packs.get(backup).is_some_and(|named| named.is_empty() || named.contains(&number))
    }

    /// Adds what another one tells.
    pub fn merge(&mut self, other: &Spoiled) {
        self.maps.extend(other.maps.iter().cloned());
        for (backup, numbers) in &other.packs {
            match numbers.is_empty() {
                true => _ = self.packs.insert(backup.clone(), BTreeSet::new()),
                false => self.add_packs(backup, numbers.iter().copied()),
            }
        }
    }
}

/// What a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing is wrong.
    #[default]
    Ok,
    /// Something is missing, damaged, or not what it should be.
    Corrupt,
    /// WAL is missing that no event explains.
    Gap,
    /// Something could not be read: neither good nor bad is known of it.
    Unreadable,
}

impl Outcome {
    /// As it is stored and printed.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Corrupt => "corrupt",
            Outcome::Gap => "gap",
            Outcome::Unreadable => "unreadable",
        }
    }
}

/// Backups that were deleted, and objects that were swept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// The name of the plan that announced it.
    pub plan: String,
    /// Backups whose manifests were deleted.
    pub deleted: Vec<String>,
    /// Backups that were never complete and got a tombstone.
    pub given_up: Vec<String>,
    /// Packs, maps, server manifests and intents that were deleted, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    pub host: String,
    pub user: String,
}

/// A restore that was made to see whether it works, and thrown away again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// The backup that was restored; `None` where none was chosen.
    pub backup: Option<String>,
    /// In words.
    pub target: Option<String>,
    pub passed: bool,
    /// Something that is stored, or was on the server, is damaged.
    pub corrupt: bool,
    /// The checks that failed.
    pub failed: Vec<String>,
    /// From the last moment that the archive covered to the beginning of the drill.
    pub rpo_milliseconds: Option<u64>,
    /// From the beginning of the drill until the restored server answered.
    pub rto_milliseconds: Option<u64>,
    /// All of it.
    pub milliseconds: u64,
    pub host: String,
    pub user: String,
    /// `None` where it did not come to that, and in what earlier versions wrote.
    #[serde(default)]
    pub measured: Option<Measured>,
}

/// How fast a backup was laid and its WAL replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    pub laid_bytes: u64,
    pub laying_milliseconds: u64,
    /// From the backup's redo point to the landing.
    pub wal_bytes: u64,
    pub recovery_milliseconds: u64,
    /// Of them, until the server began to replay WAL; 0 in what earlier versions wrote.
    #[serde(default)]
    pub starting_milliseconds: u64,
}

impl What {
    /// As it stands in the object's name.
    pub fn name(&self) -> &'static str {
        match self {
            What::Hole(_) => "hole",
            What::CorruptWal(_) => "corrupt-wal",
            What::MinimalWal(_) => "minimal-wal",
            What::Verified(_) => "verified",
            What::Expiry(_) => "expiry",
            What::Drill(_) => "drill",
            What::Unknown => "unknown",
        }
    }
}

impl Event {
    pub const VERSION: u32 = VERSION;

    pub fn encode(&self) -> Vec<u8> {
        super::manifest::json(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<Event, Malformed> {
        super::manifest::read_json("event", bytes, VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        Event {
            version: VERSION,
            at: "2026-03-04T05:06:07Z".parse().unwrap(),
            cluster: "main".to_owned(),
            system: SystemIdentifier(u64::MAX),
            made_by: "walrecv".to_owned(),
            what,
        }
    }

    #[test]
    fn every_event_reads_back() {
        let hole = Hole {
            from_timeline: TimelineId(1),
            from: Lsn(0x1000028),
            to_timeline: TimelineId(2),
            to: Lsn(0x5000000),
            reason: "r".to_owned(),
        };
        let corrupt = CorruptWal { timeline: TimelineId(1), lsn: Lsn(7), problem: "p".to_owned() };
        let mut spoiled = Spoiled::default();
        spoiled.add_packs("b", [5, 0]);
        let verified = Verified {
            deep: true,
            seconds: 7,
            outcome: Outcome::Corrupt,
            problems: 3,
            whole: vec!["a".to_owned()],
            hurt: vec!["b".to_owned()],
            spoiled,
            ..Verified::default()
        };
        let one = Verified { only: Some("b".to_owned()), ..verified.clone() };
        let verified = [What::Verified(verified), What::Verified(one)];
        let expired = Expired {
            plan: "20260131T020001Z-0a02030405060708".to_owned(),
            deleted: vec!["a".to_owned()],
            given_up: Vec::new(),
            objects: 3,
            bytes: 4,
            host: "h".to_owned(),
            user: "u".to_owned(),
        };
        let drill = Drill {
            backup: Some("a".to_owned()),
            target: Some("the end of the archive".to_owned()),
            passed: false,
            corrupt: true,
            failed: vec!["amcheck".to_owned()],
            rpo_milliseconds: Some(1),
            rto_milliseconds: None,
            milliseconds: 2,
            host: "h".to_owned(),
            user: "u".to_owned(),
            measured: Some(Measured {
                laid_bytes: 3,
                laying_milliseconds: 4,
                wal_bytes: 5,
                recovery_milliseconds: 7,
                starting_milliseconds: 6,
            }),
        };
        let minimal = MinimalWal { timeline: TimelineId(3), lsn: Lsn(9) };
        let others = [
            What::Hole(hole),
            What::CorruptWal(corrupt),
            What::MinimalWal(minimal),
            What::Expiry(expired),
            What::Drill(drill),
        ];
        for what in others.into_iter().chain(verified) {
            let event = event(what);
            let text = String::from_utf8(event.encode()).unwrap();
            assert!(text.contains(&format!("\"event\": \"{}\"", event.what.name())), "{text}");
            assert_eq!(Event::decode(text.as_bytes()).unwrap(), event);
        }
    }

    #[test]
    fn packs_that_are_too_many_to_be_named_are_all_of_their_backup() {
        let mut few = Spoiled::default();
        few.add_packs("a", [1, 2]);
        few.add_packs("b", 0..Spoiled::NAMED as u32);
        assert!(few.has_pack("a", 2) && !few.has_pack("a", 3) && !few.has_pack("c", 1));
        assert!(!few.has_pack("b", Spoiled::NAMED as u32));
        let mut many = few.clone();
        many.add_packs("b", [Spoiled::NAMED as u32]);
        many.add_packs("b", [7]);
        assert!(many.has_pack("b", u32::MAX));
        few.merge(&many);
        assert_eq!(few, many);
        many.merge(&Spoiled::default());
        assert_eq!(few, many);
    }

    #[test]
    fn a_later_event_is_no_error_and_a_bad_one_is() {
        let head = r#"{"version":1,"at":"2026-03-04T05:06:07Z","cluster":"m","system":"7","made_by":"x","#;
        let later = format!(r#"{head}"event":"moon-landing","crew":3}}"#);
        assert_eq!(Event::decode(later.as_bytes()).unwrap().what, What::Unknown);
        for bad in [format!(r#"{head}"event":"hole"}}"#), format!("{head}\"x\":1}}"), "{\"version\":2}".to_owned()] {
            assert!(Event::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
