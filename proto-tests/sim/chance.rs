//! Where every choice of a simulated run comes from: one seed, and nothing else.

use std::ffi::c_void;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::support::Seed;

/// A stream of choices that several parts of the world may share.
#[derive(Clone)]
pub struct Chance(Arc<Mutex<Seed>>);

impl Chance {
    /// Streams of one run differ by their `tag`.
    pub fn new(seed: u64, tag: &str) -> Chance {
        let mixed = tag.bytes().fold(seed, |sum, byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
        Chance(Arc::new(Mutex::new(Seed::from(mixed))))
    }

    /// A stream of its own, which does not change what this one gives later.
    pub fn split(&self) -> Chance {
        Chance(Arc::new(Mutex::new(Seed::from(self.with(|seed| seed.next())))))
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Seed) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.with(|seed| seed.below(limit.max(1)))
    }

    /// The end included.
    pub fn between(&self, from: u64, to: u64) -> u64 {
        self.with(|seed| seed.between(from, to))
    }

    /// True once in `n` times; never for 0.
    pub fn one_in(&self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }

    pub fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.between(from * 1000, to * 1000))
    }
}

/// What stands for the operating system's randomness; `None`: the real one.
static RANDOM: Mutex<Option<u64>> = Mutex::new(None);

/// From now on salts, tokens, jitter, the order in which `select!` looks and the order of hash maps follow from `seed` in this process.
pub fn govern_randomness(seed: u64) {
    *RANDOM.lock().unwrap_or_else(PoisonError::into_inner) = Some(seed);
}

/// Takes the place of the C library's function of this name (`getrandom(2)`), from which the standard library and the `getrandom` crate draw.
///
/// # Safety
/// As for the function whose place it takes: `len` bytes at `buffer` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, _flags: u32) -> isize {
    // SAFETY: the caller says so.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len) };
    let mut random = RANDOM.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(state) = random.as_mut() else {
        drop(random);
        let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes));
        return if read.is_ok() { len as isize } else { -1 };
    };
    let mut seed = Seed::from(*state);
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&seed.next().to_le_bytes()[..chunk.len()]);
    }
    *state = seed.next();
    len as isize
}
