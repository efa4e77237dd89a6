//! Putting: objects and tail pieces on their way to the repository, at most four at a time, each until it is settled.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::GIVE_UP;
use super::compare::Differs;
use super::lasting::Lasting;
use super::object::{Object, object_bytes};
use super::tail::Piece;
use crate::archive::cluster::check_cluster_file;
use crate::archive::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{DurableLsn, Lsn, TimelineId};
use crate::repo::store::HEAD_BYTES;
use crate::repo::{Found, Judge, Put};
use crate::seal::content::summary::Summary;
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::key::ReaderKeys;
use crate::seal::opener::{OpenFailed, Opener, read_header};
use crate::stats::StreamStats;

/// Puts in flight.
const AT_ONCE: usize = super::resume::PUTS_IN_FLIGHT as usize;
/// A refusal in the middle of a run may pass (credentials are being changed): it is tried again after this.
const REFUSED: Duration = Duration::from_secs(5);

/// So often, where nothing has failed, it is looked at whether the store is still the same.
const LOOK: Duration = Duration::from_secs(60);

/// What is put.
#[derive(Debug)]
pub enum Item {
    Object(Box<Object>),
    Piece(Piece),
    /// What several pieces become. It waits for everything else.
    Merged(Piece),
}

impl Item {
    pub fn from(&self) -> Lsn {
        match self {
            Item::Object(object) => object.summary.start,
            Item::Piece(piece) | Item::Merged(piece) => piece.from,
        }
    }

    fn to(&self) -> Lsn {
        match self {
            Item::Object(object) => object.summary.end,
            Item::Piece(piece) | Item::Merged(piece) => piece.to,
        }
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        match self {
            Item::Object(object) => object.sealed.len(),
            Item::Piece(piece) | Item::Merged(piece) => piece.size(),
        }
    }
}

/// A put that is settled.
#[derive(Debug)]
pub struct Done {
    pub item: Item,
    /// `None`: another, longer or shorter end of this timeline stands under the name; the bytes stay in the tail.
    pub durable: Option<DurableLsn>,
    /// What stands there is the copy of another run.
    pub equal: bool,
    /// What stands there is another run's, whole, and has other bytes.
    pub differs: Option<Differs>,
    /// What this run stored before is gone: the repository was put back to an earlier time.
    pub gone: Option<String>,
}

/// The puts of one pipeline.
pub struct Puts {
    shared: Arc<Shared>,
    running: JoinSet<Result<Done>>,
    waiting: VecDeque<(Item, crate::pg::TimelineId)>,
    /// Merged pieces that are being put: one at most.
    merging: usize,
    window: Window,
}

/// Which objects may be put beside those that are not settled: never one so far above the oldest that a run killed now would leave a hole deeper than the
/// next one looks back.
struct Window {
    /// Bytes of WAL from the oldest object's start to the first start that is too far.
    bytes: u64,
    /// Starts of the objects that are being put.
    unsettled: BTreeSet<Lsn>,
}

impl Window {
    fn admits(&self, start: Lsn) -> bool {
        self.unsettled.first().is_none_or(|oldest| start.since(*oldest) < self.bytes)
    }
}

struct Shared {
    archive: Archive,
    trouble: UnboundedSender<Error>,
    stats: Arc<StreamStats>,
    /// Something could be put: refusals are no mistake in the configuration.
    proven: AtomicBool,
    /// The last look at whether the store is still the same.
    seen: Mutex<Seen>,
    lasting: Lasting,
}

/// What became of the store that was written to.
enum Store {
    Same,
    /// Nothing of this cluster is in it.
    Other,
    /// It is as it was before: this object is gone.
    SetBack(String),
}

#[derive(Clone, Copy)]
struct Seen {
    /// Failed attempts before it.
    failures: u64,
    at: Instant,
}

impl Puts {
    pub fn new(archive: Archive, trouble: UnboundedSender<Error>, stats: Arc<StreamStats>, lasting: Lasting) -> Puts {
        let seen = Mutex::new(Seen { failures: archive.repo.failures(), at: Instant::now() });
        let shared = Shared { archive, trouble, stats, proven: AtomicBool::new(false), seen, lasting };
        let bytes = object_bytes(shared.archive.names.segment_size) * AT_ONCE as u64;
        let window = Window { bytes, unsettled: BTreeSet::new() };
        Puts { shared: Arc::new(shared), running: JoinSet::new(), waiting: VecDeque::new(), merging: 0, window }
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn add(&mut self, item: Item, timeline: crate::pg::TimelineId) {
        self.waiting.push_back((item, timeline));
        self.fill();
    }

    fn fill(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some(index) = self.first(|item| !matches!(item, Item::Merged(_))).or_else(|| self.first(|_| true))
            && let Some((item, timeline)) = self.waiting.remove(index)
        {
            match item {
                Item::Object(_) => _ = self.window.unsettled.insert(item.from()),
                Item::Merged(_) => self.merging += 1,
                Item::Piece(_) => {}
            }
            let shared = self.shared.clone();
            self.running.spawn(async move { shared.settle(item, timeline).await });
        }
    }

    fn first(&self, wanted: impl Fn(&Item) -> bool) -> Option<usize> {
        self.waiting.iter().position(|(item, _)| wanted(item) && self.may_start(item))
    }

    fn may_start(&self, item: &Item) -> bool {
        match item {
            Item::Object(_) => self.window.admits(item.from()),
            // Nobody looks for holes among pieces.
            Item::Piece(_) => true,
            Item::Merged(_) => self.merging == 0,
        }
    }

    /// Forgets the tail pieces up to `lsn` that wait to be put: nobody needs them any more.
    pub fn forget_tails(&mut self, lsn: Lsn) -> Vec<Item> {
        let needed = |(item, _): &(Item, _)| matches!(item, Item::Object(_)) || item.to() > lsn;
        let (needed, rest) = std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(needed);
        self.waiting = needed;
        rest.into_iter().map(|(item, _)| item).collect()
    }

    /// Forgets everything that waits to be put; what is being put goes on.
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// The next put that is settled; `None` while there is none. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Done>> {
        let done = self.running.join_next().await?.unwrap_or_else(|error| Err(died(error)));
        match &done {
            Ok(Done { item: item @ Item::Object(_), .. }) => _ = self.window.unsettled.remove(&item.from()),
            Ok(Done { item: Item::Merged(_), .. }) => self.merging -= 1,
            _ => {}
        }
        self.fill();
        Some(done)
    }
}

fn died(error: JoinError) -> Error {
    Error::new(Kind::Failed, "a put died").caused_by(error)
}

impl Shared {
    async fn settle(&self, item: Item, timeline: crate::pg::TimelineId) -> Result<Done> {
        let claim = (self.archive.names.system, timeline, item.to());
        let repo = &self.archive.repo;
        let begun = Instant::now();
        loop {
            let outcome = match &item {
                Item::Object(object) => {
                    let keys = &*self.archive.keys;
                    let head = |head: &[u8]| judge_object(head, object, keys);
                    let whole = |found: &[u8]| demand_whole(found, &object.name, object.claims(), keys).map(|_| ());
                    let judge = Judge { head: &head, whole: &whole };
                    repo.put_wal(&object.name, object.bytes(), judge, GIVE_UP, claim).await
                }
                Item::Piece(piece) | Item::Merged(piece) => {
                    let head = |head: &[u8]| judge_piece(head, &piece.salt);
                    let judge = Judge { head: &head, whole: &|_| Ok(()) };
                    repo.put_wal(&piece.name, &piece.bytes, judge, GIVE_UP, claim).await
                }
            };
            let settled = match outcome {
                Ok(durable) => self.store(timeline).await.map(|store| (durable, store)),
                Err(error) => Err(error),
            };
            match settled {
                Ok((_, Store::Other)) => return Err(self.vanished()),
                Ok((_, Store::SetBack(name))) => {
                    return Ok(Done { item, durable: None, equal: false, differs: None, gone: Some(name) });
                }
                Ok(((durable, put), Store::Same)) => {
                    self.proven.store(true, Ordering::SeqCst);
                    if let Item::Object(object) = &item
                        && object.kind == ObjectKind::Segment
                    {
                        self.lasting.add(timeline, object.summary.start, object.summary.end);
                    }
                    self.stats.put(item.size(), begun.elapsed(), Instant::now());
                    let equal = put == Put::Equal;
                    return Ok(Done { item, durable: Some(durable), equal, differs: None, gone: None });
                }
                Err(error) if error.is_transient() => self.trouble(error),
                Err(error) if error.kind() == Kind::Diverged => match self.is_other_end(&item).await {
                    Ok(true) => return Ok(Done { item, durable: None, equal: false, differs: None, gone: None }),
                    Ok(false) => {
                        let Item::Object(object) = &item else { return Err(error) };
                        let (from, to) = (object.summary.start, object.summary.end);
                        let differs = Some(Differs { name: object.name.clone(), from, to });
                        return Ok(Done { item, durable: None, equal: false, differs, gone: None });
                    }
                    Err(problem) if problem.is_transient() => self.trouble(problem),
                    Err(problem) => return Err(problem),
                },
                Err(error) if error.kind() == Kind::Repository && self.proven.load(Ordering::SeqCst) => {
                    self.trouble(error);
                    tokio::time::sleep(REFUSED).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether what this run began with is still there. A store that was away may come back as another one, with nothing in it, or as what it was before: what was
    /// acknowledged would be gone, and the new objects would look like an archive. Asked after every failure, and now and then.
    async fn store(&self, timeline: TimelineId) -> Result<Store> {
        let (failures, now) = (self.archive.repo.failures(), Instant::now());
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.failures == failures && now.duration_since(seen.at) < LOOK {
            return Ok(Store::Same);
        }
        if !check_cluster_file(&self.archive.repo, &self.archive.names).await? {
            return Ok(Store::Other);
        }
        if let Some(name) = self.lasting.gone(&self.archive, timeline).await? {
            return Ok(Store::SetBack(name));
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { failures, at: now };
        Ok(Store::Same)
    }

    fn vanished(&self) -> Error {
        let file = self.archive.names.cluster_file();
        Error::new(Kind::Repository, format!("{file} is gone from the repository: this is not the store that was written to"))
            .hint("Nothing more was acknowledged. Find out what became of the repository; if it is lost, make a new one with walrecv init and take a base backup.")
    }

    fn trouble(&self, error: Error) {
        self.stats.put_errors.add(1);
        let _ = self.trouble.send(error);
    }

    /// Whether the object is the end of a timeline, and what stands under its name is one of another length. An error when what stands there is damaged:
    /// then nothing else can be said of it.
    async fn is_other_end(&self, item: &Item) -> Result<bool> {
        let Item::Object(object) = item else { return Ok(false) };
        let Some(found) = self.archive.repo.get(&object.name).await? else { return Ok(false) };
        let claims = match object.kind {
            ObjectKind::Partial => own_claims(&found, object.claims()),
            _ => *object.claims(),
        };
        let found = demand_whole(&found, &object.name, &claims, &*self.archive.keys);
        match (object.kind, found) {
            (ObjectKind::Partial, Ok(found)) => {
                Ok((found.start, found.end) != (object.summary.start, object.summary.end))
            }
            (ObjectKind::Partial, Err(error)) if error.kind() == Kind::Corrupt => {
                // The bytes are in the tail, and a reader that finds them there can do without it.
                self.trouble(error);
                Ok(true)
            }
            (_, found) => found.map(|_| false),
        }
    }
}

/// Claims of the end of a timeline that is stored under the same name. Of a segment in parts it may begin with another part: where, it says itself.
pub(super) fn own_claims(object: &[u8], ours: &Claims) -> Claims {
    let size = ours.segment_size;
    let start = read_header(object).map(|(header, _)| header.claims.start).ok();
    let start = start.filter(|start| size.segment_of(*start) == size.segment_of(ours.start));
    Claims { start: start.unwrap_or(ours.start), ..*ours }
}

/// The summary of a stored WAL object; `None` when it is absent or not what it should be.
pub async fn read_summary(archive: &Archive, name: &str, claims: &Claims) -> Result<Option<Summary>> {
    let Some(head) = archive.repo.get_range(name, 0..HEAD_BYTES).await? else { return Ok(None) };
    Ok(summary_of(&head, claims, &*archive.keys))
}

fn summary_of(head: &[u8], claims: &Claims, keys: &dyn ReaderKeys) -> Option<Summary> {
    let opener = Opener::new(head, claims, keys, false).ok()?;
    Summary::decode(&opener.frame0(head).ok()?).ok()
}

/// What the object that stands under the name of `object` is. Another run's is an equal copy when it claims the same and its keyed content hash is the same.
fn judge_object(head: &[u8], object: &Object, keys: &dyn ReaderKeys) -> Found {
    match read_header(head) {
        Ok((header, _)) if header.salt == object.sealed.header.salt => Found::Ours,
        _ => match summary_of(head, object.claims(), keys) {
            Some(found) if same_bytes(&found, &object.summary) => Found::Equal,
            _ => Found::Different,
        },
    }
}

/// The summary of a stored object of which every byte is there: header and summary are authentic, each frame has its CRC-32C, and they hold as many bytes as the
/// summary says. The summary's hash then stands for the content.
pub(super) fn demand_whole(object: &[u8], name: &str, claims: &Claims, keys: &dyn ReaderKeys) -> Result<Summary> {
    let measured = Opener::new(object, claims, keys, false)
        .and_then(|opener| Ok((opener.frame0(object)?, opener.content_len(object)?)));
    let (frame0, plain) = match measured {
        Ok(measured) => measured,
        Err(OpenFailed::Key(problem)) => return Err(refused(name, OpenFailed::Key(problem))),
        Err(problem @ OpenFailed::Claims { .. }) => {
            return Err(Error::new(
                Kind::Diverged,
                format!("{name} is stored already and is something else: {problem}"),
            ));
        }
        Err(problem) => return Err(damaged(name, &problem.to_string())),
    };
    let summary = Summary::decode(&frame0).map_err(|problem| damaged(name, &problem.to_string()))?;
    let expected = summary.end.since(summary.start);
    if plain != expected {
        return Err(damaged(name, &format!("its frames hold {plain} bytes of WAL, its summary says {expected}")));
    }
    Ok(summary)
}

fn damaged(name: &str, problem: &str) -> Error {
    let text = format!("{name} is stored already, by another run, and is damaged: {problem}");
    Error::new(Kind::Corrupt, text)
        .hint("Move the damaged object away: the server still has this WAL, and it is stored again at the next start.")
}

fn same_bytes(a: &Summary, b: &Summary) -> bool {
    (a.start, a.end, a.hash) == (b.start, b.end, b.hash)
}

fn judge_piece(head: &[u8], salt: &[u8; 32]) -> Found {
    match read_header(head) {
        Ok((header, _)) if header.salt == *salt => Found::Ours,
        _ => Found::Different,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::object::Place;
    use super::*;
    use crate::disk::medium::disk;
    use crate::pg::{SegmentSize, SystemIdentifier, TimelineId};
    use crate::repo::{ClusterNames, Repository};
    use crate::seal::hash::content_hash;
    use crate::seal::header::RepositoryId;
    use crate::seal::key::{DataKey, RepositorySecret, WriterKeys};
    use crate::seal::sealer::{Compression, Sealer};

    struct Keys(WriterKeys);

    impl ReaderKeys for Keys {
        fn repository(&self) -> RepositoryId {
            self.0.repository
        }

        fn secret(&self) -> &RepositorySecret {
            &self.0.secret
        }

        fn unwrap_key(&self, _: &[u8]) -> std::result::Result<DataKey, String> {
            Err("a receiver has no identity".to_owned())
        }
    }

    fn keys() -> WriterKeys {
        let secret = RepositorySecret([5; 32]);
        WriterKeys { repository: RepositoryId([7; 16]), secret, data_key: DataKey([3; 32]), wrapped: vec![1; 200] }
    }

    fn end_of_timeline(start: Lsn, bytes: u64) -> Object {
        let size = SegmentSize::new(64 << 20).unwrap();
        let claims = Claims {
            kind: ObjectKind::Partial,
            repository: keys().repository,
            system: SystemIdentifier(9),
            segment_size: size,
            timeline: TimelineId(1),
            start,
        };
        let wal = vec![start.0.to_le_bytes()[3]; bytes as usize];
        let mut sealer =
            Sealer::new(&keys(), claims, start.0.to_le_bytes().repeat(4).try_into().unwrap(), Compression::Lz4);
        sealer.push(&wal);
        let summary = Summary::of(start, start + bytes, content_hash(&keys().secret, &wal));
        let sealed = sealer.finish(&summary.encode());
        let place = Place::of(start, claims.timeline, size);
        Object { name: "main/end.partial".to_owned(), sealed, summary, place, kind: ObjectKind::Partial }
    }

    /// Two receivers saw a timeline end in different parts of one segment: the second end is no divergence.
    #[tokio::test]
    async fn an_end_in_another_part_of_the_segment_is_another_end() {
        let dir = std::env::temp_dir().join(format!("walrecv-put-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let repo = Repository::in_directory(dir.clone(), disk());
        let names = ClusterNames {
            cluster: "main".to_owned(),
            system: SystemIdentifier(9),
            segment_size: SegmentSize::new(64 << 20).unwrap(),
        };
        let (trouble, mut troubles) = mpsc::unbounded_channel();
        let archive = Archive { repo, names, keys: Arc::new(Keys(keys())) };
        let puts = Puts::new(archive.clone(), trouble, Arc::default(), Lasting::default());
        let start = Lsn(64 << 20);
        let (theirs, ours) = (end_of_timeline(start, 5000), end_of_timeline(start + (16 << 20), 4000));
        let judge = Judge { head: &|_| Found::Different, whole: &|_| Ok(()) };
        let claim = (SystemIdentifier(9), TimelineId(1), theirs.summary.end);
        archive.repo.put_wal(&theirs.name, theirs.bytes(), judge, GIVE_UP, claim).await.unwrap();
        assert!(puts.shared.is_other_end(&Item::Object(Box::new(ours))).await.unwrap());
        assert!(!puts.shared.is_other_end(&Item::Object(Box::new(theirs))).await.unwrap());
        // Of another segment it is no end of the same.
        let elsewhere = end_of_timeline(start + (64 << 20), 4000);
        let refused = puts.shared.is_other_end(&Item::Object(Box::new(elsewhere))).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Diverged);
        assert!(troubles.try_recv().is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Another run's object of the same bytes, damaged in one way after another behind its first 8 KiB: none of it counts as a copy.
    #[test]
    fn an_equal_copy_must_be_whole() {
        let keys = keys();
        let claims = Claims {
            kind: ObjectKind::Segment,
            repository: keys.repository,
            system: SystemIdentifier(9),
            segment_size: SegmentSize::new(1 << 20).unwrap(),
            timeline: TimelineId(1),
            start: Lsn(5 << 20),
        };
        let wal: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
        let mut sealer = Sealer::new(&keys, claims, [8; 32], Compression::Lz4);
        sealer.push(&wal);
        let summary = Summary::of(claims.start, claims.start + (1 << 20), content_hash(&keys.secret, &wal));
        let sealed = sealer.finish(&summary.encode());
        let good = sealed.to_vec();
        let reader = Keys(keys);
        assert_eq!(demand_whole(&good, "x", &claims, &reader).unwrap(), summary);
        let cut_at_frame = sealed.frames.last().unwrap().offset as usize;
        let mut bad = vec![good[..cut_at_frame].to_vec(), good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat()];
        for at in [9_000, good.len() / 2, good.len() - 1] {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            bad.push(flipped);
        }
        for (case, bad) in bad.iter().enumerate() {
            let head = &bad[..HEAD_BYTES as usize];
            assert_eq!(summary_of(head, &claims, &reader).as_ref(), Some(&summary), "its first bytes say nothing");
            let error = demand_whole(bad, "x", &claims, &reader).unwrap_err();
            assert_eq!((case, error.kind()), (case, Kind::Corrupt));
        }
        let other = Claims { timeline: TimelineId(2), ..claims };
        assert_eq!(demand_whole(&good, "x", &other, &reader).unwrap_err().kind(), Kind::Diverged);
    }

    #[test]
    fn nothing_is_put_so_far_above_an_unsettled_object_that_the_hole_is_overlooked() {
        let mut window = Window { bytes: 4 << 20, unsettled: BTreeSet::new() };
        let object = |n: u64| Lsn(n << 20);
        assert!(window.admits(object(10)));
        window.unsettled.insert(object(10));
        for settled in 11..14 {
            assert!(window.admits(object(settled)), "{settled}");
        }
        // All but the first are settled: the room is not theirs.
        assert!(!window.admits(object(14)));
        window.unsettled.insert(object(12));
        window.unsettled.remove(&object(10));
        assert!(window.admits(object(15)) && !window.admits(object(16)));
    }
}
