//! A repository that goes back in time under a running receiver: what was stored is gone, and the names of new objects are free.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use walrecv::archive::Archive;
use walrecv::pg::{Lsn, SegmentSize, TimelineId};
use walrecv::repo::ClusterNames;

use super::chance::Chance;
use super::cluster::SEGMENT;
use super::life::Life;
use super::tails::{acknowledged, quiet_world_with, write};
use super::world::{Plan, World};
use crate::support::wal_maker::SYSTEM;

fn into_a_store(gaps: bool) -> impl Fn(&mut Plan) {
    move |plan| {
        (plan.local, plan.spool, plan.gaps, plan.rests) = (false, false, gaps, None);
        plan.flush_interval = Duration::from_millis(100);
    }
}

/// Four segments are stored, the repository is as it was before them, and three more are stored before anybody looks. Gives the end of what was stored before
/// the four.
async fn goes_back(world: &World) -> Lsn {
    write(world, 1_500_000);
    acknowledged(world).await;
    sleep(Duration::from_secs(3)).await;
    let (before, from) = (world.store.copy(Chance::new(1, "before")), world.cluster.state().told_end());
    let segments = async |count: u32| {
        for _ in 0..count {
            write(world, 1_100_000);
            acknowledged(world).await;
        }
    };
    segments(4).await;
    sleep(Duration::from_secs(3)).await;
    // From here on nothing is promised that this repository could keep.
    world.demand_all();
    world.audit.looks_away();
    world.store.becomes(&before);
    world.trace.say("the repository is put back to an earlier time");
    segments(3).await;
    from
}

async fn says(world: &World, text: &str, times: usize) {
    for second in 0..300 {
        if world.trace.last().matches(text).count() >= times {
            return;
        }
        if second % 20 == 0 && world.processes()[0].is_some() {
            write(world, 600_000);
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("{text:?} is not said {times} times: {}", world.trace.last());
}

async fn stored_from(world: &World, from: Lsn) -> Option<Lsn> {
    let place = world.place(&Life::new(99));
    let segment_size = SegmentSize::new(SEGMENT).expect("a size");
    let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size };
    let archive = Archive { repo: place.repo, names, keys: place.reader };
    archive.contiguous_from(TimelineId(1), from).await.expect("what is stored")
}

#[test]
fn what_is_gone_is_asked_for_again() {
    quiet_world_with(into_a_store(false), |world: Arc<World>| async move {
        let from = goes_back(&world).await;
        says(&world, "is gone from the repository, where this run stored it", 1).await;
        says(&world, "the server is asked for it again", 1).await;
        let end = world.cluster.state().end();
        acknowledged(&world).await;
        sleep(Duration::from_secs(5)).await;
        assert!(stored_from(&world, from.align_down(SEGMENT)).await >= Some(end), "{}", world.trace.last());
        assert!(stored_from(&world, Lsn(SEGMENT)).await >= Some(end), "{}", world.trace.last());
    });
}

/// A service manager starts the receiver again: it is told again, from what the catalog knows.
#[test]
fn what_the_server_has_let_go_of_ends_the_run_and_every_later_one() {
    quiet_world_with(into_a_store(false), |world: Arc<World>| async move {
        let from = goes_back(&world).await;
        world.excuses().slot = true;
        world.cluster.checkpoint();
        says(&world, " fails: Slot: WAL from ", 3).await;
        let said = world.trace.last();
        let all = said.lines().filter(|line| line.contains(" fails: Slot"));
        all.for_each(|line| {
            assert!(
                line.contains(&format!("WAL from {from} to ")) && line.contains("was stored, and is gone"),
                "{line}"
            )
        });
    });
}

#[test]
fn what_the_server_has_let_go_of_is_a_hole_where_that_is_wanted() {
    quiet_world_with(into_a_store(true), |world: Arc<World>| async move {
        let from = goes_back(&world).await;
        world.excuses().slot = true;
        world.cluster.checkpoint();
        says(&world, "] Hole(Hole {", 1).await;
        assert!(world.trace.last().contains(&format!(
            "Hole {{ from_timeline: TimelineId(1), from: {from}, to_timeline: TimelineId(1), to: 0/600000"
        )));
        write(&world, 600_000);
        acknowledged(&world).await;
        world.processes()[0].iter().for_each(|process| process.life.kill());
        sleep(Duration::from_secs(5)).await;
        write(&world, 600_000);
        acknowledged(&world).await;
        assert!(world.trace.last().matches("] Hole(Hole {").count() < 2, "{}", world.trace.last());
    });
}
