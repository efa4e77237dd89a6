//! Some databases of a backup: these, and what a cluster cannot be without. The files of all others are laid as holes of the right size, but for the pages that
//! recovery needs, so that the WAL of the whole cluster can be replayed over them.
//!
//! A page of zeros takes whatever writes it whole. What changes a page that it has not written whole before ends the recovery there
//! (`XLogReadBufferExtended`), so the WAL up to the landing is read first, and such pages are laid as they are in the backup. Nobody can mistake a database
//! of holes for one that is empty: its `PG_VERSION` is among them, and every session asks for that first (`ValidatePgVersion`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use super::choose::Choice;
use crate::archive::Archive;
use crate::archive::replay::Replay;
use crate::archive::shelf::Shelf;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::MajorVersion;
use crate::pg::bare::{self, Bare, ForkFile, Seen, Watch};
use crate::pg::data_page::{self, PAGE};
use crate::pg::heap::{DatabaseRow, PG_DATABASE};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{EntryKind, File, Run, Source};

/// `FirstNormalObjectId`: what is below came with initdb.
const FIRST_NORMAL: u32 = 16384;
/// What a server and its tools look for, also where somebody has made them anew.
const USUAL: [&str; 3] = ["postgres", "template0", "template1"];

/// Why a database is laid that nobody asked for: a copy of it is made in the WAL that is replayed, and would be one of holes.
pub const COPIED: &str = "the WAL makes a copy of its files";
/// Why one is laid where the names of relations decide what is needed.
pub const CHANGED: &str = "relations were made in it, or renamed, since the backup";

/// A database of the backup. The names of the fields are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Database {
    /// As the backup has it.
    pub name: String,
    pub oid: u32,
    /// Of its files.
    pub bytes: u64,
    pub why: &'static str,
}

/// Who is asked for, of those that the backup has: object ids.
pub type Pick<'a> = &'a (dyn Fn(&[&DatabaseRow]) -> Result<BTreeSet<u32>> + Sync);

/// What is restored of a backup, and what is not.
#[derive(Clone, Debug)]
pub struct Only {
    pub laid: Vec<Database>,
    pub left_out: Vec<Database>,
    /// Some database may have another name at the target than it has in the backup.
    pub renamed: bool,
    /// Pages of what is left out that are laid, since recovery needs them.
    pub pages: u64,
    /// All that is laid.
    pub bytes: u64,
    bare: Bare,
    out: BTreeSet<u32>,
    segment_pages: u32,
}

impl Only {
    /// Reads the names in the backup, lets `pick` choose by them (object ids), and reads the WAL up to the landing.
    /// Of `classes` (databases, and the numbers of the files of their `pg_class`) those are laid too in which relations were made, or renamed, since.
    pub async fn choose(
        archive: &Archive,
        choice: &Choice,
        pick: Pick<'_>,
        classes: &BTreeMap<u32, u32>,
    ) -> Result<Only> {
        let manifest = &choice.manifest;
        let sizes = sizes(archive, manifest).await?;
        let mut shelf = Shelf::of(archive, manifest, &["global".to_owned()], &[PG_DATABASE]).await?;
        let (catalog, rows) = shelf.databases().await?;
        let (mut laid, mut left_out) = split(&sizes, rows, pick).context(format!("backup {}", manifest.id))?;
        let mut seen = Seen::default();
        if !left_out.is_empty() {
            let ids = left_out.iter().map(|one| one.oid).collect();
            seen = watch(archive, choice, |version| Watch::new(version, ids, catalog, classes.clone())).await?;
        }
        let copied = |one: &mut Database| seen.copied.contains(&one.oid);
        laid.extend(left_out.extract_if(.., copied).map(|one| Database { why: COPIED, ..one }));
        let changed = |one: &mut Database| seen.changed.contains(&one.oid);
        laid.extend(left_out.extract_if(.., changed).map(|one| Database { why: CHANGED, ..one }));
        laid.sort_by_key(|one| one.oid);
        let out: BTreeSet<u32> = left_out.iter().map(|one| one.oid).collect();
        let holes: u64 = left_out.iter().map(|one| one.bytes).sum();
        let bytes = manifest.sizes.total.saturating_sub(holes);
        let segment_pages = manifest.control.relation_segment_pages;
        let only = Only { laid, left_out, renamed: seen.renamed, pages: 0, bytes, bare: seen.bare, out, segment_pages };
        only.counted(archive, manifest).await
    }

    /// With what is laid of the databases that are left out.
    async fn counted(mut self, archive: &Archive, manifest: &Manifest) -> Result<Only> {
        let mut kept = 0;
        if !self.bare.is_empty() {
            archive.each_file(manifest, &mut |file| kept += self.reduced(&file).map_or(0, |(_, bytes)| bytes)).await?;
        }
        self.pages = kept.div_ceil(PAGE as u64);
        self.bytes += kept;
        Ok(self)
    }

    /// A file of a database that is left out, as it is laid, and how many bytes of it are no holes; `None`: it is laid as it is.
    pub fn reduced(&self, file: &File) -> Option<(File, u64)> {
        let (_, database, _) = bare::database_file(&file.path)?;
        let unit = file.kind.unit().filter(|_| self.out.contains(&database))?.bytes();
        let mut reduced = File { runs: Vec::new(), ..file.clone() };
        let fork = ForkFile::of_path(&file.path);
        let per_page = PAGE as u64 / unit;
        let before = data_page::relation_block(&file.path, 0, self.segment_pages).1;
        let mut kept = 0;
        for run in &file.runs {
            let (mut at, end) = (run.first, run.first + run.count);
            let pages = (before + at / per_page, before + end.div_ceil(per_page));
            let needed = fork.into_iter().flat_map(|fork| self.bare.within(fork, pages.0, pages.1));
            if let Source::Pack { pack, frame, offset } = &run.source {
                for page in needed {
                    let first = ((page - before) * per_page).max(run.first);
                    let last = ((page - before + 1) * per_page).min(end);
                    reduced.runs.extend(zeros(at, first));
                    let offset = offset + ((first - run.first) * unit) as u32;
                    let source = Source::Pack { pack: pack.clone(), frame: *frame, offset };
                    reduced.runs.push(Run { first, count: last - first, source });
                    kept += (last - first) * unit;
                    at = last;
                }
            }
            reduced.runs.extend(zeros(at, end));
        }
        Some((reduced, kept))
    }

    /// For whoever has the server before him: a query for the statements that drop what was left out. It goes by object ids, since the WAL may have given
    /// a name to another database, or have dropped some already. `None`: nothing was left out.
    pub fn drops(&self) -> Option<String> {
        let oids: Vec<String> = self.left_out.iter().map(|one| one.oid.to_string()).collect();
        let oids = Some(oids.join(", ")).filter(|oids| !oids.is_empty())?;
        Some(format!("SELECT format('DROP DATABASE %I', datname) FROM pg_database WHERE oid IN ({oids})"))
    }
}

fn zeros(first: u64, end: u64) -> Option<Run> {
    (first < end).then_some(Run { first, count: end - first, source: Source::Zero })
}

/// The bytes of each database that the backup has a folder of.
async fn sizes(archive: &Archive, manifest: &Manifest) -> Result<BTreeMap<u32, u64>> {
    let mut sizes = BTreeMap::new();
    let mut see = |file: File| {
        let there = !matches!(file.kind, EntryKind::Absent | EntryKind::Directory);
        if let Some((_, database, _)) = bare::database_file(&file.path).filter(|_| there) {
            *sizes.entry(database).or_default() += file.size;
        }
    };
    archive.each_file(manifest, &mut see).await?;
    Ok(sizes)
}

/// Who is laid, and who is left out. Of the rows the last one of a database counts; a database without any is laid, since nobody could name it.
fn split(sizes: &BTreeMap<u32, u64>, rows: Vec<DatabaseRow>, pick: Pick<'_>) -> Result<(Vec<Database>, Vec<Database>)> {
    let rows: BTreeMap<u32, DatabaseRow> = rows.into_iter().map(|row| (row.oid, row)).collect();
    let there: Vec<&DatabaseRow> = rows.values().filter(|row| sizes.contains_key(&row.oid)).collect();
    let asked = pick(&there)?;
    let (mut laid, mut left_out) = (Vec::new(), Vec::new());
    for (oid, bytes) in sizes {
        let row = rows.get(oid);
        let usual = *oid < FIRST_NORMAL || row.is_some_and(|row| USUAL.contains(&row.name.as_str()));
        let why = match row {
            _ if asked.contains(oid) => "asked for",
            _ if usual => "every cluster has it",
            None => "it has no name in the backup",
            Some(row) if row.template => "a template",
            Some(_) => "not asked for",
        };
        let name = row.map_or_else(String::new, |row| row.name.clone());
        let database = Database { name, oid: *oid, bytes: *bytes, why };
        if why == "not asked for" { &mut left_out } else { &mut laid }.push(database);
    }
    Ok((laid, left_out))
}

/// Those of these names. `Kind::Usage` for one that the backup does not have.
pub fn called(wanted: &[String], there: &[&DatabaseRow]) -> Result<BTreeSet<u32>> {
    wanted.iter().map(|name| meant(name, there)).collect()
}

/// The database of a name, or of an object id.
fn meant(wanted: &str, there: &[&DatabaseRow]) -> Result<u32> {
    let named: Vec<u32> = there.iter().filter(|row| row.name == wanted).map(|row| row.oid).collect();
    let numbered = || wanted.parse().ok().filter(|oid| there.iter().any(|row| row.oid == *oid));
    match named.as_slice() {
        [oid] => Ok(*oid),
        [] => numbered().ok_or_else(|| {
            let names: Vec<&str> = there.iter().map(|row| row.name.as_str()).collect();
            Error::new(Kind::Usage, format!("it has no database {wanted:?}")).hint(format!(
                "it has: {}; a database that was made after the backup comes with the WAL, whichever are named",
                names.join(", ")
            ))
        }),
        several => {
            let ids = several.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            Err(Error::new(Kind::Usage, format!("several of its databases are called {wanted:?}"))
                .hint(format!("name one by its object id: {ids}")))
        }
    }
}

/// Reads all that will be replayed.
async fn watch(archive: &Archive, choice: &Choice, watch: impl FnOnce(MajorVersion) -> Watch) -> Result<Seen> {
    let manifest = &choice.manifest;
    let (from, to) = (manifest.start, choice.landing.replayed);
    let version = manifest.major().ok_or_else(|| {
        Error::new(Kind::Version, format!("backup {} is of server version {}", manifest.id, manifest.version_num))
    })?;
    let (mut watch, inventory) = (watch(version), Arc::new(archive.inventory().await?));
    let replay = Replay { path: Arc::new(choice.path.clone()), inventory, version, from, to };
    archive.replay(&replay, &mut |record| watch.see(record).map(ControlFlow::Continue)).await?;
    Ok(watch.finish())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pg::record::Record;
    use crate::seal::content::BackupId;
    use crate::seal::content::map::PackPlace;

    fn row(oid: u32, name: &str, template: bool) -> DatabaseRow {
        DatabaseRow { oid, name: name.to_owned(), template }
    }

    fn ids(databases: &[Database]) -> Vec<u32> {
        databases.iter().map(|one| one.oid).collect()
    }

    #[test]
    fn who_is_laid_and_who_is_left_out() {
        let sizes = [1, 5, 16400, 16401, 16402, 16403, 16404, 16405].map(|oid| (oid, 10)).into();
        let rows = || {
            vec![
                // Before it was renamed, and one that was dropped: its folder is gone.
                row(16401, "old", false),
                row(16399, "shop", false),
                row(1, "template1", true),
                row(5, "postgres", false),
                row(16400, "shop", false),
                row(16401, "logs", false),
                row(16402, "mould", true),
                row(16404, "template0", false),
                row(16405, "16400", false),
            ]
        };
        let split = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            super::split(&sizes, rows(), &|there| called(&wanted, there)).map(|(laid, out)| (ids(&laid), ids(&out)))
        };
        assert_eq!(split(&["shop"]).unwrap(), (vec![1, 5, 16400, 16402, 16403, 16404], vec![16401, 16405]));
        assert_eq!(split(&["16401", "logs"]).unwrap().1, [16400, 16405]);
        assert_eq!(split(&["16400"]).unwrap().1, [16400, 16401], "a name stands before a number");
        assert_eq!(split(&[]).unwrap().1, [16400, 16401, 16405]);
        for wrong in ["old", "16399", "Shop", ""] {
            let error = split(&[wrong]).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.advice().unwrap().contains("shop, logs"), "{wrong}: {error}");
        }
        let twice = vec![row(16400, "shop", false), row(16401, "shop", false)];
        let error = super::split(&sizes, twice, &|there| called(&["shop".to_owned()], there)).unwrap_err();
        assert!(error.advice().unwrap().contains("16400, 16401"), "{error}");
    }

    /// An archive of which pages 2, 70 and 131073 of relation 9 of database 7 are needed.
    fn only() -> Only {
        let mut watch = Watch::new(MajorVersion::V15, [7].into(), 1262, BTreeMap::new());
        for block in [2u32, 70, 131_073] {
            let mut body = vec![0, 0, 0, 0];
            [1663, 7, 9, block].iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
            let (start, rmid) = (Default::default(), crate::pg::record::RM_HEAP);
            let record = Record {
                start,
                end: start,
                written: start,
                prev: start,
                xid: 1,
                rmid,
                info: 0,
                total_len: 0,
                crc: 0,
                body: Some(&body),
            };
            watch.see(&record).unwrap();
        }
        let (bare, out) = (watch.finish().bare, [7].into());
        let segment_pages = data_page::SEGMENT_PAGES;
        Only { laid: vec![], left_out: vec![], renamed: false, pages: 0, bytes: 0, bare, out, segment_pages }
    }

    #[test]
    fn files_are_holes_but_for_the_pages_that_are_needed() {
        let only = only();
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let pack = Arc::new(PackPlace { backup: id, number: 0, len: 0, header: Bytes::new(), frames: vec![] });
        let page = PAGE as u64;
        let run =
            |first, count, offset| Run { first, count, source: Source::Pack { pack: pack.clone(), frame: 1, offset } };
        let zero = |first, count| Run { first, count, source: Source::Zero };
        let file = |path: &str, kind, size, runs| File {
            path: path.into(),
            kind,
            size,
            mode: 0o600,
            mtime: 0,
            link: vec![],
            runs,
        };
        let pages = |path: &str, runs: Vec<Run>| {
            let count = runs.iter().map(|run| run.count).sum::<u64>();
            let (reduced, kept) = only.reduced(&file(path, EntryKind::Pages, count * page, runs))?;
            Some((reduced.runs, kept / page))
        };
        let whole = || vec![run(0, 60, 8192), zero(60, 5), run(65, 32, 0)];
        let expected = vec![
            zero(0, 2),
            run(2, 1, 3 * 8192),
            zero(3, 57),
            zero(60, 5),
            zero(65, 5),
            run(70, 1, 5 * 8192),
            zero(71, 26),
        ];
        assert_eq!(pages("base/7/9", whole()), Some((expected, 2)));
        assert_eq!(pages("base/7/9.1", vec![run(0, 3, 0)]), Some((vec![zero(0, 1), run(1, 1, 8192), zero(2, 1)], 1)));
        assert_eq!(pages("base/7/9_vm", vec![run(0, 3, 0)]), Some((vec![zero(0, 3)], 0)));
        assert_eq!(pages("base/7/10", vec![run(0, 3, 0)]), Some((vec![zero(0, 3)], 0)));
        for laid in ["base/8/9", "global/9", "base/7", "PG_VERSION"] {
            assert_eq!(pages(laid, whole()), None, "{laid}");
        }
        // Its length is no multiple of a page: runs count bytes.
        let odd = file("base/7/9", EntryKind::Bytes, 30_000, vec![run(0, 20_000, 0), run(20_000, 10_000, 7)]);
        let cut = vec![zero(0, 16_384), run(16_384, 3616, 16_384), run(20_000, 4576, 7), zero(24_576, 5424)];
        assert_eq!(only.reduced(&odd).map(|(file, kept)| (file.runs, kept)), Some((cut, 8192)));
        let version = file("base/7/PG_VERSION", EntryKind::Bytes, 3, vec![run(0, 3, 0)]);
        assert_eq!(only.reduced(&version).map(|(file, _)| file.runs), Some(vec![zero(0, 3)]));
        let folder = file("base/7", EntryKind::Directory, 0, vec![]);
        assert!(only.reduced(&folder).is_none());
    }
}
