//! The map of a backup: its own delta, merged with the newest maps of its parent where they are not much longer.

mod plan;

#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use tokio::runtime::Handle;

use super::held::Held;
use super::sealing::Sealing;
use super::upload::Outbox;
use crate::archive::Archive;
use crate::error::{Context, Error, Kind, Result};
use crate::seal::content::Malformed;
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{Entry, LayerStep, Layers, MapWriter, combine};
use crate::seal::header::ObjectKind;

/// Gives one part of a map, opened. Blocks.
pub type ReadPart<'a> = dyn Fn(&MapRef, u32) -> Result<Vec<u8>> + 'a;

/// Reads parts from the repository: requests run on `runtime`, the caller's thread, which must be none of its own, waits for them.
pub fn from_repository(archive: &Archive, runtime: &Handle) -> impl Fn(&MapRef, u32) -> Result<Vec<u8>> + use<> {
    let (archive, runtime) = (archive.clone(), runtime.clone());
    move |map, part| runtime.block_on(archive.map_part(&map.backup, part)).context("a map of the parent")
}

/// The maps of a backup.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// Which its manifest names, newest first.
    pub maps: Vec<MapRef>,
    /// Where the new one is all there is: bytes of files in all packs that it names, before compression.
    pub held: Option<u64>,
}

/// Where maps go, and where those of the parent come from.
pub struct Place<'a> {
    pub sealing: &'a mut Sealing,
    pub outbox: &'a Outbox,
    pub read: &'a ReadPart<'a>,
}

/// Writes the map of a backup and says which maps its manifest names, newest first: the new one, and those of the parent that were not merged into it.
/// `delta`: what differs from the parent, or everything where there is none, in ascending order of paths; `bytes`: how long that is about, as a map
/// ([`estimate`]). Blocks. Memory: one part and one file of each map that is merged, and one part that is written.
///
/// Errors: a map of the parent that is missing or damaged, or a delta that does not fit over them: `Kind::Corrupt`.
pub fn write(
    place: &mut Place<'_>,
    delta: impl IntoIterator<Item = Result<Entry>>,
    bytes: u64,
    parent: &[MapRef],
) -> Result<Written> {
    let lengths: Vec<u64> = parent.iter().map(|m| m.bytes).collect();
    let take = plan::merged(bytes, &lengths);
    let (merged, kept) = parent.split_at(take.min(parent.len()));
    let (mut writing, mut held) = (Writing::new(place.sealing), Held::default());
    let mut older = Older::new(merged);
    let mut delta = delta.into_iter();
    let mut newest = delta.next().transpose()?;
    let mut next = older.next(place)?;
    loop {
        let first = match (&newest, &next) {
            (None, None) => break,
            (Some(new), Some(old)) => new.path.cmp(&old.path),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
        };
        let mut layers = Vec::new();
        if first.is_le() {
            let following = delta.next().transpose()?;
            demand_order(newest.as_ref(), following.as_ref())?;
            layers.extend(std::mem::replace(&mut newest, following));
        }
        if first.is_ge() {
            layers.extend(std::mem::replace(&mut next, older.next(place)?));
        }
        if let Some(entry) = combine(layers, kept.is_empty()).map_err(bad_map)? {
            if kept.is_empty() {
                held.note(&entry.runs, entry.kind.unit().map_or(0, |unit| unit.bytes()));
            }
            writing.push(&entry, place)?;
        }
    }
    let new = writing.finish(place)?;
    let maps = std::iter::once(new).chain(kept.iter().cloned()).collect();
    Ok(Written { maps, held: kept.is_empty().then(|| held.plain()) })
}

/// About how many bytes of a map so many entries and runs take.
pub fn estimate(entries: u64, runs: u64) -> u64 {
    entries.saturating_mul(32).saturating_add(runs.saturating_mul(8))
}

/// Maps hold each path once, in order: a reader refuses anything else, and then it is too late.
fn demand_order(one: Option<&Entry>, next: Option<&Entry>) -> Result<()> {
    match (one, next) {
        (Some(one), Some(next)) if one.path >= next.path => {
            let (one, next) = (String::from_utf8_lossy(&one.path), String::from_utf8_lossy(&next.path));
            Err(Error::new(Kind::Failed, format!("expected {next:?} before {one:?} in the map")))
        }
        _ => Ok(()),
    }
}

fn bad_map(cause: Malformed) -> Error {
    Error::new(Kind::Corrupt, "the maps of the parent cannot be merged")
        .caused_by(cause)
        .hint("Remove the page hashes in state_dir: the next backup then stores everything and needs no older map.")
}

/// The parent's newest maps as one.
struct Older<'a> {
    maps: &'a [MapRef],
    layers: Layers,
}

impl<'a> Older<'a> {
    fn new(maps: &'a [MapRef]) -> Older<'a> {
        Older { maps, layers: Layers::new(maps) }
    }

    fn next(&mut self, place: &Place<'_>) -> Result<Option<Entry>> {
        loop {
            match self.layers.step().map_err(bad_map)? {
                LayerStep::Entry(entry) => return Ok(Some(entry)),
                LayerStep::End => return Ok(None),
                LayerStep::Need { map, part } => {
                    let asked = self.maps.get(map).ok_or_else(|| Error::new(Kind::Failed, format!("no map {map}")))?;
                    self.layers.feed(map, &(place.read)(asked, part)?).map_err(bad_map)?;
                }
            }
        }
    }
}

struct Writing {
    writer: MapWriter,
    parts: u32,
    bytes: u64,
}

impl Writing {
    fn new(sealing: &Sealing) -> Writing {
        Writing { writer: MapWriter::new(sealing.id.clone()), parts: 0, bytes: 0 }
    }

    fn push(&mut self, entry: &Entry, place: &mut Place<'_>) -> Result<()> {
        let full = self.writer.push(entry);
        self.store(full, place)
    }

    fn store(&mut self, parts: Vec<Vec<u8>>, place: &mut Place<'_>) -> Result<()> {
        for plain in parts {
            self.bytes += plain.len() as u64;
            let upload = place.sealing.index(ObjectKind::Map, self.parts, &plain)?;
            self.parts += 1;
            place.outbox.send(upload)?;
        }
        Ok(())
    }

    fn finish(mut self, place: &mut Place<'_>) -> Result<MapRef> {
        let writer = std::mem::replace(&mut self.writer, MapWriter::new(place.sealing.id.clone()));
        self.store(writer.finish(), place)?;
        Ok(MapRef { backup: place.sealing.id.clone(), parts: self.parts, bytes: self.bytes })
    }
}
