//! Every file that is laid is listed: compared with what the server said of it, and written into a `backup_manifest` of the restore's own where no
//! server has sent one of this backup as it is restored. That is so where the server sent it incrementally, so that its own manifest lists what changed;
//! where a tablespace is laid elsewhere, so that `tablespace_map` is not the one that it lists; where the restore adds configuration files; and where it leaves
//! databases out.
//!
//! A file's CRC-32C is put together from those of its pieces, each computed from the bytes that are written, while they are in the processor's cache.
//! The other ways are to read everything again, which doubles a restore's work on the disk, or to lay each file from its beginning to its end, which
//! fetches packs many times.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::configure::CONFIGURATION;
use super::lay::{self, Laid};
use super::sent::Sent;
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

/// What the server said of a backup's files.
pub enum Begun {
    Said(Box<Listing>),
    /// Nothing: there is no manifest to be written.
    Unsaid,
    /// It is missing or damaged, as this tells. All else of the backup is authentic by itself, so it is laid without.
    Lost(String),
}

/// What is told of a restore without what the server said.
fn lost(error: &Error) -> String {
    format!(
        "there is no backup_manifest, since PostgreSQL's own of this backup is lost ({error}): all that was laid is authentic, but no file was compared \
         with what the server said of it, and pg_verifybackup has nothing to go by"
    )
}

/// The files of a restore, as they are laid.
pub struct Listing {
    /// What the server said of them, where it sent all of them.
    sent: Option<Sent>,
    own: Option<Own>,
}

/// The manifest that is being written.
struct Own {
    writer: ManifestWriter,
    gathered: Vec<u8>,
    file: LaidFile,
    at: u64,
    ranges: Vec<(TimelineId, Lsn, Lsn)>,
    control_mtime: i64,
}

impl Listing {
    /// Reads what the server said, and begins a manifest where this restore needs one of its own. `whole`: all databases are restored.
    pub async fn begin(archive: &Archive, manifest: &Manifest, ground: &Ground, whole: bool) -> Result<Begun> {
        let label = BackupLabel::parse(&manifest.backup_label.0)
            .map_err(|e| Error::new(Kind::Corrupt, "the backup's backup_label").caused_by(e))?;
        if manifest.server_manifest.is_none() {
            return Ok(Begun::Unsaid);
        }
        let full = label.incremental_from.is_none();
        let told = match Told::read(archive, manifest, ground, full).await {
            Err(error) if error.kind() == Kind::Corrupt => return Ok(Begun::Lost(lost(&error))),
            told => told?,
        };
        let own = match full && whole && told.configured && !moved(manifest, ground) {
            true => None,
            false => Some(Own::begin(manifest, ground, told.ranges)?),
        };
        Ok(Begun::Said(Box::new(Listing { sent: told.sent, own })))
    }

    /// Whether it writes a manifest; otherwise the server's own is the right one.
    pub fn writes(&self) -> bool {
        self.own.is_some()
    }

    /// A file whose last byte was laid; `left_out`: not as the server sent it.
    ///
    /// Errors: `Kind::Corrupt` where the server said something else of it.
    pub fn laid(&mut self, path: &[u8], tally: &Tally, left_out: bool) -> Result<()> {
        let crc = tally.crc.load(Ordering::Relaxed);
        match &mut self.sent {
            Some(sent) if left_out => sent.pass_over(path)?,
            Some(sent) => sent.compare(path, tally.size, crc)?,
            None => {}
        }
        match &mut self.own {
            Some(own) if path != REPLACED => {
                own.line(&ManifestFile { path, size: tally.size, mtime: tally.mtime, crc })
            }
            _ => Ok(()),
        }
    }

    /// What was laid in another way, the files that the restore itself wrote, read back, and the end.
    pub fn finish(self, manifest: &Manifest, ground: &Ground, laid: &Laid, written: &[String]) -> Result<()> {
        if let Some(sent) = self.sent {
            sent.finish(manifest, &laid.control)?;
        }
        self.own.map_or(Ok(()), |own| own.finish(ground, laid, written))
    }
}

impl Own {
    fn begin(manifest: &Manifest, ground: &Ground, ranges: Vec<(TimelineId, Lsn, Lsn)>) -> Result<Own> {
        let version = manifest.major().ok_or_else(|| Error::new(Kind::Version, "a version that is not known"))?;
        ground.file(NAME, 0, 0o600)?;
        let (writer, gathered) = ManifestWriter::begin(version, manifest.system);
        let file = ground.open(NAME)?;
        Ok(Own { writer, gathered, file, at: 0, ranges, control_mtime: manifest.stopped_at.as_second() })
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

    fn finish(mut self, ground: &Ground, laid: &Laid, written: &[String]) -> Result<()> {
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

/// What the server's own manifest tells.
struct Told {
    /// The WAL that is needed.
    ranges: Vec<(TimelineId, Lsn, Lsn)>,
    /// Every file, where it is the manifest of all files.
    sent: Option<Sent>,
    /// All configuration files are among them.
    configured: bool,
}

impl Told {
    async fn read(archive: &Archive, manifest: &Manifest, ground: &Ground, full: bool) -> Result<Told> {
        let (mut ranges, mut configured, mut failed) = (Vec::new(), 0, None);
        let mut sending = full.then(|| Sent::begin(manifest, ground));
        let mut reader = ManifestReader::new();
        let bad = |e: crate::pg::manifest::BadManifest| Error::new(Kind::Corrupt, "the server's manifest").caused_by(e);
        let mut take = |bytes: &[u8], _| {
            let keep = &mut |item| {
                match item {
                    ManifestItem::WalRange { timeline, start, end } => ranges.push((timeline, start, end)),
                    ManifestItem::File { path, size, checksum } => {
                        configured += usize::from(CONFIGURATION.iter().any(|name| name.as_bytes() == path));
                        let added = sending.as_mut().map_or(Ok(()), |sent| sent.push(&path, size, &checksum));
                        return added.map_err(|error| {
                            let text = error.to_string();
                            failed = Some(error);
                            text
                        });
                    }
                    _ => {}
                }
                Ok(())
            };
            let read = reader.push(bytes, keep);
            failed.take().map_or_else(|| read.map_err(bad), Err)
        };
        server_parts(archive, manifest, &mut take).await?;
        reader.finish().map_err(bad)?;
        let sent = sending.map(|sending| sending.sorted()).transpose()?;
        Ok(Told { ranges, sent, configured: configured == CONFIGURATION.len() })
    }
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
