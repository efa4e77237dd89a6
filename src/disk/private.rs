//! Folders and files that only their owner may reach, sockets, and what is sealed already.

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::durable;
use crate::error::{Error, Kind, Result};

/// Makes a folder of mode 0700, and those above it. One that is there already is closed to others; one of another user is refused.
pub fn folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| durable::failed("cannot make", path, e))?;
    let meta = std::fs::symlink_metadata(path).map_err(|e| durable::failed("cannot look at", path, e))?;
    let own = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || (meta.uid() != own && own != 0) {
        return Err(Error::new(Kind::Failed, format!("{} is not a folder of this user", path.display()))
            .hint("a receiver of another user may live in it: run this as that user, or configure another place (state_dir, spool_dir; --work-dir of a drill)"));
    }
    if meta.mode() & 0o077 != 0 {
        restrict(path, 0o700)?;
    }
    Ok(())
}

/// Sets the mode.
pub fn restrict(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|e| durable::failed("cannot set the mode of", path, e))
}

/// Removes a file, now or never: nobody misses it.
pub fn forget(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => tracing::debug!(%error, "{} stays", path.display()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_closed_to_others_whether_it_was_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/status");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        folder(&path).unwrap();
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        folder(&path).unwrap();
        assert_eq!(mode(), 0o700);
        let file = path.join("file");
        std::fs::write(&file, "").unwrap();
        assert!(folder(&file).is_err());
        forget(&file);
        forget(&file);
        assert!(!file.exists());
    }
}
