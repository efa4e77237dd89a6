//! Bodies of records: block references, images under every compression flag, and bodies that make no sense.

use walrecv::pg::record::{BlockImage, BlockReference, Record, RelationFile, decode};
use walrecv::pg::xact;
use walrecv::pg::{Lsn, MajorVersion};

use crate::support::seed::Seed;

const RELATION: [u8; 12] = [0x7F, 6, 0, 0, 5, 0, 0, 0, 0x2A, 0x40, 0, 0];
const RELATION_FILE: RelationFile = RelationFile { tablespace: 1663, database: 5, number: 0x402A };

fn blocks(body: &[u8], version: MajorVersion) -> Result<(Vec<BlockReference>, Vec<u8>), String> {
    let mut found = Vec::new();
    let payload = decode(body, version, &mut |block| found.push(*block))?;
    Ok((found, payload.main.to_vec()))
}

/// A body with one image: its length, hole offset, flags, and the hole's length where it is written.
fn with_image(len: u16, hole_offset: u16, info: u8, hole_len: Option<u16>) -> Vec<u8> {
    let mut body = vec![0, 0x10, 0, 0];
    body.extend_from_slice(&len.to_le_bytes());
    body.extend_from_slice(&hole_offset.to_le_bytes());
    body.push(info);
    body.extend(hole_len.into_iter().flat_map(u16::to_le_bytes));
    body.extend_from_slice(&RELATION);
    body.extend_from_slice(&[9, 0, 0, 0, 255, 3]);
    body.extend(std::iter::repeat_n(0xEE, len as usize));
    body.extend_from_slice(&[1, 2, 3]);
    body
}

#[test]
fn images_of_every_version() {
    for version in MajorVersion::ALL {
        let new = version >= MajorVersion::V15;
        let compressed: &[u8] = if new { &[0x04, 0x08, 0x10] } else { &[0x02] };
        let apply = if new { 0x02 } else { 0x04 };
        let expect = |len, hole_offset, hole_len, info, written: bool| {
            let body = with_image(len, hole_offset, info, written.then_some(hole_len));
            let image = Some(BlockImage { len, hole_offset, hole_len, info });
            let (relation, will_init) = (RELATION_FILE, false);
            let block = BlockReference { id: 0, relation, fork: 0, block: 9, image, will_init, data_len: 0 };
            assert_eq!(blocks(&body, version), Ok((vec![block], vec![1, 2, 3])), "{version} {info:02X}");
            assert_eq!(block.is_whole(version), info & apply != 0, "{version} {info:02X}");
        };
        expect(8192, 0, 0, apply, false);
        expect(8000, 100, 192, 0x01 | apply, false);
        expect(8192, 0, 0, 0, false);
        for method in compressed {
            expect(300, 0, 0, method | apply, false);
            expect(300, 100, 192, 0x01 | method | apply, true);
        }
        // No hole and not whole; a hole without a place; compressed to full size.
        for bad in [
            with_image(8000, 0, apply, None),
            with_image(8000, 0, 0x01, None),
            with_image(8192, 100, 0x01, None),
            with_image(8192, 0, compressed[0], None),
            with_image(300, 100, 0x01 | compressed[0], Some(0)),
            with_image(9000, 0, 0, None),
        ] {
            assert!(blocks(&bad, version).is_err(), "{version} {bad:02X?}");
        }
    }
}

#[test]
fn references_and_fragments() {
    let mut body = vec![0, 0x20, 2, 0];
    body.extend_from_slice(&RELATION);
    body.extend_from_slice(&[1, 0, 0, 0]);
    body.extend_from_slice(&[3, 0x80 | 0x40 | 2, 0, 0, 7, 0, 0, 0]); // same relation, visibility map
    body.extend_from_slice(&[253, 8, 0]);
    body.extend_from_slice(&[254, 4, 0, 0, 0]);
    body.extend_from_slice(&[0xD0, 0xD1, 1, 2, 3, 4]);
    let block = |id, fork, block, will_init, data_len| {
        let relation = RELATION_FILE;
        BlockReference { id, relation, fork, block, image: None, will_init, data_len }
    };
    let expected = (vec![block(0, 0, 1, false, 2), block(3, 2, 7, true, 0)], vec![1, 2, 3, 4]);
    assert!(expected.0[1].is_whole(MajorVersion::V13) && !expected.0[0].is_whole(MajorVersion::V13));
    assert_eq!(blocks(&body, MajorVersion::V13), Ok(expected));
    assert_eq!(decode(&body, MajorVersion::V13, &mut |_| ()).map(|p| p.origin), Ok(Some(8)));
    // After a reference or the origin, two more bytes would be the data that the first reference announces: a whole
    // body.
    for cut in (1..body.len()).filter(|cut| ![22, 30, 33].contains(cut)) {
        assert!(blocks(&body[..cut], MajorVersion::V13).is_err(), "cut at {cut}");
    }
    // The top-level transaction came with 14.
    let top = [252, 9, 0, 0, 0, 255, 1, 42];
    assert!(decode(&top, MajorVersion::V13, &mut |_| ()).is_err());
    let payload = decode(&top, MajorVersion::V14, &mut |_| ()).expect("a top-level transaction");
    assert_eq!((payload.top_xid, payload.main), (Some(9), &[42u8][..]));
    // Out of order, a relation that is not there, a fork that is not there, an unknown id.
    for bad in [
        &[1u8, 0x80, 0, 0, 7, 0, 0, 0][..],
        &[33, 0],
        &[0, 0x04, 0, 0],
        &[0, 0x20, 0, 0],
        &[254, 255, 255, 255, 255, 1],
        &[255, 0, 1],
    ] {
        assert!(blocks(bad, MajorVersion::V17).is_err(), "{bad:02X?}");
    }
    assert_eq!(blocks(&[], MajorVersion::V17), Ok((vec![], vec![])));
}

#[test]
fn wild_bodies_never_panic() {
    let mut seed = Seed::of_run();
    let mut refused = 0;
    for _ in 0..100_000 {
        let version = MajorVersion::ALL[seed.below(6) as usize];
        let mut body: Vec<u8> = (0..seed.below(80)).map(|_| seed.next() as u8).collect();
        let (rmid, info) = (seed.below(2) as u8, seed.next() as u8);
        if seed.below(2) == 0 && !body.is_empty() {
            body.insert(0, (body.len()) as u8);
            body.insert(0, 255);
        }
        let record = Record {
            start: Lsn(40),
            end: Lsn(8192),
            written: Lsn(8192),
            prev: Lsn(0),
            xid: 3,
            rmid,
            info,
            total_len: 24 + body.len() as u32,
            crc: 0,
            body: Some(&body),
        };
        refused += u32::from(xact::note(&record, version).is_err());
    }
    assert!(refused > 1000, "only {refused} of 100000 wild bodies were refused");
}
