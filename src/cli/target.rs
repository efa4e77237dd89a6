//! Targets of restores; a moment as people type it: with an offset or the name of a zone, without one (local time), or relative.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
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
        let time = parse(text, Timestamp::now(), &here)?;
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

/// The zone in which a time without one is read; asked for only then.
pub type Local<'z> = &'z dyn Fn() -> Result<TimeZone>;

/// This host's zone. Where it cannot be told, nothing is taken for it.
pub fn here() -> Result<TimeZone> {
    TimeZone::try_system().map_err(|problem| {
        Error::new(Kind::Usage, format!("this host's time zone cannot be told: {problem}")).hint(WITH_OFFSET)
    })
}

const WITH_OFFSET: &str = "give the time with an offset, as in '2026-11-21 14:05:00+00'";

/// Reads a target time. `now` and `local` are arguments so that the reading can be tested.
pub fn parse(text: &str, now: Timestamp, local: Local<'_>) -> Result<PgTime> {
    let trimmed = text.trim();
    let stamp = relative(trimmed, now).map_or_else(|| absolute(trimmed, local), Ok)?;
    Ok(PgTime(stamp.as_microsecond() - PG_EPOCH_UNIX_MICROS))
}

/// `text` is all that was typed.
fn no_time(text: &str) -> Error {
    let is_dated = text.as_bytes().get(4) == Some(&b'-');
    let short = |word: &&str| (2..=5).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_uppercase());
    let zone = text.rsplit(' ').next().filter(short).filter(|zone| is_dated && *zone != "UTC");
    let half_day = |word: &str| ["AM", "PM"].iter().any(|half| word.eq_ignore_ascii_case(half));
    let hint = match zone {
        _ if text.split(' ').any(half_day) => "write hours from 00 to 23, as in '2026-11-21 14:05:00+00'".to_owned(),
        Some(zone) => format!(
            "{zone} may be the short name of several time zones: give its offset, as in '2026-11-21 14:05:00-05', or a full name, \
             as in '2026-11-21 14:05:00 America/New_York'"
        ),
        None => FORMS.to_owned(),
    };
    Error::new(Kind::Usage, format!("not a time: {text:?}")).hint(hint)
}

const FORMS: &str = "write '2026-11-21 14:05:00+00', '2026-11-21 14:05:00 Europe/Berlin', '2026-11-21 14:05:00' in local time, \
                     or '10 min ago' (units: s, min, hours, days, weeks)";

/// As PostgreSQL prints a timestamp in UTC: `2026-11-21 14:05:00.000123+00`.
pub fn show(time: PgTime) -> String {
    output::moment(time).map_or_else(|| format!("{} µs after 2000-01-01", time.0), output::time)
}

/// So long before `now`, with or without `ago`: `10 min ago`, `1 hour 30 minutes`.
fn relative(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.strip_suffix("ago").unwrap_or(text).trim();
    let mut rest = text;
    let mut span: Option<SignedDuration> = None;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != ' ')?;
        let end = rest[unit..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |end| unit + end);
        let part = duration::parse(&rest[..end]).ok()?;
        span = Some(span.unwrap_or_default().checked_add(SignedDuration::try_from(part).ok()?)?);
        rest = rest[end..].trim_start();
    }
    now.checked_sub(span?).ok()
}

fn absolute(text: &str, local: Local<'_>) -> Result<Timestamp> {
    let civil = |part: &str| civil(part.trim()).ok_or_else(|| no_time(text));
    if let Some(rest) = text.strip_suffix("UTC") {
        return moment(civil(rest)?, &TimeZone::UTC);
    }
    if let Some((rest, name)) = text.rsplit_once(' ').filter(|(_, name)| name.contains('/')) {
        let civil = civil(rest)?;
        let zone = TimeZone::get(name)
            .map_err(|_| Error::new(Kind::Usage, format!("this host knows no time zone {name:?}")).hint(WITH_OFFSET))?;
        return moment(civil, &zone);
    }
    let split = text.rfind(['+', '-', 'Z', 'z']).filter(|at| *at > "2026-11-21".len());
    match split {
        Some(at) => {
            let offset = offset_seconds(&text[at..]).and_then(|offset| jiff::tz::Offset::from_seconds(offset).ok());
            let zone = TimeZone::fixed(offset.ok_or_else(|| no_time(text))?);
            moment(civil(&text[..at])?, &zone)
        }
        None => {
            let civil = civil(text)?;
            moment(civil, &local()?)
        }
    }
}

/// A time that a clock change skips or repeats is not guessed at.
fn moment(civil: DateTime, zone: &TimeZone) -> Result<Timestamp> {
    let told = zone.to_ambiguous_timestamp(civil);
    let shown = |moment: jiff::Timestamp| output::time(moment);
    let (why, hint) = match told.offset() {
        AmbiguousOffset::Gap { .. } => ("the clocks are put forward over it".to_owned(), WITH_OFFSET.to_owned()),
        AmbiguousOffset::Fold { .. } => match (told.earlier(), told.later()) {
            (Ok(first), Ok(second)) => {
                let both = format!("write '{}' or '{}'", shown(first), shown(second));
                ("the clocks are put back, and it is there twice".to_owned(), both)
            }
            _ => return Err(no_time(&civil.to_string())),
        },
        AmbiguousOffset::Unambiguous { .. } => return told.unambiguous().map_err(|_| no_time(&civil.to_string())),
    };
    Err(Error::new(Kind::Usage, format!("{civil} is no single moment: {why}")).hint(hint))
}

fn civil(text: &str) -> Option<DateTime> {
    // What else there is, such as a zone in brackets, the parser would take and forget.
    let known = |b: u8| b.is_ascii_digit() || b"-:.,Tt ".contains(&b);
    let padded = match text.len() {
        10 => format!("{text} 00:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    text.bytes().all(known).then(|| padded.parse().ok()).flatten()
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
        parse(text, now, &|| Ok(TimeZone::fixed(jiff::tz::offset(2)))).ok().map(show)
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
        for (text, time) in [
            ("10 min ago", "2026-11-21 11:50:00"),
            ("10min", "2026-11-21 11:50:00"),
            ("1 hour ago", "2026-11-21 11:00:00"),
            ("2 hours", "2026-11-21 10:00:00"),
            ("1 hour 30 minutes ago", "2026-11-21 10:30:00"),
            ("1h5m30s ago", "2026-11-21 10:54:30"),
            ("45 seconds ago", "2026-11-21 11:59:15"),
            ("1 day ago", "2026-11-20 12:00:00"),
            ("2 weeks ago", "2026-11-07 12:00:00"),
        ] {
            assert_eq!(read(text), Some(format!("{time}.000000+00")), "{text}");
        }
        assert_eq!(read("2026-11-21 12:00:00.123456+00").as_deref(), Some("2026-11-21 12:00:00.123456+00"));
        assert_eq!(read("2026-11-21").as_deref(), Some("2026-11-20 22:00:00.000000+00"));
    }

    #[test]
    fn refuses_what_is_no_time() {
        for bad in [
            "",
            "now",
            "yesterday",
            "2026-13-01",
            "2026-11-21 25:00",
            "2026-11-21 12:00:00+99",
            "ago",
            "1 month ago",
            "1 hour and 30 min",
            "10 min ago ago",
            "5",
            "-5 min",
            "1.5 hours ago",
            "99999999999999999999 days ago",
            "9999999999 weeks",
            "12:00",
            // A zone that is read over would be another moment.
            "2026-07-01T14:00:00[Asia/Tokyo]",
            "2026-07-01 14:00:00[UTC]",
            "2026-07-01[America/Lima]",
            "2026-07-01T14:00:00+09:00[Asia/Tokyo]",
            "2026-07-01T14:00:00[u-ca=japanese]",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_time_is_quoted_as_it_was_typed_and_what_to_write_is_told() {
        for (typed, told) in [
            ("2026-11-22 3:00 PM", "hours from 00 to 23"),
            ("2026-11-22 03:00 pm", "hours from 00 to 23"),
            ("2026-11-22 3:00 PM Europe/Berlin", "hours from 00 to 23"),
            ("2026-11-22 3:00 PM+01", "in local time"),
            ("2026-11-22 15:00 PM UTC", "hours from 00 to 23"),
            ("2026-11-22 15:00:0 UTC", "in local time"),
            ("2026-11-22 15:00 EST", "EST may be the short name of several time zones"),
            ("2026-11-22 15:00:00 NZDT", "NZDT may be"),
            ("2026-11-22 15:00:00+99", "in local time"),
            ("yesterday", "in local time"),
            ("NOON", "in local time"),
        ] {
            let error = parse(typed, Timestamp::UNIX_EPOCH, &|| Ok(TimeZone::UTC)).unwrap_err();
            assert_eq!(error.to_string(), format!("not a time: {typed:?}"));
            let advice = error.advice().unwrap_or_default();
            assert!(advice.contains(told), "{typed}: {advice}");
            // Whatever it tells to write can be read.
            for written in advice.split('\'').skip(1).step_by(2) {
                let read = parse(written, Timestamp::MAX, &|| Ok(TimeZone::UTC));
                assert!(read.is_ok() || TimeZone::get("Europe/Berlin").is_err(), "{written}");
            }
        }
    }

    #[test]
    fn a_skipped_or_repeated_time_is_not_guessed() {
        let Ok(zone) = TimeZone::get("Europe/Berlin") else { return };
        let now = Timestamp::UNIX_EPOCH;
        let local = |text: &str| parse(text, now, &|| Ok(zone.clone()));
        let skipped = local("2026-03-29 02:30").unwrap_err();
        assert!(skipped.to_string().contains("put forward"), "{skipped}");
        for text in ["2026-10-25 02:30", "2026-10-25 02:30 Europe/Berlin"] {
            let repeated = local(text).unwrap_err();
            let advice = repeated.advice().unwrap();
            assert!(repeated.to_string().contains("twice"), "{repeated}");
            for moment in ["2026-10-25 00:30:00.000000+00", "2026-10-25 01:30:00.000000+00"] {
                assert!(advice.contains(moment), "{advice}");
                assert_eq!(local(moment).ok().map(show).as_deref(), Some(moment));
            }
        }
        assert!(local("2026-10-25 02:30+01").is_ok());
        let utc = |text: &str| parse(text, now, &|| Ok(TimeZone::UTC));
        let named = utc("2026-07-01 14:00 Europe/Berlin").ok().map(show);
        assert_eq!(named.as_deref(), Some("2026-07-01 12:00:00.000000+00"));
        assert!(utc("2026-03-29 02:30 Europe/Berlin").unwrap_err().to_string().contains("put forward"));
        assert!(utc("2026-07-01 14:00 Europe/Nowhere").unwrap_err().to_string().contains("no time zone"));
    }

    #[test]
    fn a_zone_that_cannot_be_told_is_an_error_where_it_matters() {
        let unknown = || Err(Error::new(Kind::Usage, "this host's time zone cannot be told"));
        let now = Timestamp::UNIX_EPOCH;
        let error = parse("2026-11-21 14:05", now, &unknown).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains("cannot be told"), "{error}");
        for told in ["2026-11-21 14:05+00", "2026-11-21 14:05 UTC", "10 min ago"] {
            assert!(parse(told, Timestamp::MAX, &unknown).is_ok(), "{told}");
        }
        assert!(parse("yesterday", now, &unknown).unwrap_err().to_string().contains("not a time"));
    }
}
