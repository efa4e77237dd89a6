//! A catalog for tasks: SQLite's calls wait for a disk, so they are made on threads of their own.

use std::sync::{Arc, Mutex, PoisonError};

use super::Catalog;
use crate::disk::lane::Lane;
use crate::error::Result;

/// Shared handle (cheap to clone).
#[derive(Clone, Debug)]
pub struct Shared {
    catalog: Arc<Mutex<Catalog>>,
    lane: Lane,
}

impl Shared {
    pub fn new(catalog: Catalog, lane: Lane) -> Shared {
        Shared { catalog: Arc::new(Mutex::new(catalog)), lane }
    }

    /// Runs one piece of work on the catalog. It is finished even if nobody waits for it any more.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Catalog) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let catalog = self.catalog.clone();
        let job = move || work(&mut catalog.lock().unwrap_or_else(PoisonError::into_inner));
        self.lane.clone().run(job).await?
    }
}
