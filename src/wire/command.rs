//! Replication commands: text out, typed rows in (`repl_gram.y`, `walsender.c`).

use bytes::Bytes;

use crate::pg::{Lsn, SystemIdentifier, TimelineId};

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    /// The current flush position: never a safe place to start after an outage.
    pub position: Lsn,
}

/// Answer to READ_REPLICATION_SLOT (15+), or to the same question by SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub restart_lsn: Option<Lsn>,
    pub restart_timeline: Option<TimelineId>,
}

/// Answer to TIMELINE_HISTORY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    pub name: String,
    pub content: Bytes,
}

/// Options of BASE_BACKUP. Always sent beside them: TABLESPACE_MAP, no wait for the server's archiver, VERIFY_CHECKSUMS off, no WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseBackupOptions {
    pub label: String,
    pub fast_checkpoint: bool,
    /// kB/s, 32 to 1048576.
    pub max_rate: Option<u32>,
    pub manifest: bool,
}

/// One tablespace row of BASE_BACKUP; the last one is the base directory (no oid).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceRow {
    pub oid: Option<u32>,
    pub location: String,
    /// Estimated size in kB.
    pub size_kb: Option<u64>,
}

/// What BASE_BACKUP yields, the same for 13/14 and 15+, in this order: Start, Archive/Data..., Manifest/ManifestData..., End, Complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    Start {
        lsn: Lsn,
        timeline: TimelineId,
        tablespaces: Vec<TablespaceRow>,
    },
    /// The archive of `tablespaces[index]` begins: raw tar bytes follow (with or without the two zero blocks at the end).
    Archive {
        index: usize,
    },
    Data(Bytes),
    /// The manifest begins.
    Manifest,
    ManifestData(Bytes),
    Progress {
        bytes_done: u64,
    },
    End {
        lsn: Lsn,
        timeline: TimelineId,
    },
    /// The final CommandComplete: only now the backup is good.
    Complete,
}
