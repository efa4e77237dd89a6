//! What recovery and `list` need to know of a record: commits, aborts, restore points, checkpoints, and settings.

use super::record::Record;
use super::{Lsn, MajorVersion, TimelineId};

/// Microseconds since 2000-01-01 00:00:00 UTC (`TimestampTz`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(pub i64);

/// The meaning of a record, as far as recovery targets and plans ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Commit, or commit prepared: then `xid` is the two-phase transaction's.
    Commit {
        xid: u32,
        time: PgTime,
        dropped_relations: u32,
    },
    /// Abort, or abort prepared.
    Abort {
        xid: u32,
        time: PgTime,
    },
    RestorePoint {
        name: String,
        time: PgTime,
    },
    Checkpoint {
        redo: Lsn,
        timeline: TimelineId,
        previous_timeline: TimelineId,
        shutdown: bool,
    },
    EndOfRecovery {
        timeline: TimelineId,
        previous_timeline: TimelineId,
    },
    /// End of the base backup that began at `start` (`XLOG_BACKUP_END`).
    BackupEnd {
        start: Lsn,
    },
    Switch,
    ParameterChange(Parameters),
    Other,
}

/// Settings of the primary that a hot standby's must not be below (`XLOG_PARAMETER_CHANGE`, pg_control).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
    pub wal_level: i32,
}

/// Reads a checked record. A record of a known kind with an impossible body is `Err`, with what was wrong.
pub fn note(_record: &Record<'_>, _version: MajorVersion) -> Result<Note, String> {
    todo!()
}
