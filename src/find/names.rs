//! What relations and databases are called, as the catalogs of a backup say: its pages of `pg_class` and `pg_namespace` are read like any reader of the heap would.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::archive::Archive;
use crate::archive::shelf::Shelf;
use crate::error::{Error, Kind, Result};
use crate::pg::MajorVersion;
use crate::pg::heap::{self, ClassRow, PG_CLASS, PG_DATABASE, PG_NAMESPACE};
use crate::pg::record::RelationFile;
use crate::seal::content::manifest::Manifest;

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
    /// By database, the number of the file of its `pg_class`.
    pub classes: BTreeMap<u32, u32>,
    /// By database and number of the file.
    by_file: HashMap<(u32, u32), Relation>,
    /// By database and object id.
    by_object: HashMap<(u32, u32), Relation>,
    /// Those (database and object id) of which only deleted rows are there, and not all under one name.
    unsure: HashSet<(u32, u32)>,
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

    /// Whether it can have been called nothing else since the last deleted row of it was written that is still there.
    pub fn is_sure_of(&self, database: u32, relation: &Relation) -> bool {
        !self.unsure.contains(&(database, relation.object))
    }

    /// The relations of a database.
    pub fn of_database(&self, database: u32) -> impl Iterator<Item = &Relation> {
        self.by_object.iter().filter(move |((of, _), _)| *of == database).map(|(_, relation)| relation)
    }

    /// Reads the catalogs of these databases in a backup.
    pub async fn read(archive: &Archive, manifest: &Manifest, databases: &BTreeSet<u32>) -> Result<Names> {
        let version = manifest.major().ok_or_else(|| {
            Error::new(Kind::Version, format!("backup {} is of server version {}", manifest.id, manifest.version_num))
        })?;
        let folders: Vec<String> = databases.iter().map(u32::to_string).chain(["global".to_owned()]).collect();
        let mut shelf = Shelf::of(archive, manifest, &folders, &[PG_CLASS, PG_DATABASE, PG_NAMESPACE]).await?;
        let (_, rows) = shelf.databases().await?;
        let mut names =
            Names { databases: rows.into_iter().map(|row| (row.oid, row.name)).collect(), ..Names::default() };
        for database in databases {
            names.read_database(&mut shelf, *database, version).await?;
        }
        Ok(names)
    }

    async fn read_database(&mut self, shelf: &mut Shelf<'_>, database: u32, version: MajorVersion) -> Result<()> {
        let folder = database.to_string();
        // One that was made since is not there.
        let Some(number) = shelf.mapped(&folder, PG_CLASS).await? else { return Ok(()) };
        self.classes.insert(database, number);
        let content = shelf.content(&folder, number).await?;
        let (mut dead, mut rows): (Vec<ClassRow>, Vec<ClassRow>) = Default::default();
        for page in content.chunks(heap::PAGE) {
            heap::classes(page, version, &mut |counts, row| if counts { rows.push(row) } else { dead.push(row) });
        }
        let namespace = rows.iter().find(|row| row.oid == PG_NAMESPACE).map_or(PG_NAMESPACE, |row| row.file);
        let mut schemas = BTreeMap::new();
        each_name(&shelf.content(&folder, namespace).await?, &mut |oid, name| _ = schemas.insert(oid, name));
        // Versions that count are put in last, over those that do not.
        let dead = dead.into_iter().map(|row| (row, false));
        for (row, counts) in dead.chain(rows.into_iter().map(|row| (row, true))) {
            let schema = schemas.get(&row.namespace).cloned().unwrap_or_else(|| row.namespace.to_string());
            let relation = Relation { object: row.oid, schema, name: row.name, kind: row.kind };
            let full_name = relation.full_name();
            if row.file != 0 {
                self.by_file.insert((database, row.file), relation.clone());
            }
            let earlier = self.by_object.insert((database, row.oid), relation);
            match counts {
                true => _ = self.unsure.remove(&(database, row.oid)),
                false if earlier.is_some_and(|earlier| earlier.full_name() != full_name) => {
                    self.unsure.insert((database, row.oid));
                }
                false => {}
            }
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
