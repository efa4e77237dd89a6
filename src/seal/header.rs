//! The object header: what an object says about itself, in the clear, bound into its keys.

use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

/// Kinds of objects; the number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    Segment = 1,
    Partial = 2,
    Tail = 3,
    Pack = 4,
    Map = 5,
    Intent = 6,
    Manifest = 7,
    Tombstone = 8,
    ServerManifest = 9,
    Event = 10,
    History = 11,
    GroupSummary = 12,
    Plan = 13,
    Cluster = 14,
}

/// Which keys open the frames after frame 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyClass {
    /// WAL and pages: data key and repository secret.
    Content,
    /// Names, times, sizes: the repository secret alone.
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub [u8; 16]);

/// What the writer states about the object; every reader demands that it is what the object's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    pub kind: ObjectKind,
    pub repository: RepositoryId,
    pub system: SystemIdentifier,
    pub segment_size: SegmentSize,
    /// Timeline, for WAL and history; 0 otherwise.
    pub timeline: TimelineId,
    /// First LSN of the content, for WAL; number of the part in its folder otherwise.
    pub start: Lsn,
}

/// The parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub claims: Claims,
    pub salt: [u8; 32],
    /// The data key, wrapped for the repository identity (an age file); empty when the repository is not encrypted or the class is Index.
    pub wrapped_key: Vec<u8>,
}
