//! What the server may be told: the rules of acknowledgement, as a ledger without I/O.
//!
//! A position enters the ledger only as a [`DurableLsn`] and leaves it only inside a [`Status`]. In between stand five limits; the lowest one is reported:
//! what is durable without a hole from where this run started, what has been checked, what has been compared with copies of earlier runs, what this server
//! said it holds, and (on a historic timeline) where the timeline ends. The server believes any flush position, even one that it never sent
//! (`ProcessStandbyReplyMessage`), so nothing here may ever be guessed.

use std::collections::BTreeMap;

use crate::pg::{DurableLsn, Lsn, SystemIdentifier, TimelineId};
use crate::wire::message::Status;

/// The positions of one run on one timeline.
#[derive(Debug)]
pub struct Ledger {
    system: SystemIdentifier,
    timeline: TimelineId,
    /// End of what is durable without a hole from the start of the run.
    durable: Lsn,
    /// Durable ranges above the first hole: from → to.
    islands: BTreeMap<Lsn, Lsn>,
    /// Handed to the local operating system (with a spool: synced there) without a hole above what is durable.
    written: Lsn,
    /// End of the last checked record.
    checked: Lsn,
    /// Where the comparison with stored copies of earlier runs has come to; `None` when nothing is left to compare.
    compared: Option<Lsn>,
    /// The furthest position that this server said it holds.
    server_end: Lsn,
    /// Where the timeline was left, when it is a historic one of this server.
    switch_point: Option<Lsn>,
    /// The highest flush position reported on this connection.
    reported: Lsn,
    /// The highest write position reported on this connection.
    reported_written: Lsn,
    /// Whether this server has what was received from the one before is not known yet: it is told nothing.
    doubted: bool,
    /// Nothing below is told.
    silent_below: Lsn,
}

impl Ledger {
    /// A run that begins at `start` on `timeline`: nothing is durable yet.
    pub fn new(system: SystemIdentifier, timeline: TimelineId, start: Lsn) -> Ledger {
        Ledger {
            system,
            timeline,
            durable: start,
            islands: BTreeMap::new(),
            written: start,
            checked: start,
            compared: None,
            server_end: start,
            switch_point: None,
            reported: Lsn::INVALID,
            reported_written: Lsn::INVALID,
            doubted: false,
            silent_below: Lsn::INVALID,
        }
    }

    /// What is received again below `lsn` is no news, and the server would set its slot back to it: WAL of a whole object more would count as held back.
    pub fn silent_below(&mut self, lsn: Lsn) {
        self.silent_below = lsn;
    }

    /// Bytes from `from` up to the witnessed position are durable. Ignored when the witness is of another system or timeline.
    /// Returns whether the end of the durable bytes without a hole moved.
    pub fn stored(&mut self, from: Lsn, to: DurableLsn) -> bool {
        if to.system() != self.system || to.timeline() != self.timeline || to.lsn() <= from {
            return false;
        }
        let end = self.islands.entry(from).or_insert(to.lsn());
        *end = (*end).max(to.lsn());
        let before = self.durable;
        while let Some((&first, &last)) = self.islands.first_key_value() {
            if first > self.durable {
                break;
            }
            self.durable = self.durable.max(last);
            self.islands.remove(&first);
        }
        self.durable > before
    }

    /// Bytes from `from` up to `to` were handed to the local operating system. Behind a hole they count for nothing: what is before them is in this process
    /// only. Returns whether there is anything new.
    pub fn wrote(&mut self, from: Lsn, to: Lsn) -> bool {
        let before = self.written;
        if from <= self.written.max(self.durable) {
            self.written = before.max(to);
        }
        self.written > before
    }

    /// Records up to `lsn` were checked, and all stored copies compared up to `compared` (`None`: nothing is left to compare).
    pub fn checked(&mut self, lsn: Lsn, compared: Option<Lsn>) {
        self.checked = self.checked.max(lsn);
        self.compared = compared;
    }

    /// The server said that it holds WAL up to `lsn` (IDENTIFY_SYSTEM, or the end in a message of the stream).
    pub fn server_holds(&mut self, lsn: Lsn) {
        self.server_end = self.server_end.max(lsn);
    }

    /// A new connection: what an earlier server said no longer counts, and nothing has been reported to this one. `switch_point` is where this
    /// server left the timeline, if it did.
    pub fn connected(&mut self, server_end: Lsn, switch_point: Option<Lsn>) {
        self.server_end = server_end;
        self.switch_point = switch_point;
        self.reported = Lsn::INVALID;
        self.reported_written = Lsn::INVALID;
        self.doubted = false;
    }

    /// From now on the server is told position 0, by which it changes nothing (`ProcessStandbyReplyMessage`).
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// The server was seen to have what this run received.
    pub fn trust(&mut self) {
        self.doubted = false;
    }

    /// End of what is durable without a hole.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// End of the last record that was checked.
    pub fn verified(&self) -> Lsn {
        self.checked
    }

    /// The highest flush position that this connection's server was told.
    pub fn reported(&self) -> Lsn {
        self.reported
    }

    /// The furthest position of this timeline that the server said it holds.
    pub fn server_end(&self) -> Lsn {
        self.held()
    }

    /// Whether nothing is left to compare.
    pub fn is_compared(&self) -> bool {
        self.compared.is_none()
    }

    /// Up to where stored copies of earlier runs were compared; `None` when nothing is left.
    pub fn compared(&self) -> Option<Lsn> {
        self.compared
    }

    /// Bytes that are known to exist on the server and are not durable here.
    pub fn behind(&self) -> u64 {
        self.held().since(self.durable)
    }

    /// Whether checked and compared bytes wait to become durable: without them no progress is no stall.
    pub fn waiting(&self) -> bool {
        self.compared_part(self.checked) > self.durable
    }

    /// The same where what a spool has waits for nothing: see [`Ledger::wrote`].
    pub fn unspooled(&self) -> bool {
        self.compared_part(self.checked) > self.durable.max(self.written)
    }

    /// Whether everything that may be kept is durable, and the rest waits for bytes to compare with what earlier runs stored.
    pub fn only_lacks_comparison(&self) -> bool {
        self.compared.is_some_and(|compared| self.durable >= compared)
    }

    /// Whether an ordinary update would say more than the last one did.
    pub fn has_news(&self) -> bool {
        self.limited(self.durable.min(self.checked)) > self.reported
    }

    /// Whether an ordinary update would report more as written.
    pub fn has_written(&self) -> bool {
        self.limited(self.written.min(self.checked)) > self.reported_written.max(self.reported)
    }

    /// What the answer to a ping would report.
    pub fn answer(&self) -> Lsn {
        self.limited(self.durable)
    }

    /// Whether everything up to `lsn` is durable, checked and compared, and this server still is on the timeline.
    pub fn covers(&self, lsn: Lsn) -> bool {
        self.switch_point.is_none() && self.limited(self.durable.min(self.checked)) >= lsn
    }

    /// An ordinary update: whole records only. Never lower than what was reported before.
    pub fn ordinary(&mut self) -> Status {
        let flushed = self.durable.min(self.checked);
        self.report(flushed)
    }

    /// The answer to a ping, and the last word before a stop: every durable byte, the head of an unfinished record included. No commit can wait for such a
    /// head, but the shutdown of a server does.
    pub fn complete(&mut self) -> Status {
        self.report(self.durable)
    }

    fn report(&mut self, flushed: Lsn) -> Status {
        let flushed = self.limited(flushed).max(self.reported);
        self.reported = flushed;
        let written = self.limited(self.written.min(self.checked)).max(flushed).max(self.reported_written);
        self.reported_written = written;
        Status { written, flushed, applied: flushed, reply_requested: false }
    }

    fn limited(&self, lsn: Lsn) -> Lsn {
        if self.doubted {
            return Lsn::INVALID;
        }
        Some(self.compared_part(lsn.min(self.held()))).filter(|lsn| *lsn >= self.silent_below).unwrap_or_default()
    }

    fn compared_part(&self, lsn: Lsn) -> Lsn {
        self.compared.map_or(lsn, |compared| lsn.min(compared))
    }

    fn held(&self) -> Lsn {
        self.switch_point.map_or(self.server_end, |end| self.server_end.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: SystemIdentifier = SystemIdentifier(7);
    const TIMELINE: TimelineId = TimelineId(1);

    /// Tests stand in for `disk` and `repo`, the only code that may make a witness.
    fn durable(lsn: u64) -> DurableLsn {
        test_witness(SYSTEM, TIMELINE, Lsn(lsn))
    }

    fn test_witness(system: SystemIdentifier, timeline: TimelineId, lsn: Lsn) -> DurableLsn {
        DurableLsn::witness(system, timeline, lsn)
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(SYSTEM, TIMELINE, Lsn(1000));
        ledger.connected(Lsn(10_000), None);
        ledger
    }

    #[test]
    fn the_first_word_is_the_start() {
        let status = ledger().ordinary();
        assert_eq!((status.written, status.flushed, status.applied), (Lsn(1000), Lsn(1000), Lsn(1000)));
    }

    #[test]
    fn a_hole_stops_the_acknowledgement_until_it_is_filled() {
        let mut ledger = ledger();
        ledger.checked(Lsn(4000), None);
        assert!(!ledger.stored(Lsn(2000), durable(3000)));
        assert!(!ledger.stored(Lsn(3000), durable(4000)));
        assert_eq!(ledger.ordinary().flushed, Lsn(1000));
        assert!(ledger.stored(Lsn(1000), durable(2000)));
        assert_eq!(ledger.ordinary().flushed, Lsn(4000));
    }

    #[test]
    fn half_a_record_is_reported_to_a_ping_only() {
        let mut ledger = ledger();
        ledger.checked(Lsn(1500), None);
        ledger.stored(Lsn(1000), durable(1800));
        assert_eq!(ledger.ordinary().flushed, Lsn(1500));
        assert_eq!(ledger.complete().flushed, Lsn(1800));
        assert_eq!(ledger.ordinary().flushed, Lsn(1800), "never backwards on one connection");
        ledger.connected(Lsn(10_000), None);
        assert_eq!(ledger.ordinary().flushed, Lsn(1500), "a new connection begins with whole records");
    }

    #[test]
    fn never_more_than_this_server_holds() {
        let mut ledger = ledger();
        ledger.checked(Lsn(5000), None);
        ledger.stored(Lsn(1000), durable(5000));
        ledger.connected(Lsn(3000), None);
        assert_eq!(ledger.ordinary().flushed, Lsn(3000), "a server that fell behind what was stored");
        assert_eq!(ledger.complete().flushed, Lsn(3000));
        ledger.server_holds(Lsn(3500));
        assert_eq!(ledger.ordinary().flushed, Lsn(3500));
        ledger.connected(Lsn(9000), Some(Lsn(4000)));
        assert_eq!(ledger.complete().flushed, Lsn(4000), "past the fork lies another timeline");
    }

    #[test]
    fn a_server_that_is_doubted_is_told_nothing() {
        let mut ledger = ledger();
        ledger.checked(Lsn(5000), None);
        ledger.wrote(Lsn(1000), Lsn(5000));
        ledger.stored(Lsn(1000), durable(5000));
        ledger.connected(Lsn(10_000), None);
        ledger.doubt();
        assert!(!ledger.has_news() && ledger.answer() == Lsn(0));
        let (ordinary, complete) = (ledger.ordinary(), ledger.complete());
        assert_eq!((ordinary.written, ordinary.flushed, complete.flushed), (Lsn(0), Lsn(0), Lsn(0)));
        ledger.trust();
        assert_eq!(ledger.ordinary().flushed, Lsn(5000));
    }

    #[test]
    fn a_slot_is_not_set_back_to_what_is_only_compared() {
        let mut ledger = Ledger::new(SYSTEM, TIMELINE, Lsn(100));
        ledger.silent_below(Lsn(200));
        ledger.connected(Lsn(900), None);
        ledger.checked(Lsn(199), Some(Lsn(100)));
        assert!(!ledger.has_news() && ledger.answer() == Lsn::INVALID);
        assert_eq!((ledger.ordinary().flushed, ledger.complete().flushed), (Lsn::INVALID, Lsn::INVALID));
        ledger.stored(Lsn(100), durable(200));
        ledger.checked(Lsn(250), None);
        assert!(ledger.has_news());
        assert_eq!(ledger.ordinary().flushed, Lsn(200));
    }

    #[test]
    fn nothing_is_acknowledged_before_it_is_compared() {
        let mut ledger = ledger();
        ledger.checked(Lsn(5000), Some(Lsn(1200)));
        ledger.stored(Lsn(1000), durable(5000));
        assert_eq!(ledger.complete().flushed, Lsn(1200));
        assert!(!ledger.waiting() && ledger.only_lacks_comparison(), "what may not be kept yet is no stall");
        ledger.checked(Lsn(5001), None);
        assert!(ledger.waiting() && !ledger.only_lacks_comparison());
        assert_eq!(ledger.ordinary().flushed, Lsn(5000));
    }

    #[test]
    fn a_witness_of_another_system_or_timeline_counts_for_nothing() {
        let mut ledger = ledger();
        ledger.checked(Lsn(5000), None);
        assert!(!ledger.stored(Lsn(1000), test_witness(SystemIdentifier(8), TIMELINE, Lsn(5000))));
        assert!(!ledger.stored(Lsn(1000), test_witness(SYSTEM, TimelineId(2), Lsn(5000))));
        assert_eq!(ledger.complete().flushed, Lsn(1000));
    }

    #[test]
    fn written_runs_ahead_of_flushed_but_not_of_checked() {
        let mut ledger = ledger();
        ledger.ordinary();
        ledger.checked(Lsn(2000), None);
        assert!(!ledger.has_written());
        assert!(ledger.wrote(Lsn(1000), Lsn(2500)) && ledger.has_written() && !ledger.has_news());
        let status = ledger.ordinary();
        assert_eq!((status.written, status.flushed, status.applied), (Lsn(2000), Lsn(1000), Lsn(1000)));
        assert!(!ledger.has_written() && !ledger.unspooled() && ledger.waiting());
        ledger.checked(Lsn(9000), Some(Lsn(2200)));
        assert_eq!(ledger.ordinary().written, Lsn(2200), "what is not compared is not told");
        assert!(!ledger.unspooled());
        ledger.checked(Lsn(9000), None);
        assert!(ledger.unspooled(), "neither here nor there");
        ledger.connected(Lsn(2100), None);
        assert_eq!(ledger.ordinary().written, Lsn(2100), "not past what this server holds");
    }

    #[test]
    fn what_is_written_behind_a_hole_is_not_told() {
        let mut ledger = ledger();
        ledger.checked(Lsn(5000), None);
        assert!(ledger.wrote(Lsn(1000), Lsn(1500)));
        assert!(!ledger.wrote(Lsn(1600), Lsn(3000)), "what lies between is in memory only");
        assert_eq!(ledger.ordinary().written, Lsn(1500));
        ledger.stored(Lsn(1000), durable(2000));
        assert_eq!(ledger.ordinary().written, Lsn(2000));
        assert!(ledger.wrote(Lsn(1600), Lsn(3500)), "the hole was filled by the repository");
        assert_eq!(ledger.ordinary().written, Lsn(3500));
    }

    /// Whatever arrives in whatever order, a report never passes a hole: checked against a plain set of durable bytes.
    #[test]
    fn random_orders_of_completion_never_report_a_missing_byte() {
        let seed = std::env::var("WALRECV_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_u64);
        eprintln!("WALRECV_SEED={seed}");
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let mut ledger = Ledger::new(SYSTEM, TIMELINE, Lsn(0));
            let mut stored = [false; 64];
            let mut checked = 0;
            for _ in 0..100 {
                let from = random(63);
                let to = from + 1 + random(64 - from - 1).min(7);
                checked = (checked + random(3)).min(64);
                let server_end = random(65);
                ledger.stored(Lsn(from), durable(to));
                stored[from as usize..to as usize].fill(true);
                ledger.checked(Lsn(checked), None);
                ledger.connected(Lsn(server_end), None);
                let hole = stored.iter().position(|s| !s).unwrap_or(64) as u64;
                assert_eq!(ledger.durable(), Lsn(hole));
                assert_eq!(ledger.ordinary().flushed, Lsn(hole.min(checked).min(server_end)));
                assert_eq!(ledger.complete().flushed, Lsn(hole.min(server_end)));
            }
        }
    }
}
