//! Before the first byte: the slot is fit to hold WAL, and the place to begin is known.

use super::again::received_again;
use super::index::{Feed, Index};
use super::observe::ReceiveEvent;
use super::patience::unless_stalled;
use super::pipeline::{Begin, Pipeline};
use super::prepare;
use super::recover::recover;
use super::resume::{SlotPosition, Start};
use super::run::Run;
use super::server::{Server, Unfit, answered};
use super::slot::{self, SlotRow};
use super::{AfterFailover, OnGap};
use crate::archive::Archive;
use crate::error::{Kind, Result};
use crate::pg::{Lsn, MajorVersion, TimelineId};

/// A slot that this run made and has streamed nothing on yet.
pub(super) struct MadeSlot {
    server: String,
    position: SlotPosition,
}

impl MadeSlot {
    /// The one that was just made on this server.
    pub(super) fn on(server: &Server) -> MadeSlot {
        MadeSlot { server: server.stream.server().to_owned(), position: server.slot }
    }

    /// Whether the slot of this server is the one that was made: at another address, or from another position on, it is not.
    pub(super) fn is_on(&self, server: &Server) -> bool {
        self.server == server.stream.server() && self.position == server.slot
    }
}

impl Run {
    /// Sees to it that the slot holds WAL back: makes one on the new primary of a failover, and anew where it was lost, as far as the options allow.
    pub(super) async fn ready_slot(&mut self, archive: &Archive, server: &mut Server) -> Result<()> {
        let Some(name) = self.options.slot.clone().filter(|_| !self.options.temporary_slot) else { return Ok(()) };
        // 16 and 17 show a lost slot like one that never reserved WAL, and stream on it.
        let may_be_lost = server.slot == SlotPosition::Unreserved { certain: false };
        let unfit = match server.unfit.take() {
            Some(unfit) => unfit,
            None if may_be_lost && server.version >= MajorVersion::V16 => Unfit::Lost(slot::lost(&name, None)),
            None => return Ok(()),
        };
        if server.is_outdated() {
            let (Unfit::Missing(error) | Unfit::Lost(error)) = unfit;
            return Err(self.leave_outdated(server, &error));
        }
        let inventory = archive.newest(|_| server.identity.position).await?;
        let on_path = |timeline: &&TimelineId| server.history.begin_of(**timeline).is_some();
        let stored = inventory.timelines.keys().any(|timeline| on_path(&timeline));
        let new_timeline = stored && !inventory.timelines.contains_key(&server.identity.timeline);
        let anew = self.options.on_gap == OnGap::NewRange;
        let mut midway = None;
        let reason = match unfit {
            // Nothing was acknowledged on it: it waits for its first use.
            Unfit::Lost(_) if may_be_lost && !stored => return Ok(()),
            Unfit::Lost(error) if !anew => return Err(error),
            Unfit::Lost(error) => {
                midway = Some(self.renewing.clone().lock_owned().await);
                let still_lost = |row: &SlotRow, sql| if sql { row.is_lost() } else { row.restart_lsn.is_none() };
                slot::drop_stale(&mut server.stream, &name, still_lost).await?;
                error.to_string()
            }
            Unfit::Missing(error) if !stored => return Err(error),
            Unfit::Missing(_) if new_timeline && self.options.after_failover == AfterFailover::Create => {
                if server.stream.is_standby().await? {
                    return Err(
                        slot::missing(&name).context("this server is a standby, where walrecv makes no slot by itself")
                    );
                }
                format!("timeline {} is new and its primary has no slot {name:?}", server.identity.timeline)
            }
            Unfit::Missing(error) if !anew => return Err(error),
            Unfit::Missing(error) => error.to_string(),
        };
        let made = self.make_slot(server, &name, reason).await;
        drop(midway);
        made
    }

    /// Creates the slot with reserved WAL, and looks where it stands.
    pub(super) async fn make_slot(&mut self, server: &mut Server, name: &str, reason: String) -> Result<()> {
        match answered("CREATE_REPLICATION_SLOT", server.stream.create_slot(name, false, true)).await {
            // The only permanent refusal of this kind: it exists by now.
            Err(error) if error.kind() == Kind::Slot && !error.is_transient() => {
                return Err(slot::changed(name, error));
            }
            made => made?,
        }
        let at = server.stream.server().to_owned();
        self.made_slot = Some(MadeSlot { server: at, position: SlotPosition::Unknown });
        server.look_at_new_slot(name).await?;
        self.made_slot = Some(MadeSlot::on(server));
        self.observer.tell(ReceiveEvent::SlotCreated { slot: name.to_owned(), reason });
        Ok(())
    }

    /// Goes on with the pipeline where this server can give its next byte; else ends it and begins where the archive and the slot say. `false`: what it has
    /// cannot be stored at present.
    pub(super) async fn continue_or_begin(&mut self, archive: &Archive, server: &mut Server) -> Result<bool> {
        // What is finished takes nothing more. Where the server did not leave the timeline by then, the archive says where to go on.
        let left = |p: &Pipeline| server.history.switch_point_of(p.timeline()).is_some_and(|at| at <= p.received());
        if let Some(over) = self.pipeline.take_if(|pipeline| pipeline.is_finished() && !left(pipeline)) {
            over.abandon().await;
        }
        let made_here = self.made_slot.as_ref().is_some_and(|made| made.is_on(server));
        if let Some(pipeline) = &mut self.pipeline {
            let (timeline, received) = (pipeline.timeline(), pipeline.received());
            let known = server.history.begin_of(timeline).is_some();
            let switch_point = server.history.switch_point_of(timeline);
            // Past what this run made durable the slot was moved by another receiver, whose WAL this server may have let go of since.
            let durable = pipeline.ledger.durable();
            let moved = !made_here && matches!(server.slot, SlotPosition::At(lsn) if lsn > durable);
            // Whoever had it meanwhile stored WAL that this pipeline is not compared with, also where the slot came back.
            let moved = moved || self.waiting.told;
            // A standby that restarted may hold less than was received from it, and refuses to stream from further on: then it is begun anew below.
            if known && !moved && received <= held(server, switch_point) {
                pipeline.connected(held(server, switch_point), switch_point);
                return Ok(true);
            }
            if let (true, None, false) = (known, switch_point, moved)
                && let Some(error) = self.pass_over(server, received, "received")
            {
                return Err(error);
            }
            if let Some(at) = switch_point.filter(|at| received > *at) {
                self.observer.warn(format!(
                    "timeline {timeline} was received up to {received}, but this server left it at {at}: the rest is kept as a dead branch"
                ));
            }
            if !self.bring_home(switch_point.is_some_and(|at| received > at)).await? {
                return Ok(false);
            }
            self.pipeline = None;
        }
        // What the pipeline before this one left is compared like everything else that is stored.
        if let Some(root) = &self.options.spool_dir {
            recover(&self.place, root, &self.observer).await?;
        }
        let (mut start, inventory) = prepare::start(archive, server).await?;
        // Before this run notes anything in the catalog.
        let reached = self.reached(archive, server, start.timeline).await;
        if let Some(stored) = start.stored.filter(|stored| *stored > server.identity.position)
            && let Some(error) = self.pass_over(server, stored, "stored")
        {
            return Err(error);
        }
        self.go_to_missing(archive, server, &inventory, &mut start).await?;
        self.go_below(&mut start, server);
        self.tell_start(&start, server);
        self.climb_to = start.stored.filter(|_| server.slot == SlotPosition::Unknown);
        let (mut stored, border) = self.compared_start(archive, server, &inventory, &mut start).await?;
        self.compare_end(reached, &start, &stored, archive.names.segment_size);
        if let Some(border) = border.filter(|border| self.has_refused_below(server, *border)) {
            return self.go_on_apart(archive, server, start.timeline, border).await;
        }
        if let SlotPosition::At(lsn) = server.slot {
            stored.reported = Some(lsn).filter(|_| self.headless != Some((start.timeline, start.lsn)));
        }
        self.begin(archive, server, start.timeline, start.lsn, stored)?;
        border.into_iter().for_each(|border| self.only_compares_below(border));
        self.is_silent_while_asking_again(server);
        Ok(true)
    }

    /// The pipeline that was begun compares what is stored before a border, and stores what comes behind it.
    pub(super) fn only_compares_below(&mut self, border: Lsn) {
        if let Some(pipeline) = &mut self.pipeline {
            self.joins = Some((pipeline.received(), border));
            pipeline.ledger.silent_below(border);
        }
    }

    /// Stores what the pipeline has in hand; with `over`, as the end of its timeline. `false`: for [`stall_timeout`](super::ReceiveOptions::stall_timeout)
    /// nothing of it could be stored, so the server has to be left until the repository takes something.
    pub(super) async fn bring_home(&mut self, over: bool) -> Result<bool> {
        let Some(pipeline) = &mut self.pipeline else { return Ok(true) };
        let work = async { if over { pipeline.finish().await } else { pipeline.settle().await } };
        match unless_stalled(work, self.observer.stats(), self.options.stall_timeout).await.transpose()? {
            None => return Ok(false),
            Some(Some(refused)) => {
                self.refused_meanwhile(refused).await?;
                return Err(received_again());
            }
            Some(None) => {}
        }
        if over {
            pipeline.tidy().await;
        }
        Ok(true)
    }

    /// Where a record ends at the start whose head no run has checked, the start moves to the segment before. On another timeline that head was checked, or
    /// went with the branch that it is on.
    fn go_below(&mut self, start: &mut Start, server: &Server) {
        let Some((timeline, seen)) = self.begin_below else { return };
        if timeline != start.timeline || start.lsn < seen {
            return;
        }
        let whole = |lsn: Lsn| lsn.align_down(server.segment_size.bytes());
        let first = whole(server.history.begin_of(timeline).unwrap_or_default());
        let lower = whole(Lsn(seen.0.saturating_sub(1))).max(first);
        if lower < seen {
            start.lsn = lower;
        } else {
            (self.begin_below, self.headless) = (None, Some((timeline, start.lsn)));
        }
    }

    fn tell_start(&self, start: &Start, server: &Server) {
        let position = server.identity.position;
        if let Some(stored) = start.stored.filter(|stored| *stored > position) {
            self.observer.warn(format!(
                "{} is at {position}, behind {stored}, which is stored already: it lags, or was put back to a snapshot; what it sends is compared, and \
                 nothing new is stored before it is past {stored}",
                server.stream.server()
            ));
        }
        for stranger in &start.strangers {
            self.observer
                .warn(format!("timeline {stranger} is stored, but not in this server's history: it is left as it is"));
        }
        if let Some((timeline, at)) = start.dead_branch {
            self.observer.warn(format!(
                "timeline {timeline} is stored past {at}, where this server left it: the rest is kept as a dead branch"
            ));
        }
    }

    /// Nothing of a segment in which the timeline was found to end counts before the server has sent as much, which it may not do soon.
    fn tell_stored_end(&self, stored: &prepare::Stored, server: &Server) {
        let held = server.identity.position;
        for end in stored.tails.iter().filter(|tail| tail.is_end && tail.end() > held) {
            self.observer.warn(format!(
                "{} goes on to {}, and {} is at {held}: what it sends is compared with that, and nothing from {} on is acknowledged before it is past the end",
                end.name,
                end.end(),
                server.stream.server(),
                end.start
            ));
        }
    }

    pub(super) fn begin(
        &mut self,
        archive: &Archive,
        server: &Server,
        timeline: TimelineId,
        start: Lsn,
        mut stored: prepare::Stored,
    ) -> Result<()> {
        if !matches!(server.slot, SlotPosition::At(_)) || self.options.temporary_slot {
            // Without a lasting slot nobody has said that what was found below the start is durable.
            stored.litter.clear();
        }
        let switch_point = server.history.switch_point_of(timeline);
        // What a timeline had past the fork at which this server left it is a dead branch. The server never sends it, and its one hash is of all of it.
        stored.tails.retain(|tail| !tail.is_end || switch_point.is_none_or(|fork| tail.end() <= fork));
        self.tell_stored_end(&stored, server);
        let begin = Begin {
            archive: archive.clone(),
            writer: self.place.writer.clone(),
            version: server.version,
            timeline,
            start,
            stored,
            feed: self.feed(archive),
            desk: self.desk.clone(),
            lasting: self.lasting.clone(),
        };
        let mut pipeline = Pipeline::begin(&self.options, begin, self.observer.clone())?;
        pipeline.connected(held(server, switch_point), switch_point);
        self.pipeline = Some(pipeline);
        self.joins = None;
        Ok(())
    }

    /// Where what is acknowledged is told.
    fn feed(&mut self, archive: &Archive) -> Feed {
        let (path, writer, observer) = (self.options.catalog.clone(), &self.place.writer, &self.observer);
        let lasting = self.lasting.clone();
        let begin = || Index::start(path, archive.clone(), writer.clone(), observer.clone(), lasting);
        self.index.get_or_insert_with(begin).feed()
    }
}

/// What this server holds of a timeline: up to its current position, or where it left it.
pub(super) fn held(server: &Server, switch_point: Option<Lsn>) -> Lsn {
    switch_point.unwrap_or(server.identity.position)
}
