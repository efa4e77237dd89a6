//! The keys that seal and open objects, wiped on drop. Wrapping and unwrapping (age) is `keys`' business.

use std::fmt;

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::header::{KeyClass, RepositoryId};

/// Secret and data key of a repository without encryption: known to everyone, so its tags prove integrity against accident only.
pub const PUBLISHED: [u8; 32] = *b"walrecv repository not encrypted";

const CONTENT_INFO: &[u8] = b"walrecv object v1 content";
const INDEX_INFO: &[u8] = b"walrecv object v1 index";
const HASH_INFO: &[u8] = b"walrecv hash v1";
const PAGE_HASH_INFO: &[u8] = b"walrecv page hash v1";
const KEY_FILE_INFO: &[u8] = b"walrecv key file v1";
const CHECK_INFO: &[u8] = b"walrecv secret check v1";

/// Held by every writer; with it alone the index class opens. All-published constant when the repository is not encrypted.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RepositorySecret(pub [u8; 32]);

impl RepositorySecret {
    /// The constant of a repository without encryption.
    pub fn published() -> RepositorySecret {
        RepositorySecret(PUBLISHED)
    }

    pub fn is_published(&self) -> bool {
        same(&self.0, &PUBLISHED)
    }

    /// Key of the keyed hashes: HKDF-SHA-256 of the secret, no salt, info `walrecv hash v1`.
    pub(super) fn hash_key(&self) -> Zeroizing<[u8; 32]> {
        self.derived(HASH_INFO)
    }

    /// Key of the hashes of pages: the same with info `walrecv page hash v1`.
    pub(super) fn page_hash_key(&self) -> Zeroizing<[u8; 32]> {
        self.derived(PAGE_HASH_INFO)
    }

    /// Key of the check values of key files: the same with info `walrecv key file v1`.
    pub(super) fn key_file_key(&self) -> Zeroizing<[u8; 32]> {
        self.derived(KEY_FILE_INFO)
    }

    /// By which `walrecv.json` tells whether a secret is this repository's: HKDF-SHA-256 of the secret, salt the repository id, info
    /// `walrecv secret check v1`. It says nothing of 32 random bytes.
    pub fn check_value(&self, repository: &RepositoryId) -> [u8; 16] {
        let mut value = [0; 16];
        expand(&Hkdf::new(Some(&repository.0), &self.0), CHECK_INFO, &mut value);
        value
    }

    fn derived(&self, info: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        expand(&Hkdf::new(None, &self.0), info, &mut key[..]);
        key
    }
}

/// Random, new at every start and every hour.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey(pub [u8; 32]);

impl DataKey {
    /// The constant of a repository without encryption.
    pub fn published() -> DataKey {
        DataKey(PUBLISHED)
    }
}

impl fmt::Debug for RepositorySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepositorySecret(redacted)")
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(redacted)")
    }
}

/// What a writer seals with.
#[derive(Clone, Debug)]
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

/// A key of one object, and what is stored to recognise it: ChaCha20-Poly1305 does not commit to its key, so a wrong key and
/// damaged bytes would look the same.
pub(super) struct ObjectKey {
    pub key: Zeroizing<[u8; 32]>,
    pub commitment: [u8; 32],
}

impl ObjectKey {
    /// HKDF-SHA-256 with the header's salt over the keys of `class`, bound to the header's bytes.
    pub fn derive(
        class: KeyClass,
        header: &[u8],
        salt: &[u8; 32],
        secret: &RepositorySecret,
        data_key: &DataKey,
    ) -> ObjectKey {
        let mut material = Zeroizing::new([0; 64]);
        let (material, info) = match class {
            KeyClass::Content => {
                material[..32].copy_from_slice(&data_key.0);
                material[32..].copy_from_slice(&secret.0);
                (&material[..], CONTENT_INFO)
            }
            KeyClass::Index => {
                material[..32].copy_from_slice(&secret.0);
                (&material[..32], INDEX_INFO)
            }
        };
        let info = [info, &Sha256::digest(header)].concat();
        let mut out = Zeroizing::new([0; 64]);
        expand(&Hkdf::new(Some(salt), material), &info, &mut out[..]);
        let mut derived = ObjectKey { key: Zeroizing::new([0; 32]), commitment: [0; 32] };
        derived.key.copy_from_slice(&out[..32]);
        derived.commitment.copy_from_slice(&out[32..]);
        derived
    }

    pub fn commits_to(&self, stored: &[u8]) -> bool {
        same(&self.commitment, stored)
    }
}

fn expand(hkdf: &Hkdf<Sha256>, info: &[u8], out: &mut [u8]) {
    hkdf.expand(info, out).expect("HKDF-SHA-256 gives up to 8160 bytes");
}

/// Equality in constant time.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (x, y)| std::hint::black_box(sum | (x ^ y)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let keys = WriterKeys {
            repository: RepositoryId([7; 16]),
            secret: RepositorySecret([0xAB; 32]),
            data_key: DataKey([0xCD; 32]),
            wrapped: vec![],
        };
        let text = format!("{keys:?}").to_lowercase();
        assert!(!text.contains("171") && !text.contains("205") && !text.contains("ab, ab"), "{text}");
    }

    #[test]
    fn each_input_changes_both_halves() {
        let derive = |class, header: &[u8], salt: u8, secret: u8, data: u8| {
            let key =
                ObjectKey::derive(class, header, &[salt; 32], &RepositorySecret([secret; 32]), &DataKey([data; 32]));
            (*key.key, key.commitment)
        };
        let all = [
            derive(KeyClass::Content, b"h", 1, 2, 3),
            derive(KeyClass::Content, b"i", 1, 2, 3),
            derive(KeyClass::Content, b"h", 9, 2, 3),
            derive(KeyClass::Content, b"h", 1, 9, 3),
            derive(KeyClass::Content, b"h", 1, 2, 9),
            derive(KeyClass::Index, b"h", 1, 2, 3),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert!(a.0 != b.0 && a.1 != b.1);
            }
        }
        assert_eq!(
            derive(KeyClass::Index, b"h", 1, 2, 3),
            derive(KeyClass::Index, b"h", 1, 2, 9),
            "index keys need no data key"
        );
    }
}
