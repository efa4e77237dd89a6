use super::super::path::Path;
use super::*;
use crate::pg::timeline::Ancestor;
use crate::pg::{Lsn, SegmentNumber, TimelineHistory, TimelineId};

const MB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MB).unwrap()
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(TimelineId(timeline), SegmentNumber(number), size())
}

/// Timeline 1 to 5.5 MB, timeline 2 to 9 MB exactly, timeline 3; the recovery ends at `end`.
fn bounds(end: u64) -> Bounds {
    let ancestor = |timeline: u32, at: u64| Ancestor { timeline: TimelineId(timeline), switch_point: Lsn(at) };
    let ancestors = vec![ancestor(1, 5 * MB + MB / 2), ancestor(2, 9 * MB)];
    let path = Path::of(&TimelineHistory { timeline: TimelineId(3), ancestors });
    let target = Bounds::target_for(&path, Lsn(end));
    Bounds { path, target, end: Lsn(end), histories: BTreeSet::new() }
}

fn names(pieces: &[Piece]) -> Vec<(u32, u64, u64)> {
    pieces.iter().map(|p| (p.segment.timeline.0, p.segment.number.0, p.bytes)).collect()
}

#[test]
fn a_plan_is_followed_through_its_forks_to_its_end_and_no_byte_further() {
    let bounds = bounds(10 * MB + 77);
    let all = under_plan(&bounds, segment(1, 3), 99);
    assert_eq!(names(&all), [(1, 4, MB), (2, 5, MB), (2, 6, MB), (2, 7, MB), (2, 8, MB), (3, 9, MB), (3, 10, 77)]);
    assert_eq!(under_plan(&bounds, segment(1, 3), 2), all[..2]);
    assert_eq!(names(&under_plan(&bounds, segment(3, 9), 9)), [(3, 10, 77)]);
    assert_eq!(under_plan(&bounds, segment(3, 10), 9), []);
    assert_eq!(under_plan(&bounds, segment(3, 99), 9), []);
}

#[test]
fn a_plan_that_ends_before_a_fork_never_leaves_the_parent() {
    for (end, last) in [(5 * MB + MB / 2, MB / 2), (5 * MB + 9, 9)] {
        assert_eq!(names(&under_plan(&bounds(end), segment(1, 3), 9)), [(1, 4, MB), (1, 5, last)]);
    }
    assert_eq!(names(&under_plan(&bounds(5 * MB), segment(1, 3), 9)), [(1, 4, MB)], "an end on a border");
    assert_eq!(names(&under_plan(&bounds(9 * MB), segment(2, 7), 9)), [(2, 8, MB)], "a fork on a border");
}

/// Whatever is fetched ahead is what the plan says when the server asks.
#[test]
fn every_piece_is_what_the_plan_orders() {
    for end in (0..12 * MB).step_by(131_071) {
        let bounds = bounds(end);
        for piece in under_plan(&bounds, segment(1, 0), 99) {
            match bounds.order(Wanted::Segment(piece.segment)) {
                Order::Segment { bytes, .. } => assert_eq!(bytes, piece.bytes),
                other => panic!("{piece:?}: {other:?}"),
            }
            assert!(piece.segment.start() + piece.bytes <= Lsn(end));
        }
    }
}

#[test]
fn a_standby_is_given_whole_segments_of_its_timeline() {
    assert_eq!(names(&in_standby(segment(7, 4), 2)), [(7, 5, MB), (7, 6, MB)]);
    assert_eq!(in_standby(segment(7, 4), 0), []);
}

#[test]
fn names_say_everything_and_nothing_else_is_a_name() {
    let ready = Ready { piece: Piece { segment: segment(1, 5), bytes: 77 }, crc: 0xAB };
    assert_eq!(ready.to_string(), "000000010000000000000005.4d.000000ab");
    assert_eq!(Ready::parse(&ready.to_string(), size()), Some(ready));
    for bad in [
        "000000010000000000000005.4d.part",
        "000000010000000000000005.4d",
        "000000010000000000000005",
        "000000010000000000000005.4d.ab",
        "000000010000000000000005.4D.000000ab",
        "000000010000000000000005.04d.000000ab",
        "000000010000000000000005.0.000000ab",
        "000000010000000000000005.100001.000000ab",
        "000000010000000000000005.4d.000000ab.part",
        "00000001000000000000FFFF.4d.000000ab",
        "lock",
        "asked",
        "",
    ] {
        assert_eq!(Ready::parse(bad, size()), None, "{bad}");
    }
}

#[test]
fn the_disk_keeps_half_of_what_it_has() {
    assert_eq!(slots(10 * MB, None, 0, size()), 10);
    assert_eq!(slots(10 * MB, Some(8 * MB), 0, size()), 4);
    assert_eq!(slots(10 * MB, Some(4 * MB), 4 * MB, size()), 4, "what is held counts");
    assert_eq!(slots(10 * MB, Some(100 * MB), 0, size()), 10);
    assert_eq!([slots(MB - 1, None, 0, size()), slots(10 * MB, Some(0), 0, size())], [0, 0]);
    let of = |megabytes: u64| lanes(SegmentSize::new(megabytes << 20).unwrap());
    assert_eq!([of(1), of(16), of(32), of(64), of(1024)], [4, 4, 2, 1, 1]);
}

fn ready(number: u64) -> Ready {
    Ready { piece: Piece::whole(segment(1, number)), crc: number as u32 }
}

fn pieces(numbers: &[u64]) -> BTreeSet<Piece> {
    numbers.iter().map(|n| Piece::whole(segment(1, *n))).collect()
}

#[test]
fn steps() {
    let wanted = in_standby(segment(1, 3), 4);
    let state = |there: &[u64], running: &[u64], resting: &[u64]| State {
        ready: there.iter().map(|n| ready(*n)).collect(),
        running: pieces(running),
        resting: pieces(resting),
    };
    let done = |state: State, slots: usize, lanes: usize| {
        let step = step(&wanted[..slots.min(4)], &state, slots, lanes);
        let numbers = |pieces: Vec<Piece>| pieces.iter().map(|p| p.segment.number.0).collect::<Vec<_>>();
        (numbers(step.drop.iter().map(|r| r.piece).collect()), numbers(step.fetch))
    };
    for (there, running, resting, slots, lanes, drop, fetch) in [
        (&[][..], &[][..], &[][..], 4, 2, vec![], vec![4, 5]),
        (&[], &[4], &[], 4, 2, vec![], vec![5]),
        (&[], &[4, 5], &[], 4, 2, vec![], vec![]),
        (&[4], &[5], &[], 4, 4, vec![], vec![6, 7]),
        (&[4, 5, 6, 7], &[], &[], 4, 4, vec![], vec![]),
        // The server has gone on, or back.
        (&[3, 4], &[], &[], 4, 4, vec![3], vec![5, 6, 7]),
        (&[90], &[91], &[], 4, 4, vec![90], vec![4, 5, 6]),
        // What just failed waits; the others go on.
        (&[], &[], &[4], 4, 2, vec![], vec![5, 6]),
        // Less room than before.
        (&[4, 5, 6], &[], &[], 2, 4, vec![6], vec![]),
        (&[4], &[5, 6], &[], 2, 4, vec![], vec![]),
        (&[4], &[], &[], 0, 4, vec![4], vec![]),
    ] {
        let found = done(state(there, running, resting), slots, lanes);
        assert_eq!(found, (drop, fetch), "{there:?} {running:?} {resting:?} {slots} {lanes}");
    }
    // The same piece twice, under two checksums.
    let twice = State { ready: vec![ready(4), Ready { crc: 9, ..ready(4) }], ..State::default() };
    assert_eq!(step(&wanted, &twice, 4, 1).drop, [Ready { crc: 9, ..ready(4) }]);
}

/// What is wanted grows only where a full queue was emptied, and never beyond the slots.
#[test]
fn the_queue_is_as_long_as_the_storage_pauses() {
    let of = |megabytes: u64| Reach::new(SegmentSize::new(megabytes << 20).unwrap()).within(usize::MAX);
    assert_eq!([of(1), of(16), of(64), of(1024)], [64, 4, 2, 2]);
    let mut reach = Reach::new(SegmentSize::new(16 * MB).unwrap());
    assert_eq!((reach.within(3), reach.within(0)), (3, 0));
    // The storage is slower than the server: a longer queue would not be filled either.
    for ready in [0, 1, 0, 3, 0] {
        reach.see(ready, 4, true);
        assert_eq!(reach.within(99), 4);
    }
    // Full, and the server goes on as it should.
    for ready in [4, 3, 4, 1, 4] {
        reach.see(ready, 4, true);
        assert_eq!(reach.within(99), 4);
    }
    reach.see(0, 4, false);
    assert_eq!(reach.within(99), 4, "nobody has asked");
    reach.see(0, 4, true);
    assert_eq!(reach.within(99), 8);
    reach.see(0, 8, true);
    assert_eq!(reach.within(99), 8, "not filled since");
    reach.see(8, 8, false);
    reach.see(0, 8, true);
    assert_eq!((reach.within(99), reach.within(10)), (16, 10));
    // At the end of a plan, and with fewer slots, there is no more to be had.
    for wanted in [2, 0] {
        reach.see(wanted, wanted, true);
        reach.see(0, wanted, true);
    }
    assert_eq!(reach.within(99), 16);
}
