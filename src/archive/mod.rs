//! Floor 4: what is stored of one cluster, as one thing: segments, parts and tails joined; timelines; backups.

pub mod inventory;
pub mod read;

use std::sync::Arc;

use crate::error::Result;
use crate::repo::{ClusterNames, Repository};
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::key::ReaderKeys;

/// One cluster's part of a repository, with the keys to read it. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    pub repo: Repository,
    pub names: ClusterNames,
    pub keys: Arc<dyn ReaderKeys>,
}

impl Archive {
    /// The incarnations (`<system id>-<segment size>`) stored under a cluster's name.
    pub async fn incarnations(_repo: &Repository, _cluster: &str) -> Result<Vec<ClusterNames>> {
        todo!()
    }

    /// Claims that an object of this cluster must make.
    pub fn claims(&self, _kind: ObjectKind, _timeline: crate::pg::TimelineId, _start: crate::pg::Lsn) -> Claims {
        todo!()
    }
}
