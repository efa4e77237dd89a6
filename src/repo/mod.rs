//! Floor 3: the repository: object names (pure), open by URL, put_once, get, list, delete.

pub mod backend;
pub mod cloud;
mod folders;
mod local;
pub mod names;
mod open;
mod root;
mod silence;
pub mod store;
mod trouble;

pub use backend::Listed;
pub use names::{ClusterNames, WalGroup};
pub use store::{Found, Judge, Put, Repository};
