//! Several maps read together: each file once, each page from the newest map that names it.

use super::read::MapReader;
use super::{Entry, EntryKind, Run, Source, WHAT};
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
    maps: Vec<MapReader>,
    heads: Vec<Option<Entry>>,
}

impl Merge {
    pub fn new(maps: &[MapRef]) -> Merge {
        let heads = maps.iter().map(|_| None).collect();
        Merge { maps: maps.iter().map(|m| MapReader::new(m.backup.clone(), m.parts)).collect(), heads }
    }

    /// Gives the part of a map that was asked for.
    pub fn feed(&mut self, map: usize, plain: &[u8]) -> Result<(), Malformed> {
        let problem = || Malformed::new(WHAT, format!("no map {map} was asked for"));
        self.maps.get_mut(map).ok_or_else(problem)?.feed(plain)
    }

    /// The next file, or what is needed before it can be told.
    pub fn step(&mut self) -> Result<Step, Malformed> {
        loop {
            for (map, (reader, head)) in self.maps.iter_mut().zip(&mut self.heads).enumerate() {
                if head.is_some() {
                    continue;
                }
                if let Some(part) = reader.wants_part()? {
                    return Ok(Step::Need { map, part });
                }
                *head = reader.next_entry()?;
            }
            let Some(path) = self.heads.iter().flatten().map(|e| &e.path).min().cloned() else {
                return Ok(Step::End);
            };
            let same = |head: &mut Option<Entry>| head.take_if(|e| e.path == path);
            let layers: Vec<Entry> = self.heads.iter_mut().filter_map(same).collect();
            if let Some(file) = resolve(layers)? {
                return Ok(Step::File(file));
            }
        }
    }
}

/// One path through all maps that name it, newest first; `None` when it is absent.
fn resolve(layers: Vec<Entry>) -> Result<Option<File>, Malformed> {
    let mut layers = layers.into_iter();
    let Some(mut top) = layers.next().filter(|e| e.kind != EntryKind::Absent) else { return Ok(None) };
    let runs = match top.kind.unit() {
        None => Vec::new(),
        Some(unit) => {
            let mut open = Vec::new();
            if top.size > 0 {
                open.push((0, top.size / unit.bytes()));
            }
            let mut found = Vec::new();
            open = cover(open, std::mem::take(&mut top.runs), unit.bytes(), &mut found);
            if !top.complete {
                for layer in layers {
                    // What the file had not had yet when the layer was written, older maps cannot give.
                    let beyond = open.last().is_none_or(|(_, end)| *end > layer.size / unit.bytes());
                    if beyond || layer.kind != top.kind {
                        break;
                    }
                    open = cover(open, layer.runs, unit.bytes(), &mut found);
                    if layer.complete {
                        break;
                    }
                }
            }
            if let Some((first, end)) = open.first() {
                let path = String::from_utf8_lossy(&top.path).into_owned();
                return Err(Malformed::new(WHAT, format!("no map says where {first} to {end} of {path:?} is")));
            }
            found.sort_unstable_by_key(|r: &Run| r.first);
            found
        }
    };
    let Entry { path, kind, size, mode, mtime, link, .. } = top;
    Ok(Some(File { path, kind, size, mode, mtime, link, runs }))
}

/// Cuts what `runs` give out of the open ranges (first, end) into `found`; returns what stays open.
fn cover(open: Vec<(u64, u64)>, runs: Vec<Run>, unit: u64, found: &mut Vec<Run>) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut runs = runs.into_iter().peekable();
    for (mut first, end) in open {
        while let Some(run) = runs.peek() {
            let run_end = run.first + run.count;
            if run_end <= first {
                runs.next();
                continue;
            }
            if run.first >= end {
                break;
            }
            if run.first > first {
                left.push((first, run.first));
            }
            let (from, to) = (run.first.max(first), run_end.min(end));
            found.push(cut(run, from, to, unit));
            first = to;
            if run_end > end {
                break;
            }
            runs.next();
        }
        if first < end {
            left.push((first, end));
        }
    }
    left
}

/// The part of a run from `from` to `to`.
fn cut(run: &Run, from: u64, to: u64, unit: u64) -> Run {
    let source = match &run.source {
        Source::Zero => Source::Zero,
        Source::Pack { pack, frame, offset } => {
            // Inside a frame of at most 256 KiB: it fits 32 bits.
            let offset = offset + ((from - run.first) * unit) as u32;
            Source::Pack { pack: pack.clone(), frame: *frame, offset }
        }
    };
    Run { first: from, count: to - from, source }
}
