//! Every byte is checked before a commit that waits for it is released: the scanner's rules, the comparison with what earlier runs stored, and the summary
//! of what went by.

use super::compare::{Comparison, Differs};
use crate::pg::record::Record;
use crate::pg::scan::{Invalid, ScanConfig, WalScanner};
use crate::pg::{Lsn, xact};

/// Why bytes were refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Differs(#[from] Differs),
    /// Not the server's fault: the segment is received again.
    #[error("the tail cannot be read back: {0}")]
    Forgotten(String),
}

/// Checks a stream of WAL from one start on.
pub struct Check {
    config: ScanConfig,
    scanner: WalScanner,
    comparison: Comparison,
}

impl Check {
    pub fn new(config: ScanConfig, start: Lsn, comparison: Comparison) -> Check {
        Check { config, scanner: WalScanner::new(config, start), comparison }
    }

    /// The next bytes; `sink` is shown each record that ends in them, with its meaning.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&Record<'_>, &xact::Note)) -> Result<(), Refused> {
        let at = self.scanner.received();
        let version = self.config.version;
        let mut problem = None;
        self.scanner.feed(bytes, &mut |record| match xact::note(record, version) {
            Ok(note) => sink(record, &note),
            Err(text) => problem = problem.take().or(Some(Invalid { at: record.start, problem: text })),
        })?;
        if let Some(invalid) = problem {
            return Err(invalid.into());
        }
        self.comparison.feed(at, bytes)?;
        Ok(())
    }

    /// End of all bytes that were fed.
    pub fn received(&self) -> Lsn {
        self.scanner.received()
    }

    /// End of the last checked record.
    pub fn checked(&self) -> Lsn {
        self.scanner.checked()
    }

    /// `lsn`, or where the comparison has come to if that is lower. Bytes that an earlier run has differently must not get into a second tail: whoever reads
    /// the two would find that they disagree, about bytes that were acknowledged.
    pub fn keepable(&self, lsn: Lsn) -> Lsn {
        self.compared().map_or(lsn, |compared| lsn.min(compared))
    }

    /// Up to where stored copies were compared; `None` when nothing is left to compare.
    pub fn compared(&self) -> Option<Lsn> {
        self.comparison.limit()
    }
}
