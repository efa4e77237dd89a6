//! A stop of the server never waits for the receiver: idle, under load, far behind, with the repository away.

use std::time::Duration;

use walrecv::pg::{MajorVersion, TimelineId};
use walrecv::receive::{ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::store::Store;
use crate::support::{Ledger, Server, Stop, require_servers, wait_for};

const MODES: [Stop; 3] = [Stop::Fast, Stop::Smart, Stop::Immediate];

fn streaming(server: &Server) -> bool {
    server.sql("select count(*) from pg_stat_replication where application_name = 'walrecv' and state in ('streaming', 'catchup')")
        != "0"
}

fn times_streaming(receiving: &Receiving) -> usize {
    receiving.events().iter().filter(|e| matches!(e, ReceiveEvent::Streaming { .. })).count()
}

/// Stops and starts the server in every mode with the receiver attached, which comes back each time.
fn stop_and_come_back(version: MajorVersion, load: bool) {
    let mut server = Server::start(version);
    harness::create_slot(&server);
    let vault = Vault::new();
    let options = ReceiveOptions { shutdown_grace: Duration::from_secs(60), ..harness::options(&server) };
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    for (round, mode) in MODES.into_iter().enumerate() {
        let ledger = Ledger::builder().writers(2).first_id(1 + round as u64 * 1_000_000).start(&server);
        ledger.wait_for_more(50);
        // A smart stop waits for the sessions of the load, whoever streams.
        let ledger = if load && mode != Stop::Smart {
            Some(ledger)
        } else {
            ledger.stop();
            None
        };
        let took = server.stop(mode);
        assert!(took < harness::NOT_HELD_UP, "{mode:?} stop with load {load} took {took:?}: {:#?}", receiving.events());
        drop(ledger);
        server.start_again();
        wait_for("the receiver to come back", || (times_streaming(&receiving) > round + 1).then_some(()));
        server.sql("create table if not exists after_stop (id int); insert into after_stop values (1)");
        harness::wait_acknowledged(&server, server.lsn());
    }
    // It went on at the exact byte: the first start only was at the start of a segment.
    let events = receiving.events();
    let starts = events.iter().filter_map(|e| match e {
        ReceiveEvent::Streaming { from, .. } => Some(from.0 % (1 << 20)),
        _ => None,
    });
    assert!(starts.skip(1).any(|offset| offset != 0), "{events:#?}");
    let (report, _) = receiving.stop();
    assert_eq!((report.behind, report.timeline), (0, Some(TimelineId(1))));
    // Every complete segment is what the server has.
    let (runtime, archive) = (harness::runtime(), vault.archive(&server));
    let inventory = runtime.block_on(archive.inventory()).expect("list");
    for number in &inventory.timelines[&TimelineId(1)].complete {
        let (stored, _) = harness::segment(&runtime, &archive, TimelineId(1), *number);
        let path = server.data_dir().join("pg_wal");
        let name = walrecv::pg::SegmentName::new(TimelineId(1), *number, archive.names.segment_size);
        if let Ok(own) = std::fs::read(path.join(name.to_string())) {
            assert!(own == stored, "{name} differs");
        }
    }
}

#[test]
fn a_stop_does_not_wait_for_an_idle_receiver() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        stop_and_come_back(version, false);
    }
}

#[test]
fn a_stop_does_not_wait_for_a_receiver_under_load() {
    require_servers!(MajorVersion::V18);
    stop_and_come_back(MajorVersion::V18, true);
}

/// Far behind: the backlog needs for ever, the server is left after the grace. With one walsender there is no second connection on which a stop shows; then it is
/// known by the server's letting nobody in any more.
#[test]
fn a_stop_does_not_wait_for_a_receiver_that_is_far_behind() {
    require_servers!(MajorVersion::V13, MajorVersion::V18);
    for (version, mode, walsenders) in [
        (MajorVersion::V13, Stop::Smart, "10"),
        (MajorVersion::V18, Stop::Fast, "10"),
        (MajorVersion::V18, Stop::Immediate, "10"),
        (MajorVersion::V18, Stop::Fast, "1"),
    ] {
        let mut server =
            Server::builder(version).setting("max_wal_size", "1GB").setting("max_wal_senders", walsenders).start();
        harness::create_slot(&server);
        // Hardly compressible, so that the bound on memory is reached and the socket waits.
        let text = "(select string_agg(md5(random()::text), '') from generate_series(1, 40) where i > 0)";
        let random = format!("select i, {text} as filler");
        server.sql(&format!("create table t as {random} from generate_series(1, 60000) i"));
        let vault = Vault::new();
        let store = Store::default();
        store.delay(Duration::from_millis(1500));
        let mut options = harness::options(&server);
        options.shutdown_grace = Duration::from_secs(2);
        options.stall_timeout = Duration::from_secs(600);
        options.memory = 4 << 20;
        let place = walrecv::receive::Place { repo: store.repository(), ..vault.place() };
        let receiving = Receiving::start(options, place);
        receiving.wait_event("a first segment", |e| matches!(e, ReceiveEvent::SegmentStored { .. }));
        store.delay(Duration::from_secs(600));
        let behind = server.lsn().since(harness::acknowledged(&server));
        assert!(behind > 50 << 20, "only {behind} bytes behind");
        let took = server.stop(mode);
        // It asks again every 10 s at the latest.
        let limit = if walsenders == "1" { harness::NOT_HELD_UP * 3 } else { harness::NOT_HELD_UP };
        assert!(took < limit, "{mode:?} stop took {took:?}: {:#?}", receiving.events());
        // Fast again, everything arrives.
        store.delay(Duration::ZERO);
        server.start_again();
        harness::wait_acknowledged(&server, server.lsn());
        let (report, _) = receiving.stop();
        assert_eq!(report.behind, 0);
    }
}

#[test]
fn a_stalled_receiver_leaves_and_comes_back_when_something_can_be_put() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    harness::create_slot(&server);
    let vault = Vault::new();
    let store = Store::default();
    let mut options = harness::options(&server);
    options.stall_timeout = Duration::from_secs(2);
    options.flush_interval = Duration::from_millis(100);
    options.shutdown_grace = Duration::from_secs(60);
    let receiving = Receiving::start(options, walrecv::receive::Place { repo: store.repository(), ..vault.place() });
    receiving.wait_streaming();
    server.sql("create table t (id int); insert into t values (1)");
    harness::wait_acknowledged(&server, server.lsn());
    assert!(store.names().iter().any(|n| n.contains("/tail/")), "a piece of the tail: {:?}", store.names());
    store.away(true);
    server.sql("insert into t values (2)");
    let commit = server.lsn();
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    wait_for("the receiver to leave", || (!streaming(&server)).then_some(()));
    assert!(harness::acknowledged(&server) < commit, "acknowledged without a store");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!streaming(&server), "came back although nothing can be put");
    store.away(false);
    harness::wait_acknowledged(&server, commit);
    assert!(streaming(&server));
    // A complete segment clears its pieces away.
    let end = server.switch_wal();
    server.sql("insert into t values (3)");
    harness::wait_acknowledged(&server, end);
    wait_for("the pieces to go", || {
        let size = harness::segment_size_of(&server);
        let segment = walrecv::pg::SegmentName::new(TimelineId(1), size.segment_before(end), size).to_string();
        (!store.names().iter().any(|n| n.contains("/tail/") && n.contains(&segment))).then_some(())
    });
    let (report, took) = receiving.stop();
    assert_eq!(report.behind, 0);
    assert!(took < Duration::from_secs(30), "stopping took {took:?}");
}

#[test]
fn a_synchronous_standby_is_answered_at_every_commit() {
    require_servers!(MajorVersion::V18);
    let server = Server::builder(MajorVersion::V18).setting("synchronous_standby_names", "walrecv").start();
    server.sql("set synchronous_commit = local; select pg_create_physical_replication_slot('walrecv', true)");
    let vault = Vault::new();
    let mut options = harness::options(&server);
    // It is listed, so the interval counts for nothing.
    options.flush_interval = Duration::from_secs(600);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    for level in ["on", "remote_write", "remote_apply"] {
        let started = std::time::Instant::now();
        for _ in 0..20 {
            server.sql(&format!(
                "set synchronous_commit = {level}; create table if not exists t (id int); insert into t values (1)"
            ));
        }
        let took = started.elapsed();
        assert!(took < Duration::from_secs(60), "20 commits with {level} took {took:?}");
    }
    let (report, _) = receiving.stop();
    assert_eq!(report.behind, 0);
}

/// Whether it is connected or not, a stop says what that means for commits; and what a receiver cannot do is said when it begins.
#[test]
fn a_stop_says_who_will_wait() {
    require_servers!(MajorVersion::V14);
    let mut server = Server::start(MajorVersion::V14);
    harness::create_slot(&server);
    server.sql("alter system set synchronous_standby_names = 'walrecv'");
    server.sql("select pg_reload_conf()");
    let vault = Vault::new();
    let start = |options| Receiving::start(options, vault.place());
    let says = |receiving: &Receiving, text: &str| told(&receiving.events(), text);
    let stands_by = |e: &ReceiveEvent| matches!(e, ReceiveEvent::StandingBy { .. });
    let (listed, another) = ("without it commits wait for another standby", "another one has its slot");
    let first = start(harness::options(&server));
    first.wait_streaming();
    let second = start(harness::options(&server));
    second.wait_event("the second to stand by", stands_by);
    let blind = harness::options_for(&format!("{} dbname=nowhere", server.conninfo("postgres")));
    let blind = start(ReceiveOptions { give_up_at: Some(1 << 40), ..blind });
    blind.wait_event("the blind one to stand by", stands_by);
    assert!(says(&blind, "give_up_at has no effect") && !says(&first, "give_up_at"), "{:#?}", blind.events());
    for standing_by in [second, blind] {
        let events = standing_by.stopped_events();
        assert!(told(&events, another) && !told(&events, listed), "{events:#?}");
    }
    server.stop(Stop::Fast);
    first.wait_event("the server to be away", |e| matches!(e, ReceiveEvent::Reconnecting { .. }));
    let events = first.stopped_events();
    assert!(told(&events, listed), "{events:#?}");
}

/// What is left to store takes its time; whoever waits for a commit is told before that.
#[test]
fn who_will_wait_is_said_when_the_stop_begins() {
    require_servers!(MajorVersion::V18);
    let server = Server::builder(MajorVersion::V18).setting("synchronous_standby_names", "walrecv").start();
    server.sql("set synchronous_commit = local; select pg_create_physical_replication_slot('walrecv', true)");
    let (vault, store) = (Vault::new(), Store::default());
    let options = ReceiveOptions { shutdown_grace: Duration::from_secs(60), ..harness::options(&server) };
    let place = walrecv::receive::Place { repo: store.repository(), ..vault.place() };
    let receiving = Receiving::start(options, place);
    receiving.wait_event("the list to be known", |e| matches!(e, ReceiveEvent::Synchronous(true)));
    store.delay(Duration::from_secs(600));
    server.sql("set synchronous_commit = local; create table t as select 1");
    wait_for("WAL that is not stored", || (receiving.stats().received.get() >= server.lsn().0).then_some(()));
    receiving.ask_to_stop();
    receiving.wait_event("a word on who will wait", |e| told(std::slice::from_ref(e), "without it commits wait"));
    assert!(!receiving.saw(|e| matches!(e, ReceiveEvent::Stopped { .. })), "{:#?}", receiving.events());
    store.delay(Duration::ZERO);
    let (ended, events) = receiving.end_and_events();
    ended.expect("a clean end");
    let warnings = events.iter().filter(|e| told(std::slice::from_ref(e), "without it commits wait")).count();
    assert_eq!(warnings, 1, "said once: {events:#?}");
}

fn told(events: &[ReceiveEvent], text: &str) -> bool {
    events.iter().any(|e| matches!(e, ReceiveEvent::Warning(warning) if warning.contains(text)))
}
