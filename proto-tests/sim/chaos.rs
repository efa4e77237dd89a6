//! What goes wrong, and when; and what must be true once it stops.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walrecv::pg::Lsn;

use super::chance::Chance;
use super::cluster::{Phase, Slot};
use super::disk::{DiskFaults, Loss};
use super::store::StoreFaults;
use super::walsender::{NetFaults, TIMEOUT};
use super::world::{GRACE, World};

/// With nothing wrong any more, everything is durable and acknowledged within this.
const CATCH_UP: Duration = Duration::from_secs(180);
/// A shutdown of the server is held up by walrecv at most for its grace, and the time that the messages need.
const HELD: Duration = Duration::from_secs(4);

/// One run of a world, from its first byte to the last judgement.
pub async fn play(world: Arc<World>) {
    let mut tasks: Vec<_> = (0..world.processes().len()).map(|n| tokio::spawn(world.clone().supervise(n))).collect();
    let end = Instant::now() + world.plan.chaos;
    let writing = tokio::spawn(write(world.clone(), end));
    weather(&world);
    while Instant::now() < end && world.trace.violation().is_none() {
        sleep(world.chance.millis(50, 4000)).await;
        happen(&world).await;
    }
    let _ = writing.await;
    calm(&world).await;
    if world.trace.violation().is_none() && !world.diverged.load(Ordering::SeqCst) {
        catch_up(&world).await;
    }
    if world.trace.violation().is_none() && !world.diverged.load(Ordering::SeqCst) {
        shut_down(&world).await;
    }
    stop(&world, &mut tasks).await;
    world.audit.settled().await;
    world.demand_all();
    world.audit.settled().await;
    if world.trace.violation().is_none() {
        super::index::judge(&world).await;
    }
}

/// The server's own work.
async fn write(world: Arc<World>, end: Instant) {
    let chance = world.chance.split();
    let minimal = Chance::new(world.plan.wal, "minimal");
    let steps = world.plan.chaos.as_millis() as u64 / 300;
    while Instant::now() < end {
        sleep(chance.millis(0, 600)).await;
        let bytes = chance.between(0, 2 * world.plan.wal / steps.max(1));
        if world.cluster.state().phase == Phase::Up {
            world.cluster.write(bytes.max(64), &chance);
            if world.plan.minimal && minimal.one_in(20) {
                super::minimal::level(&world, 0);
                super::minimal::level(&world, 1);
            }
        }
    }
}

/// A new mixture of faults.
fn weather(world: &World) {
    let (plan, chance) = (&world.plan, &world.chance);
    let rate = |likely: u64, rates: &[u64]| if chance.one_in(likely) { chance.pick(rates) } else { 0 };
    if plan.net_faults {
        let faults = NetFaults {
            delay: chance.pick(&[0, 1, 5, 40]),
            pause: rate(2, &[30, 200]),
            cut: rate(2, &[60, 400]),
            silence: rate(3, &[200, 1000]),
            flip: rate(5, &[100, 400]),
            refuse: rate(3, &[3, 10]),
            ..NetFaults::default()
        };
        world.excuses().corrupt |= faults.flip > 0;
        world.network.set_faults(faults);
    }
    if plan.disk_faults && (plan.local || plan.spool) {
        let faults = DiskFaults {
            write_error: rate(3, &[30, 300]),
            short_write: rate(2, &[2, 20]),
            sync_error: rate(3, &[20, 200]),
            dir_sync_error: rate(6, &[60]),
            read_error: rate(4, &[50, 300]),
            full: chance.one_in(8),
            ..DiskFaults::default()
        };
        if plan.local {
            let mut excuses = world.excuses();
            excuses.failed |= faults.dir_sync_error > 0 || faults.sync_error > 0;
            excuses.repository |= faults.dir_sync_error > 0;
        }
        world.disk.set_faults(faults);
    }
    if plan.store_faults && !plan.local {
        let faults = StoreFaults {
            error: rate(2, &[3, 10, 40]),
            delay: chance.pick(&[1, 20, 400]),
            outage: chance.one_in(6),
            refuses: chance.one_in(20),
            forgets: 0,
        };
        world.excuses().repository |= faults.refuses;
        world.store.set_faults(faults);
    }
}

async fn happen(world: &Arc<World>) {
    let chance = &world.chance;
    match chance.below(22) {
        0..4 => weather(world),
        4 | 5 => signal(world),
        6 | 7 => with_process(world, |process| process.life.kill()),
        8..11 => {
            let effects = chance.between(0, chance.pick(&[5, 40, 200]));
            with_process(world, |process| process.life.dies_after(effects));
        }
        11 if world.plan.local || world.plan.spool => {
            world.lose_power(chance.pick(&[Loss::All, Loss::AllButRemovals, Loss::Some, Loss::Some]))
        }
        12 | 13 => world.cluster.checkpoint(),
        14 | 15 => {
            world.trace.say("server: crashes");
            let phase = chance.pick(&[Phase::Starting, Phase::Down]);
            world.cluster.crash(phase);
            come_up(world).await;
        }
        16 => {
            shut_down(world).await;
            come_up(world).await;
        }
        17 | 18 => fail_over(world).await,
        19 => roll_back(world).await,
        20 => damage(world),
        21 if world.plan.gaps => lose_slot(world),
        _ => {}
    }
}

fn with_process(world: &World, act: impl FnOnce(&super::world::Process)) {
    let processes: Vec<_> = world.processes().iter().flatten().cloned().collect();
    if !processes.is_empty() {
        act(&processes[world.chance.below(processes.len() as u64) as usize]);
    }
}

fn signal(world: &World) {
    with_process(world, |process| {
        world.trace.say(format!("[{}] SIGTERM", process.life.id()));
        process.stop.send_replace(true);
    });
}

async fn come_up(world: &World) {
    sleep(world.chance.millis(100, 6000)).await;
    world.trace.say("server: is up");
    world.cluster.change(|state| state.phase = Phase::Up);
}

/// A planned shutdown, which waits for its walsenders as PostgreSQL does.
pub async fn shut_down(world: &World) {
    world.trace.say("server: shuts down");
    world.cluster.change(|state| state.phase = Phase::Stopping);
    let begun = Instant::now();
    while world.cluster.state().sessions > 0 {
        sleep(Duration::from_millis(20)).await;
        // A cable that fell silent is the server's own timeout's business.
        if begun.elapsed() > GRACE + HELD + Duration::from_secs(20) {
            world.trace.violated("the server waits for ever for a walsender");
            break;
        }
    }
    let took = begun.elapsed();
    world.trace.say(format!("server: has shut down after {:.3} s", took.as_secs_f64()));
    let fell = *world.host_fell.lock().unwrap_or_else(PoisonError::into_inner);
    // Who fell with its host cannot leave.
    let waits_for_the_dead = fell.is_some_and(|fell| fell + TIMEOUT > begun);
    if took > GRACE + HELD && world.calm.load(Ordering::SeqCst) && !waits_for_the_dead {
        world.trace.violated(format!("the shutdown of the server was held up for {:.3} s", took.as_secs_f64()));
    }
    world.cluster.crash(Phase::Down);
}

async fn fail_over(world: &World) {
    let chance = &world.chance;
    let forked = world.cluster.state().branches.len() as u64 - 1;
    if forked >= world.plan.failovers {
        return;
    }
    let behind = chance.pick(&[0, 0, 5000, 200_000, 1_300_000]);
    let at = {
        let state = world.cluster.state();
        let least = state.branch().begin_of(state.branch().timeline).0.max(state.segment + 4096);
        Lsn(state.end().0.saturating_sub(chance.below(behind + 1)).max(least))
    };
    let with_slot = !chance.one_in(5);
    world.trace.say(format!(
        "server: a standby that had WAL up to {at} is promoted, {}",
        if with_slot { "with the slot" } else { "without a slot" }
    ));
    world.cluster.crash(Phase::Down);
    world.cluster.promote(at, with_slot);
    world.excuses().slot |= !with_slot;
    come_up(world).await;
    if !with_slot {
        sleep(chance.millis(0, 9000)).await;
        world.trace.say("server: an administrator makes the slot");
        make_slot(world);
    }
}

fn make_slot(world: &World) {
    world.cluster.change(|state| {
        if state.slot.is_none() {
            state.slot = Some(Slot::reserved(state));
        }
    });
}

/// Nobody holds back what the archive needs any more.
fn lose_slot(world: &World) {
    let (drops, keep) =
        (world.chance.one_in(2), world.chance.pick(&[0, 100_000, world.plan.segment, 2 * world.plan.segment]));
    world.trace.say(format!("server: the slot is {}, and WAL removed", if drops { "dropped" } else { "lost" }));
    world.excuses().slot = true;
    world.cluster.forget(drops, keep);
}

async fn roll_back(world: &World) {
    let forked = world.cluster.state().branches.len() > 1;
    if !world.plan.roll_back || world.excuses().diverged || forked && !world.plan.goes_back {
        return;
    }
    let (end, least) = {
        let state = world.cluster.state();
        // Of a failover that is given up the old primary's end counts, which is not below the fork.
        let fork = state.branch().ancestors.last().map(|(_, fork)| *fork);
        let before = state.branch().ancestors.last().map(|(timeline, _)| state.branch().begin_of(*timeline).0);
        (fork.unwrap_or(state.end()), before.unwrap_or(state.removed.0).max(state.segment) + 4096)
    };
    let back = world.chance.between(100, 1_200_000);
    let at = Lsn(end.0.saturating_sub(back).max(least));
    if at >= end {
        return;
    }
    world.excuses().diverged = true;
    world.cluster.crash(Phase::Down);
    if forked {
        world
            .trace
            .say(format!("server: the failover is given up; the old primary has a snapshot that ends before {at}"));
        world.cluster.go_back(at);
    } else {
        world.trace.say(format!("server: is set back to a snapshot that ends before {at}"));
        world.cluster.roll_back(at);
    }
    let regrown = world.chance.pick(&[0, 0, back]);
    if regrown > 0 {
        world.cluster.write(regrown, &world.chance.clone());
    }
    come_up(world).await;
}

/// The server's disk returns a wrong byte from now on.
fn damage(world: &World) {
    if !world.plan.bad_wal {
        return;
    }
    let chance = world.chance.clone();
    let before = world.cluster.state().end();
    world.cluster.write(3000, &chance);
    world.excuses().corrupt = true;
    world.cluster.change(|state| {
        let current = state.current;
        let records = state.branches[current].wal.records();
        let found = records.iter().find(|record| record.start >= before && record.total_len > 40);
        state.branches[current].damaged = found.map(|record| record.start + 30).filter(|at| at.0 % 8192 > 40);
    });
    world.trace.say("server: its disk has a wrong byte");
}

/// Nothing is wrong any more.
async fn calm(world: &World) {
    world.trace.say("nothing is wrong any more");
    world.network.set_faults(NetFaults { delay: 1, ..NetFaults::default() });
    world.disk.set_faults(DiskFaults::default());
    world.store.set_faults(StoreFaults { delay: 5, ..StoreFaults::default() });
    world.cluster.change(|state| {
        let current = state.current;
        state.branches[current].damaged = None;
        state.phase = Phase::Up;
    });
    world.cluster.change(|state| {
        // Where nothing is stored yet, a lost slot is an administrator's to make anew.
        let unused = state.trail.told.is_empty();
        state.slot.take_if(|slot| slot.lost && unused);
    });
    make_slot(world);
    if world.disk.is_read_only() {
        world.lose_power(Loss::Some);
    }
}

async fn catch_up(world: &World) {
    let begun = Instant::now();
    loop {
        let (told, end) = {
            let state = world.cluster.state();
            (state.told_end(), state.end())
        };
        if told >= end {
            world.trace.say(format!("caught up after {:.3} s", begun.elapsed().as_secs_f64()));
            world.calm.store(true, Ordering::SeqCst);
            *world.excuses() = super::world::Excuses::default();
            return;
        }
        if world.trace.violation().is_some() || world.diverged.load(Ordering::SeqCst) {
            return;
        }
        if begun.elapsed() > CATCH_UP {
            world.trace.violated(format!(
                "the server has WAL up to {end} and was told {told}, {CATCH_UP:?} after the last fault"
            ));
            return;
        }
        if world.excuses().diverged && begun.elapsed().as_millis() % 5000 < 100 {
            // What a server that was set back writes now is compared with what is stored further on.
            world.cluster.write(100_000, &world.chance.clone());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Every process ends when it is asked to.
async fn stop(world: &World, tasks: &mut Vec<tokio::task::JoinHandle<()>>) {
    world.closing.store(true, Ordering::SeqCst);
    world.processes().iter().flatten().for_each(|process| _ = process.stop.send_replace(true));
    for task in tasks {
        let limit = GRACE * 2 + Duration::from_secs(20);
        match tokio::time::timeout(limit, &mut *task).await {
            Err(_) => world.trace.violated(format!("a process did not stop within {limit:?}")),
            Ok(Err(error)) => world.trace.violated(format!("a process died: {error}")),
            Ok(Ok(())) => {}
        }
    }
}
