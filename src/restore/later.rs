//! Other timelines that go on later than the newest one, where `--latest` lands: nobody may take that for the latest there is.

use super::beside::left_at;
use super::path::{Leg, Path};
use super::plan::Landing;
use super::target::time_text;
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::error::Result;
use crate::pg::TimelineId;
use crate::pg::xact::PgTime;
use crate::seal::content::manifest::Manifest;

/// A timeline beside the path of a restore, of which something later is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Later {
    pub timeline: TimelineId,
    /// The newest complete backup of it, where none on the path is as new.
    pub backup: Option<String>,
    /// Its last commit, or when that backup was complete, whichever is later.
    pub through: PgTime,
}

impl std::fmt::Display for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Later { timeline, backup, through } = self;
        write!(f, "timeline {timeline} goes on through {}, later than where this lands", time_text(*through))?;
        if let Some(backup) = backup {
            write!(f, ", and has the newest complete backup, {backup}")?;
        }
        write!(f, "; --target-timeline {timeline} for that")
    }
}

/// Timelines that a backup leads to and that have, off this path, a newer complete backup or a later commit than `landing`, as names, manifests and the summaries
/// of objects say. Of the open segment no summary speaks.
pub async fn later(
    archive: &Archive,
    inventory: &Inventory,
    backups: &[Manifest],
    path: &Path,
    landing: &Landing,
) -> Result<Vec<Later>> {
    let size = archive.names.segment_size;
    let on_path = |manifest: &&Manifest| path.holds(manifest.stop_timeline, manifest.stop);
    let newest = backups.iter().filter(on_path).map(|manifest| manifest.stopped_at).max();
    let beats = archive.heartbeats(path.target()).await?;
    // Where nothing was committed since the backup, that is as new as anything here.
    let own = landing.last_commit.map(|commit| commit.time).or(newest.map(time));
    let own = own.max(beats.iter().map(|beat| beat.time).max());
    let mut found = Vec::new();
    for timeline in inventory.timelines.keys().copied().filter(|timeline| *timeline != path.target()) {
        // Without its history nothing can be restored there.
        let Ok(history) = inventory.demand_history(timeline) else { continue };
        let other = Path::of(&history);
        let Some(begin) = left_at(path, &other) else { continue };
        if !backups.iter().any(|manifest| other.holds(manifest.stop_timeline, manifest.stop)) {
            continue;
        }
        let of_it = backups.iter().filter(|manifest| manifest.stop_timeline == timeline && !on_path(manifest));
        let backup = of_it.max_by_key(|m| m.stopped_at).filter(|manifest| Some(manifest.stopped_at) > newest);
        let mut through = backup.map(|manifest| time(manifest.stopped_at));
        if inventory.last(timeline).is_some_and(|last| last.end(size) > begin) {
            let leg = Path { legs: vec![Leg { timeline, begin, end: None }] };
            let see = |summary: &crate::seal::content::summary::Summary| {
                through = through.max(summary.times.map(|(_, latest)| latest).filter(|latest| Some(*latest) > own));
            };
            archive.summaries_along(&leg, size.segment_of(begin).start(size), see).await?;
        }
        if let Some(through) = through {
            found.push(Later { timeline, backup: backup.map(|manifest| manifest.id.to_string()), through });
        }
    }
    Ok(found)
}

fn time(at: jiff::Timestamp) -> PgTime {
    PgTime::from_unix_micros(at.as_microsecond())
}
