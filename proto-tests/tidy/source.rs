//! A source file as the rules see it.

use std::fs;
use std::path::{Path, PathBuf};

use super::lex::{Token, code_only, test_lines, tokens};

/// What a rule has to say about one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub rule: &'static str,
    pub path: String,
    /// From 1; 0 means the whole file.
    pub line: usize,
    pub message: String,
}

/// One Rust file: where it is (from the top of the repository), its text and its code.
pub struct Source {
    pub path: String,
    pub text: String,
    /// The text without comments and literals, line for line.
    pub code: String,
    pub tokens: Vec<Token>,
    test: Vec<bool>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let code = code_only(text);
        let tokens = tokens(&code);
        let whole = path.ends_with("/tests.rs")
            || path.ends_with("_tests.rs")
            || path.contains("/tests/")
            || path.starts_with("proto-tests/");
        let test = if whole { vec![true; text.lines().count()] } else { test_lines(&tokens, text.lines().count()) };
        Source { path: path.to_string(), text: text.to_string(), code, tokens, test }
    }

    /// Whether this line (from 0) is only compiled for tests.
    pub fn is_test(&self, line: usize) -> bool {
        self.test.get(line).copied().unwrap_or(false)
    }

    /// The top-level module under `src` that it belongs to: `seal` for `src/seal/tail.rs`, `error` for `src/error.rs`.
    pub fn module(&self) -> &str {
        let rest = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let first = rest.split('/').next().unwrap_or(rest);
        first.strip_suffix(".rs").unwrap_or(first)
    }

    pub fn finding(&self, rule: &'static str, line: usize, message: impl Into<String>) -> Finding {
        Finding { rule, path: self.path.clone(), line: line + 1, message: message.into() }
    }
}

/// The top of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below `folder` (from the top of the repository), in order.
pub fn read_all(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.strip_prefix(root()).expect("a path below the top").to_string_lossy().into_owned();
        Source::new(&name, &text)
    };
    found.into_iter().map(read).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("a folder entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && !matches!(name, "target" | "fuzz") {
            collect(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}
