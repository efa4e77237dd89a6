//! Compression of one frame. Contexts are kept and used again: making a zstd context costs more than compressing a small frame.

use std::sync::{Mutex, MutexGuard, TryLockError};

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::sealer::Compression;

/// Stored number of each form.
pub const NONE: u8 = 0;
pub const LZ4: u8 = 1;
pub const ZSTD: u8 = 2;

struct Contexts {
    lz4: CompressTable,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    unzstd: Option<zstd::bulk::Decompressor<'static>>,
}

/// About as many contexts as frames were ever compressed or opened at one time, and no more than [`MOST`].
static POOL: Mutex<Vec<Contexts>> = Mutex::new(Vec::new());
const MOST: usize = 64;
/// So often a pool that somebody has is looked at again, which takes longer than anybody who runs needs it.
const LOOKS: usize = 200;

/// The pool, unless somebody keeps it: a thread that runs only when no other one wants to may be stopped in the middle of that, and nobody waits for it.
fn pool() -> Option<MutexGuard<'static, Vec<Contexts>>> {
    let look = || match POOL.try_lock() {
        Err(TryLockError::WouldBlock) => {
            std::hint::spin_loop();
            None
        }
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Ok(pool) => Some(pool),
    };
    (0..LOOKS).find_map(|_| look())
}

fn with_contexts<T>(work: impl FnOnce(&mut Contexts) -> T) -> T {
    let kept = pool().and_then(|mut pool| pool.pop());
    let mut contexts = kept.unwrap_or_else(|| Contexts { lz4: CompressTable::large(), zstd: None, unzstd: None });
    let result = work(&mut contexts);
    if let Some(mut pool) = pool().filter(|pool| pool.len() < MOST) {
        pool.push(contexts);
    }
    result
}

/// Room that [`compress`] needs for `len` bytes.
pub fn room(compression: Compression, len: usize) -> usize {
    if compression == Compression::Lz4 { get_maximum_output_size(len) } else { len }
}

/// Compresses `plain` to the front of `out` (of at least [`room`] bytes); `None` when that does not make it shorter.
pub fn compress(compression: Compression, plain: &[u8], out: &mut [u8]) -> Option<(u8, usize)> {
    let (code, len) = match compression {
        Compression::None => return None,
        Compression::Lz4 => {
            (LZ4, with_contexts(|contexts| compress_into_with_table(plain, out, &mut contexts.lz4)).ok()?)
        }
        Compression::Zstd(level) => (ZSTD, with_contexts(|contexts| zstd_into(contexts, level, plain, out))?),
    };
    (len < plain.len()).then_some((code, len))
}

fn zstd_into(contexts: &mut Contexts, level: i32, plain: &[u8], out: &mut [u8]) -> Option<usize> {
    if contexts.zstd.as_ref().is_none_or(|(kept, _)| *kept != level) {
        contexts.zstd = Some((level, zstd::bulk::Compressor::new(level).ok()?));
    }
    let (_, compressor) = contexts.zstd.as_mut()?;
    compressor.compress_to_buffer(plain, out).ok()
}

/// Fills `out` exactly from what [`compress`] made.
pub fn decompress(code: u8, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
    let expected = out.len();
    let len = match code {
        LZ4 => decompress_into(stored, out).map_err(|error| format!("lz4: {error}"))?,
        ZSTD => with_contexts(|contexts| {
            if contexts.unzstd.is_none() {
                contexts.unzstd = zstd::bulk::Decompressor::new().ok();
            }
            let decompressor = contexts.unzstd.as_mut().ok_or("zstd: no memory for a context")?;
            decompressor.decompress_to_buffer(stored, out).map_err(|error| format!("zstd: {error}"))
        })?,
        _ => return Err(format!("compression {code} is not known")),
    };
    if len == expected { Ok(()) } else { Err(format!("decompresses to {len} bytes, {expected} were promised")) }
}
