//! The object that is being filled: a segment, or a part of a segment larger than 16 MiB.

use bytes::Bytes;
use tokio::time::Instant;

use super::salt;
use super::tail::Tail;
use crate::archive::Archive;
use crate::error::Result;
use crate::pg::record::Record;
use crate::pg::xact::Note;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::seal::content::summary::{Summary, SummaryBuilder};
use crate::seal::hash::ContentHasher;
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::key::WriterKeys;
use crate::seal::sealer::{Compression, OBJECT_BYTES, Sealed, Sealer};

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

/// The object that is being filled.
pub struct Open {
    pub place: Place,
    /// What has arrived: the tail is made of it.
    pub raw: Vec<u8>,
    pub tail: Tail,
    /// When the oldest checked byte that is in no tail arrived.
    pub oldest: Option<Instant>,
    sealer: Sealer,
    summary: SummaryBuilder,
    hasher: ContentHasher,
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
        Ok(Open {
            place,
            raw,
            tail: Tail::default(),
            oldest: None,
            sealer: Sealer::new(keys, claims, salt::random()?, compression),
            summary: SummaryBuilder::new(place.start),
            hasher: ContentHasher::new(&keys.secret),
        })
    }

    /// Bytes that may still be added.
    pub fn room(&self) -> usize {
        self.place.end.since(self.received()) as usize
    }

    /// End of what has arrived.
    pub fn received(&self) -> Lsn {
        self.place.start + self.raw.len() as u64
    }

    /// End of what is in the tail.
    pub fn kept(&self) -> Lsn {
        self.place.start + self.tail.kept() as u64
    }

    /// Bytes that this object holds in memory, raw and sealed.
    pub fn memory(&self) -> u64 {
        self.raw.len() as u64 + self.sealer.sealed_len()
    }

    /// The end of `lsn` as an offset in what has arrived.
    pub fn offset(&self, lsn: Lsn) -> usize {
        lsn.since(self.place.start).min(self.raw.len() as u64) as usize
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        self.hasher.update(bytes);
        self.sealer.push(bytes);
    }

    /// A record that ends in this object.
    pub fn record(&mut self, record: &Record<'_>, note: &Note) {
        self.summary.add(record, note);
    }

    /// The complete object, and the buffer to use again.
    pub fn finish(self, archive: &Archive) -> (Object, Vec<u8>) {
        let name = archive.names.segment(self.place.segment, self.place.part);
        let summary = self.summary.finish(self.place.end, self.hasher.finalize());
        let sealed = self.sealer.finish(&summary.encode());
        let object = Object { name, sealed, summary, place: self.place, kind: ObjectKind::Segment };
        let mut raw = self.raw;
        raw.clear();
        (object, raw)
    }

    /// What has arrived of a segment at the end of its timeline, sealed anew: it is another kind of object.
    pub fn finish_partial(self, archive: &Archive, keys: &WriterKeys, compression: Compression) -> Result<Object> {
        let claims = archive.claims(ObjectKind::Partial, self.place.segment.timeline, self.place.start);
        let mut sealer = Sealer::new(keys, claims, salt::random()?, compression);
        sealer.push(&self.raw);
        let summary = self.summary.finish(self.place.start + self.raw.len() as u64, self.hasher.finalize());
        let sealed = sealer.finish(&summary.encode());
        let name = archive.names.partial(self.place.segment);
        Ok(Object { name, sealed, summary, place: self.place, kind: ObjectKind::Partial })
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
