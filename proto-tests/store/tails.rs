//! Tails that are damaged, and tails that change while they are read.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::archive::read::SegmentBytes;
use walrecv::error::{Error, Kind};
use walrecv::pg::Lsn;
use walrecv::pg::xact::PgTime;
use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::read_header;

use crate::archive_pieces::{TIMELINE, archive, pieces, sealed, segment, store, tail, wal, write_tail_file};
use crate::common::{no_env, runtime};
use crate::faults::{Hooked, Memory};
use crate::support::{Seed, TempDir};

const MIB: usize = 1 << 20;

/// The stored prefix, and where it ends, found without the identity.
async fn look(reader: &Archive, receiver: &Archive, number: u64) -> Result<(usize, u64), Error> {
    let name = segment(reader, number);
    let bytes = match reader.read_segment(name, None).await? {
        Some(SegmentBytes::Prefix(bytes) | SegmentBytes::Complete(bytes)) => bytes.len(),
        None => 0,
    };
    Ok((bytes, receiver.end_in(name).await?.since(name.start())))
}

/// The store gives other bytes than it has, once.
#[test]
fn a_piece_that_was_read_wrong_is_read_again() {
    let memory = Arc::new(Memory::default());
    let content = wal(MIB, 9);
    runtime().block_on(async {
        let honest = archive(&Hooked::repository(memory.clone(), |_, _| {}), 1, true);
        let made = pieces(&honest, segment(&honest, 1), 0, &content[..60_000], 30_000, "r");
        for (name, bytes) in &made {
            store(&honest, name, bytes.clone()).await;
        }
        let (name, good) = made[1].clone();
        let mut wrong = good.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        let reads = AtomicU32::new(0);
        let repo = Hooked::repository(memory, move |asked, memory| {
            if asked == name {
                // For the reader with the identity and for the one without: the first time of two.
                let is_wrong = reads.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
                memory.set(&name, if is_wrong { wrong.clone().into() } else { good.clone() });
            }
        });
        let (reader, receiver) = (archive(&repo, 1, true), archive(&repo, 1, false));
        assert_eq!(look(&reader, &receiver, 1).await.unwrap(), (60_000, 60_000));
    });
}

#[test]
fn a_damaged_tail_is_passed_over_where_others_hold_its_bytes() {
    let dir = TempDir::new("tails");
    let repo = walrecv::repo::Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    let (reader, receiver) = (archive(&repo, 1, true), archive(&repo, 1, false));
    let content = wal(MIB, 1);
    runtime().block_on(async {
        // Of a file: how far it may have reached is seen by its frames after the damage.
        let at = |number| segment(&reader, number);
        let mut damaged = tail(&reader, at(1), 0, &content[..100_000], 20_000);
        damaged[1000] ^= 1;
        write_tail_file(&reader, at(1), "old", &damaged);
        write_tail_file(&reader, at(1), "new", &tail(&reader, at(1), 0, &content[..99_000], 20_000));
        assert_eq!(
            look(&reader, &receiver, 1).await.unwrap_err().kind(),
            Kind::Corrupt,
            "a thousand bytes are missing"
        );
        // Nobody can read it, so nothing of it counts for whoever asks how far WAL reaches.
        assert_eq!(receiver.end_in(at(1)).await.unwrap(), at(1).start());
        assert_eq!(receiver.damage_in(at(1)).await.unwrap().map(|damage| damage.kind()), Some(Kind::Corrupt));
        write_tail_file(&reader, at(1), "newer", &tail(&reader, at(1), 0, &content[..100_000], 20_000));
        assert_eq!(look(&reader, &receiver, 1).await.unwrap(), (100_000, 100_000));
        write_tail_file(&reader, at(1), "newest", &tail(&reader, at(1), 0, &content[..120_000], 20_000));
        assert_eq!(look(&reader, &receiver, 1).await.unwrap(), (120_000, 120_000));

        // Of a piece: by its name.
        for (n, (name, bytes)) in pieces(&reader, at(2), 0, &content[..100_000], 20_000, "old").into_iter().enumerate()
        {
            let cut = if n == 2 { bytes.len() - 1 } else { bytes.len() };
            store(&reader, &name, bytes.slice(..cut)).await;
        }
        assert_eq!(look(&reader, &receiver, 2).await.unwrap_err().kind(), Kind::Corrupt);
        for (name, bytes) in pieces(&reader, at(2), 0, &content[..60_000], 30_000, "new") {
            store(&reader, &name, bytes).await;
        }
        assert_eq!(look(&reader, &receiver, 2).await.unwrap(), (100_000, 100_000));

        // Of the end of a timeline. Without the identity only its summary is looked at.
        let object = sealed(&reader, ObjectKind::Partial, at(3).start(), &content[..300_000]);
        let mut damaged = object.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        store(&reader, &reader.names.partial(at(3)), damaged.into()).await;
        write_tail_file(&reader, at(3), "short", &tail(&reader, at(3), 0, &content[..299_999], 20_000));
        assert_eq!(look(&reader, &receiver, 3).await.unwrap_err().kind(), Kind::Corrupt);
        write_tail_file(&reader, at(3), "whole", &tail(&reader, at(3), 0, &content[..300_000], 20_000));
        assert_eq!(look(&reader, &receiver, 3).await.unwrap(), (300_000, 300_000));
    });
}

/// A wrong start in a damaged header must not make it look as if others held the bytes.
#[test]
fn where_a_tail_with_a_damaged_header_begins_is_not_believed() {
    let dir = TempDir::new("tails");
    let repo = walrecv::repo::Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    let (reader, receiver) = (archive(&repo, 1, true), archive(&repo, 1, false));
    let (content, name) = (wal(MIB, 1), segment(&reader, 1));
    let good = tail(&reader, name, 0, &content[..100_000], 20_000);
    write_tail_file(&reader, name, "short", &tail(&reader, name, 0, &content[..50_000], 20_000));
    let mut wrong_starts = 0;
    for (at, bit) in (0..200).flat_map(|at| [(at, 1), (at, 8)]) {
        let mut damaged = good.clone();
        damaged[at] ^= bit;
        let start = read_header(&damaged).map(|(header, _)| header.claims.start);
        if start.is_ok_and(|start| start > name.start() + 50_000 && start < name.end()) {
            wrong_starts += 1;
            write_tail_file(&reader, name, "damaged", &damaged);
            let found = runtime().block_on(look(&reader, &receiver, 1));
            assert_eq!(found.unwrap_err().kind(), Kind::Corrupt, "bit {bit} of byte {at}");
            runtime().block_on(repo.delete(&reader.names.tail_open(name, "damaged"))).unwrap();
        }
    }
    assert!(wrong_starts > 0);
}

/// What a piece's name says of it is compared with what is in it, by those who cannot open it too.
#[test]
fn a_piece_that_begins_elsewhere_than_its_name_says_is_damaged() {
    let memory = Arc::new(Memory::default());
    let repo = Hooked::repository(memory.clone(), |_, _| {});
    let (reader, receiver) = (archive(&repo, 1, true), archive(&repo, 1, false));
    let name = segment(&reader, 1);
    let (_, second) = pieces(&reader, name, 0, &wal(40_000, 1), 20_000, "r").swap_remove(1);
    memory.set(&reader.names.tail_piece(name, 0, 40_000, "r"), second);
    let read = runtime().block_on(reader.read_segment(name, None)).unwrap_err();
    assert_eq!(read.kind(), Kind::Corrupt, "{read}");
    let measured = runtime().block_on(receiver.end_in(name)).unwrap();
    assert_eq!(measured, name.start(), "what it may hold is not counted");
}

/// A file of 100 GiB under the name of a tail, a piece, a heartbeat, a segment: damage like any other, found without reading it.
#[test]
fn what_is_too_long_to_be_wal_is_damaged_and_fills_no_memory() {
    let dir = TempDir::new("tails");
    let repo = walrecv::repo::Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    let (reader, receiver) = (archive(&repo, 1, true), archive(&repo, 1, false));
    let content = wal(MIB, 1);
    let at = |number| segment(&reader, number);
    let forge = |name: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap().set_len(100 << 30).unwrap();
    };
    forge(&reader.names.tail_piece(at(1), 0, 50_000, "forged"));
    forge(&reader.names.tail_open(at(2), "forged"));
    forge(&reader.names.segment(at(3), None));
    forge(&reader.names.partial(at(4)));
    forge(&reader.names.heartbeat(TIMELINE, Lsn(4711), PgTime(1)));
    runtime().block_on(async {
        for (name, bytes) in pieces(&reader, at(1), 0, &content[..60_000], 30_000, "r") {
            store(&reader, &name, bytes).await;
        }
        assert_eq!(look(&reader, &receiver, 1).await.unwrap(), (60_000, 60_000), "others hold its bytes");
        for number in 2..=4 {
            let error = reader.read_segment(at(number), None).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            assert!(error.to_string().contains("has 107374182400 bytes"), "{error}");
        }
        assert_eq!(reader.heartbeats(TIMELINE).await.unwrap(), []);
    });
}

/// Behind a hole nothing was acknowledged: what is damaged there takes nothing away.
#[test]
fn damage_behind_a_hole_is_no_loss() {
    let memory = Arc::new(Memory::default());
    let archive = archive(&Hooked::repository(memory.clone(), |_, _| {}), 1, true);
    let name = segment(&archive, 1);
    let content = wal(MIB, 2);
    for (n, (name, bytes)) in pieces(&archive, name, 0, &content[..50_000], 10_000, "r").into_iter().enumerate() {
        match n {
            2 => {}
            4 => memory.set(&name, bytes.slice(..bytes.len() - 1)),
            _ => memory.set(&name, bytes),
        }
    }
    let found = runtime().block_on(look(&archive, &archive, 1)).unwrap();
    assert_eq!(found, (20_000, 20_000));
}

/// A writer that adds a piece before every answer of the store, and merges older ones before every eighth.
struct Busy {
    live: Vec<(u64, u64, String)>,
    durable: u64,
    runs: u32,
    seed: Seed,
}

impl Busy {
    fn piece(&mut self, archive: &Archive, content: &[u8], memory: &Memory, from: u64, to: u64) -> String {
        self.runs += 1;
        let run = format!("run{}", self.runs);
        let bytes = &content[from as usize..to as usize];
        let (name, sealed) = pieces(archive, segment(archive, 1), from, bytes, MIB, &run).swap_remove(0);
        memory.set(&name, sealed);
        name
    }

    fn step(&mut self, archive: &Archive, content: &[u8], memory: &Memory) {
        let to = (self.durable + self.seed.between(1, 300)).min(content.len() as u64);
        if to > self.durable {
            let name = self.piece(archive, content, memory, self.durable, to);
            self.live.push((self.durable, to, name));
            self.durable = to;
        }
        if self.seed.below(8) > 0 {
            return;
        }
        // Any run of neighbours but for the newest.
        let first = self.seed.below(self.live.len() as u64) as usize;
        let last = (first + self.seed.between(1, 6) as usize).min(self.live.len() - 1);
        if let [(from, ..), .., (_, to, _)] = self.live[first..last] {
            let merged = self.piece(archive, content, memory, from, to);
            for (.., name) in self.live.splice(first..last, [(from, to, merged)]) {
                memory.remove(&name);
            }
        }
    }
}

/// However fast pieces are merged and deleted, a reader finds all that was durable when it began, and comes to an end.
#[test]
fn pieces_that_are_merged_all_the_time_are_read_all_the_same() {
    let mut seed = Seed::of_run();
    let content = wal(MIB, 3);
    for _ in 0..crate::support::rounds(10, 400) {
        let memory = Arc::new(Memory::default());
        let plain = archive(&Hooked::repository(memory.clone(), |_, _| {}), 1, true);
        let mut busy = Busy { live: vec![], durable: 0, runs: 0, seed: Seed::from(seed.next()) };
        for _ in 0..seed.between(2, 100) {
            busy.step(&plain, &content, &memory);
        }
        let busy = Arc::new(Mutex::new(busy));
        let (writer, by, wal) = (busy.clone(), plain.clone(), content.clone());
        let hook = move |_: &str, memory: &Memory| writer.lock().unwrap().step(&by, &wal, memory);
        let reader = archive(&Hooked::repository(memory, hook), 1, true);
        for read in [true, false] {
            let before = busy.lock().unwrap().durable as usize;
            let name = segment(&reader, 1);
            let found = runtime().block_on(async {
                match read {
                    true => reader.read_segment(name, None).await.unwrap(),
                    false => {
                        let end = reader.end_in(name).await.unwrap().since(name.start());
                        Some(SegmentBytes::Prefix(Bytes::copy_from_slice(&content[..end as usize])))
                    }
                }
            });
            let Some(SegmentBytes::Prefix(bytes) | SegmentBytes::Complete(bytes)) = found else { panic!("nothing") };
            assert!(bytes.len() >= before, "read: {read}, {before} bytes were durable, {} were found", bytes.len());
            assert!(bytes == content[..bytes.len()]);
        }
    }
}

/// A listing that was made while pieces were merged may show neither the pieces nor what they became, but always something behind them.
#[test]
fn a_hole_in_a_listing_is_looked_at_again() {
    let content = wal(MIB, 4);
    let memory = Arc::new(Memory::default());
    let plain = archive(&Hooked::repository(memory.clone(), |_, _| {}), 1, true);
    let name = segment(&plain, 1);
    let parts = pieces(&plain, name, 0, &content[..90_000], 10_000, "r");
    let merged = pieces(&plain, name, 0, &content[..80_000], 80_000, "m").swap_remove(0);
    memory.set(&parts[8].0, parts[8].1.clone());
    let listed = AtomicBool::new(false);
    let hook = move |what: &str, memory: &Memory| {
        // The first listing shows the last piece only; after it the merged one is seen.
        if what.contains("/tail/") && listed.swap(true, Ordering::Relaxed) {
            memory.set(&merged.0, merged.1.clone());
        }
    };
    let reader = archive(&Hooked::repository(memory, hook), 1, true);
    runtime().block_on(async {
        assert_eq!(reader.end_in(name).await.unwrap().since(name.start()), 90_000);
        let found = reader.read_segment(name, None).await.unwrap();
        assert!(found == Some(SegmentBytes::Prefix(Bytes::copy_from_slice(&content[..90_000]))));
    });
}
