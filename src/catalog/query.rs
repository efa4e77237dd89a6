//! Questions.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use rusqlite::{OptionalExtension, Params, Row, params};

use super::write::place;
use super::{Catalog, Object, failed};
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, TimelineId};

const OBJECT: &str = "SELECT timeline, partial, start, end, hash, stored, records, commits, aborts, checkpoints,
    time_min, time_max, xid_min, xid_max FROM objects";

/// Where a moment lies in the WAL of one timeline, as far as summaries tell. The last commit that is not later than the moment stands in `after`, before
/// the first one that is later; or, if nothing in `after` comes before that one, in `before` or between the two. A record that crosses from one object into the next
/// may be in neither's summary, where a run began at the border.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Around {
    /// The last object with commits or aborts before `after` (before the end where there is no `after`).
    pub before: Option<Object>,
    /// The first object in which a commit or abort is later than the moment.
    pub after: Option<Object>,
}

/// WAL of one stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub from: PgTime,
    /// Bytes of WAL.
    pub wal: u64,
    /// Bytes of the objects that hold it.
    pub stored: u64,
}

impl Catalog {
    /// Timelines of which WAL is noted.
    pub fn timelines(&self) -> Result<Vec<TimelineId>> {
        self.rows("SELECT DISTINCT timeline FROM objects ORDER BY 1", [], |row| row.get(0).map(TimelineId))
    }

    /// Start of the last object of a timeline.
    pub fn last(&self, timeline: TimelineId) -> Result<Option<Lsn>> {
        let sql = "SELECT max(start) FROM objects WHERE timeline = ?1";
        let starts = self.rows(sql, [timeline.0], |row| row.get::<_, Option<i64>>(0))?;
        Ok(starts.into_iter().flatten().next().map(lsn))
    }

    /// Objects of a timeline that start from `from` up to, not including, `to`: by start and whether it is a `.partial`, with the bytes of each.
    pub fn known(&self, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<BTreeMap<(Lsn, bool), u64>> {
        let sql = "SELECT start, partial, stored FROM objects WHERE timeline = ?1 AND start >= ?2 AND start < ?3";
        let key = |row: &Row<'_>| Ok(((lsn(row.get(0)?), row.get(1)?), row.get::<_, i64>(2)? as u64));
        let rows = self.rows(sql, params![timeline.0, place(from)?, place(to)?], key)?;
        Ok(rows.into_iter().collect())
    }

    /// The object of complete WAL (segment or part) that starts at `start`.
    pub fn object(&self, timeline: TimelineId, start: Lsn) -> Result<Option<Object>> {
        let sql = format!("{OBJECT} WHERE timeline = ?1 AND start = ?2 AND partial = 0");
        self.first(&sql, params![timeline.0, place(start)?])
    }

    /// All objects, by timeline, start and form.
    pub fn objects(&self) -> Result<Vec<Object>> {
        self.rows(&format!("{OBJECT} ORDER BY timeline, start, partial"), [], object)
    }

    /// The WAL of a timeline as stretches without a hole; what lies between two of them is missing.
    pub fn ranges(&self, timeline: TimelineId) -> Result<Vec<(Lsn, Lsn)>> {
        let sql = "SELECT start, end FROM objects WHERE timeline = ?1 ORDER BY start, end";
        let mut ranges: Vec<(Lsn, Lsn)> = Vec::new();
        for (start, end) in self.rows(sql, [timeline.0], |row| Ok((lsn(row.get(0)?), lsn(row.get(1)?))))? {
            match ranges.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        Ok(ranges)
    }

    /// Objects whose span of commit times holds a moment. More than one: times do not grow steadily.
    pub fn holding(&self, timeline: TimelineId, time: PgTime) -> Result<Vec<Object>> {
        let sql = format!("{OBJECT} WHERE timeline = ?1 AND time_min <= ?2 AND time_max >= ?2 ORDER BY start, partial");
        self.rows(&sql, params![timeline.0, time.0], object)
    }

    /// Where to look for the last commit at or before a moment, from the byte at `from` on: see [`Around`].
    pub fn around(&self, timeline: TimelineId, from: Lsn, time: PgTime) -> Result<Around> {
        let from = place(from)?;
        let sql =
            format!("{OBJECT} WHERE timeline = ?1 AND end > ?2 AND time_max > ?3 ORDER BY start, partial LIMIT 1");
        let after = self.first(&sql, params![timeline.0, from, time.0])?;
        let below = after.as_ref().map_or(i64::MAX, |object| object.start.0 as i64);
        let sql = format!(
            "{OBJECT} WHERE timeline = ?1 AND end > ?2 AND start < ?3 AND time_max IS NOT NULL ORDER BY start DESC, partial LIMIT 1"
        );
        let before = self.first(&sql, params![timeline.0, from, below])?;
        Ok(Around { before, after })
    }

    /// How much WAL each stretch of `step` brought, and what it takes. WAL without a commit counts to the commit before it; before the first one it is left out.
    pub fn growth(&self, timeline: TimelineId, step: Duration) -> Result<Vec<Growth>> {
        let sql = "WITH timed AS (SELECT end - start AS wal, stored, max(time_max) OVER (ORDER BY start) AS at
                FROM objects WHERE timeline = ?1 AND partial = 0)
            SELECT at / ?2, sum(wal), sum(stored) FROM timed WHERE at IS NOT NULL GROUP BY 1 ORDER BY 1";
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1);
        self.rows(sql, params![timeline.0, step], |row| {
            let from = PgTime(row.get::<_, i64>(0)?.saturating_mul(step));
            Ok(Growth { from, wal: row.get::<_, i64>(1)? as u64, stored: row.get::<_, i64>(2)? as u64 })
        })
    }

    /// History files, byte for byte.
    pub fn histories(&self) -> Result<BTreeMap<TimelineId, Vec<u8>>> {
        let rows =
            self.rows("SELECT timeline, content FROM histories", [], |row| Ok((TimelineId(row.get(0)?), row.get(1)?)))?;
        Ok(rows.into_iter().collect())
    }

    /// Where the groups begin for which a summary is stored.
    pub fn groups(&self) -> Result<Vec<(TimelineId, Lsn)>> {
        let sql = "SELECT timeline, first FROM groups ORDER BY 1, 2";
        self.rows(sql, [], |row| Ok((TimelineId(row.get(0)?), lsn(row.get(1)?))))
    }

    /// The newest heartbeat of a timeline.
    pub fn last_heartbeat(&self, timeline: TimelineId) -> Result<Option<(Lsn, PgTime)>> {
        let sql = "SELECT lsn, time FROM heartbeats WHERE timeline = ?1 ORDER BY time DESC, lsn DESC LIMIT 1";
        let rows = self.rows(sql, [timeline.0], |row| Ok((lsn(row.get(0)?), PgTime(row.get(1)?))))?;
        Ok(rows.into_iter().next())
    }

    /// The furthest that a timeline was acknowledged, what the server had when anything was last told, and when that was.
    pub fn reached(&self, timeline: TimelineId) -> Result<Option<(Lsn, Lsn, SystemTime)>> {
        let sql = "SELECT furthest, server_end, at FROM reached WHERE timeline = ?1";
        let rows = self.rows(sql, [timeline.0], |row| {
            let at = Duration::from_secs(row.get::<_, i64>(2)? as u64);
            Ok((lsn(row.get(0)?), lsn(row.get(1)?), SystemTime::UNIX_EPOCH + at))
        })?;
        Ok(rows.into_iter().next())
    }

    fn rows<T>(
        &self,
        sql: &str,
        values: impl Params,
        make: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let read = || self.db.prepare_cached(sql)?.query_map(values, make)?.collect::<rusqlite::Result<Vec<T>>>();
        read().map_err(|e| failed("cannot read", e))
    }

    fn first(&self, sql: &str, values: impl Params) -> Result<Option<Object>> {
        let read = || self.db.prepare_cached(sql)?.query_row(values, object).optional();
        read().map_err(|e| failed("cannot read", e))
    }
}

fn lsn(place: i64) -> Lsn {
    Lsn(place as u64)
}

fn object(row: &Row<'_>) -> rusqlite::Result<Object> {
    let number = |column: usize| row.get::<_, i64>(column).map(|value| value as u64);
    let times: (Option<i64>, Option<i64>) = (row.get(10)?, row.get(11)?);
    let xids: (Option<u32>, Option<u32>) = (row.get(12)?, row.get(13)?);
    Ok(Object {
        timeline: TimelineId(row.get(0)?),
        partial: row.get(1)?,
        start: Lsn(number(2)?),
        end: Lsn(number(3)?),
        hash: row.get(4)?,
        stored: number(5)?,
        records: number(6)?,
        commits: number(7)?,
        aborts: number(8)?,
        checkpoints: number(9)?,
        times: times.0.zip(times.1).map(|(min, max)| (PgTime(min), PgTime(max))),
        xids: xids.0.zip(xids.1),
    })
}
