//! Noting facts: all of a batch or none.

use std::time::SystemTime;

use rusqlite::{Transaction, params};

use super::{Catalog, Fact, Object, failed};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;

/// Heartbeats older than this beside the newest one are dropped: a week in microseconds.
const HEARTBEATS: i64 = 7 * 86_400 * 1_000_000;

impl Catalog {
    /// Notes all of `facts`, or nothing. `now` is when they were learned; what was known already keeps its time.
    pub fn apply(&mut self, facts: &[Fact], now: SystemTime) -> Result<()> {
        let learned = seconds(now);
        let tx = self.db.transaction().map_err(|e| failed("cannot begin to write", e))?;
        for fact in facts {
            note(&tx, fact, learned)?;
        }
        tx.commit().map_err(|e| failed("cannot write", e))
    }
}

fn note(tx: &Transaction<'_>, fact: &Fact, learned: i64) -> Result<()> {
    let write = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        let done = tx.prepare_cached(sql).and_then(|mut statement| statement.execute(values));
        done.map(|_| ()).map_err(|e| failed("cannot write", e))
    };
    match fact {
        Fact::Object(object) => note_object(tx, object, learned),
        Fact::Gone { timeline, start, partial } => write(
            "DELETE FROM objects WHERE timeline = ?1 AND start = ?2 AND partial = ?3",
            &[&timeline.0, &place(*start)?, partial],
        ),
        Fact::History { timeline, content } => {
            write("INSERT OR REPLACE INTO histories VALUES (?1, ?2)", &[&timeline.0, content])
        }
        Fact::NoHistory(timeline) => write("DELETE FROM histories WHERE timeline = ?1", &[&timeline.0]),
        Fact::Group { timeline, first } => {
            write("INSERT OR IGNORE INTO groups VALUES (?1, ?2)", &[&timeline.0, &place(*first)?])
        }
        Fact::NoGroup { timeline, first } => {
            write("DELETE FROM groups WHERE timeline = ?1 AND first = ?2", &[&timeline.0, &place(*first)?])
        }
        Fact::Heartbeat { timeline, lsn, time } => {
            // The position of an idle server stays, and its time goes on.
            write(
                "INSERT INTO heartbeats VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET time = max(time, excluded.time)",
                &[&timeline.0, &place(*lsn)?, &time.0],
            )?;
            let oldest = time.0.saturating_sub(HEARTBEATS);
            write("DELETE FROM heartbeats WHERE timeline = ?1 AND time < ?2", &[&timeline.0, &oldest])
        }
        Fact::Reached { timeline, durable, server_end, at } => write(
            "INSERT INTO reached VALUES (?1, ?2, ?3, ?4, ?2) ON CONFLICT DO UPDATE SET durable = excluded.durable,
                server_end = excluded.server_end, at = excluded.at, furthest = max(furthest, excluded.furthest)",
            &[&timeline.0, &place(*durable)?, &place(*server_end)?, &seconds(*at)],
        ),
        Fact::Began(at) => write("INSERT OR REPLACE INTO run VALUES (1, ?1, NULL, NULL)", &[&seconds(*at)]),
        Fact::Ended { at, problem } => write(
            "INSERT INTO run VALUES (1, ?1, ?1, ?2) ON CONFLICT DO UPDATE SET ended = excluded.ended, problem = excluded.problem",
            &[&seconds(*at), problem],
        ),
    }
}

fn note_object(tx: &Transaction<'_>, object: &Object, learned: i64) -> Result<()> {
    let sql = "INSERT INTO objects VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
        ON CONFLICT DO UPDATE SET end = excluded.end, hash = excluded.hash, stored = excluded.stored,
        records = excluded.records, commits = excluded.commits, aborts = excluded.aborts,
        checkpoints = excluded.checkpoints, time_min = excluded.time_min, time_max = excluded.time_max,
        xid_min = excluded.xid_min, xid_max = excluded.xid_max";
    let (start, end) = (place(object.start)?, place(object.end)?);
    let mut statement = tx.prepare_cached(sql).map_err(|e| failed("cannot write", e))?;
    let values = params![
        object.timeline.0,
        start,
        object.partial,
        end,
        object.hash,
        count(object.stored),
        count(object.records),
        count(object.commits),
        count(object.aborts),
        count(object.checkpoints),
        object.times.map(|t| t.0.0),
        object.times.map(|t| t.1.0),
        object.xids.map(|x| x.0),
        object.xids.map(|x| x.1),
        learned
    ];
    statement.execute(values).map(|_| ()).map_err(|e| failed("cannot write", e))
}

/// SQLite counts to 2^63; no server has ever been there.
pub(super) fn place(lsn: Lsn) -> Result<i64> {
    i64::try_from(lsn.0).map_err(|_| Error::new(Kind::Failed, format!("catalog: {lsn} is too far to be noted")))
}

fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| count(since.as_secs()))
}
