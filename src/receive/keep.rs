//! Keeping: WAL bytes in, sealed objects and durable tails out. Runs on a thread of its own; every step here may compute or wait for the local disk.
//!
//! A finished object leaves for the repository once the record that crosses its end has been checked too, since what is stored is never rewritten. It does not
//! wait for that longer than [`super::held::hold_limit`], nor when a server stops or memory is short.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::check::{Check, Refused};
use super::held::Queue;
use super::merge::Merge;
use super::object::{Object, Open, Place, object_bytes};
use super::spool::Spool;
use super::tail::{Flushed, Merging, Piece, TailMaker};
use super::trim;
use super::worker::Out;
use crate::archive::Archive;
use crate::disk::spare::Spare;
use crate::error::{Class, Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::xact::Note;
use crate::pg::{DurableLsn, Lsn, SegmentSize, TimelineId};
use crate::seal::key::WriterKeys;
use crate::seal::sealer::Compression;
use crate::stats::StreamStats;

mod spooling;

/// A data key is used so long.
const KEY_AGE: Duration = Duration::from_secs(3600);
/// After a tail could not be written, the next attempt waits so long.
const TAIL_RETRY: Duration = Duration::from_secs(1);
/// Without a flush interval, what has arrived together is made durable together; under a stream that never pauses a commit waits for others so long.
const LATE: Duration = Duration::from_millis(20);
/// Zeros that a local tail file begins with, where nobody waits for a single flush.
const SLOW_PREALLOCATE: u64 = 1 << 20;
/// Zeros that a local tail file has ahead of it, where somebody waits for every flush.
const AHEAD: u64 = 1 << 20;
/// Most tail pieces that are on their way to object storage.
const PIECES: usize = 3;

/// What the keeper tells the pipeline.
#[derive(Debug)]
pub enum Kept {
    /// Records up to `checked` are good, and stored copies agree up to `compared` (`None`: nothing is left to compare).
    /// `commits`: ends of the first and the last commit since the last time.
    Checked { checked: Lsn, compared: Option<Lsn>, commits: Option<RangeInclusive<Lsn>> },
    /// The record from `start` to `end` says that the server goes on under `wal_level = minimal`. Told before any byte of it is durable. `compares`: the object
    /// that it ends in is stored already.
    Minimal { start: Lsn, end: Lsn, compares: bool },
    /// An object to put.
    Object(Box<Object>),
    /// A piece of the tail to put.
    Piece(Piece),
    /// Pieces become this one.
    Merged(Piece),
    /// The bytes are no longer in memory, or in an object of their own already.
    NotMerged(Merge),
    /// A local tail file was begun for the object that starts here, under this run's name.
    Opened(Lsn, String),
    /// The local tail files of the object that starts here do not stand under their names any more: its tail begins anew.
    Vanished(Lsn),
    /// Handed to the local operating system; with a spool, synced there.
    Wrote { from: Lsn, to: Lsn },
    /// A file of the spool was begun for the object that starts here, under this run's name.
    Spooling(Lsn, String),
    /// Durable in a local tail.
    Durable { from: Lsn, to: DurableLsn },
    /// A flush is due then, if nothing comes before; `None`: nothing waits.
    FlushAt(Option<Instant>),
    /// Everything up to here was handed on, the head of an unfinished record included.
    Flushed(Lsn),
    /// What was in memory, up to there, is in the tail only.
    Rested(Lsn),
    /// The timeline's end was handed on; nothing more comes.
    Finished,
    /// Goes on, but a person should know.
    Trouble(Error),
    /// The bytes were refused; nothing more comes.
    Refused(Refused),
    /// Cannot go on; nothing more comes.
    Failed(Error),
}

/// How far a flush goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Whole records that have waited for the flush interval.
    Due,
    /// Everything received.
    All,
}

pub struct KeepConfig {
    pub archive: Archive,
    pub writer: Arc<WriterRing>,
    pub timeline: TimelineId,
    pub compression: Compression,
    pub flush_interval: Duration,
    /// Starts of the objects of this timeline that are stored: they are compared when they are complete, and nothing of them is acknowledged before.
    pub stored: BTreeSet<Lsn>,
    /// Tail files to write again.
    pub spare: Spare,
    /// Folder of the spool.
    pub spool: Option<PathBuf>,
    pub stats: Arc<StreamStats>,
}

/// The state between two messages.
pub struct Keeper {
    config: KeepConfig,
    keys: WriterKeys,
    keys_made: Instant,
    check: Check,
    open: Option<Open>,
    spare: Vec<u8>,
    held: Queue,
    tails: TailMaker,
    spool: Option<Spool>,
    merging: Option<Merging>,
    retry_tail_at: Option<Instant>,
    /// The head of an unfinished record was to be kept too, and could not be.
    all_pending: bool,
    /// Records that say `wal_level = minimal`, by their ends, of which nothing is kept before that is noted; and that all was to be kept meanwhile.
    unnoted: BTreeMap<Lsn, Lsn>,
    all_withheld: bool,
    announced: Option<Instant>,
    /// How far checking and comparing had come when that was told last.
    told: Option<(Lsn, Option<Lsn>)>,
    /// Ends of the first and the last commit that nobody was told of.
    commits: Option<RangeInclusive<Lsn>>,
    out: Out,
}

impl Keeper {
    pub fn new(config: KeepConfig, check: Check, out: Out) -> Result<Keeper> {
        let keys = config.writer.fresh()?;
        let tails = TailMaker::new(config.archive.clone(), config.compression, config.spare.clone());
        let interval = config.flush_interval;
        let spool = config.spool.clone();
        let spool = spool.map(|root| Spool::new(config.archive.clone(), config.compression, root, check.received()));
        let mut keeper = Keeper {
            config,
            keys,
            keys_made: Instant::now(),
            check,
            open: None,
            spare: Vec::new(),
            held: Queue::default(),
            tails,
            spool,
            merging: None,
            retry_tail_at: None,
            all_pending: false,
            unnoted: BTreeMap::new(),
            all_withheld: false,
            announced: None,
            told: None,
            commits: None,
            out,
        };
        keeper.set_flush_interval(interval);
        Ok(keeper)
    }

    /// Sealed and raw bytes in memory that were not handed on.
    pub fn memory(&self) -> u64 {
        self.held.memory() + self.open.as_ref().map_or(0, Open::memory)
    }

    /// Whether finished objects wait to be handed on.
    pub fn holds_finished(&self) -> bool {
        !self.held.is_empty()
    }

    pub fn set_flush_interval(&mut self, interval: Duration) {
        self.config.flush_interval = interval;
        let span = object_bytes(self.segment_size());
        for maker in [&mut self.tails].into_iter().chain(self.spool.as_mut().map(Spool::maker)) {
            maker.hurry(interval.is_zero());
            if interval.is_zero() {
                // Someone waits for every flush: no file may have to grow, and the first one is there before the first flush.
                maker.preallocate(span);
                maker.prepare();
            } else {
                maker.preallocate(span.min(SLOW_PREALLOCATE));
            }
        }
    }

    /// The next bytes of the stream.
    pub async fn data(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        while !bytes.is_empty() {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.begin()?,
            };
            let (now, later) = bytes.split_at(bytes.len().min(open.room()));
            let compares = self.is_stored(&open);
            let (commits, unnoted, mut count, out) = (&mut self.commits, &mut self.unnoted, 0, &self.out);
            let counts = self.check.feed(now, &mut |record, note| {
                open.record(record, note);
                if let Note::Commit { .. } = note {
                    count += 1;
                    let first = commits.as_ref().map_or(record.end, |commits| *commits.start());
                    *commits = Some(first..=record.end);
                } else if note.is_minimal() {
                    out.tell(Kept::Minimal { start: record.start, end: record.end, compares });
                    if !compares {
                        unnoted.insert(record.end, record.start);
                    }
                }
            })?;
            self.config.stats.commits.add(count);
            open.push(&counts, self.config.flush_interval.is_zero())?;
            let upto = open.offset(self.wanted());
            if upto > open.tail.kept() && open.oldest.is_none() {
                open.oldest = Some(Instant::now());
            }
            // What is stored complete already is not spooled.
            let stored = self.is_stored(&open);
            if let Some(spool) = self.spool.as_mut().filter(|_| !stored) {
                spool.arrived(&open, upto);
            }
            if open.room() == 0 {
                self.close(open).await?;
            } else {
                self.open = Some(open);
            }
            bytes = later;
        }
        self.release(false)?;
        Ok(())
    }

    fn begin(&mut self) -> Result<Open, Stop> {
        if self.keys_made.elapsed() >= KEY_AGE {
            self.keys = self.config.writer.fresh()?;
            self.keys_made = Instant::now();
        }
        let (size, next) = (self.segment_size(), self.check.received());
        let place = Place::of(next, self.config.timeline, size);
        if place.start != next {
            // Whatever led here: bytes in the wrong place must never be stored.
            let text = format!("WAL goes on at {next}, inside an object whose first bytes are not there any more");
            return Err(Error::new(Kind::Failed, text).into());
        }
        let raw = std::mem::take(&mut self.spare);
        Ok(Open::begin(&self.config.archive, &self.keys, place, self.config.compression, raw)?)
    }

    /// Whether an earlier run stored the object that is being filled.
    fn is_stored(&self, open: &Open) -> bool {
        self.config.stored.contains(&open.place.start)
    }

    fn segment_size(&self) -> SegmentSize {
        self.config.archive.names.segment_size
    }

    async fn close(&mut self, mut open: Open) -> Result<(), Stop> {
        self.leave_merging();
        self.wake(&mut open).await?;
        if open.tail.exists() {
            self.tails.prepare();
        }
        self.all_pending = false;
        self.keep_in_spool(&open);
        let rest = self.spool.as_mut().and_then(|spool| spool.close(&open));
        let (object, spare) = open.finish(&self.config.archive)?;
        self.use_again(spare);
        if self.held.is_behind() {
            self.release(true)?;
        }
        self.held.push(object, rest);
        Ok(())
    }

    fn use_again(&mut self, spare: Vec<u8>) {
        if spare.capacity() > self.spare.capacity() {
            self.spare = spare;
        }
    }

    /// Nothing has arrived for a while, and everything is durable: lets bytes leave memory that these tails hold.
    pub fn rest(&mut self, names: Vec<String>, pieces: usize) -> Result<(), Stop> {
        let busy = pieces > 0 || self.merging.is_some() || !self.held.is_empty();
        if !busy {
            self.spare = Vec::new();
            self.spool.iter_mut().for_each(Spool::rest);
            if let Some(open) = self.open.as_mut()
                && open.rest(names)?
            {
                let rested = open.received();
                self.tell(Kept::Rested(rested));
            }
            trim::give_back();
            self.config.stats.held_bytes.set(self.memory());
        }
        Ok(())
    }

    /// Reads back what left memory, as long as it takes: without it the object cannot be made.
    async fn wake(&mut self, open: &mut Open) -> Result<(), Stop> {
        if !open.is_away() {
            return Ok(());
        }
        // Meanwhile nothing becomes durable, and who waits for that should know.
        self.tell_checked();
        loop {
            match open.wake(&self.config.archive, &self.keys, self.config.compression).await {
                Ok(()) => return Ok(()),
                Err(_) if self.out.is_closed() => {
                    return Err(Error::new(Kind::Interrupted, "the pipeline has ended").into());
                }
                Err(error) if error.is_transient() => {
                    self.tell(Kept::Trouble(error.context("cannot read back the tail")));
                    tokio::time::sleep(TAIL_RETRY).await;
                }
                Err(error) => return Err(Refused::Forgotten(error.to_string()).into()),
            }
        }
    }

    /// Hands on the finished objects that are sealed and whose last record is checked, and with `all` the others too, as soon as they are sealed.
    fn release(&mut self, all: bool) -> Result<(), Stop> {
        self.spool_rests(all);
        while let Some(ended) = self.held.next(self.check.checked(), self.config.flush_interval, all) {
            self.tell_checked();
            let (object, spare) = ended.object()?;
            self.use_again(spare);
            self.tell(Kept::Object(Box::new(object)));
        }
        Ok(())
    }

    /// Hands on finished objects without waiting for the record that crosses their end: memory is short. What was checked does not wait in memory only.
    pub fn release_all(&mut self) -> Result<(), Stop> {
        self.release(true)?;
        self.flush_spool();
        Ok(())
    }

    /// The end of a batch of messages: says how far checking came and when the next flush is due. Without a flush interval it flushes.
    /// `pieces` tail pieces are on their way.
    pub fn settle(&mut self, pieces: usize) -> Result<(), Stop> {
        self.config.stats.held_bytes.set(self.memory());
        // A commit that waits is made durable first: what is told before only wakes the task for nothing.
        if self.config.flush_interval.is_zero() {
            self.flush(Flush::Due, pieces)?;
        }
        self.tell_checked();
        self.announce(pieces);
        Ok(())
    }

    /// Whether somebody waits for a flush, and has waited so long that it goes before what else has arrived; under a stream that never pauses nobody would
    /// be told that one is due.
    pub fn is_late(&self) -> bool {
        let due = [self.tail_due(), self.spool_due()].into_iter().flatten().min();
        let grace = if self.config.flush_interval.is_zero() { LATE } else { Duration::ZERO };
        due.is_some_and(|due| due + grace <= Instant::now())
    }

    /// An error when the tail can be written no more.
    pub fn flush(&mut self, flush: Flush, pieces: usize) -> Result<(), Stop> {
        let now = Instant::now();
        self.announced = None;
        self.spool_rests(flush == Flush::All);
        self.release(false)?;
        self.all_pending |= flush == Flush::All;
        self.all_withheld |= flush == Flush::All && !self.unnoted.is_empty();
        let due = flush == Flush::All || (self.tail_due().is_some_and(|at| at <= now) && pieces < PIECES);
        if due {
            self.flush_tail()?;
        }
        // The pieces are on their way by now. However many of them hang there, the spool goes on.
        if flush == Flush::All || self.spool_due().is_some_and(|at| at <= now) {
            self.flush_spool();
        }
        if flush == Flush::All {
            // What is not sealed yet is waited for after everything that need not wait.
            self.release(true)?;
            self.tell_checked();
            self.tell(Kept::Flushed(self.check.received()));
        }
        self.announce(pieces);
        Ok(())
    }

    /// Begins to make one piece of these bytes, step by step: see [`Keeper::idle_step`].
    pub fn merge(&mut self, merge: Merge) {
        self.leave_merging();
        let open = self.open.as_ref().filter(|open| open.place.start <= merge.from && open.kept() >= merge.to);
        let open = open.filter(|open| open.bytes(open.offset(merge.from), open.offset(merge.to)).is_some());
        match open.map(|open| Merging::begin(&self.tails, &self.keys, open.place.segment, merge)) {
            Some(Ok(merging)) => self.merging = Some(merging),
            Some(Err(error)) => {
                self.tell(Kept::NotMerged(merge));
                self.tell(Kept::Trouble(error.context("cannot merge pieces of the tail")));
            }
            None => self.tell(Kept::NotMerged(merge)),
        }
    }

    fn leave_merging(&mut self) {
        if let Some(merging) = self.merging.take() {
            self.tell(Kept::NotMerged(merging.merge()));
        }
    }

    /// Whether there is work that waits for a moment without other work.
    pub fn has_idle_work(&self) -> bool {
        self.open.as_ref().is_some_and(|open| self.merging.is_some() || open.can_seal())
    }

    /// One step of it, which takes a millisecond at most.
    pub fn idle_step(&mut self) {
        if self.open.as_mut().is_some_and(Open::seal_one) {
            return;
        }
        let (Some(mut merging), Some(open)) = (self.merging.take(), &self.open) else { return };
        let bytes = open.bytes(open.offset(merging.at()), open.offset(merging.to())).unwrap_or_default();
        match merging.step(bytes) {
            true => self.merging = Some(merging),
            false => {
                let piece = merging.finish(&self.config.archive, open.place.segment);
                self.tell(Kept::Merged(piece));
            }
        }
    }

    /// The timeline ends here: its last bytes become an object of their own.
    pub async fn finish(&mut self) -> Result<(), Stop> {
        self.flush(Flush::All, 0)?;
        self.leave_merging();
        let open = self.open.take();
        if let Some(mut open) = open.filter(|open| !self.is_stored(open)) {
            self.wake(&mut open).await?;
            let object = open.finish_partial(&self.config.archive, &self.keys, self.config.compression)?;
            self.tell(Kept::Object(Box::new(object)));
        }
        self.tell(Kept::Finished);
        Ok(())
    }

    /// Up to where the tail should reach now.
    fn wanted(&self) -> Lsn {
        let upto = self.check.keepable(if self.all_pending { self.check.received() } else { self.check.checked() });
        self.unnoted.values().next().map_or(upto, |start| upto.min(*start))
    }

    /// What is noted may be kept.
    pub fn noted(&mut self, end: Lsn) -> Result<(), Stop> {
        self.unnoted.remove(&end);
        self.all_pending |= self.unnoted.is_empty() && std::mem::take(&mut self.all_withheld);
        if self.all_pending {
            self.flush_tail()?;
        }
        let upto = self.wanted();
        if let Some(open) = &mut self.open
            && open.offset(upto) > open.tail.kept()
        {
            open.oldest.get_or_insert_with(Instant::now);
        }
        self.flush_spool();
        self.release(false)
    }

    fn flush_tail(&mut self) -> Result<(), Stop> {
        let Some(mut open) = self.open.take() else {
            self.all_pending = false;
            return Ok(());
        };
        // What is stored complete already is compared at its end; until then nothing of it counts.
        if self.is_stored(&open) {
            self.all_pending = false;
            open.oldest = None;
        } else {
            let first = !open.tail.exists();
            self.flush_open(&mut open)?;
            if first && open.tail.exists() {
                self.tails.prepare();
            }
            if self.config.flush_interval.is_zero() {
                open.tail.reserve(AHEAD);
            }
            let fresh = open.offset(self.wanted()) > open.tail.kept();
            open.oldest = fresh.then(Instant::now);
        }
        self.open = Some(open);
        Ok(())
    }

    fn flush_open(&mut self, open: &mut Open) -> Result<(), Stop> {
        let upto = open.offset(self.wanted());
        let from = open.kept();
        let before = open.tail.file_run().is_some();
        let mut wrote = None;
        let begun = Instant::now();
        let flushed = open.flush(&mut self.tails, &self.keys, upto, &mut |to| wrote = Some(to));
        if let (false, Some(run)) = (before, open.tail.file_run()) {
            self.tell(Kept::Opened(open.place.start, run.to_owned()));
        }
        self.tell_checked();
        self.retry_tail_at = None;
        let all = std::mem::take(&mut self.all_pending);
        let Some(flushed) = flushed.or_else(|error| self.tail_failed(open, all, error).map(|()| None))? else {
            return Ok(());
        };
        self.config.stats.flushed((open.place.start + upto as u64).since(from), begun.elapsed(), Instant::now());
        // Not before the sync: a failed one takes back what was written.
        wrote.into_iter().for_each(|to| self.tell(Kept::Wrote { from, to }));
        match flushed {
            Flushed::Durable(to) => self.tell(Kept::Durable { from, to }),
            Flushed::Piece(piece) => self.tell(Kept::Piece(piece)),
            // Told by the spool.
            Flushed::Spooled => {}
        }
        Ok(())
    }

    /// The tail could not be written; `all`: nor the head of an unfinished record. Whether it may be tried again.
    fn tail_failed(&mut self, open: &mut Open, all: bool, error: Error) -> Result<(), Stop> {
        let error = error.context("cannot write the tail");
        // A second attempt may succeed without what the first one did not bring to the disk.
        if error.class() == Class::Unsynced {
            return Err(error.into());
        }
        if open.tail.take_vanished() {
            self.tell(Kept::Vanished(open.place.start));
            // What was acknowledged is in no file then. From memory it is written anew; without it the segment is received again.
            if open.is_away() {
                return Err(Refused::Forgotten(error.to_string()).into());
            }
        }
        self.retry_tail_at = Some(Instant::now() + TAIL_RETRY);
        self.all_pending = all;
        self.tell(Kept::Trouble(error));
        Ok(())
    }

    /// When the tail has to be written next.
    fn tail_due(&self) -> Option<Instant> {
        let oldest = self.open.as_ref().and_then(|open| open.oldest)?;
        let due = oldest + self.config.flush_interval;
        Some(self.retry_tail_at.map_or(due, |at| at.max(due)))
    }

    fn announce(&mut self, pieces: usize) {
        let soon = Instant::now() + Duration::from_millis(50);
        let tail = self.tail_due().map(|at| if pieces >= PIECES { at.max(soon) } else { at });
        let due = [tail, self.held.due(self.config.flush_interval), self.spool_due()].into_iter().flatten().min();
        if due != self.announced {
            self.announced = due;
            self.tell(Kept::FlushAt(due));
        }
    }

    /// Unless nothing has changed since: every event wakes the task that reports.
    fn tell_checked(&mut self) {
        let (checked, compared, commits) = (self.check.checked(), self.check.compared(), self.commits.take());
        if self.told != Some((checked, compared)) || commits.is_some() {
            self.told = Some((checked, compared));
            self.tell(Kept::Checked { checked, compared, commits });
        }
    }

    fn tell(&self, kept: Kept) {
        self.out.tell(kept);
    }
}

/// Why the keeper cannot go on.
#[derive(Debug)]
pub enum Stop {
    Refused(Refused),
    Failed(Error),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Stop {
        Stop::Refused(refused)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}
