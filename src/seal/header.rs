//! The object header: what an object says about itself, in the clear, bound into its keys.

use std::fmt;

use super::opener::OpenFailed;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

/// First bytes of every object.
pub const MAGIC: [u8; 8] = *b"walrecv\0";
/// The format that this code writes, and the only one it reads.
pub const FORMAT: u16 = 1;
/// Longest header, commitments not counted.
pub const MAX_HEADER: usize = 4096;
/// Bytes before the wrapped key.
pub const FIXED_HEADER: usize = 86;
/// Longest wrapped data key.
pub const MAX_WRAPPED: usize = MAX_HEADER - FIXED_HEADER;
/// Header flag: the keys are the published constant.
const FLAG_PUBLISHED: u8 = 1;

/// Kinds of objects; the number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    Segment = 1,
    Partial = 2,
    Tail = 3,
    Pack = 4,
    Map = 5,
    Intent = 6,
    Manifest = 7,
    Tombstone = 8,
    ServerManifest = 9,
    Event = 10,
    History = 11,
    GroupSummary = 12,
    Plan = 13,
    Cluster = 14,
    Heartbeat = 15,
}

impl ObjectKind {
    pub const ALL: [ObjectKind; 15] = [
        Self::Segment,
        Self::Partial,
        Self::Tail,
        Self::Pack,
        Self::Map,
        Self::Intent,
        Self::Manifest,
        Self::Tombstone,
        Self::ServerManifest,
        Self::Event,
        Self::History,
        Self::GroupSummary,
        Self::Plan,
        Self::Cluster,
        Self::Heartbeat,
    ];

    /// The number that is stored.
    pub fn number(self) -> u8 {
        self as u8
    }

    pub fn from_number(number: u8) -> Option<ObjectKind> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Which keys open the object: follows from the kind, never from a stored field.
    pub fn class(self) -> KeyClass {
        match self {
            Self::Segment | Self::Partial | Self::Tail | Self::Pack => KeyClass::Content,
            _ => KeyClass::Index,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Partial => "partial segment",
            Self::Tail => "tail",
            Self::Pack => "pack",
            Self::Map => "map",
            Self::Intent => "intent",
            Self::Manifest => "manifest",
            Self::Tombstone => "tombstone",
            Self::ServerManifest => "server manifest",
            Self::Event => "event",
            Self::History => "history",
            Self::GroupSummary => "group summary",
            Self::Plan => "plan",
            Self::Cluster => "cluster file",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// Which keys open the frames after frame 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyClass {
    /// WAL and pages: data key and repository secret.
    Content,
    /// Names, times, sizes: the repository secret alone.
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub [u8; 16]);

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the writer states about the object; every reader demands that it is what the object's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    pub kind: ObjectKind,
    pub repository: RepositoryId,
    pub system: SystemIdentifier,
    pub segment_size: SegmentSize,
    /// Timeline, for WAL and history; 0 otherwise.
    pub timeline: TimelineId,
    /// First LSN of the content, for WAL; number of the part in its folder otherwise.
    pub start: Lsn,
}

impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of repository {}, system {}, segments of {} bytes, timeline {}, start {}",
            self.kind.name(),
            self.repository,
            self.system,
            self.segment_size.bytes(),
            self.timeline,
            self.start
        )
    }
}

/// The parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub claims: Claims,
    /// The keys are the published constant: the repository is not encrypted.
    pub published: bool,
    pub salt: [u8; 32],
    /// The data key, wrapped for the repository identity (an age file); empty when the repository is not encrypted or the class is Index.
    pub wrapped_key: Vec<u8>,
}

impl Header {
    /// The stored form, which the keys are bound to.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_HEADER + self.wrapped_key.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.push(self.claims.kind.number());
        out.push(if self.published { FLAG_PUBLISHED } else { 0 });
        out.extend_from_slice(&self.claims.repository.0);
        out.extend_from_slice(&self.claims.system.0.to_le_bytes());
        out.extend_from_slice(&(self.claims.segment_size.bytes() as u32).to_le_bytes());
        out.extend_from_slice(&self.claims.timeline.0.to_le_bytes());
        out.extend_from_slice(&self.claims.start.0.to_le_bytes());
        out.extend_from_slice(&self.salt);
        assert!(self.wrapped_key.len() <= MAX_WRAPPED, "a wrapped data key has at most {MAX_WRAPPED} bytes");
        out.extend_from_slice(&(self.wrapped_key.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.wrapped_key);
        out
    }

    /// Reads the header at the start of `bytes`; returns it with its length.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Header, usize), OpenFailed> {
        let seen = bytes.len().min(MAGIC.len());
        if bytes[..seen] != MAGIC[..seen] {
            return Err(OpenFailed::NotAnObject(format!("begins with {:02x?}", &bytes[..seen])));
        }
        let mut fields = Fields { bytes, at: MAGIC.len() };
        let format = u16::from_le_bytes(fields.take()?);
        if format != FORMAT {
            return Err(OpenFailed::Version(format));
        }
        let [kind, flags] = fields.take()?;
        let repository = RepositoryId(fields.take()?);
        let system = SystemIdentifier(u64::from_le_bytes(fields.take()?));
        let segment_size = u32::from_le_bytes(fields.take()?);
        let timeline = TimelineId(u32::from_le_bytes(fields.take()?));
        let start = Lsn(u64::from_le_bytes(fields.take()?));
        let salt = fields.take()?;
        let wrapped = u16::from_le_bytes(fields.take()?) as usize;
        let damaged = |offset, problem| Err(OpenFailed::Damaged { offset, problem });
        let Some(kind) = ObjectKind::from_number(kind) else {
            return damaged(10, format!("no kind of object has the number {kind}"));
        };
        if flags & !FLAG_PUBLISHED != 0 {
            return damaged(11, format!("flags are {flags:#04x}, of which only 0x01 is known"));
        }
        let Some(segment_size) = SegmentSize::new(segment_size.into()) else {
            return damaged(36, format!("no segment size is {segment_size} bytes"));
        };
        if wrapped > MAX_WRAPPED {
            return damaged(84, format!("wrapped key of {wrapped} bytes, at most {MAX_WRAPPED} are allowed"));
        }
        let Some(wrapped_key) = bytes.get(fields.at..fields.at + wrapped) else {
            return Err(truncated("header", fields.at + wrapped, bytes.len()));
        };
        let claims = Claims { kind, repository, system, segment_size, timeline, start };
        let published = flags & FLAG_PUBLISHED != 0;
        let header = Header { claims, published, salt, wrapped_key: wrapped_key.to_vec() };
        Ok((header, fields.at + wrapped))
    }
}

/// `what` needs the object's first `needed` bytes, and only `found` are there.
pub(super) fn truncated(what: &str, needed: usize, found: usize) -> OpenFailed {
    OpenFailed::Truncated(format!("{what} needs {needed} bytes, {found} are there"))
}

/// Takes fields of fixed size from the front.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], OpenFailed> {
        let field = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        self.at += N;
        field.copied().ok_or_else(|| truncated("header", FIXED_HEADER, self.bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_kinds_are_kept() {
        for (index, kind) in ObjectKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.number() as usize, index + 1);
            assert_eq!(ObjectKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(ObjectKind::from_number(0), None);
        assert_eq!(ObjectKind::from_number(16), None);
    }
}
