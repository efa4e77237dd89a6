//! The tail: frames of an unfinished segment, each findable without keys, each carrying the running keyed hash of the segment.

use bytes::{Bytes, BytesMut};

use super::cipher::Start;
use super::frame::{self, FRAME_HEAD, Slot};
use super::hash::ContentHasher;
use super::header::{Claims, Header, ObjectKind};
use super::key::WriterKeys;
use super::sealer::{Compression, FRAME_BYTES};

pub use super::tail_walk::{
    PieceContent, TailContent, TailExtent, open_piece, open_tail, piece_extent, piece_marks, tail_extent, tail_marks,
    tail_reach,
};

/// Fields between lengths and CRC-32C: number, first number of the flush, offset, running hash.
pub(super) const EXTRA: usize = 4 + 4 + 8 + 32;
/// Bytes of a tail frame's header.
pub const TAIL_FRAME_HEAD: usize = FRAME_HEAD + EXTRA;
/// Below this zstd costs more than it saves.
const SMALL_FRAME: usize = 16 << 10;

/// Scratch that grew beyond this for one flush is given back before the next.
const LARGE: usize = 1 << 20;

/// What a tail frame says between its lengths and its CRC-32C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extra {
    /// Number of the frame under this salt, from 0.
    pub number: u32,
    /// Number of the first frame that was sealed in the same call, and so written and synced together.
    pub flush: u32,
    /// Plain bytes before this frame, from the claims' start.
    pub offset: u64,
    /// Keyed hash of all plain bytes from the claims' start to the end of this frame.
    pub hash: [u8; 32],
}

impl Extra {
    fn encode(&self) -> [u8; EXTRA] {
        let mut out = [0; EXTRA];
        out[..4].copy_from_slice(&self.number.to_le_bytes());
        out[4..8].copy_from_slice(&self.flush.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..].copy_from_slice(&self.hash);
        out
    }

    /// From a frame's first [`TAIL_FRAME_HEAD`] bytes.
    pub fn decode(head: &[u8; TAIL_FRAME_HEAD]) -> Extra {
        let field = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let mut extra = Extra { number: u32::from_le_bytes(field(12)), flush: 0, offset: 0, hash: [0; 32] };
        extra.flush = u32::from_le_bytes(field(16));
        extra.offset = u64::from(u32::from_le_bytes(field(20))) | u64::from(u32::from_le_bytes(field(24))) << 32;
        extra.hash.copy_from_slice(&head[28..60]);
        extra
    }
}

/// Seals the flushes of one open segment (one salt, frame numbers only go up). Local `.open` file and pieces share the format:
/// the file is the preamble and all frames, a piece is the preamble and any run of frames, so pieces are merged by joining their frames.
pub struct TailSealer {
    header: Header,
    preamble: Bytes,
    cipher: super::cipher::FrameCipher,
    compression: Compression,
    number: u32,
    hasher: ContentHasher,
    scratch: Vec<u8>,
}

impl TailSealer {
    /// Claims' `start` is the LSN of the first byte. `salt` must be fresh random bytes.
    ///
    /// # Panics
    /// When the kind is not [`ObjectKind::Tail`].
    pub fn new(keys: &WriterKeys, claims: Claims, salt: [u8; 32], compression: Compression) -> TailSealer {
        assert_eq!(claims.kind, ObjectKind::Tail, "a tail is sealed, not a {}", claims.kind.name());
        let start = Start::new(keys, claims, salt);
        TailSealer {
            header: start.header,
            preamble: start.preamble.into(),
            cipher: start.content.of_tail(&salt),
            compression,
            number: 0,
            hasher: ContentHasher::new(&keys.secret),
            scratch: Vec::new(),
        }
    }

    /// Header and key commitments: the first bytes of the file or piece.
    pub fn preamble(&self) -> Bytes {
        self.preamble.clone()
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Plain bytes so far.
    pub fn plain_len(&self) -> u64 {
        self.hasher.len()
    }

    /// Running keyed hash of the plain bytes so far.
    pub fn hash(&self) -> [u8; 32] {
        self.hasher.finalize()
    }

    /// Gives back memory that is only needed while frames are sealed.
    pub fn rest(&mut self) {
        self.scratch = Vec::new();
    }

    /// Seals the next bytes (split into frames of at most 256 KiB) and says what to append. What one call returns must be written
    /// after the bytes of the call before were synced: a torn write is told from damage by that.
    pub fn seal(&mut self, bytes: &[u8]) -> Bytes {
        let flush = self.number;
        let mut out = BytesMut::new();
        for plain in bytes.chunks(FRAME_BYTES) {
            let compression = match self.compression {
                Compression::Zstd(_) if plain.len() < SMALL_FRAME => Compression::Lz4,
                chosen => chosen,
            };
            let len = self.frame(flush, plain, compression, 0);
            out.extend_from_slice(&self.scratch[..len]);
        }
        out.freeze()
    }

    /// As [`TailSealer::seal`], without compression, and without a copy: what is returned stands where it was sealed, until the next call.
    pub fn seal_plain(&mut self, bytes: &[u8]) -> &[u8] {
        let flush = self.number;
        if self.scratch.len() > LARGE {
            self.scratch = Vec::new();
        }
        let mut used = 0;
        for plain in bytes.chunks(FRAME_BYTES) {
            used += self.frame(flush, plain, Compression::None, used);
        }
        &self.scratch[..used]
    }

    /// Seals one frame at `at` of the scratch; its length.
    fn frame(&mut self, flush: u32, plain: &[u8], compression: Compression, at: usize) -> usize {
        let offset = self.hasher.len();
        self.hasher.update(plain);
        let extra = Extra { number: self.number, flush, offset, hash: self.hasher.finalize() }.encode();
        let room = at + frame::room(compression, plain.len(), EXTRA);
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let slot = Slot { cipher: &self.cipher, number: self.number.into(), last: false };
        self.number = self.number.checked_add(1).expect("a segment has fewer bytes than there are frame numbers");
        frame::seal(slot, &extra, plain, compression, &mut self.scratch[at..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
    use crate::seal::header::RepositoryId;
    use crate::seal::key::{DataKey, RepositorySecret};

    #[test]
    fn where_a_frame_is_sealed_makes_no_difference_to_it() {
        let secret = RepositorySecret([5; 32]);
        let keys =
            WriterKeys { repository: RepositoryId([7; 16]), secret, data_key: DataKey([3; 32]), wrapped: vec![1; 200] };
        let claims = Claims {
            kind: ObjectKind::Tail,
            repository: keys.repository,
            system: SystemIdentifier(9),
            segment_size: SegmentSize::new(16 << 20).unwrap(),
            timeline: TimelineId(1),
            start: Lsn(16 << 20),
        };
        let sealer = || TailSealer::new(&keys, claims, [9; 32], Compression::None);
        let (mut here, mut apart) = (sealer(), sealer());
        let wal: Vec<u8> = (0..5 << 20_u32).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
        // Several frames, more than the scratch keeps, and what is left of that in the next.
        for bytes in [&wal[..300], &wal[300..700_000], &wal[700_000..4 << 20], &wal[4 << 20..], &wal[..1]] {
            assert!(here.seal_plain(bytes) == &apart.seal(bytes)[..], "{} bytes", bytes.len());
            assert!(here.plain_len() == apart.plain_len() && here.hash() == apart.hash());
        }
    }
}
