//! A reconnect, or a start, where a segment has just begun: nothing above the border tells one server from another.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion, TimelineId};

use super::cluster::{Phase, SEGMENT, Slot};
use super::tails::{acknowledged, files, quiet_world_with, write};
use super::world::{Plan, World};

/// Nobody can tell where the slot stands.
fn blind(plan: &mut Plan) {
    (plan.sql, plan.version) = (false, MajorVersion::V13);
}

/// Two records; the segment ends behind them.
fn fill_segment(world: &World, xid: u32, bytes: u32) -> Lsn {
    world.cluster.change(|state| {
        let current = state.current;
        let wal = &mut state.branches[current].wal;
        wal.filler(xid, bytes);
        wal.commit(xid, PgTime(i64::from(xid)));
        wal.switch();
        state.end()
    })
}

fn comes_up(world: &World) {
    world.cluster.change(|state| state.phase = Phase::Up);
}

/// A segment and a half, acknowledged; then the rest of it. Gives the border.
async fn two_segments(world: &World) -> Lsn {
    // Streaming from the first byte on.
    acknowledged(world).await;
    fill_segment(world, 900, 300_000);
    write(world, 500_000);
    acknowledged(world).await;
    let border = fill_segment(world, 901, 100_000);
    acknowledged(world).await;
    assert_eq!(border, Lsn(3 * SEGMENT));
    border
}

/// The server is set back to what it was before it wrote the last records of the segment, writes others, and comes to the same border.
fn set_back(world: &World, before_border: u64, bytes: u32) {
    let border = world.cluster.state().end();
    world.excuses().diverged = true;
    world.cluster.crash(Phase::Down);
    world.cluster.roll_back(Lsn(border.0 - before_border));
    assert_eq!(fill_segment(world, 990, bytes), border);
}

/// The server goes on, and the receiver finds out that it has another history.
async fn found_out(world: &World) {
    for _ in 0..300 {
        write(world, 9_000);
        sleep(Duration::from_millis(200)).await;
        if world.diverged.load(Ordering::SeqCst) {
            return;
        }
    }
    panic!("nobody noticed: {}", world.trace.last());
}

/// What it was told must be its own WAL, which is asked at the end for everything that it was told.
#[test]
fn a_server_that_was_set_back_and_came_to_the_same_border_is_recognised() {
    quiet_world_with(blind, |world: Arc<World>| async move {
        two_segments(&world).await;
        // Both segments end with zeros.
        set_back(&world, 500_000, 100);
        comes_up(&world);
        found_out(&world).await;
    });
}

/// It cannot show the bytes any more. Its next record names the one before it, which is another one than was received.
#[test]
fn a_server_that_was_set_back_and_has_let_go_of_its_last_segment_is_recognised_by_its_next_record() {
    quiet_world_with(blind, |world: Arc<World>| async move {
        let border = two_segments(&world).await;
        set_back(&world, 500_000, 100);
        world.cluster.change(|state| state.removed = border);
        comes_up(&world);
        found_out(&world).await;
        let state = world.cluster.state();
        let told = state.told.iter().filter(|(branch, _, _)| *branch == 1).map(|(_, _, lsn)| *lsn).max();
        assert!(told.is_none_or(|told| told <= border), "told {told:?}: {}", world.trace.last());
    });
}

/// The same server, which has let go of everything below the border as it may: nothing is begun anew for that, and what it writes next is acknowledged.
#[test]
fn a_server_that_has_let_go_of_all_before_the_border_is_recognised_by_its_next_record() {
    quiet_world_with(blind, |world: Arc<World>| async move {
        let border = two_segments(&world).await;
        world.cluster.change(|state| state.removed = border);
        world.cluster.crash(Phase::Down);
        sleep(Duration::from_secs(1)).await;
        let before = world.trace.last();
        comes_up(&world);
        sleep(Duration::from_secs(10)).await;
        write(&world, 20_000);
        acknowledged(&world).await;
        let trace = world.trace.last();
        let since = trace.strip_prefix(before.as_str()).unwrap_or(&trace);
        let asked: Vec<&str> = since.lines().filter(|line| line.contains("START_REPLICATION")).collect();
        assert!(asked.len() == 2 && asked[1].contains(&border.to_string()), "{asked:?}\n{trace}");
    });
}

/// A new run begins at the border, and knows the record before it from what is stored.
#[test]
fn a_run_that_begins_at_a_border_knows_the_record_before_it() {
    quiet_world_with(
        |_| (),
        |world: Arc<World>| async move {
            let border = two_segments(&world).await;
            world.processes()[0].iter().for_each(|process| process.life.kill());
            set_back(&world, 500_000, 100);
            // As another receiver may have left it, or a hand that advanced it.
            world.cluster.change(|state| {
                state.removed = border;
                if let Some(slot) = &mut state.slot {
                    (slot.restart, slot.saved) = (Some(border), Some(border));
                }
            });
            comes_up(&world);
            found_out(&world).await;
        },
    );
}

/// No run is at work, and the server lets go of everything below `removed`; its slot stands at `slot`, whoever moved it there.
fn stops_and_lets_go(world: &World, removed: Lsn, slot: Lsn) {
    world.processes()[0].iter().for_each(|process| process.life.kill());
    world.cluster.crash(Phase::Down);
    world.cluster.change(|state| {
        state.removed = removed;
        let restart = Some(slot);
        state.slot = Some(Slot { restart, saved: restart, ..Slot::default() });
    });
}

/// In place of the server another one that has the same identifier and wrote as much: its records have the same lengths and stand at the same places, and those of
/// the last segment before the border are others.
fn becomes_another(world: &World, border: Lsn) {
    world.excuses().diverged = true;
    let (before, slot, removed) = {
        let state = world.cluster.state();
        let records = state.branch().wal.records();
        (records[records.len() - 4].end, state.slot.clone(), state.removed)
    };
    world.cluster.roll_back(before);
    assert_eq!(fill_segment(world, 990, 100_000), border);
    let mut state = world.cluster.state();
    let wal = |branch: usize| state.branches[branch].wal.slice(Lsn(border.0 - SEGMENT), border).to_vec();
    assert_ne!(wal(0), wal(1));
    (state.slot, state.removed) = (slot, removed);
}

/// Above the border nothing of the other server's was acknowledged, nor is it stored.
fn nothing_of_the_other_s(world: &World, border: Lsn) {
    let told = world.cluster.state().told_end();
    assert!(told < border, "told {told}: {}", world.trace.last());
    let folder = format!("{:08X}{:08X}{:08X}", 1, 0, border.0 / SEGMENT);
    let stored = files(&world.disk, Path::new("/repo"));
    let behind = stored.iter().find(|path| path.to_string_lossy().contains(&folder));
    assert!(behind.is_none(), "{behind:?}: {}", world.trace.last());
}

async fn fails_with(world: &World, text: &str) {
    for _ in 0..600 {
        if world.trace.last().lines().any(|line| line.contains(" fails: ") && line.contains(text)) {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("it does not end: {}", world.trace.last());
}

/// Its first record behind the border is linked to the place at which the last one that is stored begins, too.
#[test]
fn another_server_that_wrote_as_much_is_recognised_by_the_last_stored_segment() {
    quiet_world_with(
        |_| (),
        |world: Arc<World>| async move {
            let border = two_segments(&world).await;
            // The slot was made anew there.
            stops_and_lets_go(&world, Lsn(border.0 - SEGMENT), Lsn(border.0 + 40));
            becomes_another(&world, border);
            comes_up(&world);
            found_out(&world).await;
            // The supervisor has seen it.
            sleep(Duration::from_secs(4)).await;
            let said = world.trace.last();
            let ends = said.lines().rfind(|line| line.contains(" fails: Diverged")).expect("an end");
            assert!(ends.contains("/wal/") && ends.contains("differs from what the server sends"), "{ends}");
            nothing_of_the_other_s(&world, border);
        },
    );
}

/// Nothing shows any more whether it is the same server: the two are not joined.
#[test]
fn a_server_that_has_let_go_of_the_last_stored_segment_is_not_joined_to_it() {
    quiet_world_with(
        |plan| plan.gaps = false,
        |world: Arc<World>| async move {
            let border = two_segments(&world).await;
            world.excuses().slot = true;
            stops_and_lets_go(&world, border, Lsn(border.0 + 40));
            becomes_another(&world, border);
            write(&world, 20_000);
            comes_up(&world);
            fails_with(&world, "nothing shows that its WAL continues what is stored").await;
            nothing_of_the_other_s(&world, border);
        },
    );
}

/// Where that is wanted, a segment is left out between the two, which nothing is restored across.
#[test]
fn what_cannot_be_joined_is_a_hole_where_that_is_wanted() {
    quiet_world_with(
        |plan| plan.gaps = true,
        |world: Arc<World>| async move {
            let border = two_segments(&world).await;
            stops_and_lets_go(&world, border, Lsn(border.0 + 40));
            write(&world, 20_000);
            comes_up(&world);
            sleep(Duration::from_secs(30)).await;
            let trace = world.trace.last();
            assert!(trace.contains("as soon as the server is past that") && !trace.contains("Hole("), "{trace}");
            assert_eq!(
                world.cluster.state().told_end(),
                border,
                "nothing of it is stored, so nothing is told: {trace}"
            );
            fill_segment(&world, 902, 100_000);
            write(&world, 20_000);
            acknowledged(&world).await;
            let trace = world.trace.last();
            let hole = trace.lines().find(|line| line.contains("Hole(")).unwrap_or_else(|| panic!("no hole: {trace}"));
            let expected = format!("from: {border:?}, to_timeline: {:?}, to: {:?}", TimelineId(1), border + SEGMENT);
            assert!(hole.contains(&expected), "{hole}, expected {expected}");
            // The next run begins behind it, and compares what it finds there.
            let asked_before = asked(&world).len();
            world.processes()[0].iter().for_each(|process| process.life.kill());
            write(&world, 20_000);
            acknowledged(&world).await;
            assert_eq!(asked(&world)[asked_before..], [(border + SEGMENT).to_string()], "{}", world.trace.last());
        },
    );
}

/// The slot says so: none that was made stands there. Nothing is lost, nobody is told of a hole, and the server is not asked for what it has let go of.
#[test]
fn a_slot_that_stands_at_the_border_shows_the_server_that_has_let_go_of_the_segment_before() {
    quiet_world_with(
        |_| (),
        |world: Arc<World>| async move {
            let border = two_segments(&world).await;
            let asked_before = asked(&world).len();
            stops_and_lets_go(&world, border, border);
            comes_up(&world);
            write(&world, 20_000);
            acknowledged(&world).await;
            assert!(!world.trace.last().contains("Hole("), "{}", world.trace.last());
            assert_eq!(asked(&world)[asked_before..], [border.to_string()], "{}", world.trace.last());
        },
    );
}

/// Nor where the slot is another one: a tail behind the border is compared.
#[test]
fn a_tail_behind_the_border_shows_the_server_that_has_let_go_of_the_segment_before() {
    quiet_world_with(
        |_| (),
        |world: Arc<World>| async move {
            let border = two_segments(&world).await;
            write(&world, 20_000);
            acknowledged(&world).await;
            write(&world, 20_000);
            let end = world.cluster.state().end();
            stops_and_lets_go(&world, border, end);
            comes_up(&world);
            write(&world, 20_000);
            acknowledged(&world).await;
            assert!(!world.trace.last().contains("Hole("), "{}", world.trace.last());
        },
    );
}

/// A standby that ended in the middle of a record over the border, all of which it had sent was acknowledged when it stopped. Gives the border.
async fn half_a_record(world: &Arc<World>) -> Lsn {
    acknowledged(world).await;
    world.cluster.change(|state| {
        let current = state.current;
        let branch = &mut state.branches[current];
        branch.wal.filler(900, 1_000_000);
        branch.wal.filler(901, 100_000);
        branch.wal.commit(901, PgTime(901));
        branch.upto = Some(Lsn(2 * SEGMENT + 20_000));
    });
    sleep(Duration::from_secs(3)).await;
    let told = world.cluster.state().told_end();
    assert!(told < Lsn(2 * SEGMENT), "half a record is no news: {told}");
    super::chaos::shut_down(world).await;
    let told = world.cluster.state().told_end();
    assert_eq!(told, Lsn(2 * SEGMENT + 20_000));
    world.processes()[0].iter().for_each(|process| process.life.kill());
    sleep(Duration::from_secs(4)).await;
    world.cluster.change(|state| {
        let current = state.current;
        state.branches[current].upto = None;
        // A shutdown saves it.
        if let Some(slot) = &mut state.slot {
            (slot.restart, slot.saved) = (Some(told), Some(told));
        }
    });
    Lsn(2 * SEGMENT)
}

fn asked(world: &World) -> Vec<String> {
    let trace = world.trace.last();
    let asked = trace.lines().filter_map(|line| line.split_once("START_REPLICATION ")?.1.split_once(' '));
    asked.map(|(from, _)| from.to_owned()).collect()
}

/// Else nobody would ever check it: the first run saw its head only, the second one would pass over the rest.
#[test]
fn a_record_that_was_acknowledged_in_part_is_received_again_from_its_head() {
    quiet_world_with(
        |_| (),
        |world: Arc<World>| async move {
            let border = half_a_record(&world).await;
            comes_up(&world);
            acknowledged(&world).await;
            assert_eq!(asked(&world)[1..], [border.to_string(), Lsn(SEGMENT).to_string()], "{}", world.trace.last());
        },
    );
}

#[test]
fn a_record_whose_head_the_server_has_let_go_of_is_taken_as_it_is_and_that_is_said() {
    quiet_world_with(
        |_| (),
        |world: Arc<World>| async move {
            let border = half_a_record(&world).await;
            world.cluster.change(|state| state.removed = border);
            comes_up(&world);
            acknowledged(&world).await;
            let expected = [border, Lsn(SEGMENT), border].map(|lsn| lsn.to_string());
            assert_eq!(asked(&world)[1..], expected, "{}", world.trace.last());
            assert!(world.trace.last().contains("has let go of its head"), "{}", world.trace.last());
        },
    );
}

/// A run begins at the border, which a record crosses, and what it receives of that differs from what is stored: once.
async fn differs_once(world: &Arc<World>) {
    let process = world.processes()[0].clone().expect("it runs");
    process.life.kill();
    let damage = |at| {
        world.cluster.change(|state| {
            let current = state.current;
            state.branches[current].damaged = at;
        });
    };
    damage(Some(Lsn(2 * SEGMENT + 300)));
    let mut looks = 0;
    while !world.trace.last().contains("is received once more") {
        looks += 1;
        assert!(looks < 60_000, "{}", world.trace.last());
        // Before it asks again.
        sleep(Duration::from_micros(100)).await;
    }
    damage(None);
    write(world, 100_000);
    acknowledged(world).await;
    assert!(!world.trace.last().contains(" fails: "), "{}", world.trace.last());
}

/// The end of a record that began before the start has no check of its own but the comparison with what is stored: what differs there may have been damaged on
/// its way, and is received once more before it counts as another history.
#[test]
fn bytes_that_differ_once_are_received_again() {
    quiet_world_with(
        |plan| plan.flush_interval = Duration::from_millis(100),
        |world: Arc<World>| async move {
            // A record over the border, and some of the segment behind it.
            write(&world, 900_000);
            write(&world, 300_000);
            acknowledged(&world).await;
            differs_once(&world).await;
        },
    );
}

/// The same where the whole segment is stored: it is compared at its end.
#[test]
fn a_segment_that_differs_once_is_received_again() {
    quiet_world_with(
        |plan| plan.flush_interval = Duration::from_millis(100),
        |world: Arc<World>| async move {
            write(&world, 900_000);
            write(&world, 300_000);
            fill_segment(&world, 901, 100_000);
            acknowledged(&world).await;
            // As a crash of the server leaves it.
            world.cluster.change(|state| {
                if let Some(slot) = &mut state.slot {
                    let saved = Some(Lsn(2 * SEGMENT + 500_000));
                    (slot.restart, slot.saved) = (saved, saved);
                }
            });
            differs_once(&world).await;
        },
    );
}

/// A stored part of a large segment is as final as a segment: what differs from it must not be acknowledged beside it, in a tail that no reader could join with it.
#[test]
fn a_part_that_is_stored_is_compared_before_anything_of_it_counts() {
    const PART: u64 = 16 << 20;
    let in_parts = |plan: &mut Plan| {
        plan.flush_interval = Duration::from_millis(100);
        (plan.segment, plan.before) = (2 * PART, PART - 300_000);
    };
    quiet_world_with(in_parts, |world: Arc<World>| async move {
        let border = Lsn(3 * PART);
        write(&world, 100_000);
        let snapshot = world.cluster.state().end();
        write(&world, 300_000);
        assert!(snapshot < border && border < world.cluster.state().end());
        acknowledged(&world).await;
        world.processes()[0].iter().for_each(|process| process.life.kill());
        world.excuses().diverged = true;
        world.cluster.crash(Phase::Down);
        world.cluster.roll_back(snapshot + 1);
        comes_up(&world);
        // Still inside the part, and checked: but nobody knows yet whether it is what is stored.
        write(&world, 20_000);
        sleep(Duration::from_secs(20)).await;
        let told = world.cluster.state().told_end();
        assert!(told <= Lsn(2 * PART), "told {told}, inside a part that is stored: {}", world.trace.last());
        found_out(&world).await;
    });
}
