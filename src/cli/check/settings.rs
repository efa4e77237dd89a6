//! Settings of the server that decide what a stream, a backup and a restore are worth.

use super::report::Report;
use super::server::{Server, unfit};
use super::synchronous;
use crate::config::ClusterSettings;
use crate::error::Result;
use crate::net::Conninfo;
use crate::pg::MajorVersion;
use crate::receive::sentinel;

pub async fn look(cluster: &ClusterSettings, info: &Conninfo, server: &mut Server, report: &mut Report) -> Result<()> {
    wal_level(server, report).await?;
    slots(cluster, server, report).await?;
    timeouts(server, report).await?;
    synchronous(cluster, info, server, report).await?;
    pages(server, report).await?;
    beside(server, report).await
}

async fn wal_level(server: &mut Server, report: &mut Report) -> Result<()> {
    match server.any.show("wal_level").await?.as_str() {
        "minimal" => report.fail(
            "wal_level",
            &unfit(
                "wal_level = minimal: the WAL is not enough to restore from",
                "set wal_level = replica in postgresql.conf and restart the server",
            ),
        ),
        level => report.ok("wal_level", level),
    }
    Ok(())
}

async fn slots(cluster: &ClusterSettings, server: &mut Server, report: &mut Report) -> Result<()> {
    const CHECK: &str = "max_replication_slots";
    let max: i64 = server.any.show(CHECK).await?.parse().unwrap_or(0);
    let row = server.row("SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots").await?;
    let used = row.and_then(|row| row.first()?.as_deref()?.parse::<i64>().ok());
    let found = used.map_or(max.to_string(), |used| format!("{max}, {used} of them in use"));
    match used {
        _ if max == 0 => report.fail(
            CHECK,
            &unfit("max_replication_slots = 0", "set max_replication_slots to 1 or more and restart the server"),
        ),
        Some(used) if used >= max && cluster.slot.is_none() => {
            report.warn(CHECK, found, "walrecv wants a slot: raise max_replication_slots and restart the server");
        }
        _ => report.ok(CHECK, found),
    }
    let limit = server.any.show("max_slot_wal_keep_size").await?;
    match limit.as_str() {
        "-1" => report.warn(
            "max_slot_wal_keep_size",
            "not limited: while walrecv or the repository is away, WAL grows until the server's disk is full",
            "set max_slot_wal_keep_size to what pg_wal may take, if the server matters more than an archive without holes; watch `walrecv slot show`",
        ),
        limit => report.ok(
            "max_slot_wal_keep_size",
            format!("{limit}: behind more than that the slot is lost, and the archive has a hole until the next backup"),
        ),
    }
    Ok(())
}

async fn timeouts(server: &mut Server, report: &mut Report) -> Result<()> {
    if server.version() >= MajorVersion::V18 {
        match server.any.show("idle_replication_slot_timeout").await?.as_str() {
            "0" => report.ok("idle_replication_slot_timeout", "0: an unused slot stays"),
            time => report.warn(
                "idle_replication_slot_timeout",
                format!("{time}: a slot that nobody uses for so long is invalidated"),
                "set it to 0, or well above the longest time that walrecv may be away",
            ),
        }
    }
    let timeout = server.any.show("wal_sender_timeout").await?;
    report.ok(
        "wal_sender_timeout",
        format!("{timeout}; the stream sets 10s for itself, so that a lost receiver frees its slot"),
    );
    Ok(())
}

async fn synchronous(
    cluster: &ClusterSettings,
    info: &Conninfo,
    server: &mut Server,
    report: &mut Report,
) -> Result<()> {
    if server.standby {
        report.ok("synchronous standby", "the server is a standby: no commit waits for those that stream from it");
    } else {
        let names = server.any.show("synchronous_standby_names").await?;
        let listed = sentinel::lists(&names, info.application_name());
        synchronous::explain(&names, info.application_name(), cluster.flush_interval, report);
        let level = server.any.show("synchronous_commit").await?;
        synchronous::level(&level, listed, report);
    }
    if server.version() >= MajorVersion::V17 {
        const CHECK: &str = "synchronized_standby_slots";
        let listed = server.any.show(CHECK).await?;
        match listed
            .split(',')
            .map(|name| name.trim().trim_matches('"'))
            .any(|name| Some(name) == cluster.slot.as_deref())
        {
            true => report.warn(
                CHECK,
                format!(
                    "'{listed}' names walrecv's slot: logical subscribers wait until the repository has what they read"
                ),
                "take the slot out of the list unless that is meant",
            ),
            false => report.ok(CHECK, "does not name walrecv's slot"),
        }
    }
    Ok(())
}

async fn pages(server: &mut Server, report: &mut Report) -> Result<()> {
    match server.any.show("full_page_writes").await?.as_str() {
        "off" => report.warn(
            "full_page_writes",
            "off: a crash may leave torn pages that no WAL mends, and a standby's backup is refused",
            "set full_page_writes = on and reload",
        ),
        value => report.ok("full_page_writes", value),
    }
    match server.any.show("fsync").await?.as_str() {
        "off" => report.warn(
            "fsync",
            "off: a crash of the server's host may destroy the cluster, and its WAL may differ from what was streamed",
            "set fsync = on and reload",
        ),
        value => report.ok("fsync", value),
    }
    match server.any.show("data_checksums").await?.as_str() {
        "off" => report.warn(
            "data_checksums",
            "off: pages that the server's disk damages are backed up unnoticed",
            "stop the server and run pg_checksums --enable",
        ),
        value => report.ok("data_checksums", value),
    }
    Ok(())
}

/// What works beside walrecv.
async fn beside(server: &mut Server, report: &mut Report) -> Result<()> {
    let compression = server.any.show("wal_compression").await?;
    match compression.as_str() {
        "off" => {
            report.ok("wal_compression", "off: full-page images travel as they are; walrecv compresses what it stores")
        }
        value => report.ok("wal_compression", value),
    }
    archiver(server, report).await?;
    if server.version() >= MajorVersion::V17 {
        match server.any.show("summarize_wal").await?.as_str() {
            "off" => report
                .ok("summarize_wal", "off: every backup transfers all data; on, only what changed since the last one"),
            value => report.ok("summarize_wal", value),
        }
    }
    Ok(())
}

async fn archiver(server: &mut Server, report: &mut Report) -> Result<()> {
    const CHECK: &str = "archive_mode";
    let mode = server.any.show(CHECK).await?;
    if mode == "off" {
        report.ok(CHECK, "off: walrecv needs no archive_command");
        return Ok(());
    }
    let sql = "SELECT last_failed_time > coalesce(last_archived_time, '-infinity'), last_failed_wal FROM pg_catalog.pg_stat_archiver";
    let row = server.row(sql).await?.unwrap_or_default();
    let column = |index: usize| row.get(index).and_then(Option::as_deref);
    match column(0) {
        Some("t") => report.warn(
            CHECK,
            format!(
                "{mode}, and the archiver fails at {}: pg_wal grows, whatever walrecv stores",
                column(1).unwrap_or("a segment")
            ),
            "mend archive_command, or switch archive_mode off if walrecv alone shall keep the WAL",
        ),
        _ => report.ok(CHECK, format!("{mode}: the archiver works beside walrecv, neither needs the other")),
    }
    Ok(())
}
