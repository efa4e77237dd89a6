//! What travels inside CopyBoth: XLogData, keepalives, status updates (`walsender.c`).

use bytes::{BufMut, Bytes, BytesMut};

use super::error::WireError;
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

/// A message of the server inside CopyBoth, with the payload still in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    Wal { start: Lsn, wal_end: Lsn, sent_at: PgTime, bytes: Bytes },
    Keepalive { wal_end: Lsn, sent_at: PgTime, reply_requested: bool },
}

/// Offset of the WAL bytes in XLogData: type, start, end, time.
const WAL_HEADER: usize = 25;
const KEEPALIVE: usize = 18;
/// Body of a standby status update: type, three positions, clock, flag.
const STATUS: usize = 34;

impl Inner {
    /// Takes apart the content of a CopyData; the WAL bytes are a slice of it.
    pub(super) fn read(data: Bytes) -> Result<Inner, WireError> {
        match data.first() {
            Some(b'w') if data.len() >= WAL_HEADER => Ok(Inner::Wal {
                start: Lsn(word(&data, 1)),
                wal_end: Lsn(word(&data, 9)),
                sent_at: PgTime(word(&data, 17) as i64),
                bytes: data.slice(WAL_HEADER..),
            }),
            Some(b'k') if data.len() == KEEPALIVE => Ok(Inner::Keepalive {
                wal_end: Lsn(word(&data, 1)),
                sent_at: PgTime(word(&data, 9) as i64),
                reply_requested: match data.last() {
                    Some(0) => false,
                    Some(1) => true,
                    other => return Err(WireError::malformed("keepalive", format!("reply flag {other:?}"))),
                },
            }),
            Some(b'w') => Err(WireError::malformed("XLogData", format!("{} bytes", data.len()))),
            Some(b'k') => Err(WireError::malformed("keepalive", format!("{} bytes", data.len()))),
            Some(tag) => Err(WireError::malformed("CopyData", format!("unknown stream message {tag:#04x}"))),
            None => Err(WireError::malformed("CopyData", "empty")),
        }
    }
}

/// Eight bytes at `at`, big-endian; the caller knows that they are there.
fn word(data: &[u8], at: usize) -> u64 {
    data.get(at..at + 8).map_or(0, |bytes| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl Status {
    /// Appends the update as a CopyData message; `now` is the sender's clock (`ProcessStandbyReplyMessage`).
    pub fn write(&self, now: PgTime, out: &mut BytesMut) {
        out.reserve(5 + STATUS);
        out.put_u8(b'd');
        out.put_u32(4 + STATUS as u32);
        out.put_u8(b'r');
        out.put_u64(self.written.0);
        out.put_u64(self.flushed.0);
        out.put_u64(self.applied.0);
        out.put_i64(now.0);
        out.put_u8(u8::from(self.reply_requested));
    }
}
