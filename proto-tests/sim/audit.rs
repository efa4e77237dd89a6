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
use walrecv::pg::page::{LONG_HEADER, PAGE_SIZE, SHORT_HEADER};
use walrecv::pg::{Lsn, SegmentName, SegmentSize, TimelineId};
use walrecv::receive::recover::recover;
use walrecv::receive::{Observer, Place};
use walrecv::repo::ClusterNames;
use walrecv::seal::content::event::Hole;
use walrecv::seal::hash::content_hash;
use walrecv::seal::key::ReaderKeys;

use super::chance::Chance;
use super::cluster::{Branch, Trail};
use super::disk::Loss;
use super::trace::Trace;
use super::world::SPOOL;
use crate::support::wal_maker::{Made, SYSTEM};

/// One promise in so many is judged at once; all of them are when the power fails, and at the end.
const SAMPLE: u64 = 8;

/// What was written is told seldom, and lives where a spool is.
const SAMPLE_OF_WRITTEN: u64 = 4;

/// Makes a copy of repository and spool as they would be after losing power now.
pub type Copier = Box<dyn Fn(Loss) -> Place + Send + Sync>;

/// Bytes that must be there.
struct Promise {
    place: Place,
    /// Bytes of a segment.
    segment: u64,
    /// The next run first puts there what the spool has.
    spooled: bool,
    loss: Loss,
    /// The timelines of the path, and where each begins.
    path: Vec<(TimelineId, Lsn)>,
    from: Lsn,
    to: Lsn,
    bytes: Vec<u8>,
    /// Records there that say `wal_level = minimal`: somebody must be able to know.
    minimal: Vec<Lsn>,
    trail: Trail,
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

    /// Nothing more is judged: somebody else broke the promises.
    pub fn looks_away(&self) {
        *self.0.copier.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The server was just told that `timeline` is durable up to `to`; it had been told so up to `from` before.
    pub fn promised(&self, branch: &Branch, timeline: TimelineId, from: Lsn, to: Lsn, trail: &Trail) {
        let loss = self.0.chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some, Loss::Nothing]);
        // Reading back costs more than all the rest: any moment may be judged, not every one is.
        if !self.0.chance.one_in(SAMPLE) {
            return;
        }
        self.demand(branch, timeline, (from, to), loss, false, trail);
    }

    /// The server was just told that `timeline` is written up to `to`, which a spool makes good, and flushed up to `from`.
    pub fn promised_written(&self, branch: &Branch, timeline: TimelineId, from: Lsn, to: Lsn, trail: &Trail) {
        if self.0.chance.one_in(SAMPLE_OF_WRITTEN) {
            let loss = self.0.chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some]);
            self.demand(branch, timeline, (from, to), loss, true, trail);
        }
    }

    /// Everything from the first byte of the archive on.
    pub fn demand_all(&self, branch: &Branch, timeline: TimelineId, to: Lsn, trail: &Trail) {
        let loss = self.0.chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some]);
        self.demand(branch, timeline, (Lsn(branch.segment()), to), loss, false, trail);
    }

    fn demand(
        &self,
        branch: &Branch,
        timeline: TimelineId,
        (from, to): (Lsn, Lsn),
        loss: Loss,
        spooled: bool,
        trail: &Trail,
    ) {
        let copier = self.0.copier.lock().unwrap_or_else(PoisonError::into_inner);
        let segment = branch.segment();
        let from = from.align_down(segment);
        let (Some(copier), true) = (&*copier, to > from) else { return };
        let known = branch.ancestors.iter().map(|(t, _)| *t).chain([branch.timeline]);
        let path = known.filter(|t| *t <= timeline).map(|t| (t, branch.begin_of(t))).collect();
        let bytes = branch.wal.slice(from, to).to_vec();
        let inside = branch.wal.records().iter().filter(|made| !spooled && from <= made.start && made.end <= to);
        let minimal = inside.filter(|made| (made.rmid, made.info) == (0, 0x60) && level_of(branch, made) == 0);
        let minimal = minimal.map(|made| made.start).collect();
        let trail = trail.clone();
        let promise = Promise { place: copier(loss), segment, spooled, loss, path, from, to, bytes, minimal, trail };
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
        let span = self.segment;
        let size = SegmentSize::new(span).ok_or("no size")?;
        let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size: size };
        if self.spooled {
            let recovered = recover(&self.place, Path::new(SPOOL), &Observer::new(|_| ())).await;
            recovered.map_err(|e| format!("the spool cannot be put there: {e}"))?;
        }
        let archive = Archive { repo: self.place.repo.clone(), names, keys };
        let holes = archive.holes().await.map_err(|e| format!("the holes cannot be read: {e}"))?;
        holes.iter().try_for_each(|hole| self.is_honest(hole))?;
        // Before the first word to any server nothing was promised: a slot may be lost before anything is stored.
        let first = self.trail.told.iter().map(|(_, lsn)| lsn.align_down(span)).min();
        if !self.minimal.is_empty() {
            let noted = archive.minimal_wal().await.map_err(|e| format!("alarms cannot be read: {e}"))?;
            // What lies in a hole, or before all of it, nobody has seen.
            let in_hole = |lsn: &Lsn| next_hole(&holes, *lsn).is_some_and(|hole| hole.from <= *lsn);
            let seen = self.minimal.iter().filter(|lsn| first.is_none_or(|first| first <= **lsn) && !in_hole(lsn));
            let missing = seen.clone().find(|lsn| !noted.iter().any(|alarm| alarm.lsn == **lsn));
            missing.map_or(Ok(()), |lsn| Err(format!("nothing says that wal_level is minimal at {lsn}: {noted:?}")))?;
        }
        let mut at = self.from.max(first.unwrap_or_default());
        while at < self.to {
            // The newest timeline that has a copy of this segment.
            let newest = self.path.iter().rev().find(|(_, begin)| begin.align_down(span) <= at);
            let newest = newest.map_or(TimelineId(1), |(t, _)| *t);
            let end = (at + span).min(self.to);
            // What stands before a hole is on the timeline that it begins on, which may have been left later in this segment.
            let (timeline, upto) = match next_hole(&holes, at).filter(|hole| hole.from < end) {
                Some(hole) => {
                    let before = self.path.iter().rev().find(|(_, begin)| *begin < hole.from);
                    (before.map_or(newest, |(t, _)| *t), hole.from)
                }
                None => (newest, end),
            };
            if upto <= at {
                at = at + span;
                continue;
            }
            let segment = SegmentName::new(timeline, size.segment_of(at), size);
            let stored =
                archive.read_segment(segment, None).await.map_err(|e| format!("{segment} cannot be read: {e}"))?;
            let stored = match stored {
                Some(SegmentBytes::Complete(bytes)) => {
                    is_as_summed_up(&archive, segment, &bytes).await?;
                    bytes
                }
                Some(SegmentBytes::Prefix(bytes)) => bytes,
                None => return Err(format!("nothing of {segment} is there")),
            };
            let offset = at.since(self.from) as usize;
            let wanted = &self.bytes[offset..offset + upto.since(at) as usize];
            let found = stored
                .get(..wanted.len())
                .ok_or_else(|| format!("{segment} has {} bytes, {} were promised", stored.len(), wanted.len()))?;
            if found != wanted {
                let differs = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or_default();
                return Err(format!("{segment} differs from the server's at offset {differs}"));
            }
            at = at + span;
        }
        Ok(())
    }

    /// What is left out was asked for and removed, and nobody was told that any of it is there.
    fn is_honest(&self, hole: &Hole) -> Result<(), String> {
        let Trail { told, refused } = &self.trail;
        let inside = |timeline: TimelineId, lsn: Lsn| {
            timeline == hole.from_timeline && lsn > hole.from && (hole.to_timeline != timeline || lsn < hole.to)
        };
        if let Some((_, lsn)) = told.iter().find(|(timeline, lsn)| inside(*timeline, *lsn)) {
            return Err(format!("{lsn} is in a hole: {hole:?}"));
        }
        let removed = |(timeline, lsn): &(TimelineId, Lsn)| *timeline == hole.from_timeline && *lsn <= hole.from;
        match refused.iter().any(removed) {
            true => Ok(()),
            false => Err(format!("the server has what is in a hole: {hole:?}")),
        }
    }
}

/// `wal_level` in a record that changes parameters, the last of its six numbers.
fn level_of(branch: &Branch, made: &Made) -> i32 {
    let mut record = Vec::new();
    let mut at = made.start;
    while at < made.end {
        let page = at.align_down(PAGE_SIZE);
        let header = if page.0.is_multiple_of(branch.segment()) { LONG_HEADER } else { SHORT_HEADER };
        let (from, to) = (at.max(page + header as u64), made.end.min(page + PAGE_SIZE));
        record.extend_from_slice(branch.wal.slice(from, to));
        at = to;
    }
    // Behind the header, the header of its data, and the other numbers.
    record[24 + 2 + 20..].first_chunk().map_or(-1, |level| i32::from_le_bytes(*level))
}

/// Who receives the same WAL again compares it by the hash in the object's summary.
async fn is_as_summed_up(archive: &Archive, segment: SegmentName, bytes: &[u8]) -> Result<(), String> {
    let summaries = archive.summaries(segment).await.map_err(|e| format!("what {segment} says of itself: {e}"))?;
    for summary in summaries.unwrap_or_default() {
        let (from, to) = (summary.start.since(segment.start()) as usize, summary.end.since(segment.start()) as usize);
        let own = bytes.get(from..to).map(|own| content_hash(archive.keys.secret(), own));
        if own != Some(summary.hash) {
            return Err(format!("{segment} is not what its summary has the hash of"));
        }
    }
    Ok(())
}

/// The first hole that does not end before `at`.
fn next_hole(holes: &[Hole], at: Lsn) -> Option<&Hole> {
    holes.iter().filter(|hole| hole.to > at).min_by_key(|hole| hole.from)
}
