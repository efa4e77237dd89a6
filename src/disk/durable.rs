//! Files that are there after a power cut: created whole, synced, with every directory above them.

use std::path::Path;

use crate::error::Result;

/// Creates `path` (which must not exist) with `bytes` and `mode`, synced, its directory synced. Never leaves half a file under the name.
pub fn create_new(_path: &Path, _bytes: &[u8], _mode: u32) -> Result<()> {
    todo!()
}

/// Replaces or creates `path` atomically (temporary file, fsync, rename, directory fsync).
pub fn replace(_path: &Path, _bytes: &[u8], _mode: u32) -> Result<()> {
    todo!()
}

/// Creates all missing directories down to `path`, each synced into its parent.
pub fn create_dirs(_path: &Path) -> Result<()> {
    todo!()
}

/// Syncs `path` and every directory above it up to and including `root`: before something found counts as durable.
pub fn sync_found(_path: &Path, _root: &Path) -> Result<()> {
    todo!()
}

/// Deletes `path` durably; a missing file is no error.
pub fn remove(_path: &Path) -> Result<()> {
    todo!()
}
