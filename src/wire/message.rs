//! What travels inside CopyBoth: XLogData, keepalives, status updates (`walsender.c`).

use bytes::Bytes;

use crate::pg::xact::PgTime;
use crate::pg::{Lsn, TimelineId};

/// What the driver learns from a physical stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// WAL bytes that continue exactly at `start`.
    Data {
        start: Lsn,
        wal_end: Lsn,
        sent_at: PgTime,
        bytes: Bytes,
    },
    Keepalive {
        wal_end: Lsn,
        sent_at: PgTime,
        reply_requested: bool,
    },
    /// The timeline ended at `switch_point`; both CopyDone were exchanged and the connection takes commands again.
    EndOfTimeline {
        next: TimelineId,
        switch_point: Lsn,
    },
    /// The server ended the stream (`COPY 0` without CopyDone at a shutdown, or our CopyDone was answered).
    Ended {
        shutdown: bool,
    },
}

/// The three reported positions of a standby status update. Written ≥ flushed = applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub written: Lsn,
    pub flushed: Lsn,
    pub applied: Lsn,
    pub reply_requested: bool,
}
