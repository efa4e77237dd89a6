//! One file of an incremental transfer over the same file of the parent: which pages are sent, which are the parent's, which are zero.
//!
//! The rules are those of `pg_combinebackup/reconstruct.c`. A page that is sent is as it was sent. A page below the truncation length that is not
//! sent is the parent's, where the parent has it. Every other page of the result is zero; it is named as zero, so that nothing an older map says
//! of the place can be taken for it.

use std::collections::VecDeque;
use std::ops::Range;

use super::diff::{Diff, Passing};
use super::intake::Expected;
use super::record::Record;
use crate::error::{Error, Kind, Result};
use crate::pg::data_page::{PAGE, RelationFile};
use crate::pg::incremental::{BadIncremental, Header, IncrementalReader, target};
use crate::pg::tar::{Member, MemberKind};

/// An incremental file that is being read.
pub struct Increment {
    pub reader: IncrementalReader,
    /// Rows of pages that are not sent and not yet written down, ascending; whether they are the parent's.
    unsent: VecDeque<(Range<u64>, bool)>,
}

/// Bytes that were not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The parent's.
    pub reused: u64,
    pub zero: u64,
}

impl Increment {
    /// Whether a member is one, and of which file.
    pub fn begin(
        expected: &Expected,
        diff: &mut Diff,
        path: &[u8],
        member: &Member,
    ) -> Result<Option<(Vec<u8>, Passing, Increment)>> {
        if !expected.incremental || member.kind != MemberKind::File {
            return Ok(None);
        }
        let Some(path) = target(path).filter(|path| RelationFile::from_path(path).is_some()) else { return Ok(None) };
        let Some(passing) = diff.begin_increment(&path)? else {
            let shown = String::from_utf8_lossy(&path);
            let text = format!("only some blocks of {shown} were sent, and the parent lacks it");
            return Err(Error::new(Kind::Corrupt, text).hint("Take the backup again with --full."));
        };
        let reader = IncrementalReader::new(member.size, expected.pages_per_segment);
        Ok(Some((path, passing, Increment { reader, unsent: VecDeque::new() })))
    }

    /// What follows is known now.
    pub fn header(&mut self, header: &Header, record: &mut Record, passing: &mut Passing) {
        let base = passing.base.unwrap_or_default();
        passing.size = u64::from(header.len()) * PAGE as u64;
        (record.size, record.base) = (passing.size, passing.base);
        let Unsent { kept, zero } = unsent(header, base / PAGE as u64);
        let mut rows: Vec<_> = kept.into_iter().map(|row| (row, true)).collect();
        rows.extend(zero.into_iter().map(|row| (row, false)));
        rows.sort_unstable_by_key(|(row, _)| row.start);
        self.unsent = rows.into();
    }

    /// Writes down what was not sent before this page.
    pub fn pass(&mut self, before: u64, diff: &mut Diff, record: &mut Record, passing: &mut Passing) -> Passed {
        let mut passed = Passed::default();
        while let Some((row, parents)) = self.unsent.pop_front_if(|(row, _)| row.start < before) {
            let count = row.end - row.start;
            if parents {
                let zero = diff.unsent(passing, count);
                passed.zero += zero * PAGE as u64;
                passed.reused += (count - zero) * PAGE as u64;
            } else {
                diff.zeros(passing, count);
                passed.zero += count * PAGE as u64;
                row.for_each(|page| record.zero(page));
            }
        }
        passed
    }

    pub fn refused(&self, record: &Record, bad: &BadIncremental) -> Error {
        Error::new(Kind::Corrupt, format!("{}: {bad}", record.shown()))
            .context("the server's base backup")
            .hint("Take the backup again with --full, and update the server: early releases of 17 sent malformed ones.")
    }
}

/// What is not sent of a file, page by page, as rows that ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsent {
    /// Pages that are the parent's.
    pub kept: Vec<Range<u64>>,
    /// Pages that are zero.
    pub zero: Vec<Range<u64>>,
}

/// Computes it from the file's header, and how many pages the parent has of it.
pub fn unsent(header: &Header, parent_pages: u64) -> Unsent {
    let inherited = u64::from(header.truncation).min(parent_pages);
    let mut rows = Unsent { kept: Vec::new(), zero: Vec::new() };
    let mut at = 0;
    let ends = header.blocks.iter().map(|number| u64::from(*number)).chain([u64::from(header.len())]);
    for end in ends {
        let border = inherited.clamp(at, end.max(at));
        push(&mut rows.kept, at..border);
        push(&mut rows.zero, border..end);
        at = end + 1;
    }
    rows
}

fn push(rows: &mut Vec<Range<u64>>, row: Range<u64>) {
    if !row.is_empty() {
        rows.push(row);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Page by page, as the rule is told.
    fn model(header: &Header, parent_pages: u64) -> (Vec<u64>, Vec<u64>) {
        let not_sent = (0..u64::from(header.len())).filter(|page| !header.blocks.contains(&(*page as u32)));
        not_sent.partition(|page| *page < u64::from(header.truncation) && *page < parent_pages)
    }

    fn check(truncation: u32, blocks: &[u32], parent_pages: u64) -> Unsent {
        let header = Header { truncation, blocks: blocks.into() };
        let rows = unsent(&header, parent_pages);
        let pages = |rows: &[Range<u64>]| rows.iter().cloned().flatten().collect::<Vec<u64>>();
        assert_eq!((pages(&rows.kept), pages(&rows.zero)), model(&header, parent_pages), "{header:?}, {parent_pages}");
        rows
    }

    #[test]
    fn what_neither_the_server_nor_the_parent_gives_is_zero() {
        assert_eq!(check(4, &[], 4), unsent_rows(&[(0, 4)], &[]));
        assert_eq!(check(6, &[], 4), unsent_rows(&[(0, 4)], &[(4, 6)]));
        assert_eq!(check(2, &[], 4), unsent_rows(&[(0, 2)], &[]));
        // Cut to two pages and grown again: pages 2 and 4 are not the parent's.
        assert_eq!(check(2, &[3, 5], 9), unsent_rows(&[(0, 2)], &[(2, 3), (4, 5)]));
        assert_eq!(check(0, &[], 9), unsent_rows(&[], &[]));
        assert_eq!(check(3, &[0, 1, 2], 9), unsent_rows(&[], &[]));
    }

    fn unsent_rows(kept: &[(u64, u64)], zero: &[(u64, u64)]) -> Unsent {
        let rows = |rows: &[(u64, u64)]| rows.iter().map(|(from, to)| *from..*to).collect();
        Unsent { kept: rows(kept), zero: rows(zero) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rows_are_what_the_rule_says(
            truncation in 0u32..40,
            blocks in proptest::collection::btree_set(0u32..40, 0..20),
            parent_pages in 0u64..40,
        ) {
            check(truncation, &blocks.into_iter().collect::<Vec<_>>(), parent_pages);
        }
    }
}
