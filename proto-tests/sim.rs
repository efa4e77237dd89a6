//! Promises 1 to 3 against faults that real servers, disks and stores cannot be made to show: the real receiver, wire protocol, repository and reader, in a
//! simulated world where everything follows from one number. `docs/internals/simulation.md` says what is simulated and how to replay a seed.

#[path = "sim/audit.rs"]
mod audit;
#[path = "sim/border.rs"]
mod border;
#[path = "sim/chance.rs"]
mod chance;
#[path = "sim/chaos.rs"]
mod chaos;
#[path = "sim/cluster.rs"]
mod cluster;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/index.rs"]
mod index;
#[path = "sim/life.rs"]
mod life;
#[path = "sim/minimal.rs"]
mod minimal;
#[path = "sim/runs.rs"]
mod runs;
#[path = "sim/set_back.rs"]
mod set_back;
#[path = "sim/slot_commands.rs"]
mod slot_commands;
#[path = "sim/slots.rs"]
mod slots;
#[path = "sim/store.rs"]
mod store;
mod support;
#[path = "sim/tails.rs"]
mod tails;
#[path = "sim/trace.rs"]
mod trace;
#[path = "sim/two_histories.rs"]
mod two_histories;
#[path = "sim/until.rs"]
mod until;
#[path = "sim/waits.rs"]
mod waits;
#[path = "sim/walsender.rs"]
mod walsender;
#[path = "sim/world.rs"]
mod world;
