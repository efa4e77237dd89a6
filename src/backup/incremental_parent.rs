//! The backup that an incremental transfer builds on: which one, and which files it has.

use std::collections::BTreeMap;

use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::data_page::{Fork, RelationFile};
use crate::seal::content::Malformed;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{EntryKind, Merge, Step};

/// Checks of the repository that are asked about the parent, the newest ones.
const CHECKS: usize = 8;

/// The newest complete backup, or why there is none to build on. One that a check has found hurt is none: what is missing of it would be missing in every
/// backup after it.
pub async fn newest(archive: &Archive) -> Result<std::result::Result<Manifest, String>> {
    let mut list = archive.list_backups().await?;
    let Some(parent) = list.complete.pop() else {
        return Ok(Err("there is no earlier backup to build on".to_owned()));
    };
    let checks = archive.verified(CHECKS).await?;
    let hurt = checks.iter().any(|(_, check)| check.hurt.iter().any(|id| id == parent.id.as_str()));
    Ok(if hurt { Err(format!("`walrecv verify` found backup {} hurt", parent.id)) } else { Ok(parent) })
}

/// Every path of the parent, what it is, and how long it is.
#[derive(Debug, Default)]
pub struct ParentFiles {
    paths: BTreeMap<Vec<u8>, (EntryKind, u64)>,
}

impl ParentFiles {
    /// Reads the parent's maps; the inner error is why it cannot be built on.
    pub async fn read(archive: &Archive, parent: &Manifest) -> Result<std::result::Result<ParentFiles, String>> {
        match ParentFiles::walk(archive, parent).await {
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::error!("backup {} cannot be built on: {error}", parent.id);
                Ok(Err(format!("backup {} cannot be built on: {error}", parent.id)))
            }
            read => read,
        }
    }

    async fn walk(archive: &Archive, parent: &Manifest) -> Result<std::result::Result<ParentFiles, String>> {
        let mut merge = Merge::new(&parent.maps);
        let mut files = ParentFiles::default();
        let bad = |e: Malformed| Error::new(Kind::Corrupt, format!("the maps of backup {}", parent.id)).caused_by(e);
        loop {
            match merge.step().map_err(bad)? {
                Step::Need { map, part } => {
                    let place =
                        parent.maps.get(map).ok_or_else(|| Error::new(Kind::Failed, "a map that is not named"))?;
                    let plain = archive.map_part(&place.backup, part).await?;
                    merge.feed(map, &plain).map_err(bad)?;
                }
                Step::File(file) if !whole_pages(&file.path, file.kind) => {
                    let shown = String::from_utf8_lossy(&file.path).into_owned();
                    return Ok(Err(format!("{shown} of backup {} is not made of whole pages", parent.id)));
                }
                Step::File(file) => {
                    files.paths.insert(file.path, (file.kind, file.size));
                }
                Step::End => return Ok(Ok(files)),
            }
        }
    }

    /// Pages of the file at this path; `None` where the parent has no such file.
    pub fn pages(&self, path: &[u8]) -> Option<u64> {
        let (kind, size) = self.paths.get(path)?;
        (*kind == EntryKind::Pages).then_some(size / 8192)
    }

    /// All paths, ascending.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.paths.keys().map(Vec::as_slice)
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
