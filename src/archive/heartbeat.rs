//! Heartbeats: through which moment of the server's clock a timeline is stored. Only what is stored up to a heartbeat's position makes it count.

use std::time::Duration;

use bytes::Bytes;

use super::inventory::Inventory;
use super::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::Found;
use crate::repo::names::WalObject;
use crate::seal::content::heartbeat::Heartbeat;
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;
use crate::seal::opener::{open_index, read_header};
use crate::seal::sealer::{Compression, seal_index};

/// WAL from `from` up to a heartbeat's position that was stored, and is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostEnd {
    /// Where the stored WAL of the timeline ends; where nothing of it is stored, where it left another one (zero of the first timeline).
    pub from: Lsn,
    pub beat: Heartbeat,
}

impl Archive {
    /// Stores a heartbeat once, then deletes those of the timeline that say less, or that it corrects.
    pub async fn put_heartbeat(
        &self,
        keys: &WriterKeys,
        timeline: TimelineId,
        beat: Heartbeat,
        give_up: Duration,
    ) -> Result<()> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let claims = self.claims(ObjectKind::Heartbeat, timeline, beat.lsn);
        let sealed = seal_index(keys, claims, salt, Compression::None, &beat.encode());
        let judge = |head: &[u8]| match read_header(head) {
            Ok((header, _)) if header.salt == salt => Found::Ours,
            // Its name says all that it says.
            Ok((header, _)) if header.claims == claims => Found::Equal,
            _ => Found::Different,
        };
        let name = self.names.heartbeat(timeline, beat.lsn, beat.time);
        self.repo.put_once(&name, &sealed.bytes, &judge, give_up).await?;
        for (name, older) in self.list_heartbeats(timeline).await? {
            // A later time at a lower position was told by a clock that ran ahead.
            if older.lsn < beat.lsn || (older.lsn == beat.lsn && older.time < beat.time) {
                self.repo.delete(&name).await?;
            }
        }
        Ok(())
    }

    /// Every heartbeat of a timeline that opens, newest first. One that does not open tells nothing, nor one that another corrects.
    pub async fn heartbeats(&self, timeline: TimelineId) -> Result<Vec<Heartbeat>> {
        let mut beats = Vec::new();
        for (name, named) in self.list_heartbeats(timeline).await? {
            let object = match self.repo.get(&name).await {
                Ok(Some(object)) => Ok(object),
                // Gone since it was listed: a newer one says more, and the next look finds it.
                Ok(None) => continue,
                Err(error) if error.kind() == Kind::Corrupt => Err(error),
                Err(error) => return Err(error),
            };
            let claims = self.claims(ObjectKind::Heartbeat, timeline, named.lsn);
            let open = |object: Bytes| open_index(&object, &claims, &*self.keys).map_err(|e| refused(&name, e));
            match object.and_then(open).map(|content| Heartbeat::decode(&content, named)) {
                Ok(Ok(beat)) => beats.push(beat),
                Ok(Err(problem)) => tracing::warn!("{name} counts for nothing: {problem}"),
                Err(problem) => tracing::warn!("{name} counts for nothing: {problem}"),
            }
        }
        let mut beats = uncorrected(&beats);
        beats.sort_by_key(|beat| std::cmp::Reverse((beat.time, beat.lsn)));
        Ok(beats)
    }

    /// The newest heartbeat of a timeline of which everything is stored that it speaks of, as far as the end of what is stored tells.
    pub async fn complete_through(&self, timeline: TimelineId) -> Result<Option<Heartbeat>> {
        let beats = self.heartbeats(timeline).await?;
        if beats.is_empty() {
            return Ok(None);
        }
        let end = self.durable_end(timeline).await?;
        Ok(beats.into_iter().find(|beat| end.is_some_and(|end| end >= beat.lsn)))
    }

    /// WAL that was stored at the end of a timeline and is not any more, as a heartbeat shows. `None` of a timeline that another left: WAL past the fork is no
    /// part of a recovery that goes on, and what is before it is missed there.
    pub async fn lost_end(&self, inventory: &Inventory, timeline: TimelineId) -> Result<Option<LostEnd>> {
        if inventory.is_left(timeline) {
            return Ok(None);
        }
        let Some(beat) = self.heartbeats(timeline).await?.into_iter().max_by_key(|beat| beat.lsn) else {
            return Ok(None);
        };
        // A heartbeat is stored after the WAL that it speaks of: whoever looks for that later than for the heartbeat finds it.
        let from = match self.durable_end(timeline).await? {
            Some(end) => end,
            None => {
                inventory.histories.get(&timeline).and_then(|h| h.ancestors.last()).map_or(Lsn(0), |a| a.switch_point)
            }
        };
        Ok((from < beat.lsn).then_some(LostEnd { from, beat }))
    }

    /// By name; nothing is opened.
    async fn list_heartbeats(&self, timeline: TimelineId) -> Result<Vec<(String, Heartbeat)>> {
        let listed = self.repo.list(&self.names.heartbeat_folder(timeline)).await?;
        let beat = |name: String| match self.parse(&name)? {
            WalObject::Heartbeat { lsn, time, .. } => Some((name, Heartbeat { lsn, time })),
            _ => None,
        };
        Ok(listed.into_iter().filter_map(|listed| beat(listed.name)).collect())
    }
}

/// Without those of a clock that ran ahead: a higher position at an earlier time stands beside them.
fn uncorrected(beats: &[Heartbeat]) -> Vec<Heartbeat> {
    let corrects = |other: &Heartbeat, beat: &Heartbeat| other.lsn > beat.lsn && other.time < beat.time;
    beats.iter().copied().filter(|beat| !beats.iter().any(|other| corrects(other, beat))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::xact::PgTime;

    #[test]
    fn a_clock_that_ran_ahead_is_corrected_by_what_comes_later() {
        let beat = |lsn, time| Heartbeat { lsn: Lsn(lsn), time: PgTime(time) };
        assert_eq!(uncorrected(&[beat(10, 900), beat(20, 100)]), [beat(20, 100)]);
        let fine = [beat(10, 100), beat(20, 100), beat(20, 200), beat(30, 300)];
        assert_eq!(uncorrected(&fine), fine);
    }
}
