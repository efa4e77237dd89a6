//! WAL that was written under `wal_level = minimal` leads nowhere: that is noted in the repository before anything behind it counts as durable, so that no run
//! that ends too early can pass over it. A restart whose slot stands before it sees it again; what is noted already is not noted twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::GIVE_UP;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{DurableLsn, Lsn, TimelineId};
use crate::seal::content::event::{MinimalWal, What};

/// After an event could not be stored, the next attempt waits so long.
const RETRY: Duration = Duration::from_secs(1);

/// The alarms of one timeline that are not noted yet, and what waits for them.
pub struct Alarms {
    archive: Archive,
    writer: Arc<WriterRing>,
    timeline: TimelineId,
    /// Ends and starts of the records.
    seen: BTreeMap<Lsn, Lsn>,
    /// Durable bytes that reach past one of them.
    withheld: Vec<(Lsn, DurableLsn)>,
    putting: JoinSet<(Lsn, Result<bool>)>,
}

/// An alarm is stored.
pub struct Noted {
    pub alarm: MinimalWal,
    /// It was not before.
    pub new: bool,
    /// What waited for it.
    pub released: Vec<(Lsn, DurableLsn)>,
}

impl Alarms {
    pub fn new(archive: Archive, writer: Arc<WriterRing>, timeline: TimelineId) -> Alarms {
        let (seen, withheld, putting) = (BTreeMap::new(), Vec::new(), JoinSet::new());
        Alarms { archive, writer, timeline, seen, withheld, putting }
    }

    /// The record from `start` to `end` says so. Told before any byte of it is durable.
    pub fn saw(&mut self, start: Lsn, end: Lsn) {
        self.seen.insert(end, start);
    }

    /// Whether everything that was seen is noted.
    pub fn is_quiet(&self) -> bool {
        self.seen.is_empty()
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
        let Some((&end, &start)) = self.seen.first_key_value().filter(|_| self.putting.is_empty()) else { return };
        if self.withheld.iter().any(|(from, to)| *from <= durable && to.lsn() >= end) {
            self.put(start, end, Duration::ZERO);
        }
    }

    fn put(&mut self, start: Lsn, end: Lsn, wait: Duration) {
        let (archive, writer) = (self.archive.clone(), self.writer.clone());
        let alarm = MinimalWal { timeline: self.timeline, lsn: start };
        self.putting.spawn(async move {
            tokio::time::sleep(wait).await;
            let noted = async {
                if archive.minimal_wal().await?.contains(&alarm) {
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
        let start = self.seen.get(&end).copied()?;
        Some(match outcome {
            Ok(new) => {
                self.seen.remove(&end);
                let alarm = MinimalWal { timeline: self.timeline, lsn: start };
                Ok(Noted { alarm, new, released: std::mem::take(&mut self.withheld) })
            }
            Err(error) => {
                self.put(start, end, RETRY);
                Err(error)
            }
        })
    }
}
