//! Catalogs of a backup, read without a server: their pages as they stand in its files.

use super::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::heap::{self, DatabaseRow, PG_DATABASE};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::File;

/// A catalog that is longer is not read.
const LONGEST: u64 = 256 << 20;

/// Files of a backup that were looked up.
pub struct Shelf<'a> {
    archive: &'a Archive,
    manifest: &'a Manifest,
    files: Vec<File>,
}

impl<'a> Shelf<'a> {
    /// Looks up these catalogs, under their usual numbers, in the folders (`global`, or a database's object id). Reads all maps of the backup; and again for
    /// each catalog that was rewritten.
    pub async fn of(
        archive: &'a Archive,
        manifest: &'a Manifest,
        folders: &[String],
        catalogs: &[u32],
    ) -> Result<Shelf<'a>> {
        let usual: Vec<String> = catalogs.iter().map(u32::to_string).collect();
        let wanted = |path: &[u8]| {
            let Some((folder, name)) = place(path) else { return false };
            let known = name == "pg_filenode.map" || usual.iter().any(|usual| usual == name);
            known && folders.iter().any(|wanted| wanted == folder)
        };
        let files = archive.files_of(manifest, &wanted).await?;
        Ok(Shelf { archive, manifest, files })
    }

    fn find(&self, folder: &str, name: &str) -> Option<&File> {
        self.files.iter().find(|file| place(&file.path) == Some((folder, name)))
    }

    /// The number of the file of a mapped catalog; `None` where the backup has no such folder.
    pub async fn mapped(&self, folder: &str, oid: u32) -> Result<Option<u32>> {
        let Some(file) = self.find(folder, "pg_filenode.map") else { return Ok(None) };
        let content = self.archive.content_of(file, LONGEST).await?;
        heap::mapped(&content, oid).map(Some).ok_or_else(|| {
            let text = format!("{} does not tell the file of {oid}", String::from_utf8_lossy(&file.path));
            Error::new(Kind::Corrupt, text)
        })
    }

    /// The content of a catalog; one that was rewritten has an unusual number, and is looked up now.
    pub async fn content(&mut self, folder: &str, number: u32) -> Result<Vec<u8>> {
        let name = number.to_string();
        if self.find(folder, &name).is_none() {
            let wanted = |path: &[u8]| place(path) == Some((folder, name.as_str()));
            self.files.extend(self.archive.files_of(self.manifest, &wanted).await?);
        }
        let missing = || Error::new(Kind::Corrupt, format!("backup {} has no {folder}/{name}", self.manifest.id));
        self.archive.content_of(self.find(folder, &name).ok_or_else(missing)?, LONGEST).await
    }

    /// The number of the file of `pg_database`, and its rows: versions that somebody has deleted first, those that count behind them. `global` must be among
    /// the folders, `PG_DATABASE` among the catalogs.
    pub async fn databases(&mut self) -> Result<(u32, Vec<DatabaseRow>)> {
        let version = self.manifest.major().ok_or_else(|| {
            let Manifest { id, version_num, .. } = self.manifest;
            Error::new(Kind::Version, format!("backup {id} is of server version {version_num}"))
        })?;
        let number = self.mapped("global", PG_DATABASE).await?;
        let missing =
            || Error::new(Kind::Corrupt, format!("backup {} has no global/pg_filenode.map", self.manifest.id));
        let number = number.ok_or_else(missing)?;
        let content = self.content("global", number).await?;
        let (mut dead, mut rows) = (Vec::new(), Vec::new());
        for page in content.chunks(heap::PAGE) {
            heap::databases(page, version, &mut |counts, row| if counts { rows.push(row) } else { dead.push(row) });
        }
        dead.append(&mut rows);
        Ok((number, dead))
    }
}

/// The last folder and the name of a file.
fn place(path: &[u8]) -> Option<(&str, &str)> {
    let path = std::str::from_utf8(path).ok()?;
    let (above, name) = path.rsplit_once('/')?;
    Some((above.rsplit('/').next().unwrap_or(above), name))
}
