//! An object store in memory with a clock of its own, in which a scheduler lets one request of one actor through at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use walrecv::error::{Error, Kind, Result};
use walrecv::repo::Repository;
use walrecv::repo::backend::{Answer, Backend, Listed, Piece};

use crate::support::Seed;

/// Who asks. Nobody waits for the scheduler in the name of `FREE`; from `EXPIRY` on they are expiries.
pub type Actor = u32;
pub const FREE: Actor = 0;
pub const EXPIRY: Actor = 1_000_000;

/// A safeguard that is taken out, by what somebody does not get to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blind {
    /// Nothing is taken out.
    Nobody,
    /// Backups find no plans when they look after their announcement.
    BackupsToPlans,
    /// Expiries find the intents of their first look again after their announcement.
    ExpiriesToIntents,
    /// Expiries sweep by what they saw before their announcement.
    ExpiriesToAllThatIsNew,
    /// The tombstones of expiries are seen by expiries, and hold no backup up.
    BackupsToTombstones,
}

struct Inner {
    objects: BTreeMap<String, (Bytes, SystemTime)>,
    now: SystemTime,
    waiting: Vec<(Actor, oneshot::Sender<()>)>,
    chance: Seed,
    /// Once in so many requests the answer is lost or an error; 0 for never.
    faults: u64,
    blind: Blind,
    /// Tombstones that only expiries see.
    shadows: BTreeMap<String, (Bytes, SystemTime)>,
    /// Changes that still succeed; then every request fails.
    fuse: Option<u64>,
    /// An object that cannot be deleted.
    stuck: Option<String>,
    /// An object on a bad sector.
    bad: Option<String>,
    /// Processes that were killed: what their threads still ask for fails.
    dead: BTreeSet<Actor>,
}

#[derive(Clone)]
pub struct Memory(Arc<Mutex<Inner>>);

impl Memory {
    pub fn new(seed: u64, faults: u64) -> Memory {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_824_800);
        let (objects, waiting, chance) = (BTreeMap::new(), Vec::new(), Seed::from(seed));
        let (blind, shadows) = (Blind::Nobody, BTreeMap::new());
        Memory(Arc::new(Mutex::new(Inner {
            objects,
            now,
            waiting,
            chance,
            faults,
            blind,
            shadows,
            fuse: None,
            stuck: None,
            bad: None,
            dead: BTreeSet::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test has died")
    }

    /// The repository as one actor reaches it.
    pub fn repository(&self, actor: Actor) -> Repository {
        Repository::with_backend(
            "memory://test",
            Box::new(Client { memory: self.clone(), actor, first: Mutex::default() }),
        )
    }

    pub fn set_blind(&self, blind: Blind) {
        self.inner().blind = blind;
    }

    pub fn now(&self) -> SystemTime {
        self.inner().now
    }

    pub fn pass(&self, time: Duration) {
        self.inner().now += time;
    }

    pub fn names(&self) -> Vec<String> {
        self.inner().objects.keys().cloned().collect()
    }

    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.inner().objects.get(name).map(|(bytes, _)| bytes.clone())
    }

    pub fn put(&self, name: &str, bytes: Bytes) {
        let mut inner = self.inner();
        let now = inner.now;
        inner.objects.insert(name.to_owned(), (bytes, now));
    }

    pub fn remove(&self, name: &str) {
        self.inner().objects.remove(name).expect("an object to remove");
    }

    pub fn has(&self, name: &str) -> bool {
        self.inner().objects.contains_key(name)
    }

    /// After so many changes more, everything fails; `None`: nothing does.
    pub fn set_fuse(&self, fuse: Option<u64>) {
        self.inner().fuse = fuse;
    }

    /// This object cannot be deleted.
    pub fn set_stuck(&self, name: Option<String>) {
        self.inner().stuck = name;
    }

    /// This object cannot be read, by an error of the disk.
    pub fn set_bad(&self, name: Option<String>) {
        self.inner().bad = name;
    }

    /// A store of its own with the same objects and the same time.
    pub fn copy(&self) -> Memory {
        let copy = Memory::new(0, 0);
        let now = self.now();
        let objects = self.inner().objects.clone();
        copy.inner().objects = objects;
        copy.inner().now = now;
        copy
    }

    /// Who waits, in the order in which they came.
    pub fn waiting(&self) -> Vec<Actor> {
        let mut inner = self.inner();
        inner.waiting.retain(|(_, tell)| !tell.is_closed());
        inner.waiting.iter().map(|(actor, _)| *actor).collect()
    }

    /// Nothing that this one asks for from now on happens.
    pub fn kill(&self, actor: Actor) {
        let mut inner = self.inner();
        inner.dead.insert(actor);
        inner.waiting.retain(|(waiting, _)| *waiting != actor);
    }

    /// Lets the request at this place of [`Memory::waiting`] go on.
    pub fn grant(&self, place: usize) {
        let (_, tell) = self.inner().waiting.remove(place);
        let _ = tell.send(());
    }
}

struct Client {
    memory: Memory,
    actor: Actor,
    /// What was listed first below each prefix, for who sees nothing new.
    first: Mutex<BTreeMap<String, Vec<Listed>>>,
}

#[derive(PartialEq)]
enum Fate {
    Works,
    /// Nothing happens, and an error comes.
    Fails,
    /// It happens, and an error comes.
    Lost,
}

impl Client {
    async fn turn(&self) {
        if self.actor == FREE {
            return;
        }
        let (tell, told) = oneshot::channel();
        {
            let mut inner = self.memory.inner();
            if inner.dead.contains(&self.actor) {
                return;
            }
            inner.waiting.push((self.actor, tell));
        }
        let _ = told.await;
    }

    fn is_blind(&self, how: Blind) -> bool {
        let expiry = self.actor >= EXPIRY;
        let concerned = match how {
            Blind::BackupsToPlans => !expiry && self.actor != FREE,
            _ => expiry,
        };
        concerned && self.memory.inner().blind == how
    }

    /// What this one makes of a listing.
    fn as_seen(&self, prefix: &str, mut found: Vec<Listed>) -> Vec<Listed> {
        if self.is_blind(Blind::BackupsToPlans) && prefix.ends_with("/plans") {
            return Vec::new();
        }
        if self.is_blind(Blind::BackupsToTombstones) {
            let inner = self.memory.inner();
            found.extend(below(&inner.shadows, prefix).into_iter().map(|(_, listed)| listed));
        }
        let old = self.is_blind(Blind::ExpiriesToIntents) && prefix.ends_with("/intents")
            || self.is_blind(Blind::ExpiriesToAllThatIsNew) && !prefix.ends_with("/plans");
        if !old {
            return found;
        }
        self.first.lock().expect("no test has died").entry(prefix.to_owned()).or_insert(found).clone()
    }

    /// What a dead process makes of it is nothing.
    fn failed(&self) -> Error {
        let error = Error::new(Kind::Repository, "the store failed: 503");
        if self.memory.inner().dead.contains(&self.actor) { error } else { error.transient() }
    }

    fn fate(&self, changes: bool) -> Fate {
        let mut inner = self.memory.inner();
        if inner.dead.contains(&self.actor) {
            return Fate::Fails;
        }
        match inner.fuse {
            Some(0) => return Fate::Fails,
            Some(left) if changes => inner.fuse = Some(left - 1),
            _ => {}
        }
        let faults = inner.faults;
        if self.actor == FREE || faults == 0 || inner.chance.below(faults) > 0 {
            return Fate::Works;
        }
        if inner.chance.below(2) == 0 { Fate::Fails } else { Fate::Lost }
    }
}

fn below<'a>(objects: &'a BTreeMap<String, (Bytes, SystemTime)>, prefix: &str) -> Vec<(&'a String, Listed)> {
    let inside = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/') || prefix.is_empty());
    let listed = |name: &String, (bytes, modified): &(Bytes, SystemTime)| Listed {
        name: name.clone(),
        size: bytes.len() as u64,
        modified: *modified,
    };
    objects.iter().filter(|(name, _)| inside(name)).map(|(name, object)| (name, listed(name, object))).collect()
}

impl Backend for Client {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        async move {
            self.turn().await;
            let fate = self.fate(true);
            if fate == Fate::Fails {
                return Err(self.failed());
            }
            let shadow = name.contains("/backups/") && self.is_blind(Blind::BackupsToTombstones);
            let mut inner = self.memory.inner();
            if shadow && !inner.objects.contains_key(name) {
                let now = inner.now;
                inner.shadows.insert(name.to_owned(), (Bytes::from(parts.concat()), now));
                return Ok(Answer::Created);
            }
            if inner.objects.contains_key(name) {
                return Ok(Answer::Taken);
            }
            let now = inner.now;
            inner.objects.insert(name.to_owned(), (Bytes::from(parts.concat()), now));
            drop(inner);
            if fate == Fate::Lost { Err(self.failed()) } else { Ok(Answer::Created) }
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        async move {
            self.turn().await;
            if self.fate(false) != Fate::Works {
                return Err(self.failed());
            }
            let shadows = self.is_blind(Blind::BackupsToTombstones);
            let inner = self.memory.inner();
            if inner.bad.as_deref() == Some(name) && inner.objects.contains_key(name) {
                let error = Error::new(Kind::Repository, format!("cannot read {name}")).transient();
                return Err(error.caused_by(std::io::Error::from_raw_os_error(5)));
            }
            let found = inner.objects.get(name).or_else(|| inner.shadows.get(name).filter(|_| shadows));
            Ok(found.map(|(bytes, modified)| {
                let size = bytes.len() as u64;
                let range = range.unwrap_or(0..size);
                let (from, to) = (range.start.min(size) as usize, range.end.min(size) as usize);
                Piece { bytes: bytes.slice(from..to), size, modified: *modified }
            }))
        }
        .boxed()
    }

    /// No snapshot: one part of the names is looked at now, the other one later.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        async move {
            self.turn().await;
            if self.fate(false) != Fate::Works {
                return Err(self.failed());
            }
            let salt = self.memory.inner().chance.next();
            let early = |name: &str| name.bytes().fold(salt, |sum, b| sum.rotate_left(7) ^ u64::from(b)) & 8 == 0;
            let half = |first: bool| -> Vec<Listed> {
                let inner = self.memory.inner();
                let all = below(&inner.objects, prefix);
                all.into_iter().filter(|(name, _)| early(name) == first).map(|(_, listed)| listed).collect()
            };
            let mut found = half(true);
            self.turn().await;
            found.extend(half(false));
            Ok(self.as_seen(prefix, found))
        }
        .boxed()
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        async move {
            self.turn().await;
            let inner = self.memory.inner();
            let first =
                |name: &str| name.strip_prefix(prefix)?.trim_start_matches('/').split_once('/').map(|f| f.0.to_owned());
            let mut folders: Vec<String> =
                below(&inner.objects, prefix).iter().filter_map(|(name, _)| first(name)).collect();
            folders.dedup();
            Ok(folders)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.turn().await;
            let fate = self.fate(true);
            if fate == Fate::Fails || self.memory.inner().stuck.as_deref() == Some(name) {
                return Err(self.failed());
            }
            self.memory.inner().objects.remove(name);
            if fate == Fate::Lost { Err(self.failed()) } else { Ok(()) }
        }
        .boxed()
    }

    fn settle<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }
}
