//! One pack: fetch what is needed of it in as few requests as make sense, open its frames, write their pieces in place.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::lay::{Filling, PackJob, Piece};
use super::{keep, stock};
use crate::archive::Archive;
use crate::disk::lay::Ground;
use crate::error::{Error, Kind, Result};
use crate::repo::ClusterNames;
use crate::seal::content::contents::Contents;
use crate::seal::content::map::{File, PackPlace, Run, Source};
use crate::seal::header::ObjectKind;
use crate::seal::opener::{OpenFailed, Opener};
use crate::seal::page_hash::PageHasher;

/// Frames closer than this are fetched together with what lies between them.
const JOIN: u64 = 1 << 20;
/// Bytes that are fetched together from a local repository: a whole pack would only pass through more memory.
const NEAR: u64 = 4 << 20;
/// And from another one, where each request costs a journey: a whole pack.
const FAR: u64 = 17 << 20;

/// What a pack took and gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    pub fetched: u64,
    /// Bytes that stood in their files already.
    pub kept: u64,
    pub written: u64,
}

/// Fetches, opens and writes everything that a window needs of one pack. Where files stood there, its contents list comes first, and only what is not right already.
pub async fn write_out(
    archive: &Archive,
    ground: &Ground,
    files: &Arc<Vec<Filling>>,
    mut job: PackJob,
) -> Result<Moved> {
    job.pieces.sort_unstable_by_key(|p| (p.frame, p.offset));
    let name = archive.names.pack(job.pack.backup.as_str(), job.pack.number);
    let (mut moved, mut opened) = (Moved::default(), None);
    if job.pieces.iter().any(|p| files.get(p.file as usize).is_some_and(|file| file.stood)) {
        let list = stock::needed(archive.repo.get_range(&name, list_range(&job.pack, &name)?).await?, &name)?;
        moved.fetched += list.len() as u64;
        let (archive, ground, files, name) = (archive.clone(), ground.clone(), files.clone(), name.clone());
        let work = move || compare(&archive, &ground, &files, job, &name, &list);
        let (left, kept, listed) = blocking(work).await?;
        (job, moved.kept, opened) = (left, kept, Some(listed));
        if job.pieces.is_empty() {
            return Ok(moved);
        }
    }
    for pieces in groups(&job.pack, job.pieces, together(archive), &name)? {
        let ranges = ranges(&job.pack, &pieces, opened.is_none(), &name)?;
        let mut chunks = Vec::with_capacity(ranges.len());
        for range in ranges {
            let bytes = stock::needed(archive.repo.get_range(&name, range.clone()).await?, &name)?;
            moved.fetched += bytes.len() as u64;
            chunks.push((range.start, bytes));
        }
        let (archive, ground, files) = (archive.clone(), ground.clone(), files.clone());
        let (pack, name) = (job.pack.clone(), name.clone());
        let work = move || {
            let opened = match opened {
                Some(opened) => opened,
                None => Opened::new(&archive, &pack, sealed_frame(&pack, 0, &chunks, &name)?, &name)?,
            };
            let written = write_pieces(&opened, &pack, &ground, &files, &pieces, &name, &chunks)?;
            Ok((opened, written))
        };
        let (again, written) = blocking(work).await?;
        opened = Some(again);
        moved.written += written;
    }
    Ok(moved)
}

/// Bytes of a pack that are fetched together.
pub fn together(archive: &Archive) -> u64 {
    if archive.repo.local_root().is_some() { NEAR } else { FAR }
}

/// How many bytes [`write_out`] fetches where nothing stood in the files.
pub fn fetches(names: &ClusterNames, mut job: PackJob, together: u64) -> Result<u64> {
    job.pieces.sort_unstable_by_key(|p| (p.frame, p.offset));
    let name = names.pack(job.pack.backup.as_str(), job.pack.number);
    let (mut bytes, mut list) = (0, true);
    for pieces in groups(&job.pack, job.pieces, together, &name)? {
        let ranges = ranges(&job.pack, &pieces, std::mem::take(&mut list), &name)?;
        bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    }
    Ok(bytes)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::new(Kind::Failed, "writing files was interrupted").caused_by(e))?
}

/// Takes out of a job what stands in its files already; how many bytes that is, and what opens the rest.
fn compare(
    archive: &Archive,
    ground: &Ground,
    files: &[Filling],
    job: PackJob,
    name: &str,
    list: &[u8],
) -> Result<(PackJob, u64, Opened)> {
    let opened = Opened::new(archive, &job.pack, list, name)?;
    let hasher = PageHasher::new(archive.keys.secret());
    let (pieces, kept) = keep::missing(ground, files, &opened.contents, &hasher, &job.pieces, name)?;
    Ok((PackJob { pieces, ..job }, kept, opened))
}

/// What a pack's frames are opened and checked with.
struct Opened {
    opener: Opener,
    contents: Contents,
}

impl Opened {
    /// From the sealed frame 0, the contents list.
    fn new(archive: &Archive, pack: &PackPlace, list: &[u8], name: &str) -> Result<Opened> {
        let claims = stock::part_claims(archive, ObjectKind::Pack, pack.number);
        let opener = Opener::new(&pack.header, &claims, archive.keys.as_ref(), true);
        let opener = opener.map_err(|e| stock::refused(name, e))?;
        let plain = opener.frame(list, 0, pack.is_last(0)).map_err(|e| in_frame(pack, 0, name, e))?;
        let contents = Contents::decode(&plain, &pack.backup, pack.number).map_err(|e| stock::malformed(name, e))?;
        Ok(Opened { opener, contents })
    }
}

/// Where a map is wrong about a place, the page that stands there would open all the same: only the pack's own list tells.
fn demand_stands(contents: &Contents, at: &Piece, path: &[u8], name: &str) -> Result<()> {
    let stands = contents.stands(at.frame, at.offset, path, at.at, u64::from(at.len));
    stands.map_err(|found| misplaced(at, path, name, &found))
}

/// A map and a pack that do not say the same.
pub fn misplaced(at: &Piece, path: &[u8], name: &str, found: &str) -> Error {
    let shown = String::from_utf8_lossy(path);
    let text = format!(
        "a map says that {} bytes at {} of {shown:?} stand in frame {} of {name}, byte {}: {found}",
        at.len, at.at, at.frame, at.offset
    );
    Error::new(Kind::Corrupt, text).hint("restore from another backup, and see what `walrecv verify --deep` says")
}

/// The pieces (sorted by frame) in groups whose frames are about `together` bytes of the pack.
fn groups(pack: &PackPlace, pieces: Vec<Piece>, together: u64, name: &str) -> Result<Vec<Vec<Piece>>> {
    let mut out: Vec<Vec<Piece>> = Vec::new();
    let mut begin = 0;
    for piece in pieces {
        let place = pack.frames.get(piece.frame as usize).ok_or_else(|| no_frame(name, piece.frame))?;
        let same = |group: &&mut Vec<Piece>| {
            let in_reach = place.offset + u64::from(place.len) <= begin + together;
            in_reach || group.last().is_some_and(|last| last.frame == piece.frame)
        };
        match out.last_mut().filter(same) {
            Some(group) => group.push(piece),
            None => {
                begin = place.offset;
                out.push(vec![piece]);
            }
        }
    }
    Ok(out)
}

/// The bytes of the pack that hold the frames of these pieces (sorted by frame), and before them its contents list; neighbours joined.
fn ranges(pack: &PackPlace, pieces: &[Piece], list: bool, name: &str) -> Result<Vec<Range<u64>>> {
    let mut out = Vec::new();
    if list {
        out.push(list_range(pack, name)?);
    }
    for piece in pieces {
        let place = pack.frames.get(piece.frame as usize).ok_or_else(|| no_frame(name, piece.frame))?;
        let (start, end) = (place.offset, place.offset + u64::from(place.len));
        match out.last_mut() {
            Some(last) if start <= last.end + JOIN => last.end = last.end.max(end),
            _ => out.push(start..end),
        }
    }
    Ok(out)
}

fn list_range(pack: &PackPlace, name: &str) -> Result<Range<u64>> {
    let list = pack.frames.first().ok_or_else(|| no_frame(name, 0))?;
    Ok(list.offset..list.offset + u64::from(list.len))
}

/// What is wrong with a frame, by its place in the pack.
fn in_frame(pack: &PackPlace, frame: u32, name: &str, failed: OpenFailed) -> Error {
    let begin = pack.frames.get(frame as usize).map_or(0, |place| place.offset);
    stock::refused(name, failed.behind(begin))
}

fn no_frame(name: &str, frame: u32) -> Error {
    Error::new(Kind::Corrupt, format!("{name} has no frame {frame}, but a map names it"))
}

fn write_pieces(
    Opened { opener, contents }: &Opened,
    pack: &PackPlace,
    ground: &Ground,
    files: &[Filling],
    pieces: &[Piece],
    name: &str,
    chunks: &[(u64, Bytes)],
) -> Result<u64> {
    let (mut scratch, mut plain) = (Vec::new(), Vec::new());
    let mut stands = None;
    let mut written = 0;
    let mut open_files = HashMap::new();
    for piece in pieces {
        if stands != Some(piece.frame) {
            plain.clear();
            let sealed = sealed_frame(pack, piece.frame, chunks, name)?;
            let last = pack.is_last(piece.frame);
            opener
                .frame_into(sealed, piece.frame, last, &mut scratch, &mut plain)
                .map_err(|e| in_frame(pack, piece.frame, name, e))?;
            stands = Some(piece.frame);
        }
        let Filling { path, tally, unwritten, .. } = filling(files, piece)?;
        demand_stands(contents, piece, path, name)?;
        let bytes = piece_of(&plain, piece.offset, u64::from(piece.len), name)?;
        // Pieces come frame by frame and a frame holds few files: a handful of open files is enough.
        if open_files.len() >= 64 {
            open_files.clear();
        }
        let file = match open_files.entry(piece.file) {
            std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(ground.open(path)?),
        };
        file.write_at(bytes, piece.at)?;
        if let Some(tally) = tally {
            tally.add(piece.at, bytes);
        }
        if let Some(settled) = unwritten.wrote(piece.at, bytes.len() as u64) {
            file.write_back(settled);
        }
        written += bytes.len() as u64;
    }
    Ok(written)
}

pub fn filling<'a>(files: &'a [Filling], piece: &Piece) -> Result<&'a Filling> {
    files.get(piece.file as usize).ok_or_else(|| Error::new(Kind::Failed, "a piece belongs to no file"))
}

fn sealed_frame<'a>(pack: &PackPlace, frame: u32, chunks: &'a [(u64, Bytes)], name: &str) -> Result<&'a [u8]> {
    let place = pack.frames.get(frame as usize).ok_or_else(|| no_frame(name, frame))?;
    let within = |(start, bytes): &'a (u64, Bytes)| {
        let from = usize::try_from(place.offset.checked_sub(*start)?).ok()?;
        bytes.get(from..from.checked_add(place.len as usize)?)
    };
    chunks.iter().find_map(within).ok_or_else(|| {
        let end = place.offset + u64::from(place.len);
        Error::new(Kind::Corrupt, format!("{name} ends before byte {end}, where its frame {frame} should end"))
    })
}

fn piece_of<'a>(plain: &'a [u8], offset: u32, len: u64, name: &str) -> Result<&'a [u8]> {
    let (from, len) = (offset as usize, len as usize);
    from.checked_add(len).and_then(|to| plain.get(from..to)).ok_or_else(|| {
        let found = plain.len();
        Error::new(
            Kind::Corrupt,
            format!("a map names bytes {from} to {} of a frame of {name} that has {found}", from + len),
        )
    })
}

/// How many bytes [`small_file`] fetches.
pub fn small_fetches(archive: &Archive, file: &File) -> Result<u64> {
    let of = |run: &Run| {
        let Source::Pack { pack, frame, .. } = &run.source else { return Ok(0) };
        let name = archive.names.pack(pack.backup.as_str(), pack.number);
        let place = pack.frames.get(*frame as usize).ok_or_else(|| no_frame(&name, *frame))?;
        let list = list_range(pack, &name)?;
        Ok(u64::from(place.len) + list.end - list.start)
    };
    file.runs.iter().map(of).sum()
}

/// A small file as a whole, in memory.
pub async fn small_file(archive: &Archive, file: &File) -> Result<Vec<u8>> {
    let shown = String::from_utf8_lossy(&file.path).into_owned();
    if file.size > 1 << 20 {
        return Err(Error::new(Kind::Corrupt, format!("{shown} has {} bytes", file.size)));
    }
    let unit = file.kind.unit().map_or(1, |u| u.bytes());
    let mut out = vec![0; file.size as usize];
    for run in &file.runs {
        let Source::Pack { pack, frame, offset } = &run.source else { continue };
        let name = archive.names.pack(pack.backup.as_str(), pack.number);
        let place = pack.frames.get(*frame as usize).ok_or_else(|| no_frame(&name, *frame))?;
        let range = place.offset..place.offset + u64::from(place.len);
        let sealed = stock::needed(archive.repo.get_range(&name, range).await?, &name)?;
        let list = stock::needed(archive.repo.get_range(&name, list_range(pack, &name)?).await?, &name)?;
        let Opened { opener, contents } = Opened::new(archive, pack, &list, &name)?;
        let plain =
            opener.frame(&sealed, *frame, pack.is_last(*frame)).map_err(|e| in_frame(pack, *frame, &name, e))?;
        // No longer than the file, which is small.
        let len = (run.count * unit) as u32;
        let piece = Piece { at: run.first * unit, len, file: 0, frame: *frame, offset: *offset };
        demand_stands(&contents, &piece, &file.path, &name)?;
        let bytes = piece_of(&plain, *offset, run.count * unit, &name)?;
        let at = (run.first * unit) as usize;
        let place = out.get_mut(at..at + bytes.len());
        let place =
            place.ok_or_else(|| Error::new(Kind::Corrupt, format!("a map names bytes past the end of {shown}")))?;
        place.copy_from_slice(bytes);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::content::BackupId;
    use crate::seal::sealer::FramePlace;

    #[test]
    fn pieces_are_fetched_in_groups_and_their_list_once() {
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let mib = 1u64 << 20;
        // The list, then frames of 1 MiB each.
        let frames = (0..13).map(|n| FramePlace { offset: 100 + n * mib, len: mib as u32, plain_len: 0 }).collect();
        let pack = PackPlace { backup: id, number: 0, len: 13 * mib + 100, header: Bytes::new(), frames };
        let piece = |frame| Piece { at: 0, len: 1, file: 0, frame, offset: 0 };
        let pieces: Vec<Piece> = [1, 2, 2, 3, 4, 5, 9, 12, 12].map(piece).to_vec();
        let groups = groups(&pack, pieces.clone(), 4 * mib, "pack").unwrap();
        let frames = |group: &Vec<Piece>| group.iter().map(|p| p.frame).collect::<Vec<_>>();
        let found: Vec<_> = groups.iter().map(frames).collect();
        assert_eq!(found, [vec![1, 2, 2, 3, 4], vec![5], vec![9, 12, 12]]);
        let at = |n: u64| 100 + n * mib;
        assert_eq!(ranges(&pack, &groups[0], true, "pack").unwrap(), vec![at(0)..at(5); 1]);
        assert_eq!(ranges(&pack, &groups[2], false, "pack").unwrap(), [at(9)..at(10), at(12)..at(13)]);
        assert_eq!(ranges(&pack, &groups[2], true, "pack").unwrap(), [at(0)..at(1), at(9)..at(10), at(12)..at(13)]);
        assert_eq!(super::groups(&pack, pieces, 1, "pack").unwrap().len(), 7, "a frame is never cut");
        assert!(super::groups(&pack, vec![piece(13)], mib, "pack").is_err());
    }
}
