//! One server, connected twice: the stream, and the sentinel beside it; with everything that must hold before a byte is asked for.

use super::observe::{Observer, ReceiveEvent};
use super::resume::SlotPosition;
use super::sentinel::{self, Sentinel};
use crate::error::{Context, Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::{Lsn, MajorVersion, SegmentSize, TimelineHistory};
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
    /// Listed in `synchronous_standby_names`.
    pub synchronous: bool,
}

/// Connects, identifies the server and looks at the slot.
pub async fn connect(info: &Conninfo, slot: Option<&str>, observer: &Observer) -> Result<Server> {
    let mut stream = Connection::connect(info, Mode::Physical, STARTUP_OPTIONS).await?;
    let identity = stream.identify_system().await?;
    possible(identity.position)?;
    let size = stream.show("wal_segment_size").await?;
    let segment_size = SegmentSize::from_show(&size)
        .ok_or_else(|| Error::new(Kind::Server, format!("wal_segment_size is {size:?}, expected 1MB to 1GB")))?;
    let version = stream.version();
    let second = sentinel::open(stream.same_server()).await;
    let (mut second, sql) = match second {
        Ok((connection, mode)) => (Some(connection), mode == Mode::Database),
        Err(error) => {
            observer.warn(format!("no second connection to notice a shutdown of the server with: {error}"));
            (None, false)
        }
    };
    observer.tell(ReceiveEvent::Connected {
        server: stream.server().to_owned(),
        version,
        system: identity.system,
        timeline: identity.timeline,
    });
    observer.tell(ReceiveEvent::Watching { sql });
    let slot = match slot {
        None => SlotPosition::NoSlot,
        Some(name) => match second.as_mut().filter(|_| sql) {
            Some(connection) => slot_by_sql(connection, name).await?,
            None => slot_by_command(&mut stream, name).await?,
        },
    };
    if let SlotPosition::At(lsn) = slot {
        possible(lsn)?;
    }
    let names = stream.show("synchronous_standby_names").await?;
    let synchronous = sentinel::lists(&names, info.application_name());
    let (history, history_file) = history(&mut stream, &identity).await?;
    let sentinel = Sentinel::watch(stream.same_server().clone(), second, observer.clone());
    Ok(Server { stream, sentinel, identity, version, segment_size, history, history_file, slot, synchronous })
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
    let file = if timeline.0 > 1 { stream.timeline_history(timeline).await? } else { None };
    let history = match &file {
        Some(file) => parse_history(timeline, &file.content)?,
        None => TimelineHistory::root(timeline),
    };
    Ok((history, file))
}

/// A history file as the server sent it.
pub fn parse_history(timeline: crate::pg::TimelineId, content: &[u8]) -> Result<TimelineHistory> {
    TimelineHistory::parse(timeline, content)
        .map_err(|e| Error::new(Kind::Corrupt, "the server's history file is invalid").caused_by(e))
}

async fn slot_by_sql(connection: &mut Connection, name: &str) -> Result<SlotPosition> {
    let sql = format!(
        "SELECT slot_type, restart_lsn, wal_status, active FROM pg_catalog.pg_replication_slots WHERE slot_name = '{}'",
        name.replace('\'', "''")
    );
    let rows = connection.query(&sql).await.context("cannot read pg_replication_slots")?;
    let Some(row) = rows.first() else { return Err(missing(name)) };
    let column = |index: usize| row.get(index).and_then(Option::as_deref);
    if column(0) != Some("physical") {
        return Err(Error::new(Kind::Slot, format!("slot {name:?} is not a physical one"))
            .hint("Give walrecv a slot of its own: walrecv slot create."));
    }
    if column(2) == Some("lost") {
        return Err(lost(name));
    }
    if column(3) == Some("t") {
        return Err(Error::new(Kind::Slot, format!("slot {name:?} is in use by another connection")).transient());
    }
    match column(1).map(str::parse::<Lsn>) {
        None => Ok(SlotPosition::Unreserved),
        Some(Ok(lsn)) => Ok(SlotPosition::At(lsn)),
        Some(Err(error)) => Err(Error::new(Kind::Server, "restart_lsn cannot be read").caused_by(error)),
    }
}

async fn slot_by_command(stream: &mut Connection, name: &str) -> Result<SlotPosition> {
    if stream.version() < MajorVersion::V15 {
        return Ok(SlotPosition::Unknown);
    }
    let state = stream.read_slot(name).await?.ok_or_else(|| missing(name))?;
    Ok(state.restart_lsn.map_or(SlotPosition::Unreserved, SlotPosition::At))
}

fn missing(name: &str) -> Error {
    Error::new(Kind::Slot, format!("replication slot {name:?} does not exist"))
        .hint("Create it with: walrecv slot create.")
}

/// A slot that no longer holds its WAL. PostgreSQL 16 and 17 would stream on it and retain nothing.
pub fn lost(name: &str) -> Error {
    Error::new(Kind::Slot, format!("replication slot {name:?} has lost the WAL it held"))
        .hint("Drop it and create it anew, then go on under a new cluster name (docs/guide/restoring.md, After a gap).")
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
