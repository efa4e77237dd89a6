//! What a running process holds: a writer's ring (public key and secret) or a reader's (identity and secret).

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;

use zeroize::Zeroizing;

use super::setup;
use crate::error::{Error, Kind, Result};
use crate::seal::header::{MAX_WRAPPED, RepositoryId};
use crate::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};
use crate::seal::page_hash::PageHasher;

/// Data keys that a reader remembers: a key an hour for more than a month, few kilobytes each.
const REMEMBERED: usize = 1024;

/// Makes data keys. `identity` is the public key of the repository identity from the configuration, `None` for `--no-encryption`.
pub struct WriterRing {
    repository: RepositoryId,
    secret: RepositorySecret,
    identity: Option<age::x25519::Recipient>,
}

impl WriterRing {
    /// Encryption is decided here, by what the configuration holds: the published secret without an identity, or another secret with
    /// one. Anything else is `Kind::Key`.
    pub fn new(repository: RepositoryId, secret: RepositorySecret, identity: Option<&str>) -> Result<WriterRing> {
        let identity = match (identity, secret.is_published()) {
            (Some(_), true) => {
                return Err(Error::new(
                    Kind::Key,
                    "the repository secret is the published one, which protects nothing",
                )
                .hint("Use the secret file that init wrote."));
            }
            (None, false) => {
                return Err(Error::new(Kind::Key, "no public key of the repository identity to encrypt for")
                    .hint("Set `identity` in walrecv.toml to the age1… that init printed."));
            }
            (None, true) => None,
            (Some(text), false) => Some(setup::parse_x25519(text)?),
        };
        Ok(WriterRing { repository, secret, identity })
    }

    /// A new random data key, wrapped for the identity. Call at every start and every hour.
    pub fn fresh(&self) -> Result<WriterKeys> {
        let (repository, secret) = (self.repository, self.secret.clone());
        let Some(identity) = &self.identity else {
            return Ok(WriterKeys { repository, secret, data_key: DataKey::published(), wrapped: Vec::new() });
        };
        let data_key = DataKey(*setup::random()?);
        let wrapped = age::encrypt(identity, &data_key.0)
            .map_err(|error| Error::new(Kind::Key, "cannot wrap a data key").caused_by(error))?;
        if wrapped.len() > MAX_WRAPPED {
            let text = format!("a wrapped data key has {} bytes, at most {MAX_WRAPPED} fit a header", wrapped.len());
            return Err(Error::new(Kind::Key, text));
        }
        Ok(WriterKeys { repository, secret, data_key, wrapped })
    }

    /// The short name of the identity that contents are sealed for; `None` without encryption.
    pub fn identity(&self) -> Option<String> {
        self.identity.as_ref().map(|identity| setup::short_name(&identity.to_string()))
    }

    /// Tells pages apart without their bytes.
    pub fn page_hasher(&self) -> PageHasher {
        PageHasher::new(&self.secret)
    }
}

impl fmt::Debug for WriterRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.as_ref().map(ToString::to_string);
        f.debug_struct("WriterRing").field("repository", &self.repository).field("identity", &identity).finish()
    }
}

/// Opens objects: index class with the secret alone; contents when an identity is there. Unwrapped data keys are remembered.
pub struct ReaderRing {
    repository: RepositoryId,
    secret: RepositorySecret,
    identity: Option<age::x25519::Identity>,
    known: Mutex<HashMap<Vec<u8>, DataKey>>,
}

impl ReaderRing {
    /// Without an identity (`AGE-SECRET-KEY-1…` of the repository identity) contents cannot be opened, except those of a repository
    /// without encryption, whose secret is [`RepositorySecret::published`].
    pub fn new(repository: RepositoryId, secret: RepositorySecret, identity: Option<&str>) -> Result<ReaderRing> {
        let identity = identity.map(|text| {
            let parsed = text.trim().parse::<age::x25519::Identity>();
            parsed.map_err(|problem| Error::new(Kind::Key, format!("not a private key of an identity: {problem}")))
        });
        Ok(ReaderRing { repository, secret, identity: identity.transpose()?, known: Mutex::default() })
    }

    fn unwrap_with_identity(&self, wrapped: &[u8]) -> std::result::Result<DataKey, String> {
        let identity = self.identity.as_ref().ok_or("no private key of the repository identity is at hand")?;
        let plain = age::decrypt(identity, wrapped).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => "its data key was wrapped for another identity".to_owned(),
            other => format!("its wrapped data key does not open: {other}"),
        })?;
        let plain = Zeroizing::new(plain);
        let key = <[u8; 32]>::try_from(&plain[..]);
        key.map(DataKey).map_err(|_| format!("its data key has {} bytes, expected 32", plain.len()))
    }
}

impl ReaderKeys for ReaderRing {
    fn repository(&self) -> RepositoryId {
        self.repository
    }

    fn secret(&self) -> &RepositorySecret {
        &self.secret
    }

    fn unwrap_key(&self, wrapped: &[u8]) -> std::result::Result<DataKey, String> {
        if self.secret.is_published() && wrapped.is_empty() {
            return Ok(DataKey::published());
        }
        let known = || self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(key) = known().get(wrapped) {
            return Ok(key.clone());
        }
        let key = self.unwrap_with_identity(wrapped)?;
        let mut known = known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(wrapped.to_vec(), key.clone());
        Ok(key)
    }
}

impl fmt::Debug for ReaderRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.as_ref().map(|_| "redacted");
        f.debug_struct("ReaderRing").field("repository", &self.repository).field("identity", &identity).finish()
    }
}
