//! Calls that are refused in code that is not a test.

use super::lex::Token;
use super::{Finding, Source};

/// Methods that panic.
const METHODS: [(&str, &str); 5] = [
    ("unwrap", "return an error, or match"),
    ("expect", "return an error, or match"),
    ("unwrap_err", "match"),
    ("expect_err", "match"),
    ("unwrap_unchecked", "match"),
];

/// Macros that panic, or that were meant for a moment.
const MACROS: [(&str, &str, &str); 9] = [
    ("panic", "panics", "return an error"),
    ("unreachable", "panics", "return an error, or let the types say it"),
    ("todo", "leftovers", "write it, or leave the item out"),
    ("unimplemented", "leftovers", "write it, or leave the item out"),
    ("dbg", "leftovers", "remove it"),
    ("println", "prints", "only cli prints: log with tracing, or return the text"),
    ("print", "prints", "only cli prints: log with tracing, or return the text"),
    ("eprintln", "prints", "only cli prints: log with tracing, or return the text"),
    ("eprint", "prints", "only cli prints: log with tracing, or return the text"),
];

pub fn check(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let text = |i: usize| source.tokens.get(i).map_or("", |t: &Token| t.text.as_str());
    for (i, token) in source.tokens.iter().enumerate() {
        if source.is_test(token.line) {
            continue;
        }
        if let Some((name, instead)) = METHODS.iter().find(|(name, _)| *name == token.text)
            && i > 0
            && matches!(text(i - 1), "." | "::")
            && (text(i + 1) == "(" || text(i - 1) == "::")
        {
            found.push(source.finding("panics", token.line, format!("{name}: {instead}")));
        }
        if let Some((name, rule, instead)) = MACROS.iter().find(|(name, ..)| *name == token.text)
            && text(i + 1) == "!"
            && text(i + 2) != "="
            && !(*rule == "prints" && matches!(source.module(), "cli" | "main"))
        {
            found.push(source.finding(rule, token.line, format!("{name}!: {instead}")));
        }
    }
    found
}

#[cfg(test)]
fn rules(path: &str, text: &str) -> Vec<(&'static str, usize)> {
    check(&Source::new(path, text)).into_iter().map(|f| (f.rule, f.line)).collect()
}

#[test]
fn panicking_calls_are_refused() {
    let text = "fn f() {\n a.unwrap();\n b.expect(\"x\");\n c.map(Option::unwrap);\n panic!(\"x\");\n d.unwrap_or(1); expect(e);\n}";
    assert_eq!(rules("src/net/link.rs", text), [("panics", 2), ("panics", 3), ("panics", 4), ("panics", 5)]);
    assert_eq!(rules("src/net/link.rs", &format!("#[cfg(test)]\nmod tests {{ {text} }}")), []);
    assert_eq!(rules("src/net/tests.rs", text), []);
}

#[test]
fn leftovers_and_prints_are_refused() {
    let text = "fn f() {\n todo!();\n dbg!(x);\n println!(\"x\");\n if print != y {}\n}";
    assert_eq!(rules("src/net/link.rs", text), [("leftovers", 2), ("leftovers", 3), ("prints", 4)]);
    assert_eq!(rules("src/cli/list.rs", text), [("leftovers", 2), ("leftovers", 3)]);
}
