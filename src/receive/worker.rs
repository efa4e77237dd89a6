//! The thread that keeps (under simulation: a task): a bounded queue in front, events behind, and a bound on the bytes that are on their way to the repository.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use super::keep::{Flush, Keeper, Kept, Stop};
use super::merge::Merge;
use crate::disk::desk::{Desk, Work as Seat};
use crate::disk::lane::Lane;
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;

/// Messages between the socket and the thread: at most 128 KiB each (`MAX_SEND_SIZE`, `walsender.c`).
const QUEUE: usize = 16;
/// Messages that the thread takes at a time: the socket's task is woken once for all of them, not for each.
const BATCH: usize = 8;
/// A batch takes milliseconds, unless something hangs.
const STUCK: Duration = Duration::from_secs(1);

/// What the pipeline asks for, in order.
#[derive(Debug)]
pub enum Work {
    Data(Bytes),
    Flush(Flush),
    Merge(Merge),
    FlushInterval(Duration),
    /// It is noted that the record that ends there says `wal_level = minimal`.
    Noted(Lsn),
    /// Nothing arrives: what these tails hold of the open object need not stay in memory.
    Rest(Vec<String>),
    Finish,
}

/// Bytes that were handed on and are not durable yet.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    outstanding: Mutex<Option<u64>>,
    fell: Notify,
    pieces: AtomicUsize,
    /// What the thread does now began then.
    busy_since: Mutex<Option<Instant>>,
    /// The thread waits for room.
    waiting: AtomicBool,
}

impl Budget {
    pub fn new(limit: u64) -> Budget {
        Budget {
            limit,
            outstanding: Mutex::new(Some(0)),
            fell: Notify::new(),
            pieces: AtomicUsize::new(0),
            busy_since: Mutex::new(None),
            waiting: AtomicBool::new(false),
        }
    }

    fn add(&self, bytes: u64) {
        let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        *outstanding = outstanding.map(|sum| sum + bytes);
    }

    /// Durable, or given up.
    pub fn remove(&self, bytes: u64) {
        let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        *outstanding = outstanding.map(|sum| sum.saturating_sub(bytes));
        drop(outstanding);
        self.fell.notify_waiters();
    }

    /// Bytes that were handed on and are not durable yet.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(0)
    }

    fn busy(&self, since: Option<Instant>) {
        *self.busy_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Whether the thread has been at one batch of messages for [`STUCK`]: it waits for a disk or a repository, and tells nothing meanwhile.
    pub fn is_stuck(&self) -> bool {
        let since = *self.busy_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() >= STUCK)
    }

    /// A tail piece is durable, or given up.
    pub fn piece_ended(&self) {
        self.pieces.fetch_sub(1, Ordering::SeqCst);
    }

    fn pieces(&self) -> usize {
        self.pieces.load(Ordering::SeqCst)
    }

    /// Whether what has arrived waits because there is no room for it.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Lets the thread out, for good.
    pub fn close(&self) {
        *self.outstanding.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.fell.notify_waiters();
    }

    fn is_closed(&self) -> bool {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn is_full(&self, own: u64) -> bool {
        let outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        outstanding.is_some_and(|sum| sum > 0 && sum + own > self.limit)
    }

    /// Waits until `own` more bytes fit, or nothing is outstanding. `false`: closed.
    async fn wait(&self, own: u64) -> bool {
        loop {
            let fell = self.fell.notified();
            let outstanding = *self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
            match outstanding {
                None => return false,
                Some(sum) if sum == 0 || sum + own <= self.limit => return true,
                // A notice between the look and this wait is not missed: it counts from the call of `notified`.
                Some(_) => fell.await,
            }
        }
    }
}

/// The queue to the thread, and its events.
pub struct Worker {
    pub work: mpsc::Sender<Work>,
    pub kept: UnboundedReceiver<Kept>,
    pub budget: Arc<Budget>,
    /// Where it goes on, if it may do so at the desk of the stream.
    seat: Option<Arc<Seat>>,
}

impl Worker {
    /// Starts the thread. `make` builds its keeper. It ends when `work` is dropped, or after it said that it cannot go on. With a desk it can go on there.
    pub fn start(
        lane: Lane,
        desk: Option<&Desk>,
        memory: u64,
        make: impl FnOnce(Out) -> Result<Keeper>,
    ) -> Result<Worker> {
        let (work, queue) = mpsc::channel(QUEUE);
        let (events, kept) = mpsc::unbounded_channel();
        let budget = Arc::new(Budget::new(memory));
        let out = Out { events, budget: budget.clone() };
        let keeper = make(out.clone())?;
        let runs_in = lane.clone();
        let keeping = async move { run(keeper, queue, &out, runs_in).await };
        let seat = match desk {
            Some(desk) => {
                let seat = desk.work(keeping);
                lane.start("keep", seat.clone().elsewhere())?;
                Some(seat)
            }
            None => {
                lane.start("keep", keeping)?;
                None
            }
        };
        Ok(Worker { work, kept, budget, seat })
    }

    /// Whether it goes on where the socket is read: then nobody is woken on the way of a commit. On a thread of its own it computes beside that.
    pub fn sit(&self, at_the_socket: bool) {
        match (&self.seat, at_the_socket) {
            (Some(seat), true) => seat.sit_down(),
            (Some(seat), false) => seat.leave(),
            (None, _) => {}
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.budget.close();
    }
}

/// The last word of the thread.
impl From<Stop> for Kept {
    fn from(stop: Stop) -> Kept {
        match stop {
            Stop::Refused(refused) => Kept::Refused(refused),
            Stop::Failed(error) => Kept::Failed(error),
        }
    }
}

/// The way out of the thread. What is handed on counts at once.
#[derive(Clone, Debug)]
pub struct Out {
    events: UnboundedSender<Kept>,
    budget: Arc<Budget>,
}

impl Out {
    /// Whether nobody waits for what is handed on any more.
    pub fn is_closed(&self) -> bool {
        self.budget.is_closed()
    }

    /// A pipeline that has gone needs to know nothing.
    pub fn tell(&self, kept: Kept) {
        match &kept {
            Kept::Object(object) => self.budget.add(object.sealed.len()),
            Kept::Piece(piece) => {
                self.budget.add(piece.size());
                self.budget.pieces.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        let _ = self.events.send(kept);
    }
}

async fn run(mut keeper: Keeper, mut queue: mpsc::Receiver<Work>, out: &Out, lane: Lane) {
    let budget = &*out.budget;
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        budget.busy(Some(Instant::now()));
        for work in batch.drain(..) {
            lane.pace().await;
            if let Err(stop) = step(&mut keeper, work, budget).await {
                return out.tell(stop.into());
            }
        }
        if (queue.is_empty() || keeper.is_late())
            && let Err(stop) = keeper.settle(budget.pieces())
        {
            return out.tell(stop.into());
        }
        budget.busy(None);
        idle(&mut keeper, &queue, &lane).await;
    }
}

/// Hands the next message to the thread once there is room; `false`: the thread has ended. Cancel safe.
pub async fn hand_over(work: &mpsc::Sender<Work>, outbox: &mut VecDeque<Work>) -> bool {
    let Ok(permit) = work.reserve().await else { return false };
    if let Some(next) = outbox.pop_front() {
        permit.send(next);
    }
    true
}

/// What waits for a moment in which nothing arrives is done, in steps so short that nobody waits for them.
async fn idle(keeper: &mut Keeper, queue: &mpsc::Receiver<Work>, lane: &Lane) {
    while queue.is_empty() && !queue.is_closed() && keeper.has_idle_work() {
        // What was just made durable is told first.
        tokio::task::yield_now().await;
        lane.pace().await;
        if queue.is_empty() {
            keeper.idle_step();
        }
    }
}

async fn step(keeper: &mut Keeper, work: Work, budget: &Budget) -> Result<(), Stop> {
    match work {
        Work::Data(bytes) => {
            let mut own = keeper.memory() + bytes.len() as u64;
            // What is sealed beside the stream is in memory too, and in no budget before it is handed on.
            if budget.is_full(own) || (own > budget.limit && keeper.holds_finished()) {
                keeper.release_all()?;
                own = keeper.memory() + bytes.len() as u64;
                budget.waiting.store(true, Ordering::SeqCst);
                let room = budget.wait(own).await;
                budget.waiting.store(false, Ordering::SeqCst);
                if !room {
                    return Err(Error::new(Kind::Interrupted, "the pipeline has ended").into());
                }
            }
            keeper.data(&bytes).await
        }
        Work::Flush(flush) => keeper.flush(flush, budget.pieces()),
        Work::Merge(merge) => {
            keeper.merge(merge);
            Ok(())
        }
        Work::FlushInterval(interval) => {
            keeper.set_flush_interval(interval);
            Ok(())
        }
        Work::Noted(end) => keeper.noted(end),
        Work::Rest(names) => keeper.rest(names, budget.pieces()),
        Work::Finish => keeper.finish().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_does_not_come_back_is_stuck() {
        let budget = Budget::new(100);
        budget.busy(Some(Instant::now()));
        assert!(!budget.is_stuck());
        tokio::time::advance(STUCK).await;
        assert!(budget.is_stuck());
        budget.busy(None);
        assert!(!budget.is_stuck());
    }

    #[tokio::test]
    async fn the_budget_never_locks_out_a_single_object_and_lets_go_when_closed() {
        let budget = Arc::new(Budget::new(100));
        assert!(budget.wait(500).await, "nothing is outstanding: whatever comes must be let in");
        budget.add(60);
        assert!(budget.wait(40).await);
        let waiter = {
            let budget = budget.clone();
            tokio::spawn(async move { (budget.wait(41).await, budget.wait(1000).await) })
        };
        tokio::task::yield_now().await;
        budget.remove(10);
        tokio::time::sleep(Duration::from_millis(20)).await;
        budget.close();
        assert_eq!(waiter.await.unwrap(), (true, false));
    }
}
