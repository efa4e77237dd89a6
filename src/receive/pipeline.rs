//! The pipeline of one timeline: take what arrives, keep it, put it, acknowledge what is durable, clear away what is no longer needed.
//!
//! It outlives connections: bytes that were taken are kept and put while the server is away, and the next connection goes on at the exact byte.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Instant;

use super::acknowledge::Ledger;
use super::alarm::{Alarms, Noted};
use super::arrivals::Arrivals;
use super::beats::Beats;
use super::check::{Check, Known, Refused};
use super::clear::Clearing;
use super::compare::Comparison;
use super::index::Feed;
use super::keep::{Flush, KeepConfig, Keeper, Kept};
use super::lasting::Lasting;
use super::merge::Compact;
use super::note::Notes;
use super::observe::{Observer, ReceiveEvent};
use super::prepare::Stored;
use super::put::{Done, Item, Puts};
use super::recall::Recall;
use super::tail::Piece;
use super::worker::{Work, Worker, hand_over};
use super::{ReceiveOptions, wait_until};
use crate::archive::Archive;
use crate::disk::desk::Desk;
use crate::disk::spare::Spare;
use crate::error::{Class, Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::scan::ScanConfig;
use crate::pg::{Lsn, MajorVersion, SegmentSize, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;
use crate::seal::header::ObjectKind;

mod ending;

/// How often progress is told, and the longest quiet time.
const TELL: Duration = Duration::from_secs(1);
const LONG_QUIET: Duration = Duration::from_secs(600);

/// What a turn of the pipeline brought.
#[derive(Debug)]
pub enum Turn {
    /// The queue took something, or nothing that matters to a connection.
    Went,
    /// There may be more to report.
    Moved,
    /// The bytes were refused: this pipeline is over.
    Refused(Refused),
}

/// What one timeline of one run has in hand.
pub struct Pipeline {
    archive: Archive,
    timeline: TimelineId,
    worker: Worker,
    outbox: VecDeque<Work>,
    pub ledger: Ledger,
    arrivals: Arrivals,
    beats: Beats,
    alarms: Alarms,
    puts: Puts,
    trouble: UnboundedReceiver<Error>,
    /// End of what was taken from the server.
    received: Lsn,
    recall: Recall,
    /// Where it began, where the first record has to show that what is stored before it is this server's too.
    linked_at: Option<Lsn>,
    flush_at: Option<Instant>,
    /// When what is in memory may leave it, and up to where it did; `rest_after` is `quiet` again after a rest.
    rest_at: Option<Instant>,
    rest_after: Duration,
    rest_worth: u64,
    quiet: Duration,
    rested: Lsn,
    lost: bool,
    /// The last complete flush that was answered, and how many are on their way.
    flushed: Lsn,
    flushes: usize,
    /// The end was asked for: the thread takes nothing more.
    finishing: bool,
    finished: bool,
    partial_stored: bool,
    /// When durable bytes last moved, or nothing waited.
    progress_at: Instant,
    flush_interval: Duration,
    told_at: Option<Instant>,
    /// Starts of the objects that were stored before this run: what arrives of them is compared at their end, and nothing of them is durable here before.
    stored: BTreeSet<Lsn>,
    clearing: Clearing,
    /// There is a spool: what it has waits for nothing.
    spools: bool,
    notes: Notes,
    observer: Observer,
}

/// Where a pipeline begins, and what its bytes belong to.
pub struct Begin {
    pub archive: Archive,
    pub writer: Arc<WriterRing>,
    pub version: MajorVersion,
    pub timeline: TimelineId,
    pub start: Lsn,
    pub stored: Stored,
    pub feed: Feed,
    pub desk: Option<Desk>,
    pub lasting: Lasting,
}

impl Pipeline {
    pub fn begin(options: &ReceiveOptions, begin: Begin, observer: Observer) -> Result<Pipeline> {
        let Begin { archive, writer, version, timeline, start, stored, feed, desk, lasting } = begin;
        let names = &archive.names;
        let config = ScanConfig { version, system: names.system, timeline, segment_size: names.segment_size };
        let stored_to = stored.end(names.segment_size).unwrap_or(start);
        let mut tailed = stored.litter;
        tailed.extend(stored.tails.iter().map(|tail| names.segment_size.segment_of(tail.start)));
        let older =
            stored.tails.iter().filter(|tail| tail.start >= start).map(|tail| (tail.end(), tail.pieces.clone()));
        let older = older.collect();
        let linked_at = stored.link.as_ref().map(|_| start);
        let known = Known { link: stored.link, reported: stored.reported };
        let check = Check::new(config, start, Comparison::new(start, stored.tails, archive.keys.secret()), known);
        let flush_interval = options.flush_interval;
        // Where tails are files of the repository, a spool would only hold them twice.
        let spool = options.spool_dir.clone().filter(|_| archive.repo.local_root().is_none());
        let spare = Spare::default();
        let beats = Beats::new(archive.clone(), writer.clone(), timeline, stored_to, lasting.clone());
        let alarms = Alarms::new(archive.clone(), writer.clone(), timeline);
        let keep = KeepConfig {
            archive: archive.clone(),
            writer,
            timeline,
            compression: options.compression,
            flush_interval,
            stored: stored.objects.clone(),
            spare: spare.clone(),
            spool: spool.clone(),
            stats: observer.stats().clone(),
        };
        let make = |out| Keeper::new(keep, check, out);
        let worker = Worker::start(archive.repo.lane(), desk.as_ref(), options.memory, make)?;
        worker.sit(flush_interval.is_zero());
        let (out, trouble) = mpsc::unbounded_channel();
        Ok(Pipeline {
            ledger: Ledger::new(names.system, timeline, start),
            puts: Puts::new(archive.clone(), out, observer.stats().clone(), lasting),
            arrivals: Arrivals::default(),
            beats,
            alarms,
            spools: spool.is_some(),
            clearing: Clearing::new(archive.clone(), (timeline, start), tailed, older, (spare, spool)),
            archive,
            timeline,
            worker,
            outbox: VecDeque::new(),
            trouble,
            received: start,
            recall: Recall::new(start),
            linked_at,
            flush_at: None,
            rest_at: None,
            rest_after: options.rest_after,
            rest_worth: options.rest_worth,
            quiet: options.rest_after,
            rested: start,
            lost: false,
            flushed: start,
            flushes: 0,
            finishing: false,
            finished: false,
            partial_stored: false,
            progress_at: Instant::now(),
            flush_interval,
            told_at: None,
            stored: stored.objects,
            notes: Notes::begin(timeline, start, feed),
            observer,
        })
    }

    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    pub fn segment_size(&self) -> SegmentSize {
        self.archive.names.segment_size
    }

    /// End of what was taken from the server: where the stream goes on.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// A new connection goes on with this pipeline: what its server said it holds, and where it left this timeline.
    pub fn connected(&mut self, server_end: Lsn, switch_point: Option<Lsn>) {
        self.ledger.connected(server_end, switch_point);
        self.count();
        self.progress_at = Instant::now();
    }

    /// Where the stream stands, for whoever watches.
    pub fn count(&self) {
        let stats = self.observer.stats();
        stats.received.set(self.received.0);
        stats.durable.set(self.ledger.durable().0);
        stats.reported.set(self.ledger.reported().0);
        stats.server_end.set(self.ledger.server_end().0);
        stats.queued_bytes.set(self.worker.budget.outstanding());
    }

    /// Whether more bytes may be taken. Until then the socket waits.
    pub fn has_room(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Where a new connection begins, to be recognised by what it sends of the last bytes. Not below `floor`: what lies there may be gone.
    pub fn resume_at(&self, floor: Lsn) -> Lsn {
        self.recall.from(floor)
    }

    /// A server that sends what was received from `from` on is known only once a record that ends behind this was checked: it names the one before it.
    pub fn proof(&self, from: Lsn) -> Option<Lsn> {
        let behind = if self.recall.tells(from) { self.linked_at } else { Some(self.received) };
        behind.filter(|lsn| self.ledger.verified() <= *lsn)
    }

    /// What is new of bytes from `start` on; `None`: those that were received before are others.
    pub fn fresh(&self, start: Lsn, bytes: Bytes) -> Option<Bytes> {
        self.recall.fresh(start, bytes)
    }

    /// Takes the next bytes of the stream.
    pub fn take(&mut self, bytes: Bytes) {
        self.recall.push(bytes.clone());
        self.received = self.received + bytes.len() as u64;
        self.arrivals.arrived(self.received, Instant::now());
        let stats = self.observer.stats();
        stats.received.set(self.received.0);
        stats.server_end.set(self.ledger.server_end().0);
        stats.bytes_received.add(bytes.len() as u64);
        self.rest_at = Some(Instant::now() + self.rest_after);
        self.ask(Work::Data(bytes));
    }

    /// Nothing has arrived for a while: what is in the tail need not stay in memory.
    fn rest(&mut self) {
        self.rest_at = Some(Instant::now() + self.rest_after);
        if !self.is_durable() {
            self.flush_all();
            return;
        }
        if !self.is_quiet() || !self.puts.is_empty() {
            return;
        }
        let object = self.clearing.object_of(self.received);
        if self.received.since(object.max(self.rested)) < self.rest_worth {
            self.rest_at = None;
            self.ask(Work::Rest(Vec::new()));
            return;
        }
        match self.clearing.compact(object) {
            Compact::Merge(merge) => {
                // A stream that goes on before it came to rest is not compacted again soon.
                self.rest_after = (self.rest_after * 2).min(LONG_QUIET);
                self.rest_at = Some(Instant::now() + TELL);
                self.ask(Work::Merge(merge));
            }
            Compact::Busy => self.rest_at = Some(Instant::now() + TELL),
            Compact::Nothing => self.ask(Work::Rest(self.clearing.tails_of(object))),
        }
    }

    /// Whether it has refused to go on for a reason that a new one does not have.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the end of its timeline was handed on, or asked for: it takes nothing more.
    pub fn is_finished(&self) -> bool {
        self.finishing
    }

    /// Makes everything that was taken durable, the head of an unfinished record included.
    pub fn flush_all(&mut self) {
        if self.flushed < self.received && self.flushes == 0 {
            self.flushes += 1;
            self.ask(Work::Flush(Flush::All));
        }
    }

    /// Whether everything that was taken is durable.
    pub fn is_durable(&self) -> bool {
        self.ledger.durable() >= self.received
    }

    pub fn set_flush_interval(&mut self, interval: Duration) {
        self.flush_interval = interval;
        self.worker.sit(interval.is_zero());
        self.ask(Work::FlushInterval(interval));
    }

    /// Whether checked bytes have waited for longer than `limit` without any becoming durable, the wait for the next flush not counted. A thread that hangs
    /// in a flush has not said yet what it checked before. What a spool has waits for nothing: a commit under `remote_write` goes on, until memory is full.
    pub fn is_stalled(&mut self, limit: Duration) -> bool {
        let stuck = !self.is_durable() && self.worker.budget.is_stuck();
        let waiting = match self.spools {
            true => self.ledger.unspooled() || self.worker.budget.is_waiting() || stuck,
            false => self.ledger.waiting() || stuck,
        };
        if !waiting || self.only_compares() {
            self.progress_at = Instant::now();
        }
        self.progress_at.elapsed() >= limit + self.flush_interval
    }

    /// Whether the next byte to become durable belongs to a stored object that has not arrived whole: no repository is waited for, only the server.
    fn only_compares(&self) -> bool {
        self.puts.is_empty()
            && !self.alarms.is_noting()
            && self.stored.contains(&self.clearing.object_of(self.ledger.durable()))
    }

    /// Whether nothing that was asked for is on its way to the thread or back.
    fn is_quiet(&self) -> bool {
        self.flushes == 0 && self.outbox.is_empty()
    }

    /// Whether everything that was taken was handed on, and the rest waits for the end of an object that is stored already.
    pub fn only_lacks_comparison(&self) -> bool {
        self.flushed >= self.received && self.is_quiet() && self.only_compares()
    }

    /// The same where a tail or an end of an earlier run goes on past what has arrived.
    fn lacks_older_bytes(&self) -> bool {
        self.flushed >= self.received && self.is_quiet() && self.puts.is_empty() && self.ledger.only_lacks_comparison()
    }

    /// Whether what was taken counts only once the server has sent more, to compare what is stored with.
    pub fn waits_for_comparison(&self) -> bool {
        self.only_lacks_comparison() || self.lacks_older_bytes()
    }

    fn ask(&mut self, work: Work) {
        if self.outbox.is_empty() {
            match self.worker.work.try_send(work) {
                Ok(()) => {}
                // Closed: the thread has said why, and that is read soon.
                Err(mpsc::error::TrySendError::Full(work) | mpsc::error::TrySendError::Closed(work)) => {
                    self.outbox.push_back(work);
                }
            }
        } else {
            self.outbox.push_back(work);
        }
    }

    /// One step of what goes on inside, connected or not. Cancel safe.
    pub async fn turn(&mut self) -> Result<Turn> {
        let (flush_at, rest_at) = (self.flush_at, self.rest_at);
        tokio::select! {
            true = hand_over(&self.worker.work, &mut self.outbox), if !self.outbox.is_empty() => Ok(Turn::Went),
            kept = self.worker.kept.recv() => match kept {
                Some(kept) => self.all_kept(kept),
                None => Err(Error::new(Kind::Failed, "the thread that keeps has died")),
            },
            Some(done) = self.puts.next() => self.put_done(done?),
            Some(beat) = self.beats.next() => {
                match beat {
                    Ok(gone) => return Ok(gone.map_or(Turn::Went, |name| self.set_back(name))),
                    Err(error) => self.observer.warn(format!("a heartbeat cannot be stored: {error}")),
                }
                Ok(Turn::Went)
            }
            Some(noted) = self.alarms.next() => {
                self.noted(noted)?;
                Ok(Turn::Moved)
            }
            Some(error) = self.trouble.recv() => {
                self.observer.warn(error.to_string());
                Ok(Turn::Went)
            }
            Some(cleared) = self.clearing.next() => {
                if let Err(error) = cleared {
                    self.observer.warn(format!("tails that are no longer needed cannot be deleted: {error}"));
                }
                Ok(Turn::Went)
            }
            () = wait_until(flush_at) => {
                self.flush_at = None;
                self.ask(Work::Flush(Flush::Due));
                Ok(Turn::Went)
            }
            () = wait_until(rest_at) => {
                self.rest();
                Ok(Turn::Went)
            }
        }
    }

    /// This, and what else was told by now: whoever reports it says all in one word.
    fn all_kept(&mut self, first: Kept) -> Result<Turn> {
        let mut turn = self.kept(first)?;
        while matches!(turn, Turn::Moved)
            && let Ok(kept) = self.worker.kept.try_recv()
        {
            turn = self.kept(kept)?;
        }
        Ok(turn)
    }

    fn kept(&mut self, kept: Kept) -> Result<Turn> {
        match kept {
            Kept::Checked { checked, compared, commits } => {
                self.ledger.checked(checked, compared);
                self.alarms.checked(checked, compared);
                self.arrivals.checked(checked, commits);
                self.observer.stats().verified.set(checked.0);
                self.observer.stats().set_oldest_commit(self.arrivals.oldest());
            }
            Kept::Minimal { start, end, compares } => self.alarms.saw(start, end, compares),
            Kept::Object(object) => {
                if let Some(object) = self.alarms.admit(object) {
                    self.puts.add(Item::Object(object), self.timeline);
                }
            }
            Kept::Piece(piece) => {
                self.clearing.tailed(piece.to);
                self.puts.add(Item::Piece(piece), self.timeline);
            }
            Kept::Merged(piece) => self.puts.add(Item::Merged(piece), self.timeline),
            Kept::NotMerged(merge) => self.clearing.not_merged(merge),
            Kept::Opened(object, run) => self.clearing.opened(object, run),
            Kept::Vanished(object) => self.clearing.vanished(object),
            Kept::Wrote { from, to } => {
                if self.ledger.wrote(from, to) && self.spools {
                    self.progress_at = Instant::now();
                }
            }
            Kept::Spooling(object, run) => self.clearing.spooling(object, run),
            Kept::Durable { from, to } => {
                self.clearing.tailed(to.lsn());
                self.stored(from, to);
            }
            Kept::FlushAt(at) => self.flush_at = at,
            Kept::Flushed(lsn) => {
                self.flushes = self.flushes.saturating_sub(1);
                self.flushed = self.flushed.max(lsn);
            }
            Kept::Finished => self.finished = true,
            Kept::Trouble(error) => self.observer.warn(error.to_string()),
            Kept::Rested(lsn) => {
                (self.rested, self.rest_after) = (lsn, self.quiet);
                self.rest_at = self.rest_at.filter(|_| self.received > lsn);
            }
            Kept::Refused(refused) => {
                self.lost = matches!(refused, Refused::Forgotten(_) | Refused::Headless { .. });
                return Ok(Turn::Refused(refused));
            }
            Kept::Failed(error) => return Err(error),
        }
        Ok(Turn::Moved)
    }

    fn put_done(&mut self, mut done: Done) -> Result<Turn> {
        if let Some(differs) = done.differs.take() {
            return Ok(Turn::Refused(Refused::Differs(differs)));
        }
        if let Some(name) = done.gone.take() {
            return Ok(self.set_back(name));
        }
        if let Some(durable) = done.durable {
            self.stored(done.item.from(), durable);
        }
        self.leave(&done.item);
        self.notes.settled(&done);
        match done.item {
            Item::Piece(piece) => self.piece_stands(piece, false),
            Item::Merged(piece) => self.piece_stands(piece, true),
            Item::Object(object) if object.kind == ObjectKind::Partial => {
                self.partial_stored = done.durable.is_some();
                if !self.partial_stored {
                    let text = "is stored already, with another end: nothing is lost, this one stays in the tail";
                    self.observer.warn(format!("{} {text}", object.name));
                }
            }
            Item::Object(object) if object.place.ends_segment() => {
                let (segment, stored_bytes) = (object.place.segment, object.sealed.len());
                self.observer.tell(ReceiveEvent::SegmentStored { segment, stored_bytes });
            }
            Item::Object(_) => {}
        }
        Ok(Turn::Moved)
    }

    /// Nothing more of this pipeline counts: what is gone has to be found, and received again.
    fn set_back(&mut self, name: String) -> Turn {
        self.lost = true;
        Turn::Refused(Refused::SetBack(name))
    }

    /// What is put, or needs no put any more, takes no more room.
    fn leave(&mut self, item: &Item) {
        match item {
            // Not counted: it waits for everything else, and there is one at a time.
            Item::Merged(_) => {}
            Item::Object(_) => self.worker.budget.remove(item.size()),
            Item::Piece(_) => {
                self.worker.budget.remove(item.size());
                self.worker.budget.piece_ended();
            }
        }
    }

    fn piece_stands(&mut self, piece: Piece, merged: bool) {
        if let Some(merge) = self.clearing.stands(piece, merged, self.ledger.reported()) {
            self.ask(Work::Merge(merge));
        }
    }

    /// What waited for an alarm counts now, and is put, up to the next one.
    fn noted(&mut self, noted: Result<Noted>) -> Result<()> {
        match noted {
            Ok(Noted { alarm, end, new, released }) => {
                self.ask(Work::Noted(end));
                while let Some(object) = self.alarms.admitted() {
                    self.puts.add(Item::Object(object), self.timeline);
                }
                released.into_iter().for_each(|(from, to)| self.stored(from, to));
                self.alarms.checked(self.ledger.verified(), self.ledger.compared());
                if new {
                    self.observer.tell(ReceiveEvent::MinimalWal(alarm));
                }
                Ok(())
            }
            // A second attempt may find what the first one did not bring to the disk.
            Err(error) if error.class() == Class::Unsynced => Err(error),
            Err(error) => {
                let what = "WAL was written under wal_level = minimal, which cannot be noted in the repository";
                self.observer.warn(format!("{what}; nothing behind it is acknowledged before it is: {error}"));
                Ok(())
            }
        }
    }

    fn stored(&mut self, from: Lsn, to: crate::pg::DurableLsn) {
        let before = self.ledger.durable();
        if !self.alarms.withholds(from, to) && self.ledger.stored(from, to) {
            let (now, durable, stats) = (Instant::now(), self.ledger.durable(), self.observer.stats());
            self.progress_at = now;
            self.arrivals.durable(durable, now, stats);
            stats.durable.set(durable.0);
            stats.bytes_durable.add(durable.since(before));
            stats.set_oldest_commit(self.arrivals.oldest());
        }
        self.alarms.reached(self.ledger.durable());
    }

    /// After a report: deletes the tails of segments that are stored whole and acknowledged, and tells how far the repository is.
    pub fn reported(&mut self) {
        self.count();
        let reported = self.ledger.reported();
        self.clearing.reported(reported);
        if self.ledger.is_compared() {
            self.clearing.compared(reported);
        }
        for item in self.puts.forget_tails(self.clearing.object_of(reported)) {
            self.leave(&item);
        }
        self.notes.until(reported);
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL) {
            self.told_at = Some(Instant::now());
            let (durable, verified) = (self.ledger.durable(), self.ledger.verified());
            let server_end = self.ledger.server_end();
            self.notes.reached(reported, server_end);
            self.observer.tell(ReceiveEvent::Durable { timeline: self.timeline, durable, verified, server_end });
        }
    }

    /// Whether a server whose WAL ends there speaks for all that is stored.
    pub fn speaks_for_all(&self, end: Lsn) -> bool {
        self.beats.speaks_for_all(end)
    }

    /// The server has proven that its WAL ended there at a time. That is stored from time to time, as far as all WAL before it is.
    pub fn proven(&mut self, beat: Heartbeat) {
        if self.ledger.covers(beat.lsn) && self.speaks_for_all(beat.lsn) {
            self.notes.beat(beat);
            self.beats.proven(beat);
        }
    }
}
