//! Reading WAL: a segment as one run of bytes, whichever objects hold it.

use bytes::Bytes;

use super::Archive;
use super::inventory::Inventory;
use super::join::{Run, join};
use super::tails::{Looks, Span};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, SegmentName};
use crate::seal::content::summary::Summary;
use crate::seal::header::ObjectKind;

/// How many steps (list, or read) a segment whose tails vanish while being read is given: each time they do, more of it is stored.
pub(super) const LOOKS: usize = 24;

/// The stored bytes of one segment, from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentBytes {
    /// All of it.
    Complete(Bytes),
    /// The durable prefix: complete parts, `.partial`, tail files and pieces of any runs joined. Overlaps must agree (`Kind::Diverged`); a
    /// damaged one is passed over where others hold its bytes, and `Kind::Corrupt` where not.
    Prefix(Bytes),
}

impl Archive {
    /// `None`: the store proved that nothing of the segment exists. A listed tail that is gone when read means look again (segment sealed or tails merged
    /// meanwhile), never absent.
    ///
    /// With an inventory, what it does not know is absent, as of the time it was made.
    pub async fn read_segment(
        &self,
        segment: SegmentName,
        inventory: Option<&Inventory>,
    ) -> Result<Option<SegmentBytes>> {
        let listed = match inventory {
            Some(inventory) if !inventory.holds(segment) => return Ok(None),
            Some(inventory) => Some(inventory.tails(segment).to_vec()),
            None => None,
        };
        let mut looks = Looks::new(listed);
        for _ in 0..LOOKS {
            // The object is created before its tails are deleted: looked for after the tails were listed, it cannot be missed.
            let mut runs = self.open_objects(segment).await?;
            let whole: u64 = runs.iter().map(|run| run.bytes.len() as u64).sum();
            if whole == segment.size.bytes() {
                return Ok(Some(SegmentBytes::Complete(joined(segment, runs)?)));
            }
            let Some(names) = looks.listed.take() else {
                looks.listed = Some(self.tails_of(segment).await?);
                continue;
            };
            if let Some(partial) = self.open_partial(segment).await? {
                looks.add(self.names.partial(segment), partial);
            }
            let all = looks.look(names, |name| self.piece_span(name), |name| self.open_tail(segment, name)).await?;
            let spans: Vec<(u64, u64)> = runs.iter().map(Span::span).collect();
            if !all || looks.doubts(&spans) {
                continue;
            }
            let (tails, damages) = looks.settled();
            runs.extend(tails);
            if runs.is_empty() && damages.is_empty() {
                return Ok(None);
            }
            let bytes = joined(segment, runs)?;
            damages.demand_covered(bytes.len() as u64)?;
            let all = bytes.len() as u64 == segment.size.bytes();
            return Ok(Some(if all { SegmentBytes::Complete(bytes) } else { SegmentBytes::Prefix(bytes) }));
        }
        Err(unsettled(segment))
    }

    /// The segment, where it is stored as a whole under its own name; tails are not looked at. `None`: some of it is not.
    pub async fn read_complete(&self, segment: SegmentName) -> Result<Option<Bytes>> {
        // Parts are put in their order, more or less: where the last one is missing, the others need not be fetched.
        if let Some((last, _)) = self.objects_of(segment).last()
            && self.repo.head(last).await?.is_none()
        {
            return Ok(None);
        }
        let runs = self.open_objects(segment).await?;
        let whole: u64 = runs.iter().map(|run| run.bytes.len() as u64).sum();
        (whole == segment.size.bytes()).then(|| joined(segment, runs)).transpose()
    }

    async fn open_objects(&self, segment: SegmentName) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for (name, start) in self.objects_of(segment) {
            runs.extend(self.open_object(segment, &name, start).await?);
        }
        Ok(runs)
    }

    /// What these tails hold together of a segment, from `start` on. Other tails are not looked at.
    pub async fn tail_content(&self, segment: SegmentName, start: Lsn, names: &[String]) -> Result<Vec<u8>> {
        let mut looks = Looks::new(None);
        if !looks.look(names.to_vec(), |_| None, |name| self.open_tail(segment, name)).await? {
            return Err(Error::new(Kind::Corrupt, format!("one of {} is gone", names.join(", "))));
        }
        let (mut runs, damages) = looks.settled();
        let first = start.since(segment.start());
        runs.iter_mut().for_each(|run| run.offset = run.offset.saturating_sub(first));
        let bytes = joined(segment, runs)?;
        damages.demand_covered(first + bytes.len() as u64)?;
        Ok(bytes.into())
    }

    /// Whether what a segment holds from `start` on lies behind a WAL switch: the last object below in which a record ends says so.
    pub async fn is_behind_switch(&self, segment: SegmentName, start: Lsn) -> Result<bool> {
        Ok(self.last_with_record(segment, start).await?.is_some_and(|summary| summary.switched))
    }

    /// What the last object of a segment below `start` in which a record ends says of itself, or the first one; `None`: it is not stored, or not all behind it.
    pub(super) async fn last_with_record(&self, segment: SegmentName, start: Lsn) -> Result<Option<Summary>> {
        let mut found = None;
        for (name, below) in self.objects_of(segment).into_iter().rev().filter(|(_, below)| *below < start) {
            let claims = self.claims(ObjectKind::Segment, segment.timeline, below);
            found = self.read_summary(&name, &claims).await?;
            if found.as_ref().is_none_or(|summary| summary.last_record.is_some()) {
                break;
            }
        }
        Ok(found)
    }

    /// The summaries (frame 0) of a complete segment's objects, in order; `None` when one of them is not stored.
    pub async fn summaries(&self, segment: SegmentName) -> Result<Option<Vec<Summary>>> {
        let mut summaries = Vec::new();
        for (name, start) in self.objects_of(segment) {
            let claims = self.claims(ObjectKind::Segment, segment.timeline, start);
            match self.read_summary(&name, &claims).await? {
                Some(summary) => summaries.push(summary),
                None => return Ok(None),
            }
        }
        Ok(Some(summaries))
    }
}

fn joined(segment: SegmentName, mut runs: Vec<Run>) -> Result<Bytes> {
    if let [only] = runs.as_mut_slice()
        && only.offset == 0
    {
        return Ok(Bytes::from(std::mem::take(&mut only.bytes)));
    }
    join(runs).map(Bytes::from).map_err(|differ| {
        let at = segment.start() + differ.offset;
        let text = format!(
            "{} and {} hold different WAL at {at} of timeline {}",
            differ.first, differ.second, segment.timeline
        );
        Error::new(Kind::Diverged, text)
            .hint("Two servers wrote to one timeline: find out which of them is right before anything is deleted.")
    })
}

pub(super) fn unsettled(segment: SegmentName) -> Error {
    let text = format!("what is stored of segment {segment} changes faster than it can be read");
    Error::new(Kind::Repository, text).transient()
}
