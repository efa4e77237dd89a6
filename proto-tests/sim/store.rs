//! An object store in memory: slow, sometimes unreachable, and with answers that say less than what was done.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;
use walrecv::error::{Error, Kind, Result};
use walrecv::repo::backend::{Answer, Backend, Listed, Piece};

use super::chance::Chance;
use super::life::Life;

/// As long as a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// How badly it works.
#[derive(Clone, Copy, Default)]
pub struct StoreFaults {
    /// Once in so many requests something is wrong; 0 for never.
    pub error: u64,
    /// Longest usual delay in each direction, in milliseconds.
    pub delay: u64,
    /// Every request fails.
    pub outage: bool,
    /// Every request is refused for good (403).
    pub refuses: bool,
    /// A deliberate lie, to see that it is found out: creates are answered and forgotten, once in so many.
    pub forgets: u64,
}

struct State {
    objects: BTreeMap<String, Bytes>,
    faults: StoreFaults,
    chance: Chance,
}

#[derive(Clone)]
pub struct SimStore(Arc<Mutex<State>>);

impl SimStore {
    pub fn new(chance: Chance) -> SimStore {
        SimStore(Arc::new(Mutex::new(State { objects: BTreeMap::new(), faults: StoreFaults::default(), chance })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_faults(&self, faults: StoreFaults) {
        let forgets = self.state().faults.forgets;
        self.state().faults = StoreFaults { forgets, ..faults };
    }

    pub fn lie(&self, forgets: u64) {
        self.state().faults.forgets = forgets;
    }

    /// Has the objects of another one from now on.
    pub fn becomes(&self, other: &SimStore) {
        let objects = other.state().objects.clone();
        self.state().objects = objects;
    }

    /// A store with the same objects, without faults.
    pub fn copy(&self, chance: Chance) -> SimStore {
        let objects = self.state().objects.clone();
        SimStore(Arc::new(Mutex::new(State { objects, faults: StoreFaults::default(), chance })))
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
struct Fate {
    there: Duration,
    back: Duration,
    applies: bool,
    ends: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Answered,
    Failed,
    Silent,
    Refused,
    /// "Already exists", whatever is there.
    Taken,
}

impl State {
    fn fate(&self, create: bool) -> Fate {
        let (faults, chance) = (self.faults, &self.chance);
        let delay = |slow: bool| match (slow, faults.delay) {
            (_, 0) => Duration::ZERO,
            (true, _) => chance.millis(100, 20_000),
            (false, most) => chance.millis(0, most),
        };
        let mut fate = Fate { there: delay(false), back: delay(false), applies: true, ends: Ending::Answered };
        if faults.refuses {
            fate.applies = false;
            fate.ends = Ending::Refused;
        } else if faults.outage {
            fate.applies = chance.one_in(10);
            fate.ends = chance.pick(&[Ending::Failed, Ending::Failed, Ending::Silent]);
        } else if chance.one_in(faults.error) {
            fate.applies = chance.one_in(2);
            fate.ends = chance.pick(&[Ending::Failed, Ending::Failed, Ending::Silent, Ending::Taken]);
            if !create && fate.ends == Ending::Taken {
                fate.ends = Ending::Failed;
            }
            fate.there = delay(chance.one_in(3));
            fate.back = delay(chance.one_in(3));
        }
        fate
    }
}

/// The store as one process reaches it.
pub struct Client {
    pub store: SimStore,
    pub life: Life,
}

impl Client {
    /// Sends a request, whose effect does not depend on whether the client still lives.
    fn request<T: Send + 'static>(
        &self,
        create: bool,
        work: impl FnOnce(&mut State, Fate) -> Option<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (store, alive) = (self.store.clone(), self.life.step());
        async move {
            if !alive {
                return std::future::pending().await;
            }
            let fate = store.state().fate(create);
            let sent = tokio::spawn(async move {
                if !fate.there.is_zero() {
                    sleep(fate.there).await;
                }
                let answer = work(&mut store.state(), fate);
                if !fate.back.is_zero() {
                    sleep(fate.back).await;
                }
                match fate.ends {
                    Ending::Silent => std::future::pending().await,
                    Ending::Refused => Err(Error::new(Kind::Repository, "the store refuses: 403 AccessDenied")),
                    Ending::Failed => Err(failed("the store failed: 503")),
                    Ending::Answered | Ending::Taken => answer.ok_or_else(|| failed("the store failed: 500")),
                }
            });
            match tokio::time::timeout(PATIENCE, sent).await {
                Ok(Ok(answer)) => answer,
                _ => Err(failed("no answer from the store within 15 s")),
            }
        }
        .boxed()
    }
}

fn failed(text: &str) -> Error {
    Error::new(Kind::Repository, text).transient()
}

impl Backend for Client {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        let (name, bytes) = (name.to_owned(), Bytes::from(parts.concat()));
        self.request(true, move |state, fate| {
            let taken = state.objects.contains_key(&name);
            if fate.ends == Ending::Taken {
                return Some(Answer::Taken);
            }
            let forgotten = state.chance.one_in(state.faults.forgets);
            if fate.applies && !taken && !forgotten {
                state.objects.insert(name, bytes);
            }
            match (taken, fate.applies) {
                (true, _) => Some(Answer::Taken),
                (false, true) => Some(Answer::Created),
                (false, false) => None,
            }
        })
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        let name = name.to_owned();
        self.request(false, move |state, fate| {
            fate.applies.then(|| {
                let object = state.objects.get(&name)?;
                let size = object.len() as u64;
                let range = range.unwrap_or(0..size);
                let (from, to) = (range.start.min(size), range.end.min(size));
                let bytes = object.slice(from as usize..to.max(from) as usize);
                Some(Piece { bytes, size, modified: SystemTime::UNIX_EPOCH })
            })
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let below = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        self.request(false, move |state, fate| {
            fate.applies.then(|| {
                let found = state.objects.iter().filter(|(name, _)| name.starts_with(&below));
                let listed = |(name, object): (&String, &Bytes)| Listed {
                    name: name.clone(),
                    size: object.len() as u64,
                    modified: SystemTime::UNIX_EPOCH,
                };
                found.map(listed).collect()
            })
        })
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        let below = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        self.request(false, move |state, fate| {
            fate.applies.then(|| {
                let inside = state.objects.keys().filter_map(|name| name.strip_prefix(&below));
                let folders = inside.filter_map(|rest| rest.split_once('/').map(|(folder, _)| folder.to_owned()));
                folders.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
            })
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let name = name.to_owned();
        self.request(false, move |state, fate| {
            if fate.applies {
                state.objects.remove(&name);
            }
            fate.applies.then_some(())
        })
    }

    fn settle<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }
}
