//! The plan file: what `restore` leaves for `wal-fetch`, so that one opened identity serves the whole recovery.
//!
//! It stands in `pg_wal/walrecv/` of the restored data directory, which pg_verifybackup and BASE_BACKUP leave out, readable
//! by the server's user alone: it holds the keys. It binds until recovery has ended, and goes then.

use std::collections::BTreeSet;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::decide::Bounds;
use super::path::{Leg, Path};
use crate::archive::Archive;
use crate::disk::{durable, lay};
use crate::error::{Context, Error, Kind, Result};
use crate::keys::ring::ReaderRing;
use crate::pg::control::ControlFile;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::repo::{ClusterNames, Repository};
use crate::seal::header::RepositoryId;
use crate::seal::key::RepositorySecret;

/// Below the data directory.
pub const DIRECTORY: &str = "pg_wal/walrecv";
const FILE: &str = "plan.json";
const VERSION: u32 = 1;
/// `DBState` (`catalog/pg_control.h`).
const DB_IN_ARCHIVE_RECOVERY: u32 = 5;

/// Where the repository is and how to open it. The identity is only there when the repository is encrypted.
#[derive(Clone)]
pub struct Access {
    pub url: String,
    pub repository: RepositoryId,
    pub secret: RepositorySecret,
    pub identity: Option<Zeroizing<String>>,
}

/// A plan as `wal-fetch` knows it.
#[derive(Clone)]
pub struct PlanFile {
    pub names: ClusterNames,
    pub access: Access,
    pub bounds: Bounds,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    repository: String,
    repository_id: String,
    cluster: String,
    system: u64,
    segment_size: u64,
    /// Oldest first; the last one has no end.
    timelines: Vec<StoredLeg>,
    target_timeline: u32,
    end: String,
    histories: BTreeSet<u32>,
    secret: String,
    identity: Option<String>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.identity.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
struct StoredLeg {
    timeline: u32,
    begin: String,
    end: Option<String>,
}

/// What stands in the `recovery.signal` of a planned recovery. The server looks only whether there is such a file (`readRecoverySignalFile`).
pub const SIGNAL: &[u8] = b"# walrecv restore: this recovery follows its plan\n";

fn gone(place: &FilePath) -> Error {
    Error::new(
        Kind::Failed,
        format!("the plan of this restore is gone ({}): its recovery would end elsewhere", place.display()),
    )
    .hint("run walrecv restore again; for a recovery without a plan empty recovery.signal")
}

impl PlanFile {
    /// The file below the data directory `pgdata`.
    pub fn place(pgdata: &FilePath) -> PathBuf {
        pgdata.join(DIRECTORY).join(FILE)
    }

    /// Writes the plan, readable by `owner` alone.
    pub fn write(&self, pgdata: &FilePath, owner: Option<lay::Owner>) -> Result<()> {
        let stored = self.to_stored();
        let text = serde_json::to_vec_pretty(&stored)
            .map(Zeroizing::new)
            .map_err(|e| Error::new(Kind::Failed, "cannot write the plan file").caused_by(e))?;
        let directory = pgdata.join(DIRECTORY);
        lay::make_dir(&directory, 0o700, owner)?;
        let place = Self::place(pgdata);
        durable::replace(&place, &text, 0o600)?;
        lay::give(&place, owner)
    }

    /// The plan that binds a recovery in `pgdata`: `None` where there is none, where it has ended, or where a standby runs. An error where this very recovery was
    /// planned, and the plan is gone: it would end elsewhere.
    ///
    /// At the end of recovery the server removes `recovery.signal` before it asks for its last history file (`StartupXLOG`), so pg_control, too,
    /// says whether a recovery is going on.
    pub fn binding(pgdata: &FilePath) -> Result<Option<PlanFile>> {
        let signalled = pgdata.join("recovery.signal").exists();
        if pgdata.join("standby.signal").exists() || !(signalled || ending(pgdata)) {
            return Ok(None);
        }
        let place = Self::place(pgdata);
        match std::fs::read(&place) {
            Ok(bytes) => PlanFile::parse(&Zeroizing::new(bytes)).context(place.display()).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => match std::fs::read(pgdata.join("recovery.signal")) {
                Ok(signal) if signal.starts_with(SIGNAL) => Err(gone(&place)),
                _ => Ok(None),
            },
            Err(e) => Err(Error::new(Kind::Failed, format!("cannot read the plan {}", place.display())).caused_by(e)),
        }
    }

    /// Tells this plan from others: of another cluster or repository, by another path, to another end. Its keys are not in it.
    pub fn mark(&self) -> u32 {
        let mut stored = self.to_stored();
        stored.secret.zeroize();
        stored.identity.zeroize();
        // A plan that cannot be written is none; all such have one mark.
        crc32c::crc32c(&serde_json::to_vec(&stored).unwrap_or_default())
    }

    /// Opens the archive that the plan names; `env` is asked for the storage's credentials.
    pub fn archive(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Archive> {
        let repo = Repository::open(&self.access.url, env)?;
        let identity = self.access.identity.as_ref().map(|i| i.as_str());
        let ring = ReaderRing::new(self.access.repository, self.access.secret.clone(), identity)?;
        Ok(Archive { repo, names: self.names.clone(), keys: Arc::new(ring) })
    }

    fn to_stored(&self) -> Stored {
        let leg = |leg: &Leg| StoredLeg {
            timeline: leg.timeline.0,
            begin: leg.begin.to_string(),
            end: leg.end.map(|end| end.to_string()),
        };
        Stored {
            version: VERSION,
            repository: self.access.url.clone(),
            repository_id: hex(&self.access.repository.0),
            cluster: self.names.cluster.clone(),
            system: self.names.system.0,
            segment_size: self.names.segment_size.bytes(),
            timelines: self.bounds.path.legs.iter().map(leg).collect(),
            target_timeline: self.bounds.target.0,
            end: self.bounds.end.to_string(),
            histories: self.bounds.histories.iter().map(|t| t.0).collect(),
            secret: hex(&self.access.secret.0),
            identity: self.access.identity.as_ref().map(|i| i.to_string()),
        }
    }

    fn parse(bytes: &[u8]) -> Result<PlanFile> {
        let bad = |problem: String| {
            Error::new(Kind::Failed, format!("not a plan of this version of walrecv: {problem}"))
                .hint("run the restore again with this version")
        };
        let mut stored: Stored = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if stored.version != VERSION {
            return Err(bad(format!("expected version {VERSION}, found {}", stored.version)));
        }
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|e| bad(e.to_string()));
        let mut legs = Vec::with_capacity(stored.timelines.len());
        for leg in &stored.timelines {
            let end = leg.end.as_deref().map(lsn).transpose()?;
            legs.push(Leg { timeline: TimelineId(leg.timeline), begin: lsn(&leg.begin)?, end });
        }
        let secret = unhex::<32>(&stored.secret).ok_or_else(|| bad("the secret is damaged".to_owned()))?;
        let repository =
            unhex::<16>(&stored.repository_id).ok_or_else(|| bad("the repository id is damaged".to_owned()))?;
        let segment_size = SegmentSize::new(stored.segment_size)
            .ok_or_else(|| bad(format!("{} is no segment size", stored.segment_size)))?;
        let bounds = Bounds {
            path: Path { legs },
            target: TimelineId(stored.target_timeline),
            end: lsn(&stored.end)?,
            histories: stored.histories.iter().copied().map(TimelineId).collect(),
        };
        if bounds.path.leg(bounds.target).is_none() {
            return Err(bad("the target timeline is not on the path".to_owned()));
        }
        Ok(PlanFile {
            names: ClusterNames {
                cluster: std::mem::take(&mut stored.cluster),
                system: SystemIdentifier(stored.system),
                segment_size,
            },
            access: Access {
                url: std::mem::take(&mut stored.repository),
                repository: RepositoryId(repository),
                secret: RepositorySecret(secret),
                identity: stored.identity.take().map(Zeroizing::new),
            },
            bounds,
        })
    }
}

/// Whether pg_control says that archive recovery goes on; one that cannot be read does not say that it has ended.
fn ending(pgdata: &FilePath) -> bool {
    match std::fs::read(pgdata.join("global/pg_control")) {
        Ok(content) => ControlFile::parse(&content).map_or(true, |control| control.state == DB_IN_ARCHIVE_RECOVERY),
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TimelineHistory;
    use crate::pg::timeline::Ancestor;

    fn plan() -> PlanFile {
        let ancestors = vec![Ancestor { timeline: TimelineId(1), switch_point: Lsn(0x900) }];
        let path = Path::of(&TimelineHistory { timeline: TimelineId(2), ancestors });
        PlanFile {
            names: ClusterNames {
                cluster: "main".into(),
                system: SystemIdentifier(u64::MAX),
                segment_size: SegmentSize::new(1 << 20).unwrap(),
            },
            access: Access {
                url: "file:///r".into(),
                repository: RepositoryId([7; 16]),
                secret: RepositorySecret([0xA5; 32]),
                identity: Some(Zeroizing::new("AGE-SECRET-KEY-1X".into())),
            },
            bounds: Bounds { path, target: TimelineId(2), end: Lsn(0xABC), histories: [TimelineId(2)].into() },
        }
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let text = serde_json::to_vec(&plan().to_stored()).unwrap();
        let back = PlanFile::parse(&text).unwrap();
        assert_eq!(back.bounds, plan().bounds);
        assert_eq!(back.names, plan().names);
        assert_eq!(back.access.secret.0, [0xA5; 32]);
        assert_eq!(back.access.identity.unwrap().as_str(), "AGE-SECRET-KEY-1X");
    }

    #[test]
    fn a_mark_tells_plans_apart_and_nothing_of_their_keys() {
        let mark = |change: &dyn Fn(&mut PlanFile)| {
            let mut plan = plan();
            change(&mut plan);
            plan.mark()
        };
        let same = mark(&|_| ());
        assert_eq!(same, mark(&|plan| plan.access.secret = RepositorySecret([1; 32])));
        assert_eq!(same, mark(&|plan| plan.access.identity = None));
        let others = [
            mark(&|plan| plan.bounds.end = Lsn(0xABD)),
            mark(&|plan| plan.bounds.path.legs[0].end = Some(Lsn(0x901))),
            mark(&|plan| plan.names.system = SystemIdentifier(1)),
            mark(&|plan| plan.names.cluster = "other".into()),
            mark(&|plan| plan.access.repository = RepositoryId([8; 16])),
        ];
        assert_eq!(BTreeSet::from(others).len(), 5);
        assert!(!others.contains(&same));
    }

    #[test]
    fn a_damaged_plan_is_refused() {
        let text = String::from_utf8(serde_json::to_vec(&plan().to_stored()).unwrap()).unwrap();
        let version = text.replace("\"version\":1", "\"version\":2");
        let secret = text.replace("a5a5", "a5");
        let target = text.replace("\"target_timeline\":2", "\"target_timeline\":9");
        for bad in [&version, &secret, &target, &text[..text.len() - 1], "", "{}"] {
            assert_ne!(bad, text);
            assert!(PlanFile::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_binds_a_recovery_and_nothing_else() {
        let pgdata = tempfile::tempdir().unwrap();
        let at = |name: &str| pgdata.path().join(name);
        std::fs::create_dir_all(at(DIRECTORY)).unwrap();
        std::fs::write(PlanFile::place(pgdata.path()), serde_json::to_vec(&plan().to_stored()).unwrap()).unwrap();
        let bound = || PlanFile::binding(pgdata.path()).unwrap().is_some();
        assert!(!bound(), "no recovery");
        std::fs::write(at("recovery.signal"), "").unwrap();
        assert!(bound());
        std::fs::write(at("standby.signal"), "").unwrap();
        assert!(!bound(), "a standby goes on past any plan");
        std::fs::remove_file(at("standby.signal")).unwrap();
        std::fs::write(PlanFile::place(pgdata.path()), "{").unwrap();
        assert!(PlanFile::binding(pgdata.path()).is_err(), "an unreadable plan is not no plan");
        std::fs::remove_file(PlanFile::place(pgdata.path())).unwrap();
        assert!(!bound(), "somebody's own recovery");
        std::fs::write(at("recovery.signal"), SIGNAL).unwrap();
        let error = PlanFile::binding(pgdata.path()).err().unwrap();
        assert!(error.to_string().contains("is gone"), "{error}");
        std::fs::write(at("standby.signal"), "").unwrap();
        assert!(!bound(), "what has become a standby needs none");
    }
}
