//! Whatever the bytes, opening a tail does not panic, takes bounded time, and gives an error or a prefix of what was flushed.
#![no_main]

mod common;

use common::*;
use libfuzzer_sys::fuzz_target;
use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::read_header;
use walrecv::seal::sealer::Compression;
use walrecv::seal::tail::{TailSealer, open_piece, open_tail, piece_marks, tail_marks};

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    if mode % 2 == 0 { raw(rest) } else { changed(rest) }
});

fn raw(bytes: &[u8]) {
    let claims = read_header(bytes).map_or(claims(ObjectKind::Tail), |(header, _)| header.claims);
    let _ = (open_tail(bytes, &claims, &reader()), tail_marks(bytes, &claims, &reader()));
    let _ = (open_piece(bytes, &claims, &reader()), piece_marks(bytes, &claims, &reader()));
}

fn changed(recipe: &[u8]) {
    let claims = claims(ObjectKind::Tail);
    let mut sealer = TailSealer::new(&writer(), claims, [9; 32], Compression::Lz4);
    let flushes = [vec![b'a'; 50], (0..=255).collect(), vec![b'c'; 700], vec![b'd'; 9]];
    let mut file = sealer.preamble().to_vec();
    flushes.iter().for_each(|flush| file.extend_from_slice(&sealer.seal(flush)));
    file.extend_from_slice(&[0; 300]);
    change(&mut file, recipe, 64, crc32c::crc32c(&[9; 32]));
    let plain = flushes.concat();
    if let Ok(tail) = open_tail(&file, &claims, &reader()) {
        assert!(plain.starts_with(&tail.plain) && tail.sealed_len <= file.len() as u64);
        let marks = tail_marks(&file, &claims, &reader()).unwrap();
        assert_eq!(marks.last().map_or(0, |mark| mark.0), tail.plain.len() as u64);
    }
    if let Ok(piece) = open_piece(&file, &claims, &reader()) {
        assert!(plain[piece.from as usize..].starts_with(&piece.plain));
    }
}
