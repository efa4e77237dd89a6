//! Keyed hashes of pages: whether a page is what stood at the same place before, without its bytes.

use std::fmt;

use super::key::RepositorySecret;

/// Bytes that are compared as one: a data page; of other files this many bytes, the last time fewer.
pub const CHUNK: usize = 8192;

/// First 8 bytes of BLAKE3 over a chunk, keyed with HKDF-SHA-256 of the repository secret. 0 stands for a chunk of zeros, whatever its length;
/// no other has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageHash(pub u64);

impl PageHash {
    pub const ZERO: PageHash = PageHash(0);
}

/// Computes page hashes. Cheap to clone.
#[derive(Clone)]
pub struct PageHasher {
    keyed: blake3::Hasher,
    /// Names the key to whoever keeps hashes.
    key_id: [u8; 8],
}

impl PageHasher {
    pub fn new(secret: &RepositorySecret) -> PageHasher {
        let key = secret.page_hash_key();
        let mut key_id = [0; 8];
        let shown = blake3::keyed_hash(&key, b"walrecv page hash key id");
        key_id.copy_from_slice(shown.as_bytes().first_chunk::<8>().unwrap_or(&[0; 8]));
        PageHasher { keyed: blake3::Hasher::new_keyed(&key), key_id }
    }

    /// Of a chunk that is known not to be all zeros.
    pub fn hash(&self, chunk: &[u8]) -> PageHash {
        let mut hasher = self.keyed.clone();
        hasher.update(chunk);
        let hash = hasher.finalize();
        let first = hash.as_bytes().first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        PageHash(first.max(1))
    }

    /// The same for every holder of this repository's secret, and for no other.
    pub fn key_id(&self) -> [u8; 8] {
        self.key_id
    }
}

impl fmt::Debug for PageHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_pages_and_secrets_apart() {
        let hasher = |secret| PageHasher::new(&RepositorySecret([secret; 32]));
        let (page, mut other) = ([7; CHUNK], [7; CHUNK]);
        other[CHUNK - 1] ^= 1;
        let one = hasher(1);
        assert_eq!(one.hash(&page), one.clone().hash(&page));
        assert_ne!(one.hash(&page), one.hash(&other));
        assert_ne!(one.hash(&page), one.hash(&page[..CHUNK - 1]));
        assert_ne!(one.hash(&page), hasher(2).hash(&page));
        assert_ne!(one.key_id(), hasher(2).key_id());
        assert_ne!(one.hash(&page), PageHash::ZERO);
    }

    /// As the format's description says it, from the two primitives alone.
    #[test]
    fn is_what_the_format_says() {
        let key = RepositorySecret([9; 32]).page_hash_key();
        let again = hkdf::Hkdf::<sha2::Sha256>::new(None, &[9; 32]);
        let mut expected = [0; 32];
        again.expand(b"walrecv page hash v1", &mut expected).unwrap();
        assert_eq!(*key, expected);
        let bytes = blake3::keyed_hash(&expected, &[1, 2, 3]);
        let found = PageHasher::new(&RepositorySecret([9; 32])).hash(&[1, 2, 3]);
        assert_eq!(found.0.to_le_bytes(), bytes.as_bytes()[..8]);
    }
}
