//! The archive: one segment from whatever holds it, and how far the stored WAL reaches.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::archive::cluster::{check_cluster_file, write_cluster_file};
use walrecv::archive::read::SegmentBytes;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, SystemIdentifier, TimelineId};
use walrecv::repo::Repository;
use walrecv::seal::header::ObjectKind;

use crate::archive_pieces::{
    TIMELINE, archive, pieces, sealed, segment, store, store_segment, stranger, tail, wal, write_tail_file, writer,
};
use crate::common::{PATIENCE, no_env, runtime};
use crate::faults::{Hooked, Memory};
use crate::support::{Seed, TempDir};

const MIB: usize = 1 << 20;

fn local(dir: &TempDir) -> Repository {
    Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap()
}

fn complete(bytes: &[u8]) -> Option<SegmentBytes> {
    Some(SegmentBytes::Complete(Bytes::copy_from_slice(bytes)))
}

fn prefix(bytes: &[u8]) -> Option<SegmentBytes> {
    Some(SegmentBytes::Prefix(Bytes::copy_from_slice(bytes)))
}

async fn read(archive: &Archive, number: u64) -> Option<SegmentBytes> {
    let name = segment(archive, number);
    let alone = archive.read_segment(name, None).await.unwrap();
    let inventory = archive.inventory().await.unwrap();
    assert!(archive.read_segment(name, Some(&inventory)).await.unwrap() == alone, "with an inventory");
    alone
}

async fn kind(archive: &Archive, number: u64) -> Kind {
    archive.read_segment(segment(archive, number), None).await.unwrap_err().kind()
}

#[test]
fn complete_segments() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, true);
    let content = wal(MIB, 1);
    runtime().block_on(async {
        store_segment(&archive, segment(&archive, 5), &content).await;
        assert!(read(&archive, 5).await == complete(&content));
        assert_eq!(read(&archive, 6).await, None);
        let summaries = archive.summaries(segment(&archive, 5)).await.unwrap().unwrap();
        assert_eq!(summaries.iter().map(|s| (s.start.0, s.end.0)).collect::<Vec<_>>(), [(5 << 20, 6 << 20)]);
        assert_eq!(archive.summaries(segment(&archive, 6)).await.unwrap(), None);

        let good = archive.repo.get(&archive.names.segment(segment(&archive, 5), None)).await.unwrap().unwrap();
        let mut flipped = good.to_vec();
        flipped[300_000.min(good.len() / 2)] ^= 1;
        let short = sealed(&archive, ObjectKind::Segment, Lsn(9 << 20), &content[..MIB - 8]);
        let half = good.slice(..good.len() / 2);
        for (number, damaged) in
            [(7, good), (8, flipped.into()), (9, short), (10, half), (11, Bytes::from_static(b"?"))]
        {
            store(&archive, &archive.names.segment(segment(&archive, number), None), damaged).await;
            assert_eq!(kind(&archive, number).await, Kind::Corrupt, "{number}");
        }
        assert_eq!(kind(&stranger(&archive), 5).await, Kind::Key);
        assert!(stranger(&archive).summaries(segment(&archive, 5)).await.is_err());
    });
}

/// A receiver has no identity: it reads summaries and ends, not contents.
#[test]
fn without_the_identity() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, false);
    runtime().block_on(async {
        store_segment(&archive, segment(&archive, 5), &wal(MIB, 1)).await;
        assert_eq!(kind(&archive, 5).await, Kind::Key);
        assert_eq!(archive.summaries(segment(&archive, 5)).await.unwrap().unwrap().len(), 1);
        assert_eq!(archive.durable_end(TIMELINE).await.unwrap(), Some(Lsn(6 << 20)));
    });
}

#[test]
fn segments_in_parts() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 32, true);
    let content = wal(32 * MIB, 2);
    let (first, second) = content.split_at(16 * MIB);
    let name = segment(&archive, 1);
    let part = |n: u32, bytes: &[u8]| sealed(&archive, ObjectKind::Segment, name.start() + ((n as u64) << 24), bytes);
    runtime().block_on(async {
        store(&archive, &archive.names.segment(name, Some(1)), part(1, second)).await;
        assert_eq!(read(&archive, 1).await, prefix(b""), "the second alone begins nothing");
        assert_eq!(archive.end_in(name).await.unwrap(), name.start());
        store(&archive, &archive.names.segment(name, Some(0)), part(0, first)).await;
        assert!(read(&archive, 1).await == complete(&content));
        assert_eq!(archive.summaries(name).await.unwrap().unwrap().len(), 2);
        let inventory = archive.inventory().await.unwrap();
        assert!(inventory.timelines[&TIMELINE].complete.contains(&name.number));
        archive.repo.delete(&archive.names.segment(name, Some(1))).await.unwrap();
        assert!(read(&archive, 1).await == prefix(first));
        let inventory = archive.inventory().await.unwrap();
        assert!(inventory.timelines[&TIMELINE].parts[&name.number].contains(&0));
        // The tail of the second part, and the end of the timeline in it.
        write_tail_file(&archive, name, "run", &tail(&archive, name, 16 << 20, &second[..5000], 1000));
        assert!(read(&archive, 1).await == prefix(&content[..16 * MIB + 5000]));
        let partial = sealed(&archive, ObjectKind::Partial, name.start() + (16 << 20), &second[..9000]);
        store(&archive, &archive.names.partial(name), partial).await;
        assert!(read(&archive, 1).await == prefix(&content[..16 * MIB + 9000]));
        assert_eq!(archive.end_in(name).await.unwrap(), name.start() + (16 << 20) + 9000);
    });
}

#[test]
fn tails_of_several_runs() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, true);
    let content = wal(MIB, 3);
    let name = segment(&archive, 4);
    runtime().block_on(async {
        write_tail_file(&archive, name, "empty", b"");
        assert_eq!(read(&archive, 4).await, prefix(b""), "its preamble never reached the disk");
        let mut torn = tail(&archive, name, 0, &content[..30_000], 7_000);
        torn.truncate(torn.len() - 1);
        write_tail_file(&archive, name, "killed", &torn);
        assert!(read(&archive, 4).await == prefix(&content[..28_000]), "whole frames only");
        write_tail_file(&archive, name, "second", &tail(&archive, name, 0, &content[..500_000], 100_000));
        assert!(read(&archive, 4).await == prefix(&content[..500_000]));
        for (n, (piece, bytes)) in
            pieces(&archive, name, 400_000, &content[400_000..900_000], 100_000, "r").iter().enumerate()
        {
            // The fourth piece is missing: what follows it counts for nothing.
            if n != 3 {
                store(&archive, piece, bytes.clone()).await;
            }
        }
        assert!(read(&archive, 4).await == prefix(&content[..700_000]));
        assert_eq!(archive.end_in(name).await.unwrap(), name.start() + 700_000);
        // All bytes, but not one object: as good as complete.
        write_tail_file(&archive, name, "third", &tail(&archive, name, 600_000, &content[600_000..], 200_000));
        assert!(read(&archive, 4).await == complete(&content));
        assert_eq!(archive.durable_end(TIMELINE).await.unwrap(), Some(name.end()));
        let mut other = content.clone();
        other[650_000] ^= 1;
        write_tail_file(&archive, name, "other", &tail(&archive, name, 640_000, &other[640_000..660_000], 5_000));
        let error = archive.read_segment(name, None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Diverged);
        let text = error.to_string();
        assert!(text.contains("other.open") && text.contains(&(name.start() + 650_000).to_string()), "{text}");
        assert_eq!(text.matches("clusters/").count(), 2, "both are named: {text}");
    });
}

#[test]
fn damaged_and_misplaced_tails_are_refused() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, true);
    let content = wal(100_000, 4);
    runtime().block_on(async {
        // Damage before a later flush is no torn end.
        let mut damaged = tail(&archive, segment(&archive, 1), 0, &content, 20_000);
        damaged[1000] ^= 1;
        write_tail_file(&archive, segment(&archive, 1), "r", &damaged);
        // A tail of another segment under this one's name, and a piece that says another range.
        write_tail_file(
            &archive,
            segment(&archive, 2),
            "r",
            &tail(&archive, segment(&archive, 9), 0, &content, 20_000),
        );
        let piece = pieces(&archive, segment(&archive, 3), 0, &content, 20_000, "r").swap_remove(1);
        store(&archive, &archive.names.tail_piece(segment(&archive, 3), 0, 20_000, "r"), piece.1).await;
        for number in 1..=3 {
            assert_eq!(kind(&archive, number).await, Kind::Corrupt, "{number}");
            let name = segment(&archive, number);
            assert_eq!(archive.end_in(name).await.unwrap(), name.start(), "what is damaged is not stored");
        }
    });
}

/// While a reader is at work the segment is completed and its tails go; pieces are merged; a segment comes into being.
#[test]
fn what_vanishes_is_looked_for_again() {
    let content = wal(MIB, 5);
    let memory = Arc::new(Memory::default());
    let plain = archive(&Hooked::repository(memory.clone(), |_, _| {}), 1, true);
    let name = segment(&plain, 4);
    let object = sealed(&plain, ObjectKind::Segment, name.start(), &content);
    let whole = plain.names.segment(name, None);
    let parts = pieces(&plain, name, 0, &content[..300_000], 100_000, "r");
    let merged = pieces(&plain, name, 0, &content[..300_000], 300_000, "m").swap_remove(0);
    let reset = |memory: &Memory| {
        memory.remove(&whole);
        memory.remove(&merged.0);
        parts.iter().for_each(|(name, bytes)| memory.set(name, bytes.clone()));
    };
    runtime().block_on(async {
        // At each of the first requests in turn, the segment is completed; then its tails are deleted.
        for at in 0..8 {
            for merge in [false, true] {
                reset(&memory);
                let count = AtomicUsize::new(0);
                let (new, gone) =
                    if merge { (merged.clone(), &parts) } else { ((whole.clone(), object.clone()), &parts) };
                let gone: Vec<String> = gone.iter().map(|(name, _)| name.clone()).collect();
                let hook = move |_: &str, memory: &Memory| {
                    if count.fetch_add(1, Ordering::Relaxed) == at {
                        memory.set(&new.0, new.1.clone());
                        gone.iter().for_each(|name| memory.remove(name));
                    }
                };
                let archive = archive(&Hooked::repository(memory.clone(), hook), 1, true);
                let found = archive.read_segment(name, None).await.unwrap();
                let expected = [complete(&content), prefix(&content[..300_000])];
                assert!(expected.contains(&found), "at {at}, merge {merge}");
                assert!(!merge || found == expected[1]);
            }
        }
        // Inventories list tails first, so that a segment completed in between is seen twice and not missed.
        reset(&memory);
        let listed = Arc::new(Mutex::new(Vec::new()));
        let (seen, after) = (listed.clone(), object.clone());
        let (complete_name, tails) = (whole.clone(), parts.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>());
        let hook = move |what: &str, memory: &Memory| {
            seen.lock().unwrap().push(what.rsplit('/').next().unwrap_or_default().to_owned());
            if what.ends_with("/wal") {
                memory.set(&complete_name, after.clone());
                tails.iter().for_each(|name| memory.remove(name));
            }
        };
        let archive = archive(&Hooked::repository(memory.clone(), hook), 1, true);
        let inventory = archive.inventory().await.unwrap();
        assert_eq!(listed.lock().unwrap()[..2], ["tail", "wal"]);
        assert!(inventory.holds(name) && inventory.timelines[&TIMELINE].complete.contains(&name.number));
        // An inventory made before does no harm.
        assert!(archive.read_segment(name, Some(&inventory)).await.unwrap() == complete(&content));
    });
}

/// Any mixture of objects: what is read is the content up to the first hole, and what is measured without keys agrees.
#[test]
fn any_mixture_of_forms() {
    let mut seed = Seed::of_run();
    let dir = TempDir::new("archive");
    let repo = local(&dir);
    let (reader, receiver) = (archive(&repo, 1, true), archive(&repo, 1, false));
    runtime().block_on(async {
        for round in 0..25u64 {
            let name = segment(&reader, 100 + round);
            let content = wal(MIB, round);
            let mut extents = Vec::new();
            for run in 0..seed.between(1, 4) {
                let offset = if run == 0 { 0 } else { seed.below(700_000) } as usize;
                let end = offset + seed.between(1, 300_000) as usize;
                let step = seed.between(1_000, 90_000) as usize;
                let (bytes, run) = (&content[offset..end], format!("run{run}"));
                match seed.below(3) {
                    0 => write_tail_file(&reader, name, &run, &tail(&reader, name, offset as u64, bytes, step)),
                    1 => {
                        for (piece, bytes) in pieces(&reader, name, offset as u64, bytes, step, &run) {
                            store(&reader, &piece, bytes).await;
                        }
                    }
                    _ if repo.head(&reader.names.partial(name)).await.unwrap().is_some() => continue,
                    _ => {
                        let partial = sealed(&reader, ObjectKind::Partial, name.start() + offset as u64, bytes);
                        store(&reader, &reader.names.partial(name), partial).await;
                    }
                }
                extents.push((offset, end));
            }
            extents.sort_unstable();
            let reach = extents.iter().fold(0, |reach, (from, to)| if *from <= reach { reach.max(*to) } else { reach });
            assert!(read(&reader, 100 + round).await == prefix(&content[..reach]), "round {round}: {extents:?}");
            assert_eq!(receiver.end_in(name).await.unwrap(), name.start() + reach as u64, "round {round}: {extents:?}");
        }
    });
}

#[test]
fn how_far_it_reaches() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, false);
    let fake = Bytes::from_static(b"names are enough here");
    // 4096 segments share a folder; number 4096 begins the next one.
    let at = |number: u64, offset: u64| Lsn((number << 20) + offset);
    runtime().block_on(async {
        assert_eq!(archive.durable_end(TIMELINE).await.unwrap(), None);
        assert_eq!(archive.contiguous_from(TIMELINE, at(1, 0)).await.unwrap(), None);
        for number in [4090, 4093, 4094, 4095, 4096, 4097, 4099] {
            store(&archive, &archive.names.segment(segment(&archive, number), None), fake.clone()).await;
        }
        let tail_name = segment(&archive, 4098);
        let from = |lsn| archive.contiguous_from(TIMELINE, lsn);
        assert_eq!(from(at(4090, 5)).await.unwrap(), Some(at(4091, 0)));
        assert_eq!(from(at(4091, 0)).await.unwrap(), None);
        assert_eq!(from(at(4093, 9)).await.unwrap(), Some(at(4098, 0)), "over the border between folders");
        write_tail_file(&archive, tail_name, "r", &tail(&archive, tail_name, 0, &wal(5000, 1), 900));
        assert_eq!(from(at(4093, 9)).await.unwrap(), Some(at(4098, 5000)));
        assert_eq!(from(at(4098, 4999)).await.unwrap(), Some(at(4098, 5000)));
        assert_eq!(from(at(4098, 5000)).await.unwrap(), None);
        assert_eq!(archive.durable_end(TIMELINE).await.unwrap(), Some(at(4100, 0)));
        // Somebody else's folder, which sorts behind ours.
        store(&archive, &format!("{}/zzz/1", archive.names.timeline_folder(TIMELINE)), fake.clone()).await;
        assert_eq!(archive.durable_end(TIMELINE).await.unwrap(), Some(at(4100, 0)));
        assert_eq!(archive.newest_end(TimelineId(9)).await.unwrap(), Some((TIMELINE, at(4100, 0))));
        // A tail that was begun and holds nothing yet does not move the end.
        let begun = segment(&archive, 4101);
        write_tail_file(&archive, begun, "r", &tail(&archive, begun, 0, b"", 1));
        assert_eq!(archive.durable_end(TIMELINE).await.unwrap(), Some(at(4100, 0)));
        assert_eq!(archive.durable_end(TimelineId(9)).await.unwrap(), None);

        let inventory = archive.inventory().await.unwrap();
        assert_eq!(inventory.first(TIMELINE).map(|n| n.0), Some(4090));
        assert_eq!(inventory.last(TIMELINE).map(|n| n.0), Some(4101));
        assert_eq!(inventory.last(TimelineId(9)), None);
        assert!(inventory.anything_after(segment(&archive, 4099)));
        assert!(!inventory.anything_after(begun), "nothing but its own tail");
        assert!(inventory.holds(begun) && !inventory.holds(segment(&archive, 4100)));
        assert_eq!(inventory.tails(tail_name), [archive.names.tail_open(tail_name, "r")]);
    });
}

#[test]
fn histories_are_told_once() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, false);
    let keys = writer();
    let two = TimelineId(2);
    runtime().block_on(async {
        assert_eq!(archive.history(two).await.unwrap(), None);
        let put = |timeline, text: &'static str| archive.put_history(&keys, timeline, text.as_bytes(), PATIENCE);
        let (a, b) = tokio::join!(put(two, "1\t0/3000060\tpromoted\n"), put(two, "1\t0/3000060\tpromoted\n"));
        a.and(b).unwrap();
        put(two, "1\t0/3000060\tsaid otherwise\n").await.unwrap();
        assert_eq!(archive.history(two).await.unwrap().unwrap(), "1\t0/3000060\tpromoted\n");
        let error = put(two, "1\t0/3000070\tpromoted\n").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Diverged);
        let text = error.to_string();
        assert!(text.contains("0/3000060") && text.contains("0/3000070") && error.advice().is_some(), "{text}");
        put(TimelineId(3), "1\t0/3000060\tx\n2\t0/5000000\ty\n").await.unwrap();
        let inventory = archive.inventory().await.unwrap();
        assert_eq!(inventory.histories[&TimelineId(3)].switch_point_of(two), Some(Lsn(0x5000000)));
        put(TimelineId(4), "9\t0/1\tnobody's parent\n").await.unwrap();
        // Damage stays with the timeline that it concerns.
        let damaged = dir.join(archive.names.history(TimelineId(5)));
        put(TimelineId(5), "1\t0/3000060\tx\n").await.unwrap();
        let mut bytes = std::fs::read(&damaged).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&damaged, bytes).unwrap();
        let inventory = archive.inventory().await.unwrap();
        assert_eq!(inventory.histories.keys().map(|t| t.0).collect::<Vec<_>>(), [2, 3]);
        for (timeline, name) in [(4, "00000004.history"), (5, "00000005.history")] {
            let error = inventory.demand_history(TimelineId(timeline)).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(inventory.demand_history(TimelineId(9)).unwrap_err().kind(), Kind::Corrupt, "a server refuses it");
        assert!(inventory.demand_history(TimelineId(1)).unwrap().ancestors.is_empty());
        assert!(inventory.demand_sound(TimelineId(9)).is_ok(), "a later one may tell of it");
        // With another secret nothing is known: that is no damage.
        assert_eq!(stranger(&archive).inventory().await.unwrap_err().kind(), Kind::Key);
    });
}

/// What a receiver asks about at its start is the same in a short listing as in a whole one.
#[test]
fn the_newest_segments_are_listed_without_the_old_ones() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, false);
    let fake = Bytes::from_static(b"names are enough here");
    let in_group = |group: u64, number: u64| segment(&archive, group * 4096 + number);
    runtime().block_on(async {
        for (group, number) in [(0, 7), (1, 9), (2, 4000), (2, 4001), (2, 4095), (3, 0), (3, 1)] {
            store(&archive, &archive.names.segment(in_group(group, number), None), fake.clone()).await;
        }
        store(&archive, &archive.names.partial(in_group(4, 2)), fake.clone()).await;
        let shelf = &archive;
        let newest = |from: Lsn| async move { shelf.newest(|_| from).await.unwrap().timelines[&TIMELINE].clone() };
        let short = newest(Lsn(u64::MAX)).await;
        let numbers = |list: &[(u64, u64)]| list.iter().map(|(g, n)| in_group(*g, *n).number).collect();
        assert_eq!(short.complete, numbers(&[(2, 4000), (2, 4001), (2, 4095), (3, 0), (3, 1)]), "far enough down");
        assert!(short.partial.contains(&in_group(4, 2).number));
        let all = archive.inventory().await.unwrap().timelines[&TIMELINE].clone();
        assert_eq!(all.complete.len(), 7);
        assert_eq!(
            newest(in_group(1, 4095).start()).await.complete,
            numbers(&[(1, 9), (2, 4000), (2, 4001), (2, 4095), (3, 0), (3, 1)])
        );
        assert_eq!(newest(Lsn(0)).await.complete, all.complete);
    });
}

/// Counting complete segments in an inventory gives what looking at every folder gives.
#[test]
fn runs_are_counted_in_an_inventory() {
    let dir = TempDir::new("archive");
    let archive = archive(&local(&dir), 1, false);
    let fake = Bytes::from_static(b"names are enough here");
    let at = |number: u64, offset: u64| Lsn((number << 20) + offset);
    runtime().block_on(async {
        for number in [4090, 4093, 4094, 4095, 4096, 4097, 4099] {
            store(&archive, &archive.names.segment(segment(&archive, number), None), fake.clone()).await;
        }
        let open = segment(&archive, 4100);
        write_tail_file(&archive, open, "r", &tail(&archive, open, 0, &wal(5000, 1), 900));
        let inventory = archive.inventory().await.unwrap();
        for number in 4088..4103 {
            for offset in [0, 5, 4999, 5000] {
                let lsn = at(number, offset);
                let slow = archive.contiguous_from(TIMELINE, lsn).await.unwrap();
                assert_eq!(archive.contiguous_in(&inventory, TIMELINE, lsn).await.unwrap(), slow, "{lsn}");
            }
        }
        // Stored since the inventory was made.
        store(&archive, &archive.names.segment(segment(&archive, 4091), None), fake.clone()).await;
        assert_eq!(archive.contiguous_in(&inventory, TIMELINE, at(4090, 0)).await.unwrap(), Some(at(4092, 0)));
        assert_eq!(archive.contiguous_in(&inventory, TimelineId(9), at(4090, 0)).await.unwrap(), None);
    });
}

#[test]
fn cluster_files_and_incarnations() {
    let dir = TempDir::new("archive");
    let repo = local(&dir);
    let names = archive(&repo, 1, false).names;
    runtime().block_on(async {
        assert!(Archive::incarnations(&repo, "main").await.unwrap().is_empty());
        assert_eq!(Archive::incarnations(&repo, "../x").await.unwrap_err().kind(), Kind::Usage);
        assert!(!check_cluster_file(&repo, &names).await.unwrap());
        for _ in 0..2 {
            write_cluster_file(&repo, &names, PATIENCE).await.unwrap();
        }
        assert!(check_cluster_file(&repo, &names).await.unwrap());
        let upgraded = walrecv::repo::ClusterNames { system: SystemIdentifier(78), ..names.clone() };
        write_cluster_file(&repo, &upgraded, PATIENCE).await.unwrap();
        std::fs::create_dir(dir.join("clusters/main/not-an-incarnation")).unwrap();
        let mut found = Archive::incarnations(&repo, "main").await.unwrap();
        found.sort_by_key(|names| names.system);
        assert_eq!(found, [names.clone(), upgraded]);
        std::fs::write(dir.join(names.cluster_file()), "{}").unwrap();
        assert_eq!(check_cluster_file(&repo, &names).await.unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(write_cluster_file(&repo, &names, PATIENCE).await.unwrap_err().kind(), Kind::Diverged);
    });
}
