//! One frame: lengths, compression, CRC-32C, ciphertext. Object frames and tail frames differ by what stands between.
//!
//! ```text
//! u32 plain length | u32 stored length (ciphertext and tag) | u8 compression | 3 zero bytes | extra | u32 CRC-32C | ciphertext | tag
//! ```
//! The associated data is everything before the CRC-32C, which covers that and the ciphertext with its tag; in a tail it goes on from the CRC-32C of the salt.

use super::cipher::{FrameCipher, TAG};
use super::compress;
use super::sealer::{Compression, FRAME_BYTES};

/// Bytes of the header of a frame without extra fields.
pub const FRAME_HEAD: usize = 16;
const BEFORE_EXTRA: usize = 12;

/// What a frame's header says, with its bounds checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub plain_len: usize,
    /// Ciphertext and tag.
    pub stored_len: usize,
    pub compression: u8,
}

/// Room that [`seal`] needs for a frame.
pub fn room(compression: Compression, plain: usize, extra: usize) -> usize {
    FRAME_HEAD + extra + compress::room(compression, plain).max(plain) + TAG
}

/// Which frame of which key.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    pub cipher: &'a FrameCipher,
    pub number: u64,
    pub last: bool,
}

/// Writes a whole frame to the front of `out` (of at least [`room`] bytes), encrypting there; returns its length.
pub fn seal(slot: Slot<'_>, extra: &[u8], plain: &[u8], compression: Compression, out: &mut [u8]) -> usize {
    assert!(plain.len() <= FRAME_BYTES, "a frame holds at most {FRAME_BYTES} bytes");
    let (head, body) = out.split_at_mut(FRAME_HEAD + extra.len());
    let (code, len) = compress::compress(compression, plain, body).unwrap_or_else(|| {
        body[..plain.len()].copy_from_slice(plain);
        (compress::NONE, plain.len())
    });
    let crc_at = BEFORE_EXTRA + extra.len();
    head[..4].copy_from_slice(&(plain.len() as u32).to_le_bytes());
    head[4..8].copy_from_slice(&((len + TAG) as u32).to_le_bytes());
    head[8..BEFORE_EXTRA].copy_from_slice(&[code, 0, 0, 0]);
    head[BEFORE_EXTRA..crc_at].copy_from_slice(extra);
    let (ad, crc) = head.split_at_mut(crc_at);
    let tag = slot.cipher.seal(slot.number, slot.last, ad, &mut body[..len]);
    body[len..len + TAG].copy_from_slice(&tag);
    crc.copy_from_slice(&sum(slot.cipher.seed, ad, &body[..len + TAG]).to_le_bytes());
    head.len() + len + TAG
}

/// Reads a frame's lengths; `Err` says what no writer writes. `bytes` must hold at least the first 12 bytes.
pub fn head(bytes: &[u8]) -> Result<Head, String> {
    let Some(&[p0, p1, p2, p3, s0, s1, s2, s3, compression, z0, z1, z2]) = bytes.first_chunk() else {
        return Err(format!("frame header of {} bytes", bytes.len()));
    };
    let plain_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    let stored_len = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
    if plain_len > FRAME_BYTES {
        return Err(format!("{plain_len} plain bytes, at most {FRAME_BYTES} are allowed"));
    }
    if compression > compress::ZSTD || [z0, z1, z2] != [0; 3] {
        return Err(format!("compression {compression} {z0} {z1} {z2} is not known"));
    }
    let whole = plain_len + TAG;
    let possible =
        if compression == compress::NONE { stored_len == whole } else { (TAG + 1..whole).contains(&stored_len) };
    if !possible {
        return Err(format!("{stored_len} stored bytes for {plain_len} plain ones, compression {compression}"));
    }
    Ok(Head { plain_len, stored_len, compression })
}

fn sum(seed: u32, ad: &[u8], stored: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, ad), stored)
}

/// Whether the CRC-32C of a whole frame fits, which goes on from `seed`. `frame` is exactly header, extra fields of `extra` bytes, and ciphertext.
pub fn crc_fits(frame: &[u8], extra: usize, seed: u32) -> bool {
    let at = BEFORE_EXTRA + extra;
    let (Some(ad), Some(stored), Some(rest)) = (frame.get(..at), frame.get(at..at + 4), frame.get(at + 4..)) else {
        return false;
    };
    sum(seed, ad, rest).to_le_bytes() == stored
}

/// Why the content of a frame with a right CRC did not come out.
#[derive(Debug)]
pub enum BadFrame {
    Unauthentic,
    Compression(String),
}

/// Decrypts and decompresses a whole frame (see [`crc_fits`]) and appends the plain bytes to `out`, which is unchanged on failure.
pub fn open(
    slot: Slot<'_>,
    frame: &[u8],
    extra: usize,
    head: Head,
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), BadFrame> {
    let (ad, stored) = (&frame[..BEFORE_EXTRA + extra], &frame[FRAME_HEAD + extra..]);
    let start = out.len();
    out.resize(start + head.plain_len, 0);
    let target = &mut out[start..];
    let result = if head.compression == compress::NONE {
        slot.cipher.open(slot.number, slot.last, ad, stored, target).map_err(|_| BadFrame::Unauthentic)
    } else {
        scratch.resize(head.stored_len - TAG, 0);
        slot.cipher
            .open(slot.number, slot.last, ad, stored, scratch)
            .map_err(|_| BadFrame::Unauthentic)
            .and_then(|()| compress::decompress(head.compression, scratch, target).map_err(BadFrame::Compression))
    };
    if result.is_err() {
        out.truncate(start);
    }
    result
}
