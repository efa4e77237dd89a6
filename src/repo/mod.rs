//! Floor 3: the repository: object names (pure), open by URL, put_once, get, list, delete.

pub mod names;
pub mod store;

pub use names::ClusterNames;
pub use store::{Found, Put, Repository};
