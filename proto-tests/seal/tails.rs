//! Tails: written flush by flush, torn anywhere, cut into pieces and joined again, compared without the identity.

use proptest::prelude::*;
use walrecv::seal::hash::content_hash;
use walrecv::seal::header::{Claims, ObjectKind};
use walrecv::seal::key::RepositorySecret;
use walrecv::seal::opener::OpenFailed;
use walrecv::seal::sealer::{Compression, FRAME_BYTES};
use walrecv::seal::tail::{
    TAIL_FRAME_HEAD, TailSealer, open_piece, open_tail, piece_marks, tail_extent, tail_marks, tail_reach,
};

use crate::support::*;

fn tail_claims() -> Claims {
    claims(ObjectKind::Tail)
}

/// The preamble, each flush as sealed, and all plain bytes.
fn write(sizes: &[usize], compression: Compression) -> (Vec<u8>, Vec<Vec<u8>>, Vec<u8>) {
    let plain = wal_like(sizes.iter().sum(), sizes.len() as u64 + 77);
    let mut sealer = TailSealer::new(&writer(), tail_claims(), SALT, compression);
    let mut from = 0;
    let flushes = sizes
        .iter()
        .map(|size| {
            let sealed = sealer.seal(&plain[from..from + size]);
            from += size;
            assert_eq!(sealer.plain_len(), from as u64);
            assert_eq!(sealer.hash(), hash(&plain[..from]));
            sealed.to_vec()
        })
        .collect();
    (sealer.preamble().to_vec(), flushes, plain)
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    content_hash(&RepositorySecret(SECRET), bytes)
}

#[test]
fn a_file_with_zeros_behind_opens_to_what_was_flushed() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
        let sizes = [1, 100, 20_000, FRAME_BYTES, 2 * FRAME_BYTES + 5, 1];
        let (preamble, flushes, plain) = write(&sizes, compression);
        let mut file = preamble;
        let mut end = 0;
        for (flush, size) in flushes.iter().zip(sizes) {
            file.extend_from_slice(flush);
            end += size;
            let sealed_len = file.len() as u64;
            let zeroed = [&file[..], &[0; 10_000]].concat();
            let tail = open_tail(&zeroed, &tail_claims(), &reader()).unwrap();
            assert!(tail.plain == plain[..end]);
            assert_eq!((tail.hash, tail.sealed_len), (hash(&plain[..end]), sealed_len));
            let without_identity = FixedKeys { data_key: None, ..reader() };
            let marks = tail_marks(&zeroed, &tail_claims(), &without_identity).unwrap();
            assert_eq!(marks.last(), Some(&(end as u64, tail.hash)));
            marks.iter().for_each(|(end, mark)| assert_eq!(*mark, hash(&plain[..*end as usize])));
        }
    }
}

#[test]
fn an_unwritten_file_is_an_empty_tail() {
    let (preamble, _, _) = write(&[], Compression::None);
    for (file, sealed_len) in [(vec![0; 4096], 0), (preamble.clone(), preamble.len() as u64), (vec![], 0)] {
        let tail = open_tail(&file, &tail_claims(), &reader()).unwrap();
        assert_eq!((tail.plain, tail.hash, tail.sealed_len), (vec![], hash(b""), sealed_len));
        assert_eq!(tail_marks(&file, &tail_claims(), &reader()), Ok(vec![]));
    }
}

/// A power cut may keep any 512-byte sectors of the last, unsynced write and lose the others.
#[test]
fn any_torn_last_write_ends_the_tail_at_a_whole_frame() {
    let (preamble, flushes, plain) = write(&[700, 3000, 2 * FRAME_BYTES + 900], Compression::None);
    let synced = [&preamble[..], &flushes[0], &flushes[1]].concat();
    let whole = [&synced[..], &flushes[2], &[0; 4096]].concat();
    let seed = seed();
    let mut random = seed;
    for _ in 0..60 {
        let mut file = whole.clone();
        for (number, sector) in file.chunks_mut(512).enumerate() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Some tear little, some much; what was synced stays.
            let lost = random >> 33 & 0xFF < random >> 56 & 0xFF;
            let from = synced.len().saturating_sub(number * 512).min(sector.len());
            if lost {
                sector[from..].fill(0);
            }
        }
        let tail = open_tail(&file, &tail_claims(), &reader()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(tail.plain.len() >= 3700 && plain.starts_with(&tail.plain), "seed {seed}");
    }
}

#[test]
fn cut_at_every_byte_gives_a_prefix() {
    let (preamble, flushes, plain) = write(&[40, 300, 500, 20], Compression::Lz4);
    let file = [&preamble[..], &flushes.concat()].concat();
    for len in preamble.len()..=file.len() {
        for zeros in [0, 300] {
            let mut cut = file[..len].to_vec();
            cut.resize(len + zeros, 0);
            let tail = open_tail(&cut, &tail_claims(), &reader()).unwrap();
            assert!(plain.starts_with(&tail.plain), "{len}");
            assert!(tail.sealed_len as usize <= len);
        }
    }
    for len in 1..preamble.len() {
        let cut = open_tail(&file[..len], &tail_claims(), &reader());
        assert!(matches!(cut, Err(OpenFailed::Truncated(_))), "{len}: {cut:?}");
    }
}

#[test]
fn every_changed_byte_before_the_last_flush_is_damage() {
    let (preamble, flushes, plain) = write(&[40, 300, 2000, 20], Compression::None);
    let file = [&preamble[..], &flushes.concat(), &[0; 200]].concat();
    let last = preamble.len() + flushes[..3].concat().len();
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 1 << (at % 8);
        let opened = open_tail(&changed, &tail_claims(), &reader());
        let marks = tail_marks(&changed, &tail_claims(), &reader());
        if at < last {
            assert!(opened.is_err() && marks.is_err(), "{at}: {opened:?}");
            if at >= preamble.len() {
                assert!(matches!(opened, Err(OpenFailed::Damaged { .. })), "{at}: {opened:?}");
            }
        } else {
            let tail = opened.unwrap();
            assert!(plain.starts_with(&tail.plain) && tail.plain.len() >= 2340, "{at}");
        }
    }
}

#[test]
fn a_later_flush_is_found_at_whatever_distance() {
    for len in 1..=60 {
        let (preamble, flushes, _) = write(&[100, len, 30], Compression::None);
        let mut damaged = [&preamble[..], &flushes.concat()].concat();
        damaged[preamble.len() + flushes[0].len() + 5] ^= 1;
        let refused = open_tail(&damaged, &tail_claims(), &reader()).unwrap_err();
        assert!(
            matches!(&refused, OpenFailed::Damaged { problem, .. } if problem.contains("later flush")),
            "{refused}"
        );
        assert_eq!(tail_reach(&damaged, &SALT), Some(130 + len as u64));
    }
}

#[test]
fn a_damaged_frame_is_told_from_a_torn_flush() {
    let (preamble, flushes, plain) = write(&[100, FRAME_BYTES + 100, 30], Compression::None);
    let first_of_second = preamble.len() + flushes[0].len() + TAIL_FRAME_HEAD + 5;
    let mut damaged = [&preamble[..], &flushes.concat()].concat();
    damaged[first_of_second] ^= 1;
    let refused = open_tail(&damaged, &tail_claims(), &reader()).unwrap_err();
    assert!(matches!(&refused, OpenFailed::Damaged { problem, .. } if problem.contains("later flush")), "{refused}");

    // Without the third flush the second may never have been synced: its second frame proves nothing.
    damaged.truncate(preamble.len() + flushes[0].len() + flushes[1].len());
    assert!(open_tail(&damaged, &tail_claims(), &reader()).unwrap().plain == plain[..100]);
}

#[test]
fn frames_out_of_place_are_refused() {
    let (preamble, flushes, _) = write(&[100, 200, 300], Compression::Lz4);
    let file = |order: &[usize]| {
        let frames: Vec<u8> = order.iter().flat_map(|flush| flushes[*flush].clone()).collect();
        [&preamble[..], &frames].concat()
    };
    assert!(open_tail(&file(&[0, 1, 2]), &tail_claims(), &reader()).is_ok());
    for order in [&[1][..], &[0, 2], &[0, 0], &[0, 2, 1], &[1, 0, 2], &[0, 1, 1]] {
        let refused = open_tail(&file(order), &tail_claims(), &reader());
        assert!(matches!(refused, Err(OpenFailed::Damaged { .. })), "{order:?}: {refused:?}");
        let marks = tail_marks(&file(order), &tail_claims(), &reader());
        assert!(matches!(marks, Err(OpenFailed::Damaged { .. })), "{order:?}: {marks:?}");
    }
}

/// What a file holds that was another tail before: its frames end where this one's do, and go on in number and place.
#[test]
fn frames_of_an_earlier_tail_in_the_same_file_are_not_taken_for_this_ones() {
    let (preamble, flushes, plain) = write(&[100, 200, 300], Compression::None);
    let mut earlier = TailSealer::new(&writer(), tail_claims(), [0x18; 32], Compression::None);
    let stale: Vec<u8> = [100, 200, 300, 400].into_iter().flat_map(|len| earlier.seal(&vec![9; len])).collect();
    let mut file = [&preamble[..], &stale].concat();
    let mut at = preamble.len();
    for (frames, kept) in [0, 100, 300, 600].into_iter().enumerate() {
        let found = |file: &[u8]| {
            assert_eq!(tail_marks(file, &tail_claims(), &reader()).unwrap().len(), frames);
            assert_eq!(tail_extent(file, &tail_claims(), &reader()).unwrap().plain, kept as u64);
            assert!(open_tail(file, &tail_claims(), &reader()).unwrap().plain == plain[..kept], "{kept}");
        };
        found(&file);
        if let Some(flush) = flushes.get(frames) {
            // Torn: the last byte has not come.
            file[at..at + flush.len() - 1].copy_from_slice(&flush[..flush.len() - 1]);
            found(&file);
            at += flush.len();
            file[at - 1] = flush[flush.len() - 1];
        }
    }
    assert_eq!(tail_reach(&file, &SALT), Some(600));
}

#[test]
fn frames_of_another_tail_do_not_open() {
    let (preamble, flushes, plain) = write(&[100, 200], Compression::None);
    let mut other = TailSealer::new(&writer(), tail_claims(), [0x18; 32], Compression::None);
    let foreign = [other.seal(&[1; 100]), other.seal(&[2; 200])];
    let mut mixed = [&preamble[..], &flushes[0], &foreign[1]].concat();
    assert!(open_tail(&mixed, &tail_claims(), &reader()).unwrap().plain == plain[..100]);
    // With a CRC-32C made for it, it is the tag that does not fit. Marks see only the CRC: the format page says so.
    let at = preamble.len() + flushes[0].len();
    let sum = crc32c::crc32c(&[&SALT[..], &mixed[at..at + 60], &mixed[at + 64..]].concat());
    mixed[at + 60..at + 64].copy_from_slice(&sum.to_le_bytes());
    let refused = open_tail(&mixed, &tail_claims(), &reader());
    assert!(matches!(refused, Err(OpenFailed::Damaged { .. })), "{refused:?}");
    assert_eq!(tail_marks(&mixed, &tail_claims(), &reader()).unwrap().len(), 2);
}

#[test]
fn pieces_hold_any_run_of_frames_and_are_joined_without_keys() {
    let sizes = [100, 70_000, FRAME_BYTES + 9, 5];
    let (preamble, flushes, plain) = write(&sizes, Compression::Lz4);
    let ends: Vec<usize> = sizes
        .iter()
        .scan(0, |sum, size| {
            Some({
                *sum += size;
                *sum
            })
        })
        .collect();
    for from in 0..sizes.len() {
        for to in from..sizes.len() {
            let piece = [&preamble[..], &flushes[from..=to].concat()].concat();
            let start = ends[from] - sizes[from];
            let opened = open_piece(&piece, &tail_claims(), &reader()).unwrap();
            assert_eq!(opened.from, start as u64);
            assert!(opened.plain == plain[start..ends[to]]);
            assert_eq!(opened.hash, hash(&plain[..ends[to]]), "of the whole tail so far");
            let marks = piece_marks(&piece, &tail_claims(), &reader()).unwrap();
            assert_eq!(marks.last(), Some(&(ends[to] as u64, opened.hash)));
            if from > 0 {
                let as_file = open_tail(&piece, &tail_claims(), &reader());
                assert!(
                    matches!(as_file, Err(OpenFailed::Damaged { .. })),
                    "a piece is not taken for the tail's start"
                );
            }
            for cut in preamble.len()..piece.len() {
                if cut % 997 == 0 || cut < preamble.len() + 100 || cut + 100 > piece.len() {
                    let at_border = marks_end_at(&piece[..cut]);
                    assert_eq!(open_piece(&piece[..cut], &tail_claims(), &reader()).is_ok(), at_border, "{cut}");
                }
            }
            let trailing = [&piece[..], &[0; 80]].concat();
            assert!(open_piece(&trailing, &tail_claims(), &reader()).is_err());
        }
    }
}

/// Whether the bytes end where a frame ends: a cut there is found by the piece's name, not by its bytes.
fn marks_end_at(bytes: &[u8]) -> bool {
    piece_marks(bytes, &tail_claims(), &reader()).is_ok_and(|marks| !marks.is_empty())
}

#[test]
fn more_than_the_segment_is_refused() {
    let mut sealer = TailSealer::new(&writer(), tail_claims(), SALT, Compression::Lz4);
    let sealed = sealer.seal(&vec![0; (1 << 20) + 1]);
    let refused = open_tail(&[sealer.preamble(), sealed].concat(), &tail_claims(), &reader()).unwrap_err();
    assert!(refused.to_string().contains("past the segment"), "{refused}");
}

#[test]
fn looking_for_later_frames_is_bounded() {
    // Bytes that look like a later frame of 64 KiB at every 64th offset, none with the right CRC.
    let (preamble, _, _) = write(&[], Compression::None);
    let mut file = preamble;
    file.extend_from_slice(&[0xFF; 64]);
    for number in 1..(2 << 20) / 64_u32 {
        let mut head = [0; 64];
        head[..4].copy_from_slice(&65_536_u32.to_le_bytes());
        head[4..8].copy_from_slice(&65_552_u32.to_le_bytes());
        [12, 16, 20].into_iter().for_each(|at| head[at..at + 4].copy_from_slice(&number.to_le_bytes()));
        file.extend_from_slice(&head);
    }
    let started = std::time::Instant::now();
    let refused = open_tail(&file, &tail_claims(), &reader());
    assert!(matches!(refused, Err(OpenFailed::Damaged { .. })), "{refused:?}");
    assert!(started.elapsed().as_secs() < 5);
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn noise_behind_or_inside_never_gives_other_bytes(
        sizes in prop::collection::vec(1..5_000_usize, 1..8),
        noise in prop::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        overwrite in any::<bool>(),
    ) {
        let (preamble, flushes, plain) = write(&sizes, Compression::Lz4);
        let mut file = [&preamble[..], &flushes.concat(), &[0; 400]].concat();
        let at = if overwrite { at.index(file.len() - noise.len()) } else { file.len() - 400 };
        file[at..at + noise.len()].copy_from_slice(&noise);
        if let Ok(tail) = open_tail(&file, &tail_claims(), &reader()) {
            prop_assert!(plain.starts_with(&tail.plain));
        }
    }
}
