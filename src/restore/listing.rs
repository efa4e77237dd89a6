//! The `backup_manifest` of a backup that no server has sent as it is restored: the server sent it incrementally, so that its own manifest lists what
//! changed; or a tablespace is laid elsewhere, so that `tablespace_map` is not the one that it lists. Written while the files are laid.
//!
//! A file's CRC-32C is put together from those of its pieces, each computed from the bytes that are written, while they are in the processor's cache.
//! The other ways are to read everything again, which doubles a restore's work on the disk, or to lay each file from its beginning to its end, which
//! fetches packs many times.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::lay::{self, Laid};
use super::stock;
use crate::archive::Archive;
use crate::disk::lay::{Ground, Laid as LaidFile};
use crate::error::{Error, Kind, Result};
use crate::pg::label::BackupLabel;
use crate::pg::manifest::{ManifestItem, ManifestReader};
use crate::pg::manifest_writer::{ManifestFile, ManifestWriter};
use crate::pg::{Lsn, TimelineId, crc};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{File, Source};
use crate::seal::header::ObjectKind;

const NAME: &[u8] = b"backup_manifest";
/// Bytes that are gathered before they are written.
const GATHERED: usize = 1 << 20;
/// Written by a restore, whatever the backup had under this name.
const REPLACED: &[u8] = b"postgresql.auto.conf";

/// What is known of a file that is being laid.
#[derive(Debug)]
pub struct Tally {
    pub size: u64,
    mtime: i64,
    crc: AtomicU32,
}

impl Tally {
    /// Of a file whose zeros are where its runs say, and whose other bytes are still to come.
    pub fn of(file: &File) -> Tally {
        let unit = file.kind.unit().map_or(1, |u| u.bytes());
        let zeros = file.runs.iter().filter(|run| run.source == Source::Zero);
        let crc = zeros.fold(0, |sum, run| {
            let after = file.size.saturating_sub((run.first + run.count) * unit);
            sum ^ crc::moved(crc::of_zeros(run.count * unit), after)
        });
        Tally { size: file.size, mtime: file.mtime, crc: AtomicU32::new(crc) }
    }

    /// Counts a piece that was written at `at`. Every byte of a file is counted once: its runs neither overlap nor leave a gap.
    pub fn add(&self, at: u64, bytes: &[u8]) {
        let after = self.size.saturating_sub(at + bytes.len() as u64);
        self.crc.fetch_xor(crc::moved(crc32c::crc32c(bytes), after), Ordering::Relaxed);
    }
}

/// The manifest that is being written.
pub struct Listing {
    writer: ManifestWriter,
    gathered: Vec<u8>,
    file: LaidFile,
    at: u64,
    ranges: Vec<(TimelineId, Lsn, Lsn)>,
    control_mtime: i64,
}

impl Listing {
    /// Begins the manifest where this backup needs one of its own.
    pub async fn begin(archive: &Archive, manifest: &Manifest, ground: &Ground) -> Result<Option<Listing>> {
        let label = BackupLabel::parse(&manifest.backup_label.0)
            .map_err(|e| Error::new(Kind::Corrupt, "the backup's backup_label").caused_by(e))?;
        if label.incremental_from.is_none() && (manifest.server_manifest.is_none() || !moved(manifest, ground)) {
            return Ok(None);
        }
        let version = manifest.major().ok_or_else(|| Error::new(Kind::Version, "a version that is not known"))?;
        let ranges = wal_ranges(archive, manifest).await?;
        ground.file(NAME, 0, 0o600)?;
        let (writer, gathered) = ManifestWriter::begin(version, manifest.system);
        let file = ground.open(NAME)?;
        let control_mtime = manifest.stopped_at.as_second();
        Ok(Some(Listing { writer, gathered, file, at: 0, ranges, control_mtime }))
    }

    /// A file whose last byte was laid.
    pub fn laid(&mut self, path: &[u8], tally: &Tally) -> Result<()> {
        if path == REPLACED {
            return Ok(());
        }
        let crc = tally.crc.load(Ordering::Relaxed);
        self.line(&ManifestFile { path, size: tally.size, mtime: tally.mtime, crc })
    }

    fn line(&mut self, file: &ManifestFile<'_>) -> Result<()> {
        let text = self.writer.file(file);
        self.push(&text)
    }

    fn push(&mut self, text: &[u8]) -> Result<()> {
        self.gathered.extend_from_slice(text);
        if self.gathered.len() >= GATHERED { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        self.file.write_at(&self.gathered, self.at)?;
        self.at += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    /// The files that the restore itself wrote, read back, and the end.
    pub fn finish(mut self, ground: &Ground, laid: &Laid, written: &[String]) -> Result<()> {
        let mtime = self.control_mtime;
        let own = written.iter().map(String::as_bytes);
        for path in [&b"backup_label"[..], b"tablespace_map", REPLACED].into_iter().chain(own) {
            let place = ground.place(path)?;
            match std::fs::read(&place) {
                Ok(content) => {
                    let (size, crc) = (content.len() as u64, crc32c::crc32c(&content));
                    self.line(&ManifestFile { path, size, mtime, crc })?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::new(Kind::Failed, format!("cannot read {}", place.display())).caused_by(e)),
            }
        }
        let (size, crc) = (laid.control.len() as u64, crc32c::crc32c(&laid.control));
        self.line(&ManifestFile { path: lay::CONTROL, size, mtime, crc })?;
        for (timeline, start, end) in std::mem::take(&mut self.ranges) {
            let text = self.writer.wal_range(timeline, start, end);
            self.push(&text)?;
        }
        let end = self.writer.finish();
        self.gathered.extend_from_slice(&end);
        self.file.write_at(&self.gathered, self.at)
    }
}

/// Whether a tablespace is laid elsewhere than the backup says, byte for byte: `tablespace_map` differs from the server's then.
fn moved(manifest: &Manifest, ground: &Ground) -> bool {
    let elsewhere = |oid: u32, place: &Path| {
        let mut known = manifest.tablespaces.iter().filter(|tablespace| tablespace.oid == oid);
        known.any(|tablespace| tablespace.location.0 != place.as_os_str().as_bytes())
    };
    ground.tablespaces.iter().any(|(oid, place)| elsewhere(*oid, place))
}

/// The WAL that the server's own manifest says is needed.
async fn wal_ranges(archive: &Archive, manifest: &Manifest) -> Result<Vec<(TimelineId, Lsn, Lsn)>> {
    let mut ranges = Vec::new();
    let mut reader = ManifestReader::new();
    let bad = |e: crate::pg::manifest::BadManifest| Error::new(Kind::Corrupt, "the server's manifest").caused_by(e);
    let mut take = |bytes: &[u8], _| {
        let keep = &mut |item| {
            if let ManifestItem::WalRange { timeline, start, end } = item {
                ranges.push((timeline, start, end));
            }
            Ok(())
        };
        reader.push(bytes, keep).map_err(bad)
    };
    server_parts(archive, manifest, &mut take).await?;
    reader.finish().map_err(bad)?;
    Ok(ranges)
}

/// Reads PostgreSQL's own manifest of the backup, part by part with the offset of each, and checks its length and hash at the end.
pub async fn server_parts(
    archive: &Archive,
    manifest: &Manifest,
    take: &mut (dyn FnMut(&[u8], u64) -> Result<()> + Send),
) -> Result<()> {
    use sha2::Digest;
    let Some(stored) = &manifest.server_manifest else {
        return Err(Error::new(Kind::Corrupt, "the backup has no manifest of the server's"));
    };
    let (mut at, mut hash) = (0, sha2::Sha256::new());
    for part in 0..stored.parts {
        let name = archive.names.server_manifest(manifest.id.as_str(), part);
        let plain = stock::index_object(archive, &name, ObjectKind::ServerManifest, part).await?;
        hash.update(&plain);
        take(&plain, at)?;
        at += plain.len() as u64;
    }
    let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if at != stored.len || found != stored.sha256 {
        let message = format!(
            "backup_manifest has {at} bytes and SHA-256 {found}, expected {} and {}",
            stored.len, stored.sha256
        );
        return Err(Error::new(Kind::Corrupt, message));
    }
    Ok(())
}
