//! Summary of a segment: frame 0 of its object.

use crate::pg::Lsn;

/// What is known of one segment (or part, or `.partial`) without opening its content. JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub start: Lsn,
    pub end: Lsn,
    /// Keyed BLAKE3 of the bytes from `start` to `end`.
    pub hash: [u8; 32],
}
