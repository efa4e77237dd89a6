//! A run that is to end at a position says that it is stored only where that is known.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use walrecv::error::{Error, Kind};
use walrecv::pg::{Lsn, MajorVersion};
use walrecv::receive::{Observer, ReceiveOptions, ReceiveReport};

use super::cluster::{Phase, SEGMENT};
use super::life::Life;
use super::store::StoreFaults;
use super::tails::{acknowledged, quiet_world_with, write};
use super::world::{Plan, World, run, tell};

/// Longer than whatever it waits for.
const LONG: Duration = Duration::from_secs(120);

fn flushes_soon(plan: &mut Plan) {
    plan.flush_interval = Duration::from_millis(100);
}

/// The receiver that runs on its own is not wanted any more.
async fn alone(world: &World) {
    world.closing.store(true, Ordering::SeqCst);
    world.processes().iter().flatten().for_each(|process| _ = process.stop.send_replace(true));
    while world.processes()[0].is_some() {
        sleep(Duration::from_millis(10)).await;
    }
}

/// `walrecv receive --until`; `None`: it does not end.
async fn receive_until(world: &World, until: Lsn) -> Option<Result<ReceiveReport, Error>> {
    let life = Life::new(90);
    let (_stop, stopped) = watch::channel(false);
    let options = ReceiveOptions { until: Some(until), ..world.options(&life, 0) };
    let trace = world.trace.clone();
    let observer = Observer::new(move |event| tell(&trace, 90, &event, "no folder"));
    timeout(LONG, run(world.place(&life), options, observer, stopped)).await.ok()
}

fn switch(world: &World) {
    world.cluster.change(|state| {
        let current = state.current;
        state.branches[current].wal.switch();
    });
}

/// Its segment was stored to the end by an earlier run, and this server is somewhere inside: whether it is the same WAL shows at the end of the segment only.
#[test]
fn what_was_not_compared_is_no_success() {
    for set_back in [false, true] {
        quiet_world_with(flushes_soon, |world: Arc<World>| async move {
            write(&world, 500_000);
            acknowledged(&world).await;
            let snapshot = world.cluster.state().end();
            write(&world, 100_000);
            let behind = world.cluster.state().end();
            switch(&world);
            write(&world, 1000);
            acknowledged(&world).await;
            alone(&world).await;
            if set_back {
                world.excuses().diverged = true;
                world.cluster.crash(Phase::Down);
                world.cluster.roll_back(snapshot + 1);
                write(&world, 90_000);
            } else {
                world.cluster.crash(Phase::Down);
                // A standby that has less.
                world.cluster.change(|state| {
                    let current = state.current;
                    state.branches[current].upto = Some(behind);
                    state.slot.iter_mut().for_each(|slot| slot.restart = Some(snapshot));
                });
            }
            world.cluster.change(|state| state.phase = Phase::Up);
            let until = world.cluster.state().end();
            assert!(until < Lsn(2 * SEGMENT));
            let error = receive_until(&world, until).await.expect("an end").expect_err("nobody knows");
            let text = format!("{error}: {}", world.trace.last());
            assert!(error.kind() == Kind::Server && text.contains("cannot be compared"), "{text}");
            world.cluster.change(|state| {
                let current = state.current;
                state.branches[current].upto = None;
            });
            if set_back {
                switch(&world);
            }
            write(&world, 1000);
            let ended = receive_until(&world, until).await.expect("an end");
            match ended {
                Ok(report) => assert!(!set_back && report.durable >= until, "{report:?}: {}", world.trace.last()),
                Err(error) => assert!(set_back && error.kind() == Kind::Diverged, "{error}: {}", world.trace.last()),
            }
        });
    }
}

/// The last bytes become durable while there is no connection, and the server has nothing more to send.
#[test]
fn it_ends_where_everything_became_durable_without_a_connection() {
    let in_a_store = |plan: &mut Plan| {
        flushes_soon(plan);
        // Nothing else moves then.
        (plan.local, plan.spool, plan.rests) = (false, false, None);
    };
    quiet_world_with(in_a_store, |world: Arc<World>| async move {
        write(&world, 100_000);
        acknowledged(&world).await;
        alone(&world).await;
        write(&world, 100_000);
        let until = world.cluster.state().end();
        world.store.set_faults(StoreFaults { delay: 300, ..StoreFaults::default() });
        let (other, mark) = (world.clone(), "[90] Streaming");
        let outage = tokio::spawn(async move {
            while !other.trace.last().contains(mark) {
                sleep(Duration::from_micros(100)).await;
            }
            other.store.set_faults(StoreFaults { outage: true, ..StoreFaults::default() });
            while !other.trace.last().contains("Stalled") {
                sleep(Duration::from_millis(10)).await;
            }
            other.store.set_faults(StoreFaults::default());
        });
        let ended = receive_until(&world, until).await;
        outage.abort();
        let ended = ended.unwrap_or_else(|| panic!("it waits for ever: {}", world.trace.last()));
        assert!(ended.as_ref().is_ok_and(|report| report.durable >= until), "{ended:?}: {}", world.trace.last());
        assert!(world.trace.last().contains("Stalled"), "{}", world.trace.last());
        assert!(world.cluster.state().told_end() >= until, "not reported: {}", world.trace.last());
    });
}

/// Nobody can tell it where the slot stands, and on 13 nothing at all.
#[test]
fn it_ends_without_sql() {
    for version in [MajorVersion::V13, MajorVersion::V16] {
        let blind = |plan: &mut Plan| {
            flushes_soon(plan);
            (plan.sql, plan.version) = (false, version);
        };
        quiet_world_with(blind, |world: Arc<World>| async move {
            write(&world, 700_000);
            acknowledged(&world).await;
            alone(&world).await;
            write(&world, 600_000);
            let until = world.cluster.state().end();
            let ended = receive_until(&world, until).await.unwrap_or_else(|| panic!("no end: {}", world.trace.last()));
            assert!(ended.as_ref().is_ok_and(|report| report.durable >= until), "{ended:?}: {}", world.trace.last());
            assert!(world.cluster.state().told_end() >= until, "not reported: {}", world.trace.last());
        });
    }
}
