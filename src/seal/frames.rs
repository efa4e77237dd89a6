//! Frames of one object that are sealed apart, by any threads and in any order, and put together in theirs.

use std::sync::Arc;

use bytes::Bytes;

use super::cipher::Start;
use super::frame::Slot;
use super::header::Claims;
use super::key::WriterKeys;
use super::sealer::{Arena, Compression, Sealed, content_start, finish};

/// A sealed frame.
#[derive(Clone, Debug)]
pub struct SealedFrame {
    pub bytes: Bytes,
    pub plain_len: u32,
}

/// Where one thread seals frames one behind the other, whatever object they belong to.
#[derive(Default)]
pub struct Bench(Arena);

/// Seals the frames of one object of the content class. Cheap to clone.
#[derive(Clone)]
pub struct FrameSealer {
    start: Arc<Start>,
    compression: Compression,
}

impl FrameSealer {
    /// `salt` must be fresh random bytes: nothing is sealed twice under one salt.
    ///
    /// # Panics
    /// As [`Sealer::new`](super::sealer::Sealer::new).
    pub fn new(keys: &WriterKeys, claims: Claims, salt: [u8; 32], compression: Compression) -> FrameSealer {
        FrameSealer { start: Arc::new(content_start(keys, claims, salt)), compression }
    }

    /// Seals frame `number`, of 1 to 256 KiB. They count from 1. `last`: no frame follows. Only one may ever be stored under a number: of a frame that
    /// was sealed twice, from the same bytes, the other one has to be dropped.
    pub fn seal(&self, bench: &mut Bench, number: u32, last: bool, plain: &[u8]) -> SealedFrame {
        let slot = Slot { cipher: &self.start.content, number: u64::from(number), last };
        SealedFrame { bytes: bench.0.seal_apart(slot, plain, self.compression), plain_len: plain.len() as u32 }
    }

    /// Seals frame 0 (at most 256 KiB) and puts the object together: `frames` are all others, from frame 1 on.
    pub fn finish(&self, frame0: &[u8], frames: Vec<SealedFrame>) -> Sealed {
        let lengths = frames.iter().map(|frame| (frame.bytes.len() as u32, frame.plain_len)).collect();
        finish(&self.start, frame0, self.compression, lengths, frames.into_iter().map(|frame| frame.bytes).collect())
    }
}
