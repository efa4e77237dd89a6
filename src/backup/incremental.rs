//! Asking the server for no more than what changed (17+), and what leads to a full transfer instead (which may still be compared with the page hashes of
//! an earlier backup, and store only what changed).
//!
//! Every refusal of an incremental transfer comes before the first byte of the backup and leaves the session as it was, so the full transfer is asked
//! for on the same connection. It costs the server one more checkpoint: PostgreSQL looks for its summaries of WAL only after it has made one.

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use sha2::{Digest, Sha256};

use super::parent_files::ParentFiles;
use crate::archive::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::net::{Connection, Upload};
use crate::pg::{Lsn, MajorVersion, TimelineId};
use crate::seal::content::hex;
use crate::seal::content::manifest::{Manifest, ServerManifest};
use crate::seal::header::ObjectKind;
use crate::seal::opener::open_index;
use crate::wire::ServerError;
use crate::wire::command::{BackupEvent, BaseBackupOptions};

/// A base backup that has begun.
pub struct Asked {
    /// Its first event.
    pub first: BackupEvent,
    /// Why the server sends everything, for people; `None`: it sends what changed since the parent.
    pub why_full: Option<String>,
}

/// The parent of an incremental transfer and its files, or why there can be none.
pub type Wanted<'a> = std::result::Result<(&'a Manifest, &'a ParentFiles), String>;

/// Sends BASE_BACKUP: incrementally to `parent`, or, where that cannot be, in full.
///
/// Errors: what would stop a full transfer too.
pub async fn ask(
    connection: &mut Connection,
    archive: &Archive,
    parent: Wanted<'_>,
    options: &BaseBackupOptions,
) -> Result<Asked> {
    let why = match prepare(connection, archive, parent).await? {
        Some(why) => why,
        None => {
            let incremental = BaseBackupOptions { incremental: true, ..options.clone() };
            match connection.begin_base_backup(&incremental).await? {
                Ok(first) => return Ok(Asked { first, why_full: None }),
                Err(refusal) if means_full(&refusal.server) => told(&refusal.server),
                Err(refusal) => return Err(refusal.error),
            }
        }
    };
    tracing::info!("a full transfer: {why}");
    match connection.begin_base_backup(options).await? {
        Ok(first) => Ok(Asked { first, why_full: Some(why) }),
        Err(refusal) => Err(refusal.error),
    }
}

/// Why a server of this version sends everything.
pub fn too_old(version: MajorVersion) -> String {
    format!("PostgreSQL {version} has no incremental transfers (17 has them)")
}

/// Everything before BASE_BACKUP: why the transfer must be full, or nothing.
async fn prepare(connection: &mut Connection, archive: &Archive, parent: Wanted<'_>) -> Result<Option<String>> {
    let (parent, files) = match parent {
        Ok(parent) => parent,
        Err(why) => return Ok(Some(why)),
    };
    let stored = match &parent.server_manifest {
        Some(stored) if parent.major() >= Some(MajorVersion::V17) => stored.clone(),
        _ => return Ok(Some(format!("backup {} has no manifest that a server takes", parent.id))),
    };
    // Without it the server would find out only after a checkpoint.
    if connection.show("summarize_wal").await? != "on" {
        return Ok(Some("summarize_wal is off on the server".to_owned()));
    }
    if let Some(path) = &files.torn {
        let shown = String::from_utf8_lossy(path);
        return Ok(Some(format!("{shown} of backup {} is not made of whole pages", parent.id)));
    }
    match connection.upload_manifest(parts(archive.clone(), parent.id.to_string(), stored)).await? {
        Upload::Taken => Ok(None),
        Upload::Refused(refusal) if means_full(&refusal.server) => Ok(Some(told(&refusal.server))),
        Upload::Refused(refusal) => Err(refusal.error),
        Upload::GivenUp(error) if error.is_transient() => Err(error),
        Upload::GivenUp(error) => {
            tracing::error!("the manifest of backup {} cannot be read: {error}", parent.id);
            Ok(Some(format!("the manifest of backup {} cannot be read: {error}", parent.id)))
        }
    }
}

/// Whether a refusal speaks of the increment alone. `basebackup_incremental.c` and `walsummarizer.c` refuse with 55000 (another timeline, missing
/// or expired summaries, a quiet standby, a summarizer that stands still); a manifest that the server does not take is XX000 (`manifest_report_error`);
/// a summary that was removed at this moment or is damaged 58P01 and XX001; one that does not fit the server's memory 53200 and 54000. Everything
/// else (a shutdown, a cancelled command, missing rights) would stop a full transfer, too.
fn means_full(error: &ServerError) -> bool {
    matches!(error.sqlstate.as_str(), "55000" | "XX000" | "XX001" | "58P01" | "53200" | "54000")
        && !error.is_from("exec_replication_command")
}

/// In the server's words.
fn told(error: &ServerError) -> String {
    let detail = error.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("the server refuses an incremental one: {}{detail}", error.message)
}

/// The parts of a stored manifest, one at a time; the last one is given only when the whole has the hash that it should have.
fn parts(archive: Archive, id: String, stored: ServerManifest) -> impl Stream<Item = Result<Bytes>> {
    struct Reading {
        archive: Archive,
        id: String,
        stored: ServerManifest,
        next: u32,
        len: u64,
        hash: Sha256,
    }
    let reading = Reading { archive, id, stored, next: 0, len: 0, hash: Sha256::new() };
    stream::try_unfold(reading, |mut reading| async move {
        let Reading { archive, id, stored, next, len, hash } = &mut reading;
        if *next >= stored.parts {
            return Ok(None);
        }
        let name = archive.names.server_manifest(id, *next);
        let claims = archive.claims(ObjectKind::ServerManifest, TimelineId(0), Lsn(u64::from(*next)));
        let object = archive.repo.get(&name).await?;
        let object = object.ok_or_else(|| Error::new(Kind::Corrupt, format!("{name} is missing")))?;
        let plain = open_index(&object, &claims, archive.keys.as_ref()).map_err(|e| refused(&name, e))?;
        hash.update(&plain);
        *len += plain.len() as u64;
        *next += 1;
        if *next == stored.parts && (*len != stored.len || hex(&hash.clone().finalize()) != stored.sha256) {
            return Err(Error::new(Kind::Corrupt, format!("{name}: the manifest is not the one that was stored")));
        }
        Ok(Some((Bytes::from(plain), reading)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(sqlstate: &str, routine: &str) -> ServerError {
        ServerError { sqlstate: sqlstate.into(), routine: Some(routine.into()), ..ServerError::default() }
    }

    #[test]
    fn what_speaks_of_the_increment_leads_to_a_full_transfer_and_nothing_else() {
        for (sqlstate, routine) in [
            ("55000", "PrepareForIncrementalBackup"),
            ("55000", "WaitForWalSummarization"),
            ("XX000", "manifest_report_error"),
            ("58P01", "OpenWalSummaryFile"),
            ("XX001", "ReportWalSummaryError"),
            ("53200", "AllocSetAlloc"),
        ] {
            assert!(means_full(&refusal(sqlstate, routine)), "{sqlstate}");
        }
        for (sqlstate, routine) in [
            ("57P01", "ProcessInterrupts"),
            ("57014", "ProcessInterrupts"),
            ("55000", "exec_replication_command"),
            ("42501", "InitPostgres"),
            ("53300", "InitProcess"),
            ("53100", "mdextend"),
        ] {
            assert!(!means_full(&refusal(sqlstate, routine)), "{sqlstate}");
        }
    }
}
