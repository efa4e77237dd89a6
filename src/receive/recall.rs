//! The last bytes that were received, to recognise their server by.
//!
//! A server may have been set back to a snapshot while this run was without a connection, and have gone on to the same position with other WAL. So a reconnect
//! asks for a little of what it has already: only where that is the same, the bytes before it were this server's too.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::pg::Lsn;

/// Enough that no two histories agree in it: it holds whole records, with their times and checksums.
const WINDOW: usize = 16 << 10;
/// So many zeros, as a WAL switch leaves behind, are asked for again at most to see the records before them.
const LONG_ZEROS: usize = 16 << 20;

/// The end of what was received.
#[derive(Debug)]
pub struct Recall {
    end: Lsn,
    last: VecDeque<Part>,
    len: usize,
    /// How much of it is no zeros, in which all histories are alike.
    solid: usize,
}

#[derive(Debug)]
enum Part {
    Bytes(Bytes),
    Zeros(usize),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Bytes(bytes) => bytes.len(),
            Part::Zeros(len) => *len,
        }
    }

    /// Whether these bytes stand in it from `at` on.
    fn holds(&self, at: usize, bytes: &[u8]) -> bool {
        match self {
            Part::Bytes(own) => own.get(at..).and_then(|own| own.get(..bytes.len())) == Some(bytes),
            Part::Zeros(_) => is_zero(bytes),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

impl Recall {
    /// Nothing was received yet; the first byte will be at `start`.
    pub fn new(start: Lsn) -> Recall {
        Recall { end: start, last: VecDeque::new(), len: 0, solid: 0 }
    }

    /// The next bytes that were received.
    pub fn push(&mut self, bytes: Bytes) {
        self.end = self.end + bytes.len() as u64;
        self.len += bytes.len();
        let solid = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        if solid > 0 {
            self.solid += solid;
            self.last.push_back(Part::Bytes(bytes.slice(..solid)));
        }
        match (self.last.back_mut(), bytes.len() - solid) {
            (_, 0) => {}
            (Some(Part::Zeros(len)), more) => *len += more,
            (_, zeros) => self.last.push_back(Part::Zeros(zeros)),
        }
        while let Some(first) = self.last.front() {
            let solid = match first {
                Part::Bytes(bytes) if self.solid - bytes.len() >= WINDOW => bytes.len(),
                Part::Zeros(_) if self.solid > 0 => 0,
                _ => break,
            };
            self.len -= first.len();
            self.solid -= solid;
            self.last.pop_front();
        }
    }

    /// Where to begin to see the last bytes again, not below `floor`.
    pub fn from(&self, floor: Lsn) -> Lsn {
        let (mut back, mut missing, mut zeros) = (0, WINDOW, 0);
        for part in self.last.iter().rev() {
            match part {
                _ if missing == 0 => break,
                Part::Zeros(len) => {
                    back += len;
                    zeros += len;
                }
                Part::Bytes(bytes) => {
                    let some = bytes.len().min(missing);
                    back += some;
                    missing -= some;
                }
            }
        }
        if zeros > LONG_ZEROS {
            back = back.min(WINDOW);
        }
        Lsn(self.end.0.saturating_sub(back as u64)).max(floor).min(self.end)
    }

    /// Whether a server that sends the same bytes from `from` on has the same history: there are others than zeros among them, and as many as are kept.
    pub fn tells(&self, from: Lsn) -> bool {
        let trailing = match self.last.back() {
            Some(Part::Zeros(len)) => *len,
            _ => 0,
        };
        let shown = self.end.since(from);
        from <= self.from(Lsn::INVALID) && (shown > trailing as u64 || self.len == 0)
    }

    /// What is new of the bytes that begin at `start`, which is not below [`Recall::from`]; `None`: the others are not those that were received.
    pub fn fresh(&self, start: Lsn, bytes: Bytes) -> Option<Bytes> {
        let known = self.end.since(start) as usize;
        if known == 0 {
            // As it nearly always is: once a server was recognised, everything is new.
            return Some(bytes);
        }
        let again = bytes.get(..known.min(bytes.len()))?;
        let mut skip = self.len.checked_sub(known)?;
        let mut rest = again;
        for part in &self.last {
            let at = skip.min(part.len());
            skip -= at;
            let (now, later) = rest.split_at((part.len() - at).min(rest.len()));
            if !part.holds(at, now) {
                return None;
            }
            rest = later;
        }
        Some(bytes.slice(again.len()..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(from: usize, to: usize) -> Bytes {
        (from..to).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn the_same_bytes_pass_however_they_are_cut_and_other_bytes_do_not() {
        let mut recall = Recall::new(Lsn(0));
        assert_eq!(recall.from(Lsn(0)), Lsn(0));
        assert_eq!(recall.fresh(Lsn(0), stream(0, 10)), Some(stream(0, 10)), "all of it is new");
        for at in (0..50_000).step_by(1000) {
            recall.push(stream(at, at + 1000));
        }
        let from = recall.from(Lsn(0));
        assert_eq!(from, Lsn(50_000 - WINDOW as u64));
        assert_eq!(recall.from(Lsn(49_000)), Lsn(49_000));
        assert_eq!(recall.from(Lsn(60_000)), Lsn(50_000));
        let mut at = from.0 as usize;
        while at < 50_000 {
            let to = at + 777;
            let fresh = recall.fresh(Lsn(at as u64), stream(at, to)).unwrap();
            assert_eq!(fresh, stream(to.min(50_000), to));
            at = to;
        }
        for wrong in [0, 500, 15_000] {
            let mut bytes = stream(from.0 as usize, 52_000).to_vec();
            bytes[wrong] ^= 1;
            assert_eq!(recall.fresh(from, bytes.into()), None);
        }
    }

    /// After a WAL switch the last bytes are the same in every history: those before them tell.
    #[test]
    fn zeros_do_not_hide_the_records_before_them() {
        let zeros = |len: usize| Bytes::from(vec![0; len]);
        let mut recall = Recall::new(Lsn(0));
        assert!(recall.tells(Lsn(0)), "nothing is known");
        recall.push(zeros(100));
        assert!(!recall.tells(Lsn(0)));
        recall.push(stream(100, 20_100));
        for _ in 0..10 {
            recall.push(zeros(100_000));
        }
        let from = recall.from(Lsn(0));
        assert_eq!(from, Lsn(20_100 - WINDOW as u64));
        assert!(recall.tells(from) && !recall.tells(from + 1) && !recall.tells(Lsn(500_000)));
        let mut same = stream(from.0 as usize, 20_100).to_vec();
        same.resize(same.len() + 1_000_000, 0);
        assert_eq!(recall.fresh(from, same.clone().into()), Some(Bytes::new()));
        for wrong in [10, WINDOW - 1, WINDOW, 700_000] {
            let mut other = same.clone();
            other[wrong] ^= 1;
            assert_eq!(recall.fresh(from, other.into()), None, "at {wrong}");
        }
        recall.push(zeros(LONG_ZEROS));
        let from = recall.from(Lsn(0));
        assert_eq!(from, Lsn(recall.end.0 - WINDOW as u64));
        assert!(!recall.tells(from));
        recall.push(stream(0, WINDOW));
        recall.push(stream(0, WINDOW));
        assert!(recall.last.len() == 1 && recall.tells(recall.from(Lsn(0))), "what lies further back is let go of");
    }
}
