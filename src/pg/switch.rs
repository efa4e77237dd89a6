//! What stands behind a WAL switch, up to the end of its segment. It says nothing: the server that switched writes zeros there, a standby may have what its
//! file held before (`CopyXLogRecordToWAL`, `xlog.c`). Zeros are what is stored, so zeros are what is compared.

use std::borrow::Cow;
use std::ops::Range;

use super::Lsn;
use super::scan::{ScanConfig, WalScanner};

/// Puts zeros where `bytes`, which begin at `at`, reach into `range`.
pub fn blank(bytes: &mut Cow<'_, [u8]>, at: Lsn, range: &Range<Lsn>) {
    let offset = |lsn: Lsn| (lsn.0.saturating_sub(at.0) as usize).min(bytes.len());
    let range = offset(range.start)..offset(range.end);
    if bytes.get(range.clone()).is_some_and(|part| part.iter().fold(0, |any, byte| any | byte) != 0)
        && let Some(part) = bytes.to_mut().get_mut(range)
    {
        part.fill(0);
    }
}

/// WAL from `start`, a page border, up to the end of its segment at most, with zeros behind a switch. From where it cannot be read on it is left as it is.
pub fn blanked(config: ScanConfig, start: Lsn, bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut switch = None;
    let read = WalScanner::new(config, start).feed(bytes, &mut |record| {
        if record.written < record.end {
            switch = Some(record.written..record.end);
        }
    });
    let mut blanked = Cow::Borrowed(bytes);
    if let (Ok(()), Some(range)) = (read, switch) {
        blank(&mut blanked, start, &range);
    }
    blanked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_behind_a_switch_is_blanked() {
        let stood = [7; 100];
        let blanked = |from: u64, to: u64| {
            let mut bytes = Cow::Borrowed(&stood[..]);
            blank(&mut bytes, Lsn(1000), &(Lsn(from)..Lsn(to)));
            let zeros = bytes.iter().filter(|byte| **byte == 0).count();
            let first = bytes.iter().position(|byte| *byte == 0);
            (first, zeros, matches!(bytes, Cow::Owned(_)))
        };
        assert_eq!(blanked(1040, 1060), (Some(40), 20, true));
        assert_eq!(blanked(1040, 5000), (Some(40), 60, true));
        assert_eq!(blanked(500, 1010), (Some(0), 10, true));
        assert_eq!(blanked(0, 5000), (Some(0), 100, true));
        for elsewhere in [(0, 1000), (1100, 5000), (500, 600)] {
            assert_eq!(blanked(elsewhere.0, elsewhere.1), (None, 0, false), "{elsewhere:?}");
        }
        let mut zeros = Cow::Borrowed(&[0; 100][..]);
        blank(&mut zeros, Lsn(1000), &(Lsn(0)..Lsn(5000)));
        assert!(matches!(zeros, Cow::Borrowed(_)), "nothing is copied for nothing");
    }
}
