//! What `wal-fetch` gives equals, byte for byte, what `pg_receivewal` wrote beside it, on every version.

use walrecv::pg::{MajorVersion, SegmentName, SegmentSize, TimelineId};

use crate::site::{Site, end, wait_durable};
use crate::support::guard::Guard;
use crate::support::{Server, TempDir, Walrecv, install, soaks, wait_for};

/// `pg_receivewal` beside walrecv, on a slot of its own.
struct Beside {
    child: std::process::Child,
    _guard: Guard,
    dir: TempDir,
}

impl Beside {
    fn start(server: &Server) -> Beside {
        let dir = TempDir::for_postgres("beside");
        let path = dir.path().to_str().expect("a path");
        server.run("pg_receivewal", &["-D", path, "-S", "beside", "--create-slot"]);
        let mut command = server.bin("pg_receivewal");
        let child = command.args(["-D", path, "-S", "beside", "--synchronous"]).spawn().expect("start pg_receivewal");
        Beside { _guard: Guard::new(child.id()), child, dir }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Small commits, records over several segments, and segments that end early.
fn load(server: &Server, rounds: u32) {
    server.sql("create table t (id bigint, filler text)");
    for _ in 0..rounds {
        server.sql("insert into t select i, repeat(md5(i::text), 20) from generate_series(1, 3000) i");
        server.sql("select pg_logical_emit_message(false, 'large', repeat(md5(random()::text), 80000))");
        for _ in 0..5 {
            server.sql("insert into t values (1, 'small')");
        }
        server.switch_wal();
    }
}

fn compare(version: MajorVersion, segment_mb: u32, rounds: u32) {
    let server = Server::builder(version).segment_size_mb(segment_mb).start();
    let site = Site::new(&server);
    let beside = Beside::start(&server);
    let slots = "select min(restart_lsn) from pg_replication_slots";
    let from = server.sql(slots).parse().expect("a position");
    let receiver = site.receive(&["--compression", if segment_mb == 1 { "lz4" } else { "zstd" }]);
    load(&server, rounds);
    let done = server.switch_wal();
    server.sql("insert into t values (2, 'in the next segment')");
    wait_durable(&server, server.lsn());

    let size = SegmentSize::new(u64::from(segment_mb) << 20).expect("a size");
    let pgdata = site.places.postgres_dir("empty");
    let config = site.config().display().to_string();
    let mut number = size.segment_of(from);
    let mut compared = 0;
    while number <= size.segment_before(done) {
        let name = SegmentName::new(TimelineId(1), number, size).to_string();
        let theirs = beside.dir.join(&name);
        wait_for(&format!("pg_receivewal to finish {name}"), || theirs.exists().then_some(()));
        let mut fetch = Walrecv::new(["wal-fetch", &name, "fetched"]).by_postgres().dir(&pgdata);
        // Half by the environment, half by the option.
        fetch =
            if compared % 2 == 0 { fetch.env("WALRECV_CONFIG", &config) } else { fetch.args(["--config", &config]) };
        fetch.run().expect_code(0);
        let (ours, theirs) = (std::fs::read(pgdata.join("fetched")), std::fs::read(theirs));
        let same = ours.expect("what was fetched") == theirs.expect("their file");
        assert!(same, "PostgreSQL {version}: {name} differs from what pg_receivewal wrote");
        number = number.next();
        compared += 1;
    }
    assert!(compared >= rounds, "only {compared} segments compared");
    println!("PostgreSQL {version}: {compared} segments of {segment_mb} MB are equal");
    drop(beside);
    end(receiver);
}

#[test]
fn every_segment_fetched_equals_what_pg_receivewal_wrote() {
    for version in install::versions() {
        compare(version, 1, 3);
    }
}

#[test]
fn large_segments_too() {
    crate::support::require_servers!(MajorVersion::V17);
    compare(MajorVersion::V17, 16, 2);
    compare(MajorVersion::V17, 64, 2);
    // The largest that PostgreSQL knows: 64 objects for one segment, which `wal-fetch` joins again.
    if soaks() {
        compare(MajorVersion::V18, 1024, 2);
    }
}
