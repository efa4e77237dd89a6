//! Floor 1: our stored bytes. Pure: salts and keys are arguments. `docs/format/repository-format.md` is the specification.

mod cipher;
mod compress;
pub mod content;
mod frame;
pub mod frames;
pub mod hash;
pub mod header;
pub mod key;
mod lz4_frame;
pub mod opener;
pub mod page_hash;
pub mod sealer;
pub mod tail;
mod tail_walk;
pub mod unpack;
