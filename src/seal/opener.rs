//! Opener: sealed bytes in, plain bytes out, or the exact reason why not.

use super::header::{Claims, Header};
use super::key::ReaderKeys;

/// Why an object was refused. `Key` maps to exit 12, the rest to 16 (version: 10).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailed {
    #[error("not a walrecv object: {0}")]
    NotAnObject(String),
    #[error("format version {0} is not supported")]
    Version(u16),
    #[error("object ends early: {0}")]
    Truncated(String),
    #[error("object says {found}, its name says {expected}")]
    Claims { expected: String, found: String },
    #[error("key does not open this object: {0}")]
    Key(String),
    #[error("damaged at offset {offset}: {problem}")]
    Damaged { offset: u64, problem: String },
}

/// Parses the header; needs only the first bytes (8 KiB are always enough for header and frame 0 of a segment). Returns it with its length.
pub fn read_header(_bytes: &[u8]) -> Result<(Header, usize), OpenFailed> {
    todo!()
}

/// An opened header with its keys derived and their commitments checked.
pub struct Opener {}

impl Opener {
    /// Reads the header, compares the claims, derives the keys. `content: false` needs only the secret (frame 0, index class).
    pub fn new(
        _bytes: &[u8],
        _expected: &Claims,
        _keys: &dyn ReaderKeys,
        _content: bool,
    ) -> Result<Opener, OpenFailed> {
        todo!()
    }

    pub fn header(&self) -> &Header {
        todo!()
    }

    /// Frame 0 from the first bytes of the object.
    pub fn frame0(&self, _bytes: &[u8]) -> Result<Vec<u8>, OpenFailed> {
        todo!()
    }

    /// All content frames of a whole object, in order, appended to `out`; demands the last-frame flag on the last one and nothing after it.
    pub fn content(&self, _object: &[u8], _out: &mut Vec<u8>) -> Result<(), OpenFailed> {
        todo!()
    }

    /// One frame of a pack, cut out by range: `frame` are its bytes (header and ciphertext), `number` its number; `last` whether it is the last.
    pub fn frame(&self, _frame: &[u8], _number: u32, _last: bool) -> Result<Vec<u8>, OpenFailed> {
        todo!()
    }
}

/// Opens an index-class object whole.
pub fn open_index(_object: &[u8], _expected: &Claims, _keys: &dyn ReaderKeys) -> Result<Vec<u8>, OpenFailed> {
    todo!()
}
