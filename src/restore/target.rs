//! What a person asks for: the moment to restore to, and the texts in which PostgreSQL takes it.

use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::pg::xact::PgTime;

/// Seconds from the Unix epoch to PostgreSQL's (2000-01-01 00:00:00 UTC).
const PG_EPOCH_SECONDS: i64 = 946_684_800;
/// `recovery_target_name` longer than this is refused by the server (`MAXFNAMELEN - 1`, `check_recovery_target_name`).
const MAX_NAME_BYTES: usize = 63;

/// Where recovery shall end (`recovery_target_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The end of what the archive holds.
    Latest,
    /// Before the first commit or abort with a later time (inclusive), or with this or a later one (exclusive).
    Time { time: PgTime, inclusive: bool },
    /// After (inclusive) or before the first record that starts at or after `lsn`.
    Lsn { lsn: Lsn, inclusive: bool },
    /// After (inclusive) or before the commit or abort of this transaction.
    Xid { xid: u32, inclusive: bool },
    /// After the first restore point of this name.
    Name(String),
    /// As soon as the backup is consistent.
    Immediate,
}

/// What the server does when it has reached the target (`recovery_target_action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    #[default]
    Promote,
    Pause,
    Shutdown,
    /// Nothing: a standby has no target, and goes on with whatever comes.
    Follow,
}

impl Action {
    pub fn setting(self) -> &'static str {
        match self {
            Action::Promote => "promote",
            Action::Pause => "pause",
            Action::Shutdown => "shutdown",
            Action::Follow => "pause",
        }
    }
}

impl Target {
    /// Checks what PostgreSQL would refuse only when it starts.
    pub fn check(&self) -> Result<()> {
        match self {
            Target::Name(name) if name.is_empty() || name.len() > MAX_NAME_BYTES => {
                let found = name.len();
                let message =
                    format!("the name of a restore point has 1 to {MAX_NAME_BYTES} bytes, this one has {found}");
                Err(Error::new(Kind::Usage, message))
            }
            Target::Time { time, .. } if timestamp(*time).is_none() => {
                Err(Error::new(Kind::Usage, "the target time is out of range"))
            }
            _ => Ok(()),
        }
    }

    /// Whether what ended at `at` lies up to a target time; no other target knows.
    pub fn takes(&self, at: PgTime) -> bool {
        matches!(self, Target::Time { time, inclusive } if at < *time || *inclusive && at == *time)
    }

    /// The target as a person names it, for messages.
    pub fn describe(&self) -> String {
        let side = |inclusive: bool| if inclusive { "" } else { " (exclusive)" };
        match self {
            Target::Latest => "the end of the archive".to_owned(),
            Target::Time { time, inclusive } => format!("time {}{}", time_text(*time), side(*inclusive)),
            Target::Lsn { lsn, inclusive } => format!("LSN {lsn}{}", side(*inclusive)),
            Target::Xid { xid, inclusive } => format!("transaction {xid}{}", side(*inclusive)),
            Target::Name(name) => format!("restore point {name:?}"),
            Target::Immediate => "the end of the backup".to_owned(),
        }
    }
}

/// Reads a time with a UTC offset: `2026-03-01 12:00:00+00`, `2026-03-01T12:00:00.5Z`. A time without an offset is
/// refused, since it would mean something else on every host.
pub fn parse_time(text: &str) -> Result<PgTime> {
    let stamp: jiff::Timestamp = text.trim().parse().map_err(|cause| {
        Error::new(Kind::Usage, format!("not a time with a UTC offset: {text:?}"))
            .caused_by(cause)
            .hint("write it as '2026-11-21 14:05:00+00', with the offset of your time zone")
    })?;
    Ok(PgTime(stamp.as_microsecond() - PG_EPOCH_SECONDS * 1_000_000))
}

/// The time as PostgreSQL reads it wherever it runs: microseconds and an explicit offset.
pub fn time_text(time: PgTime) -> String {
    match timestamp(time) {
        Some(stamp) => stamp.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string(),
        None => format!("{} microseconds after 2000-01-01 00:00:00+00", time.0),
    }
}

fn timestamp(time: PgTime) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_microsecond(time.0.checked_add(PG_EPOCH_SECONDS * 1_000_000)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_every_microsecond_and_carry_their_offset() {
        assert_eq!(time_text(PgTime(0)), "2000-01-01 00:00:00.000000+00");
        assert_eq!(time_text(PgTime(1)), "2000-01-01 00:00:00.000001+00");
        assert_eq!(time_text(PgTime(-1)), "1999-12-31 23:59:59.999999+00");
        for text in ["2026-03-01 12:00:00.123456+00", "2024-02-29 23:59:59.000001+00"] {
            assert_eq!(time_text(parse_time(text).unwrap()), text);
        }
    }

    #[test]
    fn offsets_are_needed_and_heeded() {
        assert_eq!(parse_time("2026-03-01 14:00:00+02").unwrap(), parse_time("2026-03-01T12:00:00Z").unwrap());
        assert_eq!(parse_time("2026-03-01 14:00:00.5+02:00").unwrap(), parse_time("2026-03-01T12:00:00.5Z").unwrap());
        for bad in ["", "now", "yesterday", "2026-03-01 12:00:00", "2026-13-01 12:00:00+00"] {
            assert_eq!(parse_time(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_time_outside_the_calendar_is_refused_not_mangled() {
        assert!(Target::Time { time: PgTime(i64::MAX), inclusive: true }.check().is_err());
        assert!(Target::Name(String::new()).check().is_err());
        assert!(Target::Name("x".repeat(64)).check().is_err());
        assert!(Target::Name("x".repeat(63)).check().is_ok());
    }
}
