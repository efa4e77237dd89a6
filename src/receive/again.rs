//! What came from the server is of no use: it is received again, where an accident on the way may be the reason; the second time it is the server's.

use std::time::Duration;

use tokio::time::Instant;

use super::check::Refused;
use super::observe::ReceiveEvent;
use super::pipeline::Pipeline;
use super::run::{Next, Run};
use super::stream::asked_to_stop;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};

/// Two messages that make no sense are two accidents if so much time lies between.
const ACCIDENT: Duration = Duration::from_secs(3600);

impl Run {
    /// The server has let go of the head of a record that no run has checked. What is stored of it stays as it is: it was never acknowledged to a commit, and
    /// PostgreSQL checks it when it is replayed.
    pub(super) async fn do_without_head(&mut self, error: Error) -> Result<Next> {
        if let Some((timeline, start)) = self.begin_below.take() {
            self.headless = Some((timeline, start));
            self.observer.warn(format!(
                "the record that began before {start} on timeline {timeline} was never checked, and the server has let go of its head: {error}"
            ));
        }
        self.begin_again(error.transient()).await
    }

    /// What this run received is not what this server goes on with: another receiver stored WAL meanwhile, or the server went another way. Only the archive
    /// knows, so it is asked, and compared with.
    pub(super) async fn begin_again(&mut self, why: Error) -> Result<Next> {
        if let Some(pipeline) = self.pipeline.take() {
            tokio::select! {
                () = pipeline.abandon() => {}
                () = asked_to_stop(&mut self.stop) => return Ok(Next::Stop),
            }
        }
        Ok(Next::Again(Some(why)))
    }

    /// WAL that fails its checks may have been damaged on the way: it is received once more, as after a restart. In the same segment again, it is the server's.
    /// So it is where it differs from what is stored, where a restart compares it again: the end of a record that began before the start has no other check.
    pub(super) async fn receive_again(&mut self, archive: &Archive, refused: Refused) -> Result<Next> {
        let Some(pipeline) = self.pipeline.take() else { return Ok(Next::Again(None)) };
        let at = match &refused {
            Refused::Invalid(invalid) => invalid.at,
            Refused::Differs(differs) => differs.from,
            Refused::Headless { start, .. } => {
                self.begin_below = Some((pipeline.timeline(), *start));
                self.pipeline = Some(pipeline);
                return self.begin_again(corrupt(&refused)).await;
            }
            Refused::Forgotten(_) | Refused::SetBack(_) => {
                self.pipeline = Some(pipeline);
                return self.begin_again(corrupt(&refused)).await;
            }
        };
        let (size, timeline) = (pipeline.segment_size(), pipeline.timeline());
        // Bytes that have become durable since were good: then these are two accidents. What differs from what is stored is no accident twice.
        let invalid = matches!(refused, Refused::Invalid(_));
        let good = pipeline.ledger.durable().min(pipeline.ledger.verified());
        let same = |last| size.segment_of(last) == size.segment_of(at) && !(invalid && good > last);
        let before = self.refused_at.replace((timeline, at)).is_some_and(|(on, last)| on == timeline && same(last));
        let again =
            before || matches!(&refused, Refused::Differs(differs) if differs.is_passed_over(archive, &self.options));
        tokio::select! {
            () = pipeline.abandon() => {}
            () = asked_to_stop(&mut self.stop) => return Ok(Next::Stop),
        }
        if again && invalid {
            let mut stop = self.stop.clone();
            tokio::select! {
                () = self.note_corrupt(archive, timeline, at, &refused) => {}
                () = asked_to_stop(&mut stop) => {}
            }
        }
        match (again, invalid) {
            (true, _) => return Err(corrupt(&refused)),
            (false, true) => self.observer.tell(ReceiveEvent::CorruptWal { problem: refused.to_string() }),
            (false, false) => self.observer.warn(format!(
                "{refused}: it is received once more, in case it was damaged on its way, and nothing of it is acknowledged"
            )),
        }
        Ok(Next::Again(None))
    }

    /// A message that makes no sense may have been damaged on its way too: the connection is begun once more. Without a byte of WAL in between, it is the
    /// server's, or of whoever stands between.
    pub(super) fn garbled(&mut self, error: Error) -> Result<Next> {
        let received = self.pipeline.as_ref().map(Pipeline::received);
        let before = self.garbled.replace((received, Instant::now()));
        if before.is_some_and(|(at, when)| at == received && when.elapsed() < ACCIDENT) {
            return Err(error);
        }
        Ok(Next::Again(Some(error.transient())))
    }

    /// The same while there is no connection; `false` when asked to stop.
    pub(super) async fn refused_meanwhile(&mut self, refused: Refused) -> Result<bool> {
        let Some(archive) = self.archive.clone() else { return Err(corrupt(&refused)) };
        match self.receive_again(&archive, refused).await? {
            Next::Stop => Ok(false),
            Next::Again(_) | Next::AwaitRepository => Ok(true),
        }
    }
}

/// What was received so far is of no use: the server is asked for it once more.
pub(super) fn received_again() -> Error {
    Error::new(Kind::Server, "what was received has to be received again").transient()
}

fn corrupt(refused: &Refused) -> Error {
    match refused {
        Refused::Invalid(_) => Error::new(Kind::Corrupt, format!("the server sent WAL that fails its checks: {refused}"))
            .hint("Nothing from there on was acknowledged; check the server's storage (pg_waldump) before anything else."),
        Refused::Differs(_) => Error::new(Kind::Diverged, refused.to_string())
            .hint("The server's history is not the one that is stored: check whether it was restored from a snapshot; stream it under another cluster name."),
        Refused::Headless { .. } => Error::new(Kind::Server, format!("{refused}: it is received again with its head")).transient(),
        Refused::SetBack(_) => Error::new(Kind::Repository, refused.to_string())
            .transient()
            .hint("It was put back to an earlier time, or somebody deletes in it: find out before what the server has is gone too."),
        Refused::Forgotten(_) => Error::new(Kind::Repository, refused.to_string())
            .transient()
            .hint("Its segment is received again; look after the storage of the repository."),
    }
}
