//! Records sorted by key on the local disk, in bounded memory: [`Sorter`] sorts what does not fit memory, [`SortedFile`] finds by key what was
//! written in order, [`NumberFile`] holds a long row of 64-bit numbers.
//!
//! Nothing here is worth more than the time to make it again: what is torn, damaged, or belongs to something else is refused
//! (`Kind::Corrupt`), and whoever asked goes on as if it were not there. Keys compare as bytes.

mod block;
mod file;
mod numbers;
mod sorter;
#[cfg(test)]
mod tests;

pub use file::{SortedFile, SortedWriter, Walk};
pub use numbers::{NumberFile, NumberWriter};
pub use sorter::{Merged, Sorter};

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);
