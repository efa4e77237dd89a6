//! How far the WAL in the archive reaches: asked before a backup begins, waited for before it is called complete.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::archive::Archive;
use crate::error::Result;
use crate::pg::{Lsn, TimelineId};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Whoever knows how far WAL is durable. The archive is; a backup that streams its own WAL would be another.
pub trait WalWatch: Send + Sync {
    /// The position up to which every byte from `from` on is durable, on the way to `timeline`; `None` when not even the byte at `from` is.
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>>;
}

impl WalWatch for Archive {
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        Box::pin(async move {
            let _ = (timeline, from);
            Err(crate::error::Error::new(crate::error::Kind::Failed, "provisional"))
        })
    }
}

/// Looks until the archive reaches `needed` from `from`, or `patience` has passed: since the beginning, or, where `renewed`, since it last
/// moved. Tells every answer and returns the last one.
pub async fn reach(
    watch: &dyn WalWatch,
    timeline: TimelineId,
    from: Lsn,
    needed: Lsn,
    patience: Duration,
    renewed: bool,
    tell: impl Fn(Option<Lsn>),
) -> Result<Option<Lsn>> {
    let mut since = Instant::now();
    let mut last = None;
    loop {
        let durable = watch.durable_end(timeline, from).await?;
        tell(durable);
        if durable > last && renewed {
            since = Instant::now();
        }
        last = durable;
        if durable.is_some_and(|d| d >= needed) || since.elapsed() >= patience {
            return Ok(durable);
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers one after the other, the last one for ever.
    struct Script(Mutex<Vec<Option<u64>>>);

    impl WalWatch for Script {
        fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            Box::pin(async move { Ok(answer.map(Lsn)) })
        }
    }

    async fn ask(answers: &[Option<u64>], seconds: u64, renewed: bool) -> (Option<Lsn>, usize) {
        let told = Mutex::new(0);
        let watch = Script(Mutex::new(answers.to_vec()));
        let patience = Duration::from_secs(seconds);
        let reached = reach(&watch, TimelineId(1), Lsn(1), Lsn(10), patience, renewed, |_| *told.lock().unwrap() += 1);
        (reached.await.unwrap(), told.into_inner().unwrap())
    }

    #[tokio::test]
    async fn waits_as_long_as_it_moves() {
        tokio::time::pause();
        assert_eq!(ask(&[None, Some(5), Some(12)], 1, false).await, (Some(Lsn(12)), 3));
        assert_eq!(ask(&[Some(3)], 1, false).await.0, Some(Lsn(3)), "it stands still");
        assert_eq!(ask(&[None], 1, true).await.0, None);
        let slow: Vec<_> = (1..=10).flat_map(|n| [Some(n), Some(n), Some(n)]).collect();
        assert_eq!(ask(&slow, 1, false).await.0, Some(Lsn(2)), "one second in all is not enough");
        assert_eq!(ask(&slow, 1, true).await.0, Some(Lsn(10)), "one second without any progress never passes");
    }
}
