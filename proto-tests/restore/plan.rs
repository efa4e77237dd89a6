//! The plan over an archive: which timeline, which backup, which last commit, and what is refused.

use std::time::Duration;

use jiff::Timestamp;
use walrecv::error::{Error, Kind};
use walrecv::find::{Missing, Search, Wish};
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::restore::choose::{Choice, Wanted, choose, compared};
use walrecv::restore::plan::Stop;
use walrecv::restore::sound::prefer;
use walrecv::restore::target::Target;
use walrecv::seal::content::event::{Outcome, Verified, What};
use walrecv::seal::content::heartbeat::Heartbeat;
use walrecv::seal::content::manifest::Manifest;

use crate::world::{Commit, MB, ONE, TWO, World, manifest, run};

pub fn plan_from(
    world: &World,
    backups: &[Manifest],
    target: Target,
    timeline: Option<TimelineId>,
) -> Result<Choice, Error> {
    let archive = &world.shelf.archive;
    let inventory = run(archive.inventory()).expect("an inventory");
    let wanted = Wanted { target, timeline, backup: None };
    let choice = run(choose(archive, &inventory, backups, &wanted))?;
    run(compared(archive, &inventory, backups, &wanted, choice))
}

pub fn plan(world: &World, target: Target, timeline: Option<TimelineId>) -> Result<Choice, Error> {
    plan_from(world, &[world.manifest()], target, timeline)
}

pub fn last(choice: &Choice) -> Commit {
    let commit = choice.landing.last_commit.expect("a commit");
    Commit { xid: commit.xid, start: commit.start, end: commit.end }
}

pub fn time(xid: u32) -> Target {
    Target::Time { time: PgTime(i64::from(xid)), inclusive: true }
}

#[test]
fn the_newest_timeline_is_followed_through_its_fork() {
    let world = World::new();
    world.store_all();
    let choice = plan(&world, Target::Latest, None).expect("a plan");
    assert_eq!(last(&choice), *world.two.commits.last().expect("a commit"));
    assert_eq!((choice.landing.timeline, choice.landing.stop), (TWO, Stop::EndOfWal));
    assert_eq!(choice.landing.replayed, world.two.made.end());
    assert_eq!(choice.landing.commits, world.two.commits.len() as u64);

    let old = plan(&world, Target::Latest, Some(ONE)).expect("a plan");
    assert_eq!(last(&old), *world.one.commits.last().expect("a commit"));
    assert_eq!(old.landing.timeline, ONE);
    let error = plan(&world, Target::Latest, Some(TimelineId(3))).expect_err("no such timeline");
    assert_eq!(error.kind(), Kind::Target);
}

#[test]
fn a_landing_before_the_fork_belongs_to_the_parent() {
    let world = World::new();
    world.store_all();
    let wanted = world.one.last_before(Lsn(3 * MB));
    let choice = plan(&world, time(wanted.xid), None).expect("a plan");
    assert_eq!((last(&choice), choice.landing.timeline), (wanted, ONE));
    // The last one before the fork: the record that stops the server is timeline 2's.
    let wanted = world.one.last_before(world.fork);
    let choice = plan(&world, time(wanted.xid), None).expect("a plan");
    assert_eq!((last(&choice), choice.landing.timeline), (wanted, TWO));
    let old = plan(&world, time(wanted.xid), Some(ONE)).expect("a plan");
    assert_eq!((last(&old), old.landing.timeline), (wanted, ONE));
}

#[test]
fn wal_of_the_dead_branch_never_counts() {
    let world = World::new();
    // The promoted server's first segment has not arrived, the old primary's has bytes past the fork.
    world.store(ONE, 1..=6);
    world.store_history();
    let choice = plan(&world, Target::Latest, None).expect("a plan");
    assert_eq!(last(&choice), world.one.last_before(world.fork));
    assert_eq!((choice.landing.replayed, choice.landing.timeline), (world.fork, ONE));
}

#[test]
fn the_parent_lends_the_beginning_that_the_child_has_not_yet() {
    let world = World::new();
    world.store(ONE, 1..=4);
    run(world.shelf.put_wal(world.segment(TWO, 4), &world.bytes(TWO, 4)[..100_000]));
    world.store_history();
    let choice = plan(&world, Target::Latest, None).expect("a plan");
    assert_eq!(choice.landing.replayed, world.fork);
}

#[test]
fn a_record_that_is_not_whole_is_not_promised() {
    let world = World::new();
    world.store(ONE, 1..=2);
    let cut = world.one.last_before(Lsn(3 * MB + 500_000));
    let bytes = world.bytes(ONE, 3);
    run(world.shelf.put_wal(world.segment(ONE, 3), &bytes[..cut.end.since(Lsn(3 * MB)) as usize - 1]));
    let choice = plan(&world, Target::Latest, None).expect("a plan");
    assert_eq!(last(&choice).xid, cut.xid - 1);
    assert!(choice.landing.replayed < cut.end);
}

#[test]
fn a_hole_is_no_end() {
    let world = World::new();
    world.store_all();
    world.forget(ONE, 3);
    let error = plan(&world, Target::Latest, None).expect_err("a hole");
    assert_eq!(error.kind(), Kind::Gap);
    assert!(error.to_string().contains("000000010000000000000003"), "{error}");
    let after = world.two.commits.last().expect("a commit").xid - 5;
    assert_eq!(plan(&world, time(after), None).expect_err("a hole").kind(), Kind::Gap);
    let before = world.one.last_before(Lsn(2 * MB + 900_000));
    assert_eq!(last(&plan(&world, time(before.xid), None).expect("before the hole")), before);
}

/// What a receiver leaves that went on behind WAL that the server had removed: the beginning of a segment, nothing for a while, and whole segments.
#[test]
fn a_hole_that_was_left_behind_is_not_crossed() {
    let world = World::new();
    world.store(ONE, 1..=2);
    run(world.shelf.put_wal(world.segment(ONE, 3), &world.bytes(ONE, 3)[..500_000]));
    world.store(ONE, 5..=6);
    let error = plan(&world, Target::Latest, Some(ONE)).expect_err("a hole");
    assert_eq!(error.kind(), Kind::Gap, "{error}");
    let behind = world.one.last_before(Lsn(6 * MB));
    assert_eq!(plan(&world, time(behind.xid), Some(ONE)).expect_err("behind it").kind(), Kind::Gap);
    let before = world.one.last_before(Lsn(3 * MB + 400_000));
    assert_eq!(last(&plan(&world, time(before.xid), Some(ONE)).expect("before it")), before);
}

/// The history of the next timeline was stored, and no WAL of it: that shows how far the old one went.
#[test]
fn a_fork_that_is_known_is_not_stopped_short_of() {
    let cuts = [(3, 500_000, "the segment before it"), (4, 100_000, "its own segment")];
    for (number, bytes, what) in cuts {
        let world = World::new();
        world.store(ONE, 1..=number - 1);
        run(world.shelf.put_wal(world.segment(ONE, number), &world.bytes(ONE, number)[..bytes]));
        let stored = Lsn(number * MB + bytes as u64);
        assert_eq!(plan(&world, Target::Latest, None).expect("no fork is known").landing.timeline, ONE);
        world.store_history();
        let error = plan(&world, Target::Latest, None).expect_err(what);
        assert_eq!(error.kind(), Kind::Gap, "{what}: {error}");
        let last = world.one.last_before(stored);
        let (text, advice) = (error.to_string(), error.advice().unwrap_or_default());
        assert!(text.contains(&format!("timeline 2 left at {}", world.fork)), "{text}");
        assert!(text.contains(&format!("{}", world.segment(ONE, number))), "{text}");
        assert!(advice.contains("--target-lsn") && advice.contains("timeline 2"), "{advice}");
        // What lies before is reached as ever, and so is the old timeline's own end.
        let early = world.one.last_before(Lsn(2 * MB));
        assert_eq!(self::last(&plan(&world, time(early.xid), None).expect("before it")), early);
        let named = Target::Lsn { lsn: last.start, inclusive: true };
        assert_eq!(self::last(&plan(&world, named, None).expect("as the advice says")), last);
        assert!(plan(&world, Target::Latest, Some(ONE)).is_ok());
        // A time past all that is stored names the gap as well.
        assert_eq!(plan(&world, time(last.xid + 1), None).expect_err(what).kind(), Kind::Gap);
    }
}

/// What is proven to be all up to a time is not made doubtful by what came later.
#[test]
fn a_time_that_the_archive_is_complete_through_is_reached_in_front_of_a_gap() {
    let world = World::new();
    world.store(ONE, 1..=2);
    world.store_history();
    let last = world.one.last_before(Lsn(3 * MB));
    let target = || Target::Time { time: PgTime(i64::from(last.xid) + 1), inclusive: true };
    assert_eq!(plan(&world, target(), None).expect_err("nothing is proven").kind(), Kind::Gap);
    let beat = PgTime(i64::from(last.xid) + 2);
    let keys = world.shelf.ring.fresh().expect("keys");
    let beat = Heartbeat { lsn: last.end, time: beat };
    run(world.shelf.archive.put_heartbeat(&keys, ONE, beat, Duration::from_secs(5))).expect("a heartbeat");
    let choice = plan(&world, target(), None).expect("a plan");
    assert_eq!((self::last(&choice), choice.landing.stop), (last, Stop::Cut));
    assert_eq!(plan(&world, Target::Latest, None).expect_err("the fork lies further").kind(), Kind::Gap);
}

/// `find` gives no all-clear for WAL that a known fork shows to be missing.
#[test]
fn find_tells_what_is_missing_up_to_a_known_fork() {
    let world = World::new();
    world.store(ONE, 1..=2);
    run(world.shelf.put_wal(world.segment(ONE, 3), &world.bytes(ONE, 3)[..500_000]));
    let missing = || {
        let wish = Wish { from: PgTime(0), to: PgTime(i64::MAX), rows: 1000, largest: 3 };
        let search = Search { wish, timeline: None, backups: &[world.manifest()], progress: &|_, _| () };
        run(walrecv::find::search(&world.shelf.archive, &search)).expect("a search").missing
    };
    assert_eq!(missing(), []);
    world.store_history();
    assert_eq!(missing(), [Missing { from: Lsn(3 * MB + 500_000), to: world.fork }]);
    world.store(TWO, 5..=7);
    assert_eq!(missing(), [Missing { from: Lsn(3 * MB + 500_000), to: Lsn(5 * MB) }]);
}

#[test]
fn a_missing_first_segment_of_the_child_is_a_hole() {
    let world = World::new();
    world.store_all();
    world.forget(TWO, 4);
    assert_eq!(plan(&world, Target::Latest, None).expect_err("a hole").kind(), Kind::Gap);
    assert!(plan(&world, Target::Latest, Some(ONE)).is_ok());
}

#[test]
fn the_newest_backup_that_can_reach_the_target_is_taken() {
    let world = World::new();
    world.store_all();
    let late = world.one.last_before(Lsn(3 * MB));
    let backups = [world.manifest(), manifest(late.start, world.one.last_before(Lsn(3 * MB + 500_000)).end)];
    let choice = plan_from(&world, &backups, Target::Latest, None).expect("a plan");
    assert_eq!((choice.manifest.start, choice.passed_over.len()), (late.start, 0));
    let early = world.one.last_before(Lsn(2 * MB));
    let choice = plan_from(&world, &backups, time(early.xid), None).expect("a plan");
    assert_eq!((last(&choice), choice.manifest.start), (early, world.redo));
    assert_eq!(choice.passed_over.len(), 1);
    let searched = Target::Xid { xid: early.xid, inclusive: true };
    let choice = plan_from(&world, &backups, searched, None).expect("a plan");
    assert_eq!((last(&choice), choice.manifest.start), (early, world.redo));
}

#[test]
fn a_backup_that_was_found_hurt_is_taken_only_where_no_other_lands_alike() {
    let world = World::new();
    world.store_all();
    let late = world.one.last_before(Lsn(3 * MB));
    let newest = manifest(late.start, world.one.last_before(Lsn(3 * MB + 500_000)).end);
    let (archive, id) = (&world.shelf.archive, newest.id.to_string());
    let backups = [world.manifest(), newest];
    let inventory = run(archive.inventory()).expect("an inventory");
    let taken = |target: Target, backup: Option<&str>| {
        let wanted = Wanted { target, timeline: None, backup: backup.map(str::to_owned) };
        let choice = run(choose(archive, &inventory, &backups, &wanted)).expect("a plan");
        let choice = run(prefer(archive, &inventory, &backups, &wanted, choice));
        (choice.manifest.start, choice.hurt, choice.passed_over.into_iter().map(|p| p.backup).collect::<Vec<_>>())
    };
    assert_eq!(taken(Target::Latest, None), (late.start, false, vec![]));
    let [whole, hurt, unknown] = [vec![backups[0].id.to_string()], vec![id.clone()], vec![]];
    let check = Verified {
        deep: true,
        only: None,
        outcome: Outcome::Corrupt,
        problems: 1,
        whole,
        hurt,
        unknown,
        ..Verified::default()
    };
    let keys = world.shelf.ring.fresh().expect("keys");
    run(archive.put_event(&keys, What::Verified(check), Duration::from_secs(5))).expect("an event");
    assert_eq!(taken(Target::Latest, None), (world.redo, false, vec![id.clone()]));
    // From the older one this would be another place.
    assert_eq!(taken(Target::Immediate, None), (late.start, true, vec![]));
    assert_eq!(taken(Target::Latest, Some(&id)), (late.start, true, vec![]));
}

/// The branch that died goes on past the fork: a backup from there leads to its own end, and nowhere else.
#[test]
fn a_backup_past_the_fork_does_not_lead_to_the_other_branch() {
    let world = World::new();
    world.store_all();
    let past = world.one.last_before(Lsn(5 * MB + 500_000));
    let backups = [manifest(world.one.last_before(Lsn(5 * MB)).start, past.end)];
    let error = plan_from(&world, &backups, Target::Latest, Some(TWO)).expect_err("not on the way");
    assert_eq!(error.kind(), Kind::Target);
    assert!(error.to_string().contains("on the way to timeline 2"), "{error}");
    let own = plan_from(&world, &backups, Target::Latest, Some(ONE)).expect("a plan");
    assert_eq!(last(&own), *world.one.commits.last().expect("a commit"));
    // Without a timeline the newest one that a backup leads to is meant.
    let newest = plan_from(&world, &backups, Target::Latest, None).expect("a plan");
    assert_eq!(newest.landing.timeline, ONE);
}

#[test]
fn what_cannot_be_reached_is_refused_with_what_can() {
    let world = World::new();
    world.store_all();
    let error = plan_from(&world, &[], Target::Latest, None).expect_err("no backup");
    assert_eq!(error.kind(), Kind::Target);
    let error = plan(&world, time(1), None).expect_err("before the backup's end");
    assert_eq!(error.kind(), Kind::Target);
    assert!(error.advice().is_some_and(|a| a.contains(&world.stop.to_string())), "{:?}", error.advice());
    let xid = |xid| plan(&world, Target::Xid { xid, inclusive: true }, None).expect_err("no such transaction");
    let newest = world.two.commits.last().expect("a commit").xid;
    for (asked, said) in
        [(5, "older than 10"), (newest + 5, &format!("newer than {newest}")), (newest - 9_000, "wrote nothing")]
    {
        let error = xid(asked);
        assert!(
            error.kind() == Kind::Target && error.advice().is_some_and(|a| a.contains(said)),
            "{:?}",
            error.advice()
        );
    }
    let error = plan(&world, Target::Name("x".to_owned()), None).expect_err("no restore point");
    assert!(error.advice().is_some_and(|a| a.contains("no restore point is stored")), "{:?}", error.advice());
    // The end of what is stored, as list --windows tells it.
    let end = world.two.made.end();
    let at = |inclusive| plan(&world, Target::Lsn { lsn: end, inclusive }, None);
    assert_eq!(at(false).expect("all before it").landing.replayed, end);
    let error = at(true).expect_err("nothing starts there");
    let line = format!("--target-lsn {end} --exclusive");
    assert!(error.advice().is_some_and(|a| a.contains(&line)), "{:?}", error.advice());
    let last = world.two.commits.last().expect("a commit");
    let error = plan(&world, time(last.xid), None).expect_err("no later commit");
    assert_eq!(error.kind(), Kind::Target);
    assert!(error.to_string().contains(&format!("transaction {}", last.xid)), "{error}");
    assert!(error.advice().is_some_and(|a| a.contains("--latest")), "{:?}", error.advice());
}

#[test]
fn a_timeline_whose_history_is_gone_is_not_passed_over() {
    let world = World::new();
    world.store_all();
    std::fs::remove_file(world.shelf.file(&world.shelf.archive.names.history(TWO))).expect("a stored history");
    for wanted in [None, Some(TWO)] {
        let error = plan(&world, Target::Latest, wanted).expect_err("where timeline 2 comes from is not known");
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains("timeline 2") && error.advice().is_some(), "{error}");
    }
    let old = plan(&world, Target::Latest, Some(ONE)).expect("a plan for the timeline that was named");
    assert_eq!(last(&old), *world.one.commits.last().expect("a commit"));
}

/// The history of the last timeline tells the whole way: a server asks for no other, but for that of the timeline where it ends.
#[test]
fn a_timeline_between_needs_its_history_only_where_recovery_ends() {
    let world = World::new();
    world.store(ONE, 1..=4);
    world.store(TWO, 4..=7);
    let end = world.two.made.end();
    let three = TimelineId(3);
    run(world.shelf.put_history(three, format!("1\t{}\tx\n2\t{end}\ty\n", world.fork).as_bytes()));
    let before_the_fork = world.one.last_before(Lsn(3 * MB));
    let choice = plan(&world, time(before_the_fork.xid), None).expect("a plan");
    assert_eq!((last(&choice), choice.landing.timeline), (before_the_fork, ONE));
    let error = plan(&world, Target::Latest, None).expect_err("it would end on timeline 2");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("timeline 2"), "{error}");
    world.store_history();
    assert_eq!(plan(&world, Target::Latest, None).expect("a plan").landing.timeline, TWO);
}

#[test]
fn damage_is_named() {
    let world = World::new();
    world.store_all();
    let mut bytes = world.bytes(ONE, 3).to_vec();
    bytes[500_000] ^= 0x10;
    world.forget(ONE, 3);
    run(world.shelf.put_wal(world.segment(ONE, 3), &bytes));
    let error = plan(&world, Target::Latest, None).expect_err("a bad record");
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("000000010000000000000003"), "{error}");
    let before = world.one.last_before(Lsn(3 * MB + 300_000));
    assert_eq!(last(&plan(&world, time(before.xid), None).expect("before the damage, same segment")), before);
    let object = world.shelf.file(&world.shelf.archive.names.segment(world.segment(ONE, 3), None));
    std::fs::write(object, "nothing").expect("a damaged object");
    assert_eq!(plan(&world, Target::Latest, None).expect_err("a bad object").kind(), Kind::Corrupt);
    let before = world.one.last_before(Lsn(2 * MB + 900_000));
    assert_eq!(last(&plan(&world, time(before.xid), None).expect("before the damaged object")), before);
}

#[test]
fn a_backup_after_which_nothing_was_committed_hides_no_earlier_target() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let end = world.one.commits.last().expect("a commit").end;
    let wanted = world.one.last_before(Lsn(3 * MB));
    let choice = plan_from(&world, &[world.manifest(), manifest(end, end)], time(wanted.xid), None).expect("a plan");
    assert_eq!(last(&choice), wanted);
    assert_eq!(choice.passed_over.len(), 1);
}

/// Its manifest proves that WAL was stored which is gone: an older backup, and the end of what is left, are not the latest.
#[test]
fn a_backup_whose_wal_is_gone_is_a_gap_and_not_passed_over() {
    let world = World::new();
    world.store(ONE, 1..=3);
    let cut = manifest(world.one.last_before(Lsn(3 * MB)).start, world.one.last_before(Lsn(5 * MB)).end);
    let backups = [world.manifest(), cut.clone()];
    let error = plan_from(&world, &backups, Target::Latest, Some(ONE)).expect_err("WAL is gone");
    assert_eq!(error.kind(), Kind::Gap, "{error}");
    assert!(error.to_string().contains(cut.id.as_str()), "{error}");
    // Nothing that the missing WAL keeps from being reached is named as a way out.
    for target in [Target::Immediate, Target::Lsn { lsn: cut.stop, inclusive: true }] {
        let error = plan_from(&world, std::slice::from_ref(&cut), target, Some(ONE)).expect_err("WAL is gone");
        assert_eq!(error.kind(), Kind::Gap, "{error}");
        assert!(error.advice().is_some_and(|a| a.contains("bring the missing WAL back")), "{:?}", error.advice());
    }
    // Whoever names the older one, or an earlier target, knows what he does.
    let archive = &world.shelf.archive;
    let inventory = run(archive.inventory()).expect("an inventory");
    let older = Some(world.manifest().id.to_string());
    let wanted = Wanted { target: Target::Latest, timeline: Some(ONE), backup: older };
    let choice = run(choose(archive, &inventory, &backups, &wanted)).expect("a plan");
    assert_eq!(last(&choice), world.one.last_before(Lsn(4 * MB)));
    let early = world.one.last_before(Lsn(2 * MB));
    let choice = plan_from(&world, &backups, time(early.xid), Some(ONE)).expect("a plan");
    assert_eq!((last(&choice), choice.passed_over.len()), (early, 1));
}

/// The newest backup of all may lie on a branch that died: it is named, since it is not what is restored.
#[test]
fn a_newer_backup_of_another_branch_is_named() {
    let world = World::new();
    world.store_all();
    let mut past = manifest(world.one.last_before(Lsn(5 * MB)).start, world.one.last_before(Lsn(5 * MB + 500_000)).end);
    let backups = [world.manifest(), past.clone()];
    let choice = plan_from(&world, &backups, Target::Latest, None).expect("a plan");
    assert_eq!((choice.passed_over.len(), choice.later), (0, Vec::new()));
    past.stopped_at = Timestamp::from_second(past.stopped_at.as_second() + 1).expect("a time");
    let choice = plan_from(&world, &[world.manifest(), past.clone()], Target::Latest, None).expect("a plan");
    let passed: Vec<&str> = choice.passed_over.iter().map(|passed| passed.backup.as_str()).collect();
    assert_eq!((passed, choice.landing.timeline), (vec![past.id.as_str()], TWO));
    let warned: Vec<String> = choice.later.iter().map(ToString::to_string).collect();
    assert!(warned.len() == 1 && warned[0].starts_with("timeline 1 goes on through 2026-01-31 "), "{warned:?}");
    assert!(
        warned[0].contains(past.id.as_str()) && warned[0].ends_with("; --target-timeline 1 for that"),
        "{warned:?}"
    );
    // Whoever names a timeline is told of the others as well.
    let asked = |timeline| plan_from(&world, &[world.manifest(), past.clone()], Target::Latest, Some(timeline));
    assert_eq!(asked(TWO).expect("a plan").later, choice.later);
    let (old, newest) = (asked(ONE).expect("a plan"), world.two.commits.last().expect("a commit").xid);
    let later: Vec<_> = old.later.iter().map(|later| (later.timeline, &later.backup, later.through)).collect();
    assert!(old.landing.timeline == ONE && later.len() == 1, "{later:?}");
    assert!(later[0].0 == TWO && later[0].1.is_none() && later[0].2 < PgTime(i64::from(newest)), "{later:?}");
}

/// The objects that a recovery opens, as they are stored: of a fork's segment both histories' where only one is whole.
#[test]
fn the_bytes_of_wal_to_fetch_are_those_of_its_objects() {
    let world = World::new();
    world.store_all();
    let (archive, names) = (&world.shelf.archive, &world.shelf.archive.names);
    let bytes = |name: String| std::fs::metadata(world.shelf.file(&name)).expect("an object").len();
    let whole = |timeline, number| bytes(names.segment(world.segment(timeline, number), None));
    let fetched = |choice: &Choice| {
        run(archive.stored_along(&choice.path, choice.manifest.start, choice.landing.needed)).expect("a listing")
    };
    let one: u64 = (1..=3).map(|number| whole(ONE, number)).sum();
    let choice = plan(&world, Target::Latest, None).expect("a plan");
    let tail = bytes(names.partial(world.segment(TWO, 7)));
    assert_eq!(fetched(&choice), one + (4..=6).map(|number| whole(TWO, number)).sum::<u64>() + tail);
    assert!(fetched(&choice) < 7 * MB, "compressed");
    let early = plan(&world, time(world.one.last_before(Lsn(3 * MB)).xid), None).expect("a plan");
    assert_eq!(fetched(&early), one);
    world.forget(TWO, 4);
    run(world.shelf.put_wal(world.segment(TWO, 4), &world.bytes(TWO, 4)[..600_000]));
    let choice = plan(&world, time(world.one.last_before(world.fork).xid), None).expect("a plan");
    assert_eq!(fetched(&choice), one + bytes(names.partial(world.segment(TWO, 4))) + whole(ONE, 4));
}
