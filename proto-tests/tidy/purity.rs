//! Floors 0 and 1 and every `plan.rs` are pure: no async, no files, no clock, no randomness except through arguments.

use super::floors::floor;
use super::paths::named;
use super::{Finding, Source};

/// What pure code must not name, and what to do instead.
const REFUSED: [(&str, &str); 16] = [
    ("tokio", "bytes and times come in as arguments"),
    ("futures", "bytes and times come in as arguments"),
    ("std::fs", "files belong to disk"),
    ("std::os::unix::fs", "files belong to disk"),
    ("std::net", "sockets belong to net"),
    ("std::os::unix::net", "sockets belong to net"),
    ("std::process", "processes belong to the jobs"),
    ("std::env", "the environment comes in through config"),
    ("std::thread", "threads belong to the jobs"),
    ("std::time::Instant::now", "the time comes in as an argument"),
    ("std::time::SystemTime::now", "the time comes in as an argument"),
    ("jiff::Timestamp::now", "the time comes in as an argument"),
    ("jiff::Zoned::now", "the time comes in as an argument"),
    ("getrandom", "randomness comes in as an argument"),
    ("rand", "randomness comes in as an argument"),
    ("rustix", "the system is not for pure code"),
];

/// Whether a file has to be pure.
pub fn must_be_pure(source: &Source) -> bool {
    source.path.starts_with("src/")
        && (floor(source.module()).is_some_and(|floor| floor <= 1)
            || source.path.ends_with("/plan.rs")
            || source.path.contains("/plan/"))
}

/// Pure files, their tests left out.
pub fn check(source: &Source) -> Vec<Finding> {
    if !must_be_pure(source) {
        return Vec::new();
    }
    let paths = named(source).into_iter().filter(|name| !source.is_test(name.line));
    let mut found: Vec<Finding> = paths
        .filter_map(|name| {
            let (refused, instead) = REFUSED.iter().find(|(refused, _)| name.is_in(refused))?;
            Some(source.finding("purity", name.line, format!("{refused} in pure code: {instead}")))
        })
        .collect();
    let words =
        source.tokens.iter().filter(|t| !source.is_test(t.line) && matches!(t.text.as_str(), "async" | "await"));
    found.extend(words.map(|t| source.finding("purity", t.line, format!("{} in pure code: write a machine", t.text))));
    found
}

#[cfg(test)]
fn lines(path: &str, text: &str) -> Vec<usize> {
    check(&Source::new(path, text)).into_iter().map(|f| f.line).collect()
}

#[test]
fn impure_words_are_refused_on_the_lowest_floors_and_in_plans() {
    let text = "use std::time::{Instant, Duration};\nfn f() { Instant::now() }\nasync fn g() { std::fs::read(x) }";
    for path in ["src/pg/lsn.rs", "src/wire/codec.rs", "src/seal/content/map.rs", "src/restore/plan.rs"] {
        let mut found = lines(path, text);
        found.sort();
        assert_eq!(found, [2, 3, 3], "{path}");
    }
    assert_eq!(lines("src/restore/lay.rs", text), [0; 0]);
}

#[test]
fn comments_and_tests_may_name_them() {
    let text = "// std::fs::read\nconst A: &str = \"async tokio::x\";\n#[cfg(test)]\nmod tests {\n  fn f() { std::fs::read(x) }\n}";
    assert_eq!(lines("src/pg/lsn.rs", text), [0; 0]);
}
