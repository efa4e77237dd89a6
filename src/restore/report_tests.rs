//! What `restore` prints as JSON, against its page.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::restore::configure::Restored;
use crate::restore::recovery::Neutralised;
use crate::restore::settings::Outside;
use crate::restore::start::Started;

fn text() -> String {
    "x".to_owned()
}

/// With one of everything that may be there.
fn plan() -> Plan {
    let commit = || CommitShown { xid: 1, time: text(), lsn: text() };
    let database = || Database { name: text(), oid: 5, bytes: 1, why: "asked for" };
    Plan {
        target: text(),
        backup: BackupShown {
            id: text(),
            label: text(),
            server_version_num: 180_000,
            start_lsn: text(),
            stop_lsn: text(),
            stopped_at: text(),
            why: text(),
            hurt: false,
        },
        passed_over: vec![PassedShown { id: text(), why: text() }],
        timelines: vec![LegShown { timeline: 1, begin: text(), end: text() }],
        target_timeline: 1,
        backup_bytes: 1,
        stored_bytes: Some(1),
        estimate: Some(EstimateShown { laying_seconds: 1.0, recovery_seconds: 1.0, measured_at: text(), host: text() }),
        databases: Some(DatabasesShown {
            laid: vec![database()],
            left_out: vec![database()],
            drop: Some(text()),
            pages: 1,
            renamed: false,
        }),
        files: 1,
        wal_segments: 1,
        wal_bytes: 1,
        wal_stored_bytes: Some(1),
        landing: LandingShown {
            last_commit: Some(commit()),
            next_commit: Some(commit()),
            commits_replayed: 1,
            lsn: text(),
            timeline: 1,
            stop: text(),
        },
        tablespaces: vec![PlacedShown { oid: 1, location: text(), place: Some(text()) }],
        new_tablespaces: vec![TablespaceShown { oid: 1, location: text(), lsn: text() }],
        missed: vec![commit()],
        missed_commits: 1,
        looked_until: text(),
        more_missed_from: Some(text()),
        warnings: vec![text()],
    }
}

fn restored() -> Restored {
    let changed = || vec![Neutralised { setting: text(), was: text(), now: text() }];
    Restored {
        files: 1,
        bytes: 1,
        kept: 1,
        fetched: 1,
        removed: 1,
        aside: Some(PathBuf::new()),
        neutralised: changed(),
        adapted: changed(),
        raised: changed(),
        outside: vec![Outside { setting: text(), path: text(), there: true }],
        written: vec![text()],
        stays_on: Some(1),
        bad_pages: 1,
        warnings: vec![text()],
    }
}

fn started() -> Started {
    Started {
        pid: Some(1),
        port: Some(1),
        socket_directory: Some(PathBuf::new()),
        log: PathBuf::new(),
        new_timeline: Some(2),
        landed: Some(Lsn(1)),
        took: Duration::from_millis(1500),
        starting: Duration::ZERO,
    }
}

/// The names of all members, `a.b` where one holds others.
fn members(value: &Value, under: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => all.iter().for_each(|(name, value)| {
            let name = format!("{under}{name}");
            members(value, &format!("{name}."), into);
            into.insert(name);
        }),
        Value::Array(all) => all.iter().for_each(|value| members(value, under, into)),
        _ => {}
    }
}

/// The members that a table names under a heading: those of a row's first column, and below them, in the second, what stands in its first brackets.
fn documented(page: &str, heading: &str) -> BTreeSet<String> {
    let (_, section) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n#").next().unwrap_or_default();
    let names = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut found = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').collect();
        let below = cells[2].trim().strip_prefix('(').and_then(|cell| cell.split(')').next()).unwrap_or_default();
        for name in names(cells[1]) {
            found.extend(names(below).iter().map(|below| format!("{name}.{below}")));
            found.insert(name);
        }
    }
    found
}

#[test]
fn every_member_has_its_place_on_the_page() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/json.md")).unwrap();
    let values = [serde_json::to_value(plan()), serde_json::to_value(restored()), serde_json::to_value(started())];
    let headings = ["### The plan of a restore", "### What was restored", "### What was started"];
    for (heading, value) in headings.into_iter().zip(values) {
        let mut told = BTreeSet::new();
        members(&value.unwrap(), "", &mut told);
        assert_eq!(documented(&page, heading), told, "{heading}");
    }
}

#[test]
fn how_long_it_took_is_told_in_seconds() {
    assert_eq!(serde_json::to_value(started()).unwrap()["took_seconds"], 1.5);
}
