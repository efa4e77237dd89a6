//! What records change, as pg_waldump tells it.

use walrecv::pg::MajorVersion;
use walrecv::pg::change::{self, Change, Row};
use walrecv::pg::record::{Record, RelationFile};
use walrecv::pg::xact;

use crate::waldump::Line;

/// What is read of a record, in words that pg_waldump's can be turned into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// Of a commit or abort: numbers of the files that go, and its subtransactions.
    pub dropped: Vec<u32>,
    pub subtransactions: Vec<u32>,
}

pub fn found(record: &Record<'_>, version: MajorVersion) -> Changes {
    let mut all = Changes::default();
    let read = change::read(record, version, &mut |change| all.changes.push(change));
    read.unwrap_or_else(|e| panic!("PostgreSQL {version}: {e}"));
    if let Some(ending) = xact::ending(record, version).expect("an ending") {
        all.dropped = ending.dropped().map(|file| file.number).collect();
        all.subtransactions = ending.subtransactions().collect();
    }
    all
}

pub fn expected(line: &Line) -> Changes {
    let (kind, rest) = line.desc.split_once(' ').unwrap_or((&line.desc, ""));
    let mut all = Changes::default();
    let blocks = blocks(&line.desc);
    let first = || blocks.first().copied().unwrap_or_else(|| panic!("a block reference in {line:?}"));
    let (relation, block) = blocks.first().copied().unwrap_or((file(0, 0, 0), 0));
    match (line.rmgr.as_str(), kind.trim_end_matches("+INIT")) {
        ("Heap", "INSERT") => all.changes.push(Change::Inserted { relation: first().0, block, rows: 1 }),
        ("Heap", "UPDATE" | "HOT_UPDATE") => all.changes.push(Change::Updated { relation: first().0 }),
        ("Heap", "DELETE") => {
            let flags = after(rest, "flags").trim_start_matches([':', ' ']).trim_start_matches("0x");
            let flags = u8::from_str_radix(&flags[..2], 16).unwrap_or_else(|_| panic!("flags in {line:?}"));
            match (flags & 0x08 != 0, flags & 0x10 != 0) {
                (true, _) => {}
                (_, true) => all.changes.push(Change::Updated { relation }),
                _ => all.changes.push(Change::Deleted { relation, row: row(block, rest) }),
            }
        }
        ("Heap", "INPLACE") if first().0.database == 0 => {
            all.changes.push(Change::InPlace { relation, row: row(block, rest), invalid: None });
        }
        ("Heap", "TRUNCATE") => {
            let oids = numbers(after(rest, " relids"));
            let database = 0;
            all.changes.extend(oids.into_iter().map(|relation| Change::Truncated { database, relation }));
        }
        ("Heap2", "MULTI_INSERT") => {
            let rows = if rest.contains("ntuples:") { numbers(after(rest, "ntuples:")) } else { numbers(rest) };
            all.changes.push(Change::Inserted { relation: first().0, block, rows: rows[0] });
        }
        ("XLOG", "FPI") => {
            all.changes
                .extend(blocks.iter().map(|(relation, block)| Change::Written { relation: *relation, block: *block }));
        }
        ("Storage", "CREATE") if !rest.contains('_') => all.changes.push(Change::Made { relation: path(rest) }),
        ("Database", "DROP") => all.changes.push(Change::DatabaseFilesGone { database: last(rest) }),
        ("Database", kind) if kind.starts_with("CREATE") => {
            all.changes.push(Change::DatabaseMade { database: last(rest) });
        }
        ("Standby", "LOCK") => {
            let words: Vec<&str> = rest.split_whitespace().collect();
            all.changes.extend(words.chunks(6).filter(|lock| lock.len() == 6 && lock[0] == "xid").map(|lock| {
                let number = |word: &str| word.trim_end_matches([';', ',']).parse().expect("a number");
                Change::Locked { xid: number(lock[1]), database: number(lock[3]), relation: number(lock[5]) }
            }));
        }
        ("Standby", "RUNNING_XACTS") => all.changes.push(Change::NextXid(numbers(after(rest, "nextXid"))[0])),
        ("Transaction", "PREPARE") => {
            let parts = rest.split_once("; subxacts:").map_or("", |(_, rest)| rest.split(';').next().unwrap_or(""));
            all.changes.push(Change::Prepared);
            all.changes.extend(numbers(parts).into_iter().map(|xid| Change::PreparedPart { xid }));
        }
        ("Transaction", "COMMIT" | "COMMIT_PREPARED" | "ABORT" | "ABORT_PREPARED") => {
            let part = |name: &str| rest.split_once(name).map_or("", |(_, rest)| rest.split(';').next().unwrap_or(""));
            all.dropped = part("; rels:").split_whitespace().map(|name| path(name).number).collect();
            all.subtransactions = numbers(part("; subxacts:"));
        }
        _ => {}
    }
    all
}

/// `found` in the words of [`expected`]: pg_waldump prints neither the database of a TRUNCATE nor what a row has become.
pub fn as_told(mut found: Changes) -> Changes {
    for change in &mut found.changes {
        match change {
            Change::Truncated { database, .. } => {
                assert!(*database > 0);
                *database = 0;
            }
            Change::InPlace { invalid, .. } => *invalid = None,
            _ => {}
        }
    }
    found
}

fn file(tablespace: u32, database: u32, number: u32) -> RelationFile {
    RelationFile { tablespace, database, number }
}

/// `off 3` or `off: 3`.
fn row(block: u32, rest: &str) -> Row {
    let offset = numbers(after(rest, "off"))[0];
    Row { block, offset: offset.try_into().expect("an offset") }
}

fn after<'t>(text: &'t str, word: &str) -> &'t str {
    text.split_once(word).unwrap_or_else(|| panic!("{word} in {text:?}")).1
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

fn last(text: &str) -> u32 {
    *numbers(text).last().unwrap_or_else(|| panic!("a number in {text:?}"))
}

/// `base/5/16384`, `global/1262`, `pg_tblspc/16385/PG_15_202209061/5/16384`.
fn path(text: &str) -> RelationFile {
    let text = text.split(|c: char| c.is_whitespace() || c == ';').next().unwrap_or_default();
    let parts: Vec<&str> = text.split('/').collect();
    let number = |part: &str| part.parse().unwrap_or_else(|_| panic!("a number: {part:?} of {text:?}"));
    match parts[..] {
        ["base", database, relation] => file(1663, number(database), number(relation)),
        ["global", relation] => file(1664, 0, number(relation)),
        ["pg_tblspc", space, _, database, relation] => file(number(space), number(database), number(relation)),
        _ => panic!("a path of a relation: {text:?}"),
    }
}

/// `blkref #0: rel 1663/5/16384 blk 3 FPW`: those of main forks.
fn blocks(desc: &str) -> Vec<(RelationFile, u32)> {
    let of = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let rel: Vec<u32> = numbers(words.get(2)?);
        let at = words.iter().position(|word| *word == "blk")?;
        let main = !words[..at].contains(&"fork");
        main.then(|| (file(rel[0], rel[1], rel[2]), numbers(words[at + 1])[0]))
    };
    desc.split("blkref ").skip(1).filter_map(of).collect()
}
