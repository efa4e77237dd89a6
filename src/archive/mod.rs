//! Floor 4: what is stored of one cluster, as one thing: segments, parts and tails joined; timelines; backups.

mod along;
pub mod backups;
pub mod cluster;
pub mod events;
pub mod examine;
pub mod extent;
mod file;
pub mod group;
pub mod heartbeat;
pub mod history;
pub mod holes;
pub mod intents;
pub mod inventory;
mod join;
pub mod key_files;
pub mod learn;
pub mod lost;
mod newest;
mod own_wal;
pub mod path;
pub mod plans;
mod put;
pub mod read;
pub mod replay;
pub mod same;
pub mod shelf;
mod source;
mod tails;
pub mod unfinished;
pub mod verdicts;

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::{ClusterNames, Repository, names};
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::key::ReaderKeys;
use crate::seal::opener::OpenFailed;

/// One cluster's part of a repository, with the keys to read it. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    pub repo: Repository,
    pub names: ClusterNames,
    pub keys: Arc<dyn ReaderKeys>,
}

impl Archive {
    /// The incarnations (`<system id>-<segment size>`) stored under a cluster's name, in no order. Folders of other names are left out.
    pub async fn incarnations(repo: &Repository, cluster: &str) -> Result<Vec<ClusterNames>> {
        if !names::valid_cluster(cluster) {
            return Err(Error::new(Kind::Usage, format!("{cluster:?} cannot be the name of a cluster"))
                .hint("Use letters, digits and . _ - + = in it, at most 63, the first not a dot."));
        }
        let folders = repo.folders(&format!("clusters/{cluster}")).await?;
        Ok(folders.iter().filter_map(|folder| ClusterNames::parse_incarnation(cluster, folder)).collect())
    }

    /// Two clusters of one system under two names are two archives, and their objects make the same claims: what tells its cluster itself is held to that.
    /// `Kind::Corrupt` where it is another one.
    pub fn demand_cluster(&self, name: &str, cluster: &str) -> Result<()> {
        let own = &self.names.cluster;
        if cluster == own {
            return Ok(());
        }
        Err(Error::new(Kind::Corrupt, format!("{name} is of cluster {cluster:?}, and stands in the folder of {own:?}"))
            .hint("Find out who changed the repository: an object is written to its own cluster's folder alone."))
    }

    /// Claims that an object of this cluster must make.
    pub fn claims(&self, kind: ObjectKind, timeline: TimelineId, start: Lsn) -> Claims {
        Claims {
            kind,
            repository: self.keys.repository(),
            system: self.names.system,
            segment_size: self.names.segment_size,
            timeline,
            start,
        }
    }
}

/// The error for an object that was refused: wrong key, newer format, or damage.
pub fn refused(name: &str, problem: OpenFailed) -> Error {
    let text = format!("{name}: {problem}");
    match problem {
        OpenFailed::Key(_) => Error::new(Kind::Key, text)
            .hint("Give the identity and the repository secret that this repository was made with."),
        OpenFailed::Version(_) => Error::new(Kind::Repository, text)
            .hint("It was written by a newer walrecv: use that version or a later one."),
        _ => Error::new(Kind::Corrupt, text)
            .hint("Restore the object from another copy of the repository, or take a new backup."),
    }
}
