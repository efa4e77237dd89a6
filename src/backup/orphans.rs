//! What interrupted backups stored is used by the next one: a chunk that passes by with the same place, length and hash is named where it stands.
//!
//! ```text
//! dead runs → tombstones → intent names them, durable → plans looked at → frame 0 of their packs → chunk by chunk
//! ```
//! Nothing is taken from memory of a dead run: what is in the repository is enough, since frame 0 of a pack says which page of which file stands where,
//! and its hash. A pack counts only when it is authentic, its object exactly as long as its frames are together, and no check has found it damaged.

#[cfg(test)]
pub(super) mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use tokio::runtime::Handle;

use super::cache::damaged;
use super::orphan_pack::{self, OrphanPack};
use super::places::{PlaceWriter, Places, opened};
use super::record::{PackIndex, Place};
use super::take::blocking;
use crate::archive::Archive;
use crate::disk::scratch::Scratch;
use crate::disk::sorted::{SortedFile, SortedWriter, Sorter};
use crate::error::{Context, Error, Kind, Result};
use crate::seal::content::contents::{Piece, Unit};
use crate::seal::content::event::Spoiled;
use crate::seal::content::map::EntryKind;
use crate::seal::content::varint::{Cursor, put};
use crate::seal::content::{BackupId, Malformed};
use crate::seal::page_hash::{CHUNK, PageHash};
use crate::seal::sealer::FRAME_BYTES;

/// Packs whose lists are read at the same time.
const AT_ONCE: usize = 8;
/// Memory for pieces that are sorted.
const SORTED: usize = 8 << 20;
/// Chunks of a file whose places are in memory at a time: 256 MiB.
const WINDOW: u64 = 1 << 15;
/// What the scratch files belong to.
const BELONGS: &[u8] = b"packs of interrupted backups";

/// What the packs of these backups hold, as far as no expiry may be deleting them and no check has found them damaged: to be called when the intent that names
/// them is durable.
pub async fn usable(archive: &Archive, dead: &[BackupId], scratch: &Arc<Scratch>) -> Option<Orphans> {
    if dead.is_empty() {
        return None;
    }
    let found = async {
        let (plans, verdicts) = tokio::try_join!(archive.list_plans(), archive.verdicts())?;
        // What a backup used of them that is being deleted is in no map any more, so no check says what has become of it.
        let free = |id: &&BackupId| !plans.names(id) && !plans.delete_after(id);
        let (free, spoiled): (Vec<BackupId>, _) = (dead.iter().filter(free).cloned().collect(), verdicts.spoiled());
        let (archive, runtime, scratch) = (archive.clone(), Handle::current(), scratch.clone());
        blocking(move || Orphans::gather(&archive, &runtime, &free, &spoiled, scratch.path())).await
    };
    let used = |orphans: Orphans| (orphans.packs > 0).then_some(orphans);
    found.await.map(used).unwrap_or_else(|error| {
        tracing::warn!(%error, "what interrupted backups stored is not used");
        None
    })
}

/// What the packs of dead runs hold. Memory: a window of one file, a few packs, and the numbers of those that are used.
pub struct Orphans {
    packs: u32,
    /// By path and window, what stands where.
    pieces: SortedFile,
    /// By number, the packs.
    places: Places,
    /// Numbers of those that are used, and their plain bytes.
    used: HashSet<u32>,
    held: u64,
}

/// The file that passes by.
#[derive(Debug, Default)]
pub struct OrphanFile {
    /// `None`: nothing is looked for.
    path: Option<Vec<u8>>,
    /// Number of the window, and what is known in it, ascending; of two runs pieces may overlap.
    window: Option<(u64, Vec<Found>)>,
}

/// A piece of a file in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    pack: u32,
    frame: u32,
    /// In the frame's plaintext.
    offset: u32,
    unit: Unit,
    first: u64,
    count: u64,
    hashes: Vec<PageHash>,
}

impl Orphans {
    /// Reads what the packs of these dead backups hold. They are listed now: call this after the look at plans. `folder`: where lists go that may be
    /// long; they have no names there afterwards. A pack that is cut, cannot be read or is known to be spoiled is passed over, with a word in the log. Blocks.
    pub fn gather(
        archive: &Archive,
        runtime: &Handle,
        dead: &[BackupId],
        spoiled: &Spoiled,
        folder: &Path,
    ) -> Result<Orphans> {
        let mut pieces = Sorter::new(folder, SORTED);
        let mut places = PlaceWriter::new(folder.join("orphan-packs"));
        for id in dead {
            let prefix = format!("{}/packs/{id}", archive.names.root());
            let listed = runtime.block_on(archive.repo.list(&prefix)).context("cannot list an interrupted backup")?;
            let numbered = listed.into_iter().filter_map(|entry| {
                let number = entry.name.rsplit('/').next()?.parse().ok()?;
                (archive.names.pack(id.as_str(), number) == entry.name).then_some((number, entry.size))
            });
            let sound = numbered.filter(|(number, _)| {
                let spoiled = spoiled.has_pack(id.as_str(), *number);
                if spoiled {
                    tracing::warn!(%id, number, "a pack of an interrupted backup is not used: `walrecv verify` found it hurt");
                }
                !spoiled
            });
            let read = |(number, size)| async move { (number, orphan_pack::read(archive, id, number, size).await) };
            let mut reading = futures::stream::iter(sound).map(read).buffer_unordered(AT_ONCE);
            while let Some((number, found)) = runtime.block_on(reading.next()) {
                match found {
                    Ok(pack) => {
                        list(&pack, places.len(), &mut pieces)?;
                        places.push(&pack.place)?;
                    }
                    Err(error) if error.is_transient() => return Err(error),
                    Err(error) => tracing::warn!(%id, number, %error, "a pack of an interrupted backup is not used"),
                }
            }
        }
        let (places, pieces) = (places.finish()?, by_file(pieces, &folder.join("orphan-pieces"))?);
        let packs = places.len();
        tracing::info!(backups = dead.len(), packs, "what interrupted backups stored can be used");
        Ok(Orphans { packs, pieces, places, used: HashSet::new(), held: 0 })
    }

    /// The next file.
    pub fn file(&self, path: &[u8]) -> OrphanFile {
        OrphanFile { path: Some(path.to_vec()), window: None }
    }

    /// Where chunk number `chunk` of the file stands with this hash and length, if it does; `kind` is the file's in the new backup.
    ///
    /// Errors: a list on the local disk that cannot be read.
    pub fn find(
        &mut self,
        file: &mut OrphanFile,
        kind: EntryKind,
        chunk: u64,
        hash: PageHash,
        len: usize,
    ) -> Result<Option<Place>> {
        let (Some(path), Some(unit)) = (&file.path, kind.unit().filter(|_| hash != PageHash::ZERO)) else {
            return Ok(None);
        };
        let number = chunk / WINDOW;
        if file.window.as_ref().is_none_or(|(window, _)| *window != number) {
            let known = self.pieces.get(&key(path, number))?;
            let known = known.map(|bytes| Found::decode_all(&bytes)).transpose().map_err(damaged)?;
            file.window = Some((number, known.unwrap_or_default()));
        }
        let known = file.window.as_ref().map_or(&[][..], |(_, known)| known);
        match spot(known, unit, chunk, hash, len) {
            Some((pack, frame, offset)) => Ok(Some(Place { pack: self.index(pack)?, frame, offset })),
            None => Ok(None),
        }
    }

    /// Among the packs that are used.
    fn index(&mut self, pack: u32) -> Result<PackIndex> {
        if self.used.insert(pack) {
            let lost = || Error::new(Kind::Failed, "a pack of an interrupted backup was lost from a list");
            let place = self.places.get(pack)?.ok_or_else(lost)?;
            self.held += place.frames.iter().skip(1).map(|frame| u64::from(frame.plain_len)).sum::<u64>();
        }
        Ok(PackIndex::Found(pack))
    }

    /// Plain bytes of the packs that are used: what of them is not named is dead space.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The packs, as [`PackIndex::Found`] counts them.
    pub fn places(self) -> Places {
        self.places
    }
}

/// Pack, frame and offset of the chunk.
fn spot(known: &[Found], unit: Unit, chunk: u64, hash: PageHash, len: usize) -> Option<(u32, u32, u32)> {
    let first = chunk * (CHUNK as u64 / unit.bytes());
    let until = known.partition_point(|found| found.first <= first);
    // A piece is in one frame, so those that begin further up do not reach so far.
    let reach = FRAME_BYTES as u64 / unit.bytes();
    let near = known.get(..until)?.iter().rev().take_while(|found| found.first + reach > first);
    near.filter(|found| found.unit == unit).find_map(|found| {
        let within = (first - found.first) * unit.bytes();
        let held = (found.count * unit.bytes()).checked_sub(within)?.min(CHUNK as u64);
        let same = found.hashes.get(within as usize / CHUNK) == Some(&hash) && held == len as u64;
        same.then_some((found.pack, found.frame, found.offset + within as u32))
    })
}

fn key(path: &[u8], window: u64) -> Vec<u8> {
    // No name of a file holds a zero byte.
    [path, &[0], &window.to_be_bytes()].concat()
}

/// Puts the pieces of a pack under their files.
fn list(pack: &OrphanPack, number: u32, to: &mut Sorter) -> Result<()> {
    for (frame, pieces) in (1..).zip(&pack.frames) {
        let mut offset = 0;
        for Piece { path, unit, first, count, hashes } in pieces {
            let (unit, first, count, hashes) = (*unit, *first, *count, hashes.clone());
            let chunk = first.saturating_mul(unit.bytes()) / CHUNK as u64;
            let last = chunk.saturating_add((hashes.len() as u64).saturating_sub(1));
            let bytes = Found { pack: number, frame, offset, unit, first, count, hashes }.encode();
            for window in chunk / WINDOW..=last / WINDOW {
                to.push(&key(path, window), &bytes)?;
            }
            // A frame is 256 KiB at most, as its list was found to say.
            offset = offset.saturating_add(count.saturating_mul(unit.bytes()) as u32);
        }
    }
    Ok(())
}

/// Brings together what is known of each window of each file.
fn by_file(pieces: Sorter, path: &Path) -> Result<SortedFile> {
    let mut writer = SortedWriter::create(path, BELONGS)?;
    let (mut merged, mut current) = (pieces.finish()?, None::<(Vec<u8>, Vec<u8>)>);
    while let Some((key, value)) = merged.next_pair()? {
        match &mut current {
            Some((known, values)) if *known == key => values.extend_from_slice(&value),
            _ => {
                if let Some((key, values)) = current.replace((key, value)) {
                    writer.push(&key, &values)?;
                }
            }
        }
    }
    if let Some((key, values)) = current {
        writer.push(&key, &values)?;
    }
    writer.finish_for_now()?;
    opened(path, BELONGS)
}

/// Opens a file, and takes away its name.
impl Found {
    fn encode(&self) -> Vec<u8> {
        let Found { pack, frame, offset, unit, first, count, hashes } = self;
        let mut out = Vec::new();
        [*pack, *frame, *offset, u32::from(*unit == Unit::Bytes)].iter().for_each(|n| put(&mut out, u64::from(*n)));
        [*first, *count, hashes.len() as u64].iter().for_each(|n| put(&mut out, *n));
        hashes.iter().for_each(|hash| out.extend_from_slice(&hash.0.to_le_bytes()));
        out
    }

    fn decode_all(bytes: &[u8]) -> Result<Vec<Found>, Malformed> {
        let (mut cursor, mut all) = (Cursor::new("pieces of a file", bytes), Vec::new());
        while !cursor.is_empty() {
            let (pack, frame, offset) = (cursor.small()?, cursor.small()?, cursor.small()?);
            let unit = if cursor.small()? == 0 { Unit::Pages } else { Unit::Bytes };
            let (first, count, hashes) = (cursor.number()?, cursor.number()?, cursor.number()?);
            let hashes = cursor.take(hashes.saturating_mul(8))?.as_chunks::<8>().0;
            let hashes = hashes.iter().map(|hash| PageHash(u64::from_le_bytes(*hash))).collect();
            all.push(Found { pack, frame, offset, unit, first, count, hashes });
        }
        all.sort_by_key(|found| found.first);
        Ok(all)
    }
}
