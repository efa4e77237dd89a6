//! A desk: one thread that waits for sockets and, between two looks at them, does work that blocks. What arrives and has to be on the disk before it is
//! answered then wakes nobody on its way: handing it to another thread and back costs more than the disk does.
//!
//! Work that does not come back must not keep the sockets waiting. So a second thread watches the desk, and looks after sockets, timers and tasks for as long
//! as work at the desk hangs. Whoever is a task of the desk never notices.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinError};

use crate::error::{Error, Kind, Result};

/// After so long, or twice that, somebody else looks after the sockets.
const PATIENCE: Duration = Duration::from_millis(100);

/// A thread with a runtime of its own. Work sits down at it by [`Work::sit_down`].
#[derive(Clone)]
pub struct Desk(Arc<Shared>);

struct Shared {
    runtime: Weak<Runtime>,
    /// What can go on, in turn.
    ready: Mutex<VecDeque<Arc<Work>>>,
    all: Mutex<Vec<Weak<Work>>>,
    /// Of the thread that sits there, while it waits.
    sitter: Mutex<Option<Waker>>,
    over: AtomicBool,
    /// Odd while work has the thread; another number each time.
    turns: AtomicU64,
    watcher: OnceLock<Option<Thread>>,
    /// The watcher wants to be told when there is something to watch.
    asleep: AtomicBool,
    /// The watcher looks after the sockets.
    taken_over: AtomicBool,
    came_back: Notify,
}

/// Says that the job is over, however it ended.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.0.wake_sitter();
        self.0.came_back.notify_one();
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Desk {
    /// Runs `job` as a task of a new desk whose thread has this name; dropped before its end, it is aborted. A panic goes on in the caller.
    pub async fn run<T, J>(name: &str, job: impl FnOnce(Desk) -> J) -> Result<T>
    where
        T: Send + 'static,
        J: Future<Output = T> + Send + 'static,
    {
        let failed = |e| Error::new(Kind::Failed, "cannot start a thread with a runtime").caused_by(e);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let runtime = Arc::new(runtime);
        let shared = Arc::new(Shared {
            runtime: Arc::downgrade(&runtime),
            ready: Mutex::default(),
            all: Mutex::default(),
            sitter: Mutex::default(),
            over: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            watcher: OnceLock::new(),
            asleep: AtomicBool::new(false),
            taken_over: AtomicBool::new(false),
            came_back: Notify::new(),
        });
        let (job, over) = (job(Desk(shared.clone())), Over(shared.clone()));
        let task = runtime.spawn(async move {
            let _over = over;
            job.await
        });
        let _abort = AbortOnDrop(task.abort_handle());
        let spare = runtime.clone();
        let begun = thread::Builder::new().name(name.to_owned()).spawn(move || shared.sit(runtime));
        // Whoever drops the last one inside a task must not wait for it: that would panic, as it would where no thread could be had.
        if let Some(runtime) = Arc::into_inner(spare) {
            runtime.shutdown_background();
        }
        begun.map_err(failed)?;
        task.await.map_err(died)
    }

    /// Work that goes on at this desk or elsewhere.
    pub fn work(&self, future: impl Future<Output = ()> + Send + 'static) -> Arc<Work> {
        let work = Arc::new(Work {
            desk: self.clone(),
            future: Mutex::new(Some(Box::pin(future))),
            wanted: AtomicBool::new(false),
            here: AtomicBool::new(false),
            turning: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            elsewhere: Mutex::default(),
        });
        let mut all = lock(&self.0.all);
        all.retain(|work| work.strong_count() > 0);
        all.push(Arc::downgrade(&work));
        work
    }
}

fn died(error: JoinError) -> Error {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => Error::new(Kind::Failed, "the task of a desk was ended").caused_by(error),
    }
}

impl Shared {
    fn sit(self: Arc<Shared>, runtime: Arc<Runtime>) {
        let mut waited = false;
        while let Some(work) = runtime.block_on(poll_fn(|cx| self.next(cx, &mut waited))) {
            let _context = runtime.enter();
            self.turns.fetch_add(1, Ordering::SeqCst);
            if self.asleep.load(Ordering::SeqCst) {
                self.wake_watcher();
            }
            work.turn();
            self.turns.fetch_add(1, Ordering::SeqCst);
            if self.taken_over.load(Ordering::SeqCst) {
                self.came_back.notify_one();
            }
        }
        let left: Vec<_> = lock(&self.all).drain(..).collect();
        left.iter().filter_map(Weak::upgrade).for_each(|work| work.leave());
        self.wake_watcher();
        if let Some(runtime) = Arc::into_inner(runtime) {
            runtime.shutdown_background();
        }
    }

    /// The next work. What the last one told the tasks, and what has arrived, goes first.
    fn next(&self, cx: &mut Context<'_>, waited: &mut bool) -> Poll<Option<Arc<Work>>> {
        let mut sitter = lock(&self.sitter);
        if sitter.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *sitter = Some(cx.waker().clone());
        }
        drop(sitter);
        if self.over.load(Ordering::SeqCst) {
            return Poll::Ready(None);
        }
        let mut ready = lock(&self.ready);
        if ready.is_empty() {
            return Poll::Pending;
        }
        if !std::mem::replace(waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        *waited = false;
        Poll::Ready(ready.pop_front())
    }

    fn wake_sitter(&self) {
        let sitter = lock(&self.sitter).clone();
        sitter.iter().for_each(Waker::wake_by_ref);
    }

    fn wake_watcher(&self) {
        if let Some(Some(watcher)) = self.watcher.get() {
            watcher.unpark();
        }
    }

    /// Whether somebody watches: without that nothing may block here.
    fn is_watched(self: &Arc<Shared>) -> bool {
        let begin = || {
            let (shared, runtime) = (self.clone(), self.runtime.upgrade()?);
            let watcher = thread::Builder::new().name("watch".to_owned()).spawn(move || shared.watch(runtime)).ok()?;
            Some(watcher.thread().clone())
        };
        self.watcher.get_or_init(begin).is_some()
    }

    fn watch(&self, runtime: Arc<Runtime>) {
        let (mut seen, is_over) = (0, || self.over.load(Ordering::SeqCst));
        while !is_over() {
            let turns = self.turns.load(Ordering::SeqCst);
            if turns != seen {
                seen = turns;
                thread::park_timeout(PATIENCE);
            } else if turns % 2 == 1 {
                self.take_over(&runtime, turns);
            } else {
                self.asleep.store(true, Ordering::SeqCst);
                if self.turns.load(Ordering::SeqCst) == turns && !is_over() {
                    thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
            }
        }
        // The last one of the two leaves it to its blocking threads, and waits for none.
        if let Some(runtime) = Arc::into_inner(runtime) {
            runtime.shutdown_background();
        }
    }

    /// Looks after everything but the work that hangs, until that comes back. What sat down beside it does not wait for it, and goes on elsewhere meanwhile.
    fn take_over(&self, runtime: &Runtime, turn: u64) {
        self.taken_over.store(true, Ordering::SeqCst);
        self.works().iter().filter(|work| !work.turning.load(Ordering::SeqCst)).for_each(|work| work.step_aside());
        let back = || self.turns.load(Ordering::SeqCst) != turn || self.over.load(Ordering::SeqCst);
        runtime.block_on(async {
            while !back() {
                self.came_back.notified().await;
            }
        });
        self.taken_over.store(false, Ordering::SeqCst);
        self.works().iter().filter(|work| work.wanted.load(Ordering::SeqCst)).for_each(Work::take_seat);
    }

    fn works(&self) -> Vec<Arc<Work>> {
        lock(&self.all).iter().filter_map(Weak::upgrade).collect()
    }
}

/// Work that may block: it goes on at a desk, or on a thread of its own.
pub struct Work {
    desk: Desk,
    /// `None` once it has ended.
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    /// It is to sit at the desk whenever that is free.
    wanted: AtomicBool,
    /// It belongs to the desk.
    here: AtomicBool,
    /// The desk is at it.
    turning: AtomicBool,
    queued: AtomicBool,
    /// Of the thread of its own, while that waits.
    elsewhere: Mutex<Option<Waker>>,
}

impl Work {
    /// Goes on at the desk from now on, whenever no other work hangs there.
    pub fn sit_down(self: &Arc<Work>) {
        self.wanted.store(true, Ordering::SeqCst);
        self.take_seat();
    }

    fn take_seat(self: &Arc<Work>) {
        let shared = &self.desk.0;
        let free = || !shared.taken_over.load(Ordering::SeqCst) && !shared.over.load(Ordering::SeqCst);
        if free() && shared.is_watched() && !self.here.swap(true, Ordering::SeqCst) {
            self.queue();
        }
        // Whoever took over just now may have asked everybody to step aside before this one sat.
        if !free() && !self.turning.load(Ordering::SeqCst) {
            self.step_aside();
        }
    }

    /// Goes on on its own thread from now on.
    pub fn leave(&self) {
        self.wanted.store(false, Ordering::SeqCst);
        self.step_aside();
    }

    fn step_aside(&self) {
        self.here.store(false, Ordering::SeqCst);
        self.wake_elsewhere();
    }

    /// What its own thread does, to the end of the work: nothing while the work is at the desk.
    pub async fn elsewhere(self: Arc<Work>) {
        poll_fn(|cx| self.poll_elsewhere(cx)).await;
    }

    fn poll_elsewhere(self: &Arc<Work>, cx: &mut Context<'_>) -> Poll<()> {
        *lock(&self.elsewhere) = Some(cx.waker().clone());
        // Whoever has it looks afterwards where it belongs.
        let Some(mut future) = self.hold() else { return Poll::Pending };
        let polled = match self.here.load(Ordering::SeqCst) && future.is_some() {
            true => Poll::Pending,
            false => advance(&mut future, cx),
        };
        drop(future);
        if polled.is_pending() && self.here.load(Ordering::SeqCst) {
            self.queue();
        }
        polled
    }

    /// A turn at the desk.
    fn turn(self: Arc<Work>) {
        self.queued.store(false, Ordering::SeqCst);
        let mut over = false;
        if self.here.load(Ordering::SeqCst) {
            // Whoever has it looks afterwards where it belongs.
            let Some(mut future) = self.hold() else { return };
            let waker = Waker::from(self.clone());
            self.turning.store(true, Ordering::SeqCst);
            over = advance(&mut future, &mut Context::from_waker(&waker)).is_ready();
            self.turning.store(false, Ordering::SeqCst);
        }
        if over || !self.here.load(Ordering::SeqCst) {
            self.wake_elsewhere();
        }
    }

    fn hold(&self) -> Option<MutexGuard<'_, Option<BoxFuture<'static, ()>>>> {
        match self.future.try_lock() {
            Ok(future) => Some(future),
            Err(TryLockError::Poisoned(future)) => Some(future.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn queue(self: &Arc<Work>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            lock(&self.desk.0.ready).push_back(self.clone());
            self.desk.0.wake_sitter();
        }
    }

    fn wake_elsewhere(&self) {
        let waker = lock(&self.elsewhere).clone();
        waker.iter().for_each(Waker::wake_by_ref);
    }
}

impl Wake for Work {
    fn wake(self: Arc<Work>) {
        self.queue();
    }
}

/// Polls what is left of the work. A panic is its end: who waits for it sees that it has gone.
fn advance(future: &mut Option<BoxFuture<'static, ()>>, cx: &mut Context<'_>) -> Poll<()> {
    let polled = match future {
        Some(future) => catch_unwind(AssertUnwindSafe(|| Pin::new(future).poll(cx))).unwrap_or(Poll::Ready(())),
        None => Poll::Ready(()),
    };
    if polled.is_ready() {
        *future = None;
    }
    polled
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep, timeout};

    use super::super::lane::Lane;
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn outside<T>(job: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(job)
    }

    /// Work that says on which thread it takes each message, and waits for `gate` at those that are true.
    fn begin(desk: &Desk, gate: blocking::Receiver<()>) -> (Arc<Work>, mpsc::UnboundedSender<bool>, Names) {
        let (ask, mut asked) = mpsc::unbounded_channel();
        let (say, said) = mpsc::unbounded_channel();
        let work = desk.work(async move {
            while let Some(blocks) = asked.recv().await {
                if blocks {
                    gate.recv().unwrap();
                }
                say.send(thread::current().name().unwrap_or_default().to_owned()).unwrap();
            }
        });
        Lane::Threads.start("own", work.clone().elsewhere()).unwrap();
        (work, ask, said)
    }

    type Names = mpsc::UnboundedReceiver<String>;

    async fn next(said: &mut Names) -> String {
        timeout(LONG, said.recv()).await.expect("work that goes on").expect("work that is there")
    }

    #[test]
    fn work_goes_on_where_it_belongs_without_losing_a_message() {
        let places = Desk::run("desk", |desk| async move {
            let (_gate, closed) = blocking::channel();
            let (work, ask, mut said) = begin(&desk, closed);
            let mut places = Vec::new();
            for round in 0..200 {
                // Sometimes it has to move while it has something to do.
                ask.send(false).unwrap();
                if round % 3 > 0 {
                    places.push((round, next(&mut said).await));
                }
                if round % 2 == 0 {
                    work.sit_down()
                } else {
                    work.leave()
                }
                match round % 3 {
                    0 => _ = next(&mut said).await,
                    // Until whoever had it last has looked where it belongs.
                    1 => sleep(Duration::from_millis(10)).await,
                    _ => {}
                }
            }
            places
        });
        let places = outside(places).unwrap();
        for (round, place) in places.into_iter().filter(|(round, _)| round % 3 > 1) {
            assert_eq!(place, if round % 2 == 1 { "desk" } else { "own" }, "round {round}");
        }
    }

    #[test]
    fn work_that_hangs_keeps_nobody_else_waiting() {
        let took = Desk::run("desk", |desk| async move {
            let (open, gate) = blocking::channel();
            let (work, ask, mut said) = begin(&desk, gate);
            work.sit_down();
            for _ in 0..3 {
                ask.send(true).unwrap();
                let begun = Instant::now();
                // Timers and tasks go on, and so does other work.
                tokio::spawn(sleep(Duration::from_millis(300))).await.unwrap();
                assert!(said.try_recv().is_err() && begun.elapsed() < LONG);
                let (_gate, closed) = blocking::channel();
                let (other, ask_other, mut other_said) = begin(&desk, closed);
                other.sit_down();
                ask_other.send(false).unwrap();
                assert_eq!(next(&mut other_said).await, "own");
                open.send(()).unwrap();
                assert_eq!(next(&mut said).await, "desk");
                sleep(Duration::from_millis(10)).await;
            }
        });
        outside(async { timeout(LONG, took).await.expect("the desk hangs").unwrap() });
    }

    #[test]
    fn work_that_sits_beside_some_that_hangs_goes_on_elsewhere_and_comes_back() {
        let took = Desk::run("desk", |desk| async move {
            let (open, gate) = blocking::channel();
            let (_gate, closed) = blocking::channel();
            let ((work, ask, mut said), (other, ask_other, mut other_said)) =
                (begin(&desk, gate), begin(&desk, closed));
            work.sit_down();
            other.sit_down();
            for _ in 0..3 {
                ask.send(true).unwrap();
                ask_other.send(false).unwrap();
                // It may have had its turn before the other one began to hang.
                next(&mut other_said).await;
                sleep(PATIENCE * 3).await;
                ask_other.send(false).unwrap();
                assert_eq!(next(&mut other_said).await, "own");
                assert!(said.try_recv().is_err());
                open.send(()).unwrap();
                assert_eq!(next(&mut said).await, "desk");
                let begun = Instant::now();
                loop {
                    ask_other.send(false).unwrap();
                    if next(&mut other_said).await == "desk" {
                        break;
                    }
                    assert!(begun.elapsed() < LONG, "it does not come back");
                    sleep(Duration::from_millis(5)).await;
                }
            }
        });
        outside(async { timeout(LONG * 2, took).await.expect("the desk hangs").unwrap() });
    }

    #[test]
    fn a_job_ends_though_work_hangs() {
        let (open, gate) = blocking::channel();
        let ended = Desk::run("desk", |desk| async move {
            let (work, ask, said) = begin(&desk, gate);
            work.sit_down();
            ask.send(true).unwrap();
            sleep(Duration::from_millis(50)).await;
            drop((ask, said));
            7
        });
        assert_eq!(outside(async { timeout(LONG, ended).await.expect("the desk hangs").unwrap() }), 7);
        drop(open);
    }

    #[test]
    fn a_job_that_is_dropped_ends_and_a_panic_goes_on() {
        let (alive, mut gone) = mpsc::unbounded_channel::<()>();
        outside(async {
            let job = Desk::run("desk", |_| async move {
                let _alive = alive;
                std::future::pending::<()>().await
            });
            assert!(timeout(Duration::from_millis(50), job).await.is_err());
            assert!(timeout(LONG, gone.recv()).await.expect("the job to end").is_none());
        });
        let panic = catch_unwind(|| outside(Desk::run("desk", |_| async { panic!("as it should") })));
        assert!(panic.is_err());
    }
}
