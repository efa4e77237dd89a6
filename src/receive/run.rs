//! One run: connect, decide where to begin, stream, follow the timeline, and come back after every loss that may pass.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::again::received_again;
use super::begin::MadeSlot;
use super::check::Refused;
use super::follow::Followed;
use super::index::Index;
use super::lag::Lagging;
use super::lasting::{Lasting, Missing};
use super::leave::Halt;
use super::observe::{Observer, ReceiveEvent};
use super::pipeline::Pipeline;
use super::resume::SlotPosition;
use super::sentinel::{Sentinel, Sign};
use super::server::{self, Access, Server, Unfit, Waiting, answered};
use super::slot;
use super::stream::{End, Stream, asked_to_stop};
use super::{Place, ReceiveOptions, ReceiveReport};
use crate::archive::Archive;
use crate::backoff::Backoff;
use crate::disk::desk::Desk;
use crate::error::{Error, Kind, Result};
use crate::net::Started;
use crate::pg::{Lsn, TimelineId};

/// A stream that lasted so long was a good one: the next reconnect is immediate.
const STABLE: Duration = Duration::from_secs(10);
/// After an attempt in vain, where it is watched when the next one is worth it.
const AFTER_VIGIL: Duration = Duration::from_millis(200);

/// What comes after a connection.
pub(super) enum Next {
    /// Connect again, with the same pipeline where there is one.
    Again(Option<Error>),
    /// Wait for the repository first.
    AwaitRepository,
    Stop,
}

/// The state of a run between connections.
pub struct Run {
    pub(super) options: ReceiveOptions,
    pub(super) place: Place,
    /// Whose task this is, if it is one's.
    pub(super) desk: Option<Desk>,
    pub(super) observer: Observer,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) began: SystemTime,
    pub(super) archive: Option<Archive>,
    /// The tasks beside the stream, from the first answer of a server on.
    pub(super) index: Option<Index>,
    pub(super) pipeline: Option<Pipeline>,
    /// Everything up to there was received, and this server has let go of the last bytes of it that lie below the segment of its slot.
    let_go: Option<Lsn>,
    /// A run that began there saw the end of a record whose head was never checked: the next one begins further down.
    pub(super) begin_below: Option<(TimelineId, Lsn)>,
    /// The server has let go of that head: from there on it is taken as it is.
    pub(super) headless: Option<(TimelineId, Lsn)>,
    /// Where WAL was asked for that the server had let go of.
    gone_at: Option<(TimelineId, Lsn)>,
    /// The pipeline began at the first only to compare what is stored up to the second, and nothing is stored behind that.
    pub(super) joins: Option<(Lsn, Lsn)>,
    /// A server that has let go of what is to be compared before a border, and is not past the hole that is left behind it.
    pub(super) apart: Option<(String, Lsn)>,
    /// What this run stored.
    pub(super) lasting: Lasting,
    /// What the catalog knows of and the repository has not, as far as the end that was acknowledged last.
    pub(super) put_back: Option<Missing>,
    pub(super) followed: Followed,
    /// Where WAL was refused the last time.
    pub(super) refused_at: Option<(TimelineId, Lsn)>,
    /// What had been received when a message made no sense the last time, and when that was.
    pub(super) garbled: Option<(Option<Lsn>, Instant)>,
    pub(super) backoff: Backoff,
    /// Another receiver has the slot, and that was told.
    pub(super) waiting: Waiting,
    /// The slot was made by this run and nothing was streamed on it yet.
    pub(super) made_slot: Option<MadeSlot>,
    /// Where the slot's position is not known: the end of the archive, below which a start may be too low for what the server still has.
    pub(super) climb_to: Option<Lsn>,
    /// The second connection of a server that was left, while nothing can be put.
    pub(super) watch: Option<Sentinel>,
    /// When the forecast for the slot was last told as a warning.
    pub(super) warned: Option<Instant>,
    /// Since when nothing can be stored, and what was durable then.
    pub(super) away: Option<(Instant, Option<Lsn>)>,
    /// At most one: the slot is being dropped and made anew.
    pub(super) giving_up: JoinSet<()>,
    /// Held from before a slot is dropped until it is made anew: see [`Halt`].
    pub(super) renewing: Arc<Mutex<()>>,
    /// Commits waited for this receiver when that was last known.
    pub(super) synchronous: bool,
    /// What its end means for commits was told.
    pub(super) said_who_waits: bool,
    /// A stop waits no longer than that.
    pub(super) stop_by: Option<Instant>,
    /// Hosts that were passed over since they are behind.
    pub(super) lagging: Lagging,
    /// For the waits of a receiver that may not ask whether the slot is free.
    patience: Backoff,
}

impl Run {
    pub fn new(
        options: ReceiveOptions,
        place: Place,
        observer: Observer,
        stop: watch::Receiver<bool>,
        desk: Option<Desk>,
    ) -> Result<Run> {
        let seed = u64::from_le_bytes(super::salt::random()?);
        Ok(Run {
            waiting: Waiting::new(&options),
            options,
            place,
            desk,
            observer,
            stop,
            began: SystemTime::now(),
            archive: None,
            index: None,
            pipeline: None,
            let_go: None,
            begin_below: None,
            headless: None,
            gone_at: None,
            joins: None,
            apart: None,
            lasting: Lasting::default(),
            put_back: None,
            followed: Followed::default(),
            refused_at: None,
            garbled: None,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(5), seed),
            made_slot: None,
            climb_to: None,
            watch: None,
            warned: None,
            away: None,
            giving_up: JoinSet::new(),
            renewing: Arc::default(),
            synchronous: false,
            said_who_waits: false,
            stop_by: None,
            lagging: Lagging::default(),
            patience: patience(seed),
        })
    }

    /// Runs until the caller asks for a stop, or something will not pass by itself.
    pub async fn run(mut self) -> Result<ReceiveReport> {
        match self.go_on().await {
            Ok(()) => self.stopped().await,
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Until the caller asks for a stop.
    async fn go_on(&mut self) -> Result<()> {
        // Nobody knows whether a server will ever answer.
        if !self.recover_spool().await? {
            return Ok(());
        }
        loop {
            // What a pipeline cannot go on with is received again.
            self.pipeline.take_if(|pipeline| pipeline.is_lost());
            let served = match self.connect().await {
                Ok(Some(server)) => self.serve(server).await,
                Ok(None) => Ok(Next::Stop),
                Err(error) => Err(error),
            };
            let next = match served {
                // One that lags is better than one that is not there, or cannot be used.
                Err(error) if is_of_the_server(&error) && self.lagging.resign(&error) => {
                    Next::Again(Some(error.transient()))
                }
                Err(error) if error.is_transient() => Next::Again(Some(error)),
                other => other?,
            };
            let waited = match next {
                Next::Stop => return Ok(()),
                Next::Again(why) => self.wait(why).await,
                Next::AwaitRepository => self.await_repository().await,
            };
            match waited {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.is_transient() => self.observer.warn(error.to_string()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects; `None` when asked to stop meanwhile. What was received is kept and put all the while.
    async fn connect(&mut self) -> Result<Option<Server>> {
        self.watch = None;
        let (slot, temporary) = (self.options.slot.as_deref(), self.options.temporary_slot);
        let info = self.lagging.hosts(&self.options.conninfo);
        let gives_up = self.options.give_up_at.is_some();
        let access = Access { info, slot, temporary, gives_up, observer: &self.observer };
        let (giving_up, waiting) = (&mut self.giving_up, &mut self.waiting);
        let connecting = async {
            while giving_up.join_next().await.is_some() {}
            server::connect(&access, waiting).await
        };
        let server = tokio::select! {
            server = connecting => server?,
            refused = tend(&mut self.pipeline) => {
                let goes_on = self.refused_meanwhile(refused?).await?;
                return if goes_on { Err(received_again()) } else { Ok(None) };
            }
            () = asked_to_stop(&mut self.stop) => return Ok(None),
        };
        if temporary {
            self.made_slot = Some(MadeSlot::on(&server));
        }
        Ok(Some(server))
    }

    /// Waits before the next attempt; `false` when asked to stop.
    async fn wait(&mut self, why: Option<Error>) -> Result<bool> {
        let delay = if why.as_ref().is_some_and(slot::is_in_use) {
            self.stand_by()?
        } else {
            let delay = self.backoff.next_delay();
            let why = why.map_or_else(|| "the server ended the stream".to_owned(), |error| error.to_string());
            self.observer.stats().reconnects.add(1);
            self.observer.tell(ReceiveEvent::Reconnecting { why, wait_ms: delay.as_millis() as u64 });
            delay
        };
        let until = Instant::now() + delay;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(true),
                refused = tend(&mut self.pipeline) => return self.refused_meanwhile(refused?).await,
                sign = next_sign(&mut self.watch) => self.while_away(sign),
                Some(_) = self.giving_up.join_next() => {}
                () = asked_to_stop(&mut self.stop) => return Ok(false),
            }
        }
    }

    /// The slot was found in use by an attempt to stream, which the server logs as an error: the next attempt waits until where the slot stands makes it worth
    /// its line, or longer each time.
    fn stand_by(&mut self) -> Result<Duration> {
        if let Some(slot) = self.options.slot.clone()
            && self.waiting.goes_on(&slot)?
        {
            // The attempt asked for it before the server refused the slot.
            let synchronous = Some(self.synchronous);
            self.observer.tell(ReceiveEvent::StandingBy { slot, holder: None, synchronous });
        }
        Ok(if self.waiting.vigil.possible { AFTER_VIGIL } else { self.patience.next_delay() })
    }

    /// Waits until something can be put again; `false` when asked to stop.
    async fn await_repository(&mut self) -> Result<bool> {
        let Some(pipeline) = &mut self.pipeline else { return Ok(true) };
        self.observer.stats().stalls.add(1);
        self.observer.tell(ReceiveEvent::Stalled { behind: pipeline.ledger.behind() });
        let before = pipeline.ledger.durable();
        let went = loop {
            let Some(pipeline) = &mut self.pipeline else { break true };
            tokio::select! {
                refused = pipeline.progress(before) => match refused? {
                    Some(refused) => break self.refused_meanwhile(refused).await?,
                    None => break true,
                },
                sign = next_sign(&mut self.watch) => self.while_away(sign),
                Some(_) = self.giving_up.join_next() => {}
                () = asked_to_stop(&mut self.stop) => break false,
            }
        };
        // On a full disk a small object finds room now and then, without anything more that counts.
        if self.pipeline.as_ref().is_some_and(|pipeline| pipeline.ledger.durable() > before) {
            self.observer.tell(ReceiveEvent::Resumed);
        }
        Ok(went)
    }

    /// Everything that is done with one connection, timeline after timeline.
    async fn serve(&mut self, mut server: Server) -> Result<Next> {
        let next = match self.serve_until_error(&mut server).await {
            // Nobody else looks after the slot until the repository is back.
            Ok(Next::AwaitRepository) => Next::AwaitRepository,
            Err(error) if error.is_transient() && error.kind() == Kind::Repository => Next::Again(Some(error)),
            Err(error) if error.is_transient() => return Ok(Next::Again(Some(error))),
            other => return other,
        };
        self.is_away();
        server.sentinel.left();
        self.watch = Some(server.sentinel);
        Ok(next)
    }

    async fn serve_until_error(&mut self, server: &mut Server) -> Result<Next> {
        let mut halt = Halt::of(self);
        let Some(begun) = halt.unless_asked(self.begin_with(server)).await else { return Ok(Next::Stop) };
        let Some(archive) = begun? else { return Ok(Next::AwaitRepository) };
        (self.away, self.let_go) = (None, None);
        loop {
            let end = match self.stream(server).await {
                Err(error) if error.kind() == Kind::Gap && self.asked_to_recognise(server) => continue,
                Err(error) if error.kind() == Kind::Gap && self.begin_below.is_some() => {
                    return self.do_without_head(error).await;
                }
                Err(error) if error.kind() == Kind::Gap && self.is_news() => {
                    // What was received is in no server any more, and what is in memory in no archive.
                    let Some(home) = halt.unless_asked(self.bring_home(false)).await else { return Ok(Next::Stop) };
                    if home? {
                        return self.begin_again(error).await;
                    }
                    self.gone_at = None;
                    return Ok(Next::AwaitRepository);
                }
                // Removed WAL: the only `Kind::Gap` that a server's answer has.
                Err(error) if error.kind() == Kind::Gap => {
                    let gap = self.at_a_gap(&archive, server, error);
                    let Some(stored) = halt.unless_asked(gap).await else { return Ok(Next::Stop) };
                    if !stored? {
                        return Ok(Next::AwaitRepository);
                    }
                    // The archive was looked at just now: a refusal there, too, is no reason to begin again.
                    self.gone_at = self.pipeline.as_ref().map(|p| (p.timeline(), p.received()));
                    continue;
                }
                // Where nothing tells beforehand whether there is a slot (13 and 14 without SQL), the attempt does.
                Err(error) if slot::is_missing(&error) && !self.is_found(server) => {
                    server.unfit = Some(Unfit::Missing(error));
                    let ready = self.ready_slot(&archive, server);
                    let Some(ready) = halt.unless_asked(ready).await else { return Ok(Next::Stop) };
                    ready?;
                    continue;
                }
                // It was there a moment ago: another receiver makes it anew, or has done so.
                Err(error) if slot::is_missing(&error) => {
                    self.made_slot = None;
                    let name = self.options.slot.clone().unwrap_or_default();
                    return Ok(Next::Again(Some(slot::changed(&name, error))));
                }
                end => end?,
            };
            match end {
                End::Timeline { next, switch_point } => {
                    let follow = self.follow(&archive, server, next, switch_point);
                    let Some(followed) = halt.unless_asked(follow).await else { return Ok(Next::Stop) };
                    if !followed? {
                        return Ok(Next::AwaitRepository);
                    }
                }
                End::Refused(refused) => return self.receive_again(&archive, refused).await,
                End::OtherBytes => {
                    let text = "the server has other WAL where this run received some: it was put back to a snapshot, or is another server";
                    return self.begin_again(Error::new(Kind::Server, text).transient()).await;
                }
                End::Better(host) => return Ok(self.move_over(server, *host)),
                End::Lost(error) => return Ok(Next::Again(Some(error))),
                End::Garbled(error) => return self.garbled(error),
                End::ServerStopping => return Ok(Next::Again(None)),
                End::Stalled => return Ok(Next::AwaitRepository),
                End::Stop => return self.farewell(server).await,
            }
        }
    }

    /// Whether the slot was there when it was looked at, or was made since.
    fn is_found(&self, server: &Server) -> bool {
        server.slot != SlotPosition::Unknown || self.made_slot.is_some()
    }

    /// Whether WAL was asked for that was received already, only to recognise the server by it. It is not asked for that again.
    fn asked_to_recognise(&mut self, server: &Server) -> bool {
        let Some(pipeline) = &self.pipeline else { return false };
        let more = pipeline.resume_at(Lsn::INVALID) < pipeline.resume_at(floor(server, pipeline));
        let received = pipeline.received();
        more && self.let_go.replace(received) != Some(received)
    }

    /// Whether another look at the archive may show a better place than the one that was just asked for: another receiver may have come further meanwhile.
    fn is_news(&mut self) -> bool {
        let asked = self.pipeline.as_ref().map(|p| (p.timeline(), p.received()));
        let only_compares = self.joins.map(|(from, _)| from) == asked.map(|(_, from)| from);
        !only_compares
            && self.climb_to.is_none()
            && asked.is_some()
            && std::mem::replace(&mut self.gone_at, asked) != asked
    }

    /// All that has to be known and stored before the first byte is asked for; `None` where nothing can be. What it waits for, a stop does not.
    async fn begin_with(&mut self, server: &mut Server) -> Result<Option<Archive>> {
        let archive = self.archive(server).await?;
        self.demand_known(server, server.identity.timeline).await?;
        self.demand_newest(&archive, server).await?;
        self.followed.store_all(&archive, &self.place.writer, server, &self.observer).await?;
        self.ready_slot(&archive, server).await?;
        Ok(self.continue_or_begin(&archive, server).await?.then_some(archive))
    }

    /// The part of the repository that this server's WAL belongs to. A cluster's name stands for one system and segment size.
    async fn archive(&mut self, server: &Server) -> Result<Archive> {
        let (system, segment_size) = (server.identity.system, server.segment_size);
        if let Some(archive) = &self.archive {
            if (archive.names.system, archive.names.segment_size) == (system, segment_size) {
                return Ok(archive.clone());
            }
            let text = format!(
                "the server is now system {system} with segments of {} bytes, this run began with {}",
                segment_size.bytes(),
                archive.names.root()
            );
            return Err(Error::new(Kind::Diverged, text).hint("Check the connection string: this is another cluster."));
        }
        let archive = self.place.archive(system, segment_size).await?;
        self.archive = Some(archive.clone());
        Ok(archive)
    }

    async fn stream(&mut self, server: &mut Server) -> Result<End> {
        if let Some(name) = self.options.slot.as_deref().filter(|_| self.options.temporary_slot && server.slot_spent) {
            answered("CREATE_REPLICATION_SLOT", server.stream.create_slot(name, true, true)).await?;
        }
        let end = self.stream_once(server).await;
        server.slot_spent = end.is_err();
        end
    }

    async fn stream_once(&mut self, server: &mut Server) -> Result<End> {
        let (scout, lags) = (self.scout(server), self.lags(server));
        let pipeline = self.pipeline.as_mut().ok_or_else(|| Error::new(Kind::Failed, "nothing to stream into"))?;
        let (timeline, slot, temporary) = (pipeline.timeline(), self.options.slot.clone(), self.options.temporary_slot);
        // Whatever the slot holds: where a segment has just begun, what lies above its start is too little to recognise a server by.
        let lowest = if self.let_go == Some(pipeline.received()) { floor(server, pipeline) } else { Lsn::INVALID };
        let from = pipeline.resume_at(lowest);
        // A slot must not be set back to where its server has nothing any more: the first word waits for the server's own.
        pipeline.ledger.doubt();
        let start = async {
            server.look_at_role(self.options.conninfo.application_name()).await?;
            let started = server.stream.start_replication(slot.as_deref(), from, timeline);
            let started = answered("START_REPLICATION", started).await?;
            if let (Started::Streaming, Some(name), false) = (&started, &slot, temporary) {
                server.demand_slot(name).await?;
            }
            Ok(started)
        };
        let started = tokio::select! {
            started = start => started,
            () = asked_to_stop(&mut self.stop) => return Ok(End::Stop),
        };
        self.synchronous = server.synchronous;
        match started? {
            Started::NextTimeline { next, switch_point } => return Ok(End::Timeline { next, switch_point }),
            Started::Streaming => {}
        }
        pipeline.set_flush_interval(self.options.interval(server.synchronous));
        self.waiting = Waiting::new(&self.options);
        self.lagging.settled(lags.is_some());
        self.patience = patience(getrandom::u64().unwrap_or_default());
        self.observer.tell(ReceiveEvent::Streaming { timeline, from, slot, standby: server.standby, lags });
        if server.synchronous {
            self.observer.tell(ReceiveEvent::Synchronous(true));
        }
        let (before, begun) = (pipeline.received(), Instant::now());
        let stream = Stream::new(&self.options, server, pipeline, &self.observer, from, scout);
        let end = stream.run(&mut self.stop).await;
        self.synchronous = server.synchronous;
        if pipeline.received() > before || begun.elapsed() > STABLE {
            self.backoff.reset();
            self.made_slot = None;
            self.climb_to = None;
            self.begin_below = None;
        }
        end
    }
}

/// The next sign of a server that was left; never without one.
async fn next_sign(watch: &mut Option<Sentinel>) -> Sign {
    match watch {
        Some(watch) => watch.newest().await,
        None => std::future::pending().await,
    }
}

/// Another host may not have this problem.
fn is_of_the_server(error: &Error) -> bool {
    matches!(error.kind(), Kind::Server | Kind::Slot | Kind::Version)
}

/// From one second to half a minute, the first time too.
fn patience(seed: u64) -> Backoff {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), seed);
    backoff.next_delay();
    backoff
}

/// Works on with what is in hand, for ever.
async fn tend(pipeline: &mut Option<Pipeline>) -> Result<Refused> {
    match pipeline {
        Some(pipeline) => pipeline.tend().await,
        None => std::future::pending().await,
    }
}

/// The first byte that this server still has, as far as is known: of the segments below its slot's it may have none.
fn floor(server: &Server, pipeline: &Pipeline) -> Lsn {
    let received = pipeline.received();
    let kept = match server.slot {
        SlotPosition::At(lsn) => lsn.min(received),
        _ => received,
    };
    kept.align_down(pipeline.segment_size().bytes())
}
