//! Space comes back: while a full transfer passes by, what lives in packs that are mostly dead, or in shreds, is stored anew, so that nothing
//! needs the old packs once the backups that did are deleted.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

pub use plan::{Due, due};
use plan::{Fill, PLACE};

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
    /// Plain bytes of all packs that something still lives in afterwards, those of the new backup not counted.
    pub staying: u64,
    /// Plain bytes that are to be stored anew, as the parent has them.
    pub moving: u64,
}

type Packs = BTreeMap<(BackupId, u32), (Fill, bool)>;

impl Survivors {
    /// Reads the parent's maps, newest first, twice: how full each pack is, then who lives in those that are left. `shreds`: also what
    /// lives in windows of 256 KiB that are cut into more than eight pieces ([`Due::shreds`]). Blocks.
    ///
    /// Errors: maps that are missing or damaged are `Kind::Corrupt`.
    pub fn find(maps: &[MapRef], read: &ReadPart<'_>, shreds: bool) -> Result<Survivors> {
        let mut packs = Packs::new();
        walk(maps, read, |file| {
            let unit = file.kind.unit().map_or(0, |u| u.bytes());
            for run in &file.runs {
                let Source::Pack { pack, .. } = &run.source else { continue };
                let (fill, _) = packs.entry((pack.backup.clone(), pack.number)).or_insert_with(|| (whole(pack), false));
                fill.live += run.count * unit;
            }
        })?;
        let fills: Vec<Fill> = packs.values().map(|(fill, _)| *fill).collect();
        for ((_, left), leave) in packs.values_mut().zip(plan::leave(&fills)) {
            *left = leave;
        }
        let staying = packs.values().filter(|(_, left)| !left).map(|(fill, _)| fill.plain).sum();
        let owners = packs.keys().map(|(backup, _)| backup.clone()).collect();
        let mut found = Survivors { index: Vec::new(), bits: Vec::new(), owners, staying, moving: 0 };
        walk(maps, read, |file| found.add(&file, &packs, shreds))?;
        found.index.sort_unstable();
        tracing::info!(packs = packs.len(), staying, moving = found.moving, "looked for space that can come back");
        Ok(found)
    }

    /// Notes the places of a file that are stored anew.
    fn add(&mut self, file: &File, packs: &Packs, shreds: bool) {
        let Some(unit) = file.kind.unit().map(|u| u.bytes()) else { return };
        let left = |pack: &PackPlace| packs.get(&(pack.backup.clone(), pack.number)).is_some_and(|(_, left)| *left);
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

/// A pack of which nothing is known to live.
fn whole(pack: &PackPlace) -> Fill {
    Fill { live: 0, plain: pack.frames.iter().skip(1).map(|frame| u64::from(frame.plain_len)).sum() }
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
