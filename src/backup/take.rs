//! The steps of a backup, in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;

use super::alive;
use super::alone::lock;
use super::announce::{Announcement, Base, Stop};
use super::begin::{Begun, Local, begin, intent};
use super::cache::Shelf;
use super::completed::Completed;
use super::dead;
use super::diff::{Diff, Parent};
use super::feed::{Fed, Feed};
use super::finish::{self, Said, Span, made_by};
use super::intake::{Expected, Files, Intake, Received};
use super::layers;
use super::lineage::Origin;
use super::parent::{self, Survey};
use super::past::{self, Past};
use super::prepare::{self, Following, Prepared};
use super::reader::Reader;
use super::sealing::{Sealing, fill_random};
use super::torn;
use super::upload::{self, Outbox, store_all};
use super::wal::{self, Reach, Reached, WalWatch};
use super::{BackupOptions, Outcome, Progress};
use crate::archive::Archive;
use crate::disk::scratch::Scratch;
use crate::error::{Context, Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::{Connection, Conninfo};
use crate::pg::Lsn;
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Manifest, Tombstone, Transfer};
use crate::seal::header::ObjectKind;

/// Between two questions to a repository that is away.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the last word of a backup may take: that it is complete, or given up.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Takes a base backup of the server into the archive. The archive must be followed by a receiver: `Kind::Slot` when it is not. Dropping the future
/// ends the backup and leaves no manifest, until [`Progress::Completing`] has been told: then there may be one.
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
    let local = local(archive, &ring, options).await?;
    let met = meet(archive, server, &local, options, watch);
    let (dead, met) = tokio::join!(dead::runs(archive, &ring, options), met);
    let (mut met, mut avoid) = (Some(met), None);
    loop {
        let met = match met.take() {
            Some(met) => met,
            None => meet(archive, server, &local, options, watch).await,
        };
        let (mut prepared, mut following, survey) = met?;
        let past = avoid.take().map_or(Ok(Past { watch, following: &mut following }), Err);
        let (begun, reuse) = begin(archive, &mut prepared.connection, &local, options, past, survey).await?;
        let mut random = [0; 2];
        fill_random(&mut random)?;
        let id = BackupId::new(begun.started_at, begun.timeline, begun.start, u16::from_le_bytes(random));
        let mut sealing = Sealing::new(archive.clone(), ring.clone(), id.clone())?;
        let intent = intent(archive, &begun, reuse.as_ref(), &dead, &local, &mut sealing, options).await?;
        let limit = options.put_limit;
        let announcement = Announcement { intent, begun, reuse, dead: &dead, local: &local, limit };
        let taken = async {
            tokio::select! {
                copied = copy(archive, prepared, announcement, sealing, options, watch, following) => copied,
                never = alive::keep(archive, &ring, &id, alive::EVERY, limit) => match never {},
            }
        };
        match taken.await {
            Ok((manifest, waited_for_wal)) => {
                return Ok(Outcome { manifest, elapsed: clock.elapsed(), waited_for_wal });
            }
            Err(Stop::Lost(lost)) => {
                // The connection is dropped with what the server has begun.
                tracing::warn!("backup {id} is given up, and all pages are asked for: {lost}");
                give_up(archive, ring.clone(), id, &Error::new(Kind::Interrupted, lost.clone())).await;
                avoid = Some(lost);
            }
            Err(Stop::Unannounced(error)) => return Err(error),
            Err(Stop::Failed(error)) => {
                give_up(archive, ring, id.clone(), &error).await;
                return Err(error.context(format_args!("backup {id}")));
            }
        }
    }
}

/// Connects to the server and sees whether a receiver follows it, and reads meanwhile what the repository tells.
fn meet<'a>(
    archive: &'a Archive,
    server: &'a Conninfo,
    local: &'a Local,
    options: &'a BackupOptions,
    watch: &'a dyn WalWatch,
) -> BoxFuture<'a, Result<(Prepared, Following, Survey<'a>)>> {
    let follow = async {
        let prepared = prepare::connect(archive, server, options).await?;
        let following = prepare::follow(&prepared, watch, options).await?;
        Ok((prepared, following))
    };
    let met = async {
        let ((prepared, following), survey) = tokio::try_join!(follow, parent::survey(archive, local, options))?;
        Ok((prepared, following, survey))
    };
    // It is large, and both may be begun from two places: on the heap it costs no stack.
    met.boxed()
}

/// The places of this host; what a killed run left in them is removed. The lock is held.
async fn local(archive: &Archive, ring: &WriterRing, options: &BackupOptions) -> Result<Local> {
    let identity = ring.identity();
    let (hasher, key) = (ring.page_hasher(), identity.as_deref());
    let shelf = options.state_dir.as_deref().map(|dir| Shelf::new(dir, archive, &hasher, key));
    let own = options.state_dir.as_ref().map(|dir| dir.join(format!("sort-{}", archive.names.cluster)));
    let scratch = blocking(move || own.map_or_else(Scratch::temporary, Scratch::at)).await?;
    Ok(Local { shelf, scratch: Arc::new(scratch), identity })
}

/// From the announcement to the manifest.
async fn copy(
    archive: &Archive,
    prepared: Prepared,
    announcement: Announcement<'_>,
    sealing: Sealing,
    options: &BackupOptions,
    watch: &dyn WalWatch,
    mut following: Following,
) -> Result<(Manifest, Duration), Stop> {
    let version_num = prepared.connection.version_num();
    let server = prepared.connection.same_server().clone();
    let local = announcement.local.clone();
    let Base { begun, parent: built_on, orphans, sure } = announcement.base(archive).await?;
    let renewed = built_on.as_ref().is_some_and(|parent| parent.survivors.is_some());
    let diff = begin_diff(&sealing, begun.transfer, built_on, local.shelf.clone()).await?.beside(orphans);
    let (to_store, uploads) = upload::channel();
    let store = async {
        let parent = sure.await?;
        Ok::<_, Stop>((parent, store_all(&archive.repo, uploads, options.put_limit).await?))
    };
    let received =
        async { Ok(receive(prepared, &begun, diff, local.scratch.clone(), sealing, options, to_store).await?) };
    let ((parent, stored), (span, transferred)) = tokio::select! {
        received = async { tokio::try_join!(store, received) } => received?,
        error = useless(&mut following, watch, &server, &begun) => return Err(Stop::Failed(error)),
    };
    let Transferred { received, files, mut sealing, read, connection, reader } = transferred;
    let ended = Instant::now();
    options.tell(Progress::Mapping { files: received.tally.files });
    let (to, from) = upload::channel();
    let read_part = layers::from_repository(archive, &tokio::runtime::Handle::current());
    let (older, tally) = (parent.as_ref().map_or(Vec::new(), |p| p.maps.clone()), received.tally);
    let write = blocking(move || {
        let mut target = layers::Place { sealing: &mut sealing, outbox: &to, read: &read_part };
        let written = finish::write_maps(files, &tally, &older, &mut target, renewed)?;
        drop(to);
        Ok((written, sealing))
    });
    let (timeline, stop, names) = (span.stop_timeline, span.stop, archive.names.clone());
    let origin = Origin { reader, server: server.clone(), names, timeline, stop };
    // What the server did not send is the parent's.
    let unsent = parent.as_ref().filter(|_| begun.transfer == Transfer::Incremental);
    let wal = async {
        let patience = outage(options);
        let asked = origin.ask_for(Some(connection), patience);
        let wal = async {
            tokio::select! {
                stored = demand_wal(archive, &span, options, watch, &server) => stored?,
                error = following.fails(watch) => return Err(error),
            }
            following.until_seen(watch).await
        };
        let ((), sent) = tokio::try_join!(wal, asked)?;
        origin.demand(watch, sent, patience).await?;
        let led = past::demand(watch, (timeline, stop), unsent, patience).await?;
        Ok((led, ended.elapsed()))
    };
    let (mapped, ((written, kept), mut sealing), (led, waited)) =
        tokio::try_join!(store_all(&archive.repo, from, options.put_limit), write, wal)?;
    led.map_err(Stop::Lost)?;
    let (id, label) = (sealing.id.clone(), &options.label);
    let Begun { transfer, why_full, .. } = begun;
    let (parent, identity) = (parent.as_ref(), local.identity.clone());
    let said = Said { id: &id, label, version_num, written, parent, transfer, renewed, why_full, identity };
    let mut manifest = finish::manifest(archive, &received, &span, said)?;
    torn::settle(archive, &mut manifest, options).boxed().await;
    (manifest.sizes.read, manifest.sizes.stored) = (read, stored + mapped);
    complete(archive, &mut sealing, &manifest, &local, kept, options).await?;
    Ok((manifest, waited))
}

/// Creates the manifest, which makes it a backup, and leaves the signs of that. `hashes`: those of its pages are all kept.
async fn complete(
    archive: &Archive,
    sealing: &mut Sealing,
    manifest: &Manifest,
    local: &Local,
    hashes: bool,
    options: &BackupOptions,
) -> Result<()> {
    let (id, shelf) = (sealing.id.clone(), local.shelf.clone());
    demand_intent(archive, &id, options.put_limit).await?;
    let upload = sealing.index(ObjectKind::Manifest, 0, &manifest.encode())?;
    options.tell(Progress::Completing);
    upload.put(&archive.repo, options.put_limit).await.context("cannot create the manifest")?;
    let completed = options.state_dir.as_deref().map(|dir| Completed::of(dir, archive));
    // It is a backup already, whatever becomes of this.
    let kept = blocking(move || keep(&id, completed.as_ref(), shelf.as_ref(), hashes));
    let (kept, ()) = tokio::join!(kept, alive::complete(archive, sealing, GIVE_UP));
    kept.unwrap_or_else(|error| tracing::warn!(%error, "that this backup is complete is not noted in state_dir"));
    Ok(())
}

/// Beside the copy, which is no use without its WAL. Returns only where that does not come.
async fn useless(following: &mut Following, watch: &dyn WalWatch, server: &Conninfo, begun: &Begun) -> Error {
    tokio::select! {
        error = following.fails(watch) => error,
        error = wal::attend(watch, server, begun.timeline, begun.start) => error,
    }
}

/// What stays in `state_dir` of a complete backup.
fn keep(id: &BackupId, completed: Option<&Completed>, shelf: Option<&Shelf>, hashes: bool) -> Result<()> {
    let noted = completed.map_or(Ok(()), |completed| completed.note(id));
    if let Some(shelf) = shelf {
        shelf.settle(id, hashes);
    }
    noted
}

/// Opens what is compared, and what is kept for the next time. Where that cannot be kept, the backup goes on all the same: so of an incremental transfer over a
/// parent whose hashes are not here, since nobody sees the pages that are not sent.
async fn begin_diff(
    sealing: &Sealing,
    transfer: Transfer,
    parent: Option<Parent>,
    shelf: Option<Shelf>,
) -> Result<Diff> {
    let (id, hasher) = (sealing.id.clone(), sealing.page_hasher());
    let unseen = transfer == Transfer::Incremental && parent.as_ref().is_none_or(|parent| parent.cache.is_none());
    let kept = blocking(move || Ok(shelf.filter(|_| !unseen).and_then(|shelf| shelf.begin(&id)))).await?;
    Ok(Diff::new(hasher, parent, kept))
}

struct Transferred {
    received: Received,
    files: Files,
    sealing: Sealing,
    read: u64,
    connection: Connection,
    reader: Reader,
}

/// Receives and packs; what is to be stored goes into the outbox.
async fn receive(
    prepared: Prepared,
    begun: &Begun,
    diff: Diff,
    scratch: Arc<Scratch>,
    sealing: Sealing,
    options: &BackupOptions,
    to_store: Outbox,
) -> Result<(Span, Transferred)> {
    let expected = Expected {
        system: prepared.identity.system,
        start: begun.start,
        tablespaces: begun.tablespaces.clone(),
        checksums: prepared.checksums,
        pages_per_segment: prepared.pages_per_segment,
        compression: options.compression,
        server_compression: options.server_compression,
        incremental: begun.transfer == Transfer::Incremental,
        scratch,
    };
    let known: Option<Vec<u64>> = begun.tablespaces.iter().map(|t| t.size_kb).collect();
    let feed = Feed {
        connection: prepared.connection,
        intake: Intake::new(expected, diff, sealing, to_store),
        options: options.clone(),
        total: known.map(|sizes| sizes.iter().sum::<u64>() * 1024),
    };
    let fed = prepared.reader.run(feed.run()).await?;
    let Fed { connection, stop, stop_timeline, read, received, files, sealing } = fed;
    let Begun { start, timeline, started_at, .. } = *begun;
    let span = Span { start, timeline, stop, stop_timeline, started_at, stopped_at: Timestamp::now() };
    Ok((span, Transferred { received, files, sealing, read, connection, reader: prepared.reader }))
}

/// Asks once more for what keeps an expiry away. A repository that is away for a while must not cost what was copied in hours.
async fn demand_intent(archive: &Archive, id: &BackupId, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        match archive.demand_intent(id).await {
            Err(error) if error.is_transient() && begun.elapsed() < limit => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
}

/// How long a repository or a server may be away at the end: what was copied in hours must not be lost for it.
fn outage(options: &BackupOptions) -> Duration {
    options.wal_stall.max(options.put_limit)
}

/// A backup is worth something only with all WAL from its start to its stop position, durably.
async fn demand_wal(
    archive: &Archive,
    span: &Span,
    options: &BackupOptions,
    watch: &dyn WalWatch,
    server: &Conninfo,
) -> Result<()> {
    wait_for_wal(span, options, watch, server).await?;
    // On a local disk what was seen of an open segment may not be synced yet, nor may be what a receiver that died had put there.
    if settle(archive, span, outage(options)).await? {
        wait_for_wal(span, options, watch, server).await?;
    }
    Ok(())
}

/// Makes all WAL of the backup durable; `false`: the repository has seen to that.
async fn settle(archive: &Archive, span: &Span, limit: Duration) -> Result<bool> {
    let begun = Instant::now();
    loop {
        match archive.settle_wal(span.stop_timeline, span.start, span.stop).await {
            Err(error) if error.is_transient() && begun.elapsed() < limit => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
}

async fn wait_for_wal(span: &Span, options: &BackupOptions, watch: &dyn WalWatch, server: &Conninfo) -> Result<()> {
    let needed = span.stop;
    let tell = |durable: Option<Lsn>| {
        if durable.is_none_or(|durable| durable < needed) {
            options.tell(Progress::WaitingForWal { durable, needed });
        }
    };
    let (timeline, from, patience) = (span.stop_timeline, span.start, options.wal_stall);
    let reach = Reach { timeline, from, needed, patience, outage: outage(options), renewed: true };
    let Reached { durable, remark } = reach.wait(watch, server, &wal::PAUSES, tell).await?;
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
        deleted: false,
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
