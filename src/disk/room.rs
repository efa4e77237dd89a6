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

/// Bytes of the disk that the files of a folder take, but for old WAL, which a restore keeps beside its own. Links are not followed.
pub fn taken(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() && entry.file_name() != "pg_wal" => taken(&entry.path()),
        Ok(found) if found.is_file() => found.blocks().saturating_mul(BLOCK),
        _ => 0,
    };
    entries.flatten().map(of).fold(0, u64::saturating_add)
}

/// Unit of `st_blocks`, whatever the file system's own is (`stat(2)`).
const BLOCK: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_take_is_counted_without_old_wal_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["base/5", "pg_wal"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("base/5/1"), vec![1; 100_000]).unwrap();
        std::fs::write(dir.path().join("pg_wal/1"), vec![1; 500_000]).unwrap();
        std::fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        rustix::fs::sync();
        let counted = taken(dir.path());
        assert!((100_000..200_000).contains(&counted), "{counted}");
        assert_eq!(taken(&dir.path().join("absent")), 0);
    }

    #[test]
    fn what_is_not_there_yet_lies_where_its_parent_does() {
        let dir = tempfile::tempdir().unwrap();
        let (here, below) = (at(dir.path()).unwrap(), at(&dir.path().join("a/b")).unwrap());
        assert!(here.device == below.device && here.free > 0);
        assert_eq!(at(Path::new("")), None);
    }
}
