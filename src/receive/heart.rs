//! Lag on one clock: what a connection's messages prove about how far the server's WAL was received by when. Pure.
//!
//! An idle server says nothing by itself, so a status asks for an answer about once a second. The server answers a request before it looks for new WAL
//! (`ProcessRepliesIfAny`, then `XLogSendPhysical`), and each message says how far it has sent and the time by the server's clock. So:
//! - WAL that comes after a message stamped T was looked for after T: everything that the server had flushed at T ends at or before that message's end of WAL.
//! - Answers in a row that name the same position, with no WAL between them, prove the same of the times before them. One answer can be given without a look
//!   at new WAL (`pq_is_send_pending`), and two answers read at once certainly are, so no request goes out while another is unanswered, and what is to be
//!   *stored* needs three answers in a row.
//!
//! The server's own requests for a reply mean something else (its shutdown) and prove nothing here.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::pg::Lsn;
use crate::pg::xact::PgTime;
use crate::seal::content::heartbeat::Heartbeat;

/// Answers in a row with the same position that prove something worth storing.
const ROW: usize = 3;
/// Points closer together than this are not told apart (microseconds).
const APART: i64 = 100_000;
/// Most points that wait to become durable; the rest of an outage is one step.
const POINTS: usize = 4096;

/// What one connection has heard.
#[derive(Debug)]
pub struct Heart {
    interval: Duration,
    /// Requests that were not answered yet.
    unanswered: u32,
    asked_at: Option<Instant>,
    /// The last stamp of the server, and when it arrived.
    heard: Option<(PgTime, Instant)>,
    /// Position and times of the newest answers in a row.
    row: (Lsn, VecDeque<PgTime>),
    /// What the server had flushed at a time ends at or before a position: not durable yet, ascending.
    points: VecDeque<Heartbeat>,
    complete: Option<Heartbeat>,
}

impl Heart {
    /// Asks once in `interval` at most.
    pub fn new(interval: Duration) -> Heart {
        Heart {
            interval,
            unanswered: 0,
            asked_at: None,
            heard: None,
            row: (Lsn::INVALID, VecDeque::new()),
            points: VecDeque::new(),
            complete: None,
        }
    }

    /// Whether the status that goes out now should ask for an answer. `lost`: after so much silence the last request counts as lost.
    pub fn ask(&mut self, now: Instant, lost: bool) -> bool {
        let due = self.asked_at.is_none_or(|at| now.saturating_duration_since(at) >= self.interval);
        if !due || (self.unanswered > 0 && !lost) {
            return false;
        }
        self.unanswered += 1;
        self.asked_at = Some(now);
        true
    }

    /// WAL arrived that ends at or before `wal_end`, where the server's WAL ended when it was read.
    pub fn data(&mut self, wal_end: Lsn, sent_at: PgTime, now: Instant) {
        self.row.1.clear();
        self.point(wal_end);
        self.heard = Some((sent_at, now));
    }

    /// An answer to a request arrived. `received`: end of what has arrived.
    pub fn answer(&mut self, wal_end: Lsn, sent_at: PgTime, received: Lsn, now: Instant) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.row.0 != wal_end || wal_end != received {
            self.row = (wal_end, VecDeque::new());
        }
        // Answers that came together were given together.
        if self.unanswered == 0 && wal_end == received {
            if !self.row.1.is_empty() {
                self.point(wal_end);
            }
            self.row.1.push_back(sent_at);
            if self.row.1.len() > ROW {
                self.row.1.pop_front();
            }
        }
        self.heard = Some((sent_at, now));
    }

    /// Any other message of the server: only its clock counts.
    pub fn heard(&mut self, sent_at: PgTime, now: Instant) {
        self.heard = Some((sent_at, now));
    }

    /// Everything that the server had flushed at its last stamp ends at or before `lsn`.
    fn point(&mut self, lsn: Lsn) {
        let Some((time, _)) = self.heard else { return };
        let beat = Heartbeat { lsn, time };
        let full = self.points.len() >= POINTS;
        match self.points.back_mut() {
            Some(last) if last.lsn >= lsn => last.time = last.time.max(time),
            Some(last) if time.0.saturating_sub(last.time.0) < APART => {}
            _ if full => {}
            _ => self.points.push_back(beat),
        }
    }

    /// WAL up to `lsn` is durable: how far the archive is complete now.
    pub fn durable(&mut self, lsn: Lsn) -> Option<Heartbeat> {
        while let Some(point) = self.points.front().copied().filter(|point| point.lsn <= lsn) {
            self.complete = Some(point);
            self.points.pop_front();
        }
        self.complete
    }

    /// The last stamp of the server, and when it arrived.
    pub fn clock(&self) -> Option<(PgTime, Instant)> {
        self.heard
    }

    /// What is proven well enough to be stored: the newest answer but two of a row that has not been broken.
    pub fn proven(&self) -> Option<Heartbeat> {
        let (lsn, times) = &self.row;
        let time = times.front().copied().filter(|_| times.len() >= ROW)?;
        Some(Heartbeat { lsn: *lsn, time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn time(seconds: i64) -> PgTime {
        PgTime(seconds * 1_000_000)
    }

    fn beat(lsn: u64, seconds: i64) -> Option<Heartbeat> {
        Some(Heartbeat { lsn: Lsn(lsn), time: time(seconds) })
    }

    /// One request and its answer, a second after the last one.
    fn exchange(heart: &mut Heart, now: &mut Instant, lsn: u64, seconds: i64) {
        *now += SECOND;
        assert!(heart.ask(*now, false));
        heart.answer(Lsn(lsn), time(seconds), Lsn(lsn), *now);
    }

    #[test]
    fn three_answers_in_a_row_prove_the_time_of_the_first() {
        let (mut heart, mut now) = (Heart::new(SECOND), Instant::now());
        exchange(&mut heart, &mut now, 100, 1);
        exchange(&mut heart, &mut now, 100, 2);
        assert_eq!((heart.proven(), heart.durable(Lsn(100))), (None, beat(100, 1)), "a pair is shown, not stored");
        exchange(&mut heart, &mut now, 100, 3);
        assert_eq!(heart.proven(), beat(100, 1));
        exchange(&mut heart, &mut now, 100, 4);
        assert_eq!((heart.proven(), heart.durable(Lsn(100))), (beat(100, 2), beat(100, 3)));
        exchange(&mut heart, &mut now, 200, 5);
        assert_eq!(heart.proven(), None, "another position begins another row");
    }

    #[test]
    fn wal_between_two_answers_breaks_the_row() {
        let (mut heart, mut now) = (Heart::new(SECOND), Instant::now());
        (1..=3).for_each(|n| exchange(&mut heart, &mut now, 100, n));
        heart.data(Lsn(100), time(4), now);
        assert_eq!(heart.proven(), None);
        exchange(&mut heart, &mut now, 100, 5);
        exchange(&mut heart, &mut now, 100, 6);
        assert_eq!(heart.proven(), None);
    }

    #[test]
    fn wal_proves_the_stamp_before_it_once_it_is_durable() {
        let (mut heart, now) = (Heart::new(SECOND), Instant::now());
        heart.data(Lsn(100), time(1), now);
        assert_eq!(heart.durable(Lsn(100)), None, "nothing was stamped before the first message");
        heart.data(Lsn(200), time(2), now);
        heart.data(Lsn(300), time(3), now);
        assert_eq!(heart.durable(Lsn(199)), None);
        assert_eq!(heart.durable(Lsn(200)), beat(200, 1));
        assert_eq!(heart.durable(Lsn(300)), beat(300, 2));
    }

    #[test]
    fn one_request_at_a_time_and_answers_that_come_together_prove_nothing() {
        let (mut heart, now) = (Heart::new(SECOND), Instant::now());
        let later = |n: u32| now + SECOND * n;
        assert!(heart.ask(later(1), false));
        assert!(!heart.ask(later(2), false), "the first one is unanswered");
        assert!(heart.ask(later(7), true), "unless it counts as lost");
        heart.answer(Lsn(100), time(8), Lsn(100), later(8));
        heart.answer(Lsn(100), time(8), Lsn(100), later(8));
        assert!(!heart.ask(later(7), false), "once in an interval");
        assert!(heart.ask(later(9), false));
        heart.answer(Lsn(100), time(9), Lsn(100), later(9));
        assert_eq!(heart.proven(), None, "two of the three came together");
    }

    #[test]
    fn an_answer_ahead_of_what_has_arrived_proves_nothing() {
        let (mut heart, mut now) = (Heart::new(SECOND), Instant::now());
        for n in 1..=5 {
            now += SECOND;
            assert!(heart.ask(now, false));
            heart.answer(Lsn(100), time(n), Lsn(50), now);
        }
        assert_eq!((heart.proven(), heart.durable(Lsn(100))), (None, None));
    }
}
