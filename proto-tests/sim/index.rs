//! The catalogs of all hosts, when everything has ended: nothing in them that the repository does not say, and nothing missing from where they end backwards.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};
use walrecv::archive::Archive;
use walrecv::archive::learn::Scope;
use walrecv::catalog::{Catalog, Shared};
use walrecv::disk::lane::Lane;
use walrecv::error::Result;
use walrecv::pg::SegmentSize;
use walrecv::repo::ClusterNames;

use super::life::Life;
use super::world::World;
use crate::support::wal_maker::SYSTEM;

/// How long a lock may outlive its process.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is said of an object that is not noted yet.
const NOT_YET: &str = "is stored and not in the catalog";

/// Judges the catalog of every host.
pub async fn judge(world: &World) {
    let hosts = world.processes().len();
    for index in 0..hosts {
        match differences(world, index).await {
            Ok(wrong) if wrong.is_empty() => {}
            Ok(wrong) => world.trace.violated(format!("the catalog of host {index}: {}", wrong.join("; "))),
            Err(error) => world.trace.violated(format!("the catalog of host {index} cannot be judged: {error}")),
        }
    }
}

async fn differences(world: &World, index: usize) -> Result<Vec<String>> {
    let (place, path) = (world.place(&Life::new(0)), world.catalog(index));
    let size = SegmentSize::new(world.plan.segment).expect("a size");
    let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size: size };
    let archive = Archive { repo: place.repo.clone(), names, keys: place.reader.clone() };
    if !path.exists() {
        return Ok(Vec::new());
    }
    let (fresh, learned) = archive.fresh_catalog(&|_| {}).await?;
    let repository = fresh.with(|catalog| catalog.dump()).await?;
    let mut wrong = learned.damaged;
    let ended = Instant::now();
    let noted = loop {
        // What a slow disk still has to do for a process that is gone holds the lock until then.
        match Catalog::write(&path, &archive.identity())? {
            Some((noted, _)) => break noted,
            None if ended.elapsed() > PATIENCE => return Ok(vec!["it is still in use".to_owned()]),
            None => sleep(Duration::from_millis(100)).await,
        }
    };
    let differs = noted.dump()?.differences(&repository);
    wrong.extend(differs.into_iter().filter(|line| !line.ends_with(NOT_YET)));
    // What it does not know begins where it ends: to look from there on is enough.
    let noted = Shared::new(noted, Lane::Inline(Arc::new(|| std::future::ready(()).boxed())));
    archive.learn(&noted, Scope::New, &|_| {}).await?;
    wrong.extend(noted.with(|catalog| catalog.dump()).await?.differences(&repository));
    Ok(wrong)
}
