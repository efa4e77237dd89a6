//! A plan: what an expiry is going to delete. Created before anything goes, so that a backup that begins sees it; the last object to go.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::manifest::MapRef;
use super::text::{self, shown};
use super::{BackupId, Malformed, hex};
use crate::pg::SystemIdentifier;

const VERSION: u32 = 1;
const WHAT: &str = "plan";

/// The name of a plan: `<UTC time yyyymmddThhmmssZ>-<16 hexadecimal digits>`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanId(Arc<str>);

impl PlanId {
    pub fn new(created: Timestamp, random: [u8; 8]) -> PlanId {
        let time = created.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ");
        PlanId(format!("{time}-{}", hex(&random)).into())
    }

    /// Reads a name back; `None` for anything else, other letter cases included.
    pub fn parse(text: &str) -> Option<PlanId> {
        let (time, random) = text.split_once('-')?;
        let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?.to_zoned(TimeZone::UTC).ok()?;
        let id = PlanId::new(time.timestamp(), super::unhex(random)?);
        (id.as_str() == text).then_some(id)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// JSON; fields that a reader does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    #[serde(with = "shown_plan_id")]
    pub id: PlanId,
    pub cluster: String,
    #[serde(with = "text::system")]
    pub system: SystemIdentifier,
    /// By the clock of the host that runs the expiry; whatever waits goes by the storage's own times.
    #[serde(with = "shown")]
    pub created_at: Timestamp,
    /// Complete backups whose manifests go.
    pub delete: Vec<Deletion>,
    /// Backups that never were, or are none any more, whose left-over objects go.
    #[serde(with = "text::backup_ids")]
    pub sweep: Vec<BackupId>,
    /// Program and version.
    pub made_by: String,
    /// Where the expiry runs, and as which user: for a person who wonders. Empty where it cannot be had.
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub user: String,
}

/// A backup that is deleted, and what a reader needs who is still restoring it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    #[serde(with = "text::backup_id")]
    pub backup: BackupId,
    /// The maps of its manifest. Empty where that could not be read.
    pub maps: Vec<MapRef>,
    /// It goes even where no complete backup is left then.
    #[serde(default)]
    pub forced: bool,
}

impl Plan {
    pub const VERSION: u32 = VERSION;

    pub fn encode(&self) -> Vec<u8> {
        super::manifest::json(self)
    }

    /// Reads the plan stored under the name `id`.
    pub fn decode(bytes: &[u8], id: &PlanId) -> Result<Plan, Malformed> {
        let plan: Plan = super::manifest::read_json(WHAT, bytes, VERSION)?;
        if plan.id == *id {
            return Ok(plan);
        }
        Err(Malformed::new(WHAT, format!("it stands under the name of {id} and speaks of {}", plan.id)))
    }

    /// Whether anything of this backup is to go: then nobody begins to use it.
    pub fn names(&self, id: &BackupId) -> bool {
        self.sweep.contains(id) || self.deletes(id)
    }

    pub fn deletes(&self, id: &BackupId) -> bool {
        self.delete.iter().any(|deletion| deletion.backup == *id)
    }

    /// Every backup that it names.
    pub fn backups(&self) -> impl Iterator<Item = &BackupId> {
        self.delete.iter().map(|deletion| &deletion.backup).chain(&self.sweep)
    }
}

mod shown_plan_id {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::PlanId;

    pub fn serialize<S: Serializer>(id: &PlanId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(id.as_str())
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<PlanId, D::Error> {
        let text = String::deserialize(from)?;
        PlanId::parse(&text).ok_or_else(|| D::Error::custom(format!("not the name of a plan: {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Lsn, TimelineId};

    fn backup(random: u16) -> BackupId {
        BackupId::new(Timestamp::from_second(1_769_824_800).unwrap(), TimelineId(1), Lsn(0x2000028), random)
    }

    fn plan() -> Plan {
        let at = Timestamp::from_second(1_769_824_801).unwrap();
        Plan {
            version: VERSION,
            id: PlanId::new(at, [0xA, 2, 3, 4, 5, 6, 7, 8]),
            cluster: "main".into(),
            system: SystemIdentifier(u64::MAX),
            created_at: at,
            delete: vec![Deletion {
                backup: backup(1),
                maps: vec![MapRef { backup: backup(7), parts: 3, bytes: 9 }],
                forced: true,
            }],
            sweep: vec![backup(2)],
            made_by: "walrecv".into(),
            host: "db1".into(),
            user: "postgres".into(),
        }
    }

    #[test]
    fn a_plan_reads_back_under_its_own_name_only() {
        let plan = plan();
        assert_eq!(plan.id.as_str(), "20260131T020001Z-0a02030405060708");
        assert_eq!(Plan::decode(&plan.encode(), &plan.id).unwrap(), plan);
        let other = PlanId::new(plan.created_at, [0; 8]);
        assert!(Plan::decode(&plan.encode(), &other).unwrap_err().problem.contains(plan.id.as_str()));
        assert!([1, 2].map(|n| plan.names(&backup(n))).iter().all(|named| *named) && !plan.names(&backup(7)));
        assert!(plan.deletes(&backup(1)) && !plan.deletes(&backup(2)));
        let later = String::from_utf8(plan.encode()).unwrap().replacen('{', "{\"colour\":1,", 1);
        assert_eq!(Plan::decode(later.as_bytes(), &plan.id).unwrap(), plan);
        let newer = String::from_utf8(plan.encode()).unwrap().replacen("\"version\": 1", "\"version\": 2", 1);
        assert!(Plan::decode(newer.as_bytes(), &plan.id).is_err());
    }

    #[test]
    fn names_of_plans() {
        let id = plan().id;
        assert_eq!(PlanId::parse(id.as_str()), Some(id));
        for bad in [
            "",
            "20260131T020001Z",
            "20260131T020001Z-",
            "20260131T020001Z-0A02030405060708",
            "20260131T020001Z-0a0203040506070",
            "20260231T020001Z-0a02030405060708",
            "20260131t020001Z-0a02030405060708",
            "20260131T020001Z-0a02030405060708-1",
        ] {
            assert_eq!(PlanId::parse(bad), None, "{bad}");
        }
    }
}
