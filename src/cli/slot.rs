//! `walrecv slot create|show|drop`.

use serde::Serialize;

use super::args::Common;
use super::context::{env, settings};
use super::output;
use crate::config::ClusterSettings;
use crate::error::{Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode};

/// A slot as the server sees it. Fields that need SQL are absent when only a physical connection is allowed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SlotView {
    pub name: String,
    pub restart_lsn: Option<String>,
    pub active: Option<bool>,
    pub wal_status: Option<String>,
    /// Bytes of WAL that can still be written before the slot is lost; absent without a limit.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that the slot holds back on the server.
    pub retained: Option<i64>,
}

fn configured(common: &Common) -> Result<(ClusterSettings, String)> {
    let settings = settings(common, None)?;
    let cluster = settings.cluster(common.cluster.as_deref())?.clone();
    let slot = cluster.slot.clone().ok_or_else(|| {
        Error::new(Kind::Usage, format!("no slot is configured for cluster {:?}", cluster.name)).hint(format!(
            "add slot = \"walrecv_{}\" to [clusters.{}]",
            cluster.name.replace(['-', '.'], "_"),
            cluster.name
        ))
    })?;
    Ok((cluster, slot))
}

pub async fn create(common: &Common) -> Result<()> {
    let (cluster, slot) = configured(common)?;
    let conninfo = Conninfo::parse(&cluster.dsn, &env)?;
    let mut connection = Connection::connect(&conninfo, Mode::Physical, "").await?;
    connection.create_slot(&slot, false, true).await?;
    connection.close().await;
    say(common, &slot, "created", "it holds WAL back from now on: start `walrecv receive` soon")
}

pub async fn drop(common: &Common) -> Result<()> {
    let (cluster, slot) = configured(common)?;
    let conninfo = Conninfo::parse(&cluster.dsn, &env)?;
    let mut connection = Connection::connect(&conninfo, Mode::Physical, "").await?;
    connection.drop_slot(&slot).await?;
    connection.close().await;
    say(common, &slot, "dropped", "the server may now remove WAL that is not stored: a gap needs a new backup")
}

pub async fn show(common: &Common) -> Result<()> {
    let (cluster, slot) = configured(common)?;
    let conninfo = Conninfo::parse(&cluster.dsn, &env)?;
    let view = view(&conninfo, &slot).await?.ok_or_else(|| {
        Error::new(Kind::Slot, format!("the server has no slot {slot:?}")).hint("create it with `walrecv slot create`")
    })?;
    if common.output == output::Format::Json {
        output::json(&view);
        return Ok(());
    }
    let unknown = || "unknown (needs SQL: allow the database in pg_hba.conf)".to_owned();
    output::line(format!("slot          {}", view.name));
    output::line(format!(
        "restart_lsn   {}",
        view.restart_lsn.clone().unwrap_or_else(|| "none: no WAL is reserved".into())
    ));
    output::line(format!(
        "active        {}",
        view.active.map_or_else(unknown, |a| if a { "yes".into() } else { "no".into() })
    ));
    output::line(format!("wal_status    {}", view.wal_status.clone().unwrap_or_else(unknown)));
    output::line(format!("retained      {}", view.retained.map_or_else(unknown, |n| output::bytes(n.max(0) as u64))));
    if let Some(left) = view.safe_wal_size {
        output::line(format!("lost after    {} more WAL (max_slot_wal_keep_size)", output::bytes(left.max(0) as u64)));
    }
    Ok(())
}

/// Asks by SQL where a database connection is allowed, by READ_REPLICATION_SLOT otherwise. `None`: no such slot.
pub async fn view(conninfo: &Conninfo, slot: &str) -> Result<Option<SlotView>> {
    match Connection::connect(conninfo, Mode::Database, "").await {
        Ok(mut connection) => by_sql(&mut connection, slot).await,
        Err(error) if error.is_transient() => Err(error),
        Err(_) => {
            let mut connection = Connection::connect(conninfo, Mode::Physical, "").await?;
            let state = connection.read_slot(slot).await?;
            let restart = |lsn: Option<crate::pg::Lsn>| lsn.map(|l| l.to_string());
            Ok(state.map(|s| SlotView {
                name: slot.to_owned(),
                restart_lsn: restart(s.restart_lsn),
                ..SlotView::default()
            }))
        }
    }
}

async fn by_sql(connection: &mut Connection, slot: &str) -> Result<Option<SlotView>> {
    // The name was checked against the server's own rule, so it needs no escape.
    let current = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END";
    let sql = format!(
        "SELECT slot_type, restart_lsn, active, wal_status, safe_wal_size, ({current} - restart_lsn)::bigint \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}'"
    );
    let rows = connection.query(&sql).await?;
    let Some([kind, restart, active, status, safe, retained]) = rows.first().map(Vec::as_slice) else {
        return Ok(None);
    };
    if kind.as_deref() != Some("physical") {
        return Err(Error::new(Kind::Slot, format!("slot {slot:?} is a logical one, expected a physical slot"))
            .hint("configure another slot name, and create it with `walrecv slot create`"));
    }
    let number = |text: &Option<String>| text.as_deref().and_then(|t| t.parse().ok());
    Ok(Some(SlotView {
        name: slot.to_owned(),
        restart_lsn: restart.clone(),
        active: active.as_deref().map(|a| a == "t"),
        wal_status: status.clone(),
        safe_wal_size: number(safe),
        retained: number(retained),
    }))
}

fn say(common: &Common, slot: &str, done: &str, remark: &str) -> Result<()> {
    match common.output {
        output::Format::Json => output::json(&serde_json::json!({ "slot": slot, "done": done })),
        output::Format::Text => output::line(format!("slot {slot} {done}; {remark}")),
    }
    Ok(())
}
