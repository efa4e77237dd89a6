//! One simulated installation: servers, a network, a repository, and processes of walrecv that are ended in every way and started again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use walrecv::disk::lane::Lane;
use walrecv::error::{Error, Kind};
use walrecv::keys::ring::{ReaderRing, WriterRing};
use walrecv::net::{Conninfo, Dialer};
use walrecv::pg::MajorVersion;
use walrecv::receive::{Observer, OnGap, Place, ReceiveEvent, ReceiveOptions, ReceiveReport, receive};
use walrecv::repo::Repository;
use walrecv::seal::header::RepositoryId;
use walrecv::seal::key::RepositorySecret;
use walrecv::seal::sealer::Compression;

use super::audit::Audit;
use super::chance::Chance;
use super::cluster::{Cluster, SEGMENT, SLOT};
use super::disk::{Loss, Mount, SimDisk};
use super::life::Life;
use super::store::{Client, SimStore};
use super::trace::Trace;
use super::walsender::Network;
use crate::support::TempDir;

const ROOT: &str = "/repo";
/// Where the repository is a store, the disk is the spool's.
pub const SPOOL: &str = ROOT;
pub const GRACE: Duration = Duration::from_secs(5);
/// So little is reached while a store is away for half a minute.
const GIVE_UP_AT: u64 = 200 << 10;

/// What a seed decides before anything happens.
#[derive(Clone, Debug)]
pub struct Plan {
    pub local: bool,
    pub flush_interval: Duration,
    pub compression: Compression,
    pub version: MajorVersion,
    pub sql: bool,
    pub synchronous: bool,
    pub memory: u64,
    pub second: bool,
    pub spool: bool,
    /// Bytes of a segment, and of WAL that the server has before anything begins.
    pub segment: u64,
    pub before: u64,
    /// Bytes of WAL that the server writes while things go wrong.
    pub wal: u64,
    pub chaos: Duration,
    /// What may happen.
    pub failovers: u64,
    pub roll_back: bool,
    /// Where there was a failover, it is given up, and the old primary is what is set back.
    pub goes_back: bool,
    /// The server is started under `wal_level = minimal` now and then.
    pub minimal: bool,
    /// The slot is lost now and then, with what it held: a hole is left behind.
    pub gaps: bool,
    /// The slot is given up while nothing can be stored.
    pub gives_up: bool,
    pub bad_wal: bool,
    pub disk_faults: bool,
    pub store_faults: bool,
    pub net_faults: bool,
    pub slow_disk: bool,
    /// What is in memory leaves it after so long without WAL.
    pub rests: Option<Duration>,
}

impl Plan {
    pub fn new(chance: &Chance) -> Plan {
        let plan = Plan {
            local: chance.one_in(2),
            flush_interval: Duration::from_millis(chance.pick(&[0, 0, 100, 1000, 1000])),
            // Ciphers are slow where they are not optimised, and compressed bytes are few.
            compression: if chance.one_in(10) { Compression::None } else { Compression::Lz4 },
            version: chance.pick(&[
                MajorVersion::V13,
                MajorVersion::V15,
                MajorVersion::V16,
                MajorVersion::V17,
                MajorVersion::V18,
            ]),
            sql: !chance.one_in(4),
            synchronous: chance.one_in(6),
            memory: chance.pick(&[36 << 20, 36 << 20, 3 << 20]),
            second: chance.one_in(4),
            spool: chance.one_in(3),
            segment: SEGMENT,
            before: 0,
            wal: chance.between(300 << 10, 3500 << 10),
            chaos: chance.millis(5_000, 60_000),
            failovers: chance.pick(&[0, 0, 1, 2]),
            roll_back: chance.one_in(8),
            goes_back: false,
            minimal: false,
            gaps: false,
            gives_up: false,
            bad_wal: chance.one_in(12),
            disk_faults: chance.one_in(2),
            store_faults: !chance.one_in(4),
            net_faults: !chance.one_in(3),
            slow_disk: chance.one_in(4),
            rests: None,
        };
        // Without SQL these cannot tell where a slot stands.
        Plan { sql: plan.sql || plan.version < MajorVersion::V15, spool: plan.spool && !plan.local, ..plan }
    }
}

/// Ends of a run that something which happened explains.
#[derive(Clone, Copy, Debug, Default)]
pub struct Excuses {
    pub diverged: bool,
    pub corrupt: bool,
    pub slot: bool,
    pub repository: bool,
    pub failed: bool,
}

/// A process that runs.
#[derive(Clone)]
pub struct Process {
    pub life: Life,
    pub stop: watch::Sender<bool>,
}

pub struct World {
    pub plan: Plan,
    pub chance: Chance,
    pub trace: Trace,
    pub cluster: Arc<Cluster>,
    pub network: Network,
    pub disk: SimDisk,
    pub store: SimStore,
    pub audit: Audit,
    pub excuses: Mutex<Excuses>,
    pub processes: Mutex<Vec<Option<Process>>>,
    /// No host runs before this.
    pub host_up: Mutex<Instant>,
    /// When the power failed last: the server goes on waiting for who was there, until its own timeout.
    pub host_fell: Mutex<Option<Instant>>,
    /// Processes that end stay ended.
    pub closing: AtomicBool,
    /// Nothing is wrong, and all is durable: from now on nothing has an excuse.
    pub calm: AtomicBool,
    /// A process found that histories diverge: it must be right, and stays ended.
    pub diverged: AtomicBool,
    lives: AtomicU32,
    writer: Arc<WriterRing>,
    reader: Arc<ReaderRing>,
    /// Catalogs are real files: SQLite has its own way to a disk.
    pub states: TempDir,
}

impl World {
    /// Of what the seed planned, something is otherwise.
    pub fn with(seed: u64, trace: Trace, change: impl Fn(&mut Plan)) -> Arc<World> {
        let chance = Chance::new(seed, "world");
        let mut plan = Plan::new(&chance);
        let holes = Chance::new(seed, "holes");
        (plan.gaps, plan.gives_up) = (holes.one_in(5), holes.one_in(3));
        plan.goes_back = Chance::new(seed, "goes back").one_in(2);
        plan.minimal = Chance::new(seed, "minimal").one_in(6);
        let rests = Chance::new(seed, "rests");
        plan.rests = rests.one_in(2).then(|| rests.millis(100, 3000));
        change(&mut plan);
        // Two histories of one timeline leave nothing to tell an honest hole by.
        plan.roll_back &= !plan.gaps;
        plan.gives_up &= plan.gaps;
        trace.say(format!("{plan:?}"));
        let (id, secret) = (RepositoryId([7; 16]), RepositorySecret::published());
        let writer = Arc::new(WriterRing::new(id, secret.clone(), None).expect("a ring"));
        let reader = Arc::new(ReaderRing::new(id, secret, None).expect("a ring"));
        let audit = Audit::start(reader.clone(), Chance::new(seed, "audit"), trace.clone());
        let cluster = Cluster::new(&plan, trace.clone(), audit.clone());
        let world = Arc::new(World {
            chance,
            trace,
            network: Network::new(cluster.clone(), Chance::new(seed, "network")),
            cluster,
            disk: SimDisk::new(ROOT, Chance::new(seed, "disk")),
            store: SimStore::new(Chance::new(seed, "store")),
            audit: audit.clone(),
            excuses: Mutex::default(),
            processes: Mutex::new(vec![None; 1 + usize::from(plan.second)]),
            host_up: Mutex::new(Instant::now()),
            host_fell: Mutex::default(),
            closing: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            diverged: AtomicBool::new(false),
            lives: AtomicU32::new(1),
            writer,
            reader,
            states: TempDir::new("sim"),
            plan,
        });
        let (disk, store, copies) = (world.disk.clone(), world.store.clone(), Chance::new(seed, "copies"));
        let (plan, writer, reader) = (world.plan.clone(), world.writer.clone(), world.reader.clone());
        audit.copies_with(Box::new(move |loss| {
            let lane = Lane::Inline(Arc::new(|| std::future::ready(()).boxed()));
            let life = Life::new(0);
            let disk = if plan.local || plan.spool { disk.survivor(loss, copies.split()) } else { disk.clone() };
            let mount = Arc::new(Mount { disk, life: life.clone(), lane });
            let repo = match plan.local {
                true => Repository::in_directory(ROOT.into(), mount),
                false => Repository::beside(
                    "sim://store",
                    Box::new(Client { store: store.copy(copies.split()), life }),
                    mount,
                ),
            };
            Place { repo, cluster: "main".to_owned(), writer: writer.clone(), reader: reader.clone() }
        }));
        world
    }

    pub fn excuses(&self) -> MutexGuard<'_, Excuses> {
        self.excuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn processes(&self) -> MutexGuard<'_, Vec<Option<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power fails.
    pub fn lose_power(&self, loss: Loss) {
        self.trace.say(format!("the power fails (lost: {loss:?})"));
        self.demand_all();
        self.processes().iter().flatten().for_each(|process| process.life.falls_with_its_host());
        self.disk.lose_power(loss);
        *self.host_fell.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        *self.host_up.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + self.chance.millis(500, 8000);
    }

    /// Everything that any server was told must still be there.
    pub fn demand_all(&self) {
        let state = self.cluster.state();
        for (branch, timeline, lsn) in &state.told {
            self.audit.demand_all(&state.branches[*branch], *timeline, *lsn, &state.trail);
        }
    }

    /// The catalog of the host in place `index`.
    pub fn catalog(&self, index: usize) -> PathBuf {
        walrecv::catalog::path_in(&self.states.join(format!("host-{index}")), "main")
    }

    pub fn place(&self, life: &Life) -> Place {
        let (chance, pacing, slow) = (self.chance.split(), life.clone(), self.plan.slow_disk);
        let lane = Lane::Inline(Arc::new(move || {
            let wait = match slow && chance.one_in(50) {
                true => chance.millis(20, 3000),
                false => Duration::from_micros(chance.between(0, 800)),
            };
            let life = pacing.clone();
            async move {
                sleep(wait).await;
                while life.hangs() && life.is_alive() {
                    sleep(Duration::from_millis(10)).await;
                }
                if !life.is_alive() {
                    // A process that is gone does nothing, and holds nothing either: its locks go with it. Nobody waits for its tasks by then.
                    sleep(Duration::from_millis(100)).await;
                    std::panic::resume_unwind(Box::new("dead"));
                }
            }
            .boxed()
        }));
        let mount = Arc::new(Mount { disk: self.disk.clone(), life: life.clone(), lane });
        let repo = match self.plan.local {
            true => Repository::in_directory(ROOT.into(), mount),
            false => {
                let client = Client { store: self.store.clone(), life: life.clone() };
                Repository::beside("sim://store", Box::new(client), mount)
            }
        };
        Place { repo, cluster: "main".to_owned(), writer: self.writer.clone(), reader: self.reader.clone() }
    }

    pub fn options(&self, life: &Life, index: usize) -> ReceiveOptions {
        let info = Conninfo::parse("host=sim user=walrecv sslmode=disable", &|_| None).expect("a connection string");
        let (network, life) = (self.network.clone(), life.clone());
        let dialer = Dialer::new(move || {
            let (network, life) = (network.clone(), life.clone());
            async move { network.dial(life).await }
        });
        ReceiveOptions {
            slot: Some(SLOT.to_owned()),
            flush_interval: self.plan.flush_interval,
            compression: self.plan.compression,
            memory: self.plan.memory,
            shutdown_grace: GRACE,
            catalog: Some(self.catalog(index)),
            spool_dir: self.plan.spool.then(|| PathBuf::from(SPOOL)),
            on_gap: if self.plan.gaps { OnGap::NewRange } else { OnGap::Stop },
            give_up_at: self.plan.gives_up.then_some(GIVE_UP_AT),
            rest_after: self.plan.rests.unwrap_or(Duration::from_secs(8)),
            rest_worth: if self.plan.rests.is_some() { 32 << 10 } else { 1 << 20 },
            ..ReceiveOptions::new(info.through(dialer))
        }
    }

    /// Runs one process after another in place `index`, until the world closes.
    pub async fn supervise(self: Arc<World>, index: usize) {
        loop {
            while *self.host_up.lock().unwrap_or_else(PoisonError::into_inner) > Instant::now() {
                sleep(Duration::from_millis(100)).await;
            }
            if self.closing.load(Ordering::SeqCst) || self.diverged.load(Ordering::SeqCst) {
                return;
            }
            let life = Life::new(self.lives.fetch_add(1, Ordering::SeqCst));
            let (stop, stopped) = watch::channel(false);
            self.processes()[index] = Some(Process { life: life.clone(), stop: stop.clone() });
            let (id, place) = (life.id(), self.place(&life));
            self.trace.say(format!("[{id}] starts"));
            let (trace, states) = (self.trace.clone(), self.states.path().display().to_string());
            let observer = Observer::new(move |event| tell(&trace, id, &event, &states));
            let ended = tokio::select! {
                ended = run(place, self.options(&life, index), observer, stopped) => Some(ended),
                () = life.death() => None,
            };
            self.processes()[index] = None;
            // What a process does with errors that come from its own death, nobody sees.
            let ended = ended.filter(|_| life.is_alive());
            let asked = *stop.borrow();
            // Nothing of it goes on.
            life.kill();
            match ended {
                None => self.trace.say(format!("[{id}] is killed")),
                Some(ended) => self.judge_end(id, asked, &ended),
            }
            sleep(self.chance.millis(0, 3000)).await;
        }
    }

    fn judge_end(&self, id: u32, asked: bool, ended: &Result<ReceiveReport, Error>) {
        let error = match ended {
            Ok(report) => {
                self.trace.say(format!("[{id}] ends: {report:?}"));
                if !asked {
                    self.trace.violated(format!("[{id}] ended without being asked to"));
                }
                return;
            }
            Err(error) => error,
        };
        self.trace.say(format!("[{id}] fails: {:?}: {error}", error.kind()));
        let code = walrecv::cli::exit::code(error.kind());
        if !walrecv::cli::exit::TABLE.iter().any(|(known, _)| *known == code) {
            self.trace.violated(format!("[{id}] exit code {code} is not documented"));
        }
        let excuses = *self.excuses();
        let excused = match error.kind() {
            Kind::Diverged => excuses.diverged,
            Kind::Corrupt => excuses.corrupt,
            Kind::Slot => excuses.slot,
            Kind::Repository => excuses.repository,
            Kind::Failed => excuses.failed,
            _ => false,
        };
        if !excused {
            self.trace.violated(format!("[{id}] ended for no reason: {:?}: {error}", error.kind()));
        }
        if error.kind() == Kind::Diverged {
            self.diverged.store(true, Ordering::SeqCst);
        }
        if self.disk.is_read_only() {
            // What an administrator does with a file system that went read-only.
            self.lose_power(Loss::Some);
        }
    }
}

/// As `walrecv receive` does it.
pub async fn run(
    place: Place,
    options: ReceiveOptions,
    observer: Observer,
    stop: watch::Receiver<bool>,
) -> Result<ReceiveReport, Error> {
    let _ = place.repo.clean_staging().await;
    receive(options, place, observer, stop).await
}

pub fn tell(trace: &Trace, id: u32, event: &ReceiveEvent, states: &str) {
    match event {
        // The clock in it is the host's.
        ReceiveEvent::Watching { .. } | ReceiveEvent::Slot(_) => {}
        ReceiveEvent::Durable { timeline, durable, server_end, .. } => {
            trace.say(format!("[{id}] durable through {durable} on timeline {timeline}, the server has {server_end}"));
        }
        // Where the folder stands is chance of another kind.
        event => trace.say(format!("[{id}] {event:?}").replace(states, "/state")),
    }
}
