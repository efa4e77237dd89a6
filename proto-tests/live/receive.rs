//! The receiver on real servers: what it stores is what the server wrote, what it acknowledges is stored, and it holds no server up.

#[path = "receive/bucket.rs"]
mod bucket;
#[path = "receive/catalog.rs"]
mod catalog;
#[path = "receive/damage.rs"]
mod damage;
#[path = "receive/disks.rs"]
pub mod disks;
#[path = "receive/equality.rs"]
mod equality;
#[path = "receive/failing.rs"]
mod failing;
#[path = "receive/failover.rs"]
mod failover;
#[path = "receive/harness.rs"]
pub mod harness;
#[path = "receive/heartbeats.rs"]
mod heartbeats;
#[path = "receive/holes.rs"]
mod holes;
#[path = "receive/kill.rs"]
mod kill;
#[path = "receive/lag.rs"]
mod lag;
#[path = "receive/loss.rs"]
mod loss;
#[path = "receive/memory.rs"]
mod memory;
#[path = "receive/outages.rs"]
mod outages;
#[path = "receive/pair.rs"]
mod pair;
#[path = "receive/pieces.rs"]
mod pieces;
#[path = "receive/readers.rs"]
mod readers;
#[path = "receive/refusals.rs"]
mod refusals;
#[path = "receive/rest.rs"]
mod rest;
#[path = "receive/spool.rs"]
mod spool;
#[path = "receive/standbys.rs"]
mod standbys;
#[path = "receive/stops.rs"]
mod stops;
#[path = "receive/store.rs"]
mod store;
#[path = "receive/switches.rs"]
mod switches;
#[path = "receive/timelines.rs"]
mod timelines;
#[path = "receive/wires.rs"]
mod wires;
