//! Undoing the compression that a server was asked for: a stream in pieces of any size, members after members, in bounded memory.
//!
//! What comes is not ours and may be anything. Nothing is believed: a window, a block or a member that is not what the method allows is refused, and so is a
//! stream that ends in the middle.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// What the server compresses with (`basebackup_zstd.c`, `basebackup_lz4.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Zstd,
    Lz4,
}

/// Why a stream was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{method}: {problem} (after {taken} compressed bytes)")]
pub struct BadStream {
    pub method: &'static str,
    /// Compressed bytes before the refused ones.
    pub taken: u64,
    pub problem: String,
}

/// Most bytes that are given out at once.
const PIECE: usize = 256 << 10;
/// Largest window that zstd may ask for, as a power of two: 8 MiB is what its highest ordinary level uses.
const WINDOW_LOG: u32 = 23;

/// One compressed stream.
pub struct Unpack {
    engine: Engine,
    out: Vec<u8>,
    taken: u64,
}

enum Engine {
    Zstd {
        decoder: Decoder<'static>,
        /// Inside a member.
        inside: bool,
    },
    Lz4(Box<super::lz4_frame::Lz4Frames>),
}

impl Unpack {
    pub fn new(method: Method) -> Result<Unpack, BadStream> {
        let engine = match method {
            Method::Zstd => Engine::Zstd { decoder: zstd_decoder().map_err(|e| bad("zstd", 0, e))?, inside: false },
            Method::Lz4 => Engine::Lz4(Box::default()),
        };
        Ok(Unpack { engine, out: vec![0; PIECE], taken: 0 })
    }

    /// Takes the next bytes and passes on what they hold, in pieces of at most 256 KiB (4 MiB for lz4, whose blocks may have that size). The first error of
    /// `sink` ends it.
    pub fn feed<E: From<BadStream>>(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.engine {
            Engine::Lz4(frames) => {
                let start = self.taken;
                self.taken += bytes.len() as u64;
                let mut failed = None;
                let outcome = frames.feed(bytes, &mut |piece| match sink(piece) {
                    Ok(()) => true,
                    Err(error) => {
                        failed = Some(error);
                        false
                    }
                });
                match (failed, outcome) {
                    (Some(error), _) => Err(error),
                    (None, outcome) => Ok(outcome.map_err(|problem| bad("lz4", start, problem))?),
                }
            }
            Engine::Zstd { .. } if bytes.is_empty() => Ok(()),
            Engine::Zstd { decoder, inside } => {
                let mut input = InBuffer::around(bytes);
                loop {
                    let mut output = OutBuffer::around(self.out.as_mut_slice());
                    let before = input.pos();
                    let left = decoder.run(&mut input, &mut output);
                    let left = left.map_err(|e| bad("zstd", self.taken + before as u64, e))?;
                    let (given, full) = (output.pos(), output.pos() == PIECE);
                    // Zero after the last byte of a member; a hint in the middle of one.
                    *inside = left != 0;
                    if let Some(given @ [_, ..]) = self.out.get(..given) {
                        sink(given)?;
                    }
                    if input.pos() == bytes.len() && (left == 0 || !full) {
                        self.taken += bytes.len() as u64;
                        return Ok(());
                    }
                    if input.pos() == before && given == 0 {
                        return Err(bad("zstd", self.taken + before as u64, "it does not go on").into());
                    }
                }
            }
        }
    }

    /// The stream has ended: it must do so behind a member.
    pub fn finish(&self) -> Result<(), BadStream> {
        let (method, inside) = match &self.engine {
            Engine::Zstd { inside, .. } => ("zstd", *inside),
            Engine::Lz4(frames) => ("lz4", frames.is_inside()),
        };
        match (inside, self.taken) {
            (true, taken) => Err(bad(method, taken, "it ends in the middle")),
            (false, 0) => Err(bad(method, 0, "nothing came")),
            (false, _) => Ok(()),
        }
    }
}

fn zstd_decoder() -> std::io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    Ok(decoder)
}

fn bad(method: &'static str, taken: u64, problem: impl ToString) -> BadStream {
    BadStream { method, taken, problem: problem.to_string() }
}

/// What a server would send for these bytes with zstd: for tests of whoever reads it.
#[cfg(test)]
pub fn packed_by_zstd(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(method: Method, bytes: &[u8], piece: usize) -> Result<Vec<u8>, BadStream> {
        let (mut unpack, mut out) = (Unpack::new(method)?, Vec::new());
        for part in bytes.chunks(piece.max(1)) {
            unpack.feed::<BadStream>(part, &mut |plain| {
                assert!(plain.len() <= 4 << 20);
                out.extend_from_slice(plain);
                Ok(())
            })?;
        }
        unpack.finish()?;
        Ok(out)
    }

    fn sample(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        let step = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*state >> 24) as u8
        };
        (0..len).map(|n| if n % 3000 < 2000 { (n / 1000) as u8 } else { step(&mut state) }).collect()
    }

    #[test]
    fn zstd_members_come_back_in_pieces_of_any_size() {
        let (one, two) = (sample(1_000_000), sample(70_000));
        let mut packed = zstd::bulk::compress(&one, 3).unwrap();
        packed.extend(zstd::bulk::compress(&[], 3).unwrap());
        packed.extend(zstd::bulk::compress(&two, 19).unwrap());
        let whole = [one, two].concat();
        for piece in [1, 7, 1000, 65_536, packed.len()] {
            assert!(unpack(Method::Zstd, &packed, piece).unwrap() == whole, "pieces of {piece}");
        }
    }

    #[test]
    fn cut_garbled_and_empty_streams_are_refused() {
        let plain = sample(100_000);
        let packed = zstd::bulk::compress(&plain, 3).unwrap();
        for cut in [1, 4, 9, packed.len() / 2, packed.len() - 1] {
            assert!(unpack(Method::Zstd, &packed[..cut], 999).unwrap_err().problem.contains("middle"), "{cut}");
        }
        assert!(unpack(Method::Zstd, &[], 1).is_err());
        assert!(unpack(Method::Zstd, b"no member at all", 5).is_err());
        let mut after = packed.clone();
        after.extend_from_slice(b"garbage behind the last member");
        assert!(unpack(Method::Zstd, &after, 4096).is_err());
        let mut flipped = packed;
        flipped[2] ^= 1;
        assert!(unpack(Method::Zstd, &flipped, 4096).is_err());
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused_before_any_memory_is_taken() {
        // A member's header alone: magic, no content size, a window of 2^27.
        let header = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 17 << 3, 0, 0, 0];
        let error = unpack(Method::Zstd, &header, 9).unwrap_err();
        assert_eq!(error.method, "zstd");
        assert!(!error.problem.contains("middle"), "{error}");
    }

    #[test]
    fn the_first_error_of_the_sink_ends_it() {
        let packed = zstd::bulk::compress(&sample(2_000_000), 1).unwrap();
        let mut calls = 0;
        let mut unpack = Unpack::new(Method::Zstd).unwrap();
        let error = unpack.feed(&packed, &mut |_| {
            calls += 1;
            Err(bad("sink", 0, "full"))
        });
        assert_eq!((error.unwrap_err().method, calls), ("sink", 1));
    }
}
