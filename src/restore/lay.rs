//! Lays a backup back: files at full size first, then pack by pack, each fetched once, its pages written in place. Memory: the packs in
//! flight and one window of runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};

use super::listing::{self, Listing, Tally};
use super::{pack, stock};
use crate::archive::Archive;
use crate::disk::lay::{self, Ground};
use crate::error::{Error, Kind, Result};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{EntryKind, File, Merge, PackPlace, Run, Source, Step};
use crate::seal::header::ObjectKind;

/// Runs that are gathered before their packs are fetched: about 64 MiB of memory. A pack is fetched again only where a window cuts it.
const WINDOW: usize = 1 << 21;
pub const CONTROL: &[u8] = b"global/pg_control";
/// Files that would make the restored server something else than a recovery from this plan.
const LEFT_OUT: [&[u8]; 6] =
    [b"standby.signal", b"recovery.signal", b"postmaster.pid", b"postmaster.opts", b"backup_label", b"tablespace_map"];

/// Bytes laid so far, and all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// A piece of a file inside a frame.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Byte offset in the file.
    pub at: u64,
    pub len: u32,
    /// Number in the window's list of files.
    pub file: u32,
    pub frame: u32,
    /// Byte offset in the frame's plaintext.
    pub offset: u32,
}

/// Everything that one pack gives to this window.
pub struct PackJob {
    pub pack: Arc<PackPlace>,
    pub pieces: Vec<Piece>,
}

/// The files of a window.
#[derive(Default)]
pub struct Files {
    pub paths: Vec<Vec<u8>>,
    /// One for each path, where a manifest is written; else none.
    pub tallies: Vec<Tally>,
}

#[derive(Default)]
struct Window {
    files: Files,
    jobs: BTreeMap<(String, u32), PackJob>,
    pieces: usize,
}

/// What was laid.
#[derive(Clone, Debug, Default)]
pub struct Laid {
    pub files: u64,
    pub bytes: u64,
    pub fetched: u64,
    /// `global/pg_control`, which is written last.
    pub control: Vec<u8>,
    /// The group may read the data directory (`initdb --allow-group-access`).
    pub group_access: bool,
}

/// Lays all files of the backup but pg_control, backup_label and tablespace_map, and names them in the `listing`. Nothing is synced yet.
pub async fn lay(
    archive: &Archive,
    manifest: &Manifest,
    ground: &Ground,
    jobs: usize,
    progress: Progress<'_>,
    listing: &mut Option<Listing>,
) -> Result<Laid> {
    let mut merge = Merge::new(&manifest.maps);
    let mut window = Window::default();
    let mut laid = Laid::default();
    let mut control = None;
    let done = AtomicU64::new(0);
    let fetched = AtomicU64::new(0);
    let total = manifest.sizes.total;
    loop {
        let step = merge.step().map_err(|e| stock::malformed("map", e))?;
        match step {
            Step::Need { map, part } => {
                let plain = map_part(archive, manifest, map, part).await?;
                merge.feed(map, &plain).map_err(|e| stock::malformed("map", e))?;
                continue;
            }
            Step::File(file) if LEFT_OUT.contains(&file.path.as_slice()) => continue,
            Step::File(file) if file.path == CONTROL => control = Some(file),
            Step::File(file) => {
                laid.group_access |= file.path == b"base" && file.mode & 0o050 == 0o050;
                laid.files += u64::from(file.kind.unit().is_some());
                laid.bytes += file.size;
                let zero = begin(ground, file, &mut window, listing.is_some())?;
                progress(done.fetch_add(zero, Ordering::Relaxed) + zero, total);
            }
            Step::End => break,
        }
        if window.pieces >= WINDOW {
            let full = std::mem::take(&mut window);
            let files = flush(archive, ground, full, jobs, &done, &fetched, &|d| progress(d, total)).await?;
            list(listing, &files)?;
        }
    }
    let files = flush(archive, ground, window, jobs, &done, &fetched, &|d| progress(d, total)).await?;
    list(listing, &files)?;
    let control = control.ok_or_else(|| Error::new(Kind::Corrupt, "the backup has no global/pg_control"))?;
    laid.control = pack::small_file(archive, &control).await?;
    laid.files += 1;
    laid.bytes += control.size;
    laid.fetched = fetched.into_inner();
    Ok(laid)
}

async fn map_part(archive: &Archive, manifest: &Manifest, map: usize, part: u32) -> Result<Vec<u8>> {
    let place =
        manifest.maps.get(map).ok_or_else(|| Error::new(Kind::Corrupt, "the maps name a map that is not there"))?;
    let name = archive.names.map(place.backup.as_str(), part);
    stock::index_object(archive, &name, ObjectKind::Map, part).await
}

/// Makes the file or directory, and notes where its bytes come from. Returns how many of them are zero.
fn begin(ground: &Ground, file: File, window: &mut Window, listed: bool) -> Result<u64> {
    let in_wal = file.path.starts_with(b"pg_wal/");
    match file.kind {
        EntryKind::Absent => return Ok(0),
        // The data directory itself stands already.
        EntryKind::Directory if file.path.is_empty() || file.path == b"." => return Ok(0),
        EntryKind::Directory => return ground.directory(&file.path, file.mode).map(|()| 0),
        // No server sends one; through it, files that follow would land outside the ground. Tablespace links are made from the manifest.
        EntryKind::Symlink => {
            let shown = String::from_utf8_lossy(&file.path);
            return Err(Error::new(Kind::Corrupt, format!("the backup holds a link: {shown:?}")));
        }
        // WAL comes from the archive alone: leftovers would be replayed where it ends.
        _ if in_wal => return Ok(file.size),
        EntryKind::Pages | EntryKind::Bytes => ground.file(&file.path, file.size, file.mode)?,
    }
    let unit = file.kind.unit().map_or(1, |u| u.bytes());
    let number = window.files.paths.len() as u32;
    window.files.tallies.extend(listed.then(|| Tally::of(&file)));
    let mut zero = 0;
    for Run { first, count, source } in file.runs {
        let (at, len) = (first * unit, count * unit);
        let Source::Pack { pack, frame, offset } = source else {
            zero += len;
            continue;
        };
        let len = u32::try_from(len).map_err(|_| Error::new(Kind::Corrupt, "a run of a map is longer than a frame"))?;
        let key = (pack.backup.to_string(), pack.number);
        let job = window.jobs.entry(key).or_insert_with(|| PackJob { pack, pieces: Vec::new() });
        job.pieces.push(Piece { at, len, file: number, frame, offset });
        window.pieces += 1;
    }
    window.files.paths.push(file.path);
    Ok(zero)
}

/// Fetches the packs of a window, `jobs` at a time, and writes their pieces.
async fn flush(
    archive: &Archive,
    ground: &Ground,
    window: Window,
    jobs: usize,
    done: &AtomicU64,
    fetched: &AtomicU64,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Arc<Files>> {
    let files = Arc::new(window.files);
    let work = |job: PackJob| {
        let files = files.clone();
        async move {
            let bytes = pack::write_out(archive, ground, &files, job).await?;
            fetched.fetch_add(bytes.fetched, Ordering::Relaxed);
            progress(done.fetch_add(bytes.written, Ordering::Relaxed) + bytes.written);
            Ok::<(), Error>(())
        }
    };
    stream::iter(window.jobs.into_values())
        .map(work)
        .buffer_unordered(jobs.max(1))
        .try_for_each(|()| async { Ok(()) })
        .await?;
    Ok(files)
}

/// All bytes of these files were written.
fn list(listing: &mut Option<Listing>, files: &Files) -> Result<()> {
    let Some(listing) = listing else { return Ok(()) };
    files.paths.iter().zip(&files.tallies).try_for_each(|(path, tally)| listing.laid(path, tally))
}

/// PostgreSQL's own backup_manifest, byte for byte, where the backup has one.
pub async fn server_manifest(archive: &Archive, manifest: &Manifest, ground: &Ground) -> Result<()> {
    let Some(stored) = &manifest.server_manifest else { return Ok(()) };
    ground.file(b"backup_manifest", stored.len, 0o600)?;
    let file = ground.open(b"backup_manifest")?;
    listing::server_parts(archive, manifest, &mut |bytes, at| file.write_at(bytes, at)).await
}

/// The last steps, in this order: everything synced, then pg_control, so that an interrupted restore cannot be started. The tablespaces' marks
/// go before it: a tablespace has no pg_control of its own, and one that is in use must never look like a restore that may be cleared.
pub async fn seal_off(ground: &Ground, laid: Laid, jobs: usize) -> Result<()> {
    let ground = ground.clone();
    let mode = if laid.group_access { 0o640 } else { 0o600 };
    let work = move || -> Result<()> {
        let tablespaces = ground.tablespaces.iter().map(|(_, place)| place);
        for root in std::iter::once(&ground.root).chain(tablespaces.clone()) {
            lay::sync_tree(root, jobs)?;
        }
        for tablespace in tablespaces {
            lay::unmark(tablespace)?;
        }
        ground.whole_file(CONTROL, &laid.control, mode)?;
        lay::sync(&ground.root.join("global"))?;
        lay::unmark(&ground.root)
    };
    let finished = tokio::task::spawn_blocking(work).await;
    finished.map_err(|e| Error::new(Kind::Failed, "syncing the files was interrupted").caused_by(e))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_refused_a_directory_is_made() {
        let root = tempfile::tempdir().unwrap();
        let ground = Ground { root: root.path().to_path_buf(), tablespaces: Vec::new(), owner: None };
        let entry = |path: &str, kind| File {
            path: path.into(),
            kind,
            size: 0,
            mode: 0o700,
            mtime: 0,
            link: b"/etc".to_vec(),
            runs: Vec::new(),
        };
        let mut window = Window::default();
        for path in ["base", "pg_wal", "pg_wal/archive_status", "pg_tblspc/16384"] {
            let link = begin(&ground, entry(path, EntryKind::Symlink), &mut window, false);
            assert_eq!(link.unwrap_err().kind(), Kind::Corrupt, "{path}");
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        for path in ["pg_wal", "pg_tblspc", "pg_tblspc/16384"] {
            begin(&ground, entry(path, EntryKind::Directory), &mut window, false).unwrap();
            assert!(root.path().join(path).is_dir());
        }
    }
}
