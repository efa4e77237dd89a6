//! Recorded sessions: what each side sent, in order. `proto-tests/live/record.rs` makes them.

// Two targets use it: one writes, the other reads.
#![allow(dead_code)]

use std::path::PathBuf;

/// One direction's bytes until the other side spoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

impl Turn {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Turn::Client(bytes) | Turn::Server(bytes) => bytes,
        }
    }
}

pub const SCENARIOS: [&str; 5] = ["commands", "stream", "timeline", "backup", "incremental-backup"];

/// UPLOAD_MANIFEST came with 17.
fn exists(version: walrecv::pg::MajorVersion, scenario: &str) -> bool {
    scenario != "incremental-backup" || version >= walrecv::pg::MajorVersion::V17
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto-tests/vectors/wire")
}

/// A turn is `C` or `S`, the length as four bytes (big-endian), the bytes.
pub fn write(turns: &[Turn]) -> Vec<u8> {
    let mut out = Vec::new();
    for turn in turns {
        out.push(if matches!(turn, Turn::Client(_)) { b'C' } else { b'S' });
        out.extend_from_slice(&u32::try_from(turn.bytes().len()).expect("a short turn").to_be_bytes());
        out.extend_from_slice(turn.bytes());
    }
    out
}

pub fn read(bytes: &[u8]) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut rest = bytes;
    while let [side, a, b, c, d, after @ ..] = rest {
        let (turn, after) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        turns.push(if *side == b'C' { Turn::Client(turn.to_vec()) } else { Turn::Server(turn.to_vec()) });
        rest = after;
    }
    assert!(rest.is_empty(), "a whole transcript");
    turns
}

/// Every transcript: its name, its turns, its expected events.
pub fn all() -> Vec<(String, Vec<Turn>, String)> {
    let mut found = Vec::new();
    for version in walrecv::pg::MajorVersion::ALL {
        for scenario in SCENARIOS.into_iter().filter(|scenario| exists(version, scenario)) {
            let name = format!("{version}-{scenario}");
            let file = |ending: &str| folder().join(format!("{name}.{ending}"));
            let turns = std::fs::read(file("wire")).unwrap_or_else(|e| panic!("{name}: {e}"));
            let events = std::fs::read_to_string(file("events")).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.push((name, read(&turns), events));
        }
    }
    found
}
