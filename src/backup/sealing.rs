//! Making objects: fresh salts, data keys that are renewed every hour, names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::upload::Upload;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::frames::FrameSealer;
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::key::WriterKeys;
use crate::seal::page_hash::PageHasher;
use crate::seal::sealer::{Compression, Sealed, seal_index};

/// How long one data key is used.
const KEY_LIFE: Duration = Duration::from_secs(3600);

/// Seals the objects of one backup.
pub struct Sealing {
    archive: Archive,
    ring: Arc<WriterRing>,
    keys: WriterKeys,
    since: Instant,
    pub id: BackupId,
}

impl Sealing {
    pub fn new(archive: Archive, ring: Arc<WriterRing>, id: BackupId) -> Result<Sealing> {
        let keys = ring.fresh()?;
        Ok(Sealing { archive, ring, keys, since: Instant::now(), id })
    }

    pub fn page_hasher(&self) -> PageHasher {
        self.ring.page_hasher()
    }

    fn keys(&mut self) -> Result<&WriterKeys> {
        if self.since.elapsed() > KEY_LIFE {
            self.keys = self.ring.fresh()?;
            self.since = Instant::now();
        }
        Ok(&self.keys)
    }

    /// `number` is the object's place in its folder.
    fn claims(&self, kind: ObjectKind, number: u32) -> Claims {
        self.archive.claims(kind, TimelineId(0), Lsn(u64::from(number)))
    }

    /// A sealer for the next pack, and its salt.
    pub fn pack(&mut self, number: u32, compression: Compression) -> Result<FrameSealer> {
        let (claims, salt) = (self.claims(ObjectKind::Pack, number), salt()?);
        Ok(FrameSealer::new(self.keys()?, claims, salt, compression))
    }

    /// An object of the index class, ready to be stored.
    pub fn index(&mut self, kind: ObjectKind, number: u32, content: &[u8]) -> Result<Upload> {
        let (claims, salt) = (self.claims(kind, number), salt()?);
        let sealed = seal_index(self.keys()?, claims, salt, Compression::Zstd(3), content);
        Ok(self.upload(kind, number, sealed))
    }

    /// Says where a sealed object goes.
    pub fn upload(&self, kind: ObjectKind, number: u32, sealed: Sealed) -> Upload {
        let (names, id) = (&self.archive.names, self.id.as_str());
        let name = match kind {
            ObjectKind::Pack => names.pack(id, number),
            ObjectKind::Map => names.map(id, number),
            ObjectKind::ServerManifest => names.server_manifest(id, number),
            ObjectKind::Intent => names.intent(id),
            // A manifest and a tombstone compete for one name.
            _ => names.backup(id),
        };
        Upload { name, salt: sealed.header.salt, bytes: sealed.bytes }
    }
}

/// The first `len` bytes of an object in pieces.
pub fn head(pieces: &[Bytes], len: u64) -> Bytes {
    let mut head = Vec::new();
    for piece in pieces {
        let missing = (len as usize).saturating_sub(head.len());
        head.extend_from_slice(piece.get(..missing).unwrap_or(piece));
    }
    Bytes::from(head)
}

fn salt() -> Result<[u8; 32]> {
    let mut salt = [0; 32];
    fill_random(&mut salt)?;
    Ok(salt)
}

/// Random bytes from the operating system.
pub fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))
}
