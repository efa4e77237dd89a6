//! The stored vectors that must be refused: one for each way of being wrong.

use super::*;

/// Offsets of the frames of an object of the content class, and its end.
fn frames(object: &[u8]) -> Vec<usize> {
    let field = |at: usize| u32::from_le_bytes(object[at..at + 4].try_into().unwrap()) as usize;
    let wrapped = u16::from_le_bytes(object[84..86].try_into().unwrap()) as usize;
    let mut borders = vec![86 + wrapped + 68];
    while *borders.last().unwrap() < object.len() {
        let at = *borders.last().unwrap();
        borders.push(at + 16 + field(at + 4));
    }
    borders
}

/// Writes the CRC-32C again, as someone would who changed bytes on purpose.
fn mend_frame(object: &mut [u8], from: usize, to: usize) {
    let crc = crc32c::crc32c(&[&object[from..from + 12], &object[from + 16..to]].concat());
    object[from + 12..from + 16].copy_from_slice(&crc.to_le_bytes());
}

fn mend_header(object: &mut [u8]) {
    let end = frames(object)[0];
    let crc = crc32c::crc32c(&object[..end - 4]);
    object[end - 4..end].copy_from_slice(&crc.to_le_bytes());
}

pub fn bad(keys: &Keys, good: &dyn Fn(&str) -> Vector) -> Vec<Vector> {
    let base = good("segment-none");
    let refused = |name, bytes: Vec<u8>, why| Vector { name, bytes, outcome: Outcome::Refused(why), ..base.clone() };
    let object = base.bytes.clone();
    let at = frames(&object);
    let part = |number: usize| &object[at[number]..at[number + 1]];
    let head = &object[..at[0]];
    let change = |name, why, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = object.clone();
        change(&mut bytes);
        refused(name, bytes, why)
    };
    // Another object of the same keys, kind and place: only the salt differs.
    let other = content_object(&keys.writer, ObjectKind::Segment, 99, Compression::None);
    let other_at = frames(&other);

    let mut all = vec![
        refused("bad-empty-file", vec![], "truncated"),
        refused("bad-cut-in-header", object[..50].to_vec(), "truncated"),
        refused("bad-cut-after-commitments", object[..at[0]].to_vec(), "truncated"),
        refused("bad-cut-at-frame-border", object[..at[3]].to_vec(), "truncated"),
        refused("bad-cut-in-frame", object[..at[3] + 20].to_vec(), "truncated"),
        refused("bad-frames-reordered", [head, part(0), part(2), part(1), part(3)].concat(), "damaged"),
        refused("bad-frame-repeated", [head, part(0), part(1), part(1), part(2), part(3)].concat(), "damaged"),
        refused("bad-frame-left-out", [head, part(0), part(1), part(3)].concat(), "damaged"),
        refused("bad-trailing-bytes", [&object[..], &[0; 5]].concat(), "damaged"),
        refused("bad-trailing-frame", [&object[..], part(3)].concat(), "damaged"),
        refused("bad-frame-of-another-object", [head, part(0), part(1), &other[other_at[2]..]].concat(), "damaged"),
        refused("bad-header-of-another-object", [&other[..other_at[0]], &object[at[0]..]].concat(), "damaged"),
        change("bad-magic", "not-an-object", &|bytes| bytes[0] = b'W'),
        change("bad-version", "version", &|bytes| bytes[8] = 2),
        change("bad-kind", "damaged", &|bytes| {
            bytes[10] = 200;
            mend_header(bytes);
        }),
        change("bad-flags", "damaged", &|bytes| {
            bytes[11] = 2;
            mend_header(bytes);
        }),
        change("bad-header-byte", "damaged", &|bytes| bytes[60] ^= 1),
        change("bad-header-byte-mended", "key", &|bytes| {
            bytes[60] ^= 1;
            mend_header(bytes);
        }),
        change("bad-frame-byte", "damaged", &|bytes| bytes[at[2] + 40] ^= 1),
        change("bad-frame-byte-mended", "damaged", &|bytes| {
            bytes[at[2] + 40] ^= 1;
            mend_frame(bytes, at[2], at[3]);
        }),
        change("bad-absurd-plain-length", "damaged", &|bytes| {
            bytes[at[1]..at[1] + 4].fill(0xFF);
            mend_frame(bytes, at[1], at[2]);
        }),
        change("bad-absurd-stored-length", "damaged", &|bytes| bytes[at[1] + 4..at[1] + 8].fill(0xFF)),
        change("bad-absurd-wrapped-length", "damaged", &|bytes| bytes[84..86].fill(0xFF)),
        change("bad-compression", "damaged", &|bytes| {
            bytes[at[1] + 8] = 9;
            mend_frame(bytes, at[1], at[2]);
        }),
    ];
    let expecting = |name, expected| Vector { expected, ..refused(name, object.clone(), "claims") };
    all.push(expecting("bad-name-of-another-kind", vector_claims(ObjectKind::Partial)));
    all.push(expecting("bad-name-of-another-segment", Claims { start: Lsn(0x16_B360_0000), ..base.expected }));
    all.push(expecting("bad-name-of-another-timeline", Claims { timeline: TimelineId(4), ..base.expected }));
    all.extend(keys_and_forgers(keys, &object, &refused));
    all.extend(tails(keys, &good("tail")));
    all
}

fn keys_and_forgers(
    keys: &Keys,
    object: &[u8],
    refused: &dyn Fn(&'static str, Vec<u8>, &'static str) -> Vector,
) -> Vec<Vector> {
    let with = |name, with| Vector { with, ..refused(name, object.to_vec(), "key") };
    // Someone who has the public key and a data key of his own, but no secret.
    let forger = WriterKeys { secret: RepositorySecret([0xF0; 32]), ..keys.writer.clone() };
    let forged = content_object(&forger, ObjectKind::Segment, 100, Compression::None);
    let plain = content_object(&unencrypted_writer(), ObjectKind::Segment, 6, Compression::None);
    // Someone who has the secret, and puts another's wrapped key into the header: it does not open the frames.
    let swapped = WriterKeys { data_key: DataKey([0xF1; 32]), ..keys.writer.clone() };
    let swapped = content_object(&swapped, ObjectKind::Segment, 101, Compression::None);
    let with_published =
        Vector { with: With::Published, ..refused("bad-encrypted-where-none-is", object.to_vec(), "key") };
    vec![
        with("bad-other-identity", With::OtherIdentity),
        with("bad-no-identity", With::Secret),
        with("bad-other-secret", With::OtherSecret),
        with_published,
        refused("bad-forged-without-secret", forged, "key"),
        refused("bad-unencrypted-where-encryption-is", plain, "key"),
        refused("bad-wrapped-key-of-another-object", swapped, "key"),
    ]
}

fn tails(keys: &Keys, tail_vector: &Vector) -> Vec<Vector> {
    let (parts, _) = tail(keys);
    let refused = |name, how, bytes: Vec<u8>, why| {
        let outcome = Outcome::Refused(why);
        Vector { name, how, bytes, outcome, ..tail_vector.clone() }
    };
    let mut later = parts.concat();
    later[parts[0].len() + parts[1].len() + 70] ^= 1;
    let without_first = [&parts[0][..], &parts[2], &parts[3]].concat();
    let reordered = [&parts[0][..], &parts[2], &parts[1]].concat();
    let cut = parts.concat();
    vec![
        refused("bad-tail-damaged-before-a-later-flush", As::Tail, later, "damaged"),
        refused("bad-tail-without-its-first-frame", As::Tail, without_first, "damaged"),
        refused("bad-tail-reordered", As::Tail, reordered.clone(), "damaged"),
        refused("bad-piece-reordered", As::Piece, reordered, "damaged"),
        refused("bad-piece-cut-in-frame", As::Piece, cut[..cut.len() - 3].to_vec(), "truncated"),
        refused("bad-piece-with-zeros-behind", As::Piece, [&cut[..], &[0; 80]].concat(), "damaged"),
        refused("bad-piece-without-frames", As::Piece, parts[0].clone(), "truncated"),
    ]
}
