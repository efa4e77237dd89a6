//! Which segments hold the commits of a window of time: by their summaries, without opening contents.

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::archive::path::Path;
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentNumber};
use crate::seal::content::summary::Summary;

/// Earliest and latest time of a commit or abort that ends in a segment.
type Times = BTreeMap<SegmentNumber, (PgTime, PgTime)>;

/// What is read of a window of time.
pub struct Window {
    pub first: SegmentNumber,
    pub last: SegmentNumber,
    /// The earliest commit of the first segment behind it that has any, where everything in between is stored: no commit of the window is later in WAL.
    pub closed_by: Option<PgTime>,
    /// The earliest commit or abort that any summary tells of.
    pub earliest: Option<PgTime>,
}

/// The segments to read; `None` where nothing is stored.
pub async fn segments(
    archive: &Archive,
    path: &Path,
    inventory: &Inventory,
    from: PgTime,
    to: PgTime,
) -> Result<Option<Window>> {
    let Some(stored) = stored(archive, path, inventory) else { return Ok(None) };
    let (times, summarized) = times(archive, path).await?;
    let size = archive.names.segment_size;
    // Its summary was read, and says nothing else of the window.
    let is_told = |number: SegmentNumber| {
        let timeline = path.timeline_at(Lsn(number.end(size).0 - 1));
        let stock = inventory.timelines.get(&timeline);
        summarized.contains(&number) && stock.is_some_and(|stock| stock.complete.contains(&number))
    };
    let earliest = times.values().map(|(earliest, _)| *earliest).min();
    let window =
        |(first, last)| Window { first, last, closed_by: closed_by(&times, (first, last), &is_told), earliest };
    Ok(choose(&times, stored, from, to).map(window))
}

/// Nothing may be hidden by a hole, or by a summary that could not be read: neither behind what is read, nor before it up to the last commit there.
fn closed_by(
    times: &Times,
    (first, last): (SegmentNumber, SegmentNumber),
    is_told: &dyn Fn(SegmentNumber) -> bool,
) -> Option<PgTime> {
    let (next, (earliest, _)) = times.range(last.next()..).next()?;
    let (before, _) = times.range(..=first).next_back()?;
    let quiet = (before.next().0..first.0).chain(last.next().0..=next.0);
    quiet.map(SegmentNumber).all(is_told).then_some(*earliest)
}

/// The first and the last segment of which this path has anything.
fn stored(archive: &Archive, path: &Path, inventory: &Inventory) -> Option<(SegmentNumber, SegmentNumber)> {
    let size = archive.names.segment_size;
    let within = path.legs.iter().filter_map(|leg| {
        let first = inventory.first(leg.timeline)?.max(size.segment_of(leg.begin));
        let last = inventory.last(leg.timeline)?;
        let last = leg.end.map_or(last, |end| last.min(size.segment_before(end)));
        (first <= last).then_some((first, last))
    });
    within.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// By their summaries, and of which segments there is one.
async fn times(archive: &Archive, path: &Path) -> Result<(Times, BTreeSet<SegmentNumber>)> {
    let size = archive.names.segment_size;
    let (mut times, mut summarized) = (Times::new(), BTreeSet::new());
    let note = |summary: &Summary| {
        summarized.insert(size.segment_of(summary.start));
        let Some((min, max)) = summary.times else { return };
        let known = times.entry(size.segment_of(summary.start)).or_insert((min, max));
        *known = (known.0.min(min), known.1.max(max));
    };
    archive.summaries_along(path, Lsn(0), note).await?;
    Ok((times, summarized))
}

/// Times do not follow the order of WAL, so everything between the first segment that may hold a commit of the window and the last one is read, and one more in
/// front, for what began there. What no summary speaks of (the open segment) stands at the end, and is read where nothing before it is later than the window.
fn choose(
    times: &Times,
    (first, last): (SegmentNumber, SegmentNumber),
    from: PgTime,
    to: PgTime,
) -> Option<(SegmentNumber, SegmentNumber)> {
    let Some(newest) = times.last_key_value().map(|(number, _)| *number) else { return Some((first, last)) };
    let begin = times.iter().find(|(_, (_, max))| *max >= from).map_or(newest, |(number, _)| *number);
    let end = times.iter().rev().find(|(_, (min, _))| *min <= to).map(|(number, _)| *number);
    let end = match end {
        Some(end) if end == newest => last,
        Some(end) => end,
        None => first,
    };
    let begin = SegmentNumber(begin.0.saturating_sub(1)).max(first);
    Some((begin, end.max(begin).min(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(times: &[(u64, i64, i64)], from: i64, to: i64) -> (u64, u64) {
        let times = times.iter().map(|(n, min, max)| (SegmentNumber(*n), (PgTime(*min), PgTime(*max)))).collect();
        let stored = (SegmentNumber(1), SegmentNumber(20));
        let (first, last) = choose(&times, stored, PgTime(from), PgTime(to)).unwrap();
        (first.0, last.0)
    }

    #[test]
    fn a_window_is_read_with_one_segment_in_front() {
        let times = [(2, 10, 20), (5, 20, 30), (9, 30, 40), (12, 40, 50)];
        assert_eq!(chosen(&times, 25, 35), (4, 9));
        assert_eq!(chosen(&times, 30, 30), (4, 9), "a time on the border of two may be in either");
        assert_eq!(chosen(&times, 0, 5), (1, 1), "before everything");
        assert_eq!(chosen(&times, 0, 15), (1, 2));
        assert_eq!(chosen(&times, 45, 60), (11, 20), "the open end");
        assert_eq!(chosen(&times, 60, 70), (11, 20), "later than all that is summed up");
        assert_eq!(chosen(&[], 0, 1), (1, 20));
    }

    #[test]
    fn a_window_is_closed_by_what_follows_it_without_a_hole() {
        let times: Times = [(2, 10, 20), (5, 20, 30), (9, 30, 40)]
            .map(|(n, min, max)| (SegmentNumber(n), (PgTime(min), PgTime(max))))
            .into();
        let closed = |first: u64, last: u64, hole: u64| {
            closed_by(&times, (SegmentNumber(first), SegmentNumber(last)), &|number| number.0 != hole)
                .map(|time| time.0)
        };
        assert_eq!(closed(4, 5, 20), Some(30));
        assert_eq!(closed(4, 5, 7), None, "a hole behind it");
        assert_eq!(closed(4, 5, 3), None, "a hole before it");
        assert_eq!(closed(8, 9, 20), None, "nothing follows");
        assert_eq!(closed(1, 2, 20), None, "nothing is before it");
    }

    #[test]
    fn a_clock_that_jumped_hides_nothing() {
        let times = [(2, 10, 90), (5, 20, 30), (9, 5, 8), (12, 40, 50)];
        assert_eq!(chosen(&times, 60, 95), (1, 20), "90 stands far in front of what is later in WAL");
        assert_eq!(chosen(&times, 6, 7), (1, 9));
    }
}
