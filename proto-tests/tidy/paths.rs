//! Every path that a file names, in full: `use` groups are taken apart, and names that a `use` brought in are spelled
//! out.

use std::collections::HashMap;

use super::Source;
use super::lex::Token;

/// A path as written out in full, and its line (from 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub path: String,
    pub line: usize,
}

impl Named {
    /// Whether it is `prefix` or something below it.
    pub fn is_in(&self, prefix: &str) -> bool {
        self.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

/// All paths of a file: those of `use` items and those in code (single words too, where a `use` gives them a meaning).
pub fn named(source: &Source) -> Vec<Named> {
    let tokens = &source.tokens;
    let (mut found, mut bare, mut names) = (Vec::new(), Vec::new(), HashMap::new());
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i].text == "use" && starts_item(tokens, i) {
            i = tree(tokens, i + 1, "", &mut found, &mut names);
        } else if is_name(&tokens[i].text) && !follows_dot(tokens, i) {
            let line = tokens[i].line;
            let (path, next) = path(tokens, i);
            bare.push(Named { path, line });
            i = next;
        } else {
            i += 1;
        }
    }
    for mut name in bare {
        let first = name.path.split("::").next().unwrap_or_default();
        if let Some(full) = names.get(first) {
            name.path = format!("{full}{}", &name.path[first.len()..]);
        } else if first == name.path {
            // A word of its own: a variable, a keyword, a type of this file.
            continue;
        }
        found.push(name);
    }
    found
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn follows_dot(tokens: &[Token], i: usize) -> bool {
    i > 0 && tokens[i - 1].text == "."
}

/// `use` begins an item, and is not the `use<'a>` of a bound.
fn starts_item(tokens: &[Token], i: usize) -> bool {
    tokens.get(i + 1).is_some_and(|t| t.text != "<")
}

fn path(tokens: &[Token], mut i: usize) -> (String, usize) {
    let mut path = tokens[i].text.clone();
    i += 1;
    while tokens.get(i).is_some_and(|t| t.text == "::") && tokens.get(i + 1).is_some_and(|t| is_name(&t.text)) {
        path.push_str("::");
        path.push_str(&tokens[i + 1].text);
        i += 2;
    }
    (path, i)
}

/// One use tree after `prefix`; the token after it.
fn tree(
    tokens: &[Token],
    mut i: usize,
    prefix: &str,
    found: &mut Vec<Named>,
    names: &mut HashMap<String, String>,
) -> usize {
    let mut full = prefix.to_string();
    let mut last = prefix.rsplit("::").next().unwrap_or_default().to_string();
    let line = tokens.get(i).map_or(0, |t| t.line);
    while let Some(token) = tokens.get(i) {
        match token.text.as_str() {
            "::" => i += 1,
            "{" => {
                i += 1;
                while tokens.get(i).is_some_and(|t| t.text != "}") {
                    i = tree(tokens, i, &full, found, names);
                    i += tokens.get(i).is_some_and(|t| t.text == ",") as usize;
                }
                return i + 1;
            }
            "*" => {
                full.push_str("::*");
                i += 1;
            }
            "as" => {
                last = tokens.get(i + 1).map_or(last, |t| t.text.clone());
                i += 2;
            }
            "self" if !full.is_empty() => i += 1,
            text if is_name(text) => {
                last = text.to_string();
                full = if full.is_empty() { last.clone() } else { format!("{full}::{last}") };
                i += 1;
            }
            _ => break,
        }
    }
    names.insert(last, full.clone());
    found.push(Named { path: full, line });
    i
}

#[cfg(test)]
fn all(text: &str) -> Vec<String> {
    named(&Source::new("src/x/y.rs", text)).into_iter().map(|n| n.path).filter(|p| p.contains("::")).collect()
}

#[test]
fn groups_are_taken_apart() {
    assert_eq!(
        all("use std::{fs::{self, File}, io as stdio};\nuse crate::pg::*;"),
        ["std::fs", "std::fs::File", "std::io", "crate::pg::*"]
    );
}

#[test]
fn names_are_spelled_out() {
    assert_eq!(all("use std::fs::{self, File as F};")[..], ["std::fs", "std::fs::File"]);
    let text =
        "use std::fs::{self, File as F};\nfn f() { fs::write(a, b); F::create(c); x.fs::<T>(); std::env::var(d) }";
    assert_eq!(all(text)[2..], ["std::fs::write", "std::fs::File::create", "std::env::var"]);
}

#[test]
fn a_prefix_ends_at_a_name() {
    let name = Named { path: "std::fs_extra::copy".into(), line: 0 };
    assert!(!name.is_in("std::fs"));
    assert!(name.is_in("std::fs_extra"));
}
