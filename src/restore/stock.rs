//! The backups of an archive, and opening what belongs to them.

use bytes::Bytes;

use crate::archive::Archive;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::manifest::Manifest;
use crate::seal::content::{BackupId, Malformed};
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::opener::{self, OpenFailed};

/// All complete backups, in the order of their names. Tombstones and names that are no backup's are left out.
pub async fn complete_backups(archive: &Archive) -> Result<Vec<Manifest>> {
    let prefix = format!("{}/backups", archive.names.root());
    let listed = archive.repo.list(&prefix).await?;
    let leaf = |name: &str| BackupId::parse(name.rsplit('/').next().unwrap_or_default()).ok();
    let mut ids: Vec<BackupId> = listed.iter().filter_map(|l| leaf(&l.name)).collect();
    ids.sort();
    let mut out = Vec::with_capacity(ids.len());
    for id in ids {
        out.extend(manifest(archive, &id).await.context(format_args!("backup {id}"))?);
    }
    Ok(out)
}

/// The manifest of a backup; `None` for one that was given up, or was deleted since it was listed.
async fn manifest(archive: &Archive, id: &BackupId) -> Result<Option<Manifest>> {
    let name = archive.names.backup(id.as_str());
    let Some(object) = archive.repo.get(&name).await? else { return Ok(None) };
    let (header, _) = opener::read_header(&object).map_err(|e| refused(&name, e))?;
    if header.claims.kind == ObjectKind::Tombstone {
        return Ok(None);
    }
    let claims = part_claims(archive, ObjectKind::Manifest, 0);
    let plain = opener::open_index(&object, &claims, archive.keys.as_ref()).map_err(|e| refused(&name, e))?;
    Manifest::decode(&plain, id).map(Some).map_err(|e| malformed(&name, e))
}

/// Fetches and opens an object of the index class that a backup cannot be restored without.
pub async fn index_object(archive: &Archive, name: &str, kind: ObjectKind, part: u32) -> Result<Vec<u8>> {
    let object = needed(archive.repo.get(name).await?, name)?;
    let claims = part_claims(archive, kind, part);
    opener::open_index(&object, &claims, archive.keys.as_ref()).map_err(|e| refused(name, e))
}

/// What an object outside WAL must claim: part `part` in its folder.
pub fn part_claims(archive: &Archive, kind: ObjectKind, part: u32) -> Claims {
    archive.claims(kind, TimelineId(0), Lsn(u64::from(part)))
}

pub fn needed(found: Option<Bytes>, name: &str) -> Result<Bytes> {
    found.ok_or_else(|| Error::new(Kind::Corrupt, format!("{name} is missing, and a backup needs it")))
}

pub fn refused(name: &str, cause: OpenFailed) -> Error {
    let kind = match cause {
        OpenFailed::Key(_) => Kind::Key,
        OpenFailed::Version(_) => Kind::Repository,
        _ => Kind::Corrupt,
    };
    Error::new(kind, name).caused_by(cause)
}

pub fn malformed(name: &str, cause: Malformed) -> Error {
    Error::new(Kind::Corrupt, name).caused_by(cause)
}
