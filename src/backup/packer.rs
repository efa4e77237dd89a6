//! Gathering pages and files into frames and packs.

use std::sync::Arc;

use super::record::{Place, Record};
use super::sealing::{Sealing, head};
use super::upload::Outbox;
use crate::error::Result;
use crate::seal::content::contents::{ContentsWriter, Piece};
use crate::seal::content::map::{PackPlace, Unit};
use crate::seal::header::ObjectKind;
use crate::seal::page_hash::{CHUNK, PageHash};
use crate::seal::sealer::{Compression, FRAME_BYTES, OBJECT_BYTES, Sealer};

/// The pack that is being filled.
struct Open {
    sealer: Sealer,
    contents: ContentsWriter,
    /// Frame that the next byte goes into, and bytes in it.
    frame: u32,
    fill: usize,
    /// The piece that is growing: it is listed when it ends.
    piece: Option<GrowingPiece>,
    /// Frame of the last listed piece.
    listed: u32,
}

struct GrowingPiece {
    frame: u32,
    piece: Piece,
}

/// Takes file contents in the order in which they come and hands over finished packs. Memory: one pack.
pub struct Packer {
    compression: Compression,
    outbox: Outbox,
    open: Option<Open>,
    packs: Vec<Arc<PackPlace>>,
}

impl Packer {
    pub fn new(compression: Compression, outbox: Outbox) -> Packer {
        Packer { compression, outbox, open: None, packs: Vec::new() }
    }

    /// Stores consecutive chunks of a file, from number `first` on: all whole, but for the last one of the file. `hashes` has one of each.
    pub fn add(
        &mut self,
        sealing: &mut Sealing,
        record: &mut Record,
        mut first: u64,
        mut bytes: &[u8],
        mut hashes: &[PageHash],
    ) -> Result<()> {
        let unit = record.kind.unit().unwrap_or(Unit::Bytes);
        while !bytes.is_empty() {
            let number = self.packs.len() as u32;
            let open = match &mut self.open {
                Some(open) => open,
                none => none.insert(Open::new(sealing, number, self.compression)?),
            };
            let room = open.room(bytes.len().min(CHUNK));
            let fits = if room >= bytes.len() { bytes.len() } else { room / CHUNK * CHUNK };
            let position = first * CHUNK as u64 / unit.bytes();
            let fits_list = open.goes_on(&record.path, position) || open.has_room_for(&record.path);
            if fits == 0 || !fits_list {
                self.close(sealing)?;
                continue;
            }
            let ((now, rest), chunks) = (bytes.split_at(fits), fits.div_ceil(CHUNK));
            let (own, later) = hashes.split_at_checked(chunks).unwrap_or((hashes, &[]));
            let (frame, offset) = open.push(&record.path, unit, position, now, own);
            record.stored(first, chunks as u64, Place { pack: number, frame, offset });
            (first, bytes, hashes) = (first + chunks as u64, rest, later);
        }
        Ok(())
    }

    /// Finishes the pack that is being filled.
    pub fn close(&mut self, sealing: &mut Sealing) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.end_piece();
        let number = self.packs.len() as u32;
        let sealed = open.sealer.finish(&open.contents.finish());
        let preamble = sealed.frames.first().map_or(0, |f| f.offset);
        self.packs.push(Arc::new(PackPlace {
            backup: sealing.id.clone(),
            number,
            len: sealed.len(),
            header: head(&sealed.bytes, preamble),
            frames: sealed.frames.clone(),
        }));
        self.outbox.send(sealing.upload(ObjectKind::Pack, number, sealed))
    }

    /// Where all packs are, the last one closed.
    pub fn finish(mut self, sealing: &mut Sealing) -> Result<Vec<Arc<PackPlace>>> {
        self.close(sealing)?;
        Ok(self.packs)
    }
}

impl Open {
    fn new(sealing: &mut Sealing, number: u32, compression: Compression) -> Result<Open> {
        let contents = ContentsWriter::new(&sealing.id, number);
        let sealer = sealing.pack(number, compression)?;
        Ok(Open { sealer, contents, frame: 1, fill: 0, piece: None, listed: 0 })
    }

    /// Bytes that can go into the current frame; 0 when the pack is full. A frame with no room for `least` is ended: no chunk crosses its border.
    fn room(&mut self, least: usize) -> usize {
        if self.fill > 0 && FRAME_BYTES - self.fill < least {
            self.sealer.cut();
            (self.frame, self.fill) = (self.frame + 1, 0);
        }
        let left = OBJECT_BYTES.saturating_sub(self.sealer.plain_len()) as usize;
        (FRAME_BYTES - self.fill).min(left)
    }

    /// Whether these bytes belong to the piece that is growing.
    fn goes_on(&self, path: &[u8], first: u64) -> bool {
        let same =
            |g: &GrowingPiece| g.frame == self.frame && g.piece.first + g.piece.count == first && g.piece.path == path;
        self.piece.as_ref().is_some_and(same)
    }

    fn has_room_for(&mut self, path: &[u8]) -> bool {
        self.end_piece();
        self.contents.has_room_for(path)
    }

    /// Adds bytes that fit the current frame; says where they are.
    fn push(&mut self, path: &[u8], unit: Unit, first: u64, bytes: &[u8], hashes: &[PageHash]) -> (u32, u32) {
        let count = bytes.len() as u64 / unit.bytes();
        let place = (self.frame, self.fill as u32);
        if !self.goes_on(path, first) {
            self.end_piece();
            let piece = Piece { path: path.to_vec(), unit, first, count: 0, hashes: Vec::new() };
            self.piece = Some(GrowingPiece { frame: place.0, piece });
        }
        if let Some(GrowingPiece { piece, .. }) = &mut self.piece {
            piece.count += count;
            piece.hashes.extend_from_slice(hashes);
        }
        self.sealer.push(bytes);
        self.fill += bytes.len();
        if self.fill == FRAME_BYTES {
            (self.frame, self.fill) = (self.frame + 1, 0);
        }
        place
    }

    fn end_piece(&mut self) {
        if let Some(GrowingPiece { frame, piece }) = self.piece.take() {
            let new_frame = frame != self.listed;
            self.contents.push(new_frame, &piece);
            self.listed = frame;
        }
    }
}
