//! One replication connection: connect and authenticate, run commands, stream.
//!
//! Errors: unreachable or starting up is `Kind::Server` and transient; a refusal (password, pg_hba, no REPLICATION right, wal_level) is `Kind::Server`
//! and permanent, with a hint; a version outside 13..18 is `Kind::Version`.

use std::time::Duration;

use super::Conninfo;
use crate::error::Result;
use crate::pg::{Lsn, MajorVersion, TimelineId};
use crate::wire::command::{BackupEvent, BaseBackupOptions, HistoryFile, Identity, SlotState};
use crate::wire::message::{Status, StreamEvent};

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

/// An authenticated walsender connection.
pub struct Connection {}

impl Connection {
    /// Connects, negotiates TLS, authenticates, checks the server's version. `options` are extra startup options such as `-c wal_sender_timeout=10s`.
    pub async fn connect(_info: &Conninfo, _mode: Mode, _options: &str) -> Result<Connection> {
        todo!()
    }

    pub fn version(&self) -> MajorVersion {
        todo!()
    }

    /// `server_version_num`-like number (from the ParameterStatus), such as 150018.
    pub fn version_num(&self) -> u32 {
        todo!()
    }

    pub async fn identify_system(&mut self) -> Result<Identity> {
        todo!()
    }

    pub async fn show(&mut self, _name: &str) -> Result<String> {
        todo!()
    }

    /// `None` when the server does not have the file (58P01).
    pub async fn timeline_history(&mut self, _timeline: TimelineId) -> Result<Option<HistoryFile>> {
        todo!()
    }

    /// `None` when there is no such slot. 15+: READ_REPLICATION_SLOT; 13/14: only over `Mode::Database` by SQL (pg_replication_slots),
    /// else an error that says so. A logical slot is `Kind::Slot`.
    pub async fn read_slot(&mut self, _name: &str) -> Result<Option<SlotState>> {
        todo!()
    }

    /// Physical slot, with RESERVE_WAL when `reserve`. An existing one is `Kind::Slot` (SQLSTATE 42710 in the text).
    pub async fn create_slot(&mut self, _name: &str, _temporary: bool, _reserve: bool) -> Result<()> {
        todo!()
    }

    /// A missing slot is `Kind::Slot`; one in use (55006) is transient.
    pub async fn drop_slot(&mut self, _name: &str) -> Result<()> {
        todo!()
    }

    /// Simple-protocol query (`Mode::Database` only): rows of text columns.
    pub async fn query(&mut self, _sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        todo!()
    }

    /// Begins a physical stream (IDENTIFY_SYSTEM is sent first where the version needs it). WAL removed (58P01), slot missing (42704) and slot
    /// invalidated are `Kind::Slot`; slot in use (55006) is transient; a start ahead of the server's end or not in its history is `Kind::Diverged`.
    pub async fn start_replication(
        &mut self,
        _slot: Option<&str>,
        _start: Lsn,
        _timeline: TimelineId,
    ) -> Result<Started> {
        todo!()
    }

    /// The next event of the stream. Cancel safe. A server that closes without a word is transient; 57P01 is transient.
    pub async fn next_event(&mut self) -> Result<StreamEvent> {
        todo!()
    }

    /// Sends a status update; bounded by `limit` (a full socket buffer must not hang the caller).
    pub async fn send_status(&mut self, _status: Status, _limit: Duration) -> Result<()> {
        todo!()
    }

    /// Ends the stream from our side with CopyDone, and reads on (discarding WAL) until the server is ready for commands, at most `limit`.
    pub async fn end_stream(&mut self, _limit: Duration) -> Result<()> {
        todo!()
    }

    /// Sends BASE_BACKUP in this version's grammar; events follow from `next_backup_event`.
    pub async fn base_backup(&mut self, _options: &BaseBackupOptions) -> Result<()> {
        todo!()
    }

    pub async fn next_backup_event(&mut self) -> Result<BackupEvent> {
        todo!()
    }

    /// Waits on an idle connection until the server ends it; returns the SQLSTATE it gave (57P01 at a shutdown), if any. Cancel safe.
    pub async fn closed(&mut self) -> Option<String> {
        todo!()
    }

    /// Terminate message and close; best effort.
    pub async fn close(self) {}
}
