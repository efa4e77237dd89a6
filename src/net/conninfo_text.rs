//! The two spellings of a connection string, cut into keywords and values (`fe-connect.c:conninfo_parse`, `conninfo_uri_parse_options`).

use crate::error::{Error, Kind, Result};

/// Keyword and value, in the order of the text; the last one of a keyword counts.
pub(super) type Pairs = Vec<(String, String)>;

/// Cuts either spelling. Values never appear in an error: they may be passwords.
pub(super) fn split(text: &str) -> Result<Pairs> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => uri(rest),
        None => keywords(text),
    }
}

fn bad(problem: impl Into<String>) -> Error {
    Error::new(Kind::Usage, format!("connection string: {}", problem.into()))
}

fn keywords(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            // What stands there may be a piece of a password that was not quoted.
            return Err(bad(format!(
                "expected keyword=value, found text without \"=\" at byte {}",
                text.len() - rest.len()
            ))
            .hint("put values that contain spaces in single quotes"));
        };
        if name.is_empty() {
            return Err(bad(format!("expected a keyword before \"=\" at byte {}", text.len() - rest.len())));
        }
        let (value, after) = value(after.trim_start(), name)?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// A value and what follows it: bare up to white space, or in single quotes; a backslash takes the next character as it is.
fn value<'a>(text: &'a str, name: &str) -> Result<(String, &'a str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, text.get(at..).unwrap_or_default())),
            c => value.push(c),
        }
    }
    match quoted {
        true => Err(bad(format!("the quoted value of {name} has no end"))),
        false => Ok((value, "")),
    }
}

/// `[user[:password]@][host][:port][,host[:port]…][/dbname][?keyword=value&…]`.
fn uri(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut push = |name: &str, raw: &str| -> Result<()> {
        if !raw.is_empty() {
            pairs.push((name.to_owned(), decode(raw, name)?));
        }
        Ok(())
    };
    let mut rest = text;
    if let Some(at) = rest.find(['@', '/']).filter(|at| rest.as_bytes().get(*at) == Some(&b'@')) {
        let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
        push("user", user)?;
        push("password", password)?;
        rest = &rest[at + 1..];
    }
    let (place, after) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let places = place.split(',').map(uri_place).collect::<Result<Vec<_>>>()?;
    push("host", &places.iter().map(|(host, _)| *host).collect::<Vec<_>>().join(","))?;
    // With several hosts there is always a list of ports, empty ones included, so that PGPORT does not count.
    push("port", &places.iter().map(|(_, port)| *port).collect::<Vec<_>>().join(","))?;
    let (path, query) = after.split_once('?').unwrap_or((after, ""));
    push("dbname", path.strip_prefix('/').unwrap_or(path))?;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, raw) = part.split_once('=').ok_or_else(|| bad("a parameter of the URI has no \"=\""))?;
        if raw.contains('=') {
            return Err(bad("a parameter of the URI has more than one \"=\""));
        }
        let name = decode(name, "a keyword")?;
        match (name.as_str(), raw) {
            // As JDBC spells it.
            ("ssl", "true") => pairs.push(("sslmode".to_owned(), "require".to_owned())),
            _ => {
                let value = decode(raw, &name)?;
                pairs.push((name, value));
            }
        }
    }
    Ok(pairs)
}

/// One `host[:port]` of a URI.
fn uri_place(place: &str) -> Result<(&str, &str)> {
    let Some(inner) = place.strip_prefix('[') else { return Ok(place.split_once(':').unwrap_or((place, ""))) };
    let (host, after) = inner.split_once(']').ok_or_else(|| bad("expected \"]\" after an IPv6 address"))?;
    let port = if after.is_empty() { Some("") } else { after.strip_prefix(':') };
    Ok((host, port.ok_or_else(|| bad("expected \":\", \",\" or \"/\" after an IPv6 address"))?))
}

/// Percent-decoding; `%00` is refused.
fn decode(raw: &str, what: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    let wrong = || bad(format!("invalid percent-encoding in {what}"));
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        };
        if byte == 0 {
            return Err(bad(format!("zero byte in {what}")));
        }
        bytes.push(byte);
    }
    String::from_utf8(bytes).map_err(|_| bad(format!("{what} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        split(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn list(expected: &[(&str, &str)]) -> Pairs {
        expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn keywords_with_quotes_blanks_and_backslashes() {
        assert_eq!(pairs(""), list(&[]));
        assert_eq!(pairs("host=a port = 5433  user='x y'"), list(&[("host", "a"), ("port", "5433"), ("user", "x y")]));
        assert_eq!(pairs(r"password='it\'s \\' user=a\ b"), list(&[("password", r"it's \"), ("user", "a b")]));
        assert_eq!(pairs("host='' user=a"), list(&[("host", ""), ("user", "a")]));
        // As libpq: blanks after "=" are skipped, so the next word is the value.
        assert_eq!(pairs("host= user=a"), list(&[("host", "user=a")]));
        assert_eq!(pairs("host='a'user=b"), list(&[("host", "a"), ("user", "b")]));
    }

    #[test]
    fn wrong_strings_are_refused_without_their_values() {
        for bad in [
            "host",
            "host=a secret",
            "=a",
            "password='secret",
            "postgres://u:secret%2@h",
            "postgres://h?a",
            "postgres://[::1",
            "postgres://[::1]x",
            "postgres://h?a=b=secret",
            "postgres://u:secret%00@h",
        ] {
            let error = split(bad).expect_err(bad);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn uris() {
        assert_eq!(pairs("postgresql://"), list(&[]));
        assert_eq!(
            pairs("postgresql://user:p%40ss@db1:5433/my%20db?sslmode=verify-full&application_name=a+b"),
            list(&[
                ("user", "user"),
                ("password", "p@ss"),
                ("host", "db1"),
                ("port", "5433"),
                ("dbname", "my db"),
                ("sslmode", "verify-full"),
                ("application_name", "a+b")
            ])
        );
        assert_eq!(
            pairs("postgres://[2001:db8::1]:1/d"),
            list(&[("host", "2001:db8::1"), ("port", "1"), ("dbname", "d")])
        );
        assert_eq!(pairs("postgres://%2Frun%2Fpg/d"), list(&[("host", "/run/pg"), ("dbname", "d")]));
        assert_eq!(
            pairs("postgres:///d?host=/run/pg&ssl=true"),
            list(&[("dbname", "d"), ("host", "/run/pg"), ("sslmode", "require")])
        );
        assert_eq!(
            pairs("postgres://u@a:1,b,[::1]:3,%2Frun/d?target_session_attrs=read-write"),
            list(&[
                ("user", "u"),
                ("host", "a,b,::1,/run"),
                ("port", "1,,3,"),
                ("dbname", "d"),
                ("target_session_attrs", "read-write")
            ])
        );
        assert_eq!(pairs("postgres://a,b"), list(&[("host", "a,b"), ("port", ",")]));
        assert_eq!(pairs("postgres://u@?port=1"), list(&[("user", "u"), ("port", "1")]));
    }
}
