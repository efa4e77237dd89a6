//! Targets of restores; a moment as people type it: with an offset or the name of a zone, without one (local time), or relative.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::args::PointArgs;
use super::output::{self, PG_EPOCH_UNIX_MICROS};
use crate::archive::Archive;
use crate::config::duration;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, TimelineId};
use crate::restore::{self, Target};

/// The target that was asked for; `None` where none was.
pub fn wanted(asked: &PointArgs, exclusive: bool) -> Result<Option<Target>> {
    let inclusive = !exclusive;
    if let Some(text) = &asked.target_time {
        let time = parse(text, Timestamp::now(), &TimeZone::system())?;
        return Ok(Some(Target::Time { time, inclusive }));
    }
    if let Some(text) = &asked.target_lsn {
        let lsn = text.parse::<Lsn>().map_err(|problem| Error::new(Kind::Usage, problem.to_string()))?;
        return Ok(Some(Target::Lsn { lsn, inclusive }));
    }
    if let Some(xid) = asked.target_xid {
        // The server compares 32 bits, whatever epoch is in front of them.
        return Ok(Some(Target::Xid { xid: xid as u32, inclusive }));
    }
    if exclusive {
        let message = "--exclusive means something with --target-time, --target-lsn and --target-xid only";
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(match &asked.target_name {
        Some(name) => Some(Target::Name(name.clone())),
        None if asked.target_immediate => Some(Target::Immediate),
        None => asked.latest.then_some(Target::Latest),
    })
}

/// The timeline that was asked for; `None`: the newest that continues a backup's.
pub async fn timeline(archive: &Archive, asked: Option<&str>, backup: Option<&str>) -> Result<Option<TimelineId>> {
    match asked {
        None | Some("latest") => Ok(None),
        Some("current") => restore::timeline_of(archive, backup).await.map(Some),
        Some(text) => match text.parse::<u32>() {
            // PostgreSQL reads a leading 0 as octal; a file name has hexadecimal digits.
            Ok(number) if number > 0 && !text.starts_with('0') => Ok(Some(TimelineId(number))),
            _ => Err(Error::new(Kind::Usage, format!("--target-timeline: {text:?} is no timeline"))
                .hint("write a decimal number without zeros in front, current or latest")),
        },
    }
}

/// Reads a target time. `now` and `zone` are arguments so that the reading can be tested.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<PgTime> {
    let trimmed = text.trim();
    let stamp = relative(trimmed, now).or_else(|| absolute(trimmed, zone)).ok_or_else(|| {
        Error::new(Kind::Usage, format!("not a time: {text:?}"))
            .hint("write '2026-11-21 14:05:00+00', '2026-11-21 14:05' in local time, or '10 min ago'")
    })?;
    Ok(PgTime(stamp.as_microsecond() - PG_EPOCH_UNIX_MICROS))
}

/// As PostgreSQL prints a timestamp in UTC: `2026-11-21 14:05:00.000123+00`.
pub fn show(time: PgTime) -> String {
    output::moment(time).map_or_else(|| format!("{} µs after 2000-01-01", time.0), output::time)
}

fn relative(text: &str, now: Timestamp) -> Option<Timestamp> {
    let span = duration::parse(text.strip_suffix("ago")?.trim()).ok()?;
    now.checked_sub(SignedDuration::try_from(span).ok()?).ok()
}

fn absolute(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Some(rest) = text.strip_suffix("UTC") {
        return civil(rest.trim()).and_then(|at| at.to_zoned(TimeZone::UTC).ok()).map(|zoned| zoned.timestamp());
    }
    if let Some((rest, name)) = text.rsplit_once(' ').filter(|(_, name)| name.contains('/')) {
        return TimeZone::get(name)
            .ok()?
            .to_ambiguous_zoned(civil(rest.trim())?)
            .unambiguous()
            .ok()
            .map(|z| z.timestamp());
    }
    let split = text.rfind(['+', '-', 'Z', 'z']).filter(|at| *at > "2026-11-21".len());
    match split {
        Some(at) => {
            let offset = offset_seconds(&text[at..])?;
            let civil = civil(text[..at].trim())?;
            let zone = TimeZone::fixed(jiff::tz::Offset::from_seconds(offset).ok()?);
            civil.to_zoned(zone).ok().map(|zoned| zoned.timestamp())
        }
        // A time that a clock change skips or repeats is not guessed at.
        None => zone.to_ambiguous_zoned(civil(text)?).unambiguous().ok().map(|zoned| zoned.timestamp()),
    }
}

fn civil(text: &str) -> Option<DateTime> {
    let padded = match text.len() {
        10 => format!("{text} 00:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    padded.parse().ok()
}

/// `Z`, `+00`, `+0530`, `-05:30`.
fn offset_seconds(text: &str) -> Option<i32> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let digits: String = text.get(1..)?.chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes): (i32, i32) = match digits.len() {
        2 => (digits.parse().ok()?, 0),
        4 => (digits[..2].parse().ok()?, digits[2..].parse().ok()?),
        _ => return None,
    };
    (hours <= 15 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        parse(text, now, &TimeZone::fixed(jiff::tz::offset(2))).ok().map(show)
    }

    #[test]
    fn reads_zones_local_time_and_the_past() {
        let noon = Some("2026-11-21 12:00:00.000000+00".to_owned());
        for text in [
            "2026-11-21 12:00:00+00",
            "2026-11-21 12:00:00Z",
            "2026-11-21 12:00:00 UTC",
            "2026-11-21 12:00:00.000000 UTC",
            "2026-11-21T12:00:00.000000+0000",
            "2026-11-21 17:30:00+05:30",
            "2026-11-21 07:00-05",
            "2026-11-21 14:00:00",
            "2026-11-21 14:00",
        ] {
            assert_eq!(read(text), noon, "{text}");
        }
        assert_eq!(read("10 min ago").as_deref(), Some("2026-11-21 11:50:00.000000+00"));
        assert_eq!(read("2026-11-21 12:00:00.123456+00").as_deref(), Some("2026-11-21 12:00:00.123456+00"));
        assert_eq!(read("2026-11-21").as_deref(), Some("2026-11-20 22:00:00.000000+00"));
    }

    #[test]
    fn refuses_what_is_no_time() {
        for bad in ["", "now", "yesterday", "2026-13-01", "2026-11-21 25:00", "2026-11-21 12:00:00+99", "ago", "12:00"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_skipped_local_time_is_not_guessed() {
        let Ok(zone) = TimeZone::get("Europe/Berlin") else { return };
        let now = Timestamp::UNIX_EPOCH;
        assert!(parse("2026-03-29 02:30", now, &zone).is_err());
        assert!(parse("2026-10-25 02:30", now, &zone).is_err());
        assert!(parse("2026-10-25 02:30+01", now, &zone).is_ok());
        let named = |text: &str| parse(text, now, &TimeZone::UTC).ok().map(show);
        assert_eq!(named("2026-07-01 14:00 Europe/Berlin").as_deref(), Some("2026-07-01 12:00:00.000000+00"));
        assert_eq!(named("2026-03-29 02:30 Europe/Berlin"), None);
        assert_eq!(named("2026-07-01 14:00 Europe/Nowhere"), None);
    }
}
