//! Sealing the frames of the object that is being filled: between the flushes, or, where commits wait, on a thread of its own beside them.
//!
//! A commit waits for its tail only. What its segment costs on top, compressing, sealing and hashing the same bytes once more, is nobody's business but that of
//! the object at the segment's end. So that thread is content with less of the processor than the others of this process.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::lane::{self, Lane};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::seal::content::summary::{Summary, SummaryBuilder};
use crate::seal::hash::ContentHasher;
use crate::seal::sealer::{Sealed, Sealer};

/// So many bytes at most wait for the thread: what is sealed by then no later than at the end of the segment must not pile up before.
const WAITING: usize = 4 << 20;
/// By how much the thread is nicer than others.
#[cfg(target_os = "linux")]
const NICER: i32 = 5;

/// What has been made of an object's bytes so far.
pub struct Sealing {
    pub sealer: Sealer,
    pub hasher: ContentHasher,
}

impl Sealing {
    /// The last bytes, of which `hashed` are in the hash already, and the object.
    pub fn finish(mut self, rest: &[u8], hashed: usize, summary: SummaryBuilder, end: Lsn) -> (Sealed, Summary) {
        self.hasher.update(rest.get(hashed..).unwrap_or_default());
        self.sealer.push(rest);
        let summary = summary.finish(end, self.hasher.finalize());
        (self.sealer.finish(&summary.encode()), summary)
    }
}

/// For the thread. `hashed`: so many of the first bytes are in the hash already.
enum Job {
    /// One frame, and a byte more: the last frame of an object is sealed by its end.
    Frame {
        plain: Vec<u8>,
        hashed: usize,
    },
    End(Box<Last>),
}

/// The end of an object. Its buffer goes along, and comes back.
struct Last {
    raw: Vec<u8>,
    sealed: usize,
    hashed: usize,
    summary: SummaryBuilder,
    end: Lsn,
}

/// What the thread leaves behind: its work so far, or an object.
enum Left {
    Open(Box<Sealing>),
    Done(Box<(Sealed, Summary, Vec<u8>)>),
}

/// The thread of one object.
pub struct Beside {
    jobs: Sender<Job>,
    /// Emptied buffers, to use again.
    spare: Receiver<Vec<u8>>,
    gauge: Arc<Gauge>,
    left: Arc<Mutex<Option<Left>>>,
    work: lane::Beside<()>,
    frame: usize,
}

/// What the thread has in memory.
#[derive(Default)]
struct Gauge {
    /// Bytes that wait to be sealed.
    waiting: AtomicUsize,
    /// Bytes that it has sealed, as they are stored.
    sealed: AtomicU64,
}

impl Gauge {
    fn memory(&self) -> u64 {
        self.waiting.load(Ordering::Acquire) as u64 + self.sealed.load(Ordering::Acquire)
    }
}

impl Beside {
    /// Goes on with `sealing`, in frames of `frame` bytes. Gives it back where no thread can be had, or none is wanted: steps of a simulation are not taken
    /// beside each other.
    pub fn begin(lane: &Lane, sealing: Sealing, frame: usize) -> std::result::Result<Beside, Option<Box<Sealing>>> {
        if !matches!(lane, Lane::Threads) {
            return Err(Some(Box::new(sealing)));
        }
        let (jobs, asked) = mpsc::channel();
        let (give, spare) = mpsc::channel();
        let gauge = Arc::new(Gauge::default());
        gauge.sealed.store(sealing.sealer.sealed_len(), Ordering::Release);
        let left = Arc::new(Mutex::new(Some(Left::Open(Box::new(sealing)))));
        let (slot, counter) = (left.clone(), gauge.clone());
        match lane.beside("seal", move || work(&asked, &give, &slot, &counter, frame)) {
            Some(work) => Ok(Beside { jobs, spare, gauge, left, work, frame }),
            None => Err(take_open(&left)),
        }
    }

    /// Whether it takes another frame now.
    pub fn has_room(&self) -> bool {
        self.gauge.waiting.load(Ordering::Acquire) + self.frame <= WAITING
    }

    /// Bytes that it holds in memory.
    pub fn memory(&self) -> u64 {
        self.gauge.memory()
    }

    /// Hands over one frame and the byte behind it.
    pub fn seal(&self, plain: &[u8], hashed: usize) {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(plain);
        self.gauge.waiting.fetch_add(self.frame, Ordering::AcqRel);
        // A thread that has died is noticed at the end.
        let _ = self.jobs.send(Job::Frame { plain: buffer, hashed });
    }

    /// The work so far, once everything that was handed over is done.
    pub fn back(self) -> Result<Sealing> {
        drop(self.jobs);
        self.work.join().and_then(|()| take_open(&self.left)).map(|sealing| *sealing).ok_or_else(died)
    }

    /// All bytes of the object, of which `sealed` were handed over and `hashed` are in the hash: from now on it makes the object.
    pub fn end(self, raw: Vec<u8>, (sealed, hashed): (usize, usize), summary: SummaryBuilder, end: Lsn) -> Ending {
        let plain = raw.len() as u64;
        let _ = self.jobs.send(Job::End(Box::new(Last { raw, sealed, hashed, summary, end })));
        Ending { plain, gauge: self.gauge, left: self.left, work: self.work }
    }
}

/// An object that is being finished.
pub struct Ending {
    plain: u64,
    gauge: Arc<Gauge>,
    left: Arc<Mutex<Option<Left>>>,
    work: lane::Beside<()>,
}

impl Ending {
    /// Whether `join` would not wait.
    pub fn is_finished(&self) -> bool {
        self.work.is_finished()
    }

    /// Bytes that it holds in memory.
    pub fn memory(&self) -> u64 {
        self.plain + self.gauge.memory()
    }

    /// The object, and its buffer to use again.
    pub fn join(self) -> Result<(Sealed, Summary, Vec<u8>)> {
        match (self.work.join(), take(&self.left)) {
            (Some(()), Some(Left::Done(done))) => Ok(*done),
            _ => Err(died()),
        }
    }
}

fn died() -> Error {
    Error::new(Kind::Failed, "the thread that seals has died")
}

fn take_open(left: &Mutex<Option<Left>>) -> Option<Box<Sealing>> {
    match take(left) {
        Some(Left::Open(sealing)) => Some(sealing),
        _ => None,
    }
}

fn take(left: &Mutex<Option<Left>>) -> Option<Left> {
    left.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The thread: until its object is finished, or nobody asks any more.
fn work(asked: &Receiver<Job>, give: &Sender<Vec<u8>>, slot: &Mutex<Option<Left>>, gauge: &Gauge, frame: usize) {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICER);
    let Some(mut sealing) = take_open(slot) else { return };
    let left = loop {
        match asked.recv() {
            Ok(Job::Frame { plain, hashed }) => {
                let taken = sealing.sealer.take(&plain, frame);
                sealing.hasher.update(plain.get(hashed..taken).unwrap_or_default());
                gauge.sealed.store(sealing.sealer.sealed_len(), Ordering::Release);
                gauge.waiting.fetch_sub(frame, Ordering::AcqRel);
                let _ = give.send(plain);
            }
            Ok(Job::End(last)) => {
                let Last { raw, sealed, hashed, summary, end } = *last;
                let rest = raw.get(sealed..).unwrap_or_default();
                let (object, summary) = sealing.finish(rest, hashed.saturating_sub(sealed), summary, end);
                break Left::Done(Box::new((object, summary, raw)));
            }
            Err(_) => break Left::Open(sealing),
        }
    };
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{SystemIdentifier, TimelineId};
    use crate::seal::hash::content_hash;
    use crate::seal::header::{Claims, ObjectKind, RepositoryId};
    use crate::seal::key::{DataKey, RepositorySecret, WriterKeys};
    use crate::seal::sealer::Compression;

    const FRAME: usize = 64 << 10;

    fn keys() -> WriterKeys {
        let secret = RepositorySecret([5; 32]);
        WriterKeys { repository: RepositoryId([7; 16]), secret, data_key: DataKey([3; 32]), wrapped: vec![1; 200] }
    }

    /// Always with the same salt, to be compared.
    fn begin() -> Sealing {
        let claims = Claims {
            kind: ObjectKind::Segment,
            repository: keys().repository,
            system: SystemIdentifier(9),
            segment_size: crate::pg::SegmentSize::new(16 << 20).unwrap(),
            timeline: TimelineId(1),
            start: Lsn(16 << 20),
        };
        let sealer = Sealer::new(&keys(), claims, [9; 32], Compression::Zstd(1));
        Sealing { sealer, hasher: ContentHasher::new(&keys().secret) }
    }

    fn wal(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> ((i >> 12) % 25)) as u8).collect()
    }

    fn object(sealing: Sealing, rest: &[u8], hashed: usize) -> (Vec<u8>, [u8; 32]) {
        let start = Lsn(16 << 20);
        let (sealed, summary) = sealing.finish(rest, hashed, SummaryBuilder::new(start), start + 1);
        (sealed.to_vec(), summary.hash)
    }

    /// Hands whole frames of `wal` over, from `sealed` on; the first `hashed` bytes are in the hash.
    fn hand_over(beside: &Beside, wal: &[u8], mut sealed: usize, hashed: usize) -> usize {
        while wal.len() - sealed > FRAME {
            if beside.has_room() {
                beside.seal(&wal[sealed..=sealed + FRAME], hashed.saturating_sub(sealed));
                sealed += FRAME;
            }
        }
        sealed
    }

    #[test]
    fn an_object_is_the_same_whoever_seals_it() {
        let wal = wal(9 << 20);
        let (expected, hash) = object(begin(), &wal, 0);
        assert_eq!(hash, content_hash(&keys().secret, &wal));
        let small_frames = {
            let mut sealing = begin();
            let sealed = sealing.sealer.take(&wal, FRAME);
            sealing.hasher.update(&wal[..sealed]);
            object(sealing, &wal[sealed..], 0).0
        };
        assert!(expected != small_frames);
        for hashed in [0, 5, FRAME, 3 * FRAME + 77, wal.len()] {
            let mut sealing = begin();
            sealing.hasher.update(&wal[..hashed]);
            let beside = Beside::begin(&Lane::Threads, sealing, FRAME).ok().expect("a thread");
            let sealed = hand_over(&beside, &wal, 0, hashed);
            let end = Lsn(16 << 20) + 1;
            let summary = SummaryBuilder::new(Lsn(16 << 20));
            let ending = beside.end(wal.clone(), (sealed, hashed), summary, end);
            let (object, summary, raw) = ending.join().unwrap();
            assert!(object.to_vec() == small_frames && summary.hash == hash && summary.end == end, "{hashed}");
            assert!(raw == wal);
        }
    }

    #[test]
    fn what_was_sealed_beside_comes_back_and_goes_on_here() {
        let wal = wal(3 << 20);
        let mut alone = begin();
        let sealed = alone.sealer.take(&wal, FRAME);
        alone.hasher.update(&wal[..sealed]);
        let expected = object(alone, &wal[sealed..], 0);
        assert_eq!(expected.1, content_hash(&keys().secret, &wal));
        let beside = Beside::begin(&Lane::Threads, begin(), FRAME).ok().expect("a thread");
        let sealed = hand_over(&beside, &wal[..1 << 20], 0, 0);
        let mut sealing = beside.back().unwrap();
        let more = sealing.sealer.take(&wal[sealed..], FRAME);
        sealing.hasher.update(&wal[sealed..sealed + more]);
        assert_eq!((sealed, sealed + more), ((1 << 20) - FRAME, (3 << 20) - FRAME));
        assert!(object(sealing, &wal[sealed + more..], 0) == expected);
    }

    #[test]
    fn so_much_waits_for_the_thread_and_no_more() {
        let beside = Beside::begin(&Lane::Threads, begin(), FRAME).ok().expect("a thread");
        let frame = wal(FRAME + 1);
        let mut handed = 0;
        while beside.has_room() && handed < 16 << 20 {
            beside.seal(&frame, 0);
            handed += FRAME;
            assert!(beside.gauge.waiting.load(Ordering::Acquire) <= WAITING);
        }
        assert!(handed >= WAITING);
    }
}
