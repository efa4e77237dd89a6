//! The reader that believes nobody: whenever the server is told that bytes are durable, the power fails on a copy of the repository, and what is left is
//! restored through the same code that `wal-fetch` uses and compared with what the server made.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use walrecv::archive::Archive;
use walrecv::archive::read::SegmentBytes;
use walrecv::pg::{Lsn, SegmentName, SegmentSize, TimelineId};
use walrecv::receive::recover::recover;
use walrecv::receive::{Observer, Place};
use walrecv::repo::ClusterNames;
use walrecv::seal::key::ReaderKeys;

use super::chance::Chance;
use super::cluster::{Branch, SEGMENT};
use super::disk::Loss;
use super::trace::Trace;
use super::world::SPOOL;
use crate::support::wal_maker::SYSTEM;

/// One promise in so many is judged at once; all of them are when the power fails, and at the end.
const SAMPLE: u64 = 8;

/// What was written is told seldom, and lives where a spool is.
const SAMPLE_OF_WRITTEN: u64 = 4;

/// Makes a copy of repository and spool as they would be after losing power now.
pub type Copier = Box<dyn Fn(Loss) -> Place + Send + Sync>;

/// Bytes that must be there.
struct Promise {
    place: Place,
    /// The next run first puts there what the spool has.
    spooled: bool,
    loss: Loss,
    /// The timelines of the path, and where each begins.
    path: Vec<(TimelineId, Lsn)>,
    from: Lsn,
    to: Lsn,
    bytes: Vec<u8>,
}

#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    copier: Mutex<Option<Copier>>,
    queue: UnboundedSender<Promise>,
    open: AtomicUsize,
    done: Notify,
    chance: Chance,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Audit {
    /// Judges in a task of its own, and tells `trace` what was broken.
    pub fn start(keys: Arc<dyn ReaderKeys>, chance: Chance, trace: Trace) -> Audit {
        let (queue, promises) = unbounded_channel();
        let inner = Inner {
            copier: Mutex::default(),
            queue,
            open: AtomicUsize::new(0),
            done: Notify::new(),
            chance,
            counts: Mutex::default(),
        };
        let audit = Audit(Arc::new(inner));
        tokio::spawn(judge(audit.clone(), promises, keys, trace));
        audit
    }

    pub fn copies_with(&self, copier: Copier) {
        *self.0.copier.lock().unwrap_or_else(PoisonError::into_inner) = Some(copier);
    }

    /// The server was just told that `timeline` is durable up to `to`; it had been told so up to `from` before.
    pub fn promised(&self, branch: &Branch, timeline: TimelineId, from: Lsn, to: Lsn) {
        let loss = self.0.chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some, Loss::Nothing]);
        // Reading back costs more than all the rest: any moment may be judged, not every one is.
        if !self.0.chance.one_in(SAMPLE) {
            return;
        }
        self.demand(branch, timeline, (from, to), loss, false);
    }

    /// The server was just told that `timeline` is written up to `to`, which a spool makes good, and flushed up to `from`.
    pub fn promised_written(&self, branch: &Branch, timeline: TimelineId, from: Lsn, to: Lsn) {
        if self.0.chance.one_in(SAMPLE_OF_WRITTEN) {
            let loss = self.0.chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some]);
            self.demand(branch, timeline, (from, to), loss, true);
        }
    }

    /// Everything from the first byte of the archive on.
    pub fn demand_all(&self, branch: &Branch, timeline: TimelineId, to: Lsn) {
        let loss = self.0.chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some]);
        self.demand(branch, timeline, (Lsn(SEGMENT), to), loss, false);
    }

    fn demand(&self, branch: &Branch, timeline: TimelineId, (from, to): (Lsn, Lsn), loss: Loss, spooled: bool) {
        let copier = self.0.copier.lock().unwrap_or_else(PoisonError::into_inner);
        let from = from.align_down(SEGMENT);
        let (Some(copier), true) = (&*copier, to > from) else { return };
        let known = branch.ancestors.iter().map(|(t, _)| *t).chain([branch.timeline]);
        let path = known.filter(|t| *t <= timeline).map(|t| (t, branch.begin_of(t))).collect();
        let bytes = branch.wal.slice(from, to).to_vec();
        let promise = Promise { place: copier(loss), spooled, loss, path, from, to, bytes };
        self.0.open.fetch_add(1, Ordering::SeqCst);
        *self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).entry("promises").or_default() += 1;
        let _ = self.0.queue.send(promise);
    }

    /// Returns when everything was judged.
    pub async fn settled(&self) {
        loop {
            let done = self.0.done.notified();
            if self.0.open.load(Ordering::SeqCst) == 0 {
                return;
            }
            done.await;
        }
    }

    pub fn promises(&self) -> u64 {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner).get("promises").copied().unwrap_or_default()
    }
}

async fn judge(audit: Audit, mut promises: UnboundedReceiver<Promise>, keys: Arc<dyn ReaderKeys>, trace: Trace) {
    while let Some(promise) = promises.recv().await {
        if let Err(broken) = promise.check(keys.clone()).await {
            let Promise { from, to, loss, path, spooled, .. } = &promise;
            let timeline = path.last().map_or(TimelineId(0), |(t, _)| *t);
            let promise = format!(
                "the server was told that timeline {timeline} is {} up to {to}",
                if *spooled { "written" } else { "durable" }
            );
            trace.violated(format!("{promise}; of what would be left (lost: {loss:?}) from {from} on, {broken}"));
        }
        audit.0.open.fetch_sub(1, Ordering::SeqCst);
        audit.0.done.notify_waiters();
    }
}

impl Promise {
    async fn check(&self, keys: Arc<dyn ReaderKeys>) -> Result<(), String> {
        let size = SegmentSize::new(SEGMENT).ok_or("no size")?;
        let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size: size };
        if self.spooled {
            let recovered = recover(&self.place, Path::new(SPOOL), &Observer::new(|_| ())).await;
            recovered.map_err(|e| format!("the spool cannot be put there: {e}"))?;
        }
        let archive = Archive { repo: self.place.repo.clone(), names, keys };
        let mut at = self.from;
        while at < self.to {
            // The newest timeline that has a copy of this segment.
            let newest = self.path.iter().rev().find(|(_, begin)| begin.align_down(SEGMENT) <= at);
            let timeline = newest.map_or(TimelineId(1), |(t, _)| *t);
            let segment = SegmentName::new(timeline, size.segment_of(at), size);
            let stored =
                archive.read_segment(segment, None).await.map_err(|e| format!("{segment} cannot be read: {e}"))?;
            let stored = match stored {
                Some(SegmentBytes::Complete(bytes) | SegmentBytes::Prefix(bytes)) => bytes,
                None => return Err(format!("nothing of {segment} is there")),
            };
            let offset = at.since(self.from) as usize;
            let wanted = &self.bytes[offset..self.bytes.len().min(offset + SEGMENT as usize)];
            let found = stored
                .get(..wanted.len())
                .ok_or_else(|| format!("{segment} has {} bytes, {} were promised", stored.len(), wanted.len()))?;
            if found != wanted {
                let differs = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or_default();
                return Err(format!("{segment} differs from the server's at offset {differs}"));
            }
            at = at + SEGMENT;
        }
        Ok(())
    }
}
