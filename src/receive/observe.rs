//! What a run tells whoever watches it.

use std::sync::Arc;

use tokio::time::Instant;

use crate::pg::{Lsn, MajorVersion, SegmentName, SystemIdentifier, TimelineId};
use crate::seal::content::event::{Hole, MinimalWal};
use crate::stats::StreamStats;

/// The slot as the server shows it (`pg_replication_slots`), asked through the second connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHealth {
    pub restart_lsn: Option<Lsn>,
    /// Bytes of WAL that the slot keeps the server from removing.
    pub retained_bytes: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before the slot is in danger of being lost; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub limit: Option<u64>,
    /// At the present rate the limit is reached after so many seconds; `None` where it is not coming nearer.
    pub full_in_seconds: Option<u64>,
    /// That rate: WAL that the server writes; `None` before the second look.
    pub wal_bytes_per_second: Option<u64>,
    pub polled_at: Instant,
}

impl SlotHealth {
    /// Where nothing but the position can be asked.
    pub fn at(restart_lsn: Lsn) -> SlotHealth {
        SlotHealth {
            restart_lsn: Some(restart_lsn),
            retained_bytes: None,
            wal_status: None,
            safe_wal_size: None,
            limit: None,
            full_in_seconds: None,
            wal_bytes_per_second: None,
            polled_at: Instant::now(),
        }
    }
}

/// A server that is streamed for want of a better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lags {
    /// So much is stored, or was received, already: of this timeline, which may be newer than the server's.
    pub timeline: TimelineId,
    pub upto: Lsn,
    /// Why another host that may have it is not streamed.
    pub instead_of: Option<String>,
}

/// Something that a person, a log or a metric may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiveEvent {
    Connected {
        server: String,
        version: MajorVersion,
        system: SystemIdentifier,
        timeline: TimelineId,
    },
    /// `sql`: the second connection can ask for the state of the slot.
    Watching {
        sql: bool,
    },
    /// Streaming begins, or goes on after a reconnect.
    Streaming {
        timeline: TimelineId,
        from: Lsn,
        slot: Option<String>,
        /// The server is in recovery: what is told of it is as of the standby.
        standby: bool,
        /// It is behind what is stored, or on an older timeline: until it has caught up nothing new is.
        lags: Option<Lags>,
    },
    /// Another receiver has the slot: this one waits for it, with one idle connection. Told once, until it streams.
    StandingBy {
        slot: String,
        /// The server's process that uses the slot; `None` where no SQL is allowed.
        holder: Option<u32>,
        /// Whether the server lists this receiver, so that its commits wait for the one that has the slot; `None` where that could not be asked.
        synchronous: Option<bool>,
    },
    /// All WAL of the timeline up to `durable` is in the repository, and up to `verified` every record was checked; the server has reported WAL up to
    /// `server_end`. At most once a second.
    Durable {
        timeline: TimelineId,
        durable: Lsn,
        verified: Lsn,
        server_end: Lsn,
    },
    /// The slot was made, with reserved WAL.
    SlotCreated {
        slot: String,
        reason: String,
    },
    /// So many bytes waited on the slot while nothing could be stored that it was dropped and made anew.
    GaveUp {
        slot: String,
        retained: u64,
    },
    /// WAL that was never received is gone for good; streaming goes on behind it, and a new base backup is needed.
    Hole(Hole),
    /// The server went on under `wal_level = minimal`: nothing is restored past that, and a new base backup is needed. Told by the run that noted it.
    MinimalWal(MinimalWal),
    SegmentStored {
        segment: SegmentName,
        stored_bytes: u64,
    },
    /// What a spool had of this segment beyond the repository, up to `upto`, was put there.
    Recovered {
        segment: SegmentName,
        upto: Lsn,
    },
    HistoryStored {
        timeline: TimelineId,
    },
    TimelineSwitch {
        from: TimelineId,
        to: TimelineId,
        at: Lsn,
    },
    /// Listed in `synchronous_standby_names`: every commit is answered as soon as it is durable. While standing by it is told when it changes.
    Synchronous(bool),
    /// What the slot holds. Told whenever it was asked for.
    Slot(SlotHealth),
    ServerStopping,
    /// The connection ended; the next attempt is made after `wait_ms`.
    Reconnecting {
        why: String,
        wait_ms: u64,
    },
    /// Nothing became durable for too long: disconnected until something can be put.
    Stalled {
        behind: u64,
    },
    Resumed,
    /// WAL that fails its checks; the segment is received once more.
    CorruptWal {
        problem: String,
    },
    /// Goes on, but someone should look.
    Warning(String),
    /// `behind`: bytes that the server had and the repository has not.
    Stopped {
        timeline: TimelineId,
        durable: Lsn,
        behind: u64,
    },
}

/// Where events go. Called from several tasks, so it must not wait.
#[derive(Clone)]
pub struct Observer {
    tell: Arc<dyn Fn(ReceiveEvent) + Send + Sync>,
    stats: Arc<StreamStats>,
}

impl Observer {
    pub fn new(observer: impl Fn(ReceiveEvent) + Send + Sync + 'static) -> Observer {
        Observer { tell: Arc::new(observer), stats: Arc::default() }
    }

    /// As [`Observer::new`], with numbers that somebody else has in hand.
    pub fn with_stats(stats: Arc<StreamStats>, observer: impl Fn(ReceiveEvent) + Send + Sync + 'static) -> Observer {
        Observer { tell: Arc::new(observer), stats }
    }

    /// The numbers of the stream: written by the run, read by anybody.
    pub fn stats(&self) -> &Arc<StreamStats> {
        &self.stats
    }

    pub fn tell(&self, event: ReceiveEvent) {
        (self.tell)(event);
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.tell(ReceiveEvent::Warning(text.into()));
    }
}
