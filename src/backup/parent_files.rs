//! Every path of the parent and what it is there, as the parent's maps have it: in a file, so that memory does not grow with their number.

use crate::disk::scratch::Scratch;
use crate::disk::sorted::{SortedFile, SortedWriter, Walk};
use crate::error::{Error, Kind, Result};
use crate::pg::data_page::{Fork, RelationFile};
use crate::seal::content::Malformed;
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{EntryKind, File, Merge, Step};

use super::cache::{Known, damaged};
use super::held::Held;
use super::layers::ReadPart;
use super::places::opened;

/// The parent's files.
pub struct ParentFiles {
    files: SortedFile,
    /// The packs that they are in.
    pub held: Held,
    /// A file of which the server may send blocks, and which is not made of whole pages in the parent.
    pub torn: Option<Vec<u8>>,
}

impl ParentFiles {
    /// Reads all of the parent's maps. `place` is where the list goes; it has no name there afterwards. Blocks.
    ///
    /// Errors: maps that are missing or damaged are `Kind::Corrupt`.
    pub fn read(maps: &[MapRef], read: &ReadPart<'_>, place: &Scratch) -> Result<ParentFiles> {
        const BELONGS: &[u8] = b"files of the parent";
        let path = place.path().join("parent");
        let mut writer = SortedWriter::create(&path, BELONGS)?;
        let mut merge = Merge::new(maps);
        let (mut torn, mut held) = (None, Held::default());
        let bad = |e: Malformed| Error::new(Kind::Corrupt, "its maps do not fit each other").caused_by(e);
        loop {
            match merge.step().map_err(bad)? {
                Step::Need { map, part } => {
                    let asked = maps.get(map).ok_or_else(|| Error::new(Kind::Failed, "a map that is not named"))?;
                    merge.feed(map, &read(asked, part)?).map_err(bad)?;
                }
                Step::File(File { path, kind, size, mode, mtime, link, runs }) => {
                    held.note(&runs, kind.unit().map_or(0, |unit| unit.bytes()));
                    writer.push(&path, &Known { kind, size, mode, mtime, link, hashes: 0 }.encode())?;
                    if torn.is_none() && !whole_pages(&path, kind) {
                        torn = Some(path);
                    }
                }
                Step::End => break,
            }
        }
        writer.finish_for_now()?;
        Ok(ParentFiles { files: opened(&path, BELONGS)?, held, torn })
    }

    /// What the parent has at a path.
    pub fn get(&mut self, path: &[u8]) -> Result<Option<Known>> {
        self.files.get(path)?.map(|bytes| Known::decode(&bytes)).transpose().map_err(damaged)
    }

    /// All paths in order, each with a [`Known`].
    pub fn walk(&self) -> Walk {
        self.files.walk()
    }
}

/// A file of which the server may send blocks must be made of pages in the parent too. One whose last page was being written when it was sent is not, and
/// nothing can be laid over it. (Free space maps are always sent whole.)
fn whole_pages(path: &[u8], kind: EntryKind) -> bool {
    match RelationFile::from_path(path) {
        Some(file) if file.fork != Fork::FreeSpace => matches!(kind, EntryKind::Pages | EntryKind::Directory),
        _ => true,
    }
}
