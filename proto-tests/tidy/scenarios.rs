//! The page that says which test proves which scenario: every test that it names is there, and no scenario is passed over.

use super::Source;

/// How many scenarios the page goes through.
const SCENARIOS: u32 = 75;

/// What is wrong with the page, given all sources.
pub fn check(page: &str, all: &[Source]) -> Vec<String> {
    let unknown = names(page).into_iter().filter(|name| !exists(name, all));
    let mut wrong: Vec<String> = unknown.map(|name| format!("no test is called {name}")).collect();
    let rows: Vec<(u32, &str)> = page.lines().filter_map(row).collect();
    let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
    if numbers != (1..=SCENARIOS).collect::<Vec<_>>() {
        wrong.push(format!("the scenarios are not 1 to {SCENARIOS}, once each, in order: {numbers:?}"));
    }
    let empty = rows.iter().filter(|(_, proof)| {
        names(proof).is_empty() && !["Not yet: ", "Cannot"].iter().any(|reason| proof.contains(reason))
    });
    wrong.extend(empty.map(|(number, _)| format!("scenario {number} has neither a test nor a reason")));
    wrong
}

/// `| 12 | scenario | proof |`
fn row(line: &str) -> Option<(u32, &str)> {
    let (number, rest) = line.trim().strip_prefix('|')?.split_once('|')?;
    let (_, proof) = rest.split_once('|')?;
    Some((number.trim().parse().ok()?, proof.trim_end_matches('|').trim()))
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
    let row = |n: u32| format!("| {n} | x | `kill::one` |\n");
    let good: String = (1..=SCENARIOS).map(row).collect();
    assert_eq!(check(&good, &all), [""; 0]);
    let no_test = good.replacen("kill::one", "kill::two", 1);
    assert_eq!(check(&no_test, &all), ["no test is called kill::two"]);
    let other_file = good.replacen("kill::one", "other::one", 1);
    assert_eq!(check(&other_file, &all), ["no test is called other::one"]);
    assert_eq!(check(&good.replacen("| 7 |", "| 70 |", 1), &all).len(), 1);
    let reasons = good.replacen("`kill::one`", "Not yet: a thing", 1).replacen("`kill::one`", "", 1);
    assert_eq!(check(&reasons, &all), ["scenario 2 has neither a test nor a reason"]);
}
