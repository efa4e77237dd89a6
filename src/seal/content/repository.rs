//! `walrecv.json`: the one plain file, read before any key is at hand.

use serde::{Deserialize, Serialize};

use super::{Malformed, hex, unhex};
use crate::seal::header::{FORMAT, RepositoryId};
use crate::seal::key::{RepositorySecret, same};

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
    /// [`RepositorySecret::check_value`] of its secret.
    pub secret_check: [u8; 16],
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u16,
    id: String,
    encryption: Encryption,
    created: String,
    secret_check: String,
}

impl RepositoryFile {
    /// Of a new repository with this secret.
    pub fn new(id: RepositoryId, encryption: Encryption, created: String, secret: &RepositorySecret) -> RepositoryFile {
        RepositoryFile { id, encryption, created, secret_check: secret.check_value(&id) }
    }

    /// Whether this is the repository's secret. What another one seals could be opened by nobody who has the right one.
    pub fn is_opened_by(&self, secret: &RepositorySecret) -> bool {
        same(&self.secret_check, &secret.check_value(&self.id))
    }

    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            format: FORMAT,
            id: hex(&self.id.0),
            encryption: self.encryption,
            created: self.created.clone(),
            secret_check: hex(&self.secret_check),
        };
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
        let digits = |name: &str, text: &str| {
            unhex(text).ok_or_else(|| Malformed::new(WHAT, format!("{name} {text:?}, expected 32 hexadecimal digits")))
        };
        let (id, secret_check) = (digits("id", &stored.id)?, digits("secret_check", &stored.secret_check)?);
        let Stored { encryption, created, .. } = stored;
        Ok(RepositoryFile { id: RepositoryId(id), encryption, created, secret_check })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let id = RepositoryId([0xA5; 16]);
        for encryption in [Encryption::Age, Encryption::None] {
            let secret = RepositorySecret([0x5E; 32]);
            let file = RepositoryFile::new(id, encryption, "2026-01-02T03:04:05Z".into(), &secret);
            assert_eq!(RepositoryFile::decode(&file.encode()).as_ref(), Ok(&file));
            assert!(file.is_opened_by(&secret));
            for other in [RepositorySecret([0x5F; 32]), RepositorySecret::published()] {
                assert!(!file.is_opened_by(&other));
            }
            let elsewhere = RepositoryFile { id: RepositoryId([0xA6; 16]), ..file };
            assert!(!elsewhere.is_opened_by(&secret), "the check value is this repository's");
        }
        for (bad, names) in [
            ("", "EOF"),
            ("{}", "format"),
            (r#"{"format":2,"new":1}"#, "format version 2"),
            (r#"{"format":1,"id":"zz","encryption":"age","created":"","secret_check":""}"#, "id \"zz\", expected 32"),
            (r#"{"format":1,"id":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","encryption":"rot13","created":""}"#, "rot13"),
            (r#"{"format":1,"id":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","encryption":"age","created":""}"#, "secret_check"),
            (
                r#"{"format":1,"id":"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5","encryption":"age","created":"","secret_check":"a5"}"#,
                "secret_check \"a5\", expected 32",
            ),
        ] {
            let error = RepositoryFile::decode(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(names), "{bad}: {error}");
        }
    }
}
