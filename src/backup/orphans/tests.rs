//! Packs of a run that died, made by the real intake, in a repository on disk; and what is found of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::super::completed::Completed;
use super::super::dead;
use super::super::intake_tests::{Bench, Made, Sent, made, noise, runtime};
use super::super::state::host;
use super::*;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::seal::content::event::{Verified, What};
use crate::seal::content::intent::Intent;
use crate::seal::content::manifest::{Backup, ControlFacts, Manifest, MapRef, Raw, Sizes, Transfer};
use crate::seal::content::plan::{Deletion, Plan, PlanId};
use crate::seal::header::ObjectKind;

const LIMIT: Duration = Duration::from_secs(10);

/// Two packs: large and small files, of pages and of bytes with short ends.
fn files(seed: u64) -> Vec<(String, Vec<u8>)> {
    let mut files =
        vec![("base/5/1".to_owned(), noise(2100 * CHUNK, seed)), ("base/5/2".to_owned(), noise(40 * CHUNK, seed + 1))];
    let small = |number: usize| (format!("pg_xact/{number:04}"), noise(1 + number * 97 % 20_000, seed + number as u64));
    files.extend((2..100).map(small));
    files
}

/// A run that dies when everything is stored but its manifest.
fn dies(bench: &Bench, number: u16, made: &Made) {
    let (received, ..) = bench.backup(made.events(), Sent { number, ..Sent::default() }).unwrap();
    assert_eq!(received.tally.packs, 2);
}

fn pack(bench: &Bench, backup: u16, number: u32) -> PathBuf {
    bench.repository().join(bench.archive.names.pack(bench.id(backup).as_str(), number))
}

fn kind(path: &str) -> EntryKind {
    if path.starts_with("base") { EntryKind::Pages } else { EntryKind::Bytes }
}

/// The chunks of a file that are found, each compared with what stands where it is said to be.
fn found(bench: &Bench, orphans: &mut Orphans, path: &str, bytes: &[u8]) -> Vec<bool> {
    let hasher = bench.ring.page_hasher();
    let mut file = orphans.file(path.as_bytes());
    let mut frames = BTreeMap::new();
    let mut look = |(number, chunk): (usize, &[u8])| {
        let place = orphans.find(&mut file, kind(path), number as u64, hasher.hash(chunk), chunk.len()).unwrap();
        let Some(Place { pack: PackIndex::Found(pack), frame, offset }) = place else { return false };
        let pack = orphans.places.get(pack).unwrap().unwrap();
        let plain = frames.entry((pack.number, frame)).or_insert_with(|| bench.frame(&pack, frame));
        assert_eq!(plain.len() as u32, pack.frames[frame as usize].plain_len);
        assert!(plain[offset as usize..][..chunk.len()] == *chunk, "{path} {number}");
        true
    };
    bytes.chunks(CHUNK).enumerate().map(&mut look).collect()
}

#[test]
fn every_chunk_of_a_whole_pack_is_found_where_it_stands() {
    let (bench, files) = (Bench::new(), files(1));
    dies(&bench, 1, &made(files.clone()));
    let scratch = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let mut orphans =
        Orphans::gather(&bench.archive, runtime.handle(), &[bench.id(1)], &Spoiled::default(), scratch.path()).unwrap();
    assert_eq!(orphans.packs, 2);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left behind");
    for (path, bytes) in &files {
        assert!(found(&bench, &mut orphans, path, bytes).iter().all(|found| *found), "{path}");
    }
    let large = &files[0].1;
    assert!(found(&bench, &mut orphans, "base/5/3", large).iter().all(|found| !found), "another file");
    assert!(found(&bench, &mut orphans, "base/5/1", &large[CHUNK..]).iter().all(|found| !found), "another place");
    let (path, short) = &files[9];
    let hash = bench.ring.page_hasher().hash(short);
    let mut file = orphans.file(path.as_bytes());
    let mut find = |kind, len| orphans.find(&mut file, kind, 0, hash, len).unwrap();
    assert!(find(EntryKind::Bytes, short.len()).is_some());
    assert_eq!(find(EntryKind::Bytes, short.len() + 1), None, "another length");
    assert_eq!(find(EntryKind::Pages, short.len()), None, "another kind");
}

#[test]
fn a_pack_that_is_cut_longer_or_another_one_counts_for_nothing() {
    let (bench, files) = (Bench::new(), files(2));
    dies(&bench, 1, &made(files.clone()));
    let path = pack(&bench, 1, 0);
    let whole = std::fs::read(&path).unwrap();
    let (scratch, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let packs = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Orphans::gather(&bench.archive, runtime.handle(), &[bench.id(1)], &Spoiled::default(), scratch.path())
            .unwrap()
            .packs
    };
    assert_eq!(packs(&whole[..whole.len() - 1]), 1);
    assert_eq!(packs(&whole[..100]), 1);
    assert_eq!(packs(&[]), 1);
    assert_eq!(packs(&[&whole[..], &[0]].concat()), 1);
    assert_eq!(packs(&std::fs::read(pack(&bench, 1, 1)).unwrap()), 1);
    let mut damaged = whole.clone();
    damaged[3000] ^= 1;
    assert_eq!(packs(&damaged), 1);
    assert_eq!(packs(&whole), 2);
}

/// Nothing, one pack, or both of a dead run are there; then one page has changed, and the next run stores what did not arrive and that page.
#[test]
fn the_next_run_stores_only_what_did_not_arrive() {
    let bench = Bench::new();
    let mut made = made(files(4));
    dies(&bench, 1, &made);
    made.files[1].1[70 * CHUNK..71 * CHUNK].copy_from_slice(&noise(CHUNK, 99));
    made.manifest = made.files.clone();
    let all: u64 = made.files.iter().skip(1).map(|(_, bytes)| bytes.len() as u64).sum();
    for (number, arrived) in [(2, 2), (3, 1), (4, 0)] {
        if arrived < 2 {
            std::fs::remove_file(pack(&bench, 1, arrived)).unwrap();
        }
        let dead = [bench.id(1)];
        let (received, maps, _) = bench.backup(made.events(), Sent { number, dead: &dead, ..Sent::default() }).unwrap();
        let tally = received.tally;
        assert_eq!(tally.changed + tally.reused, all);
        let (stored, held) = match arrived {
            2 => (CHUNK as u64, all),
            1 => (all - (16 << 20) + CHUNK as u64, 16 << 20),
            _ => (all, 0),
        };
        assert_eq!((tally.changed, tally.found), (stored, held), "{arrived} packs");
        let expected: BTreeMap<String, Vec<u8>> = made.files.iter().skip(1).cloned().collect();
        assert!(bench.laid_back(&maps) == expected, "{arrived} packs");
    }
}

/// Of two dead runs the pages that each has.
#[test]
fn several_dead_runs_are_used_together() {
    let bench = Bench::new();
    let (one, two) = (made(files(3)), made(files(30)));
    dies(&bench, 1, &one);
    dies(&bench, 2, &two);
    let mut both = one.clone();
    both.files[1].1[CHUNK..40 * CHUNK].copy_from_slice(&two.files[1].1[CHUNK..40 * CHUNK]);
    both.manifest = both.files.clone();
    let dead = [bench.id(1), bench.id(2)];
    let (received, maps, _) = bench.backup(both.events(), Sent { number: 3, dead: &dead, ..Sent::default() }).unwrap();
    assert_eq!(received.tally.changed, 0);
    let expected: BTreeMap<String, Vec<u8>> = both.files.iter().skip(1).cloned().collect();
    assert!(bench.laid_back(&maps) == expected);
}

/// Who has announced that it uses them asks this after its announcement, so an expiry sees the one, or this sees the other.
#[test]
fn what_an_expiry_may_be_deleting_is_not_used() {
    let (bench, runtime) = (Bench::new(), runtime());
    dies(&bench, 1, &made(files(1)));
    dies(&bench, 2, &made(files(200)));
    let scratch = Arc::new(Scratch::temporary().unwrap());
    let dead = [bench.id(1), bench.id(2)];
    let packs = || runtime.block_on(usable(&bench.archive, &dead, &scratch)).map(|orphans| orphans.packs);
    assert_eq!(packs(), Some(4));
    let plan = |delete: &[u16], sweep: &[u16]| {
        let delete =
            delete.iter().map(|number| Deletion { backup: bench.id(*number), maps: Vec::new(), forced: false });
        let plan = Plan {
            version: Plan::VERSION,
            id: PlanId::new(Timestamp::now(), [7; 8]),
            cluster: "main".into(),
            system: SystemIdentifier(7),
            created_at: Timestamp::now(),
            delete: delete.collect(),
            sweep: sweep.iter().map(|number| bench.id(*number)).collect(),
            made_by: String::new(),
            host: String::new(),
            user: String::new(),
        };
        runtime.block_on(bench.archive.put_plan(&bench.ring.fresh().unwrap(), &plan, LIMIT)).unwrap();
        bench.repository().join(bench.archive.names.plan(plan.id.as_str()))
    };
    // A backup between the two that may have used what the first one stored: what a check found of that nobody says any more.
    let deleting = plan(&[1], &[]);
    assert_eq!(packs(), Some(2), "it is named itself");
    std::fs::remove_file(deleting).unwrap();
    let deleting = plan(&[3], &[]);
    assert_eq!(packs(), None);
    std::fs::remove_file(deleting).unwrap();
    plan(&[], &[1]);
    assert_eq!(packs(), Some(2));
    // It may speak of any backup.
    let path = bench.repository().join(bench.archive.names.plan("20260131T020001Z-0a02030405060708"));
    std::fs::write(path, b"no plan").unwrap();
    assert_eq!(packs(), None);
}

/// Another backup used it, a check found it damaged, and that backup was deleted: what it hurt was not it alone.
#[test]
fn what_a_check_found_damaged_is_not_used() {
    let (bench, runtime) = (Bench::new(), runtime());
    dies(&bench, 1, &made(files(1)));
    let scratch = Arc::new(Scratch::temporary().unwrap());
    let packs = || runtime.block_on(usable(&bench.archive, &[bench.id(1)], &scratch)).map(|orphans| orphans.packs);
    let check = |deep, hurt: &[&str], numbers: &[u32]| {
        let mut spoiled = Spoiled::default();
        if !hurt.is_empty() {
            spoiled.add_packs(bench.id(1).as_str(), numbers.iter().copied());
        }
        let hurt = hurt.iter().map(|id| (*id).to_owned()).collect();
        let check = What::Verified(Verified { deep, hurt, spoiled, ..Verified::default() });
        runtime.block_on(bench.archive.put_event(&bench.ring.fresh().unwrap(), check, LIMIT)).unwrap();
    };
    assert_eq!(packs(), Some(2));
    check(true, &["deleted"], &[1]);
    assert_eq!(packs(), Some(1));
    check(false, &[], &[]);
    assert_eq!(packs(), Some(1), "a quick one takes nothing back");
    // More than are named.
    check(true, &["deleted"], &[]);
    assert_eq!(packs(), None);
}

#[test]
fn dead_runs_of_this_state_dir_are_given_up_and_no_others() {
    let (bench, runtime) = (Bench::new(), runtime());
    let (archive, keys) = (&bench.archive, bench.ring.fresh().unwrap());
    let put = |name: String, kind, content: Vec<u8>| {
        let claims = archive.claims(kind, TimelineId(0), Lsn(0));
        runtime.block_on(archive.put_index(&keys, &name, claims, &content, LIMIT)).unwrap();
    };
    for (backup, state) in [(1, "mine"), (2, "other"), (3, "mine"), (4, "mine"), (5, "mine"), (6, "mine")] {
        let id = bench.id(backup);
        put(archive.names.intent(id.as_str()), ObjectKind::Intent, intent(&id, state).encode());
    }
    let four = bench.id(4);
    put(archive.names.backup(four.as_str()), ObjectKind::Manifest, manifest_of(&four).encode());
    let unreadable = bench.repository().join(archive.names.backup(bench.id(6).as_str()));
    std::fs::write(unreadable, b"no manifest").unwrap();
    let give_up = |newest: Option<u16>| -> Vec<BackupId> {
        let newest = newest.map(|number| bench.id(number));
        let dead = runtime.block_on(dead::give_up(archive, &keys, "mine", newest.as_ref(), &[], LIMIT)).unwrap();
        dead.into_iter().map(|intent| intent.id).collect()
    };
    let ids = |numbers: &[u16]| numbers.iter().map(|number| bench.id(*number)).collect::<Vec<_>>();
    assert_eq!(give_up(Some(1)), ids(&[3, 5]));
    let stands = |backup| runtime.block_on(archive.backup(&bench.id(backup))).unwrap();
    for dead in [3, 5] {
        assert!(matches!(stands(dead), Some(Backup::GivenUp(_))));
    }
    assert!(matches!(stands(4), Some(Backup::Complete(_))));
    assert!(stands(2).is_none() && stands(1).is_none());
    assert_eq!(give_up(Some(1)), ids(&[3, 5]), "the next one finds the same");
    assert_eq!(give_up(None), ids(&[1, 3, 5]));
    assert_eq!(give_up(Some(4)), ids(&[5]));
}

/// A rule of the store has removed the manifest, and no check and no later backup says that there was one.
#[test]
fn a_backup_that_was_noted_as_complete_is_no_dead_run() {
    let (bench, runtime, dir) = (Bench::new(), runtime(), tempfile::tempdir().unwrap());
    let (archive, keys) = (&bench.archive, bench.ring.fresh().unwrap());
    let completed = Completed::of(dir.path(), archive);
    assert!(completed.ids().unwrap().is_empty());
    let many: Vec<BackupId> = (0x40..0x60).chain([1]).map(|number| bench.id(number)).collect();
    many.iter().for_each(|id| completed.note(id).unwrap());
    let noted = completed.ids().unwrap();
    assert_eq!(noted, many[many.len() - 16..]);
    [1, 2].iter().for_each(|number| announced(&bench, &bench.id(*number)));
    let give_up = || runtime.block_on(dead::give_up(archive, &keys, "mine", None, &noted, LIMIT));
    let stands = |backup| runtime.block_on(archive.backup(&bench.id(backup))).unwrap();
    // An expiry may have deleted it, and who knows what else it was going to.
    let plan = bench.repository().join(archive.names.plan("20260131T020001Z-0a02030405060708"));
    std::fs::create_dir_all(plan.parent().unwrap()).unwrap();
    std::fs::write(&plan, b"no plan").unwrap();
    assert!(give_up().is_err());
    assert!(stands(1).is_none() && stands(2).is_none());
    std::fs::remove_file(plan).unwrap();
    let dead: Vec<BackupId> = give_up().unwrap().into_iter().map(|intent| intent.id).collect();
    assert_eq!(dead, [bench.id(2)]);
    assert!(stands(1).is_none() && matches!(stands(2), Some(Backup::GivenUp(_))));
}

/// A backup has begun.
pub fn announced(bench: &Bench, id: &BackupId) {
    let (archive, keys) = (&bench.archive, bench.ring.fresh().unwrap());
    let (name, claims) = (archive.names.intent(id.as_str()), archive.claims(ObjectKind::Intent, TimelineId(0), Lsn(0)));
    runtime().block_on(archive.put_index(&keys, &name, claims, &intent(id, "mine").encode(), LIMIT)).unwrap();
}

fn intent(id: &BackupId, state: &str) -> Intent {
    Intent {
        version: Intent::VERSION,
        id: id.clone(),
        cluster: "main".into(),
        system: SystemIdentifier(7),
        started_at: Timestamp::now(),
        reuses: Vec::new(),
        state: state.into(),
        made_by: String::new(),
        full: false,
        identity: None,
        host: host(),
    }
}

/// Of a complete backup.
pub(in crate::backup) fn manifest_of(id: &BackupId) -> Manifest {
    let at = Timestamp::from_second(1_769_824_800).unwrap();
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
    Manifest {
        version: Manifest::VERSION,
        id: id.clone(),
        label: String::new(),
        cluster: "main".into(),
        system: SystemIdentifier(7),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
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
        backup_label: Raw(Vec::new()),
        tablespace_map: None,
        server_manifest: None,
        sizes: Sizes::default(),
        control,
        bad_pages: Vec::new(),
        bad_page_count: 0,
        torn_pages: Vec::new(),
        absent_tablespaces: Vec::new(),
        identity: None,
        made_by: String::new(),
        host: host(),
    }
}
