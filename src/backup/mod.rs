//! Floor 5: base backups; finished only when their WAL is durable.
//!
//! ```text
//! interrupted backups given up, what is stored is read, connect → check → wait for the receiver: all three side by side
//!   → parent, its past and page hashes → BASE_BACKUP
//!   → intent → look at plans → what interrupted backups stored
//!   tar stream → files → chunks → changed ones → frames → packs (sealed while the socket goes on)
//!   → maps → WAL durable to the stop position → manifest → page hashes of the parent go
//! ```
//!
//! An increment is received while its intent is stored and plans are looked at; its packs wait for that ([`announce`]).
//!
//! What is written down of each file between its last byte and the map, and who says what becomes of a chunk: [`record`] and [`diff`].
//!
//! [`take()`] is the list of these steps. A backup exists from the moment its manifest does; whatever stops it before leaves objects that
//! no manifest names.

mod alive;
mod alone;
mod announce;
mod bad_pages;
mod begin;
mod cache;
#[cfg(test)]
mod chain_tests;
mod check;
mod completed;
mod dead;
mod delta;
mod diff;
mod earlier;
mod feed;
mod finish;
mod held;
mod incremental;
mod incremental_file;
mod intake;
#[cfg(test)]
mod intake_tests;
pub mod layers;
mod lineage;
#[cfg(test)]
#[path = "made_maps_tests.rs"]
mod made_maps;
mod orphan_pack;
mod orphans;
mod packer;
mod parent;
mod parent_files;
mod past;
mod places;
mod prepare;
mod press;
mod reader;
mod record;
mod sealing;
mod state;
pub mod survivors;
mod take;
mod torn;
mod upload;
mod wal;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use alone::{Here, here};
pub use take::{take, take_with};
pub use wal::{Attendance, Moment, WalWatch};

use futures::future::BoxFuture;

use crate::archive::Archive;
use crate::error::Result;
use crate::pg::Lsn;
use crate::seal::content::manifest::Manifest;
use crate::seal::sealer::Compression;
use crate::wire::command::ServerCompression;

/// [`BackupOptions::full_every`] where nothing else is said.
pub const FULL_EVERY: Duration = Duration::from_secs(7 * 86_400);

/// See [`BackupOptions::contents`].
pub type OpenContents = Arc<dyn Fn() -> BoxFuture<'static, Result<Archive>> + Send + Sync>;

/// What a backup is asked to be. `Default` gives what the program does without options.
#[derive(Clone)]
pub struct BackupOptions {
    /// Stands in backup_label and in lists. One line of at most 1000 bytes.
    pub label: String,
    /// Ask for an immediate checkpoint. Default: yes, so that a backup begins at once; `false` spreads the checkpoint over
    /// `checkpoint_completion_target`, which is gentler to a busy server and can take minutes.
    pub fast_checkpoint: bool,
    /// Most kB a second that the server may send: 32 to 1048576.
    pub max_rate: Option<u32>,
    /// What the server compresses with before it sends (15+).
    pub server_compression: Option<ServerCompression>,
    /// Ask the server for everything even where it could send only what changed.
    pub full: bool,
    /// How often at least the server sends everything and what lives in nearly empty packs is stored anew, so that space comes back. That comes
    /// earlier where too much of what is stored is dead.
    pub full_every: Duration,
    /// Of pages and files; lists and maps are always compressed with zstd.
    pub compression: Compression,
    /// Where the lock stands that keeps two backups of one cluster on one host apart, and the page hashes of the last one; `None`: no lock, and
    /// everything is stored.
    pub state_dir: Option<PathBuf>,
    /// How long the archive may take to reach where the server is now, before the backup begins.
    pub follow_within: Duration,
    /// How long the archive may stand still before the stop position is reached, at the end.
    pub wal_stall: Duration,
    /// How long one object is tried.
    pub put_limit: Duration,
    /// How the archive is opened with a private key, so that its WAL can be read: asked only where pages are found bad. `None`: by the keys that it has.
    pub contents: Option<OpenContents>,
    /// Is told how the backup goes, several times a second, from any thread.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl Default for BackupOptions {
    fn default() -> BackupOptions {
        BackupOptions {
            label: "walrecv".to_owned(),
            fast_checkpoint: true,
            max_rate: None,
            server_compression: None,
            full: false,
            full_every: FULL_EVERY,
            compression: Compression::Zstd(3),
            state_dir: None,
            follow_within: Duration::from_secs(15),
            wal_stall: Duration::from_secs(60),
            put_limit: Duration::from_secs(300),
            contents: None,
            progress: None,
        }
    }
}

impl BackupOptions {
    fn tell(&self, progress: Progress) {
        if let Some(tell) = &self.progress {
            tell(progress);
        }
    }
}

/// How a backup goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Before anything is written: does a receiver follow? `durable` is how far the archive is, if it holds anything of this timeline.
    WaitingForReceiver { durable: Option<Lsn>, needed: Lsn },
    /// The server makes its starting checkpoint.
    Checkpoint,
    /// `total` is the server's estimate.
    Copying { done: u64, total: Option<u64> },
    /// Everything is stored; the maps are being written.
    Mapping { files: u64 },
    /// The archive has to reach the stop position.
    WaitingForWal { durable: Option<Lsn>, needed: Lsn },
    /// The manifest is on its way to the repository: from here on the backup may be complete, whoever stops this.
    Completing,
}

/// A finished backup.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As it is stored.
    pub manifest: Manifest,
    /// From the first message to the server to the durable manifest.
    pub elapsed: Duration,
    /// Of that, from the last byte of the copy until all WAL was known to be stored, and to be this server's; maps are written meanwhile.
    pub waited_for_wal: Duration,
}
