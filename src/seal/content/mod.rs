//! What index objects say: summaries, contents lists, maps, manifests, intents. Pure encoders and decoders.

pub mod backup_id;
pub mod contents;
pub mod intent;
pub mod manifest;
pub mod map;
pub mod summary;
mod text;
mod varint;

pub use backup_id::BackupId;

/// Bytes that were opened with the right keys and still do not say what their format says: written by something newer, or
/// by a mistake of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be read: {problem}")]
pub struct BadContent {
    /// Which kind of content, such as `map` or `manifest`.
    pub what: &'static str,
    pub problem: String,
}

impl BadContent {
    pub(crate) fn new(what: &'static str, problem: impl Into<String>) -> BadContent {
        BadContent { what, problem: problem.into() }
    }
}
