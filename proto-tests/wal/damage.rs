//! Damaged WAL: never a panic, and no changed byte of a page header or record is ever passed as checked.

use walrecv::pg::scan::{ScanConfig, WalScanner};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};

use crate::seen::*;
use crate::support::seed::Seed;
use crate::support::wal_maker::WalMaker;

const PAGE: u64 = 8192;

/// Feeds changed WAL: nothing that holds the change at `at` may count as checked, and it must be refused at the next
/// page header at the latest (a changed length can only be seen there); where the WAL ends before, the record may still
/// be waiting for bytes.
fn assert_refused(wal: &WalMaker, bytes: &[u8], at: Lsn, what: &str) {
    let mut scanner = WalScanner::new(wal.config(), wal.start());
    let mut last = None;
    let fed = scanner.feed(bytes, &mut |record| last = Some(record.start));
    assert!(scanner.checked() <= at && last < Some(at), "{what} at {at}: checked up to {}", scanner.checked());
    let border = Lsn(at.0 + 1).align_up(PAGE);
    match fed {
        Err(invalid) => assert!(invalid.at <= border, "{what} at {at} was found only at {}", invalid.at),
        Ok(()) => assert!(scanner.received() < border + 24, "{what} at {at} was not found"),
    }
}

/// Whether no check can see this bit: `XLP_BKP_REMOVABLE`, or one of a record that a crash cut off.
fn unseen(at: Lsn, bit: u32, voided: Voided) -> bool {
    let in_page = at.0 % PAGE;
    (in_page == 2 && bit == 2) || (at >= voided.start && at < voided.end && in_page >= 24)
}

#[test]
fn every_bit_of_every_header() {
    let mut seed = Seed::of_run();
    let (wal, voided) = everything(MajorVersion::V16, &mut seed);
    let pages = (0..wal.bytes().len() as u64).step_by(PAGE as usize).map(|p| wal.start() + p);
    let headers = pages.map(|page| (page, if page == wal.start() { 40 } else { 24 }));
    let records = wal.records().iter().map(|r| (r.start, 26));
    let mut bytes = wal.bytes().to_vec();
    for (start, len) in headers.chain(records) {
        for at in (0..len).map(|i| start + i).filter(|at| *at < wal.end()) {
            for bit in (0..8).filter(|bit| !unseen(at, *bit, voided)) {
                let index = at.since(wal.start()) as usize;
                bytes[index] ^= 1 << bit;
                assert_refused(&wal, &bytes, at, &format!("a flip of bit {bit}"));
                bytes[index] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn random_bits_anywhere() {
    let mut seed = Seed::of_run();
    for round in 0..6 {
        let (mut wal, voided) = everything(MajorVersion::ALL[round], &mut seed);
        wal.fill_to(wal.end().align_up(PAGE) + 3 * PAGE + 512);
        let mut behind = Lsn(u64::MAX);
        if round % 2 == 0 {
            behind = wal.end() + 24;
            wal.switch();
        }
        let mut bytes = wal.bytes().to_vec();
        for _ in 0..3000 {
            let index = seed.below(bytes.len() as u64) as usize;
            let (at, bit) = (wal.start() + index as u64, seed.below(8) as u32);
            if unseen(at, bit, voided) {
                continue;
            }
            bytes[index] ^= 1 << bit;
            match at < behind {
                true => assert_refused(&wal, &bytes, at, &format!("a flip of bit {bit}")),
                false => assert_passed_over(&wal, &bytes),
            }
            bytes[index] ^= 1 << bit;
        }
    }
}

/// Behind a WAL switch nothing is read, by PostgreSQL neither.
fn assert_passed_over(wal: &WalMaker, bytes: &[u8]) {
    let (mut scanner, mut records) = (WalScanner::new(wal.config(), wal.start()), Vec::new());
    scanner.feed(bytes, &mut |record| records.push(record.start)).expect("no damage");
    assert_eq!((scanner.checked(), scanner.received()), (wal.end(), wal.end()));
    assert_eq!(records, wal.records().iter().map(|record| record.start).collect::<Vec<_>>());
}

#[test]
fn missing_repeated_and_exchanged_pages() {
    let mut seed = Seed::of_run();
    let mut wal = maker(MajorVersion::V18);
    add_mixed(&mut wal, 400, &mut seed);
    let pages = wal.bytes().len() as u64 / PAGE;
    let page = |n: u64| wal.slice(wal.start() + n * PAGE, wal.start() + (n + 1) * PAGE);
    for n in 1..pages {
        let before = wal.slice(wal.start(), wal.start() + n * PAGE);
        let at = wal.start() + n * PAGE;
        for other in [n - 1, (n + 1) % pages, seed.below(n)] {
            let bytes = [before, page(other)].concat();
            assert_refused(&wal, &bytes, at, &format!("page {other} in the place of page {n}"));
        }
        // An older page of a recycled segment: right in everything but its position.
        assert_refused(&wal, &[before, &[0; PAGE as usize]].concat(), at, "a page of zeros");
    }
}

/// A server that lies, a disk that rots: whatever is fed, nothing panics and `checked` stays within what was fed.
#[test]
fn garbage_never_panics() {
    let mut seed = Seed::of_run();
    for round in 0..4000u64 {
        let version = MajorVersion::ALL[(round % 6) as usize];
        let start = Lsn(match seed.below(4) {
            0 => seed.next(),
            1 => seed.next() & !8191,
            2 => u64::MAX - seed.below(100_000),
            _ => (seed.below(1000) << 20) + 8192 * seed.below(128),
        });
        let timeline = TimelineId(seed.below(3) as u32 + 1);
        let config = ScanConfig {
            version,
            system: crate::support::wal_maker::SYSTEM,
            timeline,
            segment_size: megabytes(1 << seed.below(11)),
        };
        let mut bytes: Vec<u8> = (0..seed.below(300)).map(|_| seed.next() as u8).collect();
        if round % 2 == 0 {
            let mut wal = WalMaker::new(version, config.segment_size, timeline, start.align_down(1 << 13));
            let sensible = wal.start() < Lsn(1 << 60);
            if sensible {
                add_mixed(&mut wal, 5, &mut seed);
                bytes = wal.bytes().to_vec();
                for _ in 0..seed.below(20) {
                    let at = seed.below(bytes.len() as u64) as usize;
                    bytes[at] = seed.next() as u8;
                }
            }
        }
        let start = if round % 2 == 0 { start.align_down(8192) } else { start };
        let mut scanner = WalScanner::new(config, start);
        for part in bytes.chunks(1 + seed.below(400) as usize) {
            let mut sink = |record: &walrecv::pg::record::Record<'_>| drop(seen(record, version));
            let fed = match round % 3 {
                0 => scanner.feed_until_end(part, &mut sink).map(|_| ()),
                _ => scanner.feed(part, &mut sink),
            };
            assert!(scanner.checked() >= start && scanner.checked() <= scanner.received());
            if fed.is_err() {
                break;
            }
        }
    }
}
