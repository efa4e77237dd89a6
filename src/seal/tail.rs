//! The tail: frames of an unfinished segment, each findable without keys, each carrying the running keyed hash of the segment.

use bytes::Bytes;

use super::header::Claims;
use super::key::{ReaderKeys, WriterKeys};
use super::opener::OpenFailed;
use super::sealer::Compression;

/// Seals the flushes of one open segment (one salt, frame numbers only go up). Local `.open` file and pieces share the format.
pub struct TailSealer {}

impl TailSealer {
    /// Claims' `start` is the LSN of the first byte.
    pub fn new(_keys: &WriterKeys, _claims: Claims, _salt: [u8; 32], _compression: Compression) -> TailSealer {
        todo!()
    }

    /// Header and key commitments: the first bytes of the file or piece.
    pub fn preamble(&self) -> Bytes {
        todo!()
    }

    /// Seals the next bytes (split into frames of at most 256 KiB) and says what to append.
    pub fn seal(&mut self, _bytes: &[u8]) -> Bytes {
        todo!()
    }
}

/// How a tail ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailContent {
    /// Plain bytes from the claims' start.
    pub plain: Vec<u8>,
    /// Keyed running hash at the end of the last frame.
    pub hash: [u8; 32],
    /// Bytes of the file that hold valid frames; the rest is zero or torn.
    pub sealed_len: u64,
}

/// Opens every whole frame. The first frame whose length is 0 or whose CRC-32C fails ends the tail, unless a valid frame follows: that is damage.
pub fn open_tail(_file: &[u8], _expected: &Claims, _keys: &dyn ReaderKeys) -> Result<TailContent, OpenFailed> {
    todo!()
}

/// Without the identity: ends (plain length) and running hashes of the whole frames, for comparing what is received again.
pub fn tail_marks(
    _file: &[u8],
    _expected: &Claims,
    _keys: &dyn ReaderKeys,
) -> Result<Vec<(u64, [u8; 32])>, OpenFailed> {
    todo!()
}
