//! Floor 5: the live path: socket to acknowledgement.
//!
//! ```text
//! run → server (connect, sentinel) → prepare + resume (where to begin) → stream ⇄ pipeline → follow (the next timeline)
//! pipeline: take → worker thread [check → seal → tail] → put → acknowledge → report → clear away
//! ```
//!
//! The pipeline outlives connections; the ledger in `acknowledge` is the only way to a status update.

pub mod acknowledge;
mod again;
mod alarm;
mod arrivals;
mod beats;
mod begin;
mod check;
mod clear;
mod compare;
mod follow;
pub mod forecast;
mod groups;
mod heart;
mod held;
mod hole;
mod index;
mod joint;
mod keep;
mod lag;
mod lasting;
mod leave;
mod merge;
mod note;
mod object;
pub mod observe;
mod patience;
mod pipeline;
mod prepare;
mod put;
mod recall;
pub mod recover;
pub mod resume;
mod run;
mod salt;
mod scout;
mod sealing;
pub mod sentinel;
mod server;
pub mod slot;
mod spool;
mod stream;
mod tail;
mod trim;
mod vigil;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use observe::{Lags, Observer, ReceiveEvent, SlotHealth};

use crate::archive::Archive;
use crate::archive::cluster::write_cluster_file;
use crate::disk::desk::Desk;
use crate::disk::lane::Lane;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::Conninfo;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::repo::{ClusterNames, Repository};
use crate::seal::key::ReaderKeys;
use crate::seal::sealer::Compression;

/// After so long a put that is not settled is reported, and tried again.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What to do where the server has removed WAL that the archive needs, or the slot that should hold it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    /// End the run.
    #[default]
    Stop,
    /// Make the slot anew, record the hole, go on behind it.
    NewRange,
}

/// What to do where the new primary of a failover has no slot: physical slots are not copied to standbys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterFailover {
    /// Make it; where the new primary lacks WAL that the archive needs, what [`OnGap`] says happens.
    #[default]
    Create,
    /// End the run.
    Stop,
}

/// How to receive.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    pub conninfo: Conninfo,
    /// Without a slot the server may remove WAL before it was received.
    pub slot: Option<String>,
    /// `slot` is a temporary one: made with reserved WAL on each connection, gone with it.
    pub temporary_slot: bool,
    /// The unfinished segment is durable within this. Zero: after every commit.
    pub flush_interval: Duration,
    pub compression: Compression,
    /// A server that shuts down is left after this, whatever is left behind; a stop waits as long for the repository.
    pub shutdown_grace: Duration,
    /// Without any progress of what is durable for so long, the server is left until something can be put.
    pub stall_timeout: Duration,
    /// A status goes to the server at least so often.
    pub status_interval: Duration,
    /// Most bytes of WAL, raw and sealed, in memory: then the socket waits. A segment needs up to twice its size, at most 32 MiB.
    pub memory: u64,
    /// Without any WAL for so long, what is in memory of the open segment leaves it: it is in the tail.
    pub rest_after: Duration,
    /// At least so many bytes: less is not worth it.
    pub rest_worth: u64,
    /// Folder of the spool, for repositories on object storage: what is in it counts as written.
    pub spool_dir: Option<PathBuf>,
    /// Stop once all WAL up to here is durable and reported.
    pub until: Option<Lsn>,
    pub on_gap: OnGap,
    pub after_failover: AfterFailover,
    /// The newest timeline that is taken from a server out of recovery: nothing of a later one is stored, not even its history, and the run ends there
    /// (`Kind::Server`). A standby is followed to where its primary goes. `None`: every server is followed wherever it goes.
    pub newest: Option<TimelineId>,
    /// While nothing can be stored: once the server holds back so many bytes for the slot, it is dropped and made anew, so that the server lives.
    pub give_up_at: Option<u64>,
    /// File of the catalog; without one nothing is noted. A catalog that cannot be written never holds the stream up.
    pub catalog: Option<PathBuf>,
}

impl ReceiveOptions {
    /// Every default.
    pub fn new(conninfo: Conninfo) -> ReceiveOptions {
        ReceiveOptions {
            conninfo,
            slot: None,
            temporary_slot: false,
            flush_interval: Duration::from_secs(1),
            compression: Compression::Zstd(1),
            shutdown_grace: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            status_interval: Duration::from_secs(1),
            memory: 36 << 20,
            rest_after: Duration::from_secs(8),
            rest_worth: 1 << 20,
            spool_dir: None,
            until: None,
            on_gap: OnGap::default(),
            after_failover: AfterFailover::default(),
            newest: None,
            give_up_at: None,
            catalog: None,
        }
    }

    /// How soon the unfinished segment is durable: at once where commits wait for it.
    fn interval(&self, synchronous: bool) -> Duration {
        if synchronous { Duration::ZERO } else { self.flush_interval }
    }
}

/// Where to: a cluster's name in a repository, and the keys to write and compare with. `reader` needs the repository secret only.
#[derive(Clone)]
pub struct Place {
    pub repo: Repository,
    pub cluster: String,
    pub writer: Arc<WriterRing>,
    pub reader: Arc<dyn ReaderKeys>,
}

/// How a run ended that was asked to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiveReport {
    /// `None`: nothing was streamed.
    pub timeline: Option<TimelineId>,
    pub received: Lsn,
    pub durable: Lsn,
    /// Bytes that the server had and the repository has not.
    pub behind: u64,
}

/// Streams until `stop` becomes true. What may pass (server down or starting, slot in use, repository away) is tried again for ever; a refusal ends the run at
/// once: `Kind::Server` (not set up for streaming), `Slot` (missing, lost, WAL removed), `Diverged` (another cluster or history), `Corrupt` (WAL that fails its
/// checks twice), `Repository`, `Key`.
pub async fn receive(
    options: ReceiveOptions,
    place: Place,
    observer: Observer,
    stop: watch::Receiver<bool>,
) -> Result<ReceiveReport> {
    // Where commits may wait for a local disk, a thread reads what arrives and makes it durable itself.
    let local = place.repo.local_root().is_some() && matches!(place.repo.lane(), Lane::Threads);
    let run = move |desk| async move { run::Run::new(options, place, observer, stop, desk)?.run().await };
    if local { Desk::run("receive", |desk| run(Some(desk))).await? } else { run(None).await }
}

/// Returns then; never without a time.
async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Place {
    /// The archive of the system that answered. A cluster's name stands for one system and segment size.
    async fn archive(&self, system: SystemIdentifier, segment_size: SegmentSize) -> Result<Archive> {
        let names = ClusterNames { cluster: self.cluster.clone(), system, segment_size };
        let stored = Archive::incarnations(&self.repo, &self.cluster).await?;
        if let Some(other) = stored.first().filter(|_| !stored.contains(&names)) {
            let text = format!(
                "cluster {:?} is stored as system {} with segments of {} bytes; this server is system {system} with segments of {} bytes",
                self.cluster,
                other.system,
                other.segment_size.bytes(),
                segment_size.bytes()
            );
            return Err(Error::new(Kind::Diverged, text).hint(
                "Check the connection string; after pg_upgrade, after pg_resetwal --wal-segsize, or for another server, use a cluster name that is not taken.",
            ));
        }
        write_cluster_file(&self.repo, &names, GIVE_UP).await?;
        Ok(Archive { repo: self.repo.clone(), names, keys: self.reader.clone() })
    }
}
