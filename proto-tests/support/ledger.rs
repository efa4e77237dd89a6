//! Commits that a client was told are safe: each row is one transaction, recorded only after the server has answered.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::client::{Client, Failure};
use super::server::Server;
use super::wait_for;

/// One acknowledged commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: u64,
    /// With its epoch, as `pg_current_xact_id()` gives it.
    pub xid: u64,
    /// `pg_xact_commit_timestamp`, microseconds since 1970. None for the last commit of a writer, since it is asked for
    /// with the next one.
    pub committed_us: Option<i64>,
    /// From sending the statement to the answer.
    pub latency: Duration,
    /// When the answer came.
    pub answered: SystemTime,
}

struct Shared {
    dir: PathBuf,
    port: u16,
    stop: AtomicBool,
    next_id: AtomicU64,
    padding: usize,
    pause: Duration,
    entries: Mutex<Vec<Entry>>,
    /// Sent, but the connection was lost before the answer: may or may not have been committed.
    unknown: Mutex<Vec<u64>>,
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(&self) -> MutexGuard<'_, Vec<u64>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of a ledger that is not yet started.
pub struct Builder {
    writers: usize,
    padding: usize,
    pause: Duration,
    first_id: u64,
}

impl Builder {
    /// How many sessions write at once; 1 unless said.
    pub fn writers(mut self, writers: usize) -> Self {
        self.writers = writers;
        self
    }

    /// Bytes of random-looking text in each row; 100 unless said.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// A wait between two commits of a writer; none unless said.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// The first id; 1 unless said. For going on after another ledger.
    pub fn first_id(mut self, id: u64) -> Self {
        self.first_id = id;
        self
    }

    /// Makes the table `ledger` where it is missing and starts writing.
    pub fn start(self, server: &Server) -> Ledger {
        server.sql("create table if not exists ledger (id bigint primary key, filler text not null)");
        let shared = Arc::new(Shared {
            dir: server.socket_dir().to_path_buf(),
            port: server.port(),
            stop: AtomicBool::new(false),
            next_id: AtomicU64::new(self.first_id),
            padding: self.padding,
            pause: self.pause,
            entries: Mutex::default(),
            unknown: Mutex::default(),
        });
        let writer = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || write(&shared))
        };
        Ledger { writers: (0..self.writers).map(writer).collect(), shared }
    }
}

/// Sessions that commit until they are stopped. They bear the server's death, and connect again.
pub struct Ledger {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

impl Ledger {
    pub fn builder() -> Builder {
        Builder { writers: 1, padding: 100, pause: Duration::ZERO, first_id: 1 }
    }

    /// One writer with the defaults.
    pub fn start(server: &Server) -> Ledger {
        Ledger::builder().start(server)
    }

    /// How many commits have been acknowledged.
    pub fn count(&self) -> usize {
        self.shared.entries().len()
    }

    /// All acknowledged so far, in the order of the answers.
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.entries().clone()
    }

    /// Ids whose outcome nobody was told.
    pub fn unknown(&self) -> Vec<u64> {
        self.shared.unknown().clone()
    }

    /// Waits until `more` further commits have been acknowledged.
    #[track_caller]
    pub fn wait_for_more(&self, more: usize) {
        let wanted = self.count() + more;
        wait_for(&format!("{wanted} acknowledged commits"), || (self.count() >= wanted).then_some(()));
    }

    /// Ends the writers and returns what was acknowledged. A writer whose commit hangs (synchronous replication without
    /// a standby) is left to end with its server.
    pub fn stop(mut self) -> Vec<Entry> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let start = Instant::now();
        for writer in self.writers.drain(..) {
            while !writer.is_finished() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.entries()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// Those of `entries` that this server does not have: the commits that were lost.
pub fn missing(entries: &[Entry], server: &Server) -> Vec<Entry> {
    let found: std::collections::HashSet<u64> =
        server.sql("select id from ledger").lines().map(|l| l.parse().expect("an id")).collect();
    entries.iter().filter(|e| !found.contains(&e.id)).cloned().collect()
}

fn write(shared: &Shared) {
    while !shared.stop.load(Ordering::SeqCst) {
        match Client::connect(&shared.dir, shared.port, "postgres", "postgres") {
            Ok(mut client) => write_until_lost(shared, &mut client),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn write_until_lost(shared: &Shared, client: &mut Client) {
    let mut last: Option<(u64, usize)> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let id = shared.next_id.fetch_add(1, Ordering::SeqCst);
        let sent = Instant::now();
        let rows = match client.query(&statement(id, shared.padding, last.map(|(xid, _)| xid))) {
            Ok(rows) => rows,
            Err(Failure::Lost(_)) => {
                shared.unknown().push(id);
                return;
            }
            // 57P01 and its like: ended by a shutdown, perhaps while the commit waited for a standby.
            Err(Failure::Server { sqlstate, .. }) if sqlstate.starts_with("57P") => {
                shared.unknown().push(id);
                return;
            }
            Err(Failure::Server { sqlstate, message }) => panic!("the ledger's insert failed: {sqlstate}: {message}"),
        };
        let (latency, answered) = (sent.elapsed(), SystemTime::now());
        let value = |i: usize| rows.first().and_then(|row| row.get(i)).and_then(Option::as_deref);
        let xid = value(0).and_then(|t| t.parse().ok()).expect("a transaction id");
        let mut entries = shared.entries();
        if let (Some((_, index)), Some(us)) = (last, value(1)) {
            entries[index].committed_us = us.parse().ok();
        }
        last = Some((xid, entries.len()));
        entries.push(Entry { id, xid, committed_us: None, latency, answered });
        drop(entries);
        std::thread::sleep(shared.pause);
    }
}

/// One transaction: the row, its transaction id, and when the writer's previous one was committed.
fn statement(id: u64, padding: usize, previous: Option<u64>) -> String {
    let filler: String =
        (0..padding).map(|i| char::from(b'a' + ((id as usize * 7 + i * i * 13 + i) % 26) as u8)).collect();
    let at = match previous {
        // The function takes the lower half of what pg_current_xact_id gives.
        Some(xid) => {
            format!("(extract(epoch from pg_xact_commit_timestamp('{}'::xid)) * 1000000)::bigint", xid & 0xFFFF_FFFF)
        }
        None => "null".to_string(),
    };
    format!("insert into ledger (id, filler) values ({id}, '{filler}') returning pg_current_xact_id()::text, {at}")
}
