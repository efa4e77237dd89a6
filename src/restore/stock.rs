//! The backups of an archive, and opening what belongs to them.

use bytes::Bytes;

use crate::archive::Archive;
use crate::archive::backups::BackupList;
pub use crate::archive::refused;
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::Malformed;
use crate::seal::content::manifest::Manifest;
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::opener;

/// All complete backups, oldest first. One that cannot be read is named in the log; when there is no other, it is the error.
pub async fn complete_backups(archive: &Archive) -> Result<Vec<Manifest>> {
    backups(archive).await.map(|list| list.complete)
}

/// As [`complete_backups`], with what could not be read.
pub async fn backups(archive: &Archive) -> Result<BackupList> {
    let mut list = archive.list_backups().await?;
    if list.complete.is_empty() && !list.unreadable.is_empty() {
        let (name, error) = list.unreadable.remove(0);
        return Err(error.context(name));
    }
    for (name, error) in &list.unreadable {
        tracing::warn!("{name} cannot be read and is passed over: {error}");
    }
    Ok(list)
}

/// A backup that was asked for and cannot be read is no backup that is not there.
pub fn demand_read(list: &BackupList, id: &str) -> Result<()> {
    let Some((name, error)) = list.unreadable.iter().find(|(name, _)| name.rsplit('/').next() == Some(id)) else {
        return Ok(());
    };
    let text = error.to_string();
    let text = if text.contains(name.as_str()) { text } else { format!("{name}: {text}") };
    Err(Error::new(error.kind(), text)
        .hint("Put it back from another copy of the repository, or leave --backup out to take another one that leads to the target."))
}

/// Backups that were told of by an error, at most.
const NAMED: usize = 4;

/// Where no backup is complete: the error that names the newest of those that were, and whose manifest is gone by no expiry. `None`: there was never one, or one is
/// complete.
pub async fn lost(archive: &Archive) -> Result<Option<Error>> {
    let announced = archive.announced().await?;
    let list = archive.list_backups().await?;
    if !list.complete.is_empty() {
        return Ok(None);
    }
    let unfinished = archive.unfinished(announced, &list).await?;
    let lost: Vec<&str> = unfinished.iter().rev().filter(|one| one.lost).map(|one| one.id.as_str()).collect();
    let Some(first) = lost.get(..NAMED.min(lost.len())).filter(|first| !first.is_empty()) else { return Ok(None) };
    let more = lost.len() - first.len();
    let others = if more > 0 { format!(", and {more} more") } else { String::new() };
    let folder = format!("{}/backups", archive.names.root());
    let text = format!(
        "the archive has no complete backup any more: the manifests of backups that were complete are missing from {folder}: {}{others}",
        first.join(", ")
    );
    let hint = format!(
        "Bring {folder} back from a copy of the repository: a new backup would not bring back what only these hold."
    );
    Ok(Some(Error::new(Kind::Corrupt, text).hint(hint)))
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

pub fn malformed(name: &str, cause: Malformed) -> Error {
    Error::new(Kind::Corrupt, name).caused_by(cause)
}
