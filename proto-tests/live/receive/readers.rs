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
    ledger.wait_for_more(20, Duration::from_secs(30));
    let (archive, runtime) = (vault.archive(&server), harness::runtime());
    let size = archive.names.segment_size;
    for _ in 0..rounds(60, 2000) {
        // Panics where what is read counts as damaged.
        let number = size.segment_of(harness::acknowledged(&server));
        harness::segment(&runtime, &archive, TimelineId(1), number);
    }
    ledger.stop();
    receiving.stop();
}
