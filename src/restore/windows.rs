//! What can be restored, timeline by timeline: from which position on and through which, and where nothing is stored. Names alone are looked at, and the
//! ends of WAL: no content is opened.

use std::collections::{BTreeMap, BTreeSet};

use super::path::{Leg, Path};
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::error::Result;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::Manifest;

/// WAL from `from` up to `to`, without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub from: Lsn,
    pub to: Lsn,
}

impl Stretch {
    fn holds(&self, at: Lsn) -> bool {
        self.from <= at && at <= self.to
    }
}

/// What matters here of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub id: BackupId,
    pub timeline: TimelineId,
    pub start: Lsn,
    pub stop_timeline: TimelineId,
    pub stop: Lsn,
}

impl Base {
    pub fn of(manifest: &Manifest) -> Base {
        let Manifest { id, timeline, start, stop_timeline, stop, .. } = manifest;
        Base { id: id.clone(), timeline: *timeline, start: *start, stop_timeline: *stop_timeline, stop: *stop }
    }
}

/// Positions that can be restored to: all from `from` through `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The end of its first backup, or the fork where it goes on from the parent's window.
    pub from: Lsn,
    pub to: Lsn,
    /// From which it can be reached, oldest first.
    pub backups: Vec<BackupId>,
}

/// One timeline of which WAL is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    pub timeline: TimelineId,
    /// Which timeline it left, and where.
    pub fork: Option<(TimelineId, Lsn)>,
    /// Its WAL, from the fork on.
    pub stored: Vec<Stretch>,
    /// WAL behind its end that was stored, as a heartbeat shows, and is gone. Whoever has the archive looks for it.
    pub lost: Option<Stretch>,
    pub windows: Vec<Window>,
}

impl Reach {
    /// Where nothing is stored between two stretches, between the fork and the first one, or behind the last.
    pub fn holes(&self) -> Vec<Stretch> {
        let begin = self.fork.map(|(_, at)| at).or(self.stored.first().map(|first| first.from));
        let mut at = begin.unwrap_or(Lsn(0));
        let mut holes = Vec::new();
        for stretch in &self.stored {
            if stretch.from > at {
                holes.push(Stretch { from: at, to: stretch.from });
            }
            at = stretch.to;
        }
        holes.extend(self.lost);
        holes
    }
}

/// The stored WAL of every timeline, from the starts of its segments on.
pub async fn stored(archive: &Archive, inventory: &Inventory) -> Result<BTreeMap<TimelineId, Vec<Stretch>>> {
    let mut out = BTreeMap::new();
    for (timeline, stock) in &inventory.timelines {
        let begun = stock.parts.keys().chain(&stock.partial).chain(stock.tails.keys());
        let numbers: BTreeSet<_> = stock.complete.iter().chain(begun).copied().collect();
        let mut stretches: Vec<Stretch> = Vec::new();
        for number in numbers {
            let segment = SegmentName::new(*timeline, number, archive.names.segment_size);
            let whole = stock.complete.contains(&number);
            let to = if whole { segment.end() } else { archive.end_in(segment).await? };
            match stretches.last_mut() {
                Some(last) if last.to == segment.start() => last.to = to,
                _ if to > segment.start() => stretches.push(Stretch { from: segment.start(), to }),
                _ => {}
            }
        }
        out.insert(*timeline, stretches);
    }
    Ok(out)
}

/// What these backups and this WAL lead to, by timeline. `minimal`: where WAL under `wal_level = minimal` begins, past which nothing can be recovered.
pub fn reaches(
    stored: &BTreeMap<TimelineId, Vec<Stretch>>,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    backups: &[Base],
    minimal: &[(TimelineId, Lsn)],
    size: SegmentSize,
) -> Vec<Reach> {
    let of = |timeline: &TimelineId| {
        let known = histories.get(timeline).cloned();
        // Without its history no restore follows any but the first.
        let backups = if known.is_some() || *timeline <= TimelineId(1) { backups } else { &[] };
        let history = known.unwrap_or_else(|| TimelineHistory::root(*timeline));
        let fork = history.ancestors.last().map(|ancestor| (ancestor.timeline, ancestor.switch_point));
        let begin = fork.map_or(Lsn(0), |(_, at)| at);
        let own = stored.get(timeline).into_iter().flatten().filter(|stretch| stretch.to > begin);
        Reach {
            timeline: *timeline,
            fork,
            stored: own.map(|own| Stretch { from: own.from.max(begin), to: own.to }).collect(),
            lost: None,
            windows: windows(&Path::of(&history), stored, backups, minimal, size),
        }
    };
    stored.keys().map(of).filter(|reach| !reach.stored.is_empty()).collect()
}

/// The windows of the path's last timeline.
fn windows(
    path: &Path,
    stored: &BTreeMap<TimelineId, Vec<Stretch>>,
    backups: &[Base],
    minimal: &[(TimelineId, Lsn)],
    size: SegmentSize,
) -> Vec<Window> {
    let begin = path.legs.last().map_or(Lsn(0), |leg| leg.begin);
    // By their ends: backups whose WAL ends at the same place share a window.
    let mut found: BTreeMap<Lsn, Window> = BTreeMap::new();
    let mut sorted: Vec<&Base> = backups.iter().filter(|base| path.holds(base.stop_timeline, base.stop)).collect();
    sorted.sort_by_key(|base| base.stop);
    for base in sorted {
        let from = base.stop.max(begin);
        let reached = through(path, stored, base, size).and_then(|to| short_of_minimal(path, minimal, base.start, to));
        let Some(to) = reached.filter(|to| *to >= from) else { continue };
        let window = found.entry(to).or_insert(Window { from, to, backups: Vec::new() });
        window.backups.push(base.id.clone());
    }
    found.into_values().collect()
}

/// `to`, or where the first WAL under `wal_level = minimal` behind `start` begins; `None` where that lies before the path's last timeline.
fn short_of_minimal(path: &Path, minimal: &[(TimelineId, Lsn)], start: Lsn, to: Lsn) -> Option<Lsn> {
    let on_way = |(timeline, at): &&(TimelineId, Lsn)| {
        let counts = |leg: &Leg| *at >= leg.begin && leg.end.is_none_or(|fork| *at < fork);
        *at >= start && path.leg(*timeline).is_some_and(counts)
    };
    match minimal.iter().filter(on_way).min_by_key(|(_, at)| *at) {
        None => Some(to),
        Some((timeline, at)) => (*timeline == path.target()).then_some(to.min(*at)),
    }
}

/// Where the WAL that continues a backup along the path ends on its last timeline; `None` where it ends before that.
fn through(path: &Path, stored: &BTreeMap<TimelineId, Vec<Stretch>>, base: &Base, size: SegmentSize) -> Option<Lsn> {
    let end = |timeline: TimelineId, at: Lsn| {
        let mut stretches = stored.get(&timeline).into_iter().flatten();
        stretches.find(|stretch| stretch.holds(at)).map(|stretch| stretch.to)
    };
    let first = path.legs.iter().position(|leg| leg.timeline == base.timeline)?;
    let mut at = base.start;
    for (index, leg) in path.legs.iter().enumerate().skip(first) {
        let reached = end(leg.timeline, at);
        let Some(fork) = leg.end else { return reached };
        // The child's first segment begins with the parent's bytes: it can stand in for them.
        let border = size.segment_of(fork).start(size);
        let child = path.legs.get(index + 1)?.timeline;
        let lent = || at >= border || reached.is_some_and(|reached| reached >= border);
        if reached.is_none_or(|reached| reached < fork) && !(lent() && end(child, border)? >= fork) {
            return None;
        }
        at = at.max(fork);
    }
    None
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
