//! Sealer: plain bytes in, sealed bytes out, one frame of at most 256 KiB at a time.

use bytes::{Bytes, BytesMut};

use super::cipher::Start;
use super::frame::{self, Slot};
use super::header::{Claims, Header, KeyClass};
use super::key::WriterKeys;

/// Most plaintext in one frame.
pub const FRAME_BYTES: usize = 256 << 10;
/// Most plaintext in one object.
pub const OBJECT_BYTES: u64 = 16 << 20;
/// Sealed frames stand one behind the other in buffers of this size: encrypted where they stay, without a copy or a large unused rest each.
pub(super) const ARENA: usize = 2 << 20;

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
    /// By number: `frames[0]` is frame 0. The last one carries the last-frame flag.
    pub frames: Vec<FramePlace>,
}

impl Sealed {
    /// Bytes of the whole object.
    pub fn len(&self) -> u64 {
        self.bytes.iter().map(|piece| piece.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The object as one run of bytes (copied).
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.concat()
    }
}

/// Seals one object of the content class. Frame 0 (summary, contents list; index key) is given at the end and stands first.
pub struct Sealer {
    start: Start,
    compression: Compression,
    /// Plain bytes of the frame that is being filled: number `sealed.len() + 1`.
    pending: Vec<u8>,
    /// The pending frame is ended by [`Sealer::cut`].
    closed: bool,
    arena: Arena,
    /// Stored and plain length of each frame.
    sealed: Vec<(u32, u32)>,
    plain_len: u64,
    sealed_len: u64,
}

impl Sealer {
    /// `salt` must be fresh random bytes: nothing is sealed twice under one salt.
    ///
    /// # Panics
    /// When the kind is of the index class: that is [`seal_index`]'s.
    pub fn new(keys: &WriterKeys, claims: Claims, salt: [u8; 32], compression: Compression) -> Sealer {
        let start = content_start(keys, claims, salt);
        let sealed_len = start.preamble.len() as u64;
        Sealer {
            start,
            compression,
            pending: Vec::new(),
            closed: false,
            arena: Arena::default(),
            sealed: Vec::new(),
            plain_len: 0,
            sealed_len,
        }
    }

    /// Adds bytes; every full 256 KiB is compressed and sealed at once (but the last one waits, since it carries the last-frame flag).
    /// Bytes are copied at most once before compression, and not at all where a slice covers a whole frame.
    ///
    /// # Panics
    /// When the object would hold more than [`OBJECT_BYTES`], which no reader accepts.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.count(bytes.len());
        while !bytes.is_empty() {
            if self.closed || self.pending.len() == FRAME_BYTES {
                self.seal_pending(false);
            }
            if self.pending.is_empty() && bytes.len() > FRAME_BYTES {
                let (frame, rest) = bytes.split_at(FRAME_BYTES);
                self.seal_frame(frame, false);
                bytes = rest;
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(FRAME_BYTES - self.pending.len()));
            self.pending.reserve_exact(FRAME_BYTES - self.pending.len());
            self.pending.extend_from_slice(part);
            bytes = rest;
        }
    }

    /// Seals frames of `frame` bytes straight from `bytes`, without a copy, as long as at least one byte is left over: the last frame waits, since it carries
    /// the last-frame flag. Says how many bytes it took; what is left is offered again once more has come, or pushed at the end.
    ///
    /// # Panics
    /// As [`Sealer::push`].
    pub fn take(&mut self, bytes: &[u8], frame: usize) -> usize {
        if !self.pending.is_empty() && !bytes.is_empty() {
            self.seal_pending(false);
        }
        let whole = bytes.len().saturating_sub(1) / frame * frame;
        self.count(whole);
        bytes[..whole].chunks_exact(frame).for_each(|plain| self.seal_frame(plain, false));
        whole
    }

    fn count(&mut self, bytes: usize) {
        self.plain_len += bytes as u64;
        assert!(self.plain_len <= OBJECT_BYTES, "an object holds at most {OBJECT_BYTES} bytes");
    }

    /// Ends the current frame here (packs: a frame of pages); returns the number that the next frame will get. Frames are numbered
    /// from 1; a frame is never empty, so a second call changes nothing.
    pub fn cut(&mut self) -> u32 {
        self.closed = !self.pending.is_empty();
        self.sealed.len() as u32 + 1 + u32::from(self.closed)
    }

    /// Plaintext so far.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// Sealed bytes held in memory so far; the plain bytes of the unfinished frame (at most 256 KiB) come on top.
    pub fn sealed_len(&self) -> u64 {
        self.sealed_len
    }

    pub fn header(&self) -> &Header {
        &self.start.header
    }

    /// Seals frame 0 (at most 256 KiB) and puts the object together.
    pub fn finish(mut self, frame0: &[u8]) -> Sealed {
        if !self.pending.is_empty() {
            self.seal_pending(true);
        }
        finish(&self.start, frame0, self.compression, self.sealed, self.arena.finish())
    }

    fn seal_pending(&mut self, last: bool) {
        let mut plain = std::mem::take(&mut self.pending);
        self.seal_frame(&plain, last);
        plain.clear();
        self.pending = plain;
        self.closed = false;
    }

    fn seal_frame(&mut self, plain: &[u8], last: bool) {
        let slot = Slot { cipher: &self.start.content, number: self.sealed.len() as u64 + 1, last };
        let frame = self.arena.seal(ARENA, slot, plain, self.compression);
        self.sealed_len += u64::from(frame.0);
        self.sealed.push(frame);
    }
}

/// What an object of the content class begins with.
pub(super) fn content_start(keys: &WriterKeys, claims: Claims, salt: [u8; 32]) -> Start {
    assert_eq!(claims.kind.class(), KeyClass::Content, "a {} is of the index class", claims.kind.name());
    Start::new(keys, claims, salt)
}

/// Seals frame 0 and puts it before the others, of which stored and plain lengths are given, and their bytes in pieces.
pub(super) fn finish(
    start: &Start,
    frame0: &[u8],
    compression: Compression,
    sealed: Vec<(u32, u32)>,
    pieces: Vec<Bytes>,
) -> Sealed {
    let slot = Slot { cipher: &start.index, number: 0, last: sealed.is_empty() };
    let mut arena = Arena::default();
    let first = arena.seal(FRAME_BYTES, slot, frame0, compression);
    assemble(start, [first].into_iter().chain(sealed), arena.finish().into_iter().chain(pieces))
}

/// An object that is nothing but index bytes (map, manifest, event …): all frames under the index key.
///
/// # Panics
/// When the kind is of the content class, or `content` is longer than [`OBJECT_BYTES`].
pub fn seal_index(
    keys: &WriterKeys,
    claims: Claims,
    salt: [u8; 32],
    compression: Compression,
    content: &[u8],
) -> Sealed {
    assert_eq!(claims.kind.class(), KeyClass::Index, "a {} is of the content class", claims.kind.name());
    assert!(content.len() as u64 <= OBJECT_BYTES, "an object holds at most {OBJECT_BYTES} bytes");
    let start = Start::new(keys, claims, salt);
    let mut arena = Arena::default();
    let last = content.len().div_ceil(FRAME_BYTES).max(1) - 1;
    let frames = (0..=last).map(|number| {
        let plain = &content[number * FRAME_BYTES..content.len().min((number + 1) * FRAME_BYTES)];
        let slot = Slot { cipher: &start.index, number: number as u64, last: number == last };
        arena.seal(ARENA.min(content.len()), slot, plain, compression)
    });
    let frames: Vec<_> = frames.collect();
    assemble(&start, frames, arena.finish())
}

/// Where frames are sealed one behind the other: what is written at a time is a whole buffer of them, not a frame.
#[derive(Default)]
pub(super) struct Arena {
    buffer: BytesMut,
    /// Bytes of `buffer` that hold frames.
    used: usize,
    full: Vec<Bytes>,
}

impl Arena {
    /// Seals one frame; in a new buffer of `chunk` bytes, or as many as it needs, where the last one is too small. Stored and plain length.
    fn seal(&mut self, chunk: usize, slot: Slot<'_>, plain: &[u8], compression: Compression) -> (u32, u32) {
        let room = frame::room(compression, plain.len(), 0);
        if self.buffer.len() - self.used < room {
            self.cut();
            self.buffer = BytesMut::zeroed(chunk.max(room));
        }
        let len = frame::seal(slot, &[], plain, compression, &mut self.buffer[self.used..]);
        self.used += len;
        (len as u32, plain.len() as u32)
    }

    /// As [`Arena::seal`]; the frame leaves by itself.
    pub(super) fn seal_apart(&mut self, slot: Slot<'_>, plain: &[u8], compression: Compression) -> Bytes {
        let (len, _) = self.seal(ARENA, slot, plain, compression);
        self.used -= len as usize;
        self.buffer.split_to(len as usize).freeze()
    }

    fn cut(&mut self) {
        if self.used > 0 {
            self.full.push(self.buffer.split_to(self.used).freeze());
            self.used = 0;
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.cut();
        self.full
    }
}

fn assemble(
    start: &Start,
    frames: impl IntoIterator<Item = (u32, u32)>,
    pieces: impl IntoIterator<Item = Bytes>,
) -> Sealed {
    let mut offset = start.preamble.len() as u64;
    let mut bytes = vec![Bytes::copy_from_slice(&start.preamble)];
    bytes.extend(pieces);
    let mut places = Vec::new();
    for (len, plain_len) in frames {
        places.push(FramePlace { offset, len, plain_len });
        offset += u64::from(len);
    }
    Sealed { header: start.header.clone(), bytes, frames: places }
}
