//! Whether a server's WAL is the continuation of what is stored, where a run begins at the end of that. Another server with the same identifier and timeline may
//! have written as much, and a first record names nothing of the one before it but its place. So the last stored object is received once more, and nothing behind it
//! counts before the same bytes have come. Where the server has let go of it, something else must show it; else what comes next would be joined to another
//! history, and a restore would be a mixture of the two.

use super::compare::OldTail;
use super::hole::PUT_BACK;
use super::observe::ReceiveEvent;
use super::prepare::{self, Stored};
use super::resume::{SlotPosition, Start};
use super::run::Run;
use super::server::Server;
use super::{GIVE_UP, OnGap};
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::event::{Hole, What};

impl Run {
    /// What is stored from the start on. A start at the end of what is stored moves to the object with the last record before that, and all from there on is
    /// compared; gives the end then.
    pub(super) async fn compared_start(
        &self,
        archive: &Archive,
        server: &Server,
        inventory: &Inventory,
        start: &mut Start,
    ) -> Result<(Stored, Option<Lsn>)> {
        let from = |lsn| prepare::stored(archive, inventory, start.timeline, lsn, &self.observer);
        let border = start.lsn;
        let stored = from(border).await?;
        // A refusal would take a temporary slot with it, which is to hold back the WAL of a backup that begins now.
        let asks = start.stored == Some(border) && !self.options.temporary_slot;
        let known = !asks || self.is_the_same(server, border, &stored);
        if known && archive.names.segment_size.offset_of(border) == 0 {
            return Ok((stored, None));
        }
        let before = prepare::objects_before(archive, start.timeline, border).await?;
        // Behind a switch there is nothing to begin with, whoever the server is.
        let Some(lower) = before.start().filter(|_| !known || before.switched) else {
            return Ok((stored, None));
        };
        let mut stored = from(lower).await?;
        start.lsn = lower;
        stored.tails.extend(before.objects);
        Ok((stored, Some(border)))
    }

    /// Whether the slot shows it. Exactly at a border it stands only where a receiver has reported that: one that is made begins at a record
    /// (`ReplicationSlotReserveWal`), and behind a border comes the header of a page first. Within a tail of the segment that begins here it was moved by who
    /// received that, and the tail is compared. Restarts are mostly like that, and the server has mostly let go of what lies before: it need not be asked for it,
    /// and complain of that in its log.
    fn is_the_same(&self, server: &Server, border: Lsn, stored: &Stored) -> bool {
        let SlotPosition::At(lsn) = server.slot else { return false };
        let holds = |tail: &OldTail| !tail.is_end && tail.start <= border && lsn <= tail.end();
        self.has_lasting_slot(server) && (lsn == border || lsn > border && stored.tails.iter().any(holds))
    }

    /// Whether this server has refused before what is to be compared before a border: it is not asked again.
    pub(super) fn has_refused_below(&self, server: &Server, border: Lsn) -> bool {
        self.apart.as_ref().is_some_and(|(refused, at)| refused == server.stream.server() && *at == border)
    }

    /// Whether the slot may have been moved by an earlier run.
    fn has_lasting_slot(&self, server: &Server) -> bool {
        let made_here = self.made_slot.as_ref().is_some_and(|made| made.is_on(server));
        self.options.slot.is_some() && !self.options.temporary_slot && !made_here
    }

    /// Goes on at the end of what is stored, after the server has refused what was asked for before it.
    pub(super) async fn go_on_behind(
        &mut self,
        archive: &Archive,
        server: &mut Server,
        refused: Lsn,
        (timeline, border): (TimelineId, Lsn),
    ) -> Result<bool> {
        let before = prepare::objects_before(archive, timeline, border).await?;
        let Some(start) = before.start() else {
            // Nothing is stored that it would be joined to: a timeline begins, or a hole ends.
            return self.begin_at(archive, server, timeline, border).await;
        };
        if start > refused && !self.options.temporary_slot {
            let mut stored = self.stored_at(archive, timeline, start).await?;
            stored.tails.extend(before.objects);
            self.begin(archive, server, timeline, start, stored)?;
            self.only_compares_below(border);
            return Ok(true);
        }
        // What is stored behind it is compared.
        let compared = archive.contiguous_from(timeline, border).await?.is_some_and(|end| end > border);
        let reported = self.has_lasting_slot(server) && server.slot == SlotPosition::At(border);
        if compared || reported || self.options.temporary_slot {
            return self.begin_at(archive, server, timeline, border).await;
        }
        if server.slot == SlotPosition::Unknown {
            // The slot, which could show it, cannot be looked at: it is nobody's fault.
            self.observer.warn(format!(
                "{}; streaming goes on, as if it were the same server: if it was replaced, take a backup and restore nothing before that by WAL behind {border}",
                unshown(timeline, border)
            ));
            return self.begin_at(archive, server, timeline, border).await;
        }
        self.go_on_apart(archive, server, timeline, border).await
    }

    /// What the server has is not joined to what is stored: ends, or leaves out what is left of a segment, so that nothing is restored across it.
    pub(super) async fn go_on_apart(
        &mut self,
        archive: &Archive,
        server: &mut Server,
        timeline: TimelineId,
        border: Lsn,
    ) -> Result<bool> {
        self.apart = None;
        let lost = self.put_back_behind(timeline, border);
        let reason =
            lost.map_or_else(|| unshown(timeline, border), |lost| format!("{lost}; {}", unshown(timeline, border)));
        if self.options.on_gap == OnGap::Stop {
            self.unmake_slot(server).await;
            return Err(Error::new(Kind::Slot, reason).hint(if lost.is_some() {
                PUT_BACK
            } else {
                "Everything before is safe. For another server use another cluster name, else on_gap = \"new-range\" to go on behind a hole (docs/guide/gaps.md)."
            }));
        }
        let size = archive.names.segment_size;
        // What a slot that was made anew does not hold back would be of no use: no backup lies in it.
        let held = if let SlotPosition::At(lsn) = server.slot { lsn } else { border };
        let to = (border.align_down(size.bytes()) + size.bytes()).max(held.align_down(size.bytes()));
        if server.identity.position < to {
            self.apart = Some((server.stream.server().to_owned(), border));
            // Recorded before the server is past it, whoever begins would begin within the hole.
            let text =
                format!("{reason}; a hole is left before {to}, as soon as the server is past that (pg_switch_wal)");
            return Err(Error::new(Kind::Server, text).transient());
        }
        let to_timeline = server.history.timeline_at(to);
        let hole = Hole { from_timeline: timeline, from: border, to_timeline, to, reason };
        archive.put_event(&self.place.writer.fresh()?, What::Hole(hole.clone()), GIVE_UP).await?;
        self.observer.tell(ReceiveEvent::Hole(hole));
        self.begin_at(archive, server, to_timeline, to).await
    }
}

/// Why two stretches of WAL are not joined.
fn unshown(timeline: TimelineId, border: Lsn) -> String {
    format!(
        "the archive needs WAL from {border} of timeline {timeline} on, and the server has let go of what comes before: nothing shows that its WAL continues what \
         is stored"
    )
}
