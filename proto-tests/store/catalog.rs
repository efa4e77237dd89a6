//! The catalog: made from the repository in whichever way, always the same; made anew when its file cannot be used; and the questions it answers.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::archive::learn::{Learned, Scope};
use walrecv::catalog::{Begun, Catalog, Dump, Fact, Growth, Identity, LastKnown, LastRun, Object, Shared, path_in};
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, SystemIdentifier, TimelineId};
use walrecv::repo::{Repository, WalGroup};
use walrecv::seal::content::summary::Summary;
use walrecv::seal::header::ObjectKind;

use crate::archive_pieces::{TIMELINE, archive, sealed, segment, store, writer};
use crate::common::{PATIENCE, no_env, runtime};
use crate::groups::{store_head, summary_of};
use crate::support::{Seed, TempDir};

struct Site {
    dir: TempDir,
    archive: Archive,
}

impl Site {
    fn new() -> Site {
        let dir = TempDir::new("catalog");
        std::fs::create_dir(dir.join("repo")).unwrap();
        let repo = Repository::open(&format!("file://{}", dir.join("repo").display()), &no_env).unwrap();
        Site { archive: archive(&repo, 1, false), dir }
    }

    fn path(&self) -> PathBuf {
        path_in(&self.dir.join("state"), "main")
    }

    fn identity(&self) -> Identity {
        self.archive.identity()
    }

    fn open(&self) -> (Shared, Begun) {
        let (catalog, begun) = Catalog::write(&self.path(), &self.identity()).unwrap().expect("nobody else writes");
        (Shared::new(catalog, self.archive.repo.lane()), begun)
    }

    async fn learn(&self, catalog: &Shared, scope: Scope) -> Learned {
        self.archive.learn(catalog, scope, &|_| {}).await.unwrap()
    }

    async fn partial(&self, number: u64) {
        let name = segment(&self.archive, number);
        let bytes = sealed(&self.archive, ObjectKind::Partial, name.start() + 100, &vec![3; number as usize % 900 + 1]);
        store(&self.archive, &self.archive.names.partial(name), bytes).await;
    }

    async fn group(&self, group: u64) {
        let group = WalGroup { timeline: TIMELINE, first: Lsn(group << 32) };
        assert!(self.archive.put_group_summary(&writer(), group, PATIENCE).await.unwrap());
    }

    async fn fresh(&self) -> Dump {
        let (catalog, _) = self.archive.fresh_catalog(&|_| {}).await.unwrap();
        dump(&catalog).await
    }
}

async fn dump(catalog: &Shared) -> Dump {
    catalog.with(|c| c.dump()).await.unwrap()
}

fn agree(noted: &Dump, repository: &Dump) {
    assert_eq!(noted.differences(repository), Vec::<String>::new());
    assert_eq!(noted, repository);
}

#[test]
fn group_summaries_stand_for_the_objects_that_they_list() {
    let site = Site::new();
    runtime().block_on(async {
        for number in (10..60).chain(4096..4100).chain(8192..8195) {
            store_head(&site.archive, number).await;
        }
        let slow = site.fresh().await;
        assert_eq!(slow.objects.len(), 57);
        site.group(0).await;
        // Stored after its group was summed up, as an archive that is filled backwards does.
        store_head(&site.archive, 9).await;
        site.partial(4100).await;
        site.archive.put_history(&writer(), TIMELINE, b"1\t0/1000000\tx\n2\t0/2000000\ty\n", PATIENCE).await.unwrap();
        let (catalog, begun) = site.open();
        assert_eq!(begun, Begun::New);
        let learned = site.learn(&catalog, Scope::New).await;
        assert_eq!((learned.objects, learned.summaries, learned.heads), (59, 1, 1 + 4 + 1 + 3));
        assert_eq!((learned.folders, learned.all_folders, learned.damaged.len()), (3, 3, 0));
        let noted = dump(&catalog).await;
        assert_eq!(noted.objects.iter().filter(|o| o.partial).count(), 1);
        assert_eq!((noted.groups.len(), noted.histories.len()), (1, 1));
        let same = |o: &&walrecv::catalog::Dump| o.objects.iter().filter(|o| slow.objects.contains(o)).count();
        assert_eq!(same(&&noted), 57, "read from the summary or from the objects: the same");
        agree(&noted, &site.fresh().await);
        // What is known is not read again.
        let again = site.learn(&catalog, Scope::All).await;
        assert_eq!((again.objects, again.heads, again.summaries, again.gone), (0, 0, 0, 0));
    });
}

/// What the last run knew is read by who has only the file.
#[test]
fn the_last_run_and_its_end_are_told_without_knowing_the_server() {
    let site = Site::new();
    let read = || LastKnown::read(&site.path(), "main").unwrap();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(read(), None, "there is no file");
    let (mut catalog, _) = Catalog::write(&site.path(), &site.identity()).unwrap().unwrap();
    let nothing = LastKnown { identity: site.identity(), reached: None, complete_through: None, run: None };
    assert_eq!(read(), Some(nothing.clone()));
    assert_eq!(LastKnown::read(&site.path(), "other").unwrap(), None, "another cluster's");
    let reached = |timeline, lsn: u64, time| Fact::Reached {
        timeline: TimelineId(timeline),
        durable: Lsn(lsn),
        server_end: Lsn(lsn + 100),
        at: at(time),
    };
    let beat = |timeline, time| Fact::Heartbeat { timeline: TimelineId(timeline), lsn: Lsn(5), time: PgTime(time) };
    let facts = [Fact::Began(at(10)), reached(1, 5000, 20), reached(2, 3000, 30), beat(1, 77), beat(2, 55)];
    catalog.apply(&facts, at(31)).unwrap();
    let open = LastRun { began: at(10), ended: None };
    let known = LastKnown {
        reached: Some((TimelineId(2), Lsn(3000), Lsn(3100), at(30))),
        complete_through: Some(PgTime(55)),
        run: Some(open),
        ..nothing
    };
    assert_eq!(read(), Some(known.clone()), "the newest word, not the highest position");
    catalog.apply(&[reached(2, 2000, 32)], at(33)).unwrap();
    let known = LastKnown { reached: Some((TimelineId(2), Lsn(2000), Lsn(2100), at(32))), ..known };
    assert_eq!(read(), Some(known), "what was seen then, not what ever was");
    assert_eq!(catalog.reached(TimelineId(2)).unwrap(), Some((Lsn(3000), Lsn(2100), at(32))));
    for problem in [None, Some("the slot is gone".to_owned())] {
        catalog.apply(&[Fact::Ended { at: at(40), problem: problem.clone() }], at(41)).unwrap();
        let run = LastRun { began: at(10), ended: Some((at(40), problem)) };
        assert_eq!(read().unwrap().run, Some(run));
    }
    catalog.apply(&[Fact::Began(at(50))], at(51)).unwrap();
    assert_eq!(read().unwrap().run, Some(LastRun { began: at(50), ended: None }), "a new run has not ended");
    drop(catalog);
    std::fs::write(site.path(), b"no database").unwrap();
    assert!(LastKnown::read(&site.path(), "main").is_err());
}

#[test]
fn it_goes_on_where_it_was_left_and_forgets_what_is_gone() {
    let site = Site::new();
    runtime().block_on(async {
        for number in [1, 2, 4096, 4097, 8192] {
            store_head(&site.archive, number).await;
        }
        let (catalog, _) = site.open();
        site.learn(&catalog, Scope::New).await;
        for number in [3, 4098, 8193, 12_288] {
            store_head(&site.archive, number).await;
        }
        site.archive.repo.delete(&site.archive.names.segment(segment(&site.archive, 8192), None)).await.unwrap();
        site.group(1).await;
        let learned = site.learn(&catalog, Scope::New).await;
        assert_eq!((learned.folders, learned.objects, learned.gone), (3, 3, 1), "the first folder is taken for known");
        let differences = dump(&catalog).await.differences(&site.fresh().await);
        assert!(differences.len() == 1 && differences[0].contains("0/300000"), "{differences:?}");
        site.learn(&catalog, Scope::All).await;
        agree(&dump(&catalog).await, &site.fresh().await);
        // Whole folders and timelines.
        std::fs::remove_dir_all(site.dir.join("repo").join(site.archive.names.timeline_folder(TIMELINE))).unwrap();
        let learned = site.learn(&catalog, Scope::All).await;
        assert_eq!((learned.gone, learned.objects), (8, 0));
        agree(&dump(&catalog).await, &Dump::default());
    });
}

/// However it came about, and whatever was noted twice or in another order: the same.
#[test]
fn any_way_to_it_ends_at_the_same_catalog() {
    let mut seed = Seed::of_run();
    for round in 0..4 {
        let site = Site::new();
        runtime().block_on(async {
            let (catalog, _) = site.open();
            for _ in 0..seed.between(3, 8) {
                for _ in 0..seed.below(8) {
                    let number = seed.below(5) * 1024 * 4 + seed.below(6);
                    let name = segment(&site.archive, number);
                    if site.archive.repo.head(&site.archive.names.segment(name, None)).await.unwrap().is_some() {
                        continue;
                    }
                    store_head(&site.archive, number).await;
                    let stored =
                        site.archive.repo.head(&site.archive.names.segment(name, None)).await.unwrap().unwrap();
                    let object = Object::of(TIMELINE, false, stored.size, &summary_of(&site.archive, number));
                    for _ in 0..seed.below(3) {
                        let fact = Fact::Object(object.clone());
                        catalog.with(move |c| c.apply(&[fact], SystemTime::now())).await.unwrap();
                    }
                }
                let group = WalGroup { timeline: TIMELINE, first: Lsn(seed.below(5) << 32) };
                if !site.archive.list_group(group).await.unwrap().entries.is_empty() {
                    site.archive.put_group_summary(&writer(), group, PATIENCE).await.unwrap();
                }
                site.learn(&catalog, if seed.below(2) == 0 { Scope::New } else { Scope::All }).await;
            }
            site.learn(&catalog, Scope::All).await;
            let noted = dump(&catalog).await;
            agree(&noted, &site.fresh().await);
            assert!(round > 0 || !noted.objects.is_empty());
        });
    }
}

#[test]
fn damage_in_the_repository_is_told_and_stops_nothing() {
    let site = Site::new();
    runtime().block_on(async {
        for number in 1..9 {
            store_head(&site.archive, number).await;
        }
        site.group(0).await;
        let spoil = |name: String| {
            let path = site.dir.join("repo").join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(path, bytes).unwrap();
        };
        spoil(site.archive.names.group_summary(WalGroup { timeline: TIMELINE, first: Lsn(0) }));
        spoil(site.archive.names.segment(segment(&site.archive, 5), None));
        let (catalog, _) = site.open();
        let learned = site.learn(&catalog, Scope::New).await;
        assert_eq!((learned.objects, learned.heads), (7, 8));
        let said = learned.damaged.join("\n");
        assert!(said.contains("/summary") && said.contains("000000030000000000000005"), "{said}");
    });
}

#[test]
fn a_file_that_cannot_be_used_is_moved_aside_and_made_anew() {
    let site = Site::new();
    let other = Identity { system: SystemIdentifier(9), ..site.identity() };
    drop(Catalog::write(&site.path(), &other).unwrap());
    let spoil = |what: &str| {
        let path = site.path();
        match what {
            "repository or cluster" => {}
            "not a catalog" => {
                std::fs::remove_file(&path).unwrap();
                let db = rusqlite::Connection::open(&path).unwrap();
                db.execute_batch("CREATE TABLE somebody (elses)").unwrap();
            }
            "version 9" => rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 9").unwrap(),
            "no such table" => {
                rusqlite::Connection::open(&path).unwrap().execute_batch("DROP TABLE identity").unwrap();
            }
            _ => {
                let mut bytes = std::fs::read(&path).unwrap();
                let from = if what == "not a database" { 0 } else { 4096 };
                bytes[from..].fill(0xAB);
                std::fs::write(&path, bytes).unwrap();
            }
        }
    };
    runtime().block_on(async {
        for number in 1..40 {
            store_head(&site.archive, number).await;
        }
        let whole = site.fresh().await;
        for what in
            ["repository or cluster", "not a catalog", "version 9", "no such table", "malformed", "not a database"]
        {
            spoil(what);
            assert!(!matches!(Catalog::read(&site.path(), &site.identity()), Ok(Some(_))), "{what}: a reader takes it");
            let (catalog, begun) = site.open();
            assert!(matches!(&begun, Begun::Replaced(why) if why.contains(what)), "{what}: {begun:?}");
            assert!(site.path().with_extension("sqlite.aside").exists(), "{what}");
            site.learn(&catalog, Scope::New).await;
            agree(&dump(&catalog).await, &whole);
            drop(catalog);
            assert_eq!(site.open().1, Begun::Kept, "{what}");
        }
        // Nothing at all, and an empty file.
        for spoil in [false, true] {
            std::fs::remove_dir_all(site.path().parent().unwrap()).unwrap();
            if spoil {
                std::fs::create_dir_all(site.path().parent().unwrap()).unwrap();
                std::fs::write(site.path(), b"").unwrap();
            }
            let (catalog, begun) = site.open();
            assert_eq!(begun, Begun::New);
            site.learn(&catalog, Scope::New).await;
            agree(&dump(&catalog).await, &whole);
        }
    });
}

#[test]
fn one_writes_and_others_read() {
    let site = Site::new();
    let read = || Catalog::read(&site.path(), &site.identity()).unwrap();
    assert!(read().is_none(), "absent");
    runtime().block_on(async {
        store_head(&site.archive, 7).await;
        let (catalog, _) = site.open();
        assert!(Catalog::write(&site.path(), &site.identity()).unwrap().is_none(), "somebody writes");
        assert!(Catalog::anew(&site.path(), &site.identity()).unwrap().is_none(), "somebody writes");
        let reader = read().expect("there");
        assert!(reader.objects().unwrap().is_empty());
        site.learn(&catalog, Scope::New).await;
        assert_eq!(reader.objects().unwrap().len(), 1, "while the writer has it open");
        drop(catalog);
        assert_eq!(read().unwrap().objects().unwrap().len(), 1);
        let other = Identity { cluster: "other".to_owned(), ..site.identity() };
        assert!(Catalog::read(&site.path(), &other).unwrap().is_none());
        assert!(Catalog::anew(&site.path(), &site.identity()).unwrap().unwrap().objects().unwrap().is_empty());
    });
}

/// A batch that cannot be written is not half written, and the error says that it may pass.
#[test]
fn a_locked_or_full_database_is_an_error_that_may_pass() {
    let site = Site::new();
    let (catalog, _) = Catalog::write(&site.path(), &site.identity()).unwrap().unwrap();
    drop(catalog);
    let stranger = rusqlite::Connection::open(site.path()).unwrap();
    stranger.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = Catalog::write(&site.path(), &site.identity())
        .and_then(|opened| opened.unwrap().0.apply(&[Fact::NoHistory(TIMELINE)], SystemTime::now()))
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    stranger.execute_batch("ROLLBACK").unwrap();
    drop(stranger);
    let (mut catalog, begun) = Catalog::write(&site.path(), &site.identity()).unwrap().unwrap();
    assert_eq!(begun, Begun::Kept);
    let far = Fact::Object(Object::of(TIMELINE, false, 1, &Summary::of(Lsn(1 << 63), Lsn(1 << 63), [0; 32])));
    let fine = Fact::Object(Object::of(TIMELINE, false, 1, &Summary::of(Lsn(0), Lsn(9), [0; 32])));
    assert!(catalog.apply(&[fine, far], SystemTime::now()).is_err());
    assert!(catalog.objects().unwrap().is_empty());
}

#[test]
fn questions_are_answered_from_summaries() {
    let site = Site::new();
    let mut catalog = Catalog::in_memory(&site.identity()).unwrap();
    let (mib, second) = (1u64 << 20, 1_000_000i64);
    // Segments 1 to 9 without 5; 3 has no commit; times go back in 7.
    let spans = [(1, Some((0, 9))), (2, Some((10, 19))), (3, None), (4, Some((20, 29)))];
    let spans = spans.into_iter().chain([(6, Some((30, 45))), (7, Some((28, 39))), (8, Some((46, 49))), (9, None)]);
    for (number, times) in spans {
        let times = times.map(|(from, to)| (PgTime(from * second), PgTime(to * second)));
        let summary = Summary { times, ..Summary::of(Lsn(number * mib), Lsn((number + 1) * mib), [1; 32]) };
        let object = Fact::Object(Object::of(TIMELINE, false, 100 * number, &summary));
        catalog.apply(&[object], SystemTime::now()).unwrap();
    }
    assert_eq!(catalog.timelines().unwrap(), [TIMELINE]);
    assert_eq!(catalog.last(TIMELINE).unwrap(), Some(Lsn(9 * mib)));
    assert_eq!(catalog.last(TimelineId(9)).unwrap(), None);
    let ranges = [(Lsn(mib), Lsn(5 * mib)), (Lsn(6 * mib), Lsn(10 * mib))];
    assert_eq!(catalog.ranges(TIMELINE).unwrap(), ranges);
    let numbers = |objects: Vec<Object>| objects.iter().map(|o| o.start.0 / mib).collect::<Vec<_>>();
    assert_eq!(numbers(catalog.holding(TIMELINE, PgTime(29 * second)).unwrap()), [4, 7]);
    assert_eq!(numbers(catalog.holding(TIMELINE, PgTime(100 * second)).unwrap()), [0u64; 0]);
    let around = |from: u64, time: i64| {
        let around = catalog.around(TIMELINE, Lsn(from * mib), PgTime(time * second)).unwrap();
        let number = |object: Option<Object>| object.map(|o| o.start.0 / mib);
        (number(around.before), number(around.after))
    };
    assert_eq!(around(0, -5), (None, Some(1)));
    assert_eq!(around(0, 9), (Some(1), Some(2)), "the last moment of one, and not yet the next");
    assert_eq!(around(0, 19), (Some(2), Some(4)), "nothing is committed in between");
    assert_eq!(around(0, 40), (Some(4), Some(6)));
    assert_eq!(around(7, 40), (Some(7), Some(8)), "from a backup on that is newer");
    assert_eq!(around(0, 99), (Some(8), None));
    let growth = |from: i64, wal: u64, stored| Growth { from: PgTime(from * second), wal: wal * mib, stored };
    let expected = [growth(0, 3, 600), growth(20, 1, 400), growth(40, 4, 3000)];
    assert_eq!(catalog.growth(TIMELINE, Duration::from_secs(20)).unwrap(), expected);
    assert_eq!(catalog.object(TIMELINE, Lsn(4 * mib)).unwrap().unwrap().stored, 400);
    assert_eq!(catalog.object(TIMELINE, Lsn(5 * mib)).unwrap(), None);
}

#[test]
fn heartbeats_and_what_was_acknowledged_are_kept_beside() {
    let site = Site::new();
    let mut catalog = Catalog::in_memory(&site.identity()).unwrap();
    let day = 86_400_000_000;
    let beat = |lsn, time| Fact::Heartbeat { timeline: TIMELINE, lsn: Lsn(lsn), time: PgTime(time) };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let reached = |to| Fact::Reached { timeline: TIMELINE, durable: Lsn(to), server_end: Lsn(to + 5), at: now };
    catalog.apply(&[beat(1, 0), beat(2, 10), beat(2, 30), beat(2, 20), reached(7), reached(8)], now).unwrap();
    assert_eq!(catalog.last_heartbeat(TIMELINE).unwrap(), Some((Lsn(2), PgTime(30))), "an idle server's time goes on");
    assert_eq!(catalog.reached(TIMELINE).unwrap(), Some((Lsn(8), Lsn(13), now)));
    // A run that has not come so far again.
    catalog.apply(&[reached(6)], now).unwrap();
    assert_eq!(catalog.reached(TIMELINE).unwrap(), Some((Lsn(8), Lsn(11), now)), "what was durable is");
    catalog.apply(&[beat(3, 8 * day)], now).unwrap();
    catalog.apply(&[beat(3, 1)], now).unwrap();
    assert_eq!(catalog.last_heartbeat(TIMELINE).unwrap(), Some((Lsn(3), PgTime(8 * day))));
    assert_eq!(catalog.dump().unwrap(), Dump::default(), "they are no part of what the repository says");
}

/// A listing shows an object before anybody could read it: what vanishes in between is no error.
#[test]
fn strange_names_are_left_out() {
    let site = Site::new();
    runtime().block_on(async {
        store_head(&site.archive, 3).await;
        let folder = site.archive.names.group_folder(WalGroup { timeline: TIMELINE, first: Lsn(0) });
        for name in ["000000030000000000000004.gz", "notes", "000000040000000000000004"] {
            store(&site.archive, &format!("{folder}/{name}"), Bytes::from_static(b"?")).await;
        }
        assert_eq!(site.fresh().await.objects.len(), 1);
    });
}
