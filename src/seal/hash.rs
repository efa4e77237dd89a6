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

/// What the name of a key file carries, so that a writer can tell without any private key whether it is still what was stored: the first 16 bytes of BLAKE3,
/// keyed with the secret's key for this, over `<identity>/<recipient>`, a zero byte and the file. Nobody without the secret can make one that fits.
pub fn key_file_check(secret: &RepositorySecret, identity: &str, recipient: &str, file: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(&secret.key_file_key());
    for part in [identity.as_bytes(), b"/", recipient.as_bytes(), b"\0", file] {
        hasher.update(part);
    }
    let mut check = [0; 16];
    hasher.finalize_xof().fill(&mut check);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_a_key_file_is_of_its_bytes_its_place_and_the_secret() {
        let of = |secret: u8, identity: &str, recipient: &str, file: &[u8]| {
            key_file_check(&RepositorySecret([secret; 32]), identity, recipient, file)
        };
        let all = [
            of(1, "ab", "cd", b"file"),
            of(2, "ab", "cd", b"file"),
            of(1, "ac", "cd", b"file"),
            of(1, "ab", "ce", b"file"),
            of(1, "ab", "cd", b"filf"),
            of(1, "ab", "cd", b"fil"),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{i}");
        }
        assert_eq!(all[0], of(1, "ab", "cd", b"file"));
    }
}
