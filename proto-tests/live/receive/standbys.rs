//! Other standbys, and a server's stops, while the receiver's storage hangs: nobody waits for walrecv for longer than it was told to make them wait.

use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::receive::{Place, ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::{nothing_is_missing, told};
use crate::support::proxy::Proxy;
use crate::support::{Ledger, Moto, Server, Stop, require_moto, require_servers, wait_for};

/// A bucket behind a proxy that can hang.
struct Storage {
    vault: Vault,
    proxy: Proxy,
    url: String,
}

impl Storage {
    fn new(bucket: &str) -> Storage {
        let moto = Moto::shared();
        Storage { vault: Vault::new(), proxy: Proxy::start(moto.port()), url: moto.bucket(bucket) }
    }

    fn receive(&self, options: ReceiveOptions) -> Receiving {
        let repo = harness::open_bucket(&self.url, &format!("http://127.0.0.1:{}", self.proxy.port));
        let receiving = Receiving::start(options, Place { repo, ..self.vault.place() });
        receiving.wait_streaming();
        receiving
    }

    /// Past the proxy.
    fn archive(&self, server: &Server) -> Archive {
        self.vault.archive_in(harness::open_bucket(&self.url, &Moto::shared().endpoint()), server)
    }
}

/// With `names` as `synchronous_standby_names`, commits go on through the other standby when walrecv's storage hangs, each within `limit`. Walrecv leaves after
/// `stall`.
fn commits_go_on(version: MajorVersion, names: &str, bucket: &str, stall: Duration, limit: Duration) {
    let server = Server::builder(version).setting("wal_keep_size", "1GB").start();
    harness::create_slot(&server);
    let from = harness::acknowledged(&server);
    // The server lets waiting commits go when the next standby reports, which an idle one does at this interval.
    let other = server.standby().setting("cluster_name", "s2").setting("wal_receiver_status_interval", "1s").start();
    let storage = Storage::new(bucket);
    let mut options = harness::options(&server);
    options.stall_timeout = stall;
    server.sql(&format!("alter system set synchronous_standby_names = '{names}'"));
    server.sql("select pg_reload_conf()");
    let receiving = storage.receive(options);
    let states = "select count(*) from pg_stat_replication where sync_state in ('sync', 'potential', 'quorum')";
    server.wait_sql(states, "2");
    let ledger = Ledger::builder().start(&server);
    ledger.wait_for_more(20);
    storage.proxy.stall(true);
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    ledger.wait_for_more(20);
    nothing_is_missing(&storage.archive(&server), &server, from, harness::acknowledged(&server));
    storage.proxy.stall(false);
    server.wait_sql(states, "2");
    ledger.wait_for_more(20);
    let entries = ledger.stop();
    let longest = entries.iter().map(|e| e.latency).max().unwrap_or_default();
    println!("{names}: the longest of {} commits took {longest:?}", entries.len());
    assert!(longest < limit, "{names}: a commit took {longest:?}");
    let end = server.lsn();
    harness::wait_acknowledged(&server, end);
    nothing_is_missing(&storage.archive(&server), &server, from, end);
    drop(other);
    receiving.stop();
}

#[test]
fn commits_go_on_through_the_second_of_two_standbys_while_storage_hangs() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    // The limit for no progress, the next look at it (1 s), the other one's next report (1 s), and a busy machine: not for as long as storage hangs.
    let (stall, limit) = (Duration::from_secs(2), Duration::from_secs(30));
    commits_go_on(MajorVersion::V18, "FIRST 1 (walrecv, s2)", "first-one", stall, limit);
}

#[test]
fn commits_go_on_through_any_other_standby_while_storage_hangs() {
    require_servers!(MajorVersion::V15);
    require_moto!();
    // None of them waited for walrecv to leave.
    let (stall, limit) = (Duration::from_secs(7), Duration::from_secs(5));
    commits_go_on(MajorVersion::V15, "ANY 1 (walrecv, s2)", "any-one", stall, limit);
}

/// Stops the server that is streamed from while storage hangs, before walrecv would leave by itself.
fn stop_while_storage_hangs(version: MajorVersion, mode: Stop, of_standby: bool, behind: bool, bucket: &str) {
    let mut primary = Server::builder(version).setting("max_wal_size", "1GB").setting("wal_keep_size", "1GB").start();
    primary.sql("create table t (id int, filler text)");
    let mut standby = of_standby.then(|| primary.standby().start());
    let source = standby.as_ref().unwrap_or(&primary);
    harness::create_slot(source);
    let storage = Storage::new(bucket);
    let mut options = harness::options(source);
    options.stall_timeout = Duration::from_secs(120);
    options.shutdown_grace = Duration::from_secs(2);
    options.flush_interval = Duration::from_millis(100);
    options.memory = 3 << 20;
    let receiving = storage.receive(options);
    primary.sql("insert into t values (1, 'before')");
    harness::wait_acknowledged(source, primary.lsn());
    storage.proxy.stall(true);
    let rows = if behind { 150_000 } else { 10 };
    primary.sql(&format!(
        "insert into t select i, md5(random()::text) || md5(random()::text) from generate_series(1, {rows}) i"
    ));
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    if of_standby {
        source.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
    }
    let lag = end.parse::<Lsn>().expect("an LSN").since(harness::acknowledged(source));
    assert!(lag > if behind { 10 << 20 } else { 0 }, "only {lag} bytes behind");
    let streams = "select count(*) > 0 from pg_stat_replication where application_name = 'walrecv' and pid is not null";
    source.wait_sql(streams, "t");
    let stopped = standby.as_mut().unwrap_or(&mut primary);
    let took = stopped.stop(mode);
    println!("{mode:?} stop of a {}, {lag} bytes behind: {took:?}", if of_standby { "standby" } else { "primary" });
    assert!(took < harness::NOT_HELD_UP, "{mode:?} stop took {took:?}: {:#?}", receiving.events());
    storage.proxy.stall(false);
    stopped.start_again();
    harness::wait_acknowledged(stopped, end.parse().expect("an LSN"));
    let (report, _) = receiving.stop();
    assert!(report.durable >= end.parse().expect("an LSN"));
}

#[test]
fn a_primary_stops_while_storage_hangs() {
    require_servers!(MajorVersion::V13, MajorVersion::V18);
    require_moto!();
    stop_while_storage_hangs(MajorVersion::V18, Stop::Fast, false, false, "stop-a");
    stop_while_storage_hangs(MajorVersion::V13, Stop::Smart, false, true, "stop-b");
}

#[test]
fn a_standby_stops_while_storage_hangs() {
    require_servers!(MajorVersion::V14, MajorVersion::V17);
    require_moto!();
    stop_while_storage_hangs(MajorVersion::V17, Stop::Smart, true, false, "stop-c");
    stop_while_storage_hangs(MajorVersion::V14, Stop::Fast, true, true, "stop-d");
}

/// As a manager of failovers does it: the primary is stopped, the standby promoted, and the old primary comes back as a standby of the new one. The receiver
/// stays with the host that it knows, and follows.
#[test]
fn a_demoted_primary_is_followed_as_a_standby() {
    require_servers!(MajorVersion::V16);
    let mut old = Server::builder(MajorVersion::V16).setting("wal_keep_size", "1GB").start();
    harness::create_slot(&old);
    old.sql("create table t (id int)");
    let new = old.standby().setting("cluster_name", "s2").setting("wal_keep_size", "1GB").start();
    let vault = Vault::new();
    let mut options = harness::options(&old);
    options.flush_interval = Duration::from_millis(300);
    options.shutdown_grace = Duration::from_secs(60);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    old.sql("insert into t values (1)");
    let took = old.stop(Stop::Fast);
    assert!(took < harness::NOT_HELD_UP, "the demotion waited {took:?}");
    new.promote();
    let conninfo = new.conninfo("postgres");
    let conf = old.data_dir().join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&conf).expect("settings");
    text.push_str(&format!("primary_conninfo = '{conninfo}'\nrecovery_target_timeline = 'latest'\n"));
    std::fs::write(&conf, text).expect("write settings");
    std::fs::write(old.data_dir().join("standby.signal"), "").expect("make it a standby");
    crate::support::user::give_to_postgres(&old.data_dir().join("standby.signal"));
    old.start_again();
    new.sql("insert into t values (2)");
    let end = new.lsn();
    let two = TimelineId(2);
    receiving
        .wait_event("the new timeline", |e| matches!(e, ReceiveEvent::Streaming { timeline, .. } if *timeline == two));
    wait_for("the new timeline's rows to be acknowledged", || (told(&old) >= end).then_some(()));
    let took = old.stop(Stop::Fast);
    assert!(took < harness::NOT_HELD_UP, "the stop of the standby took {took:?}");
    let (runtime, archive) = (harness::runtime(), vault.archive(&new));
    let size = archive.names.segment_size;
    let number = size.segment_before(end);
    let (stored, _) = harness::segment(&runtime, &archive, two, number);
    let wanted = end.since(number.start(size)) as usize;
    let own = harness::own_segment(&new, two, number, size);
    assert!(stored.len() >= wanted && stored[..wanted] == own[..wanted], "the new timeline's last segment");
    receiving.stop();
}

/// The server's own timeout counts for others: walrecv's session asks for 10 s, and answers every second whatever its storage does.
#[test]
fn a_short_timeout_of_the_server_ends_no_stream_whose_storage_hangs() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    let server = Server::builder(MajorVersion::V18).setting("wal_sender_timeout", "1s").start();
    harness::create_slot(&server);
    let storage = Storage::new("short-timeout");
    let mut options = harness::options(&server);
    options.stall_timeout = Duration::from_secs(120);
    options.flush_interval = Duration::from_millis(100);
    let receiving = storage.receive(options);
    server.sql("create table t (id int)");
    let before = server.lsn();
    harness::wait_acknowledged(&server, before);
    storage.proxy.stall(true);
    server.sql("insert into t values (1)");
    let commit = server.lsn();
    std::thread::sleep(Duration::from_secs(12));
    assert!(told(&server) < commit, "acknowledged although storage hangs");
    let starts = receiving.events().iter().filter(|e| matches!(e, ReceiveEvent::Streaming { .. })).count();
    assert_eq!(starts, 1, "{:#?}", receiving.events());
    storage.proxy.stall(false);
    harness::wait_acknowledged(&server, commit);
    receiving.stop();
}

fn list(server: &Server, names: &str) {
    server.sql(&format!("alter system set synchronous_standby_names = '{names}'"));
    server.sql("select pg_reload_conf()");
}

/// Listed while it streams, and no longer listed: it finds out by itself, whatever its interval.
#[test]
fn the_list_of_synchronous_standbys_is_read_again_while_streaming() {
    require_servers!(MajorVersion::V17);
    let server = Server::builder(MajorVersion::V17).setting("synchronized_standby_slots", "walrecv").start();
    harness::create_slot(&server);
    let vault = Vault::new();
    let mut options = harness::options(&server);
    options.flush_interval = Duration::from_secs(600);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    list(&server, "walrecv");
    receiving.wait_event("that it is listed", |e| *e == ReceiveEvent::Synchronous(true));
    let held_up = |e: &ReceiveEvent| matches!(e, ReceiveEvent::Warning(text) if text.contains("synchronized_standby_slots names this slot"));
    receiving.wait_event("that logical slots wait for it", held_up);
    let ledger = Ledger::builder().start(&server);
    ledger.wait_for_more(10);
    let entries = ledger.stop();
    let longest = entries.iter().skip(1).map(|e| e.latency).max().unwrap_or_default();
    assert!(longest < Duration::from_secs(60), "a commit took {longest:?}");
    list(&server, "");
    wait_for("that it is no longer listed", || receiving.saw(|e| *e == ReceiveEvent::Synchronous(false)).then_some(()));
    let before = server.lsn();
    harness::wait_acknowledged(&server, before);
    server.sql("create table nobody_waits_for (id int)");
    std::thread::sleep(Duration::from_secs(3));
    assert!(told(&server) < server.lsn(), "acknowledged long before its interval is over");
    receiving.stop();
}
