//! `walrecv wal-fetch %f %p`: 0 served, 1 proven absent, 200 for everything else.

/// Whatever happened, PostgreSQL is told one of three things. 2 (usage) or 101 (panic) would read as the end of the archive.
pub fn only_allowed(code: u8) -> u8 {
    match code {
        0 | 1 => code,
        other if other > 125 => other,
        _ => super::exit::FETCH_UNKNOWN,
    }
}
