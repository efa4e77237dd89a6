//! The two text files that tell recovery how a backup was made: `backup_label` and `tablespace_map`
//! (`xlogbackup.c:build_backup_content`, `xlogrecovery.c:read_backup_label` and `read_tablespace_map`).

use super::{Lsn, TimelineId};

/// Where a backup was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupFrom {
    /// Written `primary`, by 13 `master`.
    Primary {
        master: bool,
    },
    Standby,
}

/// The file `backup_label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Redo position of the checkpoint that the backup began with.
    pub start: Lsn,
    /// Name of the segment that holds `start`.
    pub segment: String,
    /// Position of the checkpoint record.
    pub checkpoint: Lsn,
    pub from: BackupFrom,
    /// As the server's `log_timezone` shows it.
    pub start_time: String,
    pub label: Vec<u8>,
    pub timeline: TimelineId,
    /// Start of the backup that this one is an increment to (17+). A server refuses to start with such a label.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// A line that is missing, or says something else than it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct BadLabel {
    pub file: &'static str,
    pub problem: String,
}

fn bad(problem: impl Into<String>) -> BadLabel {
    BadLabel { file: "backup_label", problem: problem.into() }
}

/// Takes the next line, which must begin with `key: ` and end with a newline.
fn field<'a>(rest: &mut &'a [u8], key: &str) -> Result<&'a [u8], BadLabel> {
    let expected = || bad(format!("expected a line \"{key}: …\", found {:?}", first_line(rest)));
    let end = rest.iter().position(|b| *b == b'\n').ok_or_else(expected)?;
    let (line, after) = rest.split_at_checked(end).ok_or_else(expected)?;
    let value = line.strip_prefix(key.as_bytes()).and_then(|l| l.strip_prefix(b": ")).ok_or_else(expected)?;
    if value.ends_with(b"\r") {
        return Err(bad(format!("the line \"{key}\" ends in a carriage return: the file was changed")));
    }
    *rest = after.get(1..).unwrap_or_default();
    Ok(value)
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned()
}

fn parsed<T: std::str::FromStr>(key: &str, value: &[u8]) -> Result<T, BadLabel> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|t| t.parse().ok())
        .ok_or_else(|| bad(format!("impossible value of \"{key}\": {:?}", String::from_utf8_lossy(value))))
}

fn text_of(key: &str, value: &[u8]) -> Result<String, BadLabel> {
    parsed(key, value)
}

impl BackupLabel {
    /// Reads the whole file; anything missing, out of order or added is refused.
    pub fn parse(content: &[u8]) -> Result<BackupLabel, BadLabel> {
        let mut rest = content;
        let location = text_of("START WAL LOCATION", field(&mut rest, "START WAL LOCATION")?)?;
        let (start, segment) = location
            .strip_suffix(')')
            .and_then(|l| l.split_once(" (file "))
            .and_then(|(lsn, file)| Some((lsn.parse().ok()?, file.to_owned())))
            .ok_or_else(|| bad(format!("impossible value of \"START WAL LOCATION\": {location:?}")))?;
        let checkpoint = parsed("CHECKPOINT LOCATION", field(&mut rest, "CHECKPOINT LOCATION")?)?;
        let method = field(&mut rest, "BACKUP METHOD")?;
        if method != b"streamed" {
            let found = String::from_utf8_lossy(method);
            return Err(bad(format!("expected a backup method \"streamed\", found {found:?}")));
        }
        let from = match field(&mut rest, "BACKUP FROM")? {
            b"primary" => BackupFrom::Primary { master: false },
            b"master" => BackupFrom::Primary { master: true },
            b"standby" => BackupFrom::Standby,
            other => return Err(bad(format!("a backup from {:?}", String::from_utf8_lossy(other)))),
        };
        let start_time = text_of("START TIME", field(&mut rest, "START TIME")?)?;
        let label = field(&mut rest, "LABEL")?.to_vec();
        let timeline = TimelineId(parsed("START TIMELINE", field(&mut rest, "START TIMELINE")?)?);
        let mut incremental_from = None;
        if !rest.is_empty() {
            let lsn = parsed("INCREMENTAL FROM LSN", field(&mut rest, "INCREMENTAL FROM LSN")?)?;
            let tli = parsed("INCREMENTAL FROM TLI", field(&mut rest, "INCREMENTAL FROM TLI")?)?;
            incremental_from = Some((lsn, TimelineId(tli)));
        }
        if !rest.is_empty() {
            return Err(bad(format!("unexpected line {:?}", first_line(rest))));
        }
        Ok(BackupLabel { start, segment, checkpoint, from, start_time, label, timeline, incremental_from })
    }

    /// The file's bytes, as the server writes them.
    pub fn print(&self) -> Vec<u8> {
        let from = match self.from {
            BackupFrom::Primary { master: false } => "primary",
            BackupFrom::Primary { master: true } => "master",
            BackupFrom::Standby => "standby",
        };
        let mut out = format!(
            "START WAL LOCATION: {} (file {})\nCHECKPOINT LOCATION: {}\nBACKUP METHOD: streamed\nBACKUP FROM: {from}\n\
             START TIME: {}\nLABEL: ",
            self.start, self.segment, self.checkpoint, self.start_time
        )
        .into_bytes();
        out.extend_from_slice(&self.label);
        out.extend_from_slice(format!("\nSTART TIMELINE: {}\n", self.timeline).as_bytes());
        if let Some((lsn, tli)) = self.incremental_from {
            out.extend_from_slice(format!("INCREMENTAL FROM LSN: {lsn}\nINCREMENTAL FROM TLI: {tli}\n").as_bytes());
        }
        out
    }
}

/// The label with which a server recovers: as it is, but without the lines that tell of an increment, since what is restored is whole and a server
/// refuses to start with them (`xlogrecovery.c:read_backup_label`).
pub fn for_recovery(content: &[u8]) -> Result<Vec<u8>, BadLabel> {
    let label = BackupLabel::parse(content)?;
    match label.incremental_from {
        None => Ok(content.to_vec()),
        Some(_) => Ok(BackupLabel { incremental_from: None, ..label }.print()),
    }
}

/// One line of `tablespace_map`: recovery makes the link `pg_tblspc/<oid>` point to `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceLine {
    pub oid: u32,
    pub path: Vec<u8>,
}

/// Reads `tablespace_map`: a backslash makes the next byte literal, so that a path may hold line ends.
pub fn parse_tablespace_map(content: &[u8]) -> Result<Vec<TablespaceLine>, BadLabel> {
    let bad = |problem: String| BadLabel { file: "tablespace_map", problem };
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut bytes = content.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => line.push(*bytes.next().ok_or_else(|| bad("it ends after a backslash".to_owned()))?),
            b'\n' => {
                let shown = || String::from_utf8_lossy(&line).into_owned();
                let space = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
                let (oid, path) = line.split_at(space);
                let number = std::str::from_utf8(oid).ok().and_then(|o| o.parse::<u32>().ok()).filter(|o| *o > 0);
                let path = path.get(1..).filter(|p| !p.is_empty());
                let (Some(oid), Some(path)) = (number, path) else {
                    return Err(bad(format!("expected an oid, a space and a path, found {:?}", shown())));
                };
                lines.push(TablespaceLine { oid, path: path.to_vec() });
                line.clear();
            }
            b'\r' => return Err(bad("a carriage return without backslash: the file was changed".to_owned())),
            other => line.push(*other),
        }
    }
    if !line.is_empty() {
        return Err(bad("the last line does not end with a newline".to_owned()));
    }
    Ok(lines)
}

/// The file's bytes, as the server writes them.
pub fn print_tablespace_map(lines: &[TablespaceLine]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines {
        out.extend_from_slice(format!("{} ", line.oid).as_bytes());
        for byte in &line.path {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &[u8] = b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-31 02:00:00 UTC\nLABEL: nightly\nSTART TIMELINE: 1\n";

    #[test]
    fn a_label_comes_back_byte_for_byte() {
        let label = BackupLabel::parse(LABEL).unwrap();
        assert_eq!((label.start, label.checkpoint), (Lsn(0x2000028), Lsn(0x2000060)));
        assert_eq!((label.timeline, label.label.as_slice()), (TimelineId(1), &b"nightly"[..]));
        assert_eq!(label.print(), LABEL);
        let mut incremental = LABEL.to_vec();
        incremental.extend_from_slice(b"INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(&incremental).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn(0x1000028), TimelineId(1))));
        assert_eq!(label.print(), incremental);
        assert_eq!(for_recovery(&incremental).unwrap(), LABEL);
        assert_eq!(for_recovery(LABEL).unwrap(), LABEL);
        assert!(for_recovery(&incremental[..incremental.len() - 3]).is_err());
    }

    #[test]
    fn a_changed_label_is_refused() {
        let text = String::from_utf8_lossy(LABEL);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for missing in 0..lines.len() {
            let without: String = lines.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, l)| *l).collect();
            assert!(BackupLabel::parse(without.as_bytes()).is_err(), "without line {missing}");
        }
        for (from, to) in [("\n", "\r\n"), ("streamed", "pg_start_backup"), ("0/2000028", "x"), ("primary", "moon")] {
            assert!(BackupLabel::parse(text.replace(from, to).as_bytes()).is_err(), "{to:?}");
        }
        for cut in 0..LABEL.len() {
            assert!(BackupLabel::parse(&LABEL[..cut]).is_err(), "cut at {cut}");
        }
        assert!(BackupLabel::parse(&[LABEL, b"MORE: 1\n"].concat()).is_err());
    }

    #[test]
    fn tablespace_paths_keep_spaces_and_line_ends() {
        let lines = vec![
            TablespaceLine { oid: 16384, path: b"/srv/fast disk".to_vec() },
            TablespaceLine { oid: 4_294_967_295, path: b"/a\\b\nc\rd\xff".to_vec() },
        ];
        let bytes = print_tablespace_map(&lines);
        assert_eq!(parse_tablespace_map(&bytes).unwrap(), lines);
        assert_eq!(parse_tablespace_map(b"").unwrap(), []);
        for bad in [&b"16384 /x"[..], b"16384\n", b"x /y\n", b"0 /y\n", b"16384 \n", b"1 /x\r\n", b"1 /x\\"] {
            assert!(parse_tablespace_map(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
