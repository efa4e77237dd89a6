//! Length of files, functions and lines.

use super::lex::item_end;
use super::{Finding, Source};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 120;
/// For lines with a comment or a literal, which rustfmt leaves as they are.
const UNBROKEN_COLUMNS_MAX: usize = 165;

/// A file's inline tests do not count towards its length; files of tests do.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let tests_count = !source.path.starts_with("src/") || source.is_test(0);
    let lines = (0..source.text.lines().count()).filter(|line| tests_count || !source.is_test(*line)).count();
    if lines > FILE_LINES_MAX {
        let message = format!("{lines} lines of at most {FILE_LINES_MAX}: split it by what it does");
        found.push(source.finding("length of files", 0, message));
    }
    for (line, (text, code)) in source.text.lines().zip(source.code.lines()).enumerate() {
        let columns = text.chars().count();
        let limit = if text == code { COLUMNS_MAX } else { UNBROKEN_COLUMNS_MAX };
        if columns > limit {
            found.push(source.finding("width", line, format!("{columns} columns of at most {limit}")));
        }
    }
    for (i, token) in source.tokens.iter().enumerate().filter(|(_, t)| t.text == "fn") {
        // A name follows, or it is the type of a pointer.
        let Some(name) = source.tokens.get(i + 1).filter(|t| t.text != "(") else { continue };
        let end = item_end(&source.tokens, i);
        let last = source.tokens.get(end - 1).map_or(token.line, |t| t.line);
        let lines = last - token.line + 1;
        if lines > FUNCTION_LINES_MAX {
            let message =
                format!("{}: {lines} lines of at most {FUNCTION_LINES_MAX}: take a step out and name it", name.text);
            found.push(source.finding("length of functions", token.line, message));
        }
    }
    found
}

#[cfg(test)]
fn rules(path: &str, text: &str) -> Vec<&'static str> {
    check(&Source::new(path, text)).into_iter().map(|f| f.rule).collect()
}

#[test]
fn long_files_are_refused_without_counting_their_tests() {
    let code = "const A: u8 = 1;\n".repeat(600);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    const A: u8 = 1;\n".repeat(50));
    assert_eq!(rules("src/pg/lsn.rs", &format!("{code}{tests}")), [""; 0]);
    assert_eq!(rules("src/pg/lsn.rs", &format!("{code}const B: u8 = 1;\n{tests}")), ["length of files"]);
    assert_eq!(rules("proto-tests/live/x.rs", &format!("{code}{tests}")), ["length of files"]);
}

#[test]
fn long_functions_and_lines_are_refused() {
    let body = "    a();\n".repeat(69);
    assert_eq!(
        rules("src/pg/lsn.rs", &format!("fn f(g: fn(u8) -> u8, a: [u8; 4]) {{\n{body}}}\n")),
        ["length of functions"]
    );
    assert_eq!(rules("src/pg/lsn.rs", &format!("fn f() {{\n{}}}\n", "    a();\n".repeat(68))), [""; 0]);
    assert_eq!(rules("src/pg/lsn.rs", &format!("type {} = u8;", "X".repeat(120))), ["width"]);
    assert_eq!(rules("src/pg/lsn.rs", &format!("    // {}", "x".repeat(160))), ["width"]);
    assert_eq!(rules("src/pg/lsn.rs", &format!("    // {}", "ä".repeat(158))), [""; 0]);
}
