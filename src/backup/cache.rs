//! The hashes of all pages of one complete backup, kept in `state_dir` so that the next one stores only what changed.
//!
//! Two files, `pages-<cluster>-<repository id>/<backup id>.index` and `.hashes`: paths in order, each with what the map says of it and the place of its first
//! hash; and the hashes, one for each chunk, file by file in the order in which the server sent them. Both name the repository, the cluster,
//! the backup, the key of the hashes and the identity, and both are checked block by block. They are written while their backup is taken and count only once
//! its manifest stands in the repository; the files of the backup before go after that. So a cache never says more than a complete backup, and
//! one that is lost or refused costs a backup that stores everything.

use std::path::{Path, PathBuf};

use crate::archive::Archive;
use crate::disk::private;
use crate::disk::sorted::{NumberFile, NumberWriter, SortedFile, SortedWriter};
use crate::error::{Error, Kind, Result};
use crate::seal::content::map::EntryKind;
use crate::seal::content::varint::{Cursor, put, put_bytes, put_signed};
use crate::seal::content::{BackupId, Malformed, hex};
use crate::seal::page_hash::{PageHash, PageHasher};

const WHAT: &str = "cache of page hashes";
const INDEX: &str = "index";
const HASHES: &str = "hashes";

/// What is kept of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub kind: EntryKind,
    pub size: u64,
    pub mode: u32,
    pub mtime: i64,
    pub link: Vec<u8>,
    /// Place of its first hash.
    pub hashes: u64,
}

impl Known {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![kind_code(self.kind)];
        put(&mut out, self.size);
        put(&mut out, u64::from(self.mode));
        put_signed(&mut out, self.mtime);
        put_bytes(&mut out, &self.link);
        put(&mut out, self.hashes);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Known, Malformed> {
        let mut cursor = Cursor::new(WHAT, bytes);
        let kind = kind_of(cursor.byte()?).ok_or_else(|| cursor.bad("unknown kind of file"))?;
        let (size, mode, mtime) = (cursor.number()?, cursor.small()?, cursor.signed()?);
        Ok(Known { kind, size, mode, mtime, link: cursor.bytes()?.to_vec(), hashes: cursor.number()? })
    }
}

pub(super) fn kind_code(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Absent => 0,
        EntryKind::Pages => 1,
        EntryKind::Bytes => 2,
        EntryKind::Directory => 3,
        EntryKind::Symlink => 4,
    }
}

pub(super) fn kind_of(code: u8) -> Option<EntryKind> {
    [EntryKind::Pages, EntryKind::Bytes, EntryKind::Directory, EntryKind::Symlink]
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
}

/// Where the caches of one cluster stand. All calls block.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
    belongs: String,
}

impl Shelf {
    /// `identity` is the one that packs are sealed for now: pages that only another key opens are not built on.
    pub fn new(state_dir: &Path, archive: &Archive, hasher: &PageHasher, identity: Option<&str>) -> Shelf {
        let repository = hex(&archive.keys.repository().0);
        let (root, key, identity) = (archive.names.root(), hex(&hasher.key_id()), identity.unwrap_or("none"));
        let belongs = format!("{WHAT} 2\n{repository}\n{root}\n{key}\n{identity}\n");
        // Two repositories may share a `state_dir`, and clear only their own.
        Shelf { folder: state_dir.join(format!("pages-{}-{repository}", archive.names.cluster)), belongs }
    }

    fn path(&self, id: &BackupId, part: &str) -> PathBuf {
        self.folder.join(format!("{id}.{part}"))
    }

    fn belongs(&self, id: &BackupId, part: &str) -> Vec<u8> {
        format!("{}{id}\n{part}", self.belongs).into_bytes()
    }

    /// The backups of which there are files, newest first.
    pub fn held(&self) -> Vec<BackupId> {
        let Ok(listing) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<_> = names.filter_map(|name| BackupId::parse(name.split_once('.')?.0).ok()).collect();
        ids.sort_unstable_by(BackupId::by_start);
        ids.dedup();
        ids.reverse();
        ids
    }

    /// The cache of a backup, all of its index read once. `None`: there is none, or it is refused, which is logged.
    pub fn open(&self, id: &BackupId) -> Option<Cache> {
        match self.checked(id) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the page hashes of backup {id} cannot be used");
                None
            }
        }
    }

    fn checked(&self, id: &BackupId) -> Result<Option<Cache>> {
        let index = SortedFile::open(&self.path(id, INDEX), &self.belongs(id, INDEX))?;
        let hashes = NumberFile::open(&self.path(id, HASHES), &self.belongs(id, HASHES))?;
        let (Some(index), Some(hashes)) = (index, hashes) else { return Ok(None) };
        index.verify()?;
        Ok(Some(Cache { index, hashes, refused: false }))
    }

    /// Begins the files of a backup; `None` where they cannot be written, which is logged.
    pub fn begin(&self, id: &BackupId) -> Option<Keeping> {
        let writers = private::folder(&self.folder).and_then(|()| {
            let hashes = NumberWriter::create(&self.path(id, HASHES), &self.belongs(id, HASHES))?;
            Ok((hashes, SortedWriter::create(&self.path(id, INDEX), &self.belongs(id, INDEX))?))
        });
        match writers {
            Ok(writers) => Some(Keeping { shelf: self.clone(), id: id.clone(), writers: Some(writers), place: 0 }),
            Err(error) => {
                unkept(&error);
                self.forget(id);
                None
            }
        }
    }

    /// After the manifest of `id` is durable: the files of all other backups go where its own are `kept`, else what there is of its own.
    pub fn settle(&self, id: &BackupId, kept: bool) {
        self.held().iter().filter(|held| (*held != id) == kept).for_each(|gone| self.forget(gone));
    }

    /// Removes the files of a backup.
    pub fn forget(&self, id: &BackupId) {
        [INDEX, HASHES].iter().for_each(|part| private::forget(&self.path(id, part)));
    }
}

/// A cache that cannot be kept costs no backup.
fn unkept(why: &dyn std::fmt::Display) {
    tracing::warn!("the page hashes of this backup are not kept, so the next one may have to store everything: {why}");
}

/// The cache of a backup that is being taken. What fails here is logged, and its files go: they would fill a disk for nothing. So do those of
/// one that is dropped before [`Keeping::finish`].
pub struct Keeping {
    shelf: Shelf,
    id: BackupId,
    /// `None`: given up.
    writers: Option<(NumberWriter, SortedWriter)>,
    /// Of the next hash.
    place: u64,
}

impl Keeping {
    /// Place of the next hash.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// The next hash, of the next chunk of the file that passes by.
    pub fn hash(&mut self, hash: PageHash) {
        self.place += 1;
        let done = self.writers.as_mut().map_or(Ok(()), |(hashes, _)| hashes.push(hash.0));
        self.settle(done);
    }

    /// The next path, in ascending order.
    pub fn path(&mut self, path: &[u8], known: &Known) {
        let done = self.writers.as_mut().map_or(Ok(()), |(_, index)| index.push(path, &known.encode()));
        self.settle(done);
    }

    fn settle(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.give_up(&error);
        }
    }

    /// Keeps nothing.
    pub fn give_up(&mut self, why: &dyn std::fmt::Display) {
        if self.writers.take().is_some() {
            unkept(why);
            self.shelf.forget(&self.id);
        }
    }

    /// Completes the files; whether they are there now.
    pub fn finish(mut self) -> bool {
        let Some((hashes, index)) = self.writers.take() else { return false };
        let done = index.finish().and_then(|()| hashes.finish());
        if let Err(error) = &done {
            unkept(error);
            self.shelf.forget(&self.id);
        }
        done.is_ok()
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if self.writers.take().is_some() {
            self.shelf.forget(&self.id);
        }
    }
}

/// The page hashes of a complete backup.
pub struct Cache {
    index: SortedFile,
    hashes: NumberFile,
    /// Damage was told.
    refused: bool,
}

impl Cache {
    /// What the backup has at a path; `None` also where that is damaged.
    pub fn get(&mut self, path: &[u8]) -> Option<Known> {
        let found = self.index.get(path).and_then(|found| {
            let known = found.map(|bytes| Known::decode(&bytes));
            known.transpose().map_err(damaged)
        });
        found.map_err(|error| self.refuse(&error)).ok().flatten()
    }

    /// The hash at a place; `None` where it is damaged: then the page counts as changed.
    pub fn hash(&mut self, place: u64) -> Option<PageHash> {
        let found = self.hashes.get(place);
        found.map(PageHash).map_err(|error| self.refuse(&error)).ok()
    }

    fn refuse(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.refused, true) {
            tracing::warn!(%error, "page hashes are damaged: their pages are stored again");
        }
    }
}

pub(super) fn damaged(bad: Malformed) -> Error {
    Error::new(Kind::Corrupt, bad.to_string())
}
