//! The repository comes and goes under load: at no moment is anything acknowledged that is not in it.

use std::time::Duration;

use walrecv::pg::{MajorVersion, TimelineId};
use walrecv::receive::{Place, ReceiveEvent};

use super::harness::{self, Receiving, Vault};
use super::kill::{nothing_is_missing, told};
use super::store::Store;
use crate::support::{Ledger, Seed, Server, require_servers, rounds};

fn comes_and_goes(version: MajorVersion, flush: Duration, times: u32) {
    let server = Server::builder(version).setting("wal_keep_size", "2GB").setting("max_wal_size", "2GB").start();
    harness::create_slot(&server);
    let (vault, store) = (Vault::new(), Store::default());
    let mut seed = Seed::of_run();
    let from = harness::acknowledged(&server);
    let mut options = harness::options(&server);
    options.flush_interval = flush;
    options.stall_timeout = Duration::from_millis(300);
    options.status_interval = Duration::from_millis(100);
    options.memory = 3 << 20;
    let receiving = Receiving::start(options, Place { repo: store.repository(), ..vault.place() });
    receiving.wait_streaming();
    let ledger = Ledger::builder().writers(2).padding(3000).start(&server);
    let archive = vault.archive_in(store.repository(), &server);
    for _ in 0..times {
        store.delay(Duration::from_millis(seed.below(150)));
        store.away(seed.below(3) > 0);
        std::thread::sleep(Duration::from_millis(seed.between(50, 900)));
        nothing_is_missing(&archive, &server, from, told(&server));
    }
    store.away(true);
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    store.away(false);
    store.delay(Duration::ZERO);
    ledger.stop();
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    nothing_is_missing(&archive, &server, from, end);
    let (report, _) = receiving.stop();
    assert_eq!(report.behind, 0);
    let inventory = harness::runtime().block_on(archive.inventory()).expect("list");
    let complete = &inventory.timelines[&TimelineId(1)].complete;
    let (first, last) = (complete.first().expect("segments").0, complete.last().expect("segments").0);
    assert_eq!(complete.len() as u64, last - first + 1, "no hole: {complete:?}");
}

#[test]
fn a_store_that_comes_and_goes_with_every_commit_flushed() {
    require_servers!(MajorVersion::V18);
    comes_and_goes(MajorVersion::V18, Duration::ZERO, rounds(15, 200));
}

#[test]
fn a_store_that_comes_and_goes_with_a_flush_interval() {
    require_servers!(MajorVersion::V14);
    comes_and_goes(MajorVersion::V14, Duration::from_millis(150), rounds(15, 200));
}

/// What waits for its flush, as it was told to, has no storage to blame.
#[test]
fn a_flush_interval_longer_than_the_limit_is_no_stall() {
    require_servers!(MajorVersion::V15);
    let server = Server::start(MajorVersion::V15);
    harness::create_slot(&server);
    let vault = Vault::new();
    let mut options = harness::options(&server);
    options.flush_interval = Duration::from_secs(5);
    options.stall_timeout = Duration::from_secs(4);
    options.status_interval = Duration::from_millis(100);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    for _ in 0..2 {
        server.sql("create table if not exists t (id int); insert into t values (1)");
        harness::wait_acknowledged(&server, server.lsn());
    }
    assert!(!receiving.saw(|e| matches!(e, ReceiveEvent::Stalled { .. })), "{:#?}", receiving.events());
    receiving.stop();
}
