//! Stores in memory: an honest one, and one that loses answers, conflicts without cause and fails at random.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all, ready};
use walrecv::error::{Error, Kind, Result};
use walrecv::repo::backend::{Answer, Backend, Piece};
use walrecv::repo::{Listed, Put, Repository};

use crate::common::{joined, object, put, runtime};
use crate::support::Seed;

/// An honest store.
#[derive(Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl Memory {
    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.objects.lock().unwrap().get(name).cloned()
    }

    pub fn set(&self, name: &str, bytes: Bytes) {
        self.objects.lock().unwrap().insert(name.to_owned(), bytes);
    }

    pub fn remove(&self, name: &str) {
        self.objects.lock().unwrap().remove(name);
    }
}

fn done<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    ready(value).boxed()
}

impl Backend for Memory {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(name) {
            return done(Ok(Answer::Taken));
        }
        objects.insert(name.to_owned(), Bytes::from(joined(parts)));
        done(Ok(Answer::Created))
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        let piece = self.objects.lock().unwrap().get(name).map(|whole| {
            let size = whole.len() as u64;
            let range = range.unwrap_or(0..size);
            let bytes = whole.slice(range.start.min(size) as usize..range.end.min(size) as usize);
            Piece { bytes, size, modified: SystemTime::now() }
        });
        done(Ok(piece))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let objects = self.objects.lock().unwrap();
        let below = |name: &&String| prefix.is_empty() || name.starts_with(&format!("{prefix}/"));
        let entry = |name: &String| {
            let size = objects[name].len() as u64;
            Listed { name: name.clone(), size, modified: SystemTime::now() }
        };
        done(Ok(objects.keys().filter(below).map(entry).collect()))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        let objects = self.objects.lock().unwrap();
        let start = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let mut folders: Vec<String> =
            objects.keys().filter_map(|name| Some(name.strip_prefix(&start)?.split_once('/')?.0.to_owned())).collect();
        folders.dedup();
        done(Ok(folders))
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.objects.lock().unwrap().remove(name);
        done(Ok(()))
    }

    fn settle<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        done(Ok(()))
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        done(Ok(()))
    }
}

/// A store whose answers cannot be relied upon: what is stored, and what a read that succeeds says, is true.
struct Unreliable {
    memory: Arc<Memory>,
    seed: Mutex<Seed>,
    /// Of a hundred requests, so many go wrong.
    percent: u64,
}

impl Unreliable {
    fn goes_wrong(&self) -> bool {
        self.seed.lock().unwrap().below(100) < self.percent
    }

    fn one_of(&self, count: u64) -> u64 {
        self.seed.lock().unwrap().below(count)
    }
}

fn passing() -> Error {
    Error::new(Kind::Repository, "injected").transient()
}

impl Backend for Unreliable {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        if !self.goes_wrong() {
            return self.memory.create(name, parts);
        }
        match self.one_of(4) {
            // The answer is lost, before or after it was stored.
            0 => done(Err(passing())),
            1 => async move { self.memory.create(name, parts).await.and(Err(passing())) }.boxed(),
            // A conflict with nothing behind it, and one with our own put behind it.
            2 => done(Ok(Answer::Taken)),
            _ => async move { self.memory.create(name, parts).await.and(Ok(Answer::Taken)) }.boxed(),
        }
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        if self.goes_wrong() { done(Err(passing())) } else { self.memory.read(name, range) }
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        if self.goes_wrong() { done(Err(passing())) } else { self.memory.list(prefix) }
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        if self.goes_wrong() { done(Err(passing())) } else { self.memory.folders(prefix) }
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        if self.goes_wrong() { done(Err(passing())) } else { self.memory.delete(name) }
    }

    fn settle<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        if self.goes_wrong() { done(Err(passing())) } else { done(Ok(())) }
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        done(Ok(()))
    }
}

/// Whatever goes wrong: who is told that his object is stored finds it, or an equal one, there; one creator at most; who disagrees is told.
#[test]
fn no_answer_is_a_lie() {
    let mut seed = Seed::of_run();
    let rounds = (0..300).map(|round| {
        let memory = Arc::new(Memory::default());
        let percent = seed.between(10, 95);
        let faulty = |seed: u64| {
            let backend = Unreliable { memory: memory.clone(), seed: Mutex::new(Seed::from(seed)), percent };
            Repository::with_backend("faulty", Box::new(backend))
        };
        let writers: Vec<_> = (0..3).map(|_| (faulty(seed.next()), seed.below(2) as u8)).collect();
        async move {
            let puts = writers.iter().zip(1u8..).map(|((repo, claims), salt)| async move {
                (*claims, salt, put(repo, "x", salt, *claims, Duration::from_secs(2)).await)
            });
            let outcomes = join_all(puts).await;
            let stored = memory.get("x");
            let mut created = 0;
            for (claims, salt, outcome) in outcomes {
                let there = stored.as_ref().map(|s| (s[0], s[1], s.len()));
                match outcome {
                    Ok(put) => {
                        assert!(there.is_some_and(|(_, c, len)| c == claims && len == 100), "round {round}: {put:?}");
                        assert_eq!(put == Put::Equal, there.is_some_and(|(s, ..)| s != salt), "round {round}");
                        created += u32::from(put == Put::Created);
                    }
                    Err(error) if error.kind() == Kind::Diverged => {
                        assert!(there.is_some_and(|(_, c, _)| c != claims), "round {round}: {error}");
                    }
                    Err(error) => assert!(error.is_transient(), "round {round}: {error}"),
                }
            }
            assert!(created <= 1, "round {round}");
            created
        }
    });
    let created: u32 = runtime().block_on(join_all(rounds)).into_iter().sum();
    assert!(created > 0, "faults everywhere: nothing was tested");
}

type Hook = dyn Fn(&str, &Memory) + Send + Sync;

/// A store that does something of the test's own before each read and each listing.
pub struct Hooked {
    memory: Arc<Memory>,
    hook: Box<Hook>,
}

impl Hooked {
    pub fn repository(memory: Arc<Memory>, hook: impl Fn(&str, &Memory) + Send + Sync + 'static) -> Repository {
        Repository::with_backend("hooked", Box::new(Hooked { memory, hook: Box::new(hook) }))
    }
}

impl Backend for Hooked {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        self.memory.create(name, parts)
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        (self.hook)(name, &self.memory);
        self.memory.read(name, range)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        (self.hook)(prefix, &self.memory);
        self.memory.list(prefix)
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        (self.hook)(prefix, &self.memory);
        self.memory.folders(prefix)
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.memory.delete(name)
    }

    fn settle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.memory.settle(name)
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        self.memory.make_root()
    }
}

/// Readers try again a bounded number of times, then say that it may pass; never "absent".
#[test]
fn readers_try_again_but_not_for_ever() {
    let always = Unreliable { memory: Default::default(), seed: Mutex::new(Seed::from(1)), percent: 100 };
    let repo = Repository::with_backend("faulty", Box::new(always));
    runtime().block_on(async {
        assert!(repo.get("x").await.unwrap_err().is_transient());
        assert!(repo.list("x").await.unwrap_err().is_transient());
        assert!(repo.delete("x").await.unwrap_err().is_transient());
        let error =
            repo.put_once("x", &object(1, 1, 9), &|_| panic!("nothing to judge"), Duration::ZERO).await.unwrap_err();
        assert!(error.is_transient() && error.kind() == Kind::Repository, "{error}");
    });
}
