//! The frame format of LZ4 as PostgreSQL's servers write it (`basebackup_lz4.c`: linked blocks of 256 KiB, no checksums but the header's). What they never
//! write, checksums of contents, dictionaries and skippable frames, is refused.

use lz4_flex::block::decompress_into_with_dict;

/// First four bytes of a frame.
const MAGIC: [u8; 4] = [0x04, 0x22, 0x4D, 0x18];
/// How far a match of a linked block may reach back.
const HISTORY: usize = 64 << 10;
/// Set in a block's length where its bytes are as they were.
const PLAIN: u32 = 1 << 31;

/// Frames, one behind the other.
#[derive(Default)]
pub struct Lz4Frames {
    state: State,
    /// Bytes of the next part that have come.
    part: Vec<u8>,
    /// The end of what was given out of this frame.
    history: Vec<u8>,
    out: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// Magic, flags and block size: six bytes; fewer have come.
    #[default]
    Begin,
    /// The rest of a header: the content's size, if there, and the header's checksum.
    Header { size: bool, linked: bool, largest: usize },
    /// The length of a block.
    Length { linked: bool, largest: usize },
    /// A block.
    Block { linked: bool, largest: usize, len: usize, plain: bool },
}

impl State {
    /// Bytes of the next part.
    fn needs(self) -> usize {
        match self {
            State::Begin => 6,
            State::Header { size, .. } => 6 + 1 + if size { 8 } else { 0 },
            State::Length { .. } => 4,
            State::Block { len, .. } => len,
        }
    }
}

impl Lz4Frames {
    /// Takes the next bytes; `sink` says whether to go on.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), String> {
        loop {
            let missing = self.state.needs().saturating_sub(self.part.len());
            let (now, rest) = bytes.split_at(missing.min(bytes.len()));
            self.part.extend_from_slice(now);
            bytes = rest;
            if self.part.len() < self.state.needs() {
                return Ok(());
            }
            if !self.step(sink)? {
                return Ok(());
            }
        }
    }

    /// Whether a frame has begun and not ended.
    pub fn is_inside(&self) -> bool {
        !matches!(self.state, State::Begin) || !self.part.is_empty()
    }

    /// A whole part has come. The header is kept until its checksum is there.
    fn step(&mut self, sink: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, String> {
        match self.state {
            State::Begin => self.state = begin(&self.part)?,
            State::Header { linked, largest, .. } => {
                check_header(&self.part)?;
                self.part.clear();
                self.history.clear();
                self.state = State::Length { linked, largest };
            }
            State::Length { linked, largest } => {
                let word = self.part.as_slice().try_into().map(u32::from_le_bytes).map_err(|_| "a short length")?;
                self.part.clear();
                let len = (word & !PLAIN) as usize;
                if len > largest {
                    return Err(format!("a block of {len} bytes, at most {largest} were announced"));
                }
                self.state = match word {
                    0 => State::Begin,
                    _ => State::Block { linked, largest, len, plain: word & PLAIN != 0 },
                };
            }
            State::Block { linked, largest, plain, .. } => {
                let going = self.block(linked, largest, plain, sink)?;
                self.part.clear();
                self.state = State::Length { linked, largest };
                return Ok(going);
            }
        }
        Ok(true)
    }

    fn block(
        &mut self,
        linked: bool,
        largest: usize,
        plain: bool,
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool, String> {
        let given = if plain {
            self.part.as_slice()
        } else {
            self.out.resize(largest, 0);
            let len = decompress_into_with_dict(&self.part, &mut self.out, &self.history).map_err(|e| e.to_string())?;
            self.out.get(..len).unwrap_or_default()
        };
        let going = sink(given);
        if linked {
            let kept = HISTORY.saturating_sub(given.len()).min(self.history.len());
            self.history.drain(..self.history.len() - kept);
            self.history.extend_from_slice(given.get(given.len().saturating_sub(HISTORY)..).unwrap_or_default());
        }
        Ok(going)
    }
}

/// What the first six bytes say.
fn begin(part: &[u8]) -> Result<State, String> {
    let &[a, b, c, d, flags, sizes] = part else { return Err("a short header".to_owned()) };
    if [a, b, c, d] != MAGIC {
        return Err(format!("no frame begins with {:02x?}", [a, b, c, d]));
    }
    // Version 1; of the options only independent blocks and the content's size.
    if flags & !0b0010_1000 != 0b0100_0000 {
        return Err(format!("flags {flags:#04x}, which no server sends"));
    }
    let largest = match (sizes >> 4 & 7, sizes & 0b1000_1111) {
        (code @ 4..=7, 0) => 1 << (8 + 2 * u32::from(code)),
        _ => return Err(format!("block size code {sizes:#04x}")),
    };
    Ok(State::Header { size: flags & 0b1000 != 0, linked: flags & 0b10_0000 == 0, largest })
}

/// The last byte of a header is the second one of the xxHash-32 of what stands between it and the magic.
fn check_header(part: &[u8]) -> Result<(), String> {
    let [_, _, _, _, described @ .., found] = part else { return Err("a short header".to_owned()) };
    let expected = (xxh32_short(described) >> 8) as u8;
    if *found == expected { Ok(()) } else { Err(format!("header checksum {found:#04x}, expected {expected:#04x}")) }
}

/// xxHash-32, seed 0, of less than 16 bytes.
fn xxh32_short(bytes: &[u8]) -> u32 {
    const P: [u32; 5] = [2_654_435_761, 2_246_822_519, 3_266_489_917, 668_265_263, 374_761_393];
    let (words, rest) = bytes.as_chunks::<4>();
    let mut hash = P[4].wrapping_add(bytes.len() as u32);
    for word in words {
        hash = hash.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(P[2])).rotate_left(17).wrapping_mul(P[3]);
    }
    for byte in rest {
        hash = hash.wrapping_add(u32::from(*byte).wrapping_mul(P[4])).rotate_left(11).wrapping_mul(P[0]);
    }
    hash = (hash ^ hash >> 15).wrapping_mul(P[1]);
    hash = (hash ^ hash >> 13).wrapping_mul(P[2]);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::compress_with_dict;

    use super::*;

    /// A frame as a server writes it: linked blocks of 256 KiB.
    fn frame(plain: &[u8]) -> Vec<u8> {
        let described = [0b0100_0000, 5 << 4];
        let mut out = [&MAGIC[..], &described, &[(xxh32_short(&described) >> 8) as u8]].concat();
        let mut done = 0usize;
        for block in plain.chunks(256 << 10) {
            let packed = compress_with_dict(block, &plain[done.saturating_sub(HISTORY)..done]);
            let (word, bytes) = if packed.len() < block.len() {
                (packed.len() as u32, &packed[..])
            } else {
                (block.len() as u32 | PLAIN, block)
            };
            out.extend_from_slice(&word.to_le_bytes());
            out.extend_from_slice(bytes);
            done += block.len();
        }
        out.extend_from_slice(&[0; 4]);
        out
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<u8>, String> {
        let (mut frames, mut out) = (Lz4Frames::default(), Vec::new());
        for part in bytes.chunks(piece) {
            frames.feed(part, &mut |plain| {
                out.extend_from_slice(plain);
                true
            })?;
        }
        if frames.is_inside() { Err("it ends in the middle".to_owned()) } else { Ok(out) }
    }

    fn sample() -> Vec<u8> {
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        // A part that repeats over the ends of blocks, and one that does not compress.
        let phrase: Vec<u8> = (0..40_000).map(|_| random()).collect();
        let mut all: Vec<u8> = phrase.iter().copied().cycle().take(700_000).collect();
        all.extend((0..300_000).map(|_| random()));
        all
    }

    #[test]
    fn linked_blocks_come_back_in_pieces_of_any_size() {
        let plain = sample();
        let two = [frame(&plain), frame(b""), frame(b"short")].concat();
        let whole = [&plain[..], b"short"].concat();
        for piece in [1, 5, 4096, two.len()] {
            assert!(read(&two, piece).unwrap() == whole, "pieces of {piece}");
        }
        assert!(frame(&plain).len() < plain.len() / 2, "matches reach over the ends of blocks");
    }

    #[test]
    fn the_hash_of_a_header_is_xxhash() {
        // Of the reference implementation: the empty text, and a header that `lz4 -B5` writes (04 22 4d 18 64 50 08).
        assert_eq!(xxh32_short(b""), 0x02CC_5D05);
        assert_eq!(xxh32_short(&[0x64, 0x50]) >> 8 & 0xFF, 0x08);
    }

    #[test]
    fn cuts_and_what_no_server_sends_are_refused() {
        let good = frame(&sample());
        for cut in [3, 6, 7, 9, 100, good.len() - 1] {
            assert!(read(&good[..cut], 999).is_err(), "{cut}");
        }
        for (at, bits, why) in [
            (0, 1, "begins"),
            (4, 4, "flags"),
            (4, 16, "flags"),
            (5, 128, "code"),
            (5, 0x10, "checksum"),
            (6, 1, "checksum"),
        ] {
            let mut wrong = good.clone();
            wrong[at] ^= bits;
            assert!(read(&wrong, 64).unwrap_err().contains(why), "byte {at}");
        }
        let mut long = good.clone();
        long[9] = 0x7F;
        assert!(read(&long, 64).unwrap_err().contains("announced"));
        let behind = [&good[..], b"and more"].concat();
        assert!(read(&behind, 64).is_err());
    }
}
