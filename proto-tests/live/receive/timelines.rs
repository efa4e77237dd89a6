//! Timelines: followed while streaming, finished after a failover, and a branch that died kept.

use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::pg::{Lsn, MajorVersion, SegmentNumber, TimelineId};
use walrecv::receive::{Place, ReceiveEvent};

use super::harness::{self, Receiving, Vault};
use super::store::Store;
use crate::support::proxy::Proxy;
use crate::support::{Server, Stop, require_servers};

const OLD: TimelineId = TimelineId(1);
const NEW: TimelineId = TimelineId(2);

fn caught_up(primary: &Server, standby: &Server) {
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
}

/// Where the new timeline left the old one, by the server's own history file.
fn fork(server: &Server) -> Lsn {
    let path = server.data_dir().join("pg_wal/00000002.history");
    let text = std::fs::read(path).expect("a history file");
    let history = walrecv::pg::TimelineHistory::parse(NEW, &text).expect("a valid history");
    history.switch_point_of(OLD).expect("a fork")
}

/// The stored WAL of both timelines is what the promoted server has: the old one up to the fork, the new one up to `upto`.
fn both_timelines_are_stored(archive: &Archive, server: &Server, upto: Lsn) {
    let runtime = harness::runtime();
    let size = archive.names.segment_size;
    let fork = fork(server);
    let number = size.segment_of(fork);
    let (end_of_old, complete) = harness::segment(&runtime, archive, OLD, number);
    assert!(!complete, "the old timeline's last segment is not complete");
    let wanted = fork.since(number.start(size)) as usize;
    assert!(end_of_old.len() >= wanted, "the old timeline is stored up to its end");
    let inventory = runtime.block_on(archive.inventory()).expect("list");
    assert!(inventory.timelines[&OLD].partial.contains(&number), "as an object of its own");
    assert!(!inventory.timelines[&OLD].tails.contains_key(&number), "and in no tail");
    assert_eq!(inventory.histories[&NEW].switch_point_of(OLD), Some(fork), "the new timeline's history is stored");
    for number in (number.0..=size.segment_before(upto).0).map(SegmentNumber) {
        let own = harness::own_segment(server, NEW, number, size);
        let (stored, _) = harness::segment(&runtime, archive, NEW, number);
        let wanted = upto.since(number.start(size)).min(size.bytes()) as usize;
        assert!(stored.len() >= wanted && stored[..wanted] == own[..wanted], "segment {number:?} of the new timeline");
    }
    let own = harness::own_segment(server, NEW, number, size);
    assert!(end_of_old[..wanted] == own[..wanted], "both timelines agree up to the fork");
}

/// Of timeline 2 its history was there before any of its WAL, in an object or a piece of a tail: without it nobody knows where it left timeline 1.
fn history_came_first(created: &[String]) {
    let first = |parts: &[&str]| created.iter().position(|name| parts.iter().any(|part| name.contains(part)));
    let history = first(&["/wal/00000002.history"]);
    let wal = first(&["/wal/00000002/", "/tail/00000002/"]);
    assert!(history.is_some() && wal.is_some() && history < wal, "{created:#?}");
}

#[test]
fn a_promotion_is_followed_while_streaming() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let mut primary = Server::start(version);
        primary.sql("create table t (id int, filler text)");
        // Nobody waits for the receivers of a standby, whatever it is set to.
        let standby = primary.standby().setting("synchronous_standby_names", "walrecv").start();
        harness::create_slot(&standby);
        let (vault, store) = (Vault::new(), Store::default());
        let repository = || if version == MajorVersion::V18 { store.repository() } else { vault.repository() };
        let place = Place { repo: repository(), ..vault.place() };
        let receiving = Receiving::start(harness::options(&standby), place);
        receiving.wait_streaming();
        let listed = |e: &ReceiveEvent| matches!(e, ReceiveEvent::Synchronous(true));
        primary.sql("insert into t select i, repeat('x', 100) from generate_series(1, 20000) i");
        caught_up(&primary, &standby);
        assert!(!receiving.saw(listed), "{:#?}", receiving.events());
        primary.stop(Stop::Fast);
        standby.promote();
        receiving.wait_event("the switch", |e| matches!(e, ReceiveEvent::TimelineSwitch { to: NEW, .. }));
        receiving.wait_event("that commits wait for it now", listed);
        standby.sql("insert into t select i, repeat('y', 100) from generate_series(1, 20000) i");
        let end = standby.lsn();
        harness::wait_acknowledged(&standby, end);
        let (report, _) = receiving.stop();
        assert_eq!((report.behind, report.timeline), (0, Some(NEW)));
        both_timelines_are_stored(&vault.archive_in(repository(), &standby), &standby, end);
        if version == MajorVersion::V18 {
            history_came_first(&store.order());
        }
    }
}

#[test]
fn after_a_failover_the_old_timeline_is_finished_first() {
    require_servers!(MajorVersion::V18);
    let mut primary = Server::start(MajorVersion::V18);
    primary.sql("create table t (id int, filler text)");
    harness::create_slot(&primary);
    let standby = primary.standby().setting("wal_keep_size", "100MB").start();
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&primary), vault.place());
    receiving.wait_streaming();
    primary.sql("insert into t select i, repeat('x', 100) from generate_series(1, 20000) i");
    harness::wait_acknowledged(&primary, primary.lsn());
    receiving.stop();
    // Written while nobody received it, but replicated.
    primary.sql("insert into t select i, repeat('z', 100) from generate_series(1, 20000) i");
    caught_up(&primary, &standby);
    primary.kill9();
    standby.promote();
    harness::create_slot(&standby);
    standby.sql("insert into t values (1, 'after')");
    let end = standby.lsn();
    let receiving = Receiving::start(harness::options(&standby), vault.place());
    harness::wait_acknowledged(&standby, end);
    let followed = receiving.saw(|e| matches!(e, ReceiveEvent::TimelineSwitch { from: OLD, to: NEW, .. }));
    assert!(followed, "{:#?}", receiving.events());
    receiving.stop();
    both_timelines_are_stored(&vault.archive(&standby), &standby, end);
}

/// The fork and the dead end lie in one segment: the timeline's last object ends at the fork, and only the tail of the earlier run has what came after it.
#[test]
fn a_branch_that_died_in_the_segment_of_the_fork_is_kept_in_its_tail() {
    require_servers!(MajorVersion::V17);
    let mut primary = Server::start(MajorVersion::V17);
    primary.sql("create table t (id int, filler text)");
    harness::create_slot(&primary);
    let mut standby = primary.standby().setting("wal_keep_size", "100MB").start();
    primary.sql("insert into t values (0, 'of both')");
    caught_up(&primary, &standby);
    let vault = Vault::new();
    let mut options = harness::options(&primary);
    options.flush_interval = Duration::from_millis(50);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    standby.stop(Stop::Fast);
    primary.sql("insert into t values (1, 'lost')");
    let dead_end = primary.lsn();
    harness::wait_acknowledged(&primary, dead_end);
    receiving.stop();
    primary.kill9();
    standby.start_again();
    standby.promote();
    harness::create_slot(&standby);
    standby.sql("insert into t values (2, 'new')");
    let end = standby.lsn();
    let receiving = Receiving::start(harness::options(&standby), vault.place());
    harness::wait_acknowledged(&standby, end);
    receiving.stop();
    let (runtime, archive) = (harness::runtime(), vault.archive(&standby));
    let size = archive.names.segment_size;
    let number = size.segment_of(fork(&standby));
    assert_eq!(number, size.segment_of(dead_end), "one segment");
    let inventory = runtime.block_on(archive.inventory()).expect("list");
    assert!(inventory.timelines[&OLD].partial.contains(&number), "the end of the timeline is an object");
    let (stored, _) = harness::segment(&runtime, &archive, OLD, number);
    let wanted = size.offset_of(dead_end) as usize;
    assert!(stored.len() >= wanted, "{} bytes are left of {wanted} that were acknowledged", stored.len());
    assert!(stored[..wanted] == harness::own_segment(&primary, OLD, number, size)[..wanted]);
}

/// A primary that was cut off goes on, with a receiver of its own, while another receiver ends the timeline at the fork: what the first one writes meanwhile
/// stays, although the end of the timeline is an object.
#[test]
fn the_tail_of_another_receiver_survives_the_end_of_its_timeline() {
    require_servers!(MajorVersion::V18);
    let primary = Server::start(MajorVersion::V18);
    primary.sql("create table t (id int, filler text)");
    harness::create_slot(&primary);
    let standby = primary.standby().setting("wal_keep_size", "100MB").start();
    harness::create_slot(&standby);
    primary.sql("insert into t select i, repeat('x', 100) from generate_series(1, 4000) i");
    caught_up(&primary, &standby);
    standby.promote();
    let vault = Vault::new();
    let proxy = Proxy::start(standby.port());
    proxy.trickle(30_000);
    let ends = Receiving::start(harness::options_through(&standby, &proxy), vault.place());
    ends.wait_streaming();
    proxy.stall(true);
    let mut options = harness::options(&primary);
    options.flush_interval = Duration::from_millis(50);
    let lives = Receiving::start(options, vault.place());
    primary.sql("insert into t values (1, 'answered by the old primary')");
    let answered = primary.lsn();
    harness::wait_acknowledged(&primary, answered);
    assert!(!ends.saw(|e| matches!(e, ReceiveEvent::TimelineSwitch { .. })), "{:#?}", ends.events());
    proxy.trickle(0);
    proxy.stall(false);
    ends.wait_event("the switch", |e| matches!(e, ReceiveEvent::TimelineSwitch { to: NEW, .. }));
    // Behind it, what was cleared away is gone.
    standby.sql("insert into t values (2, 'new')");
    harness::wait_acknowledged(&standby, standby.lsn());
    ends.stop();
    let (runtime, archive) = (harness::runtime(), vault.archive(&standby));
    let size = archive.names.segment_size;
    let number = size.segment_of(fork(&standby));
    assert_eq!(number, size.segment_of(answered), "one segment");
    let (stored, _) = harness::segment(&runtime, &archive, OLD, number);
    let wanted = size.offset_of(answered) as usize;
    assert!(stored.len() >= wanted, "{} bytes are left of {wanted} that were acknowledged", stored.len());
    lives.stop();
}

#[test]
fn a_branch_that_died_is_kept_and_the_new_timeline_begins_at_the_fork() {
    require_servers!(MajorVersion::V18);
    let mut primary = Server::start(MajorVersion::V18);
    primary.sql("create table t (id int, filler text)");
    harness::create_slot(&primary);
    let mut standby = primary.standby().setting("wal_keep_size", "100MB").start();
    caught_up(&primary, &standby);
    let vault = Vault::new();
    let receiving = Receiving::start(harness::options(&primary), vault.place());
    receiving.wait_streaming();
    standby.stop(Stop::Fast);
    primary.sql("insert into t select i, repeat('lost', 100) from generate_series(1, 10000) i");
    let dead_end = primary.lsn();
    harness::wait_acknowledged(&primary, dead_end);
    receiving.stop();
    primary.kill9();
    standby.start_again();
    standby.promote();
    harness::create_slot(&standby);
    standby.sql("insert into t select i, repeat('new', 100) from generate_series(1, 3000) i");
    let end = standby.lsn();
    let receiving = Receiving::start(harness::options(&standby), vault.place());
    harness::wait_acknowledged(&standby, end);
    let (report, _) = receiving.stop();
    assert_eq!((report.behind, report.timeline), (0, Some(NEW)));

    let (runtime, archive) = (harness::runtime(), vault.archive(&standby));
    let size = archive.names.segment_size;
    // The dead branch is all there, tail included.
    for number in (size.segment_of(fork(&standby)).0..=size.segment_before(dead_end).0).map(SegmentNumber) {
        let (stored, _) = harness::segment(&runtime, &archive, OLD, number);
        let own = harness::own_segment(&primary, OLD, number, size);
        let wanted = dead_end.since(number.start(size)).min(size.bytes()) as usize;
        assert!(stored.len() >= wanted && stored[..wanted] == own[..wanted], "segment {number:?} of the dead branch");
    }
    for number in (size.segment_of(fork(&standby)).0..=size.segment_before(end).0).map(SegmentNumber) {
        let (stored, _) = harness::segment(&runtime, &archive, NEW, number);
        let own = harness::own_segment(&standby, NEW, number, size);
        let wanted = end.since(number.start(size)).min(size.bytes()) as usize;
        assert!(stored.len() >= wanted && stored[..wanted] == own[..wanted], "segment {number:?} of the new timeline");
    }
}
