//! Maps: which files a backup has, and in which frame of which pack their bytes are.
//!
//! A map is a run of entries sorted by path, cut into parts of about 4 MiB. A backup names up to 16 maps, newest first; [`Merge`] reads
//! them together and yields each file once. A page is taken from the newest map that names it. [`Layers`] makes one map of several adjacent ones.

mod combine;
#[cfg(test)]
mod layers_tests;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use bytes::Bytes;

pub use combine::combine;
pub use merge::{File, LayerStep, Layers, Merge, Step};
pub use read::MapReader;
pub use write::MapWriter;

use super::BackupId;
pub use super::contents::Unit;
use crate::seal::sealer::FramePlace;

const VERSION: u64 = 1;
const WHAT: &str = "map";

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Not there any more: what older maps say of the path does not count.
    Absent,
    /// A file made of 8 KiB pages: its size is a multiple of 8192 and its runs count pages.
    Pages,
    /// Any other file: its runs count bytes.
    Bytes,
    Directory,
    /// A symbolic link (none of `pg_tblspc`: those are in `tablespace_map`).
    Symlink,
}

impl EntryKind {
    /// In what the runs of such a file are counted; `None` for what has no content.
    pub fn unit(self) -> Option<Unit> {
        match self {
            EntryKind::Pages => Some(Unit::Pages),
            EntryKind::Bytes => Some(Unit::Bytes),
            _ => None,
        }
    }
}

/// Where a pack is and how its frames are opened: one ranged read per run of frames is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackPlace {
    pub backup: BackupId,
    pub number: u32,
    /// Bytes of the whole object.
    pub len: u64,
    /// Copy of the pack's first bytes, up to its frame 0: what an `Opener` is made from.
    pub header: Bytes,
    /// `frames[n]` is frame `n`; frame 0 is the contents list.
    pub frames: Vec<FramePlace>,
}

impl PackPlace {
    /// Whether `frame` carries the last-frame flag.
    pub fn is_last(&self, frame: u32) -> bool {
        frame as usize + 1 == self.frames.len()
    }
}

/// Where the bytes of a run are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: they are zero.
    Zero,
    /// In `frame` of `pack`, from byte `offset` of the frame's plaintext on. A run never leaves its frame.
    Pack { pack: Arc<PackPlace>, frame: u32, offset: u32 },
}

/// Consecutive pages (or bytes) of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First page, or byte offset, in the file.
    pub first: u64,
    /// Pages or bytes.
    pub count: u64,
    pub source: Source,
}

/// What one map says of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the data directory, without `.` or `..`; a tablespace's files are under `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Bytes of the whole file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Target of a symbolic link.
    pub link: Vec<u8>,
    /// Every byte of the file is in these runs: older maps are not asked.
    pub complete: bool,
    /// Sorted by `first`, without overlaps.
    pub runs: Vec<Run>,
}
