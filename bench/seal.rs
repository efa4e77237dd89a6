//! How fast sealing and opening are on this machine, beside lz4 alone: `cargo bench --bench seal`. `WALRECV_WAL_FILE` names real WAL to seal.

// The tests use the rest of it.
#[allow(dead_code)]
#[path = "../proto-tests/seal/support.rs"]
mod support;

use std::time::Instant;

use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::Opener;
use walrecv::seal::sealer::{Compression, OBJECT_BYTES, Sealer};
use walrecv::seal::tail::{TailSealer, open_tail};

use support::*;

fn rate(name: &str, bytes: usize, mut work: impl FnMut()) {
    let best = (0..5).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed()
    });
    println!("{name:40} {:8.0} MiB/s", bytes as f64 / (1 << 20) as f64 / best.min().unwrap().as_secs_f64());
}

fn main() {
    let content = match std::env::var_os("WALRECV_WAL_FILE") {
        Some(path) => std::fs::read(path).unwrap().into_iter().take(OBJECT_BYTES as usize).collect(),
        None => wal_like(OBJECT_BYTES as usize, 9),
    };
    let len = content.len();
    rate("lz4 alone, 256 KiB", len, || {
        for frame in content.chunks(256 << 10) {
            std::hint::black_box(lz4_flex::block::compress(frame));
        }
    });
    let mut claims = claims(ObjectKind::Segment);
    claims.segment_size = walrecv::pg::SegmentSize::new(OBJECT_BYTES).unwrap();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(3)] {
        let seal = |step: usize| {
            let mut sealer = Sealer::new(&writer(), claims, SALT, compression);
            content.chunks(step).for_each(|chunk| sealer.push(chunk));
            sealer.finish(b"{}")
        };
        let object = seal(len).to_vec();
        println!("{compression:?}: ratio {:.3}", object.len() as f64 / len as f64);
        rate("  seal, pushed at once", len, || drop(seal(len)));
        rate("  seal, pushed in 16 KiB", len, || drop(seal(16 << 10)));
        let mut out = Vec::with_capacity(len);
        rate("  open", len, || {
            out.clear();
            Opener::new(&object, &claims, &reader(), true).unwrap().content(&object, &mut out).unwrap();
        });
        let tail_claims =
            walrecv::seal::header::Claims { kind: ObjectKind::Tail, start: walrecv::pg::Lsn(1 << 30), ..claims };
        let tail = |step: usize| {
            let mut sealer = TailSealer::new(&writer(), tail_claims, SALT, compression);
            let mut file = sealer.preamble().to_vec();
            content.chunks(step).for_each(|chunk| file.extend_from_slice(&sealer.seal(chunk)));
            file
        };
        for step in [4 << 10, 64 << 10, 1 << 20] {
            rate(&format!("  tail, flushes of {} KiB", step >> 10), len, || drop(tail(step)));
        }
        let file = tail(64 << 10);
        rate("  open tail of 64 KiB frames", len, || drop(open_tail(&file, &tail_claims, &reader()).unwrap()));
    }
}
