//! Slots that a receiver makes itself, because a server has none any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use walrecv::pg::{Lsn, MajorVersion};

use super::cluster::{Phase, SEGMENT};
use super::disk::DiskFaults;
use super::tails::{acknowledged, quiet_world_with, write};
use super::walsender::NetFaults;
use super::world::{Plan, World};

fn flushes_soon(plan: &mut Plan) {
    plan.flush_interval = Duration::from_millis(100);
}

/// Where streams were begun.
fn asked(world: &World) -> Vec<Lsn> {
    let trace = world.trace.last();
    let asked =
        trace.lines().filter_map(|line| line.split_once("START_REPLICATION ")?.1.split(' ').next()?.parse().ok());
    asked.collect()
}

/// The disk is full, so more was received than is durable; then the slot is dropped, and the WAL in between removed. The slot that the receiver makes stands
/// above what is durable, and nobody else had it: what is in memory goes on, at the exact byte, and there is no hole.
#[test]
fn a_slot_that_the_run_made_itself_ends_nothing_that_is_in_memory() {
    let with_gaps = |plan: &mut Plan| {
        flushes_soon(plan);
        plan.gaps = true;
    };
    quiet_world_with(with_gaps, |world: Arc<World>| async move {
        write(&world, 300_000);
        acknowledged(&world).await;
        let durable = world.cluster.state().end();
        world.disk.set_faults(DiskFaults { full: true, ..DiskFaults::default() });
        for _ in 0..3 {
            write(&world, 600_000);
            sleep(Duration::from_secs(1)).await;
        }
        let received = world.cluster.state().end();
        world.cluster.forget(true, 100_000);
        let removed = world.cluster.state().removed;
        assert!(durable < removed && removed < received, "{durable} {removed} {received}");
        sleep(Duration::from_secs(5)).await;
        let last = asked(&world).last().copied();
        assert!(last.is_some_and(|last| last > removed), "{last:?}, not from {received}: {}", world.trace.last());
        world.disk.set_faults(DiskFaults::default());
        write(&world, 20_000);
        acknowledged(&world).await;
        let trace = world.trace.last();
        assert!(trace.contains("SlotCreated") && !trace.contains("Hole"), "{trace}");
    });
}

/// Where the new primary lacks WAL that the archive needs, and holes are not wanted, the run ends: its slot would fill the server's disk from then on.
#[test]
fn a_slot_that_was_made_in_vain_is_dropped_again() {
    quiet_world_with(flushes_soon, |world: Arc<World>| async move {
        write(&world, 300_000);
        acknowledged(&world).await;
        world.processes()[0].iter().for_each(|process| process.life.kill());
        (0..3).for_each(|_| write(&world, 900_000));
        world.excuses().slot = true;
        world.cluster.crash(Phase::Down);
        let end = world.cluster.state().end();
        world.cluster.promote(end, false);
        world.cluster.change(|state| {
            state.removed = end.align_down(SEGMENT);
            state.phase = Phase::Up;
        });
        let mut looks = 0;
        while !world.trace.last().contains(" fails: Slot") {
            looks += 1;
            assert!(looks < 600, "{}", world.trace.last());
            sleep(Duration::from_millis(50)).await;
        }
        let trace = world.trace.last();
        assert!(trace.contains("SlotCreated"), "{trace}");
        assert!(trace.contains("DROP_REPLICATION_SLOT") && world.cluster.state().slot.is_none(), "{trace}");
    });
}

/// Nothing can be stored, and the server has let go of what comes next, and of what is in memory: that is stored before anybody looks where the hole begins.
#[test]
fn what_is_in_memory_at_a_gap_is_stored_before_the_hole_is_measured() {
    let with_gaps = |plan: &mut Plan| {
        flushes_soon(plan);
        plan.gaps = true;
    };
    quiet_world_with(with_gaps, |world: Arc<World>| async move {
        write(&world, 300_000);
        acknowledged(&world).await;
        world.disk.set_faults(DiskFaults { full: true, ..DiskFaults::default() });
        for _ in 0..2 {
            write(&world, 600_000);
            sleep(Duration::from_secs(1)).await;
        }
        let received = world.cluster.state().end();
        world.cluster.crash(Phase::Down);
        (0..3).for_each(|_| write(&world, 900_000));
        world.cluster.change(|state| {
            state.removed = state.end().align_down(SEGMENT);
            state.phase = Phase::Up;
        });
        sleep(Duration::from_secs(5)).await;
        assert!(!world.trace.last().contains("Hole"), "nothing can be stored: {}", world.trace.last());
        world.disk.set_faults(DiskFaults::default());
        acknowledged(&world).await;
        let trace = world.trace.last();
        let hole = trace.lines().find(|line| line.contains("Hole(")).unwrap_or_else(|| panic!("no hole: {trace}"));
        assert!(hole.contains(&format!("from: {received:?}")), "not from {received}: {hole}\n{trace}");
    });
}

/// A slot that is lost is dropped and made anew. A stop in between waits for that: from then on nobody would hold WAL back.
#[test]
fn a_stop_leaves_no_server_without_a_slot() {
    let with_gaps = |plan: &mut Plan| {
        flushes_soon(plan);
        plan.gaps = true;
    };
    quiet_world_with(with_gaps, |world: Arc<World>| async move {
        write(&world, 300_000);
        acknowledged(&world).await;
        world.network.set_faults(NetFaults { delay: 40, ..NetFaults::default() });
        world.cluster.forget(false, 100_000);
        let mut looks = 0;
        while !world.trace.last().contains("server: DROP_REPLICATION_SLOT") {
            looks += 1;
            assert!(looks < 600_000, "{}", world.trace.last());
            sleep(Duration::from_micros(100)).await;
        }
        assert!(world.cluster.state().slot.is_none());
        let process = world.processes()[0].clone().expect("it runs");
        process.stop.send_replace(true);
        while world.processes()[0].as_ref().is_some_and(|other| other.life.id() == process.life.id()) {
            sleep(Duration::from_micros(100)).await;
        }
        assert!(world.cluster.state().slot.is_some(), "{}", world.trace.last());
        acknowledged(&world).await;
    });
}

/// The run ends by an error that has nothing to do with the slot, between dropping that and making it anew.
#[test]
fn an_error_leaves_no_server_without_a_slot() {
    let gives_up = |plan: &mut Plan| {
        flushes_soon(plan);
        (plan.gaps, plan.gives_up) = (true, true);
    };
    quiet_world_with(gives_up, |world: Arc<World>| async move {
        write(&world, 300_000);
        acknowledged(&world).await;
        world.disk.set_faults(DiskFaults { full: true, ..DiskFaults::default() });
        write(&world, 600_000);
        let seen = async |what: &str| {
            let mut looks = 0;
            while !world.trace.last().contains(what) {
                looks += 1;
                assert!(looks < 200_000, "{}", world.trace.last());
                sleep(Duration::from_millis(1)).await;
            }
        };
        seen("Stalled").await;
        // Each answer of the server takes a while.
        world.network.set_faults(NetFaults { pause: 1, ..NetFaults::default() });
        seen("server: DROP_REPLICATION_SLOT").await;
        world.excuses().failed = true;
        world.disk.set_faults(DiskFaults { dir_sync_error: 1, ..DiskFaults::default() });
        seen(" fails: Failed").await;
        assert!(world.cluster.state().slot.is_some(), "{}", world.trace.last());
        world.network.set_faults(NetFaults::default());
        world.disk.set_faults(DiskFaults::default());
        acknowledged(&world).await;
    });
}

/// 16 and 17 let anybody stream on a slot that is lost, and hold nothing back for it: the first word would make it look as if they did.
#[test]
fn a_slot_that_is_lost_as_the_stream_begins_is_told_nothing() {
    for (version, sql) in [(MajorVersion::V16, true), (MajorVersion::V16, false), (MajorVersion::V17, true)] {
        let of_version = move |plan: &mut Plan| {
            flushes_soon(plan);
            (plan.version, plan.sql, plan.gaps) = (version, sql, true);
        };
        quiet_world_with(of_version, |world: Arc<World>| async move {
            write(&world, 300_000);
            acknowledged(&world).await;
            world.cluster.crash(Phase::Down);
            let told = world.cluster.state().told_end();
            world.cluster.change(|state| (state.lost_at_start, state.phase) = (true, Phase::Up));
            write(&world, 1000);
            acknowledged(&world).await;
            let trace = world.trace.last();
            assert!(world.cluster.state().slot.as_ref().is_some_and(|slot| !slot.lost), "streamed on: {trace}");
            // All WAL is there, so it was only made anew.
            assert!(
                trace.contains("it is lost") && trace.contains("SlotCreated") && !trace.contains("Hole"),
                "{trace}"
            );
            assert!(world.cluster.state().told_end() > told, "{trace}");
        });
    }
}

/// A receiver dies while it records a hole, at one step after another. The next one goes on behind the hole because it finds that it is recorded: then it must stay
/// recorded when the power fails.
#[test]
fn a_hole_that_is_only_found_is_made_durable_before_anything_behind_it_counts() {
    for steps in 0..24 {
        let change = |plan: &mut Plan| {
            flushes_soon(plan);
            (plan.gaps, plan.gives_up) = (true, false);
        };
        quiet_world_with(change, |world: Arc<World>| async move {
            world.excuses().slot = true;
            write(&world, 300_000);
            acknowledged(&world).await;
            sleep(Duration::from_secs(5)).await;
            world.processes()[0].iter().for_each(|process| process.life.kill());
            world.cluster.crash(Phase::Down);
            (0..3).for_each(|_| write(&world, 1_000_000));
            world.cluster.forget(true, 100_000);
            world.cluster.change(|state| state.phase = Phase::Up);
            while world.processes()[0].as_ref().is_none_or(|process| !process.life.is_alive()) {
                sleep(Duration::from_millis(1)).await;
            }
            world.processes()[0].iter().for_each(|process| process.life.dies_after(steps));
            acknowledged(&world).await;
            world.demand_all();
        });
    }
}
