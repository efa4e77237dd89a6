//! Waits that have an end: a stop into storage that is dead.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::store::StoreFaults;
use super::tails::{acknowledged, quiet_world_with, write};
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
