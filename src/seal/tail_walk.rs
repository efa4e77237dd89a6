//! Reading tails: finding the whole frames, telling a torn end from damage, opening them.

use super::cipher::tail_seed;
use super::frame::{self, Head, Slot};
use super::hash::ContentHasher;
use super::header::Claims;
use super::key::ReaderKeys;
use super::opener::{OpenFailed, Opener, refused};
use super::tail::{EXTRA, Extra, TAIL_FRAME_HEAD};

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

/// How much of a tail file is valid, in bytes of the file and of what is sealed in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailExtent {
    pub sealed: usize,
    pub plain: u64,
}

/// What a piece holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceContent {
    /// Bytes of the tail before this piece: the first byte's distance from the claims' start.
    pub from: u64,
    pub plain: Vec<u8>,
    /// Keyed running hash of the tail, from the claims' start, at the end of this piece.
    pub hash: [u8; 32],
}

/// Opens every whole frame of a local tail file. The first frame whose length is 0 or whose CRC-32C fails ends the tail, unless a valid
/// frame of a later flush follows: that is damage. Behind it may stand what an earlier tail left in the file. A file of zeros only is an empty tail: its
/// preamble was never synced.
/// A tail's start is not in its name: take it from [`super::opener::read_header`], see that it lies in the segment, and expect it here; the
/// index commitment proves it.
pub fn open_tail(file: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<TailContent, OpenFailed> {
    let mut hasher = ContentHasher::new(keys.secret());
    if is_zero(file) {
        return Ok(TailContent { plain: Vec::new(), hash: hasher.finalize(), sealed_len: 0 });
    }
    let opener = Opener::new(file, expected, keys, true)?;
    let found = walk(file, &opener, Form::File)?;
    let plain = open_frames(&opener, file, &found)?;
    hasher.update(&plain);
    let hash = found.frames.last().map_or(hasher.finalize(), |frame| frame.extra.hash);
    if hash != hasher.finalize() {
        return Err(damaged(opener.preamble_len(), "running hash of the last frame is not that of the content".into()));
    }
    Ok(TailContent { plain, hash, sealed_len: found.end as u64 })
}

/// Opens a piece: whole frames from its first byte to its last, of which the first may be any frame of the tail.
pub fn open_piece(piece: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<PieceContent, OpenFailed> {
    let opener = Opener::new(piece, expected, keys, true)?;
    let found = walk(piece, &opener, Form::Piece)?;
    let plain = open_frames(&opener, piece, &found)?;
    let (Some(first), Some(last)) = (found.frames.first(), found.frames.last()) else {
        return Err(OpenFailed::Truncated("a piece has at least one frame".into()));
    };
    Ok(PieceContent { from: first.extra.offset, plain, hash: last.extra.hash })
}

/// Without the identity: ends (plain length) and running hashes of the whole frames, for comparing what is received again.
/// Header and claims are authentic (the repository secret is checked); the marks themselves are protected by CRC-32C only, and by the
/// hash key that a forger lacks: a mark that equals the hash of the same bytes proves them equal, one that differs proves nothing more
/// than that someone must look.
pub fn tail_marks(file: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<Vec<(u64, [u8; 32])>, OpenFailed> {
    if is_zero(file) {
        return Ok(Vec::new());
    }
    marks(file, expected, keys, Form::File)
}

/// Without the identity: how many bytes of a local tail file are header and whole frames, and how many plain bytes these hold. What follows is zero, or was
/// torn.
pub fn tail_extent(file: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<TailExtent, OpenFailed> {
    let opener = Opener::new(file, expected, keys, false)?;
    let found = walk(file, &opener, Form::File)?;
    Ok(TailExtent { sealed: found.end, plain: found.frames.last().map_or(0, TailFrame::end) })
}

/// Without the identity: which plain bytes a piece holds, from and to, counted from the claims' start.
pub fn piece_extent(piece: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<(u64, u64), OpenFailed> {
    let opener = Opener::new(piece, expected, keys, false)?;
    let found = walk(piece, &opener, Form::Piece)?;
    let (Some(first), Some(last)) = (found.frames.first(), found.frames.last()) else {
        return Err(OpenFailed::Truncated("a piece has at least one frame".into()));
    };
    Ok((first.extra.offset, last.end()))
}

/// As [`tail_marks`], for a piece. The ends count from the claims' start, not from the piece's first byte.
pub fn piece_marks(piece: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<Vec<(u64, [u8; 32])>, OpenFailed> {
    marks(piece, expected, keys, Form::Piece)
}

fn marks(
    bytes: &[u8],
    expected: &Claims,
    keys: &dyn ReaderKeys,
    form: Form,
) -> Result<Vec<(u64, [u8; 32])>, OpenFailed> {
    let opener = Opener::new(bytes, expected, keys, false)?;
    let found = walk(bytes, &opener, form)?;
    Ok(found.frames.iter().map(|frame| (frame.end(), frame.extra.hash)).collect())
}

/// How many plain bytes from its claims' start a damaged tail under this salt may have held: the end of the furthest frame that is whole, wherever it stands.
/// `None` when that is not to be found out. Nothing of it is authentic.
pub fn tail_reach(file: &[u8], salt: &[u8; 32]) -> Option<u64> {
    let seed = tail_seed(salt);
    let mut work = file.len().saturating_mul(4);
    let (mut at, mut reach) = (0, 0);
    while let Some(rest) = file.get(at..).filter(|rest| rest.len() > TAIL_FRAME_HEAD) {
        if let Some(none) = headless(rest) {
            at += none;
            continue;
        }
        let zeros = zeros_at_front(rest);
        if zeros > 3 {
            at += zeros - 3;
            continue;
        }
        at += 1;
        let Some(head) = frame::head(rest).ok().filter(|head| head.plain_len > 0) else { continue };
        let Some(frame) = rest.get(..TAIL_FRAME_HEAD + head.stored_len) else { continue };
        work = work.checked_sub(frame.len())?;
        if let (true, Some(raw)) = (frame::crc_fits(frame, EXTRA, seed), frame.first_chunk()) {
            reach = reach.max(Extra::decode(raw).offset.saturating_add(head.plain_len as u64));
            at += frame.len() - 1;
        }
    }
    Some(reach)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Starts with frame 0; ends torn or in zeros.
    File,
    /// Starts with any frame; whole frames up to its last byte.
    Piece,
}

/// A frame whose bounds and CRC-32C are right.
#[derive(Clone, Copy)]
struct TailFrame {
    at: usize,
    head: Head,
    extra: Extra,
}

impl TailFrame {
    fn len(&self) -> usize {
        TAIL_FRAME_HEAD + self.head.stored_len
    }

    /// Plain bytes from the claims' start to the end of this frame.
    fn end(&self) -> u64 {
        self.extra.offset + self.head.plain_len as u64
    }
}

struct Found {
    frames: Vec<TailFrame>,
    /// Where the last whole frame ends.
    end: usize,
}

fn walk(bytes: &[u8], opener: &Opener, form: Form) -> Result<Found, OpenFailed> {
    let (claims, seed) = (&opener.header().claims, tail_seed(&opener.header().salt));
    let start = opener.preamble_len();
    let limit = claims.segment_size.bytes() - claims.segment_size.offset_of(claims.start);
    let mut found = Found { frames: Vec::new(), end: start };
    while found.end < bytes.len() {
        let at = found.end;
        let frame = match frame_at(bytes, at, seed) {
            Ok(frame) => frame,
            Err(problem) if form == Form::Piece => return Err(problem),
            Err(_) => {
                refuse_later_flush(bytes, &found, seed)?;
                break;
            }
        };
        let (number, offset) = match found.frames.last() {
            Some(before) => (before.extra.number.checked_add(1), before.end()),
            None if form == Form::File => (Some(0), 0),
            None => (Some(frame.extra.number), frame.extra.offset),
        };
        if number != Some(frame.extra.number) || offset != frame.extra.offset {
            let (got, at_byte) = (frame.extra.number, frame.extra.offset);
            return Err(damaged(
                at,
                format!("frame {got} of byte {at_byte} where frame {number:?} of byte {offset} belongs"),
            ));
        }
        if offset.checked_add(frame.head.plain_len as u64).is_none_or(|end| end > limit) {
            return Err(damaged(at, format!("frame {} ends past the segment", frame.extra.number)));
        }
        found.end += frame.len();
        found.frames.push(frame);
    }
    Ok(found)
}

/// The whole frame at `at`, or why there is none.
fn frame_at(bytes: &[u8], at: usize, seed: u32) -> Result<TailFrame, OpenFailed> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some(raw) = rest.first_chunk::<TAIL_FRAME_HEAD>() else {
        return Err(OpenFailed::Truncated(format!(
            "frame at byte {at} needs {TAIL_FRAME_HEAD} bytes, {} are there",
            rest.len()
        )));
    };
    let head = frame::head(raw).map_err(|problem| damaged(at, problem))?;
    if head.plain_len == 0 {
        return Err(damaged(at, "empty frame in a tail".into()));
    }
    let frame = TailFrame { at, head, extra: Extra::decode(raw) };
    let Some(whole) = rest.get(..frame.len()) else {
        return Err(OpenFailed::Truncated(format!(
            "frame at byte {at} needs {} bytes, {} are there",
            frame.len(),
            rest.len()
        )));
    };
    if !frame::crc_fits(whole, EXTRA, seed) {
        return Err(damaged(at, "CRC-32C of a tail frame does not fit".into()));
    }
    Ok(frame)
}

/// After the first frame that is not whole: the write that was torn may have left later frames of its own flush behind, never a frame of a
/// later flush, which is written only after the earlier one was synced. What an earlier tail left behind in the same file has another salt.
fn refuse_later_flush(bytes: &[u8], found: &Found, seed: u32) -> Result<(), OpenFailed> {
    let (expected, offset) =
        found.frames.last().map_or((0, 0), |last| (last.extra.number.saturating_add(1), last.end()));
    // Every byte may look like a header in bytes that were made for it; so much checking and no more.
    let mut work = bytes.len().saturating_mul(4);
    let mut at = found.end;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() > TAIL_FRAME_HEAD) {
        if let Some(none) = headless(rest) {
            at += none;
            continue;
        }
        let zeros = zeros_at_front(rest);
        if zeros >= rest.len() {
            break;
        }
        // A header may begin with up to two zero bytes: its plain length is at most 2^18 and at least 1.
        if zeros > 3 {
            at += zeros - 3;
            continue;
        }
        if let Some((extra, len)) = plausible(rest, expected, offset) {
            let Some(left) = work.checked_sub(len) else {
                return Err(damaged(at, "what follows the last whole frame is not what a torn write leaves".into()));
            };
            work = left;
            if extra.flush > expected && frame::crc_fits(&rest[..len], EXTRA, seed) {
                let problem = format!("frame {expected} is not whole, but frame {} of a later flush is", extra.number);
                return Err(damaged(found.end, problem));
            }
        }
        at += 1;
    }
    Ok(())
}

/// How many bytes further at least the next frame's header begins, where it does not begin here: of each the bytes 9 to 11 are zero. What an earlier tail left is
/// megabytes long.
fn headless(rest: &[u8]) -> Option<usize> {
    rest.get(11).is_some_and(|byte| *byte != 0).then_some(3)
}

/// Fields and length of what may be a frame after the `expected` one.
fn plausible(rest: &[u8], expected: u32, offset: u64) -> Option<(Extra, usize)> {
    let raw = rest.first_chunk::<TAIL_FRAME_HEAD>()?;
    if raw[9..12] != [0; 3] {
        return None;
    }
    let head = frame::head(raw).ok().filter(|head| head.plain_len > 0)?;
    let extra = Extra::decode(raw);
    let len = TAIL_FRAME_HEAD + head.stored_len;
    let later = extra.number >= extra.flush && extra.flush > expected && extra.offset > offset;
    (later && len <= rest.len()).then_some((extra, len))
}

fn open_frames(opener: &Opener, bytes: &[u8], found: &Found) -> Result<Vec<u8>, OpenFailed> {
    let cipher = opener.content_cipher()?;
    let (mut scratch, mut plain) = (Vec::new(), Vec::new());
    for frame in &found.frames {
        let number = frame.extra.number.into();
        let slot = Slot { cipher, number, last: false };
        frame::open(slot, &bytes[frame.at..frame.at + frame.len()], EXTRA, frame.head, &mut scratch, &mut plain)
            .map_err(|bad| refused(frame.at, number, bad))?;
    }
    Ok(plain)
}

fn is_zero(bytes: &[u8]) -> bool {
    zeros_at_front(bytes) == bytes.len()
}

fn zeros_at_front(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    // By whole pages first: a preallocated file is megabytes of zeros.
    let pages = bytes.chunks_exact(ZEROS.len()).take_while(|page| **page == ZEROS).count() * ZEROS.len();
    let rest = bytes.get(pages..).unwrap_or_default();
    let blocks = rest.chunks_exact(16).take_while(|block| **block == ZEROS[..16]).count() * 16;
    pages + blocks + rest.get(blocks..).unwrap_or_default().iter().take_while(|byte| **byte == 0).count()
}

fn damaged(offset: usize, problem: String) -> OpenFailed {
    OpenFailed::Damaged { offset: offset as u64, problem }
}
