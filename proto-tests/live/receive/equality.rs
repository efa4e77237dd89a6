//! Byte equality with `pg_receivewal` on every version.

use walrecv::pg::{MajorVersion, SegmentName, SegmentNumber, SegmentSize, TimelineId};
use walrecv::receive::ReceiveEvent;

use super::harness::{self, Receiving, Vault};
use crate::support::{Server, TempDir, install, wait_for};

/// `pg_receivewal` beside the receiver, on a slot of its own.
struct Beside {
    child: std::process::Child,
    pub dir: TempDir,
}

impl Beside {
    fn start(server: &Server) -> Beside {
        let dir = TempDir::for_postgres("beside");
        let path = dir.path().to_str().expect("a path");
        server.run("pg_receivewal", &["-D", path, "-S", "beside", "--create-slot"]);
        let mut command = server.bin("pg_receivewal");
        let child = command.args(["-D", path, "-S", "beside", "--synchronous"]).spawn().expect("start pg_receivewal");
        Beside { child, dir }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Small commits, a record over several segments, switches, and a record in the middle of which a segment ends.
fn load(server: &Server) {
    server.sql("create table t (id bigint, filler text)");
    for round in 0..4 {
        server.sql(&format!(
            "insert into t select i, repeat(md5(i::text), 20) from generate_series(1, 3000) i where {round} >= 0"
        ));
        server.sql("select pg_logical_emit_message(false, 'large', repeat(md5(random()::text), 80000))");
        for _ in 0..20 {
            server.sql("insert into t values (1, 'small')");
        }
        server.switch_wal();
    }
}

fn compare(version: MajorVersion, segment_mb: u32) {
    let server = Server::builder(version).segment_size_mb(segment_mb).start();
    harness::create_slot(&server);
    let beside = Beside::start(&server);
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&server), vault.place());
    receiving.wait_streaming();
    load(&server);
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);

    let size = SegmentSize::new(u64::from(segment_mb) << 20).expect("a size");
    let last = size.segment_before(end);
    let runtime = harness::runtime();
    let archive = vault.archive(&server);
    let first = receiving.events().iter().find_map(|e| match e {
        ReceiveEvent::Streaming { from, .. } => Some(size.segment_of(*from)),
        _ => None,
    });
    let first = first.expect("it streams");
    let mut compared = 0;
    for number in (first.0..=last.0).map(SegmentNumber) {
        let name = SegmentName::new(TimelineId(1), number, size);
        let theirs = beside.dir.join(name.to_string());
        wait_for(&format!("pg_receivewal to finish {name}"), || theirs.exists().then_some(()));
        let theirs = std::fs::read(theirs).expect("their file");
        // Acknowledged with its tail, before its object is made.
        let ours = wait_for(&format!("{name} to be stored"), || {
            let (bytes, complete) = harness::segment(&runtime, &archive, TimelineId(1), number);
            complete.then_some(bytes)
        });
        assert!(ours == theirs, "{name} differs from what pg_receivewal wrote");
        compared += 1;
    }
    assert!(compared >= 4, "only {compared} segments compared");
    // What is complete has no tail any more.
    server.sql("insert into t values (2, 'after')");
    harness::wait_acknowledged(&server, server.lsn());
    wait_for("the tails of complete segments to go", || {
        let inventory = runtime.block_on(archive.inventory()).expect("list");
        let stock = &inventory.timelines[&TimelineId(1)];
        stock.tails.keys().all(|number| !stock.complete.contains(number)).then_some(())
    });
    let (report, _) = receiving.stop();
    assert_eq!(report.behind, 0, "{report:?}");
    drop(server);
}

#[test]
fn every_complete_segment_equals_what_pg_receivewal_wrote() {
    for version in install::versions() {
        compare(version, 1);
    }
}

#[test]
fn large_segments_are_stored_in_parts() {
    crate::support::require_servers!(MajorVersion::V18);
    compare(MajorVersion::V18, 32);
}
