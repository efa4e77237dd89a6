//! Holes that were recorded, and whether a backup has made them a matter of the past.

use super::Archive;
use crate::error::Result;
use crate::seal::content::event::Hole;
use crate::seal::content::manifest::Manifest;

impl Archive {
    /// The holes that no complete backup lies behind, in the order in which they were given up: nothing can be restored past these yet.
    pub async fn open_holes(&self) -> Result<Vec<Hole>> {
        let holes = self.holes().await?;
        self.still_open(holes).await
    }

    /// Which of these holes no complete backup lies behind.
    pub async fn still_open(&self, mut holes: Vec<Hole>) -> Result<Vec<Hole>> {
        if !holes.is_empty() {
            let backups = self.list_backups().await?.complete;
            holes.retain(|hole| !backups.iter().any(|backup| is_behind(backup, hole)));
        }
        Ok(holes)
    }
}

/// Whether a backup begins behind a hole, so that its WAL needs nothing of what is missing.
pub fn is_behind(backup: &Manifest, hole: &Hole) -> bool {
    (backup.timeline, backup.start) >= (hole.to_timeline, hole.to)
}
