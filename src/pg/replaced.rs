//! Of some pages those that a stretch of WAL writes whole before anything else of it touches them: whatever stands there, replay does not read it.

use std::collections::{HashMap, HashSet};

use super::MajorVersion;
use super::bare::{ForkFile, copied_database};
use super::record::{Record, decode};
use super::xact::kept;

/// A block of a fork, counted through all its segments.
pub type Block = (ForkFile, u32);

/// The pages that are looked for, and what is known of each.
#[derive(Debug)]
pub struct Replaced {
    version: MajorVersion,
    /// Not touched yet.
    open: HashSet<Block>,
    /// How it was touched first: written whole or not.
    first: HashMap<Block, bool>,
}

impl Replaced {
    pub fn new(version: MajorVersion, blocks: impl IntoIterator<Item = Block>) -> Replaced {
        Replaced { version, open: blocks.into_iter().collect(), first: HashMap::new() }
    }

    /// Every record that is replayed, in order, with its body. Whether any page is still open; `Err` says what is impossible in a record of a known kind.
    pub fn see(&mut self, record: &Record<'_>) -> Result<bool, String> {
        let Replaced { version, open, first } = self;
        let main = decode(kept(record)?, *version, &mut |page| {
            let block = (ForkFile { relation: page.relation, fork: page.fork }, page.block);
            if open.remove(&block) {
                first.insert(block, page.is_whole(*version));
            }
        })?
        .main;
        if let Some(source) = copied_database(record, main)? {
            open.retain(|(file, _)| file.relation.database != source);
        }
        Ok(!open.is_empty())
    }

    /// Whether a page is written whole before anything else happens to it.
    pub fn has(&self, block: &Block) -> bool {
        self.first.get(block) == Some(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;
    use crate::pg::record::{RM_DBASE, RM_HEAP, RelationFile};

    fn block(database: u32, fork: u8, block: u32) -> Block {
        (ForkFile { relation: RelationFile { tablespace: 1663, database, number: 9 }, fork }, block)
    }

    /// A record that touches a page: its flags, the bits of its image.
    fn touch(at: Block, flags: u8, image: u8) -> (u8, Vec<u8>) {
        let (ForkFile { relation, fork }, block) = at;
        let mut body = vec![0, flags | fork, 0, 0];
        let has_image = flags & 0x10 != 0;
        if has_image {
            body.extend_from_slice(&[0, 0x20, 0, 0, image]);
        }
        for word in [relation.tablespace, relation.database, relation.number, block] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(&[255, 0]);
        body.extend(std::iter::repeat_n(1, if has_image { 8192 } else { 0 }));
        (RM_HEAP, body)
    }

    fn copies(source: u32) -> (u8, Vec<u8>) {
        let words = [99u32, 1663, source, 1663].into_iter().flat_map(u32::to_le_bytes);
        (RM_DBASE, [255, 16].into_iter().chain(words).collect())
    }

    fn see(replaced: &mut Replaced, (rmid, body): (u8, Vec<u8>)) -> bool {
        let at = Lsn(0);
        let record = Record {
            start: at,
            end: at,
            written: at,
            prev: at,
            xid: 1,
            rmid,
            info: 0,
            total_len: 0,
            crc: 0,
            body: Some(&body),
        };
        replaced.see(&record).unwrap()
    }

    const IMAGE: u8 = 0x10;
    const INIT: u8 = 0x40;

    #[test]
    fn a_page_is_replaced_where_its_first_record_has_all_of_it() {
        for (version, apply, compare) in [(MajorVersion::V14, 0x04, 0x00), (MajorVersion::V15, 0x02, 0x00)] {
            let asked = [1, 2, 3, 4, 5, 6].map(|number| block(5, 0, number));
            let mut replaced = Replaced::new(version, asked);
            assert!(see(&mut replaced, touch(asked[0], IMAGE, apply)));
            see(&mut replaced, touch(asked[0], 0, 0));
            see(&mut replaced, touch(asked[1], 0, 0));
            see(&mut replaced, touch(asked[1], IMAGE, apply));
            see(&mut replaced, touch(asked[2], INIT, 0));
            see(&mut replaced, touch(asked[3], IMAGE, compare));
            // Another fork and another database.
            see(&mut replaced, touch(block(5, 2, 5), IMAGE, apply));
            assert!(see(&mut replaced, touch(block(6, 0, 5), IMAGE, apply)));
            let found = asked.map(|block| replaced.has(&block));
            assert_eq!(found, [true, false, true, false, false, false], "{version}");
            see(&mut replaced, touch(asked[4], IMAGE, apply));
            assert!(!see(&mut replaced, touch(asked[5], INIT, 0)), "all are known");
        }
    }

    #[test]
    fn what_is_copied_before_it_is_written_is_copied_as_it_stands() {
        let asked = [block(5, 0, 1), block(5, 0, 2), block(6, 0, 1)];
        let mut replaced = Replaced::new(MajorVersion::V16, asked);
        see(&mut replaced, touch(asked[0], INIT, 0));
        assert!(see(&mut replaced, copies(5)));
        see(&mut replaced, touch(asked[1], INIT, 0));
        see(&mut replaced, touch(asked[2], INIT, 0));
        assert_eq!(asked.map(|block| replaced.has(&block)), [true, false, true]);
    }
}
