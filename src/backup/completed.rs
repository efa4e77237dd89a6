//! Which backups became complete, noted in `state_dir`: one whose manifest vanishes is not taken for a run that died.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::archive::Archive;
use crate::disk::durable;
use crate::error::Result;
use crate::seal::content::{BackupId, hex};

/// As many are kept. Only those after the newest manifest in the repository are ever asked for.
const KEPT: usize = 16;

/// The note of one cluster in one repository: ids, a line for each. All calls block.
pub struct Completed {
    path: PathBuf,
}

impl Completed {
    pub fn of(state_dir: &Path, archive: &Archive) -> Completed {
        let repository = hex(&archive.keys.repository().0);
        Completed { path: state_dir.join(format!("complete-{}-{repository}", archive.names.cluster)) }
    }

    /// The last ones that became complete, in that order; none where nothing was noted.
    pub fn ids(&self) -> Result<Vec<BackupId>> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Ok(text.lines().filter_map(|line| BackupId::parse(line).ok()).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(durable::failed("cannot read", &self.path, error)),
        }
    }

    /// Notes that the manifest of this one is stored; durable when this returns.
    pub fn note(&self, id: &BackupId) -> Result<()> {
        let ids = self.ids()?;
        let kept = ids.iter().skip((ids.len() + 1).saturating_sub(KEPT)).chain([id]);
        let text: String = kept.map(|id| format!("{id}\n")).collect();
        durable::replace(&self.path, text.as_bytes(), 0o600)
    }
}
