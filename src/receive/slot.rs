//! The replication slot: what the server shows of it, and what that means in each version.
//!
//! 13 to 15 take an invalidated slot back with the next status, as if nothing had been removed: the hole shows as a position past what is stored, or as
//! removed WAL (58P01). 16 and 17 stream on a lost slot and retain nothing for it (`ReplicationSlotsComputeRequiredLSN` leaves it out), so nothing is
//! ever streamed on one. 18 refuses it.

use super::sentinel::Second;
use super::server::answered;
use crate::error::{Context, Error, Kind, Result};
use crate::net::Connection;
use crate::pg::{Lsn, MajorVersion};

/// A physical slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotRow {
    /// WAL is reserved from here; `None`: none is.
    pub restart_lsn: Option<Lsn>,
    /// The walsender that uses it.
    pub active_pid: Option<u32>,
    /// `reserved`, `extended`, `unreserved` (may still come back) or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of WAL that can still be written before the slot is lost; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// Why the slot is lost (17+): `wal_removed`, `idle_timeout` (18), ...
    pub invalidation: Option<String>,
    /// `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub limit: Option<u64>,
    /// The server's position: what it wrote, or what a standby received.
    pub current: Option<Lsn>,
}

impl SlotRow {
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }

    /// Bytes of WAL that the slot holds back.
    pub fn retained(&self) -> Option<u64> {
        Some(self.current?.since(self.restart_lsn?))
    }
}

/// The question for `pg_replication_slots`. The name is quoted for SQL.
pub fn question(version: MajorVersion, name: &str) -> String {
    let invalidation = if version >= MajorVersion::V17 { "invalidation_reason" } else { "NULL" };
    let current = "CASE WHEN pg_catalog.pg_is_in_recovery() \
         THEN GREATEST(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()) \
         ELSE pg_catalog.pg_current_wal_lsn() END";
    format!(
        "SELECT slot_type, restart_lsn, active_pid, wal_status, safe_wal_size, {invalidation}, {current}, \
         (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size') \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{}'",
        name.replace('\'', "''")
    )
}

/// Asks by SQL. `None`: there is no such slot. A logical one is `Kind::Slot`.
pub async fn read(connection: &mut Connection, name: &str) -> Result<Option<SlotRow>> {
    let sql = question(connection.version(), name);
    let rows = connection.query(&sql).await.context("cannot read pg_replication_slots")?;
    rows.first().map(|row| row_of(name, row)).transpose()
}

fn row_of(name: &str, row: &[Option<String>]) -> Result<SlotRow> {
    let column = |index: usize| row.get(index).and_then(Option::as_deref);
    if column(0) != Some("physical") {
        return Err(logical(name));
    }
    Ok(SlotRow {
        restart_lsn: value(row, 1, "restart_lsn")?,
        active_pid: value(row, 2, "active_pid")?,
        wal_status: column(3).map(str::to_owned),
        safe_wal_size: value(row, 4, "safe_wal_size")?,
        invalidation: column(5).map(str::to_owned),
        current: value(row, 6, "the current position")?,
        // In megabytes; -1 for none.
        limit: value::<i64>(row, 7, "max_slot_wal_keep_size")?.and_then(|mb| u64::try_from(mb).ok()).map(|mb| mb << 20),
    })
}

fn value<T: std::str::FromStr>(row: &[Option<String>], index: usize, what: &str) -> Result<Option<T>> {
    let Some(text) = row.get(index).and_then(Option::as_deref) else { return Ok(None) };
    let unreadable = || Error::new(Kind::Server, format!("pg_replication_slots: {what} cannot be read: {text:?}"));
    text.parse().map(Some).map_err(|_| unreadable())
}

/// There is no such slot.
pub fn missing(name: &str) -> Error {
    Error::new(Kind::Slot, format!("replication slot {name:?} does not exist"))
        .hint("Create it with: walrecv slot create.")
}

pub fn logical(name: &str) -> Error {
    Error::new(Kind::Slot, format!("slot {name:?} is a logical one, expected a physical slot"))
        .hint("Give walrecv a slot of its own: walrecv slot create.")
}

/// A slot that no longer holds its WAL.
pub fn lost(name: &str, row: Option<&SlotRow>) -> Error {
    let why = match row.and_then(|row| row.invalidation.as_deref()) {
        Some("idle_timeout") => "is invalid: nobody used it for idle_replication_slot_timeout",
        _ => "has lost the WAL it held (max_slot_wal_keep_size)",
    };
    Error::new(Kind::Slot, format!("replication slot {name:?} {why}"))
        .hint("Set on_gap = \"new-range\" to let walrecv make the slot anew and go on, behind a recorded hole if WAL is gone (docs/guide/gaps.md).")
}

/// Whether `error` is the server's word that there is no such slot (SQLSTATE `undefined_object`).
pub fn is_missing(error: &Error) -> bool {
    error.kind() == Kind::Slot && !error.is_transient() && error.sqlstate() == Some("42704")
}

/// Another receiver was at the slot between a look and what was done because of it: the next look tells what is to be done.
pub fn changed(name: &str, how: impl std::fmt::Display) -> Error {
    Error::new(Kind::Server, format!("slot {name:?} has changed since it was looked at: {how}")).transient()
}

/// Drops the slot if the one that is there still is `stale`, which is told how it was seen (`true`: by SQL). Another receiver may have made it anew meanwhile,
/// and the new one holds WAL. A slot that is gone is none to drop.
pub async fn drop_stale(stream: &mut Connection, name: &str, stale: impl Fn(&SlotRow, bool) -> bool) -> Result<()> {
    let (row, sql) = match Second::open(stream.same_server()).await {
        Ok(mut second) if second.sql || stream.version() >= MajorVersion::V15 => {
            let seen = (second.state(name).await?, second.sql);
            second.connection.close().await;
            seen
        }
        // There may be room for one connection only.
        Err(_) if stream.version() >= MajorVersion::V15 => {
            let state = answered("READ_REPLICATION_SLOT", stream.read_slot(name)).await?;
            (state.map(|state| SlotRow { restart_lsn: state.restart_lsn, ..SlotRow::default() }), false)
        }
        Err(error) => return Err(error),
        // 13 and 14 show nothing without SQL.
        Ok(_) => (Some(SlotRow::default()), false),
    };
    let Some(row) = row else { return Ok(()) };
    if row.active_pid.is_some() {
        return Err(in_use(name));
    }
    let shown = stream.version() >= MajorVersion::V15 || sql;
    if shown && !stale(&row, sql) {
        return Err(changed(name, "another receiver made it anew"));
    }
    match answered("DROP_REPLICATION_SLOT", stream.drop_slot(name)).await {
        Err(error) if is_missing(&error) => Ok(()),
        dropped => dropped,
    }
}

/// Another connection uses the slot.
pub fn in_use(name: &str) -> Error {
    Error::new(Kind::Slot, format!("slot {name:?} is in use by another connection")).transient()
}

/// Whether `error` says that another connection uses the slot: the only error about slots that may pass.
pub fn is_in_use(error: &Error) -> bool {
    error.kind() == Kind::Slot && error.is_transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(texts: [&str; 8]) -> Vec<Option<String>> {
        texts.iter().map(|t| (!t.is_empty()).then(|| (*t).to_owned())).collect()
    }

    #[test]
    fn a_row_says_what_is_retained_and_whether_the_slot_is_lost() {
        let good =
            row_of("s", &row(["physical", "0/1000000", "77", "extended", "500", "", "0/3000000", "-1"])).unwrap();
        assert_eq!((good.retained(), good.active_pid, good.is_lost()), (Some(2 << 24), Some(77), false));
        let lost = row_of("s", &row(["physical", "", "", "lost", "", "", "0/3000000", "-1"])).unwrap();
        assert_eq!((lost.retained(), lost.is_lost()), (None, true));
        let idle =
            row_of("s", &row(["physical", "0/1000000", "", "lost", "", "idle_timeout", "0/3000000", "-1"])).unwrap();
        assert!(idle.is_lost() && super::lost("s", Some(&idle)).to_string().contains("idle_replication_slot_timeout"));
        assert_eq!(row_of("s", &row(["logical", "", "", "", "", "", "", ""])).unwrap_err().kind(), Kind::Slot);
        assert_eq!(row_of("s", &row(["physical", "x", "", "", "", "", "", ""])).unwrap_err().kind(), Kind::Server);
    }

    #[test]
    fn the_reason_is_asked_for_where_it_exists_and_a_name_is_quoted() {
        assert!(question(MajorVersion::V17, "s").contains("invalidation_reason"));
        assert!(!question(MajorVersion::V16, "s").contains("invalidation_reason"));
        assert!(question(MajorVersion::V13, "a'b").contains("'a''b'"));
    }
}
