//! What must be known before `wal-fetch` may answer without a plan: later WAL, child timelines, and the caller's own files.
//! A few small listings, whatever the archive's size.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;

use super::decide::{Child, Own};
use crate::archive::Archive;
use crate::archive::inventory::history_missing;
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::{MajorVersion, SegmentName, SystemIdentifier, TimelineHistory, TimelineId};
use crate::repo::names::{WalObject, parse_wal_object};
use crate::seal::content::event::Hole;
use crate::seal::content::heartbeat::Heartbeat;

/// Whether anything of the segment's timeline after it is stored.
pub async fn later_wal(archive: &Archive, segment: SegmentName) -> Result<bool> {
    let root = archive.names.root();
    let timeline = format!("{:08X}", segment.timeline.0);
    let tails = archive.repo.folders(&format!("{root}/tail/{timeline}")).await?;
    let newer = |name: &String| SegmentName::parse(leaf(name), segment.size).is_some_and(|s| s.number > segment.number);
    if tails.iter().any(newer) {
        return Ok(true);
    }
    let groups = archive.repo.folders(&format!("{root}/wal/{timeline}")).await?;
    let group = segment.group();
    if groups.iter().any(|name| leaf(name) > group.as_str()) {
        return Ok(true);
    }
    Ok(stored_in_group(archive, segment).await?.iter().any(|s| s.number > segment.number))
}

/// Whether any WAL of exactly this segment is stored.
async fn any_wal(archive: &Archive, segment: SegmentName) -> Result<bool> {
    if stored_in_group(archive, segment).await?.contains(&segment) {
        return Ok(true);
    }
    Ok(!archive.repo.list(&archive.names.tail_folder(segment)).await?.is_empty())
}

/// Segments of the same 4 GiB of which an object is stored.
async fn stored_in_group(archive: &Archive, segment: SegmentName) -> Result<BTreeSet<SegmentName>> {
    let root = archive.names.root();
    let prefix = format!("{root}/wal/{:08X}/{}", segment.timeline.0, segment.group());
    let listed = archive.repo.list(&prefix).await?;
    let of = |name: &str| {
        let relative = name.strip_prefix(root.as_str())?.strip_prefix('/')?;
        match parse_wal_object(relative, segment.size)? {
            WalObject::Segment { segment, .. } | WalObject::Partial { segment } => Some(segment),
            _ => None,
        }
    };
    Ok(listed.iter().filter_map(|l| of(&l.name)).collect())
}

/// The heartbeat of a timeline that speaks of the most WAL.
pub async fn beat(archive: &Archive, timeline: TimelineId) -> Result<Option<Heartbeat>> {
    Ok(archive.heartbeats(timeline).await?.into_iter().max_by_key(|beat| beat.lsn))
}

/// A hole that was recorded on a timeline and holds some of this segment.
pub async fn given_up(archive: &Archive, segment: SegmentName) -> Result<Option<Hole>> {
    let timelines = |hole: &Hole| [hole.from_timeline, hole.to_timeline].contains(&segment.timeline);
    let within = |hole: &Hole| hole.from < segment.end() && hole.to > segment.start();
    Ok(archive.holes().await?.into_iter().rfind(|hole| timelines(hole) && within(hole)))
}

/// The history of a timeline; `None`: none is stored, nor anything else of it. `Kind::Corrupt` where there is WAL of it, or was: its history was stored before that,
/// and may only be away for now, as in a copy of the repository that is not finished.
pub async fn history(archive: &Archive, timeline: TimelineId) -> Result<Option<Bytes>> {
    let found = archive.history(timeline).await?;
    if found.is_some() || !begun(archive, timeline).await? {
        return Ok(found);
    }
    // It may have come between the two looks.
    archive.history(timeline).await?.map(Some).ok_or_else(|| history_missing(timeline))
}

/// Whether a receiver has begun to store a timeline: WAL, a tail, or a heartbeat. Two small listings.
async fn begun(archive: &Archive, timeline: TimelineId) -> Result<bool> {
    let names = &archive.names;
    let beats = names.heartbeat_folder(timeline);
    let tails = archive.repo.folders(&format!("{}/tail/{:08X}", names.root(), timeline.0)).await?;
    let of_ours = |name: &str| {
        SegmentName::parse(name, names.segment_size).is_some_and(|segment| segment.timeline == timeline)
            || name == leaf(&beats)
    };
    Ok(tails.iter().any(|name| of_ours(leaf(name))) || !archive.groups(timeline).await?.is_empty())
}

/// So many timelines without a history file may stand between two that have one, before only those with WAL are looked at.
const LONGEST_GAP: u32 = 16;

/// The stored timelines that descend from the segment's; `pgdata` tells which of them the caller knows.
pub async fn children(archive: &Archive, segment: SegmentName, pgdata: &Path) -> Result<Vec<Child>> {
    let root = archive.names.root();
    let mut timelines: BTreeSet<u32> = BTreeSet::new();
    for folder in ["wal", "tail"] {
        let names = archive.repo.folders(&format!("{root}/{folder}")).await?;
        timelines.extend(names.iter().filter_map(|name| u32::from_str_radix(leaf(name), 16).ok()));
    }
    let mut out = Vec::new();
    let (mut number, mut missing) = (segment.timeline.0, 0);
    // Past the highest timeline with WAL there may be history files alone: they follow one another.
    loop {
        let Some(next) = number.checked_add(1) else { return Ok(out) };
        // A stray folder of a high number must not have all numbers below it asked for.
        number = if missing < LONGEST_GAP { next } else { timelines.range(next..).next().copied().unwrap_or(next) };
        let expected = timelines.last().is_some_and(|last| number <= *last);
        let timeline = TimelineId(number);
        let found = match timelines.contains(&number) {
            // One of which WAL is stored may be a child, as long as nobody knows.
            true => history(archive, timeline).await?,
            false => archive.history(timeline).await?,
        };
        let Some(content) = found else {
            if expected {
                missing = if missing < LONGEST_GAP { missing + 1 } else { 0 };
                continue;
            }
            return Ok(out);
        };
        missing = 0;
        let history =
            TimelineHistory::parse(timeline, &content).map_err(|e| Error::new(Kind::Corrupt, e.to_string()))?;
        if let Some(fork) = history.switch_point_of(segment.timeline) {
            let first = SegmentName::new(timeline, segment.size.segment_of(fork), segment.size);
            let has_wal = any_wal(archive, first).await?;
            let followed = pgdata.join("pg_wal").join(timeline.history_name()).exists();
            out.push(Child { timeline, fork, has_wal, followed });
        }
    }
}

/// The last component of a name or folder.
fn leaf(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Refuses a caller that belongs to another cluster than the archive. A folder without pg_control tells nothing, nor does one that is read while it
/// is being written.
pub fn same_cluster(pgdata: &Path, system: SystemIdentifier) -> Result<()> {
    let path = pgdata.join("global/pg_control");
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::new(Kind::Failed, format!("cannot read {}", path.display())).caused_by(e)),
    };
    match ControlFile::parse(&content) {
        Ok(own) if own.system != system => {
            let message = format!("this server has the system identifier {}, the archive is of {system}", own.system);
            Err(Error::new(Kind::Diverged, message)
                .hint("give restore_command the configuration of this server's own cluster"))
        }
        _ => Ok(()),
    }
}

/// Compares the caller's own `pg_wal/<segment>` with a tail that would replace it.
pub fn own_file(pgdata: &Path, segment: SegmentName, system: SystemIdentifier, tail: &[u8]) -> Result<Own> {
    let path = pgdata.join("pg_wal").join(segment.to_string());
    match std::fs::read(&path) {
        Ok(own) => Ok(compare(&own, tail, segment, system)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Own::Absent),
        Err(e) => Err(Error::new(Kind::Failed, format!("cannot read {}", path.display())).caused_by(e)),
    }
}

/// PostgreSQL deletes its own file in favour of the one it is given, so the tail must hold every whole record of it. What follows the last
/// whole record can be zeros, the head of a record, or what the file held before it was recycled: nothing that could be replayed.
fn compare(own: &[u8], tail: &[u8], segment: SegmentName, system: SystemIdentifier) -> Own {
    let used = own.len() - own.iter().rev().take_while(|b| **b == 0).count();
    if own.get(..used).is_some_and(|used| tail.starts_with(used)) {
        return Own::Contained;
    }
    let magic = own.get(..2).and_then(|m| m.try_into().ok()).map(u16::from_le_bytes);
    let Some(version) = magic.and_then(MajorVersion::from_wal_magic) else { return Own::Contained };
    let config = ScanConfig { version, system, timeline: segment.timeline, segment_size: segment.size };
    let mut scanner = WalScanner::new(config, segment.start());
    let ended = scanner.feed_until_end(own, &mut |_| ());
    let whole = scanner.checked().since(segment.start()) as usize;
    // The file is full and ends inside a record: the caller's next file may hold the rest, and without this one it could not be replayed.
    let goes_on = scanner.pending().is_some();
    match ended {
        // Its first page belongs to something else.
        Err(invalid) if whole == 0 && invalid.at == segment.start() => Own::Contained,
        _ if whole > 0 && !goes_on && own.get(..whole).is_some_and(|whole| tail.starts_with(whole)) => Own::Contained,
        _ => Own::Ahead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_component() {
        assert_eq!(leaf("clusters/main/7-1/wal/0000000A/"), "0000000A");
        assert_eq!(leaf("0000000A"), "0000000A");
    }
}
