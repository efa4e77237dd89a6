//! Tables, and whether a file has them.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Identity, failed};
use crate::error::Result;
use crate::pg::{SegmentSize, SystemIdentifier};
use crate::seal::content::{hex, unhex};
use crate::seal::header::RepositoryId;

/// Tells our files from others' (`PRAGMA application_id`): "wrec".
const APPLICATION: i64 = 0x7772_6563;
/// Of the tables below. A file with another one is made anew.
const VERSION: i64 = 3;

const TABLES: &str = "
CREATE TABLE identity (
    repository TEXT NOT NULL, cluster TEXT NOT NULL, system TEXT NOT NULL, segment_size INTEGER NOT NULL
);
-- Positions are bytes, times are microseconds since 2000-01-01 UTC, learned is seconds since 1970.
CREATE TABLE objects (
    timeline INTEGER NOT NULL, start INTEGER NOT NULL, partial INTEGER NOT NULL, end INTEGER NOT NULL,
    hash BLOB NOT NULL, stored INTEGER NOT NULL,
    records INTEGER NOT NULL, commits INTEGER NOT NULL, aborts INTEGER NOT NULL, checkpoints INTEGER NOT NULL,
    time_min INTEGER, time_max INTEGER, xid_min INTEGER, xid_max INTEGER, learned INTEGER NOT NULL,
    PRIMARY KEY (timeline, start, partial)
) WITHOUT ROWID;
CREATE TABLE histories (timeline INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE groups (timeline INTEGER NOT NULL, first INTEGER NOT NULL, PRIMARY KEY (timeline, first)) WITHOUT ROWID;
CREATE TABLE heartbeats (
    timeline INTEGER NOT NULL, lsn INTEGER NOT NULL, time INTEGER NOT NULL, PRIMARY KEY (timeline, lsn)
) WITHOUT ROWID;
-- What was seen last, and the furthest that was ever durable: a run that has not come so far again says less.
CREATE TABLE reached (
    timeline INTEGER PRIMARY KEY, durable INTEGER NOT NULL, server_end INTEGER NOT NULL, at INTEGER NOT NULL, furthest INTEGER NOT NULL
);
-- The last run of a receiver: one row. Without an end it was killed, or still runs.
CREATE TABLE run (
    one INTEGER PRIMARY KEY CHECK (one = 1), began INTEGER NOT NULL, ended INTEGER, problem TEXT
);
";

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Ours,
    /// Nothing is in it yet.
    Empty,
    /// Something else, and what.
    Other(String),
}

/// How the one that writes is set up: readers go on while it writes, and a power cut may cost the last entries, never the file.
pub(super) fn prepare(db: &Connection) -> Result<()> {
    let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -512; PRAGMA journal_size_limit = 4194304;";
    db.execute_batch(set).map_err(|e| failed("cannot set it up", e))
}

/// Makes the tables in an empty file.
pub(super) fn create(db: &mut Connection, identity: &Identity) -> Result<()> {
    let make = |db: &mut Connection| {
        let tx = db.transaction()?;
        tx.execute_batch(TABLES)?;
        tx.execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"))?;
        tx.execute(
            "INSERT INTO identity VALUES (?1, ?2, ?3, ?4)",
            params![
                hex(&identity.repository.0),
                identity.cluster,
                identity.system.to_string(),
                identity.segment_size.bytes() as i64
            ],
        )?;
        tx.commit()
    };
    make(db).map_err(|e| failed("cannot make its tables", e))
}

/// What the file says that it belongs to; `None` where it is no catalog of this schema.
pub(super) fn identity(db: &Connection) -> Result<Option<Identity>> {
    let look = || -> rusqlite::Result<Option<(String, String, String, i64)>> {
        let number = |pragma: &str| db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
        if (number("application_id")?, number("user_version")?) != (APPLICATION, VERSION) {
            return Ok(None);
        }
        let stored = "SELECT repository, cluster, system, segment_size FROM identity";
        db.query_row(stored, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).optional()
    };
    let Some((repository, cluster, system, size)) = look().map_err(|e| failed("cannot read it", e))? else {
        return Ok(None);
    };
    let parsed = || {
        let repository = RepositoryId(unhex(&repository)?);
        let size = SegmentSize::new(u64::try_from(size).ok()?)?;
        Some(Identity { repository, cluster, system: SystemIdentifier(system.parse().ok()?), segment_size: size })
    };
    Ok(parsed())
}

/// Looks whether the file is whole, ours, of this schema and of this cluster.
pub(super) fn check(db: &Connection, identity: &Identity) -> Result<Found> {
    let look = || -> rusqlite::Result<Found> {
        let number = |pragma: &str| db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let (application, version) = (number("application_id")?, number("user_version")?);
        if (tables, application, version) == (0, 0, 0) {
            return Ok(Found::Empty);
        }
        if application != APPLICATION {
            return Ok(Found::Other("it is not a catalog".to_owned()));
        }
        if version != VERSION {
            return Ok(Found::Other(format!("its schema is version {version}, expected {VERSION}")));
        }
        let stored = "SELECT repository, cluster, system, segment_size FROM identity";
        let stored: Option<(String, String, String, i64)> =
            db.query_row(stored, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).optional()?;
        let size = identity.segment_size.bytes() as i64;
        let expected = (hex(&identity.repository.0), identity.cluster.clone(), identity.system.to_string(), size);
        if stored.as_ref() != Some(&expected) {
            return Ok(Found::Other("it belongs to another repository or cluster".to_owned()));
        }
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok(if sound == "ok" { Found::Ours } else { Found::Other(format!("it is damaged: {sound}")) })
    };
    look().map_err(|e| failed("cannot read it", e))
}
