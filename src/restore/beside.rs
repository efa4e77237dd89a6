//! Commits up to a target time that other timelines have and the way of a restore has not: those of an old primary above all, from where its standby was promoted.

use std::collections::BTreeSet;

use super::commits::{Counted, READ, Tells, Told, Wish};
use super::path::{Leg, Path};
use super::plan::{Commit, Landing};
use super::scan::Route;
use super::target::{Target, time_text};
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentNumber, SegmentSize, TimelineId};
use crate::seal::content::manifest::Manifest;

/// A timeline beside the way of a restore to a time that has commits up to that time, or may have some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    pub timeline: TimelineId,
    /// Where it goes another way than the restore.
    pub from: Lsn,
    pub commits: u64,
    pub newest: Option<Commit>,
    /// Some of its WAL is missing, damaged, or too much to be read: there may be more.
    pub is_short: bool,
    /// The options that lead to the newest; `None`: no backup does.
    pub options: Option<String>,
}

impl std::fmt::Display for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Beside { timeline, from, commits, newest, is_short, options } = self;
        let of = format!("of timeline {timeline} up to the target, from {from} on, where it goes another way");
        match (commits, is_short) {
            (0, _) => {
                return write!(
                    f,
                    "what was committed {of}, cannot be told: WAL there is missing, damaged, or not read"
                );
            }
            (1, false) => write!(f, "1 commit {of}, is left out")?,
            (_, false) => write!(f, "{commits} commits {of}, are left out")?,
            (_, true) => {
                write!(f, "at least {commits} commits {of}, are left out (WAL there is missing, damaged, or not read)")?
            }
        }
        if let Some(Commit { xid, time, start, .. }) = newest {
            write!(f, "; the newest is transaction {xid} at {}, LSN {start}", time_text(*time))?;
        }
        match options {
            Some(options) if *is_short => write!(f, "; whether {options} can lead there its --plan tells"),
            Some(options) => write!(f, "; {options} leads there"),
            None => write!(f, "; no backup leads there"),
        }
    }
}

/// The timelines that have commits up to a target time where they and the way of the restore, which lands behind that place, go apart; and what cannot be told. What
/// of their WAL is missing or damaged refuses nothing, and is told. Empty for targets that are no times.
pub async fn beside(
    route: &Route<'_>,
    backups: &[Manifest],
    landing: &Landing,
    target: &Target,
) -> (Vec<Beside>, Vec<String>) {
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    if !matches!(target, Target::Time { .. }) {
        return (found, unknown);
    }
    for timeline in route.inventory.timelines.keys().copied() {
        let other = match route.inventory.demand_history(timeline) {
            Ok(history) => Path::of(&history),
            Err(error) => {
                unknown.push(format!("whether timeline {timeline} has commits up to the target is not known: {error}"));
                continue;
            }
        };
        let Some(from) = left_at(route.path, &other) else { continue };
        // A recovery that stops before that ends at the same place on both.
        if parted_at(route.path, &other).is_none_or(|parted| landing.replayed < parted) {
            continue;
        }
        let counted = count(&Route { path: &other, ..*route }, from, target).await;
        if counted.commits > 0 || counted.is_short {
            let Counted { commits, newest, is_short, .. } = counted;
            let options = options(backups, &other, newest);
            found.push(Beside { timeline, from, commits, newest, is_short, options });
        }
    }
    (found, unknown)
}

/// Where the last timeline of `other` goes on off this path; `None`: all of it lies on it.
pub(super) fn left_at(path: &Path, other: &Path) -> Option<Lsn> {
    match path.leg(other.target()) {
        Some(leg) => leg.end,
        None => other.legs.last().map(|leg| leg.begin),
    }
}

/// Up to where two paths are one; `None`: they are the same.
fn parted_at(path: &Path, other: &Path) -> Option<Lsn> {
    let end = |leg: &Leg| leg.end.unwrap_or(Lsn(u64::MAX));
    path.legs.iter().zip(&other.legs).find_map(|(one, other)| match one.timeline == other.timeline {
        true => (one.end != other.end).then(|| end(one).min(end(other))),
        false => Some(one.begin.min(other.begin)),
    })
}

/// What leads to the newest of them: a backup that was complete by then, on a way that holds it. By its position, since nothing later may be stored there
/// at which a server would stop for the time.
fn options(backups: &[Manifest], other: &Path, newest: Option<Commit>) -> Option<String> {
    let Commit { start, .. } = newest?;
    let leads = |backup: &Manifest| other.holds(backup.stop_timeline, backup.stop) && backup.stop <= start;
    let options = format!("--target-timeline {} --target-lsn {start}", other.target());
    backups.iter().any(leads).then_some(options)
}

/// What is to be done about a segment.
enum Way {
    /// Nothing of it counts.
    Pass,
    /// So many count, the latest of what ended in it at that time.
    Take(u64, PgTime),
    Read,
}

fn way(tells: Option<&Tells>, target: &Target, size: SegmentSize) -> Way {
    match tells.filter(|tells| tells.bytes >= size.bytes() && !tells.is_mute) {
        None => Way::Read,
        Some(Tells { commits, times: Some((earliest, latest)), .. }) if *commits > 0 && target.takes(*earliest) => {
            if target.takes(*latest) {
                Way::Take(*commits, *latest)
            } else {
                Way::Read
            }
        }
        Some(_) => Way::Pass,
    }
}

/// Commits up to the target on the last timeline of the route's path, by records from `begin` on.
async fn count(route: &Route<'_>, begin: Lsn, target: &Target) -> Counted {
    let (timeline, size) = (route.path.target(), route.archive.names.segment_size);
    let first = size.segment_of(begin);
    let stored = stored(route, timeline, first);
    if stored.is_empty() {
        return Counted::default();
    }
    let own = Path { legs: vec![Leg { timeline, begin, end: None }] };
    let Some(told) = untold(Told::of(route.archive, &own, begin).await) else {
        return Counted { is_short: true, ..Counted::default() };
    };
    let lost_end = untold(route.archive.lost_end(route.inventory, timeline).await);
    let mut counted = Counted { is_short: lost_end.is_none_or(|lost| lost.is_some()), ..Counted::default() };
    let (mut to_read, mut taken): (Vec<SegmentNumber>, Vec<(PgTime, SegmentNumber)>) = Default::default();
    let mut next = first;
    for number in stored {
        counted.is_short |= number != next;
        next = number.next();
        // Of the first one the summary tells of what lies before, too.
        let tells = told.0.get(&number).filter(|_| number.start(size) >= begin);
        match way(tells, target, size) {
            Way::Pass => {}
            Way::Take(commits, latest) => {
                counted.commits += commits;
                taken.push((latest, number));
            }
            Way::Read => to_read.push(number),
        }
    }
    counted.is_short |= to_read.len() > READ;
    to_read.truncate(READ);
    for run in to_read.chunk_by(|one, next| one.next() == *next) {
        let (Some(from), Some(to)) = (run.first(), run.last()) else { continue };
        let wish = Wish { target, begin, segments: *from..=*to };
        counted.join(route.count(&wish, told.reading_from(*from, first)).await);
    }
    // Summaries name no commit: the newest one is in the segment with the latest time, unless that is of a rollback.
    taken.sort_unstable();
    let mut left = READ;
    for (latest, number) in taken.into_iter().rev() {
        if counted.newest.is_some_and(|newest| newest.time >= latest) {
            break;
        }
        if left == 0 {
            // A newer one may be in what is not read.
            counted.is_short = true;
            break;
        }
        left -= 1;
        let wish = Wish { target, begin, segments: number..=number };
        let Counted { newest, is_short, .. } = route.count(&wish, told.reading_from(number, first)).await;
        counted.join(Counted { newest, is_short, ..Counted::default() });
    }
    counted
}

/// The segments of a timeline from `first` on of which anything is stored.
fn stored(route: &Route<'_>, timeline: TimelineId, first: SegmentNumber) -> BTreeSet<SegmentNumber> {
    let Some(stock) = route.inventory.timelines.get(&timeline) else { return BTreeSet::new() };
    let begun = stock.parts.keys().chain(&stock.partial).chain(stock.tails.keys());
    stock.complete.iter().chain(begun).copied().filter(|number| *number >= first).collect()
}

fn untold<T>(found: Result<T>) -> Option<T> {
    found.inspect_err(|error| tracing::warn!("what WAL beside the restore holds is not all known: {error}")).ok()
}
