//! WAL segments: sizes, numbers and file names (`access/xlog_internal.h`).

use std::fmt;

use super::{Lsn, TimelineId};

/// Bytes in one WAL segment: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentSize(u32);

impl SegmentSize {
    pub const MIN: u32 = 1 << 20;
    pub const MAX: u32 = 1 << 30;

    /// `None` unless `bytes` is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Option<SegmentSize> {
        let valid = bytes.is_power_of_two() && (Self::MIN as u64..=Self::MAX as u64).contains(&bytes);
        valid.then_some(SegmentSize(bytes as u32))
    }

    /// From what `SHOW wal_segment_size` prints: `1MB`, `16MB`, `1GB` (`RetrieveWalSegSize`, `streamutil.c`).
    pub fn from_show(text: &str) -> Option<SegmentSize> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit {
            "kB" => 1 << 10,
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            "B" => 1,
            _ => return None,
        };
        SegmentSize::new(number.parse::<u64>().ok()?.checked_mul(factor)?)
    }

    pub fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Segments in 4 GiB of WAL (`XLogSegmentsPerXLogId`): the last field of a name counts up to it.
    pub fn per_log_id(self) -> u64 {
        (1u64 << 32) / self.bytes()
    }

    /// The segment that holds the byte at `lsn` (`XLByteToSeg`): for start positions.
    pub fn segment_of(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 / self.bytes())
    }

    /// The segment that holds the byte before `lsn` (`XLByteToPrevSeg`): for end positions.
    pub fn segment_before(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0.saturating_sub(1) / self.bytes())
    }

    /// Bytes from the start of its segment to `lsn`.
    pub fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.0 & (self.bytes() - 1)
    }
}

/// Number of a segment counted from position 0 (`XLogSegNo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0 * size.bytes())
    }

    pub fn end(self, size: SegmentSize) -> Lsn {
        Lsn((self.0 + 1) * size.bytes())
    }

    pub fn next(self) -> SegmentNumber {
        SegmentNumber(self.0 + 1)
    }
}

/// A segment of one timeline: what a WAL file's name says (`XLogFileName`, `XLogFromFileName`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName {
    pub timeline: TimelineId,
    pub number: SegmentNumber,
    pub size: SegmentSize,
}

impl SegmentName {
    pub fn new(timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> SegmentName {
        SegmentName { timeline, number, size }
    }

    /// 24 upper-case hexadecimal digits; `None` for anything else, timeline 0, or a last field that this segment size
    /// does not have.
    pub fn parse(text: &str, size: SegmentSize) -> Option<SegmentName> {
        let plain = text.len() == 24 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        if !plain {
            return None;
        }
        let field = |from: usize| u64::from_str_radix(&text[from..from + 8], 16).ok();
        let (timeline, log, seg) = (field(0)?, field(8)?, field(16)?);
        // The end of the very last segment is no position: no server ever gets there, and a name may be anybody's.
        let last = log == 0xFFFF_FFFF && seg + 1 == size.per_log_id();
        if timeline == 0 || seg >= size.per_log_id() || last {
            return None;
        }
        let number = SegmentNumber(log * size.per_log_id() + seg);
        Some(SegmentName { timeline: TimelineId(timeline as u32), number, size })
    }

    pub fn start(self) -> Lsn {
        self.number.start(self.size)
    }

    pub fn end(self) -> Lsn {
        self.number.end(self.size)
    }

    /// The first 16 digits after the timeline, as the repository groups segments: 4 GiB of WAL share them.
    pub fn group(self) -> String {
        format!("{:08X}{:08X}", self.timeline.0, self.number.0 / self.size.per_log_id())
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = self.size.per_log_id();
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.number.0 / per, self.number.0 % per)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(megabytes: u64) -> SegmentSize {
        SegmentSize::new(megabytes << 20).unwrap()
    }

    #[test]
    fn names_wrap_where_four_gigabytes_end() {
        for (megabytes, last) in [(1, 0xFFF), (16, 0xFF), (64, 0x3F), (1024, 3)] {
            let size = size(megabytes);
            let before = SegmentName::new(TimelineId(1), size.segment_before(Lsn(1 << 32)), size);
            assert_eq!(before.to_string(), format!("0000000100000000{last:08X}"));
            let after = SegmentName::new(TimelineId(1), size.segment_of(Lsn(1 << 32)), size);
            assert_eq!(after.to_string(), "000000010000000100000000");
            assert_eq!(SegmentName::parse(&before.to_string(), size), Some(before));
            assert_eq!(SegmentName::parse(&format!("0000000100000000{:08X}", last + 1), size), None);
        }
    }

    #[test]
    fn refuses_what_is_no_segment_name() {
        for bad in ["", "000000010000000000000001.partial", "00000001000000000000000g", "000000000000000000000001"] {
            assert_eq!(SegmentName::parse(bad, size(16)), None, "{bad}");
        }
        assert_eq!(SegmentName::parse("00000001000000000000000a", size(16)), None, "lower case");
        assert_eq!(SegmentName::parse("00000001FFFFFFFF000000FF", size(16)), None, "it has no end");
        assert!(SegmentName::parse("00000001FFFFFFFF000000FE", size(16)).is_some());
    }

    #[test]
    fn sizes_are_powers_of_two_in_range() {
        assert_eq!(SegmentSize::from_show("16MB"), Some(size(16)));
        assert_eq!(SegmentSize::from_show("1GB"), Some(size(1024)));
        for bad in ["", "16", "3MB", "2GB", "512kB", "MB", "16 MB"] {
            assert_eq!(SegmentSize::from_show(bad), None, "{bad}");
        }
    }
}
