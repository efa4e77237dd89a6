//! Names of objects (pure). `docs/format/repository-format.md` has the tree.

use crate::pg::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId};

pub const REPOSITORY_FILE: &str = "walrecv.json";

/// `keys/<identity>/<recipient>.age`
pub fn key_file(_identity: &str, _recipient: &str) -> String {
    todo!()
}

/// Names below `clusters/<name>/<system id>-<segment size>/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNames {
    pub cluster: String,
    pub system: SystemIdentifier,
    pub segment_size: SegmentSize,
}

impl ClusterNames {
    /// `clusters/<name>/<system id>-<segment size>` (size in bytes, decimal).
    pub fn root(&self) -> String {
        todo!()
    }

    pub fn cluster_file(&self) -> String {
        todo!()
    }

    /// `part` is `None` for segments of at most 16 MiB.
    pub fn segment(&self, _segment: SegmentName, _part: Option<u32>) -> String {
        todo!()
    }

    pub fn partial(&self, _segment: SegmentName) -> String {
        todo!()
    }

    pub fn history(&self, _timeline: TimelineId) -> String {
        todo!()
    }

    /// `tail/<TLI>/<SEGMENT>/<from>-<to>.<run>`: offsets in the segment, 8 hexadecimal digits.
    pub fn tail_piece(&self, _segment: SegmentName, _from: u64, _to: u64, _run: &str) -> String {
        todo!()
    }

    /// `tail/<TLI>/<SEGMENT>/<run>.open` on a local disk.
    pub fn tail_open(&self, _segment: SegmentName, _run: &str) -> String {
        todo!()
    }

    pub fn pack(&self, _backup: &str, _number: u32) -> String {
        todo!()
    }

    pub fn map(&self, _backup: &str, _number: u32) -> String {
        todo!()
    }

    pub fn intent(&self, _backup: &str) -> String {
        todo!()
    }

    pub fn backup(&self, _backup: &str) -> String {
        todo!()
    }

    pub fn server_manifest(&self, _backup: &str, _part: u32) -> String {
        todo!()
    }
}

/// What a name below a cluster's `wal/` or `tail/` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalObject {
    Segment { segment: SegmentName, part: Option<u32> },
    Partial { segment: SegmentName },
    History { timeline: TimelineId },
    TailPiece { segment: SegmentName, from: u64, to: u64, run: String },
    TailOpen { segment: SegmentName, run: String },
    GroupSummary { timeline: TimelineId, first: Lsn },
}

/// Parses a name relative to the cluster's root; `None` for staging leftovers and anything unknown.
pub fn parse_wal_object(_relative: &str, _size: SegmentSize) -> Option<WalObject> {
    todo!()
}
