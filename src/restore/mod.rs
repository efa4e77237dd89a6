//! Floor 5: restore: plan (pure), lay back, fetch WAL, recovery settings.

pub mod choose;
pub mod decide;
pub mod fetch;
mod look;
pub mod path;
pub mod plan;
pub mod plan_file;
pub mod recovery;
pub mod scan;
pub mod stock;
pub mod target;
