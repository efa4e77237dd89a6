//! How a refusal is looked at: its exit code, one line that says what is wrong, one that says what to do, the same as JSON, and nothing changed.
//! And the refusals that need no server at all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::site::Site;
use crate::support::Walrecv;
use crate::support::user::give_to_postgres;
use crate::support::walrecv::Output;

/// One refusal: a command of a site, with what it is told beside.
pub struct Refusal<'a> {
    site: &'a Site,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
}

impl<'a> Refusal<'a> {
    pub fn of(site: &'a Site, args: &[&str]) -> Refusal<'a> {
        Refusal { site, args: args.iter().map(|a| a.to_string()).collect(), env: Vec::new() }
    }

    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// In `PGPASSWORD`.
    pub fn password(self, password: Option<&str>) -> Self {
        match password {
            Some(password) => self.env("PGPASSWORD", password),
            None => self,
        }
    }

    fn run(&self, more: &[&str]) -> Output {
        let mut command: Walrecv = self.site.walrecv(&[]);
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        command.args(&self.args).args(more).run()
    }

    /// Runs it as text and as JSON; the message must contain `says`, in any case of letters.
    #[track_caller]
    pub fn is(self, code: i32, says: &str) {
        let before = listing(self.site.places.path());
        let text = self.run(&[]);
        let shown = format!("walrecv {}\n--- stdout\n{}--- stderr\n{}", self.args.join(" "), text.stdout, text.stderr);
        assert_eq!(text.code(), code, "{shown}");
        let lines = |start: &str| text.stderr.lines().filter(|l| l.starts_with(start)).count();
        assert_eq!((lines("walrecv: error: "), lines("hint: ")), (1, 1), "one error and one hint: {shown}");
        let error = text.stderr.lines().find_map(|l| l.strip_prefix("walrecv: error: ")).expect("an error");
        assert!(error.to_lowercase().contains(&says.to_lowercase()), "{says:?} is not said: {shown}");
        assert!(!error.ends_with('.') && !text.stderr.contains("panicked"), "{shown}");
        unchanged(&before, self.site, &shown);

        let json = self.run(&["--output", "json"]);
        let shown = format!("walrecv {} --output json\n{}{}", self.args.join(" "), json.stdout, json.stderr);
        assert_eq!(json.code(), code, "{shown}");
        let objects: Vec<serde_json::Value> =
            json.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(objects.len(), 1, "one JSON object on standard error: {shown}");
        let error = &objects[0]["error"];
        assert_eq!(error["code"], code, "{shown}");
        assert!(error["message"].as_str().is_some_and(|m| m.to_lowercase().contains(&says.to_lowercase())), "{shown}");
        assert!(error["hint"].as_str().is_some_and(|h| !h.is_empty()), "{shown}");
        unchanged(&before, self.site, &shown);
    }
}

/// Every file below `root` but locks: kind, mode, size, time of change and, of small ones, content.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.ends_with("etc/walrecv-state") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).expect("a file that stays");
            let content = if meta.is_file() && meta.len() < 4096 { fs::read(&path).expect("a file") } else { vec![] };
            if meta.is_dir() {
                open.push(path.clone());
            }
            let changed = if meta.is_dir() { 0 } else { meta.mtime_nsec() };
            let size = if meta.is_dir() { 0 } else { meta.len() };
            found.insert(path, format!("{:o} {size} {changed} {content:?}", meta.mode()));
        }
    }
    found
}

#[track_caller]
fn unchanged(before: &BTreeMap<PathBuf, String>, site: &Site, shown: &str) {
    let after = listing(site.places.path());
    let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    let other: Vec<_> = before
        .iter()
        .filter(|(path, is)| after.get(*path).is_some_and(|now| now != *is))
        .map(|(path, _)| path)
        .collect();
    assert!(
        gone.is_empty() && new.is_empty() && other.is_empty(),
        "gone {gone:?}, new {new:?}, changed {other:?}: {shown}"
    );
}

/// A file that user `postgres` can read.
pub fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write a file");
    give_to_postgres(path);
}

#[test]
fn wrong_usage_is_2_and_says_how_it_is_right() {
    let site = Site::empty();
    let refused = |args: &[&str], says: &str| Refusal::of(&site, args).is(2, says);
    refused(&["list", "--nonsense"], "--nonsense");
    refused(&["lst"], "lst");
    refused(&["stats"], "stats");
    let told = site.walrecv(&["stats"]).run().expect_code(2).stderr;
    assert!(told.contains("`walrecv repo stats` is a command"), "{told}");
    refused(&["init", "--repo", "file:///x"], "--dsn");
    refused(&["restore", "--pgdata", "d"], "--target-time");
    refused(&["restore", "--pgdata", "d", "--latest", "--target-lsn", "0/1"], "--latest");
    refused(&["restore", "--pgdata", "d", "--latest", "--port", "1"], "--scratch");
    refused(&["backup", "--max-rate", "1"], "--max-rate");
    for (flag, variable) in [(&["--output", "json"][..], "text"), (&[], "json")] {
        let told = site.walrecv(&[&["status", "--metrics"], flag].concat()).env("WALRECV_OUTPUT", variable).run();
        let told = told.expect_code(2);
        assert!(told.stdout.is_empty() && told.stderr.contains("--metrics has a format of its own"), "{told:?}");
    }
    refused(&["list", "--output", "xml"], "xml");
    for command in
        [&["list"][..], &["receive"], &["backup"], &["check"], &["slot", "show"], &["restore", "--latest", "--plan"]]
    {
        refused(command, "no configuration");
        let missing = [command, &["--config", "/nonexistent/walrecv.toml"]].concat();
        refused(&missing, "/nonexistent/walrecv.toml");
    }
    refused(&["init", "--dsn", "host=/nowhere"], "no repository named");
    refused(&["init", "--dsn", "host=/nowhere", "--repo", "ftp://x/y"], "ftp");
    refused(&["init", "--dsn", "host=/nowhere bogus=1", "--repo", "file:///x"], "bogus");
    refused(&["init", "--dsn", "host=/nowhere", "--repo", "file:///x", "--slot", "Upper"], "--slot");
    refused(&["init", "--dsn", "host=/nowhere", "--repo", "file:///x", "--cluster", "../x"], "../x");
}

#[test]
fn a_wrong_configuration_is_2_and_names_the_place() {
    let site = Site::empty();
    let cluster = "[clusters.main]\ndsn = \"host=/nowhere\"\n";
    let repo = format!("repo = \"{}\"\n", site.url());
    for (text, says) in [
        (format!("{repo}comprssion = \"lz4\"\n{cluster}"), "comprssion"),
        (format!("{repo}{cluster}flush_intervall = \"1s\"\n"), "flush_intervall"),
        (format!("{repo}{cluster}flush_interval = \"soon\"\n"), "clusters.main.flush_interval"),
        (format!("{repo}{cluster}compression = \"gzip\"\n"), "clusters.main.compression"),
        (format!("{repo}{cluster}slot = \"No Slot\"\n"), "clusters.main.slot"),
        (repo.clone(), "no cluster"),
        (format!("{repo}{cluster}[clusters.other]\ndsn = \"\"\n"), "several clusters"),
        (cluster.to_owned(), "repo"),
        (format!("{repo}{cluster}="), "walrecv.toml, line"),
    ] {
        write(&site.config(), &text);
        for command in ["list", "receive", "backup", "check"] {
            Refusal::of(&site, &[command]).is(2, says);
        }
    }
}

#[test]
fn no_repository_is_10() {
    let site = Site::empty();
    let cluster = "[clusters.main]\ndsn = \"host=/nowhere\"\n";
    write(&site.config(), &format!("repo = \"{}\"\n{cluster}", site.url()));
    for command in [&["list"][..], &["receive"], &["backup"], &["check"], &["restore", "--latest", "--plan"]] {
        Refusal::of(&site, command).is(10, &site.repository().display().to_string());
    }
    // There, but without walrecv.json; then with one that cannot be read.
    site.places.postgres_dir("repository");
    Refusal::of(&site, &["receive"]).is(10, "walrecv.json");
    write(&site.repository().join("walrecv.json"), "{\"format\":");
    Refusal::of(&site, &["list"]).is(10, "walrecv.json");
}
