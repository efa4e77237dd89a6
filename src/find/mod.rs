//! Floor 5: what was done to the data in a window of time, read from WAL alone: relations that were dropped, truncated or rewritten, rows that were deleted or
//! updated in masses, databases, restore points, the largest commits.
//!
//! [`search`] reads the segments of the window, several ahead, and gives every record to [`tally::Tally`]; [`Book`] has the names, from the catalogs of backups.

mod book;
mod finding;
mod names;
mod tally;
mod window;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};

pub use book::{Book, Named};
pub use finding::{Deed, Finding, Touched};
pub use names::{Names, Relation};
pub use tally::{Tallied, Wish};

use self::tally::Tally;
use self::window::Window;
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::archive::path::{self, Beyond, Path};
use crate::error::{Context, Error, Kind, Result};
use crate::pg::change;
use crate::pg::record::Record;
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, MajorVersion, SegmentName, SegmentNumber, TimelineId};
use crate::seal::content::manifest::Manifest;

/// WAL that is read before it is looked at, and the most segments of it.
const AHEAD: u64 = 64 << 20;
const MOST_AHEAD: u64 = 8;

/// How far a receiver that is at work may be behind, heartbeats included.
const BEHIND: Duration = Duration::from_secs(150);

/// Where to look.
pub struct Search<'a> {
    pub wish: Wish,
    /// `None`: the newest that continues a backup's.
    pub timeline: Option<TimelineId>,
    /// Complete backups.
    pub backups: &'a [Manifest],
    /// Told after each segment: how many of how many.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// WAL of the window that is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub from: Lsn,
    pub to: Lsn,
}

/// What was read, and what was found in it.
pub struct Searched {
    pub tallied: Tallied,
    pub path: Path,
    /// Of the segments that were read; empty where the window holds none.
    pub from: Lsn,
    pub to: Lsn,
    pub bytes: u64,
    pub missing: Vec<Missing>,
    /// The archive has everything through this moment: by a heartbeat, by the last commit that was seen, or by the next one behind the window. `None` where none
    /// of them is there.
    pub complete_through: Option<PgTime>,
    /// Nothing that is stored is known to be earlier: the first commit, or the oldest backup. `None` where only the open segment is stored.
    pub begins: Option<PgTime>,
}

/// What the archive can know of a window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Whole,
    /// What was done in its last part is not stored yet.
    Begin,
    /// Nothing was stored when it began.
    Nothing,
}

/// What an archive that is complete through a moment knows of a window that ends with `to`, looked at when it is `now`. A receiver that is at work is a little
/// behind, and heartbeats are not stored all the time.
pub fn known(complete_through: Option<PgTime>, wish: Wish, now: PgTime) -> Known {
    let Some(through) = complete_through else { return Known::Nothing };
    let fresh = through.0.saturating_add(BEHIND.as_micros() as i64) >= wish.to.0.min(now.0);
    match through < wish.from {
        true if !fresh || wish.from > now => Known::Nothing,
        _ if fresh => Known::Whole,
        _ => Known::Begin,
    }
}

/// Reads the window. `Kind::Corrupt` for WAL that is damaged; WAL that is missing is told in the result.
pub async fn search(archive: &Archive, search: &Search<'_>) -> Result<Searched> {
    let inventory = archive.inventory().await?;
    let path = path_of(&inventory, search)?;
    let Wish { from, to, .. } = search.wish;
    let range = window::segments(archive, &path, &inventory, from, to).await?;
    let Some(Window { first, last, closed_by, earliest }) = range else {
        return Err(Error::new(Kind::Target, format!("no WAL of timeline {} is stored", path.target()))
            .hint("walrecv list shows what is stored"));
    };
    let (inventory, path) = (Arc::new(inventory), Arc::new(path));
    let size = archive.names.segment_size;
    let ahead = (AHEAD / size.bytes()).clamp(1, MOST_AHEAD) as usize;
    let total = last.0 - first.0 + 1;
    let mut reading = stream::iter((first.0..=last.0).map(|n| archive.read_ahead(&path, SegmentNumber(n), &inventory)))
        .buffered(ahead);
    let mut reader =
        Reader { archive, path: &path, wish: search.wish, scanner: None, tally: None, missing: Vec::new() };
    let (mut done, mut bytes) = (0, 0);
    let mut end = first.start(size);
    while let Some(segment) = reading.next().await {
        let (name, content) = segment?;
        bytes += content.len() as u64;
        let reached = name.start() + content.len() as u64;
        // The end of the archive is no hole.
        let written = path.beyond(&inventory, name.number, reached, size).map(|beyond| match beyond {
            Beyond::Stored => name.end(),
            Beyond::Fork { at, .. } | Beyond::Heartbeat { lsn: at, .. } => at,
        });
        reader.take(name, &content, written)?;
        if !content.is_empty() {
            end = reached;
        }
        done += 1;
        (search.progress)(done, total);
    }
    drop(reading);
    let mut missing = std::mem::take(&mut reader.missing);
    let tallied = reader.tally.map(Tally::finish).unwrap_or_default();
    let beat = archive.complete_through(path.target()).await?.map(|beat| beat.time);
    let complete_through = beat.max(tallied.last).max(closed_by);
    if complete_through.is_none_or(|through| to > through) {
        let lost = archive.lost_end(&inventory, path.target()).await?.filter(|lost| lost.beat.time >= from);
        missing.extend(lost.map(|lost| Missing { from: lost.from.max(end), to: lost.beat.lsn }));
    }
    let backups = search.backups.iter().map(|manifest| PgTime::from_unix_micros(manifest.started_at.as_microsecond()));
    let begins = earliest.map(|earliest| backups.fold(earliest, PgTime::min));
    let path = (*path).clone();
    Ok(Searched { tallied, path, from: first.start(size), to: end, bytes, missing, complete_through, begins })
}

/// The timelines to read along.
fn path_of(inventory: &Inventory, search: &Search<'_>) -> Result<Path> {
    let ends: Vec<_> = search.backups.iter().map(|m| (m.stop_timeline, m.stop)).collect();
    let timelines = inventory.timelines.keys().chain(inventory.histories.keys()).chain(inventory.damaged.keys());
    let known: std::collections::BTreeSet<TimelineId> = timelines.copied().collect();
    if let Some(path) = path::choose(inventory, &known, &ends, search.timeline)? {
        return Ok(path);
    }
    let wanted = search.timeline.filter(|timeline| known.contains(timeline));
    let newest = if search.timeline.is_some() { wanted } else { known.last().copied() };
    let timeline = newest.ok_or_else(|| {
        let which = search.timeline.map(|timeline| format!(" of timeline {timeline}")).unwrap_or_default();
        Error::new(Kind::Target, format!("no WAL{which} is stored")).hint("walrecv list shows what is stored")
    })?;
    Ok(Path::of(&inventory.demand_history(timeline)?))
}

/// Segments in, records to the tally.
struct Reader<'a> {
    archive: &'a Archive,
    path: &'a Path,
    wish: Wish,
    /// `None` at the start, and behind a hole.
    scanner: Option<WalScanner>,
    tally: Option<Tally>,
    missing: Vec<Missing>,
}

impl Reader<'_> {
    /// `written`: up to where WAL is known to have been written, if that is more than what is stored of the segment.
    fn take(&mut self, name: SegmentName, content: &[u8], written: Option<Lsn>) -> Result<()> {
        let end = name.start() + content.len() as u64;
        if !content.is_empty() {
            let version = version(content).context(name)?;
            let tally = self.tally.get_or_insert_with(|| Tally::new(version, self.wish));
            let scanner = self.scanner.get_or_insert_with(|| {
                let config = ScanConfig {
                    version,
                    system: self.archive.names.system,
                    timeline: self.path.target(),
                    segment_size: name.size,
                };
                WalScanner::new(config, name.start()).keeping(change::wanted)
            });
            feed(scanner, tally, content).context(name)?;
        }
        if let Some(to) = written.filter(|_| end < name.end()) {
            self.scanner = None;
            if let Some(tally) = &mut self.tally {
                tally.hole();
            }
            match self.missing.last_mut() {
                Some(last) if last.to == end => last.to = to,
                _ => self.missing.push(Missing { from: end, to }),
            }
        }
        Ok(())
    }
}

fn feed(scanner: &mut WalScanner, tally: &mut Tally, content: &[u8]) -> Result<()> {
    let mut problem = None;
    let mut sink = |record: &Record<'_>| {
        if problem.is_none() {
            problem = tally.see(record).err();
        }
    };
    let fed = scanner.feed(content, &mut sink).map_err(|e| e.to_string());
    match fed.err().or(problem) {
        Some(what) => Err(Error::new(Kind::Corrupt, what)
            .hint("look at the time before and after it, or restore the object from a copy of the repository")),
        None => Ok(()),
    }
}

/// As the first page of a segment says.
fn version(content: &[u8]) -> Result<MajorVersion> {
    let magic = content.first_chunk::<2>().map(|bytes| u16::from_le_bytes(*bytes));
    magic
        .and_then(MajorVersion::from_wal_magic)
        .ok_or_else(|| Error::new(Kind::Corrupt, "it does not begin with a page of WAL of PostgreSQL 13 to 18"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_all_clear_is_given_for_a_time_of_which_nothing_is_stored() {
        const MINUTE: i64 = 60_000_000;
        let (now, open) = (PgTime(1000 * MINUTE), i64::MAX);
        let asked = |through: Option<i64>, from: i64, to: i64| {
            let wish = Wish { from: PgTime(from), to: PgTime(to), rows: 1, largest: 0 };
            known(through.map(|through| PgTime(through * MINUTE)), wish, now)
        };
        // A receiver that is at work, also in a short window.
        assert_eq!(asked(Some(999), 880 * MINUTE, open), Known::Whole);
        assert_eq!(asked(Some(998), 999 * MINUTE, open), Known::Whole);
        // One that ended some time ago; a window that ended before that.
        assert_eq!(asked(Some(950), 880 * MINUTE, open), Known::Begin);
        assert_eq!(asked(Some(950), 880 * MINUTE, 949 * MINUTE), Known::Whole);
        assert_eq!(asked(Some(950), 960 * MINUTE, open), Known::Nothing);
        // A window that has not begun.
        assert_eq!(asked(Some(999), 2000 * MINUTE, open), Known::Nothing);
        assert_eq!(asked(None, 880 * MINUTE, open), Known::Nothing);
    }
}
