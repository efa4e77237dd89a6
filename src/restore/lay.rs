//! Lays a backup back: files at full size first, then pack by pack, each fetched once, its pages written in place. Memory: the packs in
//! flight and one window of runs.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};

use super::listing::{self, Listing, Tally};
use super::only::Only;
use super::settled::Unwritten;
use super::{pack, stock};
use crate::archive::Archive;
use crate::disk::claim::{self, MARK};
use crate::disk::clear::{self, Fate};
use crate::disk::lay::{self, Ground};
use crate::error::{Error, Kind, Result};
use crate::repo::ClusterNames;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{EntryKind, File, Merge, PackPlace, Run, Source, Step};
use crate::seal::header::ObjectKind;

/// Runs that are gathered before their packs are fetched: about 64 MiB of memory. A pack is fetched again only where a window cuts it.
const WINDOW: usize = 1 << 21;
/// A file takes as much memory as so many of them.
const FILE: usize = 8;
pub const CONTROL: &[u8] = b"global/pg_control";
/// Files that would make the restored server something else than a recovery from this plan.
const LEFT_OUT: [&[u8]; 7] = [
    b"standby.signal",
    b"recovery.signal",
    b"postmaster.pid",
    b"postmaster.opts",
    b"backup_label",
    b"tablespace_map",
    // Where one could not be taken away, a backup has it.
    MARK.as_bytes(),
];

/// Whether a file of the backup is laid from the maps: labels and pg_control are written apart, WAL comes from the archive.
pub fn is_laid(path: &[u8]) -> bool {
    path != CONTROL && !LEFT_OUT.contains(&path) && !path.starts_with(b"pg_wal/")
}

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

/// A file that gets bytes.
pub struct Filling {
    pub path: Vec<u8>,
    /// Where a manifest is written.
    pub tally: Option<Tally>,
    /// It stood there: what of it is right already is not fetched.
    pub stood: bool,
    /// It belongs to a database that is not restored.
    pub left_out: bool,
    pub unwritten: Unwritten,
}

/// What is fetched together.
#[derive(Default)]
pub(super) struct Window {
    files: Vec<Filling>,
    jobs: BTreeMap<(String, u32), PackJob>,
    /// Bytes of files that stood there and that are to be zero: file, offset, length.
    zeros: Vec<(u32, u64, u64)>,
    pieces: usize,
}

/// Paths of the backup, by their hash: a million take about 20 MiB.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    state: RandomState,
    hashes: HashSet<u64>,
}

impl Paths {
    fn insert(&mut self, path: &[u8]) {
        self.hashes.insert(self.state.hash_one(path));
    }

    fn contains(&self, path: &[u8]) -> bool {
        self.hashes.contains(&self.state.hash_one(path))
    }
}

/// What was laid.
#[derive(Clone, Debug, Default)]
pub struct Laid {
    pub files: u64,
    pub bytes: u64,
    /// Of these, those that stood there already.
    pub kept: u64,
    pub fetched: u64,
    pub removed: u64,
    /// Everything that stands there because of the maps.
    pub paths: Paths,
    /// `global/pg_control`, which is written last.
    pub control: Vec<u8>,
    /// The group may read the data directory (`initdb --allow-group-access`).
    pub group_access: bool,
}

/// Counts while several packs are at work.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    kept: AtomicU64,
    fetched: AtomicU64,
}

/// Lays all files of the backup but pg_control, backup_label and tablespace_map, and names them in the `listing`. Those of databases that are not among
/// the `only` ones are holes, but for pages that recovery needs. Nothing is synced yet.
pub async fn lay(
    archive: &Archive,
    manifest: &Manifest,
    only: Option<&Only>,
    ground: &Ground,
    jobs: usize,
    progress: Progress<'_>,
    listing: &mut Option<Listing>,
) -> Result<Laid> {
    let mut merge = Merge::new(&manifest.maps);
    let mut window = Window::default();
    let mut laid = Laid::default();
    let mut control = None;
    let counts = Counts::default();
    let total = only.map_or(manifest.sizes.total, |only| only.bytes);
    let work = Work { archive, ground, jobs, counts: &counts, progress: &|done| progress(done, total) };
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
                demand_directory(&file, &laid.paths)?;
                laid.paths.insert(&file.path);
                let (size, reduced) = (file.size, only.and_then(|only| only.reduced(&file)));
                let left_out = reduced.is_some();
                let (file, bytes) = reduced.unwrap_or((file, size));
                laid.files += u64::from(file.kind.unit().is_some());
                laid.bytes += bytes;
                let zero = begin(ground, file, &mut window, listing.is_some(), left_out)?;
                work.done(zero);
            }
            Step::End => break,
        }
        if window.is_full() {
            let files = work.flush(std::mem::take(&mut window)).await?;
            list(listing, &files)?;
        }
    }
    let files = work.flush(window).await?;
    list(listing, &files)?;
    let control = control.ok_or_else(|| Error::new(Kind::Corrupt, "the backup has no global/pg_control"))?;
    laid.control = pack::small_file(archive, &control).await?;
    laid.files += 1;
    laid.bytes += control.size;
    laid.kept = counts.kept.into_inner();
    laid.fetched = counts.fetched.into_inner() + pack::small_fetches(archive, &control)?;
    Ok(laid)
}

/// The directory of a file comes before it. One that the backup does not name might be a link that leads elsewhere.
fn demand_directory(file: &File, paths: &Paths) -> Result<()> {
    let Some(end) = file.path.iter().rposition(|b| *b == b'/') else { return Ok(()) };
    let directory = file.path.get(..end).unwrap_or_default();
    if file.kind.unit().is_none() || directory == b"pg_wal" || paths.contains(directory) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&file.path);
    Err(Error::new(Kind::Corrupt, format!("the backup holds {shown:?}, and not its directory")))
}

async fn map_part(archive: &Archive, manifest: &Manifest, map: usize, part: u32) -> Result<Vec<u8>> {
    let place =
        manifest.maps.get(map).ok_or_else(|| Error::new(Kind::Corrupt, "the maps name a map that is not there"))?;
    let name = archive.names.map(place.backup.as_str(), part);
    stock::index_object(archive, &name, ObjectKind::Map, part).await
}

/// Makes the file or directory, and notes where its bytes come from. Returns how many of them are zero because the backup says so.
fn begin(ground: &Ground, file: File, window: &mut Window, listed: bool, left_out: bool) -> Result<u64> {
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
        EntryKind::Pages | EntryKind::Bytes => {}
    }
    let stood = match left_out {
        true => ground.new_file(&file.path, file.size, file.mode).map(|()| false)?,
        false => ground.file(&file.path, file.size, file.mode)?,
    };
    let tally = listed.then(|| Tally::of(&file));
    let unit = file.kind.unit().map_or(1, |u| u.bytes());
    let stored = file.runs.iter().filter(|run| matches!(run.source, Source::Pack { .. }));
    let unwritten = Unwritten::of(stored.map(|run| (run.first * unit, run.count * unit)));
    let zero = window.gather(file.kind, file.runs, stood)?;
    window.files.push(Filling { path: file.path, tally, stood, left_out, unwritten });
    Ok(if left_out { 0 } else { zero })
}

impl Window {
    /// Notes where the bytes of the next file come from; `stood`: something stands in its place. Returns how many of them are zero because the backup says so.
    pub(super) fn gather(&mut self, kind: EntryKind, runs: Vec<Run>, stood: bool) -> Result<u64> {
        let unit = kind.unit().map_or(1, |u| u.bytes());
        let number = self.files.len() as u32;
        let mut zero = 0;
        for Run { first, count, source } in runs {
            let (at, len) = (first * unit, count * unit);
            let Source::Pack { pack, frame, offset } = source else {
                zero += len;
                if stood {
                    self.zeros.push((number, at, len));
                    self.pieces += 1;
                }
                continue;
            };
            let len =
                u32::try_from(len).map_err(|_| Error::new(Kind::Corrupt, "a run of a map is longer than a frame"))?;
            let key = (pack.backup.to_string(), pack.number);
            let job = self.jobs.entry(key).or_insert_with(|| PackJob { pack, pieces: Vec::new() });
            job.pieces.push(Piece { at, len, file: number, frame, offset });
            self.pieces += 1;
        }
        self.pieces += FILE;
        Ok(zero)
    }

    /// So much was gathered that it is fetched before anything more is.
    pub(super) fn is_full(&self) -> bool {
        self.pieces >= WINDOW
    }

    /// Bytes of packs that are fetched for it where nothing stood.
    pub(super) fn fetches(self, names: &ClusterNames, together: u64) -> Result<u64> {
        self.jobs.into_values().map(|job| pack::fetches(names, job, together)).sum()
    }
}

/// What fetching and writing needs to know.
struct Work<'a> {
    archive: &'a Archive,
    ground: &'a Ground,
    jobs: usize,
    counts: &'a Counts,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Work<'_> {
    fn done(&self, bytes: u64) {
        (self.progress)(self.counts.done.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    /// Fetches the packs of a window, `jobs` at a time, and writes their pieces.
    async fn flush(&self, window: Window) -> Result<Arc<Vec<Filling>>> {
        let Window { files, jobs, zeros, .. } = window;
        let files = Arc::new(files);
        if !zeros.is_empty() {
            let (ground, files) = (self.ground.clone(), files.clone());
            let zeroed = tokio::task::spawn_blocking(move || make_zero(&ground, &files, &zeros)).await;
            zeroed.map_err(|e| Error::new(Kind::Failed, "writing files was interrupted").caused_by(e))??;
        }
        let work = |job: PackJob| {
            let files = files.clone();
            async move {
                let moved = pack::write_out(self.archive, self.ground, &files, job).await?;
                self.counts.fetched.fetch_add(moved.fetched, Ordering::Relaxed);
                self.counts.kept.fetch_add(moved.kept, Ordering::Relaxed);
                self.done(moved.written + moved.kept);
                Ok::<(), Error>(())
            }
        };
        // The newest first: the pages that a backup changed here and there come before the many that an older one has in the order of the files.
        stream::iter(jobs.into_values().rev())
            .map(work)
            .buffer_unordered(self.jobs.max(1))
            .try_for_each(|()| async { Ok(()) })
            .await?;
        Ok(files)
    }
}

fn make_zero(ground: &Ground, files: &[Filling], zeros: &[(u32, u64, u64)]) -> Result<()> {
    for of_one in zeros.chunk_by(|a, b| a.0 == b.0) {
        let Some(file) = of_one.first().and_then(|(file, _, _)| files.get(*file as usize)) else { continue };
        let open = ground.open(&file.path)?;
        of_one.iter().try_for_each(|(_, at, len)| open.zero(*at, *len))?;
    }
    Ok(())
}

/// All bytes of these files were written.
fn list(listing: &mut Option<Listing>, files: &[Filling]) -> Result<()> {
    let Some(listing) = listing else { return Ok(()) };
    let tallied = files.iter().filter_map(|file| Some((file, file.tally.as_ref()?)));
    for (file, tally) in tallied {
        listing.laid(&file.path, tally, file.left_out)?;
    }
    Ok(())
}

/// Removes what stands there and is not in the backup, where something may. `manifest`: a backup_manifest is written, or is going to be. Of a
/// tablespace's place only what the backup has a directory for is looked into: the folders of other versions belong to other servers.
pub fn prune(ground: &Ground, paths: &Paths, manifest: bool) -> Result<u64> {
    if !ground.is_occupied() {
        return Ok(0);
    }
    let linked = |path: &[u8]| ground.tablespaces.iter().any(|(oid, _)| path == format!("pg_tblspc/{oid}").as_bytes());
    let inside = inside(ground);
    let leads = |path: &[u8]| inside.iter().any(|place| place.strip_prefix(path).is_some_and(|r| r.starts_with(b"/")));
    let mut removed = clear::prune(&ground.root, b"", &|path| match path {
        b"pg_wal" | b"lost+found" => Fate::Leave,
        b"backup_manifest" if manifest => Fate::Leave,
        _ if path == MARK.as_bytes() || linked(path) || inside.iter().any(|place| place == path) => Fate::Leave,
        _ if paths.contains(path) || leads(path) => Fate::Keep,
        _ => Fate::Remove,
    })?;
    for (oid, place) in &ground.tablespaces {
        let above = format!("pg_tblspc/{oid}").into_bytes();
        removed += clear::prune(place, &above, &|path| match path.iter().filter(|b| **b == b'/').count() {
            _ if paths.contains(path) => Fate::Keep,
            2 => Fate::Leave,
            _ => Fate::Remove,
        })?;
    }
    Ok(removed)
}

/// Where in the data directory tablespaces lie, as they are called and without links. Of these the backup speaks by another name.
fn inside(ground: &Ground) -> Vec<Vec<u8>> {
    let root = clear::resolved(&ground.root);
    let below = |place: &Path, root: &Path| Some(place.strip_prefix(root).ok()?.as_os_str().as_bytes().to_vec());
    let named = |place: &Path| [below(place, &ground.root), below(&clear::resolved(place), &root)];
    ground.tablespaces.iter().flat_map(|(_, place)| named(place)).flatten().collect()
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
        let tablespaces = ground.tablespaces.iter().map(|(_, place)| place.clone());
        let wal = ground.root.join("pg_wal");
        let wal = wal.is_symlink().then(|| std::fs::canonicalize(&wal)).transpose();
        let wal = wal.map_err(|e| Error::new(Kind::Failed, "cannot tell where pg_wal leads").caused_by(e))?;
        for root in std::iter::once(ground.root.clone()).chain(tablespaces.clone()).chain(wal) {
            lay::sync_tree(&root, jobs)?;
        }
        for tablespace in tablespaces {
            claim::unmark(&tablespace)?;
        }
        ground.whole_file(CONTROL, &laid.control, mode)?;
        lay::sync(&ground.root.join("global"))?;
        claim::unmark(&ground.root)
    };
    let finished = tokio::task::spawn_blocking(work).await;
    finished.map_err(|e| Error::new(Kind::Failed, "syncing the files was interrupted").caused_by(e))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::lay::Over;

    #[test]
    fn a_link_is_refused_a_directory_is_made() {
        let root = tempfile::tempdir().unwrap();
        let ground =
            Ground { root: root.path().to_path_buf(), tablespaces: Vec::new(), owner: None, over: Over::Nothing };
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
            let link = begin(&ground, entry(path, EntryKind::Symlink), &mut window, false, false);
            assert_eq!(link.unwrap_err().kind(), Kind::Corrupt, "{path}");
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(!is_laid(MARK.as_bytes()));
        for path in ["pg_wal", "pg_tblspc", "pg_tblspc/16384"] {
            begin(&ground, entry(path, EntryKind::Directory), &mut window, false, false).unwrap();
            assert!(root.path().join(path).is_dir());
        }
    }

    #[test]
    fn a_tablespace_inside_the_data_directory_keeps_what_was_laid_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let files = ["data/space/PG_16_1/5/1", "data/deep/er/PG_16_1/5/1", "data/deep/gone", "data/space/PG_16_1/5/2"];
        for file in files.iter().chain(&["data/deep/er/PG_15_1/x", "data/gone/x"]) {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), "").unwrap();
        }
        std::os::unix::fs::symlink(at("data"), at("link")).unwrap();
        let tablespaces = vec![(7, at("data/space")), (8, at("link/deep/er"))];
        let ground = Ground { root: at("data"), tablespaces, owner: None, over: Over::Kept };
        let mut paths = Paths::default();
        for oid in ["7", "8"] {
            for path in ["PG_16_1", "PG_16_1/5", "PG_16_1/5/1"] {
                paths.insert(format!("pg_tblspc/{oid}/{path}").as_bytes());
            }
        }
        assert_eq!(prune(&ground, &paths, false).unwrap(), 3);
        assert_eq!(files.map(|file| at(file).exists()), [true, true, false, false]);
        assert!(at("data/deep/er/PG_15_1/x").exists() && !at("data/gone").exists());
    }
}
