//! A map says that a page of a file stands at a place of a pack; the pack's own contents list says what stands there. They were written by different code at
//! different times, under one authentication each: where they agree, no page comes from a wrong place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::look::{Look, Trouble};
use super::packs::Bad;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::contents::Contents;
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{Entry, PackPlace, Source};
use crate::seal::header::ObjectKind;
use crate::seal::opener::Opener;

/// Runs that are gathered before contents lists are read: about 24 MiB of memory.
const WINDOW: usize = 1 << 19;

/// A run of a map: bytes of a file at a place in a pack.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Number in the window's list of paths.
    path: u32,
    /// Part of the map that says it.
    part: u32,
    /// Byte offset in the file.
    pub first: u64,
    /// Bytes.
    pub len: u64,
    pub frame: u32,
    /// Byte offset in the frame's plaintext.
    pub offset: u32,
}

/// Runs of one map, by pack.
pub struct Window<'a> {
    look: &'a Look<'a>,
    map: &'a MapRef,
    hurts: BTreeSet<String>,
    bad: &'a Bad,
    paths: Vec<Vec<u8>>,
    packs: BTreeMap<(BackupId, u32), (Arc<PackPlace>, Vec<At>)>,
    runs: usize,
}

impl<'a> Window<'a> {
    pub fn new(look: &'a Look<'a>, map: &'a MapRef, hurts: BTreeSet<String>, bad: &'a Bad) -> Window<'a> {
        Window { look, map, hurts, bad, paths: Vec::new(), packs: BTreeMap::new(), runs: 0 }
    }

    /// Adds the runs of an entry that was read from `part`.
    pub async fn add(&mut self, part: u32, entry: Entry) {
        let Some(unit) = entry.kind.unit() else { return };
        let path = self.paths.len() as u32;
        self.paths.push(entry.path);
        for run in entry.runs {
            let Source::Pack { pack, frame, offset } = run.source else { continue };
            let key = (pack.backup.clone(), pack.number);
            if self.bad.contains(&key) {
                continue;
            }
            let (first, len) = (run.first * unit.bytes(), run.count * unit.bytes());
            let (_, runs) = self.packs.entry(key).or_insert_with(|| (pack, Vec::new()));
            runs.push(At { path, part, first, len, frame, offset });
            self.runs += 1;
        }
        if self.runs >= WINDOW {
            self.flush().await;
        }
    }

    /// Compares what was gathered.
    pub async fn flush(&mut self) {
        let (packs, paths) = (std::mem::take(&mut self.packs), std::mem::take(&mut self.paths));
        let runs = std::mem::take(&mut self.runs) as u64;
        let this = &*self;
        let paths = &paths;
        let jobs = packs.into_values().map(|(pack, runs)| this.pack(pack, runs, paths));
        stream::iter(jobs).buffer_unordered(self.look.options.jobs.max(1)).collect::<Vec<()>>().await;
        self.look.count(|checked| checked.runs += runs);
    }

    async fn pack(&self, pack: Arc<PackPlace>, runs: Vec<At>, paths: &[Vec<u8>]) {
        let names = &self.look.archive.names;
        let contents = match self.contents(&pack).await {
            Ok(contents) => contents,
            Err(trouble) => {
                let name = names.pack(pack.backup.as_str(), pack.number);
                return self.look.blame(&name, "the contents list of a pack", trouble, self.hurts.clone());
            }
        };
        let path = |at: &At| paths.get(at.path as usize).map_or(&b""[..], Vec::as_slice);
        let mut wrong = runs.iter().filter_map(|at| Some((at, stands(&contents, at, path(at)).err()?)));
        let Some((at, found)) = wrong.next() else { return };
        let more = wrong.count();
        let shown = String::from_utf8_lossy(path(at)).into_owned();
        let expected = format!(
            "a map whose {} bytes at {} of {shown:?} stand in frame {} of pack {} of {}, byte {}",
            at.len, at.first, at.frame, pack.number, pack.backup, at.offset
        );
        let more = if more > 0 { format!(" (and {more} more runs of this pack)") } else { String::new() };
        let name = names.map(self.map.backup.as_str(), at.part);
        self.look.blame(&name, &expected, Trouble::damaged(format!("{found}{more}")), self.hurts.clone());
    }

    async fn contents(&self, pack: &PackPlace) -> Result<Contents, Trouble> {
        let archive = self.look.archive;
        let name = archive.names.pack(pack.backup.as_str(), pack.number);
        let no_list = || Trouble::damaged("the map knows no contents list of the pack");
        let place = pack.frames.first().ok_or_else(no_list)?;
        let range = place.offset..place.offset + u64::from(place.len);
        let read = self.look.patient(&name, || archive.repo.get_range(&name, range.clone())).await?;
        let bytes: Bytes = read.ok_or_else(Trouble::missing)?;
        let claims = archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(u64::from(pack.number)));
        let opener = Opener::new(&pack.header, &claims, archive.keys.as_ref(), false)?;
        let list = opener.frame(&bytes, 0, pack.is_last(0))?;
        Ok(Contents::decode(&list, &pack.backup, pack.number)?)
    }
}

/// Whether the contents list says the same as a run.
fn stands(contents: &Contents, at: &At, path: &[u8]) -> Result<(), String> {
    contents.stands(at.frame, at.offset, path, at.first, at.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::content::contents::{ContentsWriter, Piece, Unit};
    use crate::seal::page_hash::PageHash;

    fn list() -> Contents {
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let mut writer = ContentsWriter::new(&id, 7);
        let mut add = |new_frame, path: &[u8], unit, first, count: u64| {
            let chunks = if unit == Unit::Pages { count } else { 1 };
            let hashes = (0..chunks).map(PageHash).collect();
            writer.push(new_frame, &Piece { path: path.to_vec(), unit, first, count, hashes });
        };
        add(true, b"base/5/1259", Unit::Pages, 0, 2);
        add(false, b"base/5/1259", Unit::Pages, 2, 1);
        add(false, b"base/5/1260", Unit::Pages, 9, 4);
        add(true, b"PG_VERSION", Unit::Bytes, 0, 3);
        Contents::decode(&writer.finish(), &id, 7).unwrap()
    }

    fn at(first: u64, len: u64, frame: u32, offset: u32) -> At {
        At { path: 0, part: 0, first, len, frame, offset }
    }

    #[test]
    fn a_run_must_stand_where_it_says_in_the_file_that_it_says() {
        const PAGE: u64 = 8192;
        let list = list();
        let stand = |path: &str, at: At| stands(&list, &at, path.as_bytes());
        // Over the border of two pieces of one file, and inside one.
        assert_eq!(stand("base/5/1259", at(0, 3 * PAGE, 1, 0)), Ok(()));
        assert_eq!(stand("base/5/1260", at(10 * PAGE, 2 * PAGE, 1, 4 * 8192)), Ok(()));
        assert_eq!(stand("PG_VERSION", at(1, 2, 2, 1)), Ok(()));
        // Another page, another file, over the end of the file's pieces, over the frame's end, no such frame.
        for (path, at) in [
            ("base/5/1259", at(PAGE, PAGE, 1, 0)),
            ("base/5/1260", at(0, PAGE, 1, 0)),
            ("base/5/1259", at(0, 4 * PAGE, 1, 0)),
            ("base/5/1260", at(11 * PAGE, 3 * PAGE, 1, 5 * 8192)),
            ("PG_VERSION", at(0, 3, 3, 0)),
            ("PG_VERSION", at(0, 3, 0, 0)),
            ("PG_VERSION", at(0, 3, 2, 1)),
        ] {
            assert!(stand(path, at).is_err(), "{path} {at:?}");
        }
    }
}
