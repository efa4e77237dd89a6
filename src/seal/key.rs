//! The keys that seal and open objects, wiped on drop. Wrapping and unwrapping (age) is `keys`' business.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::header::RepositoryId;

/// Held by every writer; with it alone the index class opens. All-published constant when the repository is not encrypted.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RepositorySecret(pub [u8; 32]);

/// Random, new at every start and every hour.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey(pub [u8; 32]);

/// What a writer seals with.
#[derive(Clone)]
pub struct WriterKeys {
    pub repository: RepositoryId,
    pub secret: RepositorySecret,
    pub data_key: DataKey,
    /// `data_key` wrapped for the identity, as it goes into headers; empty without encryption.
    pub wrapped: Vec<u8>,
}

/// What a reader opens with: the secret always, contents only if `unwrap` can.
pub trait ReaderKeys: Send + Sync {
    fn repository(&self) -> RepositoryId;
    fn secret(&self) -> &RepositorySecret;
    /// The data key of an object's header; `Err` says why not (no identity here, wrong identity).
    fn unwrap_key(&self, wrapped: &[u8]) -> Result<DataKey, String>;
}
