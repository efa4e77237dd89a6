//! What a pipeline does without new bytes: until something is durable, everything is, or its timeline is over.

use super::{Pipeline, Turn};
use crate::error::Result;
use crate::pg::Lsn;
use crate::receive::GIVE_UP;
use crate::receive::check::Refused;
use crate::receive::worker::Work;

impl Pipeline {
    /// Works on until everything that was taken is durable as far as that is possible without the server, or refused.
    pub async fn settle(&mut self) -> Result<Option<Refused>> {
        while !self.is_durable() {
            self.flush_all();
            if self.waits_for_comparison() {
                break;
            }
            if let Turn::Refused(refused) = self.turn().await? {
                return Ok(Some(refused));
            }
        }
        Ok(None)
    }

    /// Works on until more is durable than `before`, or nothing is left to put, or only the server can bring that about. Cancel safe.
    pub async fn progress(&mut self, before: Lsn) -> Result<Option<Refused>> {
        let only_server = |p: &Pipeline| p.only_compares() || p.puts.is_empty() && p.ledger.only_lacks_comparison();
        let waits = |p: &Pipeline| !(p.is_over() || p.is_quiet() && only_server(p));
        while self.ledger.durable() <= before && waits(self) {
            if let Turn::Refused(refused) = self.turn().await? {
                return Ok(Some(refused));
            }
        }
        Ok(None)
    }

    /// Works on for ever; returns only when it cannot go on.
    pub async fn tend(&mut self) -> Result<Refused> {
        loop {
            if let Turn::Refused(refused) = self.turn().await? {
                return Ok(refused);
            }
        }
    }

    /// The timeline ends: its last bytes become an object of their own; everything is durable when this returns. Cancel safe: asked again, it goes on.
    pub async fn finish(&mut self) -> Result<Option<Refused>> {
        if !std::mem::replace(&mut self.finishing, true) {
            self.ask(Work::Finish);
        }
        while !self.is_over() {
            if self.finished && self.puts.is_empty() {
                self.alarms.note_rest();
            }
            if let Turn::Refused(refused) = self.turn().await? {
                return Ok(Some(refused));
            }
        }
        // The next status speaks of another timeline.
        self.notes.until(self.received);
        // The tail is of no use once the same bytes are in an object. What an earlier run received further than this one stays.
        if self.partial_stored && self.ledger.is_compared() {
            self.clearing.ended(self.received);
        }
        Ok(None)
    }

    /// Whether the timeline has ended and everything of it is stored.
    fn is_over(&self) -> bool {
        self.finished && self.puts.is_empty() && self.alarms.is_quiet()
    }

    /// The last words of a run to the repository: the newest heartbeat, and deletions that were begun. Not waited for for ever: the next run deletes the rest.
    pub async fn tidy(&mut self) {
        self.beats.store();
        if self.is_durable() {
            self.clearing.settled(self.received);
        }
        let last = async {
            while self.beats.next().await.is_some() {}
            while self.clearing.next().await.is_some() {}
        };
        let _ = tokio::time::timeout(GIVE_UP, last).await;
    }

    /// Waits, not for long, for puts that were begun: before the same bytes are received again. The next put of a name asks after one that is left.
    pub async fn abandon(mut self) {
        self.puts.forget_waiting();
        let settled = async { while self.puts.next().await.is_some() {} };
        let _ = tokio::time::timeout(GIVE_UP, settled).await;
    }
}
