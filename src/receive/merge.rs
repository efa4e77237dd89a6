//! Which pieces of a tail become one, so that few of them stand on object storage however often it is flushed: decided here, without I/O.
//!
//! Pieces have levels. Where [`FAN`] neighbours of one level stand, they become one of the next level, sealed anew under a salt of its own and put like any
//! piece; only when that is durable are they deleted. So each byte is written again at most once per level, and whatever the moment of a crash, the pieces that
//! stand cover all that is durable. The newest piece is never merged: whoever lists pieces while they change then sees something behind what he has missed.

use crate::pg::Lsn;

/// So many neighbours of one level become one of the next.
pub const FAN: usize = 28;
/// How often a byte is merged at most.
pub const LEVELS: u8 = 3;
/// Most WAL in one merged piece: a larger group becomes several, put one after the other.
pub const MERGED_BYTES: u64 = 4 << 20;

/// A range of WAL that becomes one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    pub from: Lsn,
    pub to: Lsn,
}

/// What is to be done before the bytes of these pieces leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compact {
    Merge(Merge),
    /// A merge is under way, and will delete some that stand now.
    Busy,
    /// All that stands stays as it is.
    Nothing,
}

/// The durable pieces of one object's tail, ascending, and what is being merged.
#[derive(Debug, Default)]
pub struct Pieces {
    live: Vec<Piece>,
    group: Option<Group>,
}

#[derive(Debug)]
struct Piece {
    from: Lsn,
    to: Lsn,
    level: u8,
    name: String,
}

/// Neighbours that become one or a few.
#[derive(Debug)]
struct Group {
    from: Lsn,
    to: Lsn,
    level: u8,
    /// What they have become so far.
    made: Vec<Piece>,
    /// The next one is being made.
    asked: bool,
}

impl Group {
    /// `None` where there is nothing to become one.
    fn of(pieces: &[Piece], level: u8) -> Option<Group> {
        let [first, .., last] = pieces else { return None };
        Some(Group { from: first.from, to: last.to, level, made: Vec::new(), asked: false })
    }
}

impl Pieces {
    /// The piece of a flush is durable. Returns the names of the pieces that may be deleted now: none.
    pub fn add(&mut self, made: Merge, name: String) -> Vec<String> {
        self.insert(Piece { from: made.from, to: made.to, level: 0, name });
        Vec::new()
    }

    fn insert(&mut self, piece: Piece) {
        let at = self.live.partition_point(|other| other.from < piece.from);
        self.live.insert(at, piece);
    }

    /// What is to be merged next; `None` while one merge is under way, or nothing is worth it. The answer is [`Pieces::merged`] or [`Pieces::not_merged`].
    pub fn due(&mut self) -> Option<Merge> {
        if self.group.is_none() {
            self.group = self.choose();
        }
        self.part()
    }

    /// As [`Pieces::due`], before the bytes leave memory: then nothing of them can be merged any more, so whatever is below the highest level becomes one now.
    pub fn compact(&mut self) -> Compact {
        if self.group.is_none() {
            let low = |piece: &Piece| piece.level < LEVELS;
            let mut groups =
                self.whole().chunk_by(|a, b| low(a) == low(b)).filter(|group| group.first().is_some_and(low));
            // No higher than the highest of them: if the rest does not come about, it goes on as before.
            self.group = groups.find_map(|group| Group::of(group, group.first()?.level));
        }
        if self.group.is_none() {
            self.live.iter_mut().for_each(|piece| piece.level = LEVELS);
            return Compact::Nothing;
        }
        self.part().map_or(Compact::Busy, Compact::Merge)
    }

    fn part(&mut self) -> Option<Merge> {
        let group = self.group.as_mut().filter(|group| !group.asked)?;
        group.asked = true;
        let from = group.made.last().map_or(group.from, |made| made.to);
        Some(Merge { from, to: group.to.min(from + MERGED_BYTES) })
    }

    /// The pieces that may be merged. Behind a hole nothing is durable yet; up to it levels only fall, so no few pieces of a low level are left between two of
    /// a high one.
    fn whole(&self) -> &[Piece] {
        let older = self.live.split_last().map_or(&[][..], |(_, older)| older);
        older.chunk_by(|a, b| a.to == b.from).next().unwrap_or_default()
    }

    fn choose(&self) -> Option<Group> {
        let mut groups = self.whole().chunk_by(|a, b| a.level == b.level).filter(|group| group.len() >= FAN);
        groups.find_map(|group| Group::of(group, group.first()?.level + 1).filter(|group| group.level <= LEVELS))
    }

    /// What was asked for is durable under this name. Returns the names of the pieces that may be deleted now.
    pub fn merged(&mut self, merge: Merge, name: String) -> Vec<String> {
        // Left meanwhile: it was made for nothing.
        let Some(mut group) = self.group.take() else { return vec![name] };
        group.asked = false;
        group.made.push(Piece { from: merge.from, to: merge.to, level: group.level, name });
        if merge.to < group.to {
            self.group = Some(group);
            return Vec::new();
        }
        let inside = |piece: &Piece| piece.from >= group.from && piece.to <= group.to;
        let (old, live) = std::mem::take(&mut self.live).into_iter().partition(inside);
        self.live = live;
        group.made.into_iter().for_each(|piece| self.insert(piece));
        old.into_iter().map(|piece| piece.name).collect()
    }

    /// What was asked for cannot be made now. What the group has become so far is of no use: the names to delete.
    pub fn not_merged(&mut self) -> Vec<String> {
        self.group.take().into_iter().flat_map(|group| group.made).map(|piece| piece.name).collect()
    }

    /// Names of all pieces that stand, those of a merge under way included.
    pub fn names(&self) -> Vec<String> {
        let made = self.group.iter().flat_map(|group| &group.made);
        self.live.iter().chain(made).map(|piece| piece.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Most pieces that stand at any time, with what is just being merged and what a crash leaves of it.
    const MOST: usize = 110;

    struct Random(u64);

    impl Random {
        fn below(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % below
        }
    }

    /// A store of pieces as a set of ranges: what is put and deleted is put and deleted one by one, and after each step a crash may come.
    #[derive(Default)]
    struct Store {
        pieces: BTreeMap<String, (Lsn, Lsn)>,
        names: u64,
        most: usize,
        merged_bytes: u64,
    }

    impl Store {
        fn put(&mut self, from: Lsn, to: Lsn) -> String {
            self.names += 1;
            let name = format!("{}", self.names);
            assert!(self.pieces.insert(name.clone(), (from, to)).is_none(), "created once");
            name
        }

        /// Whatever step was the last: the pieces cover everything from 0 to `durable`.
        fn demand(&mut self, durable: Lsn) {
            let mut ranges: Vec<_> = self.pieces.values().copied().collect();
            ranges.sort_unstable();
            let reach = ranges.iter().fold(Lsn(0), |end, (from, to)| if *from <= end { end.max(*to) } else { end });
            assert!(reach >= durable, "pieces reach {reach}, durable is {durable}");
            self.most = self.most.max(self.pieces.len());
        }
    }

    fn run(random: &mut Random, flushes: u64, largest: u64) -> Store {
        let (mut store, mut pieces) = (Store::default(), Pieces::default());
        let (mut durable, mut pending) = (Lsn(0), None);
        // Puts of flushes that are on their way, which may be settled in any order.
        let mut flying: Vec<(Lsn, Lsn, bool)> = Vec::new();
        let (mut end, mut rested, mut merged_below) = (Lsn(0), Lsn(0), Lsn(0));
        for _ in 0..flushes {
            let to = end + 1 + random.below(largest);
            flying.push((end, to, false));
            end = to;
            while flying.len() > 3 || random.below(3) == 0 && !flying.is_empty() {
                let index = random.below(flying.len() as u64) as usize;
                let (from, to, _) = flying.remove(index);
                let name = store.put(from, to);
                pieces.add(Merge { from, to }, name);
                durable = flying.iter().map(|(from, ..)| *from).min().unwrap_or(end);
                store.demand(durable);
            }
            if pending.is_none() {
                pending = pieces.due();
            }
            // Now and then everything leaves memory, but not before a mebibyte has come.
            if pending.is_none() && flying.is_empty() && end.since(rested) >= 1 << 20 && random.below(300) == 0 {
                pending = match pieces.compact() {
                    Compact::Merge(merge) => Some(merge),
                    Compact::Nothing => None,
                    Compact::Busy => panic!("nothing is under way"),
                };
                (rested, merged_below) = if pending.is_none() { (end, end) } else { (rested, merged_below) };
            }
            // A merge takes a few flushes; now and then it comes to nothing.
            if let Some(merge) = pending.filter(|_| random.below(4) == 0) {
                pending = None;
                let gone = if random.below(10) == 0 {
                    pieces.not_merged()
                } else {
                    assert!(merge.to.since(merge.from) <= MERGED_BYTES);
                    assert!(merge.from >= merged_below, "its bytes have left memory");
                    store.merged_bytes += merge.to.since(merge.from);
                    let name = store.put(merge.from, merge.to);
                    store.demand(durable);
                    pieces.merged(merge, name)
                };
                for name in gone {
                    assert!(store.pieces.remove(&name).is_some(), "{name} stands");
                    store.demand(durable);
                }
            }
            let mut known = pieces.names();
            known.sort();
            assert!(known.iter().eq(store.pieces.keys()), "what stands is known");
        }
        store
    }

    #[test]
    fn pieces_always_cover_what_is_durable_and_stay_few() {
        let seed = std::env::var("WALRECV_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_u64);
        eprintln!("WALRECV_SEED={seed}");
        let mut random = Random(seed);
        // From one flush a byte to a few flushes in an object of 16 MiB.
        for (flushes, largest) in [(30_000, 50), (20_000, 1_000), (4_000, 8_000), (500, 60_000), (40, 800_000)] {
            let store = run(&mut random, flushes, largest);
            let written: u64 = (flushes * largest / 2).max(1);
            let again = store.merged_bytes as f64 / written as f64;
            eprintln!("{flushes} flushes: at most {} pieces, each byte written again {again:.1} times", store.most);
            assert!(store.most <= MOST, "{flushes} flushes of up to {largest}: {} pieces", store.most);
            assert!(again <= f64::from(LEVELS) + 1.0, "{again}");
        }
    }

    #[test]
    fn few_flushes_are_left_alone_and_the_newest_always() {
        let mut pieces = Pieces::default();
        for n in 0..FAN as u64 {
            pieces.add(Merge { from: Lsn(n), to: Lsn(n + 1) }, n.to_string());
            assert_eq!(pieces.due(), None);
        }
        pieces.add(Merge { from: Lsn(FAN as u64), to: Lsn(99) }, "newest".to_owned());
        let merge = pieces.due().unwrap();
        assert_eq!(merge, Merge { from: Lsn(0), to: Lsn(FAN as u64) });
        assert_eq!(pieces.due(), None, "one at a time");
        assert_eq!(pieces.merged(merge, "merged".to_owned()).len(), FAN);
        assert_eq!(pieces.names(), ["merged", "newest"]);
    }

    /// What is under way deletes pieces: their names must not be what bytes are read back from.
    #[test]
    fn while_a_merge_is_under_way_nothing_may_leave_memory() {
        let mut pieces = Pieces::default();
        for n in 0..4 {
            pieces.add(Merge { from: Lsn(n << 20), to: Lsn((n + 1) << 20) }, n.to_string());
        }
        let merge = Merge { from: Lsn(0), to: Lsn(3 << 20) };
        assert_eq!(pieces.compact(), Compact::Merge(merge));
        assert_eq!(pieces.compact(), Compact::Busy);
        assert_eq!(pieces.merged(merge, "merged".to_owned()).len(), 3);
        assert_eq!(pieces.compact(), Compact::Nothing);
    }

    #[test]
    fn nothing_is_merged_over_a_hole_and_large_groups_become_several() {
        let mut pieces = Pieces::default();
        let add = |pieces: &mut Pieces, n: u64| {
            pieces.add(Merge { from: Lsn(n << 18), to: Lsn((n + 1) << 18) }, n.to_string());
        };
        (0..2 * FAN as u64).filter(|n| *n != 20).for_each(|n| add(&mut pieces, n));
        assert_eq!(pieces.due(), None, "twenty before the hole, and what is behind it waits");
        add(&mut pieces, 20);
        let first = pieces.due().unwrap();
        assert_eq!((first.from, first.to), (Lsn(0), Lsn(MERGED_BYTES)));
        assert_eq!(pieces.merged(first, "a".to_owned()), Vec::<String>::new(), "the rest of the group is not made yet");
        let second = pieces.due().unwrap();
        assert_eq!(second.from, first.to);
        assert_eq!(pieces.not_merged(), ["a"]);
        assert_eq!(pieces.names().len(), 2 * FAN);
    }
}
