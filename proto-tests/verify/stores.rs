//! Stores that fail: for a moment, which is nothing; for good, which is neither damage nor health. WAL that is not there. Backups that go while it is looked at.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use walrecv::error::{Error, Kind, Result};
use walrecv::pg::{Lsn, TimelineId};
use walrecv::repo::backend::{Answer, Backend, Piece};
use walrecv::repo::{Found, Listed, Repository};
use walrecv::seal::content::BackupId;
use walrecv::seal::content::event::{Hole, MinimalWal, Outcome, What};
use walrecv::seal::content::manifest::Tombstone;
use walrecv::seal::content::plan::{Deletion, Plan, PlanId};
use walrecv::seal::header::ObjectKind;
use walrecv::verify::{Flaw, Options, Report, State, refusal, verify};

use crate::damage::{check, get, told};
use crate::shop::{Shop, run};
use crate::support::{PATIENCE, Seed};

/// Another store, read only, some of whose reads fail.
struct Failing {
    inner: Repository,
    /// Reads of names that contain this fail.
    name: String,
    /// So many more times.
    left: AtomicU32,
    transient: bool,
    /// As of a disk with a bad sector.
    of_the_disk: bool,
    /// Deleted at the first read of `name`.
    deletes: Mutex<Vec<String>>,
    /// Stored before that.
    puts: Mutex<Vec<(String, Bytes)>>,
}

impl Failing {
    fn of(shop: &Shop, name: &str, times: u32, transient: bool) -> Failing {
        let inner = shop.archive().repo.clone();
        Failing {
            inner,
            name: name.into(),
            left: AtomicU32::new(times),
            transient,
            of_the_disk: false,
            deletes: Mutex::default(),
            puts: Mutex::default(),
        }
    }

    fn fails(&self, name: &str) -> bool {
        let less = |left: u32| left.checked_sub(1);
        name.contains(&self.name) && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }

    fn error(&self) -> Error {
        let mut error = Error::new(Kind::Repository, "injected");
        if self.of_the_disk {
            error = error.caused_by(std::io::Error::from_raw_os_error(5));
        }
        if self.transient { error.transient() } else { error }
    }
}

impl Backend for Failing {
    fn create<'a>(&'a self, _: &'a str, _: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        panic!("nothing is written by a check")
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        Box::pin(async move {
            if name.contains(&self.name) {
                let puts = std::mem::take(&mut *self.puts.lock().unwrap());
                for (name, bytes) in puts {
                    self.inner.put_once(&name, &[bytes], &|_| Found::Different, PATIENCE).await?;
                }
                let deletes = std::mem::take(&mut *self.deletes.lock().unwrap());
                for name in deletes {
                    self.inner.delete(&name).await?;
                }
            }
            if self.fails(name) {
                return Err(self.error());
            }
            let Some(head) = self.inner.head(name).await? else { return Ok(None) };
            let bytes = match range {
                None => self.inner.get(name).await?,
                Some(range) => self.inner.get_range(name, range).await?,
            };
            Ok(bytes.map(|bytes| Piece { bytes, size: head.size, modified: head.modified }))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(self.inner.list(prefix))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(self.inner.folders(prefix))
    }

    fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        panic!("nothing is deleted by a check")
    }

    fn settle<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn look(shop: &Shop, store: Failing, patience: Duration) -> Report {
    let archive = shop.archive_in(Repository::with_backend("failing", Box::new(store)));
    let options = Options { deep: true, patience, ..Options::default() };
    run(verify(&archive, &options)).expect("a report")
}

#[test]
fn what_fails_for_a_moment_is_good() {
    let shop = Shop::new();
    for name in ["/packs/", "/maps/", "/wal/"] {
        // More often than one read is tried by itself.
        let report = look(&shop, Failing::of(&shop, name, 9, true), Duration::from_secs(30));
        assert_eq!(report.outcome, Outcome::Ok, "{name}: {:?}", report.problems);
    }
}

#[test]
fn what_cannot_be_read_is_neither_good_nor_corrupt() {
    let shop = Shop::new();
    let of_first = |folder: &str| format!("/{folder}/{}", shop.backups[0].manifest.id);
    for (name, transient) in [
        (of_first("packs"), true),
        (of_first("packs"), false),
        (of_first("maps"), false),
        (of_first("manifests"), true),
        (of_first("backups"), false),
    ] {
        let report = look(&shop, Failing::of(&shop, &name, u32::MAX, transient), Duration::from_millis(100));
        assert_eq!(report.outcome, Outcome::Unreadable, "{name}: {:?}", report.problems);
        assert!(report.problems.iter().all(|p| p.flaw == Flaw::Unreadable && p.object.contains(&name)), "{report:?}");
        assert_eq!(report.backups[0].state, State::Unknown, "{name}: {report:?}");
        assert_eq!(refusal(&report).map(|error| error.kind()), Some(Kind::Repository));
        // The second one needs the first one's map and packs, not its manifests.
        let shared = name.contains("/packs/") || name.contains("/maps/");
        assert_eq!(report.backups[1].state, if shared { State::Unknown } else { State::Whole }, "{name}");
    }
}

/// Two pieces that were looked at become one, which is damaged, before the heartbeat is: nothing else tells of it in that check.
#[test]
fn what_was_not_looked_at_excuses_no_gap() {
    let shop = Shop::new();
    let inner = &shop.archive().repo;
    let names = run(inner.list("")).expect("a listing").into_iter().map(|listed| listed.name);
    let mut pieces: Vec<String> = names.filter(|name| name.contains(".run1")).collect();
    pieces.sort();
    let [first, second] = &pieces[..] else { panic!("{pieces:?}") };
    let (folder, to) = (first.rsplit_once('/').expect("a folder").0, second.rsplit_once('-').expect("an end").1);
    let merged =
        format!("{folder}/{}-{to}", first.rsplit_once('/').expect("a name").1.split('-').next().expect("a start"));
    let mut bytes = get(inner, first).to_vec();
    *bytes.last_mut().expect("a byte") ^= 1;
    let store = Failing { deletes: pieces.clone().into(), ..Failing::of(&shop, "/heartbeats/", 0, false) };
    let store = Failing { puts: vec![(merged, bytes.into())].into(), ..store };
    let options = Options { patience: Duration::from_millis(100), ..Options::default() };
    let report = run(verify(&shop.archive_in(Repository::with_backend("failing", Box::new(store))), &options))
        .expect("a report");
    assert!(!run(inner.list(folder)).expect("a listing").iter().any(|listed| pieces.contains(&listed.name)));
    assert_eq!(report.outcome, Outcome::Gap, "{}", told(&report));
    assert!(told(&report).contains("a heartbeat shows"), "{}", told(&report));
}

#[test]
fn a_gap_is_told_and_one_that_was_recorded_is_no_news() {
    let shop = Shop::new();
    let names = &shop.archive().names;
    // Behind both backups, on timeline 2: they are whole, and reach less far.
    let fourth = shop.shelf.segment(walrecv::pg::TimelineId(2), walrecv::pg::Lsn(4 << 20));
    run(shop.archive().repo.delete(&names.segment(fourth, None))).expect("a delete");
    let report = check(shop.archive(), false);
    assert_eq!(report.outcome, Outcome::Gap, "{:?}", report.problems);
    assert_eq!(refusal(&report).map(|error| error.kind()), Some(Kind::Gap));
    let [gap] = report.problems.as_slice() else { panic!("{:?}", report.problems) };
    assert_eq!((gap.object.as_str(), gap.hurts.len(), gap.limits.len()), ("000000020000000000000004", 0, 2));
    assert!(report.backups.iter().all(|verdict| verdict.state == State::Whole && verdict.limited));
    let hole = Hole {
        from_timeline: walrecv::pg::TimelineId(2),
        from: fourth.start(),
        to_timeline: walrecv::pg::TimelineId(2),
        to: fourth.end(),
        reason: "the slot was lost".into(),
    };
    let noted = shop.archive().put_event(&shop.keys, What::Hole(hole), PATIENCE);
    run(noted).expect("an event");
    let report = check(shop.archive(), false);
    let holes: Vec<bool> = report.recorded_holes.iter().map(|hole| hole.closed_by_backup).collect();
    assert_eq!((report.outcome, holes), (Outcome::Ok, vec![false]), "{:?}", report.problems);

    // Inside the first backup: it cannot become consistent. The second one is not hurt.
    let shop = Shop::new();
    let first = shop.shelf.segment(walrecv::pg::TimelineId(1), shop.backups[0].manifest.start);
    run(shop.archive().repo.delete(&shop.archive().names.segment(first, None))).expect("a delete");
    let report = check(shop.archive(), false);
    assert_eq!(report.outcome, Outcome::Gap, "{:?}", report.problems);
    assert_eq!((report.backups[0].state, report.backups[1].state), (State::Hurt, State::Whole));
}

/// That WAL is all there, and no restore gets past it: whoever looks after the archive by `verify` alone hears of it too.
#[test]
fn wal_that_leads_nowhere_is_told() {
    let shop = Shop::new();
    assert_eq!(check(shop.archive(), false).minimal_wal, []);
    let [first, second] = [&shop.backups[0].manifest, &shop.backups[1].manifest];
    for at in [
        MinimalWal { timeline: first.stop_timeline, lsn: first.stop },
        MinimalWal { timeline: second.stop_timeline, lsn: second.stop },
    ] {
        run(shop.archive().put_event(&shop.keys, What::MinimalWal(at), PATIENCE)).expect("an event");
    }
    let report = check(shop.archive(), false);
    let told: Vec<_> = report.minimal_wal.iter().map(|seen| (seen.lsn.clone(), seen.closed_by_backup)).collect();
    assert_eq!(told, [(first.stop.to_string(), true), (second.stop.to_string(), false)]);
    assert_eq!(report.outcome, Outcome::Ok, "{:?}", report.problems);
}

/// An expiry that deletes a backup, and later its packs, while all of it is looked at: it is neither whole nor hurt.
#[test]
fn a_backup_that_is_deleted_meanwhile_is_no_backup() {
    let shop = Shop::new();
    announce_deletion(&shop, &shop.backups[1].manifest.id);
    let names = &shop.archive().names;
    let second = shop.backups[1].manifest.id.as_str();
    let store = Failing::of(&shop, "/maps/", 0, true);
    store.deletes.lock().unwrap().extend([
        names.backup(second),
        names.pack(second, 0),
        names.server_manifest(second, 0),
    ]);
    let report = look(&shop, store, Duration::from_millis(100));
    assert_eq!(report.outcome, Outcome::Ok, "{:?}", report.problems);
    let first = shop.backups[0].manifest.id.to_string();
    assert_eq!((report.backups.len(), report.event().whole), (1, vec![first]), "{:?}", report.backups);
}

/// What vanishes without a plan is no deleted backup.
#[test]
fn a_manifest_that_vanishes_meanwhile_is_missing() {
    let shop = Shop::new();
    let name = shop.archive().names.backup(shop.backups[1].manifest.id.as_str());
    let store = Failing::of(&shop, "/maps/", 0, true);
    store.deletes.lock().unwrap().push(name.clone());
    let report = look(&shop, store, Duration::from_millis(100));
    let [problem] = report.problems.as_slice() else { panic!("{:?}", report.problems) };
    assert_eq!((problem.object.as_str(), problem.flaw), (name.as_str(), Flaw::Missing));
    assert_eq!((report.outcome, report.backups[1].state), (Outcome::Corrupt, State::Hurt));
}

/// Of a backup that was deleted, before or meanwhile, nothing good is said.
#[test]
fn what_is_no_backup_is_not_looked_at_by_name() {
    let shop = Shop::new();
    let (names, id) = (&shop.archive().names, &shop.backups[1].manifest.id);
    announce_deletion(&shop, id);
    let refused = |archive: &walrecv::archive::Archive| {
        let options = Options { only: Some(id.clone()), ..Options::default() };
        let error = run(verify(archive, &options)).expect_err("no backup");
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        error.to_string()
    };
    let store = Failing::of(&shop, "/maps/", 0, true);
    store.deletes.lock().unwrap().push(names.backup(id.as_str()));
    refused(&shop.archive_in(Repository::with_backend("failing", Box::new(store))));
    let tombstone = Tombstone {
        version: Tombstone::VERSION,
        id: id.clone(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        reason: "deleted by a test".into(),
        made_by: "a test".into(),
        deleted: false,
    };
    let claims = shop.archive().claims(ObjectKind::Tombstone, TimelineId(0), Lsn(0));
    let (name, content) = (names.backup(id.as_str()), tombstone.encode());
    run(shop.archive().put_index(&shop.keys, &name, claims, &content, PATIENCE)).expect("a tombstone");
    assert!(refused(shop.archive()).contains("deleted by a test"));
}

fn announce_deletion(shop: &Shop, id: &BackupId) {
    let created_at = jiff::Timestamp::UNIX_EPOCH;
    let plan = Plan {
        version: Plan::VERSION,
        id: PlanId::new(created_at, [7; 8]),
        cluster: shop.archive().names.cluster.clone(),
        system: shop.archive().names.system,
        created_at,
        delete: vec![Deletion { backup: id.clone(), maps: Vec::new(), forced: false }],
        sweep: Vec::new(),
        made_by: "a test".into(),
        host: String::new(),
        user: String::new(),
    };
    run(shop.archive().put_plan(&shop.keys, &plan, PATIENCE)).expect("a plan");
}

#[test]
fn one_backup_alone_is_looked_at_where_it_is_asked_for() {
    let mut seed = Seed::of_run();
    let shop = Shop::new();
    let names = &shop.archive().names;
    let only = |number: usize, deep| {
        let options = Options {
            deep,
            only: Some(shop.backups[number].manifest.id.clone()),
            patience: Duration::from_millis(50),
            ..Options::default()
        };
        run(verify(shop.archive(), &options)).expect("a report")
    };
    let report = only(0, true);
    assert_eq!((report.outcome, report.backups.len(), report.checked.packs), (Outcome::Ok, 1, 2));
    let all = check(shop.archive(), true);
    assert!(report.checked.wal_objects < all.checked.wal_objects, "{report:?}");
    // What the second one stored is no matter of the first.
    let pack = names.pack(shop.backups[1].manifest.id.as_str(), 0);
    let file = shop.shelf.file(&pack);
    let mut bytes = std::fs::read(&file).expect("a pack");
    let at = seed.below(bytes.len() as u64) as usize;
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).expect("a pack");
    assert_eq!((only(0, true).outcome, only(1, true).outcome), (Outcome::Ok, Outcome::Corrupt));
    let unknown = Options { only: Some(crate::shop::id(7, walrecv::pg::Lsn(0x100))), ..Options::default() };
    assert_eq!(run(verify(shop.archive(), &unknown)).expect_err("no such backup").kind(), Kind::Usage);
}

/// A disk that has an object and goes on not to read it will not read it for a restore either.
#[test]
fn what_the_disk_cannot_read_is_damaged() {
    let shop = Shop::new();
    let name = format!("/packs/{}", shop.backups[0].manifest.id);
    let bad = |times| Failing { of_the_disk: true, ..Failing::of(&shop, &name, times, true) };
    let report = look(&shop, bad(u32::MAX), Duration::from_millis(100));
    assert_eq!((report.outcome, report.backups[0].state), (Outcome::Corrupt, State::Hurt), "{:?}", report.problems);
    assert!(report.problems.iter().all(|p| p.flaw == Flaw::Damaged && p.found.contains("os error 5")), "{report:?}");
    assert_eq!(look(&shop, bad(9), Duration::from_secs(30)).outcome, Outcome::Ok, "for a moment only");
}
