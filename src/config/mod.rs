//! Floor 6: file, environment and flags become the jobs' options; every default in one place.
//!
//! Flags override `WALRECV_*` variables (clap does both), which override `walrecv.toml`. An unknown key in the file is refused by name: a
//! misspelt option that is silently ignored is how backups go missing.

pub mod duration;
pub mod file;
pub mod settings;
pub mod size;

pub use settings::{ClusterSettings, DEFAULT_CONFIG, Overrides, Settings};
