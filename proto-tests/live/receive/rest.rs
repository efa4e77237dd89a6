//! An idle stream keeps nothing of its segment in memory, and finishes the segment from its tail when WAL comes again.

use std::time::Duration;

use walrecv::pg::{Lsn, MajorVersion};
use walrecv::receive::{Place, ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::nothing_is_missing;
use super::store::Store;
use crate::support::{Server, require_servers, wait_for};

const QUIET: Duration = Duration::from_millis(300);
const INTERVAL: Duration = Duration::from_millis(50);

fn server() -> Server {
    let server = Server::builder(MajorVersion::V18).segment_size_mb(16).start();
    harness::create_slot(&server);
    server.sql("create table t as select 0 as i, '' as filler");
    server.switch_wal();
    server
}

fn options(server: &Server) -> ReceiveOptions {
    ReceiveOptions { rest_after: QUIET, flush_interval: INTERVAL, ..harness::options(server) }
}

/// Some 2.5 MB of WAL in several commits; its end.
fn write(server: &Server) -> Lsn {
    for _ in 0..4 {
        server.sql("insert into t select i, repeat(md5(i::text), 20) from generate_series(1, 800) i");
        std::thread::sleep(Duration::from_millis(60));
    }
    server.lsn()
}

/// Waits until everything is durable and the stream holds nothing in memory.
fn wait_rest(server: &Server, receiving: &Receiving, end: Lsn) {
    harness::wait_acknowledged(server, end);
    wait_for("the memory to be given back", || (receiving.stats().held_bytes.get() == 0).then_some(()));
}

fn rests_and_goes_on(place: Place, vault: &Vault, server: &Server, flush_interval: Duration) {
    let archive = vault.archive_in(place.repo.clone(), server);
    let from = harness::acknowledged(server);
    let receiving = Receiving::start(ReceiveOptions { flush_interval, ..options(server) }, place);
    receiving.wait_streaming();
    // Twice in one segment: what was in memory leaves it, and the tail goes on without it.
    for _ in 0..2 {
        let end = write(server);
        wait_rest(server, &receiving, end);
        nothing_is_missing(&archive, server, from, end);
    }
    write(server);
    let end = server.switch_wal();
    server.sql("insert into t values (1, 'in the next segment')");
    harness::wait_acknowledged(server, end);
    receiving.wait_event("the segment", |e| matches!(e, ReceiveEvent::SegmentStored { .. }));
    nothing_is_missing(&archive, server, from, end);
    assert!(harness::objects_are_whole(&harness::runtime(), &archive) > 0);
    let again = |e: &ReceiveEvent| matches!(e, ReceiveEvent::Reconnecting { .. } | ReceiveEvent::CorruptWal { .. });
    assert!(!receiving.saw(again), "{:#?}", receiving.events());
    receiving.stop();
}

#[test]
fn from_a_local_tail() {
    require_servers!(MajorVersion::V18);
    for flush_interval in [INTERVAL, Duration::ZERO] {
        let (server, vault) = (server(), Vault::new());
        rests_and_goes_on(vault.place(), &vault, &server, flush_interval);
    }
}

#[test]
fn from_pieces() {
    require_servers!(MajorVersion::V18);
    for flush_interval in [INTERVAL, Duration::ZERO] {
        let (server, vault, store) = (server(), Vault::new(), Store::default());
        rests_and_goes_on(Place { repo: store.repository(), ..vault.place() }, &vault, &server, flush_interval);
    }
}

/// What cannot be read back is received again: no hole, and no end of the run.
#[test]
fn a_tail_that_is_gone_is_received_again() {
    require_servers!(MajorVersion::V18);
    let (server, vault, store) = (server(), Vault::new(), Store::default());
    let place = Place { repo: store.repository(), ..vault.place() };
    let archive = vault.archive_in(store.repository(), &server);
    let from = harness::acknowledged(&server);
    let receiving = Receiving::start(options(&server), place);
    receiving.wait_streaming();
    let end = write(&server);
    wait_rest(&server, &receiving, end);
    let piece = store.names().into_iter().find(|name| name.contains("/tail/")).expect("a piece");
    store.remove(&piece);
    server.switch_wal();
    server.sql("insert into t values (1, 'in the next segment')");
    receiving.wait_event("the segment", |e| matches!(e, ReceiveEvent::SegmentStored { .. }));
    harness::wait_acknowledged(&server, server.lsn());
    nothing_is_missing(&archive, &server, from, server.lsn());
    receiving.wait_event("the reason", |e| match e {
        ReceiveEvent::Reconnecting { why, .. } => why.contains("cannot be read back"),
        _ => false,
    });
    receiving.stop();
}

/// Reading back waits for the repository like a put does: nothing becomes durable meanwhile, so the server is left until it works again.
#[test]
fn a_tail_that_cannot_be_read_back_for_long_is_a_stall() {
    require_servers!(MajorVersion::V18);
    let (server, vault, store) = (server(), Vault::new(), Store::default());
    let place = Place { repo: store.repository(), ..vault.place() };
    let archive = vault.archive_in(store.repository(), &server);
    let from = harness::acknowledged(&server);
    let options = ReceiveOptions { stall_timeout: Duration::from_millis(1500), ..options(&server) };
    let receiving = Receiving::start(options, place);
    receiving.wait_streaming();
    let end = write(&server);
    wait_rest(&server, &receiving, end);
    store.unreadable(true);
    server.switch_wal();
    server.sql("insert into t values (1, 'in the next segment')");
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    server.wait_sql("select count(*) from pg_replication_slots where active", "0");
    store.unreadable(false);
    receiving.wait_event("the end of it", |e| matches!(e, ReceiveEvent::Resumed));
    harness::wait_acknowledged(&server, server.lsn());
    nothing_is_missing(&archive, &server, from, server.lsn());
    receiving.stop();
}

fn open_tails(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(open_tails(&path)),
            false if path.extension().is_some_and(|e| e == "open") => found.push(path),
            false => {}
        }
    }
    found
}

/// What left memory stands in a file that somebody deletes: the segment is received again, from its beginning on.
#[test]
fn what_is_gone_with_its_tail_is_received_again() {
    require_servers!(MajorVersion::V16);
    let server = Server::builder(MajorVersion::V16).segment_size_mb(16).start();
    harness::create_slot(&server);
    server.sql("create table t as select 0 as i, '' as filler");
    server.switch_wal();
    let vault = Vault::new();
    let from = harness::acknowledged(&server);
    let receiving = Receiving::start(options(&server), vault.place());
    receiving.wait_streaming();
    let end = write(&server);
    wait_rest(&server, &receiving, end);
    let size = harness::segment_size_of(&server);
    let begun = end.align_down(size.bytes());
    let tails = open_tails(vault.temp.path());
    assert!(!tails.is_empty(), "a tail");
    tails.iter().for_each(|tail| std::fs::remove_file(tail).expect("delete the tail"));
    write(&server);
    let end = server.switch_wal();
    server.sql("insert into t values (1, 'in the next segment')");
    harness::wait_acknowledged(&server, end);
    nothing_is_missing(&vault.archive(&server), &server, from, end);
    let streams = |event: &ReceiveEvent| matches!(event, ReceiveEvent::Streaming { from, .. } if *from <= begun);
    let count = receiving.events().iter().filter(|event| streams(event)).count();
    assert_eq!(count, 2, "{:#?}", receiving.events());
    receiving.stop();
}
