//! How much may still be written where.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// File systems that keep bytes as they are written: ext2 to ext4, XFS, tmpfs (`linux/magic.h`). Others may compress them, or ask somebody else.
const AS_WRITTEN: [u64; 3] = [0xEF53, 0x5846_5342, 0x0102_1994];

/// A file system, as a path leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub device: u64,
    /// Bytes that this user may still write.
    pub free: u64,
    /// More than that certainly does not fit.
    pub certain: bool,
}

/// Of the path, or of the nearest folder above it that is there. `None` where that cannot be told.
pub fn at(path: &Path) -> Option<Room> {
    let there = path.ancestors().find(|folder| folder.exists())?;
    let device = there.metadata().ok()?.dev();
    let stat = rustix::fs::statfs(there).ok()?;
    let root = rustix::process::geteuid().is_root();
    let blocks = if root { stat.f_bfree } else { stat.f_bavail };
    let free = blocks.checked_mul(stat.f_frsize as u64)?;
    Some(Room { device, free, certain: AS_WRITTEN.contains(&(stat.f_type as u64)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_yet_lies_where_its_parent_does() {
        let dir = tempfile::tempdir().unwrap();
        let (here, below) = (at(dir.path()).unwrap(), at(&dir.path().join("a/b")).unwrap());
        assert!(here.device == below.device && here.free > 0);
        assert_eq!(at(Path::new("")), None);
    }
}
