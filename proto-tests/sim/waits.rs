//! Waits that have an end: a stop into storage that is dead, a timeline that ends there; and a second connection that goes on after a refusal.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::store::StoreFaults;
use super::tails::{acknowledged, quiet_world_with, write};
use super::walsender::NetFaults;
use super::world::{GRACE, Plan, World};

/// What comes after the grace: the last word to the server and its answer, and the last notes of the catalog.
const LAST_WORDS: Duration = Duration::from_millis(3500);

fn in_a_store(plan: &mut Plan) {
    plan.local = false;
    plan.flush_interval = Duration::from_millis(100);
}

/// Connected, it waits for the repository until the grace is over, and then again without the connection: both out of one grace.
#[test]
fn a_stop_into_dead_storage_has_one_deadline() {
    quiet_world_with(in_a_store, |world: Arc<World>| async move {
        write(&world, 100_000);
        acknowledged(&world).await;
        world.store.set_faults(StoreFaults { outage: true, ..StoreFaults::default() });
        write(&world, 100_000);
        sleep(Duration::from_secs(2)).await;
        let process = world.processes()[0].clone().expect("it runs");
        let asked = Instant::now();
        process.stop.send_replace(true);
        while world.processes()[0].as_ref().is_some_and(|other| other.life.id() == process.life.id()) {
            assert!(asked.elapsed() < GRACE + LAST_WORDS, "it waits on: {}", world.trace.last());
            sleep(Duration::from_millis(20)).await;
        }
        assert!(asked.elapsed() >= GRACE, "it did not wait for the repository: {}", world.trace.last());
        world.store.set_faults(StoreFaults::default());
        acknowledged(&world).await;
    });
}

/// The end of a timeline has to be stored before the next one begins. Where nothing can be stored, the server is left as in any other stall, and the new
/// timeline is followed once something can.
#[test]
fn a_timeline_that_ends_while_storage_is_dead_is_followed_later() {
    quiet_world_with(in_a_store, |world: Arc<World>| async move {
        write(&world, 100_000);
        acknowledged(&world).await;
        world.store.set_faults(StoreFaults { outage: true, ..StoreFaults::default() });
        write(&world, 100_000);
        sleep(Duration::from_millis(500)).await;
        // A standby that is streamed from and promoted: the connection stays.
        let end = world.cluster.state().end();
        world.cluster.promote(end, true);
        // The limit for no progress (10 s), and what comes before and after it.
        sleep(Duration::from_secs(20)).await;
        let stalls = || world.trace.last().matches("Stalled").count();
        assert_eq!(stalls(), 1, "{}", world.trace.last());
        assert_eq!(world.cluster.state().sessions, 1, "only the second connection: {}", world.trace.last());
        // As long as it lasts it is one stall.
        sleep(Duration::from_secs(40)).await;
        assert_eq!(stalls(), 1, "{}", world.trace.last());
        world.store.set_faults(StoreFaults::default());
        write(&world, 1000);
        acknowledged(&world).await;
    });
}

/// One refused question about the slot must not keep the list of synchronous standbys from being read.
#[test]
fn the_second_connection_goes_on_after_a_refusal() {
    let slowly = |plan: &mut Plan| {
        (plan.synchronous, plan.flush_interval) = (false, Duration::from_secs(50));
    };
    quiet_world_with(slowly, |world: Arc<World>| async move {
        write(&world, 1000);
        acknowledged(&world).await;
        world.cluster.change(|state| state.view_refused = true);
        // It looks after a minute at the latest.
        sleep(Duration::from_secs(61)).await;
        let trace = world.trace.last();
        assert!(trace.contains("cannot be looked at") && trace.contains("permission denied"), "{trace}");
        world.cluster.change(|state| (state.view_refused, state.synchronous) = (false, true));
        sleep(Duration::from_secs(61)).await;
        write(&world, 1000);
        sleep(Duration::from_secs(2)).await;
        let known = {
            let state = world.cluster.state();
            state.told_end() >= state.end()
        };
        assert!(known, "commits wait for it, and it does not know: {}", world.trace.last());
    });
}

/// Who stands by tries whether it could stream. A server that is slow to answer that must not make the takeover late.
#[test]
fn a_slow_trial_delays_no_takeover() {
    let two = |plan: &mut Plan| plan.second = true;
    quiet_world_with(two, |world: Arc<World>| async move {
        write(&world, 1000);
        acknowledged(&world).await;
        let says = async |text: &str, within: Duration| {
            let asked = Instant::now();
            while !world.trace.last().contains(text) {
                assert!(asked.elapsed() < within, "{text:?} is not said: {}", world.trace.last());
                sleep(Duration::from_millis(20)).await;
            }
        };
        // As long as a trial may take, nearly.
        world.network.set_faults(NetFaults { dial: 2900, ..NetFaults::default() });
        let second = tokio::spawn(world.clone().supervise(1));
        says("] StandingBy", Duration::from_secs(10)).await;
        world.network.set_faults(NetFaults::default());
        let (one, two) = {
            let processes = world.processes();
            let of = |index: usize| processes[index].clone().expect("it runs");
            (of(0), of(1))
        };
        one.stop.send_replace(true);
        says(&format!("[{}] Streaming", two.life.id()), Duration::from_secs(2)).await;
        write(&world, 1000);
        acknowledged(&world).await;
        world.closing.store(true, Ordering::SeqCst);
        two.stop.send_replace(true);
        second.await.expect("it ends");
    });
}
