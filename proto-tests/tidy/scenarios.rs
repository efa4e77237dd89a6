//! The page that says which test proves which scenario: every test that it names is there, and no scenario is passed over.

use super::Source;

/// The lists that the page goes through: what stands before their numbers, and how many rows each has.
const LISTS: [(&str, u32); 2] = [("", 75), ("P", 47)];

/// What a row says that names no test.
const REASONS: [&str; 3] = ["Not yet: ", "Not built: ", "Cannot"];

/// What is wrong with the page, given all sources.
pub fn check(page: &str, all: &[Source]) -> Vec<String> {
    let unknown = names(page).into_iter().filter(|name| !exists(name, all));
    let mut wrong: Vec<String> = unknown.map(|name| format!("no test is called {name}")).collect();
    for (letter, count) in LISTS {
        let rows: Vec<(u32, &str)> = page.lines().filter_map(|line| row(line, letter)).collect();
        let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
        if numbers != (1..=count).collect::<Vec<_>>() {
            wrong.push(format!("the scenarios are not {letter}1 to {letter}{count}, once each, in order: {numbers:?}"));
        }
        let empty = rows
            .iter()
            .filter(|(_, proof)| names(proof).is_empty() && !REASONS.iter().any(|reason| proof.contains(reason)));
        wrong.extend(empty.map(|(number, _)| format!("scenario {letter}{number} has neither a test nor a reason")));
    }
    wrong
}

/// `| P12 | scenario | proof |`, with `letter` before the number.
fn row<'a>(line: &'a str, letter: &str) -> Option<(u32, &'a str)> {
    let (number, rest) = line.trim().strip_prefix('|')?.split_once('|')?;
    let (_, proof) = rest.split_once('|')?;
    let number = number.trim().strip_prefix(letter)?;
    Some((number.parse().ok()?, proof.trim_end_matches('|').trim()))
}

/// Everything in backquotes that looks like `file::test`.
fn names(page: &str) -> Vec<&str> {
    page.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("::")).collect()
}

/// Whether a file of that name has a test of that name.
fn exists(name: &str, all: &[Source]) -> bool {
    let Some((file, test)) = name.split_once("::") else { return false };
    all.iter().filter(|source| stem(&source.path) == file).any(|source| is_test(&source.text, test))
}

fn stem(path: &str) -> &str {
    let path = path.strip_suffix("/mod.rs").or(path.strip_suffix(".rs")).unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// A function of this name, with `test` among the attributes and comments right above it.
fn is_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let begins = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ").and_then(|l| l.strip_prefix(name)).is_some_and(|l| l.starts_with('('))
    };
    let above = |index: usize| {
        lines[..index]
            .iter()
            .rev()
            .take_while(|l| l.starts_with("#[") || l.starts_with("//"))
            .any(|l| l.contains("test"))
    };
    lines.iter().enumerate().any(|(index, line)| begins(line) && above(index))
}

#[test]
fn missing_tests_and_scenarios_are_named() {
    let source = Source::new("src/a/kill.rs", "#[test]\n/// Why.\nfn one() {}\n\nfn two() {}\n");
    let all = [source];
    let row = |letter: &str, n: u32| format!("| {letter}{n} | x | `kill::one` |\n");
    let list = |(letter, count): (&str, u32)| (1..=count).map(|n| row(letter, n)).collect::<String>();
    let good: String = LISTS.map(list).concat();
    assert_eq!(check(&good, &all), [""; 0]);
    let no_test = good.replacen("kill::one", "kill::two", 1);
    assert_eq!(check(&no_test, &all), ["no test is called kill::two"]);
    let other_file = good.replacen("kill::one", "other::one", 1);
    assert_eq!(check(&other_file, &all), ["no test is called other::one"]);
    for (was, is) in [("| 7 |", "| 70 |"), ("| P7 |", "| 7 |"), ("| P47 |", "| P48 |")] {
        assert!(!check(&good.replacen(was, is, 1), &all).is_empty(), "{was}");
    }
    let reasons = good.replacen("`kill::one`", "Not yet: a thing", 1).replacen("`kill::one`", "", 1);
    assert_eq!(check(&reasons, &all), ["scenario 2 has neither a test nor a reason"]);
    let second = good.replacen("| P9 | x | `kill::one` |", "| P9 | x | because |", 1);
    assert_eq!(check(&second, &all), ["scenario P9 has neither a test nor a reason"]);
}
