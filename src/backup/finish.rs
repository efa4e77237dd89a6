//! The end of a backup: maps, then the manifest, whose creation makes it one.

use jiff::Timestamp;

use super::cache::Keeping;
use super::delta::Delta;
use super::diff::Judged;
use super::intake::{Files, Received, Tally};
use super::layers::{self, Place, Written};
use super::parent_files::ParentFiles;
use super::record::Packs;
use super::state::host;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::pg::label::{BackupFrom, BackupLabel, TablespaceLine, parse_tablespace_map};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{ControlFacts, Manifest, MapRef, Raw, Sizes, Tablespace, Transfer};

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

/// Writes the maps and what is kept for the next backup: which maps the manifest names, newest first, and whether the page hashes are all on the shelf.
/// `parent` has the maps of what the files were compared with; where survivors are stored anew (`renewed`) all of them are merged, since a run
/// that another one covers holds its pack, too. Blocks.
pub fn write_maps(
    files: Files,
    tally: &Tally,
    parent: &[MapRef],
    place: &mut Place<'_>,
    renewed: bool,
) -> Result<(Written, bool)> {
    let Files { records, diff, packs, scratch: _scratch } = files;
    let Judged { parent: older, kept, found } = diff.finish();
    let packs = Packs { own: packs, found };
    let mut delta = Delta::new(records, older.as_ref().map(ParentFiles::walk), packs, kept)?;
    // What is longer than all of them is merged with all of them.
    let bytes = if renewed { u64::MAX } else { layers::estimate(tally.entries, tally.rows) };
    let written = layers::write(place, std::iter::from_fn(|| delta.next_entry().transpose()), bytes, parent)?;
    Ok((written, delta.finish().is_some_and(Keeping::finish)))
}

/// What the manifest says beside what was received.
pub struct Said<'a> {
    pub id: &'a BackupId,
    pub label: &'a str,
    pub version_num: u32,
    pub written: Written,
    /// What it was compared with, or lies over.
    pub parent: Option<&'a Manifest>,
    pub transfer: Transfer,
    /// Survivors were stored anew.
    pub renewed: bool,
    pub why_full: Option<String>,
    /// That contents are sealed for.
    pub identity: Option<String>,
}

/// The manifest, all but what only the end knows: `sizes.read` and `sizes.stored`. Whatever the labels and pg_control say must agree with what the
/// server said.
pub fn manifest(archive: &Archive, received: &Received, span: &Span, said: Said<'_>) -> Result<Manifest> {
    let disagree =
        |what: String| Error::new(Kind::Corrupt, what).context("the server's base backup does not agree with itself");
    let bad = |e: &dyn std::fmt::Display| disagree(e.to_string());
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
    let parent = said.parent;
    let lines = parse_tablespace_map(received.tablespace_map.as_deref().unwrap_or_default()).map_err(|e| bad(&e))?;
    Ok(Manifest {
        version: Manifest::VERSION,
        id: said.id.clone(),
        label: said.label.to_owned(),
        cluster: archive.names.cluster.clone(),
        system: archive.names.system,
        segment_size: archive.names.segment_size,
        version_num: said.version_num,
        from_standby: server_label.from == BackupFrom::Standby,
        timeline: span.timeline,
        start: span.start,
        stop: span.stop,
        stop_timeline: span.stop_timeline,
        checkpoint: server_label.checkpoint,
        started_at: span.started_at,
        stopped_at: span.stopped_at,
        parent: parent.map(|p| p.id.clone()),
        transfer: said.transfer,
        why_full: said.why_full,
        survivors_at: parent.filter(|_| !said.renewed).map_or(span.started_at, |p| p.survivors_at),
        maps: said.written.maps,
        tablespaces: tablespaces(&lines, received),
        backup_label: Raw(received.backup_label.clone()),
        tablespace_map: received.tablespace_map.clone().map(Raw),
        server_manifest: received.server_manifest.clone(),
        sizes: sizes(received, parent, said.written.held),
        control: facts(&control),
        bad_pages: received.bad_pages.clone(),
        bad_page_count: received.bad_page_count,
        torn_pages: Vec::new(),
        absent_tablespaces: received.absent_tablespaces.clone(),
        identity: said.identity,
        made_by: made_by(),
        host: host(),
    })
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

fn sizes(received: &Received, parent: Option<&Manifest>, held: Option<u64>) -> Sizes {
    let Tally { files, total, changed, moved, reused, zero, packs, found, .. } = received.tally;
    // Where older maps stay, packs that they alone name are as good as needed.
    let carried = held.unwrap_or_else(|| parent.map_or(0, |p| p.sizes.carried) + changed + found);
    Sizes { total, files, read: 0, stored: 0, changed, moved, reused, zero, packs, carried }
}

fn facts(control: &ControlFile) -> ControlFacts {
    let parameters = control.parameters;
    ControlFacts {
        control_version: control.control_version,
        catalog_version: control.catalog_version,
        data_checksum_version: control.data_checksum_version,
        min_recovery_point: control.min_recovery_point,
        relation_segment_pages: control.relation_segment_pages,
        wal_level: parameters.wal_level,
        max_connections: parameters.max_connections,
        max_worker_processes: parameters.max_worker_processes,
        max_wal_senders: parameters.max_wal_senders,
        max_prepared_transactions: parameters.max_prepared_transactions,
        max_locks_per_transaction: parameters.max_locks_per_transaction,
        track_commit_timestamp: control.track_commit_timestamp,
    }
}
