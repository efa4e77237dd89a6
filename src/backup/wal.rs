//! How far the WAL in the archive reaches: asked before a backup begins, waited for before it is called complete.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::archive::Archive;
use crate::archive::same::{Agreement, Stretch};
use crate::error::{Error, Result};
use crate::net::Conninfo;
use crate::pg::{Lsn, TimelineId};

/// Between two looks at an archive for which something waits: an eighth of the time that it has been waited for, so that what comes is seen soon after that,
/// and no less, or more, than this.
pub const PAUSES: RangeInclusive<Duration> = Duration::from_millis(3)..=Duration::from_millis(500);
/// An archive that has not moved for so long, though the server has more, may have no receiver.
const STANDSTILL: Duration = Duration::from_secs(4);
/// A receiver of our own may have to wait for a server that restarts, or for a repository.
const OWN_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whoever streams, while a backup copies.
const ATTEND: Duration = Duration::from_secs(2);

/// Whoever knows how far WAL is durable, and may be able to do something about it. The archive only knows.
pub trait WalWatch: Send + Sync {
    /// The position up to which every byte from `from` on is durable, on the way to `timeline`; `None` when not even the byte at `from` is.
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>>;

    /// Compares what is stored with what the server sent, up to a position. Who knows nothing of what is stored finds nothing else there.
    fn agrees<'a>(&'a self, _sent: &'a Stretch, _until: Lsn) -> BoxFuture<'a, Result<Agreement>> {
        Box::pin(async { Ok(Agreement::Same) })
    }

    /// Sees to it that somebody streams, as far as that is possible. Asked before a backup begins, while it copies, and for as long as WAL is missing; must
    /// return soon. `server` is the one that is backed up, `timeline` the newest one that the backup needs as far as is known.
    ///
    /// Errors: the WAL can no longer come.
    fn attend<'a>(
        &'a self,
        _server: &'a Conninfo,
        _timeline: TimelineId,
        _moment: Moment,
    ) -> BoxFuture<'a, Result<Attendance>> {
        Box::pin(async { Ok(Attendance::default()) })
    }
}

/// When a [`WalWatch`] is asked whether somebody streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The backup has not begun. What the server must hold back for it is held back when the answer comes.
    Before,
    /// Nothing is known to be missing.
    Routine,
    /// The archive lacks WAL that the server has had for a while, and does not move.
    Lacking,
}

/// Who streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// This process does.
    pub own: bool,
    /// What there is to say of it where the WAL does not come.
    pub remark: Option<String>,
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

    fn agrees<'a>(&'a self, sent: &'a Stretch, until: Lsn) -> BoxFuture<'a, Result<Agreement>> {
        Box::pin(Archive::agrees(self, sent, until))
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
    /// How long answers may fail, where that may pass.
    pub outage: Duration,
    /// Patience begins anew whenever the archive has moved.
    pub renewed: bool,
}

/// Where an archive has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    pub durable: Option<Lsn>,
    /// What there is to say of whoever should have streamed.
    pub remark: Option<String>,
}

impl Reach {
    /// Looks until the archive reaches `needed` or patience has ended; tells every answer and returns the last one. An archive that stands still is brought to
    /// the attention of `watch`; where this process streams by itself, patience is for standstill only. A look that fails for a moment is no news: it must not
    /// end a backup that is copied already. `pauses`: the shortest and the longest between two looks.
    pub async fn wait(
        self,
        watch: &dyn WalWatch,
        server: &Conninfo,
        pauses: &RangeInclusive<Duration>,
        tell: impl Fn(Option<Lsn>),
    ) -> Result<Reached> {
        let begun = Instant::now();
        let (mut since, mut moved) = (begun, begun);
        let (mut last, mut failing) = (None, None::<Instant>);
        let mut attended = Attendance::default();
        loop {
            let durable = match watch.durable_end(self.timeline, self.from).await {
                Err(error)
                    if error.is_transient() && failing.get_or_insert_with(Instant::now).elapsed() < self.outage =>
                {
                    tracing::warn!("cannot see how far WAL is stored: {error}; looking again");
                    sleep(*pauses.end()).await;
                    continue;
                }
                answer => answer?,
            };
            // Nobody could store WAL either.
            if failing.take().is_some() {
                (since, moved) = (Instant::now(), Instant::now());
            }
            tell(durable);
            if durable > last {
                moved = Instant::now();
                if self.renewed || attended.own {
                    since = moved;
                }
            }
            last = durable;
            let patience = if attended.own { self.patience.max(OWN_PATIENCE) } else { self.patience };
            if durable.is_some_and(|d| d >= self.needed) || since.elapsed() >= patience {
                return Ok(Reached { durable, remark: attended.remark });
            }
            if moved.elapsed() >= STANDSTILL.min(self.patience / 2) {
                let before = attended.own;
                attended = watch.attend(server, self.timeline, Moment::Lacking).await?;
                if attended.own && !before {
                    since = Instant::now();
                }
            }
            sleep((begun.elapsed() / 8).clamp(*pauses.start(), *pauses.end())).await;
        }
    }
}

/// Beside the copy: whoever can stream is called as soon as it is needed, and a backup whose WAL cannot come any more is given up at once. Returns only then.
pub async fn attend(watch: &dyn WalWatch, server: &Conninfo, timeline: TimelineId, start: Lsn) -> Error {
    let begun = Instant::now();
    let mut lacking = true;
    loop {
        sleep(ATTEND).await;
        // The server has WAL behind the start by now: its checkpoint. A receiver that works has it too.
        if lacking {
            lacking = !matches!(watch.durable_end(timeline, start).await, Ok(Some(_)));
        }
        let moment = if lacking && begun.elapsed() >= STANDSTILL { Moment::Lacking } else { Moment::Routine };
        if let Err(error) = watch.attend(server, timeline, moment).await {
            return error;
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

    fn server() -> Conninfo {
        Conninfo::parse("host=nowhere user=nobody", &|_| None).unwrap()
    }

    fn pauses(longest: u64) -> RangeInclusive<Duration> {
        Duration::from_millis(3)..=Duration::from_millis(longest)
    }

    /// Pauses of at most 20 ms; where the archive has ended up, and how many answers it took.
    fn ask(answers: &[Option<u64>], milliseconds: u64, renewed: bool) -> (Option<Lsn>, usize) {
        let told = Mutex::new(0);
        let watch = Script(Mutex::new(answers.to_vec()));
        let patience = Duration::from_millis(milliseconds);
        let reach =
            Reach { timeline: TimelineId(1), from: Lsn(1), needed: Lsn(10), patience, outage: patience, renewed };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let reached = runtime.block_on(reach.wait(&watch, &server(), &pauses(20), |_| *told.lock().unwrap() += 1));
        (reached.unwrap().durable, told.into_inner().unwrap())
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
        // Patience for an archive that stands still is none at all.
        let ask = |failures, transient, milliseconds| {
            let (patience, outage) = (Duration::from_millis(1), Duration::from_millis(milliseconds));
            let reach =
                Reach { timeline: TimelineId(1), from: Lsn(1), needed: Lsn(10), patience, outage, renewed: true };
            let watch = Flaky(Mutex::new(failures), transient);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(reach.wait(&watch, &server(), &pauses(5), |_| ())).map(|reached| reached.durable)
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
