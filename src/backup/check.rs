//! The server's own manifest against what was received, while it passes; and its bytes into parts.

use sha2::{Digest, Sha256};

use super::record::Record;
use super::sealing::Sealing;
use super::upload::Outbox;
use crate::error::{Error, Kind, Result};
use crate::pg::incremental::target;
use crate::pg::manifest::{Checksum, ManifestItem, ManifestReader};
use crate::pg::{Lsn, SystemIdentifier};
use crate::seal::content::hex;
use crate::seal::content::manifest::ServerManifest;
use crate::seal::header::ObjectKind;
use crate::seal::sealer::OBJECT_BYTES;

/// Reads backup_manifest. Memory: one part of it, and a few bytes for each file.
pub struct ServerCheck {
    reader: ManifestReader,
    compared: Compared,
    hash: Sha256,
    len: u64,
    part: Vec<u8>,
    parts: u32,
}

struct Compared {
    /// Which of the records the manifest has named.
    named: Vec<bool>,
    system: SystemIdentifier,
    start: Lsn,
}

impl ServerCheck {
    pub fn new(records: &[Record], system: SystemIdentifier, start: Lsn) -> ServerCheck {
        let compared = Compared { named: vec![false; records.len()], system, start };
        ServerCheck { reader: ManifestReader::new(), compared, hash: Sha256::new(), len: 0, part: Vec::new(), parts: 0 }
    }

    /// `records` are always the same ones, sorted by path.
    pub fn push(&mut self, records: &[Record], mut bytes: &[u8], sealing: &mut Sealing, outbox: &Outbox) -> Result<()> {
        let compared = &mut self.compared;
        self.reader.push(bytes, &mut |item| compared.item(records, item)).map_err(refused)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(OBJECT_BYTES as usize - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = rest;
            if self.part.len() as u64 == OBJECT_BYTES {
                self.store(sealing, outbox)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, sealing: &mut Sealing, outbox: &Outbox) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        outbox.send(sealing.index(ObjectKind::ServerManifest, self.parts, &part)?)?;
        self.parts += 1;
        Ok(())
    }

    /// The manifest has ended and named every file that was received.
    pub fn finish(mut self, records: &[Record], sealing: &mut Sealing, outbox: &Outbox) -> Result<ServerManifest> {
        self.reader.finish().map_err(refused)?;
        let unnamed = self.compared.named.iter().zip(records).find(|(named, r)| r.is_file() && !**named);
        if let Some((_, record)) = unnamed {
            return Err(refused(format!("{} was received, but the manifest does not name it", record.shown())));
        }
        if !self.part.is_empty() {
            self.store(sealing, outbox)?;
        }
        Ok(ServerManifest { parts: self.parts, len: self.len, sha256: hex(&self.hash.finalize()) })
    }
}

impl Compared {
    fn item(&mut self, records: &[Record], item: ManifestItem) -> Result<(), String> {
        match item {
            ManifestItem::System(found) if found != self.system => {
                Err(format!("it is of system {found}, this server is {}", self.system))
            }
            ManifestItem::WalRange { start, .. } if start < self.start => {
                Err(format!("it needs WAL from {start}, the backup begins at {}", self.start))
            }
            ManifestItem::File { path, size, checksum } => self.file(records, &path, size, &checksum),
            _ => Ok(()),
        }
    }

    fn file(&mut self, records: &[Record], path: &[u8], size: u64, checksum: &Checksum) -> Result<(), String> {
        let shown = String::from_utf8_lossy(path);
        // Of an incremental file the name and size are those of what was sent.
        let find = |path: &[u8]| records.binary_search_by(|r| r.path.as_slice().cmp(path)).ok();
        let whole = find(path).filter(|at| records.get(*at).is_some_and(|r| r.sent.is_none()));
        let delta = || find(&target(path)?).filter(|at| records.get(*at).is_some_and(|r| r.sent.is_some()));
        let at = whole.or_else(delta).unwrap_or(records.len());
        let (Some(record), Some(named)) = (records.get(at).filter(|r| r.is_file()), self.named.get_mut(at)) else {
            return Err(format!("it names {shown:?}, which was not received"));
        };
        if std::mem::replace(named, true) {
            return Err(format!("it names {shown:?} twice"));
        }
        let received = record.sent.unwrap_or(record.size);
        if received != size {
            return Err(format!("{shown:?} has {size} bytes, received were {received}"));
        }
        match checksum {
            Checksum::Crc32c(crc) if *crc != record.crc => {
                Err(format!("the CRC-32C of {shown:?} is {crc:08x}, of what was received {:08x}", record.crc))
            }
            _ => Ok(()),
        }
    }
}

fn refused(problem: impl ToString) -> Error {
    Error::new(Kind::Corrupt, problem.to_string())
        .context("what was received is not what the server's manifest says")
        .hint("Take the backup again; if it happens again, look for faulty memory or network hardware.")
}
