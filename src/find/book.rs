//! Who is who in what was found: for each finding the names of the newest backup before it.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{Names, Relation};
use super::{Finding, Searched, Touched};
use crate::archive::Archive;
use crate::error::Error;
use crate::pg::Lsn;
use crate::seal::content::manifest::Manifest;

/// The names that some backups give.
#[derive(Debug, Default)]
pub struct Book {
    /// By the end of the backup: what is later goes by it, up to the next one.
    chapters: BTreeMap<Lsn, Names>,
    /// Backups whose names could not be read.
    pub unread: Vec<(String, Error)>,
}

impl Book {
    /// Reads of each backup the databases that findings after it (and before the next one) speak of.
    pub async fn of(archive: &Archive, backups: &[Manifest], searched: &Searched) -> Book {
        let on_path = |m: &&Manifest| searched.path.holds(m.stop_timeline, m.stop);
        let backups: BTreeMap<Lsn, &Manifest> = backups.iter().filter(on_path).map(|m| (m.stop, m)).collect();
        let mut wanted: BTreeMap<Lsn, BTreeSet<u32>> = BTreeMap::new();
        for finding in &searched.tallied.found {
            // What is older than every backup may still be called as in the first one.
            let chapter = backups.range(..=finding.lsn).next_back().or(backups.first_key_value());
            let Some((stop, _)) = chapter else { continue };
            let databases = finding.touched.iter().map(|one| one.database).chain(finding.database);
            wanted.entry(*stop).or_default().extend(databases.filter(|database| *database != 0));
        }
        let mut book = Book::default();
        for (stop, databases) in wanted {
            let Some(manifest) = backups.get(&stop) else { continue };
            match Names::read(archive, manifest, &databases).await {
                Ok(names) => _ = book.chapters.insert(stop, names),
                Err(error) => book.unread.push((manifest.id.to_string(), error)),
            }
        }
        book
    }

    fn chapter(&self, finding: &Finding) -> Option<&Names> {
        let before = self.chapters.range(..=finding.lsn).next_back();
        before.or(self.chapters.first_key_value()).map(|(_, names)| names)
    }

    pub fn database(&self, finding: &Finding, oid: u32) -> Option<&str> {
        self.chapter(finding)?.database(oid)
    }

    pub fn object(&self, finding: &Finding, database: u32, oid: u32) -> Option<&Relation> {
        self.chapter(finding)?.of_object(database, oid)
    }

    pub fn relation(&self, finding: &Finding, touched: &Touched) -> Option<&Relation> {
        let names = self.chapter(finding)?;
        match (touched.file, touched.object) {
            (Some(file), _) => names.of_file(file),
            (None, Some(object)) => names.of_object(touched.database, object),
            (None, None) => None,
        }
    }
}
