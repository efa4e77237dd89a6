//! WAL that the archive needs and the server has let go of: a hole. By default it ends the run, in clear words; where the options say so, the hole is
//! recorded and streaming goes on behind it. Nothing that was not stored is ever reported: what is given up is the slot's claim, never the truth.

use std::time::Duration;

use tokio::time::Instant;

use super::forecast::Outlook;
use super::lasting::{AGAIN, Missing};
use super::observe::{Observer, ReceiveEvent};
use super::prepare::Stored;
use super::resume::SlotPosition;
use super::run::Run;
use super::sentinel::{Second, Sign};
use super::server::{Server, answered};
use super::slot::{self, SlotRow};
use super::{GIVE_UP, OnGap, check::Refused, prepare};
use crate::archive::Archive;
use crate::error::{Context, Error, Kind, Result};
use crate::net::Conninfo;
use crate::pg::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};
use crate::seal::content::event::{CorruptWal, Hole, What};

/// How often the forecast for the slot is told as a warning, while nothing is stored.
const WARN: Duration = Duration::from_secs(60);

impl Run {
    /// The server has removed WAL that the archive needs. When this returns, streaming can go on; else the run ends, and the error says what is missing.
    /// `false`: what was received before cannot be stored at present.
    pub(super) async fn at_a_gap(&mut self, archive: &Archive, server: &mut Server, error: Error) -> Result<bool> {
        // What was taken counts.
        if !self.bring_home(false).await? {
            return Ok(false);
        }
        let Some(pipeline) = &mut self.pipeline else { return Err(error) };
        let (timeline, asked) = (pipeline.timeline(), pipeline.received());
        self.pipeline = None;
        let size = archive.names.segment_size;
        let whole = |lsn: Lsn| lsn.align_down(size.bytes());
        if let Some(begun) = self.climb(archive, server, timeline, asked).await? {
            return Ok(begun);
        }
        if server.is_outdated() {
            return Err(self.leave_outdated(server, &error));
        }
        if self.lagging.resign(&error) {
            // It was taken in place of one that lags: that one may still have what is missing here.
            return Err(error.transient());
        }
        if let Some((_, border)) = self.joins.take().filter(|(from, _)| *from == asked) {
            return self.go_on_behind(archive, server, asked, (timeline, border)).await;
        }
        // What lies before its fork is the timeline before.
        let fork = server.history.begin_of(timeline).unwrap_or_default();
        let (from, damage) = stored_end(archive, (timeline, asked), fork).await?;
        let next = reachable(server, (timeline, from), size).await?;
        if next > (timeline, asked) {
            // Up to there everything is stored, if only in tails: nothing is missing where the server still has that segment.
            return self.go_on_behind(archive, server, asked, next).await;
        }
        let lost =
            self.lasting.missing().filter(|lost| lost.timeline == timeline && (lost.from..lost.to).contains(&from));
        let vanished = lost.map(|lost| Missing { from, ..lost }).or_else(|| self.put_back_behind(timeline, from));
        if self.options.on_gap == OnGap::Stop {
            self.unmake_slot(server).await;
            let otherwise = || vanished.map_or_else(|| gone(&error, from), |lost| is_gone(&error, lost));
            return Err(damage.map_or_else(otherwise, |damage| damage.hint(PUT_BACK)));
        }
        let what = damage.map(|damage| damage.to_string()).or_else(|| vanished.map(|lost| lost.to_string()));
        let reason = what.map_or_else(|| error.to_string(), |what| format!("{what}; {error}"));
        let position = match lost {
            // What is stored behind it stays, and the slot holds back what comes next.
            Some(lost) => lost.to,
            None => self.slot_behind(server, asked, from).await?,
        };
        let (to_timeline, to) = (server.history.timeline_at(position), whole(position));
        if (to_timeline, to) <= (timeline, from) {
            return Err(gone(&error, from));
        }
        let hole = Hole { from_timeline: timeline, from, to_timeline, to, reason };
        archive.put_event(&self.place.writer.fresh()?, What::Hole(hole.clone()), GIVE_UP).await?;
        self.observer.tell(ReceiveEvent::Hole(hole));
        self.is_given_up();
        self.begin_at(archive, server, to_timeline, to).await
    }

    /// Where the slot stands that holds back what comes behind WAL that is gone from `asked` on: it is made anew where it does not.
    async fn slot_behind(&mut self, server: &mut Server, asked: Lsn, from: Lsn) -> Result<Lsn> {
        let size = server.segment_size;
        let whole = |lsn: Lsn| lsn.align_down(size.bytes());
        Ok(match (server.slot, self.options.slot.clone()) {
            // It holds WAL back already, from further on.
            (SlotPosition::At(lsn), _) if whole(lsn) > asked || self.options.temporary_slot => lsn,
            (_, None) => server.identity.position,
            (_, Some(_)) if self.options.temporary_slot => server.identity.position,
            (_, Some(name)) => {
                let seen = server.slot;
                let unmoved = |row: &SlotRow, _| match (seen, row.restart_lsn) {
                    (SlotPosition::At(lsn), now) => now == Some(lsn),
                    (_, now) => now.is_none_or(|now| whole(now) <= asked),
                };
                let _midway = self.renewing.clone().lock_owned().await;
                slot::drop_stale(&mut server.stream, &name, unmoved).await?;
                self.make_slot(server, &name, format!("the server has no WAL from {from} on any more")).await?;
                match server.slot {
                    SlotPosition::At(lsn) => lsn,
                    _ => answered("IDENTIFY_SYSTEM", server.stream.identify_system()).await?.position,
                }
            }
        })
    }

    /// A start that was lowered to be safe, where the server has let go of as much, which is stored: the slot stands further up. `None` where it was not.
    async fn climb(
        &mut self,
        archive: &Archive,
        server: &mut Server,
        timeline: TimelineId,
        asked: Lsn,
    ) -> Result<Option<bool>> {
        let size = archive.names.segment_size;
        let whole = |lsn: Lsn| lsn.align_down(size.bytes());
        let segment = SegmentName::new(timeline, size.segment_of(asked), size);
        let unknown = server.slot == SlotPosition::Unknown;
        let Some(end) = self.climb_to.filter(|end| unknown && asked < whole(*end)) else { return Ok(None) };
        if !archive.is_complete(segment).await? {
            return Ok(None);
        }
        let next = (whole(asked) + size.bytes()).min(whole(end));
        let (timeline, next) = reachable(server, (timeline, next), size).await?;
        let begun = match next < end {
            // What is stored from there on is compared.
            true => self.begin_at(archive, server, timeline, next).await,
            false => self.go_on_behind(archive, server, asked, (timeline, next)).await,
        };
        begun.map(Some)
    }

    pub(super) async fn begin_at(
        &mut self,
        archive: &Archive,
        server: &mut Server,
        timeline: TimelineId,
        start: Lsn,
    ) -> Result<bool> {
        let stored = self.stored_at(archive, timeline, start).await?;
        self.begin(archive, server, timeline, start, stored)?;
        Ok(true)
    }

    /// What is stored of a timeline from a place on.
    pub(super) async fn stored_at(&self, archive: &Archive, timeline: TimelineId, start: Lsn) -> Result<Stored> {
        let inventory = archive.newest(|_| start).await?;
        prepare::stored(archive, &inventory, timeline, start, &self.observer).await
    }

    /// A slot that this run made, and does not use, would fill the server's disk.
    pub(super) async fn unmake_slot(&mut self, server: &mut Server) {
        if let (Some(made), Some(name)) = (self.made_slot.take(), self.options.slot.clone())
            && !self.options.temporary_slot
            && made.is_on(server)
            && let SlotPosition::At(lsn) = server.slot
            && let Err(error) = slot::drop_stale(&mut server.stream, &name, |row, _| row.restart_lsn == Some(lsn)).await
        {
            self.observer.warn(format!("slot {name:?} was made and is of no use, but cannot be dropped: {error}"));
        }
    }

    /// Nothing can be stored: the time counts from which on nothing was.
    pub(super) fn is_away(&mut self) {
        let durable = self.durable();
        if self.away.is_none_or(|(_, then)| then != durable) {
            self.away = Some((Instant::now(), durable));
        }
    }

    fn durable(&self) -> Option<Lsn> {
        self.pipeline.as_ref().map(|pipeline| pipeline.ledger.durable())
    }

    /// Something is noticed of a server that was left because nothing can be stored.
    pub(super) fn while_away(&mut self, sign: Sign) {
        if let Some(listed) = self.watch.as_ref().and_then(|watch| watch.synchronous)
            && std::mem::replace(&mut self.synchronous, listed) != listed
        {
            self.observer.tell(ReceiveEvent::Synchronous(listed));
        }
        let (Sign::Slot(outlook), Some(name), Some(watch)) = (sign, &self.options.slot, &self.watch) else { return };
        if self.warned.is_none_or(|at| at.elapsed() >= WARN) {
            self.warned = Some(Instant::now());
            self.observer.warn(format!("nothing is stored: {}", outlook.describe()));
        }
        let durable = self.durable();
        let long = self.away.is_some_and(|(at, then)| then == durable && at.elapsed() >= self.options.stall_timeout);
        let Some(limit) = self.options.give_up_at.filter(|_| long) else { return };
        if outlook.is_at(limit) && self.giving_up.is_empty() {
            let (info, system) = watch.server.clone();
            let (slot, observer) = (name.clone(), self.observer.clone());
            let giving_up = GivingUp { info, system, slot, limit, observer };
            // A task of its own: between dropping the slot and making it nothing may be left off.
            self.giving_up.spawn(giving_up.run());
        }
    }

    /// A service manager that starts the receiver again and again must not hide why it ends: the damage is noted where everybody looks.
    pub(super) async fn note_corrupt(&self, archive: &Archive, timeline: TimelineId, at: Lsn, refused: &Refused) {
        let noted = async {
            let known = archive.corrupt_wal().await?;
            if known.iter().any(|(_, found)| (found.timeline, found.lsn) == (timeline, at)) {
                return Ok(());
            }
            let found = CorruptWal { timeline, lsn: at, problem: refused.to_string() };
            archive.put_event(&self.place.writer.fresh()?, What::CorruptWal(found), GIVE_UP).await
        };
        let late = |_| Err(Error::new(Kind::Repository, "no answer in time"));
        if let Err(error) = tokio::time::timeout(GIVE_UP, noted).await.unwrap_or_else(late) {
            self.observer.warn(format!("the damage cannot be noted in the repository: {error}"));
        }
    }
}

/// Letting a server go, so that it can remove what was held back: its slot is dropped and made anew. What that leaves out shows as a hole when something can
/// be stored again.
struct GivingUp {
    /// The way to the server that was watched, and which one it was: of several hosts another one may answer.
    info: Conninfo,
    system: SystemIdentifier,
    slot: String,
    limit: u64,
    observer: Observer,
}

impl GivingUp {
    async fn run(self) {
        if let Err(error) = self.try_it().await {
            self.observer.warn(format!("too much WAL waits on the slot, and giving it up failed: {error}"));
        }
    }

    async fn try_it(&self) -> Result<()> {
        let mut second = Second::open(&self.info).await?;
        let found = answered("IDENTIFY_SYSTEM", second.connection.identify_system()).await?.system;
        if found != self.system {
            return Err(Error::new(Kind::Diverged, format!("system {found} answers now, expected {}", self.system)));
        }
        // What the sign said may be old: another receiver may be at work, or was.
        let Some(row) = second.state(&self.slot).await? else { return Ok(()) };
        let outlook = Outlook { row, rate: None };
        if !outlook.is_at(self.limit) {
            return Ok(());
        }
        match answered("DROP_REPLICATION_SLOT", second.connection.drop_slot(&self.slot)).await {
            Err(error) if slot::is_missing(&error) => {}
            dropped => dropped.context("the slot is as it was")?,
        }
        let made = answered("CREATE_REPLICATION_SLOT", second.connection.create_slot(&self.slot, false, true)).await;
        second.connection.close().await;
        let retained = outlook.row.retained().unwrap_or(0);
        self.observer.tell(ReceiveEvent::GaveUp { slot: self.slot.clone(), retained });
        made.context("it was dropped, and cannot be created")
    }
}

/// Where what is stored from `asked` on ends, not before the fork, and what is damaged there. That is looked at twice: a reading may have gone wrong.
async fn stored_end(
    archive: &Archive,
    (timeline, asked): (TimelineId, Lsn),
    fork: Lsn,
) -> Result<(Lsn, Option<Error>)> {
    let size = archive.names.segment_size;
    let look = || async {
        let from = archive.contiguous_from(timeline, asked).await?.unwrap_or(asked).max(fork);
        let damage = archive.damage_in(SegmentName::new(timeline, size.segment_of(from), size)).await?;
        Ok::<_, Error>((from, damage))
    };
    match look().await? {
        (_, Some(_)) => {
            tokio::time::sleep(AGAIN).await;
            look().await
        }
        sound => Ok(sound),
    }
}

/// See [`within`]. A server that was asked long ago may be past that by now.
async fn reachable(server: &mut Server, at: (TimelineId, Lsn), size: SegmentSize) -> Result<(TimelineId, Lsn)> {
    if at.1 > server.identity.position {
        server.identity.position = answered("IDENTIFY_SYSTEM", server.stream.identify_system()).await?.position;
    }
    Ok(within(&server.history, server.identity.position, at, size))
}

/// Where a server can be asked, to go on where WAL is stored up to a place: a timeline that it left by then goes on in the next one, with the segment of the
/// fork; past its own end it has nothing, and what is stored there is compared once it has come so far.
fn within(
    history: &TimelineHistory,
    position: Lsn,
    (timeline, stored): (TimelineId, Lsn),
    size: SegmentSize,
) -> (TimelineId, Lsn) {
    let whole = |lsn: Lsn| lsn.align_down(size.bytes());
    match history.switch_point_of(timeline) {
        Some(fork) if stored >= fork => (history.timeline_at(fork), whole(fork)),
        Some(_) => (timeline, whole(stored)),
        None => (timeline, whole(stored.min(position))),
    }
}

/// WAL that was stored, is gone from the repository, and that the server has removed: what was stored behind it is of no use without it.
fn is_gone(error: &Error, lost: Missing) -> Error {
    Error::new(Kind::Slot, format!("{lost}; the server has removed it too: {error}")).hint(PUT_BACK)
}

/// What to do where something was stored, and is gone from the repository.
pub(super) const PUT_BACK: &str = "If what was there before still exists, put its objects back, and start again. Else set on_gap = \"new-range\" to \
     record the hole, and take a new backup (docs/guide/gaps.md).";

/// WAL that the server has removed: says from where on, and what to do.
fn gone(error: &Error, from: Lsn) -> Error {
    Error::new(Kind::Slot, format!("the archive needs WAL from {from} on, which the server has removed: {error}")).hint(
        "Everything before is safe. Set on_gap = \"new-range\" to go on behind the hole, then take a new backup (docs/guide/gaps.md).",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::Ancestor;

    #[test]
    fn a_server_is_not_asked_past_a_fork_nor_past_its_end() {
        const MIB: u64 = 1 << 20;
        let size = SegmentSize::new(MIB).expect("a size");
        let left = |timeline, at| Ancestor { timeline: TimelineId(timeline), switch_point: Lsn(at) };
        let fork = 8 * MIB + 100;
        let history = TimelineHistory { timeline: TimelineId(3), ancestors: vec![left(1, fork), left(2, 20 * MIB)] };
        let go = |timeline, start| {
            let (timeline, start) = within(&history, Lsn(30 * MIB + 9), (TimelineId(timeline), Lsn(start)), size);
            (timeline.0, start.0)
        };
        assert_eq!(go(1, 8 * MIB), (1, 8 * MIB));
        assert_eq!(go(1, 9 * MIB), (2, 8 * MIB), "a dead branch goes on there");
        assert_eq!(go(1, fork - 1), (1, 8 * MIB), "the end of it is missing");
        assert_eq!(
            go(1, fork),
            (2, 8 * MIB),
            "all of it is stored, and the server may have let go of its last segment"
        );
        assert_eq!(go(2, 20 * MIB - 1), (2, 19 * MIB));
        assert_eq!(go(2, 20 * MIB), (3, 20 * MIB));
        assert_eq!(go(2, 25 * MIB), (3, 20 * MIB));
        assert_eq!(go(3, 30 * MIB), (3, 30 * MIB));
        assert_eq!(go(3, 33 * MIB), (3, 30 * MIB), "it lags");
    }
}
