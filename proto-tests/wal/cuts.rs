//! Any cut of the input gives the same records, the same positions and the same error.

use walrecv::pg::scan::{ScanConfig, WalScanner};
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion};

use crate::seen::*;
use crate::support::seed::Seed;
use crate::support::wal_maker::Outcome;

/// The bytes in pieces of at most `most` bytes.
fn pieces<'a>(bytes: &'a [u8], most: u64, seed: &mut Seed) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(seed.between(0, most) as usize));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn in_pieces(config: ScanConfig, start: Lsn, pieces: Vec<&[u8]>, may_end: bool) -> Scan {
    scan_parts(WalScanner::new(config, start), config.version, pieces, may_end)
}

/// The first record that differs, or what else does: two whole scans would fill the screen.
fn difference(a: &Scan, b: &Scan) -> String {
    match a.seen.iter().zip(&b.seen).find(|(a, b)| a != b) {
        Some((a, b)) => format!("{a:?} and {b:?}"),
        None => {
            let rest = |s: &Scan| format!("{} records, {}, {:?}, {:?}", s.seen.len(), s.checked, s.pending, s.result);
            format!("{} and {}", rest(a), rest(b))
        }
    }
}

#[test]
fn at_every_byte() {
    let mut seed = Seed::of_run();
    for version in MajorVersion::ALL {
        let (wal, _) = everything(version, &mut seed);
        let whole = scan(wal.config(), wal.start(), wal.bytes());
        assert_eq!(whole.result, Ok(None));
        let parts = in_pieces(wal.config(), wal.start(), wal.bytes().chunks(1).collect(), false);
        assert!(parts == whole, "byte by byte: {}", difference(&parts, &whole));
        // One cut: everywhere around record and page borders, and at random places.
        let mut cuts: Vec<u64> = (0..200).map(|_| seed.below(wal.bytes().len() as u64)).collect();
        let borders = wal.records().iter().flat_map(|r| [r.start, r.end]);
        let pages = (0..wal.bytes().len() as u64).step_by(8192).map(|p| wal.start() + p);
        for border in borders.chain(pages) {
            let at = border.since(wal.start());
            cuts.extend(at.saturating_sub(9)..(at + 41).min(wal.bytes().len() as u64));
        }
        for cut in cuts {
            let (a, b) = wal.bytes().split_at(cut as usize);
            let parts = in_pieces(wal.config(), wal.start(), vec![a, b], false);
            assert!(parts == whole, "cut at {cut}: {}", difference(&parts, &whole));
        }
    }
}

#[test]
fn in_random_pieces() {
    let mut seed = Seed::of_run();
    for round in 0..60 {
        let version = MajorVersion::ALL[round % 6];
        let mut wal = maker(version);
        add_mixed(&mut wal, 150, &mut seed);
        let pages = wal.bytes().len() as u64 / 8192;
        if round % 3 == 0 {
            wal.switch();
            wal.commit_with(1, PgTime(1), Outcome { subtransactions: &[4; 30_000], ..Outcome::default() });
        }
        let mut bytes = wal.bytes().to_vec();
        let damaged = round % 4 == 1;
        if damaged {
            let at = seed.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << seed.below(8);
        }
        let may_end = round % 5 == 2;
        if may_end {
            bytes.resize(bytes.len() + seed.below(20_000) as usize, 0);
        }
        let from = 8192 * seed.below(pages.max(1)) as usize;
        let start = wal.start() + from as u64;
        let whole = in_pieces(wal.config(), start, vec![&bytes[from..]], may_end);
        assert!(whole.result.is_ok() || damaged);
        for most in [1, 7, 30, 200, 9000, 200_000] {
            let cut = in_pieces(wal.config(), start, pieces(&bytes[from..], most, &mut seed), may_end);
            assert!(cut == whole, "round {round}, pieces of at most {most} bytes: {}", difference(&cut, &whole));
        }
    }
}
