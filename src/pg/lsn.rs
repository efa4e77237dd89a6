//! Positions in WAL, and the witness that one is durable.

use std::fmt;
use std::str::FromStr;

use super::{SystemIdentifier, TimelineId};

/// A byte position in the WAL of one timeline (`XLogRecPtr`, `access/xlogdefs.h`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `InvalidXLogRecPtr`: never a real position.
    pub const INVALID: Lsn = Lsn(0);

    pub fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// This position rounded up to a multiple of `step` (a power of two): `MAXALIGN`, page or segment borders.
    pub fn align_up(self, step: u64) -> Lsn {
        debug_assert!(step.is_power_of_two());
        Lsn(self.0.wrapping_add(step - 1) & !(step - 1))
    }

    /// This position rounded down to a multiple of `step` (a power of two).
    pub fn align_down(self, step: u64) -> Lsn {
        debug_assert!(step.is_power_of_two());
        Lsn(self.0 & !(step - 1))
    }

    /// `self + bytes`, or `None` past the end of the number range.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `start` to `self`; 0 when `start` is above.
    pub fn since(self, start: Lsn) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

impl std::ops::Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

/// As PostgreSQL prints it up to 18: `%X/%X`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not `hex/hex` with at most eight digits on each side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN: {0:?} (expected two hexadecimal numbers like 16/B374D848)")]
pub struct NotAnLsn(pub String);

/// As `pg_lsn_in` reads it: 1 to 8 hexadecimal digits, a slash, 1 to 8 hexadecimal digits.
impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Lsn, NotAnLsn> {
        let half = |part: &str| {
            let digits = !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u64::from_str_radix(part, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| NotAnLsn(text.to_owned()))
    }
}

/// A position that is durable in the repository: (system, timeline, LSN).
///
/// Only the code that made the bytes durable may make one: `disk` after a sync that returned success, `repo` after a put
/// that is known to be stored. `proto-tests/tidy.rs` refuses [`DurableLsn::witness`] anywhere else, so a position that is
/// reported to a server as flushed cannot be invented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableLsn {
    system: SystemIdentifier,
    timeline: TimelineId,
    lsn: Lsn,
}

impl DurableLsn {
    /// States that every byte of `timeline` of `system` below `lsn`, from where this run started, is durable.
    pub fn witness(system: SystemIdentifier, timeline: TimelineId, lsn: Lsn) -> DurableLsn {
        DurableLsn { system, timeline, lsn }
    }

    pub fn system(self) -> SystemIdentifier {
        self.system
    }

    pub fn timeline(self) -> TimelineId {
        self.timeline
    }

    pub fn lsn(self) -> Lsn {
        self.lsn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgresql_does() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
        assert_eq!("0/0000000a".parse::<Lsn>(), Ok(Lsn(10)));
        for bad in ["", "/", "1", "1/", "/1", "1/2/3", "g/1", "123456789/0", "0/123456789", "+1/0", " 1/0"] {
            assert_eq!(bad.parse::<Lsn>(), Err(NotAnLsn(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn rounds_to_borders() {
        assert_eq!(Lsn(1).align_up(8), Lsn(8));
        assert_eq!(Lsn(8).align_up(8), Lsn(8));
        assert_eq!(Lsn(8193).align_down(8192), Lsn(8192));
        assert_eq!(Lsn(5).since(Lsn(9)), 0);
    }
}
