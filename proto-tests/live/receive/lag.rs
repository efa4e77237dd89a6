//! Servers that are behind: a standby that has less than what is stored, or less than what was received from another one, or only the head of a record.

use std::time::Duration;

use walrecv::pg::{Lsn, MajorVersion};
use walrecv::receive::{ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::{Process, nothing_is_missing, told};
use crate::support::proxy::Proxy;
use crate::support::strace::{self, Strace};
use crate::support::{Server, Stop, free_port, require_servers, wait_for};

/// A primary, and a standby that gets its WAL through a proxy: it can be left behind. Both have the slot.
struct Scene {
    primary: Server,
    standby: Server,
    wire: Proxy,
    vault: Vault,
}

impl Scene {
    fn new(version: MajorVersion) -> Scene {
        let primary = Server::builder(version).setting("wal_keep_size", "1GB").setting("max_wal_size", "1GB").start();
        primary.sql("create table t (id int, filler text)");
        harness::create_slot(&primary);
        let wire = Proxy::start(primary.port());
        let conninfo = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", wire.port);
        let standby = primary.standby().setting("wal_keep_size", "1GB").start();
        // What pg_basebackup wrote leads past the proxy.
        standby.sql(&format!("alter system set primary_conninfo = '{conninfo}'"));
        standby.sql("select pg_reload_conf()");
        primary.wait_sql("select count(*) from pg_stat_replication where client_addr is not null", "1");
        harness::create_slot(&standby);
        Scene { primary, standby, wire, vault: Vault::new() }
    }

    fn write(&self, rows: u32) -> Lsn {
        self.primary.sql(&format!("insert into t select i, md5(random()::text) from generate_series(1, {rows}) i"));
        self.primary.sql("select pg_current_wal_flush_lsn()").parse().expect("an LSN")
    }

    fn standby_has(&self, lsn: Lsn) {
        self.standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"), "t");
    }
}

fn begun_at(receiving: &Receiving) -> Vec<Lsn> {
    let start = |event: &ReceiveEvent| match event {
        ReceiveEvent::Streaming { from, .. } => Some(*from),
        _ => None,
    };
    receiving.events().iter().filter_map(start).collect()
}

/// The segment that this server is in is stored complete, from another one: nothing of it can become durable here before it has arrived whole, and no
/// repository is to blame.
#[test]
fn a_server_in_the_middle_of_a_stored_segment_is_no_stall() {
    require_servers!(MajorVersion::V18);
    let scene = Scene::new(MajorVersion::V18);
    let receiving = Receiving::start(harness::options(&scene.primary), scene.vault.place());
    receiving.wait_streaming();
    scene.standby_has(scene.write(100));
    scene.wire.stall(true);
    scene.write(100);
    let end = scene.primary.switch_wal();
    harness::wait_acknowledged(&scene.primary, end);
    receiving.stop();
    let mut options = harness::options(&scene.standby);
    options.stall_timeout = Duration::from_secs(4);
    options.flush_interval = Duration::from_millis(100);
    let receiving = Receiving::start(options, scene.vault.place());
    receiving.wait_streaming();
    std::thread::sleep(Duration::from_secs(6));
    assert!(!receiving.saw(|e| matches!(e, ReceiveEvent::Stalled { .. })), "{:#?}", receiving.events());
    scene.wire.stall(false);
    let end = scene.write(100);
    harness::wait_acknowledged(&scene.standby, end);
    assert_eq!(begun_at(&receiving).len(), 1, "{:#?}", receiving.events());
    receiving.stop();
}

/// The standby comes first in the connection string and lacks what is stored: the primary is taken. Where that cannot be reached, the standby is better than
/// nothing, and it is said that it lags.
#[test]
fn of_several_hosts_the_next_one_is_taken_where_one_lags() {
    require_servers!(MajorVersion::V17);
    let scene = Scene::new(MajorVersion::V17);
    let receiving = Receiving::start(harness::options(&scene.primary), scene.vault.place());
    receiving.wait_streaming();
    scene.standby_has(scene.write(100));
    scene.wire.stall(true);
    scene.write(100);
    let end = scene.primary.switch_wal();
    harness::wait_acknowledged(&scene.primary, end);
    receiving.stop();
    let list = |other: u16| {
        let ports = format!("{},{other}", scene.standby.port());
        let text = format!("host=127.0.0.1,127.0.0.1 port={ports} user=postgres sslmode=disable");
        ReceiveOptions { flush_interval: Duration::from_millis(100), ..harness::options_for(&text) }
    };
    let lags = |receiving: &Receiving| {
        receiving.saw(|event| matches!(event, ReceiveEvent::Warning(text) if text.contains("it lags")))
    };

    let receiving = Receiving::start(list(free_port()), scene.vault.place());
    receiving.wait_streaming();
    assert!(lags(&receiving), "{:#?}", receiving.events());
    receiving.stop();

    let receiving = Receiving::start(list(scene.primary.port()), scene.vault.place());
    receiving.wait_streaming();
    let passed = |event: &ReceiveEvent| {
        let port = scene.standby.port().to_string();
        matches!(event, ReceiveEvent::Reconnecting { why, .. } if why.contains("the next host is tried") && why.contains(&port))
    };
    assert!(receiving.saw(passed) && !lags(&receiving), "{:#?}", receiving.events());
    let end = scene.write(100);
    harness::wait_acknowledged(&scene.primary, end);
    // And so it is for a stream that goes on: from a host that lost it to one that has it.
    receiving.stop();
    let address = Proxy::start(scene.primary.port());
    let text = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres sslmode=disable",
        address.port,
        scene.primary.port()
    );
    let options = ReceiveOptions { flush_interval: Duration::from_millis(100), ..harness::options_for(&text) };
    let receiving = Receiving::start(options, scene.vault.place());
    receiving.wait_streaming();
    harness::wait_acknowledged(&scene.primary, scene.write(100));
    address.lead_to(scene.standby.port());
    address.cut();
    receiving.wait_event(
        "the next host",
        |event| matches!(event, ReceiveEvent::Reconnecting { why, .. } if why.contains("the next host is tried")),
    );
    let end = scene.write(100);
    harness::wait_acknowledged(&scene.primary, end);
    receiving.stop();
}

/// The primary was away when the receiver looked for a host: the standby that lags was better than nothing. Once the primary is back, it is streamed.
#[test]
fn a_host_that_lags_is_left_for_a_better_one_that_comes_back() {
    require_servers!(MajorVersion::V18);
    let scene = Scene::new(MajorVersion::V18);
    let receiving = Receiving::start(harness::options(&scene.primary), scene.vault.place());
    receiving.wait_streaming();
    scene.standby_has(scene.write(100));
    scene.wire.stall(true);
    scene.write(100);
    let end = scene.primary.switch_wal();
    harness::wait_acknowledged(&scene.primary, end);
    receiving.stop();
    let address = Proxy::start(scene.primary.port());
    address.refuse(true);
    let text = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres sslmode=disable",
        scene.standby.port(),
        address.port
    );
    let options = ReceiveOptions { flush_interval: Duration::from_millis(100), ..harness::options_for(&text) };
    let receiving = Receiving::start(options, scene.vault.place());
    receiving.wait_streaming();
    let end = scene.write(100);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(begun_at(&receiving).len(), 1, "{:#?}", receiving.events());
    address.refuse(false);
    harness::wait_acknowledged(&scene.primary, end);
    let moved = |event: &ReceiveEvent| {
        let ports = [scene.standby.port(), address.port].map(|port| port.to_string());
        matches!(event, ReceiveEvent::Reconnecting { why, .. } if ports.iter().all(|port| why.contains(port)))
    };
    assert!(receiving.saw(moved), "{:#?}", receiving.events());
    receiving.stop();
}

fn reconnects(text: &'static str) -> impl Fn(&ReceiveEvent) -> bool {
    move |event| matches!(event, ReceiveEvent::Reconnecting { why, .. } if why.contains(text))
}

/// The old primary is there again after a failover, first in the connection string and without a slot: the new one is streamed. While that cannot be reached
/// the old one ends nothing; with a slot it is better than nothing, and it is said that another timeline is stored.
#[test]
fn a_primary_that_comes_back_does_not_keep_the_archive_from_the_new_one() {
    require_servers!(MajorVersion::V17);
    let mut one = Server::builder(MajorVersion::V17).setting("wal_keep_size", "200MB").start();
    one.sql("create table t (id int)");
    harness::create_slot(&one);
    let two = one.standby().start();
    let vault = Vault::new();
    let list = |other: u16| {
        let hosts = format!("host=127.0.0.1,127.0.0.1 port={},{other} target_session_attrs=read-write", one.port());
        let text = format!("{hosts} user=postgres sslmode=disable");
        ReceiveOptions { flush_interval: Duration::from_millis(100), ..harness::options_for(&text) }
    };
    let (both, old_only) = (list(two.port()), list(free_port()));
    let write = |server: &Server| -> Lsn {
        server.sql("insert into t select generate_series(1, 100)");
        server.lsn()
    };
    let receiving = Receiving::start(both.clone(), vault.place());
    receiving.wait_streaming();
    let end = write(&one);
    harness::wait_acknowledged(&one, end);
    two.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
    one.kill9();
    two.promote();
    harness::wait_acknowledged(&two, write(&two));
    receiving.stop();
    one.start_again();
    one.sql("select pg_drop_replication_slot('walrecv')");
    write(&one);

    let streams = |timeline: u32, behind: Option<u32>| {
        move |event: &ReceiveEvent| match event {
            ReceiveEvent::Streaming { timeline: found, lags, .. } => {
                (found.0, lags.as_ref().map(|lags| lags.timeline.0)) == (timeline, behind)
            }
            _ => false,
        }
    };
    let receiving = Receiving::start(both, vault.place());
    receiving.wait_event("the new primary", streams(2, None));
    assert!(
        receiving.saw(reconnects("timeline 2 is stored already: the next host is tried")),
        "{:#?}",
        receiving.events()
    );
    harness::wait_acknowledged(&two, write(&two));
    receiving.stop();

    let receiving = Receiving::start(old_only, vault.place());
    receiving.wait_event("no refusal", reconnects("of no use: "));
    harness::create_slot(&one);
    receiving.wait_event("the old primary", streams(1, Some(2)));
    receiving.stop();
}

/// The same address leads to another host, which has less than what was received already.
#[test]
fn a_host_that_lags_behind_what_was_received_is_begun_anew() {
    require_servers!(MajorVersion::V16);
    let scene = Scene::new(MajorVersion::V16);
    let address = Proxy::start(scene.primary.port());
    let mut options = harness::options_through(&scene.primary, &address);
    options.flush_interval = Duration::from_millis(100);
    let receiving = Receiving::start(options, scene.vault.place());
    receiving.wait_streaming();
    scene.standby_has(scene.write(100));
    scene.wire.stall(true);
    let from = harness::acknowledged(&scene.standby);
    let ahead = scene.write(20_000);
    harness::wait_acknowledged(&scene.primary, ahead);
    address.lead_to(scene.standby.port());
    address.cut();
    wait_for("a stream from the standby", || (begun_at(&receiving).len() > 1).then_some(()));
    let starts = begun_at(&receiving);
    assert!(starts[1] <= scene.standby.lsn(), "{starts:?}: the standby has nothing from there");
    // What is stored already was never told to this server as its own.
    std::thread::sleep(Duration::from_millis(1500));
    let has: Lsn = scene.standby.sql("select pg_last_wal_receive_lsn()").parse().expect("an LSN");
    assert!(told(&scene.standby) <= has, "told {} to a server that has {has}", told(&scene.standby));
    scene.wire.stall(false);
    let end = scene.write(100);
    harness::wait_acknowledged(&scene.standby, end);
    nothing_is_missing(&scene.vault.archive(&scene.primary), &scene.primary, from, end);
    receiving.stop();
}

/// A standby ends in the middle of a record when its primary is lost. It waits at its shutdown for all that it has sent, and the sync that would allow the
/// answer fails once.
#[test]
fn the_head_of_a_record_is_flushed_again_for_a_server_that_stops() {
    require_servers!(MajorVersion::V15);
    if !strace::possible() {
        return;
    }
    let mut scene = Scene::new(MajorVersion::V15);
    let grace = [("VAULT_GRACE_MS", "60000".to_owned())];
    let process = Process::start_with(&scene.vault, &scene.standby, 100, &grace);
    let whole = scene.write(10);
    scene.standby_has(whole);
    harness::wait_acknowledged(&scene.standby, whole);
    // A record of megabytes through a narrow wire, cut in its middle.
    scene.wire.trickle(250_000);
    scene.primary.sql("select pg_logical_emit_message(false, 'large', repeat(md5(random()::text), 200000))");
    scene.primary.sql("insert into t values (1, 'behind it')");
    let received = "select pg_last_wal_receive_lsn()";
    wait_for("a part of the record", || {
        let lsn: Lsn = scene.standby.sql(received).parse().expect("an LSN");
        (lsn.since(whole) > 300_000).then_some(())
    });
    scene.wire.stall(true);
    std::thread::sleep(Duration::from_millis(500));
    let head: Lsn = scene.standby.sql(received).parse().expect("an LSN");
    assert!(head < scene.primary.lsn(), "all of it arrived");
    let streams = |column: &str| -> Lsn {
        let asked = format!("select max({column}) from pg_stat_replication where application_name = 'walrecv'");
        scene.standby.sql(&asked).parse().unwrap_or_default()
    };
    wait_for("the head to be sent", || (streams("sent_lsn") >= head).then_some(()));
    assert!(streams("flush_lsn") < head, "half a record is no news");
    let interfered = Strace::attach(process.pid(), "fdatasync:error=EIO:when=1", None);
    let took = scene.standby.stop(Stop::Fast);
    drop(interfered);
    assert!(process.said().contains("cannot sync: Input/output"), "the sync failed: {}", process.said());
    assert!(took < harness::NOT_HELD_UP, "the stop took {took:?}: it was left, not answered");
}
