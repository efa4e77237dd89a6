//! What a running process holds: a writer's ring (public key and secret) or a reader's (identity and secret).

use crate::error::Result;
use crate::seal::header::RepositoryId;
use crate::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};

/// Makes data keys. `identity` is the public key of the repository identity from the configuration, `None` for `--no-encryption`.
pub struct WriterRing {}

impl WriterRing {
    pub fn new(_repository: RepositoryId, _secret: RepositorySecret, _identity: Option<&str>) -> Result<WriterRing> {
        todo!()
    }

    /// A new random data key, wrapped for the identity. Call at every start and every hour.
    pub fn fresh(&self) -> Result<WriterKeys> {
        todo!()
    }
}

/// Opens objects: index class with the secret alone; contents when an identity is there. Unwrapped data keys are remembered.
pub struct ReaderRing {}

impl ReaderRing {
    /// Without an identity (`AGE-SECRET-KEY-1…` of the repository identity) contents cannot be opened.
    pub fn new(_repository: RepositoryId, _secret: RepositorySecret, _identity: Option<&str>) -> Result<ReaderRing> {
        todo!()
    }
}

impl ReaderKeys for ReaderRing {
    fn repository(&self) -> RepositoryId {
        todo!()
    }

    fn secret(&self) -> &RepositorySecret {
        todo!()
    }

    fn unwrap_key(&self, _wrapped: &[u8]) -> std::result::Result<DataKey, String> {
        todo!()
    }
}
