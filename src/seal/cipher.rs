//! ChaCha20-Poly1305 over frames, and the preamble that every object begins with: header, key commitments, CRC-32C.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::error::Unspecified;
use zeroize::Zeroizing;

use super::header::{Claims, Header, KeyClass};
use super::key::{DataKey, ObjectKey, RepositorySecret, WriterKeys};

/// Bytes of the authentication tag after each ciphertext.
pub const TAG: usize = 16;
/// Bytes of one key commitment.
pub const COMMITMENT: usize = 32;

/// One key of one object, ready to use.
pub struct FrameCipher {
    /// `ring` does not wipe what it makes of a key, so that lives for one frame only.
    key: Zeroizing<[u8; 32]>,
    /// What the CRC-32C of its frames goes on from.
    pub seed: u32,
}

/// The tag does not fit: other bytes, another place, or another key.
#[derive(Debug)]
pub struct Unauthentic;

impl FrameCipher {
    pub fn new(key: &[u8; 32]) -> FrameCipher {
        FrameCipher { key: Zeroizing::new(*key), seed: 0 }
    }

    /// The same for the frames of a tail under this salt.
    pub fn of_tail(self, salt: &[u8; 32]) -> FrameCipher {
        FrameCipher { seed: tail_seed(salt), ..self }
    }

    /// Encrypts in place and returns the tag.
    pub fn seal(&self, number: u64, last: bool, ad: &[u8], bytes: &mut [u8]) -> [u8; TAG] {
        let tag =
            self.key().and_then(|key| key.seal_in_place_separate_tag(nonce(number, last), Aad::from(ad), bytes)).ok();
        let tag = tag.and_then(|tag| tag.as_ref().try_into().ok());
        tag.expect("a frame is far below the cipher's limit of 256 GiB")
    }

    /// Decrypts `stored` (ciphertext and tag) into `out`, which is as long as the ciphertext. Nothing is in it that the tag does not fit.
    pub fn open(&self, number: u64, last: bool, ad: &[u8], stored: &[u8], out: &mut [u8]) -> Result<(), Unauthentic> {
        let (ciphertext, tag) = stored.split_last_chunk::<TAG>().ok_or(Unauthentic)?;
        if out.len() != ciphertext.len() {
            return Err(Unauthentic);
        }
        out.copy_from_slice(ciphertext);
        let (nonce, tag) = (nonce(number, last), Tag::from(*tag));
        let opened =
            self.key().and_then(|key| key.open_in_place_separate_tag(nonce, Aad::from(ad), tag, out, 0..).map(drop));
        opened.map_err(|Unspecified| Unauthentic)
    }

    fn key(&self) -> Result<LessSafeKey, Unspecified> {
        UnboundKey::new(&CHACHA20_POLY1305, &*self.key).map(LessSafeKey::new)
    }
}

/// What the CRC-32C of a tail's frames goes on from: a frame that an earlier tail left in the same file is none of this one.
pub fn tail_seed(salt: &[u8; 32]) -> u32 {
    crc32c::crc32c(salt)
}

/// Frame number (big endian), three zero bytes, last flag.
fn nonce(number: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_be_bytes());
    nonce[11] = last.into();
    Nonce::assume_unique_for_key(nonce)
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

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::inout::InOutBuf;
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};

    use super::*;

    /// What is sealed has to be understood by another implementation, and what that seals by this one.
    #[test]
    fn another_implementation_understands_it() {
        let key = [7; 32];
        let (ours, theirs) = (FrameCipher::new(&key), ChaCha20Poly1305::new(&key.into()));
        for (len, last) in [(0, false), (1, true), (63, false), (64, true), (8192, false), (262_145, true)] {
            let plain: Vec<u8> = (0..len).map(|i: u32| ((i * 31) >> 3) as u8).collect();
            let number = 0x0102_0304_0506_0708 + u64::from(len);
            let theirs_nonce = (*nonce(number, last).as_ref()).into();
            let mut sealed = plain.clone();
            let tag = ours.seal(number, last, b"head", &mut sealed);
            let mut other = plain.clone();
            let other_tag =
                theirs.encrypt_inout_detached(&theirs_nonce, b"head", InOutBuf::from(&mut other[..])).unwrap();
            assert_eq!((&sealed, tag.as_slice()), (&other, other_tag.as_slice()), "{len} bytes");
            sealed.extend_from_slice(&tag);
            let mut opened = vec![9; plain.len()];
            ours.open(number, last, b"head", &sealed, &mut opened).unwrap();
            assert_eq!(opened, plain);
            for (number, last, ad) in [(number + 1, last, "head"), (number, !last, "head"), (number, last, "hea")] {
                assert!(ours.open(number, last, ad.as_bytes(), &sealed, &mut opened).is_err());
                assert!(opened.iter().all(|byte| *byte == 0), "nothing is left of what is not authentic");
            }
            for damaged in (0..sealed.len()).step_by(sealed.len() / 3 + 1) {
                sealed[damaged] ^= 1;
                assert!(ours.open(number, last, b"head", &sealed, &mut opened).is_err(), "byte {damaged} of {len}");
                sealed[damaged] ^= 1;
            }
            assert!(ours.open(number, last, b"head", &sealed, &mut vec![0; plain.len() + 1]).is_err());
        }
        assert!(ours.open(0, false, b"", &[0; TAG - 1], &mut []).is_err());
    }
}
