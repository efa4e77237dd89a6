//! Table tests of what `wal-fetch` answers.

use super::*;
use crate::pg::timeline::Ancestor;
use crate::pg::xact::PgTime;
use crate::pg::{SegmentNumber, TimelineHistory};

const MB: u64 = 1 << 20;

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(TimelineId(timeline), SegmentNumber(number), SegmentSize::new(MB).unwrap())
}

/// 1 is left at 5 MB + 100, 2 at 9 MB; the plan ends at `end`.
fn bounds(end: u64) -> Bounds {
    let ancestors = [(1, 5 * MB + 100), (2, 9 * MB)]
        .map(|(t, l)| Ancestor { timeline: TimelineId(t), switch_point: Lsn(l) })
        .to_vec();
    let path = Path::of(&TimelineHistory { timeline: TimelineId(3), ancestors });
    let target = Bounds::target_for(&path, Lsn(end));
    Bounds { path, target, end: Lsn(end), histories: [TimelineId(2), TimelineId(3)].into() }
}

fn order(bounds: &Bounds, timeline: u32, number: u64) -> Option<(u64, Vec<u32>)> {
    match bounds.order(Wanted::Segment(segment(timeline, number))) {
        Order::Segment { bytes, donors } => Some((bytes, donors.iter().map(|t| t.0).collect())),
        _ => None,
    }
}

#[test]
fn names_that_recovery_asks_for() {
    let size = SegmentSize::new(MB).unwrap();
    assert_eq!(Wanted::parse("000000010000000000000005", size), Some(Wanted::Segment(segment(1, 5))));
    assert_eq!(Wanted::parse("00000002.history", size), Some(Wanted::History(TimelineId(2))));
    for other in
        ["", "000000010000000000000005.partial", "000000010000000000000005.00000028.backup", "../x", "x.history"]
    {
        assert_eq!(Wanted::parse(other, size), None, "{other}");
    }
}

#[test]
fn a_plan_ends_where_it_says() {
    let plan = bounds(11 * MB + 500);
    assert_eq!(plan.target, TimelineId(3));
    assert_eq!(order(&plan, 3, 10), Some((MB, vec![])));
    assert_eq!(order(&plan, 3, 11), Some((500, vec![])));
    assert_eq!(order(&plan, 3, 12), None);
    assert_eq!(order(&bounds(11 * MB), 3, 11), None, "the end is a border");
}

/// A plan file that contradicts itself serves less, not more.
#[test]
fn nothing_is_served_of_a_timeline_past_the_target() {
    let plan = Bounds { target: TimelineId(2), ..bounds(11 * MB + 500) };
    assert_eq!(order(&plan, 2, 8), Some((MB, vec![])));
    assert_eq!(order(&plan, 3, 10), None);
}

#[test]
fn a_parent_is_never_served_past_the_fork() {
    let plan = bounds(11 * MB + 500);
    assert_eq!(order(&plan, 1, 4), Some((MB, vec![])));
    assert_eq!(order(&plan, 1, 5), Some((100, vec![2])));
    assert_eq!(order(&plan, 1, 6), None);
    assert_eq!(order(&plan, 2, 5), Some((MB, vec![])));
    assert_eq!(order(&plan, 2, 4), None, "timeline 2 begins later");
    assert_eq!(order(&plan, 2, 9), None, "timeline 2 was left at the border");
    assert_eq!(order(&plan, 4, 9), None);
}

#[test]
fn a_landing_before_a_fork_stays_on_the_parent() {
    let plan = bounds(5 * MB + 50);
    assert_eq!(plan.target, TimelineId(1));
    assert_eq!(order(&plan, 1, 5), Some((50, vec![2])), "the child's object holds the same bytes");
    assert_eq!(order(&plan, 2, 5), None);
    assert_eq!(bounds(5 * MB + 100).target, TimelineId(1), "the byte at the fork is not needed");
    assert_eq!(bounds(5 * MB + 101).target, TimelineId(2));
    assert_eq!(order(&bounds(5 * MB + 101), 2, 5), Some((101, vec![])));
}

#[test]
fn history_files_of_the_plan_must_exist_others_may() {
    let plan = bounds(11 * MB);
    let must = |t| plan.order(Wanted::History(TimelineId(t))) == Order::History { must: true };
    assert_eq!([must(1), must(2), must(3), must(4)], [false, true, true, false]);
}

fn known(stored: Stored) -> Known {
    Known { stored, later: false, children: Vec::new(), own: Own::Absent, beat: None }
}

fn child(fork: u64, has_wal: bool, followed: bool) -> Vec<Child> {
    vec![Child { timeline: TimelineId(2), fork: Lsn(fork), has_wal, followed }]
}

fn answer(known: Known) -> Verdict {
    without_plan(segment(1, 5), &known)
}

#[test]
fn without_a_plan_complete_segments_are_served() {
    assert_eq!(answer(known(Stored::Complete)), Verdict::Serve(MB));
    assert_eq!(answer(Known { own: Own::Ahead, later: true, ..known(Stored::Complete) }), Verdict::Serve(MB));
}

#[test]
fn a_tail_never_replaces_newer_wal_and_never_hides_later_wal() {
    let tail = known(Stored::Prefix(700));
    assert_eq!(answer(tail.clone()), Verdict::Serve(700));
    assert_eq!(answer(Known { own: Own::Contained, ..tail.clone() }), Verdict::Serve(700));
    assert_eq!(answer(Known { own: Own::Ahead, ..tail.clone() }), Verdict::Absent);
    assert!(matches!(answer(Known { later: true, ..tail.clone() }), Verdict::Unknown(_)));
    assert!(matches!(answer(Known { later: true, own: Own::Ahead, ..tail }), Verdict::Unknown(_)));
}

#[test]
fn absence_must_be_proven() {
    let nothing = known(Stored::Nothing);
    assert_eq!(answer(nothing.clone()), Verdict::Absent);
    assert!(matches!(answer(Known { later: true, ..nothing.clone() }), Verdict::Unknown(_)));
    for fork in [3 * MB, 5 * MB + 100, 9 * MB] {
        let children = child(fork, true, false);
        assert!(matches!(answer(Known { children, ..nothing.clone() }), Verdict::Unknown(_)), "{fork}");
    }
}

#[test]
fn a_caller_that_follows_a_child_gets_nothing_past_the_fork() {
    let of = |stored, fork| answer(Known { children: child(fork, true, true), ..known(stored) });
    assert_eq!(of(Stored::Complete, 5 * MB + 100), Verdict::Serve(100));
    assert_eq!(of(Stored::Prefix(100), 5 * MB + 100), Verdict::Serve(100));
    assert!(matches!(of(Stored::Prefix(99), 5 * MB + 100), Verdict::Unknown(_)));
    assert_eq!(of(Stored::Complete, 5 * MB), Verdict::Absent);
    assert_eq!(of(Stored::Complete, 4 * MB), Verdict::Absent);
    assert_eq!(of(Stored::Complete, 6 * MB), Verdict::Serve(MB), "left after this segment");
}

#[test]
fn a_fork_whose_child_has_no_wal_is_no_answer() {
    for stored in [Stored::Complete, Stored::Prefix(700)] {
        let open = Known { children: child(5 * MB + 100, false, false), ..known(stored) };
        assert!(matches!(answer(open), Verdict::Unknown(_)));
    }
    let elsewhere = Known { children: child(6 * MB, false, false), ..known(Stored::Complete) };
    assert_eq!(answer(elsewhere), Verdict::Serve(MB), "the fork lies after this segment");
    let old_branch = Known { children: child(5 * MB + 100, true, false), ..known(Stored::Complete) };
    assert_eq!(answer(old_branch), Verdict::Serve(MB), "the server asked for the child first and chose the parent");
}

/// A timeline left the requested one behind what is stored of it: WAL up to there was written.
#[test]
fn a_beginning_is_no_end_where_a_timeline_left_later() {
    for (fork, has_wal) in [(5 * MB + 701, true), (6 * MB, false), (6 * MB, true), (9 * MB, false), (9 * MB, true)] {
        for own in [Own::Absent, Own::Contained, Own::Ahead] {
            let short = Known { children: child(fork, has_wal, false), own, ..known(Stored::Prefix(700)) };
            assert!(matches!(answer(short), Verdict::Unknown(_)), "{fork} {own:?}");
        }
    }
    let one_of_two = Known {
        children: [child(4 * MB, true, false), child(9 * MB, false, false)].concat(),
        ..known(Stored::Prefix(700))
    };
    assert!(matches!(answer(one_of_two), Verdict::Unknown(_)));
    for fork in [4 * MB, 5 * MB, 5 * MB + 700] {
        let reached = Known { children: child(fork, true, false), ..known(Stored::Prefix(700)) };
        assert_eq!(answer(reached), Verdict::Serve(700), "all of it is stored to the fork at {fork}");
    }
    let followed = Known { children: child(9 * MB, true, true), ..known(Stored::Prefix(700)) };
    assert!(matches!(answer(followed), Verdict::Unknown(_)), "the caller goes to the child by this segment");
}

/// It is stored once all WAL up to its position is: what is not there any more is lost, and no end.
#[test]
fn a_heartbeat_past_what_is_stored_shows_that_it_is_no_end() {
    let beat = |lsn| Some(Heartbeat { lsn: Lsn(lsn), time: PgTime(0) });
    for own in [Own::Absent, Own::Contained, Own::Ahead] {
        for lsn in [5 * MB + 701, 6 * MB, 9 * MB] {
            let cut = Known { beat: beat(lsn), own, ..known(Stored::Prefix(700)) };
            assert!(matches!(answer(cut), Verdict::Unknown(_)), "{own:?} {lsn}");
        }
    }
    let tail = |lsn| answer(Known { beat: beat(lsn), ..known(Stored::Prefix(700)) });
    assert_eq!([5 * MB + 700, 5 * MB, MB].map(tail), [Verdict::Serve(700), Verdict::Serve(700), Verdict::Serve(700)]);
    let nothing = |lsn| answer(Known { beat: beat(lsn), ..known(Stored::Nothing) });
    assert!(matches!(nothing(5 * MB + 1), Verdict::Unknown(_)));
    assert_eq!([5 * MB, 4 * MB + 9].map(nothing), [Verdict::Absent, Verdict::Absent]);
    let whole = Known { beat: beat(9 * MB), ..known(Stored::Complete) };
    assert_eq!(answer(whole), Verdict::Serve(MB), "what comes behind it is asked for next");
    // An old primary goes on proving where its own WAL ends.
    let left = Known { beat: beat(9 * MB), children: child(5 * MB + 700, true, false), ..known(Stored::Prefix(700)) };
    assert_eq!(answer(left), Verdict::Serve(700));
}
