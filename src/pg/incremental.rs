//! Files that an incremental backup sends for relations that were not sent whole: `INCREMENTAL.<name>`
//! (`basebackup.c:sendFile`, `basebackup_incremental.c`, `pg_combinebackup/reconstruct.c`).
//!
//! ```text
//! u32 magic · u32 number of blocks n · u32 truncation length · n times u32 block number, ascending · zeros up to a whole block (only if n > 0)
//! n blocks, in the order of their numbers
//! ```
//!
//! Numbers are little-endian (of the machines that are supported) and count blocks of this segment file. The file that results has
//! [`Header::len`] pages: those listed are the blocks sent, those below the truncation length that are not listed are the earlier backup's, and
//! what neither gives is zero.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::data_page::PAGE;

/// What the name of such a file begins with.
pub const PREFIX: &[u8] = b"INCREMENTAL.";
const MAGIC: u32 = 0xd3ae_1f0d;
/// Magic, number of blocks, truncation length.
const FIXED: usize = 12;

/// The path of the file that an incremental file stands for: `base/5/INCREMENTAL.16384.1` is about `base/5/16384.1`. `None` for any other path.
pub fn target(path: &[u8]) -> Option<Vec<u8>> {
    let name = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = path.split_at_checked(name)?;
    let rest = name.strip_prefix(PREFIX).filter(|rest| !rest.is_empty())?;
    Some([folder, rest].concat())
}

/// The beginning of an incremental file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Pages below this number that are not listed are taken from the earlier backup, or are zero where it has none.
    pub truncation: u32,
    /// Numbers of the blocks that follow, ascending.
    pub blocks: Arc<[u32]>,
}

impl Header {
    /// Pages of the resulting file.
    #[expect(clippy::len_without_is_empty, reason = "the length of another file")]
    pub fn len(&self) -> u32 {
        self.truncation.max(self.blocks.last().map_or(0, |last| last + 1))
    }
}

/// What an incremental file says, in this order: one header, its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Header(Header),
    /// One page of [`PAGE`] bytes, and its number in the resulting file.
    Block {
        number: u32,
        page: Bytes,
    },
}

/// Why a file was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("incremental file, offset {offset}: {problem}")]
pub struct BadIncremental {
    pub offset: u64,
    pub problem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Magic and counts.
    Fixed,
    /// Block numbers and padding, together this many bytes.
    Numbers(usize),
    Blocks,
}

/// Takes the bytes of one incremental file in pieces of any size. Memory: the block numbers (at most 512 KiB where segments have 1 GiB) and less than a page.
#[derive(Debug)]
pub struct IncrementalReader {
    size: u64,
    segment_pages: u32,
    state: State,
    truncation: u32,
    count: u32,
    numbers: Arc<[u32]>,
    /// Blocks given out.
    given: usize,
    input: Bytes,
    /// What was cut by the end of a piece.
    partial: BytesMut,
    /// Bytes of the file that were taken apart.
    offset: u64,
}

impl IncrementalReader {
    /// A file of `size` bytes, as its archive says, of a server whose segment files have at most `segment_pages` pages.
    pub fn new(size: u64, segment_pages: u32) -> IncrementalReader {
        IncrementalReader {
            size,
            segment_pages,
            state: State::Fixed,
            truncation: 0,
            count: 0,
            numbers: Arc::new([]),
            given: 0,
            input: Bytes::new(),
            partial: BytesMut::new(),
            offset: 0,
        }
    }

    /// Gives the next bytes. Everything given before must have been taken out with [`IncrementalReader::next_event`].
    pub fn feed(&mut self, bytes: Bytes) {
        debug_assert!(self.input.is_empty());
        self.input = bytes;
    }

    /// The next event; `None` when more bytes are needed.
    pub fn next_event(&mut self) -> Result<Option<Event>, BadIncremental> {
        loop {
            match self.state {
                State::Fixed => {
                    let Some(bytes) = self.take(FIXED) else { return Ok(None) };
                    self.fixed(&bytes)?;
                    self.offset += FIXED as u64;
                }
                State::Numbers(len) => {
                    let Some(bytes) = self.take(len) else { return Ok(None) };
                    self.read_numbers(&bytes)?;
                    self.offset += len as u64;
                    self.state = State::Blocks;
                    let header = Header { truncation: self.truncation, blocks: self.numbers.clone() };
                    return Ok(Some(Event::Header(header)));
                }
                State::Blocks => {
                    let Some(&number) = self.numbers.get(self.given) else {
                        return if self.input.is_empty() {
                            Ok(None)
                        } else {
                            Err(self.bad("more bytes than announced"))
                        };
                    };
                    let Some(page) = self.take(PAGE) else { return Ok(None) };
                    self.given += 1;
                    self.offset += PAGE as u64;
                    return Ok(Some(Event::Block { number, page }));
                }
            }
        }
    }

    /// States that the file's bytes have ended: an error unless all blocks were there.
    pub fn finish(&self) -> Result<(), BadIncremental> {
        if self.state == State::Blocks && self.given == self.numbers.len() && self.input.is_empty() {
            return Ok(());
        }
        Err(self.bad(format!("the file ends after {} of {} blocks", self.given, self.count)))
    }

    /// The next `len` bytes, joined from pieces where they were cut.
    fn take(&mut self, len: usize) -> Option<Bytes> {
        if self.partial.is_empty() && self.input.len() >= len {
            return Some(self.input.split_to(len));
        }
        let now = self.input.len().min(len.saturating_sub(self.partial.len()));
        self.partial.extend_from_slice(&self.input.split_to(now));
        (self.partial.len() == len).then(|| self.partial.split().freeze())
    }

    fn fixed(&mut self, bytes: &[u8]) -> Result<(), BadIncremental> {
        let mut words = words(bytes);
        let mut word = || words.next().unwrap_or_default();
        let (magic, count, truncation) = (word(), word(), word());
        if magic != MAGIC {
            return Err(self.bad(format!("expected the magic number {MAGIC:#010x}, found {magic:#010x}")));
        }
        for (what, number) in [("number of blocks", count), ("truncation length", truncation)] {
            if number > self.segment_pages {
                return Err(self.bad(format!("{what} {number}, expected at most {}", self.segment_pages)));
            }
        }
        let numbers = count as usize * 4;
        // Without blocks nothing is filled up (`GetIncrementalHeaderSize`).
        let header = if count == 0 { FIXED } else { (FIXED + numbers).next_multiple_of(PAGE) };
        let expected = header as u64 + u64::from(count) * PAGE as u64;
        if self.size != expected {
            let found = self.size;
            return Err(self.bad(format!("a file of {count} blocks has {expected} bytes, this one has {found}")));
        }
        (self.count, self.truncation, self.state) = (count, truncation, State::Numbers(header - FIXED));
        Ok(())
    }

    fn read_numbers(&mut self, bytes: &[u8]) -> Result<(), BadIncremental> {
        let (numbers, padding) = bytes.split_at_checked(self.count as usize * 4).unwrap_or((bytes, &[]));
        let mut list: Vec<u32> = Vec::with_capacity(self.count as usize);
        for (at, number) in words(numbers).enumerate() {
            let place = self.offset + 4 * at as u64;
            let bad = |problem| Err(BadIncremental { offset: place, problem });
            if number >= self.segment_pages {
                return bad(format!("block number {number}, expected less than {}", self.segment_pages));
            }
            if let Some(last) = list.last().filter(|last| **last >= number) {
                return bad(format!("block number {number} after {last}: expected ascending numbers"));
            }
            list.push(number);
        }
        if let Some(at) = padding.iter().position(|b| *b != 0) {
            let offset = self.offset + (numbers.len() + at) as u64;
            return Err(BadIncremental { offset, problem: "expected zeros between block numbers and blocks".into() });
        }
        self.numbers = list.into();
        Ok(())
    }

    fn bad(&self, problem: impl Into<String>) -> BadIncremental {
        BadIncremental { offset: self.offset, problem: problem.into() }
    }
}

/// Little-endian numbers of four bytes.
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file as the server would send it.
    fn file(truncation: u32, blocks: &[(u32, u8)]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [MAGIC, blocks.len() as u32, truncation].into_iter().chain(blocks.iter().map(|(n, _)| *n)) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        if !blocks.is_empty() {
            out.resize(out.len().next_multiple_of(PAGE), 0);
        }
        for (_, byte) in blocks {
            out.extend_from_slice(&[*byte; PAGE]);
        }
        out
    }

    /// The header and the blocks, read in pieces whose sizes come from `steps`, over and over.
    fn read(bytes: &[u8], pages: u32, steps: &[usize]) -> Result<(Header, Vec<(u32, u8)>), BadIncremental> {
        let mut reader = IncrementalReader::new(bytes.len() as u64, pages);
        let (mut header, mut blocks, mut rest, mut steps) = (None, Vec::new(), bytes, steps.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*steps.next().unwrap()).clamp(1, rest.len()));
            rest = after;
            reader.feed(Bytes::copy_from_slice(piece));
            while let Some(event) = reader.next_event()? {
                match event {
                    Event::Header(h) => assert!(header.replace(h).is_none() && blocks.is_empty()),
                    Event::Block { number, page } => {
                        assert!(page.len() == PAGE && page.iter().all(|b| *b == page[0]));
                        blocks.push((number, page[0]));
                    }
                }
            }
        }
        reader.finish()?;
        Ok((header.unwrap(), blocks))
    }

    #[test]
    fn names() {
        let name = |path: &str| target(path.as_bytes()).map(|t| String::from_utf8(t).unwrap());
        assert_eq!(name("base/5/INCREMENTAL.16384.1").as_deref(), Some("base/5/16384.1"));
        assert_eq!(name("INCREMENTAL.x").as_deref(), Some("x"));
        for none in ["base/5/16384", "base/5/INCREMENTAL.", "INCREMENTAL.5/16384", "base/5/incremental.1", ""] {
            assert_eq!(name(none), None, "{none}");
        }
    }

    #[test]
    fn a_file_without_blocks_has_twelve_bytes() {
        let bytes = file(7, &[]);
        assert_eq!(bytes.len(), 12);
        for step in [1, 5, 12] {
            let (header, blocks) = read(&bytes, 100, &[step]).unwrap();
            assert_eq!((header.len(), header.truncation, blocks.len()), (7, 7, 0));
        }
        assert_eq!(read(&file(0, &[]), 100, &[4]).unwrap().0.len(), 0);
        assert!(read(&[&bytes[..], &[0; PAGE - 12]].concat(), 100, &[99]).is_err(), "padding without blocks");
    }

    #[test]
    fn the_length_is_that_of_the_highest_page() {
        assert_eq!(read(&file(3, &[(1, 1), (9, 2)]), 100, &[999]).unwrap().0.len(), 10);
        assert_eq!(read(&file(30, &[(1, 1), (9, 2)]), 100, &[999]).unwrap().0.len(), 30);
        let last = file(100, &[(99, 1)]);
        assert_eq!(read(&last, 100, &[999]).unwrap().0.len(), 100);
    }

    #[test]
    fn numbers_that_fill_a_block_need_no_padding() {
        // 12 + 4 x 2045 = 8192.
        let blocks: Vec<_> = (0..2045).map(|n| (2 * n, n as u8)).collect();
        let bytes = file(9000, &blocks);
        assert_eq!(bytes.len(), PAGE * 2046);
        assert_eq!(read(&bytes, 9000, &[10_000]).unwrap().1, blocks);
        let more = file(9000, &[&blocks[..], &[(8000, 1)]].concat());
        assert_eq!(more.len(), PAGE * 2048);
        assert_eq!(read(&more, 9000, &[8191]).unwrap().1.len(), 2046);
    }

    #[test]
    fn what_is_malformed_is_refused_with_what_and_where() {
        let refused = |bytes: &[u8], offset: u64, problem: &str| {
            let error = read(bytes, 100, &[1000]).unwrap_err();
            assert!(error.offset == offset && error.problem.contains(problem), "{error}");
        };
        let good = file(50, &[(3, 1), (4, 2), (60, 3)]);
        let with = |at: usize, word: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            bytes
        };
        refused(&with(0, 0xd3ae_1f0e), 0, "magic");
        refused(&with(4, 101), 0, "number of blocks 101, expected at most 100");
        refused(&with(4, 2), 0, "a file of 2 blocks has 24576 bytes, this one has 32768");
        refused(&with(8, 101), 0, "truncation length 101, expected at most 100");
        refused(&with(16, 3), 16, "block number 3 after 3");
        refused(&with(20, 2), 20, "block number 2 after 4");
        refused(&with(20, 100), 20, "block number 100, expected less than 100");
        refused(&with(24, 1), 24, "zeros");
        refused(&with(PAGE - 4, 1 << 24), PAGE as u64 - 1, "zeros");
    }

    #[test]
    fn the_end_must_be_where_it_was_announced() {
        let good = file(50, &[(3, 1), (4, 2)]);
        for cut in [0, 5, 12, 13, PAGE, PAGE + 1, 3 * PAGE - 1] {
            let mut reader = IncrementalReader::new(good.len() as u64, 100);
            reader.feed(Bytes::copy_from_slice(&good[..cut]));
            while reader.next_event().unwrap().is_some() {}
            assert!(reader.finish().is_err(), "cut at {cut}");
        }
        let mut reader = IncrementalReader::new(good.len() as u64, 100);
        reader.feed(Bytes::from([&good[..], b"x"].concat()));
        let error = loop {
            match reader.next_event() {
                Ok(event) => assert!(event.is_some(), "the byte too many was passed over"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.offset, good.len() as u64);
    }

    /// A segment's size, a truncation length, and some of its blocks.
    fn files() -> impl Strategy<Value = (u32, u32, Vec<(u32, u8)>)> {
        (1u32..300).prop_flat_map(|pages| {
            let blocks = proptest::collection::btree_map(0..pages, any::<u8>(), 0..20);
            (Just(pages), 0..=pages, blocks.prop_map(|blocks| blocks.into_iter().collect()))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn comes_back_in_pieces_of_any_size(
            (pages, truncation, blocks) in files(),
            steps in proptest::collection::vec(1usize..20_000, 1..10),
        ) {
            let (header, found) = read(&file(truncation, &blocks), pages, &steps).unwrap();
            prop_assert_eq!(&found, &blocks);
            let expected: Vec<u32> = blocks.iter().map(|(n, _)| *n).collect();
            prop_assert_eq!(header.len(), expected.last().map_or(0, |l| l + 1).max(truncation));
            prop_assert_eq!(header.blocks.to_vec(), expected);
        }

        #[test]
        fn any_other_header_gives_an_error_or_ascending_blocks(
            (pages, truncation, blocks) in files(),
            changes in proptest::collection::vec((0usize..200, any::<u8>()), 1..4),
        ) {
            let good = file(truncation, &blocks);
            let mut bytes = good.clone();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            if let Ok((header, found)) = read(&bytes, pages, &[8000]) {
                prop_assert!(header.blocks.is_sorted_by(|a, b| a < b));
                prop_assert!(header.len() <= pages);
                prop_assert_eq!(found.len(), blocks.len());
            }
        }
    }
}
