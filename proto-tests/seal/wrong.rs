//! Every way of being wrong that is too large to store: each byte flipped, each length cut, noise, and absurd fields.

use proptest::prelude::*;
use walrecv::seal::header::{ObjectKind, RepositoryId};
use walrecv::seal::key::{DataKey, RepositorySecret};
use walrecv::seal::opener::{OpenFailed, Opener, open_index, read_header};
use walrecv::seal::sealer::{Compression, FRAME_BYTES, Sealer, seal_index};

use crate::support::*;

fn segment(compression: Compression, seed: u64) -> (Vec<u8>, Vec<u8>) {
    let content = wal_like(900, seed);
    let mut sealer = Sealer::new(&writer(), claims(ObjectKind::Segment), [seed as u8; 32], compression);
    for part in content.chunks(400) {
        sealer.push(part);
        sealer.cut();
    }
    (sealer.finish(b"{summary}").to_vec(), content)
}

fn open(object: &[u8]) -> Result<(Vec<u8>, Vec<u8>), OpenFailed> {
    let mut out = Vec::new();
    let opener = Opener::new(object, &claims(ObjectKind::Segment), &reader(), true)?;
    let frame0 = opener.whole(object, &mut out)?;
    Ok((frame0, out))
}

#[test]
fn every_flipped_bit_is_refused() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let (object, content) = segment(compression, 3);
        assert_eq!(open(&object).unwrap(), (b"{summary}".to_vec(), content));
        for at in 0..object.len() * 8 {
            let mut changed = object.clone();
            changed[at / 8] ^= 1 << (at % 8);
            let refused = open(&changed).unwrap_err();
            let as_expected = match at / 8 {
                0..8 => matches!(refused, OpenFailed::NotAnObject(_)),
                8..10 => matches!(refused, OpenFailed::Version(_)),
                _ => matches!(refused, OpenFailed::Damaged { .. } | OpenFailed::Truncated(_)),
            };
            assert!(as_expected, "bit {at}: {refused:?}");
        }
    }
}

#[test]
fn every_cut_is_refused_as_such() {
    let (object, _) = segment(Compression::Lz4, 3);
    for len in 0..object.len() {
        assert!(matches!(open(&object[..len]), Err(OpenFailed::Truncated(_))), "{len}: {:?}", open(&object[..len]));
    }
    let index = seal_index(&writer(), claims(ObjectKind::Map), SALT, Compression::None, &wal_like(2 * FRAME_BYTES, 1));
    let object = index.to_vec();
    for place in &index.frames {
        let refused = open_index(&object[..place.offset as usize], &claims(ObjectKind::Map), &reader());
        assert!(matches!(refused, Err(OpenFailed::Truncated(_))), "{refused:?}");
    }
}

#[test]
fn every_trailing_byte_is_refused() {
    let (object, _) = segment(Compression::None, 3);
    for extra in [1, 15, 16, 40, 600] {
        for byte in [0, 0xFF] {
            let longer = [&object[..], &vec![byte; extra]].concat();
            let refused = open(&longer).unwrap_err();
            let text = refused.to_string();
            assert!(text.contains(&format!("{extra} bytes after the last frame")), "{text}");
        }
    }
}

#[test]
fn every_other_claim_is_refused_by_name() {
    let (object, _) = segment(Compression::None, 3);
    let right = claims(ObjectKind::Segment);
    let mut wrong = [right; 6];
    wrong[0].kind = ObjectKind::Partial;
    wrong[1].repository = RepositoryId([9; 16]);
    wrong[2].system.0 += 1;
    wrong[3].segment_size = walrecv::pg::SegmentSize::new(16 << 20).unwrap();
    wrong[4].timeline.0 += 1;
    wrong[5].start.0 += 1 << 20;
    for expected in wrong {
        let refused = Opener::new(&object, &expected, &reader(), true).err().unwrap();
        assert!(matches!(refused, OpenFailed::Claims { .. }), "{refused:?}");
    }
}

#[test]
fn wrong_keys_are_told_from_damage() {
    let (object, _) = segment(Compression::None, 3);
    let right = claims(ObjectKind::Segment);
    let wrong = [
        FixedKeys { secret: RepositorySecret([0; 32]), ..reader() },
        FixedKeys { secret: RepositorySecret::published(), ..reader() },
        FixedKeys { data_key: Some(DataKey([0; 32])), ..reader() },
        FixedKeys { data_key: None, ..reader() },
    ];
    for keys in wrong {
        let refused = Opener::new(&object, &right, &keys, true).err().unwrap();
        assert!(matches!(refused, OpenFailed::Key(_)), "{refused:?}");
    }
}

#[test]
fn content_stays_closed_without_its_data_key() {
    let (object, _) = segment(Compression::None, 3);
    let opener = Opener::new(&object, &claims(ObjectKind::Segment), &reader(), false).unwrap();
    assert!(opener.frame0(&object).is_ok());
    let mut out = vec![1];
    assert!(matches!(opener.content(&object, &mut out), Err(OpenFailed::Key(_))));
    assert_eq!(out, [1], "nothing is left behind");
}

#[test]
fn frames_open_only_under_their_own_number_and_flag() {
    let content = wal_like(900, 6);
    let mut sealer = Sealer::new(&writer(), claims(ObjectKind::Pack), SALT, Compression::Lz4);
    for part in content.chunks(300) {
        sealer.push(part);
        sealer.cut();
    }
    let sealed = sealer.finish(b"contents");
    let object = sealed.to_vec();
    let opener = Opener::new(&object, &claims(ObjectKind::Pack), &reader(), true).unwrap();
    for (number, place) in sealed.frames.iter().enumerate() {
        let frame = &object[place.offset as usize..][..place.len as usize];
        for claimed in 0..6 {
            for last in [false, true] {
                let right = claimed == number && last == (number == 3);
                assert_eq!(opener.frame(frame, claimed as u32, last).is_ok(), right, "{number} as {claimed}, {last}");
            }
        }
        assert!(opener.frame(&frame[..frame.len() - 1], number as u32, false).is_err());
        assert!(opener.frame(&[frame, &[0]].concat(), number as u32, false).is_err());
    }
}

#[test]
fn errors_leave_the_output_as_it_was() {
    let (mut object, _) = segment(Compression::None, 3);
    let at = object.len() - 1;
    object[at] ^= 1;
    let opener = Opener::new(&object, &claims(ObjectKind::Segment), &reader(), true).unwrap();
    let mut out = b"mine".to_vec();
    assert!(opener.content(&object, &mut out).is_err());
    assert_eq!(out, b"mine");
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn noise_is_never_an_object(noise in prop::collection::vec(any::<u8>(), 0..2000), magic in any::<bool>()) {
        let start: &[u8] = if magic { b"walrecv\0\x01\0\x01\0" } else { b"" };
        let bytes = [start, &noise].concat();
        let _ = read_header(&bytes);
        prop_assert!(open(&bytes).is_err());
    }

    /// Parts of valid objects glued together in any way.
    #[test]
    fn glued_objects_never_open_to_other_bytes(
        parts in prop::collection::vec((0..3_u64, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..5),
    ) {
        let all = [segment(Compression::None, 3), segment(Compression::None, 4), segment(Compression::Lz4, 5)];
        let mut glued = Vec::new();
        for (which, from, to) in parts {
            let object = &all[which as usize].0;
            let (from, to) = (from.index(object.len() + 1), to.index(object.len() + 1));
            glued.extend_from_slice(&object[from.min(to)..from.max(to)]);
        }
        if let Ok((_, content)) = open(&glued) {
            prop_assert!(all.iter().any(|(object, plain)| *object == glued && *plain == content));
        }
    }
}
