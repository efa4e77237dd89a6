//! A large segment that was left early: whole parts of it are zeros, in which no reading begins, and which say nothing of whose they are.

use walrecv::error::Kind;
use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentNumber, TimelineId};
use walrecv::receive::{ReceiveEvent, ReceiveOptions};
use walrecv::repo::Found;
use walrecv::repo::names::PART_BYTES;
use walrecv::seal::content::event::Outcome;
use walrecv::seal::content::summary::{LastRecord, Summary};
use walrecv::seal::hash::content_hash;
use walrecv::seal::header::ObjectKind;
use walrecv::seal::sealer::{Compression, Sealer};
use walrecv::verify::{Options, verify};

use super::harness::{self, Receiving, Vault};
use crate::support::{PATIENCE, Server, require_servers, wait_for};

const ONE: TimelineId = TimelineId(1);

fn server(version: MajorVersion) -> Server {
    let server = Server::builder(version).segment_size_mb(64).setting("wal_keep_size", "1GB").start();
    server.sql("create table t (id int)");
    server
}

/// Nothing but the archive tells where to begin.
fn without_slot(server: &Server) -> ReceiveOptions {
    ReceiveOptions { slot: None, ..harness::options(server) }
}

/// Streams until everything up to `end` is stored.
#[track_caller]
fn streams_to(options: ReceiveOptions, vault: &Vault, end: impl FnOnce() -> Lsn) {
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    let end = end();
    let refused = |event: &ReceiveEvent| matches!(event, ReceiveEvent::CorruptWal { .. });
    wait_for("it to be durable, or refused", || {
        (receiving.stats().durable.get() >= end.0 || receiving.saw(refused)).then_some(())
    });
    assert!(!receiving.saw(refused), "{:#?}", receiving.events());
    receiving.stop();
}

#[test]
fn a_start_behind_a_switch_goes_back_to_the_last_record() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let (server, vault) = (server(version), Vault::new());
    let insert = || {
        server.sql("insert into t values (1)");
        server.lsn()
    };
    let mut switched = Lsn::INVALID;
    streams_to(without_slot(&server), &vault, || {
        insert();
        switched = server.switch_wal();
        insert()
    });
    let (runtime, archive) = (harness::runtime(), vault.archive(&server));
    let size = archive.names.segment_size;
    let number = size.segment_before(switched);
    assert!(number.end(size).since(switched) > PART_BYTES * 2, "{switched}: two parts behind it are zeros");
    let whole = || harness::segment(&runtime, &archive, ONE, number);
    assert!(whole().1, "it is stored as a whole");

    // Behind the end of the segment.
    streams_to(without_slot(&server), &vault, insert);
    // In the middle of the zeros: what a killed run stored.
    let temporary = || {
        let options = harness::options(&server);
        ReceiveOptions { slot: Some("for_a_backup".to_owned()), temporary_slot: true, ..options }
    };
    for options in [without_slot(&server), temporary()] {
        for part in [2, 3] {
            let name = archive.names.segment(SegmentName::new(ONE, number, size), Some(part));
            runtime.block_on(archive.repo.delete(&name)).expect("delete a part");
        }
        streams_to(options, &vault, insert);
        assert!(whole() == (harness::own_segment(&server, ONE, number, size), true), "it is stored again");
    }
    let deep = Options { deep: true, ..Options::default() };
    let report = runtime.block_on(verify(&archive, &deep)).expect("a report");
    assert_eq!(report.outcome, Outcome::Ok, "{:#?}", report.problems);
}

/// Such zeros are right only where a switch is stored before them.
#[test]
fn zeros_without_a_switch_are_damage() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let (server, vault) = (server(version), Vault::new());
    let (runtime, archive, keys) = (harness::runtime(), vault.archive(&server), vault.place().writer);
    let size = archive.names.segment_size;
    let (segment, wal) = (SegmentName::new(ONE, SegmentNumber(9), size), vec![0; PART_BYTES as usize]);
    let verified = |switched: bool, parts: [u32; 2]| {
        for part in parts {
            let start = segment.start() + u64::from(part) * PART_BYTES;
            let claims = archive.claims(ObjectKind::Segment, ONE, start);
            let mut sealer = Sealer::new(&keys.fresh().expect("keys"), claims, [part as u8; 32], Compression::Lz4);
            sealer.push(&wal);
            let of = Summary::of(start, start + PART_BYTES, content_hash(archive.keys.secret(), &wal));
            let last = LastRecord { start, end: segment.end(), crc: 0 };
            let summary = Summary { last_record: (part == parts[0]).then_some(last), switched, ..of };
            let (name, sealed) = (archive.names.segment(segment, Some(part)), sealer.finish(&summary.encode()));
            let put = archive.repo.put_once(&name, &sealed.bytes, &|_| Found::Different, PATIENCE);
            runtime.block_on(put).expect("an object");
        }
        let deep = Options { deep: true, ..Options::default() };
        let report = runtime.block_on(verify(&archive, &deep)).expect("a report");
        let name = archive.names.segment(segment, Some(parts[1]));
        report.problems.iter().any(|problem| problem.object == name)
    };
    assert!(verified(false, [0, 1]), "no switch");
    assert!(!verified(true, [2, 3]), "behind one");
}

/// All parts before the border are zeros, whoever wrote them: the record before those tells.
#[test]
fn another_server_is_not_joined_to_zeros() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let (one, other, vault) = (server(version), server(version), Vault::new());
    let end = |server: &Server| {
        server.sql("insert into t values (1)");
        server.switch_wal();
        server.sql("insert into t values (2)");
        server.lsn()
    };
    streams_to(without_slot(&one), &vault, || end(&one));
    end(&other);
    // Nothing of the open segment tells either.
    let (runtime, archive) = (harness::runtime(), vault.archive(&one));
    let tails = format!("{}/tail", archive.names.root());
    for tail in runtime.block_on(archive.repo.list(&tails)).expect("a listing") {
        runtime.block_on(archive.repo.delete(&tail.name)).expect("delete a tail");
    }
    let error = Receiving::start(without_slot(&other), vault.place()).end().expect_err("another history");
    assert_eq!(error.kind(), Kind::Diverged, "{error}");
}
