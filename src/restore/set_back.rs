//! A server's clock that was set back passes the same time twice: what that means for the choice of a backup.

use std::collections::BTreeMap;

use super::choose::Wanted;
use super::plan::{Stop, Walk};
use super::scan::Route;
use super::target::{Target, time_text};
use crate::archive::path::Path;
use crate::error::{Error, Kind, Result};
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::xact::{self, PgTime};
use crate::pg::{Lsn, SegmentNumber, SegmentSize};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::summary::Summary;

/// The backup that is restored holds what was committed, by the server's clock, later than the target time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub backup: String,
    /// The latest that was found: a commit or a rollback.
    pub latest: PgTime,
    /// A backup from which the server stops before the first such.
    pub instead: Option<String>,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Held { backup, latest, instead } = self;
        write!(
            f,
            "backup {backup} holds transactions of up to {}, later than the target: the server's clock was set back before it was taken",
            time_text(*latest)
        )?;
        if let Some(instead) = instead {
            write!(f, "; --backup {instead} stops before the first of them, and leaves out what came after")?;
        }
        Ok(())
    }
}

/// WAL before a backup, by segment, as summaries tell of it: the latest time of what ended there. `None`: nobody tells all of it, and it has to be read.
#[derive(Debug, Default)]
struct Before(BTreeMap<SegmentNumber, Option<PgTime>>);

impl Before {
    /// The segments with WAL between `from` and `to` of which anything is stored.
    async fn look(route: &Route<'_>, from: Lsn, to: Lsn) -> Result<Before> {
        let size = route.archive.names.segment_size;
        let mut told: BTreeMap<SegmentNumber, (u64, Option<PgTime>)> = BTreeMap::new();
        let see = |summary: &Summary| {
            // One without a record speaks of bytes alone.
            if summary.start < to && summary.records > 0 {
                let (bytes, latest) = told.entry(size.segment_of(summary.start)).or_default();
                *bytes += told_of(summary, size);
                *latest = (*latest).max(summary.times.map(|(_, latest)| latest));
            }
        };
        route.archive.summaries_along(route.path, size.segment_of(from).start(size), see).await?;
        let mut before = Before::default();
        if from < to {
            let oldest = route.path.legs.iter().filter_map(|leg| route.inventory.first(leg.timeline)).min();
            let (first, last) = (oldest.max(Some(size.segment_of(from))), size.segment_before(to).0);
            let first = first.map_or(0, |first| first.0);
            for number in (first..=last).map(SegmentNumber).filter(|number| stored(route, *number, size)) {
                // Of a segment in which a timeline was left its summary tells of the branch that died, too.
                let forked = route.path.sources(number, size).len() > 1;
                let whole = told.get(&number).filter(|(bytes, _)| *bytes >= size.bytes() && !forked);
                // Nothing of it ended a transaction: as good as the earliest time.
                before.0.insert(number, whole.map(|(_, latest)| latest.unwrap_or(PgTime(i64::MIN))));
            }
        }
        Ok(before)
    }

    /// Whether a recovery that begins at `from` may be stopped by a time target in front of `to`.
    fn may_stop(&self, from: Lsn, to: Lsn, target: &Target, size: SegmentSize) -> bool {
        from < to
            && (self.0.range(size.segment_of(from)..=size.segment_before(to)))
                .any(|(_, latest)| latest.is_none_or(|latest| is_later(latest, target)))
    }
}

/// Bytes of its segment of which a summary tells what ended there: behind a switch nothing does, and those parts of a large segment have no records to tell of.
fn told_of(summary: &Summary, size: SegmentSize) -> u64 {
    let end = if summary.switched { size.segment_of(summary.start).end(size) } else { summary.end };
    end.since(summary.start)
}

fn stored(route: &Route<'_>, number: SegmentNumber, size: SegmentSize) -> bool {
    route.path.sources(number, size).iter().any(|leg| {
        let (first, last) = (route.inventory.first(leg.timeline), route.inventory.last(leg.timeline));
        first.is_some_and(|first| first <= number) && last.is_some_and(|last| number <= last)
    })
}

/// So far back is looked: the summaries of that are 64 objects.
const LOOK_BACK: u64 = 256 << 30;

/// So many segments are read of which no summary tells all, the newest ones.
const READ: u32 = 16;

/// Whether what ended at `time` stops a recovery.
fn is_later(time: PgTime, target: &Target) -> bool {
    matches!(target, Target::Time { time: wanted, inclusive } if time > *wanted || !inclusive && time == *wanted)
}

/// Where the server's own rules lead from the newest backup to a time, that backup may hold what was committed later by a clock that was set back since.
/// `older`: the backups on the way that are older than it, newest first. What cannot be read is told in the log only: the landing is as it is.
pub async fn held(
    route: &Route<'_>,
    wanted: &Wanted,
    manifest: &Manifest,
    older: &[(&Manifest, Walk)],
) -> Option<Held> {
    look_for(route, wanted, manifest, older).await.unwrap_or_else(|error| {
        untold(&error);
        None
    })
}

async fn look_for(
    route: &Route<'_>,
    wanted: &Wanted,
    manifest: &Manifest,
    older: &[(&Manifest, Walk)],
) -> Result<Option<Held>> {
    if !matches!(wanted.target, Target::Time { .. }) {
        return Ok(None);
    }
    let (to, size) = (manifest.start, route.archive.names.segment_size);
    let before = Before::look(route, Lsn(to.0.saturating_sub(LOOK_BACK)), to).await?;
    let (mut latest, mut first, mut left) = (None, None, READ);
    for (number, told) in before.0.iter().rev() {
        // Of the backup's own first segment only what lies before it counts.
        let found = match told {
            Some(told) if !is_later(*told, &wanted.target) => continue,
            Some(told) if number.end(size) <= to => Some(*told),
            _ if left == 0 => continue,
            _ => {
                left -= 1;
                read(route, *number, to).await?
            }
        };
        let found = found.filter(|found| is_later(*found, &wanted.target));
        latest = latest.max(found);
        first = found.map(|_| *number).or(first);
    }
    let Some(latest) = latest else { return Ok(None) };
    let mut instead = None;
    // One that begins behind the first of them holds that.
    let ahead = |candidate: &Manifest| Some(size.segment_of(candidate.start)) <= first;
    for (candidate, walk) in older.iter().filter(|(candidate, _)| ahead(candidate)) {
        if before.may_stop(candidate.start, to, &wanted.target, size) {
            let mut read = route.read(walk.clone(), candidate.start, Some(to)).await?;
            if let Some(error) = read.damage.take().filter(|error| error.kind() != Kind::Corrupt) {
                return Err(error);
            }
            if stops(read.walk, route.path) {
                instead = Some(candidate.id.to_string());
                break;
            }
        }
    }
    Ok(Some(Held { backup: manifest.id.to_string(), latest, instead }))
}

/// Whether a record stops this recovery, with the target met.
fn stops(walk: Walk, path: &Path) -> bool {
    walk.finish(path.target()).is_ok_and(|landing| matches!(landing.stop, Stop::Before { .. } | Stop::After { .. }))
}

/// The latest time of what ended in a segment, up to `to`.
async fn read(route: &Route<'_>, number: SegmentNumber, to: Lsn) -> Result<Option<PgTime>> {
    let size = route.archive.names.segment_size;
    let config = ScanConfig {
        version: route.version,
        system: route.archive.names.system,
        timeline: route.path.target(),
        segment_size: size,
    };
    let mut scanner = WalScanner::new(config, number.start(size));
    let (name, bytes) = match route.archive.read_along(route.path, number, route.inventory).await {
        Err(error) if error.kind() == Kind::Corrupt => return Ok(untold(&error)),
        found => found?,
    };
    let mut latest = None;
    let before = bytes.len().min(to.since(number.start(size)) as usize);
    let fed = scanner.feed(bytes.get(..before).unwrap_or_default(), &mut |record| {
        if let Ok(Some(time)) = xact::note(record, route.version).map(|note| note.ended().map(|(_, time)| time)) {
            latest = latest.max(Some(time));
        }
    });
    if let Err(invalid) = fed {
        untold(&Error::new(Kind::Corrupt, invalid.to_string()).context(name));
    }
    Ok(latest)
}

fn untold(error: &Error) -> Option<PgTime> {
    tracing::warn!("WAL before the backup was not looked through: {error}");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn behind_a_switch_the_parts_of_a_segment_need_not_be_told_of() {
        let (size, part) = (SegmentSize::new(64 * MB).unwrap(), |from: u64| {
            let (start, end) = (Lsn((64 + from) * MB), Lsn((64 + from + 16) * MB));
            Summary { records: 9, ..Summary::of(start, end, [0; 32]) }
        });
        let switched = Summary { switched: true, ..part(16) };
        assert_eq!((told_of(&part(0), size), told_of(&switched, size)), (16 * MB, 48 * MB));
    }

    #[test]
    fn only_segments_with_something_later_or_untold_are_worth_reading() {
        let told = [(1, Some(90)), (2, Some(i64::MIN)), (3, None), (4, Some(50)), (5, Some(60))];
        let before = Before(told.map(|(number, latest)| (SegmentNumber(number), latest.map(PgTime))).into());
        let may = |from: u64, to: u64, time: i64, inclusive: bool| {
            let target = Target::Time { time: PgTime(time), inclusive };
            before.may_stop(Lsn(from), Lsn(to), &target, SegmentSize::new(MB).unwrap())
        };
        assert!(may(MB, 2 * MB, 89, true) && may(MB + 5, MB + 9, 89, true));
        assert!(
            !may(MB, 3 * MB, 90, true) && may(MB, 3 * MB, 90, false),
            "the time itself stops only what excludes it"
        );
        assert!(!may(2 * MB, 3 * MB, 0, true), "nothing ended there");
        assert!(may(2 * MB, 3 * MB + 1, 1000, true), "nobody tells");
        assert!(!may(4 * MB, 6 * MB, 60, true) && may(4 * MB, 6 * MB, 55, true) && !may(4 * MB, 5 * MB, 55, true));
        assert!(!may(5 * MB, 5 * MB, 0, true) && !may(7 * MB, 9 * MB, 0, true));
    }
}
