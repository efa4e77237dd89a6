//! A store in memory that can be slow, or away: it has no local folder, so tails are pieces here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use walrecv::error::{Error, Kind, Result};
use walrecv::repo::backend::{Answer, Backend, Piece};
use walrecv::repo::{Listed, Repository};

#[derive(Default)]
struct Inner {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// Names in the order in which they were created.
    order: Mutex<Vec<String>>,
    delay_ms: AtomicU64,
    away: AtomicBool,
    unreadable: AtomicBool,
    created: AtomicU64,
}

/// The handle that the test keeps.
#[derive(Clone, Default)]
pub struct Store(Arc<Inner>);

impl Store {
    pub fn repository(&self) -> Repository {
        Repository::with_backend("memory", Box::new(self.clone()))
    }

    /// How long each put takes from now on, those that are under way included.
    pub fn delay(&self, delay: Duration) {
        self.0.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Whether every put fails from now on.
    pub fn away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    /// Whether no tail can be read from now on.
    pub fn unreadable(&self, unreadable: bool) {
        self.0.unreadable.store(unreadable, Ordering::SeqCst);
    }

    /// How many objects were made so far.
    pub fn created(&self) -> u64 {
        self.0.created.load(Ordering::SeqCst)
    }

    /// All names that were ever created, in that order.
    pub fn order(&self) -> Vec<String> {
        self.0.order.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn remove(&self, name: &str) {
        self.objects().remove(name);
    }

    /// Names of all objects.
    pub fn names(&self) -> Vec<String> {
        self.objects().keys().cloned().collect()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, T> {
    ready(value).boxed()
}

impl Backend for Store {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        async move {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(self.0.delay_ms.load(Ordering::SeqCst)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if self.0.away.load(Ordering::SeqCst) {
                return Err(Error::new(Kind::Repository, "the store is away").transient());
            }
            let mut objects = self.objects();
            if objects.contains_key(name) {
                return Ok(Answer::Taken);
            }
            objects.insert(name.to_owned(), parts.concat().into());
            self.0.order.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
            self.0.created.fetch_add(1, Ordering::SeqCst);
            Ok(Answer::Created)
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        if name.contains("/tail/") && self.0.unreadable.load(Ordering::SeqCst) {
            return done(Err(Error::new(Kind::Repository, "the store does not answer").transient()));
        }
        let piece = self.objects().get(name).map(|whole| {
            let size = whole.len() as u64;
            let range = range.unwrap_or(0..size);
            let bytes = whole.slice(range.start.min(size) as usize..range.end.min(size) as usize);
            Piece { bytes, size, modified: SystemTime::now() }
        });
        done(Ok(piece))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let objects = self.objects();
        let below = objects.iter().filter(|(name, _)| name.starts_with(&format!("{prefix}/")));
        let entry = |(name, bytes): (&String, &Bytes)| Listed {
            name: name.clone(),
            size: bytes.len() as u64,
            modified: SystemTime::now(),
        };
        done(Ok(below.map(entry).collect()))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        let start = format!("{prefix}/");
        let objects = self.objects();
        let below = objects.keys().filter_map(|name| name.strip_prefix(&start)?.split_once('/'));
        let mut folders: Vec<String> = below.map(|(folder, _)| folder.to_owned()).collect();
        folders.dedup();
        done(Ok(folders))
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.objects().remove(name);
        done(Ok(()))
    }

    fn settle<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<()>> {
        done(Ok(()))
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        done(Ok(()))
    }
}
