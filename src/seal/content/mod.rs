//! What index objects say: summaries, contents lists, maps, manifests, intents, plans, heartbeats. Pure encoders and decoders.

pub mod backup_id;
pub mod contents;
pub mod event;
pub mod group;
pub mod heartbeat;
pub mod intent;
pub mod manifest;
pub mod map;
pub mod plan;
pub mod repository;
pub mod summary;
mod text;
pub mod varint;

pub use backup_id::BackupId;

/// An opened object does not say what its kind must say: written by something newer, or by a mistake of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is malformed: {problem}")]
pub struct Malformed {
    /// Which kind of content, such as `map` or `manifest`.
    pub what: &'static str,
    pub problem: String,
}

impl Malformed {
    pub fn new(what: &'static str, problem: impl ToString) -> Malformed {
        Malformed { what, problem: problem.to_string() }
    }
}

/// A moment for scripts, in one form everywhere: RFC 3339 in UTC with microseconds, `2026-11-21T14:05:00.000123Z`.
pub fn rfc3339(moment: jiff::Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly `N` bytes from hexadecimal digits; `None` for anything else.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}
