//! Which pages a stretch of WAL changes that it has not written whole before: replay needs them as they stood. All others may be anything, zero included.
//!
//! With `full_page_writes`, which a base backup switches on, the first change of a page after a checkpoint has an image of it, but not every record takes part:
//! that a page is visible to all is noted without one where there are no checksums (`log_heap_visible`, `REGBUF_NO_IMAGE`). On a page of zeros such
//! a record is a reference to an invalid page (`XLogReadBufferExtended`), which ends a recovery in PANIC.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::MajorVersion;
use super::cursor::Cursor;
use super::data_page::{self, Fork};
use super::record::{RM_DBASE, RM_HEAP, RM_HEAP2, RM_RELMAP, Record, RelationFile, decode};
use super::xact::{kept, short};

/// `DEFAULTTABLESPACE_OID`.
const DEFAULT_TABLESPACE: u32 = 1663;
/// `GLOBALTABLESPACE_OID`.
const GLOBAL_TABLESPACE: u32 = 1664;
/// Pages that are remembered together.
const CHUNK: u32 = 64;

/// One fork of a relation (`ForkNumber`: 0 main, 1 free space map, 2 visibility map, 3 initialisation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForkFile {
    pub relation: RelationFile,
    pub fork: u8,
}

impl ForkFile {
    /// Of a file below the data directory, any segment of it; `None` for what is no file of a relation.
    pub fn of_path(path: &[u8]) -> Option<ForkFile> {
        let shared = || Some((GLOBAL_TABLESPACE, 0, path.strip_prefix(b"global/")?));
        let (tablespace, database, name) = database_file(path).or_else(shared)?;
        let fork = match data_page::RelationFile::from_path(path)?.fork {
            Fork::Main => 0,
            Fork::FreeSpace => 1,
            Fork::Visibility => 2,
            Fork::Init => 3,
        };
        let number = number(name.split(|b| *b == b'.' || *b == b'_').next()?)?;
        Some(ForkFile { relation: RelationFile { tablespace, database, number }, fork })
    }
}

/// The tablespace, the database and the rest of a path below a database's folder (`base/<db>/…`, `pg_tblspc/<oid>/PG_<version>/<db>/…`).
pub fn database_file(path: &[u8]) -> Option<(u32, u32, &[u8])> {
    let mut parts = path.splitn(3, |b| *b == b'/');
    match parts.next()? {
        b"base" => Some((DEFAULT_TABLESPACE, number(parts.next()?)?, parts.next()?)),
        b"pg_tblspc" => {
            let tablespace = number(parts.next()?)?;
            let mut parts = parts.next()?.splitn(3, |b| *b == b'/');
            let version = parts.next()?;
            let found = (tablespace, number(parts.next()?)?, parts.next()?);
            version.starts_with(b"PG_").then_some(found)
        }
        _ => None,
    }
}

fn number(text: &[u8]) -> Option<u32> {
    let digits = text.first().is_some_and(|first| (b'1'..=b'9').contains(first)) && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Bits of the pages of one chunk.
#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    touched: u64,
    bare: u64,
}

/// What the WAL does to some databases. Takes some 50 bytes for each 64 pages that are touched.
#[derive(Debug)]
pub struct Watch {
    version: MajorVersion,
    databases: BTreeSet<u32>,
    /// The file of `pg_database`.
    catalog: u32,
    /// By database, the number of the file of its `pg_class`.
    classes: BTreeMap<u32, u32>,
    chunks: HashMap<(ForkFile, u32), Chunk>,
    copied: BTreeSet<u32>,
    renamed: bool,
    changed: BTreeSet<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Pages that are changed before they are written whole.
    pub bare: Bare,
    /// Databases whose files are copied as they stand (`CREATE DATABASE` by files, `ALTER DATABASE SET TABLESPACE`).
    pub copied: BTreeSet<u32>,
    /// A row of `pg_database` was updated: some database may be called otherwise since.
    pub renamed: bool,
    /// Databases in which a relation may have been made, or may have got another name.
    pub changed: BTreeSet<u32>,
}

/// Pages of relations.
#[derive(Clone, Debug, Default)]
pub struct Bare {
    chunks: BTreeMap<(ForkFile, u32), u64>,
}

impl Bare {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Those of a fork from page `from` up to (and without) page `to`, in order; pages are numbered through all its segments.
    pub fn within(&self, file: ForkFile, from: u64, to: u64) -> impl Iterator<Item = u64> {
        let number = |block: u64| u32::try_from(block / u64::from(CHUNK)).unwrap_or(u32::MAX);
        let chunks = self.chunks.range((file, number(from))..=(file, number(to)));
        let pages = chunks.flat_map(|((_, chunk), bits)| {
            let first = u64::from(*chunk) * u64::from(CHUNK);
            (0..u64::from(CHUNK)).filter(move |n| bits >> n & 1 == 1).map(move |n| first + n)
        });
        pages.filter(move |block| (from..to).contains(block))
    }
}

fn bit(block: u32) -> u64 {
    1 << (block % CHUNK)
}

impl Watch {
    /// Of these databases. `catalog`: the number of the file of `pg_database`; `classes`: of `pg_class`, by database, where what is made in it matters.
    pub fn new(version: MajorVersion, databases: BTreeSet<u32>, catalog: u32, classes: BTreeMap<u32, u32>) -> Watch {
        let (chunks, copied, changed) = Default::default();
        Watch { version, databases, catalog, classes, chunks, copied, renamed: false, changed }
    }

    /// Every record that is replayed, in order, with its body. `Err` says what is impossible in a record of a known kind.
    pub fn see(&mut self, record: &Record<'_>) -> Result<(), String> {
        let renames = record.rmid == RM_HEAP && matches!(record.info & 0x70, 0x20 | 0x40);
        // Other records of a catalog's rows delete, lock, or change them in place, as ANALYZE does.
        let adds = match record.rmid {
            RM_HEAP => record.info & 0x70 == 0x00 || renames,
            RM_HEAP2 => record.info & 0x70 == 0x50,
            _ => false,
        };
        let Watch { version, databases, catalog, classes, chunks, renamed, changed, .. } = self;
        let shared = RelationFile { tablespace: GLOBAL_TABLESPACE, database: 0, number: *catalog };
        let main = decode(kept(record)?, *version, &mut |page| {
            *renamed |= renames && page.relation == shared;
            if adds && classes.get(&page.relation.database) == Some(&page.relation.number) {
                changed.insert(page.relation.database);
            }
            if databases.contains(&page.relation.database) {
                let file = ForkFile { relation: page.relation, fork: page.fork };
                let chunk = chunks.entry((file, page.block / CHUNK)).or_default();
                let bit = bit(page.block);
                if chunk.touched & bit == 0 && !page.is_whole(*version) {
                    chunk.bare |= bit;
                }
                chunk.touched |= bit;
            }
        })?
        .main;
        self.copied.extend(copied_database(record, main)?.filter(|source| self.databases.contains(source)));
        // `pg_class` itself may stand elsewhere from here on (`xl_relmap_update`).
        if record.rmid == RM_RELMAP {
            let database = Cursor::new(main).u32().ok_or_else(|| short(record, main))?;
            if self.classes.contains_key(&database) {
                self.changed.insert(database);
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Seen {
        let bare = self.chunks.into_iter().filter(|(_, chunk)| chunk.bare != 0);
        let bare = Bare { chunks: bare.map(|(at, chunk)| (at, chunk.bare)).collect() };
        Seen { bare, copied: self.copied, renamed: self.renamed, changed: self.changed }
    }
}

/// The database whose files a record copies as they stand then, without naming a page of them: XLOG_DBASE_CREATE, since 15 XLOG_DBASE_CREATE_FILE_COPY
/// (`commands/dbcommands_xlog.h`). `main`: its main data. `Err` says what is impossible in it.
pub(super) fn copied_database(record: &Record<'_>, main: &[u8]) -> Result<Option<u32>, String> {
    if record.rmid != RM_DBASE || record.info & 0xF0 != 0 {
        return Ok(None);
    }
    let mut fields = Cursor::new(main);
    let _target = fields.take(8).ok_or_else(|| short(record, main))?;
    fields.u32().map(Some).ok_or_else(|| short(record, main))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;

    fn file(tablespace: u32, database: u32, number: u32, fork: u8) -> ForkFile {
        ForkFile { relation: RelationFile { tablespace, database, number }, fork }
    }

    #[test]
    fn files_of_databases_are_told_from_others() {
        let of = |path: &str| ForkFile::of_path(path.as_bytes());
        assert_eq!(of("base/5/16384"), Some(file(1663, 5, 16384, 0)));
        assert_eq!(of("base/5/16384.12"), Some(file(1663, 5, 16384, 0)));
        assert_eq!(of("base/5/2619_vm.1"), Some(file(1663, 5, 2619, 2)));
        assert_eq!(of("pg_tblspc/16390/PG_15_202209061/5/16391_fsm"), Some(file(16390, 5, 16391, 1)));
        assert_eq!(of("global/1262_fsm"), Some(file(1664, 0, 1262, 1)));
        for other in
            ["base/5/PG_VERSION", "base/5/pg_filenode.map", "global/pg_control", "base/5", "base/x/1", "pg_wal/5/1"]
        {
            assert_eq!(of(other), None, "{other}");
        }
        let place = |path: &'static str| database_file(path.as_bytes());
        assert_eq!(place("base/5/PG_VERSION"), Some((1663, 5, &b"PG_VERSION"[..])));
        assert_eq!(place("pg_tblspc/7/PG_15_1/5/x/y"), Some((7, 5, &b"x/y"[..])));
        assert_eq!((place("base/5"), place("base/pgsql_tmp/1"), place("pg_tblspc/7/x/5/1")), (None, None, None));
    }

    /// A record with one page of relation 9 of database 5, or of the shared `pg_database`.
    fn record(rmid: u8, info: u8, flags: u8, database: u32, block: u32, main: &[u8]) -> (u8, u8, Vec<u8>) {
        let mut body = vec![0, flags, 0, 0];
        if flags & 0x10 != 0 {
            body.extend_from_slice(&[0, 0x20, 0, 0, 0x02]);
        }
        let (tablespace, number) = if database == 0 { (GLOBAL_TABLESPACE, 1262u32) } else { (1663, 9) };
        for word in [tablespace, database, number, block] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(&[255, main.len() as u8]);
        body.extend(std::iter::repeat_n(1, if flags & 0x10 != 0 { 8192 } else { 0 }));
        body.extend_from_slice(main);
        (rmid, info, body)
    }

    fn seen(records: &[(u8, u8, Vec<u8>)]) -> Seen {
        let mut watch = Watch::new(MajorVersion::V15, [5, 6].into(), 1262, [(5, 9)].into());
        for (rmid, info, body) in records {
            let (start, end) = (Lsn(0), Lsn(0));
            let record = Record {
                start,
                end,
                written: end,
                prev: start,
                xid: 1,
                rmid: *rmid,
                info: *info,
                total_len: 0,
                crc: 0,
                body: Some(body),
            };
            watch.see(&record).unwrap();
        }
        watch.finish()
    }

    #[test]
    fn only_the_first_touch_of_a_page_counts() {
        let change = |flags, database, block| record(RM_HEAP, 0, flags, database, block, b"");
        let found = seen(&[
            change(0x10, 5, 1),
            change(0x00, 5, 1),
            change(0x00, 5, 2),
            change(0x10, 5, 2),
            change(0x40, 5, 65),
            change(0x00, 5, 65),
            change(0x02, 5, 66),
            change(0x00, 7, 3),
        ]);
        let bare = |block, fork| found.bare.within(file(1663, 5, 9, fork), block, block + 1).count() == 1;
        assert_eq!([1, 2, 65, 66].map(|block| bare(block, 0)), [false, true, false, false]);
        assert!(bare(66, 2) && !bare(2, 2));
        assert_eq!(found.bare.within(file(1663, 7, 9, 0), 0, 9).count(), 0, "nobody asked for that database");
        assert_eq!(found.bare.within(file(1663, 5, 9, 0), 0, u64::MAX).collect::<Vec<_>>(), [2]);
        assert!(found.copied.is_empty() && !found.renamed);
    }

    #[test]
    fn what_is_made_in_a_database_is_seen_by_its_catalog() {
        let changed = |rmid, info, database| !seen(&[record(rmid, info, 0, database, 1, b"")]).changed.is_empty();
        for (rmid, info) in [(RM_HEAP, 0x00), (RM_HEAP, 0x80), (RM_HEAP, 0x20), (RM_HEAP, 0x40), (RM_HEAP2, 0x50)] {
            assert!(changed(rmid, info, 5) && !changed(rmid, info, 6), "{rmid} {info:#x}");
        }
        for (rmid, info) in [(RM_HEAP, 0x10), (RM_HEAP, 0x60), (RM_HEAP, 0x70), (RM_HEAP2, 0x10)] {
            assert!(!changed(rmid, info, 5), "{rmid} {info:#x}");
        }
        let moved = |database: u32| (RM_RELMAP, 0, [&[255, 4][..], &database.to_le_bytes()].concat());
        assert_eq!((seen(&[moved(5)]).changed, seen(&[moved(6)]).changed), ([5].into(), [].into()));
    }

    #[test]
    fn copies_and_new_names_are_seen() {
        let words = |all: [u32; 4]| all.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let create = |kind: u8, source| {
            let main = words([99, 1663, source, 1663]);
            let mut body = vec![255, main.len() as u8];
            body.extend_from_slice(&main);
            (RM_DBASE, kind, body)
        };
        let found = seen(&[create(0, 5), create(0, 7), create(0x20, 6)]);
        assert_eq!(found.copied, [5].into());
        assert!(!seen(&[record(RM_HEAP, 0x00, 0, 0, 0, b"")]).renamed, "one that was made");
        assert!(seen(&[record(RM_HEAP, 0x40, 0, 0, 0, b"")]).renamed);
    }
}
