//! Floor 3: the catalog: what is stored of one cluster, in one SQLite file of `state_dir`, so that questions about it need no request.
//!
//! It is an index and nothing more. It is written after acknowledgement, made again from the repository (`archive::learn`), and its loss costs nothing but time:
//! a file that is damaged, of another schema or of another cluster is moved aside and made anew. The repository stays the truth.

mod dump;
mod last;
mod open;
mod query;
mod schema;
mod shared;
mod write;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use dump::Dump;
pub use last::{LastKnown, LastRun};
pub use open::Begun;
pub use open::is_written;
pub use query::{Around, Growth};
pub use shared::Shared;

use crate::disk::lock::LockFile;
use crate::error::{Error, Kind};
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::seal::content::summary::Summary;
use crate::seal::header::RepositoryId;

/// The file for a cluster's catalog below `state_dir`.
pub fn path_in(state_dir: &Path, cluster: &str) -> PathBuf {
    state_dir.join("catalog").join(format!("{cluster}.sqlite"))
}

/// What a catalog belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub repository: RepositoryId,
    pub cluster: String,
    pub system: SystemIdentifier,
    pub segment_size: SegmentSize,
}

/// One object with WAL: a segment, a part of one, or the end of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub timeline: TimelineId,
    /// A `.partial`.
    pub partial: bool,
    pub start: Lsn,
    pub end: Lsn,
    /// Keyed hash of the WAL.
    pub hash: [u8; 32],
    /// Bytes of the object.
    pub stored: u64,
    pub records: u64,
    pub commits: u64,
    pub aborts: u64,
    pub checkpoints: u64,
    /// Earliest and latest commit or abort.
    pub times: Option<(PgTime, PgTime)>,
    pub xids: Option<(u32, u32)>,
}

impl Object {
    /// `stored`: bytes of the object.
    pub fn of(timeline: TimelineId, partial: bool, stored: u64, summary: &Summary) -> Object {
        Object {
            timeline,
            partial,
            start: summary.start,
            end: summary.end,
            hash: summary.hash,
            stored,
            records: summary.records,
            commits: summary.commits,
            aborts: summary.aborts,
            checkpoints: summary.checkpoints,
            times: summary.times,
            xids: summary.xids,
        }
    }
}

/// Something to note. All of them may be noted twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Object(Object),
    /// The object is no longer stored.
    Gone {
        timeline: TimelineId,
        start: Lsn,
        partial: bool,
    },
    History {
        timeline: TimelineId,
        content: Vec<u8>,
    },
    NoHistory(TimelineId),
    /// A group summary is stored for the 4 GiB of WAL from here on.
    Group {
        timeline: TimelineId,
        first: Lsn,
    },
    NoGroup {
        timeline: TimelineId,
        first: Lsn,
    },
    /// All WAL below `lsn` was written by the server before `time`, by its own clock.
    Heartbeat {
        timeline: TimelineId,
        lsn: Lsn,
        time: PgTime,
    },
    /// What a receiver acknowledged, and what the server then had. How far that ever was is known beside it, whoever says less later.
    Reached {
        timeline: TimelineId,
        durable: Lsn,
        server_end: Lsn,
        at: SystemTime,
    },
    /// A run of a receiver begins: how an earlier one ended is a thing of the past.
    Began(SystemTime),
    /// It ends: as it was asked to, or by an error.
    Ended {
        at: SystemTime,
        problem: Option<String>,
    },
}

/// An open catalog. Calls block: [`Shared`] is for tasks.
#[derive(Debug)]
pub struct Catalog {
    db: rusqlite::Connection,
    identity: Identity,
    /// Held by the one that writes.
    _lock: Option<LockFile>,
}

impl Catalog {
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// What SQLite says, as an error that tells whether the file is to be made anew (`Kind::Corrupt`) or the call may be tried again (transient).
fn failed(what: &str, cause: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let damaged = match cause.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase | Code::TypeMismatch | Code::SchemaChanged) => true,
        // Statements are ours: one that does not fit the file is the file's fault.
        Some(Code::Unknown) => true,
        Some(_) => false,
        None => true,
    };
    let error = Error::new(if damaged { Kind::Corrupt } else { Kind::Failed }, format!("catalog: {what}"));
    if damaged {
        return error.caused_by(cause).hint("Delete the file: it is made again from the repository.");
    }
    error
        .caused_by(cause)
        .transient()
        .hint("Look at the file system of state_dir; nothing but the catalog needs it there.")
}
