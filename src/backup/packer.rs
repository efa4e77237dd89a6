//! Gathering pages and files into frames and packs.

use std::collections::VecDeque;
use std::path::Path;

use super::places::{PlaceWriter, Places};
use super::press::{Done, Press, Ticket};
use super::record::{PackIndex, Place, Record};
use super::sealing::{Sealing, head};
use super::upload::Outbox;
use crate::error::Result;
use crate::seal::content::contents::{ContentsWriter, Piece};
use crate::seal::content::map::{PackPlace, Unit};
use crate::seal::frames::{FrameSealer, SealedFrame};
use crate::seal::header::ObjectKind;
use crate::seal::page_hash::{CHUNK, PageHash};
use crate::seal::sealer::{Compression, FRAME_BYTES, OBJECT_BYTES};

/// The pack that is being filled.
struct Open {
    number: u32,
    frames: Frames,
    contents: ContentsWriter,
    /// Frame that the next byte goes into, and bytes in it.
    frame: u32,
    fill: usize,
    /// The bytes of that frame, or of the one before: it is sealed when more come, since the last one of a pack carries a flag.
    pending: Vec<u8>,
    /// Bytes of all frames.
    plain: u64,
    /// The piece that is growing: it is listed when it ends.
    piece: Option<GrowingPiece>,
    /// Frame of the last listed piece.
    listed: u32,
}

/// Frames of one pack: in their order, sealed and on their way.
struct Frames {
    sealer: FrameSealer,
    sealed: Vec<SealedFrame>,
    coming: VecDeque<Ticket>,
}

/// A pack that is full, and some of whose frames are being sealed.
struct Closed {
    number: u32,
    frames: Frames,
    contents: ContentsWriter,
}

struct GrowingPiece {
    frame: u32,
    piece: Piece,
}

/// Takes file contents in the order in which they come and hands over finished packs. Memory: one pack, and the frames that are being sealed.
pub struct Packer {
    compression: Compression,
    outbox: Outbox,
    press: Press,
    open: Option<Open>,
    closed: VecDeque<Closed>,
    packs: PlaceWriter,
    /// Packs begun.
    begun: u32,
    /// Buffers for frames.
    spare: Vec<Vec<u8>>,
}

impl Packer {
    /// `folder`: where the places of packs are kept.
    pub fn new(compression: Compression, outbox: Outbox, folder: &Path) -> Packer {
        let packs = PlaceWriter::new(folder.join("packs"));
        let (closed, spare) = (VecDeque::new(), Vec::new());
        Packer { compression, outbox, press: Press::new(), open: None, closed, packs, begun: 0, spare }
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
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    let buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(FRAME_BYTES));
                    let open = none.insert(Open::new(sealing, self.begun, self.compression, buffer)?);
                    self.begun += 1;
                    open
                }
            };
            let room = open.room(bytes.len().min(CHUNK));
            let fits = if room >= bytes.len() { bytes.len() } else { room / CHUNK * CHUNK };
            let position = first * CHUNK as u64 / unit.bytes();
            let fits_list = open.goes_on(&record.path, position) || open.has_room_for(&record.path);
            if fits == 0 || !fits_list {
                self.close(sealing)?;
                continue;
            }
            if open.pending_has_ended() {
                self.seal_pending(sealing)?;
                continue;
            }
            let ((now, rest), chunks) = (bytes.split_at(fits), fits.div_ceil(CHUNK));
            let (own, later) = hashes.split_at_checked(chunks).unwrap_or((hashes, &[]));
            let (frame, offset) = open.push(&record.path, unit, position, now, own);
            record.stored(first, chunks as u64, Place { pack: PackIndex::Own(open.number), frame, offset });
            (first, bytes, hashes) = (first + chunks as u64, rest, later);
        }
        Ok(())
    }

    /// Has the pending frame sealed: another one follows.
    fn seal_pending(&mut self, sealing: &mut Sealing) -> Result<()> {
        if let Some(open) = &mut self.open {
            let buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(FRAME_BYTES));
            let plain = std::mem::replace(&mut open.pending, buffer);
            open.frames.seal(&mut self.press, false, plain)?;
            open.frames.collect(&mut self.spare)?;
        }
        self.hand_over(sealing, false)
    }

    /// Finishes the pack that is being filled.
    pub fn close(&mut self, sealing: &mut Sealing) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.end_piece();
        if !open.pending.is_empty() {
            open.frames.seal(&mut self.press, true, open.pending)?;
        }
        self.closed.push_back(Closed { number: open.number, frames: open.frames, contents: open.contents });
        self.hand_over(sealing, false)
    }

    /// Hands over packs all of whose frames are there; `wait`: all packs.
    fn hand_over(&mut self, sealing: &mut Sealing, wait: bool) -> Result<()> {
        while let Some(closed) = self.closed.front_mut() {
            if wait {
                closed.frames.wait(&mut self.spare)?;
            } else if !closed.frames.collect(&mut self.spare)? {
                return Ok(());
            }
            let Some(Closed { number, frames, mut contents }) = self.closed.pop_front() else { return Ok(()) };
            let lengths: Vec<u32> = frames.sealed.iter().map(|frame| frame.bytes.len() as u32).collect();
            contents.lengths(&lengths);
            let sealed = frames.sealer.finish(&contents.finish(), frames.sealed);
            let preamble = sealed.frames.first().map_or(0, |f| f.offset);
            self.packs.push(&PackPlace {
                backup: sealing.id.clone(),
                number,
                len: sealed.len(),
                header: head(&sealed.bytes, preamble),
                frames: sealed.frames.clone(),
            })?;
            self.outbox.send(sealing.upload(ObjectKind::Pack, number, sealed))?;
        }
        Ok(())
    }

    /// Where all packs are, the last one closed.
    pub fn finish(mut self, sealing: &mut Sealing) -> Result<Places> {
        self.close(sealing)?;
        self.hand_over(sealing, true)?;
        self.packs.finish()
    }
}

impl Frames {
    fn seal(&mut self, press: &mut Press, last: bool, plain: Vec<u8>) -> Result<()> {
        let number = (self.sealed.len() + self.coming.len() + 1) as u32;
        self.coming.push_back(press.seal(self.sealer.clone(), number, last, plain)?);
        Ok(())
    }

    /// Takes what was sealed by now, in order; whether that is all.
    fn collect(&mut self, spare: &mut Vec<Vec<u8>>) -> Result<bool> {
        while let Some(ticket) = self.coming.front() {
            let Some(done) = ticket.ready()? else { return Ok(false) };
            self.take(done, spare);
        }
        Ok(true)
    }

    fn wait(&mut self, spare: &mut Vec<Vec<u8>>) -> Result<()> {
        while let Some(ticket) = self.coming.front() {
            let done = ticket.wait()?;
            self.take(done, spare);
        }
        Ok(())
    }

    fn take(&mut self, Done { frame, plain }: Done, spare: &mut Vec<Vec<u8>>) {
        self.coming.pop_front();
        self.sealed.push(frame);
        spare.push(plain);
    }
}

impl Open {
    fn new(sealing: &mut Sealing, number: u32, compression: Compression, pending: Vec<u8>) -> Result<Open> {
        let contents = ContentsWriter::new(&sealing.id, number);
        let sealer = sealing.pack(number, compression)?;
        let frames = Frames { sealer, sealed: Vec::new(), coming: VecDeque::new() };
        Ok(Open { number, frames, contents, frame: 1, fill: 0, pending, plain: 0, piece: None, listed: 0 })
    }

    /// Bytes that can go into the current frame; 0 when the pack is full. A frame with no room for `least` is ended: no chunk crosses its border.
    fn room(&mut self, least: usize) -> usize {
        if self.fill > 0 && FRAME_BYTES - self.fill < least {
            (self.frame, self.fill) = (self.frame + 1, 0);
        }
        let left = OBJECT_BYTES.saturating_sub(self.plain) as usize;
        (FRAME_BYTES - self.fill).min(left)
    }

    /// Whether the current frame is the one after the pending bytes.
    fn pending_has_ended(&self) -> bool {
        self.fill == 0 && !self.pending.is_empty()
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
        self.pending.extend_from_slice(bytes);
        self.plain += bytes.len() as u64;
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
