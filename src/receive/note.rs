//! What a pipeline has to say to the catalog: each object once it is acknowledged, not before.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::index::{Feed, Note};
use super::put::{Done, Item};
use crate::catalog::{Fact, Object};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;
use crate::seal::header::ObjectKind;

/// Objects that are durable and not acknowledged yet, of one timeline.
pub struct Notes {
    timeline: TimelineId,
    /// By end.
    waiting: BTreeMap<Lsn, Note>,
    feed: Feed,
}

impl Notes {
    pub fn begin(timeline: TimelineId, start: Lsn, feed: Feed) -> Notes {
        feed.tell(Note::Began { timeline, start });
        Notes { timeline, waiting: BTreeMap::new(), feed }
    }

    pub fn settled(&mut self, done: &Done) {
        let (Item::Object(object), Some(_)) = (&done.item, done.durable) else { return };
        let (timeline, start, end) = (self.timeline, object.summary.start, object.summary.end);
        let note = match done.equal {
            true => Note::StoredBefore { timeline, start, end },
            false => {
                let partial = object.kind == ObjectKind::Partial;
                Note::Stored(Box::new(Object::of(timeline, partial, object.sealed.len(), &object.summary)))
            }
        };
        self.waiting.insert(end, note);
    }

    /// Everything up to `lsn` is acknowledged, or the timeline ends there.
    pub fn until(&mut self, lsn: Lsn) {
        while let Some(first) = self.waiting.first_entry().filter(|entry| *entry.key() <= lsn) {
            self.feed.tell(first.remove());
        }
    }

    /// How far the repository and the server are, where the server was told a position.
    pub fn reached(&self, durable: Lsn, server_end: Lsn) {
        if durable == Lsn::INVALID {
            return;
        }
        let fact = Fact::Reached { timeline: self.timeline, durable, server_end, at: SystemTime::now() };
        self.feed.tell(Note::Told(fact));
    }

    pub fn beat(&self, beat: Heartbeat) {
        let Heartbeat { lsn, time, .. } = beat;
        self.feed.tell(Note::Told(Fact::Heartbeat { timeline: self.timeline, lsn, time }));
    }
}
