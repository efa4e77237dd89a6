use super::*;
use crate::pg::SegmentNumber;
use crate::pg::timeline::Ancestor;

const MB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MB).unwrap()
}

fn backup(timeline: u32, start: u64, stop: u64) -> Base {
    let (timeline, start, stop) = (TimelineId(timeline), Lsn(start), Lsn(stop));
    let id = BackupId::new(jiff::Timestamp::UNIX_EPOCH, timeline, start, 0);
    Base { id, timeline, start, stop_timeline: timeline, stop }
}

/// Stretches by timeline, in kB.
fn stored(all: &[(u32, &[(u64, u64)])]) -> BTreeMap<TimelineId, Vec<Stretch>> {
    let stretch = |(from, to): &(u64, u64)| Stretch { from: Lsn(from << 10), to: Lsn(to << 10) };
    all.iter().map(|(timeline, own)| (TimelineId(*timeline), own.iter().map(stretch).collect())).collect()
}

fn histories(all: &[(u32, &[(u32, u64)])]) -> BTreeMap<TimelineId, TimelineHistory> {
    let ancestor =
        |(timeline, at): &(u32, u64)| Ancestor { timeline: TimelineId(*timeline), switch_point: Lsn(*at << 10) };
    let history = |(timeline, ancestors): &(u32, &[(u32, u64)])| {
        let timeline = TimelineId(*timeline);
        (timeline, TimelineHistory { timeline, ancestors: ancestors.iter().map(ancestor).collect() })
    };
    all.iter().map(history).collect()
}

/// A window in kB, and how many backups lead there.
type Shown = (u64, u64, usize);

/// Windows of each timeline.
fn shown(reaches: &[Reach]) -> Vec<(u32, Vec<Shown>)> {
    let window = |window: &Window| (window.from.0 >> 10, window.to.0 >> 10, window.backups.len());
    reaches.iter().map(|reach| (reach.timeline.0, reach.windows.iter().map(window).collect())).collect()
}

fn holes(reach: &Reach) -> Vec<(u64, u64)> {
    reach.holes().iter().map(|hole| (hole.from.0 >> 10, hole.to.0 >> 10)).collect()
}

const KB: u64 = 1 << 10;

#[test]
fn a_window_begins_at_the_end_of_its_first_backup_and_ends_at_a_hole() {
    let stored = stored(&[(1, &[(1024, 4096), (5120, 6000)])]);
    let backups = [
        backup(1, 1100 * KB, 1200 * KB),
        backup(1, 2000 * KB, 2100 * KB),
        // Its WAL is not all there.
        backup(1, 4000 * KB, 4200 * KB),
        backup(1, 5500 * KB, 5600 * KB),
    ];
    let found = reaches(&stored, &BTreeMap::new(), &backups, &[], size());
    assert_eq!(shown(&found), [(1, vec![(1200, 4096, 2), (5600, 6000, 1)])]);
    assert_eq!(holes(&found[0]), [(4096, 5120)]);
    assert_eq!(found[0].fork, None);
    assert_eq!(shown(&reaches(&stored, &BTreeMap::new(), &[], &[], size())), [(1, vec![])]);
    // No restore follows a timeline whose history is not there.
    let two = BTreeMap::from([(TimelineId(2), stored[&TimelineId(1)].clone())]);
    assert_eq!(shown(&reaches(&two, &BTreeMap::new(), &[backup(2, 1100 * KB, 1200 * KB)], &[], size())), [(2, vec![])]);
}

#[test]
fn a_child_goes_on_from_its_parents_window_at_the_fork() {
    let stored = stored(&[(1, &[(1024, 5000)]), (2, &[(3072, 7000)]), (3, &[(6144, 8000)])]);
    let histories = histories(&[(2, &[(1, 3500)]), (3, &[(1, 3500), (2, 6500)])]);
    let old = backup(1, 1100 * KB, 1200 * KB);
    // Of the branch that died: past the fork.
    let dead = backup(1, 4000 * KB, 4100 * KB);
    let new = backup(2, 6000 * KB, 6100 * KB);
    let found = reaches(&stored, &histories, &[old.clone(), dead, new], &[], size());
    assert_eq!(shown(&found), [(1, vec![(1200, 5000, 2)]), (2, vec![(3500, 7000, 2)]), (3, vec![(6500, 8000, 2)])]);
    assert_eq!(found[1].fork, Some((TimelineId(1), Lsn(3500 * KB))));
    assert_eq!(found[1].stored, [Stretch { from: Lsn(3500 * KB), to: Lsn(7000 * KB) }], "from the fork on");
    assert_eq!(found[0].windows[0].backups[0], old.id);
    assert_eq!(holes(&found[2]), []);
}

#[test]
fn a_hole_on_the_way_ends_every_window_behind_it() {
    let histories = histories(&[(2, &[(1, 3500)])]);
    let old = [backup(1, 1100 * KB, 1200 * KB)];
    // The parent has a hole before the fork.
    let holed = stored(&[(1, &[(1024, 2048), (3072, 3500)]), (2, &[(3072, 7000)])]);
    assert_eq!(shown(&reaches(&holed, &histories, &old, &[], size())), [(1, vec![(1200, 2048, 1)]), (2, vec![])]);
    // The parent lacks its last bytes before the fork: the child's first segment begins with them.
    let lent = stored(&[(1, &[(1024, 3072)]), (2, &[(3072, 7000)])]);
    assert_eq!(shown(&reaches(&lent, &histories, &old, &[], size()))[1], (2, vec![(3500, 7000, 1)]));
    // The child's first segment is missing.
    let late = stored(&[(1, &[(1024, 3500)]), (2, &[(4096, 7000)])]);
    let found = reaches(&late, &histories, &old, &[], size());
    assert_eq!(shown(&found)[1], (2, vec![]));
    assert_eq!(holes(&found[1]), [(3500, 4096)]);
}

#[test]
fn a_backup_that_ends_where_wal_ends_can_be_restored_to_its_end_alone() {
    let stored = stored(&[(1, &[(1024, 1200)])]);
    let found = reaches(&stored, &BTreeMap::new(), &[backup(1, 1100 * KB, 1200 * KB)], &[], size());
    assert_eq!(shown(&found), [(1, vec![(1200, 1200, 1)])]);
    assert_eq!(size().segment_of(Lsn(1200 * KB)), SegmentNumber(1));
}

#[test]
fn no_window_goes_past_wal_under_minimal() {
    let stored = stored(&[(1, &[(1024, 9000)]), (2, &[(5120, 9000)])]);
    let histories = histories(&[(2, &[(1, 6000)])]);
    let backups = [backup(1, 1100 * KB, 1200 * KB), backup(1, 4000 * KB, 4200 * KB)];
    let at = |minimal: &[(u32, u64)]| {
        let minimal: Vec<_> = minimal.iter().map(|(timeline, at)| (TimelineId(*timeline), Lsn(at << 10))).collect();
        shown(&reaches(&stored, &histories, &backups, &minimal, size()))
    };
    assert_eq!(at(&[]), [(1, vec![(1200, 9000, 2)]), (2, vec![(6000, 9000, 2)])]);
    assert_eq!(at(&[(1, 3000)]), [(1, vec![(1200, 3000, 1), (4200, 9000, 1)]), (2, vec![(6000, 9000, 1)])]);
    assert_eq!(at(&[(2, 7000)]), [(1, vec![(1200, 9000, 2)]), (2, vec![(6000, 7000, 2)])]);
    assert_eq!(at(&[(1, 7000)]), [(1, vec![(1200, 7000, 2)]), (2, vec![(6000, 9000, 2)])], "on the dead branch");
    assert_eq!(at(&[(1, 1050)]), at(&[]), "before every backup");
}
