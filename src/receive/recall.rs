//! The last bytes that were received, to recognise their server by.
//!
//! A server may have been set back to a snapshot while this run was without a connection, and have gone on to the same position with other WAL. So a reconnect
//! asks for a little of what it has already: only where that is the same, the bytes before it were this server's too.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::pg::Lsn;

/// Enough that no two histories agree in it: it holds whole records, with their times and checksums.
const WINDOW: usize = 16 << 10;

/// The end of what was received.
#[derive(Debug)]
pub struct Recall {
    end: Lsn,
    last: VecDeque<Bytes>,
    len: usize,
}

impl Recall {
    /// Nothing was received yet; the first byte will be at `start`.
    pub fn new(start: Lsn) -> Recall {
        Recall { end: start, last: VecDeque::new(), len: 0 }
    }

    /// The next bytes that were received.
    pub fn push(&mut self, bytes: Bytes) {
        self.end = self.end + bytes.len() as u64;
        self.len += bytes.len();
        self.last.push_back(bytes);
        while let Some(first) = self.last.front().filter(|first| self.len - first.len() >= WINDOW) {
            self.len -= first.len();
            self.last.pop_front();
        }
    }

    /// Where to begin to see the last bytes again, not below `floor`.
    pub fn from(&self, floor: Lsn) -> Lsn {
        Lsn(self.end.0.saturating_sub(self.len.min(WINDOW) as u64)).max(floor).min(self.end)
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
            let here = part.get(skip.min(part.len())..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            let (now, later) = rest.split_at(here.len().min(rest.len()));
            if here.get(..now.len()) != Some(now) {
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
}
