//! What earlier runs left of unfinished segments, compared with what is received again.
//!
//! An old tail counts for nothing towards the acknowledgement, but its bytes must be the bytes that arrive now: a server that sends something else under the
//! same timeline and position has another history. Every frame of a tail carries a running keyed hash, so no private key is needed.

use super::ReceiveOptions;
use crate::archive::Archive;
use crate::pg::Lsn;
use crate::repo::names::WalObject;
use crate::seal::hash::ContentHasher;
use crate::seal::key::RepositorySecret;

/// One stored tail of an earlier run: where it begins, and its running hash at the end of each whole frame.
#[derive(Debug)]
pub struct OldTail {
    pub name: String,
    /// All pieces of it, where it is made of such.
    pub pieces: Vec<String>,
    /// It is the end of a timeline, an object with one hash.
    pub is_end: bool,
    pub start: Lsn,
    /// (bytes from `start`, keyed hash of them), ascending.
    pub marks: Vec<(u64, [u8; 32])>,
}

impl OldTail {
    /// Where its last whole frame ends.
    pub fn end(&self) -> Lsn {
        self.start + self.marks.last().map_or(0, |(len, _)| *len)
    }
}

/// The stored tail differs from what the server sends now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} differs from what the server sends between {from} and {to}")]
pub struct Differs {
    pub name: String,
    pub from: Lsn,
    pub to: Lsn,
}

impl Differs {
    /// Whether a restart would pass over it: a run begins behind what is stored complete, unless a slot that lasts stands before that.
    pub fn is_passed_over(&self, archive: &Archive, options: &ReceiveOptions) -> bool {
        let complete = matches!(archive.parse(&self.name), Some(WalObject::Segment { .. } | WalObject::Partial { .. }));
        complete && (options.slot.is_none() || options.temporary_slot)
    }
}

/// Compares a stream that begins at one position with all old tails that begin at or after it.
pub struct Comparison {
    pending: Vec<Pending>,
}

struct Pending {
    tail: OldTail,
    hasher: ContentHasher,
    next: usize,
}

impl Comparison {
    /// Tails that begin before `start` cannot be compared (their hash covers bytes that will not come) and are left out; so are empty ones.
    pub fn new(start: Lsn, tails: Vec<OldTail>, secret: &RepositorySecret) -> Comparison {
        let fit = tails.into_iter().filter(|t| t.start >= start && !t.marks.is_empty());
        let pending = fit.map(|tail| Pending { tail, hasher: ContentHasher::new(secret), next: 0 }).collect();
        Comparison { pending }
    }

    /// Up to where everything stored was compared; `None` when nothing is left.
    pub fn limit(&self) -> Option<Lsn> {
        self.pending.iter().map(Pending::matched).min()
    }

    /// The next bytes of the stream, which begin at `at`.
    pub fn feed(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), Differs> {
        for pending in &mut self.pending {
            pending.feed(at, bytes)?;
        }
        self.pending.retain(|p| p.next < p.tail.marks.len());
        Ok(())
    }
}

impl Pending {
    fn matched(&self) -> Lsn {
        let last = self.next.checked_sub(1).and_then(|i| self.tail.marks.get(i));
        self.tail.start + last.map_or(0, |(len, _)| *len)
    }

    fn feed(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), Differs> {
        let position = self.tail.start + self.hasher.len();
        let Some(skip) = position.0.checked_sub(at.0) else { return Ok(()) };
        let mut rest = bytes.get(skip as usize..).unwrap_or_default();
        while let Some((len, hash)) = self.tail.marks.get(self.next) {
            let missing = len.saturating_sub(self.hasher.len());
            let take = rest.len().min(missing as usize);
            let (now, later) = rest.split_at(take);
            self.hasher.update(now);
            rest = later;
            if self.hasher.len() < *len {
                break;
            }
            if self.hasher.finalize() != *hash {
                let from = self.matched();
                return Err(Differs { name: self.tail.name.clone(), from, to: self.tail.start + *len });
            }
            self.next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> RepositorySecret {
        RepositorySecret([9; 32])
    }

    fn tail(start: u64, stream: &[u8], ends: &[u64]) -> OldTail {
        let marks = ends.iter().map(|end| {
            let mut hasher = ContentHasher::new(&secret());
            hasher.update(&stream[start as usize..(start + end) as usize]);
            (*end, hasher.finalize())
        });
        let name = format!("tail at {start}");
        OldTail { name, pieces: Vec::new(), is_end: false, start: Lsn(start), marks: marks.collect() }
    }

    fn stream() -> Vec<u8> {
        (0..1000u32).map(|i| (i * 7 % 251) as u8).collect()
    }

    #[test]
    fn equal_bytes_pass_in_any_cut_and_the_limit_rises_mark_by_mark() {
        let stream = stream();
        for cut in [1, 3, 50, 100, 999, 1000] {
            let tails = vec![tail(0, &stream, &[100, 101, 400]), tail(200, &stream, &[50]), tail(990, &stream, &[10])];
            let mut comparison = Comparison::new(Lsn(0), tails, &secret());
            assert_eq!(comparison.limit(), Some(Lsn(0)));
            for (index, part) in stream.chunks(cut).enumerate() {
                comparison.feed(Lsn((index * cut) as u64), part).unwrap();
                let fed = (index * cut + part.len()) as u64;
                let expected = match fed {
                    0..100 => Some(Lsn(0)),
                    100 => Some(Lsn(100)),
                    101..250 => Some(Lsn(101)),
                    250..400 => Some(Lsn(101)),
                    400..1000 => Some(Lsn(990)),
                    _ => None,
                };
                assert_eq!(comparison.limit(), expected, "cut {cut}, fed {fed}");
            }
        }
    }

    #[test]
    fn one_different_byte_is_found_at_the_mark_that_covers_it() {
        let stored = stream();
        let mut sent = stream();
        sent[150] ^= 1;
        let mut comparison = Comparison::new(Lsn(0), vec![tail(0, &stored, &[100, 200, 300])], &secret());
        comparison.feed(Lsn(0), &sent[..150]).unwrap();
        let differs = comparison.feed(Lsn(150), &sent[150..]).unwrap_err();
        assert_eq!((differs.from, differs.to), (Lsn(100), Lsn(200)));
    }

    #[test]
    fn a_tail_that_began_before_the_stream_is_left_out() {
        let stream = stream();
        let comparison = Comparison::new(Lsn(100), vec![tail(0, &stream, &[300])], &secret());
        assert_eq!(comparison.limit(), None);
    }
}
