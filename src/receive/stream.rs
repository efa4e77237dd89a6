//! One connection, from START_REPLICATION to its end: take, acknowledge, and never hold the server up.
//!
//! A status goes out at least every second, so the server has no other reason to ask for one than its shutdown: a ping makes everything durable that was
//! received, and is answered once that is done. A server that is left waiting for longer than the grace is left.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::check::Refused;
use super::heart::Heart;
use super::observe::{Observer, ReceiveEvent};
use super::pipeline::{Pipeline, Turn};
use super::scout::Scout;
use super::sentinel::Sign;
use super::server::Server;
use super::slot;
use super::{ReceiveOptions, wait_until};
use crate::error::{Error, Kind, Result};
use crate::net::Conninfo;
use crate::pg::{Lsn, TimelineId};
use crate::wire::message::{Status, StreamEvent};

/// A status that cannot be sent for so long means that the connection is gone.
const SEND_LIMIT: Duration = Duration::from_secs(2);
/// After so long without a word from the server it is asked for one.
const ASK: Duration = Duration::from_secs(5);
/// The server is asked for an answer so often at most. A status may come a little early.
const HEARTBEAT: Duration = Duration::from_millis(950);
/// After so long without a word the connection is given up.
const SILENCE: Duration = Duration::from_secs(20);

/// A run that is to end waits so long for a server that has to go on before what is stored can be compared.
const COMPARED: Duration = Duration::from_secs(15);

/// How a stream ended.
#[derive(Debug)]
pub enum End {
    /// The timeline ends at `switch_point`; the connection takes commands again.
    Timeline { next: TimelineId, switch_point: Lsn },
    /// The connection ended, for a reason that may pass.
    Lost(Error),
    /// What came is no message, or not the next one.
    Garbled(Error),
    /// The server is shutting down.
    ServerStopping,
    /// Nothing becomes durable.
    Stalled,
    /// The WAL was refused.
    Refused(Refused),
    /// The last bytes that were received are not those that this server has there.
    OtherBytes,
    /// This server lags, and this other one does not.
    Better(Box<Conninfo>),
    /// The caller asked to stop.
    Stop,
}

/// A running stream.
pub struct Stream<'a> {
    options: &'a ReceiveOptions,
    server: &'a mut Server,
    pipeline: &'a mut Pipeline,
    observer: &'a Observer,
    /// The end of what the server had sent when it asked for an answer.
    ping: Option<Lsn>,
    /// The server said that it is going.
    stopping: bool,
    /// It lets nobody in any more; and since when it is far ahead, which it would wait for at its end.
    closed: bool,
    far_ahead: Option<Instant>,
    /// The server is left then.
    leave_by: Option<Instant>,
    heard: Instant,
    heart: Heart,
    /// Where the next byte from the server belongs: below the end of what was received while the server is being recognised.
    next: Lsn,
    /// What the server sends again is not enough to recognise it by: see [`Pipeline::proof`].
    proof: Option<Lsn>,
    /// Where this server lags: looks for another one.
    scout: Option<Scout>,
    /// All that the caller asked for is there but for a comparison, for which the server has to go on: it does so by then, or the run ends.
    compared_by: Option<Instant>,
}

impl<'a> Stream<'a> {
    pub fn new(
        options: &'a ReceiveOptions,
        server: &'a mut Server,
        pipeline: &'a mut Pipeline,
        observer: &'a Observer,
        from: Lsn,
        scout: Option<Scout>,
    ) -> Stream<'a> {
        let heard = Instant::now();
        let heart = Heart::new(HEARTBEAT);
        let proof = pipeline.proof(from);
        Stream {
            options,
            server,
            pipeline,
            observer,
            ping: None,
            stopping: false,
            closed: false,
            far_ahead: None,
            leave_by: None,
            heard,
            heart,
            next: from,
            proof,
            scout,
            compared_by: None,
        }
    }

    /// Streams until something ends it. The first word is the start position.
    pub async fn run(mut self, stop: &mut watch::Receiver<bool>) -> Result<End> {
        let first = self.pipeline.ledger.ordinary();
        if let Err(error) = self.send(first).await {
            return lost(error);
        }
        let mut ticks = tokio::time::interval(self.options.status_interval.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let leave_by = self.leave_by;
            let end = tokio::select! {
                event = self.server.stream.next_event(), if self.pipeline.has_room() => match event {
                    Ok(event) => self.event(event).await?,
                    Err(error) => return lost(error),
                },
                turn = self.pipeline.turn() => match turn? {
                    Turn::Refused(refused) => Some(End::Refused(refused)),
                    Turn::Moved => self.moved().await?,
                    Turn::Went => None,
                },
                _ = ticks.tick() => self.tick().await?,
                sign = self.server.sentinel.next() => self.sign(sign),
                better = found(&mut self.scout) => Some(End::Better(Box::new(better))),
                () = asked_to_stop(stop) => Some(End::Stop),
                () = wait_until(leave_by) => self.leave().await?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    async fn event(&mut self, event: StreamEvent) -> Result<Option<End>> {
        self.heard = Instant::now();
        match event {
            StreamEvent::Data { start, wal_end, bytes, sent_at } => {
                if start != self.next {
                    let text = format!("the server sent WAL from {start}, expected it from {}", self.next);
                    return Ok(Some(End::Garbled(Error::new(Kind::Corrupt, text))));
                }
                self.next = start + bytes.len() as u64;
                let Some(fresh) = self.pipeline.fresh(start, bytes) else { return Ok(Some(End::OtherBytes)) };
                self.recognise();
                self.pipeline.ledger.server_holds(wal_end.max(self.next));
                self.heart.data(wal_end, sent_at, self.heard);
                if !fresh.is_empty() {
                    self.pipeline.take(fresh);
                }
                Ok(None)
            }
            StreamEvent::Keepalive { wal_end, sent_at, reply_requested } => {
                self.recognise();
                self.pipeline.ledger.server_holds(wal_end);
                if !reply_requested {
                    self.heart.answer(wal_end, sent_at, self.pipeline.received(), self.heard);
                    self.beat();
                    return Ok(None);
                }
                self.heart.heard(sent_at, self.heard);
                self.ping = Some(wal_end);
                self.leave_by.get_or_insert_with(|| Instant::now() + self.options.shutdown_grace);
                self.pipeline.flush_all();
                self.answer().await
            }
            StreamEvent::EndOfTimeline { next, switch_point } => Ok(Some(End::Timeline { next, switch_point })),
            StreamEvent::Ended { .. } => Ok(Some(End::ServerStopping)),
        }
    }

    /// A server that sends at all still has what it was asked for; once it has sent the last bytes that were received, they are its own.
    fn recognise(&mut self) {
        let proven = self.proof.is_none_or(|end| self.pipeline.ledger.verified() > end);
        if proven && self.next >= self.pipeline.received() {
            self.pipeline.ledger.trust();
        }
    }

    /// Something inside moved: answer the ping if that is possible now, else report what is new.
    async fn moved(&mut self) -> Result<Option<End>> {
        if self.proof.is_some() {
            self.recognise();
        }
        if self.ping.is_some() {
            self.pipeline.flush_all();
            if let Some(end) = self.answer().await? {
                return Ok(Some(end));
            }
        }
        // What is only written is told at once where a commit may wait for it.
        let written = self.server.synchronous && self.pipeline.ledger.has_written();
        if written || self.pipeline.ledger.has_news() {
            let status = self.pipeline.ledger.ordinary();
            if let Some(end) = self.report(status).await? {
                return Ok(Some(end));
            }
        }
        Ok(self.is_far_enough().then_some(End::Stop))
    }

    /// Whether everything that the caller asked for is durable and this server's. What was received that far is not left to wait for the next flush.
    fn is_far_enough(&mut self) -> bool {
        let Some(until) = self.options.until.filter(|until| self.pipeline.received() >= *until) else { return false };
        let durable = self.pipeline.ledger.answer() >= until;
        if !durable {
            self.pipeline.flush_all();
        }
        durable
    }

    /// What is stored already is compared at its end, which may not come before the server has something to write. Until then nobody knows whether it is this
    /// server's, which may have been put back to a snapshot: that is no success.
    fn demand_comparison(&mut self) -> Result<()> {
        let Some(until) = self.options.until.filter(|until| self.pipeline.received() >= *until) else { return Ok(()) };
        if !self.pipeline.waits_for_comparison() {
            self.compared_by = None;
            return Ok(());
        }
        if *self.compared_by.get_or_insert_with(|| Instant::now() + COMPARED) > Instant::now() {
            return Ok(());
        }
        let text = format!(
            "what is stored around {until} goes on past {}, where this server's WAL ends, so it cannot be compared with what this server has",
            self.pipeline.received()
        );
        Err(Error::new(Kind::Server, text).hint(
            "Run it again once the server has gone on to its next segment: SELECT pg_switch_wal() there. If it was restored from a snapshot, that tells.",
        ))
    }

    /// The answer to a ping goes out when it says what the server waits for: every byte it has sent. An earlier answer would be met by the next ping at once.
    async fn answer(&mut self) -> Result<Option<End>> {
        let Some(wal_end) = self.ping else { return Ok(None) };
        if self.pipeline.ledger.answer() < wal_end {
            return Ok(None);
        }
        self.ping = None;
        if !self.stopping {
            self.leave_by = None;
        }
        let status = self.pipeline.ledger.complete();
        self.report(status).await
    }

    async fn tick(&mut self) -> Result<Option<End>> {
        if self.pipeline.is_stalled(self.options.stall_timeout) {
            return Ok(Some(End::Stalled));
        }
        if self.is_in_the_way() {
            return self.leave().await;
        }
        let (timeline, end) = (self.pipeline.timeline(), self.pipeline.ledger.server_end());
        // It has caught up.
        self.scout.take_if(|scout| (scout.wanted.timeline, scout.wanted.upto) <= (timeline, end));
        if !self.pipeline.has_room() {
            // Nothing is read while the queue is full, so silence says nothing.
            self.heard = Instant::now();
        }
        let silent = self.heard.elapsed();
        if silent >= SILENCE {
            let text = format!("the server has been silent for {} s", silent.as_secs());
            return Ok(Some(End::Lost(Error::new(Kind::Server, text).transient())));
        }
        let mut status = self.pipeline.ledger.ordinary();
        status.reply_requested = self.heart.ask(Instant::now(), silent >= ASK);
        if let Some(end) = self.report(status).await? {
            return Ok(Some(end));
        }
        // What made it far enough may have moved while there was no connection.
        if self.is_far_enough() {
            return Ok(Some(End::Stop));
        }
        self.demand_comparison().map(|()| None)
    }

    /// Whether a server that lets nobody in any more has been ahead for the whole grace, by more than it should wait for at its end. While its clients are
    /// still there (a smart stop), their commits may need this stream; one that keeps up is not in the way.
    fn is_in_the_way(&mut self) -> bool {
        let ledger = &self.pipeline.ledger;
        let far = ledger.server_end().0.saturating_sub(ledger.answer().0) > self.pipeline.segment_size().bytes();
        if self.closed && far {
            let since = *self.far_ahead.get_or_insert_with(Instant::now);
            return since.elapsed() >= self.options.shutdown_grace;
        }
        self.far_ahead = None;
        false
    }

    /// Says how far the archive is complete, and has a heartbeat stored where that is proven well enough. A standby proves nothing of its primary.
    fn beat(&mut self) {
        let durable = self.pipeline.ledger.answer();
        let (complete, clock) = (self.heart.durable(durable), self.heart.clock());
        let complete = complete.filter(|beat| self.pipeline.speaks_for_all(beat.lsn));
        self.observer.stats().set_heart(complete.map(|beat| (beat.lsn.0, beat.time.0)), clock.map(|(t, at)| (t.0, at)));
        if !self.server.standby
            && let Some(beat) = self.heart.proven()
        {
            self.pipeline.proven(beat);
        }
    }

    fn sign(&mut self, sign: Sign) -> Option<End> {
        // What a second connection tells after all, it was let in for: another server had refused it.
        self.closed = sign == Sign::Closed;
        match sign {
            Sign::Stopping => {
                self.stopping = true;
                self.leave_by.get_or_insert_with(|| Instant::now() + self.options.shutdown_grace);
                self.pipeline.flush_all();
            }
            Sign::Synchronous(listed) if listed != self.server.synchronous => {
                self.server.synchronous = listed;
                self.pipeline.set_flush_interval(self.options.interval(listed));
                self.observer.tell(ReceiveEvent::Synchronous(listed));
            }
            // 16 and 17 stream on, and hold nothing back. What is to be done about it the next look at the slot decides.
            Sign::Slot(outlook) if outlook.row.is_lost() && self.server.streams_on_lost_slots() => {
                let name = self.options.slot.as_deref().unwrap_or_default();
                return Some(End::Lost(slot::changed(name, "it is lost")));
            }
            Sign::Closed | Sign::Synchronous(_) | Sign::Slot(_) => {}
        }
        None
    }

    /// The grace is over: the last word, and away, whatever is left behind.
    async fn leave(&mut self) -> Result<Option<End>> {
        let status = self.pipeline.ledger.complete();
        self.report(status).await?;
        Ok(Some(End::ServerStopping))
    }

    async fn report(&mut self, status: Status) -> Result<Option<End>> {
        self.beat();
        match self.send(status).await {
            Ok(()) => {
                self.pipeline.reported();
                Ok(None)
            }
            Err(error) => lost(error).map(Some),
        }
    }

    async fn send(&mut self, status: Status) -> Result<()> {
        self.server.stream.send_status(status, SEND_LIMIT).await
    }
}

/// A better host, once there is one.
async fn found(scout: &mut Option<Scout>) -> Conninfo {
    match scout {
        Some(scout) => scout.found().await,
        None => std::future::pending().await,
    }
}

/// An error that may pass ends the connection, and so does what makes no sense; any other the run.
fn lost(error: Error) -> Result<End> {
    match error.kind() {
        _ if error.is_transient() => Ok(End::Lost(error)),
        Kind::Corrupt => Ok(End::Garbled(error)),
        _ => Err(error),
    }
}

/// Returns once the caller asks for a stop; never if nobody can ask any more.
pub async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
