//! What is sealed opens to the same bytes, for all sizes around frame borders, all compressions, any way of pushing.

use proptest::prelude::*;
use walrecv::seal::header::{KeyClass, ObjectKind};
use walrecv::seal::key::WriterKeys;
use walrecv::seal::opener::{Opener, open_index, read_header};
use walrecv::seal::sealer::{Compression, FRAME_BYTES, OBJECT_BYTES, Sealed, Sealer, seal_index};

use crate::support::*;

const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(3), Compression::Zstd(-5)];

fn seal(keys: &WriterKeys, pieces: &[&[u8]], frame0: &[u8], compression: Compression) -> Sealed {
    let mut sealer = Sealer::new(keys, claims(ObjectKind::Segment), SALT, compression);
    pieces.iter().for_each(|piece| sealer.push(piece));
    sealer.finish(frame0)
}

/// Opens it whole, frame by frame, and from its first bytes.
fn check(sealed: &Sealed, content: &[u8], frame0: &[u8]) {
    let object = sealed.to_vec();
    assert_eq!(object.len() as u64, sealed.len());
    let expected = claims(ObjectKind::Segment);
    let opener = Opener::new(&object, &expected, &reader(), true).unwrap();
    assert_eq!(opener.header(), &sealed.header);
    let mut out = b"before".to_vec();
    assert_eq!(opener.whole(&object, &mut out).unwrap(), frame0);
    assert_eq!(&out[..6], b"before");
    assert!(out[6..] == *content, "content differs");

    let end = opener.frame0_end(&object).unwrap();
    let without_identity = FixedKeys { data_key: None, ..reader() };
    let index_only = Opener::new(&object[..end], &expected, &without_identity, false).unwrap();
    assert_eq!(index_only.frame0(&object[..end]).unwrap(), frame0);

    let mut joined = Vec::new();
    for (number, place) in sealed.frames.iter().enumerate() {
        let frame = &object[place.offset as usize..][..place.len as usize];
        let plain = opener.frame(frame, number as u32, number + 1 == sealed.frames.len()).unwrap();
        assert_eq!(plain.len(), place.plain_len as usize);
        if number > 0 {
            joined.extend_from_slice(&plain);
        }
    }
    assert!(joined == *content, "frames differ");
}

#[test]
fn sizes_around_frame_borders() {
    let all = wal_like(3 * FRAME_BYTES + 2, 11);
    for frames in 0..=3 {
        for off in [-2_i64, -1, 0, 1, 2] {
            let Ok(len) = usize::try_from((frames * FRAME_BYTES) as i64 + off) else { continue };
            for compression in COMPRESSIONS {
                let sealed = seal(&writer(), &[&all[..len]], b"summary", compression);
                assert_eq!(sealed.frames.len(), 1 + len.div_ceil(FRAME_BYTES), "{len}");
                check(&sealed, &all[..len], b"summary");
            }
        }
    }
}

#[test]
fn the_largest_object_and_incompressible_bytes() {
    let content = wal_like(OBJECT_BYTES as usize, 5);
    for compression in [Compression::Lz4, Compression::Zstd(1)] {
        let sealed = seal(&writer(), &[&content], &[], compression);
        assert!(sealed.len() < content.len() as u64);
        check(&sealed, &content, &[]);
    }
    let mut noise = vec![0; FRAME_BYTES + 100];
    getrandom::fill(&mut noise).unwrap();
    for compression in COMPRESSIONS {
        let sealed = seal(&writer(), &[&noise], &[], compression);
        let overhead = sealed.len() as usize - noise.len() - read_header(&sealed.bytes[0]).unwrap().1;
        assert_eq!(overhead, 2 * 32 + 4 + 3 * (16 + 16), "stored as it is when it does not shrink");
        check(&sealed, &noise, &[]);
    }
}

#[test]
#[should_panic(expected = "at most 16777216 bytes")]
fn more_than_an_object_holds_is_refused_before_it_is_written() {
    let mut sealer = Sealer::new(&writer(), claims(ObjectKind::Segment), SALT, Compression::None);
    sealer.push(&vec![0; OBJECT_BYTES as usize]);
    sealer.push(&[0]);
}

#[test]
fn the_first_8_kib_hold_the_summary() {
    let (secret, public) = (walrecv::seal::key::RepositorySecret(SECRET), walrecv::keys::setup::generate().public);
    let ring = walrecv::keys::ring::WriterRing::new(REPOSITORY, secret, Some(&public)).unwrap();
    let noise: Vec<u8> = (0..walrecv::seal::content::summary::SUMMARY_BYTES).map(|i| ((i * i) >> 3) as u8).collect();
    let sealed = seal(&ring.fresh().unwrap(), &[&wal_like(1 << 20, 3)], &noise, Compression::None);
    let first = &sealed.to_vec()[..8192];
    let opener = Opener::new(first, &claims(ObjectKind::Segment), &reader(), false).unwrap();
    assert_eq!(opener.frame0(first).unwrap(), noise);
}

#[test]
fn cut_ends_frames_where_it_is_told() {
    let bytes = wal_like(5 * FRAME_BYTES, 8);
    let mut sealer = Sealer::new(&writer(), claims(ObjectKind::Segment), SALT, Compression::Lz4);
    assert_eq!(sealer.cut(), 1, "nothing to end");
    sealer.push(&bytes[..100]);
    assert_eq!((sealer.cut(), sealer.cut()), (2, 2));
    sealer.push(&bytes[100..100 + FRAME_BYTES]);
    assert_eq!(sealer.cut(), 3);
    sealer.push(&bytes[100 + FRAME_BYTES..200 + 3 * FRAME_BYTES]);
    assert_eq!(sealer.cut(), 6, "2 full frames and 100 bytes");
    assert_eq!(sealer.plain_len(), 200 + 3 * FRAME_BYTES as u64);
    let sealed = sealer.finish(b"contents");
    let sizes: Vec<usize> = sealed.frames.iter().map(|place| place.plain_len as usize).collect();
    assert_eq!(sizes, [8, 100, FRAME_BYTES, FRAME_BYTES, FRAME_BYTES, 100]);
    check(&sealed, &bytes[..200 + 3 * FRAME_BYTES], b"contents");
}

#[test]
fn frames_taken_from_a_growing_buffer_are_as_long_as_was_said() {
    const FRAME: usize = 64 << 10;
    let all = wal_like(5 * FRAME + 1, 4);
    for len in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 5 * FRAME + 1] {
        for step in [1000, FRAME, FRAME + 1, 128 << 10, all.len()] {
            let mut sealer = Sealer::new(&writer(), claims(ObjectKind::Segment), SALT, Compression::Lz4);
            let mut taken = 0;
            for end in (0..len).step_by(step).map(|at| len.min(at + step)) {
                taken += sealer.take(&all[taken..end], FRAME);
                assert_eq!(taken, (end - 1) / FRAME * FRAME, "all but the frame that may be the last");
                assert_eq!(sealer.plain_len(), taken as u64);
            }
            sealer.push(&all[taken..len]);
            let sealed = sealer.finish(b"summary");
            let mut sizes = sealed.frames[1..].iter().map(|place| place.plain_len as usize).collect::<Vec<_>>();
            assert_eq!(sizes.pop().unwrap_or(0), if len == 0 { 0 } else { (len - 1) % FRAME + 1 });
            assert!(sizes.iter().all(|size| *size == FRAME));
            check(&sealed, &all[..len], b"summary");
        }
    }
}

#[test]
fn what_was_pushed_comes_before_what_is_taken() {
    let all = wal_like(1000 + 3 * 4096, 6);
    let mut sealer = Sealer::new(&writer(), claims(ObjectKind::Segment), SALT, Compression::None);
    sealer.push(&all[..1000]);
    assert_eq!(sealer.take(&all[1000..1000 + 2 * 4096 + 1], 4096), 2 * 4096);
    sealer.push(&all[1000 + 2 * 4096..]);
    let sealed = sealer.finish(&[]);
    let sizes: Vec<u32> = sealed.frames.iter().map(|place| place.plain_len).collect();
    assert_eq!(sizes, [0, 1000, 4096, 4096, 4096]);
    check(&sealed, &all, &[]);
}

#[test]
fn index_objects_open_with_the_secret_alone() {
    let content = wal_like(2 * FRAME_BYTES + 7, 2);
    let without_identity = FixedKeys { data_key: None, ..reader() };
    for kind in ObjectKind::ALL.into_iter().filter(|kind| kind.class() == KeyClass::Index) {
        for len in [0, 1, FRAME_BYTES, content.len()] {
            let sealed = seal_index(&writer(), claims(kind), SALT, Compression::Lz4, &content[..len]);
            assert!(sealed.header.wrapped_key.is_empty());
            let opened = open_index(&sealed.to_vec(), &claims(kind), &without_identity).unwrap();
            assert!(opened == content[..len]);
        }
    }
}

#[test]
fn without_encryption_the_published_constant_opens() {
    let content = wal_like(300_000, 4);
    let sealed = seal(&unencrypted_writer(), &[&content], b"s", Compression::Lz4);
    assert!(sealed.header.published && sealed.header.wrapped_key.is_empty());
    let (object, mut out) = (sealed.to_vec(), Vec::new());
    let opener = Opener::new(&object, &claims(ObjectKind::Segment), &unencrypted_reader(), true).unwrap();
    opener.content(&object, &mut out).unwrap();
    assert!(out == content);
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn any_pushes_give_the_same_object(
        len in 0..700_000_usize,
        cuts in prop::collection::vec(0..700_000_usize, 0..12),
        which in 0..COMPRESSIONS.len(),
        frame0 in prop::collection::vec(any::<u8>(), 0..300),
        seed in any::<u64>(),
    ) {
        let content = wal_like(len, seed);
        let mut borders: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).chain([0, len]).collect();
        borders.sort_unstable();
        let pieces: Vec<&[u8]> = borders.windows(2).map(|pair| &content[pair[0]..pair[1]]).collect();
        let sealed = seal(&writer(), &pieces, &frame0, COMPRESSIONS[which]);
        let at_once = seal(&writer(), &[&content], &frame0, COMPRESSIONS[which]);
        prop_assert!(sealed.to_vec() == at_once.to_vec());
        check(&sealed, &content, &frame0);
    }
}
