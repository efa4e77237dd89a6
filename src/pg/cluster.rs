//! Which cluster and which server: identifiers and the table of supported versions.

use std::fmt;

/// The number that initdb gave the cluster; all its WAL and backups carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A supported major version of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MajorVersion {
    V13,
    V14,
    V15,
    V16,
    V17,
    V18,
}

impl MajorVersion {
    pub const ALL: [MajorVersion; 6] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    pub fn number(self) -> u32 {
        13 + self as u32
    }

    pub fn from_number(number: u32) -> Option<MajorVersion> {
        Self::ALL.into_iter().find(|v| v.number() == number)
    }

    /// From `server_version_num`, such as 150018.
    pub fn from_version_num(number: u32) -> Option<MajorVersion> {
        Self::from_number(number / 10000)
    }

    /// `XLOG_PAGE_MAGIC` (`access/xlog_internal.h`), different in every major version.
    pub fn wal_magic(self) -> u16 {
        match self {
            Self::V13 => 0xD106,
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// The version whose WAL pages carry this magic number.
    pub fn from_wal_magic(magic: u16) -> Option<MajorVersion> {
        Self::ALL.into_iter().find(|v| v.wal_magic() == magic)
    }
}

impl fmt::Display for MajorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip() {
        for version in MajorVersion::ALL {
            assert_eq!(MajorVersion::from_number(version.number()), Some(version));
            assert_eq!(MajorVersion::from_wal_magic(version.wal_magic()), Some(version));
            assert_eq!(MajorVersion::from_version_num(version.number() * 10000 + 7), Some(version));
        }
        assert_eq!(MajorVersion::from_number(12), None);
        assert_eq!(MajorVersion::from_version_num(190000), None);
    }
}
