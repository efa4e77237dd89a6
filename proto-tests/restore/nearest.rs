//! Every refusal for WAL that is missing or damaged on the way names the nearest target that can be reached, and that one can.

use walrecv::error::{Error, Kind};
use walrecv::pg::Lsn;
use walrecv::restore::target::Target;
use walrecv::seal::content::manifest::Manifest;

use crate::plan::{last, plan_from, time};
use crate::world::{MB, ONE, World, manifest};

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

/// A page's worth of its bytes, or its object.
fn damage(world: &World, number: u64, whole: bool) {
    let mut bytes = world.bytes(ONE, number).to_vec();
    bytes[500_000] ^= 0x10;
    if !whole {
        world.forget(ONE, number);
        return crate::world::run(world.shelf.put_wal(world.segment(ONE, number), &bytes));
    }
    let object = world.shelf.file(&world.shelf.archive.names.segment(world.segment(ONE, number), None));
    std::fs::write(object, "nothing").expect("a damaged object");
}
