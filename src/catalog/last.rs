//! What a receiver last knew, for whoever asks when none runs: read without knowing beforehand which server it was.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::open::connect;
use super::{Identity, failed, schema};
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, TimelineId};

/// The end of the story, as far as the catalog tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// Whose story it is.
    pub identity: Identity,
    /// The timeline that was streamed last, what was acknowledged of it, what the server had then, and when that was.
    pub reached: Option<(TimelineId, Lsn, Lsn, SystemTime)>,
    /// Everything that the server had flushed by this time (its own clock) is durable.
    pub complete_through: Option<PgTime>,
    pub run: Option<LastRun>,
}

/// The last run of a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRun {
    pub began: SystemTime,
    /// When it ended, and by which error; `None`: it never said so. It runs, was killed, or its host went down.
    pub ended: Option<(SystemTime, Option<String>)>,
}

impl LastKnown {
    /// Reads it from a catalog's file, whoever writes that meanwhile. `None` where there is no catalog of this cluster.
    pub fn read(path: &Path, cluster: &str) -> Result<Option<LastKnown>> {
        if !path.exists() {
            return Ok(None);
        }
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let Some(identity) = schema::identity(&db)?.filter(|identity| identity.cluster == cluster) else {
            return Ok(None);
        };
        let read = || -> rusqlite::Result<LastKnown> {
            let reached = reached(&db)?;
            let complete_through = match &reached {
                Some((timeline, ..)) => {
                    let sql = "SELECT max(time) FROM heartbeats WHERE timeline = ?1";
                    db.query_row(sql, [timeline.0], |row| row.get::<_, Option<i64>>(0))?.map(PgTime)
                }
                None => None,
            };
            Ok(LastKnown { reached, complete_through, run: run(&db)?, identity })
        };
        read().map(Some).map_err(|e| failed("cannot read", e))
    }
}

fn reached(db: &Connection) -> rusqlite::Result<Option<(TimelineId, Lsn, Lsn, SystemTime)>> {
    let sql = "SELECT timeline, durable, server_end, at FROM reached ORDER BY at DESC, timeline DESC LIMIT 1";
    let lsn = |row: &rusqlite::Row<'_>, column| row.get::<_, i64>(column).map(|place| Lsn(place as u64));
    db.query_row(sql, [], |row| Ok((TimelineId(row.get(0)?), lsn(row, 1)?, lsn(row, 2)?, time(row.get(3)?)))).optional()
}

fn run(db: &Connection) -> rusqlite::Result<Option<LastRun>> {
    let sql = "SELECT began, ended, problem FROM run";
    db.query_row(sql, [], |row| {
        let (ended, problem): (Option<i64>, Option<String>) = (row.get(1)?, row.get(2)?);
        Ok(LastRun { began: time(row.get(0)?), ended: ended.map(|at| (time(at), problem)) })
    })
    .optional()
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}
