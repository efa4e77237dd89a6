//! `walrecv.json`: the one plain file, read before any key is at hand.

use serde::{Deserialize, Serialize};

use super::{Malformed, hex, unhex};
use crate::seal::header::{FORMAT, RepositoryId};

const WHAT: &str = "repository file";

/// Whether the objects of the repository are encrypted. Informs people and errors only: what is right is in the configuration, since
/// whoever can write to the bucket can write this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Data keys are wrapped in the age format for the repository identity.
    Age,
    /// Same frames under the published constant.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryFile {
    pub id: RepositoryId,
    pub encryption: Encryption,
    /// When it was made, RFC 3339, UTC. For people.
    pub created: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u16,
    id: String,
    encryption: Encryption,
    created: String,
}

impl RepositoryFile {
    pub fn encode(&self) -> Vec<u8> {
        let stored =
            Stored { format: FORMAT, id: hex(&self.id.0), encryption: self.encryption, created: self.created.clone() };
        let mut out = serde_json::to_vec_pretty(&stored).expect("numbers and strings are valid JSON");
        out.push(b'\n');
        out
    }

    /// Refuses any other format version.
    pub fn decode(bytes: &[u8]) -> Result<RepositoryFile, Malformed> {
        /// Alone first, so that a later format is named as such whatever else it says.
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let malformed = |error: serde_json::Error| Malformed::new(WHAT, error);
        let Version { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format != u64::from(FORMAT) {
            return Err(Malformed::new(WHAT, format!("format version {format}, only {FORMAT} is supported")));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(malformed)?;
        let id = unhex(&stored.id)
            .ok_or_else(|| Malformed::new(WHAT, format!("id {:?}, expected 32 hexadecimal digits", stored.id)))?;
        Ok(RepositoryFile { id: RepositoryId(id), encryption: stored.encryption, created: stored.created })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let id = RepositoryId([0xA5; 16]);
        for encryption in [Encryption::Age, Encryption::None] {
            let file = RepositoryFile { id, encryption, created: "2026-01-02T03:04:05Z".into() };
            assert_eq!(RepositoryFile::decode(&file.encode()), Ok(file));
        }
        for (bad, names) in [
            ("", "EOF"),
            ("{}", "format"),
            (r#"{"format":2,"new":1}"#, "format version 2"),
            (r#"{"format":1,"id":"zz","encryption":"age","created":""}"#, "32 hexadecimal"),
            (r#"{"format":1,"id":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","encryption":"rot13","created":""}"#, "rot13"),
        ] {
            let error = RepositoryFile::decode(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(names), "{bad}: {error}");
        }
    }
}
