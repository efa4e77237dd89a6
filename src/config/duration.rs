//! Durations as people type them: `1s`, `500ms`, `5min`, `2 hours`, `14d`; `0` needs no unit.

use std::time::Duration;

/// Units and their milliseconds. PostgreSQL's own names come first; `m` is a minute, as nobody waits for months here.
const UNITS: [(&[&str], u64); 6] = [
    (&["ms"], 1),
    (&["s", "sec", "secs", "second", "seconds"], 1_000),
    (&["min", "m", "mins", "minute", "minutes"], 60_000),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000),
    (&["d", "day", "days"], 86_400_000),
    (&["w", "week", "weeks"], 604_800_000),
];

/// Reads one duration; the error says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("expected a duration such as \"1s\", \"500ms\", \"5min\", \"2h\" or \"0\", found {text:?}");
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    if number == 0 && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let unit = unit.trim();
    let (_, millis) = UNITS.iter().find(|(names, _)| names.contains(&unit)).ok_or_else(expected)?;
    number.checked_mul(*millis).map(Duration::from_millis).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_type() {
        for (text, millis) in [("0", 0), ("1s", 1000), ("500ms", 500), ("5 min", 300_000), ("2h", 7_200_000), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (names, millis) in UNITS {
            for name in names {
                assert_eq!(parse(&format!("3 {name}")), Ok(Duration::from_millis(3 * millis)), "{name}");
            }
        }
        for bad in ["", "1", "s", "-1s", "1.5s", "1 fortnight", "99999999999999999999s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
