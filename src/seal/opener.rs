//! Opener: sealed bytes in, plain bytes out, or the exact reason why not.

use super::cipher::{self, COMMITMENT, FrameCipher};
use super::frame::{self, BadFrame, FRAME_HEAD, Head, Slot};
use super::header::{Claims, Header, KeyClass, truncated};
use super::key::{DataKey, ObjectKey, ReaderKeys};
use super::sealer::{FramePlace, OBJECT_BYTES};

/// Why an object was refused. `Key` maps to exit 12, the rest to 16 (version: 10).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailed {
    #[error("not a walrecv object: {0}")]
    NotAnObject(String),
    #[error("format version {0} is not supported")]
    Version(u16),
    #[error("object ends early: {0}")]
    Truncated(String),
    #[error("object says {found}, its name says {expected}")]
    Claims { expected: String, found: String },
    #[error("key does not open this object: {0}")]
    Key(String),
    #[error("damaged at offset {offset}: {problem}")]
    Damaged { offset: u64, problem: String },
}

impl OpenFailed {
    /// Of bytes that stand so far behind the object's beginning.
    pub fn behind(self, begin: u64) -> OpenFailed {
        match self {
            OpenFailed::Damaged { offset, problem } => {
                OpenFailed::Damaged { offset: begin.saturating_add(offset), problem }
            }
            other => other,
        }
    }
}

/// Parses the header; needs only the first bytes (8 KiB are always enough for header and frame 0 of a segment). Returns it with its length.
/// Nothing is authenticated yet: only [`Opener::new`] says who wrote it.
pub fn read_header(bytes: &[u8]) -> Result<(Header, usize), OpenFailed> {
    Header::decode(bytes)
}

/// An opened header with its keys derived and their commitments checked.
pub struct Opener {
    header: Header,
    preamble_len: usize,
    index: FrameCipher,
    /// The key of the frames after frame 0: always there for the index class (the same key), else only if asked for.
    content: Option<FrameCipher>,
}

impl Opener {
    /// Reads the header, compares the claims, derives the keys. `content: false` needs only the secret (frame 0, index class).
    pub fn new(bytes: &[u8], expected: &Claims, keys: &dyn ReaderKeys, content: bool) -> Result<Opener, OpenFailed> {
        let (header, header_len) = Header::decode(bytes)?;
        let class = header.claims.kind.class();
        let preamble_len = cipher::preamble_len(class, header_len);
        let Some(preamble) = bytes.get(..preamble_len) else {
            return Err(truncated("header with key commitments", preamble_len, bytes.len()));
        };
        let (covered, crc) = preamble.split_at(preamble_len - 4);
        if crc32c::crc32c(covered).to_le_bytes() != crc {
            let problem = "CRC-32C of the header does not fit".to_owned();
            return Err(OpenFailed::Damaged { offset: 0, problem });
        }
        if header.claims != *expected {
            return Err(OpenFailed::Claims { expected: expected.to_string(), found: header.claims.to_string() });
        }
        match (header.published, keys.secret().is_published()) {
            (true, false) => return Err(key("it is not encrypted, but this repository is")),
            (false, true) => return Err(key("it is encrypted, but this repository is not")),
            _ => {}
        }
        let (header_bytes, commitments) = covered.split_at(header_len);
        let (index_commitment, content_commitment) = commitments.split_at(COMMITMENT);
        let derive =
            |class, data_key: &DataKey| ObjectKey::derive(class, header_bytes, &header.salt, keys.secret(), data_key);
        // The index key takes no data key; the argument is not used.
        let index = derive(KeyClass::Index, &DataKey::published());
        if !index.commits_to(index_commitment) {
            return Err(key("it was sealed with another repository secret, or by someone who has none"));
        }
        let content = match class {
            KeyClass::Index => Some(FrameCipher::new(&index.key)),
            KeyClass::Content if !content => None,
            KeyClass::Content => {
                let data_key = keys.unwrap_key(&header.wrapped_key).map_err(OpenFailed::Key)?;
                let derived = derive(KeyClass::Content, &data_key);
                if !derived.commits_to(content_commitment) {
                    return Err(key("its wrapped data key is not the one that it was sealed with"));
                }
                Some(FrameCipher::new(&derived.key))
            }
        };
        Ok(Opener { header, preamble_len, index: FrameCipher::new(&index.key), content })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Length of header and commitments: offset of frame 0 (of the first frame, in tails).
    pub fn preamble_len(&self) -> usize {
        self.preamble_len
    }

    /// How many of the object's first bytes hold frame 0; needs the first `preamble_len() + 16` bytes.
    pub fn frame0_end(&self, bytes: &[u8]) -> Result<usize, OpenFailed> {
        let head = head_at(bytes, self.preamble_len, 0)?;
        Ok(self.preamble_len + FRAME_HEAD + head.stored_len)
    }

    /// Frame 0 from the first bytes of the object.
    pub fn frame0(&self, bytes: &[u8]) -> Result<Vec<u8>, OpenFailed> {
        let walk = Walk { opener: self, object: bytes };
        let (frame, head) = walk.frame(self.preamble_len, 0)?;
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        // Whether content follows cannot be seen from the first bytes, so either flag is right.
        let slot = |last| Slot { cipher: &self.index, number: 0, last };
        match frame::open(slot(false), frame, 0, head, &mut scratch, &mut out) {
            Err(BadFrame::Unauthentic) => frame::open(slot(true), frame, 0, head, &mut scratch, &mut out),
            done => done,
        }
        .map_err(|bad| refused(self.preamble_len, 0, bad))?;
        Ok(out)
    }

    /// All content frames of a whole object, in order, appended to `out`; demands the last-frame flag on the last one and nothing after it.
    /// For the index class that is every frame. `out` is unchanged on failure.
    pub fn content(&self, object: &[u8], out: &mut Vec<u8>) -> Result<(), OpenFailed> {
        self.whole(object, out).map(|_| ())
    }

    /// As [`Opener::content`], and returns frame 0 (empty for the index class, where it is part of the content).
    pub fn whole(&self, object: &[u8], out: &mut Vec<u8>) -> Result<Vec<u8>, OpenFailed> {
        let start = out.len();
        let mut frame0 = Vec::new();
        let result = Walk { opener: self, object }.all(&mut frame0, out);
        if result.is_err() {
            out.truncate(start);
        }
        result.map(|()| frame0)
    }

    /// How many plain bytes of content a whole object holds, by its frames' lengths and CRC-32C alone: what can be told of a content class without the identity.
    /// The frames must follow one another to the object's last byte; that none is missing at its end shows only in the sum. Damage is found, forgery is not.
    pub fn content_len(&self, object: &[u8]) -> Result<u64, OpenFailed> {
        let walk = Walk { opener: self, object };
        let (mut offset, mut number, mut plain) = (self.preamble_len, 0, 0);
        while number == 0 || offset < object.len() {
            let (frame, head) = walk.frame(offset, number)?;
            let counts = number > 0 || self.header.claims.kind.class() == KeyClass::Index;
            plain += if counts { head.plain_len as u64 } else { 0 };
            (offset, number) = (offset + frame.len(), number + 1);
        }
        Ok(plain)
    }

    /// Where each frame of a whole object stands, by lengths and CRC-32C alone, as its sealer told it.
    pub fn places(&self, object: &[u8]) -> Result<Vec<FramePlace>, OpenFailed> {
        let walk = Walk { opener: self, object };
        let (mut offset, mut places) = (self.preamble_len, Vec::new());
        while places.is_empty() || offset < object.len() {
            let (frame, head) = walk.frame(offset, places.len() as u64)?;
            // Both are bounded by what a frame's head may say.
            let (len, plain_len) = (frame.len() as u32, head.plain_len as u32);
            places.push(FramePlace { offset: offset as u64, len, plain_len });
            offset += frame.len();
        }
        Ok(places)
    }

    /// One frame of a pack, cut out by range: `frame` are its bytes (header and ciphertext), `number` its number; `last` whether it is the last.
    pub fn frame(&self, frame: &[u8], number: u32, last: bool) -> Result<Vec<u8>, OpenFailed> {
        let mut out = Vec::new();
        self.frame_into(frame, number, last, &mut Vec::new(), &mut out)?;
        Ok(out)
    }

    /// As [`Opener::frame`], appending to `out`; `scratch` is memory that is used again.
    pub fn frame_into(
        &self,
        frame: &[u8],
        number: u32,
        last: bool,
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenFailed> {
        let (whole, head) = Walk { opener: self, object: frame }.frame(0, number.into())?;
        if whole.len() != frame.len() {
            let problem = format!("frame {number} has {} bytes, its place {}", whole.len(), frame.len());
            return Err(OpenFailed::Damaged { offset: whole.len() as u64, problem });
        }
        let slot = Slot { cipher: self.cipher_of(number.into())?, number: number.into(), last };
        frame::open(slot, whole, 0, head, scratch, out).map_err(|bad| refused(0, number.into(), bad))
    }

    pub(super) fn cipher_of(&self, number: u64) -> Result<&FrameCipher, OpenFailed> {
        if number == 0 {
            return Ok(&self.index);
        }
        self.content_cipher()
    }

    pub(super) fn content_cipher(&self) -> Result<&FrameCipher, OpenFailed> {
        self.content.as_ref().ok_or_else(|| key("it was opened without its data key"))
    }
}

/// Opens an index-class object whole.
pub fn open_index(object: &[u8], expected: &Claims, keys: &dyn ReaderKeys) -> Result<Vec<u8>, OpenFailed> {
    let mut out = Vec::new();
    Opener::new(object, expected, keys, true)?.content(object, &mut out)?;
    Ok(out)
}

/// Frame after frame through an object.
struct Walk<'a> {
    opener: &'a Opener,
    object: &'a [u8],
}

impl<'a> Walk<'a> {
    /// The whole frame at `offset`, its CRC checked.
    fn frame(&self, offset: usize, number: u64) -> Result<(&'a [u8], Head), OpenFailed> {
        let head = head_at(self.object, offset, number)?;
        let end = offset + FRAME_HEAD + head.stored_len;
        let Some(frame) = self.object.get(offset..end) else {
            return Err(truncated(&format!("frame {number}"), end, self.object.len()));
        };
        if !frame::crc_fits(frame, 0, 0) {
            let problem = format!("CRC-32C of frame {number} does not fit");
            return Err(OpenFailed::Damaged { offset: offset as u64, problem });
        }
        Ok((frame, head))
    }

    fn all(&self, frame0: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), OpenFailed> {
        let index_class = self.opener.header.claims.kind.class() == KeyClass::Index;
        let (mut scratch, mut plain) = (Vec::new(), 0);
        let (mut offset, mut number) = (self.opener.preamble_len, 0);
        loop {
            let (frame, head) = self.frame(offset, number)?;
            let end = offset + frame.len();
            let last = end == self.object.len();
            let target = if number == 0 && !index_class { &mut *frame0 } else { &mut *out };
            plain += if number == 0 && !index_class { 0 } else { head.plain_len as u64 };
            if plain > OBJECT_BYTES {
                let problem = format!("more than {OBJECT_BYTES} plain bytes in one object");
                return Err(OpenFailed::Damaged { offset: offset as u64, problem });
            }
            let slot = |last| -> Result<Slot<'_>, OpenFailed> {
                Ok(Slot { cipher: self.opener.cipher_of(number)?, number, last })
            };
            match frame::open(slot(last)?, frame, 0, head, &mut scratch, target) {
                Ok(()) if last => return Ok(()),
                Ok(()) => {}
                Err(BadFrame::Unauthentic) => {
                    let other = frame::open(slot(!last)?, frame, 0, head, &mut scratch, &mut Vec::new());
                    return Err(match (last, other) {
                        (true, Ok(())) => OpenFailed::Truncated(format!("frame {number} is not the last one")),
                        (false, Ok(())) => OpenFailed::Damaged {
                            offset: end as u64,
                            problem: format!("{} bytes after the last frame", self.object.len() - end),
                        },
                        (_, Err(bad)) => refused(offset, number, bad),
                    });
                }
                Err(bad) => return Err(refused(offset, number, bad)),
            }
            (offset, number) = (end, number + 1);
        }
    }
}

fn head_at(bytes: &[u8], offset: usize, number: u64) -> Result<Head, OpenFailed> {
    let Some(head) = bytes.get(offset..offset + FRAME_HEAD) else {
        return Err(truncated(&format!("frame {number}"), offset + FRAME_HEAD, bytes.len()));
    };
    frame::head(head)
        .map_err(|problem| OpenFailed::Damaged { offset: offset as u64, problem: format!("frame {number}: {problem}") })
}

fn key(problem: &str) -> OpenFailed {
    OpenFailed::Key(problem.to_owned())
}

pub(super) fn refused(offset: usize, number: u64, bad: BadFrame) -> OpenFailed {
    let problem = match bad {
        BadFrame::Unauthentic => {
            format!("frame {number} is whole but not authentic: moved from another place, or sealed without the keys")
        }
        BadFrame::Compression(problem) => format!("frame {number}: {problem}"),
    };
    OpenFailed::Damaged { offset: offset as u64, problem }
}
