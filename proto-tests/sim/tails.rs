//! What a receiver does about single faults of its disk, one at a time: nothing else goes wrong in these worlds.

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::sleep;
use walrecv::disk::lane::Lane;
use walrecv::disk::medium::{Form, Ground, Medium};
use walrecv::disk::tail_file::TailFile;
use walrecv::error::Class;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, SystemIdentifier, TimelineId};

use super::chance::Chance;
use super::cluster::Phase;
use super::disk::{DiskFaults, Mount, SimDisk};
use super::life::Life;
use super::trace::Trace;
use super::world::{Plan, World};

const CLAIM: (SystemIdentifier, TimelineId, Lsn) = (SystemIdentifier(1), TimelineId(1), Lsn(1));

pub fn mount(disk: &SimDisk) -> Mount {
    let lane = Lane::Inline(Arc::new(|| ready(()).boxed()));
    Mount { disk: disk.clone(), life: Life::new(0), lane }
}

pub fn files(disk: &SimDisk, folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (name, form) in mount(disk).list(folder).unwrap_or_default() {
        let path = folder.join(name);
        match form {
            Form::Directory => found.extend(files(disk, &path)),
            _ => found.push(path),
        }
    }
    found
}

/// Else every attempt on a full disk would leave another file, and take the room that the next one needs.
#[test]
fn a_dead_file_stays_only_for_what_was_synced_in_it() {
    let disk = SimDisk::new("/repo", Chance::new(1, "disk"));
    let ground: Ground = Arc::new(mount(&disk));
    let create = |name: &str| TailFile::create(&ground, &Path::new("/repo").join(name), 0, b"preamble").unwrap();
    let full = |full| disk.set_faults(DiskFaults { full, ..DiskFaults::default() });

    let mut empty = create("empty");
    full(true);
    assert!(empty.append(b"frame").is_err() && empty.give_up());
    assert_eq!(files(&disk, Path::new("/repo")), Vec::<PathBuf>::new());

    full(false);
    let mut used = create("used");
    used.append(b"frame").unwrap();
    used.sync(CLAIM).unwrap();
    full(true);
    assert!(used.append(b"more").is_err() && used.give_up());
    assert_eq!(files(&disk, Path::new("/repo")), [PathBuf::from("/repo/used")]);

    full(false);
    let mut lost = create("lost");
    lost.append(b"frame").unwrap();
    lost.sync(CLAIM).unwrap();
    mount(&disk).remove_file(Path::new("/repo/lost")).unwrap();
    lost.append(b"more").unwrap();
    assert_eq!(lost.sync(CLAIM).unwrap_err().class(), Class::Transient);
    assert!(!lost.give_up(), "what was synced is gone with its name");
}

/// A world without faults, on a local disk: each round of the server's is acknowledged before the next.
fn quiet_world<F: Future<Output = ()>>(act: impl FnOnce(Arc<World>) -> F) {
    quiet_world_with(|_| (), act);
}

/// The same with something of the plan otherwise.
pub fn quiet_world_with<F: Future<Output = ()>>(change: impl Fn(&mut Plan), act: impl FnOnce(Arc<World>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let trace = Trace::new(std::env::var_os("WALRECV_SIM_ALOUD").is_some());
        let world = World::with(1, trace, |plan| {
            (plan.local, plan.sql, plan.second) = (true, true, false);
            change(plan);
        });
        let process = tokio::spawn(world.clone().supervise(0));
        act(world.clone()).await;
        world.closing.store(true, Ordering::SeqCst);
        world.processes().iter().flatten().for_each(|process| _ = process.stop.send_replace(true));
        process.await.expect("the process ends");
        world.demand_all();
        world.audit.settled().await;
        assert!(world.trace.violation().is_none(), "{}\n{:?}", world.trace.last(), world.trace.violation());
        assert!(world.audit.promises() > 0);
    });
}

/// Two records; never the end of a segment by itself, as real work may be.
pub fn write(world: &World, bytes: u32) {
    world.cluster.change(|state| {
        let current = state.current;
        let wal = &mut state.branches[current].wal;
        wal.filler(900, bytes);
        wal.commit(900, PgTime(1_000_000));
    });
}

pub async fn acknowledged(world: &World) {
    for _ in 0..600 {
        {
            let state = world.cluster.state();
            if state.told_end() >= state.end() {
                return;
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("not acknowledged within a minute: {}", world.trace.last());
}

/// What stood in the file was acknowledged and would be in no file any more.
#[test]
fn a_tail_file_that_vanished_is_replaced_from_the_first_byte_on() {
    quiet_world(|world| async move {
        for bytes in [100_000, 50_000] {
            write(&world, bytes);
            acknowledged(&world).await;
        }
        let tails = files(&world.disk, Path::new("/repo"));
        let tails: Vec<_> = tails.iter().filter(|path| path.extension().is_some_and(|e| e == "open")).collect();
        assert_eq!(tails.len(), 1, "{tails:?}");
        mount(&world.disk).remove_file(tails[0]).expect("it is there");
        write(&world, 20_000);
        acknowledged(&world).await;
        world.demand_all();
        world.audit.settled().await;
    });
}

/// The end of a timeline was stored, and then nothing could be read; meanwhile its server came back, and goes on with the timeline.
#[test]
fn a_timeline_that_goes_on_after_its_end_was_stored_is_streamed_anew() {
    quiet_world(|world| async move {
        write(&world, 300_000);
        acknowledged(&world).await;
        let end = world.cluster.state().end();
        world.cluster.crash(Phase::Down);
        world.cluster.promote(end, true);
        world.cluster.change(|state| state.phase = Phase::Up);
        let is_end = |path: &PathBuf| path.extension().is_some_and(|e| e == "partial");
        let mut looks = 0;
        while !files(&world.disk, Path::new("/repo")).iter().any(is_end) {
            looks += 1;
            assert!(looks < 1_000_000, "{}", world.trace.last());
            // Between any two steps of the receiver: it must not come further than that.
            match looks % 50 {
                0 => sleep(Duration::from_micros(100)).await,
                _ => tokio::task::yield_now().await,
            }
        }
        world.disk.set_faults(DiskFaults { read_error: 1, ..DiskFaults::default() });
        sleep(Duration::from_secs(3)).await;
        world.cluster.crash(Phase::Down);
        world.cluster.change(|state| {
            state.current = 0;
            state.phase = Phase::Up;
        });
        world.disk.set_faults(DiskFaults::default());
        for _ in 0..8 {
            write(&world, 200_000);
            acknowledged(&world).await;
        }
        let state = world.cluster.state();
        assert!(state.told.iter().all(|(_, timeline, _)| *timeline == TimelineId(1)), "it had begun with the next one");
    });
}

/// A second sync of the directory may succeed without having written what the first one did not.
#[test]
fn a_directory_that_cannot_be_synced_ends_the_run_that_writes_a_tail_there() {
    quiet_world(|world| async move {
        write(&world, 100_000);
        acknowledged(&world).await;
        let tails = files(&world.disk, Path::new("/repo"));
        let tail = tails.iter().find(|path| path.extension().is_some_and(|e| e == "open")).expect("a tail");
        mount(&world.disk).remove_file(tail).expect("it is there");
        world.excuses().failed = true;
        world.disk.set_faults(DiskFaults { dir_sync_error: 1, ..DiskFaults::default() });
        write(&world, 20_000);
        let told = world.cluster.state().told_end();
        for _ in 0..100 {
            sleep(Duration::from_millis(100)).await;
            if world.processes()[0].is_none() {
                break;
            }
        }
        assert!(world.processes()[0].is_none(), "it goes on: {}", world.trace.last());
        assert_eq!(world.cluster.state().told_end(), told);
        world.disk.set_faults(DiskFaults::default());
        acknowledged(&world).await;
    });
}
