//! Standing by without SQL: the slot's state comes with an attempt to stream only, and a refused one is an error in the server's log. What can be asked without
//! any (15 and newer) is where the slot stands. While another receiver is at work it follows the server's WAL, a flush interval behind; when the server has more
//! and the slot stands still, that receiver may be gone, and an attempt is worth its line. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::pg::Lsn;

/// What another receiver needs beside its flush interval until the slot moves.
const SLACK: Duration = Duration::from_millis(300);
/// A slot that is used may stand still for so long whatever the interval.
const SHORTEST: Duration = Duration::from_millis(500);
/// The longest that is waited for a slot to move.
const LONGEST: Duration = Duration::from_secs(30);
/// Attempts after the first one, by how long the slot has stood still (milliseconds): most of them for a receiver whose host is lost. The server gives that up
/// after ten seconds (`wal_sender_timeout`).
const ATTEMPTS: [u64; 8] = [2600, 5300, 9600, 10_300, 11_000, 11_700, 12_500, 14_000];
/// Two attempts are not closer than this.
const APART: Duration = Duration::from_millis(400);

/// What has been seen of the slot.
#[derive(Clone, Debug)]
pub struct Vigil {
    /// It stands still if it has not moved for so long although the server has more.
    patience: Duration,
    /// Where it stands, and since when while the server has more.
    stands: Option<(Lsn, Instant)>,
    /// The last attempt in vain since then.
    tried: Option<Instant>,
    /// The server that was reached last answers the question.
    pub possible: bool,
}

impl Vigil {
    /// The other receiver is taken to have the same flush interval.
    pub fn new(flush_interval: Duration) -> Vigil {
        let patience = (flush_interval.max(SHORTEST) + SLACK).min(LONGEST);
        Vigil { patience, stands: None, tried: None, possible: false }
    }

    /// Whether to try now. `slot`: where it stands; `server`: the end of the server's WAL.
    pub fn look(&mut self, slot: Lsn, server: Lsn, now: Instant) -> bool {
        let since = match self.stands {
            Some((at, since)) if at == slot && slot < server => since,
            before => {
                if self.tried.take().is_some() && before.is_some_and(|(at, _)| at != slot) {
                    // Somebody is at work and moves it less often than was thought.
                    self.patience = self.patience.mul_f64(1.5).min(LONGEST);
                }
                self.stands = Some((slot, now));
                return false;
            }
        };
        let still = now.saturating_duration_since(since);
        let due = match self.tried {
            None => still >= self.patience,
            Some(last) => {
                let before = last.saturating_duration_since(since) + APART;
                let next = ATTEMPTS.iter().map(|at| Duration::from_millis(*at)).find(|at| *at > before);
                next.map_or(now.saturating_duration_since(last) >= LONGEST, |at| still >= at)
            }
        };
        if due {
            self.tried = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks every 100 ms for `seconds`; the times of the attempts, in tenths of a second.
    fn attempts(vigil: &mut Vigil, begin: Instant, seconds: u32, at: impl Fn(u32) -> (u64, u64)) -> Vec<u32> {
        let tenths = (0..seconds * 10).filter(|tenth| {
            let (slot, server) = at(*tenth);
            vigil.look(Lsn(slot), Lsn(server), begin + SECOND * *tenth / 10)
        });
        tenths.collect()
    }

    #[test]
    fn nothing_is_tried_while_the_slot_follows_or_the_server_is_idle() {
        let begin = Instant::now();
        let mut vigil = Vigil::new(SECOND);
        let follows = |tenth: u32| (u64::from(tenth / 10) * 1000, u64::from(tenth) * 100 + 100);
        assert_eq!(attempts(&mut vigil, begin, 600, follows), Vec::<u32>::new());
        assert_eq!(attempts(&mut Vigil::new(SECOND), begin, 600, |_| (500, 500)), Vec::<u32>::new());
    }

    #[test]
    fn a_slot_that_stands_still_is_tried_soon_and_around_the_time_at_which_a_lost_host_is_given_up() {
        let mut vigil = Vigil::new(Duration::ZERO);
        let tried = attempts(&mut vigil, Instant::now(), 100, |_| (500, 900));
        assert_eq!(tried[..9], [8, 26, 53, 96, 103, 110, 117, 125, 140]);
        assert_eq!(tried[9..], [440, 740], "and then seldom: the other one has it and cannot store");
    }

    #[test]
    fn where_the_other_one_flushes_seldom_it_is_left_in_peace() {
        let mut vigil = Vigil::new(SECOND);
        // Every eight seconds.
        let tried = attempts(&mut vigil, Instant::now(), 600, |tenth| (u64::from(tenth / 80) * 1000, 1 << 40));
        assert!(tried.len() < 20, "{tried:?}");
        assert!(tried.last().is_some_and(|last| *last < 600), "it learns: {tried:?}");
    }
}
