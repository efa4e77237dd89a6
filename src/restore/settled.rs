//! Which stretches of a file are written for good, while it is laid pack by pack. Only these are given to the disk early: a page that comes
//! later would go there apart.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that are given to the disk together: what is left out between them for later costs a disk with arms little.
const STRETCH: u64 = 16 << 20;
/// A file of fewer bytes is left to the sync at the end.
const LITTLE: u64 = 1 << 20;
/// And so is one of more stretches than this, which is 16 TiB, and no file of a database.
const MOST: usize = 1 << 20;

/// How many bytes of each stretch of a file are still to be written.
#[derive(Debug, Default)]
pub struct Unwritten(Vec<AtomicU32>);

impl Unwritten {
    /// `parts`: offset and length of everything that is to be written, in bytes; none overlaps another.
    pub fn of(parts: impl Iterator<Item = (u64, u64)>) -> Unwritten {
        let mut left: Vec<u32> = Vec::new();
        let mut sum = 0;
        for (at, len) in parts {
            sum += len;
            for (stretch, bytes) in shares(at, len) {
                if stretch >= MOST {
                    return Unwritten::default();
                }
                if left.len() <= stretch {
                    left.resize(stretch + 1, 0);
                }
                if let Some(left) = left.get_mut(stretch) {
                    *left = left.saturating_add(bytes);
                }
            }
        }
        if sum < LITTLE { Unwritten::default() } else { Unwritten(left.into_iter().map(AtomicU32::new).collect()) }
    }

    /// A part was written. The stretches that it was the last one of, as bytes of the file.
    pub fn wrote(&self, at: u64, len: u64) -> Option<Range<u64>> {
        let mut settled: Option<Range<u64>> = None;
        for (stretch, bytes) in shares(at, len) {
            let Some(left) = self.0.get(stretch) else { continue };
            if left.fetch_sub(bytes, Ordering::AcqRel) == bytes {
                let begin = stretch as u64 * STRETCH;
                settled = Some(settled.map_or(begin, |before| before.start)..begin + STRETCH);
            }
        }
        settled
    }
}

/// The stretches that a part lies in, and how many of its bytes lie in each.
fn shares(at: u64, len: u64) -> impl Iterator<Item = (usize, u32)> {
    let end = at + len;
    (at / STRETCH..end.div_ceil(STRETCH)).map(move |stretch| {
        let (begin, behind) = (stretch * STRETCH, (stretch + 1) * STRETCH);
        // No more than a stretch has.
        (stretch as usize, (end.min(behind) - at.max(begin)) as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn a_stretch_is_settled_once_when_nothing_of_it_is_left_to_write() {
        let unwritten =
            Unwritten::of([(0, STRETCH - KIB), (STRETCH - KIB, 2 * KIB), (2 * STRETCH, 8 * KIB)].into_iter());
        assert_eq!(unwritten.wrote(STRETCH - KIB, 2 * KIB), Some(STRETCH..2 * STRETCH), "all that is to be there");
        assert_eq!(unwritten.wrote(0, KIB), None);
        assert_eq!(unwritten.wrote(KIB, STRETCH - 2 * KIB), Some(0..STRETCH));
        assert_eq!(unwritten.wrote(2 * STRETCH, 4 * KIB), None);
        assert_eq!(unwritten.wrote(2 * STRETCH + 4 * KIB, 4 * KIB), Some(2 * STRETCH..3 * STRETCH));
    }

    #[test]
    fn neighbours_that_are_settled_by_one_part_are_given_together() {
        let unwritten = Unwritten::of([(0, 3 * STRETCH)].into_iter());
        assert_eq!(unwritten.wrote(0, 3 * STRETCH), Some(0..3 * STRETCH));
    }

    #[test]
    fn a_small_file_is_left_to_the_end() {
        assert_eq!(Unwritten::of([(0, LITTLE - 1)].into_iter()).wrote(0, LITTLE - 1), None);
    }
}
