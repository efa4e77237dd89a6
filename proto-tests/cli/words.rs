//! What is written about the program is true: help, the commands in the documents, keys, variables.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use walrecv::cli::args::Cli;
use walrecv::config::file::{BackupTable, ClusterTable, ConfigFile, DrillTable};

use crate::support::Walrecv;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn the_help_of_every_command_says_what_it_does() {
    let mut lines = vec![(vec![], Cli::command())];
    while let Some((path, command)) = lines.pop() {
        let words: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let output = Walrecv::new(&words).run().expect_code(0);
        let about = command.get_about().unwrap_or_else(|| panic!("{path:?} has no text")).to_string();
        let first = output.stdout.lines().next().unwrap_or_default();
        assert!(about.starts_with(first) && first.len() > 15, "{path:?}: {first:?}, expected {about:?}");
        for option in command.get_arguments().filter(|a| !a.is_hide_set()) {
            let id = option.get_id().as_str();
            assert!(option.get_help().is_some_and(|h| h.to_string().len() > 10), "{path:?}: {id} has no text");
            if let Some(long) = option.get_long() {
                assert!(output.stdout.contains(&format!("--{long}")), "{path:?}: --{long} is not shown");
            }
        }
        for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let below_path = path.iter().cloned().chain([below.get_name().to_owned()]).collect();
            lines.push((below_path, below.clone()));
        }
    }
    Walrecv::new(["--version"]).run().expect_code(0);
    Walrecv::new(["--version"]).run_printing_nowhere().expect_code(1);
    // A connection string may hold a password.
    let init = Walrecv::new(["init", "--help"]).env("WALRECV_DSN", "host=db1 password=secret").run().expect_code(0);
    assert!(init.stdout.contains("WALRECV_DSN") && !init.stdout.contains("secret"), "{}", init.stdout);
    // Nothing asked for is wrong usage, and teaches.
    let empty = Walrecv::new([""; 0]).run().expect_code(2);
    assert!(empty.stderr.contains("walrecv init"), "{}", empty.stderr);
}

/// Splits a line as a shell would, as far as documents need it: quotes, and a comment at the end.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => all.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    all.extend(word);
    all
}

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_command_in_the_documents_is_accepted() {
    let mut files = vec![root().join("README.md")];
    documents(&root().join("docs"), &mut files);
    // There, such lines name what keys are derived for.
    files.retain(|file| !file.starts_with(root().join("docs/format")));
    let mut checked = 0;
    for file in files {
        let text = fs::read_to_string(&file).expect("a document");
        let mut fenced = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("```") {
                fenced = !fenced;
            }
            if !fenced || !line.starts_with("walrecv ") {
                continue;
            }
            let read = Cli::try_parse_from(words(line));
            assert!(
                read.is_ok(),
                "{}: {line}\n{}",
                file.display(),
                read.err().map_or(String::new(), |e| e.to_string())
            );
            checked += 1;
        }
    }
    assert!(checked >= 7, "only {checked} commands found");
}

#[test]
fn every_example_of_the_help_is_accepted() {
    let all = Cli::command();
    let examples = |command: &clap::Command| {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().map(str::trim).filter(|line| line.starts_with("walrecv "));
        lines.map(|line| line.split("  ").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    for line in all.get_subcommands().chain([&all]).flat_map(examples) {
        let read = Cli::try_parse_from(words(&line));
        assert!(read.is_ok(), "{line}\n{}", read.err().map_or(String::new(), |e| e.to_string()));
    }
    for name in ["restore", "extract", "find", "drill", "wal-fetch"] {
        let command = all.find_subcommand(name).expect("a command");
        let own = examples(command).iter().filter(|line| words(line).iter().any(|word| word == name)).count();
        assert!(own > 1, "{name} shows {own} examples");
    }
}

#[test]
fn every_unit_runs_a_command_that_is_accepted_and_every_timer_has_its_service() {
    let folder = root().join("deploy/systemd");
    let files = fs::read_dir(&folder).expect("units").map(|entry| entry.expect("an entry").path());
    let units: BTreeSet<PathBuf> = files.collect();
    let mut run = BTreeSet::new();
    for unit in &units {
        let text = fs::read_to_string(unit).expect("a unit");
        let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).collect();
        if unit.extension().is_some_and(|e| e == "timer") {
            assert!(units.contains(&unit.with_extension("service")), "{}", unit.display());
            assert!(text.contains("OnCalendar=") && text.contains("WantedBy=timers.target"), "{}", unit.display());
            continue;
        }
        let [command] = commands[..] else { panic!("{}: {commands:?}", unit.display()) };
        // The name behind the @ is a cluster's.
        let read = Cli::try_parse_from(words(&command.replace("%i", "main")));
        let cluster = read.unwrap_or_else(|e| panic!("{}: {command}\n{e}", unit.display())).common.cluster;
        assert_eq!(cluster.is_some(), unit.to_string_lossy().contains('@'), "{command}");
        run.extend(words(command).get(1).cloned());
    }
    let expected = ["backup", "drill", "expire", "run", "verify"].map(str::to_owned);
    assert_eq!(run, BTreeSet::from(expected));
}

/// Every key, by writing a file that has them all.
fn keys() -> BTreeSet<String> {
    let some = || Some("1s".to_owned());
    let table = ClusterTable {
        dsn: String::new(),
        slot: some(),
        flush_interval: some(),
        compression: some(),
        shutdown_grace: some(),
        stall_timeout: some(),
        spool_dir: some(),
        on_gap: some(),
        slot_after_failover: some(),
        give_up_at: some(),
        backup: Some(BackupTable { full_every: some() }),
        drill: Some(DrillTable { assert: vec!["select true".to_owned()], database: some(), rpo: some(), rto: some() }),
    };
    let file = ConfigFile {
        repo: String::new(),
        identity: some(),
        secret_file: some(),
        identity_file: some(),
        passphrase_file: some(),
        state_dir: some(),
        clusters: [("NAME".to_owned(), table)].into(),
    };
    let written: toml::Table = file.render().parse().expect("what is written reads back");
    let clusters = written["clusters"]["NAME"].as_table().expect("a table");
    let below = clusters.iter().flat_map(|(key, value)| match value.as_table() {
        Some(table) => table.keys().map(|inner| format!("clusters.NAME.{key}.{inner}")).collect(),
        None => vec![format!("clusters.NAME.{key}")],
    });
    written.keys().filter(|key| *key != "clusters").cloned().chain(below).collect()
}

#[test]
fn the_page_of_the_configuration_lists_every_key_and_variable() {
    let page = read("docs/reference/configuration.md");
    let own = page.split("\n## Connection strings").next().unwrap_or_default();
    let rows = own.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.map(str::to_owned).collect::<BTreeSet<_>>(), keys());
    // The example reads, once its comments are options too.
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let file = ConfigFile::parse(example, "the example").expect("the example reads");
    assert_eq!(file.clusters.len(), 1);
    ConfigFile::parse(
        &example
            .replace("# passphrase_file", "passphrase_file")
            .replace("# state_dir", "state_dir")
            .replace("# spool", "spool"),
        "all",
    )
    .expect("the example's comments read");

    let mut variables = BTreeSet::from(["WALRECV_LOG".to_owned()]);
    let mut commands = vec![Cli::command()];
    while let Some(command) = commands.pop() {
        variables.extend(command.get_arguments().filter_map(|a| a.get_env()).map(|e| e.to_string_lossy().into_owned()));
        commands.extend(command.get_subcommands().cloned());
    }
    let shown = page.split('`').filter(|word| word.starts_with("WALRECV_") && !word.contains('*'));
    assert_eq!(shown.map(str::to_owned).collect::<BTreeSet<_>>(), variables);
}

#[test]
fn the_page_of_the_exit_codes_is_the_table_of_the_program() {
    let page = read("docs/reference/exit-codes.md");
    let rows = page.lines().filter_map(|line| {
        let (code, meaning) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((code.parse::<u8>().ok()?, meaning.to_owned()))
    });
    let table = walrecv::cli::exit::TABLE.map(|(code, meaning)| (code, meaning.to_owned()));
    assert_eq!(rows.collect::<Vec<_>>(), table);
}

/// Commands that are planned and do not exist yet must not be advised.
#[test]
fn no_message_sends_anyone_to_a_command_that_does_not_exist() {
    let exist: BTreeSet<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let (mut open, mut seen) = (vec![root().join("src")], 0);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for after in line.split("`walrecv ").skip(1) {
                    let word: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                    assert!(exist.contains(&word), "{}: there is no `walrecv {word}`", path.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 10, "only {seen} mentions found");
}
