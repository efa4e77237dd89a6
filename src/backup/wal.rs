//! How far the WAL in the archive reaches: asked before a backup begins, waited for before it is called complete.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::archive::Archive;
use crate::error::Result;
use crate::pg::{Lsn, TimelineId};

/// Between two looks at an archive.
pub const PAUSE: Duration = Duration::from_millis(500);

/// Whoever knows how far WAL is durable. The archive is; a backup that streams its own WAL would be another.
pub trait WalWatch: Send + Sync {
    /// The position up to which every byte from `from` on is durable, on the way to `timeline`; `None` when not even the byte at `from` is.
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>>;
}

impl WalWatch for Archive {
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        Box::pin(async move {
            let first = timeline == TimelineId(1);
            let history = if first { None } else { self.parsed_history(timeline).await? };
            let mut at = from;
            // An ancestor is needed up to where it was left.
            for ancestor in history.iter().flat_map(|h| &h.ancestors).filter(|a| a.switch_point > from) {
                match self.contiguous_from(ancestor.timeline, at).await? {
                    Some(end) if end >= ancestor.switch_point => at = ancestor.switch_point,
                    short => return Ok(short),
                }
            }
            let end = self.contiguous_from(timeline, at).await?;
            Ok(end.or((at > from).then_some(at)))
        })
    }
}

/// How long to wait for which position.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    pub timeline: TimelineId,
    /// No byte from here on may be missing.
    pub from: Lsn,
    pub needed: Lsn,
    pub patience: Duration,
    /// Patience begins anew whenever the archive has moved.
    pub renewed: bool,
}

impl Reach {
    /// Looks until the archive reaches `needed` or patience has ended; tells every answer and returns the last one. A look that fails for a moment
    /// is no news: it must not end a backup that is copied already.
    pub async fn wait(self, watch: &dyn WalWatch, pause: Duration, tell: impl Fn(Option<Lsn>)) -> Result<Option<Lsn>> {
        let mut since = Instant::now();
        let mut last = None;
        loop {
            let durable = match watch.durable_end(self.timeline, self.from).await {
                Err(error) if error.is_transient() && since.elapsed() < self.patience => {
                    tracing::warn!("cannot see how far WAL is stored: {error}; looking again");
                    sleep(pause).await;
                    continue;
                }
                answer => answer?,
            };
            tell(durable);
            if self.renewed && durable > last {
                since = Instant::now();
            }
            last = durable;
            if durable.is_some_and(|d| d >= self.needed) || since.elapsed() >= self.patience {
                return Ok(durable);
            }
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::{Error, Kind};

    /// Answers one after the other, the last one for ever.
    struct Script(Mutex<Vec<Option<u64>>>);

    impl WalWatch for Script {
        fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            Box::pin(async move { Ok(answer.map(Lsn)) })
        }
    }

    /// Pauses of 20 ms; where the archive has ended up, and how many answers it took.
    fn ask(answers: &[Option<u64>], milliseconds: u64, renewed: bool) -> (Option<Lsn>, usize) {
        let told = Mutex::new(0);
        let watch = Script(Mutex::new(answers.to_vec()));
        let patience = Duration::from_millis(milliseconds);
        let reach = Reach { timeline: TimelineId(1), from: Lsn(1), needed: Lsn(10), patience, renewed };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let reached = runtime.block_on(reach.wait(&watch, Duration::from_millis(20), |_| *told.lock().unwrap() += 1));
        (reached.unwrap(), told.into_inner().unwrap())
    }

    #[test]
    fn ends_where_the_position_is_reached_or_nothing_moves() {
        assert_eq!(ask(&[None, Some(5), Some(12)], 5000, false), (Some(Lsn(12)), 3));
        assert_eq!(ask(&[Some(10)], 0, false), (Some(Lsn(10)), 1));
        assert_eq!(ask(&[Some(3)], 50, false).0, Some(Lsn(3)));
        assert_eq!(ask(&[None], 50, true).0, None);
    }

    /// Fails so many times, then reaches everything.
    struct Flaky(Mutex<usize>, bool);

    impl WalWatch for Flaky {
        fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
            let mut left = self.0.lock().unwrap();
            let answer = match left.checked_sub(1) {
                None => Ok(Some(Lsn(u64::MAX))),
                Some(less) => {
                    *left = less;
                    let error = Error::new(Kind::Repository, "unreachable");
                    Err(if self.1 { error.transient() } else { error })
                }
            };
            Box::pin(async move { answer })
        }
    }

    #[test]
    fn what_passes_by_itself_is_no_news() {
        let ask = |failures, transient, milliseconds| {
            let patience = Duration::from_millis(milliseconds);
            let reach = Reach { timeline: TimelineId(1), from: Lsn(1), needed: Lsn(10), patience, renewed: true };
            let watch = Flaky(Mutex::new(failures), transient);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(reach.wait(&watch, Duration::from_millis(5), |_| ()))
        };
        assert_eq!(ask(3, true, 5000).unwrap(), Some(Lsn(u64::MAX)));
        assert!(ask(1, false, 5000).is_err());
        assert!(ask(usize::MAX, true, 30).unwrap_err().is_transient());
    }

    #[test]
    fn patience_begins_anew_only_where_it_shall() {
        let slow: Vec<_> = (1..=10).flat_map(|n| [Some(n); 6]).collect();
        assert!(ask(&slow, 300, false).0 < Some(Lsn(10)), "60 answers take more than 300 ms");
        assert_eq!(ask(&slow, 300, true).0, Some(Lsn(10)));
    }
}
