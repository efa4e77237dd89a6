//! A server that is set back to a snapshot while the write of a receiver hangs in its disk, and another receiver takes over: the weakness that
//! `docs/internals/simulation.md` tells, and the two ways out of it that `docs/guide/gaps.md` describes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use walrecv::archive::Archive;
use walrecv::archive::read::SegmentBytes;
use walrecv::disk::medium::Medium;
use walrecv::error::{Error, Kind};
use walrecv::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};
use walrecv::repo::ClusterNames;

use super::cluster::{Phase, SEGMENT};
use super::life::Life;
use super::tails::{acknowledged, files, mount, quiet_world_with, write};
use super::world::{Plan, World};
use crate::support::wal_maker::SYSTEM;

fn two(plan: &mut Plan) {
    (plan.second, plan.flush_interval) = (true, Duration::from_millis(100));
}

/// What `wal-fetch` would read of the first segment.
async fn stored(world: &World) -> Result<Vec<u8>, Error> {
    let place = world.place(&Life::new(0));
    let segment_size = SegmentSize::new(SEGMENT).expect("a size");
    let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size };
    let archive = Archive { repo: place.repo, names, keys: place.reader };
    let segment = SegmentName::new(TimelineId(1), SegmentNumber(1), segment_size);
    archive.read_segment(segment, None).await.map(|found| match found {
        Some(SegmentBytes::Complete(bytes) | SegmentBytes::Prefix(bytes)) => bytes.to_vec(),
        None => Vec::new(),
    })
}

fn tails(world: &World) -> Vec<PathBuf> {
    let all = files(&world.disk, Path::new("/repo"));
    all.into_iter().filter(|path| path.extension().is_some_and(|e| e == "open")).collect()
}

/// The first receiver's tail, with WAL that the server never was told of and does not have any more, and the second one at work.
async fn two_histories(world: &Arc<World>) -> (PathBuf, JoinHandle<()>) {
    write(world, 100_000);
    acknowledged(world).await;
    let first = world.processes()[0].clone().expect("it runs").life;
    let [old] = tails(world).try_into().expect("one tail");
    let snapshot = world.cluster.state().end();
    let second = tokio::spawn(world.clone().supervise(1));
    sleep(Duration::from_secs(3)).await;
    first.hang(true);
    write(world, 50_000);
    // Received, and on its way to the disk.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.cluster.state().told_end(), snapshot, "it was not durable");
    first.bar();
    world.excuses().diverged = true;
    world.cluster.crash(Phase::Down);
    world.cluster.roll_back(snapshot + 1);
    world.cluster.change(|state| state.phase = Phase::Up);
    write(world, 80_000);
    acknowledged(world).await;
    assert!(stored(world).await.is_ok_and(|bytes| !bytes.is_empty()), "what is stored is one history so far");
    first.hang(false);
    sleep(Duration::from_secs(2)).await;
    first.kill();
    let error = stored(world).await.expect_err("two histories");
    assert_eq!(error.kind(), Kind::Diverged, "{error}");
    let name = old.file_name().and_then(|name| name.to_str()).expect("a name");
    assert!(error.to_string().contains("hold different WAL at") && error.to_string().contains(name), "{error}");
    (old, second)
}

async fn is_the_server_s(world: &World) {
    let found = stored(world).await.expect("one history");
    let (from, state) = (Lsn(SEGMENT), world.cluster.state());
    let wanted = state.branch().wal.slice(from, state.told_end().min(from + SEGMENT)).to_vec();
    assert!(found.get(..wanted.len()) == Some(wanted.as_slice()), "{}", world.trace.last());
}

/// A complete segment is read from its object, and its tails go.
#[test]
fn the_end_of_the_segment_leaves_one_history() {
    quiet_world_with(two, |world: Arc<World>| async move {
        let (old, _second) = two_histories(&world).await;
        world.cluster.change(|state| {
            let current = state.current;
            state.branches[current].wal.switch();
        });
        write(&world, 1000);
        acknowledged(&world).await;
        sleep(Duration::from_secs(2)).await;
        is_the_server_s(&world).await;
        assert!(!tails(&world).contains(&old), "{:?}", tails(&world));
    });
}

/// A receiver that starts finds the tail of the other history, and ends with `Diverged`, which names it. Moved aside, it leaves one history.
#[test]
fn the_tail_of_the_other_history_is_moved_aside() {
    quiet_world_with(two, |world: Arc<World>| async move {
        let (old, second) = two_histories(&world).await;
        let process = world.processes()[1].clone().expect("it runs");
        process.life.kill();
        second.await.expect("it ends");
        let mut looks = 0;
        while world.processes()[0].is_some() {
            looks += 1;
            assert!(looks < 600, "{}", world.trace.last());
            sleep(Duration::from_millis(100)).await;
        }
        assert!(world.diverged.load(Ordering::SeqCst), "{}", world.trace.last());
        let said = world.trace.last();
        let ends = said.lines().find(|line| line.contains(" fails: Diverged")).expect("an end");
        let name = old.file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(ends.contains(name) && ends.contains("differs from what the server sends"), "{ends}");
        mount(&world.disk).remove_file(&old).expect("it is there");
        // No run makes it durable that a hand did it.
        mount(&world.disk).open(old.parent().expect("a folder")).and_then(|dir| dir.sync_all()).expect("a sync");
        world.diverged.store(false, Ordering::SeqCst);
        let again = tokio::spawn(world.clone().supervise(1));
        write(&world, 1000);
        acknowledged(&world).await;
        is_the_server_s(&world).await;
        world.closing.store(true, Ordering::SeqCst);
        world.processes().iter().flatten().for_each(|process| _ = process.stop.send_replace(true));
        again.await.expect("it ends");
    });
}
