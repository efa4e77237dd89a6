//! Maps: each read once from its first part to its last, then together as each backup reads them.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, StreamExt};

use super::backups::Shelf;
use super::bits::Bits;
use super::census::Census;
use super::look::{Look, Trouble};
use super::packs::Bad;
use super::runs::Window;
use super::{Flaw, Stage};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Manifest, MapRef};
use crate::seal::content::map::{Entry, File, MapReader, Merge, Source, Step};
use crate::seal::header::ObjectKind;

/// Plain bytes of map parts that are kept for the next backup that names them.
const KEPT: usize = 64 << 20;
const EXPECTED: &str = "a part of a map";

/// A map, and the backups that name it.
struct Named {
    map: MapRef,
    by: Bits,
}

/// What one map said.
struct Walked {
    map: MapRef,
    whole: bool,
    /// Every byte of every file is in it: no other map is asked.
    alone: bool,
    /// Packs that it takes bytes from.
    packs: HashSet<(BackupId, u32)>,
}

/// The maps that are named, each once.
fn named(shelf: &Shelf) -> Vec<Named> {
    let mut maps: BTreeMap<(BackupId, u32), Bits> = BTreeMap::new();
    for (number, manifest) in shelf.manifests.iter().enumerate() {
        for map in &manifest.maps {
            maps.entry((map.backup.clone(), map.parts)).or_default().set(number);
        }
    }
    let of = |shelf: &Shelf, backup: &BackupId, parts: u32| {
        let mut refs = shelf.manifests.iter().flat_map(|manifest| &manifest.maps);
        refs.find(|map| map.backup == *backup && map.parts == parts).cloned()
    };
    maps.into_iter().filter_map(|((backup, parts), by)| Some(Named { map: of(shelf, &backup, parts)?, by })).collect()
}

/// Reads all maps; what they name and what backups need.
pub async fn walk(look: &Look<'_>, shelf: &Shelf) -> Census {
    let census = Mutex::new(Census::default());
    let all = named(shelf);
    let (total, done) = (all.len() as u64, AtomicU64::new(0));
    let one = |named: Named| async {
        let walked = one(look, shelf, &census, named).await;
        look.tell(Stage::Maps, done.fetch_add(1, Ordering::Relaxed) + 1, total);
        walked
    };
    let walked: Vec<Walked> = stream::iter(all).map(one).buffer_unordered(look.options.jobs.max(1)).collect().await;
    let mut census = census.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut parts = Parts::default();
    for (number, manifest) in shelf.manifests.iter().enumerate() {
        let of = |map: &MapRef| walked.iter().find(|walked| walked.map == *map);
        let by = Bits::of(number);
        match manifest.maps.as_slice() {
            [only] if of(only).is_some_and(|walked| walked.whole && walked.alone) => {
                for (backup, pack) in of(only).into_iter().flat_map(|walked| &walked.packs) {
                    census.need(backup, *pack, &by);
                }
            }
            maps if maps.iter().all(|map| of(map).is_some_and(|walked| walked.whole)) => {
                needs(look, manifest, number, &mut census, &mut parts).await;
            }
            _ => census.need_all_named(number),
        }
    }
    census
}

/// One map by itself.
async fn one(look: &Look<'_>, shelf: &Shelf, census: &Mutex<Census>, named: Named) -> Walked {
    let Named { map, by } = named;
    let mut reading = Reading::new(look, shelf, &map, &by);
    let mut walked = Walked { map: map.clone(), whole: true, alone: true, packs: HashSet::new() };
    // Each part tells of its packs anew.
    let (mut part, mut seen) = (0, HashSet::new());
    while let Some(entry) = reading.next().await {
        if reading.fed != part {
            part = reading.fed;
            seen.clear();
        }
        walked.alone &= covers(&entry);
        for run in &entry.runs {
            let Source::Pack { pack, .. } = &run.source else { continue };
            let key = (pack.backup.clone(), pack.number);
            if !seen.insert(key.clone()) {
                continue;
            }
            walked.packs.insert(key);
            let mut census = census.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(contradiction) = census.name(look.archive.keys.secret(), pack, &by) {
                reading.blame(Trouble::damaged(contradiction));
            }
        }
    }
    walked.whole = reading.whole;
    walked
}

/// Whether an entry tells where all bytes of its file are.
fn covers(entry: &Entry) -> bool {
    let Some(unit) = entry.kind.unit() else { return true };
    entry.runs.iter().map(|run| run.count).sum::<u64>() == entry.size / unit.bytes()
}

/// One map, entry by entry; problems are noted on the way.
struct Reading<'a> {
    look: &'a Look<'a>,
    shelf: &'a Shelf,
    map: &'a MapRef,
    by: &'a Bits,
    reader: MapReader,
    /// Parts that were read.
    fed: u32,
    whole: bool,
    /// It was read before: what is wrong with it is known.
    quiet: bool,
}

impl<'a> Reading<'a> {
    fn new(look: &'a Look<'a>, shelf: &'a Shelf, map: &'a MapRef, by: &'a Bits) -> Reading<'a> {
        let reader = MapReader::new(map.backup.clone(), map.parts);
        Reading { look, shelf, map, by, reader, fed: 0, whole: true, quiet: false }
    }

    fn name(&self, part: u32) -> String {
        self.look.archive.names.map(self.map.backup.as_str(), part)
    }

    /// Notes trouble with the part that was read last.
    fn blame(&mut self, trouble: Trouble) {
        self.whole = false;
        let name = self.name(self.fed.saturating_sub(1));
        self.look.blame(&name, EXPECTED, trouble, self.shelf.names(self.by));
    }

    /// The next entry; `None` at the end, or after a problem with the map itself.
    async fn next(&mut self) -> Option<Entry> {
        loop {
            let wanted = match self.reader.wants_part() {
                Ok(wanted) => wanted,
                Err(malformed) => return self.broken(malformed.into()).await,
            };
            if let Some(part) = wanted {
                let name = self.name(part);
                self.fed = part + 1;
                let plain = match self.look.index(&name, ObjectKind::Map, part).await {
                    Ok(plain) => plain,
                    Err(trouble) => return self.broken(trouble).await,
                };
                if let Err(malformed) = self.reader.feed(&plain) {
                    return self.broken(malformed.into()).await;
                }
                self.look.count(|checked| checked.map_parts += u64::from(!self.quiet));
            }
            match self.reader.next_entry() {
                Ok(None) if wanted.is_some() => {}
                Ok(entry) => return entry,
                Err(malformed) => return self.broken(malformed.into()).await,
            }
        }
    }

    /// What follows can only be opened, not understood: its packs are named in it, but not where the entry before ended.
    async fn broken(&mut self, trouble: Trouble) -> Option<Entry> {
        if self.quiet && trouble.flaw != Flaw::Unreadable {
            return None;
        }
        self.blame(trouble);
        if self.quiet {
            return None;
        }
        for part in self.fed..self.map.parts {
            let name = self.name(part);
            match self.look.index(&name, ObjectKind::Map, part).await {
                Ok(_) => self.look.count(|checked| checked.map_parts += 1),
                Err(trouble) => self.look.blame(&name, EXPECTED, trouble, self.shelf.names(self.by)),
            }
        }
        self.fed = self.map.parts;
        None
    }
}

/// A part of a map, by the backup that wrote it and its number.
type Kept = ((BackupId, u32), Arc<Vec<u8>>);

/// Parts of maps that several backups name: the newest are kept.
#[derive(Default)]
pub struct Parts {
    kept: VecDeque<Kept>,
    bytes: usize,
}

impl Parts {
    async fn get(&mut self, look: &Look<'_>, map: &MapRef, part: u32) -> Result<Arc<Vec<u8>>, Trouble> {
        let key = (map.backup.clone(), part);
        if let Some((_, plain)) = self.kept.iter().find(|(kept, _)| *kept == key) {
            return Ok(plain.clone());
        }
        let plain =
            Arc::new(look.index(&look.archive.names.map(map.backup.as_str(), part), ObjectKind::Map, part).await?);
        self.bytes += plain.len();
        self.kept.push_back((key, plain.clone()));
        while self.bytes > KEPT {
            let Some((_, oldest)) = self.kept.pop_front() else { break };
            self.bytes -= oldest.len();
        }
        Ok(plain)
    }
}

/// Reads the maps of one backup together, as a restore does, file by file.
pub async fn resolve(
    look: &Look<'_>,
    manifest: &Manifest,
    parts: &mut Parts,
    each: &mut (dyn FnMut(&File) + Send),
) -> Result<(), Trouble> {
    let mut merge = Merge::new(&manifest.maps);
    loop {
        match merge.step()? {
            Step::End => return Ok(()),
            Step::File(file) => each(&file),
            Step::Need { map, part } => {
                let of = manifest.maps.get(map).ok_or_else(|| Trouble::damaged("a map that is not there"))?;
                merge.feed(map, &parts.get(look, of, part).await?)?;
            }
        }
    }
}

/// Notes which packs a backup needs.
async fn needs(look: &Look<'_>, manifest: &Manifest, number: usize, census: &mut Census, parts: &mut Parts) {
    let mut packs: HashSet<(BackupId, u32)> = HashSet::new();
    let mut each = |file: &File| {
        let sources = file.runs.iter().filter_map(|run| match &run.source {
            Source::Pack { pack, .. } => Some((pack.backup.clone(), pack.number)),
            Source::Zero => None,
        });
        packs.extend(sources);
    };
    match resolve(look, manifest, parts, &mut each).await {
        Ok(()) => packs.iter().for_each(|(backup, pack)| census.need(backup, *pack, &Bits::of(number))),
        Err(trouble) => {
            census.need_all_named(number);
            let name = look.archive.names.backup(manifest.id.as_str());
            let hurts = [manifest.id.to_string()].into();
            look.blame(&name, "maps that together say where every page is", trouble, hurts);
        }
    }
}

/// Deep: what maps say of a place in a pack, against what the pack's contents list says stands there. `bad` are packs that are known not to open.
pub async fn compare_runs(look: &Look<'_>, shelf: &Shelf, bad: &Bad) {
    let all = named(shelf);
    let total = all.len() as u64;
    for (done, Named { map, by }) in all.iter().enumerate() {
        let mut reading = Reading { quiet: true, ..Reading::new(look, shelf, map, by) };
        let mut window = Window::new(look, map, shelf.names(by), bad);
        while let Some(entry) = reading.next().await {
            // The entry may have begun in the part before: near enough to find it.
            window.add(reading.fed.saturating_sub(1), entry).await;
        }
        window.flush().await;
        look.tell(Stage::Runs, done as u64 + 1, total);
    }
}
