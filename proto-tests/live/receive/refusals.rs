//! What ends a run at once, with the right kind of error, and without a byte that is not true.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walrecv::error::{Error, Kind};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::receive::{ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::nothing_is_missing;
use crate::support::{Server, Stop, TempDir, require_servers, wait_for};

fn refused(server: &Server, vault: &Vault) -> Error {
    Receiving::start(harness::options(server), vault.place()).end().expect_err("a refusal")
}

#[test]
fn a_missing_slot_and_one_of_another_kind() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::builder(version).setting("wal_level", "logical").start();
        let vault = Vault::new();
        let error = refused(&server, &vault);
        assert_eq!(error.kind(), Kind::Slot, "{error}");
        assert!(error.advice().is_some_and(|a| a.contains("walrecv slot create")), "{error:?}");
        server.sql("select pg_create_logical_replication_slot('walrecv', 'test_decoding')");
        let error = refused(&server, &vault);
        assert_eq!(error.kind(), Kind::Slot, "{error}");
    }
}

/// Made by hand without a reservation, it holds nothing before its first use: nothing between that and the first byte may be missing.
#[test]
fn a_slot_without_reserved_wal_holds_it_from_the_first_byte_on() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::start(version);
        server.sql("create table t (id int, filler text)");
        server.sql("select pg_create_physical_replication_slot('walrecv')");
        assert_eq!(harness::acknowledged(&server), Lsn(0), "{version}: nothing is reserved");
        server.switch_wal();
        let before = server.lsn();
        let vault = Vault::new();
        let receiving = Receiving::start(harness::options(&server), vault.place());
        receiving.wait_streaming();
        let start = |event: &ReceiveEvent| match event {
            ReceiveEvent::Streaming { from, .. } => Some(*from),
            _ => None,
        };
        let from = receiving.events().iter().find_map(start).expect("it streams");
        assert!(from <= before, "{version}: streaming from {from}, the server was at {before} before");
        // The first status reserves WAL, whatever comes.
        harness::wait_acknowledged(&server, from);
        server.sql("insert into t select i, repeat('x', 300) from generate_series(1, 8000) i");
        let end = server.switch_wal();
        harness::wait_acknowledged(&server, end);
        receiving.stop();
        nothing_is_missing(&vault.archive(&server), &server, from, end);
    }
}

#[test]
fn another_cluster_is_refused_before_anything_is_written() {
    require_servers!(MajorVersion::V18);
    let vault = Vault::new();
    let first = Server::start(MajorVersion::V18);
    harness::create_slot(&first);
    let receiving = Receiving::start(harness::options(&first), vault.place());
    receiving.wait_streaming();
    first.sql("create table t (id int)");
    harness::wait_acknowledged(&first, first.lsn());
    receiving.stop();
    let second = Server::builder(MajorVersion::V18).own_identity().start();
    harness::create_slot(&second);
    let error = refused(&second, &vault);
    assert_eq!(error.kind(), Kind::Diverged, "{error}");
    let folder = vault.temp.join(format!("clusters/{}", harness::CLUSTER));
    assert_eq!(std::fs::read_dir(folder).expect("the cluster's folder").count(), 1, "nothing of the other one");
}

/// `pg_resetwal --wal-segsize` keeps the system identifier: the names of segments mean other positions from then on.
#[test]
fn another_segment_size_under_the_same_identifier_is_refused() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let vault = Vault::new();
        let mut server = Server::builder(version).setting("min_wal_size", "80MB").start();
        harness::create_slot(&server);
        let receiving = Receiving::start(harness::options(&server), vault.place());
        receiving.wait_streaming();
        server.sql("create table t (id int)");
        harness::wait_acknowledged(&server, server.switch_wal());
        receiving.stop();
        server.sql("select pg_drop_replication_slot('walrecv')");
        server.stop(Stop::Fast);
        let output = server.bin("pg_resetwal").arg("--wal-segsize=4").arg(server.data_dir()).output().expect("run it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.start_again();
        harness::create_slot(&server);
        let error = refused(&server, &vault);
        assert_eq!(error.kind(), Kind::Diverged, "{version}: {error}");
        assert!(error.to_string().contains("4194304") && error.to_string().contains("1048576"), "{version}: {error}");
        let folder = vault.temp.join(format!("clusters/{}", harness::CLUSTER));
        assert_eq!(std::fs::read_dir(folder).expect("the cluster's folder").count(), 1, "{version}: a second archive");
    }
}

#[test]
fn removed_wal_is_a_hole_that_is_named() {
    require_servers!(MajorVersion::V15);
    let server =
        Server::builder(MajorVersion::V15).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB").start();
    harness::create_slot(&server);
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&server), vault.place());
    receiving.wait_streaming();
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    receiving.stop();
    server.sql("select pg_drop_replication_slot('walrecv')");
    for _ in 0..6 {
        server.switch_wal();
        server.sql("checkpoint");
    }
    harness::create_slot(&server);
    let error = refused(&server, &vault);
    assert_eq!(error.kind(), Kind::Slot, "{error}");
    assert!(error.to_string().contains("needs WAL from 0/"), "{error}");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success());
}

/// A server that was put back to an earlier state sends other bytes for the same positions.
#[test]
fn a_server_that_was_rolled_back_is_found_and_never_acknowledged() {
    require_servers!(MajorVersion::V18);
    rolled_back(Duration::from_millis(100));
}

/// Where every commit is flushed at once, nothing that was not compared gets into a tail beside the first history's.
#[test]
fn a_server_that_was_rolled_back_leaves_no_second_tail_that_disagrees() {
    require_servers!(MajorVersion::V18);
    rolled_back(Duration::ZERO);
}

fn rolled_back(interval: Duration) {
    let mut server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    server.sql("create table t (id int, filler text)");
    let vault = Vault::new();
    let mut options = harness::options(&server);
    options.flush_interval = interval;
    let receiving = Receiving::start(options.clone(), vault.place());
    harness::wait_acknowledged(&server, server.lsn());
    let (_, _) = receiving.stop();
    server.stop(Stop::Fast);
    let saved = vault.temp.join("../").join(format!("walrecv-saved-{}-{}", std::process::id(), interval.as_millis()));
    copy(server.data_dir(), &saved);
    server.start_again();
    let receiving = Receiving::start(options.clone(), vault.place());
    receiving.wait_streaming();
    // Up to here, at most, the two histories are the same.
    let common = server.lsn();
    // One transaction, so that its tail has long stretches without an end to compare at.
    server.sql("insert into t select i, 'first history' from generate_series(1, 3000) i");
    let first = server.lsn();
    harness::wait_acknowledged(&server, first);
    receiving.stop();
    server.stop(Stop::Fast);
    std::fs::remove_dir_all(server.data_dir()).expect("remove the data");
    copy(&saved, server.data_dir());
    std::fs::remove_dir_all(&saved).expect("remove the copy");
    server.start_again();
    server.sql("insert into t values (2, 'another history, and a longer one')");
    let before = harness::acknowledged(&server);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    // Time to flush what came, which differs and ends before anything that it could be compared at.
    std::thread::sleep(Duration::from_millis(600));
    server.sql("insert into t select i, 'more' from generate_series(1, 6000) i");
    let error = receiving.end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Diverged, "{error}");
    let size = harness::segment_size_of(&server);
    let start = size.segment_of(before).start(size);
    let told = harness::acknowledged(&server);
    assert!(told <= common && told >= start, "acknowledged {told}, before {before}, the same up to {common}");
    // The first history is untouched.
    let (stored, _) =
        harness::segment(&harness::runtime(), &vault.archive(&server), TimelineId(1), size.segment_of(first));
    assert!(stored.windows(13).any(|w| w == b"first history"));
}

/// Two servers of one origin write different WAL, each with a receiver of its own and without a slot. The one that finds the segment stored otherwise must not
/// try again: a run without a slot begins behind what is stored, and would put its own history behind the other one's.
#[test]
fn a_segment_that_was_stored_otherwise_is_final_where_no_slot_brings_it_again() {
    require_servers!(MajorVersion::V17);
    let mut one = Server::start(MajorVersion::V17);
    one.sql("create table t (id int, filler text)");
    one.stop(Stop::Fast);
    let vault = Vault::new();
    let twin = TempDir::for_postgres("twin");
    let saved = twin.join("data");
    copy(one.data_dir(), &saved);
    one.start_again();
    let two = Server::builder(MajorVersion::V17).on_data_dir(&saved).start();
    let without_slot = |server| ReceiveOptions { slot: None, ..harness::options(server) };
    let [first, second] = [&one, &two].map(|server| Receiving::start(without_slot(server), vault.place()));
    first.wait_streaming();
    second.wait_streaming();
    one.sql("insert into t select i, 'one history' from generate_series(1, 3000) i");
    let (runtime, size) = (harness::runtime(), harness::segment_size_of(&one));
    let segment = size.segment_before(one.switch_wal());
    let stored = || {
        let (stored, complete) = harness::segment(&runtime, &vault.archive(&one), TimelineId(1), segment);
        complete.then_some(stored)
    };
    let before = wait_for("the complete segment", stored);
    two.sql("insert into t select i, 'another history, and a longer one' from generate_series(1, 3000) i");
    two.switch_wal();
    let (ended, seen) = second.end_and_events();
    let error = ended.expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Diverged, "{error}");
    let begun = seen.iter().filter(|event| matches!(event, ReceiveEvent::Streaming { .. })).count();
    assert_eq!(begun, 1, "it tried again: {seen:#?}");
    first.stop();
    assert!(stored() == Some(before), "what was stored is as it was");
    drop(two);
}

/// A tail that a power cut tore is no hindrance, and counts for nothing.
#[test]
fn a_torn_tail_is_received_again() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    server.sql("create table t (id int, filler text)");
    let vault = Vault::new();
    let mut options = harness::options(&server);
    options.flush_interval = Duration::ZERO;
    for round in 0..3 {
        let receiving = Receiving::start(options.clone(), vault.place());
        receiving.wait_streaming();
        server.sql(&format!("insert into t select i, 'round {round}' from generate_series(1, 500) i"));
        harness::wait_acknowledged(&server, server.lsn());
        receiving.stop();
        tear(&vault, &server, round);
    }
    let receiving = Receiving::start(options, vault.place());
    let end = server.switch_wal();
    let size = harness::segment_size_of(&server);
    let number = size.segment_before(end);
    let (runtime, archive) = (harness::runtime(), vault.archive(&server));
    // Its tail is acknowledged before the object is made.
    let stored = wait_for("the complete segment", || {
        let (stored, complete) = harness::segment(&runtime, &archive, TimelineId(1), number);
        complete.then_some(stored)
    });
    receiving.stop();
    assert!(stored == harness::own_segment(&server, TimelineId(1), number, size));
}

/// Zeroes the end of every tail file, or cuts it off.
fn tear(vault: &Vault, server: &Server, round: u32) {
    let archive = vault.archive(server);
    let root = vault.temp.join(archive.names.root()).join("tail");
    let mut torn = 0;
    for folder in std::fs::read_dir(root.join("00000001")).expect("tails").flatten() {
        for file in std::fs::read_dir(folder.path()).expect("a folder of tails").flatten() {
            let mut bytes = std::fs::read(file.path()).expect("a tail");
            let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
            let cut = used - (used / 3).min(200 * (round as usize + 1));
            match round {
                0 => bytes.truncate(cut),
                _ => bytes[cut..].fill(0),
            }
            std::fs::write(file.path(), bytes).expect("tear it");
            torn += 1;
        }
    }
    assert!(torn > 0, "there was a tail to tear");
}
