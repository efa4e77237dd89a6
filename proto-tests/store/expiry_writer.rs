//! The program's own backup writer beside expiries: backups of two hosts, full, compared and incremental ones, some of them killed, request by request in a
//! random order. Each complete backup is at any moment what its server sent, byte for byte; when all is quiet, only what is reachable is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use walrecv::backup::{BackupOptions, FULL_EVERY, Progress, WalWatch, take_with};
use walrecv::error::Result;
use walrecv::keys::ring::ReaderRing;
use walrecv::keys::setup;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::repo::names::{BackupPart, parse_backup_part};
use walrecv::retention::Outcome;
use walrecv::seal::content::BackupId;
use walrecv::seal::content::manifest::{Manifest, Transfer};
use walrecv::seal::sealer::Compression;

use crate::expiry::{LIFE, REPOSITORY, STALE, World, ring, run, runtime, secret};
use crate::expiry_store::{Actor, Blind, EXPIRY, FREE, Memory};
use crate::made_server::MadeServer;
use crate::support::{PATIENCE, Seed, TempDir, rounds, soaks};

/// Requests, jumps of the clock, beginnings and ends in one round.
const STEPS: u32 = 6_000;

/// All WAL is stored.
struct Always;

impl WalWatch for Always {
    fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        Box::pin(async { Ok(Some(Lsn(u64::MAX))) })
    }
}

/// What became of somebody at work.
enum Ended {
    Backup(Result<Box<Manifest>>),
    Expiry(Result<Outcome>),
}

struct Working {
    task: JoinHandle<Ended>,
    slow: bool,
    /// Whose `state_dir` it holds.
    host: Option<usize>,
}

/// That a test does not pass by doing nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    complete: u64,
    incremental: u64,
    compared: u64,
    /// Backups that stored survivors anew, and those that found pages in the packs of dead runs.
    moved: u64,
    found: u64,
    failed: u64,
    killed: u64,
    deleted: u64,
    freed: u64,
    /// Parents that were given up because somebody deletes them.
    avoided: u64,
}

impl Figures {
    fn add(&mut self, other: Figures) {
        let pairs = [
            (&mut self.complete, other.complete),
            (&mut self.incremental, other.incremental),
            (&mut self.compared, other.compared),
            (&mut self.moved, other.moved),
            (&mut self.found, other.found),
            (&mut self.failed, other.failed),
            (&mut self.killed, other.killed),
            (&mut self.deleted, other.deleted),
            (&mut self.freed, other.freed),
            (&mut self.avoided, other.avoided),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }

    fn are_enough(&self, rounds: u64) -> bool {
        let common = [self.complete / 3, self.incremental, self.compared, self.killed, self.deleted, self.freed];
        let seldom = [self.moved, self.found, self.avoided];
        common.into_iter().all(|count| count >= rounds) && seldom.into_iter().all(|count| count * 10 >= rounds)
    }
}

/// What a round is like.
struct Habits {
    /// Hosts that take backups, and how many are at work at most, expiries counted.
    hosts: usize,
    crowd: usize,
    /// Steps in a thousand at which somebody is killed.
    kills: u64,
    /// An expiry asks for one backup in so many.
    spares: u64,
}

impl Habits {
    fn random(chance: &mut Seed) -> Habits {
        match chance.below(3) {
            // What a killed backup stored is of use to the next one of its host, if no other was complete in between.
            0 => Habits { hosts: 1, crowd: 2, kills: 14, spares: 6 },
            _ => Habits { hosts: 2, crowd: 5, kills: 3, spares: 4 },
        }
    }
}

struct Fleet {
    habits: Habits,
    world: World,
    server: Arc<MadeServer>,
    places: TempDir,
    /// The `state_dir` of each host: a new one, with a copy of what was there, when a process of it is killed.
    hosts: Vec<PathBuf>,
    /// Backups whose manifest is on its way: no clock jumps then.
    completing: Arc<Mutex<BTreeSet<Actor>>>,
    seed: Seed,
    working: BTreeMap<Actor, Working>,
    next: Actor,
    figures: Figures,
}

/// A world in which the program's own writer takes backups of a server of this version.
fn with_server(memory: Memory, version: u32, seed: u64) -> (World, Arc<MadeServer>) {
    let (keys, mut world) = (setup::generate(), World::over(memory, Arc::default()));
    let server = MadeServer::new(world.archive.names.system, version, seed);
    world.archive.keys = Arc::new(ReaderRing::new(REPOSITORY, secret(), Some(&keys.identity)).expect("a ring"));
    (world.ring, world.server) = (Arc::new(ring(&keys.public)), Some(server.clone()));
    (world, server)
}

impl Fleet {
    fn new(mut chance: Seed, habits: Habits) -> Fleet {
        let faults = if chance.below(2) == 0 { 0 } else { 25 };
        let version = [16, 17, 18][chance.below(3) as usize];
        let memory = Memory::new(chance.next(), faults);
        // A writer names its backups by the clock of its host.
        memory.pass(SystemTime::now().duration_since(memory.now()).expect("a clock that is right"));
        let (world, server) = with_server(memory, version, chance.next());
        let places = TempDir::new("fleet");
        let hosts = (0..habits.hosts).map(|host| places.join(format!("host-{host}"))).collect();
        let (working, completing) = (BTreeMap::new(), Arc::default());
        let figures = Figures::default();
        Fleet { habits, world, server, places, hosts, completing, seed: chance, working, next: 1, figures }
    }

    /// A backup, or an expiry.
    fn begin(&mut self) {
        let actor = self.next;
        self.next += 1;
        self.world.memory.pass(Duration::from_secs(1));
        if self.seed.below(2) == 0 {
            return self.begin_expiry(actor + EXPIRY);
        }
        let free = |host: &usize| self.working.values().all(|working| working.host != Some(*host));
        let host = (0..self.hosts.len()).find(free).filter(|_| self.seed.below(8) > 0);
        let slow = self.seed.below(4) == 0;
        let task = self.backup(actor, host);
        self.working.insert(actor, Working { task, slow, host });
    }

    fn backup(&mut self, actor: Actor, host: Option<usize>) -> JoinHandle<Ended> {
        let completing = self.completing.clone();
        let options = BackupOptions {
            full: self.seed.below(10) == 0,
            full_every: if self.seed.below(5) == 0 { Duration::ZERO } else { FULL_EVERY },
            compression: Compression::Lz4,
            state_dir: host.map(|host| self.hosts[host].clone()),
            put_limit: Duration::from_secs(1_000_000),
            progress: Some(Arc::new(move |progress| {
                if progress == Progress::Completing {
                    completing.lock().expect("no test has died").insert(actor);
                }
            })),
            ..BackupOptions::default()
        };
        let (archive, ring, server) = (self.world.seen_by(actor), self.world.ring.clone(), self.server.conninfo());
        tokio::spawn(async move {
            let taken = take_with(&archive, ring, &server, &options, &Always).await;
            Ended::Backup(taken.map(|outcome| Box::new(outcome.manifest)))
        })
    }

    fn begin_expiry(&mut self, actor: Actor) {
        let delay = [0, 0, 0, 100, 2_000][self.seed.below(5) as usize];
        let asked: Vec<BackupId> =
            self.world.complete().into_iter().filter(|_| self.seed.below(self.habits.spares) == 0).collect();
        let mut options = self.world.options(&asked.iter().collect::<Vec<_>>(), delay);
        options.force = !asked.is_empty() && self.seed.below(12) == 0;
        let (archive, ring) = (self.world.seen_by(actor), self.world.ring.clone());
        let task =
            tokio::spawn(async move { Ended::Expiry(run(archive, options, ring).await.map(|(_, outcome)| outcome)) });
        self.working.insert(actor, Working { task, slow: self.seed.below(4) == 0, host: None });
    }

    /// Returns when everybody has ended or waits for the store. Threads compute meanwhile, and pauses between two attempts pass by.
    async fn settle(&self) {
        let begun = std::time::Instant::now();
        loop {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            let waiting: BTreeSet<Actor> = self.world.memory.waiting().into_iter().collect();
            if self.working.iter().all(|(actor, working)| working.task.is_finished() || waiting.contains(actor)) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "somebody neither ends nor asks the store for anything");
            std::thread::sleep(Duration::from_micros(20));
            tokio::time::advance(Duration::from_millis(5)).await;
        }
    }

    async fn step(&mut self, number: u32) {
        self.settle().await;
        let finished: Vec<Actor> = self.working.iter().filter(|(_, w)| w.task.is_finished()).map(|(a, _)| *a).collect();
        for actor in finished {
            let working = self.working.remove(&actor).expect("one at work");
            self.completing.lock().expect("no test has died").remove(&actor);
            let ended = working.task.await.expect("no panic");
            self.count(number, actor, ended);
        }
        let calm = self.completing.lock().expect("no test has died").is_empty();
        match self.seed.below(1000) {
            0..30 => self.world.memory.pass(Duration::from_secs(1 + self.seed.below(60))),
            30..34 if calm => self.world.memory.pass(Duration::from_secs(2_500)),
            34..36 if calm => self.world.memory.pass(Duration::from_secs(12_000)),
            36..80 if self.working.len() < self.habits.crowd => self.begin(),
            n if (80..80 + self.habits.kills).contains(&n) => {
                let actors: Vec<Actor> = self.working.keys().copied().collect();
                if !actors.is_empty() {
                    let place = self.seed.below(actors.len() as u64) as usize;
                    self.kill(actors[place]).await;
                }
            }
            _ => self.grant(),
        }
        self.world.check(&format!("step {number}")).await;
    }

    fn count(&mut self, number: u32, actor: Actor, ended: Ended) {
        let figures = &mut self.figures;
        match ended {
            Ended::Backup(Ok(manifest)) => {
                figures.complete += 1;
                figures.incremental += u64::from(manifest.transfer == Transfer::Incremental);
                figures.compared += u64::from(manifest.transfer == Transfer::Full && manifest.parent.is_some());
                figures.moved += u64::from(manifest.sizes.moved > 0);
                let (parent, why) = (manifest.parent.is_some(), manifest.why_full.unwrap_or_default());
                figures.avoided += u64::from(why.contains("may be deleting") || why.contains("was deleted"));
                println!("{number:5} backup {}: {:?}, parent {parent}: {why}", manifest.id, manifest.transfer);
            }
            Ended::Backup(Err(error)) => {
                figures.failed += 1;
                println!("{number:5} backup of {actor}: {error}");
            }
            Ended::Expiry(outcome) => {
                if let Ok(outcome) = &outcome {
                    figures.deleted += outcome.deleted.len() as u64;
                    figures.freed += outcome.freed.objects.min(1);
                }
                println!("{number:5} expiry {actor}: {:?}", outcome.map_err(|error| error.to_string()));
            }
        }
    }

    fn grant(&mut self) {
        let waiting = self.world.memory.waiting();
        if waiting.is_empty() {
            return;
        }
        let place = self.seed.below(waiting.len() as u64) as usize;
        let slow = self.working.get(&waiting[place]).is_some_and(|working| working.slow);
        if !slow || self.seed.below(20) == 0 {
            self.world.memory.grant(place);
        }
    }

    /// A killed process does nothing more, and leaves on its host what stood there at that moment.
    async fn kill(&mut self, actor: Actor) {
        let Some(working) = self.working.remove(&actor) else { return };
        self.world.memory.kill(actor);
        if let Some(host) = working.host {
            let left = self.places.join(format!("host-{host}-{actor}"));
            copy(&self.hosts[host], &left);
            self.hosts[host] = left;
        }
        working.task.abort();
        let _ = working.task.await;
        self.completing.lock().expect("no test has died").remove(&actor);
        self.figures.killed += 1;
    }

    /// Everybody dies; then one more backup, and expiries until nothing changes.
    async fn end(&mut self) -> Figures {
        let actors: Vec<Actor> = self.working.keys().copied().collect();
        for actor in actors {
            self.kill(actor).await;
        }
        self.world.memory.pass(STALE);
        let task = self.backup(FREE, Some(0));
        let ended = task.await.expect("no panic");
        self.count(STEPS, FREE, ended);
        self.world.check("at the end").await;
        assert!(!self.world.complete().is_empty(), "a backup that nobody disturbed");
        for _ in 0..5 {
            self.world.memory.pass(LIFE + STALE);
            let options = self.world.options(&[], 1_000);
            let (_, outcome) = self.world.expire(options).await.expect("an expiry that nobody disturbs");
            assert!(outcome.failures.is_empty() && outcome.blocked.is_none(), "{outcome:?}");
            self.world.check("after the end").await;
        }
        self.world.restore_all().await;
        assert_eq!(self.world.left_over(), [""; 0], "objects that nothing needs");
        self.figures.found += self.found();
        self.figures
    }

    /// Backups that need packs of runs that never were complete.
    fn found(&self) -> u64 {
        let root = format!("{}/", self.world.archive.names.root());
        let borrowed = |name: &String| match name.strip_prefix(&root).and_then(parse_backup_part) {
            Some((owner, BackupPart::Pack(_))) => self.world.needs.keys().all(|id| id.as_str() != owner),
            _ => false,
        };
        self.world.needs.values().filter(|names| names.iter().any(borrowed)).count() as u64
    }
}

/// Threads of a backup that is forgotten end with their next request.
impl Drop for Fleet {
    fn drop(&mut self) {
        self.working.keys().for_each(|actor| self.world.memory.kill(*actor));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            // What is written beside, and renamed, may be gone by now.
            false => _ = std::fs::copy(entry.path(), target),
        }
    }
}

#[test]
fn every_backup_of_the_real_writer_is_whole_whatever_goes_on_beside() {
    let mut seeds = Seed::of_run();
    let mut all = Figures::default();
    let rounds = u64::from(rounds(6, 600));
    // What is seldom may be missing in a few rounds: then there are more of them.
    for round in 0..4 * rounds {
        let seed = seeds.next();
        println!("round {round}: seed {seed}");
        all.add(runtime().block_on(async {
            let mut chance = Seed::from(seed);
            let habits = Habits::random(&mut chance);
            let mut fleet = Fleet::new(chance, habits);
            for step in 0..STEPS {
                fleet.step(step).await;
            }
            fleet.end().await
        }));
        println!("{all:?}");
        if round + 1 >= rounds && all.are_enough(rounds) {
            return;
        }
    }
    panic!("too little happens: {all:?}");
}

/// The look between announcement and use is what makes it so. It takes up to some hundred rounds until harm is done without, so this is for a soak.
#[test]
fn a_real_writer_that_finds_no_plans_does_harm() {
    if !soaks() {
        return;
    }
    let harm = |seed: u64| {
        let round = || {
            runtime().block_on(async {
                let mut fleet = Fleet::new(Seed::from(seed), Habits { hosts: 2, crowd: 5, kills: 0, spares: 2 });
                fleet.world.memory.set_blind(Blind::BackupsToPlans);
                for step in 0..STEPS {
                    fleet.step(step).await;
                }
            })
        };
        let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(round)).err()?;
        Some(payload.downcast_ref::<String>().cloned().unwrap_or_default())
    };
    let (seed, what) = (0..400).find_map(|seed| harm(seed).map(|what| (seed, what))).expect("harm in 400 rounds");
    println!("seed {seed}: {what}");
    assert!(what.contains("is gone") && what.contains("needs it"), "{what}");
}
