//! An intent: a backup has begun, and what it reuses. Created before the first pack; an expiry lists intents after it announced its plan.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::text::{self, shown};
use super::{BackupId, Malformed};
use crate::pg::SystemIdentifier;

const VERSION: u32 = 1;

/// JSON; fields that a reader does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub version: u32,
    #[serde(with = "text::backup_id")]
    pub id: BackupId,
    pub cluster: String,
    #[serde(with = "text::system")]
    pub system: SystemIdentifier,
    #[serde(with = "shown")]
    pub started_at: Timestamp,
    /// Backups, complete or interrupted, whose packs and maps the new manifest may name.
    pub reuses: Vec<String>,
    /// Random digits that one `state_dir` has kept since it was made: whoever holds the lock there knows that no other intent with them lives.
    pub state: String,
    /// Program and version.
    pub made_by: String,
    /// Everything is stored anew, and nothing of a complete backup reused.
    #[serde(default)]
    pub full: bool,
    /// The identity that its packs are sealed for: the folder of `keys/`. `None`: not encrypted.
    #[serde(default)]
    pub identity: Option<String>,
    /// Where it runs, for a person who wonders.
    #[serde(default)]
    pub host: String,
}

impl Intent {
    pub const VERSION: u32 = VERSION;

    pub fn encode(&self) -> Vec<u8> {
        super::manifest::json(self)
    }

    /// Reads the intent stored under the name `id`.
    pub fn decode(bytes: &[u8], id: &BackupId) -> Result<Intent, Malformed> {
        let intent: Intent = super::manifest::read_json("intent", bytes, VERSION)?;
        super::manifest::same_id("intent", &intent.id, id)?;
        Ok(intent)
    }
}
