//! What of the stream goes to the spool, and when: everything in the order in which it came.

use tokio::time::Instant;

use super::super::object::Open;
use super::super::spool::{Spool, Spooled};
use super::{AHEAD, Keeper, Kept};
use crate::error::Result;

impl Keeper {
    /// Puts the ends of finished objects into the spool, before anything that comes after them, and without waiting for their sealing.
    pub(super) fn spool_rests(&mut self, all: bool) {
        while self.unnoted.is_empty()
            && let Some(spool) = &mut self.spool
            && let Some(rest) = self.held.rest(self.check.checked(), self.config.flush_interval, all)
        {
            let spooled = spool.finish(&self.keys, rest);
            self.tell_spooled(spooled);
        }
    }

    /// Puts what was checked of the open object into the spool.
    pub(super) fn flush_spool(&mut self) {
        if self.spool.is_none() {
            return;
        }
        if let Some(open) = self.open.take() {
            self.keep_in_spool(&open);
            self.open = Some(open);
        }
        if let Some(spool) = self.spool.as_mut().filter(|_| self.config.flush_interval.is_zero()) {
            spool.reserve(AHEAD);
        }
    }

    pub(super) fn keep_in_spool(&mut self, open: &Open) {
        self.spool_rests(false);
        let upto = open.offset(self.wanted());
        // As in the tail: what is stored complete already counts for nothing before it is compared.
        let stored = self.is_stored(open);
        if let Some(spool) = self.spool.as_mut().filter(|_| !stored) {
            let spooled = spool.keep(&self.keys, open, upto);
            self.tell_spooled(spooled);
        }
    }

    pub(super) fn tell_spooled(&mut self, spooled: Result<Option<Spooled>>) {
        let begun = self.spool.as_mut().map(Spool::begun).unwrap_or_default();
        begun.into_iter().for_each(|(object, run)| self.tell(Kept::Spooling(object, run)));
        match spooled {
            Ok(Some(Spooled { from, to })) => {
                self.tell_checked();
                self.tell(Kept::Wrote { from, to });
            }
            Ok(None) => {}
            Err(error) => self.tell(Kept::Trouble(error)),
        }
    }

    pub(super) fn spool_due(&self) -> Option<Instant> {
        self.spool.as_ref().and_then(|spool| spool.due(self.config.flush_interval))
    }
}
