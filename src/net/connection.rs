//! One replication connection: connect and authenticate, run commands, stream.
//!
//! Errors: unreachable or starting up is `Kind::Server` and transient; a refusal (password, pg_hba, no REPLICATION right, wal_level) is `Kind::Server`
//! and permanent, with a hint; a version outside 13..18 is `Kind::Version`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Conninfo;
use super::choose;
use super::dial::Session;
use super::link::{Link, LinkError};
use super::refusal::{self, Scene};
use super::security::Security;
use super::target::Standing;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, MajorVersion, TimelineId};
use crate::wire::base_backup::BaseBackup;
use crate::wire::codec::{Machine, Message, Outbox};
use crate::wire::command::{self, Command, HistoryFile, IDENTIFY_SYSTEM, Identity, Rows, SlotState};
use crate::wire::error::{ServerError, WireError};
use crate::wire::message::{Status, StreamEvent};
use crate::wire::wal_stream::{WalEvent, WalStream};

/// Which kind of walsender: physical only, or with SQL by the simple protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Physical,
    Database,
}

/// Answer to START_REPLICATION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    Streaming,
    /// The start was the switch point of a historic timeline: no stream, the next timeline at once.
    NextTimeline {
        next: TimelineId,
        switch_point: Lsn,
    },
}

/// What the connection is doing. A command whose future was dropped leaves `Command` behind, and the connection is of no use then.
pub(super) enum Activity {
    Idle,
    Command,
    Stream(WalStream),
    Backup(BaseBackup),
    /// The server ended it, or what it said made no sense.
    Over,
}

/// An authenticated walsender connection.
pub struct Connection {
    pub(super) link: Link,
    scene: Scene,
    pub(super) activity: Activity,
    version: MajorVersion,
    version_num: u32,
    identified: bool,
    /// The way to this very server.
    here: Box<Conninfo>,
    security: Security,
}

/// Limit of the farewell in [`Connection::close`].
const FAREWELL: Duration = Duration::from_secs(1);

impl Connection {
    /// Connects, negotiates TLS, authenticates, checks the server's version. Of several hosts the first that is reached and is what
    /// `target_session_attrs` asks for. `options` are extra startup options such as `-c wal_sender_timeout=10s`.
    pub async fn connect(info: &Conninfo, mode: Mode, options: &str) -> Result<Connection> {
        choose::choose(info, mode, options).await
    }

    /// A session becomes a connection, if the server's version is known. `here` leads to this very server.
    pub(super) async fn begin(session: Session, here: Conninfo) -> Result<Connection> {
        let Session { link, scene, security } = session;
        let text = link.out.parameters.get("server_version").cloned().unwrap_or_default();
        let number = version_number(&text);
        let Some((version, version_num)) = number.and_then(|n| Some((MajorVersion::from_version_num(n)?, n))) else {
            let found = if text.is_empty() { "a server that does not name its version".to_owned() } else { text };
            link.close(FAREWELL).await;
            return Err(Error::new(
                Kind::Version,
                format!("{}: expected PostgreSQL 13 to 18, found {found}", scene.server),
            )
            .hint("use a release of walrecv that knows this version"));
        };
        let here = Box::new(here);
        Ok(Connection {
            link,
            scene,
            activity: Activity::Idle,
            version,
            version_num,
            identified: false,
            here,
            security,
        })
    }

    pub fn version(&self) -> MajorVersion {
        self.version
    }

    /// `server_version_num`-like number (from the ParameterStatus), such as 150018.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    /// The newest value of a parameter that the server reports by itself, such as `in_hot_standby` (14+).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.link.out.parameters.get(name).map(String::as_str)
    }

    /// Which server answered: host, port, the address where the host is a name, and the user.
    pub fn server(&self) -> &str {
        &self.scene.server
    }

    /// A connection string for this very server: the same host at the same address, without a second choice. What must speak with the server of
    /// this connection, such as its sentinel, connects by it. (A proxy or a moving address may still lead elsewhere: compare the identities.)
    pub fn same_server(&self) -> &Conninfo {
        &self.here
    }

    /// Whether the server is in recovery. Physical connections of 13 learn it from `transaction_read_only`, which recovery forces on.
    pub async fn is_standby(&mut self) -> Result<bool> {
        self.standing().await.map(|standing| standing.standby)
    }

    /// What `target_session_attrs` asks about (`fe-connect.c`, `CONNECTION_CHECK_TARGET`); a physical walsender of 13 reports nothing and has no SELECT.
    pub(super) async fn standing(&mut self) -> Result<Standing> {
        let reported = |name| self.parameter(name).map(|value| value == "on");
        if let (Some(standby), Some(read_only)) =
            (reported("in_hot_standby"), reported("default_transaction_read_only"))
        {
            return Ok(Standing { standby, read_only });
        }
        let read_only = self.show("default_transaction_read_only").await? == "on";
        let mut forced = self.show("transaction_read_only").await? == "on";
        if read_only && forced {
            // The default hides what recovery does: one more session, without it.
            let options = "-c default_transaction_read_only=off";
            let mut other = Box::pin(Connection::connect(&self.here, self.scene.mode, options)).await?;
            forced = other.show("transaction_read_only").await? == "on";
            other.close().await;
        }
        Ok(Standing { standby: forced, read_only })
    }

    /// What protects this session.
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.scene.tls
    }

    pub async fn identify_system(&mut self) -> Result<Identity> {
        let answer = self.run(IDENTIFY_SYSTEM, IDENTIFY_SYSTEM).await?;
        self.identified = true;
        self.typed(command::identity(answer))
    }

    pub async fn show(&mut self, name: &str) -> Result<String> {
        let text = self.typed(command::show_text(name))?;
        let answer = self.run("SHOW", &text).await?;
        self.typed(command::setting(answer))
    }

    /// `None` when the server does not have the file (58P01).
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Option<HistoryFile>> {
        const NAME: &str = "TIMELINE_HISTORY";
        match self.try_run(NAME, &command::timeline_history_text(timeline)).await? {
            Ok(answer) => self.typed(command::history_file(timeline, answer)).map(Some),
            Err(error) if error.sqlstate == "58P01" => Ok(None),
            Err(error) => Err(refusal::server(&error, NAME, &self.scene)),
        }
    }

    /// `None` when there is no such slot. 15+: READ_REPLICATION_SLOT; 13/14: only over `Mode::Database` by SQL (pg_replication_slots),
    /// else an error that says so. A logical slot is `Kind::Slot`.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotState>> {
        let text = match (self.version < MajorVersion::V15, self.scene.mode) {
            (false, _) => command::read_slot_text(name),
            (true, Mode::Database) => command::read_slot_sql(name),
            (true, Mode::Physical) => {
                let text =
                    format!("{}: the state of a slot of PostgreSQL {} needs SQL", self.scene.server, self.version);
                return Err(Error::new(Kind::Server, text)
                    .hint("name a database in the connection string, and allow it in pg_hba.conf"));
            }
        };
        let text = self.typed(text)?;
        let answer = self.run("READ_REPLICATION_SLOT", &text).await?;
        match self.typed(command::slot(answer))? {
            None => Ok(None),
            Some(Ok(state)) => Ok(Some(state)),
            Some(Err(kind)) => {
                let text =
                    format!("{}: slot {name:?}: expected a physical slot, found a {kind} one", self.scene.server);
                Err(Error::new(Kind::Slot, text).hint("give walrecv a slot of its own"))
            }
        }
    }

    /// Physical slot, with RESERVE_WAL when `reserve`. An existing one is `Kind::Slot` (SQLSTATE 42710 in the text).
    pub async fn create_slot(&mut self, name: &str, temporary: bool, reserve: bool) -> Result<()> {
        let text = self.typed(command::create_slot_text(name, temporary, reserve))?;
        self.run("CREATE_REPLICATION_SLOT", &text).await.map(|_| ())
    }

    /// A missing slot is `Kind::Slot`; one in use (55006) is transient.
    pub async fn drop_slot(&mut self, name: &str) -> Result<()> {
        let text = self.typed(command::drop_slot_text(name))?;
        self.run("DROP_REPLICATION_SLOT", &text).await.map(|_| ())
    }

    /// Simple-protocol query (`Mode::Database` only): rows of text columns.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        if self.scene.mode == Mode::Physical {
            let text = format!("{}: SQL on a physical replication connection", self.scene.server);
            return Err(Error::new(Kind::Failed, text));
        }
        let answer = self.run("query", sql).await?;
        let text = |value: bytes::Bytes| String::from_utf8_lossy(&value).into_owned();
        let rows = answer.into_iter().flat_map(|set| set.rows);
        Ok(rows.map(|row| row.into_iter().map(|column| column.map(text)).collect()).collect())
    }

    /// Begins a physical stream (IDENTIFY_SYSTEM is sent first where the version needs it). WAL removed (58P01), slot missing (42704) and slot
    /// invalidated are `Kind::Slot`; slot in use (55006) is transient; a start ahead of the server's end or not in its history is `Kind::Diverged`.
    /// Some of these come only after the stream began, from [`Connection::next_event`].
    pub async fn start_replication(&mut self, slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Result<Started> {
        if self.version < MajorVersion::V15 && !self.identified {
            self.identify_system().await?;
        }
        self.idle("START_REPLICATION")?;
        let begun = WalStream::begin(slot, start, timeline, &mut self.link.out);
        self.activity = Activity::Stream(self.typed(begun)?);
        match self.stream_event().await? {
            WalEvent::Started => Ok(Started::Streaming),
            WalEvent::NextTimeline { next, switch_point } => Ok(Started::NextTimeline { next, switch_point }),
            WalEvent::Stream(_) => Err(self.over("an event of the stream before its beginning")),
        }
    }

    /// The next event of the stream. Cancel safe. A server that closes without a word is transient; 57P01 is transient.
    pub async fn next_event(&mut self) -> Result<StreamEvent> {
        match self.stream_event().await? {
            WalEvent::Stream(event) => Ok(event),
            WalEvent::Started | WalEvent::NextTimeline { .. } => Err(self.over("a stream that begins twice")),
        }
    }

    async fn stream_event(&mut self) -> Result<WalEvent> {
        let Activity::Stream(stream) = &mut self.activity else { return Err(self.misuse("no stream is running")) };
        let outcome = self.link.event(stream).await;
        match &outcome {
            Ok(WalEvent::Stream(StreamEvent::Ended { shutdown: true })) => self.activity = Activity::Over,
            Ok(_) if stream.is_done() => self.activity = Activity::Idle,
            Ok(_) => {}
            Err(error) => self.after(error),
        }
        outcome.map_err(|error| self.explain(error, "START_REPLICATION"))
    }

    /// Sends a status update; bounded by `limit` (a full socket buffer must not hang the caller).
    pub async fn send_status(&mut self, status: Status, limit: Duration) -> Result<()> {
        match &self.activity {
            Activity::Stream(stream) if stream.is_streaming() => {}
            // The end of the timeline may overtake a status; it has no addressee then.
            Activity::Stream(_) => return Ok(()),
            _ => return Err(self.misuse("no stream is running")),
        }
        status.write(now(), &mut self.link.out.bytes);
        self.link.send(limit).await.map_err(|error| refusal::lost(error, &self.scene))
    }

    /// Ends the stream from our side with CopyDone, and reads on (discarding WAL) until the server is ready for commands, at most `limit`.
    pub async fn end_stream(&mut self, limit: Duration) -> Result<()> {
        let Activity::Stream(stream) = &mut self.activity else { return Ok(()) };
        stream.end(&mut self.link.out);
        let ended = async {
            loop {
                let event = self.stream_event().await?;
                if let WalEvent::Stream(StreamEvent::Ended { .. } | StreamEvent::EndOfTimeline { .. }) = event {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(limit, ended).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.activity = Activity::Over;
                let text = format!("{}: the server did not end the stream within {limit:?}", self.scene.server);
                Err(Error::new(Kind::Server, text).transient())
            }
        }
    }

    /// Waits on an idle connection until the server ends it; returns the SQLSTATE it gave (57P01 at a shutdown), if any. Cancel safe.
    pub async fn closed(&mut self) -> Option<String> {
        struct Farewell;
        impl Machine for Farewell {
            type Event = String;
            fn take(&mut self, message: Message, _out: &mut Outbox) -> Result<Option<String>, WireError> {
                match message {
                    Message::Error(error) => Ok(Some(error.sqlstate)),
                    message => Err(WireError::OutOfPlace { message: message.name(), state: "idle" }),
                }
            }
        }
        if !matches!(self.activity, Activity::Idle) {
            return None;
        }
        let outcome = self.link.event(&mut Farewell).await;
        self.activity = Activity::Over;
        outcome.ok()
    }

    /// Terminate message and close; best effort.
    pub async fn close(self) {
        self.link.close(FAREWELL).await;
    }

    pub(super) fn idle(&self, command: &str) -> Result<()> {
        match self.activity {
            Activity::Idle => Ok(()),
            Activity::Over => Err(refusal::lost(LinkError::Closed, &self.scene)),
            _ => Err(self.misuse(&format!("{command} on a busy connection"))),
        }
    }

    pub(super) fn misuse(&self, what: &str) -> Error {
        match self.activity {
            Activity::Over => refusal::lost(LinkError::Closed, &self.scene),
            _ => Error::new(Kind::Failed, format!("{}: {what}", self.scene.server)),
        }
    }

    fn over(&mut self, what: &str) -> Error {
        self.activity = Activity::Over;
        Error::new(Kind::Corrupt, format!("{}: {what}", self.scene.server))
    }

    /// What the connection is good for after an error.
    pub(super) fn after(&mut self, error: &LinkError) {
        self.activity = match error {
            LinkError::Wire(WireError::Server { ready: true, .. }) => Activity::Idle,
            _ => Activity::Over,
        };
    }

    pub(super) fn explain(&self, error: LinkError, command: &'static str) -> Error {
        match error {
            LinkError::Wire(WireError::Server { error, .. }) => refusal::server(&error, command, &self.scene),
            LinkError::Misuse(what) => self.misuse(what),
            other => refusal::lost(other, &self.scene),
        }
    }

    pub(super) fn typed<T>(&self, value: Result<T, WireError>) -> Result<T> {
        value.map_err(|error| refusal::lost(LinkError::Wire(error), &self.scene))
    }

    async fn run(&mut self, command: &'static str, text: &str) -> Result<Vec<Rows>> {
        self.try_run(command, text).await?.map_err(|error| refusal::server(&error, command, &self.scene))
    }

    /// Runs a command; the inner error is the server's, after which the connection takes the next command.
    async fn try_run(&mut self, command: &'static str, text: &str) -> Result<Result<Vec<Rows>, Box<ServerError>>> {
        self.idle(command)?;
        let begun = Command::begin(text, &mut self.link.out);
        let mut machine = self.typed(begun)?;
        self.activity = Activity::Command;
        let outcome = self.link.event(&mut machine).await;
        match outcome {
            Ok(rows) => {
                self.activity = Activity::Idle;
                Ok(Ok(rows))
            }
            Err(error) => {
                self.after(&error);
                match error {
                    LinkError::Wire(WireError::Server { error, ready: true }) => Ok(Err(error)),
                    other => Err(self.explain(other, command)),
                }
            }
        }
    }
}

/// `server_version_num` from the text of `server_version`: "15.18 (Debian …)", "18beta1".
fn version_number(text: &str) -> Option<u32> {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let major = digits(text);
    let minor = text.get(major.len()..)?.strip_prefix('.').map(digits).filter(|minor| !minor.is_empty());
    major.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(minor.map_or(Some(0), |minor| minor.parse().ok())?)
}

/// The clock of a status update.
fn now() -> PgTime {
    /// Seconds from 1970 to 2000.
    const EPOCH: i64 = 946_684_800;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    PgTime(i64::try_from(since.as_micros()).unwrap_or(i64::MAX) - EPOCH * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_servers_write_them() {
        for (text, number) in
            [("15.18 (Debian 15.18-1)", 150018), ("18beta1", 180000), ("13.0", 130000), ("9.6.24", 90006)]
        {
            assert_eq!(version_number(text), Some(number), "{text}");
        }
        for text in ["", "devel", "99999999999", "1.99999999999"] {
            assert_eq!(version_number(text), None, "{text}");
        }
    }
}
