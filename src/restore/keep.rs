//! What stands in a file already, and need not be fetched: told by the keyed hash of each page, from the pack's own list.
//!
//! A hash has 64 bits, and its key is secret, so nobody can make a page that passes for another; by accident one in 2^64 does. Times and sizes of files
//! are not asked: they say nothing of pages.

use super::lay::{Filling, Piece};
use super::pack;
use crate::disk::lay::{Ground, Laid};
use crate::error::Result;
use crate::seal::content::contents::Contents;
use crate::seal::page_hash::{CHUNK, PageHash, PageHasher};

/// The pieces (sorted by frame) whose bytes do not stand in their files, cut to what differs, and how many bytes are kept.
pub fn missing(
    ground: &Ground,
    files: &[Filling],
    contents: &Contents,
    hasher: &PageHasher,
    pieces: &[Piece],
    name: &str,
) -> Result<(Vec<Piece>, u64)> {
    let (mut out, mut kept) = (Vec::new(), 0);
    let mut buffer = Vec::new();
    let mut open: Option<(u32, Laid)> = None;
    for piece in pieces {
        let Filling { path, tally, stood, .. } = pack::filling(files, piece)?;
        if !stood {
            out.push(*piece);
            continue;
        }
        let hashes = contents.hashes(piece.frame, piece.offset, path, piece.at, u64::from(piece.len));
        let Some(hashes) = hashes.map_err(|found| pack::misplaced(piece, path, name, &found))? else {
            out.push(*piece);
            continue;
        };
        if open.as_ref().is_none_or(|(number, _)| *number != piece.file) {
            open = Some((piece.file, ground.open(path)?));
        }
        let Some((_, file)) = &open else { continue };
        buffer.resize(piece.len as usize, 0);
        let whole = file.read_at(&mut buffer, piece.at).is_ok();
        let first = out.len();
        for ((number, chunk), hash) in buffer.chunks_mut(CHUNK).enumerate().zip(hashes) {
            let begin = (number * CHUNK) as u32;
            let at = piece.at + u64::from(begin);
            // What cannot be read differs: it is written anew.
            let there = whole || file.read_at(chunk, at).is_ok();
            if there && of(hasher, chunk) == hash {
                kept += chunk.len() as u64;
                tally.iter().for_each(|tally| tally.add(at, &*chunk));
                continue;
            }
            let len = chunk.len() as u32;
            match out.get_mut(first..).and_then(|own| own.last_mut()) {
                Some(last) if last.at + u64::from(last.len) == at => last.len += len,
                _ => out.push(Piece { at, len, offset: piece.offset + begin, ..*piece }),
            }
        }
    }
    Ok((out, kept))
}

fn of(hasher: &PageHasher, chunk: &[u8]) -> PageHash {
    if chunk.iter().all(|b| *b == 0) { PageHash::ZERO } else { hasher.hash(chunk) }
}

#[cfg(test)]
mod tests {
    use super::super::settled::Unwritten;
    use super::*;
    use crate::disk::lay::Over;
    use crate::seal::content::BackupId;
    use crate::seal::content::contents::{self, ContentsWriter, Unit};
    use crate::seal::key::RepositorySecret;

    #[test]
    fn only_what_differs_is_missing_and_the_rest_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let ground = Ground { root: root.path().to_path_buf(), tablespaces: Vec::new(), owner: None, over: Over::Kept };
        let hasher = PageHasher::new(&RepositorySecret([3; 32]));
        let id = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        // Six pages of one file and the odd end of another in frame 1.
        let page = |n: u8| vec![n; CHUNK];
        let hashes = (1..=6).map(|n| hasher.hash(&page(n))).collect();
        let mut writer = ContentsWriter::new(&id, 0);
        let pages = contents::Piece { path: b"1259".to_vec(), unit: Unit::Pages, first: 2, count: 6, hashes };
        writer.push(true, &pages);
        let hashes = vec![hasher.hash(b"end")];
        writer.push(false, &contents::Piece { path: b"x".to_vec(), unit: Unit::Bytes, first: 0, count: 3, hashes });
        let contents = Contents::decode(&writer.finish(), &id, 0).unwrap();

        let on_disk = [page(0), page(0), page(1), page(2), page(9), page(9), page(5), page(0)].concat();
        std::fs::write(root.path().join("1259"), on_disk).unwrap();
        std::fs::write(root.path().join("x"), "end").unwrap();
        let unwritten = Unwritten::default;
        let file = |path: &[u8], stood| Filling {
            path: path.to_vec(),
            tally: None,
            stood,
            left_out: false,
            unwritten: unwritten(),
        };
        let chunk = CHUNK as u32;
        let whole = Piece { at: 2 * CHUNK as u64, len: 6 * chunk, file: 0, frame: 1, offset: 0 };
        let end = Piece { at: 0, len: 3, file: 1, frame: 1, offset: 6 * chunk };
        let ask = |files: &[Filling], pieces: &[Piece]| {
            let (pieces, kept) = missing(&ground, files, &contents, &hasher, pieces, "pack").unwrap();
            (pieces.iter().map(|p| (p.file, p.at / CHUNK as u64, p.len, p.offset)).collect::<Vec<_>>(), kept)
        };
        let files = [file(b"1259", true), file(b"x", true)];
        let differing = vec![(0, 4, 2 * chunk, 2 * chunk), (0, 7, chunk, 5 * chunk)];
        assert_eq!(ask(&files, &[whole, end]), (differing, 3 * CHUNK as u64 + 3));
        // What is new is not read, and what was not hashed as it is asked for is fetched.
        let new = [file(b"1259", false), file(b"x", true)];
        assert_eq!(ask(&new, &[whole, end]), (vec![(0, 2, 6 * chunk, 0)], 3));
        let odd = Piece { at: whole.at + 8, len: chunk, offset: 8, ..whole };
        assert_eq!(ask(&files, &[odd]), (vec![(0, 2, chunk, 8)], 0));
        let wrong = Piece { at: whole.at + CHUNK as u64, len: chunk, ..whole };
        assert!(missing(&ground, &files, &contents, &hasher, &[wrong], "pack").is_err(), "another page stands there");
        // What cannot be read, as here behind an end, is fetched, and what can be is kept.
        std::fs::write(root.path().join("1259"), [page(0), page(0), page(1), page(9), page(3)].concat()).unwrap();
        assert_eq!(ask(&files, &[whole]), (vec![(0, 3, chunk, chunk), (0, 5, 3 * chunk, 3 * chunk)], 2 * CHUNK as u64));
    }
}
