//! A repository that fails a backup wherever it can: whatever object cannot be stored, and at whichever request the backup dies, nothing is taken for a backup
//! that is none, and the next one is whole.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use walrecv::backup::{BackupOptions, Outcome, take_with};
use walrecv::error::{Error, Kind, Result};
use walrecv::pg::MajorVersion;
use walrecv::repo::backend::{Answer, Backend, Piece};
use walrecv::repo::{Found, Listed, Repository};
use walrecv::seal::content::manifest::{Manifest, Transfer};

use super::backup::{Always, Fixture, check_against_server_manifest};
use super::net::{conninfo, run};
use crate::support::{PATIENCE, Server, require_servers};

const VERSION: MajorVersion = MajorVersion::V15;

/// What becomes of attempts to create an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// Refused, as without rights.
    Refused,
    /// An error that may pass, and does not.
    Away,
    /// It is stored, and the answer is lost.
    Unheard,
}

/// What the store does.
#[derive(Default)]
struct Mood {
    /// To objects whose names hold this word.
    harm: Option<(&'static str, Harm)>,
    /// So many objects are created, then nothing is answered any more; whether the last one arrives.
    death: Option<(u32, bool)>,
    /// The object at which that came.
    died_at: Option<String>,
    /// Whatever was to be created.
    tried: Vec<String>,
}

/// An honest repository behind a moody one.
#[derive(Clone)]
struct Moody {
    honest: Repository,
    mood: Arc<Mutex<Mood>>,
    died: Arc<Notify>,
}

impl Moody {
    fn mood<T>(&self, work: impl FnOnce(&mut Mood) -> T) -> T {
        work(&mut self.mood.lock().expect("no test has died"))
    }

    /// Whether the process that asks is dead from here on, and whether its request arrives all the same.
    fn death_at(&self, name: &str) -> Option<bool> {
        self.mood(|mood| match &mut mood.death {
            None => None,
            Some((0, arrives)) => {
                mood.died_at.get_or_insert_with(|| name.to_owned());
                Some(*arrives)
            }
            Some((left, _)) => {
                *left -= 1;
                None
            }
        })
    }

    async fn store(&self, name: &str, parts: &[Bytes]) -> Result<Answer> {
        match self.honest.put_once(name, parts, &|_| Found::Different, PATIENCE).await {
            Ok(_) => Ok(Answer::Created),
            Err(error) if error.kind() == Kind::Diverged => Ok(Answer::Taken),
            Err(error) => Err(error),
        }
    }
}

impl Backend for Moody {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        async move {
            self.mood(|mood| mood.tried.push(name.to_owned()));
            if let Some(arrives) = self.death_at(name) {
                if arrives {
                    self.store(name, parts).await?;
                }
                self.died.notify_one();
                std::future::pending::<()>().await;
            }
            let harm = self.mood(|mood| mood.harm).filter(|(word, _)| name.contains(word)).map(|(_, harm)| harm);
            match harm {
                None => self.store(name, parts).await,
                Some(Harm::Refused) => Err(Error::new(Kind::Repository, "the store refuses: 403")),
                Some(Harm::Away) => Err(Error::new(Kind::Repository, "the store is away").transient()),
                Some(Harm::Unheard) => {
                    self.store(name, parts).await?;
                    Err(Error::new(Kind::Repository, "the answer is lost").transient())
                }
            }
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        async move {
            let Some(listed) = self.honest.head(name).await? else { return Ok(None) };
            let bytes = match range {
                Some(range) => self.honest.get_range(name, range).await?,
                None => self.honest.get(name).await?,
            };
            Ok(bytes.map(|bytes| Piece { bytes, size: listed.size, modified: listed.modified }))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        self.honest.list(prefix).boxed()
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        self.honest.folders(prefix).boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.honest.delete(name).boxed()
    }

    fn settle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.honest.settle(name).boxed()
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        self.honest.make_root().boxed()
    }
}

struct Scene {
    server: Server,
    fixture: Fixture,
    store: Moody,
    rows: u32,
    put_limit: Duration,
}

impl Scene {
    fn new() -> Scene {
        Scene::of(Server::builder(VERSION).setting("autovacuum", "off").start())
    }

    fn of(server: Server) -> Scene {
        let mut fixture = Fixture::new(&server);
        let store = Moody { honest: fixture.archive.repo.clone(), mood: Arc::default(), died: Arc::default() };
        fixture.archive.repo = Repository::with_backend("test://moody", Box::new(store.clone()));
        server.sql("create table t as select n, repeat(md5(n::text), 20) t from generate_series(1, 1000) n");
        Scene { server, fixture, store, rows: 0, put_limit: BackupOptions::default().put_limit }
    }

    /// So that there is something to store.
    fn change(&mut self) {
        self.rows += 10;
        self.server.sql(&format!("update t set t = t || 'x' where n < {}; checkpoint", self.rows));
    }

    fn options(&self) -> BackupOptions {
        let state_dir = Some(self.fixture.places.join("state"));
        BackupOptions { state_dir, put_limit: self.put_limit, ..Default::default() }
    }

    fn complete(&self) -> Vec<Manifest> {
        let list = run(self.fixture.archive.list_backups()).expect("a list");
        assert!(list.unreadable.is_empty(), "{list:?}");
        list.complete
    }

    /// The newest backup, byte for byte what the server sent.
    fn demand_whole(&self) {
        let complete = self.complete();
        let manifest = complete.last().expect("a backup");
        let contents = self.fixture.contents(&self.fixture.files(manifest));
        check_against_server_manifest(&self.fixture, manifest, &contents, VERSION);
    }

    fn take(&mut self) -> Result<Outcome> {
        self.change();
        self.fixture.take(&self.server, &self.options(), &Always)
    }

    /// As far as the store lets it come: as a killed process, it does not even give itself up. Where it has died.
    fn take_until(&mut self, created: u32, arrives: bool) -> Option<String> {
        self.change();
        self.store.mood(|mood| *mood = Mood { death: Some((created, arrives)), ..Mood::default() });
        let (target, options) = (conninfo(&self.server.conninfo("postgres")), self.options());
        let Fixture { archive, ring, .. } = &self.fixture;
        // Two requests may have died together last time: that is no death of this one.
        let _ = self.store.died.notified().now_or_never();
        run(async {
            tokio::select! {
                ended = take_with(archive, ring.clone(), &target, &options, &Always) => drop(ended.expect("a backup")),
                () = self.store.died.notified() => {}
            }
        });
        self.store.mood(std::mem::take).died_at
    }
}

#[test]
fn whatever_cannot_be_stored_is_named_and_leaves_no_backup() {
    require_servers!(VERSION);
    let mut scene = Scene { put_limit: Duration::from_millis(600), ..Scene::new() };
    for word in ["/intents/", "/packs/", "/maps/", "/manifests/", "/backups/", "/alive/"] {
        for harm in [Harm::Refused, Harm::Away, Harm::Unheard] {
            let before = scene.complete();
            scene.store.mood(|mood| mood.harm = Some((word, harm)));
            let taken = scene.take();
            scene.store.mood(|mood| mood.harm = None);
            // It is a backup already when it tells that it is.
            if harm == Harm::Unheard || word == "/alive/" {
                // What has arrived is found there; and what the failures before it left is no part of it.
                let manifest = taken.unwrap_or_else(|e| panic!("{word}: {e}")).manifest;
                assert_eq!(scene.complete(), [before, vec![manifest]].concat(), "{word}");
                scene.demand_whole();
                continue;
            }
            let error = taken.expect_err(word);
            assert_eq!((error.kind(), error.is_transient()), (Kind::Repository, harm == Harm::Away), "{error}");
            assert!(error.to_string().contains(word), "{word} {harm:?}: {error}");
            assert_eq!(scene.complete(), before, "{word} {harm:?}");
        }
    }
}

/// What is received while a backup is announced waits for that.
#[test]
fn nothing_is_stored_of_a_backup_that_is_not_announced() {
    const NEWEST: MajorVersion = MajorVersion::V18;
    require_servers!(NEWEST);
    let server = Server::builder(NEWEST).setting("summarize_wal", "on").start();
    let mut scene = Scene { put_limit: Duration::from_secs(6), ..Scene::of(server) };
    for transfer in [Transfer::Full, Transfer::Incremental] {
        scene.store.mood(|mood| *mood = Mood { harm: Some(("/intents/", Harm::Away)), ..Mood::default() });
        let error = scene.take().expect_err("it is not announced");
        assert!(error.to_string().contains("/intents/"), "{error}");
        let tried = scene.store.mood(std::mem::take).tried;
        assert!(!tried.is_empty() && tried.iter().all(|name| name.contains("/intents/")), "{transfer:?}: {tried:?}");
        let taken = scene.take().expect("a backup").manifest;
        assert_eq!(taken.transfer, transfer, "{:?}", taken.why_full);
    }
}

#[test]
fn a_backup_that_dies_at_any_request_is_none_and_the_next_one_is_whole() {
    require_servers!(VERSION);
    let mut scene = Scene::new();
    scene.take().expect("a backup");
    let mut places = Vec::new();
    for created in 0.. {
        let mut last = false;
        for arrives in [false, true] {
            let before = scene.complete();
            let died_at = scene.take_until(created, arrives);
            let (name, found) = (died_at.clone().unwrap_or_default(), scene.complete());
            last = died_at.is_none();
            // It is a backup from the moment that its manifest is one.
            let complete = last || name.contains("/alive/") || arrives && name.contains("/backups/");
            let expected = before.len() + usize::from(complete);
            assert_eq!(found.len(), expected, "{name:?}, {arrives}");
            if found.len() > before.len() {
                scene.demand_whole();
            }
            let next = scene.take().unwrap_or_else(|e| panic!("after {name:?}, {arrives}: {e}")).manifest;
            // The dead one did not hurt what it would have built on.
            let (parent, why) = (&next.parent, &next.why_full);
            assert!(parent.as_ref() == found.last().map(|m| &m.id), "{name:?}, {arrives}: {parent:?}, {why:?}");
            scene.demand_whole();
            places.push(name);
        }
        if last {
            break;
        }
    }
    for word in ["/intents/", "/packs/", "/maps/", "/manifests/", "/backups/", "/alive/"] {
        assert!(places.iter().any(|name| name.contains(word)), "no backup died at {word}: {places:?}");
    }
}
