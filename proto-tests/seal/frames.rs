//! Frames that are sealed apart make the same object as those that are sealed one after the other.

use walrecv::seal::frames::{Bench, FrameSealer};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::Opener;
use walrecv::seal::sealer::{Compression, FRAME_BYTES, Sealer};

use crate::support::*;

#[test]
fn in_any_order_and_on_several_benches_they_make_the_same_object() {
    let content = wal_like(5 * FRAME_BYTES + 4321, 3);
    // Whole frames, short ones and a last one, as a packer cuts them.
    let cuts = [FRAME_BYTES, 100, FRAME_BYTES, 8192, FRAME_BYTES, FRAME_BYTES, FRAME_BYTES - 8292 + 4321];
    let mut rest = content.as_slice();
    let frames: Vec<&[u8]> = cuts.iter().map(|cut| rest.split_off(..*cut).expect("enough bytes")).collect();
    assert!(rest.is_empty());
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        for order in [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 5, 2, 4]] {
            let claims = claims(ObjectKind::Pack);
            let mut one = Sealer::new(&writer(), claims, SALT, compression);
            for frame in &frames {
                one.push(frame);
                one.cut();
            }
            let expected = one.finish(b"list");

            let sealer = FrameSealer::new(&writer(), claims, SALT, compression);
            let mut benches = [Bench::default(), Bench::default()];
            let mut apart: Vec<_> = frames.iter().map(|_| None).collect();
            for number in order {
                let bench = &mut benches[number % 2];
                let last = number + 1 == frames.len();
                apart[number] = Some(sealer.seal(bench, number as u32 + 1, last, frames[number]));
            }
            let found = sealer.finish(b"list", apart.into_iter().flatten().collect());
            assert!(found.to_vec() == expected.to_vec(), "{compression:?}, {order:?}");
            assert_eq!((&found.frames, &found.header), (&expected.frames, &expected.header));
            let object = expected.to_vec();
            let mut plain = Vec::new();
            Opener::new(&object, &claims, &reader(), true).unwrap().content(&object, &mut plain).unwrap();
            assert!(plain == content);
        }
    }
}
