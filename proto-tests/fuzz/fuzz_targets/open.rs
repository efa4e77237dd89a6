//! Whatever the bytes, opening an object does not panic, and gives either an error or exactly what was sealed.
#![no_main]

mod common;

use common::*;
use libfuzzer_sys::fuzz_target;
use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::{Opener, open_index, read_header};
use walrecv::seal::sealer::{Compression, Sealer, seal_index};

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    match mode % 3 {
        0 => raw(rest),
        1 => content(rest),
        _ => index(rest),
    }
});

fn raw(bytes: &[u8]) {
    let Ok((header, len)) = read_header(bytes) else { return };
    assert!(header.encode() == bytes[..len], "a header has one form");
    for content in [false, true] {
        let Ok(opener) = Opener::new(bytes, &header.claims, &reader(), content) else { continue };
        let _ = (opener.frame0_end(bytes), opener.frame0(bytes), opener.content(bytes, &mut Vec::new()));
        let _ = opener.frame(&bytes[opener.preamble_len()..], 1, true);
    }
}

fn content(recipe: &[u8]) {
    let claims = claims(ObjectKind::Segment);
    let mut sealer = Sealer::new(&writer(), claims, [7; 32], Compression::Lz4);
    let frames = [vec![b'a'; 100], (0..=255).collect(), vec![b'c'; 1000]];
    for frame in &frames {
        sealer.push(frame);
        sealer.cut();
    }
    let original = sealer.finish(b"frame 0").to_vec();
    let mut object = original.clone();
    change(&mut object, recipe, 16, 0);
    let mut out = Vec::new();
    if let Ok(opener) = Opener::new(&object, &claims, &reader(), true)
        && let Ok(frame0) = opener.whole(&object, &mut out)
    {
        assert!(object == original && frame0 == b"frame 0" && out == frames.concat());
    }
}

fn index(recipe: &[u8]) {
    let claims = claims(ObjectKind::Map);
    let plain = vec![b'm'; (256 << 10) + 99];
    let original = seal_index(&writer(), claims, [8; 32], Compression::Zstd(1), &plain).to_vec();
    let mut object = original.clone();
    change(&mut object, recipe, 16, 0);
    if let Ok(out) = open_index(&object, &claims, &reader()) {
        assert!(object == original && out == plain);
    }
}
