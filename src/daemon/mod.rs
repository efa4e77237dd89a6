//! Floor 6: what runs for long: many clusters in one process, and the socket that tells how they are.

pub mod board;
pub mod elsewhere;
pub mod fleet;
pub mod holes;
pub mod report;
pub mod socket;
pub mod stand_in;
mod trend;
