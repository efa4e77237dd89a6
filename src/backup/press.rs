//! Threads that compress and seal frames beside the one that reads the archive.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::error::{Error, Kind, Result};
use crate::seal::frames::{Bench, FrameSealer, SealedFrame};

/// More would be faster than any server sends.
const THREADS: usize = 4;
/// Frames that wait for a thread: so that none waits for a frame.
const WAITING: usize = 2;

/// What a thread is asked for.
struct Job {
    sealer: FrameSealer,
    number: u32,
    last: bool,
    plain: Vec<u8>,
    done: SyncSender<Done>,
}

/// A sealed frame, and the buffer that its bytes were in.
pub struct Done {
    pub frame: SealedFrame,
    pub plain: Vec<u8>,
}

/// A frame that is being sealed.
pub struct Ticket(Receiver<Done>);

/// The threads; none before the first frame. They end with it.
pub struct Press {
    work: Option<SyncSender<Job>>,
}

impl Press {
    pub fn new() -> Press {
        Press { work: None }
    }

    /// Has a frame sealed; blocks while too many wait.
    pub fn seal(&mut self, sealer: FrameSealer, number: u32, last: bool, plain: Vec<u8>) -> Result<Ticket> {
        let work = match &self.work {
            Some(work) => work,
            None => self.work.insert(begin()?),
        };
        let (done, ticket) = sync_channel(1);
        work.send(Job { sealer, number, last, plain, done }).map_err(|_| died())?;
        Ok(Ticket(ticket))
    }
}

impl Ticket {
    /// `None`: not yet.
    pub fn ready(&self) -> Result<Option<Done>> {
        match self.0.try_recv() {
            Ok(done) => Ok(Some(done)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(died()),
        }
    }

    pub fn wait(&self) -> Result<Done> {
        self.0.recv().map_err(|_| died())
    }
}

fn died() -> Error {
    Error::new(Kind::Failed, "a thread that seals has died")
}

fn begin() -> Result<SyncSender<Job>> {
    let (work, jobs) = sync_channel(WAITING);
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..thread::available_parallelism().map_or(1, |n| n.get().min(THREADS)) {
        let jobs = jobs.clone();
        let begun = thread::Builder::new().name("seal".to_owned()).spawn(move || run(&jobs));
        begun.map_err(|e| Error::new(Kind::Failed, "cannot start a thread").caused_by(e))?;
    }
    Ok(work)
}

fn run(jobs: &Mutex<Receiver<Job>>) {
    let mut bench = Bench::default();
    loop {
        // One of them waits for the next frame, the others for their turn to.
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { sealer, number, last, mut plain, done }) = next else { return };
        let frame = sealer.seal(&mut bench, number, last, &plain);
        plain.clear();
        // Who does not want it any more has given the backup up.
        let _ = done.send(Done { frame, plain });
    }
}
