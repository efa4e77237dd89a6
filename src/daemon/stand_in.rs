//! WAL for a backup that no receiver follows: the ordinary receiver runs in this process, until the backup has what it needs.
//!
//! Where the configured slot exists and nobody streams on it, that slot is used, so that the archive goes on without a hole. Where there is none, a temporary
//! slot holds the WAL back; it goes with its connection. A slot that lasts is made only where the receiver would make it too, which otherwise could not any more:
//! on the new primary of a failover, of whose timeline nothing is stored yet. A receiver that is there is left to its work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::archive::Archive;
use crate::archive::same::{Agreement, Stretch};
use crate::backup::{Attendance, Moment, WalWatch};
use crate::error::{Error, Kind, Result};
use crate::net::Conninfo;
use crate::pg::{Lsn, TimelineId};
use crate::receive::sentinel::Second;
use crate::receive::{AfterFailover, Observer, OnGap, Place, ReceiveEvent, ReceiveOptions, ReceiveReport, receive};
use crate::seal::content::event::Hole;

/// How often the server is asked who streams: while something is missing, and otherwise.
const LOOK: Duration = Duration::from_secs(3);
const LOOK_ROUTINE: Duration = Duration::from_secs(20);
/// How long a receiver may take to stream before a backup begins.
const READY: Duration = Duration::from_secs(60);

/// What a stand-in tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nobody streams: this process does from now on.
    Serving { slot: String, temporary: bool, why: String },
    /// What its receiver tells.
    Receiver(ReceiveEvent),
}

type Tell = dyn Fn(Told) + Send + Sync;

/// What it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The slot that was streamed on, and whether it was a temporary one; `None`: nothing had to be done.
    pub slot: Option<(String, bool)>,
    /// Holes that were recorded on the way: before the backup, which is complete behind them.
    pub holes: Vec<Hole>,
}

/// Who streams, as far as the server tells.
enum Seen {
    /// The server's process that does.
    Somebody(u32),
    /// The slot is there, and free.
    Nobody,
    /// There is no slot to use, and nobody streams without one.
    NoSlot(String),
    /// Without SQL not all can be seen.
    Unclear,
}

/// How to stream.
enum Way {
    /// On the configured slot, which is there and free.
    Slot(String),
    /// On the configured slot, if it is there.
    Unsure(String),
    /// On the configured slot, which the new primary of a failover has not got yet: it is made.
    Anew(String),
    /// On a slot of our own, and why.
    Temporary(String),
}

/// Streams where nobody else does. The archive tells how far WAL is stored, whoever stored it.
pub struct StandIn {
    archive: Archive,
    options: ReceiveOptions,
    /// What the receiver does where the new primary of a failover has no slot.
    after_failover: AfterFailover,
    place: Place,
    tell: Arc<Tell>,
    stop: watch::Sender<bool>,
    work: tokio::sync::Mutex<Work>,
    notes: Arc<Mutex<Notes>>,
    /// The receiver streams, or somebody else has the slot.
    ready: Arc<watch::Sender<bool>>,
}

/// The receiver, once there is one.
#[derive(Default)]
struct Work {
    job: Option<JoinHandle<Result<ReceiveReport>>>,
    looked: Option<Instant>,
    remark: Option<String>,
    /// It was begun without knowing whether the slot is there, or may be made.
    unsure: bool,
    /// The way to see who has the slot: the first look is waited for, so it is opened before that.
    second: Option<JoinHandle<Result<Second>>>,
}

/// What the receiver told.
#[derive(Default)]
struct Notes {
    service: Service,
    /// Why it does not stream at present.
    trouble: Option<String>,
}

impl StandIn {
    /// `options` are those of the cluster's ordinary receiver. Connects to the server at once, where a slot is to be looked at; to be called within a runtime.
    pub fn new(
        archive: Archive,
        options: ReceiveOptions,
        place: Place,
        tell: impl Fn(Told) + Send + Sync + 'static,
    ) -> StandIn {
        let (stop, _) = watch::channel(false);
        let after_failover = options.after_failover;
        // A slot that lasts is not for a backup to make, but for one case.
        let options = ReceiveOptions { after_failover: AfterFailover::Stop, until: None, ..options };
        let conninfo = options.conninfo.clone();
        let second = options.slot.as_ref().map(|_| tokio::spawn(async move { Second::open(&conninfo).await }));
        let (work, notes) = (tokio::sync::Mutex::new(Work { second, ..Work::default() }), Arc::default());
        let ready = Arc::new(watch::Sender::new(false));
        StandIn { archive, options, after_failover, place, tell: Arc::new(tell), stop, work, notes, ready }
    }

    /// Ends the receiver, if there is one, as a stop of `receive` does: what it has becomes durable and is reported, within the grace.
    pub async fn end(&self) -> Service {
        let mut work = self.work.lock().await;
        self.stop.send_replace(true);
        if let Some(job) = work.job.take() {
            match job.await {
                Ok(Ok(report)) if report.behind > 0 => {
                    tracing::info!("{} bytes of WAL that the server had were left to the next receiver", report.behind);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!("the receiver of the backup's WAL has ended: {error}"),
                Err(died) => tracing::warn!("the receiver of the backup's WAL has died: {died}"),
            }
        }
        self.notes().service.clone()
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_after(&self, server: &Conninfo, timeline: TimelineId, moment: Moment) -> Result<Attendance> {
        let mut work = self.work.lock().await;
        self.demand_alive(&mut work, server, timeline).await?;
        if work.job.is_some() {
            return Ok(Attendance { own: true, remark: self.notes().trouble.clone() });
        }
        let pause = if moment == Moment::Lacking { LOOK } else { LOOK_ROUTINE };
        if work.looked.is_some_and(|at| at.elapsed() < pause) {
            return Ok(Attendance { own: false, remark: work.remark.clone() });
        }
        let second = work.second.take();
        let seen = self.look(server, second).await;
        work.looked = Some(Instant::now());
        let way = match (seen, &self.options.slot) {
            (Seen::Somebody(pid), name) => {
                let on = name.as_ref().map_or(String::new(), |name| format!(" on slot {name:?}"));
                work.remark =
                    Some(format!("process {pid} of the server streams{on}, not into this archive or too slowly"));
                return Ok(Attendance { own: false, remark: work.remark.clone() });
            }
            (Seen::Unclear, Some(_)) if moment != Moment::Lacking => return Ok(Attendance::default()),
            (Seen::Unclear, Some(name)) => {
                work.unsure = true;
                Way::Unsure(name.clone())
            }
            (Seen::Nobody, Some(name)) => Way::Slot(name.clone()),
            (Seen::NoSlot(_), Some(name)) if moment == Moment::Before && self.is_after_failover(timeline).await? => {
                work.unsure = true;
                Way::Anew(name.clone())
            }
            (Seen::NoSlot(why), _) => Way::Temporary(why),
            (Seen::Nobody | Seen::Unclear, None) => Way::Temporary("no slot is configured".to_owned()),
        };
        work.job = Some(self.start(server, timeline, way)?);
        if moment == Moment::Before {
            self.until_ready(&mut work, server, timeline).await?;
        }
        Ok(Attendance { own: true, remark: None })
    }

    /// A receiver that has ended is an error, but for one that did not know whether it could use the slot: then a temporary one has to do.
    async fn demand_alive(&self, work: &mut Work, server: &Conninfo, timeline: TimelineId) -> Result<()> {
        let Some(job) = work.job.take_if(|job| job.is_finished()) else { return Ok(()) };
        let error = ended(job).await;
        if !std::mem::take(&mut work.unsure) || error.kind() != Kind::Slot {
            return Err(error);
        }
        work.job = Some(self.start(server, timeline, Way::Temporary(error.to_string()))?);
        Ok(())
    }

    /// The timeline began with a failover and nothing of it is stored yet. Once something is, a receiver takes a slot that is not there for one that was dropped.
    async fn is_after_failover(&self, timeline: TimelineId) -> Result<bool> {
        if self.after_failover != AfterFailover::Create {
            return Ok(false);
        }
        let stored = self.archive.newest(|_| Lsn(u64::MAX)).await?.timelines;
        Ok(!stored.contains_key(&timeline) && stored.keys().any(|older| *older < timeline))
    }

    /// A backup that begins before its WAL is held back could lose it to its own checkpoint.
    async fn until_ready(&self, work: &mut Work, server: &Conninfo, timeline: TimelineId) -> Result<()> {
        let mut ready = self.ready.subscribe();
        let deadline = Instant::now() + READY;
        while !*ready.borrow_and_update() {
            self.demand_alive(work, server, timeline).await?;
            if Instant::now() >= deadline {
                let trouble = self.notes().trouble.clone().unwrap_or_else(|| "the server does not answer".to_owned());
                return Err(Error::new(Kind::Server, format!("the WAL of the backup cannot be streamed: {trouble}"))
                    .hint("See what `walrecv check` says of the server, and take the backup again."));
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), ready.changed()).await;
        }
        Ok(())
    }

    /// Who streams now. What cannot be found out is no reason to end a backup.
    async fn look(&self, server: &Conninfo, second: Option<JoinHandle<Result<Second>>>) -> Seen {
        let found = tokio::time::timeout(LOOK * 3, async {
            match &self.options.slot {
                Some(name) => look_at_slot(&self.options.conninfo, name, second).await,
                None => look_at_walsenders(&self.archive, server, self.options.conninfo.application_name()).await,
            }
        });
        match found.await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => {
                tracing::warn!("cannot see who streams: {error}");
                Seen::Unclear
            }
            Err(_) => Seen::Unclear,
        }
    }

    fn start(&self, server: &Conninfo, timeline: TimelineId, way: Way) -> Result<JoinHandle<Result<ReceiveReport>>> {
        // A server that is promoted meanwhile ends its backup, and its new timeline may be nobody's: a newer one in the archive would be what is restored.
        let mut options = ReceiveOptions { newest: Some(timeline), ..self.options.clone() };
        let (slot, temporary, why) = match way {
            Way::Slot(name) => (name, false, "nobody streams on it".to_owned()),
            Way::Unsure(name) => {
                // Where it does not exist it must not come into being.
                options.on_gap = OnGap::Stop;
                (name, false, "the archive does not move".to_owned())
            }
            Way::Anew(name) => {
                options.after_failover = self.after_failover;
                (name, false, format!("timeline {timeline} is new, and its primary has no slot"))
            }
            Way::Temporary(why) => {
                // It must hold back what this very server needs for its backup, and is worth nothing to anybody later.
                options.conninfo = server.clone();
                options.give_up_at = None;
                (temporary_name()?, true, why)
            }
        };
        (options.slot, options.temporary_slot) = (Some(slot.clone()), temporary);
        self.notes().service.slot = Some((slot.clone(), temporary));
        (self.tell)(Told::Serving { slot, temporary, why });
        let (tell, notes, ready) = (self.tell.clone(), self.notes.clone(), self.ready.clone());
        let observer = Observer::new(move |event| {
            if matches!(event, ReceiveEvent::Streaming { .. } | ReceiveEvent::StandingBy { .. }) {
                ready.send_replace(true);
            }
            notes.lock().unwrap_or_else(PoisonError::into_inner).see(&event);
            tell(Told::Receiver(event));
        });
        // On a task of its own: a backup that computes must not hold up what a commit may wait for.
        Ok(tokio::spawn(receive(options, self.place.clone(), observer, self.stop.subscribe())))
    }
}

impl Notes {
    fn see(&mut self, event: &ReceiveEvent) {
        match event {
            ReceiveEvent::Streaming { .. } | ReceiveEvent::Resumed => self.trouble = None,
            ReceiveEvent::Reconnecting { why, .. } => self.trouble = Some(why.clone()),
            ReceiveEvent::StandingBy { slot, holder, .. } => {
                let holder = holder.map_or(String::new(), |pid| format!(" by process {pid} of the server"));
                self.trouble = Some(format!(
                    "slot {slot:?} is in use{holder}, which does not stream into this archive, or too slowly"
                ));
            }
            ReceiveEvent::Stalled { .. } => self.trouble = Some("the repository takes nothing".to_owned()),
            ReceiveEvent::CorruptWal { problem } => self.trouble = Some(problem.clone()),
            ReceiveEvent::Hole(hole) => self.service.holes.push(hole.clone()),
            _ => {}
        }
    }
}

impl WalWatch for StandIn {
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        WalWatch::durable_end(&self.archive, timeline, from)
    }

    fn agrees<'a>(&'a self, sent: &'a Stretch, until: Lsn) -> BoxFuture<'a, Result<Agreement>> {
        WalWatch::agrees(&self.archive, sent, until)
    }

    fn attend<'a>(
        &'a self,
        server: &'a Conninfo,
        timeline: TimelineId,
        moment: Moment,
    ) -> BoxFuture<'a, Result<Attendance>> {
        Box::pin(self.look_after(server, timeline, moment))
    }
}

/// Why a receiver ended that nobody asked to.
async fn ended(job: JoinHandle<Result<ReceiveReport>>) -> Error {
    let what = "the WAL of the backup cannot be streamed";
    match job.await {
        Ok(Err(error)) => error.context(what),
        Ok(Ok(_)) => Error::new(Kind::Failed, format!("{what}: its receiver has stopped")),
        Err(died) => Error::new(Kind::Failed, format!("{what}: its receiver has died")).caused_by(died),
    }
}

/// `second` is on its way there, perhaps.
async fn look_at_slot(info: &Conninfo, name: &str, second: Option<JoinHandle<Result<Second>>>) -> Result<Seen> {
    let died = |e| Error::new(Kind::Failed, "a connection to the server died").caused_by(e);
    let mut second = match second {
        Some(opening) => opening.await.map_err(died)??,
        None => Second::open(info).await?,
    };
    let sql = second.sql;
    let state = second.state(name).await;
    second.connection.close().await;
    let row = match state {
        Ok(row) => row,
        // 13 and 14 without SQL show nothing of a slot.
        Err(error) if !sql && !error.is_transient() => return Ok(Seen::Unclear),
        Err(error) => return Err(error),
    };
    Ok(match row {
        None => Seen::NoSlot(format!("slot {name:?} does not exist")),
        Some(row) => match row.active_pid {
            Some(pid) => Seen::Somebody(pid),
            None if sql => Seen::Nobody,
            None => Seen::Unclear,
        },
    })
}

/// Where no slot is configured, a receiver is known by its name, and one of this archive by how far that reaches: what a receiver has reported as flushed is
/// durable in its archive. One that reported more than is stored here fills another.
async fn look_at_walsenders(archive: &Archive, server: &Conninfo, name: &str) -> Result<Seen> {
    let mut second = Second::open(server).await?;
    if !second.sql {
        second.connection.close().await;
        return Ok(Seen::Unclear);
    }
    let sql = format!(
        "SELECT pid, flush_lsn FROM pg_catalog.pg_stat_replication WHERE application_name = '{}' AND state IN ('streaming', 'catchup')",
        name.replace('\'', "''")
    );
    let rows = second.connection.query(&sql).await;
    let timeline = second.connection.identify_system().await.map(|identity| identity.timeline);
    second.connection.close().await;
    let rows = rows?;
    let cell = |row: &[Option<String>], at: usize| row.get(at).cloned().flatten();
    let streaming: Vec<(u32, Option<Lsn>)> = rows
        .iter()
        .filter_map(|row| Some((cell(row, 0)?.parse().ok()?, cell(row, 1).and_then(|lsn| lsn.parse().ok()))))
        .collect();
    if streaming.is_empty() {
        return Ok(Seen::NoSlot("no slot is configured, and nobody streams".to_owned()));
    }
    // Asked after the server: what had been reported by then is stored by now.
    let end = archive.newest_end(timeline?).await?.map(|(_, end)| end);
    Ok(fills(&streaming, end).map_or_else(
        || Seen::NoSlot("no slot is configured, and whoever streams fills another archive".to_owned()),
        Seen::Somebody,
    ))
}

/// The first that may fill an archive which ends there. What it has flushed cannot always be seen.
fn fills(streaming: &[(u32, Option<Lsn>)], end: Option<Lsn>) -> Option<u32> {
    let may = |flushed: Option<Lsn>| flushed.is_none_or(|flushed| end.is_some_and(|end| flushed <= end));
    streaming.iter().find(|(_, flushed)| may(*flushed)).map(|(pid, _)| *pid)
}

/// Of this run alone.
fn temporary_name() -> Result<String> {
    let random = getrandom::u32().map_err(|e| Error::new(Kind::Failed, "no random numbers").caused_by(e))?;
    Ok(format!("walrecv_backup_{}_{random:08x}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_of_this_archive_has_reported_no_more_than_is_stored_here() {
        let of = |flushed: &[Option<u64>], end: Option<u64>| {
            let streaming: Vec<_> = (1..).zip(flushed).map(|(pid, flushed)| (pid, flushed.map(Lsn))).collect();
            fills(&streaming, end.map(Lsn))
        };
        assert_eq!(of(&[Some(100)], Some(100)), Some(1));
        assert_eq!(of(&[Some(90)], Some(100)), Some(1), "what was stored since it was asked");
        assert_eq!(of(&[Some(101)], Some(100)), None, "it is stored elsewhere");
        assert_eq!(of(&[Some(1)], None), None, "nothing is stored here");
        assert_eq!(of(&[Some(101), Some(100)], Some(100)), Some(2), "one of two");
        assert_eq!(of(&[None], None), Some(1), "not to be seen");
    }
}
