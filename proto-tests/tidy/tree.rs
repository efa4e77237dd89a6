//! Every file is part of a target, and nothing lies at the top that does not belong there.

use std::path::Path;

use super::{Finding, Source};

/// What may stand at the top of the repository.
const TOP: [&str; 15] = [
    ".ci",
    ".git",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "deploy",
    "docs",
    "pg-test-env",
    "proto-tests",
    "src",
    "target",
];

/// The names of `entries` that do not belong at the top.
pub fn strangers(entries: &[String]) -> Vec<&String> {
    entries.iter().filter(|name| !TOP.contains(&name.as_str())).collect()
}

/// Every file is declared by the one that stands for its folder, or by a `#[path]`: without that it would not even be
/// compiled.
pub fn check(all: &[Source]) -> Vec<Finding> {
    let orphans = all.iter().filter(|source| {
        parents(&source.path).is_some_and(|parents| {
            !all.iter()
                .any(|other| names_path(other, source) || parents.contains(&other.path) && declares(other, source))
        })
    });
    orphans.map(|s| s.finding("orphans", 0, "no file declares it with mod")).collect()
}

/// The files that may declare this one by its name alone; none for the root of a target.
fn parents(path: &str) -> Option<Vec<String>> {
    let (folder, file) = path.rsplit_once('/')?;
    if matches!(path, "src/lib.rs" | "src/main.rs") || folder == "proto-tests" {
        return None;
    }
    // `x/mod.rs` stands for the folder x, and is declared one level up, as x.
    let folder = if file == "mod.rs" { Path::new(folder).parent()?.to_str()? } else { folder };
    let targets = ["cli", "live", "seal", "sim", "store", "tidy", "wal", "wire"];
    Some(match folder {
        "src" => vec!["src/lib.rs".to_string()],
        "proto-tests" => targets.map(|target| format!("proto-tests/{target}.rs")).to_vec(),
        _ => vec![format!("{folder}/mod.rs"), format!("{folder}.rs")],
    })
}

/// `mod name;` in the parent.
fn declares(parent: &Source, child: &Source) -> bool {
    let path = child.path.strip_suffix("/mod.rs").unwrap_or(&child.path);
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    parent.tokens.windows(3).any(|w| w[0].text == "mod" && w[1].text == name && w[2].text == ";")
}

/// `#[path = "…"]`, from the folder of the file that says it.
fn names_path(other: &Source, child: &Source) -> bool {
    let folder = other.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let relative = child.path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    relative.is_some_and(|relative| other.text.lines().any(|l| l.trim() == format!("#[path = \"{relative}\"]")))
}

#[cfg(test)]
fn orphans(files: &[(&str, &str)]) -> Vec<String> {
    let all: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    check(&all).into_iter().map(|f| f.path).collect()
}

#[test]
fn a_file_that_nobody_declares_is_refused() {
    let lib = ("src/lib.rs", "pub mod a; mod b; // mod c;");
    let a = ("src/a/mod.rs", "mod x;");
    assert_eq!(orphans(&[lib, a, ("src/a/x.rs", ""), ("src/b.rs", ""), ("src/main.rs", "")]), [""; 0]);
    assert_eq!(orphans(&[lib, a, ("src/a/y.rs", ""), ("src/c.rs", "")]), ["src/a/y.rs", "src/c.rs"]);
    let live = ("proto-tests/live.rs", "#[path = \"live/x.rs\"]\nmod x;");
    assert_eq!(
        orphans(&[live, ("proto-tests/live/x.rs", ""), ("proto-tests/live/y.rs", "")]),
        ["proto-tests/live/y.rs"]
    );
}

#[test]
fn strangers_at_the_top_are_named() {
    let entries = ["src", "notes.txt", "Cargo.toml"].map(str::to_string);
    assert_eq!(strangers(&entries), ["notes.txt"]);
}
