//! Where work runs that computes, or waits for the disk: on threads of its own, away from the tasks that move bytes; or, under a simulated clock, in the
//! tasks themselves, step by step, so that nothing but the seed decides the order.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use futures::future::BoxFuture;

use crate::error::{Error, Kind, Result};

/// Waits before a step.
pub type Pace = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Where work runs.
#[derive(Clone)]
pub enum Lane {
    Threads,
    /// In the runtime's own tasks, each step after a wait.
    Inline(Pace),
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Lane::Threads) { "Threads" } else { "Inline" })
    }
}

impl Lane {
    /// Runs `work` to its end, even if nobody waits for it any more.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let done = match self {
            Lane::Threads => tokio::task::spawn_blocking(work).await,
            Lane::Inline(pace) => {
                let turn = pace();
                tokio::spawn(async move {
                    turn.await;
                    work()
                })
                .await
            }
        };
        done.map_err(|e| Error::new(Kind::Failed, "work beside the tasks died").caused_by(e))
    }

    /// Starts work that goes on by itself and says when it waits. On a thread of this name it may block.
    pub fn start(&self, name: &str, work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        match self {
            Lane::Threads => {
                let runtime = tokio::runtime::Handle::try_current()
                    .map_err(|e| Error::new(Kind::Failed, "no runtime to work beside").caused_by(e))?;
                thread::Builder::new()
                    .name(name.to_owned())
                    .spawn(move || runtime.block_on(work))
                    .map_err(|e| Error::new(Kind::Failed, "cannot start a thread").caused_by(e))?;
            }
            Lane::Inline(_) => drop(tokio::spawn(work)),
        }
        Ok(())
    }

    /// The wait between two steps of what was started.
    pub async fn pace(&self) {
        if let Lane::Inline(pace) = self {
            pace().await;
        }
    }

    /// Begins `work` whose result is wanted later; `None` where no thread can be had.
    pub fn beside<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Beside<T>> {
        match self {
            Lane::Threads => thread::Builder::new().name(name.to_owned()).spawn(work).ok().map(Beside::Thread),
            Lane::Inline(pace) => {
                Some(Beside::Paced(work(), tokio::runtime::Handle::try_current().ok()?.spawn(pace())))
            }
        }
    }
}

/// Work that was begun.
#[derive(Debug)]
pub enum Beside<T> {
    Thread(JoinHandle<T>),
    /// Done, and seen to be so once that wait is over.
    Paced(T, tokio::task::JoinHandle<()>),
}

impl<T> Beside<T> {
    /// Whether `join` would not wait.
    pub fn is_finished(&self) -> bool {
        match self {
            Beside::Thread(thread) => thread.is_finished(),
            Beside::Paced(_, wait) => wait.is_finished(),
        }
    }

    /// Goes on with work that has parked its thread.
    pub fn unpark(&self) {
        if let Beside::Thread(thread) = self {
            thread.thread().unpark();
        }
    }

    /// Waits for the result; `None` if the work died.
    pub fn join(self) -> Option<T> {
        match self {
            Beside::Thread(thread) => thread.join().ok(),
            Beside::Paced(result, _) => Some(result),
        }
    }
}
