//! The thread that reads the server: with a runtime of its own, so that what arrives is looked at where it was read. Handing every message to another
//! thread costs more than hashing it, and the server has to wake a reader for each.

use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::error::{Error, Kind, Result};

/// What runs on it may compute, and may block: nothing else waits there. It ends when this goes.
pub struct Reader {
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reader {
    pub fn start() -> Result<Reader> {
        let failed = |e| Error::new(Kind::Failed, "cannot start a thread with a runtime").caused_by(e);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (end, ended) = oneshot::channel::<()>();
        let reader = Reader { runtime: runtime.handle().clone(), _end: end };
        let serve = move || {
            let _ = runtime.block_on(ended);
            // It waits for no look-up of a name that is under way.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("read".to_owned()).spawn(serve).map_err(failed)?;
        Ok(reader)
    }

    /// Runs `job` there; dropped before its end, it is ended at its next wait.
    pub async fn run<T: Send + 'static>(&self, job: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let task = self.runtime.spawn(job);
        let _abort = AbortOnDrop(task.abort_handle());
        task.await.map_err(|e| Error::new(Kind::Failed, "the thread that reads the server has died").caused_by(e))?
    }
}
