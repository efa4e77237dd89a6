//! A server's clock that was set back passes the same time twice: the plan never goes back to the first time unasked, and tells what a backup holds that is
//! later than the target.

use walrecv::error::Kind;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, SegmentSize};
use walrecv::restore::choose::{Choice, Wanted, choose};
use walrecv::restore::target::Target;
use walrecv::seal::content::manifest::Manifest;

use crate::plan::{last, plan_from, time};
use crate::support::TempDir;
use crate::support::shelf::Shelf;
use crate::support::wal_maker::{SYSTEM, WalMaker};
use crate::world::{MB, ONE, TWO, Wal, World, manifest, run};

/// Commits from time `before` on, about 50 a MB, to behind the middle of segment 3; from there on from time `after` on. All of it is stored.
fn world(before: u32, after: u32) -> (World, Lsn) {
    let places = TempDir::new("set-back");
    let size = SegmentSize::new(MB).expect("a size");
    let shelf = run(Shelf::new(&places.join("repository"), SYSTEM, size));
    let made = WalMaker::new(walrecv::pg::MajorVersion::V15, size, ONE, Lsn(MB));
    let mut one = Wal { made, commits: Vec::new() };
    let redo = one.made.checkpoint(false).start;
    one.grow(MB + 100_000, before);
    let stop = one.made.backup_end(redo).end;
    let next = one.commits.last().expect("a commit").xid + 1;
    one.grow(3 * MB + 500_000, next);
    let set_back = one.made.end();
    one.grow(5 * MB + 300_000, after);
    let two = one.clone();
    let world = World { places, shelf, one, two, fork: set_back, redo, stop };
    world.store(ONE, 1..=5);
    (world, set_back)
}

/// From some commits behind `lsn` to some further on.
fn taken(world: &World, lsn: Lsn) -> Manifest {
    manifest(world.one.last_before(lsn + 100_000).start, world.one.last_before(lsn + 200_000).end)
}

/// The plan for a time from this backup.
fn asked_for(world: &World, backups: &[Manifest], from: &Manifest, wanted: u32) -> Choice {
    let inventory = run(world.shelf.archive.inventory()).expect("an inventory");
    let wanted = Wanted { target: time(wanted), timeline: None, backup: Some(from.id.to_string()) };
    run(choose(&world.shelf.archive, &inventory, backups, &wanted)).expect("a plan")
}

fn told(choice: &Choice) -> Option<(i64, Option<String>)> {
    choice.held.as_ref().map(|held| (held.latest.0, held.instead.clone()))
}

/// Whoever asks for the end of what there is, a moment too late, never gets where the same time was passed before.
#[test]
fn a_time_that_only_an_older_backup_leads_to_is_reached_from_that_alone() {
    let (world, set_back) = world(1000, 500);
    let (oldest, newest) = (world.manifest(), taken(&world, set_back));
    let between = manifest(world.one.last_before(Lsn(2 * MB)).start, world.one.last_before(Lsn(2 * MB + 60_000)).end);
    let backups = [oldest.clone(), between.clone(), newest.clone()];
    let latest = world.one.last_before(set_back).xid;
    for (wanted, from) in [(1020, &oldest), (latest - 3, &between)] {
        let refused = plan_from(&world, &backups, time(wanted), None).expect_err("behind the newest backup's commits");
        assert_eq!(refused.kind(), Kind::Target, "{refused}");
        assert!(refused.advice().is_some_and(|advice| advice.contains("--latest")), "{refused:?}");
        let choice = asked_for(&world, &backups, from, wanted);
        assert_eq!((last(&choice).xid, &choice.manifest.id), (wanted, &from.id));
        assert_eq!(told(&choice), None, "that backup holds nothing later");
        // What came after by a clock that was set back is left out, and said to be.
        assert!(choice.landing.missed_count > 50, "{}", choice.landing.missed_count);
    }
    // Nothing was ever committed later than that.
    let error = plan_from(&world, &backups, time(latest), None).expect_err("no later commit");
    assert_eq!(error.kind(), Kind::Target, "{error}");
    let last = world.one.commits.last().expect("a commit").xid;
    assert!(error.to_string().contains(&format!("the last commit is transaction {last} ")), "{error}");
}

#[test]
fn what_a_backup_holds_that_is_later_than_the_target_is_told() {
    let (world, set_back) = world(500, 560);
    let (old, new) = (world.manifest(), taken(&world, set_back));
    let latest = world.one.last_before(set_back).xid;
    assert!(latest > 610);
    let backups = [old.clone(), new.clone()];
    let choice = plan_from(&world, &backups, time(600), None).expect("a plan");
    assert_eq!((last(&choice).xid, &choice.manifest.id), (600, &new.id));
    assert_eq!(told(&choice), Some((i64::from(latest), Some(old.id.to_string()))));
    let text = choice.held.expect("a warning").to_string();
    assert!(text.contains(new.id.as_str()) && text.contains(&format!("--backup {}", old.id)), "{text}");
    // From the other one the server stops as the warning says.
    let choice = asked_for(&world, &backups, &old, 600);
    assert_eq!((last(&choice).xid, told(&choice)), (600, None));
    assert!(choice.landing.replayed < set_back);
    // Later than all that was committed before: nothing is held back.
    let choice = plan_from(&world, &backups, time(latest), None).expect("a plan");
    assert_eq!((&choice.manifest.id, told(&choice)), (&new.id, None));
    // Within one segment, which also holds what came after: what lies before the backup counts.
    let before = world.one.last_before(set_back);
    let early = manifest(before.start, world.one.last_before(set_back + 100_000).end);
    let choice = plan_from(&world, &[old, early.clone()], time(latest - 1), None);
    assert!(choice.is_ok_and(|choice| choice.manifest.id != early.id), "it holds nothing earlier than its first");
    assert_eq!(plan_from(&world, &backups, Target::Latest, None).expect("a plan").held, None);
}

/// The summary of the segment in which a timeline was left speaks of the branch that died, too.
#[test]
fn what_was_committed_on_a_dead_branch_is_not_held() {
    let places = TempDir::new("dead-branch");
    let size = SegmentSize::new(MB).expect("a size");
    let shelf = run(Shelf::new(&places.join("repository"), SYSTEM, size));
    let made = WalMaker::new(walrecv::pg::MajorVersion::V15, size, ONE, Lsn(MB));
    let mut one = Wal { made, commits: Vec::new() };
    let redo = one.made.checkpoint(false).start;
    one.grow(MB + 100_000, 500);
    let stop = one.made.backup_end(redo).end;
    let next = one.commits.last().expect("a commit").xid + 1;
    one.grow(3 * MB + 500_000, next);
    let mut two = Wal { made: one.made.fork(TWO), commits: one.commits.clone() };
    let fork = two.made.end();
    let next = one.commits.last().expect("a commit").xid + 1;
    two.made.end_of_recovery(PgTime(i64::from(next)));
    two.grow(7 * MB, next);
    one.grow(5 * MB, 5000);
    let world = World { places, shelf, one, two, fork, redo, stop };
    world.store(ONE, 1..=4);
    world.store(TWO, 3..=6);
    world.store_history();
    let (begin, end) = (world.two.last_before(Lsn(4 * MB + 500_000)).start, world.two.last_before(Lsn(5 * MB)).end);
    let newest = Manifest { timeline: TWO, stop_timeline: TWO, ..manifest(begin, end) };
    let wanted = world.two.last_before(Lsn(6 * MB));
    let choice = plan_from(&world, &[world.manifest(), newest.clone()], time(wanted.xid), Some(TWO)).expect("a plan");
    assert_eq!((last(&choice), &choice.manifest.id, told(&choice)), (wanted, &newest.id, None));
}
