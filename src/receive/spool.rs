//! The spool: a second tail on a local disk, where the repository is object storage. What it has survives a crash of this host, so the server is told that it
//! is written; what is flushed only the repository says.
//!
//! It has files of its own, sealed under salts of their own, one for each open object. While it fails, the write position goes with the flush position, and
//! receiving goes on. What it has beyond the repository after a crash is put there by [`super::recover`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::object::Open;
use super::tail::{Tail, TailMaker};
use crate::archive::Archive;
use crate::disk::durable;
use crate::disk::medium::Ground;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName};
use crate::repo::ClusterNames;
use crate::seal::key::WriterKeys;
use crate::seal::sealer::Compression;

/// After a failure the next attempt waits so long.
const RETRY: Duration = Duration::from_secs(1);

/// What the spool has without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spooled {
    pub from: Lsn,
    pub to: Lsn,
}

/// The spool of one keeper.
pub struct Spool {
    maker: TailMaker,
    /// The tail of the object that starts here.
    tail: Tail,
    object: Option<Lsn>,
    has: Spooled,
    /// When the oldest byte that is not in it arrived.
    oldest: Option<Instant>,
    retry_at: Option<Instant>,
    /// Files that nobody was told of: the object that each is of, and under which run's name it stands.
    begun: Vec<(Lsn, String)>,
}

/// The end of a finished object, which goes where the object goes: after the record that crosses it was checked, or not much later.
pub struct Rest {
    tail: Tail,
    at: (SegmentName, Lsn),
    bytes: Vec<u8>,
}

impl Rest {
    /// Bytes that it holds in memory: a copy, since the object's own buffer is used again.
    pub fn memory(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Spool {
    pub fn new(archive: Archive, compression: Compression, root: PathBuf, start: Lsn) -> Spool {
        let maker = TailMaker::spool(archive, compression, root);
        let has = Spooled { from: start, to: start };
        Spool { maker, tail: Tail::default(), object: None, has, oldest: None, retry_at: None, begun: Vec::new() }
    }

    pub fn maker(&mut self) -> &mut TailMaker {
        &mut self.maker
    }

    /// Something has arrived up to `upto` of this object.
    pub fn arrived(&mut self, open: &Open, upto: usize) {
        let kept = if self.object == Some(open.place.start) { self.tail.kept() } else { 0 };
        if upto > kept && self.oldest.is_none() {
            self.oldest = Some(Instant::now());
        }
    }

    /// When it has to be written next.
    pub fn due(&self, flush_interval: Duration) -> Option<Instant> {
        let due = self.oldest? + flush_interval;
        Some(self.retry_at.map_or(due, |at| at.max(due)))
    }

    fn is_resting(&self) -> bool {
        self.retry_at.is_some_and(|at| at > Instant::now())
    }

    /// Writes and syncs the bytes of this object up to `upto`. `None`: nothing new, or the last failure is too short ago. Only the first of several failures
    /// is an error.
    pub fn keep(&mut self, keys: &WriterKeys, open: &Open, upto: usize) -> Result<Option<Spooled>> {
        let start = open.place.start;
        if self.object != Some(start) {
            (self.object, self.tail) = (Some(start), Tail::default());
        }
        if self.tail.kept() < open.away() {
            self.tail.skip(open.away());
        }
        let mut tail = std::mem::take(&mut self.tail);
        let bytes = open.bytes(tail.kept(), upto).unwrap_or_default();
        let kept = self.write(keys, &mut tail, (open.place.segment, start), bytes);
        let behind = tail.kept() < upto;
        self.tail = tail;
        self.oldest = if behind { self.oldest } else { None };
        kept
    }

    fn write(
        &mut self,
        keys: &WriterKeys,
        tail: &mut Tail,
        at: (SegmentName, Lsn),
        bytes: &[u8],
    ) -> Result<Option<Spooled>> {
        if bytes.is_empty() || self.is_resting() {
            return Ok(None);
        }
        let (first, from) = (!tail.exists(), at.1 + tail.kept() as u64);
        let before = tail.file_run().map(str::to_owned);
        let flushed = tail.flush(&mut self.maker, keys, at, bytes, &mut |_| ());
        let failing = self.retry_at.take().is_some();
        if let Err(error) = flushed {
            self.retry_at = Some(Instant::now() + RETRY);
            let error =
                error.context("cannot write the spool: until it can, nothing counts as written before it is flushed");
            return if failing { Ok(None) } else { Err(error) };
        }
        if from != self.has.to {
            self.has.from = from;
        }
        self.has.to = from + bytes.len() as u64;
        if let Some(run) = tail.file_run().filter(|run| before.as_deref() != Some(*run)) {
            self.begun.push((at.1, run.to_owned()));
        }
        if first {
            self.maker.prepare();
        }
        Ok(Some(self.has))
    }

    /// The files that were begun since the last time.
    pub fn begun(&mut self) -> Vec<(Lsn, String)> {
        std::mem::take(&mut self.begun)
    }

    /// Sees to it that the file need not grow in the next flushes, by so many bytes.
    pub fn reserve(&mut self, ahead: u64) {
        self.tail.reserve(ahead);
    }

    /// The object is complete: what of it is not in the spool yet.
    pub fn close(&mut self, open: &Open) -> Option<Rest> {
        let tail = std::mem::take(&mut self.tail);
        let own = self.object.take() == Some(open.place.start);
        self.oldest = None;
        let bytes = open.bytes(tail.kept(), open.received().since(open.place.start) as usize)?;
        let wanted = own && !bytes.is_empty() && !self.is_resting();
        wanted.then(|| Rest { tail, at: (open.place.segment, open.place.start), bytes: bytes.to_vec() })
    }

    /// Writes and syncs the rest of a finished object.
    pub fn finish(&mut self, keys: &WriterKeys, mut rest: Rest) -> Result<Option<Spooled>> {
        self.write(keys, &mut rest.tail, rest.at, &rest.bytes)
    }

    /// Gives back memory that is only needed while frames are sealed.
    pub fn rest(&mut self) {
        self.tail.rest();
    }
}

/// The files of a spool, as far as the repository makes them needless.
#[derive(Clone)]
pub struct SpoolFiles {
    medium: Ground,
    root: PathBuf,
}

impl SpoolFiles {
    pub fn new(medium: Ground, root: PathBuf) -> SpoolFiles {
        SpoolFiles { medium, root }
    }

    /// Deletes files of one segment by their runs' names.
    pub fn delete_runs(&self, names: &ClusterNames, segment: SegmentName, runs: &[String]) -> Result<()> {
        runs.iter().try_for_each(|run| durable::remove(&*self.medium, &self.root.join(names.spool_file(segment, run))))
    }

    /// Deletes what the spool has of a segment, the files that are being written included.
    pub fn delete(&self, names: &ClusterNames, segment: SegmentName) -> Result<()> {
        let folder = self.root.join(names.spool_segment(segment));
        for (name, _) in list(&self.medium, &folder)? {
            durable::remove(&*self.medium, &folder.join(name))?;
        }
        // Not empty, or gone already: leave it.
        let _ = self.medium.remove_dir(&folder);
        Ok(())
    }
}

/// Names in a folder; none where there is no such folder.
pub fn list(medium: &Ground, folder: &Path) -> Result<Vec<(String, crate::disk::medium::Form)>> {
    let entries = match medium.list(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(durable::failed("cannot list", folder, e)),
    };
    let mut named: Vec<_> =
        entries.into_iter().filter_map(|(name, form)| Some((name.into_string().ok()?, form))).collect();
    named.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(named)
}
