//! The process that fetches WAL ahead of a recovery, so that replay does not wait for the storage.
//!
//! One for each data directory (a lock), started by `wal-fetch`, ended by itself. It only ever writes into its own folder, under names that say what
//! a file is and what its checksum is; `hand_over` looks at both, and at the plan, before the server gets one. So whatever goes wrong here costs time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ahead::{self, Piece, Reach, Ready, State};
use super::decide::{Bounds, Order, Wanted};
use super::fetch;
use super::hand_over::{LOCK, asked, listed, sweep, take_lock};
use super::plan_file::PlanFile;
use super::recovering::{Recovery, folder};
use crate::archive::Archive;
use crate::disk::ahead as files;
use crate::disk::lock::LockFile;
use crate::error::Result;
use crate::pg::{SegmentName, SegmentNumber};

/// How often it looks for what was asked.
const LOOK: Duration = Duration::from_millis(20);
/// `wal-fetch` takes the lock for a moment, to see whether anybody has it: it is looked at so often before that somebody is taken for a prefetcher.
const PROBES: u32 = 15;
/// How often it asks whether the recovery goes on.
const CHECK: Duration = Duration::from_millis(200);
/// What could not be fetched is tried again after this time.
const REST: Duration = Duration::from_secs(1);
/// The same for a standby, which has come to the end of the archive then: it asks every `wal_retrieve_retry_interval` itself, 5 s by default.
const REST_AT_THE_END: Duration = Duration::from_secs(5);
/// A server that has asked for nothing for so long streams, waits, or is done.
pub const IDLE: Duration = Duration::from_secs(60);
/// Where the server is further than it was by more segments than this, some of them stay in memory.
const MOST_FORGOTTEN: u64 = 64;

/// Fetches ahead in `pgdata` until the recovery there ends, or nothing has been asked for a while. Returns at once where there is no recovery, or
/// another prefetcher. `open` opens the archive where no plan says how.
pub async fn run(
    pgdata: &Path,
    budget: u64,
    idle: Duration,
    env: &dyn Fn(&str) -> Option<String>,
    open: &(dyn Fn() -> BoxFuture<'static, Result<Archive>> + Sync),
) -> Result<()> {
    let Some(recovery) = Recovery::of(pgdata) else {
        // It ended while this was being started: by whoever asked last, at a time when the one before was gone already.
        sweep(pgdata);
        return Ok(());
    };
    let plan = PlanFile::binding(pgdata)?;
    let folder = folder(pgdata, plan.as_ref().map(PlanFile::mark));
    let place = folder.join(LOCK);
    let Some(lock) = take(pgdata, &place).await? else { return Ok(()) };
    let goes_on = || lock.stands_at(&place) && recovery.goes_on(pgdata);
    let source = match plan {
        Some(plan) => plan.archive(env).map(|archive| Source { archive, bounds: Some(plan.bounds) }),
        None => open().await.map(|archive| Source { archive, bounds: None }),
    };
    let outcome = match source {
        Ok(source) => {
            Prefetcher::new(pgdata, folder.clone(), source, budget)?.work(idle, &goes_on).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    // A folder that is another's by now is left alone.
    if lock.stands_at(&place) {
        files::dissolve(&folder);
    }
    outcome
}

async fn take(pgdata: &Path, place: &Path) -> Result<Option<LockFile>> {
    for _ in 0..PROBES {
        if let Some(lock) = take_lock(pgdata, place)? {
            return Ok(Some(lock));
        }
        tokio::time::sleep(LOOK).await;
    }
    take_lock(pgdata, place)
}

/// Where WAL comes from, and how far it counts.
#[derive(Clone)]
struct Source {
    archive: Archive,
    /// `None` in standby mode.
    bounds: Option<Bounds>,
}

impl Source {
    fn wanted(&self, asked: SegmentName, count: usize) -> Vec<Piece> {
        match &self.bounds {
            Some(bounds) => ahead::under_plan(bounds, asked, count),
            None => ahead::in_standby(asked, count),
        }
    }

    fn rest(&self) -> Duration {
        if self.bounds.is_some() { REST } else { REST_AT_THE_END }
    }

    /// As `wal-fetch` fetches it itself; `None` where it is not there as a whole.
    async fn content(&self, piece: Piece) -> Result<Option<Bytes>> {
        let Some(bounds) = &self.bounds else {
            // Never the tail: a standby that has come to the end of the archive would have it fetched over and over, for nothing.
            return self.archive.read_complete(piece.segment).await;
        };
        match bounds.order(Wanted::Segment(piece.segment)) {
            Order::Segment { bytes, donors } if bytes == piece.bytes => {
                fetch::planned(&self.archive, piece.segment, bytes, &donors).await.map(Some)
            }
            _ => Ok(None),
        }
    }
}

struct Prefetcher {
    /// The server's own WAL.
    pg_wal: PathBuf,
    folder: PathBuf,
    source: Source,
    budget: u64,
    tasks: JoinSet<(Piece, bool)>,
    state: State,
    /// Until when what could not be fetched is left alone.
    resting: BTreeMap<Piece, Instant>,
    reach: Reach,
    /// The first segment that is not forgotten yet.
    kept: Option<SegmentNumber>,
}

impl Prefetcher {
    /// What an earlier one left goes: it may be of another plan.
    fn new(pgdata: &Path, folder: PathBuf, source: Source, budget: u64) -> Result<Prefetcher> {
        let size = source.archive.names.segment_size;
        for name in files::names(&folder)? {
            if name.ends_with(".part") || Ready::parse(&name, size).is_some() {
                files::remove(&folder.join(name))?;
            }
        }
        let (tasks, state, resting) = (JoinSet::new(), State::default(), BTreeMap::new());
        let (pg_wal, reach) = (pgdata.join("pg_wal"), Reach::new(size));
        Ok(Prefetcher { pg_wal, folder, source, budget, tasks, state, resting, reach, kept: None })
    }

    async fn work(mut self, idle: Duration, goes_on: &dyn Fn() -> bool) {
        let size = self.source.archive.names.segment_size;
        let mut last = String::new();
        let (mut moved, mut checked) = (Instant::now(), Instant::now());
        loop {
            if checked.elapsed() >= CHECK {
                checked = Instant::now();
                if !goes_on() {
                    break;
                }
            }
            let asked = asked(&self.folder, size);
            if let Some((segment, text)) = asked {
                let taken = text != last;
                if taken {
                    (last, moved) = (text, Instant::now());
                    self.forget_before(segment);
                }
                self.step(segment, taken);
            }
            if moved.elapsed() >= idle {
                break;
            }
            tokio::select! {
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.ended(done),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        // A file that is being written is written to its end first: nothing may appear later.
        self.tasks.shutdown().await;
    }

    /// WAL that the server has replayed need not stay in memory: what it reads next can take its place, and its data. One segment before the one that it has
    /// asked for is kept. Not on a standby, whose WAL may be read by others.
    fn forget_before(&mut self, asked: SegmentName) {
        if self.source.bounds.is_none() {
            return;
        }
        let keep = SegmentNumber(asked.number.0.saturating_sub(1));
        let from = self.kept.replace(keep).unwrap_or(keep).0.max(keep.0.saturating_sub(MOST_FORGOTTEN));
        for number in from..keep.0 {
            let passed = SegmentName::new(asked.timeline, SegmentNumber(number), asked.size);
            files::forget(&self.pg_wal.join(passed.to_string()));
        }
    }

    /// `taken`: since the last step the server has asked for `asked`.
    fn step(&mut self, asked: SegmentName, taken: bool) {
        let size = asked.size;
        self.state.ready = listed(&self.folder, size);
        let held = (self.state.ready.len() + self.state.running.len()) as u64 * size.bytes();
        let slots = ahead::slots(self.budget, files::free(&self.folder), held, size);
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        self.state.resting = self.resting.keys().copied().collect();
        let mut wanted = self.source.wanted(asked, self.reach.within(slots));
        if self.source.bounds.is_none() {
            // What follows a segment that is not complete yet is not there either.
            let complete = wanted.iter().take_while(|piece| !self.state.resting.contains(*piece)).count();
            wanted.truncate(complete);
        }
        let ready = self.state.ready.iter().filter(|ready| wanted.contains(&ready.piece)).count();
        self.reach.see(ready, wanted.len(), taken);
        let step = ahead::step(&wanted, &self.state, slots, ahead::lanes(size));
        for ready in step.drop {
            let _ = files::remove(&self.folder.join(ready.to_string()));
        }
        for piece in step.fetch {
            self.fetch(piece);
        }
    }

    fn fetch(&mut self, piece: Piece) {
        let passing = files::passing(&self.folder, &piece.name());
        if files::announce(&passing).is_err() {
            self.resting.insert(piece, Instant::now() + self.source.rest());
            return;
        }
        self.state.running.insert(piece);
        let (folder, source) = (self.folder.clone(), self.source.clone());
        self.tasks.spawn(async move {
            let size = piece.segment.size.bytes();
            let stored = match source.content(piece).await {
                Ok(Some(content)) if content.len() as u64 == piece.bytes => tokio::task::block_in_place(|| {
                    let ready = Ready { piece, crc: files::checksum(&content, size) };
                    files::put(&passing, &folder.join(ready.to_string()), &content, size, ready.crc).is_ok()
                }),
                _ => false,
            };
            if !stored {
                let _ = files::remove(&passing);
            }
            (piece, stored)
        });
    }

    fn ended(&mut self, done: std::result::Result<(Piece, bool), tokio::task::JoinError>) {
        match done {
            Ok((piece, stored)) => {
                self.state.running.remove(&piece);
                if !stored {
                    self.resting.insert(piece, Instant::now() + self.source.rest());
                }
            }
            // Which one it was is not known: it stays "running" and is fetched by whoever asks for it.
            Err(error) => tracing::info!("a fetch ahead died: {error}"),
        }
    }
}
