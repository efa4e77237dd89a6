//! The password file (`fe-connect.c:passwordFromFile`): lines of `host:port:database:user:password`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::conninfo::{Conninfo, Secret};
use super::host::Host;

/// The password of the first line that matches. A file that others may read is ignored with a warning.
pub(super) fn look_up(info: &Conninfo, host: &Host, databases: &[&str]) -> Option<Secret> {
    let path = info.passfile.as_deref()?;
    let text = Zeroizing::new(read(path)?);
    let port = host.port.to_string();
    let host = host.for_password_file();
    databases.iter().find_map(|database| find(&text, &[&host, &port, database, &info.user]))
}

fn read(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    if !meta.is_file() {
        tracing::warn!("password file {} is not a plain file: ignored", path.display());
        return None;
    }
    if meta.mode() & 0o077 != 0 {
        tracing::warn!("password file {} can be read by others: ignored; set its mode to 0600", path.display());
        return None;
    }
    match std::fs::read(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => {
            tracing::warn!("password file {} cannot be read: {error}", path.display());
            None
        }
    }
}

fn find(text: &str, wanted: &[&str; 4]) -> Option<Secret> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let rest = wanted.iter().try_fold(line, |rest, wanted| {
            let (field, rest) = field(rest);
            let matches = field.raw == "*" || *field.text == *wanted;
            if matches { rest } else { None }
        })?;
        let password = field(rest).0.text;
        if password.is_empty() { None } else { Some(Secret(password)) }
    })
}

struct Field<'a> {
    raw: &'a str,
    text: Zeroizing<String>,
}

/// The field up to the next bare colon, and what follows the colon (`None` at the end of the line).
fn field(line: &str) -> (Field<'_>, Option<&str>) {
    let mut escaped = false;
    let end = line.find(|c: char| {
        let bare = c == ':' && !escaped;
        escaped = c == '\\' && !escaped;
        bare
    });
    let raw = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    let rest = end.and_then(|end| line.get(end + 1..));
    (Field { raw, text: unescape(raw) }, rest)
}

/// `\x` stands for `x`.
fn unescape(raw: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(raw.len()));
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.extend(characters.next()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str, wanted: [&str; 4]) -> Option<String> {
        find(text, &wanted).map(|secret| secret.0.to_string())
    }

    #[test]
    fn the_first_matching_line_counts() {
        let text = "# db:5432:*:u:commented\n\ndb:5432:replication:u:one\n*:*:*:u:two\r\n*:*:*:*:three\n";
        assert_eq!(password(text, ["db", "5432", "replication", "u"]).as_deref(), Some("one"));
        assert_eq!(password(text, ["db", "5433", "replication", "u"]).as_deref(), Some("two"));
        assert_eq!(password(text, ["db", "5433", "replication", "v"]).as_deref(), Some("three"));
        assert_eq!(password("db:5432:a:u:one\n", ["db", "5432", "b", "u"]), None);
        assert_eq!(password("db:5432:a:u\n", ["db", "5432", "a", "u"]), None);
        assert_eq!(password("db:5432:a:u:\n", ["db", "5432", "a", "u"]), None);
    }

    #[test]
    fn backslashes_protect_colons_and_themselves() {
        assert_eq!(password(r"\:\:1:1:d\\b:u:p\:a\\ss", ["::1", "1", r"d\b", "u"]).as_deref(), Some(r"p:a\ss"));
        // A bare one ends the password, as it ends any other field.
        assert_eq!(password(r"*:*:*:*:p\\:a:note", ["db", "1", "d", "u"]).as_deref(), Some(r"p\"));
        assert_eq!(password("*:*:*:*::note", ["db", "1", "d", "u"]), None);
        // An escaped star is a star, not a wildcard.
        assert_eq!(password(r"\*:1:d:u:x", ["h", "1", "d", "u"]), None);
        assert_eq!(password(r"\*:1:d:u:x", ["*", "1", "d", "u"]).as_deref(), Some("x"));
    }
}
