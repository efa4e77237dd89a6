//! Who is who in what was found: for each finding the names of the newest backup before it, and of what that does not know those of a backup behind it.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{Names, Relation};
use super::{Finding, Searched, Touched};
use crate::archive::Archive;
use crate::error::Error;
use crate::pg::Lsn;
use crate::seal::content::manifest::Manifest;

/// Databases to be read of backups, by the end of each.
type Wanted = BTreeMap<Lsn, BTreeSet<u32>>;
type Chapters = BTreeMap<Lsn, Chapter>;

/// The names that some backups give.
#[derive(Debug, Default)]
pub struct Book {
    /// By the end of the backup: what is later goes by it, up to the next one.
    before: Chapters,
    /// By the end of the backup: what was done before it goes by it where nothing older tells.
    behind: Chapters,
    /// Backups whose names could not be read.
    pub unread: Vec<(String, Error)>,
}

#[derive(Debug)]
struct Chapter {
    backup: String,
    databases: BTreeSet<u32>,
    names: Names,
}

/// What something is called, and by which backup.
#[derive(Debug)]
pub struct Named<'a, T: ?Sized> {
    pub what: &'a T,
    pub backup: &'a str,
    /// The backup was taken after the deed, and it may have been called otherwise then.
    pub later: bool,
}

impl Book {
    /// Reads of each backup the databases that findings after it (and before the next one) speak of; then of later ones those in which something has no name.
    pub async fn of(archive: &Archive, backups: &[Manifest], searched: &Searched) -> Book {
        let on_path = |m: &&Manifest| searched.path.holds(m.stop_timeline, m.stop);
        let backups: BTreeMap<Lsn, &Manifest> = backups.iter().filter(on_path).map(|m| (m.stop, m)).collect();
        let found = &searched.tallied.found;
        let mut book = Book::default();
        let mut wanted = Wanted::new();
        for finding in found {
            if let Some((stop, _)) = backups.range(..=finding.lsn).next_back() {
                wanted.entry(*stop).or_default().extend(databases(finding));
            }
        }
        book.before = book.read(archive, &backups, wanted).await;
        loop {
            let wanted = book.wanted_behind(&backups, found);
            if wanted.is_empty() {
                return book;
            }
            let read = book.read(archive, &backups, wanted).await;
            book.behind.extend(read);
        }
    }

    /// What is still there when a backup begins stands in its catalogs, so one that began after the deed tells as much as any later one. One that cannot be
    /// read leaves it to the next.
    fn wanted_behind(&self, backups: &BTreeMap<Lsn, &Manifest>, found: &[Finding]) -> Wanted {
        let mut wanted = Wanted::new();
        let unread = |manifest: &Manifest| self.unread.iter().any(|(id, _)| id == manifest.id.as_str());
        for finding in found.iter().filter(|finding| !self.knows(finding)) {
            for (stop, manifest) in backups.iter().filter(|(stop, m)| **stop > finding.lsn && !unread(m)) {
                wanted.entry(*stop).or_default().extend(databases(finding));
                if manifest.start > finding.lsn {
                    break;
                }
            }
        }
        // What is read again, for another database, takes the place of what was read.
        let known = |stop: &Lsn| self.behind.get(stop).map(|chapter| &chapter.databases);
        wanted.retain(|stop, of| !known(stop).is_some_and(|known| of.is_subset(known)));
        wanted.iter_mut().for_each(|(stop, of)| of.extend(known(stop).into_iter().flatten()));
        wanted
    }

    async fn read(&mut self, archive: &Archive, backups: &BTreeMap<Lsn, &Manifest>, wanted: Wanted) -> Chapters {
        let mut chapters = Chapters::new();
        for (stop, databases) in wanted {
            let Some(manifest) = backups.get(&stop) else { continue };
            let backup = manifest.id.to_string();
            match Names::read(archive, manifest, &databases).await {
                Ok(names) => _ = chapters.insert(stop, Chapter { backup, databases, names }),
                Err(error) => self.unread.push((backup, error)),
            }
        }
        chapters
    }

    /// Whether everything that was touched, and its database, has a name.
    fn knows(&self, finding: &Finding) -> bool {
        let mut touched = finding.touched.iter().filter(|one| one.database != 0);
        touched.all(|one| self.relation(finding, one).is_some())
            && databases(finding).all(|oid| self.database(finding, oid).is_some())
    }

    /// The first of those that may tell that does. `look` is told whether it is a later one.
    fn look<'b, T: ?Sized>(
        &'b self,
        finding: &Finding,
        look: impl Fn(&'b Names, bool) -> Option<&'b T>,
    ) -> Option<Named<'b, T>> {
        let before = self.before.range(..=finding.lsn).next_back().map(|(_, chapter)| (chapter, false));
        let behind = self.behind.iter().filter(|(stop, _)| **stop > finding.lsn).map(|(_, chapter)| (chapter, true));
        before.into_iter().chain(behind).find_map(|(chapter, later)| {
            look(&chapter.names, later).map(|what| Named { what, backup: &chapter.backup, later })
        })
    }

    pub fn database(&self, finding: &Finding, oid: u32) -> Option<Named<'_, str>> {
        self.look(finding, |names, _| names.database(oid))
    }

    pub fn object(&self, finding: &Finding, database: u32, oid: u32) -> Option<Named<'_, Relation>> {
        self.look(finding, |names, later| {
            names.of_object(database, oid).filter(|known| !later || names.is_sure_of(database, known))
        })
    }

    pub fn relation(&self, finding: &Finding, touched: &Touched) -> Option<Named<'_, Relation>> {
        self.look(finding, |names, later| {
            let known = match (touched.file, touched.object) {
                (Some(file), _) => names.of_file(file),
                (None, object) => object.and_then(|object| names.of_object(touched.database, object)),
            };
            known.filter(|known| !later || names.is_sure_of(touched.database, known))
        })
    }
}

fn databases(finding: &Finding) -> impl Iterator<Item = u32> {
    finding.touched.iter().map(|one| one.database).chain(finding.database).filter(|database| *database != 0)
}
