//! Pages whose checksum is wrong: named, or held until the end tells whether they are.

use std::path::Path;

use crate::disk::sorted::Sorter;
use crate::error::Result;
use crate::pg::Lsn;
use crate::pg::data_page::{self, PAGE, PageState};
use crate::seal::content::manifest::{BadPage, Manifest, Raw};
use crate::seal::content::varint::{Cursor, put, put_bytes};

/// Memory for pages that are in doubt.
const HELD: usize = 1 << 20;
/// As many are told one by one as they are found.
const TOLD: u64 = 5;

/// What was found of them so far.
pub struct BadPages {
    start: Lsn,
    known: Known,
    /// Pages that seem to have been written while the backup was taken, in the order in which they came, with their positions.
    doubtful: Sorter,
}

/// Bad pages.
#[derive(Default)]
struct Known {
    named: Vec<BadPage>,
    count: u64,
}

impl BadPages {
    /// `start` is where the backup's WAL begins, `folder` where what does not fit memory goes.
    pub fn new(start: Lsn, folder: &Path) -> BadPages {
        BadPages { start, known: Known::default(), doubtful: Sorter::new(folder, HELD) }
    }

    /// Judges page number `page` of a file, which is `block` of its relation. Whether it is zero.
    pub fn look(&mut self, path: &[u8], page: u64, content: &[u8; PAGE], block: u32) -> Result<bool> {
        match data_page::judge(content, block, self.start) {
            PageState::Zero => return Ok(true),
            PageState::Good | PageState::Newer => {}
            PageState::Bad { stored, computed } => {
                tracing::debug!(page, stored, computed, "page checksum does not match");
                self.known.note(path, page, "page checksum does not match");
            }
            PageState::Torn(lsn) => {
                let mut value = Vec::new();
                put(&mut value, lsn.0);
                put(&mut value, page);
                put_bytes(&mut value, path);
                let number = self.doubtful.len();
                self.doubtful.push(&number.to_be_bytes(), &value)?;
            }
        }
        Ok(false)
    }

    /// Notes a page that ends within the file.
    pub fn cut(&mut self, path: &[u8], page: u64) {
        self.known.note(path, page, "a relation's file ends within a page");
    }

    /// Those that are named, and how many there are. What lies behind `stop`, where the server's WAL ended after the last page was read, no WAL has written.
    pub fn finish(self, stop: Lsn) -> Result<(Vec<BadPage>, u64)> {
        let (mut known, mut doubtful) = (self.known, self.doubtful.finish()?);
        while let Some((_, value)) = doubtful.next_pair()? {
            let mut cursor = Cursor::new("page in doubt", &value);
            let read = cursor.number().and_then(|lsn| Ok((Lsn(lsn), cursor.number()?, cursor.bytes()?)));
            let (lsn, page, path) = read.map_err(super::cache::damaged)?;
            if lsn > stop {
                known.note(path, page, "page checksum does not match");
            }
        }
        if let Some(more) = known.count.checked_sub(TOLD).filter(|more| *more > 0) {
            tracing::warn!(
                "and {more} pages more with a wrong checksum: the report of the backup counts and names them"
            );
        }
        Ok((known.named, known.count))
    }
}

impl Known {
    /// `what` is told of the first ones: where a disk dies there are thousands.
    fn note(&mut self, path: &[u8], page: u64, what: &str) {
        self.count += 1;
        if self.count <= TOLD {
            tracing::warn!(path = %String::from_utf8_lossy(path), page, "{what}");
        }
        if self.named.len() < Manifest::BAD_PAGES {
            self.named.push(BadPage { path: Raw(path.to_vec()), page });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lsn: u64, good: bool) -> [u8; PAGE] {
        let mut page = [7; PAGE];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let sum = data_page::checksum(&page, 3) ^ u16::from(!good);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn a_page_from_behind_the_end_is_bad_one_from_within_may_be_torn() {
        let folder = tempfile::tempdir().unwrap();
        let (start, stop) = (0x2000028, 0x3000000);
        let mut pages = BadPages::new(Lsn(start), folder.path());
        for (lsn, good) in [(start - 1, true), (start - 1, false), (start, false), (stop, false), (stop + 1, true)] {
            assert!(!pages.look(b"base/1/2", lsn, &page(lsn, good), 3).unwrap());
        }
        assert!(pages.look(b"base/1/2", 0, &[0; PAGE], 3).unwrap());
        // More than fit memory, of which one in three is bad.
        let many = 60_000;
        for number in 0..many {
            let lsn = if number % 3 == 0 { stop + 1 + number } else { start + number };
            pages.look(b"pg_tblspc/16384/PG_15_202209061/5/16400", number, &page(lsn, false), 3).unwrap();
        }
        let (named, count) = pages.finish(Lsn(stop)).unwrap();
        assert_eq!((named.len(), count), (Manifest::BAD_PAGES, 1 + many / 3));
        assert_eq!((named[0].page, named[1].page, named[2].page), (start - 1, 0, 3));
    }
}
