//! What the server's refusals mean, and what to do about each. SQLSTATE and the raising function decide; texts may be translated.

use std::net::IpAddr;

use super::connection::Mode;
use super::conninfo::Conninfo;
use super::link::LinkError;
use crate::error::{Error, Kind};
use crate::wire::error::{ServerError, WireError};

/// Who talks to whom, for messages and hints.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// Server and user.
    pub server: String,
    pub user: String,
    pub database: String,
    pub mode: Mode,
    /// Our address; `None` on a socket file.
    pub local: Option<IpAddr>,
    pub tls: bool,
    /// There was a client certificate to show.
    pub certificate: bool,
}

impl Scene {
    pub(super) fn new(info: &Conninfo, server: &str, mode: Mode, local: Option<IpAddr>, tls: bool) -> Scene {
        Scene {
            server: server.to_owned(),
            user: info.user.clone(),
            database: info.database().to_owned(),
            mode,
            local,
            tls,
            certificate: false,
        }
    }

    /// The pg_hba.conf line that would admit us. `seen` is the address that the server speaks of.
    fn hba_line(&self, seen: Option<IpAddr>) -> String {
        // A bare "replication" admits physical walsenders only; those of a database go by its name (hba.c:check_db).
        let database = match self.mode {
            Mode::Physical => "replication".to_owned(),
            Mode::Database => quoted(&self.database),
        };
        let user = quoted(&self.user);
        match seen.or(self.local) {
            None => format!("local {database} {user} scram-sha-256"),
            Some(address) => {
                let kind = if self.tls { "hostssl" } else { "host" };
                let bits = if address.is_ipv4() { 32 } else { 128 };
                format!("{kind} {database} {user} {address}/{bits} scram-sha-256")
            }
        }
    }
}

/// Names with anything but lower-case letters, digits and _ need quotes in pg_hba.conf, and so do its keywords.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let keyword = matches!(name, "all" | "replication" | "sameuser" | "samerole" | "samegroup");
    if name.chars().all(plain) && !keyword { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The first IP address in a text of the server.
fn address_in(text: &str) -> Option<IpAddr> {
    text.split(|c: char| !(c.is_ascii_hexdigit() || c == ':' || c == '.')).find_map(|word| word.parse().ok())
}

/// Whether a refusal names the client's address or socket.
fn tells_where(message: &str) -> bool {
    address_in(message).is_some() || message.contains("[local]")
}

fn wants_certificate(error: Error, scene: &Scene) -> Error {
    error.hint(match scene.certificate {
        true => {
            "the server does not accept the certificate: it must be signed by an authority in the server's ssl_ca_file"
        }
        false => "set sslcert and sslkey (or put postgresql.crt and postgresql.key into ~/.postgresql)",
    })
}

/// The alert with which the server ended TLS. With TLS 1.3 a refused client certificate shows only here, after the handshake.
fn alert(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
        _ => None,
    }
}

fn refused_certificate(alert: &str, scene: &Scene) -> Error {
    let text = format!("{}: the server ended TLS with the alert {alert}", scene.server);
    wants_certificate(Error::new(Kind::Server, text), scene)
}

/// An error before the session was ready.
pub(super) fn login(error: LinkError, scene: &Scene) -> Error {
    let error = match error {
        LinkError::Wire(WireError::Server { error, .. }) => return server(&error, "login", scene),
        LinkError::Io(error) => match alert(&error) {
            Some(alert) => return refused_certificate(&alert, scene),
            None => return lost(LinkError::Io(error), scene),
        },
        LinkError::Wire(error) => error,
        other => return lost(other, scene),
    };
    let new = |text: String| Error::new(Kind::Server, format!("{}: {text}", scene.server));
    match &error {
        WireError::NoPassword => new(error.to_string())
            .hint("set password, PGPASSWORD, or a line in the password file (~/.pgpass, mode 0600)"),
        WireError::Authentication { .. } => new(error.to_string())
            .hint("use scram-sha-256, or another of md5, password, trust, peer, in the server's pg_hba.conf"),
        WireError::ChannelBinding(_) => {
            new(error.to_string()).hint("use TLS and scram-sha-256 with the server, or channel_binding=prefer")
        }
        WireError::RequireAuth { asked, .. } => new(error.to_string())
            .hint(format!("change the method in the server's pg_hba.conf, or allow {asked} in require_auth")),
        WireError::Scram(_) => {
            new(error.to_string()).hint("whoever answered does not know the password: check the host")
        }
        WireError::Text { .. } => Error::new(Kind::Usage, format!("{}: {error}", scene.server)),
        _ => new(format!("does not speak the protocol of PostgreSQL: {error}"))
            .hint("check host and port: another program, or a proxy, answers there"),
    }
}

/// The connection broke, or what came makes no sense.
pub(super) fn lost(error: LinkError, scene: &Scene) -> Error {
    let server = &scene.server;
    match error {
        LinkError::Closed => {
            Error::new(Kind::Server, format!("{server}: the server closed the connection")).transient()
        }
        LinkError::Stuck => {
            Error::new(Kind::Server, format!("{server}: the server does not read what is sent to it")).transient()
        }
        LinkError::Io(error) => {
            Error::new(Kind::Server, format!("{server}: the connection broke")).transient().caused_by(error)
        }
        LinkError::Misuse(what) => Error::new(Kind::Failed, format!("{server}: {what}")),
        LinkError::Wire(WireError::Server { error, .. }) => self::server(&error, "session", scene),
        LinkError::Wire(error @ WireError::Text { .. }) => Error::new(Kind::Usage, error.to_string()),
        LinkError::Wire(error) => Error::new(Kind::Corrupt, format!("{server}: {error}"))
            .hint("nothing of it was kept; check the network path, and report it if it happens again"),
    }
}

/// An ErrorResponse to `command` (or to the login).
pub(super) fn server(error: &ServerError, command: &'static str, scene: &Scene) -> Error {
    meaning(error, command, scene).of_sqlstate(error.sqlstate.as_str())
}

fn meaning(error: &ServerError, command: &'static str, scene: &Scene) -> Error {
    let text = format!("{}: {command}: {error}", scene.server);
    let new = |kind| Error::new(kind, text.clone());
    let own_hint = |e: Error| match &error.hint {
        Some(hint) => e.hint(format!("the server says: {hint}")),
        None => e,
    };
    let user = quoted_sql(&scene.user);
    match error.sqlstate.as_str() {
        // Every refusal by a line tells where we come from; the one for want of a certificate does not.
        "28000" if error.is_from("ClientAuthentication") && scene.tls && !tells_where(&error.message) => {
            wants_certificate(new(Kind::Server), scene)
        }
        "28000" if error.is_from("ClientAuthentication") => new(Kind::Server).hint(format!(
            "add this line to the server's pg_hba.conf, above any line that rejects it, and reload: {}",
            scene.hba_line(address_in(&error.message))
        )),
        "28000" if error.is_from("InitializeSessionUserId") => {
            new(Kind::Server).hint(format!("run on the server: CREATE ROLE {user} LOGIN REPLICATION PASSWORD '…'"))
        }
        "28000" | "42501" if error.is_from("InitPostgres") => {
            new(Kind::Server).hint(format!("run on the server: ALTER ROLE {user} REPLICATION"))
        }
        "28000" if error.is_from("auth_failed") && scene.tls && scene.certificate => new(Kind::Server).hint(format!(
            "the line of pg_hba.conf asks for a certificate whose common name is {user}, or is mapped to it in pg_ident.conf"
        )),
        "28000" if error.is_from("auth_failed") && scene.tls => new(Kind::Server).hint(
            "check pg_hba.conf: a certificate is asked for (set sslcert and sslkey), or the operating system's user is not mapped to this role",
        ),
        "28000" => new(Kind::Server)
            .hint("the operating system's user is not mapped to this role: check pg_hba.conf and pg_ident.conf"),
        "28P01" => new(Kind::Server).hint(format!(
            "check the password of {user} in the connection string, PGPASSWORD or the password file, and on the server"
        )),
        "3D000" => new(Kind::Server).hint("name an existing database with dbname in the connection string"),
        // Who may ask for a backup was decided at the login: this is what its operating system answered the server.
        "42501" if command == "BASE_BACKUP" => new(Kind::Server).hint(
            "the server itself may not read that: see the owner and the mode of the file on its host (ls -l), and take the backup again",
        ),
        "42501" => new(Kind::Server).hint(format!("grant {user} the right that the server names")),
        "53300" => {
            // "(currently 0)": walsenders are switched off, which no waiting changes.
            let off = error.message.split(|c: char| !c.is_ascii_digit()).any(|number| number == "0");
            let e = new(Kind::Server).hint(
                "raise max_wal_senders (two for walrecv, one more during a backup) or max_connections, with wal_level=replica or more, and restart the server",
            );
            if off { e } else { e.transient() }
        }
        // Named in the message too: it is what a stream tells of each attempt, and advice is not.
        "53400" if command == "CREATE_REPLICATION_SLOT" => new(Kind::Server)
            .context("max_replication_slots leaves no room")
            .hint("drop a slot that nobody needs, or raise max_replication_slots and restart the server")
            .transient(),
        "57P01" | "57P02" | "57P03" | "57P05" => new(Kind::Server).transient(),
        "55000" if error.is_from("exec_replication_command") => new(Kind::Server).transient(),
        "55000" if command == "BASE_BACKUP" && gave_up(&error.message).is_some() => {
            new(Kind::Server).hint(gave_up(&error.message).unwrap_or_default())
        }
        state
            if state.starts_with("08")
                || state.starts_with("53")
                || state.starts_with("58P0") && command == "login" =>
        {
            own_hint(new(Kind::Server).transient())
        }
        _ => own_hint(command_error(error, command, new(Kind::Server), &new)),
    }
}

/// Says of a segment that was opened, and is recycled by now, that it has been removed, under whatever SQLSTATE the last error of the system stands for (XX000 where
/// there was none).
const GONE_MEANWHILE: &str = "CheckXLogRemoved";

/// Errors whose meaning depends on the command.
fn command_error(error: &ServerError, command: &str, plain: Error, new: &dyn Fn(Kind) -> Error) -> Error {
    match (command, error.sqlstate.as_str()) {
        (_, "55006") => new(Kind::Slot).transient().hint("another receiver uses the slot; it is tried again"),
        ("START_REPLICATION", state) if state == "58P01" || error.is_from(GONE_MEANWHILE) => {
            new(Kind::Gap).hint("the server has removed WAL that is asked for (docs/guide/gaps.md)")
        }
        ("START_REPLICATION" | "DROP_REPLICATION_SLOT" | "READ_REPLICATION_SLOT", "42704") => {
            new(Kind::Slot).hint("create the slot with: walrecv slot create")
        }
        ("CREATE_REPLICATION_SLOT", "42710") => new(Kind::Slot)
            .hint("use the slot that is there; `walrecv slot show` tells what it holds, and whether somebody uses it"),
        ("READ_REPLICATION_SLOT", "0A000") | ("START_REPLICATION", "55000") => {
            new(Kind::Slot).hint("the slot is invalid or not a physical one: drop it and create it anew")
        }
        (_, "55000") if error.is_from("CheckSlotRequirements") => new(Kind::Server)
            .hint("set wal_level=replica (or logical) and max_replication_slots above 0, and restart the server"),
        // `validate_compress_specification`, and a sink whose library is not there.
        ("BASE_BACKUP", "42601" | "0A000") if speaks_of_compression(&error.message) => new(Kind::Usage).hint(
            "this server is built without that method: name another one with --server-compression, or leave it out",
        ),
        // Ahead of its end, or not in its history.
        ("START_REPLICATION", "XX000") => new(Kind::Diverged)
            .hint("this server lags behind what is stored, or went another way: check which server is the primary"),
        _ => plain,
    }
}

/// In the languages that PostgreSQL speaks with our letters.
fn speaks_of_compression(message: &str) -> bool {
    let message = message.to_lowercase();
    ["compr", "kompr", "sıkıştır"].iter().any(|word| message.contains(word))
}

/// What to do where a standby ends a backup that it cannot vouch for (`do_pg_backup_stop`, `sendDir`). The words may be translated; then the server's own
/// advice has to do.
fn gave_up(message: &str) -> Option<&'static str> {
    if message.contains("full_page_writes") {
        return Some(
            "set full_page_writes = on on the primary, let it make a checkpoint, and take the backup again; or take it from the primary",
        );
    }
    let promoted = "a standby that became a primary in the middle of a backup cannot finish it: take the backup again";
    message.contains("promoted").then_some(promoted)
}

/// A role's name as SQL spells it.
fn quoted_sql(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(command: &'static str, sqlstate: &str, message: &str) -> Error {
        let info = Conninfo::parse("host=h user=u", &|_| None).unwrap();
        let hint = Some("Advice of the server.".to_owned());
        let error = ServerError { sqlstate: sqlstate.into(), message: message.into(), hint, ..ServerError::default() };
        server(&error, command, &Scene::new(&info, "h", Mode::Physical, None, false))
    }

    #[test]
    fn a_server_without_a_compression_method_is_told_from_others() {
        for (state, message) in [
            ("42601", "invalid compression specification: this build does not support compression with ZSTD"),
            ("0A000", "lz4 compression is not supported by this build"),
            ("42601", "ungültige Komprimierungsangabe"),
        ] {
            let error = refused("BASE_BACKUP", state, message);
            assert_eq!(error.kind(), Kind::Usage, "{message}");
            assert!(error.to_string().contains(message));
        }
        assert_eq!(refused("BASE_BACKUP", "42601", "syntax error").kind(), Kind::Server);
        assert_eq!(refused("SHOW", "0A000", "compression").kind(), Kind::Server);
    }

    #[test]
    fn what_has_no_room_is_named_with_its_setting() {
        let slots = refused("CREATE_REPLICATION_SLOT", "53400", "all replication slots are in use");
        assert!(slots.to_string().contains("max_replication_slots") && slots.is_transient(), "{slots}");
        assert!(slots.advice().is_some_and(|hint| hint.contains("max_replication_slots")));
        let senders = refused("login", "53300", "sorry, too many clients already");
        assert!(senders.advice().is_some_and(|hint| hint.contains("max_wal_senders")) && senders.is_transient());
    }

    #[test]
    fn a_file_that_the_server_may_not_read_is_no_missing_grant() {
        let hint = |command| {
            refused(command, "42501", "could not open file \"./strange\": Permission denied")
                .advice()
                .map(str::to_owned)
        };
        assert!(hint("BASE_BACKUP").is_some_and(|hint| hint.contains("mode of the file") && !hint.contains("grant")));
        assert!(hint("SELECT").is_some_and(|hint| hint.contains("grant")));
    }

    #[test]
    fn a_segment_that_was_recycled_while_it_was_read_is_gone_and_no_other_history() {
        let info = Conninfo::parse("host=h user=u", &|_| None).unwrap();
        let told = |sqlstate: &str, routine: &str| {
            let message = "requested WAL segment 000000010000000000000009 has already been removed";
            let (sqlstate, routine) = (sqlstate.into(), Some(routine.to_owned()));
            let error = ServerError { sqlstate, message: message.into(), routine, ..ServerError::default() };
            server(&error, "START_REPLICATION", &Scene::new(&info, "h", Mode::Physical, None, false)).kind()
        };
        assert_eq!(told("58P01", "WalSndSegmentOpen"), Kind::Gap);
        assert_eq!((told("XX000", "CheckXLogRemoved"), told("58030", "CheckXLogRemoved")), (Kind::Gap, Kind::Gap));
        assert_eq!(told("XX000", "StartReplication"), Kind::Diverged, "ahead of its end");
    }

    #[test]
    fn why_a_standby_ended_a_backup_is_said_in_words_of_our_own() {
        for (message, says) in [
            ("the standby was promoted during online backup", "became a primary"),
            ("WAL generated with full_page_writes=off was replayed during online backup", "full_page_writes = on"),
            ("der Standby wurde befördert", "Advice of the server"),
        ] {
            let error = refused("BASE_BACKUP", "55000", message);
            assert_eq!((error.kind(), error.is_transient()), (Kind::Server, false));
            assert!(error.advice().is_some_and(|advice| advice.contains(says)), "{error:?}");
        }
    }
}
