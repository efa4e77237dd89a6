//! Fixed keys and claims, and deterministic bytes.

use walrecv::keys::ring::ReaderRing;
use walrecv::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::seal::header::{Claims, ObjectKind, RepositoryId};
use walrecv::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};

pub const REPOSITORY: RepositoryId = RepositoryId(*b"repository-id-16");
pub const SECRET: [u8; 32] = [0x5E; 32];
pub const DATA_KEY: [u8; 32] = [0xDA; 32];
pub const SALT: [u8; 32] = [0x17; 32];
/// Stands for a wrapped data key where no age is wanted: [`FixedKeys`] opens exactly this.
pub const WRAPPED: &[u8] = b"wrapped data key of the tests";

pub fn writer() -> WriterKeys {
    WriterKeys {
        repository: REPOSITORY,
        secret: RepositorySecret(SECRET),
        data_key: DataKey(DATA_KEY),
        wrapped: WRAPPED.to_vec(),
    }
}

pub fn unencrypted_writer() -> WriterKeys {
    let (secret, data_key) = (RepositorySecret::published(), DataKey::published());
    WriterKeys { repository: REPOSITORY, secret, data_key, wrapped: Vec::new() }
}

pub fn unencrypted_reader() -> ReaderRing {
    ReaderRing::new(REPOSITORY, RepositorySecret::published(), None).unwrap()
}

/// A reader whose identity opens [`WRAPPED`] only.
pub struct FixedKeys {
    pub secret: RepositorySecret,
    pub data_key: Option<DataKey>,
}

pub fn reader() -> FixedKeys {
    FixedKeys { secret: RepositorySecret(SECRET), data_key: Some(DataKey(DATA_KEY)) }
}

impl ReaderKeys for FixedKeys {
    fn repository(&self) -> RepositoryId {
        REPOSITORY
    }

    fn secret(&self) -> &RepositorySecret {
        &self.secret
    }

    fn unwrap_key(&self, wrapped: &[u8]) -> Result<DataKey, String> {
        match &self.data_key {
            Some(key) if wrapped == WRAPPED => Ok(key.clone()),
            Some(_) => Err("wrapped for another identity".into()),
            None => Err("no identity".into()),
        }
    }
}

pub fn claims(kind: ObjectKind) -> Claims {
    Claims {
        kind,
        repository: REPOSITORY,
        system: SystemIdentifier(7_123_456_789_012_345_678),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        timeline: TimelineId(3),
        start: Lsn(0x16_B370_0000),
    }
}

/// Bytes that compress about as WAL does: runs, repeats, some noise.
pub fn wal_like(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        let word = next();
        match word % 4 {
            0 => out.extend_from_slice(&word.to_le_bytes()),
            1 => out.extend(std::iter::repeat_n(0, (word >> 8) as usize % 48)),
            2 => out.extend_from_slice(b"INSERT heap tuple 0001"),
            _ => out.extend_from_slice(&(out.len() as u32).to_le_bytes()),
        }
    }
    out.truncate(len);
    out
}

/// Seed of the random tests: `WALRECV_SEED`; or a new one in a soak, and elsewhere a fixed one. Printed, so that a failure can be run again.
pub fn seed() -> u64 {
    let given = std::env::var("WALRECV_SEED").ok().and_then(|text| text.parse().ok());
    let usual = || if std::env::var_os("WALRECV_SOAK").is_some() { getrandom::u64().unwrap() } else { 0x5eed };
    let seed = given.unwrap_or_else(usual);
    println!("WALRECV_SEED={seed}");
    seed
}

/// Settings of the property tests.
pub fn config(cases: u32) -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, RngSeed};
    Config { cases, rng_seed: RngSeed::Fixed(seed()), failure_persistence: None, ..Config::default() }
}

/// Says what was not tested, past the test runner's capture.
pub fn skipped(reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
