//! The server: both connections, who answered, how it is protected, and what it lets us see.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::report::Report;
use super::{repository, settings, slot};
use crate::config::ClusterSettings;
use crate::error::{Error, Kind, Result};
use crate::net::security::Verified;
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::{MajorVersion, SegmentSize};
use crate::wire::command::Identity;
use crate::wire::require_auth::AuthMethod;

/// What the repository is compared with.
pub struct Seen {
    pub identity: Identity,
    pub segment_size: Option<SegmentSize>,
}

/// The connections that could be opened.
pub struct Server {
    /// The one that answers SHOW: physical, or that for SQL where the physical one is refused.
    pub any: Connection,
    any_has_sql: bool,
    second: Option<Connection>,
    pub standby: bool,
}

impl Server {
    pub fn version(&self) -> MajorVersion {
        self.any.version()
    }

    /// The connection for SQL.
    pub fn sql(&mut self) -> Option<&mut Connection> {
        if self.any_has_sql { Some(&mut self.any) } else { self.second.as_mut() }
    }

    /// How many connections of the server this check takes.
    fn own(&self) -> i64 {
        1 + i64::from(self.second.is_some())
    }

    /// A row of SQL; `None` without an SQL connection.
    pub async fn row(&mut self, sql: &str) -> Result<Option<Vec<Option<String>>>> {
        let Some(connection) = self.sql() else { return Ok(None) };
        Ok(Some(connection.query(sql).await?.into_iter().next().unwrap_or_default()))
    }
}

/// Asks the server everything; `None` when it could not even be identified.
pub async fn look(cluster: &ClusterSettings, info: &Conninfo, report: &mut Report) -> Option<Seen> {
    let mut server = connect(info, report).await?;
    let seen = identify(&mut server, report).await;
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => {
            report.fail("server", &error);
            return None;
        }
    };
    if let Err(error) = rest(cluster, info, &mut server, report).await {
        report.fail("settings of the server", &error);
    }
    slot::look(cluster, &mut server, report).await;
    server.any.close().await;
    if let Some(connection) = server.second {
        connection.close().await;
    }
    Some(seen)
}

/// Both connections, so that both lines of pg_hba.conf that are missing are told at once.
async fn connect(info: &Conninfo, report: &mut Report) -> Option<Server> {
    const PHYSICAL: &str = "replication connection";
    const DATABASE: &str = "database connection";
    const COST: &str = "without it walrecv cannot see whether the slot is lost, how much more WAL it may hold and who uses it (on 13 and 14 not even its position)";
    let physical = match Connection::connect(info, Mode::Physical, "").await {
        Ok(connection) => {
            report.ok(PHYSICAL, connection.server());
            Some(connection)
        }
        Err(error) => {
            report.fail(PHYSICAL, &error);
            // Nobody is there, or no place is free: the other connection would say the same.
            if error.is_transient() || error.kind() != Kind::Server {
                return None;
            }
            None
        }
    };
    let same = physical.as_ref().map_or(info, Connection::same_server);
    let sql = match Connection::connect(same, Mode::Database, "").await {
        Ok(connection) => {
            report.ok(
                DATABASE,
                format!("replication=database to {:?} is allowed: SQL without an ordinary session", info.database()),
            );
            Some(connection)
        }
        Err(error) if physical.is_some() => {
            let advice = error.advice().unwrap_or("see the server's log").to_owned();
            report.warn(DATABASE, format!("{error}; {COST}"), advice);
            None
        }
        Err(error) => {
            report.fail(DATABASE, &error);
            None
        }
    };
    let (mut any, any_has_sql, second) = match (physical, sql) {
        (Some(physical), sql) => (physical, false, sql),
        (None, Some(sql)) => (sql, true, None),
        (None, None) => return None,
    };
    match any.is_standby().await {
        Ok(standby) => Some(Server { any, any_has_sql, second, standby }),
        Err(error) => {
            report.fail("server", &error);
            None
        }
    }
}

async fn identify(server: &mut Server, report: &mut Report) -> Result<Seen> {
    let identity = server.any.identify_system().await?;
    let size = server.any.show("wal_segment_size").await?;
    let role = if server.standby { "standby" } else { "primary" };
    report.ok(
        "server",
        format!(
            "{role}, PostgreSQL {}, system identifier {}, timeline {} at {}, segments of {size}",
            server.version(),
            identity.system,
            identity.timeline,
            identity.position
        ),
    );
    protection(&server.any, report);
    Ok(Seen { identity, segment_size: SegmentSize::from_show(&size) })
}

fn protection(connection: &Connection, report: &mut Report) {
    let security = connection.security();
    const TLS: &str = "encryption";
    match (&security.tls, security.verified) {
        (Some(tls), Verified::Name) => report.ok(TLS, format!("{tls}; the server's certificate and name are verified")),
        (Some(tls), Verified::Chain) => {
            report.ok(TLS, format!("{tls}; the server's certificate is verified, not its name"));
        }
        (Some(tls), Verified::Nothing) if security.bound || security.local => {
            report.ok(TLS, format!("{tls}; the certificate is not verified"));
        }
        (Some(tls), Verified::Nothing) => report.warn(
            TLS,
            format!("{tls}; anyone may have answered, since no certificate is verified"),
            "set sslmode=verify-full, with sslrootcert=FILE or sslrootcert=system",
        ),
        (None, _) if security.local => report.ok(TLS, "none, and nothing leaves this host"),
        (None, _) => report.warn(
            TLS,
            "none: whoever is on the way can read and change the WAL",
            "set ssl = on on the server, and sslmode=verify-full in dsn",
        ),
    }
    const AUTH: &str = "authentication";
    let name = security.method.name();
    match security.method {
        AuthMethod::Scram if security.bound => report.ok(AUTH, format!("{name}, bound to the TLS connection")),
        AuthMethod::Md5 => report.warn(
            AUTH,
            "md5, which PostgreSQL is giving up",
            "set password_encryption = 'scram-sha-256', set the password again, and use scram-sha-256 in pg_hba.conf",
        ),
        AuthMethod::Password if security.tls.is_none() && !security.local => {
            report.warn(AUTH, "password: it travels in the clear", "use scram-sha-256 in pg_hba.conf, or TLS")
        }
        AuthMethod::None if !security.local && security.tls.is_none() => report.warn(
            AUTH,
            "none was asked for (trust): anyone at this address may stream everything",
            "use scram-sha-256, or client certificates, in pg_hba.conf",
        ),
        AuthMethod::None => report.ok(AUTH, "no password was asked for (peer, trust or a certificate)"),
        _ => report.ok(AUTH, name),
    }
}

async fn rest(cluster: &ClusterSettings, info: &Conninfo, server: &mut Server, report: &mut Report) -> Result<()> {
    grants(server, report).await?;
    clock(server, report).await?;
    senders(server, report).await?;
    settings::look(cluster, info, server, report).await
}

async fn grants(server: &mut Server, report: &mut Report) -> Result<()> {
    let sql = "SELECT current_user, rolsuper, pg_catalog.pg_has_role(current_user, 'pg_monitor', 'USAGE') \
               FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let Some(row) = server.row(sql).await? else { return Ok(()) };
    let column = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
    let user = column(0);
    let quoted = format!("\"{}\"", user.replace('"', "\"\""));
    if column(1) == "t" {
        report.ok(
            "grants",
            format!("{user} is a superuser, which is more than walrecv needs: REPLICATION and pg_monitor"),
        );
    } else if column(2) == "t" {
        report.ok("grants", format!("{user} has REPLICATION and pg_monitor"));
    } else {
        report.warn(
            "grants",
            format!("{user} has REPLICATION, not pg_monitor: which other standbys are synchronous, and how far they are, is hidden"),
            format!("run on the server: GRANT pg_monitor TO {quoted}"),
        );
    }
    Ok(())
}

async fn clock(server: &mut Server, report: &mut Report) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = now();
    let sql = "SELECT (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint";
    let Some(row) = server.row(sql).await? else { return Ok(()) };
    let middle = (before + now()) / 2;
    let theirs = row.first().and_then(Option::as_deref).and_then(|text| text.parse::<u64>().ok());
    let Some(theirs) = theirs.map(Duration::from_millis) else { return Ok(()) };
    let seconds = theirs.as_secs_f64() - middle.as_secs_f64();
    repository::clock("clock of the server", seconds.trunc() as i64, report);
    Ok(())
}

/// Two walsenders for a stream, one more during a backup.
async fn senders(server: &mut Server, report: &mut Report) -> Result<()> {
    const CHECK: &str = "max_wal_senders";
    const ADVICE: &str =
        "a stream takes two, a backup one more: raise max_wal_senders (10 is the default) and restart the server";
    let max: i64 = server.any.show(CHECK).await?.parse().unwrap_or(0);
    let row = server.row("SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication").await?;
    let used = row.and_then(|row| row.first()?.as_deref()?.parse::<i64>().ok());
    match used {
        None if max < 3 => report.warn(CHECK, max.to_string(), ADVICE),
        None => report.ok(CHECK, format!("{max}; how many are free takes SQL to see")),
        Some(used) => {
            let others = (used - server.own()).max(0);
            let found = format!("{max}, {others} of them in use");
            match max - others {
                3.. => report.ok(CHECK, found),
                _ => report.warn(CHECK, found, ADVICE),
            }
        }
    }
    Ok(())
}

/// A server that cannot give what a restore needs.
pub fn unfit(text: &str, hint: &str) -> Error {
    Error::new(Kind::Server, text).hint(hint)
}
