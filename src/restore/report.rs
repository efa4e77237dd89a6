//! The plan as people and scripts see it.

use std::fmt::Display;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::choose::Choice;
use super::decide::Bounds;
use super::only::{Database, Only};
use super::plan::{Commit, Landing, MadeTablespace, Stop};
use super::target::{Target, time_text};
use crate::pg::{Lsn, SegmentSize};
use crate::seal::content::manifest::{Manifest, Tablespace};
use crate::seal::content::rfc3339;

/// What a restore is going to do. The names of the fields are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub target: String,
    pub backup: BackupShown,
    /// Newer backups that cannot reach the target.
    pub passed_over: Vec<PassedShown>,
    pub timelines: Vec<LegShown>,
    pub target_timeline: u32,
    /// Bytes of the files that are laid.
    pub backup_bytes: u64,
    /// Bytes of packs that are fetched for them, as [`Restored::fetched`](super::Restored) counts them where nothing stood there before; `None` where the maps
    /// were not read for it.
    pub stored_bytes: Option<u64>,
    /// By what a drill has measured; `None` where none has measured as much.
    pub estimate: Option<EstimateShown>,
    /// Where only some databases are restored.
    pub databases: Option<DatabasesShown>,
    pub files: u64,
    pub wal_segments: u64,
    /// Of these segments, before compression.
    pub wal_bytes: u64,
    /// Bytes of the objects that are fetched for them, as they are stored; `None` where they were not listed for it.
    pub wal_stored_bytes: Option<u64>,
    pub landing: LandingShown,
    /// Tablespaces of the backup outside of the data directory, and where they are laid.
    pub tablespaces: Vec<PlacedShown>,
    /// Tablespaces that were made after the backup: recovery makes them at these very paths.
    pub new_tablespaces: Vec<TablespaceShown>,
    /// Commits at or before the target time that lie after the stop, because commit times do not follow the order of WAL.
    pub missed: Vec<CommitShown>,
    /// How many were seen; the first of them are named.
    pub missed_commits: u64,
    /// How far was looked for them.
    pub looked_until: String,
    /// Behind that there are more from here on, as the summaries of segments say. Of the open segment no summary speaks.
    pub more_missed_from: Option<String>,
    /// What whoever restores should know before: other timelines that go on later than where `--latest` lands, or have commits up to the target time;
    /// tablespaces whose files the backup has not.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct DatabasesShown {
    pub laid: Vec<Database>,
    /// They are there as holes, refuse every session, and shall be dropped.
    pub left_out: Vec<Database>,
    /// A query for the statements that drop them.
    pub drop: Option<String>,
    /// Pages of what is left out that are laid, since recovery needs them.
    pub pages: u64,
    /// The WAL changes rows of `pg_database`: some database may have another name at the target than here.
    pub renamed: bool,
}

/// How long it may take, on a host and a path to the repository like those of the drill.
#[derive(Clone, Debug, Serialize)]
pub struct EstimateShown {
    pub laying_seconds: f64,
    pub recovery_seconds: f64,
    /// When the drill ended.
    pub measured_at: String,
    pub host: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct BackupShown {
    pub id: String,
    pub label: String,
    pub server_version_num: u32,
    pub start_lsn: String,
    pub stop_lsn: String,
    pub stopped_at: String,
    pub why: String,
    /// A noted check found it hurt: laying it back may fail. Where another one lands at the same place that is taken.
    pub hurt: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct PassedShown {
    pub id: String,
    pub why: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct LegShown {
    pub timeline: u32,
    pub begin: String,
    /// Where the timeline is left; for the last one, where recovery needs no more WAL.
    pub end: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct CommitShown {
    pub xid: u32,
    pub time: String,
    pub lsn: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct TablespaceShown {
    pub oid: u32,
    pub location: String,
    /// Start of the record that makes it.
    pub lsn: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct PlacedShown {
    pub oid: u32,
    /// On the server.
    pub location: String,
    /// `None`: not decided yet.
    pub place: Option<String>,
}

impl PlacedShown {
    /// Those of a backup. What `placed` does not name goes where it was.
    pub(super) fn of(manifest: &Manifest, placed: &[(u32, PathBuf)]) -> Vec<PlacedShown> {
        let outside = manifest.tablespaces.iter().filter(|tablespace| tablespace.location.0.starts_with(b"/"));
        let shown = |tablespace: &Tablespace| {
            let location = String::from_utf8_lossy(&tablespace.location.0).into_owned();
            let place =
                placed.iter().find(|(oid, _)| *oid == tablespace.oid).map(|(_, place)| place.display().to_string());
            PlacedShown { oid: tablespace.oid, place: place.or_else(|| Some(location.clone())), location }
        };
        outside.map(shown).collect()
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct LandingShown {
    /// `None` when nothing was committed between the backup's redo point and the stop.
    pub last_commit: Option<CommitShown>,
    /// The first commit that is not there any more, as far as was looked: often the one at which recovery stops.
    pub next_commit: Option<CommitShown>,
    pub commits_replayed: u64,
    /// End of the last record that is replayed.
    pub lsn: String,
    pub timeline: u32,
    /// What ends the recovery.
    pub stop: String,
}

impl Plan {
    pub fn of(choice: &Choice, target: &Target, size: SegmentSize) -> Plan {
        let (manifest, landing) = (&choice.manifest, &choice.landing);
        let target_timeline = Bounds::target_for(&choice.path, landing.needed);
        let legs = choice.path.legs.iter().filter(|leg| leg.timeline <= target_timeline);
        let legs = legs.filter(|leg| leg.end.is_none_or(|end| end > manifest.start));
        let wal_segments = super::choose::segments(size, manifest.start, landing.needed);
        Plan {
            target: target.describe(),
            backup: BackupShown {
                id: manifest.id.to_string(),
                label: manifest.label.clone(),
                server_version_num: manifest.version_num,
                start_lsn: manifest.start.to_string(),
                stop_lsn: manifest.stop.to_string(),
                stopped_at: rfc3339(manifest.stopped_at),
                why: "the newest complete backup from which the target can be reached".to_owned(),
                hurt: choice.hurt,
            },
            passed_over: choice
                .passed_over
                .iter()
                .map(|p| PassedShown { id: p.backup.clone(), why: p.why.clone() })
                .collect(),
            timelines: legs
                .map(|leg| LegShown {
                    timeline: leg.timeline.0,
                    begin: leg.begin.max(manifest.start).to_string(),
                    end: leg.end.map_or(landing.needed, |end| end.min(landing.needed)).to_string(),
                })
                .collect(),
            target_timeline: target_timeline.0,
            backup_bytes: manifest.sizes.total,
            stored_bytes: None,
            estimate: None,
            databases: None,
            files: manifest.sizes.files,
            wal_segments,
            wal_bytes: wal_segments * size.bytes(),
            wal_stored_bytes: None,
            landing: LandingShown {
                last_commit: landing.last_commit.map(commit),
                next_commit: landing.next_commit.map(commit),
                commits_replayed: landing.commits,
                lsn: landing.replayed.to_string(),
                timeline: landing.timeline.0,
                stop: stop(landing),
            },
            tablespaces: PlacedShown::of(manifest, &[]),
            new_tablespaces: landing.tablespaces.iter().map(tablespace).collect(),
            missed: landing.missed.iter().copied().map(commit).collect(),
            missed_commits: landing.missed_count,
            looked_until: landing.looked.to_string(),
            more_missed_from: choice.more_left_out.map(|lsn| lsn.to_string()),
            warnings: warnings(choice),
        }
    }
}

impl Plan {
    /// The plan of a restore of some databases.
    pub fn only(self, only: &Only) -> Plan {
        let databases = DatabasesShown {
            laid: only.laid.clone(),
            left_out: only.left_out.clone(),
            drop: only.drops(),
            pages: only.pages,
            renamed: only.renamed,
        };
        Plan { backup_bytes: only.bytes, databases: Some(databases), ..self }
    }
}

fn warnings(choice: &Choice) -> Vec<String> {
    let later = choice.later.iter().map(ToString::to_string);
    let beside = choice.beside.iter().map(ToString::to_string);
    let held = choice.held.iter().map(ToString::to_string);
    later.chain(beside).chain(choice.unknown.iter().cloned()).chain(held).chain(choice.manifest.absences()).collect()
}

fn commit(commit: Commit) -> CommitShown {
    CommitShown { xid: commit.xid, time: time_text(commit.time), lsn: commit.start.to_string() }
}

fn tablespace(made: &MadeTablespace) -> TablespaceShown {
    let location = String::from_utf8_lossy(&made.location).into_owned();
    TablespaceShown { oid: made.oid, location, lsn: made.at.to_string() }
}

fn stop(landing: &Landing) -> String {
    let rolled_back = if landing.rolled_back { ", which rolls the transaction back" } else { "" };
    match landing.stop {
        Stop::Before { start, .. } => format!("the server stops before the record at {start}{rolled_back}"),
        Stop::After { start, .. } => format!("the server stops after the record at {start}{rolled_back}"),
        Stop::EndOfWal => "the archive's WAL ends".to_owned(),
        Stop::Cut => "the target is met where the WAL ends: it is cut there".to_owned(),
    }
}

/// A position, or nothing, as text.
pub fn as_text<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

pub fn as_seconds<S: Serializer>(value: &std::time::Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(value.as_secs_f64())
}

/// The first segment that the recovery asks for.
pub fn first_segment(choice: &Choice, size: SegmentSize) -> crate::pg::SegmentName {
    let start: Lsn = choice.manifest.start;
    let number = size.segment_of(start);
    let sources = choice.path.sources(number, size);
    let target = Bounds::target_for(&choice.path, choice.landing.needed);
    let timeline = sources.iter().map(|leg| leg.timeline).find(|t| *t <= target).unwrap_or(choice.manifest.timeline);
    crate::pg::SegmentName::new(timeline, number, size)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
