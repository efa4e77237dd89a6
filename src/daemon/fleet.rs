//! Many clusters in one process: each streams for itself, and what ends one leaves the others alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::board::Board;
use crate::backoff::Backoff;
use crate::error::{Error, Kind, Result};
use crate::receive::{Observer, Place, ReceiveOptions, ReceiveReport, receive};

/// First and longest wait before a cluster that has failed is tried again.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);

/// Told of a cluster's failure, and of the wait after it.
type Failed = dyn Fn(&str, &Error, Duration) + Send + Sync;

/// One cluster to stream.
pub struct Job {
    pub options: ReceiveOptions,
    pub place: Place,
    pub observer: Observer,
    pub board: Arc<Board>,
}

/// How one cluster ended.
pub struct Ended {
    pub cluster: String,
    pub outcome: Result<ReceiveReport>,
}

/// Streams all of them until `stop` becomes true. A refusal ends one cluster's run, which is tried again after a long wait; one that stands as failed when the
/// stop comes ends with that error. `failed` is told of each failure and the wait after it.
pub async fn run(
    jobs: Vec<Job>,
    stop: watch::Receiver<bool>,
    failed: impl Fn(&str, &Error, Duration) + Send + Sync + 'static,
) -> Vec<Ended> {
    let failed: Arc<Failed> = Arc::new(failed);
    let mut running = JoinSet::new();
    for job in jobs {
        let (stop, failed) = (stop.clone(), failed.clone());
        running.spawn(async move { keep_running(job, stop, &*failed).await });
    }
    let mut ended = Vec::new();
    while let Some(done) = running.join_next().await {
        // What a run does is caught inside; only this loop itself could have died.
        match done {
            Ok(done) => ended.push(done),
            Err(error) => {
                let outcome = Err(Error::new(Kind::Failed, "a cluster's task died").caused_by(error));
                ended.push(Ended { cluster: String::new(), outcome });
            }
        }
    }
    ended.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    ended
}

async fn keep_running(job: Job, mut stop: watch::Receiver<bool>, failed: &Failed) -> Ended {
    let cluster = job.board.cluster().to_owned();
    let mut backoff = Backoff::new(
        FIRST,
        LONGEST,
        cluster.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte)),
    );
    // The first delay of a backoff is none.
    backoff.next_delay();
    loop {
        let begun = Instant::now();
        let run = receive(job.options.clone(), job.place.clone(), job.observer.clone(), stop.clone());
        // On a task of its own, so that a panic ends this run only.
        let outcome = match tokio::spawn(run).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Error::new(Kind::Failed, "the receiver died").caused_by(error)),
        };
        let error = match outcome {
            Ok(report) => return Ended { cluster, outcome: Ok(report) },
            Err(error) => error,
        };
        job.board.failed(&error);
        if *stop.borrow() {
            return Ended { cluster, outcome: Err(error) };
        }
        let wait = wait_after(&mut backoff, begun.elapsed());
        failed(&cluster, &error, wait);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return Ended { cluster, outcome: Err(error) },
        }
    }
}

/// The wait after a run that lasted so long. One that was good for a while is not held responsible for the failures before it.
fn wait_after(backoff: &mut Backoff, lasted: Duration) -> Duration {
    if lasted >= LONGEST {
        backoff.reset();
        // The first delay of a backoff is none.
        backoff.next_delay();
    }
    backoff.next_delay()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_good_for_a_while_begins_the_waits_anew() {
        let mut backoff = Backoff::new(FIRST, LONGEST, 7);
        backoff.next_delay();
        let waits: Vec<_> = (0..9).map(|_| wait_after(&mut backoff, Duration::from_secs(1))).collect();
        assert!(waits[0] <= FIRST && waits[8] >= LONGEST / 2, "{waits:?}");
        let wait = wait_after(&mut backoff, LONGEST);
        assert!(wait >= FIRST / 2 && wait <= FIRST, "{wait:?}");
    }
}
