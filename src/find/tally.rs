//! Counts what each transaction does, record by record, and tells of those that committed within the window and lost, or changed, much. Pure: records in,
//! findings out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::finding::{Deed, Finding, Touched};
use crate::pg::change::{self, Change, Row};
use crate::pg::record::{Record, RelationFile};
use crate::pg::xact::{self, Ending, Note, PgTime};
use crate::pg::{Lsn, MajorVersion};

/// Objects of the catalogs have lower numbers (`FirstNormalObjectId`).
const FIRST_NORMAL: u32 = 16384;
/// Between the mark on a database that is being dropped and the deletion of its row nothing else is done.
const NEAR: u64 = 1 << 20;
/// What is kept of running transactions: one item for each of them, and for each relation that it touches. About 100 MB.
const MOST_ITEMS: usize = 1 << 20;
/// A commit of less WAL, and of fewer rows than are asked for, is never large.
const LEAST_LARGE: u64 = 1 << 20;
/// Nor is one of less than so many times the median, where the window has more than a few commits.
const TIMES_MEDIAN: u64 = 8;
const A_FEW: u64 = 16;
/// `template1` (`Template1DbOid`), in which initdb works.
const TEMPLATE1: u32 = 1;
/// Findings that are kept.
const MOST_FOUND: usize = 20_000;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Commits of this time and later.
    pub from: PgTime,
    /// Commits of this time and earlier.
    pub to: PgTime,
    /// Deleted or updated rows of one relation in one transaction that count as many.
    pub rows: u64,
    /// How many of the transactions that wrote most are told.
    pub largest: usize,
}

/// Rows of one relation, by one transaction.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    inserted: u64,
    updated: u64,
    deleted: u64,
}

/// A relation file that a transaction made.
#[derive(Clone, Copy, Debug)]
struct Made {
    at: Lsn,
    /// That were written to it.
    pages: u32,
}

/// A transaction that has not ended.
#[derive(Clone, Debug, Default)]
struct Open {
    /// Of WAL.
    bytes: u64,
    prepared: bool,
    rows: HashMap<RelationFile, Rows>,
    made: HashMap<RelationFile, Made>,
    /// Tables that it truncated, where WAL says so: database and object.
    truncated: Vec<(u32, u32)>,
    locks: BTreeSet<(u32, u32)>,
    databases_made: Vec<u32>,
    /// The record that made a database unusable whose row this transaction has deleted.
    unusable_from: Option<Lsn>,
    /// With the record at which its files went.
    databases_gone: Vec<(u32, Lsn)>,
}

impl Open {
    fn items(&self) -> usize {
        let databases = self.databases_made.len() + self.databases_gone.len();
        1 + self.rows.len() + self.made.len() + self.truncated.len() + self.locks.len() + databases
    }

    fn written(&mut self, relation: RelationFile, block: u32) {
        if let Some(made) = self.made.get_mut(&relation) {
            made.pages = made.pages.max(block.saturating_add(1));
        }
    }

    fn join(&mut self, part: Open) {
        self.bytes += part.bytes;
        for (relation, rows) in part.rows {
            let all = self.rows.entry(relation).or_default();
            all.inserted += rows.inserted;
            all.updated += rows.updated;
            all.deleted += rows.deleted;
        }
        self.made.extend(part.made);
        self.truncated.extend(part.truncated);
        self.locks.extend(part.locks);
        self.databases_made.extend(part.databases_made);
        self.unusable_from = self.unusable_from.or(part.unusable_from);
        self.databases_gone.extend(part.databases_gone);
    }
}

/// The machine.
pub struct Tally {
    version: MajorVersion,
    wish: Wish,
    open: HashMap<u32, Open>,
    items: usize,
    /// Databases' rows that were marked as unusable, or perhaps were, and where.
    unusable: HashMap<(RelationFile, Row), (Lsn, Option<bool>)>,
    /// Transactions from this one on began in the WAL that was read.
    whole_from: Option<u32>,
    found: Vec<Finding>,
    /// Those that wrote most, by bytes.
    largest: BTreeMap<Reverse<(u64, Lsn)>, Finding>,
    /// Commits within the window, by the number of binary digits of their WAL's bytes.
    sizes: [u64; 65],
    left_out: u64,
    overflowed: bool,
    commits: u64,
    last: Option<PgTime>,
    minimal: Vec<Lsn>,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct Tallied {
    /// In the order of WAL.
    pub found: Vec<Finding>,
    /// Findings beyond the number that is kept.
    pub left_out: u64,
    /// There was more at once than is kept: some counts are missing.
    pub overflowed: bool,
    /// Commits within the window.
    pub commits: u64,
    /// Of the last commit or abort in the order of WAL, within the window or not: a clock that was set back says nothing of what came before.
    pub last: Option<PgTime>,
    /// Where the server went on under `wal_level = minimal`: what was done from there on is not all in WAL.
    pub minimal: Vec<Lsn>,
}

impl Tally {
    pub fn new(version: MajorVersion, wish: Wish) -> Tally {
        Tally {
            version,
            wish,
            open: HashMap::new(),
            items: 0,
            unusable: HashMap::new(),
            whole_from: None,
            found: Vec::new(),
            largest: BTreeMap::new(),
            sizes: [0; 65],
            left_out: 0,
            overflowed: false,
            commits: 0,
            last: None,
            minimal: Vec::new(),
        }
    }

    /// Takes the next record. `Err`: what is impossible in it.
    pub fn see(&mut self, record: &Record<'_>) -> Result<(), String> {
        if record.xid != 0
            && let Some(open) = self.of(record.xid)
        {
            open.bytes += u64::from(record.total_len);
        }
        let mut changes = Ok(());
        if change::wanted(record.rmid, record.info) {
            let version = self.version;
            changes = change::read(record, version, &mut |change| self.change(record, change));
        } else if let Some(ending) = xact::ending(record, self.version)? {
            self.end(record, &ending);
        } else {
            match xact::note(record, self.version)? {
                Note::RestorePoint { name, time } => self.restore_point(record, name, time),
                note if note.is_minimal() => self.minimal.push(record.start),
                // What was running then is no more, but for prepared transactions.
                Note::Checkpoint { shutdown: true, .. } | Note::EndOfRecovery { .. } => {
                    self.open.retain(|_, open| open.prepared);
                    self.items = self.open.values().map(Open::items).sum();
                }
                _ => {}
            }
        }
        changes
    }

    /// Behind a hole: of what runs there nothing is whole, until WAL says which transactions began after it. What was noted before it stays, as the least that
    /// was done.
    pub fn hole(&mut self) {
        self.whole_from = None;
    }

    /// The transaction, noted from now on if it was not; `None` where there are too many.
    fn of(&mut self, xid: u32) -> Option<&mut Open> {
        if self.items >= MOST_ITEMS && !self.open.contains_key(&xid) {
            self.overflowed = true;
            return None;
        }
        let items = &mut self.items;
        Some(self.open.entry(xid).or_insert_with(|| {
            *items += 1;
            Open::default()
        }))
    }

    fn change(&mut self, record: &Record<'_>, change: Change) {
        let xid = match change {
            Change::NextXid(next) => {
                self.whole_from.get_or_insert(next);
                return;
            }
            Change::InPlace { relation, row, invalid } => {
                self.unusable.insert((relation, row), (record.start, invalid));
                return;
            }
            Change::Locked { xid, .. } => xid,
            _ => record.xid,
        };
        if xid == 0 {
            return;
        }
        let full = self.items >= MOST_ITEMS;
        let relation = match change {
            Change::Inserted { relation, .. } | Change::Updated { relation } => relation,
            Change::Deleted { relation, row } => {
                self.unusable(record, xid, relation, row);
                relation
            }
            other => return self.other(record, xid, other),
        };
        let Some(open) = self.of(xid) else { return };
        if let Change::Inserted { block, .. } = change {
            open.written(relation, block);
        }
        let before = open.items();
        if full && !open.rows.contains_key(&relation) {
            self.overflowed = true;
            return;
        }
        let rows = open.rows.entry(relation).or_default();
        match change {
            Change::Inserted { rows: more, .. } => rows.inserted += u64::from(more),
            Change::Updated { .. } => rows.updated += 1,
            _ => rows.deleted += 1,
        }
        let more = open.items() - before;
        self.items += more;
    }

    /// A database that is dropped is marked as unusable first, in place: that is what a recovery must not replay.
    fn unusable(&mut self, record: &Record<'_>, xid: u32, relation: RelationFile, row: Row) {
        if relation.database != 0 {
            return;
        }
        let Some((at, invalid)) = self.unusable.remove(&(relation, row)) else { return };
        // The row goes right after it was marked; where the mark cannot be seen, what lies further back is something else.
        if invalid.unwrap_or(record.start.since(at) < NEAR)
            && let Some(open) = self.of(xid)
        {
            open.unusable_from = Some(at);
        }
    }

    /// Whatever is no row.
    fn other(&mut self, record: &Record<'_>, xid: u32, change: Change) {
        if let Change::PreparedPart { xid: part } = change {
            // From now on it is one with its transaction: a restart ends all others.
            let part = self.take(part);
            return self.join(xid, part);
        }
        let Some(open) = self.of(xid) else { return };
        let before = open.items();
        match change {
            Change::Written { relation, block } => open.written(relation, block),
            Change::Truncated { database, relation } => open.truncated.push((database, relation)),
            Change::Made { relation } => _ = open.made.insert(relation, Made { at: record.start, pages: 0 }),
            Change::DatabaseMade { database } => open.databases_made.push(database),
            Change::DatabaseFilesGone { database } => open.databases_gone.push((database, record.start)),
            Change::Locked { database, relation, .. } => _ = open.locks.insert((database, relation)),
            Change::Prepared => open.prepared = true,
            _ => {}
        }
        let more = open.items() - before;
        self.items += more;
    }

    fn end(&mut self, record: &Record<'_>, ending: &Ending<'_>) {
        let mut all = self.take(ending.xid);
        for xid in ending.subtransactions() {
            let part = self.take(xid);
            all.join(part);
        }
        self.last = Some(ending.time);
        let within = (self.wish.from..=self.wish.to).contains(&ending.time);
        if ending.abort || !within {
            return;
        }
        self.commits += 1;
        if let Some(size) = self.sizes.get_mut(digits(all.bytes)) {
            *size += 1;
        }
        let whole = self.whole_from.is_some_and(|from| ending.xid.wrapping_sub(from) as i32 >= 0);
        let about = Finding {
            deed: Deed::Large,
            time: ending.time,
            lsn: record.start,
            xid: Some(ending.xid),
            database: ending.database,
            touched: Vec::new(),
            locked: Vec::new(),
            rows: 0,
            at_least: !whole,
            wal_bytes: all.bytes,
            name: None,
        };
        let before = self.found.len() as u64 + self.left_out;
        self.databases(&all, &about);
        self.files(&all, ending, &about);
        self.many_rows(&all, &about);
        if self.found.len() as u64 + self.left_out == before && !by_initdb(&all) {
            self.large(&all, about);
        }
    }

    fn join(&mut self, xid: u32, part: Open) {
        let Some(open) = self.of(xid) else { return };
        let before = open.items();
        open.join(part);
        let more = open.items() - before;
        self.items += more;
    }

    fn take(&mut self, xid: u32) -> Open {
        let Some(open) = self.open.remove(&xid) else { return Open::default() };
        self.items -= open.items();
        open
    }

    fn push(&mut self, finding: Finding) {
        if self.found.len() < MOST_FOUND {
            self.found.push(finding);
        } else {
            self.left_out += 1;
        }
    }

    fn databases(&mut self, all: &Open, about: &Finding) {
        // A database that moves to another tablespace loses its files in the old one too, but its row in pg_database stays.
        let row_gone = all.rows.iter().any(|(relation, rows)| relation.database == 0 && rows.deleted > 0);
        let mut dropped: BTreeMap<u32, Lsn> = BTreeMap::new();
        for (database, at) in all.databases_gone.iter().filter(|_| row_gone) {
            dropped.entry(*database).or_insert(all.unusable_from.unwrap_or(*at).min(*at));
        }
        for (database, lsn) in dropped {
            self.push(Finding { deed: Deed::DropDatabase, database: Some(database), lsn, ..about.clone() });
        }
        let row_made = all.rows.iter().any(|(relation, rows)| relation.database == 0 && rows.inserted > 0);
        // Those of lower numbers came with initdb.
        let made = all.databases_made.iter().copied().filter(|database| row_made && *database >= FIRST_NORMAL);
        let made: BTreeSet<u32> = made.collect();
        for database in made {
            self.push(Finding { deed: Deed::CreateDatabase, database: Some(database), ..about.clone() });
        }
    }

    /// Files that others had seen and that go with this commit.
    fn files(&mut self, all: &Open, ending: &Ending<'_>, about: &Finding) {
        let made: BTreeSet<RelationFile> = all.made.keys().copied().collect();
        let dropped: BTreeSet<RelationFile> = ending.dropped().collect();
        let gone: Vec<Touched> = dropped.difference(&made).map(|file| Touched::file(*file)).collect();
        if gone.is_empty() && all.truncated.is_empty() {
            return;
        }
        let kept = all.made.iter().filter(|(file, _)| !dropped.contains(file)).map(|(_, made)| made);
        let deed = match kept.min_by_key(|made| made.at) {
            _ if !all.truncated.is_empty() => Deed::Truncate,
            None => Deed::Drop,
            // A table's file is made before those of its indexes, and stays without a page where the table is empty. An empty index has pages, some kinds several:
            // they are no content.
            Some(first) if first.pages == 0 => Deed::Truncate,
            Some(_) => Deed::Rewrite,
        };
        let named = all.truncated.iter().map(|(database, oid)| Touched::object(*database, *oid));
        let database = gone.first().and_then(|one| one.file).map(|file| file.database).or(about.database);
        let touched: Vec<Touched> = named.chain(gone).collect();
        let locked = all.locks.iter().copied().filter(|(_, oid)| *oid >= FIRST_NORMAL).collect();
        self.push(Finding { deed, database, touched, locked, ..about.clone() });
    }

    fn many_rows(&mut self, all: &Open, about: &Finding) {
        for (file, rows) in all.rows.iter().filter(|(file, _)| file.number >= FIRST_NORMAL) {
            let touched = || vec![Touched::file(*file)];
            let database = Some(file.database);
            let of = |deed, rows: u64| Finding { deed, database, touched: touched(), rows, ..about.clone() };
            if rows.deleted >= self.wish.rows {
                self.push(of(Deed::Delete, rows.deleted));
            }
            if rows.updated >= self.wish.rows {
                self.push(of(Deed::Update, rows.updated));
            }
        }
    }

    fn large(&mut self, all: &Open, about: Finding) {
        let key = Reverse((about.wal_bytes, about.lsn));
        if self.largest.len() >= self.wish.largest && self.largest.last_key_value().is_none_or(|(last, _)| *last <= key)
        {
            return;
        }
        let mut most: Vec<_> = all.rows.iter().filter(|(file, _)| file.number >= FIRST_NORMAL).collect();
        most.sort_by_key(|(_, rows)| Reverse(rows.inserted + rows.updated + rows.deleted));
        let touched: Vec<Touched> = most.iter().take(4).map(|(file, _)| Touched::file(**file)).collect();
        let rows = most.iter().map(|(_, rows)| rows.inserted + rows.updated + rows.deleted).sum();
        if rows < self.wish.rows && about.wal_bytes < LEAST_LARGE {
            return;
        }
        let database = touched.first().and_then(|one| one.file).map(|file| file.database).or(about.database);
        self.largest.insert(key, Finding { touched, rows, database, ..about });
        if self.largest.len() > self.wish.largest {
            self.largest.pop_last();
        }
    }

    fn restore_point(&mut self, record: &Record<'_>, name: String, time: PgTime) {
        if !(self.wish.from..=self.wish.to).contains(&time) {
            return;
        }
        self.push(Finding {
            deed: Deed::RestorePoint,
            time,
            lsn: record.start,
            xid: None,
            database: None,
            touched: Vec::new(),
            locked: Vec::new(),
            rows: 0,
            at_least: false,
            wal_bytes: 0,
            name: Some(name),
        });
    }

    /// The WAL of a commit that is large beside the others.
    fn least_large(&self) -> u64 {
        if self.commits <= A_FEW {
            return 0;
        }
        let mut smaller = 0;
        let median = self.sizes.iter().position(|count| {
            smaller += count;
            smaller * 2 > self.commits
        });
        // The least that has as many digits.
        median.and_then(|digits| digits.checked_sub(1)).map_or(0, |digits| TIMES_MEDIAN << digits.min(60))
    }

    /// All that was found.
    pub fn finish(self) -> Tallied {
        let least = self.least_large();
        let mut found = self.found;
        found.extend(self.largest.into_values().filter(|one| one.wal_bytes >= least));
        found.sort_by_key(|one| one.lsn);
        let Tally { left_out, overflowed, commits, last, minimal, .. } = self;
        Tallied { found, left_out, overflowed, commits, last, minimal }
    }
}

fn digits(bytes: u64) -> usize {
    (u64::BITS - bytes.leading_zeros()) as usize
}

/// Whether a transaction did nothing but what initdb does: rows of the shared catalogs and of `template1`'s, and the first databases.
fn by_initdb(all: &Open) -> bool {
    let catalog = |file: &RelationFile| file.number < FIRST_NORMAL && [0, TEMPLATE1].contains(&file.database);
    let first = all.databases_made.iter().any(|database| *database < FIRST_NORMAL);
    first || all.rows.keys().chain(all.made.keys()).all(catalog)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_is_large_beside_the_median_of_many_commits() {
        let wish = Wish { from: PgTime(0), to: PgTime(0), rows: 1000, largest: 5 };
        let least = |small: u64, big: u64| {
            let mut tally = Tally::new(MajorVersion::V17, wish);
            (tally.sizes[digits(300)], tally.sizes[digits(5 << 20)]) = (small, big);
            tally.commits = small + big;
            tally.least_large()
        };
        assert_eq!((least(0, 0), least(8, 8)), (0, 0), "a few");
        assert_eq!(least(1000, 3), 8 * 256);
        assert_eq!(least(3, 1000), 8 * (4 << 20));
    }

    #[test]
    fn what_initdb_does_is_no_news() {
        let file = |database, number| RelationFile { tablespace: 1663, database, number };
        let of = |file| Open { rows: [(file, Rows::default())].into(), ..Open::default() };
        assert!(by_initdb(&Open::default()) && by_initdb(&of(file(1, 1259))) && by_initdb(&of(file(0, 1262))));
        assert!(by_initdb(&Open { databases_made: vec![5], ..of(file(5, 2613)) }));
        for somebody in [of(file(1, 16384)), of(file(5, 2613)), of(file(16384, 1259))] {
            assert!(!by_initdb(&somebody), "{somebody:?}");
        }
    }
}
