//! Gathering what the decision about the start needs, and what is compared from there on.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;

use super::check::Link;
use super::compare::OldTail;
use super::object::{Place, object_bytes};
use super::observe::Observer;
use super::put::read_summary;
use super::resume::{self, Known, ServerView, SlotPosition, Start};
use super::server::Server;
use crate::archive::Archive;
use crate::archive::inventory::{Inventory, TimelineStock};
use crate::error::{Error, Kind, Result};
use crate::pg::page::{PAGE_SIZE, SHORT_HEADER};
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};
use crate::seal::content::summary::{LastRecord, Summary};
use crate::seal::header::ObjectKind;
use crate::seal::opener::OpenFailed;

/// Tails that are read at once: a killed run may have left many pieces, and the next one streams only after it has them all.
const READS: usize = 8;

/// How often the tails of a segment are looked at when some vanish meanwhile.
const LOOKS: u32 = 8;

/// What is stored of one timeline from a start on.
pub struct Stored {
    /// Starts of the objects that are there: of a large segment some parts may be, and not the others.
    pub objects: BTreeSet<Lsn>,
    /// Tails of unfinished segments and ends of the timeline, to compare.
    pub tails: Vec<OldTail>,
    /// Segments below the start that are complete and still have tails: those are of no use any more.
    pub litter: BTreeSet<SegmentNumber>,
    /// What the object before the start says of the record before the first one.
    pub link: Option<Link>,
    /// Up to where earlier runs have reported, where that is known and a record that ends later is to be checked from its head on.
    pub reported: Option<Lsn>,
}

impl Stored {
    /// Where it ends; of an object that is there, where it would if it were whole.
    pub fn end(&self, size: SegmentSize) -> Option<Lsn> {
        let tails = self.tails.iter().map(OldTail::end).max();
        tails.max(self.objects.last().map(|last| *last + object_bytes(size)))
    }
}

/// Where this run begins, and what is stored of the newest WAL.
pub async fn start(archive: &Archive, server: &Server) -> Result<(Start, Inventory)> {
    let needed = match server.slot {
        SlotPosition::At(lsn) => lsn.min(server.identity.position),
        _ => server.identity.position,
    };
    // A timeline that this server left is finished at the segment in which it did.
    let left = |timeline| server.history.switch_point_of(timeline).unwrap_or(needed);
    let inventory = archive.newest(|timeline| needed.min(left(timeline))).await?;
    let partial_ends = partial_ends(archive, server, &inventory).await?;
    let holes = archive.settled_holes().await?;
    let view = ServerView {
        timeline: server.identity.timeline,
        position: server.identity.position,
        history: &server.history,
        slot: server.slot,
        segment_size: server.segment_size,
    };
    let known = Known { inventory: &inventory, partial_ends: &partial_ends, holes: &holes };
    let start = resume::decide(&view, &known);
    if start.stored.is_none() && server.slot == SlotPosition::Unknown && server.unasked {
        // The first word to the server would move the slot to its present end, past WAL that it has kept for this archive.
        let text = "nothing is stored yet, and the connection that could tell where the slot stands was not opened";
        return Err(Error::new(Kind::Server, text).transient());
    }
    Ok((start, inventory))
}

/// Per left timeline, the end of the stored `.partial` of the segment with the switch point.
async fn partial_ends(archive: &Archive, server: &Server, inventory: &Inventory) -> Result<BTreeMap<TimelineId, Lsn>> {
    let mut ends = BTreeMap::new();
    for ancestor in &server.history.ancestors {
        let number = server.segment_size.segment_of(ancestor.switch_point);
        let stock = inventory.timelines.get(&ancestor.timeline);
        if !stock.is_some_and(|stock| stock.partial.contains(&number)) {
            continue;
        }
        let segment = SegmentName::new(ancestor.timeline, number, server.segment_size);
        let start = Place::of(ancestor.switch_point, ancestor.timeline, server.segment_size).start;
        let claims = archive.claims(ObjectKind::Partial, ancestor.timeline, start);
        if let Some(summary) = read_summary(archive, &archive.names.partial(segment), &claims).await? {
            ends.insert(ancestor.timeline, summary.end);
        }
    }
    Ok(ends)
}

/// What is stored of `timeline` from `start` on.
pub async fn stored(
    archive: &Archive,
    inventory: &Inventory,
    timeline: TimelineId,
    start: Lsn,
    observer: &Observer,
) -> Result<Stored> {
    let none = TimelineStock::default();
    let stock = inventory.timelines.get(&timeline).unwrap_or(&none);
    let first = archive.names.segment_size.segment_of(start);
    let mut tails = Vec::new();
    let mut objects = stock.objects_from(first, archive.names.segment_size);
    let name_of = |number: &SegmentNumber| SegmentName::new(timeline, *number, archive.names.segment_size);
    let unfinished = |number: &SegmentNumber| !stock.complete.contains(number);
    for (number, names) in stock.tails.range(first..).filter(|(number, _)| unfinished(number)) {
        let (found, since) = settled_tails(archive, name_of(number), names.clone(), observer).await?;
        tails.extend(found);
        objects.extend(since);
    }
    for number in stock.partial.range(first..).filter(|number| unfinished(number)) {
        let end = stored_end_of(archive, name_of(number), observer).await?;
        tails.extend(end.filter(|end| !objects.contains(&end.start)));
    }
    let litter = stock.tails.range(..first).map(|(number, _)| *number);
    let litter = litter.filter(|number| stock.complete.contains(number)).collect();
    let link = link(archive, timeline, start).await?;
    Ok(Stored { objects, tails, litter, link, reported: None })
}

/// The stored objects before a border, from the last one down to the one in which a record ends, or the beginning of their segment: of a large segment a part may
/// lie inside a record, or hold the zeros behind a switch.
async fn before(archive: &Archive, timeline: TimelineId, border: Lsn) -> Result<Vec<(String, Summary)>> {
    let size = archive.names.segment_size;
    let mut found = Vec::new();
    let mut end = border;
    while let Some(last) = end.0.checked_sub(1) {
        let place = Place::of(Lsn(last), timeline, size);
        let object = archive.names.segment(place.segment, place.part);
        let claims = archive.claims(ObjectKind::Segment, timeline, place.start);
        let Some(summary) = read_summary(archive, &object, &claims).await? else { break };
        let is_last = summary.last_record.is_some() || place.start == place.segment.start();
        found.push((object, summary));
        if is_last {
            break;
        }
        end = place.start;
    }
    Ok(found)
}

/// What is stored before a border of objects, as something to compare: nothing from its start on counts, or is kept in a tail, before the server has sent the
/// same bytes. Zeros behind a switch are alike in all histories, and no reading begins there: all of it begins with a record, or with its segment.
pub struct Before {
    /// The object with the last record, and those behind it.
    pub objects: Vec<OldTail>,
    /// Their segment was left for the next one.
    pub switched: bool,
}

impl Before {
    /// Where that begins; `None` where nothing is stored before the border.
    pub fn start(&self) -> Option<Lsn> {
        self.objects.iter().map(|object| object.start).min()
    }
}

/// See [`Before`].
pub async fn objects_before(archive: &Archive, timeline: TimelineId, border: Lsn) -> Result<Before> {
    let found = before(archive, timeline, border).await?;
    let switched = found.iter().any(|(_, summary)| summary.switched);
    let objects = found.into_iter().map(|(name, summary)| {
        let marks = vec![(summary.end.since(summary.start), summary.hash)];
        OldTail { name, pieces: Vec::new(), is_end: false, start: summary.start, marks }
    });
    Ok(Before { objects: objects.collect(), switched })
}

/// The last record that begins before `start`, where an object says so that is stored there.
async fn link(archive: &Archive, timeline: TimelineId, start: Lsn) -> Result<Option<Link>> {
    let found = before(archive, timeline, start).await?.pop();
    let last = found.and_then(|(object, summary)| Some((object, summary.last_record?)));
    Ok(last.map(|(object, last)| Link { record: last_begun(last, start), object }))
}

/// Where the last record begins that does so before `start`: another one behind the last that ends there, if that leaves room.
fn last_begun(last: LastRecord, start: Lsn) -> Lsn {
    match last.end {
        end if end >= start => last.start,
        // A page begins with its header; only the first one of a segment has a longer one.
        end if end.0.is_multiple_of(PAGE_SIZE) => end + SHORT_HEADER as u64,
        end => end,
    }
}

/// The tails of one segment, of which none was gone when it was read: merged meanwhile, or no longer needed. With them the starts of its objects, where it had
/// to be looked again.
async fn settled_tails(
    archive: &Archive,
    segment: SegmentName,
    mut names: Vec<String>,
    observer: &Observer,
) -> Result<(Vec<OldTail>, Vec<Lsn>)> {
    let mut objects = Vec::new();
    for _ in 0..LOOKS {
        if let Some(tails) = old_tails(archive, segment, &names, observer).await? {
            return Ok((tails, objects));
        }
        names = archive.tails_of(segment).await?;
        objects = archive.stored_objects(segment).await?;
        if archive.is_complete(segment).await? {
            return Ok((Vec::new(), objects));
        }
    }
    let text =
        format!("what is stored of segment {segment} changes faster than it can be read: another run is at work");
    Err(Error::new(Kind::Repository, text).transient())
}

/// The end of the timeline that stands in this segment, as something to compare: the server may go on past it, or on another way. Its content is known by one
/// hash only, so nothing from its start on counts before all of it was sent again.
async fn stored_end_of(archive: &Archive, segment: SegmentName, observer: &Observer) -> Result<Option<OldTail>> {
    let name = archive.names.partial(segment);
    match archive.partial_summary(segment).await {
        Ok(found) => Ok(found.map(|summary| {
            let marks = vec![(summary.end.since(summary.start), summary.hash)];
            OldTail { name, pieces: Vec::new(), is_end: true, start: summary.start, marks }
        })),
        Err(problem) if problem.kind() == Kind::Corrupt => {
            observer.warn(format!("the end {name} of timeline {} cannot be compared: {problem}", segment.timeline));
            Ok(None)
        }
        Err(problem) => Err(problem),
    }
}

/// The tails of one segment: local files one by one, the pieces of one run together. `None` when one of them is gone.
async fn old_tails(
    archive: &Archive,
    segment: SegmentName,
    names: &[String],
    observer: &Observer,
) -> Result<Option<Vec<OldTail>>> {
    let mut runs: BTreeMap<[u8; 32], OldTail> = BTreeMap::new();
    let mut read = Vec::new();
    for some in names.chunks(READS) {
        read.extend(try_join_all(some.iter().map(|name| archive.tail_bytes(name))).await?);
    }
    for (name, bytes) in names.iter().zip(read) {
        let Some(bytes) = bytes else { return Ok(None) };
        if bytes.iter().all(|b| *b == 0) {
            continue;
        }
        match archive.marks_of(segment, name, &bytes) {
            Ok((salt, start, marks)) => {
                let new =
                    || OldTail { name: name.clone(), pieces: Vec::new(), is_end: false, start, marks: Vec::new() };
                let run = runs.entry(salt).or_insert_with(new);
                run.marks.extend(marks);
                if !name.ends_with(".open") {
                    run.pieces.push(name.clone());
                }
            }
            Err(OpenFailed::Key(problem)) => {
                return Err(Error::new(Kind::Key, format!("{name}: {problem}"))
                    .hint("The repository secret is not the one that this was written with: check secret_file."));
            }
            // It counts for nothing: the segment is received again.
            Err(problem) => observer.warn(format!("the tail {name} of an earlier run cannot be compared: {problem}")),
        }
    }
    let sorted = runs.into_values().map(|mut tail| {
        tail.marks.sort_unstable();
        tail.marks.dedup();
        tail
    });
    Ok(Some(sorted.collect()))
}
