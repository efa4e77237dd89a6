//! Floor 5: restore: plan (pure), lay back, fetch WAL, recovery settings.

pub mod decide;
pub mod path;
pub mod plan;
pub mod plan_file;
pub mod recovery;
pub mod target;
