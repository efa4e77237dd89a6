//! Table tests of the stopping rules: a little WAL, a target, and where the server ends.

use super::*;
use crate::pg::xact::Parameters;

/// Records of 16 bytes from LSN 0x100 on; the backup is consistent at the end of the third.
const REDO: Lsn = Lsn(0x100);
const CONSISTENT: Lsn = Lsn(0x130);

fn commit(xid: u32, time: i64) -> Note {
    Note::Commit { xid, time: PgTime(time), dropped_relations: 0 }
}

fn abort(xid: u32, time: i64) -> Note {
    Note::Abort { xid, time: PgTime(time) }
}

fn point(name: &str, time: i64) -> Note {
    Note::RestorePoint { name: name.to_owned(), time: PgTime(time) }
}

fn run(notes: &[Note], target: Target) -> Result<Landing, Refusal> {
    run_from(notes, target, -10_000_000)
}

/// The backup's checkpoint began at `began` (microseconds); it was complete 300 microseconds later.
fn run_from(notes: &[Note], target: Target, began: i64) -> Result<Landing, Refusal> {
    run_knowing(notes, target, began, &[])
}

/// With heartbeats: positions and times.
fn run_knowing(notes: &[Note], target: Target, began: i64, known: &[(Lsn, i64)]) -> Result<Landing, Refusal> {
    let stopped_at = PgTime(began + 300);
    let known = known.iter().map(|(lsn, time)| Heartbeat { lsn: *lsn, time: PgTime(*time) }).collect();
    let origin = Origin { redo: REDO, checkpoint: REDO, consistent_at: CONSISTENT, stored_to: CONSISTENT, stopped_at };
    run_after(notes, Walk::new(target, origin).knowing(known), began)
}

fn run_after(notes: &[Note], mut walk: Walk, began: i64) -> Result<Landing, Refusal> {
    for (index, note) in notes.iter().enumerate() {
        let start = Lsn(REDO.0 + 0x10 * index as u64);
        let transaction = matches!(note, Note::Commit { .. } | Note::Abort { .. });
        walk.see(&Seen {
            start,
            end: Lsn(start.0 + 0x10),
            written: Lsn(start.0 + 0x10),
            transaction,
            checkpoint: (index == 0).then_some(PgTime(began)),
            note: note.clone(),
        });
    }
    walk.finish(TimelineId(1))
}

/// Last replayed transaction and the kind of stop.
fn lands(notes: &[Note], target: Target) -> (Option<u32>, Stop) {
    let landing = run(notes, target).unwrap();
    (landing.last_commit.map(|c| c.xid), landing.stop)
}

fn record(index: u64) -> (Lsn, Lsn) {
    let start = REDO.0 + 0x10 * index;
    (Lsn(start), Lsn(start + 0x10))
}

fn before(index: u64) -> Stop {
    let (start, end) = record(index);
    Stop::Before { start, end }
}

fn after(index: u64) -> Stop {
    let (start, end) = record(index);
    Stop::After { start, end }
}

fn time(time: i64, inclusive: bool) -> Target {
    Target::Time { time: PgTime(time), inclusive }
}

/// Three records up to the end of the backup, then transactions 10 to 13 at times 100, 200, 200, 300.
fn history() -> Vec<Note> {
    let backup_end = Note::BackupEnd { start: REDO };
    vec![Note::Other, Note::Other, backup_end, commit(10, 100), commit(11, 200), commit(12, 200), commit(13, 300)]
}

#[test]
fn a_time_target_keeps_equal_times_only_when_inclusive() {
    let wal = history();
    assert_eq!(lands(&wal, time(200, true)), (Some(12), before(6)));
    assert_eq!(lands(&wal, time(200, false)), (Some(10), before(4)));
    assert_eq!(lands(&wal, time(250, true)), (Some(12), before(6)));
    assert_eq!(lands(&wal, time(99, true)), (None, before(3)));
    assert_eq!(lands(&wal, time(100, false)), (None, before(3)));
}

#[test]
fn an_abort_stops_a_time_target_too() {
    let mut wal = history();
    wal[5] = abort(12, 201);
    assert_eq!(lands(&wal, time(200, true)), (Some(11), before(5)));
}

#[test]
fn a_time_after_the_last_commit_is_not_reached() {
    let last = Commit { xid: 13, time: PgTime(300), start: record(6).0, end: record(6).1 };
    for target in [time(300, true), time(301, false), time(1000, true)] {
        let refusal = run(&history(), target).unwrap_err();
        let (last_record, end) = record(6);
        let last_commit = Some(last);
        assert_eq!(refusal, Refusal::NotReached { last_commit, last_record, end, complete_through: None });
    }
    assert_eq!(lands(&history(), time(300, false)), (Some(12), before(6)));
}

#[test]
fn a_later_restore_point_proves_that_no_commit_is_missing() {
    let mut wal = history();
    wal.push(point("nightly", 500));
    assert_eq!(lands(&wal, time(400, true)), (Some(13), Stop::Cut));
    assert!(matches!(run(&wal, time(500, true)), Err(Refusal::NotReached { .. })), "not later than the target");
}

#[test]
fn a_restore_point_that_a_later_commit_refutes_proves_nothing() {
    let mut wal = history();
    wal.insert(3, point("by a clock that was set back since", 500));
    assert!(matches!(run(&wal, time(400, true)), Err(Refusal::NotReached { complete_through: None, .. })));
    wal[3] = point("as it should be", 99);
    assert!(matches!(run(&wal, time(400, true)), Err(Refusal::NotReached { complete_through: Some(PgTime(99)), .. })));
}

#[test]
fn a_heartbeat_proves_that_no_commit_is_missing_once_everything_up_to_it_was_read() {
    let (wal, end) = (history(), record(6).1);
    let lands = |target, known: &[(Lsn, i64)]| {
        run_knowing(&wal, target, -10_000_000, known).map(|landing| (landing.last_commit.map(|c| c.xid), landing.stop))
    };
    assert_eq!(lands(time(400, true), &[(end, 500)]), Ok((Some(13), Stop::Cut)));
    assert_eq!(lands(time(400, true), &[(end, 350), (end, 401)]), Ok((Some(13), Stop::Cut)));
    let refused = |through| match lands(time(400, true), &[(end, through)]) {
        Err(Refusal::NotReached { complete_through, .. }) => complete_through,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(400), Some(PgTime(400)), "not later than the target");
    let beyond = lands(time(400, true), &[(Lsn(end.0 + 8), 500)]);
    assert!(matches!(beyond, Err(Refusal::NotReached { complete_through: None, .. })), "{beyond:?}");
    assert_eq!(lands(time(250, true), &[(end, 500)]), Ok((Some(12), before(6))), "a later commit stops the server");
    assert!(lands(Target::Xid { xid: 99, inclusive: true }, &[(end, 500)]).is_err(), "only times are met by it");
}

#[test]
fn a_heartbeat_that_a_later_commit_refutes_proves_nothing() {
    let (wal, end) = (history(), record(6).1);
    let through = |known: &[(Lsn, i64)]| match run_knowing(&wal, time(400, true), -10_000_000, known) {
        Err(Refusal::NotReached { complete_through, .. }) => complete_through,
        other => panic!("{other:?}"),
    };
    // The commit at 300 begins there.
    assert_eq!(through(&[(record(6).0, 500)]), None);
    assert_eq!(through(&[(record(6).0, 300)]), None);
    assert_eq!(through(&[(record(6).0, 299)]), Some(PgTime(299)));
    assert_eq!(through(&[(record(3).0, 500), (end, 350)]), Some(PgTime(350)));
    assert_eq!(through(&[(Lsn(record(6).0.0 + 1), 350)]), Some(PgTime(350)), "it knew of that commit");
}

/// The commits that an idle archive's newest backup holds may all be later than the target.
#[test]
fn a_time_that_is_met_by_the_end_needs_an_older_backup_all_the_same() {
    let idle = [Note::Other, Note::Other, Note::BackupEnd { start: REDO }];
    let refused = |began| run_knowing(&idle, time(100, true), began, &[(CONSISTENT, 500)]);
    assert_eq!(refused(200), Err(Refusal::NotBefore { began: Some(PgTime(200)) }));
    assert_eq!(refused(-1_000_000).unwrap().stop, Stop::Cut);
    let marked = [&idle[..], &[point("later", 500)]].concat();
    assert!(matches!(run_from(&marked, time(100, true), 200), Err(Refusal::NotBefore { .. })));
}

#[test]
fn commits_that_the_stop_leaves_out_are_named() {
    let mut wal = history();
    wal.extend([commit(14, 150), commit(15, 400), commit(16, 200)]);
    let landing = run(&wal, time(200, true)).unwrap();
    assert_eq!(landing.missed.iter().map(|c| c.xid).collect::<Vec<_>>(), [14, 16]);
    assert_eq!(landing.looked, record(9).1);
    let landing = run(&wal, time(200, false)).unwrap();
    assert_eq!(landing.missed.iter().map(|c| c.xid).collect::<Vec<_>>(), [14], "200 is not wanted");
}

#[test]
fn an_lsn_target_takes_the_first_record_that_starts_at_or_after_it() {
    let wal = history();
    let target = |lsn: u64, inclusive| Target::Lsn { lsn: Lsn(lsn), inclusive };
    assert_eq!(lands(&wal, target(record(4).0.0, true)), (Some(11), after(4)));
    assert_eq!(lands(&wal, target(record(4).0.0, false)), (Some(10), before(4)));
    assert_eq!(lands(&wal, target(record(4).0.0 + 1, true)), (Some(12), after(5)), "in the middle of a record");
    assert_eq!(lands(&wal, target(record(4).0.0 + 1, false)), (Some(11), before(5)));
    assert!(matches!(run(&wal, target(record(6).1.0, true)), Err(Refusal::NotReached { .. })));
    // All that starts before the end of what is stored is there.
    assert_eq!(lands(&wal, target(record(6).1.0, false)), (Some(13), Stop::Cut));
    assert_eq!(lands(&wal, target(record(6).1.0 - 1, false)), (Some(13), Stop::Cut));
    assert!(matches!(run(&wal, target(record(6).1.0 + 1, false)), Err(Refusal::NotReached { .. })));
    assert!(matches!(run(&wal[..2], target(record(1).1.0, false)), Err(Refusal::WalEndsEarly { .. })));
}

#[test]
fn a_transaction_is_met_at_its_commit_or_its_abort() {
    let mut wal = history();
    let target = |xid, inclusive| Target::Xid { xid, inclusive };
    assert_eq!(lands(&wal, target(11, true)), (Some(11), after(4)));
    assert_eq!(lands(&wal, target(11, false)), (Some(10), before(4)));
    wal[4] = abort(11, 200);
    assert_eq!(lands(&wal, target(11, true)), (Some(10), after(4)));
    assert!(matches!(run(&wal, target(99, true)), Err(Refusal::NotReached { .. })));
}

#[test]
fn the_first_restore_point_of_a_name_counts() {
    let mut wal = history();
    wal.insert(4, point("a", 150));
    wal.push(point("a", 500));
    assert_eq!(lands(&wal, Target::Name("a".to_owned())), (Some(10), after(4)));
    assert!(matches!(run(&wal, Target::Name("A".to_owned())), Err(Refusal::NotReached { .. })));
}

#[test]
fn immediate_stops_before_the_record_after_the_backup() {
    let mut wal = history();
    let landing = run(&wal, Target::Immediate).unwrap();
    assert_eq!((landing.stop, landing.replayed), (before(3), CONSISTENT));
    // A backup of a standby can be consistent at any record; behind one of a transaction the server looks at once.
    wal[2] = commit(9, 50);
    assert_eq!(lands(&wal, Target::Immediate), (Some(9), after(2)));
    let landing = run(&history()[..3], Target::Immediate).unwrap();
    assert_eq!((landing.stop, landing.replayed), (Stop::Cut, CONSISTENT));
}

#[test]
fn a_backup_of_a_standby_is_consistent_before_its_end_and_its_wal_must_be_there_all_the_same() {
    let origin = Origin {
        redo: REDO,
        checkpoint: REDO,
        consistent_at: record(0).1,
        stored_to: CONSISTENT,
        stopped_at: PgTime(-10_000_000),
    };
    let run = |records: usize, target| run_after(&history()[..records], Walk::new(target, origin), -20_000_000);
    let landing = run(7, Target::Immediate).unwrap();
    assert_eq!((landing.stop, landing.replayed), (before(1), record(0).1));
    assert_eq!(run(7, Target::Lsn { lsn: record(1).0, inclusive: true }).unwrap().stop, after(1));
    let refusal = run(2, Target::Latest).unwrap_err();
    assert_eq!(refusal, Refusal::WalEndsEarly { end: record(1).1, stored_to: CONSISTENT });
}

#[test]
fn no_recovery_goes_past_the_record_that_says_minimal() {
    let level = |wal_level| {
        Note::ParameterChange(Parameters {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level,
        })
    };
    let mut wal = history();
    wal.insert(5, level(1));
    wal.insert(5, level(0));
    let refused = Err(Refusal::Minimal { at: record(5).0 });
    for target in [Target::Latest, time(250, true), Target::Lsn { lsn: record(5).0, inclusive: true }] {
        assert_eq!(run(&wal, target.clone()), refused, "{target:?}");
    }
    assert_eq!(lands(&wal, Target::Lsn { lsn: record(5).0, inclusive: false }).1, before(5));
    wal.remove(5);
    assert!(run(&wal, Target::Latest).is_ok());
}

#[test]
fn latest_takes_everything_and_says_what_is_needed() {
    let landing = run(&history(), Target::Latest).unwrap();
    assert_eq!((landing.last_commit.map(|c| c.xid), landing.commits, landing.stop), (Some(13), 4, Stop::EndOfWal));
    assert_eq!((landing.replayed, landing.needed, landing.last_record), (record(6).1, record(6).1, record(6).0));
}

#[test]
fn the_record_that_stops_must_be_served_whole() {
    let landing = run(&history(), time(200, true)).unwrap();
    assert_eq!((landing.replayed, landing.needed), (record(5).1, record(6).1));
}

/// Behind a WAL switch the server reads nothing more of the segment.
#[test]
fn zeros_behind_a_switch_are_not_needed() {
    let origin = Origin { redo: REDO, checkpoint: REDO, consistent_at: REDO, stored_to: REDO, stopped_at: PgTime(0) };
    for target in [Target::Latest, Target::Lsn { lsn: REDO, inclusive: true }] {
        let mut walk = Walk::new(target.clone(), origin);
        let (end, written) = (Lsn(REDO.0.next_multiple_of(1 << 20)), Lsn(REDO.0 + 0x18));
        walk.see(&Seen { start: REDO, end, written, transaction: false, checkpoint: None, note: Note::Switch });
        let landing = walk.finish(TimelineId(1)).unwrap();
        assert_eq!((landing.replayed, landing.needed), (end, written), "{target:?}");
    }
}

#[test]
fn a_stop_before_the_end_of_the_backup_is_refused() {
    let mut wal = history();
    wal[1] = commit(9, 50);
    let refused = |target| matches!(run(&wal, target), Err(Refusal::BeforeConsistency { .. }));
    assert!(refused(time(40, true)));
    assert!(refused(Target::Xid { xid: 9, inclusive: true }));
    assert!(refused(Target::Lsn { lsn: record(1).0, inclusive: true }));
    assert!(refused(Target::Lsn { lsn: record(2).0, inclusive: false }), "the backup's own end is not replayed");
    assert_eq!(lands(&wal, Target::Lsn { lsn: record(2).0, inclusive: true }), (Some(9), after(2)));
    assert_eq!(lands(&wal, time(50, true)), (Some(9), before(3)));
    wal.insert(1, point("early", 45));
    assert!(matches!(run(&wal, Target::Name("early".into())), Err(Refusal::BeforeConsistency { .. })));
}

#[test]
fn wal_that_ends_inside_the_backup_is_refused_whatever_the_target() {
    for target in [Target::Latest, Target::Immediate, time(10, true)] {
        let refusal = run(&history()[..2], target).unwrap_err();
        assert_eq!(refusal, Refusal::WalEndsEarly { end: record(1).1, stored_to: CONSISTENT });
    }
}

#[test]
fn a_backup_that_may_hold_later_commits_is_not_taken_for_a_time() {
    let wal = history();
    let refused = |target, began| matches!(run_from(&wal, target, began), Err(Refusal::NotBefore { .. }));
    assert!(refused(time(99, true), 200), "it began after the target, and no earlier commit follows");
    assert!(refused(time(99, true), -10), "in the same second, and complete after the target");
    assert!(!refused(time(99, true), -400), "complete before the target");
    assert!(!refused(time(99, true), -1_000_000), "a second before");
    assert!(!refused(time(100, true), 200), "a commit at the target follows: all before it are older");
    assert!(!refused(Target::Lsn { lsn: record(3).0, inclusive: true }, 200), "positions need no clock");
}

/// Whoever reads the plan sees both sides of the landing.
#[test]
fn the_first_commit_that_is_not_there_is_named() {
    let notes = [Note::Other, Note::Other, Note::Other, commit(7, 1), abort(8, 2), commit(9, 3), commit(10, 4)];
    let next = |target| run(&notes, target).unwrap().next_commit.map(|commit| commit.xid);
    assert_eq!(next(Target::Time { time: PgTime(1), inclusive: true }), Some(9), "an abort stops it, and is no commit");
    assert_eq!(next(Target::Xid { xid: 9, inclusive: false }), Some(9));
    assert_eq!(next(Target::Xid { xid: 9, inclusive: true }), Some(10));
    assert_eq!((next(Target::Xid { xid: 10, inclusive: true }), next(Target::Latest)), (None, None));
}

/// Where they lie inside the data directory recovery harms nobody, and what lies behind the stop is not made.
#[test]
fn tablespaces_that_are_made_on_the_way_are_told() {
    let made = |oid, location: &[u8]| Note::TablespaceMade { oid, location: location.to_vec() };
    let notes = [
        made(5, b"/early"),
        made(6, b""),
        Note::Other,
        commit(7, 1),
        made(8, b"/on/the way"),
        commit(9, 3),
        made(10, b"/x"),
    ];
    let told = |target| run(&notes, target).unwrap().tablespaces.iter().map(|one| one.oid).collect::<Vec<_>>();
    assert_eq!(told(Target::Xid { xid: 9, inclusive: true }), [5, 8]);
    assert_eq!(told(Target::Xid { xid: 7, inclusive: true }), [5]);
    assert_eq!(told(Target::Latest), [5, 8, 10]);
}

#[test]
fn what_a_target_may_have_meant_is_remembered() {
    let met = |target: Target, notes: &[Note]| {
        let stopped_at = PgTime(0);
        let origin =
            Origin { redo: REDO, checkpoint: REDO, consistent_at: CONSISTENT, stored_to: CONSISTENT, stopped_at };
        let mut walk = Walk::new(target, origin);
        for (index, note) in notes.iter().enumerate() {
            let (start, end) = record(index as u64);
            walk.see(&Seen { start, end, written: end, transaction: true, checkpoint: None, note: note.clone() });
        }
        walk.see_part(900, 13);
        walk.met().clone()
    };
    let xid = |xid| Target::Xid { xid, inclusive: true };
    assert_eq!(met(xid(99), &history()), Met { xids: Some((10, 13)), ..Met::default() });
    assert_eq!(met(xid(900), &history()).whole, Some(13));
    // Transaction ids wrap.
    let wrapped = [commit(4_294_967_290, 1), commit(5, 2), abort(4_294_967_280, 3)];
    assert_eq!(met(xid(99), &wrapped).xids, Some((4_294_967_280, 5)));
    let points = [point("b", 1), point("a", 2), point("b", 3)];
    let named = met(Target::Name("c".to_owned()), &points);
    assert_eq!(
        (named.points.into_iter().collect::<Vec<_>>(), named.xids),
        (vec!["a".to_owned(), "b".to_owned()], None)
    );
}

#[test]
fn a_target_that_rolled_back_is_told() {
    let mut wal = history();
    wal[4] = abort(11, 200);
    for inclusive in [true, false] {
        let rolled_back = |xid| run(&wal, Target::Xid { xid, inclusive }).unwrap().rolled_back;
        assert_eq!((rolled_back(11), rolled_back(12)), (true, false));
    }
}
