//! WAL that was written under `wal_level = minimal` leads nowhere: that is noted in the repository before the record that says so is stored there in any form.
//! So whatever is stored is known for what it is, also by a run that begins behind it because the server has let go of it. A restart whose slot stands before it
//! sees it again; what is noted already is not noted twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::GIVE_UP;
use super::object::Object;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{DurableLsn, Lsn, TimelineId};
use crate::seal::content::event::{MinimalWal, What};

/// After an event could not be stored, the next attempt waits so long.
const RETRY: Duration = Duration::from_secs(1);

/// A record that says so, and is not noted yet.
#[derive(Clone, Copy)]
struct Seen {
    start: Lsn,
    /// The object that it ends in is stored already. Of another history it says nothing, so it is noted once the two were compared.
    compares: bool,
}

/// The alarms of one timeline that are not noted yet, and what waits for them.
pub struct Alarms {
    archive: Archive,
    writer: Arc<WriterRing>,
    timeline: TimelineId,
    /// By their ends.
    seen: BTreeMap<Lsn, Seen>,
    /// Finished objects from the first on that holds one, in order.
    behind: VecDeque<Box<Object>>,
    /// Durable bytes that reach past one of them.
    withheld: Vec<(Lsn, DurableLsn)>,
    putting: JoinSet<(Lsn, Result<bool>)>,
}

/// An alarm is stored.
pub struct Noted {
    pub alarm: MinimalWal,
    /// Where its record ends.
    pub end: Lsn,
    /// It was not before.
    pub new: bool,
    /// What waited for it.
    pub released: Vec<(Lsn, DurableLsn)>,
}

impl Alarms {
    pub fn new(archive: Archive, writer: Arc<WriterRing>, timeline: TimelineId) -> Alarms {
        let (seen, behind, withheld, putting) = (BTreeMap::new(), VecDeque::new(), Vec::new(), JoinSet::new());
        Alarms { archive, writer, timeline, seen, behind, withheld, putting }
    }

    /// The record from `start` to `end` says so. Told before any byte of it is durable.
    pub fn saw(&mut self, start: Lsn, end: Lsn, compares: bool) {
        self.seen.insert(end, Seen { start, compares });
    }

    /// Whether everything that was seen is noted.
    pub fn is_quiet(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whether an event is on its way to the repository. What waits for bytes to compare waits for the server.
    pub fn is_noting(&self) -> bool {
        !self.putting.is_empty() || !self.behind.is_empty()
    }

    /// Whether what ends there may not be stored yet.
    fn holds(&self, to: Lsn) -> bool {
        self.seen.iter().take_while(|(end, _)| **end <= to).any(|(_, seen)| !seen.compares)
    }

    /// An object that is to be put: handed back if that may be now. None goes before another that is kept here: of what is stored nothing may lie far above a
    /// hole.
    pub fn admit(&mut self, object: Box<Object>) -> Option<Box<Object>> {
        if self.behind.is_empty() && !self.holds(object.summary.end) {
            return Some(object);
        }
        self.behind.push_back(object);
        self.note(|_, seen| !seen.compares);
        None
    }

    /// The next object that waited and may be put now.
    pub fn admitted(&mut self) -> Option<Box<Object>> {
        let first = self.behind.front().filter(|object| !self.holds(object.summary.end));
        first.is_some().then(|| self.behind.pop_front()).flatten()
    }

    /// Records up to `checked` are good, and stored copies agree up to `compared` (`None`: nothing is left to compare).
    pub fn checked(&mut self, checked: Lsn, compared: Option<Lsn>) {
        let upto = compared.map_or(checked, |compared| compared.min(checked));
        self.note(|end, seen| !seen.compares && end <= upto);
    }

    /// Keeps durable bytes that reach past an alarm until that is stored; `false`: they count.
    pub fn withholds(&mut self, from: Lsn, to: DurableLsn) -> bool {
        let past = self.seen.first_key_value().is_some_and(|(end, _)| *end <= to.lsn());
        if past {
            self.withheld.push((from, to));
        }
        past
    }

    /// Without a hole everything is durable up to there, what is kept here not counted: an alarm of which that is true with it is stored.
    pub fn reached(&mut self, durable: Lsn) {
        let Some(upto) = self.withheld.iter().filter(|(from, _)| *from <= durable).map(|(_, to)| to.lsn()).max() else {
            return;
        };
        self.note(|end, _| end <= upto);
    }

    /// Nothing more comes: what was not compared by now never is, and the object that it lies in was stored by a run that saw it.
    pub fn note_rest(&mut self) {
        self.note(|_, _| true);
    }

    /// Stores the first that is ready, one after the other.
    fn note(&mut self, ready: impl Fn(Lsn, Seen) -> bool) {
        if !self.putting.is_empty() {
            return;
        }
        if let Some((&end, &seen)) = self.seen.iter().find(|(end, seen)| ready(**end, **seen)) {
            self.put(seen.start, end, Duration::ZERO);
        }
    }

    fn put(&mut self, start: Lsn, end: Lsn, wait: Duration) {
        let (archive, writer) = (self.archive.clone(), self.writer.clone());
        let alarm = MinimalWal { timeline: self.timeline, lsn: start };
        self.putting.spawn(async move {
            tokio::time::sleep(wait).await;
            let noted = async {
                if archive.has_noted(alarm).await? {
                    return Ok(false);
                }
                archive.put_event(&writer.fresh()?, What::MinimalWal(alarm), GIVE_UP).await.map(|()| true)
            };
            let late = |_| Err(Error::new(Kind::Repository, "no answer in time").transient());
            (end, tokio::time::timeout(GIVE_UP * 2, noted).await.unwrap_or_else(late))
        });
    }

    /// What became of an attempt, which is made again where it failed; `None` while there is none. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Noted>> {
        let (end, outcome) = match self.putting.join_next().await? {
            Ok(done) => done,
            Err(died) => return Some(Err(Error::new(Kind::Failed, "a put died").caused_by(died))),
        };
        let start = self.seen.get(&end).copied()?.start;
        Some(match outcome {
            Ok(new) => {
                self.seen.remove(&end);
                let alarm = MinimalWal { timeline: self.timeline, lsn: start };
                Ok(Noted { alarm, end, new, released: std::mem::take(&mut self.withheld) })
            }
            Err(error) => {
                self.put(start, end, RETRY);
                Err(error)
            }
        })
    }
}
