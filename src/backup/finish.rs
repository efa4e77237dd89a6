//! The end of a backup: maps, then the manifest, whose creation makes it one.

use std::sync::Arc;

use jiff::Timestamp;

use super::incremental_parent::ParentFiles;
use super::intake::Received;
use super::layers::{self, Place};
use super::record::Record;
use super::sealing::Sealing;
use super::state::host;
use super::upload::Outbox;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::pg::label::{BackupFrom, BackupLabel, TablespaceLine, parse_tablespace_map};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::manifest::{ControlFacts, Manifest, MapRef, Raw, Sizes, Tablespace, Transfer};
use crate::seal::content::map::{Entry, EntryKind, PackPlace};

/// When and where a backup began and ended.
#[derive(Clone, Debug)]
pub struct Span {
    pub start: Lsn,
    pub timeline: TimelineId,
    pub stop: Lsn,
    pub stop_timeline: TimelineId,
    pub started_at: Timestamp,
    pub stopped_at: Timestamp,
}

/// What this program calls itself in manifests and intents.
pub fn made_by() -> String {
    concat!("walrecv ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The parent's files, and its maps.
pub struct Base<'a> {
    pub files: &'a ParentFiles,
    pub maps: &'a [MapRef],
    pub read: &'a layers::ReadPart<'a>,
}

/// Writes the map of all files, and of the parent's that are gone; which maps the manifest names. Blocks.
pub fn write_map(
    records: &[Record],
    packs: &[Arc<PackPlace>],
    base: Option<Base<'_>>,
    sealing: &mut Sealing,
    outbox: &Outbox,
) -> Result<Vec<MapRef>> {
    let mapped = || records.iter().filter(|r| r.mapped);
    let bytes = layers::estimate(mapped().count() as u64, mapped().map(|r| r.rows.len() as u64).sum());
    let entries = mapped().map(|r| r.entry(packs));
    let Some(Base { files, maps, read }) = base else {
        let mut place = Place { sealing, outbox, read: &|_, _| Err(Error::new(Kind::Failed, "there is no parent")) };
        return layers::write(&mut place, entries, bytes, &[]);
    };
    let there = |path: &[u8]| records.binary_search_by(|r| r.path.as_slice().cmp(path)).is_ok();
    let mut lost = files.paths().filter(|path| !there(path)).peekable();
    let mut records = mapped().peekable();
    let delta = std::iter::from_fn(|| {
        let next = records.peek().map(|r| r.path.as_slice());
        match lost.next_if(|path| next.is_none_or(|next| *path < next)) {
            Some(path) => Some(Ok(gone(path))),
            None => records.next().map(|r| r.entry(packs)),
        }
    });
    layers::write(&mut Place { sealing, outbox, read }, delta, bytes, maps)
}

/// A path of the parent that is not there any more.
fn gone(path: &[u8]) -> Entry {
    let (path, kind) = (path.to_vec(), EntryKind::Absent);
    Entry { path, kind, size: 0, mode: 0, mtime: 0, link: Vec::new(), complete: true, runs: Vec::new() }
}

/// The manifest, all but what only the end knows: `sizes.stored`. Whatever the labels and pg_control say must agree with what the server said.
pub fn manifest(
    archive: &Archive,
    received: &Received,
    span: &Span,
    label: &str,
    version_num: u32,
    maps: Vec<MapRef>,
) -> Result<Manifest> {
    let disagree =
        |what: String| Error::new(Kind::Corrupt, what).context("the server's base backup does not agree with itself");
    let bad = |e: &dyn std::fmt::Display| disagree(e.to_string());
    // The newest map is this backup's own.
    let own = maps.first().ok_or_else(|| Error::new(Kind::Failed, "no map was written"))?;
    let server_label = BackupLabel::parse(&received.backup_label).map_err(|e| bad(&e))?;
    let control = ControlFile::parse(&received.control).map_err(|e| bad(&e))?;
    if (server_label.start, server_label.timeline) != (span.start, span.timeline) {
        let (start, timeline) = (server_label.start, server_label.timeline);
        let (said, on) = (span.start, span.timeline);
        return Err(disagree(format!(
            "backup_label starts at {start} of timeline {timeline}, the server said {said} of {on}"
        )));
    }
    if control.system != archive.names.system {
        let (found, expected) = (control.system, archive.names.system);
        return Err(disagree(format!("pg_control is of system {found}, the server said {expected}")));
    }
    let lines = parse_tablespace_map(received.tablespace_map.as_deref().unwrap_or_default()).map_err(|e| bad(&e))?;
    Ok(Manifest {
        version: Manifest::VERSION,
        id: own.backup.clone(),
        label: label.to_owned(),
        cluster: archive.names.cluster.clone(),
        system: archive.names.system,
        segment_size: archive.names.segment_size,
        version_num,
        from_standby: server_label.from == BackupFrom::Standby,
        timeline: span.timeline,
        start: span.start,
        stop: span.stop,
        stop_timeline: span.stop_timeline,
        checkpoint: server_label.checkpoint,
        started_at: span.started_at,
        stopped_at: span.stopped_at,
        parent: None,
        transfer: Transfer::Full,
        why_full: None,
        survivors_at: span.started_at,
        maps,
        tablespaces: tablespaces(&lines, received),
        backup_label: Raw(received.backup_label.clone()),
        tablespace_map: received.tablespace_map.clone().map(Raw),
        server_manifest: received.server_manifest.clone(),
        sizes: sizes(received),
        control: facts(&control),
        bad_pages: received.bad_pages.clone(),
        bad_page_count: received.bad_page_count,
        made_by: made_by(),
        host: host(),
    })
}

/// The server sent only what changed since the parent: where the rest is, the parent's maps say.
pub fn build_on(manifest: &mut Manifest, parent: Manifest) {
    manifest.parent = Some(parent.id);
    manifest.transfer = Transfer::Incremental;
    manifest.survivors_at = parent.survivors_at;
    manifest.sizes.carried += parent.sizes.carried;
}

/// All tablespaces: tablespace_map has the exact bytes of a path, and lacks those inside the data directory.
fn tablespaces(lines: &[TablespaceLine], received: &Received) -> Vec<Tablespace> {
    let known = |oid| lines.iter().find(|l| l.oid == oid).map(|l| l.path.clone());
    let rows = received.tablespaces.iter().filter_map(|row| Some((row.oid?, &row.location)));
    rows.map(|(oid, shown)| {
        let location = Raw(known(oid).unwrap_or_else(|| shown.clone().into_bytes()));
        Tablespace { oid, location }
    })
    .collect()
}

fn sizes(received: &Received) -> Sizes {
    let files = || received.records.iter().filter(|r| r.is_file());
    Sizes {
        total: files().map(|r| r.size).sum(),
        files: files().count() as u64,
        read: 0,
        stored: 0,
        changed: received.plain,
        reused: files().map(Record::kept).sum(),
        zero: received.zero,
        packs: received.packs.len() as u32,
        carried: received.plain,
    }
}

fn facts(control: &ControlFile) -> ControlFacts {
    let parameters = control.parameters;
    ControlFacts {
        control_version: control.control_version,
        catalog_version: control.catalog_version,
        data_checksum_version: control.data_checksum_version,
        wal_level: parameters.wal_level,
        max_connections: parameters.max_connections,
        max_worker_processes: parameters.max_worker_processes,
        max_wal_senders: parameters.max_wal_senders,
        max_prepared_transactions: parameters.max_prepared_transactions,
        max_locks_per_transaction: parameters.max_locks_per_transaction,
        track_commit_timestamp: control.track_commit_timestamp,
    }
}
