//! What is fetched before the server asks for it. Pure: `prefetch` does it, `hand_over` gives it to the server.

use std::collections::BTreeSet;
use std::fmt;

use super::decide::{Bounds, Order, Wanted};
use crate::pg::{SegmentName, SegmentSize};

/// Segments that are fetched side by side hold at most so much memory, each way they are held.
const IN_MEMORY: u64 = 64 << 20;
const LANES: u64 = 4;

/// A segment that a recovery is going to ask for, and how many bytes of it count; zeros follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    pub segment: SegmentName,
    pub bytes: u64,
}

impl Piece {
    pub fn whole(segment: SegmentName) -> Piece {
        Piece { segment, bytes: segment.size.bytes() }
    }

    /// Its name without what is only known when it has been fetched.
    pub fn name(&self) -> String {
        format!("{}.{:x}", self.segment, self.bytes)
    }
}

/// A piece that has been fetched, by the name of its file: segment, bytes that count, CRC-32C of the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ready {
    pub piece: Piece,
    pub crc: u32,
}

impl Ready {
    /// `None` for any other file, such as one that is being written.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Ready> {
        let mut fields = name.split('.');
        let segment = SegmentName::parse(fields.next()?, size)?;
        let bytes = u64::from_str_radix(fields.next()?, 16).ok()?;
        let crc = u32::from_str_radix(fields.next()?, 16).ok()?;
        let ready = Ready { piece: Piece { segment, bytes }, crc };
        (ready.to_string() == name && (1..=size.bytes()).contains(&bytes)).then_some(ready)
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08x}", self.piece.name(), self.crc)
    }
}

/// The next `count` files that a planned recovery asks for after `asked` and is given: of each segment the newest timeline that the plan names.
pub fn under_plan(bounds: &Bounds, asked: SegmentName, count: usize) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut number = asked.number.next();
    while out.len() < count && number.start(asked.size) < bounds.end {
        let piece = bounds.path.sources(number, asked.size).into_iter().find_map(|leg| {
            let segment = SegmentName::new(leg.timeline, number, asked.size);
            match bounds.order(Wanted::Segment(segment)) {
                Order::Segment { bytes, .. } => Some(Piece { segment, bytes }),
                _ => None,
            }
        });
        let Some(piece) = piece else { break };
        out.push(piece);
        number = number.next();
    }
    out
}

/// The next `count` files that a standby may ask for after `asked`: whole ones alone.
pub fn in_standby(asked: SegmentName, count: usize) -> Vec<Piece> {
    let numbers = std::iter::successors(Some(asked.number.next()), |number| Some(number.next()));
    numbers.take(count).map(|number| Piece::whole(SegmentName::new(asked.timeline, number, asked.size))).collect()
}

/// How many files may stand ready or be on their way: within the budget, and half of what the disk has left, so that the server has the other half.
/// `held` bytes of it are taken already.
pub fn slots(budget: u64, free: Option<u64>, held: u64, size: SegmentSize) -> usize {
    let of_disk = free.map_or(u64::MAX, |free| free.saturating_add(held) / 2);
    (budget.min(of_disk) / size.bytes()) as usize
}

/// How many are fetched side by side.
pub fn lanes(size: SegmentSize) -> usize {
    (IN_MEMORY / size.bytes()).clamp(1, LANES) as usize
}

/// A queue of so many bytes is begun with.
const FIRST_QUEUE: u64 = 64 << 20;

/// How many segments are wanted ahead: as few as keep the server from waiting, since memory that is used again at once costs less than what the kernel has to
/// find first. Where the server empties a queue that was full, the storage paused for longer than the queue lasted, and it gets twice as long. One that was
/// never full is no shorter than the storage can fill.
#[derive(Clone, Debug)]
pub struct Reach {
    pieces: usize,
    full: bool,
}

impl Reach {
    pub fn new(size: SegmentSize) -> Reach {
        Reach { pieces: (FIRST_QUEUE / size.bytes()).max(2) as usize, full: false }
    }

    /// How many are wanted, of at most `slots`.
    pub fn within(&self, slots: usize) -> usize {
        self.pieces.min(slots)
    }

    /// Notes how many of `wanted` stand ready when the server has taken one (`taken`), or at any other time.
    pub fn see(&mut self, ready: usize, wanted: usize, taken: bool) {
        self.full |= ready >= wanted && wanted == self.pieces;
        if taken && ready == 0 && self.full {
            self.pieces = self.pieces.saturating_mul(2);
            self.full = false;
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Nobody asks for these any more.
    pub drop: Vec<Ready>,
    pub fetch: Vec<Piece>,
}

/// What is there, and what is on its way.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub ready: Vec<Ready>,
    pub running: BTreeSet<Piece>,
    /// Could not be fetched a moment ago.
    pub resting: BTreeSet<Piece>,
}

/// From what will be asked for, nearest first (as many as there are slots), and what is there. What is ready, on its way and to be fetched never
/// exceeds the slots, once what is to be dropped has been.
pub fn step(wanted: &[Piece], state: &State, slots: usize, lanes: usize) -> Step {
    let mut kept = BTreeSet::new();
    let mut drop = Vec::new();
    for ready in &state.ready {
        if !(wanted.contains(&ready.piece) && kept.len() < slots && kept.insert(ready.piece)) {
            drop.push(*ready);
        }
    }
    let busy = state.running.len();
    let room = lanes.saturating_sub(busy).min(slots.saturating_sub(kept.len() + busy));
    let idle =
        |piece: &&Piece| !kept.contains(*piece) && !state.running.contains(*piece) && !state.resting.contains(*piece);
    Step { drop, fetch: wanted.iter().filter(idle).take(room).copied().collect() }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
