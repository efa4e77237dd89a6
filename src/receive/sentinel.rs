//! The second connection: idle, so that a shutdown of the server shows on it at once, and the place for SQL where that is allowed.
//!
//! A server that shuts down ends idle walsenders with 57P01 immediately (`HandleWalSndInitStopping`), while a stream that lags is told nothing and would be
//! waited for without limit (`WalSndLoop`). An ordinary SQL connection would be wrong here: a smart shutdown waits for it.
//!
//! Once a minute it looks at what may have changed: the list of synchronous standbys, and what the server holds back for the slot.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::forecast::{Outlook, Pace};
use super::observe::{Observer, ReceiveEvent};
use super::server::answered;
use super::slot::{self, SlotRow};
use crate::backoff::Backoff;
use crate::error::{Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::{MajorVersion, SystemIdentifier};

/// How often the server's settings and the slot are looked at again.
const LOOK: Duration = Duration::from_secs(60);
/// The first look comes sooner, so that the pace of the server is known soon.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// While nothing is streamed, the slot only grows.
const LOOK_AWAY: Duration = Duration::from_secs(5);
/// A stream that has begun waits so long for a look at the slot: less than half of what its server waits for a word (`wal_sender_timeout`).
const SLOT_NOW: Duration = Duration::from_secs(4);
/// SQLSTATE `admin_shutdown`.
const ADMIN_SHUTDOWN: &str = "57P01";
/// SQLSTATE `cannot_connect_now`.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// What the second connection noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The server is shutting down, or does not let the second connection in again.
    Stopping,
    /// The server lets nobody in any more: it is going, or will be once its clients have gone (a smart stop).
    Closed,
    /// Whether commits wait for this receiver: see [`Second::waits_for`].
    Synchronous(bool),
    /// What the server holds back for the slot.
    Slot(Outlook),
}

/// The second connection, and what it is good for.
pub struct Second {
    pub connection: Connection,
    /// SQL is allowed on it.
    pub sql: bool,
}

impl Second {
    /// Opens it: with SQL where pg_hba.conf and the database allow it, else physical.
    pub async fn open(info: &Conninfo) -> Result<Second> {
        match Connection::connect(info, Mode::Database, "").await {
            Ok(connection) => Ok(Second { connection, sql: true }),
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(Second { connection: Connection::connect(info, Mode::Physical, "").await?, sql: false }),
        }
    }

    /// Whether this connection can see where a slot stands.
    pub fn sees_slots(&self) -> bool {
        self.sql || self.connection.version() >= MajorVersion::V15
    }

    /// What `synchronous_standby_names` says, where commits of this server wait for those that it lists. A standby's own value means nothing: its receivers
    /// are asynchronous (`SyncRepGetStandbyPriority`).
    pub async fn synchronous_names(&mut self) -> Result<String> {
        let names = answered("SHOW", self.connection.show("synchronous_standby_names")).await?;
        let standby = answered("SHOW", self.connection.is_standby()).await?;
        Ok(if standby { String::new() } else { names })
    }

    /// What this connection can see of the slot; `None`: there is none of that name. 13 and 14 without SQL show nothing, which is an error.
    pub async fn state(&mut self, name: &str) -> Result<Option<SlotRow>> {
        if self.sql {
            return answered("pg_replication_slots", slot::read(&mut self.connection, name)).await;
        }
        let Some(state) = answered("READ_REPLICATION_SLOT", self.connection.read_slot(name)).await? else {
            return Ok(None);
        };
        let current = answered("IDENTIFY_SYSTEM", self.connection.identify_system()).await?.position;
        Ok(Some(SlotRow { restart_lsn: state.restart_lsn, current: Some(current), ..SlotRow::default() }))
    }
}

/// A server that streams is not starting up: where it refuses like that, it is closed.
fn is_closed(error: &Error) -> bool {
    error.sqlstate() == Some(CANNOT_CONNECT_NOW)
}

/// A watched second connection; it is closed when this is dropped.
pub struct Sentinel {
    /// The way to the server that is watched, and which system that is.
    pub server: (Conninfo, SystemIdentifier),
    /// Whether commits wait for this receiver, once a sign has said so.
    pub synchronous: Option<bool>,
    signs: mpsc::UnboundedReceiver<Sign>,
    questions: mpsc::UnboundedSender<oneshot::Sender<Option<SlotRow>>>,
    away: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Sentinel {
    /// The next sign. Never returns once there can be none. Cancel safe.
    pub async fn next(&mut self) -> Sign {
        match self.signs.recv().await {
            Some(sign) => self.seen(sign),
            None => std::future::pending().await,
        }
    }

    fn seen(&mut self, sign: Sign) -> Sign {
        if let Sign::Synchronous(listed) = sign {
            self.synchronous = Some(listed);
        }
        sign
    }

    /// The newest of the signs that wait, once there is one. Cancel safe.
    pub async fn newest(&mut self) -> Sign {
        let mut sign = self.next().await;
        while let Ok(later) = self.signs.try_recv() {
            sign = self.seen(later);
        }
        sign
    }

    /// Watches `server`, through `second`; without that, tries to open it from time to time.
    pub fn watch(
        server: (Conninfo, SystemIdentifier),
        slot: Option<String>,
        second: Option<Second>,
        observer: Observer,
    ) -> Sentinel {
        let info = server.0.clone();
        let (out, signs) = mpsc::unbounded_channel();
        let (questions, asked) = mpsc::unbounded_channel();
        let (away, is_away) = watch::channel(false);
        let (pace, last) = (Pace::default(), Notes::default());
        let watcher = Watcher { info, slot, out, asked, is_away, observer, pace, last };
        let task = tokio::spawn(watcher.run(second));
        Sentinel { server, synchronous: None, signs, questions, away, task }
    }

    /// The slot as it is now; `None`: there is none. A server that does not say so soon is an error that may pass.
    pub async fn slot_now(&self) -> Result<Option<SlotRow>> {
        let (answer, row) = oneshot::channel();
        let _ = self.questions.send(answer);
        let answered = tokio::time::timeout(SLOT_NOW, row).await;
        answered.ok().and_then(|row| row.ok()).ok_or_else(|| {
            Error::new(Kind::Server, "the second connection does not tell whether the slot still holds WAL").transient()
        })
    }

    /// The stream was left: looks more often from now on.
    pub fn left(&self) {
        self.away.send_replace(true);
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was said, so that it is said once.
#[derive(Default)]
struct Notes {
    caught_by_star: bool,
    holds_logical_slots_up: bool,
    unanswered: bool,
}

struct Watcher {
    info: Conninfo,
    slot: Option<String>,
    out: mpsc::UnboundedSender<Sign>,
    asked: mpsc::UnboundedReceiver<oneshot::Sender<Option<SlotRow>>>,
    is_away: watch::Receiver<bool>,
    observer: Observer,
    pace: Pace,
    last: Notes,
}

impl Watcher {
    async fn run(mut self, mut second: Option<Second>) {
        let seed = getrandom::u64().unwrap_or_default();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10), seed);
        while !self.out.is_closed() {
            let Some(mut current) = second.take() else {
                tokio::time::sleep(backoff.next_delay()).await;
                match Second::open(&self.info).await {
                    Ok(opened) => second = Some(opened),
                    Err(error) if is_closed(&error) => _ = self.out.send(Sign::Closed),
                    Err(_) => {}
                }
                continue;
            };
            backoff.reset();
            let code = self.watch(&mut current).await;
            if code.as_deref() != Some(ADMIN_SHUTDOWN) {
                match Second::open(&self.info).await {
                    Ok(opened) => {
                        second = Some(opened);
                        continue;
                    }
                    Err(error) if is_closed(&error) => {
                        let _ = self.out.send(Sign::Closed);
                        continue;
                    }
                    // A server that ended the connection otherwise and cannot be reached again may be going too: leaving costs one reconnect, staying may
                    // cost it its shutdown.
                    Err(_) => {}
                }
            }
            let _ = self.out.send(Sign::Stopping);
            self.observer.tell(ReceiveEvent::ServerStopping);
        }
    }

    /// Until the connection ends; returns the SQLSTATE that came with the end.
    async fn watch(&mut self, second: &mut Second) -> Option<String> {
        let mut pause = FIRST_LOOK;
        let mut looked = self.look_at_slot(second).await;
        loop {
            self.note(looked);
            // After an error that ended the connection this returns at once; after any other one the next look may go better.
            looked = tokio::select! {
                code = second.connection.closed() => return code,
                () = tokio::time::sleep(pause) => self.look(second).await,
                Some(answer) = self.asked.recv() => self.answer(second, answer).await,
                Ok(()) = self.is_away.changed() => Ok(()),
            };
            pause = if *self.is_away.borrow() { LOOK_AWAY } else { LOOK };
        }
    }

    async fn answer(&mut self, second: &mut Second, answer: oneshot::Sender<Option<SlotRow>>) -> Result<()> {
        let row = second.state(self.slot.as_deref().unwrap_or_default()).await?;
        // Who asked may have left meanwhile.
        let _ = answer.send(row);
        Ok(())
    }

    /// Questions that the server refuses are told once, until one is answered.
    fn note(&mut self, looked: Result<()>) {
        let failed = looked.as_ref().err().filter(|error| !error.is_transient());
        let told = std::mem::replace(&mut self.last.unanswered, failed.is_some());
        if let Some(error) = failed.filter(|_| !told) {
            self.observer.warn(format!("the server's settings and the slot cannot be looked at: {error}"));
        }
    }

    async fn look(&mut self, second: &mut Second) -> Result<()> {
        let names = second.synchronous_names().await?;
        let listed = lists(&names, self.info.application_name());
        let _ = self.out.send(Sign::Synchronous(listed));
        if by_star(&names, self.info.application_name()) && !std::mem::replace(&mut self.last.caught_by_star, true) {
            self.observer.warn(star_warning(&names));
        }
        if second.connection.version() >= MajorVersion::V17 {
            let names = answered("SHOW", second.connection.show("synchronized_standby_slots")).await?;
            let named = self.slot.as_deref().is_some_and(|slot| lists(&names, slot));
            if named && !std::mem::replace(&mut self.last.holds_logical_slots_up, true) {
                self.observer.warn(
                    "synchronized_standby_slots names this slot: logical failover slots of the server send nothing that is not in the repository yet",
                );
            }
        }
        self.look_at_slot(second).await
    }

    async fn look_at_slot(&mut self, second: &mut Second) -> Result<()> {
        let Some(name) = &self.slot else { return Ok(()) };
        if !second.sees_slots() {
            return Ok(());
        }
        let Some(row) = second.state(name).await? else { return Ok(()) };
        if let Some(current) = row.current {
            self.pace.look(Instant::now(), current);
        }
        let outlook = Outlook { row, rate: self.pace.rate() };
        self.observer.tell(ReceiveEvent::Slot(outlook.health(Instant::now())));
        let _ = self.out.send(Sign::Slot(outlook));
        Ok(())
    }
}

/// Whether a `synchronous_standby_names` value names `standby`: in a list with or without FIRST or ANY, in any case, or by `*` (`SyncRepGetStandbyPriority`).
pub fn lists(names: &str, standby: &str) -> bool {
    members(names).any(|name| name == "*" || plain(name).eq_ignore_ascii_case(standby))
}

/// Whether only a `*` chooses `standby`, which may be an accident.
pub fn by_star(names: &str, standby: &str) -> bool {
    let by_name = || members(names).any(|name| plain(name).eq_ignore_ascii_case(standby));
    members(names).any(|name| name == "*") && !by_name()
}

/// What to say of [`by_star`].
pub fn star_warning(names: &str) -> String {
    format!(
        "synchronous_standby_names = '{names}' chooses walrecv by its '*': commits may wait for the repository although nobody named it; \
         name the standbys that shall count, such as ANY 1 (walrecv, s2)"
    )
}

fn members(names: &str) -> impl Iterator<Item = &str> {
    let inner = match (names.find('('), names.rfind(')')) {
        (Some(open), Some(close)) if open < close => names.get(open + 1..close).unwrap_or(names),
        _ => names,
    };
    inner.split(',').map(str::trim)
}

fn plain(name: &str) -> String {
    let quoted = name.strip_prefix('"').and_then(|n| n.strip_suffix('"'));
    quoted.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""))
}

#[cfg(test)]
mod tests {
    use super::{by_star, is_closed, lists};
    use crate::error::{Error, Kind};

    /// What a server says may have anything in it: a translation, or a name.
    #[test]
    fn a_closed_server_is_known_by_its_sqlstate() {
        let refused = |state: &str, text: &str| Error::new(Kind::Server, text).of_sqlstate(state);
        assert!(is_closed(&refused("57P03", "das Datenbanksystem fährt herunter")));
        assert!(!is_closed(&refused("42704", "role \"FATAL 57P03: \" does not exist")));
        assert!(!is_closed(&Error::new(Kind::Server, "x: login: FATAL 57P03: the database system is shutting down")));
    }

    #[test]
    fn finds_itself_among_the_synchronous_standbys() {
        for names in ["walrecv", "a, WalRecv", "FIRST 1 (walrecv, b)", "any 2 (a,\"walrecv\")", "*", "2 (x, *)"] {
            assert!(lists(names, "walrecv"), "{names}");
        }
        for names in ["", "walrecv2", "FIRST 1 (a, b)", "\"wal recv\"", "ANY 1 (walrecv_b)"] {
            assert!(!lists(names, "walrecv"), "{names}");
        }
    }

    #[test]
    fn a_star_that_catches_walrecv_is_told_from_its_name() {
        assert!(by_star("*", "walrecv") && by_star("FIRST 1 (s1, *)", "walrecv"));
        assert!(!by_star("ANY 1 (walrecv, *)", "walrecv") && !by_star("walrecv", "walrecv") && !by_star("", "walrecv"));
    }
}
