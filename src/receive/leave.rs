//! The end of a run: what was received becomes durable within the grace, and the last words are said, to the server and to the catalog.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::ReceiveReport;
use super::index::Note;
use super::observe::ReceiveEvent;
use super::run::{Next, Run};
use super::server::Server;
use super::stream::asked_to_stop;
use crate::catalog::{Catalog, Fact};
use crate::error::{Error, Result};

/// How long a stop waits for the server to answer our CopyDone.
const FAREWELL: Duration = Duration::from_secs(2);

/// A stop, as work sees it that is not cut off between dropping a slot and making it anew: nobody would hold WAL back from then on.
pub(super) struct Halt {
    stop: watch::Receiver<bool>,
    renewing: Arc<Mutex<()>>,
    grace: Duration,
}

impl Halt {
    pub(super) fn of(run: &Run) -> Halt {
        Halt { stop: run.stop.clone(), renewing: run.renewing.clone(), grace: run.options.shutdown_grace }
    }

    /// What `work` comes to; `None`: a stop came first.
    pub(super) async fn unless_asked<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        tokio::select! {
            done = &mut work => return Some(done),
            () = asked_to_stop(&mut self.stop) => {}
        }
        tokio::select! {
            biased;
            // Nobody holds it, or it is free again: nothing is half done.
            _ = self.renewing.lock() => None,
            done = &mut work => Some(done),
            () = tokio::time::sleep(self.grace) => None,
        }
    }
}

impl Run {
    /// Asked to stop while connected: what was received becomes durable and is reported, within the grace.
    pub(super) async fn farewell(&mut self, server: &mut Server) -> Result<Next> {
        let stop_by = self.stop_by();
        self.tell_who_waits();
        if let Some(pipeline) = &mut self.pipeline {
            // Too slow a repository leaves bytes behind; the slot has them.
            if let Ok(settled) = tokio::time::timeout_at(stop_by, pipeline.settle()).await
                && let Some(refused) = settled?
            {
                // Whether it is the server's the next run finds out, which receives it once more.
                self.observer.warn(format!("{refused}: nothing of it is acknowledged"));
                self.pipeline = None;
                return Ok(Next::Stop);
            }
            let (status, words_by) = (pipeline.ledger.complete(), Instant::now() + FAREWELL);
            if server.stream.send_status(status, FAREWELL).await.is_ok() {
                pipeline.reported();
            }
            // The server may be gone, or still have much to say: either way the last word was ours.
            let _ = server.stream.end_stream(words_by.saturating_duration_since(Instant::now())).await;
            let _ = tokio::time::timeout_at(words_by, pipeline.tidy()).await;
        }
        Ok(Next::Stop)
    }

    /// The end of the grace: counted once, from the first time that somebody waits for it.
    fn stop_by(&mut self) -> Instant {
        *self.stop_by.get_or_insert_with(|| Instant::now() + self.options.shutdown_grace)
    }

    /// What the end of this receiver means for commits, connected or not. Said once, before anything is waited for.
    fn tell_who_waits(&mut self) {
        if std::mem::replace(&mut self.said_who_waits, true) {
            return;
        }
        let known = self.waiting.synchronous.unwrap_or(self.synchronous);
        match (known, self.waiting.told) {
            (false, _) => {}
            (true, false) => self.observer.warn(
                "synchronous_standby_names lists this receiver: without it commits wait for another standby that is listed, or until it runs again",
            ),
            (true, true) => self.observer.warn(
                "synchronous_standby_names lists this receiver, and another one has its slot: commits wait for that one, and nobody takes over when it ends",
            ),
        }
    }

    /// Asked to stop.
    pub(super) async fn stopped(mut self) -> Result<ReceiveReport> {
        let stop_by = self.stop_by();
        self.tell_who_waits();
        self.slot_is_made().await;
        let Some(mut pipeline) = self.pipeline.take() else {
            self.end_index(None).await;
            return Ok(ReceiveReport::default());
        };
        // Without a connection nothing was settled yet.
        let _ = tokio::time::timeout_at(stop_by, pipeline.settle()).await;
        let report = ReceiveReport {
            timeline: Some(pipeline.timeline()),
            received: pipeline.received(),
            durable: pipeline.ledger.durable(),
            behind: pipeline.ledger.behind(),
        };
        let (durable, behind) = (report.durable, report.behind);
        self.observer.tell(ReceiveEvent::Stopped { timeline: pipeline.timeline(), durable, behind });
        if let Some(index) = &self.index {
            let (timeline, server_end) = (pipeline.timeline(), pipeline.ledger.server_end());
            let at = SystemTime::now();
            index.feed().tell(Note::Told(Fact::Reached { timeline, durable, server_end, at }));
        }
        drop(pipeline);
        self.end_index(None).await;
        Ok(report)
    }

    /// Ended by an error, which whoever asks later should know.
    pub(super) async fn failed(mut self, error: Error) -> Error {
        self.pipeline = None;
        self.slot_is_made().await;
        self.end_index(Some(error.to_string())).await;
        error
    }

    /// Waits, within the grace, until a slot that was dropped is made anew: else nobody would hold WAL back from then on.
    async fn slot_is_made(&mut self) {
        let stop_by = self.stop_by();
        let made = async { while self.giving_up.join_next().await.is_some() {} };
        let _ = tokio::time::timeout_at(stop_by, made).await;
    }

    async fn end_index(&mut self, problem: Option<String>) {
        match self.index.take() {
            Some(index) => index.end(problem).await,
            None => self.note_the_end(problem).await,
        }
    }

    /// Of a run that never came to stream: how it ended is told by the catalog that an earlier one left, else the end of that one would be taken for its own.
    async fn note_the_end(&self, problem: Option<String>) {
        let Some(path) = self.options.catalog.clone() else { return };
        let (cluster, began, at) = (self.place.cluster.clone(), self.began, SystemTime::now());
        let note = move || -> Result<()> {
            match Catalog::write_known(&path, &cluster)? {
                Some(mut catalog) => catalog.apply(&[Fact::Began(began), Fact::Ended { at, problem }], at),
                None => Ok(()),
            }
        };
        if let Err(error) = self.place.repo.lane().run(note).await.and_then(|noted| noted) {
            self.observer.warn(format!("how this run ended is not noted in the catalog: {error}"));
        }
    }
}
