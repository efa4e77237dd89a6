//! Server and receiver are lost together, at random moments under load: what the archive has is compared with what clients were told.
//!
//! Only the archive is looked at, as if the data directory were gone. A commit counts as kept when its record can be read from there without a hole. Each loss is
//! held to its own bound.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use walrecv::archive::Archive;
use walrecv::archive::read::SegmentBytes;
use walrecv::pg::scan::{ScanConfig, WalScanner};
use walrecv::pg::xact::{Note, note};
use walrecv::pg::{Lsn, MajorVersion, SegmentName, TimelineId};
use walrecv::receive::{Place, ReceiveOptions};
use walrecv::repo::Repository;

use super::harness::{self, Receiving, Vault};
use super::kill::{Process, told};
use crate::support::ledger::Entry;
use crate::support::proxy::Proxy;
use crate::support::{Ledger, Moto, Seed, Server, TempDir, require_moto, require_servers, rounds, wait_for};

/// Long beside what is added to it: twice as much is found out after a few losses.
const INTERVAL_MS: u64 = 800;
/// On top of the flush interval, the longest put of the round, and the longest that the machine kept a thread waiting in it: for two processes and a socket to
/// pass a commit on.
const MARGIN: Duration = Duration::from_millis(150);
const LEVELS: [&str; 3] = ["remote_write", "on", "remote_apply"];

/// Transactions that are committed in the archive's WAL of timeline 1, from the segment of `from` up to its end, and that end.
pub fn kept(archive: &Archive, version: MajorVersion, from: Lsn) -> (HashSet<u32>, Lsn) {
    let (runtime, size) = (harness::runtime(), archive.names.segment_size);
    let mut number = size.segment_of(from);
    let config = ScanConfig { version, system: archive.names.system, timeline: TimelineId(1), segment_size: size };
    let mut scanner = WalScanner::new(config, number.start(size));
    let mut found = HashSet::new();
    loop {
        let name = SegmentName::new(TimelineId(1), number, size);
        let read = runtime.block_on(archive.read_segment(name, None)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (bytes, whole) = match read {
            None => return (found, scanner.received()),
            Some(SegmentBytes::Complete(bytes)) => (bytes, true),
            // A tail may hold all of it, when the object is still on its way.
            Some(SegmentBytes::Prefix(bytes)) => {
                let whole = bytes.len() as u64 == size.bytes();
                (bytes, whole)
            }
        };
        let fed = scanner.feed(&bytes, &mut |record| {
            if let Ok(Note::Commit { xid, .. }) = note(record, version) {
                found.insert(xid);
            }
        });
        fed.unwrap_or_else(|e| panic!("{name} in the archive: {e}"));
        if !whole {
            return (found, scanner.received());
        }
        number = number.next();
    }
}

/// Where the receiver stores.
enum Spot {
    Folder,
    Bucket(String),
}

struct Scene {
    server: Server,
    vault: Vault,
    spot: Spot,
    flush_ms: u64,
    /// Puts take a tenth of a second: whatever is acknowledged too early is lost.
    line: Option<Proxy>,
}

impl Scene {
    fn new(version: MajorVersion, spot: Spot, synchronous: bool) -> Scene {
        let names = if synchronous { "walrecv" } else { "" };
        let server = Server::builder(version)
            .setting("synchronous_standby_names", names)
            .setting("max_wal_size", "1GB")
            .setting("wal_keep_size", "1GB")
            .start();
        server.sql("set synchronous_commit = local; select pg_create_physical_replication_slot('walrecv', true)");
        // What is listed is flushed at every commit, whatever the interval.
        let flush_ms = if synchronous { 60_000 } else { INTERVAL_MS };
        let line = matches!(spot, Spot::Bucket(_)).then(|| Proxy::start(Moto::shared().port()));
        line.iter().for_each(|line| line.trickle(1_000_000));
        Scene { server, vault: Vault::new(), spot, flush_ms, line }
    }

    fn receive(&self) -> Process {
        match &self.spot {
            Spot::Folder => Process::start(&self.vault, &self.server, self.flush_ms),
            Spot::Bucket(url) => {
                let port = self.line.as_ref().map_or(Moto::shared().port(), |line| line.port);
                let endpoint = format!("http://127.0.0.1:{port}");
                Process::start_in_bucket(&self.vault, &self.server, self.flush_ms, url, &endpoint)
            }
        }
    }

    /// Past the slow line.
    fn repository(&self) -> Repository {
        match &self.spot {
            Spot::Folder => self.vault.repository(),
            Spot::Bucket(url) => harness::open_bucket(url, &Moto::shared().endpoint()),
        }
    }

    fn archive(&self) -> Archive {
        self.vault.archive_in(self.repository(), &self.server)
    }

    /// A run that begins in the middle of a segment first puts all of it again. That says nothing of how long a put takes once it has caught up, and would be the
    /// longest of the round: so it gets a segment of which nothing is stored.
    fn begin_segment(&self) {
        let place = Place { repo: self.repository(), ..self.vault.place() };
        let options = ReceiveOptions { flush_interval: Duration::ZERO, ..harness::options(&self.server) };
        let receiving = Receiving::start(options, place);
        let end = self.server.switch_wal();
        harness::wait_acknowledged(&self.server, end);
        receiving.stop();
    }

    /// All WAL that the server had a moment ago is on its way to the receiver. What was acknowledged would not do: it grows with each flush, and the kill would
    /// always come just behind one.
    fn wait_caught_up(&self) {
        let end = self.server.sql("select pg_current_wal_flush_lsn()");
        self.server.wait_sql(&format!("select count(*) from pg_stat_replication where sent_lsn >= '{end}'"), "1");
    }

    /// A write that is synced beside the repository, or an answer of the store.
    fn weather(&self) -> Weather {
        match self.spot {
            Spot::Folder => {
                let folder = TempDir::new("probe");
                Weather::watch(move || {
                    let mut file = File::create(folder.join("probe")).expect("make a file");
                    file.write_all(&[7; 64 << 10]).and_then(|()| file.sync_data()).expect("write it");
                })
            }
            Spot::Bucket(_) => {
                let port = Moto::shared().port();
                Weather::watch(move || {
                    let mut line = TcpStream::connect(("127.0.0.1", port)).expect("the store");
                    line.write_all(b"GET /moto-api/ HTTP/1.0\r\n\r\n").expect("ask");
                    line.read_to_end(&mut Vec::new()).expect("an answer");
                })
            }
        }
    }

    fn lose(&mut self, round: u32, level: &str, seed: &mut Seed) -> Loss {
        let sql = |sql: &str| self.server.sql(sql);
        sql(&format!("alter system set synchronous_commit = '{level}'"));
        sql("select pg_reload_conf()");
        let archive = self.archive();
        let mut process = self.receive();
        let from = harness::acknowledged(&self.server);
        wait_for("the receiver to stream", || {
            assert!(process.is_running(), "ended by itself");
            (sql("select count(*) from pg_stat_replication where state = 'streaming'") != "0").then_some(())
        });
        let weather = self.weather();
        let first = 1 + u64::from(round) * 1_000_000;
        let pause = Duration::from_millis(seed.below(8));
        let ledger = Ledger::builder().writers(3).padding(400).pause(pause).first_id(first).start(&self.server);
        ledger.wait_for_more(20);
        if round % 4 == 3 {
            // A segment ends under load, and clears the tails away that all those killed runs have left.
            self.server.switch_wal();
        }
        let begun = self.server.lsn();
        // A new run first compares what the one before had stored.
        wait_for("the first of these commits to be acknowledged", || (told(&self.server) >= begun).then_some(()));
        let before = ledger.count();
        std::thread::sleep(Duration::from_millis(500 + seed.below(2000)));
        let receiver_first = seed.below(2) == 0;
        self.wait_caught_up();
        let acknowledged = told(&self.server);
        let killed = SystemTime::now();
        // Neither outlives the other: a receiver would make everything durable as soon as its server is gone.
        if receiver_first {
            process.strike();
            self.server.kill9();
        } else {
            self.server.kill9_and(|| process.strike());
        }
        let put = process.kill_and_ask();
        let (held_up, probed) = weather.end();
        let entries = ledger.stop();
        assert!(entries.len() > before, "there was a load until the kill");
        let (kept, end) = kept(&archive, self.server.version(), from);
        println!("round {round}: from {from}, acknowledged before the kill {acknowledged}, the archive ends at {end}");
        assert!(end >= acknowledged, "acknowledged {acknowledged}, but the archive ends at {end}");
        let lost = entries.iter().filter(|e| !kept.contains(&(e.xid as u32))).cloned().collect();
        self.server.start_again();
        Loss { lost, of: entries.len(), killed, put: put.max(probed), held_up }
    }
}

/// What one loss cost.
struct Loss {
    /// The commits that clients were told of and the archive has not, and of how many.
    lost: Vec<Entry>,
    of: usize,
    /// When the first of the two was killed.
    killed: SystemTime,
    /// The longest flush or put of this receiver; where the machine or the store was slower for anybody else, of a flush that the kill cut off perhaps, so much.
    put: Duration,
    /// The longest that the machine kept a thread waiting that had something to do.
    held_up: Duration,
}

impl Loss {
    /// How long before the kill a client was told of the oldest lost commit. The server sends nothing that it has not flushed, and answers after that.
    fn age(&self) -> Duration {
        let oldest = self.lost.iter().map(|entry| entry.answered).min();
        oldest.map_or(Duration::ZERO, |at| self.killed.duration_since(at).unwrap_or_default())
    }

    /// What that may be: the promise, and what the machine took for itself.
    fn most(&self) -> Duration {
        Duration::from_millis(INTERVAL_MS) + self.put + self.held_up + MARGIN
    }
}

/// What several losses cost.
#[derive(Default)]
struct Sum {
    losses: u32,
    of: usize,
    lost: usize,
    /// The oldest lost commit, and what its bound was.
    oldest: (Duration, Duration),
    /// The one that came nearest to its bound.
    nearest: Option<Duration>,
}

impl Sum {
    fn add(&mut self, loss: &Loss) {
        let (age, most) = (loss.age(), loss.most());
        self.losses += 1;
        self.of += loss.of;
        self.lost += loss.lost.len();
        self.oldest = self.oldest.max((age, most));
        let left = most.saturating_sub(age);
        self.nearest = Some(self.nearest.map_or(left, |nearest| nearest.min(left)));
    }
}

/// How the machine and the store are for everybody, from before the load until after the kill: what was under way then no receiver can tell any more.
struct Weather {
    ends: Arc<AtomicBool>,
    dozing: JoinHandle<Duration>,
    probing: JoinHandle<Duration>,
}

impl Weather {
    fn watch(mut probe: impl FnMut() + Send + 'static) -> Weather {
        const MOMENT: Duration = Duration::from_millis(5);
        let ends = Arc::new(AtomicBool::new(false));
        let longest = |mut work: Box<dyn FnMut() + Send>, wanted: Duration| {
            let ends = ends.clone();
            std::thread::spawn(move || {
                let mut longest = Duration::ZERO;
                while !ends.load(Ordering::SeqCst) {
                    let before = Instant::now();
                    work();
                    longest = longest.max(before.elapsed().saturating_sub(wanted));
                }
                longest
            })
        };
        let dozing = longest(Box::new(|| std::thread::sleep(MOMENT)), MOMENT);
        let pause = 4 * MOMENT;
        let probing = longest(Box::new(move || (probe(), std::thread::sleep(pause)).1), pause);
        Weather { ends, dozing, probing }
    }

    /// The longest delay of a thread, and the longest probe.
    fn end(self) -> (Duration, Duration) {
        self.ends.store(true, Ordering::SeqCst);
        (self.dozing.join().expect("it only sleeps"), self.probing.join().expect("the store answers"))
    }
}

fn synchronous(version: MajorVersion, spot: Spot, times: u32) {
    let begun = Instant::now();
    let (mut scene, mut seed, mut sum) = (Scene::new(version, spot, true), Seed::of_run(), Sum::default());
    for round in 0..times {
        // In turn, the one of which the fewest promises are made first.
        let level = LEVELS[round as usize % LEVELS.len()];
        let loss = scene.lose(round, level, &mut seed);
        let Loss { lost, of, .. } = &loss;
        println!("round {round}, {level}: {of} commits answered, {} lost", lost.len());
        assert!(*of > 20);
        assert_eq!(*lost, [], "round {round}, synchronous_commit = {level}: lost of {of} commits that were answered");
        sum.add(&loss);
    }
    println!(
        "{} losses: of {} commits that were answered {} lost; {:?}",
        sum.losses,
        sum.of,
        sum.lost,
        begun.elapsed()
    );
}

fn asynchronous(version: MajorVersion, spot: Spot, times: u32) {
    let begun = Instant::now();
    let (mut scene, mut seed, mut sum) = (Scene::new(version, spot, false), Seed::of_run(), Sum::default());
    for round in 0..times {
        scene.begin_segment();
        let loss = scene.lose(round, "on", &mut seed);
        let (age, most) = (loss.age(), loss.most());
        let Loss { lost, of, put, held_up, .. } = &loss;
        println!(
            "round {round}: {of} commits answered, {} lost, the oldest {age:?} before the kill; longest put {put:?}, held up {held_up:?}",
            lost.len()
        );
        assert!(lost.len() < *of, "some were kept");
        assert!(
            age <= most,
            "round {round}: lost what a client was told {age:?} before the kill, at most {most:?} may be"
        );
        sum.add(&loss);
    }
    let (oldest, most) = sum.oldest;
    println!(
        "{} losses: of {} commits that were answered {} lost, the oldest {oldest:?} before the kill, where {most:?} may be; the nearest {:?} below; {:?}",
        sum.losses,
        sum.of,
        sum.lost,
        sum.nearest.unwrap_or_default(),
        begun.elapsed()
    );
}

#[test]
fn nothing_answered_is_lost_with_a_synchronous_receiver() {
    require_servers!(MajorVersion::V18);
    synchronous(MajorVersion::V18, Spot::Folder, rounds(3, 50));
}

#[test]
fn nothing_answered_is_lost_with_a_synchronous_receiver_into_a_bucket() {
    require_servers!(MajorVersion::V16);
    require_moto!();
    synchronous(MajorVersion::V16, Spot::Bucket(Moto::shared().bucket("loss-sync")), rounds(2, 50));
}

#[test]
fn no_more_than_the_flush_interval_and_a_put_is_lost() {
    require_servers!(MajorVersion::V14);
    asynchronous(MajorVersion::V14, Spot::Folder, rounds(3, 50));
}

#[test]
fn no_more_than_the_flush_interval_and_a_put_is_lost_into_a_bucket() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    asynchronous(MajorVersion::V18, Spot::Bucket(Moto::shared().bucket("loss-async")), rounds(2, 50));
}
