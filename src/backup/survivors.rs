//! Space comes back: while a full transfer passes by, what lives in packs that are mostly dead, or in shreds, is stored anew, so that nothing
//! needs the old packs once the backups that did are deleted.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use plan::PLACE;
pub use plan::{Due, Fill, Space, due};

use super::held::Held;
use super::layers::ReadPart;
use crate::error::{Error, Kind, Result};
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{File, Merge, PackPlace, Source, Step};
use crate::seal::content::{BackupId, Malformed};

/// Which pages of the parent are stored anew though they have not changed. Memory: a bit for each page of the files that have any (16 MiB for 1 TiB),
/// and some 30 bytes for each such file.
pub struct Survivors {
    /// Hash of the path, and where its bits begin. Two paths of one hash share the bits of one of them: then a page is stored
    /// once more, or once less; either way the map says where it is.
    index: Vec<(u64, usize)>,
    bits: Vec<u8>,
    /// Whose packs the parent's maps name, interrupted backups among them: where a chunk stands in these, it has not left them.
    owners: BTreeSet<BackupId>,
    /// Plain bytes that are to be stored anew, as the parent has them.
    pub moving: u64,
}

/// Packs that are left, by backup.
type Left = BTreeMap<BackupId, BTreeSet<u32>>;

impl Survivors {
    /// Reads the parent's maps, newest first, for who lives in packs that are left; `held` are all that it needs. `shreds`: also what lives in windows of
    /// 256 KiB that are cut into more than eight pieces ([`Due::shreds`]). Blocks.
    ///
    /// Errors: maps that are missing or damaged are `Kind::Corrupt`.
    pub fn find(maps: &[MapRef], read: &ReadPart<'_>, held: &Held, shreds: bool) -> Result<Survivors> {
        let fills: Vec<Fill> = held.packs().map(|(_, _, pack)| pack.fill).collect();
        let mut left = Left::new();
        for ((backup, number, _), leave) in held.packs().zip(plan::leave(&fills)) {
            if leave {
                left.entry(backup.clone()).or_default().insert(number);
            }
        }
        let owners = held.backups().cloned().collect();
        let mut found = Survivors { index: Vec::new(), bits: Vec::new(), owners, moving: 0 };
        walk(maps, read, |file| found.add(&file, &left, shreds))?;
        found.index.sort_unstable();
        let leaving: usize = left.values().map(BTreeSet::len).sum();
        tracing::info!(packs = fills.len(), leaving, moving = found.moving, "looked for space that can come back");
        Ok(found)
    }

    /// Notes the places of a file that are stored anew.
    fn add(&mut self, file: &File, left: &Left, shreds: bool) {
        let Some(unit) = file.kind.unit().map(|u| u.bytes()) else { return };
        let left = |pack: &PackPlace| left.get(&pack.backup).is_some_and(|left| left.contains(&pack.number));
        let shreds = if shreds { plan::shreds(&file.runs, unit) } else { BTreeSet::new() };
        let mut bits = Vec::new();
        for run in &file.runs {
            let Source::Pack { pack, .. } = &run.source else { continue };
            let (all, places) = (left(pack), plan::places(run, unit));
            let moving = places.filter(|place| all || shreds.contains(&(place / plan::WINDOW)));
            moving.for_each(|place| self.moving += set(&mut bits, place));
        }
        if !bits.is_empty() {
            self.index.push((hash(&file.path), self.bits.len()));
            self.bits.extend_from_slice(&(bits.len() as u32).to_le_bytes());
            self.bits.append(&mut bits);
        }
    }

    /// Those interrupted backups that the parent has nothing of. In packs that it names already nothing may be found: a chunk would stay in one that is to
    /// be left, or the pack, which is counted among those that stay, would be counted twice.
    pub fn others(&self, dead: &[BackupId]) -> Vec<BackupId> {
        dead.iter().filter(|id| !self.owners.contains(id)).cloned().collect()
    }

    /// What of the file `path` is stored anew.
    pub fn of(&self, path: &[u8]) -> Moves<'_> {
        let hash = hash(path);
        let found = self.index.partition_point(|(known, _)| *known < hash);
        let bits = self.index.get(found).filter(|(known, _)| *known == hash).and_then(|(_, at)| {
            let (len, rest) = self.bits.get(*at..)?.split_first_chunk()?;
            rest.get(..u32::from_le_bytes(*len) as usize)
        });
        Moves { bits: bits.unwrap_or_default() }
    }
}

/// Places of one file that are stored anew.
#[derive(Clone, Copy, Debug)]
pub struct Moves<'a> {
    bits: &'a [u8],
}

impl<'a> Moves<'a> {
    /// Of bits that were copied from [`Moves::bits`].
    pub fn of(bits: &'a [u8]) -> Moves<'a> {
        Moves { bits }
    }

    pub fn bits(&self) -> &'a [u8] {
        self.bits
    }

    /// Whether the page, or chunk of 8 KiB, with this number is.
    pub fn has(&self, place: u64) -> bool {
        let byte = usize::try_from(place / 8).ok().and_then(|at| self.bits.get(at));
        byte.is_some_and(|byte| byte & 1 << (place % 8) != 0)
    }
}

fn hash(path: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// Sets a bit; the bytes that move for it.
fn set(bits: &mut Vec<u8>, place: u64) -> u64 {
    let (byte, bit) = ((place / 8) as usize, 1 << (place % 8));
    if bits.len() <= byte {
        bits.resize(byte + 1, 0);
    }
    let known = bits.get_mut(byte).is_none_or(|byte| std::mem::replace(byte, *byte | bit) & bit != 0);
    if known { 0 } else { PLACE }
}

/// Every file of a backup, in order.
fn walk(maps: &[MapRef], read: &ReadPart<'_>, mut each: impl FnMut(File)) -> Result<()> {
    let bad = |cause: Malformed| Error::new(Kind::Corrupt, "the maps of the parent cannot be read").caused_by(cause);
    let mut merge = Merge::new(maps);
    loop {
        match merge.step().map_err(bad)? {
            Step::File(file) => each(file),
            Step::End => return Ok(()),
            Step::Need { map, part } => {
                let asked = maps.get(map).ok_or_else(|| Error::new(Kind::Failed, format!("no map {map}")))?;
                merge.feed(map, &read(asked, part)?).map_err(bad)?;
            }
        }
    }
}
