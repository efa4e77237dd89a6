//! What an archive says of its backups, and how far WAL reaches along a history.

use std::time::Duration;

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::backup::WalWatch;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use walrecv::repo::Repository;
use walrecv::seal::content::BackupId;
use walrecv::seal::content::event::{Drill, Outcome, Verified, What};
use walrecv::seal::content::manifest::{Backup, ControlFacts, Manifest, MapRef, Raw, Sizes, Tombstone, Transfer};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::sealer::{Compression, seal_index};

use crate::archive_pieces::{archive, store, stranger, writer};
use crate::common::runtime;
use crate::support::{PATIENCE, TempDir};

pub fn id(random: u16) -> BackupId {
    let time = jiff::Timestamp::from_second(1_769_824_800).unwrap();
    BackupId::new(time, TimelineId(1), Lsn(0x2000028), random)
}

pub fn manifest(archive: &Archive, id: &BackupId) -> Manifest {
    let control = ControlFacts {
        control_version: 1300,
        catalog_version: 202209061,
        data_checksum_version: 1,
        relation_segment_pages: 131_072,
        wal_level: 1,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        min_recovery_point: Lsn(0),
        track_commit_timestamp: false,
    };
    let at = jiff::Timestamp::from_second(1_769_824_800).unwrap();
    Manifest {
        version: Manifest::VERSION,
        id: id.clone(),
        label: "nightly".into(),
        cluster: "main".into(),
        system: archive.names.system,
        segment_size: archive.names.segment_size,
        version_num: 150018,
        from_standby: false,
        timeline: TimelineId(1),
        start: Lsn(0x2000028),
        stop: Lsn(0x2000100),
        stop_timeline: TimelineId(1),
        checkpoint: Lsn(0x2000060),
        started_at: at,
        stopped_at: at,
        parent: None,
        transfer: Transfer::Full,
        why_full: None,
        survivors_at: at,
        maps: vec![MapRef { backup: id.clone(), parts: 1, bytes: 100 }],
        tablespaces: Vec::new(),
        backup_label: Raw(b"START\xff".to_vec()),
        tablespace_map: None,
        server_manifest: None,
        sizes: Sizes::default(),
        control,
        bad_pages: Vec::new(),
        bad_page_count: 0,
        torn_pages: Vec::new(),
        absent_tablespaces: Vec::new(),
        identity: None,
        made_by: "test".into(),
        host: "here".into(),
    }
}

pub async fn put(archive: &Archive, name: &BackupId, kind: ObjectKind, content: &[u8], salt: u8) {
    let claims = archive.claims(kind, TimelineId(0), Lsn(0));
    let sealed = seal_index(&writer(), claims, [salt; 32], Compression::Lz4, content);
    store(archive, &archive.names.backup(name.as_str()), Bytes::from(sealed.bytes.concat())).await;
}

fn local(dir: &TempDir) -> Repository {
    Repository::open(&format!("file://{}", dir.path().display()), &|_| None).unwrap()
}

#[test]
fn backups_are_listed_and_none_is_hidden() {
    let dir = TempDir::new("backups");
    let archive = archive(&local(&dir), 1, false);
    runtime().block_on(async {
        assert!(archive.list_backups().await.unwrap().complete.is_empty());
        let tombstone = Tombstone {
            version: Tombstone::VERSION,
            id: id(2),
            created_at: jiff::Timestamp::from_second(0).unwrap(),
            reason: "the server went away".into(),
            made_by: "test".into(),
            deleted: false,
        };
        put(&archive, &id(3), ObjectKind::Manifest, &manifest(&archive, &id(3)).encode(), 3).await;
        put(&archive, &id(1), ObjectKind::Manifest, &manifest(&archive, &id(1)).encode(), 1).await;
        put(&archive, &id(2), ObjectKind::Tombstone, &tombstone.encode(), 2).await;
        // Another backup's manifest, a manifest sealed as a tombstone, one without maps, no object, a name of nothing.
        put(&archive, &id(4), ObjectKind::Manifest, &manifest(&archive, &id(3)).encode(), 4).await;
        put(&archive, &id(5), ObjectKind::Tombstone, &manifest(&archive, &id(5)).encode(), 5).await;
        let empty = Manifest { maps: Vec::new(), ..manifest(&archive, &id(6)) };
        put(&archive, &id(6), ObjectKind::Manifest, &empty.encode(), 6).await;
        store(&archive, &archive.names.backup(id(7).as_str()), Bytes::from_static(b"no object")).await;
        store(&archive, &archive.names.backup("odd"), Bytes::from_static(b"no object")).await;

        let list = archive.list_backups().await.unwrap();
        assert_eq!(list.complete, [manifest(&archive, &id(1)), manifest(&archive, &id(3))]);
        assert_eq!(list.given_up, [tombstone]);
        let unreadable: Vec<_> = list.unreadable.iter().map(|(n, _)| n.rsplit('/').next().unwrap()).collect();
        let expected: Vec<_> = (4..=7).map(id).collect();
        let mut expected: Vec<_> = expected.iter().map(BackupId::as_str).collect();
        expected.push("odd");
        assert_eq!(unreadable, expected, "{:?}", list.unreadable);
        assert!(list.unreadable.iter().all(|(_, e)| e.kind() == Kind::Corrupt), "{:?}", list.unreadable);

        let list = stranger(&archive).list_backups().await.unwrap();
        assert!(list.complete.is_empty());
        assert_eq!(list.unreadable.iter().filter(|(_, e)| e.kind() == Kind::Key).count(), 6, "{:?}", list.unreadable);

        assert_eq!(archive.backup(&id(9)).await.unwrap(), None);
        let found = archive.backup(&id(1)).await.unwrap();
        assert_eq!(found, Some(Backup::Complete(Box::new(manifest(&archive, &id(1))))));
    });
}

#[test]
fn wal_reaches_along_the_history() {
    let dir = TempDir::new("backups");
    let archive = archive(&local(&dir), 1, false);
    let at = |number: u64, offset: u64| Lsn((number << 20) + offset);
    let fake = async |timeline, number| {
        let name = SegmentName::new(TimelineId(timeline), SegmentNumber(number), archive.names.segment_size);
        let object = Bytes::from_static(b"names are enough here");
        store(&archive, &archive.names.segment(name, None), object).await;
    };
    runtime().block_on(async {
        let reaches = |timeline, from| archive.durable_end_from(timeline, from);
        for number in 10..=11 {
            fake(1, number).await;
        }
        assert_eq!(reaches(TimelineId(1), at(10, 7)).await, Some(at(12, 0)));
        assert_eq!(reaches(TimelineId(1), at(12, 0)).await, None);
        assert_eq!(reaches(TimelineId(1), Lsn(at(12, 0).0 - 1)).await, Some(at(12, 0)));
        // Timeline 2 left timeline 1 inside segment 12.
        let history = format!("1\t{}\tpromoted\n", at(12, 500));
        archive.put_history(&writer(), TimelineId(2), history.as_bytes(), PATIENCE).await.unwrap();
        for number in 12..=14 {
            fake(2, number).await;
        }
        assert_eq!(reaches(TimelineId(2), at(10, 7)).await, Some(at(12, 0)), "the end of timeline 1 is missing");
        assert_eq!(reaches(TimelineId(2), at(13, 7)).await, Some(at(15, 0)));
        fake(1, 12).await;
        assert_eq!(reaches(TimelineId(2), at(10, 7)).await, Some(at(15, 0)));
        assert_eq!(reaches(TimelineId(2), at(9, 7)).await, None);
    });
}

/// [`WalWatch`] as the backup asks it.
trait Asked {
    async fn durable_end_from(&self, timeline: TimelineId, from: Lsn) -> Option<Lsn>;
}

impl Asked for Archive {
    async fn durable_end_from(&self, timeline: TimelineId, from: Lsn) -> Option<Lsn> {
        WalWatch::durable_end(self, timeline, from).await.unwrap()
    }
}

#[test]
fn of_two_backups_that_began_in_one_second_the_later_one_is_the_newest() {
    let dir = TempDir::new("backups-of-a-second");
    let archive = archive(&local(&dir), 1, false);
    runtime().block_on(async {
        let begun = |manifest: Manifest, nanosecond| {
            let started_at = manifest.started_at + jiff::SignedDuration::from_nanos(nanosecond);
            Manifest { started_at, ..manifest }
        };
        let [first, second] = [begun(manifest(&archive, &id(2)), 1), begun(manifest(&archive, &id(1)), 2)];
        for (salt, manifest) in [(1, &first), (2, &second)] {
            put(&archive, &manifest.id, ObjectKind::Manifest, &manifest.encode(), salt).await;
        }
        assert_eq!(archive.list_backups().await.unwrap().complete, [first, second]);
    });
}

/// A host whose clock was ahead for one backup: the backups after it are newer all the same.
#[test]
fn backups_stand_in_the_order_of_what_they_hold_and_not_of_clocks() {
    let dir = TempDir::new("backups-of-clocks");
    let archive = archive(&local(&dir), 1, false);
    runtime().block_on(async {
        let taken = |n, timeline: u32, stop: u64, hours: i64| {
            let plain = manifest(&archive, &id(n));
            let started_at = plain.started_at + jiff::SignedDuration::from_hours(hours);
            let (stop, stop_timeline) = (Lsn(stop), TimelineId(timeline));
            Manifest { started_at, stop, stop_timeline, ..plain }
        };
        let order =
            [taken(1, 1, 50 << 20, 0), taken(2, 1, 60 << 20, 9000), taken(3, 1, 70 << 20, 2), taken(4, 2, 65 << 20, 1)];
        for (salt, manifest) in [3, 1, 4, 2].iter().zip(&order) {
            put(&archive, &manifest.id, ObjectKind::Manifest, &manifest.encode(), *salt).await;
        }
        assert_eq!(archive.list_backups().await.unwrap().complete, order);
    });
}

#[test]
fn what_a_deep_check_found_hurt_stays_so_until_the_next_one() {
    let dir = TempDir::new("checks");
    let archive = archive(&local(&dir), 1, false);
    let mut sister = archive.clone();
    sister.names.cluster = "sister".to_owned();
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    runtime().block_on(async {
        let check = async |of: &Archive, deep: bool, [whole, hurt, unknown]: [&[&str]; 3]| {
            let outcome = if hurt.is_empty() { Outcome::Ok } else { Outcome::Corrupt };
            let (problems, whole, hurt, unknown) = (hurt.len() as u64, ids(whole), ids(hurt), ids(unknown));
            let what = What::Verified(Verified {
                deep,
                only: None,
                outcome,
                problems,
                whole,
                hurt,
                unknown,
                ..Verified::default()
            });
            of.put_event(&writer(), what, PATIENCE).await.unwrap();
        };
        let hurt = async || archive.verdicts().await.unwrap().hurt().cloned().collect::<Vec<_>>();
        // Names of events tell the second.
        let later = || tokio::time::sleep(Duration::from_millis(1100));
        assert!(hurt().await.is_empty());
        check(&archive, true, [&["other"], &["damaged"], &[]]).await;
        later().await;
        for _ in 0..40 {
            check(&archive, false, [&["damaged", "other"], &[], &[]]).await;
            check(&sister, true, [&["damaged"], &[], &[]]).await;
        }
        check(&archive, true, [&["other"], &[], &["damaged"]]).await;
        // However many there are, and whatever the sister's say.
        assert_eq!(hurt().await, ["damaged"]);
        later().await;
        check(&archive, true, [&["damaged", "other"], &[], &[]]).await;
        assert!(hurt().await.is_empty());
    });
}

#[test]
fn the_last_drill_is_that_of_the_cluster_itself() {
    let dir = TempDir::new("drills");
    let archive = archive(&local(&dir), 1, false);
    let mut sister = archive.clone();
    sister.names.cluster = "sister".to_owned();
    runtime().block_on(async {
        let drill = async |of: &Archive, backup: &str| {
            let what = What::Drill(Drill {
                backup: Some(backup.to_owned()),
                target: None,
                passed: true,
                corrupt: false,
                failed: Vec::new(),
                rpo_milliseconds: None,
                rto_milliseconds: None,
                milliseconds: 1,
                host: String::new(),
                user: String::new(),
                measured: None,
            });
            of.put_event(&writer(), what, PATIENCE).await.unwrap();
        };
        assert!(archive.last_drill().await.unwrap().is_none());
        drill(&archive, "own").await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        for _ in 0..20 {
            drill(&sister, "other").await;
        }
        let (_, found) = archive.last_drill().await.unwrap().expect("its own");
        assert_eq!(found.backup.as_deref(), Some("own"));
    });
}
