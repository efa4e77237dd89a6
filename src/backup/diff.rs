//! What becomes of each chunk of each file, compared with the same place in the parent, and in what interrupted backups stored.
//!
//! [`Diff::begin`] says whether the parent has such a file; [`Diff::judge`] what becomes of its next chunk; [`Diff::unsent`] and [`Diff::zeros`] pass over
//! chunks that an incremental transfer leaves out. What is decided is written down in the file's [`Record`](super::record::Record), nowhere else. Every chunk
//! of every file leaves its hash for the next backup, whatever became of it.
//!
//! Files, maps and hashes are those of one backup. What a file of the parent is, its maps say; the cache only adds hashes, and where it
//! says something else of a file it has none.

use crate::error::Result;
use crate::seal::content::map::EntryKind;
use crate::seal::page_hash::{CHUNK, PageHash, PageHasher};

use super::cache::{Cache, Keeping, Known};
use super::orphans::{OrphanFile, Orphans};
use super::parent_files::ParentFiles;
use super::places::Places;
use super::record::Place;
use super::survivors::{Moves, Survivors};

/// What becomes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is where the parent has it (which may be: nowhere, since it is zero).
    Parent,
    /// It is zero, and was not so in the parent.
    Zero,
    /// An interrupted backup has stored it there.
    Found(Place),
    /// It is stored.
    Store(PageHash),
    /// It is stored, though the parent has it too: what it lives in there shall be left.
    Move(PageHash),
}

/// The parent of a backup.
pub struct Parent {
    pub files: ParentFiles,
    /// `None`: its page hashes are not here.
    pub cache: Option<Cache>,
    /// What of it is stored anew all the same.
    pub survivors: Option<Survivors>,
}

/// Compares files with the parent's and keeps their hashes.
pub struct Diff {
    hasher: PageHasher,
    parent: Option<Parent>,
    /// What interrupted backups stored.
    orphans: Option<Orphans>,
    /// `None`: there is no place for hashes.
    kept: Option<Keeping>,
}

/// The file that passes by.
#[derive(Debug)]
pub struct Passing {
    pub size: u64,
    /// Size of the parent's file that it is compared with, or lies over.
    pub base: Option<u64>,
    /// Place of the hashes of that file.
    known: Option<u64>,
    /// Place of its first hash among those that are kept.
    pub hashes: u64,
    /// Number of the next chunk.
    pub next: u64,
    /// What interrupted backups stored of it.
    orphan: OrphanFile,
    /// Which chunks are stored anew though they have not changed.
    moves: Vec<u8>,
}

/// What is left when all files have passed.
pub struct Judged {
    /// The parent's files.
    pub parent: Option<ParentFiles>,
    /// The hashes that were kept.
    pub kept: Option<Keeping>,
    /// The packs of interrupted backups.
    pub found: Places,
}

impl Diff {
    /// Without a parent everything is stored.
    pub fn new(hasher: PageHasher, parent: Option<Parent>, kept: Option<Keeping>) -> Diff {
        Diff { hasher, parent, orphans: None, kept }
    }

    /// What is not the parent's is looked for in the packs of interrupted backups.
    pub fn beside(self, orphans: Option<Orphans>) -> Diff {
        Diff { orphans, ..self }
    }

    /// A file that is sent whole.
    pub fn begin(&mut self, path: &[u8], kind: EntryKind, size: u64) -> Result<Passing> {
        let mut passing = self.passing(path, kind)?;
        // Without hashes nothing of it can be found to be the parent's.
        passing.base = passing.base.filter(|_| passing.known.is_some());
        passing.size = size;
        Ok(passing)
    }

    /// A file of pages of which only some are sent, its size not known yet. `None`: the parent has no such file.
    pub fn begin_increment(&mut self, path: &[u8]) -> Result<Option<Passing>> {
        let passing = self.passing(path, EntryKind::Pages)?;
        Ok(Some(passing).filter(|passing| passing.base.is_some()))
    }

    fn passing(&mut self, path: &[u8], kind: EntryKind) -> Result<Passing> {
        let hashes = self.kept.as_ref().map_or(0, Keeping::place);
        let orphan = self.orphans.as_ref().map(|orphans| orphans.file(path)).unwrap_or_default();
        let nothing = Passing { size: 0, base: None, known: None, hashes, next: 0, orphan, moves: Vec::new() };
        let Some(Parent { files, cache, survivors }) = &mut self.parent else { return Ok(nothing) };
        if kind.unit().is_none() {
            return Ok(nothing);
        }
        let Some(base) = files.get(path)?.filter(|known| known.kind == kind) else { return Ok(nothing) };
        let hashed = cache.as_mut().and_then(|cache| cache.get(path));
        let same = |hashed: &Known| (hashed.kind, hashed.size) == (base.kind, base.size);
        let moves = survivors.as_ref().map_or(Vec::new(), |survivors| survivors.of(path).bits().to_vec());
        Ok(Passing { base: Some(base.size), known: hashed.filter(same).map(|known| known.hashes), moves, ..nothing })
    }

    /// Looks at the next chunk of a file of this kind; `zero` says that all its bytes are.
    pub fn judge(&mut self, file: &mut Passing, kind: EntryKind, chunk: &[u8], zero: bool) -> Fate {
        let number = file.next;
        file.next += 1;
        let hash = if zero { PageHash::ZERO } else { self.hasher.hash(chunk) };
        self.keep(hash);
        let same = self.before(file, number) == Some(hash);
        if zero {
            return if same { Fate::Parent } else { Fate::Zero };
        }
        if same && !Moves::of(&file.moves).has(number) {
            return Fate::Parent;
        }
        match self.found(file, kind, number, hash, chunk.len()) {
            Some(place) => Fate::Found(place),
            None if same => Fate::Move(hash),
            None => Fate::Store(hash),
        }
    }

    /// Where an interrupted backup has stored a chunk.
    fn found(&mut self, file: &mut Passing, kind: EntryKind, number: u64, hash: PageHash, len: usize) -> Option<Place> {
        let looked = self.orphans.as_mut()?.find(&mut file.orphan, kind, number, hash, len);
        looked.unwrap_or_else(|error| {
            tracing::warn!(%error, "what an interrupted backup stored of a file is not used");
            file.orphan = OrphanFile::default();
            None
        })
    }

    /// Passes over chunks that are the parent's, unseen; how many of them are known to be zero.
    pub fn unsent(&mut self, file: &mut Passing, count: u64) -> u64 {
        let mut zero = 0;
        for _ in 0..count {
            let hash = self.before(file, file.next);
            file.next += 1;
            zero += u64::from(hash == Some(PageHash::ZERO));
            match hash {
                Some(hash) => self.keep(hash),
                None => self.keep_nothing("those of the backup before are not all here"),
            }
        }
        zero
    }

    /// Passes over chunks that nobody has: they are zero.
    pub fn zeros(&mut self, file: &mut Passing, count: u64) {
        file.next += count;
        (0..count).for_each(|_| self.keep(PageHash::ZERO));
    }

    /// The hash of the parent's chunk at this place, where it has one of the same length.
    fn before(&mut self, file: &Passing, number: u64) -> Option<PageHash> {
        let (base, place) = (file.base?, file.known?);
        let own = length(file.size, number)?;
        if length(base, number) != Some(own) {
            return None;
        }
        self.parent.as_mut()?.cache.as_mut()?.hash(place.checked_add(number)?)
    }

    fn keep(&mut self, hash: PageHash) {
        if let Some(kept) = &mut self.kept {
            kept.hash(hash);
        }
    }

    fn keep_nothing(&mut self, why: &str) {
        if let Some(kept) = &mut self.kept {
            kept.give_up(&why);
        }
    }

    /// Plain bytes of the packs of interrupted backups that are used.
    pub fn held(&self) -> u64 {
        self.orphans.as_ref().map_or(0, Orphans::held)
    }

    pub fn finish(self) -> Judged {
        let found = self.orphans.map(Orphans::places).unwrap_or_default();
        Judged { parent: self.parent.map(|parent| parent.files), kept: self.kept, found }
    }
}

/// Bytes of a chunk of a file; `None` behind its end.
fn length(size: u64, number: u64) -> Option<u64> {
    let left = size.checked_sub(number.checked_mul(CHUNK as u64)?)?;
    (left > 0).then_some(left.min(CHUNK as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_chunk_is_short() {
        assert_eq!(length(0, 0), None);
        assert_eq!(length(1, 0), Some(1));
        assert_eq!(length(8192, 0), Some(8192));
        assert_eq!(length(8192, 1), None);
        assert_eq!(length(8193, 1), Some(1));
        assert_eq!(length(u64::MAX, u64::MAX), None);
    }
}
