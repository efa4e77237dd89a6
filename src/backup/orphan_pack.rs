//! A pack of an interrupted backup, by its own account: its first frame says what stands where, and how long every frame is.

use std::sync::Arc;

use bytes::Bytes;

use crate::archive::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::store::HEAD_BYTES;
use crate::seal::content::contents::{Contents, Piece};
use crate::seal::content::map::PackPlace;
use crate::seal::content::varint::{Cursor, put, put_bytes};
use crate::seal::content::{BackupId, Malformed};
use crate::seal::header::ObjectKind;
use crate::seal::opener::Opener;
use crate::seal::sealer::{FRAME_BYTES, FramePlace};

/// A pack that can be used as it is.
#[derive(Debug)]
pub struct OrphanPack {
    pub place: PackPlace,
    /// Of each frame, from frame 1 on.
    pub frames: Vec<Vec<Piece>>,
}

/// Reads the first bytes of the pack `number` of `backup`, whose object has `len` bytes, and makes what was found durable.
///
/// Errors: `Kind::Corrupt` where its list is not authentic, or does not account for every byte of the object.
pub async fn read(archive: &Archive, backup: &BackupId, number: u32, len: u64) -> Result<OrphanPack> {
    let name = archive.names.pack(backup.as_str(), number);
    let gone = || Error::new(Kind::Corrupt, format!("{name} is gone"));
    let no = |failed| refused(&name, failed);
    let mut start = archive.repo.get_range(&name, 0..HEAD_BYTES).await?.ok_or_else(gone)?;
    let claims = archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(u64::from(number)));
    let opener = Opener::new(&start, &claims, archive.keys.as_ref(), false).map_err(no)?;
    let end = opener.frame0_end(&start).map_err(no)?;
    if end > start.len() {
        start = archive.repo.get_range(&name, 0..end as u64).await?.ok_or_else(gone)?;
    }
    let list = opener.frame0(&start).map_err(no)?;
    let contents = Contents::decode(&list, backup, number)
        .map_err(|bad| Error::new(Kind::Corrupt, bad.to_string()).context(&name))?;
    let header = start.slice(..opener.preamble_len().min(start.len()));
    let first = FramePlace {
        offset: header.len() as u64,
        len: end.saturating_sub(header.len()) as u32,
        plain_len: list.len() as u32,
    };
    let frames = frames(&contents, first, len).map_err(|problem| Error::new(Kind::Corrupt, problem).context(&name))?;
    // What a dead run's put left may have its name in memory only.
    archive.repo.settle(&name).await?;
    // A copy: the rest of what was read can go.
    let header = Bytes::copy_from_slice(&header);
    Ok(OrphanPack { place: PackPlace { backup: backup.clone(), number, len, header, frames }, frames: contents.frames })
}

/// Where all frames are, if they are all of the object.
fn frames(contents: &Contents, first: FramePlace, len: u64) -> Result<Vec<FramePlace>, String> {
    if contents.stored.len() != contents.frames.len() {
        return Err("its list does not say how long its frames are".to_owned());
    }
    let mut offset = first.offset + u64::from(first.len);
    let mut frames = vec![first];
    for (pieces, stored) in contents.frames.iter().zip(&contents.stored) {
        let plain = pieces.iter().fold(0u64, |sum, p| sum.saturating_add(p.count.saturating_mul(p.unit.bytes())));
        if plain > FRAME_BYTES as u64 {
            return Err(format!("a frame holds {plain} bytes"));
        }
        frames.push(FramePlace { offset, len: *stored, plain_len: plain as u32 });
        offset += u64::from(*stored);
    }
    if offset != len {
        return Err(format!("its frames end at {offset}, the object at {len}"));
    }
    Ok(frames)
}

/// For [`decode()`]: offsets follow from lengths.
pub fn encode(place: &PackPlace) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, place.backup.as_str().as_bytes());
    put(&mut out, u64::from(place.number));
    put(&mut out, place.len);
    put_bytes(&mut out, &place.header);
    for frame in &place.frames {
        put(&mut out, u64::from(frame.len));
        put(&mut out, u64::from(frame.plain_len));
    }
    out
}

pub fn decode(bytes: &[u8]) -> Result<Arc<PackPlace>, Malformed> {
    let mut cursor = Cursor::new("place of a pack", bytes);
    let backup = String::from_utf8_lossy(cursor.bytes()?).into_owned();
    let backup = BackupId::parse(&backup).map_err(|e| cursor.bad(e))?;
    let (number, len) = (cursor.small()?, cursor.number()?);
    let header = Bytes::copy_from_slice(cursor.bytes()?);
    let (mut offset, mut frames) = (header.len() as u64, Vec::new());
    while !cursor.is_empty() {
        let (len, plain_len) = (cursor.small()?, cursor.small()?);
        frames.push(FramePlace { offset, len, plain_len });
        offset += u64::from(len);
    }
    Ok(Arc::new(PackPlace { backup, number, len, header, frames }))
}
