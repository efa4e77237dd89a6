//! `wal-fetch` over an archive: what is served, what is absent, what stops the server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walrecv::archive::Archive;
use walrecv::error::{Error, Kind, Result};
use walrecv::pg::timeline::Ancestor;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, SystemIdentifier, TimelineHistory, TimelineId};
use walrecv::restore::decide::Bounds;
use walrecv::restore::fetch::{Call, Outcome, answer, at_hand};
use walrecv::restore::hand_over::Launch;
use walrecv::restore::path;
use walrecv::restore::plan_file::PlanFile;
use walrecv::seal::content::event::{Hole, What};
use walrecv::seal::content::heartbeat::Heartbeat;

use crate::support::wal_maker::SYSTEM;
use crate::support::{Seed, rounds};
use crate::world::{MB, ONE, TWO, World, run};

/// A data directory that asks.
pub struct Asker<'w> {
    pub world: &'w World,
    pub pgdata: PathBuf,
    /// Fetches ahead.
    pub launch: Option<Launch>,
    /// Of the plan that binds.
    pub mark: Option<u32>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Served(Vec<u8>),
    Absent,
    Unknown(Kind),
}

impl<'w> Asker<'w> {
    pub fn new(world: &'w World, name: &str) -> Asker<'w> {
        let pgdata = world.places.join(name);
        std::fs::create_dir_all(pgdata.join("pg_wal")).expect("a folder");
        Asker { world, pgdata, launch: None, mark: None }
    }

    /// Under a plan that ends at `end` on the path to timeline 2 (or 1).
    pub fn planned(world: &'w World, target: TimelineId, end: Lsn) -> Asker<'w> {
        let mut asker = Asker::new(world, "planned");
        let ancestors = vec![Ancestor { timeline: ONE, switch_point: world.fork }];
        let history = match target {
            ONE => TimelineHistory::root(ONE),
            _ => TimelineHistory { timeline: TWO, ancestors },
        };
        let path = path::Path::of(&history);
        let target = Bounds::target_for(&path, end);
        let bounds = Bounds { path, target, end, histories: [TWO].into() };
        let plan = PlanFile { names: world.shelf.archive.names.clone(), access: world.shelf.access(), bounds };
        plan.write(&asker.pgdata, None).expect("a plan");
        asker.mark = Some(plan.mark());
        asker.signal("recovery.signal");
        asker
    }

    pub fn signal(&self, name: &str) {
        std::fs::write(self.pgdata.join(name), "").expect("a signal file");
    }

    fn own(&self, name: &str, bytes: &[u8]) {
        let mut file = bytes.to_vec();
        file.resize(MB as usize, 0);
        std::fs::write(self.pgdata.join("pg_wal").join(name), file).expect("a file");
    }

    pub fn ask(&self, name: &str) -> Said {
        match self.outcome(name) {
            Outcome::Served => {
                Said::Served(std::fs::read(self.pgdata.join("pg_wal/RECOVERYXLOG")).expect("a served file"))
            }
            Outcome::Absent => Said::Absent,
            Outcome::Unknown(error) => Said::Unknown(error.kind()),
        }
    }

    fn outcome(&self, name: &str) -> Outcome {
        let call = Call {
            name: name.to_owned(),
            destination: "pg_wal/RECOVERYXLOG".into(),
            pgdata: self.pgdata.clone(),
            standby_wait: Duration::from_millis(300),
            launch: self.launch.clone(),
        };
        let archive = self.world.shelf.archive.clone();
        let open = move || -> futures::future::BoxFuture<'static, Result<Archive>> {
            let archive = archive.clone();
            Box::pin(async { Ok(archive) })
        };
        at_hand(&call).unwrap_or_else(|| run(answer(&call, &|_| None, &open)))
    }

    pub fn segment(&self, timeline: TimelineId, number: u64) -> Said {
        self.ask(&self.world.segment(timeline, number).to_string())
    }
}

/// The first bytes of a segment, zeros after them.
pub fn filled(bytes: &[u8]) -> Said {
    let mut whole = bytes.to_vec();
    whole.resize(MB as usize, 0);
    Said::Served(whole)
}

#[test]
fn a_plan_serves_its_path_and_nothing_past_its_end() {
    let world = World::new();
    world.store_all();
    let end = world.two.last_before(Lsn(6 * MB + 700_000)).end;
    let asker = Asker::planned(&world, TWO, end);
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    assert_eq!(asker.segment(TWO, 4), filled(world.bytes(TWO, 4)));
    assert_eq!(asker.segment(TWO, 6), filled(&world.bytes(TWO, 6)[..end.since(Lsn(6 * MB)) as usize]));
    assert_eq!(asker.segment(TWO, 6), asker.segment(TWO, 6), "asked again, answered again");
    assert_eq!(asker.segment(TWO, 7), Said::Absent, "stored, but past the end");
    assert_eq!(asker.segment(ONE, 5), Said::Absent, "the dead branch");
    let before_fork = &world.bytes(ONE, 4)[..world.fork.since(Lsn(4 * MB)) as usize];
    assert_eq!(asker.segment(ONE, 4), filled(before_fork));
    assert!(matches!(asker.ask("00000002.history"), Said::Served(_)));
    assert_eq!(asker.ask("00000003.history"), Said::Absent);
    assert_eq!(asker.ask("00000001.history"), Said::Absent);
    assert_eq!(asker.ask("000000010000000000000002.00000028.backup"), Said::Unknown(Kind::Usage));
}

#[test]
fn what_a_plan_needs_must_be_there() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, TWO, world.two.made.end());
    world.forget(TWO, 5);
    assert_eq!(asker.segment(TWO, 5), Said::Unknown(Kind::Gap));
    let history = world.shelf.archive.names.history(TWO);
    std::fs::remove_file(world.shelf.file(&history)).expect("a history");
    assert_eq!(asker.ask("00000002.history"), Said::Unknown(Kind::Gap));
    let object = world.shelf.file(&world.shelf.archive.names.segment(world.segment(TWO, 6), None));
    let mut bytes = std::fs::read(&object).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&object, bytes).expect("damage");
    assert_eq!(asker.segment(TWO, 6), Said::Unknown(Kind::Corrupt));
}

#[test]
fn an_empty_mount_point_is_not_an_archive_without_the_file() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, TWO, world.two.made.end());
    std::fs::remove_file(world.shelf.file("walrecv.json")).expect("the repository's file");
    let call = Call {
        name: "00000003.history".to_owned(),
        destination: "pg_wal/RECOVERYHISTORY".into(),
        pgdata: asker.pgdata.clone(),
        standby_wait: Duration::ZERO,
        launch: None,
    };
    let open = || -> futures::future::BoxFuture<'static, Result<Archive>> { unreachable!("the plan says where") };
    let patience = Duration::from_millis(500);
    let answered = run(async { tokio::time::timeout(patience, answer(&call, &|_| None, &open)).await });
    assert!(answered.is_err(), "it still waits for the repository: {answered:?}");
}

#[test]
fn a_plan_that_ends_before_the_fork_can_be_served_by_the_child() {
    let world = World::new();
    world.store(ONE, 1..=3);
    world.store(TWO, 4..=7);
    world.store_history();
    let end = Lsn(4 * MB + 300_000);
    let asker = Asker::planned(&world, TWO, end);
    assert_eq!(asker.segment(TWO, 4), Said::Absent, "the recovery stays on timeline 1");
    assert_eq!(asker.segment(ONE, 4), filled(&world.bytes(ONE, 4)[..300_000]));
    // So it is where the parent's own object is there and damaged; where neither is whole, the damage is told.
    world.store(ONE, 4..=4);
    let object = |timeline| world.shelf.file(&world.shelf.archive.names.segment(world.segment(timeline, 4), None));
    std::fs::write(object(ONE), "nothing").expect("a damaged object");
    assert_eq!(asker.segment(ONE, 4), filled(&world.bytes(ONE, 4)[..300_000]));
    std::fs::remove_file(object(TWO)).expect("a stored object");
    assert_eq!(asker.segment(ONE, 4), Said::Unknown(Kind::Corrupt));
}

#[test]
fn without_a_plan_the_end_must_be_proven() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let asker = Asker::new(&world, "free");
    asker.signal("recovery.signal");
    assert_eq!(asker.segment(ONE, 3), filled(world.bytes(ONE, 3)));
    assert_eq!(asker.segment(ONE, 6), filled(world.bytes(ONE, 6)), "the tail");
    assert_eq!(asker.segment(ONE, 7), Said::Absent);
    assert_eq!(asker.ask("00000002.history"), Said::Absent);
    world.forget(ONE, 4);
    assert_eq!(asker.segment(ONE, 4), Said::Unknown(Kind::Gap));
}

/// A server that were told that nothing follows would open in the middle of what is stored.
#[test]
fn a_hole_that_was_left_behind_is_no_end() {
    let world = World::new();
    world.store(ONE, 1..=2);
    run(world.shelf.put_wal(world.segment(ONE, 3), &world.bytes(ONE, 3)[..500_000]));
    world.store(ONE, 5..=6);
    let asker = Asker::new(&world, "free");
    asker.signal("recovery.signal");
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    assert_eq!(asker.segment(ONE, 4), Said::Unknown(Kind::Gap));
    assert_ne!(asker.segment(ONE, 3), Said::Absent);
}

#[test]
fn a_tail_never_replaces_what_the_caller_has() {
    let world = World::new();
    world.store(ONE, 1..=5);
    let (cut, bytes) = (300_000, world.bytes(ONE, 6));
    run(world.shelf.put_wal(world.segment(ONE, 6), &bytes[..200_000]));
    let asker = Asker::new(&world, "standby");
    asker.signal("standby.signal");
    let (name, tail) = (world.segment(ONE, 6).to_string(), filled(&bytes[..200_000]));
    let with = |own: &[u8]| {
        asker.own(&name, own);
        asker.ask(&name)
    };
    assert_eq!(with(&[]), tail, "a file of zeros");
    assert_eq!(with(&bytes[..150_000]), tail, "behind");
    assert_eq!(with(&bytes[..200_000]), tail, "level");
    assert_eq!(with(&bytes[..cut]), Said::Absent, "ahead");
    let mut recycled = world.bytes(ONE, 2).to_vec();
    assert_eq!(with(&recycled), tail, "a file that was recycled and not yet written");
    recycled[..160_000].copy_from_slice(&bytes[..160_000]);
    assert_eq!(with(&recycled), tail, "behind, in a recycled file");
    recycled[..cut].copy_from_slice(&bytes[..cut]);
    assert_eq!(with(&recycled), Said::Absent, "ahead, in a recycled file");
    let mut other = bytes[..150_000].to_vec();
    other[100] ^= 1;
    assert_eq!(with(&other), Said::Absent, "its first page header is like ours, its content is not");
}

#[test]
fn a_file_whose_last_record_goes_on_in_the_next_one_is_kept() {
    let world = World::new();
    world.store(ONE, 1..=1);
    let bytes = world.bytes(ONE, 2);
    let crossing = world.one.made.records().iter().find(|r| r.start < Lsn(3 * MB) && r.end > Lsn(3 * MB));
    let cut = crossing.expect("a record that crosses").start.since(Lsn(2 * MB)) as usize;
    run(world.shelf.put_wal(world.segment(ONE, 2), &bytes[..cut]));
    let asker = Asker::new(&world, "standby");
    asker.signal("standby.signal");
    let name = world.segment(ONE, 2).to_string();
    asker.own(&name, bytes);
    assert_eq!(asker.ask(&name), Said::Absent, "its own next file holds the rest of the record");
    asker.own(&name, &bytes[..cut]);
    assert_eq!(asker.ask(&name), filled(&bytes[..cut]), "level");
}

#[test]
fn a_fork_without_its_wal_is_no_end() {
    let world = World::new();
    world.store(ONE, 1..=6);
    world.store_history();
    let asker = Asker::new(&world, "follower");
    asker.signal("recovery.signal");
    assert_eq!(asker.segment(ONE, 3), filled(world.bytes(ONE, 3)), "before the fork");
    assert_eq!(asker.segment(ONE, 4), Said::Unknown(Kind::Gap), "which branch is meant is not known");
    std::fs::write(asker.pgdata.join("pg_wal/00000002.history"), "").expect("a history");
    let before_fork = &world.bytes(ONE, 4)[..world.fork.since(Lsn(4 * MB)) as usize];
    assert_eq!(asker.segment(ONE, 4), filled(before_fork), "the caller follows timeline 2");
    assert_eq!(asker.segment(ONE, 5), Said::Absent);
    std::fs::remove_file(asker.pgdata.join("pg_wal/00000002.history")).expect("a history");
    world.store(TWO, 4..=4);
    assert_eq!(asker.segment(ONE, 5), filled(world.bytes(ONE, 5)), "it asked for timeline 2 first");
    assert_eq!(asker.segment(ONE, 7), Said::Unknown(Kind::Gap), "the parent's end, while a child is stored");
}

/// A failover while the archive was behind: a recovery that took the zeros behind the old timeline's beginning for its end would open without what was
/// committed up to the fork.
#[test]
fn the_beginning_of_a_segment_is_no_end_where_a_fork_lies_further() {
    for with_wal in [false, true] {
        let world = World::new();
        world.store(ONE, 1..=2);
        run(world.shelf.put_wal(world.segment(ONE, 3), &world.bytes(ONE, 3)[..500_000]));
        world.store_history();
        if with_wal {
            world.store(TWO, 4..=7);
        }
        let asker = Asker::new(&world, "asker");
        asker.signal("recovery.signal");
        assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
        assert_eq!(asker.segment(ONE, 3), Said::Unknown(Kind::Gap), "WAL of the child is stored: {with_wal}");
        // A standby asks again, and may have it streamed meanwhile.
        std::fs::remove_file(asker.pgdata.join("recovery.signal")).expect("a signal file");
        asker.signal("standby.signal");
        assert_eq!(asker.segment(ONE, 3), Said::Absent);
    }
}

/// A heartbeat is stored once all WAL up to it is. A recovery that took the end of what is left for the end would open without what was acknowledged.
#[test]
fn a_recovery_does_not_end_where_a_heartbeat_shows_more() {
    for stored in [None, Some(200_000), Some(usize::MAX)] {
        let world = World::new();
        let whole = world.bytes(ONE, 6);
        let there = &whole[..stored.unwrap_or(0).min(whole.len())];
        world.store(ONE, 1..=5);
        if !there.is_empty() {
            run(world.shelf.put_wal(world.segment(ONE, 6), there));
        }
        let asker = Asker::new(&world, "free");
        asker.signal("recovery.signal");
        let without = if there.is_empty() { Said::Absent } else { filled(there) };
        assert_eq!(asker.segment(ONE, 6), without, "{stored:?}: nothing shows that there was more");
        let keys = world.shelf.ring.fresh().expect("keys");
        let beat = Heartbeat { lsn: world.one.made.end(), time: PgTime(1_000_000) };
        run(world.shelf.archive.put_heartbeat(&keys, ONE, beat, Duration::from_secs(5))).expect("a heartbeat");
        assert_eq!(asker.segment(ONE, 5), filled(world.bytes(ONE, 5)));
        assert_eq!(asker.segment(ONE, 7), Said::Absent, "{stored:?}");
        if there.len() == whole.len() {
            assert_eq!(asker.segment(ONE, 6), filled(whole), "all that it speaks of is there");
            continue;
        }
        assert_eq!(asker.segment(ONE, 6), Said::Unknown(Kind::Gap), "{stored:?}");
        let Outcome::Unknown(error) = asker.outcome(&world.segment(ONE, 6).to_string()) else { panic!("an answer") };
        assert!(error.to_string().contains("the heartbeat of 2000-01-01 00:00:01"), "{error}");
        let standby = Asker::new(&world, "standby");
        standby.signal("standby.signal");
        assert_eq!(standby.segment(ONE, 6), Said::Absent, "it asks again, and may have it streamed");
    }
}

/// What was given up is not waited for, and no end.
#[test]
fn at_a_recorded_hole_the_way_out_is_told() {
    let world = World::new();
    world.store(ONE, 1..=2);
    run(world.shelf.put_wal(world.segment(ONE, 3), &world.bytes(ONE, 3)[..500_000]));
    world.store(ONE, 5..=6);
    let asker = Asker::new(&world, "free");
    asker.signal("recovery.signal");
    let told = |number: u64| {
        let name = world.segment(ONE, number).to_string();
        let Outcome::Unknown(error) = asker.outcome(&name) else { panic!("an answer to {name}") };
        assert_eq!(error.kind(), Kind::Gap);
        let text = format!("{error}; {}", error.advice().unwrap_or_default());
        assert_eq!(text.matches(&name).count(), 1, "{text}");
        text
    };
    for number in [3, 4] {
        assert!(!told(number).contains("given up"), "nothing was recorded");
    }
    let (from, to) = (Lsn(3 * MB + 500_000), Lsn(5 * MB));
    let hole = Hole { from_timeline: ONE, from, to_timeline: ONE, to, reason: "the slot was lost".into() };
    let keys = world.shelf.ring.fresh().expect("keys");
    let noted = world.shelf.archive.put_event(&keys, What::Hole(hole), Duration::from_secs(5));
    run(noted).expect("an event");
    for number in [3, 4] {
        let text = told(number);
        assert!(text.contains("given up: the slot was lost") && text.contains("made anew from a backup"), "{text}");
    }
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    assert_eq!(asker.segment(ONE, 5), filled(world.bytes(ONE, 5)));
    let standby = Asker::new(&world, "standby");
    standby.signal("standby.signal");
    assert_eq!(standby.segment(ONE, 3), Said::Absent);
}

#[test]
fn a_timeline_without_its_history_is_not_absent() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let asker = Asker::new(&world, "free");
    asker.signal("recovery.signal");
    assert_eq!(asker.ask("00000002.history"), Said::Absent);
    assert_eq!(asker.segment(ONE, 7), Said::Absent);
    world.store(TWO, 4..=7);
    assert_eq!(asker.ask("00000002.history"), Said::Unknown(Kind::Corrupt));
    assert_eq!(asker.segment(ONE, 7), Said::Unknown(Kind::Corrupt), "it may be where timeline 2 left");
    assert_eq!(asker.ask("00000003.history"), Said::Absent);
    world.store_history();
    assert!(matches!(asker.ask("00000002.history"), Said::Served(_)));
}

#[test]
fn a_stray_folder_of_a_high_timeline_costs_little() {
    let world = World::new();
    world.store_all();
    for stray in ["000000F0", "FFFFFFFF"] {
        let folder = world.shelf.file(&world.shelf.archive.names.tail_folder(world.segment(ONE, 1)));
        let folder = folder.parent().and_then(Path::parent).expect("a folder").join(stray).join("x");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("x"), "").expect("a file");
    }
    let asker = Asker::new(&world, "free");
    asker.signal("recovery.signal");
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    assert_eq!(asker.segment(ONE, 7), Said::Unknown(Kind::Gap), "timeline 2 is still seen");
}

#[test]
fn a_standby_is_told_absent_after_a_while_a_recovery_is_stopped() {
    let world = World::new();
    world.store(ONE, 1..=6);
    world.forget(ONE, 4);
    let standby = Asker::new(&world, "standby");
    standby.signal("standby.signal");
    let begun = Instant::now();
    assert_eq!(standby.segment(ONE, 4), Said::Absent);
    assert!(begun.elapsed() >= Duration::from_millis(150), "it waited");
    assert!(begun.elapsed() < Duration::from_secs(25), "not as long as a recovery");

    let asker = Asker::new(&world, "recovery");
    asker.signal("recovery.signal");
    let call = Call {
        name: world.segment(ONE, 2).to_string(),
        destination: "pg_wal/RECOVERYXLOG".into(),
        pgdata: asker.pgdata.clone(),
        standby_wait: Duration::ZERO,
        launch: None,
    };
    let broken = || -> futures::future::BoxFuture<'static, Result<Archive>> {
        Box::pin(async { Err(Error::new(Kind::Key, "no key")) })
    };
    let outcome = run(answer(&call, &|_| None, &broken));
    assert!(matches!(outcome, Outcome::Unknown(e) if e.kind() == Kind::Key));
}

/// Any byte of any object: what is served is never other than what was stored, and what is refused names the object.
#[test]
fn damage_anywhere_in_wal_is_refused_by_name() {
    let mut seed = Seed::of_run();
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, TWO, world.two.made.end());
    let names = &world.shelf.archive.names;
    let segment = |number| (world.segment(TWO, number).to_string(), names.segment(world.segment(TWO, number), None));
    let tail = (world.segment(TWO, 7).to_string(), names.partial(world.segment(TWO, 7)));
    for (asked, name) in [segment(4), segment(6), tail, (TWO.history_name(), names.history(TWO))] {
        let object = world.shelf.file(&name);
        let whole = std::fs::read(&object).expect("an object");
        for _ in 0..rounds(25, 2000) {
            let at = seed.below(whole.len() as u64) as usize;
            let mut bytes = whole.clone();
            match seed.below(3) {
                0 => bytes.truncate(at),
                1 => bytes[at..].fill(0),
                _ => bytes[at] ^= 1 << seed.below(8),
            }
            if bytes == whole {
                continue;
            }
            std::fs::write(&object, bytes).expect("damage");
            let call = Call {
                name: asked.clone(),
                destination: "pg_wal/RECOVERYXLOG".into(),
                pgdata: asker.pgdata.clone(),
                standby_wait: Duration::ZERO,
                launch: None,
            };
            let open =
                || -> futures::future::BoxFuture<'static, Result<Archive>> { unreachable!("the plan says where") };
            let outcome = at_hand(&call).unwrap_or_else(|| run(answer(&call, &|_| None, &open)));
            let Outcome::Unknown(error) = outcome else { panic!("{name}, damaged at {at}: {outcome:?}") };
            let leaf = name.rsplit('/').next().expect("a name");
            assert!(error.to_string().contains(leaf), "{name}, damaged at {at}: {error}");
            assert!(
                matches!(error.kind(), Kind::Corrupt | Kind::Key | Kind::Repository),
                "{:?}: {error}",
                error.kind()
            );
        }
        std::fs::write(&object, whole).expect("mend");
    }
    assert_eq!(asker.segment(TWO, 4), filled(world.bytes(TWO, 4)));
    assert_eq!(asker.segment(TWO, 7), filled(world.bytes(TWO, 7)));
}

#[test]
fn a_promotion_is_not_stopped_by_a_repository_that_is_away() {
    let world = World::new();
    let promoted = Asker::new(&world, "promoted");
    let away = || -> futures::future::BoxFuture<'static, Result<Archive>> {
        Box::pin(async { Err(Error::new(Kind::Repository, "away")) })
    };
    let ask = |name: &str| {
        let call = Call {
            name: name.to_owned(),
            destination: "pg_wal/RECOVERYHISTORY".into(),
            pgdata: promoted.pgdata.clone(),
            standby_wait: Duration::ZERO,
            launch: None,
        };
        at_hand(&call).unwrap_or_else(|| run(answer(&call, &|_| None, &away)))
    };
    assert!(matches!(ask("00000001.history"), Outcome::Absent), "the first timeline has none");
    assert!(matches!(ask("00000002.history"), Outcome::Unknown(_)), "nobody has it");
    promoted.own("00000002.history", b"1\t0/400000\tno recovery target specified\n");
    assert!(matches!(ask("00000002.history"), Outcome::Absent), "the server takes its own");
    promoted.signal("recovery.signal");
    assert!(matches!(ask("00000002.history"), Outcome::Unknown(_)), "it may be another one than the archive's");
}

#[test]
fn a_standby_outlives_a_configuration_that_is_being_edited() {
    let world = World::new();
    let standby = Asker::new(&world, "standby");
    standby.signal("standby.signal");
    let call = |name: &str| Call {
        name: name.to_owned(),
        destination: "pg_wal/RECOVERYXLOG".into(),
        pgdata: standby.pgdata.clone(),
        standby_wait: Duration::from_millis(300),
        launch: None,
    };
    let typo = || -> futures::future::BoxFuture<'static, Result<Archive>> {
        Box::pin(async { Err(Error::new(Kind::Usage, "walrecv.toml: unknown key")) })
    };
    let segment = world.segment(ONE, 2).to_string();
    assert!(matches!(run(answer(&call(&segment), &|_| None, &typo)), Outcome::Absent));
    let bad = at_hand(&call("pg_wal/RECOVERYXLOG"));
    assert!(matches!(bad, Some(Outcome::Unknown(e)) if e.kind() == Kind::Usage));
}

/// `DBState` (`catalog/pg_control.h`).
const IN_RECOVERY: u32 = 5;
const IN_PRODUCTION: u32 = 6;

/// A pg_control of version 15 as far as it is read.
fn control(system: SystemIdentifier, state: u32) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[..8].copy_from_slice(&system.0.to_le_bytes());
    for (at, value) in [(8, 1300), (16, state), (216, 8192), (224, 8192), (228, MB as u32)] {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    let crc = crc32c::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn a_server_of_another_cluster_gets_nothing() {
    let world = World::new();
    world.store_all();
    let asker = Asker::new(&world, "free");
    asker.signal("recovery.signal");
    std::fs::create_dir(asker.pgdata.join("global")).expect("a folder");
    let own =
        |system| std::fs::write(asker.pgdata.join("global/pg_control"), control(system, IN_RECOVERY)).expect("a file");
    own(SYSTEM);
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    own(SystemIdentifier(SYSTEM.0 + 1));
    assert_eq!(asker.segment(ONE, 2), Said::Unknown(Kind::Diverged));
    assert_eq!(asker.ask("00000002.history"), Said::Unknown(Kind::Diverged));
}

/// At the end of a recovery the server removes its signal before it asks for its last file.
#[test]
fn a_plan_binds_until_pg_control_says_that_recovery_has_ended() {
    let world = World::new();
    world.store_all();
    let end = world.one.last_before(Lsn(3 * MB + 700_000)).end;
    let asker = Asker::planned(&world, ONE, end);
    let (whole, cut) = (world.bytes(ONE, 3), end.since(Lsn(3 * MB)) as usize);
    std::fs::remove_file(asker.pgdata.join("recovery.signal")).expect("remove");
    std::fs::create_dir(asker.pgdata.join("global")).expect("a folder");
    let place = asker.pgdata.join("global/pg_control");
    for binds in [control(SYSTEM, IN_RECOVERY), b"half written".to_vec()] {
        std::fs::write(&place, binds).expect("a file");
        assert_eq!(asker.segment(ONE, 3), filled(&whole[..cut]));
        assert_eq!(asker.segment(ONE, 5), Said::Absent);
    }
    std::fs::write(&place, control(SYSTEM, IN_PRODUCTION)).expect("a file");
    assert_eq!(asker.segment(ONE, 3), filled(whole));
}

#[test]
fn an_unreadable_plan_is_not_no_plan() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let asker = Asker::planned(&world, ONE, world.one.made.end());
    std::fs::write(PlanFile::place(&asker.pgdata), "{").expect("a broken plan");
    assert_eq!(asker.segment(ONE, 7), Said::Unknown(Kind::Failed));
}
