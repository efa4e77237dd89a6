//! What relations and databases are called, as the catalogs of a backup say: its pages of `pg_class` and `pg_namespace` are read like any reader of the heap would.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::MajorVersion;
use crate::pg::heap::{self, ClassRow, PG_CLASS, PG_DATABASE, PG_NAMESPACE};
use crate::pg::record::RelationFile;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::File;

/// A catalog that is longer is not read.
const LONGEST: u64 = 256 << 20;

/// A relation that a backup knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub object: u32,
    pub schema: String,
    pub name: String,
    /// `pg_class.relkind`.
    pub kind: char,
}

impl Relation {
    /// `public.orders`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Something that holds rows of its own for a person: a table, a materialised view, a partitioned table.
    pub fn is_table(&self) -> bool {
        matches!(self.kind, 'r' | 'm' | 'p')
    }
}

/// The names of some databases at the time of one backup.
#[derive(Clone, Debug, Default)]
pub struct Names {
    databases: BTreeMap<u32, String>,
    /// By database and number of the file.
    by_file: HashMap<(u32, u32), Relation>,
    /// By database and object id.
    by_object: HashMap<(u32, u32), Relation>,
}

impl Names {
    pub fn database(&self, oid: u32) -> Option<&str> {
        self.databases.get(&oid).map(String::as_str)
    }

    pub fn of_file(&self, file: RelationFile) -> Option<&Relation> {
        self.by_file.get(&(file.database, file.number))
    }

    pub fn of_object(&self, database: u32, object: u32) -> Option<&Relation> {
        self.by_object.get(&(database, object))
    }

    /// Reads the catalogs of these databases in a backup.
    pub async fn read(archive: &Archive, manifest: &Manifest, databases: &BTreeSet<u32>) -> Result<Names> {
        let version = manifest.major().ok_or_else(|| {
            Error::new(Kind::Version, format!("backup {} is of server version {}", manifest.id, manifest.version_num))
        })?;
        let folders: BTreeSet<String> = databases.iter().map(u32::to_string).collect();
        let usual = [PG_CLASS, PG_DATABASE, PG_NAMESPACE].map(|oid| oid.to_string());
        let wanted = |path: &[u8]| {
            let Some((folder, name)) = place(path) else { return false };
            let there = folder == "global" || folders.contains(folder);
            there && (name == "pg_filenode.map" || usual.iter().any(|usual| name == usual))
        };
        let mut shelf = Shelf { archive, manifest, files: archive.files_of(manifest, &wanted).await? };
        let mut names = Names::default();
        if let Some(number) = shelf.mapped("global", PG_DATABASE).await? {
            let content = shelf.content("global", number).await?;
            each_name(&content, &mut |oid, name| _ = names.databases.insert(oid, name));
        }
        for database in databases {
            names.read_database(&mut shelf, *database, version).await?;
        }
        Ok(names)
    }

    async fn read_database(&mut self, shelf: &mut Shelf<'_>, database: u32, version: MajorVersion) -> Result<()> {
        let folder = database.to_string();
        // One that was made since is not there.
        let Some(number) = shelf.mapped(&folder, PG_CLASS).await? else { return Ok(()) };
        let content = shelf.content(&folder, number).await?;
        let (mut dead, mut rows): (Vec<ClassRow>, Vec<ClassRow>) = Default::default();
        for page in content.chunks(heap::PAGE) {
            heap::classes(page, version, &mut |counts, row| if counts { rows.push(row) } else { dead.push(row) });
        }
        let namespace = rows.iter().find(|row| row.oid == PG_NAMESPACE).map_or(PG_NAMESPACE, |row| row.file);
        let mut schemas = BTreeMap::new();
        each_name(&shelf.content(&folder, namespace).await?, &mut |oid, name| _ = schemas.insert(oid, name));
        // Versions that count are put in last, over those that do not.
        for row in dead.into_iter().chain(rows) {
            let schema = schemas.get(&row.namespace).cloned().unwrap_or_else(|| row.namespace.to_string());
            let relation = Relation { object: row.oid, schema, name: row.name, kind: row.kind };
            if row.file != 0 {
                self.by_file.insert((database, row.file), relation.clone());
            }
            self.by_object.insert((database, row.oid), relation);
        }
        Ok(())
    }
}

fn each_name(content: &[u8], put: &mut dyn FnMut(u32, String)) {
    let (mut dead, mut rows) = (Vec::new(), Vec::new());
    for page in content.chunks(heap::PAGE) {
        heap::names(page, &mut |counts, row| if counts { rows.push(row) } else { dead.push(row) });
    }
    dead.into_iter().chain(rows).for_each(|row| put(row.oid, row.name));
}

/// The last folder and the name of a file.
fn place(path: &[u8]) -> Option<(&str, &str)> {
    let path = std::str::from_utf8(path).ok()?;
    let (above, name) = path.rsplit_once('/')?;
    Some((above.rsplit('/').next().unwrap_or(above), name))
}

/// The files of a backup that were looked up.
struct Shelf<'a> {
    archive: &'a Archive,
    manifest: &'a Manifest,
    files: Vec<File>,
}

impl Shelf<'_> {
    fn find(&self, folder: &str, name: &str) -> Option<&File> {
        self.files.iter().find(|file| place(&file.path) == Some((folder, name)))
    }

    /// The number of the file of a mapped catalog; `None` where the backup has no such folder.
    async fn mapped(&self, folder: &str, oid: u32) -> Result<Option<u32>> {
        let Some(file) = self.find(folder, "pg_filenode.map") else { return Ok(None) };
        let content = self.archive.content_of(file, LONGEST).await?;
        heap::mapped(&content, oid).map(Some).ok_or_else(|| {
            let text = format!("{} does not tell the file of {oid}", String::from_utf8_lossy(&file.path));
            Error::new(Kind::Corrupt, text)
        })
    }

    /// The content of a catalog; one that was rewritten has an unusual number, and is looked up now.
    async fn content(&mut self, folder: &str, number: u32) -> Result<Vec<u8>> {
        let name = number.to_string();
        if self.find(folder, &name).is_none() {
            let wanted = |path: &[u8]| place(path) == Some((folder, name.as_str()));
            self.files.extend(self.archive.files_of(self.manifest, &wanted).await?);
        }
        let missing = || Error::new(Kind::Corrupt, format!("backup {} has no {folder}/{name}", self.manifest.id));
        self.archive.content_of(self.find(folder, &name).ok_or_else(missing)?, LONGEST).await
    }
}
