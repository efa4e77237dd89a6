//! One server, connected twice: the stream, and the sentinel beside it; with everything that must hold before a byte is asked for.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::ReceiveOptions;
use super::forecast::Outlook;
use super::observe::SlotHealth;
use super::observe::{Observer, ReceiveEvent};
use super::resume::SlotPosition;
use super::sentinel::{self, Second, Sentinel};
use super::slot;
use super::vigil::Vigil;
use crate::error::{Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::{Lsn, MajorVersion, SegmentSize, TimelineHistory, TimelineId};
use crate::wire::command::{HistoryFile, Identity};

/// A walsender whose receiver is gone frees its slot after so long. Statuses go out every second, so nothing else depends on it.
const STARTUP_OPTIONS: &str = "-c wal_sender_timeout=10s";

/// Positions above this are refused: after them there is no room for a segment and what is computed from it, and no real server gets there.
const LAST_POSITION: Lsn = Lsn(u64::MAX - (2 << 30));

/// What is known of a server before streaming, and the way to it.
pub struct Server {
    pub stream: Connection,
    pub sentinel: Sentinel,
    pub identity: Identity,
    pub version: MajorVersion,
    pub segment_size: SegmentSize,
    /// The path to the server's timeline, and its file where the server has one.
    pub history: TimelineHistory,
    pub history_file: Option<HistoryFile>,
    pub slot: SlotPosition,
    /// The connection that can tell where the slot stands could not be opened this time.
    pub unasked: bool,
    /// The slot cannot hold WAL as it is.
    pub unfit: Option<Unfit>,
    /// A temporary slot went with an error of the stream's connection (`WalSndErrorCleanup`).
    pub slot_spent: bool,
    /// Commits wait for this receiver: it is listed in `synchronous_standby_names`, and the server is no standby.
    pub synchronous: bool,
    /// In recovery: what it holds says nothing of its primary.
    pub standby: bool,
    /// It was taken for want of a better one, although so much is stored or was received already.
    pub behind: Option<Ahead>,
}

/// What is stored, or was received, and the server does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ahead {
    pub timeline: TimelineId,
    pub upto: Lsn,
}

/// No question to a server may wait longer: a server that hangs must not hang its receiver.
const ANSWER: Duration = Duration::from_secs(30);
/// How often a receiver that stands by looks whether the slot is free.
const POLL: Duration = Duration::from_secs(1);
/// How often it tells where the slot stands.
const TELL: Duration = Duration::from_secs(10);
/// How often it tries whether it could stream, were the slot free: a line in the server's log where connections are logged.
const TRY: Duration = Duration::from_secs(300);
/// Such a trial takes so long at most.
const TRIAL: Duration = Duration::from_secs(3);
/// How often it looks where the slot stands, where that is all there is.
const GLANCE: Duration = Duration::from_millis(300);

/// A wait for a slot that another receiver uses.
pub struct Waiting {
    /// It was told; until something is streamed it is told once.
    pub told: bool,
    since: Option<Instant>,
    /// The run is to end there.
    until: Option<Lsn>,
    pub vigil: Vigil,
    /// Whether commits wait for the receiver that has it, where that could be asked.
    pub synchronous: Option<bool>,
}

/// A run that is to end waits so long for the slot: longer than a server takes to notice that the host of a receiver is lost (`wal_sender_timeout`).
const TURN: Duration = Duration::from_secs(15);

impl Waiting {
    pub fn new(options: &ReceiveOptions) -> Waiting {
        let vigil = Vigil::new(options.flush_interval);
        Waiting { told: false, since: None, until: options.until, vigil, synchronous: None }
    }

    /// Another connection has the slot; whether that is news. A run that is to end at a position does not wait for ever: whoever has the slot may have it for
    /// years, and nothing that it stores is this run's to report.
    pub fn goes_on(&mut self, slot: &str) -> Result<bool> {
        let lasted = self.since.get_or_insert_with(Instant::now).elapsed();
        match self.until.filter(|_| lasted >= TURN) {
            None => Ok(!std::mem::replace(&mut self.told, true)),
            Some(until) => {
                let text = format!(
                    "another receiver has had slot {slot:?} for {} s, so nothing is received here up to {until}",
                    TURN.as_secs()
                );
                Err(Error::new(Kind::Busy, text).hint(
                    "`walrecv status` on its host says how far that one has stored; end it first, or leave the rest to it",
                ))
            }
        }
    }
}

/// Why a slot is of no use as it is.
#[derive(Debug)]
pub enum Unfit {
    Missing(Error),
    Lost(Error),
}

/// What it takes to reach the server.
pub struct Access<'a> {
    pub info: &'a Conninfo,
    pub slot: Option<&'a str>,
    /// The slot is made on the stream's connection, and goes with it.
    pub temporary: bool,
    /// The slot is to be given up at a size.
    pub gives_up: bool,
    pub observer: &'a Observer,
}

/// Waits for an answer, within a limit.
pub async fn answered<T>(what: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| {
        let text = format!("the server did not answer {what} within {} s", ANSWER.as_secs());
        Err(Error::new(Kind::Server, text).transient())
    })
}

/// Connects, identifies the server and looks at the slot. While another receiver uses that, waits with the second connection alone, without a line in the
/// server's log; where no SQL is allowed, the slot's state comes with the attempt to stream, and where it stands tells when that is worth it.
pub async fn connect(access: &Access<'_>, waiting: &mut Waiting) -> Result<Server> {
    let Access { info, slot, temporary, observer, .. } = *access;
    let (mut second, problem) = match Second::open(info).await {
        Ok(second) => (Some(second), None),
        Err(error) => (None, Some(error)),
    };
    waiting.vigil.possible = false;
    if let (Some(second), Some(name)) = (&mut second, slot.filter(|_| !temporary)) {
        wait_for_slot(second, name, access, waiting).await?;
    }
    // Of several hosts, both connections go to the same one.
    let here = second.as_ref().map_or(info, |second| second.connection.same_server()).clone();
    let mut stream = match Connection::connect(&here, Mode::Physical, STARTUP_OPTIONS).await {
        // There may be room for one connection only.
        Err(error) if error.is_transient() && second.take().is_some() => {
            Connection::connect(&here, Mode::Physical, STARTUP_OPTIONS).await?
        }
        connected => connected?,
    };
    if second.is_none() && problem.is_some() {
        // It may have failed in the middle of a failover, and without SQL much is not known.
        second = Second::open(stream.same_server()).await.ok();
    }
    let identity = answered("IDENTIFY_SYSTEM", stream.identify_system()).await?;
    possible(identity.position)?;
    let size = answered("SHOW", stream.show("wal_segment_size")).await?;
    let segment_size = SegmentSize::from_show(&size)
        .ok_or_else(|| Error::new(Kind::Server, format!("wal_segment_size is {size:?}, expected 1MB to 1GB")))?;
    let version = stream.version();
    observer.tell(ReceiveEvent::Connected {
        server: stream.server().to_owned(),
        version,
        system: identity.system,
        timeline: identity.timeline,
    });
    let unasked = second.is_none() && slot.is_some();
    tell_watching(second.as_ref(), problem, access);
    let (position, unfit) = position(&mut stream, second.as_mut(), slot, temporary).await?;
    let (history, history_file) = history(&mut stream, &identity).await?;
    let here = (stream.same_server().clone(), identity.system);
    let sentinel = Sentinel::watch(here, slot.map(str::to_owned), second, observer.clone());
    let slot = position;
    Ok(Server {
        stream,
        sentinel,
        identity,
        version,
        segment_size,
        history,
        history_file,
        slot,
        unasked,
        unfit,
        slot_spent: false,
        synchronous: false,
        standby: true,
        behind: None,
    })
}

/// Says what will be noticed of the server through the second connection, and what will not.
fn tell_watching(second: Option<&Second>, problem: Option<Error>, access: &Access) {
    let observer = access.observer;
    let Some(second) = second else {
        let why = problem.map_or(String::new(), |problem| format!(": {problem}"));
        return observer.warn(format!("no second connection to notice a shutdown of the server with{why}"));
    };
    observer.tell(ReceiveEvent::Watching { sql: second.sql });
    if access.gives_up && !second.sees_slots() {
        observer.warn(format!(
            "give_up_at has no effect: PostgreSQL {} shows only by SQL what it holds back for the slot (allow the database in pg_hba.conf)",
            second.connection.version()
        ));
    }
}

impl Server {
    /// Whether it was taken although it is on an older timeline than somebody else was.
    pub fn is_outdated(&self) -> bool {
        self.behind.is_some_and(|ahead| ahead.timeline > self.identity.timeline)
    }

    /// 16 and 17 let a lost slot be streamed on, and hold nothing back for it (`ReplicationSlotsComputeRequiredLSN`).
    pub fn streams_on_lost_slots(&self) -> bool {
        (MajorVersion::V16..=MajorVersion::V17).contains(&self.version)
    }

    /// Looks at the slot once more, now that it is in use, before the server is told anything: it may have been lost between the first look and the start of the
    /// stream, and the first word would make it look as if it held WAL. Once in use it cannot be lost without an end of the stream.
    pub async fn demand_slot(&mut self, name: &str) -> Result<()> {
        if !self.streams_on_lost_slots() || self.unasked {
            return Ok(());
        }
        let held = matches!(self.slot, SlotPosition::At(_));
        match self.sentinel.slot_now().await? {
            Some(row) if row.is_lost() || held && row.restart_lsn.is_none() => Err(slot::changed(name, "it is lost")),
            Some(_) => Ok(()),
            None => Err(slot::changed(name, "it is gone")),
        }
    }

    /// Asks whether the server is in recovery, and whether commits wait for `receiver`: before each stream, since a standby may have been promoted.
    pub async fn look_at_role(&mut self, receiver: &str) -> Result<()> {
        // 13 has no setting that says just that; a primary where sessions are read-only by default is taken for a standby, which costs its heartbeats.
        let setting = if self.version < MajorVersion::V14 { "transaction_read_only" } else { "in_hot_standby" };
        self.standby = answered("SHOW", self.stream.show(setting)).await? == "on";
        let names = answered("SHOW", self.stream.show("synchronous_standby_names")).await?;
        // Nobody waits for the receivers of a standby, whatever it is set to (`SyncRepGetStandbyPriority`).
        self.synchronous = !self.standby && sentinel::lists(&names, receiver);
        Ok(())
    }

    /// Where a slot that was just created stands.
    pub async fn look_at_new_slot(&mut self, name: &str) -> Result<()> {
        let found = if self.version >= MajorVersion::V15 {
            by_command(&mut self.stream, name).await?
        } else {
            let mut second = Second::open(self.stream.same_server()).await?;
            if second.sql { by_sql(&mut second.connection, name).await? } else { Found::Fit(SlotPosition::Unknown) }
        };
        match found {
            // It was created a moment ago: nothing is lost yet.
            Found::Fit(SlotPosition::Unreserved { .. }) => self.slot = SlotPosition::Unreserved { certain: true },
            Found::Fit(position) => self.slot = position,
            Found::Unfit(Unfit::Missing(error) | Unfit::Lost(error)) => return Err(error),
        }
        Ok(())
    }
}

/// What is known of a slot.
enum Found {
    Fit(SlotPosition),
    Unfit(Unfit),
}

/// Where the slot stands, by the best means that there is.
async fn position(
    stream: &mut Connection,
    second: Option<&mut Second>,
    slot: Option<&str>,
    temporary: bool,
) -> Result<(SlotPosition, Option<Unfit>)> {
    let Some(name) = slot else { return Ok((SlotPosition::NoSlot, None)) };
    if temporary {
        answered("CREATE_REPLICATION_SLOT", stream.create_slot(name, true, true)).await?;
        return Ok((of_temporary(stream, second, name).await?, None));
    }
    let found = match second.filter(|second| second.sql) {
        Some(second) => by_sql(&mut second.connection, name).await?,
        None => by_command(stream, name).await?,
    };
    match found {
        Found::Unfit(unfit) => Ok((SlotPosition::Unknown, Some(unfit))),
        Found::Fit(position) => {
            if let SlotPosition::At(lsn) = position {
                possible(lsn)?;
            }
            Ok((position, None))
        }
    }
}

/// Where a temporary slot stands that this connection just made. It is in use from its first moment on, by us.
async fn of_temporary(stream: &mut Connection, second: Option<&mut Second>, name: &str) -> Result<SlotPosition> {
    let restart_lsn = match second.filter(|second| second.sql) {
        Some(second) => {
            answered("pg_replication_slots", slot::read(&mut second.connection, name)).await?.map(|row| row.restart_lsn)
        }
        None if stream.version() < MajorVersion::V15 => return Ok(SlotPosition::Unknown),
        None => answered("READ_REPLICATION_SLOT", stream.read_slot(name)).await?.map(|state| state.restart_lsn),
    };
    match restart_lsn.flatten() {
        Some(lsn) => possible(lsn).map(|()| SlotPosition::At(lsn)),
        // Of several hosts behind one address the second connection may have reached another.
        None => Err(slot::changed(name, "it was made a moment ago and is not to be seen")),
    }
}

async fn by_sql(connection: &mut Connection, name: &str) -> Result<Found> {
    Ok(match answered("pg_replication_slots", slot::read(connection, name)).await? {
        None => Found::Unfit(Unfit::Missing(slot::missing(name))),
        Some(row) if row.is_lost() => Found::Unfit(Unfit::Lost(slot::lost(name, Some(&row)))),
        Some(row) if row.active_pid.is_some() => return Err(slot::in_use(name)),
        Some(row) => Found::Fit(row.restart_lsn.map_or(SlotPosition::Unreserved { certain: true }, SlotPosition::At)),
    })
}

async fn by_command(stream: &mut Connection, name: &str) -> Result<Found> {
    if stream.version() < MajorVersion::V15 {
        return Ok(Found::Fit(SlotPosition::Unknown));
    }
    Ok(match answered("READ_REPLICATION_SLOT", stream.read_slot(name)).await? {
        None => Found::Unfit(Unfit::Missing(slot::missing(name))),
        Some(state) => {
            Found::Fit(state.restart_lsn.map_or(SlotPosition::Unreserved { certain: false }, SlotPosition::At))
        }
    })
}

/// Returns once the slot is free, as far as this connection can tell without a line in the server's log.
async fn wait_for_slot(second: &mut Second, name: &str, access: &Access<'_>, waiting: &mut Waiting) -> Result<()> {
    if second.sql {
        return stand_by(second, name, access, waiting).await;
    }
    waiting.vigil.possible = second.connection.version() >= MajorVersion::V15;
    if waiting.vigil.possible && waiting.told {
        watch_slot(second, name, access, waiting).await?;
    }
    Ok(())
}

/// Returns once no other connection uses the slot.
async fn stand_by(second: &mut Second, name: &str, access: &Access<'_>, waiting: &mut Waiting) -> Result<()> {
    // After a lost connection it is said again: whoever watches was told of the loss.
    let (mut said, mut told, mut trials) = (false, None, Trials::default());
    loop {
        let row = answered("pg_replication_slots", slot::read(&mut second.connection, name)).await?;
        let Some((row, holder)) = row.and_then(|row| row.active_pid.map(|holder| (row, holder))) else {
            return Ok(());
        };
        waiting.goes_on(name)?;
        let time = is_time(&mut told, TELL);
        if time {
            look_who_waits(second, access, waiting).await?;
        }
        if !std::mem::replace(&mut said, true) {
            let (slot, synchronous) = (name.to_owned(), waiting.synchronous);
            access.observer.tell(ReceiveEvent::StandingBy { slot, holder: Some(holder), synchronous });
        }
        if time {
            access.observer.tell(ReceiveEvent::Slot(Outlook { row, rate: None }.health(Instant::now())));
        }
        trials.begin_if_due(second.connection.same_server());
        // However slow the server is to answer a trial: the slot may be free meanwhile.
        if let Ok(refusal) = tokio::time::timeout(POLL, trials.refusal()).await {
            return Err(refusal);
        }
    }
}

/// Trials whether the server would let this receiver stream.
#[derive(Default)]
struct Trials {
    going: Option<BoxFuture<'static, Result<()>>>,
    begun: Option<Instant>,
    /// Whether one has worked, and whether the last one was refused.
    worked: bool,
    refused: bool,
}

impl Trials {
    fn begin_if_due(&mut self, here: &Conninfo) {
        if self.going.is_none() && is_time(&mut self.begun, TRY) {
            self.going = Some(try_stream(here.clone()).boxed());
        }
    }

    /// Goes on with the one that has begun; returns only when there is no more to be hoped for. Cancel safe.
    async fn refusal(&mut self) -> Error {
        if let Some(going) = &mut self.going {
            let tried = going.await;
            self.going = None;
            match tried {
                Ok(()) => (self.worked, self.refused) = (true, false),
                // What worked once may fail for a while: who checks passwords is away, a file is being changed.
                Err(error) if self.worked && !self.refused => {
                    tracing::warn!("{error}: it is tried again in {} minutes", TRY.as_secs() / 60);
                    self.refused = true;
                }
                Err(error) => return error,
            }
        }
        std::future::pending().await
    }
}

/// Asks whether commits wait for the receiver that has the slot, and tells it where that has changed.
async fn look_who_waits(second: &mut Second, access: &Access<'_>, waiting: &mut Waiting) -> Result<()> {
    let names = second.synchronous_names().await?;
    let listed = sentinel::lists(&names, access.info.application_name());
    if waiting.synchronous.replace(listed).is_some_and(|before| before != listed) {
        access.observer.tell(ReceiveEvent::Synchronous(listed));
    }
    Ok(())
}

/// Whether the server would let this receiver stream: pg_hba.conf has lines of its own for that, and who is refused stands by for nothing. Whatever may pass by
/// itself is left to the takeover. Where there is no SQL, the second connection is of that kind already.
async fn try_stream(here: Conninfo) -> Result<()> {
    match tokio::time::timeout(TRIAL, Connection::connect(&here, Mode::Physical, STARTUP_OPTIONS)).await {
        Ok(Ok(connection)) => {
            let _ = tokio::time::timeout(TRIAL, connection.close()).await;
            Ok(())
        }
        Ok(Err(error)) if !error.is_transient() => {
            Err(error.context("it could not take over from the receiver that has the slot"))
        }
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Whether something is due that is done so often; if so, it counts as done.
fn is_time(told: &mut Option<Instant>, often: Duration) -> bool {
    let now = Instant::now();
    let due = told.is_none_or(|told| now.saturating_duration_since(told) >= often);
    if due {
        *told = Some(now);
    }
    due
}

/// Returns once an attempt to stream is worth it: the slot stands still, or is gone.
async fn watch_slot(second: &mut Second, name: &str, access: &Access<'_>, waiting: &mut Waiting) -> Result<()> {
    let mut told = None;
    loop {
        let state = answered("READ_REPLICATION_SLOT", second.connection.read_slot(name)).await?;
        let Some(at) = state.and_then(|state| state.restart_lsn) else { return Ok(()) };
        if is_time(&mut told, TELL) {
            access.observer.tell(ReceiveEvent::Slot(SlotHealth::at(at)));
            look_who_waits(second, access, waiting).await?;
        }
        let end = answered("IDENTIFY_SYSTEM", second.connection.identify_system()).await?.position;
        if waiting.vigil.look(at, end, Instant::now()) {
            return Ok(());
        }
        waiting.goes_on(name)?;
        tokio::time::sleep(GLANCE).await;
    }
}

fn possible(lsn: Lsn) -> Result<()> {
    if lsn <= LAST_POSITION {
        return Ok(());
    }
    Err(Error::new(Kind::Server, format!("the server says that it is at {lsn}, which is no position of a real server"))
        .hint("Check the connection string: whatever answers there is no PostgreSQL server."))
}

/// The path to the server's timeline: its history file, which timeline 1 and some copied servers do not have.
async fn history(stream: &mut Connection, identity: &Identity) -> Result<(TimelineHistory, Option<HistoryFile>)> {
    let timeline = identity.timeline;
    let file = match timeline.0 {
        0 | 1 => None,
        _ => answered("TIMELINE_HISTORY", stream.timeline_history(timeline)).await?,
    };
    let history = match &file {
        Some(file) => parse_history(timeline, &file.content)?,
        None => TimelineHistory::root(timeline),
    };
    Ok((history, file))
}

/// A history file as the server sent it.
pub fn parse_history(timeline: TimelineId, content: &[u8]) -> Result<TimelineHistory> {
    TimelineHistory::parse(timeline, content)
        .map_err(|e| Error::new(Kind::Corrupt, "the server's history file is invalid").caused_by(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_at_the_end_of_the_number_range_is_refused() {
        assert!(possible(Lsn(0x16_B374_D848)).is_ok());
        assert_eq!(possible(Lsn(u64::MAX)).unwrap_err().kind(), Kind::Server);
    }
}
