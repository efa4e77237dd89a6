//! Reading what is being written: restores and `wal-fetch` look at tails that a receiver is writing to.

use std::time::Duration;

use walrecv::pg::{MajorVersion, TimelineId};

use super::harness::{self, Receiving, Vault};
use crate::support::{Ledger, Server, require_servers, rounds};

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
