//! ChaCha20-Poly1305 over frames, and the preamble that every object begins with: header, key commitments, CRC-32C.

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, Nonce, Tag};

use super::header::{Claims, Header, KeyClass};
use super::key::{DataKey, ObjectKey, RepositorySecret, WriterKeys};

/// Bytes of the authentication tag after each ciphertext.
pub const TAG: usize = 16;
/// Bytes of one key commitment.
pub const COMMITMENT: usize = 32;

/// One key of one object, ready to use.
pub struct FrameCipher(ChaCha20Poly1305);

/// The tag does not fit: other bytes, another place, or another key.
#[derive(Debug)]
pub struct Unauthentic;

impl FrameCipher {
    pub fn new(key: &[u8; 32]) -> FrameCipher {
        FrameCipher(ChaCha20Poly1305::new(key.into()))
    }

    /// Encrypts in place and returns the tag.
    pub fn seal(&self, number: u64, last: bool, ad: &[u8], bytes: &mut [u8]) -> [u8; TAG] {
        let tag = self.0.encrypt_inout_detached(&nonce(number, last), ad, bytes.into());
        tag.expect("a frame is far below the cipher's limit of 256 GiB").into()
    }

    /// Decrypts `stored` (ciphertext and tag) into `out`, which is as long as the ciphertext.
    pub fn open(&self, number: u64, last: bool, ad: &[u8], stored: &[u8], out: &mut [u8]) -> Result<(), Unauthentic> {
        let (ciphertext, tag) = stored.split_last_chunk::<TAG>().ok_or(Unauthentic)?;
        let buffer = InOutBuf::new(ciphertext, out).map_err(|_| Unauthentic)?;
        self.0.decrypt_inout_detached(&nonce(number, last), ad, buffer, &Tag::from(*tag)).map_err(|_| Unauthentic)
    }
}

/// Frame number (big endian), three zero bytes, last flag.
fn nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_be_bytes());
    nonce[11] = last.into();
    nonce.into()
}

/// Bytes of the preamble of an object whose header has `header` bytes.
pub fn preamble_len(class: KeyClass, header: usize) -> usize {
    header + if class == KeyClass::Content { 2 * COMMITMENT } else { COMMITMENT } + 4
}

/// What a writer starts an object with.
pub struct Start {
    pub header: Header,
    /// Header, index commitment, content commitment where there is content, CRC-32C.
    pub preamble: Vec<u8>,
    pub index: FrameCipher,
    /// The key of the frames after frame 0: the index key again for the index class.
    pub content: FrameCipher,
}

impl Start {
    pub fn new(keys: &WriterKeys, claims: Claims, salt: [u8; 32]) -> Start {
        let class = claims.kind.class();
        let wrapped_key = if class == KeyClass::Content { keys.wrapped.clone() } else { Vec::new() };
        let header = Header { claims, published: keys.secret.is_published(), salt, wrapped_key };
        let mut preamble = header.encode();
        let index = derive(KeyClass::Index, &preamble, &salt, &keys.secret, &keys.data_key);
        let content = derive(class, &preamble, &salt, &keys.secret, &keys.data_key);
        preamble.extend_from_slice(&index.commitment);
        if class == KeyClass::Content {
            preamble.extend_from_slice(&content.commitment);
        }
        preamble.extend_from_slice(&crc32c::crc32c(&preamble).to_le_bytes());
        Start { header, preamble, index: FrameCipher::new(&index.key), content: FrameCipher::new(&content.key) }
    }
}

fn derive(class: KeyClass, header: &[u8], salt: &[u8; 32], secret: &RepositorySecret, data_key: &DataKey) -> ObjectKey {
    ObjectKey::derive(class, header, salt, secret, data_key)
}
