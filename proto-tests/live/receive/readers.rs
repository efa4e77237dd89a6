//! Reading what is being written: restores and `wal-fetch` look at tails that a receiver is writing to.

use std::fs::DirEntry;
use std::time::{Duration, SystemTime};

use walrecv::pg::{MajorVersion, SegmentName, TimelineId};
use walrecv::receive::ReceiveOptions;

use super::harness::{self, Receiving, Vault};
use super::kill::nothing_is_missing;
use crate::support::{Ledger, Server, require_servers, rounds, wait_for};

#[test]
fn a_tail_that_is_being_written_is_never_damaged() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    let vault = Vault::new();
    let mut options = harness::options(&server);
    options.flush_interval = Duration::ZERO;
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    let ledger = Ledger::builder().writers(2).padding(6000).start(&server);
    ledger.wait_for_more(20);
    let (archive, runtime) = (vault.archive(&server), harness::runtime());
    let size = archive.names.segment_size;
    let mut tails = 0;
    for _ in 0..rounds(60, 2000) {
        let acknowledged = harness::acknowledged(&server);
        let number = size.segment_of(acknowledged);
        // Panics where what is read counts as damaged.
        let (stored, complete) = harness::segment(&runtime, &archive, TimelineId(1), number);
        let wanted = size.offset_of(acknowledged) as usize;
        assert!(stored.len() >= wanted, "{} bytes are read where {acknowledged} is acknowledged", stored.len());
        let own = harness::own_segment(&server, TimelineId(1), number, size);
        assert!(stored[..wanted] == own[..wanted], "what is read below {acknowledged} is not what the server wrote");
        tails += u32::from(!complete);
    }
    assert!(tails > 0, "no tail was read while it was written");
    ledger.stop();
    receiving.stop();
}

/// Where every commit waits, a tail file that is no longer needed becomes the next one's; what it held before is never taken for WAL of that.
#[test]
fn a_tail_file_is_written_again_as_another_one() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    let vault = Vault::new();
    let options = ReceiveOptions { flush_interval: Duration::ZERO, ..harness::options(&server) };
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    server.sql("create table t as select 0 as i, '' as filler");
    let from = harness::acknowledged(&server);
    let (archive, mut begun) = (vault.archive(&server), Vec::new());
    // A tail that is deleted too late for the next one leaves it with new zeros.
    wait_for("a tail file to be written again", || {
        begun.push(SystemTime::now());
        // Commits of one size: frames of one tail end where those of another do.
        for _ in 0..20 {
            server.sql("insert into t select i, repeat('x', 900) from generate_series(1, 20) i");
        }
        let end = server.lsn();
        harness::wait_acknowledged(&server, end);
        nothing_is_missing(&archive, &server, from, end);
        let size = archive.names.segment_size;
        let segment = SegmentName::new(TimelineId(1), size.segment_before(end), size);
        let files = std::fs::read_dir(archive.repo.local_root().unwrap().join(archive.names.tail_folder(segment)));
        let made = |entry: DirEntry| entry.metadata().unwrap().created().unwrap();
        let made: Vec<SystemTime> = files.unwrap().map(|entry| made(entry.unwrap())).collect();
        server.switch_wal();
        // New zeros are made in the segment before, or, where that was too late for it, in the one before that.
        let before = *begun.get(begun.len().checked_sub(3)?)?;
        (begun.len() > 6 && made.into_iter().any(|made| made < before)).then_some(())
    });
    for _ in 0..3 {
        server.sql("insert into t select i, repeat('x', 900) from generate_series(1, 20) i");
        let end = server.lsn();
        harness::wait_acknowledged(&server, end);
        nothing_is_missing(&archive, &server, from, end);
    }
    receiving.stop();
}
