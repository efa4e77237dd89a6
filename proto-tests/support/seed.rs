//! Seeds of random tests: printed, and taken again from `WALRECV_SEED`. A usual run makes the same choices each time; a soak makes new ones.

use std::time::{SystemTime, UNIX_EPOCH};

const USUAL: u64 = 0x5eed;

/// A small generator (SplitMix64): enough for choosing cases, and the same on every machine.
pub struct Seed {
    state: u64,
}

impl Seed {
    /// From `WALRECV_SEED`; or the clock in a soak, and elsewhere a fixed one. Printed, so that a failing run names what to replay.
    pub fn of_run() -> Seed {
        let seed = match std::env::var("WALRECV_SEED") {
            Ok(text) => text.parse().expect("WALRECV_SEED must be a decimal number"),
            Err(_) if super::soaks() => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64),
            Err(_) => USUAL,
        };
        println!("replay with WALRECV_SEED={seed}");
        Seed::from(seed)
    }

    pub fn from(seed: u64) -> Seed {
        Seed { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit` (which must not be 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number of this range, the end included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }
}
