//! Failovers as they happen: several hosts, no slot on the new primary, back again after pg_rewind, cascades, forks close together, synced logical slots.

use std::process::{Child, Stdio};
use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentNumber, TimelineHistory, TimelineId};
use walrecv::receive::{AfterFailover, OnGap, ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use crate::support::proxy::Proxy;
use crate::support::{Server, Stop, require_servers, wait_for};

fn caught_up(primary: &Server, standby: &Server) {
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
}

/// Through whichever of two servers is the primary.
fn either(one: &Server, two: &Server) -> ReceiveOptions {
    let hosts = format!("{},{}", one.socket_dir().display(), two.socket_dir().display());
    let ports = format!("{},{}", one.port(), two.port());
    harness::options_for(&format!("host={hosts} port={ports} user=postgres target_session_attrs=read-write"))
}

fn history(server: &Server, timeline: u32) -> TimelineHistory {
    let path = server.data_dir().join(format!("pg_wal/{timeline:08X}.history"));
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    TimelineHistory::parse(TimelineId(timeline), &text).expect("a valid history")
}

fn prefix_is(
    archive: &Archive,
    server: &Server,
    timeline: TimelineId,
    own: TimelineId,
    number: SegmentNumber,
    to: Lsn,
) {
    let size = archive.names.segment_size;
    let (stored, _) = harness::segment(&harness::runtime(), archive, timeline, number);
    let wanted = to.since(number.start(size)).min(size.bytes()) as usize;
    let name = SegmentName::new(timeline, number, size);
    assert!(stored.len() >= wanted, "{name}: {} of {wanted} bytes are stored", stored.len());
    let path = server.data_dir().join("pg_wal").join(SegmentName::new(own, number, size).to_string());
    if let Ok(own) = std::fs::read(path) {
        assert!(stored[..wanted] == own[..wanted], "{name} differs from the server's");
    }
}

/// Everything on the way to the server's timeline, from `from` on, is stored as the server has it: each timeline up to its fork, the last one up to `upto`.
fn path_is_stored(vault: &Vault, server: &Server, timeline: u32, from: Lsn, upto: Lsn) {
    let archive = vault.archive(server);
    let size = archive.names.segment_size;
    let history = history(server, timeline);
    let mut begin = from;
    for (index, ancestor) in history.ancestors.iter().enumerate() {
        let fork = ancestor.switch_point;
        let next = history.ancestors.get(index + 1).map_or(TimelineId(timeline), |a| a.timeline);
        if fork > begin {
            for number in (size.segment_of(begin).0..=size.segment_before(fork).0).map(SegmentNumber) {
                // The segment of the fork goes on under the next timeline's name, with a copy of what came before.
                let own = if number == size.segment_of(fork) { next } else { ancestor.timeline };
                prefix_is(&archive, server, ancestor.timeline, own, number, fork);
            }
        }
        begin = begin.max(fork);
    }
    for number in (size.segment_of(begin).0..=size.segment_before(upto).0).map(SegmentNumber) {
        prefix_is(&archive, server, TimelineId(timeline), TimelineId(timeline), number, upto);
    }
    let stored = harness::runtime().block_on(archive.parsed_history(TimelineId(timeline))).expect("the history");
    assert_eq!(stored, Some(history), "the history of timeline {timeline} is stored");
}

fn switched(receiving: &Receiving, to: u32) {
    let what = format!("the switch to timeline {to}");
    receiving.wait_event(&what, |e| matches!(e, ReceiveEvent::TimelineSwitch { to: found, .. } if found.0 == to));
}

/// The slot appears, and everything up to now is acknowledged.
fn acknowledged_now(server: &Server) -> Lsn {
    let end = server.lsn();
    harness::wait_acknowledged(server, end);
    end
}

fn write(server: &Server, text: &str) {
    server.sql(&format!("insert into t select i, repeat('{text}', 30) from generate_series(1, 5000) i"));
}

/// One receiver, two hosts: failover, the old primary rewound, and back to it.
#[test]
fn a_running_receiver_goes_along_with_a_failover_and_back_after_pg_rewind() {
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let settings = |builder: crate::support::server::Builder| {
            builder.setting("wal_log_hints", "on").setting("wal_keep_size", "200MB")
        };
        let mut one = settings(Server::builder(version)).start();
        one.sql("create table t (id int, filler text)");
        harness::create_slot(&one);
        let from = harness::acknowledged(&one);
        let two = settings(one.standby()).start();
        let vault = Vault::new();
        let receiving = Receiving::start(either(&one, &two), vault.place());
        receiving.wait_streaming();
        write(&one, "first");
        caught_up(&one, &two);
        acknowledged_now(&one);
        one.kill9();
        two.promote();
        write(&two, "second");
        switched(&receiving, 2);
        let end = acknowledged_now(&two);
        assert!(receiving.saw(|e| matches!(e, ReceiveEvent::SlotCreated { .. })), "{:#?}", receiving.events());
        path_is_stored(&vault, &two, 2, from, end);

        // The old primary comes back as a standby of the new one, and takes over in an orderly way.
        let mut two = two;
        two.sql("checkpoint");
        let data = one.data_dir().display().to_string();
        let source = format!("{} dbname=postgres", two.conninfo("postgres"));
        one.run("pg_rewind", &["--target-pgdata", &data, "--source-server", &source, "--write-recovery-conf"]);
        one.start_again();
        caught_up(&two, &one);
        write(&two, "third");
        caught_up(&two, &one);
        acknowledged_now(&two);
        two.stop(Stop::Fast);
        one.promote();
        write(&one, "fourth");
        switched(&receiving, 3);
        let end = acknowledged_now(&one);
        let (report, _) = receiving.stop();
        assert_eq!((report.behind, report.timeline), (0, Some(TimelineId(3))), "{version}");
        path_is_stored(&vault, &one, 3, from, end);
        let inventory = harness::runtime().block_on(vault.archive(&one).holes()).expect("the holes");
        assert_eq!(inventory, [], "{version}");
    }
}

#[test]
fn a_new_primary_without_a_slot_is_refused_where_the_options_say_so() {
    require_servers!(MajorVersion::V18);
    let mut one = Server::start(MajorVersion::V18);
    one.sql("create table t (id int, filler text)");
    harness::create_slot(&one);
    let two = one.standby().start();
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&one), vault.place());
    receiving.wait_streaming();
    write(&one, "first");
    acknowledged_now(&one);
    receiving.stop();
    caught_up(&one, &two);
    // A standby gets no slot by itself, and a slot that is dropped on the same timeline was dropped by somebody.
    let error = Receiving::start(harness::options(&two), vault.place()).end().expect_err("no slot on a standby");
    assert_eq!(error.kind(), Kind::Slot, "{error}");
    one.kill9();
    two.promote();
    let options = ReceiveOptions { after_failover: AfterFailover::Stop, ..harness::options(&two) };
    let error = Receiving::start(options, vault.place()).end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Slot, "{error}");
    assert_eq!(two.sql("select count(*) from pg_replication_slots"), "0");
    // Where the new primary no longer has what the archive needs, no slot is left behind that would fill its disk.
    for _ in 0..3 {
        two.switch_wal();
        two.sql("checkpoint");
    }
    two.sql("alter system set min_wal_size = '2MB'");
    two.sql("alter system set max_wal_size = '2MB'");
    two.sql("select pg_reload_conf()");
    for _ in 0..8 {
        two.switch_wal();
        two.sql("checkpoint");
    }
    let error = Receiving::start(harness::options(&two), vault.place()).end().expect_err("a hole");
    assert!(error.to_string().contains("needs WAL from"), "{error}");
    assert_eq!(two.sql("select count(*) from pg_replication_slots"), "0");
    // Where a hole is taken into account, it is recorded, and the slot stays.
    let options = ReceiveOptions { on_gap: OnGap::NewRange, ..harness::options(&two) };
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_event(
        "the hole",
        // Where all of the old timeline is stored, it begins with the new one.
        |event| matches!(event, ReceiveEvent::Hole(hole) if hole.to_timeline.0 == 2),
    );
    write(&two, "behind the hole");
    acknowledged_now(&two);
    receiving.stop();
    assert_eq!(two.sql("select count(*) from pg_replication_slots where restart_lsn is not null"), "1");
    let holes = harness::runtime().block_on(vault.archive(&two).holes()).expect("the holes");
    assert_eq!(holes.len(), 1, "{holes:?}");
}

/// Nothing is stored yet, and the server is on its third timeline: that one is received, with its history.
#[test]
fn an_empty_archive_begins_on_the_timeline_of_the_server() {
    require_servers!(MajorVersion::V14);
    let one = Server::start(MajorVersion::V14);
    one.sql("create table t (id int, filler text)");
    let two = one.standby().start();
    two.promote();
    two.sql("insert into t values (2, 'on timeline 2')");
    let three = two.standby().start();
    three.promote();
    harness::create_slot(&three);
    let from = harness::acknowledged(&three);
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&three), vault.place());
    receiving.wait_streaming();
    write(&three, "first");
    let end = three.switch_wal();
    harness::wait_acknowledged(&three, end);
    receiving.stop();
    path_is_stored(&vault, &three, 3, from, end);
    let stored = |vault: &Vault, timeline: u32| {
        harness::runtime().block_on(vault.archive(&three).parsed_history(TimelineId(timeline))).expect("a look")
    };
    assert_eq!(stored(&vault, 2), Some(history(&three, 2)), "the history of the timeline between is stored too");
    let inventory = harness::runtime().block_on(vault.archive(&three).inventory()).expect("list");
    let timelines: Vec<_> = inventory.timelines.keys().copied().collect();
    assert_eq!(timelines, [TimelineId(3)]);

    // A server that no longer has the file of the timeline between is received all the same: its own history names that one.
    std::fs::remove_file(three.data_dir().join("pg_wal/00000002.history")).expect("remove a history");
    let (other, from) = (Vault::new(), harness::acknowledged(&three));
    let receiving = Receiving::start(harness::options(&three), other.place());
    receiving.wait_streaming();
    write(&three, "second");
    let end = three.switch_wal();
    harness::wait_acknowledged(&three, end);
    receiving.stop();
    path_is_stored(&other, &three, 3, from, end);
    assert_eq!(stored(&other, 2), None);
}

/// Two standbys of one primary are promoted, at different places: both call their timeline 2, and only one of them can be the archive's.
#[test]
fn of_two_promotions_only_one_is_timeline_2_of_the_archive() {
    require_servers!(MajorVersion::V18);
    let one = Server::start(MajorVersion::V18);
    one.sql("create table t (id int, filler text)");
    let (two, three) = (one.standby().start(), one.standby().start());
    caught_up(&one, &two);
    two.promote();
    harness::create_slot(&two);
    let from = harness::acknowledged(&two);
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&two), vault.place());
    receiving.wait_streaming();
    write(&two, "the one of the archive");
    let end = acknowledged_now(&two);
    receiving.stop();
    write(&one, "on timeline 1");
    caught_up(&one, &three);
    three.promote();
    harness::create_slot(&three);
    write(&three, "another one");
    let before = harness::acknowledged(&three);
    let objects = || harness::runtime().block_on(vault.repository().list("clusters")).expect("list").len();
    let stored = objects();
    let error = Receiving::start(harness::options(&three), vault.place()).end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Diverged, "{error}");
    assert!(error.to_string().contains("history"), "before any WAL is asked for: {error}");
    assert_eq!((harness::acknowledged(&three), objects()), (before, stored), "nothing was acknowledged or stored");
    path_is_stored(&vault, &two, 2, from, end);
}

/// The receiver is down while two promotions follow each other within one segment, then while one comes at the border of a segment.
#[test]
fn two_forks_in_one_segment_and_one_at_its_border() {
    require_servers!(MajorVersion::V16);
    let mut one = Server::builder(MajorVersion::V16).setting("wal_keep_size", "200MB").start();
    one.sql("create table t (id int, filler text)");
    harness::create_slot(&one);
    let from = harness::acknowledged(&one);
    let mut two = one.standby().setting("wal_keep_size", "200MB").start();
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&one), vault.place());
    receiving.wait_streaming();
    write(&one, "first");
    acknowledged_now(&one);
    receiving.stop();
    let mut three = two.standby().setting("wal_keep_size", "200MB").start();
    let four = three.standby().setting("wal_keep_size", "200MB").start();
    one.switch_wal();
    one.sql("insert into t values (1, 'nobody received this on timeline 1')");
    caught_up(&one, &four);
    one.kill9();
    two.promote();
    two.sql("insert into t values (2, 'on timeline 2')");
    caught_up(&two, &four);
    two.kill9();
    three.promote();
    three.sql("insert into t values (3, 'on timeline 3')");
    let forks = history(&three, 3);
    let size = harness::segment_size_of(&three);
    let forks: Vec<_> = forks.ancestors.iter().map(|a| size.segment_of(a.switch_point)).collect();
    assert_eq!(forks[0], forks[1], "both forks lie in one segment");
    let receiving = Receiving::start(harness::options(&three), vault.place());
    switched(&receiving, 2);
    switched(&receiving, 3);
    let end = acknowledged_now(&three);
    receiving.stop();
    path_is_stored(&vault, &three, 3, from, end);

    let border = three.switch_wal();
    caught_up(&three, &four);
    three.kill9();
    four.promote();
    let fork = history(&four, 4).switch_point_of(TimelineId(3)).expect("a fork");
    assert!(fork >= border, "{fork} and {border}");
    eprintln!("fork at {fork}, border at {border}");
    let receiving = Receiving::start(harness::options(&four), vault.place());
    four.sql("insert into t values (4, 'on timeline 4')");
    wait_for("the slot to be made", || {
        (four.sql("select count(*) from pg_replication_slots where active") == "1").then_some(())
    });
    let end = acknowledged_now(&four);
    receiving.stop();
    path_is_stored(&vault, &four, 4, from, end);
}

/// From a standby of a standby: its upstream is promoted, then it is itself.
#[test]
fn a_cascade_is_followed_when_its_upstream_is_promoted_and_when_it_is_promoted_itself() {
    require_servers!(MajorVersion::V18);
    let mut one = Server::start(MajorVersion::V18);
    one.sql("create table t (id int, filler text)");
    let mut two = one.standby().setting("wal_keep_size", "200MB").start();
    let three = two.standby().setting("wal_keep_size", "200MB").start();
    harness::create_slot(&three);
    let from = harness::acknowledged(&three);
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&three), vault.place());
    receiving.wait_streaming();
    write(&one, "first");
    caught_up(&one, &three);
    one.kill9();
    two.promote();
    write(&two, "second");
    caught_up(&two, &three);
    switched(&receiving, 2);
    let end: Lsn = two.sql("select pg_current_wal_flush_lsn()").parse().expect("a position");
    harness::wait_acknowledged(&three, end);
    two.kill9();
    three.promote();
    write(&three, "third");
    switched(&receiving, 3);
    let end = acknowledged_now(&three);
    let (report, _) = receiving.stop();
    assert_eq!((report.behind, report.timeline), (0, Some(TimelineId(3))));
    path_is_stored(&vault, &three, 3, from, end);
}

/// A primary whose logical failover slot `subscriber` sends nothing before its standby and walrecv have it, and that standby, which has a synced copy of the slot.
fn synced(version: MajorVersion) -> (Server, Server) {
    let one = Server::builder(version)
        .setting("wal_level", "logical")
        .setting("synchronized_standby_slots", "standby, walrecv")
        .start();
    one.sql("create table t (id int, filler text)");
    harness::create_slot(&one);
    one.sql("select pg_create_physical_replication_slot('standby', true)");
    let two = one
        .standby()
        .setting("wal_level", "logical")
        .setting("primary_slot_name", "standby")
        .setting("hot_standby_feedback", "on")
        .setting("sync_replication_slots", "on")
        .setting("synchronized_standby_slots", "walrecv")
        .start();
    // The worker that syncs slots asks a database of the primary.
    two.sql(&format!("alter system set primary_conninfo = '{} dbname=postgres'", one.conninfo("postgres")));
    two.sql("select pg_reload_conf()");
    one.sql("select pg_create_logical_replication_slot('subscriber', 'test_decoding', failover => true)");
    (one, two)
}

/// A subscriber that prints what it is sent, and ends when that was everything up to `end`.
fn subscribe(server: &Server, end: Lsn) -> Child {
    let mut command = server.bin("pg_recvlogical");
    command.args(["--dbname=postgres", "--slot=subscriber", "--start", "--no-loop", "--file=-"]);
    command.arg(format!("--endpos={end}")).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start pg_recvlogical")
}

fn printed(subscriber: Child) -> String {
    let output = subscriber.wait_with_output().expect("wait for pg_recvlogical");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A standby keeps a logical failover slot and not walrecv's: on the new primary a subscriber waits until walrecv has made its own, and is sent nothing that
/// is not stored.
#[test]
fn a_synced_logical_slot_goes_on_after_a_failover_once_walrecv_has_made_its_own() {
    for version in [MajorVersion::V17, MajorVersion::V18] {
        require_servers!(version);
        let (mut one, two) = synced(version);
        let from = harness::acknowledged(&one);
        let lines = [Proxy::start(one.port()), Proxy::start(two.port())];
        let hosts = format!("host=127.0.0.1,127.0.0.1 port={},{}", lines[0].port, lines[1].port);
        let mut options =
            harness::options_for(&format!("{hosts} user=postgres sslmode=disable target_session_attrs=read-write"));
        options.flush_interval = Duration::from_millis(100);
        let vault = Vault::new();
        let receiving = Receiving::start(options, vault.place());
        receiving.wait_streaming();
        one.sql("insert into t values (1, 'sent by the old primary')");
        let sent = printed(subscribe(&one, one.lsn()));
        assert!(sent.contains("sent by the old primary"), "{version}: {sent}");
        wait_for("the slot to be synced", || {
            // A standby takes it over once it needs nothing that was before the standby.
            one.sql("select pg_log_standby_snapshot(), pg_logical_slot_get_changes('subscriber', null, null)");
            let ready = "slot_name = 'subscriber' and synced and not temporary";
            (two.sql(&format!("select count(*) from pg_replication_slots where {ready}")) == "1").then_some(())
        });
        lines.iter().for_each(|line| line.stall(true));
        one.sql("insert into t values (2, 'only on the standby')");
        let end = one.switch_wal();
        caught_up(&one, &two);
        assert!(harness::acknowledged(&one) < end, "{version}: the archive lacks the end of a segment");
        one.kill9();
        two.promote();
        two.sql("insert into t values (3, 'written by the new primary')");
        let end = two.lsn();
        let subscriber = subscribe(&two, end);
        let waits = "application_name = 'pg_recvlogical' and wait_event = 'WaitForStandbyConfirmation'";
        two.wait_sql(&format!("select count(*) from pg_stat_activity where {waits}"), "1");
        let slots = two.sql("select string_agg(slot_name, ' ') from pg_replication_slots");
        assert_eq!(slots, "subscriber", "{version}: walrecv's was not synced");
        // Nobody listens for the dead server any more.
        let [old, new] = lines;
        drop(old);
        new.stall(false);
        let sent = printed(subscriber);
        path_is_stored(&vault, &two, 2, from, end);
        assert!(sent.contains("only on the standby") && sent.contains("by the new primary"), "{version}: {sent}");
        assert!(receiving.saw(|e| matches!(e, ReceiveEvent::SlotCreated { .. })), "{:#?}", receiving.events());
        acknowledged_now(&two);
        let (report, _) = receiving.stop();
        assert_eq!((report.behind, report.timeline), (0, Some(TimelineId(2))), "{version}");
        let holes = harness::runtime().block_on(vault.archive(&two).holes()).expect("the holes");
        assert_eq!(holes, [], "{version}");
    }
}

/// When the primary dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiver {
    /// It has all zeros of the segment.
    Ahead,
    /// It has some of them, like the standby.
    Level,
    /// It had all of them, and begins anew.
    Restarted,
}

/// A primary, and a standby whose WAL comes over a wire.
fn wired(version: MajorVersion) -> (Server, Server, Proxy) {
    let one = Server::builder(version).setting("max_wal_size", "4MB").setting("min_wal_size", "4MB").start();
    one.sql("create table t (id int, filler text)");
    harness::create_slot(&one);
    let two = one.standby().start();
    let wire = Proxy::start(one.port());
    let through = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", wire.port);
    two.sql(&format!("alter system set primary_conninfo = '{through}'"));
    two.sql("select pg_reload_conf()");
    one.wait_sql("select count(*) from pg_stat_replication where client_addr is not null", "1");
    (one, two, wire)
}

/// PostgreSQL reads nothing behind a WAL switch. A standby that had not received all of the zeros there when it was promoted has in their place what its
/// recycled file held before, and sends that.
#[test]
fn what_stands_behind_a_switch_is_no_damage_and_no_difference() {
    for (version, receiver) in [
        (MajorVersion::V18, Receiver::Ahead),
        (MajorVersion::V18, Receiver::Level),
        (MajorVersion::V18, Receiver::Restarted),
        (MajorVersion::V13, Receiver::Level),
    ] {
        require_servers!(version);
        let (mut one, two, wire) = wired(version);
        let from = harness::acknowledged(&one);
        let options = match receiver {
            Receiver::Level => {
                let (host, port) = (two.socket_dir().display(), two.port());
                let hosts = format!("host=127.0.0.1,{host} port={},{port}", wire.port);
                harness::options_for(&format!("{hosts} user=postgres sslmode=disable target_session_attrs=read-write"))
            }
            _ => either(&one, &two),
        };
        let vault = Vault::new();
        let receiving = Receiving::start(options.clone(), vault.place());
        receiving.wait_streaming();
        // The standby's next files are old ones.
        for _ in 0..4 {
            write(&one, "first");
            one.sql("checkpoint");
            caught_up(&one, &two);
            two.sql("checkpoint");
        }
        harness::create_slot(&two);
        one.switch_wal();
        one.sql("insert into t values (0, 'last')");
        caught_up(&one, &two);
        let last = acknowledged_now(&one);
        wire.trickle(100_000);
        one.switch_wal();
        let size = vault.archive(&one).names.segment_size;
        let switched_in = size.segment_of(last);
        if receiver != Receiver::Level {
            harness::wait_acknowledged(&one, switched_in.next().start(size));
        }
        two.wait_sql(&format!("select pg_last_wal_receive_lsn() > '{last}'"), "t");
        let mut running = Some(receiving);
        if receiver == Receiver::Restarted {
            running.take().map(Receiving::stop);
        }
        one.kill9();
        drop(wire);
        let had: Lsn = two.sql("select pg_last_wal_receive_lsn()").parse().expect("a position");
        two.promote();
        let name = SegmentName::new(TimelineId(1), switched_in, size).to_string();
        let file = std::fs::read(two.data_dir().join("pg_wal").join(name)).expect("the segment");
        let behind = &file[had.since(switched_in.start(size)) as usize..];
        assert!(behind.iter().any(|b| *b != 0), "{version}: the standby has zeros from {had} on, too");
        let receiving = running.unwrap_or_else(|| Receiving::start(options, vault.place()));
        write(&two, "second");
        switched(&receiving, 2);
        let end = acknowledged_now(&two);
        let (report, _) = receiving.stop();
        assert_eq!((report.behind, report.timeline), (0, Some(TimelineId(2))), "{version} {receiver:?}");
        path_is_stored(&vault, &two, 2, switched_in.next().start(size), end);
        let (stored, _) = harness::segment(&harness::runtime(), &vault.archive(&two), TimelineId(1), switched_in);
        let at = last.since(switched_in.start(size)) as usize;
        assert!(stored[..at] == file[..at] && from < last, "{version} {receiver:?}: the records");
        assert!(stored[at + 64..].iter().all(|b| *b == 0), "{version} {receiver:?}: zeros are stored");
        println!("PostgreSQL {version}, {receiver:?}: {} bytes of the segment, the standby had {had}", stored.len());
    }
}
