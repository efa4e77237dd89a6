//! The replication slot: what it holds, for how long it can, and whether anyone uses it.

use std::time::Duration;

use tokio::time::Instant;

use super::report::Report;
use super::server::Server;
use crate::config::ClusterSettings;
use crate::error::{Error, Kind, Result};
use crate::pg::MajorVersion;
use crate::receive::forecast::{Outlook, Pace};
use crate::receive::slot::{self, SlotRow};

/// How long the server's pace is measured.
const MEASURED: Duration = Duration::from_secs(1);
/// A slot that is lost sooner than that needs someone now.
const SOON: Duration = Duration::from_secs(3600);

pub async fn look(cluster: &ClusterSettings, server: &mut Server, report: &mut Report) {
    let Some(name) = &cluster.slot else {
        let advice = "without a slot the server may remove WAL that is not stored yet: configure one";
        return report.warn("slot", "none configured", advice);
    };
    let outcome = match server.sql().is_some() {
        true => by_sql(name, server).await,
        false => by_command(name, server).await,
    };
    match outcome {
        Ok(Seen::Unknown) => report.warn(
            "slot",
            format!("{name} is configured; PostgreSQL {} shows it by SQL alone", server.version()),
            "allow the database connection in pg_hba.conf",
        ),
        Ok(Seen::Missing) => report.fail(
            "slot",
            &Error::new(Kind::Slot, format!("the server has no slot {name}")).hint(
                "create it with `walrecv slot create`; after a failover the new primary has none: physical slots are not copied",
            ),
        ),
        Ok(Seen::Position(lsn)) => report.ok("slot", format!("{name} at {lsn}; its state takes SQL to see")),
        Ok(Seen::Row(outlook)) => judge(name, &outlook, report),
        Err(error) => report.fail("slot", &error),
    }
}

enum Seen {
    Missing,
    /// 13 and 14 have no command for it.
    Unknown,
    Position(String),
    Row(Outlook),
}

async fn by_sql(name: &str, server: &mut Server) -> Result<Seen> {
    let Some(connection) = server.sql() else { return Ok(Seen::Unknown) };
    let mut pace = Pace::default();
    let Some(first) = slot::read(connection, name).await? else { return Ok(Seen::Missing) };
    first.current.into_iter().for_each(|current| pace.look(Instant::now(), current));
    tokio::time::sleep(MEASURED).await;
    let Some(row) = slot::read(connection, name).await? else { return Ok(Seen::Missing) };
    row.current.into_iter().for_each(|current| pace.look(Instant::now(), current));
    Ok(Seen::Row(Outlook { row, rate: pace.rate() }))
}

async fn by_command(name: &str, server: &mut Server) -> Result<Seen> {
    if server.version() < MajorVersion::V15 {
        return Ok(Seen::Unknown);
    }
    let Some(state) = server.any.read_slot(name).await? else { return Ok(Seen::Missing) };
    Ok(match state.restart_lsn {
        Some(lsn) => Seen::Position(lsn.to_string()),
        None => Seen::Row(Outlook { row: SlotRow::default(), rate: None }),
    })
}

fn judge(name: &str, outlook: &Outlook, report: &mut Report) {
    let row = &outlook.row;
    if row.is_lost() {
        return report.fail("slot", &slot::lost(name, Some(row)));
    }
    let Some(restart) = row.restart_lsn else {
        return report.warn(
            "slot",
            format!("{name} reserves no WAL yet"),
            "drop it and run `walrecv slot create`, which reserves it at once",
        );
    };
    let status = row.wal_status.as_deref().unwrap_or("of unknown state");
    let found = format!("{name}, physical, {status}, at {restart}: {}", outlook.describe());
    match row.active_pid {
        _ if outlook.is_urgent(SOON) => report.warn(
            "slot",
            found,
            "see that `walrecv receive` runs and that the repository keeps up, or raise max_slot_wal_keep_size and reload",
        ),
        None => report.warn(
            "slot",
            format!("{found}; not in use: nothing streams, and the server holds WAL back for it"),
            "start `walrecv receive`; where walrecv is listed in synchronous_standby_names, commits wait meanwhile",
        ),
        Some(pid) => report.ok("slot", format!("{found}; in use by process {pid}")),
    }
}
