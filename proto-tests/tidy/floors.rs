//! Floors: a module uses lower floors and the cellar, never a neighbour, never above.

use super::paths::named;
use super::{Finding, Source};

/// Usable by all; uses nothing of ours.
const CELLAR: [&str; 3] = ["error", "backoff", "stats"];

/// Each module's floor, as the map in `src/lib.rs` shows it.
const FLOORS: [(&str, u32); 20] = [
    ("pg", 0),
    ("wire", 1),
    ("seal", 1),
    ("net", 2),
    ("disk", 2),
    ("keys", 2),
    ("repo", 3),
    ("catalog", 3),
    ("archive", 4),
    ("receive", 5),
    ("backup", 5),
    ("restore", 5),
    ("retention", 5),
    ("verify", 5),
    ("find", 5),
    ("config", 6),
    ("drill", 6),
    ("extract", 6),
    ("daemon", 6),
    ("cli", 7),
];

pub fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Every `crate::x` (and `walrecv::x`) names a module that the file may use. Test code too: it would pull the file up
/// with it.
pub fn check(source: &Source) -> Vec<Finding> {
    let user = source.module();
    if !source.path.starts_with("src/") || user == "lib" {
        return Vec::new();
    }
    if floor(user).is_none() && !CELLAR.contains(&user) && user != "main" {
        let message = format!("module {user} has no floor: give it one in proto-tests/tidy/floors.rs");
        return vec![source.finding("floors", 0, message)];
    }
    let mut found = Vec::new();
    for name in named(source) {
        let depth = source.path.matches('/').count() - source.path.ends_with("/mod.rs") as usize;
        let ups = name.path.split("::").take_while(|s| *s == "super").count();
        if ups > 0 && ups >= depth + source.is_test(name.line) as usize {
            found.push(source.finding("floors", name.line, format!("{} leaves the module: say crate::", name.path)));
        }
        let mut parts = name.path.split("::");
        if !matches!(parts.next(), Some("crate" | "walrecv")) {
            continue;
        }
        let Some(used) = parts.next() else { continue };
        if let Some(message) = refusal(user, used) {
            found.push(source.finding("floors", name.line, message));
        }
    }
    found
}

fn refusal(user: &str, used: &str) -> Option<String> {
    if used == user || CELLAR.contains(&used) && !CELLAR.contains(&user) {
        return None;
    }
    let Some(below) = floor(used) else {
        return (user != "main").then(|| format!("crate::{used} is no module with a floor: name the module itself"));
    };
    match floor(user) {
        None if user == "main" => (used != "cli").then(|| format!("main uses cli only, not {used}")),
        None => Some(format!("{user} is in the cellar and uses nothing, not even {used}")),
        Some(own) if below < own => None,
        Some(own) if below == own => {
            Some(format!("{user} and {used} are neighbours on floor {own}: move what both need down"))
        }
        Some(own) => Some(format!("{user} (floor {own}) must not use {used} (floor {below})")),
    }
}

#[cfg(test)]
fn messages(path: &str, text: &str) -> Vec<String> {
    check(&Source::new(path, text)).into_iter().map(|f| format!("{}: {}", f.line, f.message)).collect()
}

#[test]
fn lower_floors_and_the_cellar_are_allowed() {
    let text = "use crate::{error::Result, pg::{Lsn, TimelineId}};\nuse crate::repo::Repository;\nuse super::plan;";
    assert_eq!(messages("src/receive/pipeline.rs", text), [""; 0]);
    assert_eq!(messages("src/main.rs", "fn main() { walrecv::cli::main() }"), [""; 0]);
}

#[test]
fn neighbours_and_higher_floors_are_refused() {
    let found = messages(
        "src/repo/store.rs",
        "\nuse crate::{pg::Lsn, archive::{self, Inventory}};\nfn f() { crate::catalog::open() }",
    );
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("2: repo (floor 3) must not use archive (floor 4)"));
    assert!(found[2].starts_with("3: repo and catalog are neighbours on floor 3"));
}

#[test]
fn the_cellar_uses_nothing_and_new_modules_need_a_floor() {
    assert_eq!(messages("src/stats.rs", "use crate::pg::Lsn;").len(), 1);
    assert_eq!(messages("src/stats.rs", "use crate::error::Error;").len(), 1);
    assert_eq!(messages("src/new/mod.rs", "").len(), 1);
    assert_eq!(messages("src/main.rs", "use walrecv::repo::Repository;").len(), 1);
}

#[test]
fn climbing_out_with_super_is_refused() {
    assert_eq!(messages("src/seal/tail.rs", "use super::super::repo::Repository;").len(), 1);
    assert_eq!(messages("src/seal/mod.rs", "use super::repo::Repository;").len(), 1);
    assert_eq!(
        messages("src/seal/tail.rs", "use super::header;\n#[cfg(test)]\nmod tests {\n use super::super::header;\n}"),
        [""; 0]
    );
    assert_eq!(messages("src/seal/content/map.rs", "use super::super::header;"), [""; 0]);
}
