//! Storing heartbeats: so that a restore can reach an idle time after the last commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::GIVE_UP;
use super::lasting::Lasting;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;

/// At most one in so long, but for the last one before a stop.
const EVERY: Duration = Duration::from_secs(60);

/// The heartbeats of one timeline.
pub struct Beats {
    archive: Archive,
    writer: Arc<WriterRing>,
    timeline: TimelineId,
    /// Where that ends which was stored before this run.
    known: Lsn,
    /// The newest that may be stored.
    latest: Option<Heartbeat>,
    /// The newest that was put, and when.
    put: Option<(Heartbeat, Instant)>,
    putting: JoinSet<Result<Option<String>>>,
    lasting: Lasting,
}

impl Beats {
    /// `known`: where that ends which is stored already.
    pub fn new(archive: Archive, writer: Arc<WriterRing>, timeline: TimelineId, known: Lsn, lasting: Lasting) -> Beats {
        Beats { archive, writer, timeline, known, latest: None, put: None, putting: JoinSet::new(), lasting }
    }

    /// Whether nothing is stored behind the position of a server whose WAL ends there. One that lags, or was put back to a snapshot, knows nothing of what is.
    pub fn speaks_for_all(&self, end: Lsn) -> bool {
        end >= self.known
    }

    /// A heartbeat whose WAL is durable, checked and compared. Stored when it is time.
    pub fn proven(&mut self, beat: Heartbeat) {
        self.latest = self.latest.filter(|latest| !says_more(beat, *latest)).or(Some(beat));
        if self.put.is_none_or(|(_, at)| at.elapsed() >= EVERY) {
            self.store();
        }
    }

    /// Stores what is not stored yet: before a stop.
    pub fn store(&mut self) {
        let Some(beat) = self.latest.filter(|beat| self.put.is_none_or(|(put, _)| says_more(*beat, put))) else {
            return;
        };
        if !self.putting.is_empty() {
            return;
        }
        self.put = Some((beat, Instant::now()));
        let (archive, writer, timeline) = (self.archive.clone(), self.writer.clone(), self.timeline);
        let lasting = self.lasting.clone();
        self.putting.spawn(async move {
            archive.put_heartbeat(&writer.fresh()?, timeline, beat, GIVE_UP).await?;
            // A server that writes nothing has nothing else put.
            lasting.gone(&archive, timeline).await
        });
    }

    /// The outcome of a put, with what is gone of what was stored before; `None` while there is none. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Option<String>>> {
        let done = self.putting.join_next().await?;
        Some(done.unwrap_or_else(|error| Err(Error::new(Kind::Failed, "a put died").caused_by(error))))
    }
}

/// Whether a heartbeat takes the place of an earlier one. A higher position at an earlier time corrects what a clock that ran ahead said before.
fn says_more(beat: Heartbeat, earlier: Heartbeat) -> bool {
    beat.lsn > earlier.lsn || (beat.lsn == earlier.lsn && beat.time > earlier.time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;
    use crate::pg::xact::PgTime;

    #[test]
    fn a_heartbeat_of_a_corrected_clock_takes_the_place_of_the_one_before() {
        let beat = |lsn, time| Heartbeat { lsn: Lsn(lsn), time: PgTime(time) };
        assert!(says_more(beat(20, 100), beat(10, 900)) && says_more(beat(10, 901), beat(10, 900)));
        assert!(!says_more(beat(10, 900), beat(10, 900)) && !says_more(beat(10, 899), beat(10, 900)));
    }
}
