//! The object that is being filled: a segment, or a part of a segment larger than 16 MiB.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::salt;
use super::sealing::{Beside, Ending, Sealing};
use super::tail::{Flushed, Tail, TailMaker};
use crate::archive::Archive;
use crate::disk::lane::{self, Lane};
use crate::error::{Error, Kind, Result};
use crate::pg::record::Record;
use crate::pg::xact::Note;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::seal::content::summary::{Summary, SummaryBuilder};
use crate::seal::frames::FrameSealer;
use crate::seal::hash::{ContentHasher, content_hash};
use crate::seal::header::{Claims, ObjectKind, RepositoryId};
use crate::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};
use crate::seal::sealer::{Compression, FRAME_BYTES, OBJECT_BYTES, Sealed, Sealer};

/// Which object a position belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub segment: SegmentName,
    /// `None` where the segment is one object.
    pub part: Option<u32>,
    pub start: Lsn,
    pub end: Lsn,
}

impl Place {
    /// The object that holds the byte at `lsn`.
    pub fn of(lsn: Lsn, timeline: TimelineId, size: SegmentSize) -> Place {
        let segment = SegmentName::new(timeline, size.segment_of(lsn), size);
        let span = object_bytes(size);
        let start = lsn.align_down(span);
        let part = (span < size.bytes()).then(|| (start.since(segment.start()) / span) as u32);
        Place { segment, part, start, end: start + span }
    }

    /// Whether the segment is complete when this object is.
    pub fn ends_segment(&self) -> bool {
        self.end == self.segment.end()
    }
}

/// Bytes of WAL in one object.
pub fn object_bytes(size: SegmentSize) -> u64 {
    size.bytes().min(OBJECT_BYTES)
}

/// So many bytes wait for a quiet moment to be sealed; then each batch seals what it brings.
const UNSEALED: usize = 2 << 20;

/// Bytes of WAL in one frame. A match of lz4 reaches back at most 64 KiB, and most of its time in longer frames goes into candidates further away: frames of that
/// length cost two thirds of the time, and a twentieth more space.
fn frame_bytes(compression: Compression) -> usize {
    if compression == Compression::Lz4 { 64 << 10 } else { FRAME_BYTES }
}

/// A finished object on its way to the repository.
#[derive(Debug)]
pub struct Object {
    pub name: String,
    pub sealed: Sealed,
    pub summary: Summary,
    pub place: Place,
    pub kind: ObjectKind,
}

impl Object {
    pub fn claims(&self) -> &Claims {
        &self.sealed.header.claims
    }

    pub fn bytes(&self) -> &[Bytes] {
        &self.sealed.bytes
    }
}

/// The object that is being filled. While nothing arrives its bytes may leave memory: then its first bytes are in its tail only, and come back from there at
/// its end.
pub struct Open {
    pub place: Place,
    /// Bytes that are in the tail only, and the tails that hold them.
    away: usize,
    away_in: Vec<String>,
    /// What has arrived after them: the tail is made of it.
    raw: Vec<u8>,
    pub tail: Tail,
    /// When the oldest checked byte that is in no tail arrived.
    pub oldest: Option<Instant>,
    making: Making,
    lane: Lane,
    /// Bytes of `raw` that the sealer has taken, and how many it takes at a time.
    sealed: usize,
    frame: usize,
    summary: SummaryBuilder,
    /// Bytes of `raw` that are in the hash.
    hashed: usize,
    /// Hash of the bytes that are away.
    away_hash: [u8; 32],
}

/// Who seals.
enum Making {
    Here(Box<Sealing>),
    Beside(Box<Beside>),
    /// Bytes are away: sealing begins anew once they are back, with the first byte, under another salt.
    Nobody(Box<ContentHasher>),
    /// While it goes from one to the other.
    Moving,
}

/// An object whose last byte has arrived.
pub struct Ended {
    pub place: Place,
    name: String,
    made: Made,
    /// Where sealing is no thread's, but takes its time all the same: see [`Lane::Inline`].
    late: Option<lane::Beside<()>>,
}

enum Made {
    Here(Box<(Sealed, Summary)>),
    Beside(Ending),
}

impl Ended {
    /// Whether it is sealed: then [`Ended::object`] does not wait.
    pub fn is_sealed(&self) -> bool {
        let made = match &self.made {
            Made::Here(_) => true,
            Made::Beside(ending) => ending.is_finished(),
        };
        made && self.late.as_ref().is_none_or(lane::Beside::is_finished)
    }

    /// Bytes that it holds in memory.
    pub fn memory(&self) -> u64 {
        match &self.made {
            Made::Here(made) => made.0.len(),
            Made::Beside(ending) => ending.memory(),
        }
    }

    /// The object, and the buffer of its bytes, emptied to be used again, if that is back only now.
    pub fn object(self) -> Result<(Object, Vec<u8>)> {
        let (sealed, summary, mut raw) = match self.made {
            Made::Here(made) => (made.0, made.1, Vec::new()),
            Made::Beside(ending) => ending.join()?,
        };
        raw.clear();
        Ok((Object { name: self.name, sealed, summary, place: self.place, kind: ObjectKind::Segment }, raw))
    }
}

impl Open {
    /// `raw` is an emptied buffer to use again, or a new one.
    pub fn begin(
        archive: &Archive,
        keys: &WriterKeys,
        place: Place,
        compression: Compression,
        mut raw: Vec<u8>,
    ) -> Result<Open> {
        // Address space only: pages come with the bytes.
        raw.reserve_exact(place.end.since(place.start) as usize);
        let claims = archive.claims(ObjectKind::Segment, place.segment.timeline, place.start);
        let hasher = ContentHasher::new(&keys.secret);
        Ok(Open {
            place,
            away: 0,
            away_in: Vec::new(),
            raw,
            tail: Tail::default(),
            oldest: None,
            away_hash: hasher.finalize(),
            making: Making::Here(Box::new(Sealing::new(
                FrameSealer::new(keys, claims, salt::random()?, compression),
                hasher,
            ))),
            lane: archive.repo.lane(),
            sealed: 0,
            frame: frame_bytes(compression),
            summary: SummaryBuilder::new(place.start),
            hashed: 0,
        })
    }

    /// Bytes that may still be added.
    pub fn room(&self) -> usize {
        self.place.end.since(self.received()) as usize
    }

    /// Bytes that have arrived.
    fn len(&self) -> usize {
        self.away + self.raw.len()
    }

    /// End of what has arrived.
    pub fn received(&self) -> Lsn {
        self.place.start + self.len() as u64
    }

    /// End of what is in the tail.
    pub fn kept(&self) -> Lsn {
        self.place.start + self.tail.kept() as u64
    }

    /// Bytes that this object holds in memory, raw and sealed.
    pub fn memory(&self) -> u64 {
        let sealed = match &self.making {
            Making::Here(sealing) => sealing.sealed_len(),
            Making::Beside(beside) => beside.memory(),
            Making::Nobody(_) | Making::Moving => 0,
        };
        self.raw.len() as u64 + sealed
    }

    /// The end of `lsn` as an offset in what has arrived.
    pub fn offset(&self, lsn: Lsn) -> usize {
        lsn.since(self.place.start).min(self.len() as u64) as usize
    }

    /// The bytes of the object between two offsets; `None` where they have not arrived, or are away.
    pub fn bytes(&self, from: usize, to: usize) -> Option<&[u8]> {
        self.raw.get(from.checked_sub(self.away)?..to.checked_sub(self.away)?)
    }

    /// How many of its first bytes are in the tail only.
    pub fn away(&self) -> usize {
        self.away
    }

    /// Writes the tail up to `upto`: see [`Tail::flush`].
    pub fn flush(
        &mut self,
        maker: &mut TailMaker,
        keys: &WriterKeys,
        upto: usize,
        wrote: &mut dyn FnMut(Lsn),
    ) -> Result<Option<Flushed>> {
        let from = self.tail.kept().checked_sub(self.away);
        let bytes = from.and_then(|from| self.raw.get(from..upto.checked_sub(self.away)?)).unwrap_or_default();
        self.tail.flush(maker, keys, (self.place.segment, self.place.start), bytes, wrote)
    }

    /// Takes the next bytes. With `later` they are sealed by [`Open::seal_one`] in a quiet moment, unless too many wait for one, or on another thread.
    pub fn push(&mut self, bytes: &[u8], later: bool) -> Result<()> {
        self.raw.extend_from_slice(bytes);
        if !later {
            self.here();
            self.hash_to(self.raw.len());
            self.seal();
        } else if matches!(self.making, Making::Here(_)) && self.can_seal() {
            self.part();
        }
        while self.raw.len() - self.sealed > UNSEALED && self.seal_one() {}
        Ok(())
    }

    /// From now on a thread of its own seals, if there can be one.
    fn part(&mut self) {
        if let Making::Here(sealing) = std::mem::replace(&mut self.making, Making::Moving) {
            self.making = match Beside::begin(&self.lane, sealing, self.frame) {
                Ok(beside) => Making::Beside(Box::new(beside)),
                Err(sealing) => Making::Here(sealing),
            };
        }
    }

    /// Takes back what another thread has. What is sealed is in the hash then.
    fn here(&mut self) {
        self.making = match std::mem::replace(&mut self.making, Making::Moving) {
            Making::Beside(beside) => Making::Here(beside.back(&self.raw, self.sealed)),
            here => here,
        };
        self.hash_to(self.sealed);
    }

    /// Whether there is a whole frame to seal, and somebody to do it.
    pub fn can_seal(&self) -> bool {
        let can = match &self.making {
            Making::Here(_) => true,
            Making::Beside(beside) => beside.has_room(),
            Making::Nobody(_) | Making::Moving => false,
        };
        // The last byte waits for the last frame.
        can && self.raw.len() - self.sealed > self.frame
    }

    /// Seals one frame, or hands it to the thread that does, if there is a whole one.
    pub fn seal_one(&mut self) -> bool {
        let mut can = self.can_seal();
        if can {
            let frame = &self.raw[self.sealed..self.sealed + self.frame];
            match &mut self.making {
                Making::Here(sealing) => {
                    sealing.seal(frame, false);
                    self.sealed += self.frame;
                    self.hash_to(self.sealed);
                }
                Making::Beside(beside) => {
                    can = beside.seal(frame);
                    self.sealed += if can { self.frame } else { 0 };
                }
                Making::Nobody(_) | Making::Moving => {}
            }
        }
        can
    }

    /// The hash of everything that has arrived.
    fn hash(&mut self) -> Result<[u8; 32]> {
        self.here();
        self.hash_to(self.raw.len());
        match &self.making {
            Making::Here(sealing) => Ok(sealing.hasher.finalize()),
            Making::Nobody(hasher) => Ok(hasher.finalize()),
            Making::Beside(_) | Making::Moving => Err(Error::new(Kind::Failed, "a hash that is elsewhere")),
        }
    }

    fn hash_to(&mut self, end: usize) {
        let bytes = self.raw.get(self.hashed..end).unwrap_or_default();
        match &mut self.making {
            Making::Here(sealing) => sealing.hasher.update(bytes),
            Making::Nobody(hasher) => hasher.update(bytes),
            // Hashed once it is back, or at the end.
            Making::Beside(_) | Making::Moving => return,
        }
        self.hashed = self.hashed.max(end);
    }

    /// Seals what fills frames, from where it is. What is sealed is in the hash.
    fn seal(&mut self) {
        if let Making::Here(sealing) = &mut self.making {
            self.sealed += sealing.take(self.raw.get(self.sealed..).unwrap_or_default(), self.frame);
            self.hash_to(self.sealed);
        }
    }

    /// A record that ends in this object.
    pub fn record(&mut self, record: &Record<'_>, note: &Note) {
        self.summary.add(record, note);
    }

    /// Lets everything that has arrived leave memory, if it is in the tail, of which these names hold it. Returns whether it was.
    pub fn rest(&mut self, names: Vec<String>) -> Result<bool> {
        let all = self.tail.kept() == self.len() && self.len() > self.away && !names.is_empty();
        if all {
            self.away = self.len();
            self.away_in = names;
            self.away_hash = self.hash()?;
            (self.raw, self.hashed, self.sealed) = (Vec::new(), 0, 0);
            self.making = match std::mem::replace(&mut self.making, Making::Moving) {
                Making::Here(sealing) => Making::Nobody(Box::new(sealing.hasher)),
                other => other,
            };
            self.tail.rest();
        }
        Ok(all)
    }

    /// Whether bytes have left memory.
    pub fn is_away(&self) -> bool {
        self.away > 0
    }

    /// Reads back what is away, if anything is. What went away must come back, byte for byte: `Kind::Corrupt` when it does not.
    pub async fn wake(&mut self, archive: &Archive, keys: &WriterKeys, compression: Compression) -> Result<()> {
        if self.away == 0 {
            return Ok(());
        }
        let archive = Archive { keys: Arc::new(OwnKeys(keys.clone())), ..archive.clone() };
        let mut raw = archive.tail_content(self.place.segment, self.place.start, &self.away_in).await?;
        let hash = raw.get(..self.away).map(|away| content_hash(&keys.secret, away));
        if hash != Some(self.away_hash) {
            let text = format!("{} does not hold the bytes that were written to it", self.away_in.join(", "));
            return Err(Error::new(Kind::Corrupt, text));
        }
        raw.truncate(self.away);
        raw.reserve_exact(self.place.end.since(self.place.start) as usize - raw.len());
        raw.extend_from_slice(&self.raw);
        let claims = archive.claims(ObjectKind::Segment, self.place.segment.timeline, self.place.start);
        let sealer = FrameSealer::new(keys, claims, salt::random()?, compression);
        (self.hashed, self.raw) = (raw.len() - self.raw.len() + self.hashed, raw);
        self.making = match std::mem::replace(&mut self.making, Making::Moving) {
            Making::Nobody(hasher) => Making::Here(Box::new(Sealing::new(sealer, *hasher))),
            other => other,
        };
        (self.sealed, self.away) = (0, 0);
        self.seal();
        Ok(())
    }

    /// The complete object, which may still have to be sealed, and the buffer of its bytes, emptied to be used again, if nobody needs them any more.
    pub fn finish(self, archive: &Archive) -> Result<(Ended, Vec<u8>)> {
        let Open { place, making, mut raw, lane, sealed, hashed, summary, .. } = self;
        let made = match making {
            Making::Here(sealing) => {
                let rest = raw.get(sealed..).unwrap_or_default();
                let (object, summary) = sealing.finish(rest, hashed.saturating_sub(sealed), summary, place.end);
                Made::Here(Box::new((object, summary)))
            }
            Making::Beside(beside) => {
                Made::Beside(beside.end(std::mem::take(&mut raw), (sealed, hashed), summary, place.end))
            }
            Making::Nobody(_) | Making::Moving => {
                return Err(Error::new(Kind::Failed, "an object is finished without its bytes"));
            }
        };
        raw.clear();
        let late = if matches!(lane, Lane::Inline(_)) { lane.beside("seal", || ()) } else { None };
        Ok((Ended { place, name: archive.names.segment(place.segment, place.part), made, late }, raw))
    }

    /// What has arrived of a segment at the end of its timeline, sealed anew: it is another kind of object.
    pub fn finish_partial(mut self, archive: &Archive, keys: &WriterKeys, compression: Compression) -> Result<Object> {
        let claims = archive.claims(ObjectKind::Partial, self.place.segment.timeline, self.place.start);
        let mut sealer = Sealer::new(keys, claims, salt::random()?, compression);
        sealer.push(&self.raw);
        let hash = self.hash()?;
        let summary = self.summary.finish(self.place.start + self.raw.len() as u64, hash);
        let sealed = sealer.finish(&summary.encode());
        let name = archive.names.partial(self.place.segment);
        Ok(Object { name, sealed, summary, place: self.place, kind: ObjectKind::Partial })
    }
}

/// Opens what this run sealed itself, with the key that it still has.
struct OwnKeys(WriterKeys);

impl ReaderKeys for OwnKeys {
    fn repository(&self) -> RepositoryId {
        self.0.repository
    }

    fn secret(&self) -> &RepositorySecret {
        &self.0.secret
    }

    fn unwrap_key(&self, wrapped: &[u8]) -> std::result::Result<DataKey, String> {
        match wrapped == self.0.wrapped {
            true => Ok(self.0.data_key.clone()),
            false => Err("it was sealed by another run".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_segments_are_stored_in_parts_of_sixteen_mebibytes() {
        let size = |mib: u64| SegmentSize::new(mib << 20).unwrap();
        let place = Place::of(Lsn((64 << 20) + (17 << 20)), TimelineId(1), size(64));
        assert_eq!((place.part, place.start, place.end), (Some(1), Lsn(80 << 20), Lsn(96 << 20)));
        assert!(!place.ends_segment());
        assert!(Place::of(Lsn(127 << 20), TimelineId(1), size(64)).ends_segment());
        let place = Place::of(Lsn((3 << 20) + 5), TimelineId(1), size(1));
        assert_eq!((place.part, place.start, place.end), (None, Lsn(3 << 20), Lsn(4 << 20)));
        assert!(place.ends_segment());
    }
}
