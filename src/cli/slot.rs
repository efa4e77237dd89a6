//! `walrecv slot create|show|drop`.

use serde::Serialize;

use super::args::Common;
use super::context::{env, settings};
use super::output;
use crate::config::ClusterSettings;
use crate::error::{Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode};
use crate::receive::forecast::{Limit, Outlook, Pace, span};
use crate::receive::sentinel::Second;
use crate::receive::slot::{self, SlotRow};

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
    /// Why the slot is lost (17+).
    pub invalidation_reason: Option<String>,
    /// The server's position.
    pub current_lsn: Option<String>,
    /// Bytes of WAL that the server writes in a second, where it was measured.
    pub wal_bytes_per_second: Option<u64>,
    /// Seconds until the slot is lost at that pace, if nothing advances it; absent without a limit, and where that is further off than a year.
    pub lost_in_seconds: Option<u64>,
}

impl SlotView {
    fn new(name: &str, outlook: &Outlook) -> SlotView {
        let row = &outlook.row;
        SlotView {
            name: name.to_owned(),
            restart_lsn: row.restart_lsn.map(|lsn| lsn.to_string()),
            active: None,
            wal_status: row.wal_status.clone(),
            safe_wal_size: row.safe_wal_size,
            retained: row.retained().map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            invalidation_reason: row.invalidation.clone(),
            current_lsn: row.current.map(|lsn| lsn.to_string()),
            wal_bytes_per_second: outlook.rate,
            lost_in_seconds: match outlook.limit() {
                Limit::Now => Some(0),
                Limit::In(left) => Some(left.as_secs()),
                Limit::Disk | Limit::Far | Limit::Unknown => None,
            },
        }
    }
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
    let made = connection.create_slot(&slot, false, true).await;
    connection.close().await;
    match made {
        Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => return Err(there(&conninfo, &slot, error).await),
        made => made?,
    }
    say(common, &slot, "created", "it holds WAL back from now on: start `walrecv receive` soon")
}

/// SQLSTATE of a slot that is there already.
const DUPLICATE_OBJECT: &str = "42710";

/// The slot that was there before: what it is, who uses it, and what to do. `refused`: the server's own words, for where nobody may look at it.
async fn there(conninfo: &Conninfo, name: &str, refused: Error) -> Error {
    let seen = async {
        let mut second = Second::open(conninfo).await?;
        let row = second.state(name).await?;
        let user = match row.as_ref().and_then(|row| row.active_pid) {
            Some(pid) => Some(user(&mut second.connection, pid).await),
            None => None,
        };
        let sql = second.sql;
        second.connection.close().await;
        Ok::<_, Error>(row.map(|row| (row, sql, user)))
    };
    match seen.await {
        // A logical one.
        Err(error) if error.kind() == Kind::Slot => error,
        Ok(Some((row, ..))) if row.is_lost() => slot::lost(name, Some(&row)),
        Ok(Some((row, sql, user))) => usable(name, &row, sql, user),
        _ => refused,
    }
}

/// The process, with its name and where it comes from, if that can be seen.
async fn user(connection: &mut Connection, pid: u32) -> String {
    let sql = format!(
        "SELECT pg_catalog.concat_ws(', ', NULLIF(application_name, ''), client_addr) FROM pg_catalog.pg_stat_replication WHERE pid = {pid}"
    );
    let rows = connection.query(&sql).await.unwrap_or_default();
    let who = rows.into_iter().flatten().flatten().find(|who| !who.is_empty());
    format!("process {pid}{}", who.map_or_else(String::new, |who| format!(" ({who})")))
}

fn usable(name: &str, row: &SlotRow, sql: bool, user: Option<String>) -> Error {
    let holds = match row.restart_lsn {
        Some(lsn) => format!("it holds WAL from {lsn} on"),
        None => "it reserves no WAL yet".to_owned(),
    };
    let (used, hint) = match user {
        Some(user) => (
            format!(", and {user} uses it"),
            "nothing is to be created; it admits one receiver at a time. Where that is none of this cluster's, give walrecv a slot of its own",
        ),
        None if sql => (", and nobody uses it".to_owned(), USE_IT),
        None => (String::new(), USE_IT),
    };
    Error::new(Kind::Slot, format!("the physical slot {name:?} is there already: {holds}{used}")).hint(hint)
}

const USE_IT: &str = "it can be used as it is, and nothing is to be created: start `walrecv receive`";

pub async fn drop(common: &Common) -> Result<()> {
    let (cluster, slot) = configured(common)?;
    let conninfo = Conninfo::parse(&cluster.dsn, &env)?;
    let mut connection = Connection::connect(&conninfo, Mode::Physical, "").await?;
    connection.drop_slot(&slot).await.map_err(not_dropped)?;
    connection.close().await;
    say(common, &slot, "dropped", "the server may now remove WAL that is not stored: a gap needs a new backup")
}

/// What a stream would do about these refusals is no advice for somebody who wants the slot gone.
fn not_dropped(error: Error) -> Error {
    if slot::is_in_use(&error) {
        return error.hint(
            "end the receiver that uses it first (`walrecv status` on its host names the process), then drop it",
        );
    }
    if slot::is_missing(&error) {
        return error.hint("there is nothing to drop; the name is what the configuration says (slot)");
    }
    error
}

pub async fn show(common: &Common) -> Result<()> {
    let (cluster, slot) = configured(common)?;
    let conninfo = Conninfo::parse(&cluster.dsn, &env)?;
    let missing = || {
        Error::new(Kind::Slot, format!("the server has no slot {slot:?}"))
            .hint("create it with `walrecv slot create`; after a failover the new primary has none: physical slots are not copied")
    };
    let (sql, seen) = look(&conninfo, &slot, MEASURED).await?.ok_or_else(missing)?;
    let view = seen_view(&slot, sql, &seen);
    if common.output == output::Format::Json {
        output::json(&view);
        return Ok(());
    }
    let unknown = || unknown(sql);
    let field = |name: &str, value: String| output::line(format!("{name:<14}{value}"));
    field("slot", view.name.clone());
    field("restart_lsn", view.restart_lsn.clone().unwrap_or_else(|| "none: no WAL is reserved".into()));
    field("active", view.active.map_or_else(unknown, |a| if a { "yes".into() } else { "no".into() }));
    let reason = view.invalidation_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    field("wal_status", view.wal_status.clone().map_or_else(unknown, |status| status + &reason));
    field("retained", retained(&view, sql));
    field("WAL written", view.wal_bytes_per_second.map_or_else(unknown, |n| format!("{}/s", output::bytes(n))));
    if sql {
        field("forecast", forecast(&seen));
    }
    Ok(())
}

fn unknown(sql: bool) -> String {
    if sql { "unknown" } else { "unknown (needs SQL: allow the database in pg_hba.conf)" }.to_owned()
}

/// A slot that is lost, or was never used, has no position, so there is nothing to count from.
fn retained(view: &SlotView, sql: bool) -> String {
    match view.retained {
        Some(bytes) => output::bytes(bytes.max(0) as u64),
        None if sql && view.restart_lsn.is_none() => "nothing".to_owned(),
        None => unknown(sql),
    }
}

/// What comes if nothing advances the slot.
fn forecast(outlook: &Outlook) -> String {
    let left = output::bytes(outlook.row.safe_wal_size.unwrap_or(0).max(0).unsigned_abs());
    match outlook.limit() {
        Limit::Disk => {
            "held until the server's disk is full: max_slot_wal_keep_size is not set, and no connection tells how large that disk is".to_owned()
        }
        Limit::Now if outlook.row.is_lost() => "lost: the server holds nothing back for it".to_owned(),
        Limit::Now => "the next checkpoint of the server may remove what it holds (max_slot_wal_keep_size)".to_owned(),
        Limit::In(time) => format!("lost after {left} more WAL, at this pace in about {}", span(time)),
        Limit::Far | Limit::Unknown => format!("lost after {left} more WAL (max_slot_wal_keep_size)"),
    }
}

/// How long the server's pace is measured.
const MEASURED: std::time::Duration = std::time::Duration::from_secs(1);

fn seen_view(slot: &str, sql: bool, outlook: &Outlook) -> SlotView {
    SlotView { active: sql.then_some(outlook.row.active_pid.is_some()), ..SlotView::new(slot, outlook) }
}

/// The slot, by SQL where a database connection is allowed, by READ_REPLICATION_SLOT otherwise; and whether SQL told of it.
/// The pace is measured for `measured`, if that is not zero.
async fn look(conninfo: &Conninfo, slot: &str, measured: std::time::Duration) -> Result<Option<(bool, Outlook)>> {
    let mut second = Second::open(conninfo).await?;
    let mut pace = Pace::default();
    let Some(mut row) = second.state(slot).await? else { return Ok(None) };
    if !measured.is_zero()
        && let Some(current) = row.current
    {
        pace.look(tokio::time::Instant::now(), current);
        tokio::time::sleep(measured).await;
        let Some(again) = second.state(slot).await? else { return Ok(None) };
        row = again;
        row.current.into_iter().for_each(|current| pace.look(tokio::time::Instant::now(), current));
    }
    let seen = (second.sql, Outlook { row, rate: pace.rate() });
    second.connection.close().await;
    Ok(Some(seen))
}

fn say(common: &Common, slot: &str, done: &str, remark: &str) -> Result<()> {
    match common.output {
        output::Format::Json => output::json(&serde_json::json!({ "slot": slot, "done": done })),
        output::Format::Text => output::line(format!("slot {slot} {done}; {remark}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_there_is_told_with_its_user_and_never_to_be_dropped() {
        let held = SlotRow { restart_lsn: Some(crate::pg::Lsn(0x10)), ..SlotRow::default() };
        for (row, sql, user, told) in [
            (&held, true, None, "it holds WAL from 0/10 on, and nobody uses it"),
            (
                &held,
                true,
                Some("process 7 (walrecv, 10.0.0.7)".to_owned()),
                "and process 7 (walrecv, 10.0.0.7) uses it",
            ),
            (&held, false, None, "it holds WAL from 0/10 on"),
            (&SlotRow::default(), true, None, "it reserves no WAL yet, and nobody uses it"),
        ] {
            let error = usable("s", row, sql, user);
            assert!(error.kind() == Kind::Slot && error.to_string().ends_with(told), "{error}");
            let advice = error.advice().unwrap_or_default();
            assert!(advice.contains("nothing is to be created") && !advice.contains("drop"), "{advice}");
        }
    }

    #[test]
    fn what_a_slot_without_a_position_holds_back_needs_no_sql_to_be_told() {
        let lost = SlotView::default();
        assert_eq!(retained(&lost, true), "nothing");
        assert!(retained(&lost, false).contains("needs SQL"));
        let held = SlotView { restart_lsn: Some("0/10".to_owned()), ..SlotView::default() };
        assert_eq!(retained(&held, true), "unknown");
        assert_eq!(retained(&SlotView { retained: Some(2 << 20), ..held }, true), "2.0 MiB");
    }
}
