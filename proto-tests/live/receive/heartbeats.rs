//! Lag on one clock: an idle server and a busy one, a standby whose primary is gone, and what is stored of it.

use std::time::Duration;

use walrecv::pg::xact::PgTime;
use walrecv::pg::{MajorVersion, TimelineId};
use walrecv::receive::ReceiveEvent;

use super::harness::{self, Receiving, Vault};
use crate::support::{Ledger, Server, Stop, require_servers, wait_for};

const MAIN: TimelineId = TimelineId(1);

/// The server's clock.
fn now(server: &Server) -> PgTime {
    let micros = server.sql("select (extract(epoch from clock_timestamp()) * 1000000)::bigint");
    PgTime::from_unix_micros(micros.parse().expect("microseconds"))
}

/// How many seconds of the server's clock are not known to be in the archive.
fn behind(receiving: &Receiving, server: &Server) -> f64 {
    let complete = receiving.stats().heart().complete.map_or(i64::MIN, |(_, time)| time);
    now(server).0.saturating_sub(complete) as f64 / 1e6
}

/// Looks for six seconds, once a second: whatever held a busy machine up, it is close behind the server's clock again.
fn goes_along(receiving: &Receiving, server: &Server) {
    for _ in 0..6 {
        std::thread::sleep(Duration::from_secs(1));
        wait_for("the archive to be close behind", || (behind(receiving, server) < 4.0).then_some(()));
    }
}

fn nothing_waits(receiving: &Receiving) {
    let age = || receiving.stats().oldest_commit_age(tokio::time::Instant::now());
    wait_for("nothing to wait any more", || age().is_none().then_some(()));
}

fn alarms(receiving: &Receiving) -> Vec<ReceiveEvent> {
    let alarm = |event: &ReceiveEvent| {
        matches!(
            event,
            ReceiveEvent::Reconnecting { .. }
                | ReceiveEvent::Stalled { .. }
                | ReceiveEvent::ServerStopping
                | ReceiveEvent::Warning(_)
        )
    };
    receiving.events().into_iter().filter(alarm).collect()
}

#[test]
fn an_idle_server_raises_no_alarm_and_its_archive_is_complete_through_now() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    harness::create_slot(&server);
    server.sql("create table t as select 1");
    let vault = Vault::new();
    let mut options = harness::options(&server);
    (options.stall_timeout, options.flush_interval) = (Duration::from_secs(4), Duration::from_millis(200));
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    let (runtime, archive) = (harness::runtime(), vault.archive(&server));
    let stored = || runtime.block_on(archive.complete_through(MAIN)).expect("look");
    let first = wait_for("a heartbeat to be stored", stored);
    assert!(first.time <= now(&server) && first.lsn <= server.lsn(), "{first:?}");
    let before = alarms(&receiving);
    goes_along(&receiving, &server);
    assert_eq!(alarms(&receiving), before);
    assert_eq!(stored(), Some(first), "at most one a minute");
    let end = server.lsn();
    harness::wait_acknowledged(&server, end);
    nothing_waits(&receiving);
    let stats = receiving.stats();
    assert!(stats.durable.get() >= end.0, "all of it is durable");
    receiving.stop();
    let last = stored().expect("a heartbeat");
    assert!(last.time > first.time, "the last one goes with a clean stop");
    let beats = runtime.block_on(archive.heartbeats(MAIN)).expect("list");
    assert_eq!(beats, [last], "the older one is deleted");
}

/// The time that is known to be complete follows the server's clock while commits come without a pause, and nobody takes an answer for a shutdown.
#[test]
fn a_busy_server_is_followed_by_its_own_clock() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::start(version);
        harness::create_slot(&server);
        let vault = Vault::new();
        let mut options = harness::options(&server);
        options.flush_interval = Duration::from_millis(200);
        let receiving = Receiving::start(options, vault.place());
        receiving.wait_streaming();
        let ledger = Ledger::builder().writers(2).padding(500).start(&server);
        ledger.wait_for_more(100);
        goes_along(&receiving, &server);
        let entries = ledger.stop();
        assert_eq!(alarms(&receiving), []);
        harness::wait_acknowledged(&server, server.lsn());
        nothing_waits(&receiving);
        let durations = receiving.stats().time_to_durable.total();
        println!("PostgreSQL {version}: {} commits, {durations:?}", entries.len());
        assert!(durations.count > 10 && durations.p50 < 30_000_000, "{durations:?}");
        assert!(receiving.stats().commits.get() >= entries.len() as u64);
        receiving.stop();
    }
}

/// It looks as if nothing were committed, and that is not so.
#[test]
fn a_standby_without_its_primary_proves_nothing() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let mut primary = Server::start(version);
        primary.sql("create table t as select 1");
        let standby = primary.standby().setting("hot_standby", "on").start();
        harness::create_slot(&standby);
        let vault = Vault::new();
        let receiving = Receiving::start(harness::options(&standby), vault.place());
        receiving.wait_streaming();
        primary.stop(Stop::Immediate);
        // As of the standby, all is well.
        goes_along(&receiving, &standby);
        assert_eq!(alarms(&receiving), []);
        receiving.stop();
        let beats = harness::runtime().block_on(vault.archive(&standby).heartbeats(MAIN)).expect("list");
        assert_eq!(beats, []);
    }
}
