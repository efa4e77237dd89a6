//! The exit-code table: the only place where a kind of error becomes a number. `docs/reference/exit-codes.md` shows it.

use crate::error::Kind;

/// `wal-fetch` answers this for everything that is neither success nor proven absence: PostgreSQL stops recovery above 125.
pub const FETCH_UNKNOWN: u8 = 200;
const _: () = assert!(FETCH_UNKNOWN > 125 && FETCH_UNKNOWN != 143);

/// Every code that walrecv exits with, and what it means.
pub const TABLE: [(u8, &str); 15] = [
    (0, "done"),
    (1, "failed, see the message; in `wal-fetch`: known not to exist"),
    (2, "wrong usage, or the target directory is occupied"),
    (10, "no or unusable repository"),
    (11, "a backup or expiry is already running, or a receiver has the catalog"),
    (12, "wrong or missing key"),
    (13, "other cluster or diverging history"),
    (14, "server version not supported"),
    (15, "gap in WAL"),
    (16, "corrupt or unauthentic data"),
    (17, "server unreachable, refused, or not set up for streaming"),
    (18, "slot missing or WAL gone"),
    (19, "target cannot be reached"),
    (20, "retention refuses"),
    (130, "interrupted"),
];

/// The code of a kind.
pub fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => 1,
        Kind::Usage => 2,
        Kind::Repository => 10,
        Kind::Busy => 11,
        Kind::Key => 12,
        Kind::Diverged => 13,
        Kind::Version => 14,
        Kind::Gap => 15,
        Kind::Corrupt => 16,
        Kind::Server => 17,
        Kind::Slot => 18,
        Kind::Target => 19,
        Kind::Retention => 20,
        Kind::Interrupted => 130,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_of_the_table_and_none_is_read_as_absence_or_success() {
        use Kind::*;
        let kinds = [
            Failed,
            Usage,
            Repository,
            Busy,
            Key,
            Diverged,
            Version,
            Gap,
            Corrupt,
            Server,
            Slot,
            Target,
            Retention,
            Interrupted,
        ];
        for kind in kinds {
            assert!(TABLE.iter().any(|(number, _)| *number == code(kind)), "{kind:?}");
            assert_ne!(code(kind), 0);
        }
    }
}
