//! The objects that hold something of one segment, one by one: read and opened, or only measured.

use std::time::Duration;

use bytes::Bytes;

use super::join::Run;
use super::tails::{Damage, Tail};
use super::{Archive, refused};
use crate::error::{Class, Error, Kind, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use crate::repo::names::{PART_BYTES, WalObject, parse_wal_object, parts_of};
use crate::seal::content::summary::Summary;
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::opener::{OpenFailed, Opener, read_header};
use crate::seal::tail::{open_piece, open_tail, piece_extent, tail_extent, tail_reach};

/// A tail that looks damaged is read again so often, and so long after, while it is not the same twice.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Enough for header and frame 0 of every object with WAL.
const HEAD_BYTES: u64 = 8 << 10;

impl Archive {
    /// The objects of a complete segment with the LSN at which each starts: one, or one per 16 MiB.
    pub fn objects_of(&self, segment: SegmentName) -> Vec<(String, Lsn)> {
        match parts_of(segment.size) {
            None => vec![(self.names.segment(segment, None), segment.start())],
            Some(parts) => (0..parts)
                .map(|part| (self.names.segment(segment, Some(part)), segment.start() + u64::from(part) * PART_BYTES))
                .collect(),
        }
    }

    /// Names of the tail files and pieces of a segment, as listed now.
    pub async fn tails_of(&self, segment: SegmentName) -> Result<Vec<String>> {
        let listed = self.repo.list(&self.names.tail_folder(segment)).await?;
        let ours =
            |name: &String| matches!(self.parse(name), Some(WalObject::TailPiece { .. } | WalObject::TailOpen { .. }));
        Ok(listed.into_iter().map(|l| l.name).filter(ours).collect())
    }

    /// Makes what stands of the WAL from `start` to `end` on the way to `timeline` durable where the repository is a local disk: a tail that its receiver is
    /// writing is seen before it is synced, and a name that a receiver made which died then is seen before its folder is. `false`: nothing needs that elsewhere.
    pub async fn settle_wal(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> Result<bool> {
        if self.repo.local_root().is_none() {
            return Ok(false);
        }
        let history = if timeline == TimelineId(1) { None } else { self.parsed_history(timeline).await? };
        let ancestors = history.iter().flat_map(|history| &history.ancestors);
        let legs = ancestors.map(|ancestor| (ancestor.timeline, ancestor.switch_point)).chain([(timeline, end)]);
        let (size, mut from) = (self.names.segment_size, start);
        for (timeline, to) in legs.filter(|(_, to)| *to > start) {
            let to = to.min(end);
            let last = size.segment_before(to).0;
            for number in size.segment_of(from).0..last {
                self.settle_whole(SegmentName::new(timeline, SegmentNumber(number), size)).await?;
            }
            self.settle_segment(SegmentName::new(timeline, SegmentNumber(last), size)).await?;
            from = to;
        }
        Ok(true)
    }

    /// Of a segment that should be complete, without a listing.
    async fn settle_whole(&self, segment: SegmentName) -> Result<()> {
        for (name, _) in self.objects_of(segment) {
            match self.repo.settle(&name).await {
                Err(error) if error.class() == Class::Unsynced => return Err(error),
                Err(_) => return self.settle_segment(segment).await,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Whatever there is of a segment.
    async fn settle_segment(&self, segment: SegmentName) -> Result<()> {
        let mut left = LOOKS;
        loop {
            // What is gone since it was listed has made room for something that is durable: look again.
            match self.settle_listed(segment).await {
                // A second sync would answer success without having written anything.
                Err(error) if error.class() == Class::Unsynced => return Err(error),
                Err(_) if left > 0 => left -= 1,
                settled => return settled,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn settle_listed(&self, segment: SegmentName) -> Result<()> {
        let objects: Vec<_> = self.objects_of(segment).into_iter().map(|(name, _)| name).collect();
        let folder = objects.first().and_then(|name| name.rsplit_once('/')).map_or("", |(folder, _)| folder);
        let partial = self.names.partial(segment);
        let ours = |name: &String| objects.contains(name) || *name == partial;
        let stored = self.repo.list(folder).await?.into_iter().map(|l| l.name).filter(ours);
        for name in self.tails_of(segment).await?.into_iter().chain(stored) {
            self.repo.settle(&name).await?;
        }
        Ok(())
    }

    /// Which bytes of its segment a piece holds, by its name.
    pub(super) fn piece_span(&self, name: &str) -> Option<(u64, u64)> {
        match self.parse(name)? {
            WalObject::TailPiece { from, to, .. } => Some((from, to)),
            _ => None,
        }
    }

    /// What the name of an object (relative to the repository) means.
    pub fn parse(&self, name: &str) -> Option<WalObject> {
        let relative = name.strip_prefix(&self.names.root())?.strip_prefix('/')?;
        parse_wal_object(relative, self.names.segment_size)
    }

    /// Opens a whole object (or part) of a segment, which must hold all of its share.
    pub(super) async fn open_object(&self, segment: SegmentName, name: &str, start: Lsn) -> Result<Option<Run>> {
        let Some(object) = self.repo.get(name).await? else { return Ok(None) };
        let claims = self.claims(ObjectKind::Segment, segment.timeline, start);
        let bytes = self.open_content(name, object, claims).await?;
        let expected = segment.size.bytes().min(PART_BYTES);
        if bytes.len() as u64 != expected {
            let text = format!("{name} holds {} bytes of WAL, expected {expected}", bytes.len());
            return Err(Error::new(Kind::Corrupt, text));
        }
        Ok(Some(Run { name: name.to_owned(), offset: start.since(segment.start()), bytes }))
    }

    /// Opens the end of a timeline inside a segment.
    pub(super) async fn open_partial(&self, segment: SegmentName) -> Result<Option<Tail<Run>>> {
        let name = self.names.partial(segment);
        let object = match self.repo.get(&name).await {
            Ok(Some(object)) => object,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == Kind::Corrupt => {
                return Ok(Some(Tail::Damaged(Damage { span: (0, segment.size.bytes()), error })));
            }
            Err(error) => return Err(error),
        };
        let opened = match self.claims_inside(segment, ObjectKind::Partial, &name, &object) {
            Ok(claims) => {
                let offset = claims.start.since(segment.start());
                let content = self.open_content(&name, object.clone(), claims).await;
                content.map(|bytes| Run { name: name.clone(), offset, bytes })
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok(run) => Ok(Some(Tail::Sound(run))),
            Err(error) if error.kind() == Kind::Corrupt => {
                let whole = (0, segment.size.bytes());
                let span = self.span_of_partial(segment, &name, &object).unwrap_or(whole);
                Ok(Some(Tail::Damaged(Damage { span, error })))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a tail file or a piece; `None` when it is gone.
    pub(super) async fn open_tail(&self, segment: SegmentName, name: String) -> Result<Option<Tail<Run>>> {
        let name = name.as_str();
        self.of_tail(segment, name, |object| self.open_tail_bytes(segment, name, object)).await
    }

    async fn open_tail_bytes(&self, segment: SegmentName, name: &str, object: Bytes) -> Result<Run> {
        if object.iter().all(|byte| *byte == 0) {
            return Ok(Run { name: name.to_owned(), offset: 0, bytes: Vec::new() });
        }
        let claims = self.claims_inside(segment, ObjectKind::Tail, name, &object)?;
        let (form, keys) = (self.parse(name), self.keys.clone());
        let opened = self.repo.lane().run(move || match form {
            Some(WalObject::TailPiece { .. }) => {
                open_piece(&object, &claims, &*keys).map(|piece| (piece.from, piece.plain))
            }
            _ => open_tail(&object, &claims, &*keys).map(|tail| (0, tail.plain)),
        });
        let (from, bytes) = opened.await?.map_err(|e| refused(name, e))?;
        let offset = claims.start.since(segment.start()) + from;
        self.demand_placed(name, offset, offset + bytes.len() as u64)?;
        Ok(Run { name: name.to_owned(), offset, bytes })
    }

    /// Which bytes of the segment a tail file or a piece holds, found without the identity; `None` when it is gone.
    pub(super) async fn measure_tail(&self, segment: SegmentName, name: String) -> Result<Option<Tail<(u64, u64)>>> {
        let name = name.as_str();
        self.of_tail(segment, name, |object| self.measure_tail_bytes(segment, name, object)).await
    }

    async fn measure_tail_bytes(&self, segment: SegmentName, name: &str, object: Bytes) -> Result<(u64, u64)> {
        if object.iter().all(|byte| *byte == 0) {
            return Ok((0, 0));
        }
        let claims = self.claims_inside(segment, ObjectKind::Tail, name, &object)?;
        let base = claims.start.since(segment.start());
        let (form, keys) = (self.parse(name), self.keys.clone());
        let piece = matches!(form, Some(WalObject::TailPiece { .. }));
        let measured = self.repo.lane().run(move || match piece {
            true => piece_extent(&object, &claims, &*keys),
            false => tail_extent(&object, &claims, &*keys).map(|extent| (0, extent.plain)),
        });
        let (from, to) = measured.await?.map_err(|e| refused(name, e))?;
        self.demand_placed(name, base + from, base + to)?;
        Ok((base + from, base + to))
    }

    /// What `look` finds in a tail; `None` when it is gone. A file that is being written may be seen with a later write and without an earlier one, and a piece
    /// may be read wrong once: it is damaged only if it stays so.
    async fn of_tail<T, F>(
        &self,
        segment: SegmentName,
        name: &str,
        look: impl Fn(Bytes) -> F,
    ) -> Result<Option<Tail<T>>>
    where
        F: Future<Output = Result<T>>,
    {
        let mut left = LOOKS;
        let damaged = |object: &[u8], error| {
            let span = self.span_of_damaged(segment, name, object);
            Ok(Some(Tail::Damaged(Damage { span, error })))
        };
        let mut before = None;
        loop {
            let object = match self.repo.get(name).await {
                Ok(Some(object)) => object,
                Ok(None) => return Ok(None),
                // Too long to be one: nothing of it was read.
                Err(error) if error.kind() == Kind::Corrupt => return damaged(&[], error),
                Err(error) => return Err(error),
            };
            match look(object.clone()).await {
                Err(error) if error.kind() == Kind::Corrupt => {
                    if left == 0 || before.as_ref() == Some(&object) {
                        return damaged(&object, error);
                    }
                }
                found => return found.map(|found| Some(Tail::Sound(found))),
            }
            left -= 1;
            before = Some(object);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Which bytes of the segment a damaged tail may have held.
    fn span_of_damaged(&self, segment: SegmentName, name: &str, object: &[u8]) -> (u64, u64) {
        let size = segment.size.bytes();
        // Where it begins is only known if the whole header is authentic: a wrong start would make it look as if others held its bytes.
        let claims = self.claims_inside(segment, ObjectKind::Tail, name, object).and_then(|claims| {
            let opened = Opener::new(object, &claims, &*self.keys, false);
            opened.map(|opener| (claims, opener.header().salt)).map_err(|e| refused(name, e))
        });
        match (self.parse(name), claims) {
            (Some(WalObject::TailPiece { from, to, .. }), _) => (from, to),
            (_, Ok((claims, salt))) => {
                let from = claims.start.since(segment.start());
                (from, tail_reach(object, &salt).map_or(size, |len| size.min(from.saturating_add(len))))
            }
            (_, Err(_)) => (0, size),
        }
    }

    /// Which bytes of the segment the `.partial` holds.
    pub(super) async fn measure_partial(&self, segment: SegmentName) -> Result<Option<Tail<(u64, u64)>>> {
        match self.partial_summary(segment).await {
            Ok(found) => Ok(found.map(|s| Tail::Sound((s.start.since(segment.start()), s.end.since(segment.start()))))),
            Err(error) if error.kind() == Kind::Corrupt => {
                Ok(Some(Tail::Damaged(Damage { span: (0, segment.size.bytes()), error })))
            }
            Err(error) => Err(error),
        }
    }

    /// What the `.partial` of this segment says of itself; `None`: there is none.
    pub async fn partial_summary(&self, segment: SegmentName) -> Result<Option<Summary>> {
        let name = self.names.partial(segment);
        let Some(head) = self.repo.get_range(&name, 0..HEAD_BYTES).await? else { return Ok(None) };
        let claims = self.claims_inside(segment, ObjectKind::Partial, &name, &head)?;
        self.open_summary(&name, &head, &claims).map(Some)
    }

    fn span_of_partial(&self, segment: SegmentName, name: &str, head: &[u8]) -> Result<(u64, u64)> {
        let claims = self.claims_inside(segment, ObjectKind::Partial, name, head)?;
        let summary = self.open_summary(name, head, &claims)?;
        Ok((summary.start.since(segment.start()), summary.end.since(segment.start())))
    }

    /// Frame 0 of an object with WAL.
    pub(super) async fn read_summary(&self, name: &str, claims: &Claims) -> Result<Option<Summary>> {
        let Some(head) = self.repo.get_range(name, 0..HEAD_BYTES).await? else { return Ok(None) };
        self.open_summary(name, &head, claims).map(Some)
    }

    fn open_summary(&self, name: &str, head: &[u8], claims: &Claims) -> Result<Summary> {
        let opened = Opener::new(head, claims, &*self.keys, false).and_then(|opener| opener.frame0(head));
        let content = opened.map_err(|e| refused(name, e))?;
        let summary = Summary::decode(&content).map_err(|e| Error::new(Kind::Corrupt, format!("{name}: {e}")))?;
        if summary.start != claims.start {
            let text = format!("{name}: its summary starts at {}, its header says {}", summary.start, claims.start);
            return Err(Error::new(Kind::Corrupt, text));
        }
        Ok(summary)
    }

    async fn open_content(&self, name: &str, object: Bytes, claims: Claims) -> Result<Vec<u8>> {
        let keys = self.keys.clone();
        let opened = self.repo.lane().run(move || {
            let mut plain = Vec::new();
            Opener::new(&object, &claims, &*keys, true)?.content(&object, &mut plain)?;
            Ok(plain)
        });
        opened.await?.map_err(|e: OpenFailed| refused(name, e))
    }

    /// Claims of an object that may begin anywhere in its segment: the start that it states itself, if that lies there. What it states
    /// is authenticated when it is opened.
    pub(super) fn claims_inside(
        &self,
        segment: SegmentName,
        kind: ObjectKind,
        name: &str,
        object: &[u8],
    ) -> Result<Claims> {
        let (header, _) = read_header(object).map_err(|e| refused(name, e))?;
        let start = header.claims.start;
        if start < segment.start() || start >= segment.end() {
            let expected = format!("a start from {} to {}", segment.start(), segment.end());
            return Err(refused(name, OpenFailed::Claims { expected, found: start.to_string() }));
        }
        Ok(self.claims(kind, segment.timeline, start))
    }

    /// A piece must hold exactly the bytes that its name says.
    fn demand_placed(&self, name: &str, found_from: u64, found_to: u64) -> Result<()> {
        match self.parse(name) {
            Some(WalObject::TailPiece { from, to, .. }) if (from, to) != (found_from, found_to) => {
                Err(misplaced(name, found_from, found_to))
            }
            _ => Ok(()),
        }
    }
}

fn misplaced(name: &str, from: u64, to: u64) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("{name} holds bytes {from:08X} to {to:08X} of its segment, not what its name says"),
    )
}
