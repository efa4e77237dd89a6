//! Two receivers for one archive: one streams, the other stands by, quietly, and takes over.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walrecv::error::Kind;
use walrecv::net::{Connection, Mode};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::receive::{ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::{Process, nothing_is_missing};
use crate::support::{Ledger, Server, require_servers, wait_for};

fn stands_by(event: &ReceiveEvent) -> bool {
    matches!(event, ReceiveEvent::StandingBy { .. })
}

fn count(receiving: &Receiving, wanted: impl Fn(&ReceiveEvent) -> bool) -> usize {
    receiving.events().iter().filter(|event| wanted(event)).count()
}

fn walsenders(server: &Server) -> usize {
    server.sql("select count(*) from pg_stat_activity where backend_type = 'walsender'").parse().expect("a number")
}

/// Lines of the server's log that tell of a refused use of the slot.
fn refusals(server: &Server) -> usize {
    server.log().lines().filter(|line| line.contains("is active for PID")).count()
}

/// All WAL is kept on the server, to compare with.
fn server(version: MajorVersion) -> Server {
    let server = Server::builder(version).setting("wal_keep_size", "1GB").setting("max_wal_size", "1GB").start();
    harness::create_slot(&server);
    server
}

fn all_is_stored(vault: &Vault, server: &Server, from: Lsn, upto: Lsn) {
    nothing_is_missing(&vault.archive(server), server, from, upto);
    let inventory = harness::runtime().block_on(vault.archive(server).inventory()).expect("list");
    let complete = &inventory.timelines[&TimelineId(1)].complete;
    let (first, last) = (complete.first().expect("segments").0, complete.last().expect("segments").0);
    assert_eq!(complete.len() as u64, last - first + 1, "no hole: {complete:?}");
}

#[test]
fn the_second_receiver_waits_quietly_and_takes_over_at_a_clean_end() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = server(version);
        let from = harness::acknowledged(&server);
        let vault = Vault::new();
        let first = Receiving::start(harness::options(&server), vault.place());
        first.wait_streaming();
        let second = Receiving::start(harness::options(&server), vault.place());
        second.wait_event("the second to stand by", stands_by);
        // Where the slot stands, to be compared with what is stored.
        let at = |e: &ReceiveEvent| matches!(e, ReceiveEvent::Slot(slot) if slot.restart_lsn.is_some());
        second.wait_event("the second to see where the slot stands", at);
        let ledger = Ledger::builder().writers(2).padding(2000).start(&server);
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(count(&second, stands_by), 1, "said once: {:#?}", second.events());
        assert_eq!(count(&second, |e| matches!(e, ReceiveEvent::Reconnecting { .. })), 0, "{:#?}", second.events());
        wait_for("the second to hold no stream", || (walsenders(&server) == 3).then_some(()));
        assert_eq!(refusals(&server), 0, "{}", server.log());
        first.stop();
        let ended = Instant::now();
        second.wait_streaming();
        let took = ended.elapsed();
        eprintln!("PostgreSQL {version}: took over {took:?} after a clean end");
        assert!(took < Duration::from_secs(8), "took over after {took:?}");
        // And the other way round.
        let third = Receiving::start(harness::options(&server), vault.place());
        third.wait_event("the third to stand by", stands_by);
        ledger.stop();
        let end = server.switch_wal();
        harness::wait_acknowledged(&server, end);
        second.stop();
        third.wait_streaming();
        third.stop();
        assert_eq!(refusals(&server), 0, "{}", server.log());
        all_is_stored(&vault, &server, from, end);
    }
}

fn signal(process: &Process, signal: Signal) {
    let pid = Pid::from_raw(process.pid() as i32).expect("a process id");
    kill_process(pid, signal).expect("signal the receiver");
}

/// The first one freezes, as on a host that is lost: its connections stay open and say nothing. Later it wakes up, behind what the second has stored.
#[test]
fn the_second_receiver_takes_over_from_a_frozen_one_which_comes_back() {
    require_servers!(MajorVersion::V17);
    let server = server(MajorVersion::V17);
    let from = harness::acknowledged(&server);
    let vault = Vault::new();
    let first = Process::start(&vault, &server, 200);
    wait_for("the first acknowledgement", || {
        server.sql("create table if not exists t (id int); insert into t values (1)");
        (harness::acknowledged(&server) > from).then_some(())
    });
    let second = Receiving::start(harness::options(&server), vault.place());
    second.wait_event("the second to stand by", stands_by);
    let ledger = Ledger::builder().writers(2).padding(2000).start(&server);
    std::thread::sleep(Duration::from_secs(1));
    signal(&first, Signal::STOP);
    let frozen = Instant::now();
    second.wait_streaming();
    let took = frozen.elapsed();
    eprintln!("took over {took:?} after the first froze");
    assert!(took < Duration::from_secs(60), "took over after {took:?}");
    // So much that the server would let go of what the first one goes on from, were it not kept for the comparison below.
    ledger.wait_for_more(500);
    ledger.stop();
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    signal(&first, Signal::CONT);
    wait_for("the first to stand by", || (walsenders(&server) == 3).then_some(()));
    server.sql("insert into t select i from generate_series(1, 10000) i");
    harness::wait_acknowledged(&server, server.lsn());
    second.stop();
    // The first streams again, although the slot has moved past what it has in memory.
    server.sql("insert into t select i from generate_series(1, 10000) i");
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    first.kill();
    assert_eq!(refusals(&server), 0, "{}", server.log());
    all_is_stored(&vault, &server, from, end);
}

/// A database that does not exist refuses SQL, as a pg_hba.conf without a line for it does.
fn without_sql(server: &Server) -> ReceiveOptions {
    let options = harness::options_for(&format!("{} dbname=nowhere", server.conninfo("postgres")));
    // Tests run beside others, which a slot that moves once a second would leave little time.
    ReceiveOptions { flush_interval: Duration::from_millis(300), ..options }
}

/// Nothing but where the slot stands tells that the other one is gone; the server's log stays short.
#[test]
fn without_sql_the_second_receiver_takes_over_as_quickly() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let server = server(version);
    let from = harness::acknowledged(&server);
    let vault = Vault::new();
    let first = Receiving::start(without_sql(&server), vault.place());
    first.wait_streaming();
    let second = Receiving::start(without_sql(&server), vault.place());
    second.wait_event("the second to stand by", stands_by);
    assert!(second.saw(|e| matches!(e, ReceiveEvent::Watching { sql: false })), "{:#?}", second.events());
    let ledger = Ledger::builder().writers(2).padding(2000).start(&server);
    std::thread::sleep(Duration::from_secs(6));
    // Idle for a while: that is no sign either.
    ledger.stop();
    std::thread::sleep(Duration::from_secs(4));
    let ledger = Ledger::builder().writers(2).padding(2000).first_id(1_000_000).start(&server);
    std::thread::sleep(Duration::from_secs(2));
    let tried = refusals(&server);
    assert!(tried <= 6, "{tried} attempts while the first is at work: {}", server.log());
    assert_eq!(count(&second, stands_by), 1, "{:#?}", second.events());
    first.stop();
    let ended = Instant::now();
    second.wait_streaming();
    let took = ended.elapsed();
    eprintln!("took over {took:?} after a clean end, {tried} attempts before");
    assert!(took < Duration::from_secs(8), "took over after {took:?}");
    ledger.stop();
    second.stop();

    let conninfo = [("VAULT_CONNINFO", format!("{} dbname=nowhere", server.conninfo("postgres")))];
    let first = Process::start_with(&vault, &server, 200, &conninfo);
    let ledger = Ledger::builder().writers(2).padding(2000).first_id(2_000_000).start(&server);
    let before = harness::acknowledged(&server);
    wait_for("the first acknowledgement", || (harness::acknowledged(&server) > before).then_some(()));
    let second = Receiving::start(without_sql(&server), vault.place());
    second.wait_event("the second to stand by", stands_by);
    std::thread::sleep(Duration::from_secs(2));
    let tried = refusals(&server);
    signal(&first, Signal::STOP);
    let frozen = Instant::now();
    second.wait_streaming();
    let (took, tried) = (frozen.elapsed(), refusals(&server) - tried);
    eprintln!("took over {took:?} after the first froze, at attempt {}", tried + 1);
    assert!(took < Duration::from_secs(60), "took over after {took:?}");
    // Once in half a minute, where the server took its time to give the first one up.
    assert!(tried as u64 <= 9 + took.as_secs() / 30, "{tried} attempts: {}", server.log());
    ledger.stop();
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    second.stop();
    signal(&first, Signal::CONT);
    first.kill();
    all_is_stored(&vault, &server, from, end);
}

fn rejections(server: &Server) -> usize {
    server.log().matches("rejects replication connection").count()
}

/// `all` in a line of pg_hba.conf does not mean replication: such a server answers every question and lets nobody stream.
#[test]
fn a_receiver_that_could_never_stream_does_not_stand_by() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = server(version);
        let vault = Vault::new();
        let first = Receiving::start(harness::options(&server), vault.place());
        first.wait_streaming();
        let path = server.data_dir().join("pg_hba.conf");
        let old = std::fs::read_to_string(&path).expect("read pg_hba.conf");
        std::fs::write(&path, format!("local replication all reject\n{old}")).expect("write pg_hba.conf");
        server.sql("select pg_reload_conf()");
        let conninfo = harness::options(&server).conninfo;
        wait_for("the line to be in force", || {
            harness::runtime().block_on(Connection::connect(&conninfo, Mode::Physical, "")).err()
        });
        let before = rejections(&server);
        let second = Receiving::start(harness::options(&server), vault.place());
        second.wait_event("the second to stand by", stands_by);
        let error = second.end().expect_err("it cannot take over");
        assert_eq!(error.kind(), Kind::Server, "{error}");
        let said = error.to_string();
        assert!(said.contains("could not take over") && said.contains("pg_hba.conf rejects replication"), "{said}");
        assert_eq!(rejections(&server), before + 1, "{}", server.log());
        first.stop();
    }
}
