//! Deleting backups beside running ones and other expiries: random interleavings, request by request, on a clock of the storage's own. At any moment every
//! complete backup is whole; when all is quiet, only what is reachable is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use walrecv::archive::Archive;
use walrecv::error::{Kind, Result};
use walrecv::keys::ring::WriterRing;
use walrecv::keys::setup;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::repo::names::{BackupPart, parse_backup_part};
use walrecv::retention::plan::Spared;
use walrecv::retention::{ExpireOptions, Expiry, Outcome, Proposal};
use walrecv::seal::content::BackupId;
use walrecv::seal::content::manifest::Backup;
use walrecv::seal::header::{ObjectKind, RepositoryId};
use walrecv::seal::key::RepositorySecret;
use walrecv::seal::opener::read_header;

use crate::archive_pieces::archive;
use crate::expiry_backup::{Figures, Known, Taking, restore, restore_as, sign};
use crate::expiry_store::{Actor, Blind, EXPIRY, FREE, Memory};
use crate::made_server::MadeServer;
use crate::support::{Seed, rounds};

pub const STALE: Duration = Duration::from_secs(5_000);
pub const LIFE: Duration = Duration::from_secs(30_000);

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}

pub const REPOSITORY: RepositoryId = RepositoryId([9; 16]);

pub fn secret() -> RepositorySecret {
    RepositorySecret([5; 32])
}

pub fn ring(identity: &str) -> WriterRing {
    WriterRing::new(REPOSITORY, secret(), Some(identity)).expect("a ring")
}

/// A store, what the test knows of it, and everything that has been seen complete.
pub struct World {
    pub memory: Memory,
    /// As nobody who waits for a turn sees it.
    pub archive: Archive,
    pub known: Arc<Mutex<Known>>,
    /// Where backups are taken of a server: it knows what is in them.
    pub server: Option<Arc<MadeServer>>,
    /// What each complete backup needs.
    pub needs: BTreeMap<BackupId, BTreeSet<String>>,
    pub ring: Arc<WriterRing>,
}

impl World {
    pub fn new(seed: u64, faults: u64) -> World {
        World::over(Memory::new(seed, faults), Arc::default())
    }

    pub fn over(memory: Memory, known: Arc<Mutex<Known>>) -> World {
        let archive = archive(&memory.repository(FREE), 1, true);
        let ring = ring(&setup::generate().public);
        World { memory, archive, known, server: None, needs: BTreeMap::new(), ring: Arc::new(ring) }
    }

    pub fn seen_by(&self, actor: Actor) -> Archive {
        archive(&self.memory.repository(actor), 1, false)
    }

    fn taking(&self, actor: Actor, seed: u64) -> Taking {
        Taking::new(self.seen_by(actor), self.known.clone(), Seed::from(seed), self.memory.now())
    }

    /// A whole backup, undisturbed.
    pub async fn back_up(&self, seed: u64) -> BackupId {
        self.memory.pass(Duration::from_secs(1));
        let taking = self.taking(FREE, seed);
        let id = taking.id.clone();
        taking.run().await.unwrap_or_else(|e| panic!("{id}: {e}"));
        id
    }

    pub fn options(&self, backups: &[&BackupId], delay: u64) -> ExpireOptions {
        ExpireOptions {
            backups: backups.iter().copied().cloned().collect(),
            delete_delay: Duration::from_secs(delay),
            intent_stale: STALE,
            tombstone_life: LIFE,
            put_limit: Duration::from_secs(20),
            now: self.memory.now(),
            ..ExpireOptions::default()
        }
    }

    pub async fn expire(&self, options: ExpireOptions) -> Result<(Proposal, Outcome)> {
        self.memory.pass(Duration::from_secs(1));
        run(self.seen_by(FREE), ExpireOptions { now: self.memory.now(), ..options }, self.ring.clone()).await
    }

    /// Ids whose object under `backups/` is a manifest.
    pub fn complete(&self) -> Vec<BackupId> {
        let prefix = format!("{}/backups/", self.archive.names.root());
        let names = self.memory.names();
        let is_manifest = |name: &String| {
            let object = self.memory.get(name)?;
            let kind = read_header(&object).ok()?.0.claims.kind;
            (kind == ObjectKind::Manifest).then(|| BackupId::parse(name.strip_prefix(&prefix)?).ok())?
        };
        names.iter().filter(|name| name.starts_with(&prefix)).filter_map(is_manifest).collect()
    }

    /// Compares a backup with what it was taken of; all objects that it needs.
    async fn restore(&self, id: &BackupId) -> BTreeSet<String> {
        match &self.server {
            None => restore(&self.archive, &self.known, id).await,
            Some(server) => restore_as(&self.archive, id, &server.sent(id.start())).await,
        }
    }

    /// Every complete backup has everything that it needs; one that is new is restored.
    pub async fn check(&mut self, when: &str) {
        for id in self.complete() {
            if !self.needs.contains_key(&id) {
                println!("    complete: {id} ({when})");
                let needs = self.restore(&id).await;
                self.needs.insert(id.clone(), needs);
            }
            for name in &self.needs[&id] {
                assert!(self.memory.has(name), "{name} is gone ({when}), and {id} needs it");
            }
        }
    }

    pub async fn restore_all(&self) {
        for id in self.complete() {
            self.restore(&id).await;
        }
    }

    /// What is not reachable from a complete backup, but for tombstones over packs that others need.
    pub fn left_over(&self) -> Vec<String> {
        let complete = self.complete();
        let needed: BTreeSet<&String> = complete.iter().flat_map(|id| &self.needs[id]).collect();
        let root = format!("{}/", self.archive.names.root());
        let whose = |name: &str| Some(parse_backup_part(name.strip_prefix(&root)?)?.0.to_owned());
        let owners: BTreeSet<String> = needed.iter().filter_map(|name| whose(name)).collect();
        let sign = |name: &str| match parse_backup_part(name.strip_prefix(&root)?)? {
            (owner, BackupPart::Alive(_)) => Some(owner.to_owned()),
            _ => None,
        };
        let fine = |name: &String| {
            let backup = |folder: &str| BackupId::parse(name.strip_prefix(&root)?.strip_prefix(folder)?).ok();
            let alive = |id: Option<BackupId>| id.is_some_and(|id| complete.contains(&id));
            needed.contains(name)
                || alive(backup("intents/"))
                || alive(backup("backups/"))
                || sign(name).is_some_and(|owner| complete.iter().any(|id| id.as_str() == owner))
                || backup("backups/").is_some_and(|id| owners.contains(id.as_str()))
                || !name.starts_with(&root)
        };
        self.memory.names().into_iter().filter(|name| !fine(name)).collect()
    }
}

pub async fn run(archive: Archive, options: ExpireOptions, ring: Arc<WriterRing>) -> Result<(Proposal, Outcome)> {
    let mut expiry = Expiry::begin(archive, options).await?;
    let proposal = expiry.propose().await?;
    let outcome = expiry.carry_out(&ring, &proposal).await?;
    Ok((proposal, outcome))
}

/// Somebody at work.
struct Working {
    task: JoinHandle<String>,
    slow: bool,
    /// The backup that is being taken.
    backup: Option<BackupId>,
}

struct Chaos {
    world: World,
    seed: Seed,
    working: BTreeMap<Actor, Working>,
    next: Actor,
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let mut chance = Seed::from(seed);
        let faults = if chance.below(2) == 0 { 0 } else { 60 };
        Chaos { world: World::new(chance.next(), faults), seed: chance, working: BTreeMap::new(), next: 1 }
    }

    fn start_one(&mut self) {
        let actor = self.next;
        self.next += 1;
        // Two things never begin in one second: names sort by the order in which they began.
        self.world.memory.pass(Duration::from_secs(1));
        let expires = self.seed.below(2) == 0;
        let actor = if expires { actor + EXPIRY } else { actor };
        let (task, backup) = match expires {
            false => {
                let taking = self.world.taking(actor, self.seed.next());
                let id = taking.id.clone();
                let said = |id, taken: Result<()>| format!("backup {id}: {:?}", taken.map_err(|e| e.to_string()));
                let (shown, backup) = (id.clone(), Some(id));
                (tokio::spawn(async move { said(shown, taking.run().await) }), backup)
            }
            true => (self.start_expiry(actor), None),
        };
        let slow = self.seed.below(4) == 0;
        self.working.insert(actor, Working { task, slow, backup });
    }

    fn start_expiry(&mut self, actor: Actor) -> JoinHandle<String> {
        let delay = [0, 0, 0, 100, 2_000][self.seed.below(5) as usize];
        let asked: Vec<BackupId> = self.world.complete().into_iter().filter(|_| self.seed.below(3) == 0).collect();
        let mut options = self.world.options(&asked.iter().collect::<Vec<_>>(), delay);
        options.force = !asked.is_empty() && self.seed.below(12) == 0;
        let (archive, ring) = (self.world.seen_by(actor), self.world.ring.clone());
        tokio::spawn(async move {
            let shown = asked.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(" ");
            let outcome = run(archive, options, ring).await.map(|(_, outcome)| outcome).map_err(|e| e.to_string());
            format!("expiry {actor} of [{shown}], delay {delay}: {outcome:?}")
        })
    }

    async fn step(&mut self, number: u32) {
        // Under a paused clock this is over when everybody waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let finished: Vec<Actor> = self.working.iter().filter(|(_, w)| w.task.is_finished()).map(|(a, _)| *a).collect();
        for actor in finished {
            let said = self.working.remove(&actor).expect("one at work").task.await.expect("no panic");
            println!("{number:5} {said}");
        }
        let calm = self.world.known.lock().expect("no test has died").committing.is_empty();
        match self.seed.below(1000) {
            0..60 => self.world.memory.pass(Duration::from_secs(1 + self.seed.below(60))),
            60..68 if calm => self.world.memory.pass(Duration::from_secs(2_500)),
            68..72 if calm => self.world.memory.pass(Duration::from_secs(12_000)),
            72..170 if self.working.len() < 6 => self.start_one(),
            170..180 => {
                let actors: Vec<Actor> = self.working.keys().copied().collect();
                if !actors.is_empty() {
                    let actor = actors[self.seed.below(actors.len() as u64) as usize];
                    self.kill(actor).await;
                    println!("{number:5} killed {actor}");
                }
            }
            _ => self.grant(),
        }
        self.world.check(&format!("step {number}")).await;
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

    async fn kill(&mut self, actor: Actor) {
        if let Some(working) = self.working.remove(&actor) {
            working.task.abort();
            let _ = working.task.await;
            // The others are still at it.
            if let Some(id) = working.backup {
                self.world.known.lock().expect("no test has died").committing.remove(&id);
            }
        }
    }

    /// Everybody dies; then one more backup, and expiries until nothing changes.
    async fn end(&mut self) -> Figures {
        let actors: Vec<Actor> = self.working.keys().copied().collect();
        for actor in actors {
            self.kill(actor).await;
        }
        self.world.memory.pass(STALE);
        let seed = self.seed.next();
        self.world.back_up(seed).await;
        self.world.check("at the end").await;
        for _ in 0..5 {
            self.world.memory.pass(LIFE + STALE);
            let options = self.world.options(&[], 1_000);
            let (_, outcome) = self.world.expire(options).await.expect("an expiry that nobody disturbs");
            println!("  end {outcome:?}");
            assert!(outcome.failures.is_empty() && outcome.blocked.is_none(), "{outcome:?}");
            self.world.check("after the end").await;
        }
        self.world.restore_all().await;
        assert_eq!(self.world.left_over(), [""; 0], "objects that nothing needs");
        self.world.known.lock().expect("no test has died").figures
    }
}

#[test]
fn every_complete_backup_is_whole_whatever_goes_on_beside() {
    let mut seeds = Seed::of_run();
    let mut all = Figures::default();
    let rounds = rounds(30, 3000);
    let often = |count: u64, least: u32| count >= u64::from((rounds * least).div_ceil(10));
    // What is seldom may be missing in a few rounds: then there are more of them.
    for round in 0..4 * rounds {
        let seed = seeds.next();
        println!("round {round}: seed {seed}");
        let figures = runtime().block_on(async {
            let mut chaos = Chaos::new(seed);
            for step in 0..3_000 {
                chaos.step(step).await;
            }
            chaos.end().await
        });
        all.complete += figures.complete;
        all.with_parent += figures.with_parent;
        all.parent_refused += figures.parent_refused;
        all.orphan_packs += figures.orphan_packs;
        all.too_late += figures.too_late;
        let enough = often(all.complete, 30) && often(all.with_parent, 10) && often(all.orphan_packs, 1);
        if round + 1 >= rounds && enough && all.parent_refused > 0 {
            println!("{all:?}");
            return;
        }
    }
    panic!("too little happens: {all:?}");
}

/// What goes wrong in one round where a safeguard is taken out.
fn harm(seed: u64, blind: Blind) -> Option<String> {
    let round = || {
        runtime().block_on(async {
            let mut chaos = Chaos::new(seed);
            chaos.world.memory.set_blind(blind);
            for step in 0..3_000 {
                chaos.step(step).await;
            }
        })
    };
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(round)).err()?;
    Some(payload.downcast_ref::<String>().cloned().unwrap_or_default())
}

/// The two others, intents before deleting and tombstones, do no harm in so few rounds when they are taken out: other safeguards hide them.
#[test]
fn a_look_that_is_left_out_does_harm() {
    for blind in [Blind::BackupsToPlans, Blind::ExpiriesToAllThatIsNew] {
        let found = (0..60).find_map(|seed| harm(seed, blind).map(|what| (seed, what)));
        let (seed, what) = found.unwrap_or_else(|| panic!("{blind:?}: nothing goes wrong in 60 rounds"));
        println!("{blind:?}: seed {seed}: {what}");
        assert!(what.contains("is gone") && what.contains("needs it"), "{blind:?}: {what}");
    }
}

#[test]
fn an_expiry_that_dies_at_any_step_is_finished_by_the_next() {
    runtime().block_on(async {
        let mut world = World::new(1, 0);
        let ids = [world.back_up(1).await, world.back_up(2).await, world.back_up(3).await, world.back_up(4).await];
        world.check("before").await;
        for delay in [0, 1_000] {
            let mut steps = 0;
            loop {
                let mut copy = World::over(world.memory.copy(), world.known.clone());
                copy.memory.set_fuse(Some(steps));
                let options = copy.options(&[&ids[0], &ids[2]], delay);
                let died = copy.expire(options.clone()).await;
                copy.memory.set_fuse(None);
                let died = !matches!(&died, Ok((_, outcome)) if outcome.failures.is_empty());
                copy.check("after the death").await;
                // The very same command again, then what a later day does.
                copy.expire(options).await.expect("the same again");
                copy.check("again").await;
                for _ in 0..3 {
                    copy.memory.pass(LIFE + STALE);
                    copy.expire(copy.options(&[], delay)).await.expect("a later run");
                    copy.check("later").await;
                }
                assert_eq!(copy.complete(), [ids[1].clone(), ids[3].clone()], "died after {steps} steps");
                copy.restore_all().await;
                assert_eq!(copy.left_over(), [""; 0], "died after {steps} steps");
                if !died {
                    break;
                }
                steps += 1;
            }
            println!("delay {delay}: {steps} steps");
            assert!(steps >= 4);
        }
    });
}

#[test]
fn what_must_stay_stays_and_is_said() {
    runtime().block_on(async {
        let mut world = World::new(1, 0);
        let refused = async |world: &World, ids: &[&BackupId], force: bool| {
            let options = ExpireOptions { force, ..world.options(ids, 0) };
            world.expire(options).await.map(|_| ()).expect_err("a refusal")
        };
        let first = world.back_up(1).await;
        let error = refused(&world, &[&first], false).await;
        assert_eq!(error.kind(), Kind::Retention, "{error}");
        assert!(error.to_string().contains("is the last complete one"), "{error}");
        let second = world.back_up(2).await;
        let error = refused(&world, &[&first, &second], false).await;
        assert_eq!(error.kind(), Kind::Retention, "{error}");
        let at = Timestamp::try_from(world.memory.now()).unwrap();
        let never = BackupId::new(at, TimelineId(1), Lsn(1), 0xFFFF);
        let error = refused(&world, &[&never], true).await;
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        let hint = error.advice().unwrap_or_default();
        assert!(hint.contains(first.as_str()) && hint.contains(second.as_str()), "{hint}");

        // A backup that is being taken spares its parent until it ends, and is not deleted itself.
        let taking = world.taking(7, 3);
        let running = taking.id.clone();
        let task = tokio::spawn(taking.run());
        while !world.memory.has(&world.archive.names.intent(running.as_str())) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if !world.memory.waiting().is_empty() {
                world.memory.grant(0);
            }
        }
        let intent = world.archive.intent(&running).await.unwrap().expect("an intent");
        let parent =
            [&first, &second].into_iter().find(|id| intent.reuses.contains(&id.to_string())).expect("a parent");
        let error = refused(&world, &[&running], false).await;
        assert_eq!(error.kind(), Kind::Retention, "{error}");
        let (proposal, outcome) = world.expire(world.options(&[parent], 0)).await.unwrap();
        assert_eq!(proposal.spared, [(parent.clone(), Spared::Reused { by: running.clone() })]);
        assert!(outcome.plan.is_none() && !proposal.acts(), "{outcome:?}");
        while !task.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if !world.memory.waiting().is_empty() {
                world.memory.grant(0);
            }
        }
        task.await.unwrap().expect("a backup");
        world.check("complete").await;
        let (_, outcome) = world.expire(world.options(&[parent], 1_000)).await.unwrap();
        assert_eq!(outcome.deleted, std::slice::from_ref(parent));
        assert!(outcome.unfinished && outcome.freed.objects == 0);
        assert!(matches!(world.archive.backup(parent).await.unwrap(), Some(Backup::GivenUp(_))));
        // Too early: nothing moves, and no plan is left behind.
        let plans = world.archive.list_plans().await.unwrap().plans.len();
        let (_, outcome) = world.expire(world.options(&[], 1_000)).await.unwrap();
        assert!(outcome.plan.is_none(), "{outcome:?}");
        world.memory.pass(Duration::from_secs(1_000));
        let (_, outcome) = world.expire(world.options(&[], 1_000)).await.unwrap();
        assert!(outcome.freed.objects > 0 && !outcome.unfinished, "{outcome:?}");
        assert_eq!((plans, world.archive.list_plans().await.unwrap().plans.len()), (1, 0));
        world.check("swept").await;
        assert_eq!(world.archive.events("expiry").await.unwrap().len(), 2);
    });
}

#[test]
fn a_quiet_backup_that_gives_signs_of_life_is_not_given_up() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        world.back_up(1).await;
        let at = Timestamp::try_from(world.memory.now()).unwrap();
        let quiet = BackupId::new(at, TimelineId(1), Lsn(1), 7);
        for number in 0..3 {
            sign(&world.archive, &quiet, number).await;
            world.memory.pass(STALE - Duration::from_secs(10));
            let (proposal, _) = world.expire(world.options(&[], 0)).await.unwrap();
            assert!(proposal.give_up.is_empty(), "{number}: {proposal:?}");
        }
        world.memory.pass(Duration::from_secs(10));
        let (_, outcome) = world.expire(world.options(&[], 0)).await.unwrap();
        assert_eq!(outcome.given_up, std::slice::from_ref(&quiet));
        let left = || world.memory.names().into_iter().filter(|name| name.contains(quiet.as_str())).collect::<Vec<_>>();
        world.expire(world.options(&[], 0)).await.unwrap();
        assert_eq!(left(), [world.archive.names.backup(quiet.as_str())], "the tombstone stays for a while");
    });
}

/// By a clock that is ahead a backup that is being taken looks dead: a plan that names it would keep every later one from building on it.
#[test]
fn a_clock_that_is_ahead_announces_nothing() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let ids = [world.back_up(1).await, world.back_up(2).await];
        let quiet = BackupId::new(Timestamp::try_from(world.memory.now()).unwrap(), TimelineId(1), Lsn(1), 7);
        sign(&world.archive, &quiet, 0).await;
        let of = |ahead| ExpireOptions { now: world.memory.now() + ahead, ..world.options(&[&ids[0]], 1_000) };
        let hour = Duration::from_secs(3600);
        let error =
            run(world.seen_by(FREE), of(STALE + 2 * hour), world.ring.clone()).await.expect_err("a wrong clock");
        assert!(error.kind() == Kind::Retention && error.to_string().contains("ahead of the store's"), "{error}");
        assert!(world.archive.list_plans().await.unwrap().plans.is_empty());
        assert_eq!(world.complete(), ids);
        let (_, outcome) = run(world.seen_by(FREE), of(hour / 2), world.ring.clone()).await.unwrap();
        assert_eq!(outcome.deleted, [ids[0].clone()]);
    });
}

#[test]
fn two_expiries_do_not_delete_the_last_two_backups() {
    runtime().block_on(async {
        let mut world = World::new(1, 0);
        let ids = [world.back_up(1).await, world.back_up(2).await];
        let begin =
            async |id: &BackupId| Expiry::begin(world.seen_by(FREE), world.options(&[id], 1_000)).await.unwrap();
        let (mut one, mut other) = (begin(&ids[0]).await, begin(&ids[1]).await);
        let proposals = [one.propose().await.unwrap(), other.propose().await.unwrap()];
        let outcome = one.carry_out(&world.ring, &proposals[0]).await.unwrap();
        assert_eq!(outcome.deleted, [ids[0].clone()]);
        let outcome = other.carry_out(&world.ring, &proposals[1]).await.unwrap();
        assert_eq!((outcome.deleted.len(), outcome.spared), (0, vec![(ids[1].clone(), Spared::Last { unfit: None })]));
        assert_eq!(world.complete(), [ids[1].clone()]);
        // The plan stands. A later run goes on with it as soon as there is another backup, and not before.
        let (_, outcome) = world.expire(world.options(&[], 1_000)).await.unwrap();
        assert_eq!((outcome.deleted.len(), world.complete().len()), (0, 1));
        let third = world.back_up(3).await;
        let (_, outcome) = world.expire(world.options(&[], 1_000)).await.unwrap();
        assert_eq!((outcome.deleted, world.complete()), (vec![ids[1].clone()], vec![third]));
        world.check("at the end").await;
        // What a tombstone says, and a writer that slept for too long.
        world.memory.pass(LIFE);
        // First the plans, which need the tombstones; then those.
        for _ in 0..2 {
            world.expire(world.options(&[], 0)).await.unwrap();
        }
        assert!(world.archive.backup(&ids[0]).await.unwrap().is_none());
        assert_eq!(world.archive.demand_intent(&ids[0]).await.unwrap_err().kind(), Kind::Failed);
    });
}

#[test]
fn what_cannot_be_read_holds_the_sweep_up_and_strangers_stay() {
    runtime().block_on(async {
        let mut world = World::new(1, 0);
        let ids = [world.back_up(1).await, world.back_up(2).await, world.back_up(3).await];
        world.check("before").await;
        let root = world.archive.names.root();
        let strangers = [
            format!("{root}/packs/{}/07", ids[0]),
            format!("{root}/packs/mine/1"),
            format!("{root}/backups/odd"),
            format!("{root}/plans/odd"),
        ];
        strangers.iter().for_each(|name| world.memory.put(name, b"?".to_vec().into()));
        let packs = |world: &World| world.memory.names().iter().filter(|name| name.contains("/packs/")).count();
        let before = packs(&world);
        // A map of a backup that stays, then its manifest: damaged, or on a bad sector.
        let names = [world.archive.names.map(ids[2].as_str(), 0), world.archive.names.backup(ids[2].as_str())];
        for (name, sector) in names.into_iter().flat_map(|name| [(name.clone(), false), (name, true)]) {
            let copy = World::over(world.memory.copy(), world.known.clone());
            let mut bytes = copy.memory.get(&name).unwrap().to_vec();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            match sector {
                true => copy.memory.set_bad(Some(name.clone())),
                false => copy.memory.put(&name, bytes.clone().into()),
            }
            let (proposal, outcome) = copy.expire(copy.options(&[&ids[0]], 0)).await.unwrap();
            assert!(proposal.blocked.is_some(), "{name}");
            let (kind, text) = outcome.blocked.expect("a reason");
            assert!(kind == Kind::Corrupt && text.contains(ids[2].as_str()), "{text}");
            assert_eq!(outcome.deleted, [ids[0].clone()]);
            assert!(outcome.unfinished && packs(&copy) == before, "{name}");
            // What is damaged goes by force only where it is the manifest itself, and the rest with it.
            let error = copy.expire(copy.options(&[&ids[2]], 0)).await;
            let forced = ExpireOptions { force: true, ..copy.options(&[&ids[2]], 0) };
            if name.contains("/backups/") {
                assert_eq!(error.expect_err("a refusal").kind(), Kind::Corrupt);
                copy.expire(forced).await.unwrap();
                copy.memory.set_bad(None);
            }
            let (_, outcome) = copy.expire(copy.options(&[], 0)).await.unwrap();
            assert!(outcome.blocked.is_none() && packs(&copy) < before, "{outcome:?}");
            assert_eq!(copy.complete(), [ids[1].clone()]);
            restore(&copy.archive, &copy.known, &ids[1]).await;
            assert!(strangers.iter().all(|name| copy.memory.has(name)));
        }
        // A plan that cannot be read may speak of anything.
        let name = world.archive.names.plan("20260131T020001Z-0a02030405060708");
        world.memory.put(&name, b"no object".to_vec().into());
        let error = world.expire(world.options(&[&ids[0]], 0)).await.expect_err("a refusal");
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains(&name), "{error}");
        world.memory.remove(&name);
        world.expire(world.options(&[&ids[0]], 0)).await.unwrap();
    });
}
