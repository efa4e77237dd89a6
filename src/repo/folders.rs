//! Which folders of a local repository have their names on the disk for certain. An object is durable with all folders above it, each of which another process may
//! have made a moment ago; but to sync them all for each object is a flush of the disk for each, and once is enough.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::disk::durable;
use crate::disk::medium::{Identity, Medium, Seen};
use crate::error::Result;

/// More are forgotten: each segment has a folder for its tail.
const MOST: usize = 1024;

/// Tells a folder from all others that ever had its name: an inode is used again, at another time.
type Birth = (Identity, SystemTime);

#[derive(Default)]
pub(super) struct Folders {
    known: Mutex<HashMap<PathBuf, Birth>>,
}

impl Folders {
    /// Syncs the names of `folder` and of those above it into the folders that they are in, up to `root`, as far as this process has not done so since they
    /// are there. What is in `folder` is not synced, nor is the name of `root`.
    pub(super) fn sync(&self, medium: &dyn Medium, folder: &Path, root: &Path) -> Result<()> {
        let mut synced = Vec::new();
        for folder in folder.ancestors().take_while(|folder| *folder != root && folder.starts_with(root)) {
            // Looked at before it is synced: of one that took its place meanwhile nothing is known.
            let seen = medium.look(folder).map_err(|e| durable::failed("cannot look at", folder, e))?;
            let birth = birth(&seen);
            if birth.is_some() && birth == self.lock().get(folder).copied() {
                // And so are those above it, which cannot have gone while it is there.
                break;
            }
            durable::sync_dir(medium, folder.parent().unwrap_or(root))?;
            synced.extend(birth.map(|birth| (folder.to_owned(), birth)));
        }
        let mut known = self.lock();
        if known.len() + synced.len() > MOST {
            known.clear();
        }
        known.extend(synced);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Birth>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn birth(seen: &Seen) -> Option<Birth> {
    seen.made.map(|made| (seen.identity(), made))
}
