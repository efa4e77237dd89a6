//! Where the packs of a backup are, on the local disk: some 900 bytes for each, which for 1 TiB would be 60 MB of memory.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::damaged;
use super::orphan_pack::{decode, encode};
use crate::disk::private;
use crate::disk::sorted::{SortedFile, SortedWriter};
use crate::error::{Error, Kind, Result};
use crate::seal::content::map::PackPlace;

const BELONGS: &[u8] = b"places of packs";
/// Places that are in memory at a time.
const CACHED: usize = 256;

/// Takes the places of packs in the order of their numbers: 0, 1, 2 and so on.
pub struct PlaceWriter {
    path: PathBuf,
    writer: Option<SortedWriter>,
    count: u32,
}

impl PlaceWriter {
    /// They are written to `path`, once there is one.
    pub fn new(path: PathBuf) -> PlaceWriter {
        PlaceWriter { path, writer: None, count: 0 }
    }

    pub fn push(&mut self, place: &PackPlace) -> Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(SortedWriter::create(&self.path, BELONGS)?),
        };
        writer.push(&self.count.to_be_bytes(), &encode(place))?;
        self.count += 1;
        Ok(())
    }

    pub fn len(&self) -> u32 {
        self.count
    }

    /// The file loses its name.
    pub fn finish(self) -> Result<Places> {
        let Some(writer) = self.writer else { return Ok(Places::default()) };
        writer.finish_for_now()?;
        Ok(Places { file: Some(opened(&self.path, BELONGS)?), count: self.count, cached: VecDeque::new() })
    }
}

/// The places of packs, by number. Memory: [`CACHED`] of them, and a five-hundredth of the file.
#[derive(Default)]
pub struct Places {
    /// `None`: there are none.
    file: Option<SortedFile>,
    count: u32,
    /// The last ones that were asked for, newest last.
    cached: VecDeque<(u32, Arc<PackPlace>)>,
}

impl Places {
    pub fn len(&self) -> u32 {
        self.count
    }

    /// `None`: there is no pack of this number.
    pub fn get(&mut self, number: u32) -> Result<Option<Arc<PackPlace>>> {
        // Files go from pack to pack, so the last one is nearly always the right one.
        if let Some((_, place)) = self.cached.iter().rev().find(|(known, _)| *known == number) {
            return Ok(Some(place.clone()));
        }
        let Some(file) = &mut self.file else { return Ok(None) };
        let Some(bytes) = file.get(&number.to_be_bytes())? else { return Ok(None) };
        let place = decode(&bytes).map_err(damaged)?;
        if self.cached.len() >= CACHED {
            self.cached.pop_front();
        }
        self.cached.push_back((number, place.clone()));
        Ok(Some(place))
    }
}

/// Opens a finished file and takes its name away: it goes with whoever has it open.
pub fn opened(path: &Path, belongs: &[u8]) -> Result<SortedFile> {
    let file = SortedFile::open(path, belongs)?;
    private::forget(path);
    file.ok_or_else(|| Error::new(Kind::Failed, format!("{} is gone", path.display())))
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use bytes::Bytes;

    use super::*;
    use crate::seal::content::BackupId;
    use crate::seal::sealer::FramePlace;

    /// As many as 1 TiB has, all of them asked for.
    #[test]
    fn memory_does_not_grow_with_the_number_of_packs() {
        let folder = tempfile::tempdir().unwrap();
        let backup = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let place = |number: u32| {
            // One behind the other, as they stand.
            let frame =
                |n: u32| FramePlace { offset: 40 + u64::from(n) * u64::from(number), len: number, plain_len: 9 };
            let header = Bytes::from(vec![number as u8; 40]);
            PackPlace {
                backup: backup.clone(),
                number,
                len: u64::from(number),
                header,
                frames: (0..3).map(frame).collect(),
            }
        };
        let packs = 60_000;
        let mut writer = PlaceWriter::new(folder.path().join("packs"));
        (0..packs).for_each(|number| writer.push(&place(number)).unwrap());
        assert_eq!(writer.len(), packs);
        let mut places = writer.finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut given: Vec<Weak<PackPlace>> = Vec::new();
        // In order, and now and then from the other end.
        for number in (0..packs).flat_map(|n| std::iter::once(n).chain((n % 32 == 0).then(|| packs - 1 - n))) {
            let found = places.get(number).unwrap().unwrap();
            assert_eq!(*found, place(number));
            given.push(Arc::downgrade(&found));
        }
        let alive =
            given.iter().filter_map(Weak::upgrade).map(|place| place.number).collect::<std::collections::BTreeSet<_>>();
        assert!(alive.len() <= CACHED && places.cached.len() <= CACHED, "{} in memory", alive.len());
        assert_eq!((places.get(packs).unwrap(), places.len()), (None, packs));
        assert_eq!(PlaceWriter::new(folder.path().join("none")).finish().unwrap().get(0).unwrap(), None);
    }
}
