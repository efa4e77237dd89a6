//! Every refusal for WAL that is missing or damaged on the way names the nearest target that can be reached, and that one can.

use std::time::Duration;

use walrecv::error::{Error, Kind};
use walrecv::pg::Lsn;
use walrecv::pg::xact::PgTime;
use walrecv::restore::choose::{Wanted, choose};
use walrecv::restore::plan::Stop;
use walrecv::restore::target::Target;
use walrecv::seal::content::heartbeat::Heartbeat;
use walrecv::seal::content::manifest::Manifest;

use crate::plan::{last, plan_from, time};
use crate::world::{MB, ONE, World, manifest, run};

fn xid(xid: u32) -> Target {
    Target::Xid { xid, inclusive: true }
}

/// The target that the advice names is one that a plan takes, and no later one is.
fn nearest(world: &World, backups: &[Manifest], error: &Error) -> Lsn {
    let advice = error.advice().unwrap_or_else(|| panic!("no advice: {error}"));
    let (_, named) = advice.split_once("the nearest that can be reached is --target-lsn ").expect(advice);
    let lsn: Lsn = named.split([',', ';', ' ']).next().and_then(|text| text.parse().ok()).expect(advice);
    let reached = |lsn| plan_from(world, backups, Target::Lsn { lsn, inclusive: true }, Some(ONE));
    let choice = reached(lsn).unwrap_or_else(|e| panic!("{advice}: {e}"));
    assert_eq!(choice.landing.last_record, lsn);
    assert!(reached(choice.landing.replayed).is_err(), "{} can be reached too", choice.landing.replayed);
    choice.landing.replayed
}

#[test]
fn behind_a_hole() {
    let world = World::new();
    world.store(ONE, 1..=2);
    world.store(ONE, 4..=6);
    let backups = [world.manifest()];
    let behind = world.one.last_before(Lsn(5 * MB));
    let end = world.one.last_before(Lsn(3 * MB)).end;
    let lsn = Target::Lsn { lsn: behind.start, inclusive: true };
    for target in [xid(behind.xid), Target::Name("x".to_owned()), time(behind.xid), lsn] {
        let shown = target.describe();
        let error = plan_from(&world, &backups, target, Some(ONE)).expect_err(&shown);
        assert_eq!(error.kind(), Kind::Gap, "{shown}: {error}");
        assert!(error.to_string().contains("000000010000000000000003"), "{shown}: {error}");
        assert!(nearest(&world, &backups, &error) >= end, "{shown}: {error}");
    }
    // An older transaction may still have run there.
    let error = plan_from(&world, &backups, xid(5), Some(ONE)).expect_err("older than all");
    assert_eq!(error.kind(), Kind::Gap, "{error}");
}

/// In the middle of a segment, and of its object.
#[test]
fn behind_damage() {
    for whole in [false, true] {
        let world = World::new();
        world.store(ONE, 1..=6);
        damage(&world, 4, whole);
        let backups = [world.manifest()];
        let behind = world.one.last_before(Lsn(6 * MB));
        let lsn = Target::Lsn { lsn: behind.start, inclusive: true };
        for target in [Target::Latest, xid(behind.xid), Target::Name("x".to_owned()), time(behind.xid), lsn] {
            let shown = target.describe();
            let error = plan_from(&world, &backups, target, Some(ONE)).expect_err(&shown);
            assert_eq!(error.kind(), Kind::Corrupt, "{shown}: {error}");
            assert!(error.to_string().contains("000000010000000000000004"), "{shown}: {error}");
            let reached = nearest(&world, &backups, &error);
            assert!(reached > Lsn(4 * MB - 100_000), "{shown}: {error}");
        }
    }
}

/// The newest backup needs what is damaged: an older one leads to all that lies before that.
#[test]
fn damage_in_a_backups_own_wal_hides_nothing_before_it() {
    for (number, whole) in [(4, false), (4, true), (3, false), (3, true)] {
        let world = World::new();
        world.store(ONE, 1..=6);
        damage(&world, number, whole);
        let newest =
            manifest(world.one.last_before(Lsn(3 * MB + 200_000)).start, world.one.last_before(Lsn(5 * MB)).end);
        let between =
            manifest(world.one.last_before(Lsn(2 * MB)).start, world.one.last_before(Lsn(2 * MB + 90_000)).end);
        let backups = [world.manifest(), between.clone(), newest.clone()];
        let early = world.one.last_before(Lsn(2 * MB + 700_000));
        for target in [time(early.xid), xid(early.xid), Target::Lsn { lsn: early.start, inclusive: true }] {
            let shown = format!("{} past damage in {number}, {whole}", target.describe());
            let choice = plan_from(&world, &backups, target, Some(ONE)).expect(&shown);
            assert_eq!((last(&choice), &choice.manifest.id), (early, &between.id), "{shown}");
        }
        let choice = plan_from(&world, &backups, Target::Immediate, Some(ONE)).expect("an older one is whole");
        assert_eq!((choice.landing.replayed >= between.stop, &choice.manifest.id), (true, &between.id));
        let late = world.one.last_before(Lsn(6 * MB));
        for target in [Target::Latest, time(late.xid), xid(late.xid)] {
            let shown = format!("{} past damage in {number}, {whole}", target.describe());
            let error = plan_from(&world, &backups, target, Some(ONE)).expect_err(&shown);
            assert_eq!(error.kind(), Kind::Corrupt, "{shown}: {error}");
            assert!(nearest(&world, &backups, &error) > Lsn(number * MB - 100_000), "{shown}: {error}");
        }
        // Alone it leads nowhere.
        let error = plan_from(&world, std::slice::from_ref(&newest), Target::Latest, Some(ONE)).expect_err("damaged");
        assert!(error.kind() == Kind::Corrupt && error.advice().is_some(), "{error}");
    }
}

/// Whatever keeps WAL from being read behind the place where a target is met by the plan's cut: nothing there is asked for by the restore.
#[test]
fn what_lies_behind_the_cut_refuses_no_target() {
    for what in ["a hole", "a damaged object", "a damaged record"] {
        let world = World::new();
        world.store(ONE, 1..=6);
        // Up to the border, or to the record in front of the damaged one.
        let last = world.one.last_before(Lsn(4 * MB + if what == "a damaged record" { 500_000 } else { 0 }));
        match what {
            "a damaged object" => damage(&world, 4, true),
            "a damaged record" => damage(&world, 4, false),
            _ => world.forget(ONE, 4),
        }
        let end = plan_from(&world, &[world.manifest()], Target::Lsn { lsn: last.start, inclusive: true }, Some(ONE));
        assert_eq!(end.expect("in front of it").landing.replayed, last.end, "{what}");
        let until = Target::Time { time: PgTime(i64::from(last.xid) + 1), inclusive: true };
        assert!(plan_from(&world, &[world.manifest()], until.clone(), Some(ONE)).is_err(), "{what}: nothing is proven");
        let keys = world.shelf.ring.fresh().expect("keys");
        let beat = Heartbeat { lsn: last.end, time: PgTime(i64::from(last.xid) + 2) };
        run(world.shelf.archive.put_heartbeat(&keys, ONE, beat, Duration::from_secs(5))).expect("a heartbeat");
        let newest = manifest(world.one.last_before(Lsn(3 * MB + 200_000)).start, last.end);
        let backups = [world.manifest(), newest.clone()];
        for target in [until, Target::Lsn { lsn: last.end, inclusive: false }] {
            let shown = format!("{} in front of {what}", target.describe());
            let choice = plan_from(&world, &backups, target, Some(ONE)).expect(&shown);
            assert_eq!(
                (self::last(&choice), choice.landing.stop, &choice.manifest.id),
                (last, Stop::Cut, &newest.id),
                "{shown}"
            );
            assert!(choice.landing.needed <= last.end, "{shown}");
        }
        // The end of what is there is not the latest.
        assert!(plan_from(&world, &backups, Target::Latest, Some(ONE)).is_err(), "{what}");
    }
}

/// The same of a disk that fails behind it; what could not be looked through there is told.
#[test]
fn what_the_disk_does_not_give_behind_the_cut_is_told_and_refuses_nothing() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let archive = &world.shelf.archive;
    let inventory = run(archive.inventory()).expect("an inventory");
    let last = world.one.last_before(Lsn(4 * MB));
    let keys = world.shelf.ring.fresh().expect("keys");
    let beat = Heartbeat { lsn: last.end, time: PgTime(i64::from(last.xid) + 2) };
    run(archive.put_heartbeat(&keys, ONE, beat, Duration::from_secs(5))).expect("a heartbeat");
    world.forget(ONE, 4);
    let place = world.shelf.file(&archive.names.segment(world.segment(ONE, 4), None));
    std::os::unix::fs::symlink(&place, &place).expect("a link that leads nowhere");
    let planned = |target| {
        let wanted = Wanted { target, timeline: Some(ONE), backup: None };
        run(choose(archive, &inventory, &[world.manifest()], &wanted))
    };
    let choice = planned(time(last.xid + 1)).expect("a plan");
    assert_eq!((self::last(&choice), choice.landing.stop), (last, Stop::Cut));
    assert!(matches!(choice.unknown.as_slice(), [one] if one.contains("is not known: ")), "{:?}", choice.unknown);
    assert_eq!(planned(Target::Latest).expect_err("it is on the way").kind(), Kind::Repository);
}

/// What is looked for may lie in the hole, wherever that is: it is no target that is known not to be there.
#[test]
fn a_hole_between_older_backups_is_a_gap_for_what_is_looked_for() {
    let world = World::new();
    world.store(ONE, 1..=6);
    world.forget(ONE, 3);
    let taken =
        |from: u64, to: u64| manifest(world.one.last_before(Lsn(from)).start, world.one.last_before(Lsn(to)).end);
    let newest = taken(5 * MB + 500_000, 5 * MB + 700_000);
    let (inside, between) = (taken(2 * MB + 500_000, 3 * MB + 200_000), taken(4 * MB + 400_000, 4 * MB + 600_000));
    let lost = world.one.last_before(Lsn(3 * MB + 500_000));
    let name = || Target::Name("x".to_owned());
    for backups in [
        vec![world.manifest(), between.clone(), newest.clone()],
        vec![world.manifest(), newest.clone()],
        vec![inside, newest],
    ] {
        for target in [xid(lost.xid), name(), xid(5)] {
            let shown = format!("{} of {}", target.describe(), backups.len());
            let error = plan_from(&world, &backups, target, Some(ONE)).expect_err(&shown);
            assert_eq!(error.kind(), Kind::Gap, "{shown}: {error}");
            assert!(
                error.to_string().contains("000000010000000000000003") && error.advice().is_some(),
                "{shown}: {error}"
            );
        }
    }
    // What is there is found on either side of it.
    let backups = [world.manifest(), between];
    for there in [world.one.last_before(Lsn(2 * MB)), world.one.last_before(Lsn(5 * MB))] {
        assert_eq!(last(&plan_from(&world, &backups, xid(there.xid), Some(ONE)).expect("it is there")), there);
    }
}

/// A page's worth of its bytes, or its object.
fn damage(world: &World, number: u64, whole: bool) {
    let mut bytes = world.bytes(ONE, number).to_vec();
    bytes[500_000] ^= 0x10;
    if !whole {
        world.forget(ONE, number);
        return run(world.shelf.put_wal(world.segment(ONE, number), &bytes));
    }
    let object = world.shelf.file(&world.shelf.archive.names.segment(world.segment(ONE, number), None));
    std::fs::write(object, "nothing").expect("a damaged object");
}
