//! What people and scripts see: tables and hints on a terminal, JSON with stable names for scripts.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use jiff::Timestamp;
use serde::Serialize;

use super::exit;
use crate::error::{Error, Kind};
use crate::pg::xact::PgTime;
pub use crate::seal::content::rfc3339;

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// The first error of standard output, but a closed pipe: whoever closed it has read enough.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Prints a line to standard output. What keeps it from being written ends the output, not the work: see [`lost`].
pub fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = LOST.set(error);
    }
}

/// Why what was to be printed is not all there: a script that goes by the output must not take it for whole.
pub fn lost() -> Option<Error> {
    let error = LOST.get()?;
    Some(
        Error::new(Kind::Failed, format!("standard output could not be written: {error}"))
            .hint("make room where it goes, and run this again"),
    )
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(text),
        Err(error) => note(format!("walrecv: cannot print JSON: {error}")),
    }
}

/// Prints a line to standard error: progress and remarks that are no result.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// Whether a person watches standard error.
pub fn watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Whether a person watches standard output.
pub fn paged() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard output may have colours (<https://no-color.org>).
pub fn coloured() -> bool {
    paged() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns to print in: as `COLUMNS` says, else 80 on a terminal, and elsewhere enough for everything.
pub fn width() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    told.unwrap_or(if paged() { 80 } else { 200 })
}

/// An error as its last words: one line, a hint, or one JSON object on standard error.
pub fn error(error: &Error, format: Format) {
    match format {
        Format::Text => {
            note(format!("walrecv: error: {error}"));
            if let Some(hint) = advice(error) {
                note(format!("hint: {hint}"));
            }
        }
        Format::Json => note(
            serde_json::json!({ "error": {
                "code": exit::code(error.kind()),
                "kind": format!("{:?}", error.kind()).to_lowercase(),
                "message": error.to_string(),
                "hint": advice(error),
            }})
            .to_string(),
        ),
    }
}

/// What to do now. A wrong word on the line always has an answer.
fn advice(error: &Error) -> Option<&str> {
    let general = "correct it and run it again; `--help` behind the command says what is expected";
    error.advice().or((error.kind() == Kind::Usage).then_some(general))
}

/// A table with a header, columns as wide as their widest cell; numbers are right-aligned where `right` says so.
pub fn table(header: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header.get(column).map_or(0, |h| h.chars().count())]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let render = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = widths.get(column).copied().unwrap_or(0);
            if right.get(column) == Some(&true) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![render(header.to_vec())];
    lines.extend(rows.iter().map(|row| render(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// So many of something: `1 backup`, `2 backups`.
pub fn count(number: u64, one: &str) -> String {
    let many = match one.strip_suffix('y') {
        _ if number == 1 => return format!("1 {one}"),
        Some(stem) => format!("{stem}ies"),
        None => format!("{one}s"),
    };
    format!("{number} {many}")
}

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01 00:00:00 UTC (`POSTGRES_EPOCH_JDATE`).
pub const PG_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// A moment for people, as PostgreSQL prints and reads it in UTC: `2026-11-21 14:05:00.000123+00`.
pub fn time(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}

/// The same moment; `None` where PostgreSQL's range goes on and no calendar does.
pub fn moment(time: PgTime) -> Option<Timestamp> {
    Timestamp::from_microsecond(time.0.checked_add(PG_EPOCH_UNIX_MICROS)?).ok()
}

/// Bytes for people: `512 B`, `16.0 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds for people: `0.4 s`, `2 min 5 s`, `3 h 2 min`.
pub fn seconds(value: f64) -> String {
    let whole = value as u64;
    match whole {
        0..60 => format!("{value:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_moment_in_both_forms() {
        let at = moment(PgTime(123_456)).unwrap();
        assert_eq!(time(at), "2000-01-01 00:00:00.123456+00");
        assert_eq!(rfc3339(at), "2000-01-01T00:00:00.123456Z");
        assert_eq!(time(moment(PgTime(-1_000_000)).unwrap()), "1999-12-31 23:59:59.000000+00");
        assert_eq!(moment(PgTime(i64::MAX)), None);
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(16 << 20), "16.0 MiB");
        assert_eq!(seconds(125.4), "2 min 5 s");
        assert_eq!(seconds(0.44), "0.4 s");
    }

    #[test]
    fn tables_line_up() {
        let text =
            table(&["ID", "SIZE"], &[false, true], &[vec!["a".into(), "10".into()], vec!["long".into(), "5".into()]]);
        assert_eq!(text, "ID    SIZE\na       10\nlong     5");
    }
}
