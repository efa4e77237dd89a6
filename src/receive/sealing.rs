//! Sealing the frames of the object that is being filled: between the flushes, or, where commits wait, beside them and at its end.
//!
//! A commit waits for its tail only. What its segment costs on top, compressing, sealing and hashing the same bytes once more, must not slow it down. So where
//! commits wait a thread of its own seals frames in what time no other thread of this process wants, and the end of the object, for which commits do wait, leaves it
//! behind: whatever is not sealed by then is sealed by all processors at once. Nobody ever waits for that thread, which on a busy host may not get anywhere.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crate::disk::lane::{self, Lane};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::seal::content::summary::{Summary, SummaryBuilder};
use crate::seal::frames::{Bench, FrameSealer, SealedFrame};
use crate::seal::hash::ContentHasher;
use crate::seal::sealer::{FRAME_BYTES, OBJECT_BYTES, Sealed};

/// So many frames at most wait for the thread, copied: what it has no time for is sealed at the end, from where it is.
const WAITING: usize = 4;
/// So many threads that were left behind may still be at their last frame. On a host where they do not get even there no new ones are begun.
const LEFT_BEHIND: usize = 4;
static LEFT: AtomicUsize = AtomicUsize::new(0);
/// So many threads at most seal the end of an object.
const THREADS: usize = 4;

/// What has been made of an object's bytes so far: its first frames, and the hash of its first bytes.
pub struct Sealing {
    sealer: FrameSealer,
    bench: Bench,
    frames: Vec<SealedFrame>,
    sealed_len: u64,
    pub hasher: ContentHasher,
}

impl Sealing {
    /// Nothing yet. What is in the hash already need not be in a frame.
    pub fn new(sealer: FrameSealer, hasher: ContentHasher) -> Sealing {
        Sealing { sealer, bench: Bench::default(), frames: Vec::new(), sealed_len: 0, hasher }
    }

    /// Bytes of its frames, which are in memory.
    pub fn sealed_len(&self) -> u64 {
        self.sealed_len
    }

    /// Seals frames of `frame` bytes, as long as at least one byte is left over: the last frame of an object waits, since it says that it is the last. Returns how
    /// many bytes it took.
    pub fn take(&mut self, bytes: &[u8], frame: usize) -> usize {
        let whole = bytes.len().saturating_sub(1) / frame * frame;
        bytes.get(..whole).unwrap_or_default().chunks_exact(frame).for_each(|plain| self.seal(plain, false));
        whole
    }

    /// The last bytes, of which `hashed` are in the hash already, and the object.
    pub fn finish(mut self, rest: &[u8], hashed: usize, summary: SummaryBuilder, end: Lsn) -> (Sealed, Summary) {
        self.hasher.update(rest.get(hashed..).unwrap_or_default());
        let mut left = rest.len();
        for plain in rest.chunks(FRAME_BYTES) {
            left -= plain.len();
            self.seal(plain, left == 0);
        }
        self.assemble(summary, end)
    }

    /// The next frame.
    pub fn seal(&mut self, plain: &[u8], last: bool) {
        let frame = self.sealer.seal(&mut self.bench, self.frames.len() as u32 + 1, last, plain);
        self.push(frame);
    }

    fn push(&mut self, frame: SealedFrame) {
        self.sealed_len += frame.bytes.len() as u64;
        self.frames.push(frame);
    }

    fn assemble(self, summary: SummaryBuilder, end: Lsn) -> (Sealed, Summary) {
        let summary = summary.finish(end, self.hasher.finalize());
        (self.sealer.finish(&summary.encode(), self.frames), summary)
    }
}

/// Frames that are sealed beside the stream, of one object.
pub struct Beside {
    /// Before the first frame that was handed over.
    sealing: Box<Sealing>,
    made: Arc<Made>,
    /// `None`: everything is left for the end.
    worker: Option<Worker>,
    /// Frames that were handed over.
    handed: usize,
    frame: usize,
    lane: Lane,
}

/// What the thread is given, and has made. Whoever hands over never waits for a lock: a frame's place is taken only by the one whose turn it is.
struct Made {
    /// In turn.
    waiting: [Mutex<Vec<u8>>; WAITING],
    /// How many frames were handed over, and how many of them are sealed.
    handed: AtomicUsize,
    done: AtomicUsize,
    frames: Vec<OnceLock<SealedFrame>>,
    /// Bytes that are sealed, as they are stored.
    sealed: AtomicU64,
    /// Nobody wants more.
    left: AtomicBool,
}

impl Made {
    fn new(frames: usize) -> Made {
        Made {
            waiting: Default::default(),
            handed: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            frames: (0..frames).map(|_| OnceLock::new()).collect(),
            sealed: AtomicU64::new(0),
            left: AtomicBool::new(false),
        }
    }

    fn waiting(&self) -> usize {
        self.handed.load(Ordering::Acquire) - self.done.load(Ordering::Acquire)
    }

    /// The thread: until nobody asks any more.
    fn work(&self, sealer: &FrameSealer, first: u32) {
        // Tests of this file wait for it, also on a busy machine.
        if !cfg!(test) {
            yield_to_others();
        }
        let mut bench = Bench::default();
        while !self.left.load(Ordering::Acquire) {
            let turn = self.done.load(Ordering::Acquire);
            if turn == self.handed.load(Ordering::Acquire) {
                thread::park();
                continue;
            }
            let plain = self.waiting[turn % WAITING].lock().unwrap_or_else(PoisonError::into_inner);
            let frame = sealer.seal(&mut bench, first + turn as u32, false, &plain);
            drop(plain);
            self.sealed.fetch_add(frame.bytes.len() as u64, Ordering::AcqRel);
            let _ = self.frames[turn].set(frame);
            self.done.store(turn + 1, Ordering::Release);
        }
        LEFT.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The thread. Dropping leaves it behind: it ends with the frame that it is at.
struct Worker {
    made: Arc<Made>,
    thread: lane::Beside<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        LEFT.fetch_add(1, Ordering::AcqRel);
        self.made.left.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Beside {
    /// Goes on with `sealing`, in frames of `frame` bytes. Gives it back where none is wanted: steps of a simulation are not taken beside each other.
    pub fn begin(lane: &Lane, sealing: Box<Sealing>, frame: usize) -> std::result::Result<Beside, Box<Sealing>> {
        if !matches!(lane, Lane::Threads) {
            return Err(sealing);
        }
        let made = Arc::new(Made::new(OBJECT_BYTES as usize / frame));
        let (sealer, first, into) = (sealing.sealer.clone(), sealing.frames.len() as u32 + 1, made.clone());
        let thread = match LEFT.load(Ordering::Acquire) < LEFT_BEHIND {
            true => lane.beside("seal", move || into.work(&sealer, first)),
            false => None,
        };
        let worker = thread.map(|thread| Worker { made: made.clone(), thread });
        Ok(Beside { sealing, made, worker, handed: 0, frame, lane: lane.clone() })
    }

    /// Whether it takes another frame now.
    pub fn has_room(&self) -> bool {
        self.worker.is_some() && self.handed < self.made.frames.len() && self.made.waiting() < WAITING
    }

    /// Bytes that it holds in memory.
    pub fn memory(&self) -> u64 {
        let sealed = self.sealing.sealed_len() + self.made.sealed.load(Ordering::Acquire);
        sealed + (self.made.waiting() * self.frame) as u64
    }

    /// Hands over the next frame, if there is room. It is not the last one.
    pub fn seal(&mut self, plain: &[u8]) -> bool {
        let place = self.made.waiting.get(self.handed % WAITING).filter(|_| self.has_room());
        // Its turn is over once there is room.
        let Some(mut place) = place.and_then(|place| place.try_lock().ok()) else { return false };
        place.clear();
        place.extend_from_slice(plain);
        drop(place);
        self.handed += 1;
        self.made.handed.store(self.handed, Ordering::Release);
        self.worker.iter().for_each(|worker| worker.thread.unpark());
        true
    }

    /// The work so far, the first `sealed` bytes of `raw`. What the thread has not done is done here.
    pub fn back(self, raw: &[u8], sealed: usize) -> Box<Sealing> {
        let Beside { mut sealing, made, handed, frame, .. } = self;
        let plain = raw[sealed - handed * frame..sealed].chunks_exact(frame);
        for (plain, made) in plain.zip(&made.frames) {
            match made.get() {
                Some(frame) => sealing.push(frame.clone()),
                None => sealing.seal(plain, false),
            }
        }
        sealing
    }

    /// All bytes of the object, of which `sealed` were taken or handed over and `hashed` are in the hash: the object is made from now on.
    pub fn end(self, raw: Vec<u8>, (sealed, hashed): (usize, usize), summary: SummaryBuilder, end: Lsn) -> Ending {
        let Beside { sealing, made, handed, frame, lane, worker } = self;
        drop(worker);
        let (plain, memory) = (raw.len() as u64, sealing.sealed_len());
        let last = Last { sealing, made: made.clone(), handed, frame, raw, sealed, hashed, summary, end };
        let left = Arc::new(Mutex::new(Left::Last(Box::new(last))));
        let slot = left.clone();
        let work = lane.beside("seal", move || {
            let last = std::mem::replace(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner), Left::Nothing);
            let done = last.make();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = done;
        });
        Ending { memory: plain + memory, made, left, work }
    }
}

/// The end of an object: what its frames are made of, and those that there are.
struct Last {
    sealing: Box<Sealing>,
    made: Arc<Made>,
    /// How many frames were handed over, and their length.
    handed: usize,
    frame: usize,
    raw: Vec<u8>,
    sealed: usize,
    hashed: usize,
    summary: SummaryBuilder,
    end: Lsn,
}

/// An object, or what it is to be made of.
enum Left {
    Last(Box<Last>),
    Done(Box<(Sealed, Summary, Vec<u8>)>),
    /// Whoever made it has died.
    Nothing,
}

impl Left {
    fn make(self) -> Left {
        match self {
            Left::Last(last) => Left::Done(Box::new(last.make())),
            other => other,
        }
    }
}

impl Last {
    /// On several threads: the frames do not depend on each other. One that the thread beside the stream is at is sealed anew; what comes of it there is dropped
    /// and never leaves this process, so that nothing is ever stored twice under one key and number.
    fn make(self) -> (Sealed, Summary, Vec<u8>) {
        let Last { mut sealing, made, handed, frame, raw, sealed, hashed, summary, end } = self;
        let beside = raw[sealed - handed * frame..sealed].chunks_exact(frame);
        let plain: Vec<&[u8]> = beside.chain(raw[sealed..].chunks(FRAME_BYTES)).collect();
        let first = sealing.frames.len();
        let mut frames: Vec<Option<SealedFrame>> =
            made.frames.iter().take(handed).map(|made| made.get().cloned()).collect();
        frames.resize(plain.len(), None);
        let missing: Vec<usize> = (0..plain.len()).filter(|index| frames[*index].is_none()).collect();
        let (next, sealer) = (AtomicUsize::new(0), sealing.sealer.clone());
        let seal = |bench: &mut Bench, index: usize| {
            let frame = sealer.seal(bench, (first + index) as u32 + 1, index + 1 == plain.len(), plain[index]);
            made.sealed.fetch_add(frame.bytes.len() as u64, Ordering::AcqRel);
            frame
        };
        let some = || {
            let mut bench = Bench::default();
            let turns = std::iter::from_fn(|| missing.get(next.fetch_add(1, Ordering::Relaxed)).copied());
            turns.map(|index| (index, seal(&mut bench, index))).collect::<Vec<_>>()
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(missing.len());
        let sealed = thread::scope(|scope| {
            let start = |_| thread::Builder::new().name("seal".to_owned()).spawn_scoped(scope, some).ok();
            let others: Vec<_> = (1..threads).filter_map(start).collect();
            sealing.hasher.update(raw.get(hashed..).unwrap_or_default());
            let mut sealed = some();
            sealed.extend(others.into_iter().flat_map(|other| other.join().unwrap_or_default()));
            sealed
        });
        for (index, frame) in sealed {
            frames[index] = Some(frame);
        }
        let mut bench = Bench::default();
        for (index, frame) in frames.into_iter().enumerate() {
            // What a thread took along that died is sealed here.
            sealing.push(frame.unwrap_or_else(|| seal(&mut bench, index)));
        }
        let (sealed, summary) = sealing.assemble(summary, end);
        (sealed, summary, raw)
    }
}

/// An object that is being finished.
pub struct Ending {
    memory: u64,
    made: Arc<Made>,
    left: Arc<Mutex<Left>>,
    /// `None`: no thread could be had; whoever wants the object makes it.
    work: Option<lane::Beside<()>>,
}

impl Ending {
    /// Whether nothing goes on elsewhere that `join` would wait for.
    pub fn is_finished(&self) -> bool {
        self.work.as_ref().is_none_or(lane::Beside::is_finished)
    }

    /// Bytes that it holds in memory.
    pub fn memory(&self) -> u64 {
        self.memory + self.made.sealed.load(Ordering::Acquire)
    }

    /// The object, and its buffer to use again.
    pub fn join(self) -> Result<(Sealed, Summary, Vec<u8>)> {
        self.work.and_then(lane::Beside::join);
        let left = std::mem::replace(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner), Left::Nothing);
        match left.make() {
            Left::Done(done) => Ok(*done),
            Left::Last(_) | Left::Nothing => Err(Error::new(Kind::Failed, "the thread that seals has died")),
        }
    }
}

/// From now on this thread runs when no other one of the process wants the processor, and gives way at once (`SCHED_IDLE`); where that is refused it is nicer.
/// Elsewhere than on Linux it is one like any other.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        const SCHED_IDLE: i32 = 5;
        unsafe extern "C" {
            fn sched_setscheduler(pid: i32, policy: i32, param: *const i32) -> i32;
        }
        // SAFETY: a `sched_param` is one int, the priority, which has to be 0 for this policy and is only read; 0 names the calling thread.
        if unsafe { sched_setscheduler(0, SCHED_IDLE, &0) } != 0 {
            let _ = rustix::process::nice(19);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let sealer = FrameSealer::new(&keys(), claims, [9; 32], Compression::Zstd(1));
        Sealing::new(sealer, ContentHasher::new(&keys().secret))
    }

    fn wal(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> ((i >> 12) % 25)) as u8).collect()
    }

    /// What `sealing` makes of it once the first `sealed` bytes are in frames and the first `hashed` in the hash.
    fn object(sealing: Sealing, wal: &[u8], (sealed, hashed): (usize, usize)) -> (Vec<u8>, [u8; 32]) {
        let start = Lsn(16 << 20);
        let (object, summary) = sealing.finish(&wal[sealed..], hashed - sealed, SummaryBuilder::new(start), start + 1);
        (object.to_vec(), summary.hash)
    }

    /// In one go, here.
    fn alone(wal: &[u8]) -> (Vec<u8>, [u8; 32]) {
        let mut sealing = begin();
        let sealed = sealing.take(wal, FRAME);
        sealing.hasher.update(&wal[..sealed]);
        object(sealing, wal, (sealed, sealed))
    }

    /// A thread that seals when it can, or, as on a host that is too busy, never gets anywhere.
    fn beside(sealing: Sealing, starved: bool) -> Beside {
        let mut sealing = Box::new(sealing);
        // On a busy machine those of other tests may not have come to their ends.
        let mut beside = loop {
            let beside = Beside::begin(&Lane::Threads, sealing, FRAME).ok().expect("it is wanted");
            if beside.worker.is_some() {
                break beside;
            }
            sealing = beside.sealing;
            thread::sleep(Duration::from_millis(1));
        };
        if starved {
            beside.made = Arc::new(Made::new(beside.made.frames.len()));
        }
        beside
    }

    /// Hands frames of `wal` over, from `sealed` on, as long as there is room; `patient`: until all whole ones are handed over.
    fn hand_over(beside: &mut Beside, wal: &[u8], mut sealed: usize, patient: bool) -> usize {
        while wal.len() - sealed > FRAME && (patient || beside.has_room()) {
            sealed += seal(beside, &wal[sealed..sealed + FRAME]);
        }
        sealed
    }

    /// Bytes that were handed over. Where there was no room the thread gets a moment, which it only has while this one sleeps.
    fn seal(beside: &mut Beside, frame: &[u8]) -> usize {
        if beside.seal(frame) {
            return frame.len();
        }
        thread::sleep(Duration::from_micros(200));
        0
    }

    fn end(beside: Beside, wal: &[u8], done: (usize, usize)) -> (Vec<u8>, [u8; 32]) {
        let start = Lsn(16 << 20);
        let ending = beside.end(wal.to_vec(), done, SummaryBuilder::new(start), start + 1);
        let (object, summary, raw) = ending.join().unwrap();
        assert!(raw == wal && summary.end == start + 1);
        (object.to_vec(), summary.hash)
    }

    #[test]
    fn an_object_is_the_same_whoever_seals_it() {
        let wal = wal(9 << 20);
        let expected = alone(&wal);
        assert_eq!(expected.1, content_hash(&keys().secret, &wal));
        for hashed in [0, 5, FRAME, 3 * FRAME + 77, wal.len()] {
            let mut sealing = begin();
            sealing.hasher.update(&wal[..hashed]);
            let mut beside = beside(sealing, false);
            let sealed = hand_over(&mut beside, &wal, 0, true);
            assert!(end(beside, &wal, (sealed, hashed)) == expected, "{hashed}");
        }
    }

    /// Some frames are sealed before, some by the thread or by none, and those of the end by several at once.
    #[test]
    fn what_the_thread_has_no_time_for_is_sealed_at_the_end() {
        let wal = wal((9 << 20) + 33);
        let at_end = |upto: usize| {
            // At the end frames are as long as they can be.
            let mut sealing = begin();
            let sealed = sealing.take(&wal[..=upto], FRAME);
            sealing.hasher.update(&wal[..sealed]);
            object(sealing, &wal, (sealed, sealed))
        };
        for (starved, before) in [(false, 0), (false, 8), (true, 0), (true, 8)] {
            let mut sealing = begin();
            let mut sealed = sealing.take(&wal[..=before * FRAME], FRAME);
            sealing.hasher.update(&wal[..sealed]);
            let mut beside = beside(sealing, starved);
            let upto = if starved { sealed + WAITING * FRAME } else { 24 * FRAME };
            while sealed < upto {
                sealed += seal(&mut beside, &wal[sealed..sealed + FRAME]);
            }
            let expected = if starved { at_end(upto) } else { at_end(24 * FRAME) };
            if starved {
                assert!(!beside.has_room() && !beside.seal(&wal[..FRAME]), "so many wait, and no more");
                assert_eq!(beside.made.done.load(Ordering::Acquire), 0);
            }
            assert!(end(beside, &wal, (sealed, before * FRAME)) == expected, "{starved} {before}");
        }
    }

    #[test]
    fn what_was_sealed_beside_comes_back_and_goes_on_here() {
        let wal = wal(3 << 20);
        let expected = alone(&wal);
        for starved in [false, true] {
            let mut beside = beside(begin(), starved);
            let sealed = hand_over(&mut beside, &wal, 0, !starved);
            let mut sealing = *beside.back(&wal[..sealed + 9], sealed);
            assert_eq!(sealed, if starved { WAITING * FRAME } else { (3 << 20) - FRAME });
            let more = sealing.take(&wal[sealed..], FRAME);
            sealing.hasher.update(&wal[..sealed + more]);
            assert!(object(sealing, &wal, (sealed + more, sealed + more)) == expected, "{starved}");
        }
    }

    #[test]
    fn so_much_waits_for_the_thread_and_no_more() {
        let mut beside = beside(begin(), true);
        let wal = wal(16 << 20);
        let most = WAITING * FRAME;
        assert_eq!((hand_over(&mut beside, &wal, 0, false), beside.memory()), (most, most as u64));
    }

    /// Where threads that were left behind do not end, no more are begun, and objects are sealed all the same.
    #[test]
    fn without_a_thread_everything_is_sealed_at_the_end() {
        let wal = wal(2 << 20);
        let mut beside = beside(begin(), false);
        beside.worker = None;
        assert!(!beside.has_room() && !beside.seal(&wal[..FRAME]));
        let expected = object(begin(), &wal, (0, 0));
        assert!(end(beside, &wal, (0, 0)) == expected);
    }
}
