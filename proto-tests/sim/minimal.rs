//! WAL that was written under `wal_level = minimal`: the alarm is in the repository before the server is told of anything behind it, and it is there once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use walrecv::archive::Archive;
use walrecv::pg::xact::Parameters;
use walrecv::pg::{Lsn, SegmentSize, TimelineId};
use walrecv::repo::ClusterNames;
use walrecv::seal::content::event::MinimalWal;

use super::cluster::{Phase, SEGMENT};
use super::life::Life;
use super::store::StoreFaults;
use super::tails::{acknowledged, quiet_world_with, write};
use super::world::{Plan, World};
use crate::support::wal_maker::SYSTEM;

/// The server is started with this level; where its record begins and ends.
pub fn level(world: &World, wal_level: i32) -> (Lsn, Lsn) {
    let parameters = Parameters {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        wal_level,
    };
    world.cluster.change(|state| {
        let current = state.current;
        let made = state.branches[current].wal.parameter_change(parameters);
        (made.start, made.end)
    })
}

fn archive(world: &World) -> Archive {
    let place = world.place(&Life::new(99));
    let segment_size = SegmentSize::new(SEGMENT).expect("a size");
    let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size };
    Archive { repo: place.repo, names, keys: place.reader }
}

async fn noted(world: &World) -> Vec<MinimalWal> {
    archive(world).minimal_wal().await.expect("the alarms")
}

/// The receiver dies at the moment at which the server first hears of what is behind the record, whose segment is never received again then.
fn dies_behind_it(change: impl Fn(&mut Plan)) {
    quiet_world_with(change, |world: Arc<World>| async move {
        world.store.set_faults(StoreFaults { delay: 400, ..StoreFaults::default() });
        let mut expected = Vec::new();
        for round in 0..4 {
            write(&world, 100_000 + 200_000 * round);
            level(&world, 1);
            let (start, end) = level(&world, 0);
            expected.push(MinimalWal { timeline: TimelineId(1), lsn: start });
            level(&world, 1);
            (0..3).for_each(|_| write(&world, 600_000));
            let mut looks = 0;
            while world.cluster.state().told_end() < end {
                looks += 1;
                assert!(looks < 60_000, "{}", world.trace.last());
                sleep(Duration::from_millis(1)).await;
            }
            // The repository of this moment has to have it.
            world.demand_all();
            world.processes().iter().flatten().for_each(|process| process.life.kill());
            acknowledged(&world).await;
            assert_eq!(noted(&world).await, expected, "{}", world.trace.last());
        }
        let told = world.trace.last();
        let count = told.matches("MinimalWal(").count();
        assert!((1..=4).contains(&count), "{count} were told, of those that were noted: {told}");
    });
}

#[test]
fn the_alarm_is_stored_before_anything_behind_it_is_acknowledged() {
    let soon = |plan: &mut Plan| plan.flush_interval = Duration::from_millis(100);
    dies_behind_it(|plan| {
        soon(plan);
        plan.local = false;
    });
    dies_behind_it(soon);
}

/// The receiver dies at one step after another. A run that begins behind what is stored, since its server has let go of it, sees nothing of the record, and one
/// that finds the alarm goes on because of it: so it has to be there before the record is, and to stay.
fn dies_at_any_step(local: bool) {
    let change = |plan: &mut Plan| {
        (plan.local, plan.flush_interval) = (local, Duration::from_millis(100));
    };
    quiet_world_with(change, |world: Arc<World>| async move {
        let mut before = 0;
        for round in 0..if local { 30 } else { 20 } {
            write(&world, 20_000);
            acknowledged(&world).await;
            world.cluster.checkpoint();
            // What it tidies up takes steps too.
            sleep(Duration::from_secs(5)).await;
            let (lsn, end) = level(&world, 0);
            level(&world, 1);
            write(&world, if round % 8 == 7 { 1_100_000 } else { 20_000 });
            let life = world.processes()[0].as_ref().expect("it runs").life.clone();
            // Each alarm that is there already is read first.
            life.dies_after(if local { round } else { round + round % 10 });
            // The next one finds no server.
            let _ = tokio::time::timeout(Duration::from_secs(3), life.death()).await;
            life.kill();
            world.cluster.crash(Phase::Down);
            sleep(Duration::from_secs(1)).await;
            let stored = archive(&world).contiguous_from(TimelineId(1), lsn).await.expect("what is stored");
            let known = noted(&world).await.iter().any(|alarm| alarm.lsn == lsn);
            let stored = stored.is_some_and(|upto| upto >= end);
            assert!(known || !stored, "round {round}: {lsn} is stored: {}", world.trace.last());
            before += u32::from(known && !stored);
            world.cluster.change(|state| state.phase = Phase::Up);
            acknowledged(&world).await;
            // Also where the power fails now.
            world.demand_all();
        }
        assert!(before > 0, "no run died between the two");
    });
}

#[test]
fn it_is_noted_before_it_is_stored_whenever_a_receiver_dies() {
    dies_at_any_step(true);
    dies_at_any_step(false);
}

/// Seen again by a run that begins before it, it is not noted again.
#[test]
fn a_restart_that_sees_it_again_notes_nothing() {
    let soon = |plan: &mut Plan| plan.flush_interval = Duration::from_millis(100);
    quiet_world_with(soon, |world: Arc<World>| async move {
        write(&world, 20_000);
        let (lsn, _) = level(&world, 0);
        for _ in 0..3 {
            write(&world, 20_000);
            acknowledged(&world).await;
            world.processes().iter().flatten().for_each(|process| process.life.kill());
            sleep(Duration::from_secs(5)).await;
            assert_eq!(noted(&world).await, [MinimalWal { timeline: TimelineId(1), lsn }]);
        }
        let told = world.trace.last();
        assert_eq!(told.matches("MinimalWal(").count(), 1, "{told}");
    });
}

/// Its segment is stored, and is received again from a server that has only the beginning of it: the repository is not waited for, only the server.
#[test]
fn nobody_is_left_alone_because_of_it_while_the_server_is_waited_for() {
    let soon = |plan: &mut Plan| plan.flush_interval = Duration::from_millis(100);
    quiet_world_with(soon, |world: Arc<World>| async move {
        write(&world, 200_000);
        let (lsn, end) = level(&world, 0);
        level(&world, 1);
        write(&world, 100_000);
        let part = world.cluster.state().end();
        write(&world, 1_000_000);
        acknowledged(&world).await;
        sleep(Duration::from_secs(3)).await;
        assert!(part > end && part < Lsn(2 * SEGMENT), "{part}");
        world.processes()[0].iter().for_each(|process| process.life.kill());
        world.cluster.crash(Phase::Down);
        world.cluster.change(|state| {
            let current = state.current;
            (state.branches[current].upto, state.phase) = (Some(part), Phase::Up);
        });
        sleep(Duration::from_secs(60)).await;
        world.cluster.change(|state| {
            let current = state.current;
            state.branches[current].upto = None;
        });
        write(&world, 1000);
        acknowledged(&world).await;
        assert_eq!(noted(&world).await, [MinimalWal { timeline: TimelineId(1), lsn }], "{}", world.trace.last());
    });
}

/// Its segment is stored whole, and a standby was promoted in it: what comes of it again is never compared, and the timeline ends all the same.
#[test]
fn the_end_of_a_timeline_does_not_wait_for_a_comparison_that_never_comes() {
    let soon = |plan: &mut Plan| plan.flush_interval = Duration::from_millis(100);
    quiet_world_with(soon, |world: Arc<World>| async move {
        // The slot stands in the segment before.
        write(&world, 1_200_000);
        let (lsn, _) = level(&world, 0);
        level(&world, 1);
        write(&world, 100_000);
        let fork = world.cluster.state().end();
        write(&world, 1_000_000);
        acknowledged(&world).await;
        sleep(Duration::from_secs(3)).await;
        world.processes()[0].iter().for_each(|process| process.life.kill());
        world.cluster.crash(Phase::Down);
        world.cluster.promote(fork, true);
        world.cluster.change(|state| state.phase = Phase::Up);
        write(&world, 1000);
        acknowledged(&world).await;
        // The first segment of the new timeline has a copy of it.
        let expected = [1, 2].map(|timeline| MinimalWal { timeline: TimelineId(timeline), lsn });
        assert_eq!(noted(&world).await, expected, "{}", world.trace.last());
    });
}

/// The record begins in one segment and ends in the next. A standby ended in its middle, and all that it had was acknowledged when it stopped: the next
/// run begins at the border, sees the rest of a record that says nothing by itself, and goes below.
#[test]
fn it_is_noted_of_a_record_that_arrived_without_its_head() {
    let soon = |plan: &mut Plan| plan.flush_interval = Duration::from_millis(100);
    quiet_world_with(soon, |world: Arc<World>| async move {
        let border = Lsn(2 * SEGMENT);
        acknowledged(&world).await;
        world.cluster.change(|state| {
            let current = state.current;
            state.branches[current].wal.fill_to(Lsn(border.0 - 32));
        });
        let (lsn, end) = level(&world, 0);
        let half = border + 48;
        assert!(lsn < border && half < end, "{lsn} to {end}");
        world.cluster.change(|state| {
            let current = state.current;
            state.branches[current].upto = Some(half);
        });
        sleep(Duration::from_secs(3)).await;
        super::chaos::shut_down(&world).await;
        assert_eq!(world.cluster.state().told_end(), half, "{}", world.trace.last());
        world.processes()[0].iter().for_each(|process| process.life.kill());
        sleep(Duration::from_secs(4)).await;
        assert_eq!(noted(&world).await, [], "nobody can know yet");
        world.cluster.change(|state| {
            let current = state.current;
            (state.branches[current].upto, state.phase) = (None, Phase::Up);
            if let Some(slot) = &mut state.slot {
                (slot.restart, slot.saved) = (Some(half), Some(half));
            }
        });
        write(&world, 1000);
        acknowledged(&world).await;
        assert_eq!(noted(&world).await, [MinimalWal { timeline: TimelineId(1), lsn }], "{}", world.trace.last());
    });
}
