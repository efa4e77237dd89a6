//! Made WAL: every record is found as it was made, in every version and segment size, and impossible WAL is refused.

use walrecv::pg::scan::{Mark, ScanConfig, WalScanner};
use walrecv::pg::xact::{Note, PgTime};
use walrecv::pg::{Lsn, MajorVersion, SystemIdentifier, TimelineId};

use crate::seen::*;
use crate::support::seed::Seed;
use crate::support::wal_maker::{Made, Outcome, WalMaker};

const V17: MajorVersion = MajorVersion::V17;
const PAGE: u64 = 8192;

/// The WAL is read back as it was made.
fn assert_found(wal: &WalMaker) -> Scan {
    let found = scan(wal.config(), wal.start(), wal.bytes());
    assert_eq!(found.result, Ok(None));
    assert_eq!(found.records(), wal.records());
    assert_eq!((found.checked, found.pending), (wal.end(), None));
    found
}

#[test]
fn every_version_and_segment_size() {
    let mut seed = Seed::of_run();
    for version in MajorVersion::ALL {
        for size in [1, 16, 1024] {
            for start in [0, 3 * PAGE, (size << 20) - PAGE] {
                let start = Lsn(((5 * size) << 20) + start);
                let mut wal = WalMaker::new(version, megabytes(size), TimelineId(3), start);
                add_mixed(&mut wal, 200, &mut seed);
                assert_found(&wal);
            }
        }
        assert_found(&everything(version, &mut seed).0);
    }
}

#[test]
fn notes_say_what_was_made() {
    for version in MajorVersion::ALL {
        let mut wal = maker(version);
        let outcome = Outcome {
            database: true,
            subtransactions: &[5, 6, 7],
            dropped_relations: 2,
            dropped_stats: 3,
            invalidations: 4,
            prepared: None,
            origin: Some((1, Lsn(2), PgTime(3))),
        };
        let prepared = Outcome { prepared: Some((77, "gid")), ..outcome };
        let redo = wal.checkpoint(false).start;
        wal.commit(10, PgTime(1));
        wal.commit_with(11, PgTime(2), outcome);
        wal.commit_with(0, PgTime(3), prepared);
        wal.abort(12, PgTime(4));
        wal.abort_with(13, PgTime(-5), outcome);
        wal.abort_with(0, PgTime(6), prepared);
        wal.restore_point("vor dem Löschen", PgTime(7));
        wal.backup_end(Lsn(0x28));
        wal.parameter_change(PARAMETERS);
        let shutdown = wal.checkpoint(true).start;
        wal.filler(14, 100);
        wal.switch();
        let mut wal = wal.fork(TimelineId(2));
        wal.end_of_recovery(PgTime(8));
        let (one, two) = (TimelineId(1), TimelineId(2));
        let checkpoint = |redo, shutdown| Note::Checkpoint { redo, timeline: one, previous_timeline: one, shutdown };
        let expected = vec![
            checkpoint(redo, false),
            Note::Commit { xid: 10, time: PgTime(1), dropped_relations: 0 },
            Note::Commit { xid: 11, time: PgTime(2), dropped_relations: 2 },
            Note::Commit { xid: 77, time: PgTime(3), dropped_relations: 2 },
            Note::Abort { xid: 12, time: PgTime(4) },
            Note::Abort { xid: 13, time: PgTime(-5) },
            Note::Abort { xid: 77, time: PgTime(6) },
            Note::RestorePoint { name: "vor dem Löschen".into(), time: PgTime(7) },
            Note::BackupEnd { start: Lsn(0x28) },
            Note::ParameterChange(PARAMETERS),
            checkpoint(shutdown, true),
            Note::Other,
            Note::Switch,
            Note::EndOfRecovery { timeline: two, previous_timeline: one },
        ];
        assert_eq!(assert_found(&wal).notes(), expected, "{version}");
    }
}

#[test]
fn a_record_over_four_segments() {
    let mut wal = maker(V17);
    wal.filler(1, 900_000);
    let long = wal.filler(2, 3_500_000);
    wal.commit_with(3, PgTime(1), Outcome { subtransactions: &[9; 400_000], ..Outcome::default() });
    let found = assert_found(&wal);
    assert_eq!(found.seen[2].body.as_ref().map(Vec::len), Some(wal.records()[2].total_len as usize - 24));

    // From a segment that begins inside it, its continuation is skipped.
    for segment in 1..=4u64 {
        let start = wal.start() + (segment << 20);
        let late = scan(wal.config(), start, wal.slice(start, wal.end()));
        let expected: Vec<_> = wal.records().iter().copied().filter(|r| r.start >= start).collect();
        assert_eq!((late.result.clone(), late.records()), (Ok(None), expected));
    }
    // Before the skipped record ends, nothing is checked.
    let start = wal.start() + (1 << 20);
    let early = scan(wal.config(), start, wal.slice(start, long.end));
    assert_eq!((early.checked, early.pending), (start, None));
}

#[test]
fn starts_at_a_record_and_resumes_after_one() {
    let mut wal = maker(V17);
    add_mixed(&mut wal, 100, &mut Seed::of_run());
    for (i, record) in wal.records().iter().enumerate() {
        let rest = wal.slice(record.start, wal.end());
        assert_eq!(scan(wal.config(), record.start, rest).records(), wal.records()[i..]);
        // The end of a record that fills its page is a page border: before the header of the next page.
        let mark = Mark { start: record.start, end: record.end, crc: 0 };
        let rest = wal.slice(record.end, wal.end());
        let resumed = scan_parts(WalScanner::resume(wal.config(), mark), V17, [rest], false);
        assert_eq!((resumed.result.clone(), resumed.records()), (Ok(None), wal.records()[i + 1..].to_vec()));
        if i + 1 < wal.records().len() {
            let other = Mark { start: Lsn(record.start.0 - 8), ..mark };
            let refused = scan_parts(WalScanner::resume(wal.config(), other), V17, [rest], false);
            assert_eq!(refused.invalid().at, wal.records()[i + 1].start);
        }
    }
    for bad in [1, 23, 25, 36, PAGE + 8, PAGE + 16, PAGE + 28] {
        let start = wal.start() + bad;
        assert_eq!(scan(wal.config(), start, &[0]).invalid().at, start);
    }
}

#[test]
fn a_switch_ends_its_segment() {
    // The switch stands: early; in the last bytes of a page; so that it ends the segment exactly; with its header over
    // two segments.
    for place in [40u64, 5000, 2 * PAGE - 24, 2 * PAGE - 16, (1 << 20) - 24, (1 << 20) - 8] {
        let mut wal = maker(V17);
        if place > 40 {
            wal.fill_to(wal.start() + place);
        }
        let switch = wal.switch();
        wal.commit(4, PgTime(4));
        let found = assert_found(&wal);
        assert_eq!(switch.end.0 % (1 << 20), 0);
        assert!(found.seen.iter().any(|s| s.note == Ok(Note::Switch)));
        // Until its zeros are complete, only the record itself counts.
        let cut = Lsn(switch.end.0 - 1);
        let partly = scan(wal.config(), wal.start(), wal.slice(wal.start(), cut));
        let expected = if place == (1 << 20) - 24 { switch.prev } else { switch.start };
        assert!(partly.result.is_ok() && partly.checked >= expected && partly.checked < switch.end);
    }
}

#[test]
fn a_voided_record() {
    for (total_len, pages) in [(9000, 1), (30_000, 1), (30_000, 2), (30_000, 3), (3_000_000, 150)] {
        let mut wal = maker(V17);
        wal.filler(1, 500);
        let broken = wal.break_off(2, total_len, pages);
        let border = wal.end();
        wal.overwrite_contrecord(PgTime(1));
        wal.filler(3, 100);
        assert_found(&wal);
        // Scanning may begin at any page: then the voided record is not known, or it is a void continuation.
        for page in (wal.start().0..=border.0).step_by(PAGE as usize).map(Lsn) {
            let late = scan(wal.config(), page, wal.slice(page, wal.end()));
            assert_eq!(late.result, Ok(None), "from {page}");
            assert_eq!(late.records().last(), wal.records().last());
        }
        let from_broken = scan(wal.config(), broken, wal.slice(broken, wal.end()));
        assert_eq!(from_broken.records(), wal.records()[1..]);
    }
}

#[test]
fn a_voided_record_must_be_named() {
    let mut wal = maker(V17);
    wal.filler(1, 500);
    wal.break_off(2, 9000, 1);
    let border = wal.end();
    let mut other = wal.clone();
    wal.overwrite_contrecord(PgTime(1));
    // The first record on the page names another position: exchanged main data under a right CRC.
    let mut misled = maker(V17);
    misled.filler(1, 508);
    misled.break_off(2, 9000, 1);
    misled.overwrite_contrecord(PgTime(1));
    let named = misled.records()[1];
    assert_eq!(wal.records()[1].total_len, named.total_len);
    let mut bytes = wal.bytes().to_vec();
    let at = named.start.since(wal.start()) as usize;
    bytes[at..].copy_from_slice(misled.slice(named.start, misled.end()));
    let found = scan(wal.config(), wal.start(), &bytes);
    assert!(found.invalid().problem.contains("voids 0/3000"), "{}", found.invalid());
    // The page says that a record is void, and another kind of record follows.
    other.overwrite_contrecord(PgTime(1));
    let mut bytes = other.bytes().to_vec();
    let mut plain = maker(V17);
    plain.filler(1, 500);
    plain.fill_to(border);
    plain.raw(0, 0, 0x80, &[1]);
    bytes.truncate(at);
    let mark = wal.records()[0].start;
    let mut single = WalMaker::new(V17, megabytes(1), TimelineId(1), border).after(mark);
    single.restore_point("no", PgTime(1));
    bytes.extend_from_slice(&single.bytes()[24..]);
    let found = scan(wal.config(), wal.start(), &bytes);
    assert!(found.invalid().problem.contains("does not say which"), "{}", found.invalid());
    // A record that voids without its page's flag.
    let mut lone = maker(V17);
    lone.filler(1, 100);
    lone.record(0, 0, 0xD0, &[0; 16]);
    let found = scan(lone.config(), lone.start(), lone.bytes());
    assert!(found.invalid().problem.contains("its page does not"), "{}", found.invalid());
}

#[test]
fn another_cluster_is_refused() {
    let mut wal = WalMaker::new(V17, megabytes(1), TimelineId(2), Lsn(5 << 20));
    wal.filler(1, 100);
    let right = wal.config();
    let wrong = [
        (ScanConfig { system: SystemIdentifier(1), ..right }, "system"),
        (ScanConfig { segment_size: megabytes(16), ..right }, "page header"),
        (ScanConfig { segment_size: megabytes(2), ..right }, "page header"),
        (ScanConfig { timeline: TimelineId(1), ..right }, "timeline 2"),
        (ScanConfig { version: MajorVersion::V16, ..right }, "of PostgreSQL 17"),
    ];
    for (config, text) in wrong {
        let found = scan(config, wal.start(), wal.bytes());
        assert_eq!((found.checked, found.records().len()), (wal.start(), 0));
        assert!(found.invalid().problem.contains(text), "{}", found.invalid());
    }
    let found = scan(right, wal.start() + (1 << 20), wal.bytes());
    assert!(found.invalid().problem.contains("belongs at 0/500000"), "{}", found.invalid());
}

#[test]
fn timelines_never_go_back() {
    let mut wal = maker(V17);
    wal.filler(1, 500);
    let mut branch = wal.fork(TimelineId(4));
    branch.filler(1, 20_000);
    assert_found(&branch);
    wal.filler(1, 20_000);
    let mut bytes = branch.bytes().to_vec();
    let last = wal.end().align_down(PAGE).since(wal.start()) as usize;
    bytes[last + 4] = 3;
    let found = scan(branch.config(), branch.start(), &bytes);
    assert!(found.invalid().problem.contains("timeline 3, expected one from 4 to 4"), "{}", found.invalid());
}

#[test]
fn the_end_of_wal_is_an_error_only_where_it_must_not_be() {
    let mut seed = Seed::of_run();
    for fill in [0u64, 8, PAGE - 8, PAGE, 3 * PAGE + 16] {
        let mut wal = maker(V17);
        add_mixed(&mut wal, 30, &mut seed);
        let mut bytes = wal.bytes().to_vec();
        bytes.resize(bytes.len() + fill as usize, 0);
        let ended = scan_until_end(wal.config(), wal.start(), &bytes);
        let page_left = PAGE - wal.end().0 % PAGE;
        let found = fill >= page_left.min(4) && (page_left < PAGE || fill >= 24);
        assert_eq!(ended.result, Ok(found.then_some(wal.end())), "{fill} bytes of zeros after {}", wal.end());
        assert_eq!((ended.checked, ended.records()), (wal.end(), wal.records().to_vec()));
        if found {
            let strict = scan(wal.config(), wal.start(), &bytes);
            assert!(strict.invalid().at >= wal.end());
            *bytes.last_mut().expect("bytes") = 1;
            let after = scan_until_end(wal.config(), wal.start(), &bytes);
            assert_eq!(after.invalid().at, Lsn(wal.end().0 + fill - 1));
        }
    }
    // A record that zeros interrupt at a page border is no part of the WAL.
    let mut wal = maker(V17);
    let whole = wal.filler(1, 500);
    wal.break_off(2, 30_000, 2);
    let segment = wal.segment(wal.start());
    let ended = scan_until_end(wal.config(), wal.start(), &segment);
    assert_eq!(ended.result, Ok(Some(whole.end)));
    assert_eq!(scan(wal.config(), wal.start(), &segment).invalid().at, wal.end());
    // Nothing at all.
    let nothing = scan_until_end(wal.config(), wal.start(), &[0; 9000]);
    assert_eq!(nothing.result, Ok(Some(wal.start())));
}

#[test]
fn impossible_records_are_refused() {
    let refused = |version, edit: &dyn Fn(&mut WalMaker) -> Made, text: &str| {
        let mut wal = maker(version);
        wal.filler(1, 100);
        edit(&mut wal);
        let bad = wal.records()[1].start;
        let found = scan(wal.config(), wal.start(), wal.bytes());
        assert_eq!((found.invalid().at, found.checked), (bad, wal.records()[0].end));
        assert!(found.invalid().problem.contains(text), "{}", found.invalid());
    };
    for version in MajorVersion::ALL {
        refused(version, &|w| w.raw(1, 22, 0, &[]), "no resource manager 22");
        refused(version, &|w| w.raw(1, 127, 0, &[]), "no resource manager 127");
        if version < MajorVersion::V15 {
            refused(version, &|w| w.raw(1, 128, 0, &[]), "no resource manager 128");
        } else {
            let mut wal = maker(version);
            wal.raw(1, 128, 0, &[]);
            wal.raw(1, 255, 0, &[]);
            assert_found(&wal);
        }
    }
    // After an error, nothing more is taken.
    let mut wal = maker(V17);
    wal.filler(1, 100);
    let mut scanner = WalScanner::new(wal.config(), wal.start());
    assert!(scanner.feed(&[1; 50], &mut |_| ()).is_err());
    assert!(scanner.feed(wal.bytes(), &mut |_| panic!("a record after an error")).is_err());
}
