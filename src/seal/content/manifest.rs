//! A backup's manifest, small: its creation is the moment at which the backup exists. Or a tombstone under the same name.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use super::text::Raw;
use super::text::{self, shown};
use super::{BackupId, Malformed};
use crate::pg::data_page::SEGMENT_PAGES;
use crate::pg::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};

const VERSION: u32 = 1;
/// What is known of a tablespace of which the server sent nothing.
const ABSENT: &str = "the server found no files of it (volume not mounted, directory moved, or dropped during the backup): they are NOT IN THE BACKUP";

/// What stands under `backups/<id>`: whichever was created first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backup {
    Complete(Box<Manifest>),
    /// Given up: no manifest can come any more.
    GivenUp(Tombstone),
}

/// JSON; fields that a reader does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    #[serde(with = "text::backup_id")]
    pub id: BackupId,
    /// What the user called it; also stands in backup_label.
    pub label: String,
    pub cluster: String,
    #[serde(with = "text::system")]
    pub system: SystemIdentifier,
    #[serde(with = "text::segment_size")]
    pub segment_size: SegmentSize,
    /// The server's version as a number, such as 150018.
    pub version_num: u32,
    /// Taken from a standby: there is no end-of-backup record, recovery goes by pg_control.
    pub from_standby: bool,
    /// Timeline on which the backup began.
    #[serde(with = "text::timeline")]
    pub timeline: TimelineId,
    /// Redo position of the starting checkpoint: WAL is needed from here.
    #[serde(with = "shown")]
    pub start: Lsn,
    /// WAL is needed up to here. Where recovery is consistent is told by [`Manifest::consistent`].
    #[serde(with = "shown")]
    pub stop: Lsn,
    #[serde(with = "text::timeline")]
    pub stop_timeline: TimelineId,
    /// Position of the checkpoint record itself.
    #[serde(with = "shown")]
    pub checkpoint: Lsn,
    /// By the clock of the host that took the backup, not the server's.
    #[serde(with = "shown")]
    pub started_at: Timestamp,
    /// When the server had sent everything.
    #[serde(with = "shown")]
    pub stopped_at: Timestamp,
    /// The complete backup that this one was compared with, whose packs and maps it names; `None`: it stored everything itself.
    #[serde(with = "text::backup_id_or_none")]
    pub parent: Option<BackupId>,
    pub transfer: Transfer,
    /// Why the server had to send everything, or why everything was stored, for people; `None` where there is nothing to say.
    pub why_full: Option<String>,
    /// When pages that live in nearly empty packs were last stored anew; what a backup without a parent stores is new all over.
    #[serde(with = "shown")]
    pub survivors_at: Timestamp,
    /// At most 16, newest first: the files and where their bytes are.
    pub maps: Vec<MapRef>,
    pub tablespaces: Vec<Tablespace>,
    /// The file `backup_label`, byte for byte. It is not in the maps.
    pub backup_label: Raw,
    /// The file `tablespace_map`, byte for byte, where there are tablespaces. It is not in the maps.
    pub tablespace_map: Option<Raw>,
    /// PostgreSQL's own backup_manifest under `manifests/<id>/`.
    pub server_manifest: Option<ServerManifest>,
    pub sizes: Sizes,
    pub control: ControlFacts,
    /// Pages whose checksum did not match when they were read: damaged on the server, or being written at that moment, which
    /// recovery mends. At most [`Manifest::BAD_PAGES`] are named.
    pub bad_pages: Vec<BadPage>,
    pub bad_page_count: u64,
    /// Such pages that are known to be replaced by the WAL of the backup: they are none of the above.
    #[serde(default)]
    pub torn_pages: Vec<BadPage>,
    /// Object ids of tablespaces of which the server sent no directory of its version: their files are not in this backup.
    #[serde(default)]
    pub absent_tablespaces: Vec<u32>,
    /// The identity whose private key opens every pack that its maps name: the folder of `keys/`. `None`: not encrypted.
    #[serde(default)]
    pub identity: Option<String>,
    /// Program and version that took the backup.
    pub made_by: String,
    /// Where it ran, for a person who wonders.
    pub host: String,
}

/// What the server sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transfer {
    /// Every file.
    #[default]
    Full,
    /// Only blocks that changed since the parent (17+); the backup is a full one all the same.
    Incremental,
}

/// One map: `maps/<backup>/0` to `maps/<backup>/<parts - 1>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRef {
    /// The backup that wrote the map, this one or an earlier one.
    #[serde(with = "text::backup_id")]
    pub backup: BackupId,
    pub parts: u32,
    /// Plain bytes of all parts together: what reading or merging it costs.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub oid: u32,
    /// Where it was on the server: an absolute path, or `pg_tblspc/<oid>` for one inside the data directory (15+).
    pub location: Raw,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerManifest {
    pub parts: u32,
    /// Bytes of all parts together.
    pub len: u64,
    /// SHA-256 of all of it, hexadecimal.
    pub sha256: String,
}

/// Bytes and counts, for people and for plans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Bytes of all files, as they will be when restored.
    pub total: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes that the server sent.
    pub read: u64,
    /// Bytes that this backup put into the repository, manifest not counted.
    pub stored: u64,
    /// File bytes that this backup stored anew, before compression.
    pub changed: u64,
    /// Of these, those that had not changed: they were stored anew so that space comes back.
    pub moved: u64,
    /// File bytes that are where earlier backups stored them, before compression.
    pub reused: u64,
    /// Bytes of zero pages, which are named and not stored.
    pub zero: u64,
    /// That this backup stored.
    pub packs: u32,
    /// File bytes in all packs that the maps name, before compression, or a little more: what of it no file needs any more is dead space.
    pub carried: u64,
}

impl Sizes {
    /// File bytes in the packs that this backup needs which it does not need itself; earlier ones may.
    pub fn dead(&self) -> u64 {
        self.carried.saturating_sub(self.changed.saturating_add(self.reused))
    }
}

/// From the backup's pg_control (`catalog/pg_control.h`): what a restore has to know before it copies a byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlFacts {
    pub control_version: u32,
    pub catalog_version: u32,
    /// 0: pages carry no checksums.
    pub data_checksum_version: u32,
    /// `minRecoveryPoint`: from here on recovery of a standby's backup is consistent. 0/0: the server was not in recovery.
    #[serde(with = "shown", default)]
    pub min_recovery_point: Lsn,
    /// Pages in a file of a relation (`RELSEG_SIZE`).
    #[serde(default = "usual_segment")]
    pub relation_segment_pages: u32,
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
    pub track_commit_timestamp: bool,
}

fn usual_segment() -> u32 {
    SEGMENT_PAGES
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    pub path: Raw,
    /// Number of the page in this file.
    pub page: u64,
}

/// A backup that was given up, or deleted: its packs and maps may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    pub version: u32,
    #[serde(with = "text::backup_id")]
    pub id: BackupId,
    #[serde(with = "shown")]
    pub created_at: Timestamp,
    pub reason: String,
    pub made_by: String,
    /// It was complete, and an expiry deleted it.
    #[serde(default)]
    pub deleted: bool,
}

impl Manifest {
    pub const VERSION: u32 = VERSION;
    /// Most bad pages that a manifest names.
    pub const BAD_PAGES: usize = 1000;
    /// Most maps that a manifest names.
    pub const MAPS: usize = 16;

    pub fn encode(&self) -> Vec<u8> {
        json(self)
    }

    /// Reads the manifest stored under the name `id`.
    pub fn decode(bytes: &[u8], id: &BackupId) -> Result<Manifest, Malformed> {
        let manifest: Manifest = read_json("manifest", bytes, VERSION)?;
        same_id("manifest", &manifest.id, id)?;
        let problem = if manifest.maps.is_empty() || manifest.maps.len() > Self::MAPS {
            format!("it names {} maps (expected 1 to {})", manifest.maps.len(), Self::MAPS)
        } else if manifest.stop < manifest.start {
            format!("it stops at {} before it starts at {}", manifest.stop, manifest.start)
        } else if manifest.major().is_none() {
            format!("server version {} is not supported", manifest.version_num)
        } else {
            return Ok(manifest);
        };
        Err(Malformed::new("manifest", problem))
    }

    /// Where recovery is consistent: after the end-of-backup record, which is the last of the backup; of a standby's backup, which has none, at the
    /// `minRecoveryPoint` of its pg_control. The server tells that again when it stops the backup, and by then it may have gone on
    /// (`do_pg_backup_stop`, `xlog.c`; `CheckRecoveryConsistency`, `xlogrecovery.c`).
    pub fn consistent(&self) -> Lsn {
        let least = self.control.min_recovery_point;
        if self.from_standby && least != Lsn(0) { least.max(self.start) } else { self.stop }
    }

    /// What is to be told of each tablespace whose files are not in this backup.
    pub fn absences(&self) -> impl Iterator<Item = String> + '_ {
        self.absent_tablespaces.iter().map(|oid| {
            let at = self.tablespaces.iter().find(|tablespace| tablespace.oid == *oid);
            let at = at.map(|at| String::from_utf8_lossy(&at.location.0).into_owned()).unwrap_or_default();
            format!("tablespace {oid} at {at:?}: {ABSENT}")
        })
    }

    /// `None` for a version that this program does not know; never after [`Manifest::decode`].
    pub fn major(&self) -> Option<MajorVersion> {
        MajorVersion::from_version_num(self.version_num)
    }
}

impl Tombstone {
    pub const VERSION: u32 = VERSION;

    pub fn encode(&self) -> Vec<u8> {
        json(self)
    }

    /// Reads the tombstone stored under the name `id`.
    pub fn decode(bytes: &[u8], id: &BackupId) -> Result<Tombstone, Malformed> {
        let tombstone: Tombstone = read_json("tombstone", bytes, VERSION)?;
        same_id("tombstone", &tombstone.id, id)?;
        Ok(tombstone)
    }
}

/// Indented, so that a person can read it once it is opened.
pub(super) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Only maps with other keys than text, and failing `Serialize` of one's own, can fail: none of these types has them.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

pub(super) fn read_json<T: DeserializeOwned>(what: &'static str, bytes: &[u8], known: u32) -> Result<T, Malformed> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad = |e: serde_json::Error| Malformed::new(what, e.to_string());
    let Versioned { version } = serde_json::from_slice(bytes).map_err(bad)?;
    if version != known {
        return Err(Malformed::new(what, format!("version {version} is not supported (expected {known})")));
    }
    serde_json::from_slice(bytes).map_err(bad)
}

pub(super) fn same_id(what: &'static str, found: &BackupId, name: &BackupId) -> Result<(), Malformed> {
    if found == name {
        return Ok(());
    }
    Err(Malformed::new(what, format!("it stands under the name of {name} and speaks of {found}")))
}
