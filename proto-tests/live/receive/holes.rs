//! Slots that lost their WAL, and holes: refused in clear words, or recorded and left behind, and never crossed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walrecv::error::Kind;
use walrecv::net::{Connection, Mode};
use walrecv::pg::{Lsn, MajorVersion, SegmentNumber, TimelineId};
use walrecv::receive::slot::{SlotRow, drop_stale};
use walrecv::receive::{OnGap, ReceiveEvent, ReceiveOptions};
use walrecv::seal::content::event::Hole;

use super::harness::{self, Receiving, Vault};
use super::store::Store;
use crate::support::{Server, TempDir, require_servers, wait_for};

const ONE: TimelineId = TimelineId(1);

/// A server that removes WAL soon, and invalidates slots that hold back more than a few segments.
fn forgetful(version: MajorVersion) -> Server {
    let small = Server::builder(version).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    small.setting("max_slot_wal_keep_size", "3MB").start()
}

/// Writes until nothing below `segments` segments from now is left.
fn forget(server: &Server, segments: u32) {
    for _ in 0..segments {
        server.switch_wal();
        server.sql("checkpoint");
    }
}

fn lost(server: &Server) -> bool {
    server.sql("select wal_status = 'lost' from pg_replication_slots where slot_name = 'walrecv'") == "t"
}

fn first_run(server: &Server, vault: &Vault) -> Lsn {
    harness::create_slot(server);
    let receiving = Receiving::start(harness::options(server), vault.place());
    receiving.wait_streaming();
    server.sql("create table t (id int, filler text); insert into t values (1, 'before the hole')");
    let end = server.switch_wal();
    server.sql("insert into t values (2, 'in the tail')");
    let tail = server.lsn();
    harness::wait_acknowledged(server, tail);
    receiving.stop();
    assert!(tail > end);
    tail
}

fn on_gap(server: &Server) -> ReceiveOptions {
    ReceiveOptions { on_gap: OnGap::NewRange, ..harness::options(server) }
}

fn holes(vault: &Vault, server: &Server) -> Vec<Hole> {
    harness::runtime().block_on(vault.archive(server).holes()).expect("the holes")
}

/// Everything behind the hole, and nothing inside it.
fn stored_behind(vault: &Vault, server: &Server, hole: &Hole, upto: Lsn) {
    let (runtime, archive) = (harness::runtime(), vault.archive(server));
    let size = archive.names.segment_size;
    for number in (size.segment_of(hole.to).0..=size.segment_before(upto).0).map(SegmentNumber) {
        let (stored, _) = harness::segment(&runtime, &archive, hole.to_timeline, number);
        let wanted = upto.since(number.start(size)).min(size.bytes()) as usize;
        assert!(stored.len() >= wanted, "segment {number:?} behind the hole");
        // A segment that the server still has is what it has.
        let name = walrecv::pg::SegmentName::new(hole.to_timeline, number, size);
        if let Ok(own) = std::fs::read(server.data_dir().join("pg_wal").join(name.to_string())) {
            assert!(stored[..wanted] == own[..wanted], "segment {name} differs");
        }
    }
    let crossed = runtime.block_on(archive.contiguous_from(hole.from_timeline, Lsn(hole.from.0 - 8)));
    assert_eq!(crossed.expect("measure"), Some(hole.from), "the archive is whole up to the hole and no further");
}

#[test]
fn a_lost_slot_is_never_streamed_on_and_made_anew_where_that_is_wanted() {
    for version in [MajorVersion::V13, MajorVersion::V16, MajorVersion::V17, MajorVersion::V18] {
        require_servers!(version);
        let server = forgetful(version);
        let vault = Vault::new();
        let tail = first_run(&server, &vault);
        forget(&server, 8);
        wait_for("the slot to be lost", || {
            forget(&server, 1);
            lost(&server).then_some(())
        });
        let error = Receiving::start(harness::options(&server), vault.place()).end().expect_err("a refusal");
        assert_eq!(error.kind(), Kind::Slot, "{version}: {error}");
        assert!(error.advice().is_some_and(|a| a.contains("on_gap")), "{version}: {error:?}");
        assert!(lost(&server), "{version}: nothing was streamed on it, which would hide that it was lost");
        assert_eq!(holes(&vault, &server), [], "{version}");

        let receiving = Receiving::start(on_gap(&server), vault.place());
        receiving.wait_event("the hole", |e| matches!(e, ReceiveEvent::Hole(_)));
        receiving.wait_streaming();
        server.sql("insert into t values (3, 'behind the hole')");
        let end = server.switch_wal();
        harness::wait_acknowledged(&server, end);
        receiving.stop();
        let found = holes(&vault, &server);
        let [hole] = found.as_slice() else { panic!("{version}: {found:?}") };
        assert_eq!((hole.from_timeline, hole.from, hole.to_timeline), (ONE, tail, ONE), "{version}");
        assert!(!lost(&server), "{version}: the new slot holds WAL back");
        stored_behind(&vault, &server, hole, end);

        // The next run knows of the hole: it neither asks for what is in it nor records it again, whatever the policy.
        let receiving = Receiving::start(harness::options(&server), vault.place());
        server.sql("insert into t values (4, 'later')");
        let end = server.switch_wal();
        harness::wait_acknowledged(&server, end);
        receiving.stop();
        assert_eq!(holes(&vault, &server).len(), 1, "{version}");
        stored_behind(&vault, &server, hole, end);
    }
}

/// Without SQL a lost slot of 16 and 17 looks like one that never reserved WAL, and the server would stream on it.
#[test]
fn without_sql_a_lost_slot_is_told_from_its_missing_position() {
    require_servers!(MajorVersion::V16);
    let version = MajorVersion::V16;
    let small = Server::builder(version).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    let server = small.setting("max_slot_wal_keep_size", "3MB").hba("local nowhere walonly trust").start();
    server.sql("create role walonly login replication");
    let vault = Vault::new();
    first_run(&server, &vault);
    forget(&server, 8);
    wait_for("the slot to be lost", || {
        forget(&server, 1);
        lost(&server).then_some(())
    });
    // A database that does not exist refuses SQL.
    let physical = |options: ReceiveOptions| {
        let conninfo = format!("{} dbname=nowhere", server.conninfo("postgres"));
        ReceiveOptions { conninfo: harness::options_for(&conninfo).conninfo, ..options }
    };
    let error = Receiving::start(physical(harness::options(&server)), vault.place()).end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Slot, "{error}");
    assert!(lost(&server));
    let receiving = Receiving::start(physical(on_gap(&server)), vault.place());
    receiving.wait_event("the hole", |e| matches!(e, ReceiveEvent::Hole(_)));
    assert!(receiving.saw(|e| matches!(e, ReceiveEvent::Watching { sql: false })));
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    receiving.stop();
    stored_behind(&vault, &server, &holes(&vault, &server)[0], end);
}

/// Nobody used the slot for too long, but the WAL is still there: made anew, and no hole.
#[test]
fn a_slot_that_was_idle_for_too_long_leaves_no_hole_while_the_wal_is_there() {
    require_servers!(MajorVersion::V18);
    let version = MajorVersion::V18;
    let idle = Server::builder(version).setting("idle_replication_slot_timeout", "1s");
    let server = idle.setting("wal_keep_size", "512MB").start();
    let vault = Vault::new();
    first_run(&server, &vault);
    std::thread::sleep(Duration::from_millis(1500));
    wait_for("the slot to be invalid", || {
        forget(&server, 1);
        lost(&server).then_some(())
    });
    let error = Receiving::start(harness::options(&server), vault.place()).end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Slot, "{error}");
    assert!(error.to_string().contains("idle_replication_slot_timeout"), "{error}");
    let receiving = Receiving::start(on_gap(&server), vault.place());
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    assert!(receiving.saw(|e| matches!(e, ReceiveEvent::SlotCreated { .. })), "{:#?}", receiving.events());
    receiving.stop();
    assert_eq!(holes(&vault, &server), []);
}

/// The repository is away for so long that the server is let go; what it removes then is a hole, and not a byte of it is ever reported.
#[test]
fn a_server_is_given_up_while_nothing_can_be_stored() {
    require_servers!(MajorVersion::V15);
    let small = Server::builder(MajorVersion::V15).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    let server = small.start();
    harness::create_slot(&server);
    let vault = Vault::new();
    let store = Store::default();
    let mut options = on_gap(&server);
    options.stall_timeout = Duration::from_secs(1);
    options.flush_interval = Duration::from_millis(100);
    options.give_up_at = Some(6 << 20);
    let place = walrecv::receive::Place { repo: store.repository(), ..vault.place() };
    let receiving = Receiving::start(options, place);
    receiving.wait_streaming();
    server.sql("create table t (id int); insert into t values (1)");
    let stored = server.lsn();
    harness::wait_acknowledged(&server, stored);
    store.away(true);
    server.sql("insert into t values (2)");
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    let before = harness::acknowledged(&server);
    forget(&server, 8);
    assert_eq!(harness::acknowledged(&server), before, "the slot holds everything that is not stored");
    receiving.wait_event("giving up", |e| matches!(e, ReceiveEvent::GaveUp { .. }));
    forget(&server, 4);
    let retained = server.lsn().since(harness::acknowledged(&server));
    assert!(retained < 6 << 20, "the server was let go: {retained} bytes");
    store.away(false);
    receiving.wait_event("the hole", |e| matches!(e, ReceiveEvent::Hole(_)));
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    let (report, _) = receiving.stop();
    assert_eq!(report.behind, 0);
    let archive = vault.archive_in(store.repository(), &server);
    let found = harness::runtime().block_on(archive.holes()).expect("the holes");
    let [hole] = found.as_slice() else { panic!("{found:?}") };
    assert!(hole.from >= stored && hole.to <= end, "{hole:?}, stored {stored}, end {end}");
}

/// The repository is away until the server has let go of the slot: the run ends with that, and never streams on a slot that would look whole again.
#[test]
fn a_slot_that_is_lost_while_nothing_can_be_stored_ends_the_run() {
    for version in [MajorVersion::V14, MajorVersion::V17] {
        require_servers!(version);
        let server = forgetful(version);
        harness::create_slot(&server);
        let (vault, store) = (Vault::new(), Store::default());
        let mut options = harness::options(&server);
        (options.stall_timeout, options.flush_interval) = (Duration::from_secs(1), Duration::from_millis(100));
        let place = walrecv::receive::Place { repo: store.repository(), ..vault.place() };
        let receiving = Receiving::start(options, place);
        receiving.wait_streaming();
        server.sql("create table t (id int); insert into t values (1)");
        let stored = server.lsn();
        harness::wait_acknowledged(&server, stored);
        store.away(true);
        server.sql("insert into t values (2)");
        receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
        wait_for("the slot to be lost", || {
            forget(&server, 1);
            lost(&server).then_some(())
        });
        let end = server.lsn();
        store.away(false);
        let error = receiving.end().expect_err("a refusal");
        assert_eq!(error.kind(), Kind::Slot, "{version}: {error}");
        assert!(lost(&server), "{version}: nothing was streamed on it");
        let archive = vault.archive_in(store.repository(), &server);
        let reached = harness::runtime().block_on(archive.contiguous_from(ONE, Lsn(stored.0 - 8))).expect("measure");
        assert!(reached.is_some_and(|lsn| lsn >= stored && lsn < end), "{version}: {reached:?}, stored {stored}");
    }
}

/// A server that many bytes wait on is not let go because the repository fails once: not before nothing could be stored for long.
#[test]
fn a_server_is_not_given_up_at_the_first_failure() {
    require_servers!(MajorVersion::V15);
    let server =
        Server::builder(MajorVersion::V15).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB").start();
    harness::create_slot(&server);
    let (vault, store) = (Vault::new(), Store::default());
    forget(&server, 8);
    let before = harness::acknowledged(&server);
    let mut options = on_gap(&server);
    options.give_up_at = Some(6 << 20);
    options.stall_timeout = Duration::from_secs(60);
    store.away(true);
    let place = walrecv::receive::Place { repo: store.repository(), ..vault.place() };
    let receiving = Receiving::start(options, place);
    receiving.wait_event("a failure", |e| matches!(e, ReceiveEvent::Reconnecting { .. }));
    receiving.wait_event("a look at the slot", |e| matches!(e, ReceiveEvent::Slot(_)));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(harness::acknowledged(&server), before, "the slot was dropped");
    store.away(false);
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    assert!(!receiving.saw(|e| matches!(e, ReceiveEvent::GaveUp { .. } | ReceiveEvent::Hole(_))));
    receiving.stop();
}

/// What another receiver made anew since the slot was looked at holds WAL: it is not dropped, and what it has dropped already is none to drop.
#[test]
fn only_a_slot_that_is_still_as_it_was_seen_is_dropped() {
    require_servers!(MajorVersion::V16);
    let server = Server::builder(MajorVersion::V16).start();
    harness::create_slot(&server);
    let conninfo = harness::options(&server).conninfo;
    harness::runtime().block_on(async {
        let connection = Connection::connect(&conninfo, Mode::Physical, "").await;
        let mut connection = connection.expect("a connection");
        let lost = |row: &SlotRow, sql: bool| sql && row.is_lost();
        let error = drop_stale(&mut connection, "walrecv", lost).await.expect_err("it holds WAL");
        assert!(error.is_transient(), "it is looked at again: {error}");
        let there = || server.sql("select count(*) from pg_replication_slots");
        assert_eq!(there(), "1");
        drop_stale(&mut connection, "walrecv", |row, _| row.restart_lsn.is_some()).await.expect("drop");
        assert_eq!(there(), "0");
        drop_stale(&mut connection, "walrecv", |_, _| false).await.expect("it is gone already");
    });
}

/// A copy of the repository is put back while no receiver runs, and the server has let go of what was stored since. The catalog knows how far it was durable.
#[test]
fn a_repository_that_was_put_back_is_told_from_a_gap() {
    let version = MajorVersion::V13;
    require_servers!(version);
    // However slow the machine is, the slot is not lost.
    let server = Server::builder(version).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB").start();
    let vault = Vault::new();
    let states = TempDir::new("states");
    let (folder, copy) = (vault.temp.path(), states.join("copy"));
    let with_catalog = |options| ReceiveOptions { catalog: Some(states.join("catalog")), ..options };
    harness::create_slot(&server);
    let run = || {
        let receiving = Receiving::start(with_catalog(harness::options(&server)), vault.place());
        receiving.wait_streaming();
        server.sql("create table if not exists t (id int); insert into t values (1)");
        forget(&server, 4);
        server.sql("insert into t values (2)");
        harness::wait_acknowledged(&server, server.lsn());
        receiving.stop().0.durable
    };
    let before = run();
    cp(folder, &copy);
    let after = run();
    forget(&server, 2);
    std::fs::remove_dir_all(folder).expect("remove the repository");
    cp(&copy, folder);

    // However often it is started.
    for _ in 0..2 {
        let receiving = Receiving::start(with_catalog(harness::options(&server)), vault.place());
        let (ended, events) = receiving.end_and_events();
        let error = ended.expect_err("the server has removed it");
        let (said, hint) = (error.to_string(), error.advice().unwrap_or_default().to_owned());
        assert_eq!(error.kind(), Kind::Slot, "{said}");
        let gone = format!("WAL from {before} to {after} of timeline 1 was stored, and is gone from the repository");
        assert!(
            said.contains(&gone) && hint.contains("put its objects back") && !hint.contains("is safe"),
            "{said}: {hint}"
        );
        let warned = |e: &ReceiveEvent| matches!(e, ReceiveEvent::Warning(text) if text.contains(&gone));
        assert!(events.iter().any(warned), "{events:#?}");
    }
    let receiving = Receiving::start(with_catalog(on_gap(&server)), vault.place());
    receiving.wait_event("a hole", |e| matches!(e, ReceiveEvent::Hole(_)));
    server.sql("insert into t values (3)");
    harness::wait_acknowledged(&server, server.lsn());
    receiving.stop();
    let holes = holes(&vault, &server);
    assert!(holes.len() == 1 && holes[0].reason.contains("is gone from the repository"), "{holes:#?}");

    // Nothing of that is said where nothing is missing, or the server still has it.
    let receiving = Receiving::start(with_catalog(harness::options(&server)), vault.place());
    receiving.wait_streaming();
    let events = receiving.stopped_events();
    assert!(
        !events.iter().any(|e| matches!(e, ReceiveEvent::Warning(text) if text.contains("is gone"))),
        "{events:#?}"
    );
}

fn cp(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success());
}
