//! A disk whose calls fail or hang under the receiver: `strace` lets them.

use std::time::{Duration, Instant};

use walrecv::pg::{Lsn, MajorVersion};

use super::harness::{self, Vault};
use super::kill::{Process, nothing_is_missing, told};
use crate::support::strace::{self, Strace};
use crate::support::{Ledger, Server, Stop, require_servers, wait_for};

const HANGS: Duration = Duration::from_secs(60);

struct Scene {
    server: Server,
    vault: Vault,
    process: Process,
    from: Lsn,
}

impl Scene {
    fn new(version: MajorVersion) -> Scene {
        Scene::flushing_every(version, 100)
    }

    fn flushing_every(version: MajorVersion, milliseconds: u64) -> Scene {
        let server = Server::builder(version).setting("wal_keep_size", "1GB").setting("max_wal_size", "1GB").start();
        harness::create_slot(&server);
        let from = harness::acknowledged(&server);
        let vault = Vault::new();
        let process = Process::start_with(&vault, &server, milliseconds, &[("VAULT_GRACE_MS", "2000".to_owned())]);
        server.sql("create table t (id int, filler text)");
        harness::wait_acknowledged(&server, server.lsn());
        Scene { server, vault, process, from }
    }

    fn interfere(&self, inject: &str) -> Strace {
        Strace::attach(self.process.pid(), inject, None)
    }

    /// The next sync takes a minute.
    fn hang(&self) -> Strace {
        self.interfere(&format!("fdatasync:delay_enter={}:when=1", HANGS.as_micros()))
    }

    fn write(&self) -> Lsn {
        self.server.sql("insert into t select i, md5(random()::text) from generate_series(1, 20) i");
        self.server.lsn()
    }

    fn nothing_is_missing(&self, upto: Lsn) {
        nothing_is_missing(&self.vault.archive(&self.server), &self.server, self.from, upto);
    }

    /// Tail files of all segments.
    fn tails(&self) -> usize {
        let inventory = harness::runtime().block_on(self.vault.archive(&self.server).inventory()).expect("list");
        inventory.timelines.values().flat_map(|stock| stock.tails.values()).map(|names| names.len()).sum()
    }

    fn end(mut self) {
        let end = self.server.switch_wal();
        harness::wait_acknowledged(&self.server, end);
        self.nothing_is_missing(end);
        assert!(self.process.is_running(), "it ended: {}", self.process.said());
    }
}

/// What was not synced may be lost although a later sync of the same file succeeds: everything goes into a new file.
#[test]
fn a_failed_sync_is_not_acknowledged_and_a_new_file_is_begun() {
    require_servers!(MajorVersion::V18);
    if !strace::possible() {
        return;
    }
    for flush_ms in [100, 0] {
        failed_sync(flush_ms);
    }
}

fn failed_sync(flush_ms: u64) {
    let scene = Scene::flushing_every(MajorVersion::V18, flush_ms);
    let before = scene.tails();
    let interfered = scene.interfere("fdatasync:error=EIO:when=1+");
    let commit = scene.write();
    wait_for("the failure to be told", || scene.process.said().contains("cannot sync: Input/output").then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(told(&scene.server) < commit, "acknowledged after a failed sync");
    drop(interfered);
    harness::wait_acknowledged(&scene.server, commit);
    scene.nothing_is_missing(commit);
    assert!(scene.tails() > before, "the file whose sync failed was written again");
    scene.end();
}

/// Every third sync fails under load.
#[test]
fn syncs_that_fail_now_and_then_under_load_lose_nothing() {
    require_servers!(MajorVersion::V15);
    if !strace::possible() {
        return;
    }
    let scene = Scene::new(MajorVersion::V15);
    let ledger = Ledger::builder().padding(500).pause(Duration::from_millis(2)).start(&scene.server);
    let interfered = scene.interfere("fdatasync:error=EIO:when=3+3");
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(900));
        scene.nothing_is_missing(told(&scene.server));
    }
    // Each of its threads counts its own.
    wait_for("a failure", || scene.process.said().contains("cannot sync: Input/output").then_some(()));
    drop(interfered);
    ledger.stop();
    scene.end();
}

/// The directory in which an object got its name cannot be synced: the object is there, and nobody knows whether it stays. A second sync would say yes without
/// having tried, so the run ends, and the next one looks at the object anew.
#[test]
fn a_directory_that_cannot_be_synced_ends_the_run_before_anything_is_acknowledged() {
    require_servers!(MajorVersion::V18);
    if !strace::possible() {
        return;
    }
    let mut scene = Scene::new(MajorVersion::V18);
    let end = scene.server.switch_wal();
    harness::wait_acknowledged(&scene.server, end);
    let archive = scene.vault.archive(&scene.server);
    let folder = scene.vault.temp.join(archive.names.root()).join("wal/00000001");
    let folder = std::fs::read_dir(folder).expect("list").flatten().next().expect("a folder of segments").path();
    let interfered = Strace::attach(scene.process.pid(), "fsync:error=EIO", Some(&folder));
    scene.write();
    let end = scene.server.switch_wal();
    wait_for("the run to end", || (!scene.process.is_running()).then_some(()));
    drop(interfered);
    assert!(scene.process.said().contains("cannot sync directory"), "{}", scene.process.said());
    let acknowledged = told(&scene.server);
    // What was acknowledged is in a tail; the object is none of it.
    scene.nothing_is_missing(acknowledged);
    scene.process = Process::start(&scene.vault, &scene.server, 100);
    harness::wait_acknowledged(&scene.server, end);
    scene.end();
}

#[test]
fn writes_that_find_no_room_are_made_again_elsewhere() {
    require_servers!(MajorVersion::V17);
    if !strace::possible() {
        return;
    }
    let scene = Scene::new(MajorVersion::V17);
    let interfered = scene.interfere("pwrite64:error=ENOSPC:when=1..4");
    let commit = scene.write();
    wait_for("the failure to be told", || scene.process.said().contains("No space left").then_some(()));
    harness::wait_acknowledged(&scene.server, commit);
    drop(interfered);
    scene.nothing_is_missing(commit);
    scene.end();
}

/// Threads are a convenience where the file for the next tail is made; whatever needs one must not end the process.
#[test]
fn a_thread_that_cannot_start_is_done_without() {
    require_servers!(MajorVersion::V16);
    if !strace::possible() {
        return;
    }
    let scene = Scene::new(MajorVersion::V16);
    // A thread for files is there and waits for more, for some seconds.
    harness::wait_acknowledged(&scene.server, scene.server.switch_wal());
    let interfered = scene.interfere("clone3:error=EAGAIN");
    for _ in 0..3 {
        harness::wait_acknowledged(&scene.server, scene.write());
        harness::wait_acknowledged(&scene.server, scene.server.switch_wal());
    }
    drop(interfered);
    scene.end();
}

/// A sync that takes long is waited for, and nothing else is: no acknowledgement before it, and the server may stop meanwhile.
#[test]
fn a_sync_that_hangs_is_not_acknowledged_and_holds_no_server_up() {
    require_servers!(MajorVersion::V18);
    if !strace::possible() {
        return;
    }
    let mut scene = Scene::new(MajorVersion::V18);
    let interfered = scene.hang();
    let commit = scene.write();
    std::thread::sleep(Duration::from_secs(2));
    assert!(told(&scene.server) < commit, "acknowledged before the sync came back");
    let took = scene.server.stop(Stop::Fast);
    assert!(took < harness::NOT_HELD_UP, "the stop waited {took:?} for a hanging sync");
    scene.server.start_again();
    assert!(harness::acknowledged(&scene.server) < commit);
    drop(interfered);
    harness::wait_acknowledged(&scene.server, commit);
    scene.end();
}

/// Where commits wait for the flush itself, nothing is told of what was checked before it; a disk that hangs in it is noticed all the same.
#[test]
fn a_sync_that_hangs_under_waiting_commits_is_a_stall() {
    require_servers!(MajorVersion::V18);
    if !strace::possible() {
        return;
    }
    let scene = Scene::flushing_every(MajorVersion::V18, 0);
    let interfered = scene.hang();
    let commit = scene.write();
    wait_for("the stall", || scene.process.said().contains("Stalled").then_some(()));
    assert!(told(&scene.server) < commit, "acknowledged before the sync came back");
    drop(interfered);
    harness::wait_acknowledged(&scene.server, commit);
    scene.end();
}

/// The thread that reads what arrives waits for the disk itself then; while that hangs the server hears from the receiver all the same, and may stop.
#[test]
fn a_sync_that_hangs_under_waiting_commits_holds_no_server_up() {
    require_servers!(MajorVersion::V16);
    if !strace::possible() {
        return;
    }
    let mut scene = Scene::flushing_every(MajorVersion::V16, 0);
    let (begun, interfered) = (Instant::now(), scene.hang());
    let commit = scene.write();
    std::thread::sleep(Duration::from_secs(4));
    let heard = "select max(reply_time) > now() - interval '2.5 s' from pg_stat_replication";
    scene.server.wait_sql(heard, "t");
    assert!(begun.elapsed() < HANGS / 2, "the server hears nothing");
    assert!(told(&scene.server) < commit, "acknowledged before the sync came back");
    let took = scene.server.stop(Stop::Fast);
    assert!(took < harness::NOT_HELD_UP, "the stop waited {took:?} for a hanging sync");
    scene.server.start_again();
    assert!(harness::acknowledged(&scene.server) < commit);
    drop(interfered);
    harness::wait_acknowledged(&scene.server, commit);
    scene.end();
}
