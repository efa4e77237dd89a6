//! Several maps read together: each file once, each page from the newest map that names it.

use super::read::MapReader;
use super::{Entry, EntryKind, Run, combine};
use crate::seal::content::Malformed;
use crate::seal::content::manifest::MapRef;

/// One file, directory or link of a backup, in ascending order of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: Vec<u8>,
    /// Never [`EntryKind::Absent`].
    pub kind: EntryKind,
    pub size: u64,
    pub mode: u32,
    pub mtime: i64,
    pub link: Vec<u8>,
    /// Sorted, without gaps or overlaps, from the first byte to the last.
    pub runs: Vec<Run>,
}

/// What a [`Merge`] says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch and open this object and give its plaintext to [`Merge::feed`].
    Need {
        /// Index in the manifest's list of maps.
        map: usize,
        part: u32,
    },
    File(File),
    End,
}

/// Reads the maps of a manifest together, newest first. It does no reading of objects: it says which part it needs. Memory: one part and one
/// file of each map.
pub struct Merge {
    layers: Layers,
}

impl Merge {
    pub fn new(maps: &[MapRef]) -> Merge {
        Merge { layers: Layers { oldest: true, ..Layers::new(maps) } }
    }

    /// Gives the part of a map that was asked for.
    pub fn feed(&mut self, map: usize, plain: &[u8]) -> Result<(), Malformed> {
        self.layers.feed(map, plain)
    }

    /// The next file, or what is needed before it can be told.
    pub fn step(&mut self) -> Result<Step, Malformed> {
        Ok(match self.layers.step()? {
            LayerStep::Need { map, part } => Step::Need { map, part },
            LayerStep::End => Step::End,
            LayerStep::Entry(Entry { path, kind, size, mode, mtime, link, runs, complete: _ }) => {
                Step::File(File { path, kind, size, mode, mtime, link, runs })
            }
        })
    }
}

/// What [`Layers`] say next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerStep {
    /// As [`Step::Need`], for [`Layers::feed`].
    Need {
        map: usize,
        part: u32,
    },
    Entry(Entry),
    End,
}

/// Makes one map of several adjacent ones, newest first: its entries say over any older maps what they all say there. Memory: as [`Merge`].
pub struct Layers {
    maps: Vec<MapReader>,
    heads: Vec<Option<Entry>>,
    oldest: bool,
}

impl Layers {
    /// Maps below which others may lie; [`combine()`] can still say that there are none.
    pub fn new(maps: &[MapRef]) -> Layers {
        let heads = maps.iter().map(|_| None).collect();
        let maps = maps.iter().map(|m| MapReader::new(m.backup.clone(), m.parts)).collect();
        Layers { maps, heads, oldest: false }
    }

    /// Gives the part of a map that was asked for.
    pub fn feed(&mut self, map: usize, plain: &[u8]) -> Result<(), Malformed> {
        let problem = || Malformed::new(super::WHAT, format!("no map {map} was asked for"));
        self.maps.get_mut(map).ok_or_else(problem)?.feed(plain)
    }

    /// The next entry, or what is needed before it can be told.
    pub fn step(&mut self) -> Result<LayerStep, Malformed> {
        loop {
            for (map, (reader, head)) in self.maps.iter_mut().zip(&mut self.heads).enumerate() {
                if head.is_some() {
                    continue;
                }
                if let Some(part) = reader.wants_part()? {
                    return Ok(LayerStep::Need { map, part });
                }
                *head = reader.next_entry()?;
            }
            let Some(path) = self.heads.iter().flatten().map(|e| &e.path).min().cloned() else {
                return Ok(LayerStep::End);
            };
            let same = |head: &mut Option<Entry>| head.take_if(|e| e.path == path);
            let layers: Vec<Entry> = self.heads.iter_mut().filter_map(same).collect();
            if let Some(entry) = combine(layers, self.oldest)? {
                return Ok(LayerStep::Entry(entry));
            }
        }
    }
}
