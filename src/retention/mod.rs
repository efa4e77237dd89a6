//! Floor 5: deleting backups without harm to any other, beside running backups and other expiries.
//!
//! ```text
//! look → propose → plan durable → look → manifests deleted, a tombstone each
//!   → delete_delay → plan durable → look → packs, maps, server manifests, intents, tombstones → plan
//! ```
//!
//! *Announce, then look*: a backup that reuses anything has an intent before it lists plans, an expiry has a plan before it lists intents, so
//! one always sees the other. [`plan`] decides, [`Expiry`] does; it can be interrupted at any step, and any later run finishes what it began.
//! `docs/format/backup-objects.md` has the order and its reasons.

mod expire;
mod look;
mod needed;
pub mod plan;
mod propose;
mod sweep;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use expire::{Expiry, Outcome};
pub use propose::{Amount, Proposal};

use crate::seal::content::BackupId;

/// From the deletion of a manifest to that of what only it needed, for restores that are running.
pub const DELETE_DELAY: Duration = Duration::from_secs(24 * 3600);
/// After which a backup of which nothing has moved counts as dead.
pub const INTENT_STALE: Duration = Duration::from_secs(24 * 3600);
/// How long a tombstone stands at least, for a writer that sleeps.
pub const TOMBSTONE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What an expiry is asked to do.
#[derive(Clone, Debug)]
pub struct ExpireOptions {
    /// Backups to delete; without any, what earlier runs began is finished.
    pub backups: Vec<BackupId>,
    /// Also where no complete backup is left or seen, and where a manifest is damaged.
    pub force: bool,
    pub delete_delay: Duration,
    pub intent_stale: Duration,
    pub tombstone_life: Duration,
    /// Where the lock stands that keeps two expiries of one cluster on one host apart; `None`: no lock.
    pub state_dir: Option<PathBuf>,
    /// How long one object is tried to be stored.
    pub put_limit: Duration,
    /// This host's clock, for the proposal only: what is done goes by the storage's own times.
    pub now: SystemTime,
    /// For people who read the plan.
    pub host: String,
    pub user: String,
}

impl Default for ExpireOptions {
    fn default() -> ExpireOptions {
        ExpireOptions {
            backups: Vec::new(),
            force: false,
            delete_delay: DELETE_DELAY,
            intent_stale: INTENT_STALE,
            tombstone_life: TOMBSTONE_LIFE,
            state_dir: None,
            put_limit: Duration::from_secs(120),
            now: SystemTime::now(),
            host: String::new(),
            user: String::new(),
        }
    }
}
