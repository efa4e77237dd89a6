//! Sealer: plain bytes in, sealed bytes out, one frame of at most 256 KiB at a time.

use bytes::Bytes;

use super::header::{Claims, Header};
use super::key::WriterKeys;

/// Most plaintext in one frame.
pub const FRAME_BYTES: usize = 256 << 10;
/// Most plaintext in one object.
pub const OBJECT_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd(i32),
}

/// Where a sealed frame stands in its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// From the object's first byte, frame header included.
    pub offset: u64,
    /// Frame header and ciphertext.
    pub len: u32,
    pub plain_len: u32,
}

/// A finished object, in pieces that are written one after the other.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub header: Header,
    pub bytes: Vec<Bytes>,
    pub frames: Vec<FramePlace>,
}

/// Seals one object. Frame 0 (summary, contents list; index key) is given at the end and stands first.
pub struct Sealer {}

impl Sealer {
    /// `salt` must be fresh random bytes: nothing is sealed twice under one salt.
    pub fn new(_keys: &WriterKeys, _claims: Claims, _salt: [u8; 32], _compression: Compression) -> Sealer {
        todo!()
    }

    /// Adds bytes; every full 256 KiB is compressed and sealed at once (but the last one waits, since it carries the last-frame flag).
    pub fn push(&mut self, _bytes: &[u8]) {
        todo!()
    }

    /// Ends the current frame here (packs: a frame of pages); returns the number that the next frame will get.
    pub fn cut(&mut self) -> u32 {
        todo!()
    }

    /// Plaintext so far.
    pub fn plain_len(&self) -> u64 {
        todo!()
    }

    /// Sealed bytes held in memory so far.
    pub fn sealed_len(&self) -> u64 {
        todo!()
    }

    /// Seals frame 0 (at most 256 KiB) and puts the object together.
    pub fn finish(self, _frame0: &[u8]) -> Sealed {
        todo!()
    }
}

/// An object that is nothing but index bytes (map, manifest, event …): all frames under the index key.
pub fn seal_index(
    _keys: &WriterKeys,
    _claims: Claims,
    _salt: [u8; 32],
    _compression: Compression,
    _content: &[u8],
) -> Sealed {
    todo!()
}
