//! All rules on the tree as it is.

use std::fs;

use walrecv::pg::MajorVersion;

use super::source::{read_all, root};
use super::{Finding, Source, exceptions, floors, habits, packages, purity, scenarios, shape, tables, tree};

fn everything() -> Vec<Source> {
    [read_all("src"), read_all("proto-tests")].into_iter().flatten().collect()
}

/// Fails with all findings at once that `exceptions.txt` does not name; `rules` are those that `find` may report.
fn judge(rules: &[&str], find: impl Fn(&[Source]) -> Vec<Finding>) {
    let mut found = find(&everything());
    found.sort();
    let list = include_str!("exceptions.txt");
    let listed: Vec<&str> =
        list.lines().filter(|l| rules.contains(&l.split(" | ").next().unwrap_or_default())).collect();
    let refused = exceptions::apply(found, &listed.join("\n"));
    assert!(refused.is_empty(), "{} findings:\n{}", refused.len(), refused.join("\n"));
}

fn each(check: fn(&Source) -> Vec<Finding>) -> impl Fn(&[Source]) -> Vec<Finding> {
    move |sources| sources.iter().flat_map(check).collect()
}

#[test]
fn modules_use_lower_floors_only() {
    judge(&["floors"], each(floors::check));
}

#[test]
fn the_lowest_floors_and_plans_are_pure() {
    judge(&["purity"], each(purity::check));
}

#[test]
fn packages_and_effects_stay_in_their_module() {
    judge(&["packages", "writes", "listeners", "witness"], each(packages::check));
}

#[test]
fn nothing_panics_prints_or_is_left_over() {
    judge(&["panics", "leftovers", "prints"], each(habits::check));
}

#[test]
fn files_functions_and_lines_are_short() {
    judge(&["length of files", "length of functions", "width"], each(shape::check));
}

#[test]
fn every_file_is_declared() {
    judge(&["orphans"], tree::check);
}

#[test]
fn every_exception_names_a_rule() {
    let rules = "floors purity packages writes listeners witness panics leftovers prints width orphans";
    let lengths = ["length of files", "length of functions"];
    for line in include_str!("exceptions.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let rule = line.split(" | ").next().unwrap_or_default();
        assert!(lengths.contains(&rule) || rules.split(' ').any(|known| known == rule), "no rule '{rule}': {line}");
    }
}

#[test]
fn nothing_strange_lies_at_the_top() {
    let entries = fs::read_dir(root()).expect("list the top of the repository");
    let names: Vec<String> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(tree::strangers(&names), [""; 0]);
}

#[test]
fn the_test_servers_are_the_supported_versions() {
    let table = fs::read_to_string(root().join("pg-test-env/versions")).expect("read pg-test-env/versions");
    assert_eq!(tables::majors(&table), MajorVersion::ALL.map(MajorVersion::number));
}

#[test]
fn every_test_that_the_page_of_scenarios_names_is_there() {
    let page = fs::read_to_string(root().join("docs/internals/testing.md")).expect("read docs/internals/testing.md");
    let wrong = scenarios::check(&page, &everything());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_of_exit_codes_is_the_table_of_the_program() {
    let page =
        fs::read_to_string(root().join("docs/reference/exit-codes.md")).expect("read docs/reference/exit-codes.md");
    let Ok(program) = fs::read_to_string(root().join("src/cli/exit.rs")) else { return };
    assert_eq!(tables::exit_codes(&page), tables::exit_table(&program));
}
