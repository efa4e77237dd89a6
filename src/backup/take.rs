//! The steps of a backup, in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::alone::lock;
use super::finish::{self, Base, Span, made_by};
use super::incremental::{self, Asked};
use super::incremental_parent::{self, ParentFiles};
use super::intake::{Expected, Intake, Received};
use super::layers;
use super::prepare::{self, Prepared};
use super::sealing::{Sealing, fill_random};
use super::state::{host, state_id};
use super::upload::{self, store_all};
use super::wal::{self, Reach, Reached, WalWatch};
use super::{BackupOptions, Outcome, Progress};
use crate::archive::Archive;
use crate::error::{Context, Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::{Connection, Conninfo};
use crate::pg::{Lsn, MajorVersion, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::intent::Intent;
use crate::seal::content::manifest::{Manifest, Tombstone};
use crate::seal::header::ObjectKind;
use crate::wire::command::{BackupEvent, BaseBackupOptions, TablespaceRow};

/// Events between the socket and the intake: at most 2 MiB of data.
const QUEUE: usize = 64;
/// How often copying is told.
const TELL: Duration = Duration::from_millis(200);
/// How long giving a failed backup up may take.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What BASE_BACKUP said at its beginning.
struct Begun {
    start: Lsn,
    timeline: TimelineId,
    tablespaces: Vec<TablespaceRow>,
    started_at: Timestamp,
    /// Where the server sends incrementally.
    parent: Option<(Manifest, Arc<ParentFiles>)>,
    why_full: Option<String>,
}

/// Takes a base backup of the server into the archive. The archive must be followed by a receiver: `Kind::Slot` when it is not. Dropping the future
/// ends the backup and leaves no manifest.
///
/// Errors: another server is `Kind::Diverged`; a backup already running on this host `Kind::Busy`; what was received and is not what the
/// server's manifest says `Kind::Corrupt`; WAL that does not arrive at the end `Kind::Slot`, WAL with a hole `Kind::Gap`.
pub async fn take(
    archive: &Archive,
    ring: Arc<WriterRing>,
    server: &Conninfo,
    options: &BackupOptions,
) -> Result<Outcome> {
    take_with(archive, ring, server, options, archive).await
}

/// As [`take()`], with another source of knowledge about WAL.
pub async fn take_with(
    archive: &Archive,
    ring: Arc<WriterRing>,
    server: &Conninfo,
    options: &BackupOptions,
    watch: &dyn WalWatch,
) -> Result<Outcome> {
    let clock = Instant::now();
    let _lock = lock(archive, options).await?;
    let mut avoid = options.full.then(|| "a full transfer was asked for".to_owned());
    loop {
        let mut prepared = prepare::connect(archive, server, options).await?;
        prepare::follow(&prepared, watch, options).await?;
        let begun = begin(archive, &mut prepared.connection, options, avoid.take()).await?;
        let mut random = [0; 2];
        fill_random(&mut random)?;
        let id = BackupId::new(begun.started_at, begun.timeline, begun.start, u16::from_le_bytes(random));
        let mut sealing = Sealing::new(archive.clone(), ring.clone(), id.clone())?;
        announce(archive, &begun, &mut sealing, options).await?;
        let lost = match lost_parent(archive, &begun).await {
            Ok(lost) => lost,
            Err(error) => {
                give_up(archive, ring, id.clone(), &error).await;
                return Err(error.context(format_args!("backup {id}")));
            }
        };
        if let Some(lost) = lost {
            // Nothing was received yet; the connection is dropped with what the server has begun.
            give_up(archive, ring.clone(), id, &Error::new(Kind::Interrupted, lost.clone())).await;
            avoid = Some(lost);
            continue;
        }
        let taken = copy(archive, prepared, begun, sealing, options, watch).await;
        return match taken {
            Ok((manifest, waited_for_wal)) => Ok(Outcome { manifest, elapsed: clock.elapsed(), waited_for_wal }),
            Err(error) => {
                give_up(archive, ring, id.clone(), &error).await;
                Err(error.context(format_args!("backup {id}")))
            }
        };
    }
}

/// Why the parent may not be built on, now that everyone can see that it is going to be.
async fn lost_parent(archive: &Archive, begun: &Begun) -> Result<Option<String>> {
    let Some((parent, _)) = &begun.parent else { return Ok(None) };
    let look = archive.look_before_reuse(Some(&parent.id)).await?;
    Ok(look.parent.is_none().then(|| format!("an expiry may be deleting backup {}", parent.id)))
}

/// Sends BASE_BACKUP and waits for its beginning: the server makes a checkpoint first. `avoid` is why it shall send everything.
async fn begin(
    archive: &Archive,
    connection: &mut Connection,
    options: &BackupOptions,
    avoid: Option<String>,
) -> Result<Begun> {
    options.tell(Progress::Checkpoint);
    let command = BaseBackupOptions {
        label: options.label.clone(),
        fast_checkpoint: options.fast_checkpoint,
        max_rate: options.max_rate,
        manifest: true,
        compression: options.server_compression,
        ..BaseBackupOptions::default()
    };
    let parent = match avoid {
        Some(why) => Err(why),
        None if connection.version() < MajorVersion::V17 => Err(incremental::too_old(connection.version())),
        None => incremental_parent::newest(archive).await?,
    };
    let Asked { first, files, why_full } =
        incremental::ask(connection, archive, parent.as_ref().map_err(String::clone), &command).await?;
    match first {
        BackupEvent::Start { lsn, timeline, tablespaces } => {
            let parent = parent.ok().zip(files.map(Arc::new));
            Ok(Begun { start: lsn, timeline, tablespaces, started_at: Timestamp::now(), parent, why_full })
        }
        other => Err(Error::new(Kind::Server, format!("expected the start of a base backup, found {other:?}"))),
    }
}

/// Creates the intent: before the first pack, so that an expiry sees it.
async fn announce(archive: &Archive, begun: &Begun, sealing: &mut Sealing, options: &BackupOptions) -> Result<()> {
    let state_dir = options.state_dir.clone();
    let state = blocking(move || state_id(state_dir.as_deref())).await?;
    let intent = Intent {
        version: Intent::VERSION,
        id: sealing.id.clone(),
        cluster: archive.names.cluster.clone(),
        system: archive.names.system,
        started_at: begun.started_at,
        reuses: begun.parent.iter().map(|(parent, _)| parent.id.to_string()).collect(),
        state,
        made_by: made_by(),
        host: host(),
    };
    let upload = sealing.index(ObjectKind::Intent, 0, &intent.encode())?;
    upload.put(&archive.repo, options.put_limit).await.map(|_| ()).context("cannot announce the backup")
}

/// From the first archive to the manifest.
async fn copy(
    archive: &Archive,
    prepared: Prepared,
    begun: Begun,
    sealing: Sealing,
    options: &BackupOptions,
    watch: &dyn WalWatch,
) -> Result<(Manifest, Duration)> {
    let version_num = prepared.connection.version_num();
    let parent = begun.parent.clone();
    let read_part = layers::from_repository(archive, &tokio::runtime::Handle::current());
    let server = prepared.connection.same_server().clone();
    let (span, transferred) = tokio::select! {
        received = receive(archive, prepared, &begun, sealing, options) => received?,
        error = wal::attend(watch, &server, begun.timeline, begun.start) => return Err(error),
    };
    let Transferred { received, mut sealing, read, stored } = transferred;
    options.tell(Progress::Mapping { files: received.records.len() as u64 });
    let (to, from) = upload::channel();
    let write = blocking(move || {
        let base = parent.as_ref().map(|(manifest, files)| Base { files, maps: &manifest.maps, read: &read_part });
        let maps = finish::write_map(&received.records, &received.packs, base, &mut sealing, &to)?;
        drop(to);
        Ok((maps, received, sealing))
    });
    let (mapped, (maps, received, mut sealing)) =
        tokio::try_join!(store_all(&archive.repo, from, options.put_limit), write)?;
    let mut manifest = finish::manifest(archive, &received, &span, &options.label, version_num, maps)?;
    manifest.why_full = begun.why_full;
    if let Some((parent, _)) = begun.parent {
        finish::build_on(&mut manifest, parent);
    }
    manifest.sizes.read = read;
    manifest.sizes.stored = stored + mapped;
    let waiting = Instant::now();
    wait_for_wal(&span, options, watch, &server).await?;
    let waited = waiting.elapsed();
    archive.demand_intent(&manifest.id).await?;
    let upload = sealing.index(ObjectKind::Manifest, 0, &manifest.encode())?;
    upload.put(&archive.repo, options.put_limit).await.context("cannot create the manifest")?;
    Ok((manifest, waited))
}

struct Transferred {
    received: Received,
    sealing: Sealing,
    read: u64,
    stored: u64,
}

/// Receives, packs and stores at the same time: the socket here, computing on a thread of its own, objects a few at a time.
async fn receive(
    archive: &Archive,
    prepared: Prepared,
    begun: &Begun,
    sealing: Sealing,
    options: &BackupOptions,
) -> Result<(Span, Transferred)> {
    let expected = Expected {
        system: archive.names.system,
        start: begun.start,
        tablespaces: begun.tablespaces.clone(),
        pages_per_segment: prepared.pages_per_segment,
        compression: options.compression,
        server_compression: options.server_compression,
        parent: begun.parent.as_ref().map(|(_, files)| files.clone()),
    };
    let (to_intake, events) = mpsc::channel(QUEUE);
    let (to_store, uploads) = upload::channel();
    let intake = blocking(move || Intake::new(expected, sealing, to_store).run(events));
    let feed = feed(prepared.connection, to_intake, begun, options);
    let store = store_all(&archive.repo, uploads, options.put_limit);
    let ((span, read), (received, sealing), stored) = tokio::try_join!(feed, intake, store)?;
    Ok((span, Transferred { received, sealing, read, stored }))
}

/// Passes events from the socket to the intake until the server has said that the backup is complete.
async fn feed(
    mut connection: Connection,
    to: mpsc::Sender<BackupEvent>,
    begun: &Begun,
    options: &BackupOptions,
) -> Result<(Span, u64)> {
    let known: Option<Vec<u64>> = begun.tablespaces.iter().map(|t| t.size_kb).collect();
    let total = known.map(|sizes| sizes.iter().sum::<u64>() * 1024);
    // What the server compresses it counts itself, before it does.
    let counted = options.server_compression.is_some();
    let (mut read, mut done, mut end, mut told) = (0, 0, None, Instant::now());
    options.tell(Progress::Copying { done, total });
    loop {
        let event = connection.next_backup_event().await?;
        match &event {
            BackupEvent::Data(bytes) => read += bytes.len() as u64,
            BackupEvent::Progress { bytes_done } if counted => done = *bytes_done,
            BackupEvent::End { lsn, timeline } => end = Some((*lsn, *timeline)),
            _ => {}
        }
        if !counted {
            done = read;
        }
        if told.elapsed() >= TELL {
            options.tell(Progress::Copying { done, total });
            told = Instant::now();
        }
        let complete = event == BackupEvent::Complete;
        if to.send(event).await.is_err() {
            // The intake has failed, and its error is the one that matters.
            std::future::pending::<()>().await;
        }
        if complete {
            break;
        }
    }
    options.tell(Progress::Copying { done, total });
    connection.close().await;
    let (stop, stop_timeline) =
        end.ok_or_else(|| Error::new(Kind::Server, "the server ended a base backup without saying where"))?;
    let Begun { start, timeline, started_at, .. } = *begun;
    Ok((Span { start, timeline, stop, stop_timeline, started_at, stopped_at: Timestamp::now() }, read))
}

/// A backup is worth something only with all WAL from its start to its stop position.
async fn wait_for_wal(span: &Span, options: &BackupOptions, watch: &dyn WalWatch, server: &Conninfo) -> Result<()> {
    let needed = span.stop;
    let tell = |durable| options.tell(Progress::WaitingForWal { durable, needed });
    let (timeline, from, patience) = (span.stop_timeline, span.start, options.wal_stall);
    let reach = Reach { timeline, from, needed, patience, renewed: true };
    let Reached { durable, remark } = reach.wait(watch, server, wal::PAUSE, tell).await?;
    let (kind, text) = match durable {
        Some(durable) if durable >= needed => return Ok(()),
        Some(durable) => {
            (Kind::Slot, format!("the archive stands still at {durable}, the backup needs WAL up to {needed}"))
        }
        None => (Kind::Gap, format!("the archive does not hold the WAL at {}, where the backup begins", span.start)),
    };
    let remark = remark.map_or(String::new(), |remark| format!("; {remark}"));
    let error = Error::new(kind, format!("{text} (no progress for {:?}){remark}", options.wal_stall));
    Err(error.hint("See what `walrecv receive` says, and take the backup again when it follows."))
}

/// Leaves a tombstone where the manifest would have been, so that an expiry need not wonder. Best effort: without it nothing is wrong.
async fn give_up(archive: &Archive, ring: Arc<WriterRing>, id: BackupId, error: &Error) {
    let tombstone = Tombstone {
        version: Tombstone::VERSION,
        id: id.clone(),
        created_at: Timestamp::now(),
        reason: error.to_string(),
        made_by: made_by(),
    };
    let put = async {
        let upload = Sealing::new(archive.clone(), ring, id)?.index(ObjectKind::Tombstone, 0, &tombstone.encode())?;
        upload.put(&archive.repo, GIVE_UP).await
    };
    match tokio::time::timeout(GIVE_UP, put).await {
        Ok(Err(error)) => tracing::warn!(%error, "the failed backup could not be marked as given up"),
        Err(_) => tracing::warn!("the failed backup could not be marked as given up in time"),
        Ok(Ok(_)) => {}
    }
}

/// Runs what computes or blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::new(Kind::Failed, "a task of the backup died").caused_by(e))?
}
