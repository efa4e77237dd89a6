//! Plans and `wal-fetch` over archives of made WAL: forks, holes, tails, damage. No server is needed.

#[path = "restore/ahead.rs"]
mod ahead;
#[path = "restore/beside.rs"]
mod beside;
#[path = "restore/fetch.rs"]
mod fetch;
#[path = "restore/nearest.rs"]
mod nearest;
#[path = "restore/plan.rs"]
mod plan;
#[path = "restore/set_back.rs"]
mod set_back;
mod support;
#[path = "restore/world.rs"]
mod world;
