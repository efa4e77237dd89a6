//! Whether the WAL is stored without which a backup is none: from its start to its stop.

use super::Archive;
use super::path::{Leg, Path};
use crate::error::{Kind, Result};
use crate::pg::{Lsn, SegmentName, TimelineHistory, TimelineId};
use crate::seal::content::manifest::Manifest;

impl Archive {
    /// What of a backup's own WAL, or of the way to it, is not stored or damaged; `None` when all of it is there. Names and ends are looked at, contents are not.
    /// Errors: the store.
    pub async fn lacks_wal(&self, manifest: &Manifest) -> Result<Option<String>> {
        if manifest.start >= manifest.stop {
            return Ok(None);
        }
        match self.own_wal(manifest).await {
            Err(error) if error.kind() == Kind::Corrupt || error.is_of_the_disk() => Ok(Some(error.to_string())),
            found => found,
        }
    }

    async fn own_wal(&self, manifest: &Manifest) -> Result<Option<String>> {
        let last = manifest.stop_timeline;
        let history = match self.parsed_history(last).await? {
            Some(history) => history,
            None if last <= TimelineId(1) => TimelineHistory::root(last),
            None => return Ok(Some(format!("the history of its timeline {last} is not stored"))),
        };
        let legs = Path::of(&history).legs;
        for (index, leg) in legs.iter().enumerate().filter(|(_, leg)| leg.timeline >= manifest.timeline) {
            let from = leg.begin.max(manifest.start);
            let to = leg.end.unwrap_or(manifest.stop).min(manifest.stop);
            if from < to && !self.holds(leg, from, to, legs.get(index + 1)).await? {
                let text = format!("its WAL from {from} to {to} of timeline {} is not all stored", leg.timeline);
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// Whether a timeline's bytes are stored; those of the segment in which it was left may be those that the next one's first segment begins with.
    async fn holds(&self, leg: &Leg, from: Lsn, to: Lsn, next: Option<&Leg>) -> Result<bool> {
        let end = self.run_from(leg.timeline, from, to).await?.unwrap_or(from);
        let size = self.names.segment_size;
        let border = size.segment_of(to).start(size);
        match next {
            _ if end >= to => Ok(true),
            Some(next) if end >= border || from >= border => {
                Ok(self.end_in(SegmentName::new(next.timeline, size.segment_of(to), size)).await? >= to)
            }
            _ => Ok(false),
        }
    }
}
