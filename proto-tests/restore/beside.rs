//! A restore to a time lands on one timeline: what others have up to that time is counted and named, and nothing of it refuses the restore.

use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, TimelineId};
use walrecv::restore::choose::Choice;
use walrecv::restore::plan::Stop;
use walrecv::restore::target::Target;
use walrecv::seal::content::manifest::Manifest;

use crate::plan::{last, plan, plan_from, time};
use crate::support::TempDir;
use crate::support::shelf::Shelf;
use crate::support::wal_maker::{SYSTEM, WalMaker};
use crate::world::{MB, ONE, TWO, Wal, World, manifest, run};

/// As [`World::new`], with commits from these times on behind the fork. Everything is stored.
fn world(one_from: impl Fn(u32) -> u32, two_from: impl Fn(u32) -> u32) -> World {
    let places = TempDir::new("beside");
    let size = SegmentSize::new(MB).expect("a size");
    let shelf = run(Shelf::new(&places.join("repository"), SYSTEM, size));
    let mut one = Wal { made: WalMaker::new(MajorVersion::V15, size, ONE, Lsn(MB)), commits: Vec::new() };
    let redo = one.made.checkpoint(false).start;
    one.grow(MB + 100_000, 1000);
    let stop = one.made.backup_end(redo).end;
    let next = one.commits.last().expect("a commit").xid + 1;
    one.grow(4 * MB + 500_000, next);
    let mut two = Wal { made: one.made.fork(TWO), commits: one.commits.clone() };
    let fork = two.made.end();
    let next = one.commits.last().expect("a commit").xid + 1;
    two.made.end_of_recovery(PgTime(i64::from(next)));
    one.grow(7 * MB + 300_000, one_from(next));
    two.grow(8 * MB + 300_000, two_from(next));
    let world = World { places, shelf, one, two, fork, redo, stop };
    world.store(ONE, 1..=7);
    world.store(TWO, 4..=8);
    world.store_history();
    world
}

/// Of each timeline beside the way how many commits it has up to the target, and the newest.
fn told(choice: &Choice) -> Vec<(TimelineId, u64, Option<u32>)> {
    choice.beside.iter().map(|one| (one.timeline, one.commits, one.newest.map(|newest| newest.xid))).collect()
}

/// How many commits of a branch, behind the fork, there are up to a time.
fn up_to(world: &World, wal: &Wal, time: u32) -> u64 {
    wal.commits.iter().filter(|commit| commit.start >= world.fork && commit.xid <= time).count() as u64
}

/// Both branches go on from the same time: whichever is taken, the other one has as much.
#[test]
fn what_the_other_branch_has_up_to_the_target_is_counted() {
    let world = world(|next| next, |next| next);
    let first = world.one.commits.iter().find(|commit| commit.start >= world.fork).expect("a commit").xid;
    let end = world.one.commits.last().expect("a commit").xid;
    // In the segment of the fork, at its end, in the middle of the next one, in the last, and past all of the old branch.
    let borders = [5, 6].map(|number| world.one.last_before(Lsn(number * MB)).xid);
    for wanted in [first, first + 3, borders[0], borders[0] + 1, borders[0] + 20, borders[1] + 1, end - 1, end, end + 5]
    {
        let choice = plan(&world, time(wanted), None).expect("a plan");
        assert_eq!((last(&choice).xid, choice.landing.timeline), (wanted, TWO));
        assert_eq!(told(&choice), [(ONE, up_to(&world, &world.one, wanted), Some(wanted.min(end)))], "{wanted}");
        let beside = &choice.beside[0];
        assert_eq!((beside.from, beside.is_short), (world.fork, false));
        // Where the advice leads.
        let newest = beside.newest.expect("a commit");
        let options = format!("--target-timeline 1 --target-lsn {}", newest.start);
        assert_eq!(beside.options.as_ref(), Some(&options));
        let text = beside.to_string();
        assert!(text.contains(&format!("transaction {} at ", newest.xid)) && text.contains(&options), "{text}");
        let there = Target::Lsn { lsn: newest.start, inclusive: true };
        assert_eq!(last(&plan(&world, there, Some(ONE)).expect("as the advice says")).xid, newest.xid);
        if wanted < end {
            let named = plan(&world, time(wanted), Some(ONE)).expect("a plan for the timeline that was named");
            assert_eq!((last(&named).xid, named.landing.timeline), (wanted, ONE));
            assert_eq!(told(&named), [(TWO, up_to(&world, &world.two, wanted), Some(wanted))], "{wanted}");
        }
    }
    let exclusive = Target::Time { time: PgTime(i64::from(first + 3)), inclusive: false };
    assert_eq!(told(&plan(&world, exclusive, None).expect("a plan")), [(ONE, 3, Some(first + 2))]);
    // All before the fork is on both, and other targets than times have none.
    for wanted in [world.one.last_before(Lsn(3 * MB)).xid, first - 2] {
        assert_eq!(told(&plan(&world, time(wanted), None).expect("a plan")), []);
        assert_eq!(told(&plan(&world, time(wanted), Some(ONE)).expect("a plan")), []);
    }
    assert_eq!(told(&plan(&world, Target::Latest, None).expect("a plan")), []);
    // Right at the fork nothing of either is left out.
    assert_eq!(told(&plan(&world, time(first - 1), None).expect("a plan")), []);
}

#[test]
fn a_commit_that_only_another_branch_has_up_to_the_target_is_named() {
    let world = world(|next| next, |next| next + 10_000);
    let first = world.one.commits.iter().find(|commit| commit.start >= world.fork).expect("a commit").xid;
    // The server stops at the first commit behind the fork, and lands on the last one before it.
    let choice = plan(&world, time(first), None).expect("a plan");
    assert_eq!((last(&choice).xid, told(&choice)), (first - 1, vec![(ONE, 1, Some(first))]));
    assert!(choice.beside[0].to_string().starts_with("1 commit of timeline 1 up to the target, "));
}

#[test]
fn what_of_another_branch_is_missing_or_damaged_refuses_nothing_and_is_told() {
    let end = |world: &World| world.one.commits.last().expect("a commit").xid;
    for damaged in [false, true] {
        let world = world(|next| next, |next| next);
        let name = world.shelf.archive.names.segment(world.segment(ONE, 5), None);
        match damaged {
            true => std::fs::write(world.shelf.file(&name), "nothing").expect("a damaged object"),
            false => world.forget(ONE, 5),
        }
        let choice = plan(&world, time(end(&world) + 1), None).expect("a plan");
        let lost = world.one.commits.iter().filter(|commit| commit.end > Lsn(5 * MB) && commit.start < Lsn(6 * MB));
        let beside = &choice.beside[0];
        assert_eq!(beside.commits, up_to(&world, &world.one, end(&world)) - lost.count() as u64);
        assert!(beside.is_short && beside.to_string().starts_with("at least "), "{beside}");
        assert_eq!(beside.newest.map(|newest| newest.xid), Some(end(&world)));
        // Nobody promises that what is missing is not on the way there.
        let (text, options) = (beside.to_string(), beside.options.as_ref().expect("a backup"));
        assert!(
            !text.contains("leads there")
                && text.ends_with(&format!("whether {options} can lead there its --plan tells")),
            "{text}"
        );
    }
    let world = world(|next| next, |next| next);
    (4..=7).for_each(|number| {
        let segment = world.segment(ONE, number);
        let name = if number == 7 {
            world.shelf.archive.names.partial(segment)
        } else {
            world.shelf.archive.names.segment(segment, None)
        };
        std::fs::write(world.shelf.file(&name), "nothing").expect("a damaged object");
    });
    let choice = plan(&world, time(end(&world)), None).expect("a plan");
    assert!(choice.beside[0].to_string().contains("cannot be told"), "{}", choice.beside[0]);
}

#[test]
fn where_no_backup_leads_to_the_other_branch_that_is_told() {
    let world = world(|next| next, |next| next);
    let (begin, end) = (world.two.last_before(Lsn(5 * MB)).start, world.two.last_before(Lsn(5 * MB + 500_000)).end);
    let own = Manifest { timeline: TWO, stop_timeline: TWO, ..manifest(begin, end) };
    let wanted = world.two.last_before(Lsn(7 * MB)).xid;
    let choice = plan_from(&world, &[own], time(wanted), None).expect("a plan");
    assert_eq!(told(&choice), [(ONE, up_to(&world, &world.one, wanted), Some(wanted))]);
    assert!(choice.beside[0].to_string().ends_with("; no backup leads there"), "{}", choice.beside[0]);
}

/// What lies behind the stop on a branch that died is none of what the stop leaves out. Damage keeps what is looked through from getting there, and what summaries
/// tell of the segment of the fork is of both branches.
#[test]
fn commits_of_a_dead_branch_are_not_left_out_behind_the_stop() {
    // A clock that was set back, on the old branch alone, or on the new one alone.
    for (old, new) in [(true, false), (false, true)] {
        let set_back = |is: bool| move |next: u32| if is { 100 } else { next };
        let world = world(set_back(old), set_back(new));
        let mut bytes = world.bytes(ONE, 3).to_vec();
        bytes[500_000] ^= 0x10;
        world.forget(ONE, 3);
        run(world.shelf.put_wal(world.segment(ONE, 3), &bytes));
        let wanted = world.one.last_before(Lsn(2 * MB + 500_000));
        let choice = plan(&world, time(wanted.xid), None).expect("a plan");
        assert_eq!(last(&choice), wanted);
        assert!(matches!(choice.landing.stop, Stop::Before { .. }) && choice.landing.looked < Lsn(4 * MB));
        let first = world.two.commits.iter().find(|commit| commit.start >= world.fork).expect("a commit");
        assert_eq!(choice.more_left_out, new.then_some(first.start), "{old} {new}");
        assert_eq!(told(&choice), []);
    }
}

/// Times that go to and fro leave every segment to be read: some are, and that there may be more is told.
#[test]
fn what_is_too_much_to_be_read_is_told() {
    let mut world = world(|next| next, |next| next);
    for number in 8..28 {
        world.one.grow(number * MB + 500_000, 100);
        world.one.grow((number + 1) * MB, 5000);
    }
    (7..=27).for_each(|number| world.store(ONE, number..=number));
    let wanted = world.two.last_before(Lsn(6 * MB)).xid;
    let choice = plan(&world, time(wanted), None).expect("a plan");
    let beside = &choice.beside[0];
    let all = up_to(&world, &world.one, wanted);
    assert!(beside.is_short && beside.commits > all / 2 && beside.commits < all, "{beside} of {all}");
    assert!(beside.to_string().starts_with("at least "), "{beside}");
}

#[test]
fn a_timeline_of_which_nobody_knows_where_it_comes_from_is_named() {
    let world = world(|next| next, |next| next);
    std::fs::remove_file(world.shelf.file(&world.shelf.archive.names.history(TWO))).expect("a stored history");
    let wanted = world.one.last_before(Lsn(6 * MB)).xid;
    let choice = plan(&world, time(wanted), Some(ONE)).expect("a plan");
    assert_eq!((last(&choice).xid, told(&choice), choice.unknown.len()), (wanted, vec![], 1));
    assert!(choice.unknown[0].starts_with("whether timeline 2 has commits up to the target"), "{:?}", choice.unknown);
}
