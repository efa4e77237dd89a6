//! When space is brought back, and what is stored anew for it: pure.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;

use crate::seal::content::manifest::Sizes;
use crate::seal::content::map::{Run, Source};

/// Places of 8 KiB: a page of a pages file, a chunk of any other.
pub const PLACE: u64 = 8192;
/// Places in a window: as many as fill a frame.
pub const WINDOW: u64 = 32;
/// A window in more pieces than this is stored anew.
const PIECES: u32 = 8;
/// In a hundred: more dead space than this brings the next full transfer about.
const DEAD_DUE: u64 = 30;
/// In a hundred: no more than this is left afterwards.
const DEAD_LEFT: u64 = 20;

/// A backup that shall see every page and store survivors anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// For people.
    pub why: String,
    /// Also what lives in shreds. Only when it is time: where changes are spread evenly there are always some, and storing them anew each time that
    /// space is short would write nearly twice as much, which the simulation beside this shows.
    pub shreds: bool,
}

/// What a parent's manifest says of space.
#[derive(Clone, Copy, Debug)]
pub struct Space<'a> {
    /// `started_at`.
    pub started: Timestamp,
    /// `survivors_at`.
    pub survivors: Timestamp,
    pub sizes: &'a Sizes,
}

/// Whether the next backup is such a one; `None`: not yet. `every` is the longest time between two of these, by the clock of the hosts that take the backups.
/// Dead space alone is no reason right after one: what was dropped while that was taken it did not know of when it chose what to leave, and everything would
/// be sent twice in a row.
pub fn due(parent: Space<'_>, now: Timestamp, every: Duration) -> Option<Due> {
    let Space { started, survivors: last, sizes } = parent;
    let since = now.duration_since(last);
    if since.is_negative() {
        // It would not be due before real time has caught up with a clock that was ahead.
        return Some(Due {
            why: format!("space was last brought back at {last:.0}, which is yet to come"),
            shreds: true,
        });
    }
    if since.unsigned_abs() >= every {
        let often = match every.as_secs() {
            0 => "each time".to_owned(),
            seconds @ 1..3600 => format!("every {seconds} seconds"),
            seconds => format!("every {} hours", seconds / 3600),
        };
        let why = format!("space was last brought back at {last:.0}, which is due {often}");
        return Some(Due { why, shreds: true });
    }
    let (all, dead) = (sizes.carried, sizes.dead());
    (started != last && dead.saturating_mul(100) > all.saturating_mul(DEAD_DUE))
        .then(|| format!("{} % of what the packs hold is dead, more than {DEAD_DUE} %", percent(dead, all)))
        .map(|why| Due { why, shreds: false })
}

fn percent(part: u64, of: u64) -> u64 {
    (u128::from(part) * 100 / u128::from(of.max(1))) as u64
}

/// Plain bytes of a pack: those that the newest backup needs, and all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    pub live: u64,
    pub plain: u64,
}

/// Which packs are left: all that are less than half live, and of the others the emptiest, until no more than a fifth of the whole is dead.
/// With that the share which makes it due ([`due`]) is not reached again at once.
pub fn leave(packs: &[Fill]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..packs.len()).collect();
    let share = |fill: &Fill| u128::from(fill.live) * 1_000_000 / u128::from(fill.plain.max(1));
    order.sort_by_key(|index| packs.get(*index).map(share));
    let dead_of = |fill: &Fill| fill.plain.saturating_sub(fill.live);
    let mut dead: u64 = packs.iter().map(dead_of).sum();
    let live: u64 = packs.iter().map(|fill| fill.live).sum();
    let mut left = vec![false; packs.len()];
    for index in order {
        let (Some(fill), Some(left)) = (packs.get(index), left.get_mut(index)) else { continue };
        let enough = dead.saturating_mul(100) <= dead.saturating_add(live).saturating_mul(DEAD_LEFT);
        if enough && fill.live.saturating_mul(2) >= fill.plain {
            break;
        }
        *left = true;
        dead = dead.saturating_sub(dead_of(fill));
    }
    left
}

/// The windows of a file that are cut into so many pieces that reading them costs more than storing them again, by number. `unit`: bytes that the runs count.
pub fn shreds(runs: &[Run], unit: u64) -> BTreeSet<u64> {
    let mut out = BTreeSet::new();
    let (mut window, mut pieces) = (0, 0);
    let mut close = |window: u64, pieces: u32| {
        if pieces > PIECES {
            out.insert(window);
        }
    };
    for run in runs.iter().filter(|run| run.source != Source::Zero) {
        let Range { start, end } = places(run, unit);
        let last = end.saturating_sub(1) / WINDOW;
        if start / WINDOW != window {
            close(window, pieces);
            (window, pieces) = (start / WINDOW, 0);
        }
        pieces += 1;
        if last != window {
            close(window, pieces);
            // Windows between are all of this run.
            (window, pieces) = (last, 1);
        }
    }
    close(window, pieces);
    out
}

/// The places that a run touches.
pub fn places(run: &Run, unit: u64) -> Range<u64> {
    run.first * unit / PLACE..((run.first + run.count) * unit).div_ceil(PLACE)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::seal::content::BackupId;
    use crate::seal::content::map::PackPlace;

    fn fills(packs: &[(u64, u64)]) -> Vec<Fill> {
        packs.iter().map(|(live, plain)| Fill { live: *live, plain: *plain }).collect()
    }

    #[test]
    fn what_is_due_is_said_with_its_reason() {
        let at = Timestamp::from_second(1_769_824_800).unwrap();
        let (hour, week) = (Duration::from_secs(3600), Duration::from_secs(7 * 86_400));
        let after = |since, carried, now| {
            let sizes = Sizes { changed: 100, reused: 900, carried, ..Sizes::default() };
            due(Space { started: at + since, survivors: at, sizes: &sizes }, now, week)
        };
        assert_eq!(after(hour, 1400, at + hour), None, "28 % dead");
        let week_over = after(hour, 1400, at + week).unwrap();
        assert!(week_over.why.contains("every 168 hours") && week_over.shreds);
        let ahead = after(hour, 1400, at - hour).unwrap();
        assert!(ahead.why.contains("yet to come") && ahead.shreds, "a clock that was ahead");
        let dead = after(hour, 1450, at + hour).unwrap();
        assert!(dead.why.contains("31 %") && !dead.shreds);
        assert_eq!(after(Duration::ZERO, 1450, at + hour), None, "not twice in a row");
        assert!(after(Duration::ZERO, 1450, at + week).is_some());
        assert_eq!(after(hour, 0, at + hour), None, "nothing was counted");
    }

    #[test]
    fn packs_that_are_less_than_half_live_are_left() {
        assert_eq!(leave(&[]), [false; 0]);
        assert_eq!(leave(&fills(&[(100, 100), (49, 100), (55, 100), (90, 100)])), [false, true, false, false]);
        assert_eq!(leave(&fills(&[(900, 900), (49, 100), (50, 100)])), [false, true, false], "however little it is");
        assert_eq!(leave(&fills(&[(100, 100), (99, 100)])), [false, false]);
    }

    #[test]
    fn and_the_emptiest_others_until_a_fifth_is_dead() {
        // 60, 70, 80 and 90 of 100: 25 % dead; without the first 15 %.
        assert_eq!(leave(&fills(&[(90, 100), (60, 100), (80, 100), (70, 100)])), [false, true, false, false]);
        let all_alike = leave(&fills(&[(55, 100); 10]));
        let stay = all_alike.iter().filter(|left| !**left).count() as u64;
        let dead = stay * 45;
        assert!(dead * 100 <= 20 * (dead + 550), "{stay} stay");
        assert!((dead + 45) * 100 > 20 * (dead + 45 + 550), "no more than needed are left");
    }

    #[test]
    fn windows_in_many_pieces_are_found() {
        let pack = Arc::new(PackPlace {
            backup: BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap(),
            number: 0,
            len: 0,
            header: Bytes::new(),
            frames: Vec::new(),
        });
        let stored =
            |first, count| Run { first, count, source: Source::Pack { pack: pack.clone(), frame: 1, offset: 0 } };
        let singles = |from: u64, count: u64| (0..count).map(move |n| (from + n * 2, 1));
        let runs = |of: &[(u64, u64)]| of.iter().map(|(first, count)| stored(*first, *count)).collect::<Vec<_>>();
        let shreds = |runs: &[Run], unit| shreds(runs, unit).into_iter().collect::<Vec<_>>();
        assert_eq!(shreds(&[], PLACE), [0; 0]);
        assert_eq!(shreds(&runs(&singles(64, 8).collect::<Vec<_>>()), PLACE), [0; 0]);
        assert_eq!(shreds(&runs(&singles(64, 9).collect::<Vec<_>>()), PLACE), [2]);
        // The ninth piece reaches over three windows.
        let mut long: Vec<_> = singles(0, 8).collect();
        long.push((30, 70));
        assert_eq!(shreds(&runs(&long), PLACE), [0]);
        let with_zeros: Vec<Run> = (0..32).map(|n| Run { first: n, count: 1, source: Source::Zero }).collect();
        assert_eq!(shreds(&with_zeros, PLACE), [0; 0]);
        // Bytes: 9 pieces of 1000 in the window from 262144 on.
        let bytes: Vec<_> = (0..9).map(|n| (262_144 + n * 1000, 1000)).collect();
        assert_eq!(shreds(&runs(&bytes), 1), [1]);
        assert_eq!(places(&stored(8191, 2), 1), 0..2);
        assert_eq!(places(&stored(8192, 8192), 1), 1..2);
    }
}
