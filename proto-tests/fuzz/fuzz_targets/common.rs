//! Fixed keys, and changes that the input describes.

use walrecv::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::seal::header::{Claims, ObjectKind, RepositoryId};
use walrecv::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};

pub const REPOSITORY: RepositoryId = RepositoryId(*b"repository-id-16");

pub struct Keys {
    secret: RepositorySecret,
}

pub fn reader() -> Keys {
    Keys { secret: RepositorySecret([0x5E; 32]) }
}

impl ReaderKeys for Keys {
    fn repository(&self) -> RepositoryId {
        REPOSITORY
    }

    fn secret(&self) -> &RepositorySecret {
        &self.secret
    }

    /// Any wrapped key opens: the fuzzer shall get past it.
    fn unwrap_key(&self, _: &[u8]) -> Result<DataKey, String> {
        Ok(DataKey([0xDA; 32]))
    }
}

pub fn writer() -> WriterKeys {
    let (secret, data_key) = (RepositorySecret([0x5E; 32]), DataKey([0xDA; 32]));
    WriterKeys { repository: REPOSITORY, secret, data_key, wrapped: b"wrapped".to_vec() }
}

pub fn claims(kind: ObjectKind) -> Claims {
    Claims {
        kind,
        repository: REPOSITORY,
        system: SystemIdentifier(7_123_456_789_012_345_678),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        timeline: TimelineId(3),
        start: Lsn(0x16_B370_0000),
    }
}

/// Changes `bytes` as `recipe` says, five bytes a step: overwrite, insert, remove, move; and writes one CRC-32C again where a frame of
/// `head` bytes of header then begins, so that more than the CRC is tested. `seed`: what that goes on from.
pub fn change(bytes: &mut Vec<u8>, recipe: &[u8], head: usize, seed: u32) {
    for step in recipe.chunks_exact(5) {
        let at = usize::from(u16::from_le_bytes([step[1], step[2]])) % (bytes.len() + 1);
        let count = usize::from(step[3]);
        let end = (at + count).min(bytes.len());
        match step[0] % 6 {
            0 => bytes[at..end.min(at + 1)].fill(step[4]),
            1 => bytes.insert(at, step[4]),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let moved: Vec<u8> = bytes.drain(at..end).collect();
                bytes.extend_from_slice(&moved);
            }
            _ => mend(bytes, at, head, seed),
        }
    }
}

fn mend(bytes: &mut [u8], at: usize, head: usize, seed: u32) {
    let Some(frame) = bytes.get_mut(at..).filter(|frame| frame.len() > head) else { return };
    let stored = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
    let end = head.saturating_add(stored).min(frame.len());
    let salted = crc32c::crc32c_append(seed, &frame[..head - 4]);
    let crc = crc32c::crc32c_append(salted, &frame[head..end]);
    frame[head - 4..head].copy_from_slice(&crc.to_le_bytes());
}
