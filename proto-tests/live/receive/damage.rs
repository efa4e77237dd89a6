//! WAL that is damaged on its way: received once more; damaged again: refused, and never acknowledged.

use std::time::Duration;

use walrecv::error::Kind;
use walrecv::pg::{MajorVersion, TimelineId};
use walrecv::receive::ReceiveEvent;

use super::harness::{self, Receiving, Vault};
use crate::support::proxy::Proxy;
use crate::support::{Server, require_servers, wait_for};

/// What a test writes into a table where the wire shall be bad.
const MARKER: &str = "flip-a-bit-after-this:";

fn through(server: &Server, proxy: &Proxy) -> walrecv::receive::ReceiveOptions {
    let mut options = harness::options_through(server, proxy);
    options.flush_interval = Duration::from_millis(100);
    options
}

#[test]
fn damaged_once_is_received_again() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    server.sql("create table t (id int, filler text)");
    let proxy = Proxy::start(server.port());
    proxy.damage_after(MARKER, 1);
    let vault = Vault::new();
    let receiving = Receiving::start(through(&server, &proxy), vault.place());
    receiving.wait_streaming();
    server.sql("insert into t values (1, 'before')");
    harness::wait_acknowledged(&server, server.lsn());
    server.sql(&format!("insert into t values (2, '{MARKER} and more text')"));
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    assert_eq!(proxy.undamaged(), 0, "the wire was bad once");
    assert!(receiving.saw(|e| matches!(e, ReceiveEvent::CorruptWal { .. })), "{:#?}", receiving.events());
    receiving.stop();
    let size = harness::segment_size_of(&server);
    let number = size.segment_before(end);
    let (stored, complete) = harness::segment(&harness::runtime(), &vault.archive(&server), TimelineId(1), number);
    assert!(complete && stored == harness::own_segment(&server, TimelineId(1), number, size));
}

/// A wire that is bad now and then is no server that is: what became durable in between was good.
#[test]
fn damaged_twice_in_one_segment_is_two_accidents() {
    require_servers!(MajorVersion::V17);
    let server = Server::builder(MajorVersion::V17).segment_size_mb(16).start();
    harness::create_slot(&server);
    server.sql("create table t (id int, filler text)");
    let proxy = Proxy::start(server.port());
    let vault = Vault::new();
    let receiving = Receiving::start(through(&server, &proxy), vault.place());
    receiving.wait_streaming();
    for id in 1..=2 {
        proxy.damage_after(MARKER, 1);
        server.sql(&format!("insert into t values ({id}, '{MARKER} and more text')"));
        harness::wait_acknowledged(&server, server.lsn());
        assert_eq!(proxy.undamaged(), 0, "the wire was bad once more");
    }
    let accidents = receiving.events().iter().filter(|e| matches!(e, ReceiveEvent::CorruptWal { .. })).count();
    assert_eq!(accidents, 2, "{:#?}", receiving.events());
    receiving.stop();
}

/// What is no message may have been damaged on its way as well; when nothing comes between two of them, it is not a message that is damaged.
#[test]
fn a_message_that_makes_no_sense_is_received_again() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    server.sql("create table t (id int)");
    let proxy = Proxy::start(server.port());
    let vault = Vault::new();
    let receiving = Receiving::start(through(&server, &proxy), vault.place());
    receiving.wait_streaming();
    for id in 1..=2 {
        proxy.garble(1);
        server.sql(&format!("insert into t values ({id})"));
        harness::wait_acknowledged(&server, server.lsn());
        wait_for("a message that makes no sense", || (proxy.ungarbled() == 0).then_some(()));
        server.sql("insert into t values (0)");
        harness::wait_acknowledged(&server, server.lsn());
    }
    proxy.garble(u32::MAX);
    let error = receiving.end().expect_err("nothing but messages that make no sense");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

#[test]
fn damaged_again_is_refused_and_never_acknowledged() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    server.sql("create table t (id int, filler text)");
    let proxy = Proxy::start(server.port());
    proxy.damage_after(MARKER, u32::MAX);
    let vault = Vault::new();
    let receiving = Receiving::start(through(&server, &proxy), vault.place());
    receiving.wait_streaming();
    server.sql("insert into t values (1, 'before')");
    let good = server.lsn();
    harness::wait_acknowledged(&server, good);
    server.sql(&format!("insert into t values (2, '{MARKER} and more text')"));
    let bad = server.lsn();
    let error = receiving.end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    let told = harness::acknowledged(&server);
    assert!(told < bad, "acknowledged {told}, damaged before {bad}");
    // A service manager starts it again: the same refusal, and one note in the repository for whoever looks later.
    let error = Receiving::start(through(&server, &proxy), vault.place()).end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    let noted = harness::runtime().block_on(vault.archive(&server).corrupt_wal()).expect("the notes");
    let [(_, found)] = noted.as_slice() else { panic!("{noted:?}") };
    assert!(found.lsn >= good && found.lsn < bad && found.timeline == TimelineId(1), "{found:?}");
    // What was good is still there.
    let size = harness::segment_size_of(&server);
    let number = size.segment_of(good);
    let (stored, _) = harness::segment(&harness::runtime(), &vault.archive(&server), TimelineId(1), number);
    let wanted = size.offset_of(good) as usize;
    let own = harness::own_segment(&server, TimelineId(1), number, size);
    assert!(stored.len() >= wanted && stored[..wanted] == own[..wanted]);
}
