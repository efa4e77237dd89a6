//! What the map of a backup says, path by path: what differs from the parent, or everything where there is none.
//!
//! One walk over the parent's paths and the new records together, both in order, so that memory is one file whatever their number. On the way the new
//! cache is told of every path.

use super::cache::{Keeping, Known, damaged};
use super::record::{Packs, Record};
use crate::disk::sorted::{Merged, Pair, Walk};
use crate::error::{Error, Kind, Result};
use crate::seal::content::map::{Entry, EntryKind};

/// The entries of a backup's own map, in order.
pub struct Delta {
    records: Merged,
    parent: Option<Walk>,
    packs: Packs,
    kept: Option<Keeping>,
    /// The next of each.
    new: Option<Pair>,
    old: Option<Pair>,
}

impl Delta {
    /// `parent` has the paths that the records were compared with; `kept` is what the next backup is compared with.
    pub fn new(mut records: Merged, mut parent: Option<Walk>, packs: Packs, kept: Option<Keeping>) -> Result<Delta> {
        let new = records.next_pair()?;
        let old = parent.as_mut().map(Walk::next_pair).transpose()?.flatten();
        Ok(Delta { records, parent, packs, kept, new, old })
    }

    /// The next entry; `None` after the last one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            let (new, old) = (self.new.as_ref().map(|p| &p.0), self.old.as_ref().map(|p| &p.0));
            let gone = match (new, old) {
                (None, None) => return Ok(None),
                (Some(new), Some(old)) => old < new,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            if gone {
                let Some((path, _)) = self.take_old()? else { continue };
                return Ok(Some(absent(path)));
            }
            let entry = self.record()?;
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }

    fn take_old(&mut self) -> Result<Option<Pair>> {
        let next = self.parent.as_mut().map(Walk::next_pair).transpose()?.flatten();
        Ok(std::mem::replace(&mut self.old, next))
    }

    /// The entry of the next record; `None` where the parent's says the same.
    fn record(&mut self) -> Result<Option<Entry>> {
        let next = self.records.next_pair()?;
        let Some((path, bytes)) = std::mem::replace(&mut self.new, next) else { return Ok(None) };
        if self.new.as_ref().is_some_and(|(next, _)| *next == path) {
            let shown = String::from_utf8_lossy(&path).into_owned();
            return Err(
                Error::new(Kind::Corrupt, format!("{shown} was sent twice")).context("the server's base backup")
            );
        }
        let record = Record::decode(path, &bytes)?;
        let old = if self.old.as_ref().is_some_and(|(old, _)| *old == record.path) { self.take_old()? } else { None };
        if !record.mapped {
            return Ok(None);
        }
        let known = record.known();
        if let Some(kept) = &mut self.kept {
            kept.path(&record.path, &known);
        }
        let before = old.map(|(_, bytes)| Known::decode(&bytes)).transpose().map_err(damaged)?;
        let compared = record.base.is_some();
        if compared && before.as_ref().is_none_or(|b| (b.kind, Some(b.size)) != (record.kind, record.base)) {
            let shown = record.shown();
            return Err(Error::new(
                Kind::Failed,
                format!("{shown} was compared with a file that the parent does not have"),
            ));
        }
        let unchanged = before.is_some_and(|before| {
            let content = record.rows.is_empty() && (compared || !record.is_file());
            content && Known { hashes: 0, ..before } == Known { hashes: 0, ..known }
        });
        if unchanged { Ok(None) } else { record.entry(&mut self.packs).map(Some) }
    }

    /// What is kept for the next backup.
    pub fn finish(self) -> Option<Keeping> {
        self.kept
    }
}

fn absent(path: Vec<u8>) -> Entry {
    let (kind, link, runs) = (EntryKind::Absent, Vec::new(), Vec::new());
    Entry { path, kind, size: 0, mode: 0, mtime: 0, link, complete: true, runs }
}
