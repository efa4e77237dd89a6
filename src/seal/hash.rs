//! Keyed hashes of stored bytes: equality without the bytes, and nothing else for whoever lacks the repository secret.

use std::fmt;

use super::key::RepositorySecret;

/// BLAKE3, keyed with HKDF-SHA-256 of the repository secret. The hash can be read at any point and the bytes go on.
#[derive(Clone)]
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    pub fn new(secret: &RepositorySecret) -> ContentHasher {
        ContentHasher(blake3::Hasher::new_keyed(&secret.hash_key()))
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Hash of everything so far.
    pub fn finalize(&self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.0.count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHasher({} bytes)", self.len())
    }
}

/// Keyed hash of `bytes` at once.
pub fn content_hash(secret: &RepositorySecret, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = ContentHasher::new(secret);
    hasher.update(bytes);
    hasher.finalize()
}
