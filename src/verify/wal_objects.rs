//! WAL object by object: group summaries, tails, and (deep) every segment opened, compared with its summary, and its records read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::backups::Shelf;
use super::look::{Look, Trouble};
use super::report::Problem;
use super::wal::{Stored, Stretch, legs};
use super::{Flaw, Stage};
use crate::archive::Archive;
use crate::archive::group::WalEntry;
use crate::error::{Context, Result};
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::{Lsn, MajorVersion, SegmentName, TimelineId};
use crate::repo::WalGroup;
use crate::repo::names::{PART_BYTES, WalObject};
use crate::seal::content::group::GroupSummary;
use crate::seal::content::summary::Summary;
use crate::seal::header::{FIXED_HEADER, KeyClass, ObjectKind};
use crate::seal::opener::open_index;

/// No object with WAL is smaller: header, two commitments, CRC-32C, a frame's head and tag.
const LEAST: u64 = FIXED_HEADER as u64 + 32 + 32 + 4 + 16 + 16;
const PAGE: u64 = 8192;

/// Looks at every object with WAL that matters.
pub async fn look(look: &Look<'_>, shelf: &Shelf, stored: &Stored) -> Result<()> {
    let wanted = wanted(look, shelf, stored);
    let mut groups = Vec::new();
    for timeline in stored.inventory.timelines.keys() {
        let found = look.patiently(|| look.archive.groups(*timeline)).await.context("cannot list the WAL")?;
        groups.extend(
            found.into_iter().filter(|group| wanted.as_ref().is_none_or(|w| w.iter().any(|s| meets(*group, s)))),
        );
    }
    let (total, done) = (groups.len() as u64, AtomicU64::new(0));
    for group in groups {
        one_group(look, shelf, stored, group, wanted.as_deref()).await?;
        look.tell(Stage::Wal, done.fetch_add(1, Ordering::Relaxed) + 1, total);
    }
    tails(look, shelf, stored, wanted.as_deref()).await;
    Ok(())
}

/// The WAL of the one backup that was asked for; `None`: all.
fn wanted(look: &Look<'_>, shelf: &Shelf, stored: &Stored) -> Option<Vec<Stretch>> {
    look.options.only.as_ref()?;
    let size = look.size().bytes();
    let mut stretches: Vec<Stretch> = shelf.manifests.iter().flat_map(|m| legs(m, &stored.inventory)).collect();
    for stretch in &mut stretches {
        (stretch.from, stretch.to) = (stretch.from.align_down(size), stretch.to.align_up(size));
    }
    Some(stretches)
}

fn meets(group: WalGroup, stretch: &Stretch) -> bool {
    group.timeline == stretch.timeline && group.first < stretch.to && !group.ends_by(stretch.from)
}

/// The WAL that an object holds, as far as its name tells.
fn span(look: &Look<'_>, timeline: TimelineId, entry: &WalEntry) -> Stretch {
    let size = look.size().bytes();
    let share = if entry.partial { size } else { size.min(PART_BYTES) };
    Stretch { timeline, from: entry.start, to: entry.start + share }
}

fn blame(look: &Look<'_>, shelf: &Shelf, stored: &Stored, object: &str, stretch: Stretch, trouble: Trouble) {
    let (hurts, limits) = stored.affected(shelf, stretch);
    let expected = format!("WAL of timeline {} from {} to {}", stretch.timeline, stretch.from, stretch.to);
    look.note(Problem { object: object.to_owned(), flaw: trouble.flaw, expected, found: trouble.found, hurts, limits });
}

async fn one_group(
    look: &Look<'_>,
    shelf: &Shelf,
    stored: &Stored,
    group: WalGroup,
    wanted: Option<&[Stretch]>,
) -> Result<()> {
    let listing = look.patiently(|| look.archive.list_group(group)).await.context("cannot list the WAL")?;
    let summary = match wanted {
        None if listing.summary => group_summary(look, group).await,
        _ => None,
    };
    let inside = |entry: &WalEntry| {
        let span = span(look, group.timeline, entry);
        let meets = |s: &Stretch| s.timeline == span.timeline && s.from < span.to && span.from < s.to;
        wanted.is_none_or(|wanted| wanted.iter().any(meets))
    };
    let entries: Vec<WalEntry> = listing.entries.into_iter().filter(inside).collect();
    let mut told: BTreeMap<Lsn, [u8; 32]> = BTreeMap::new();
    let check = |entry: WalEntry| async move {
        let opened = if look.options.deep {
            open(look, group.timeline, &entry).await
        } else if entry.size < LEAST {
            Err(Trouble::damaged(format!("{} bytes, fewer than any object has", entry.size)))
        } else {
            Ok(None)
        };
        (entry, opened)
    };
    let mut checking = stream::iter(entries.into_iter().map(check)).buffer_unordered(look.options.jobs.max(1));
    while let Some((entry, opened)) = checking.next().await {
        match opened {
            Ok(found) => {
                look.count(|checked| checked.wal_objects += 1);
                told.extend(found.filter(|_| !entry.partial).map(|summary| (summary.start, summary.hash)));
            }
            Err(trouble) => {
                let span = span(look, group.timeline, &entry);
                blame(look, shelf, stored, &entry.name, span, trouble);
            }
        }
    }
    drop(checking);
    compare_summary(look, group, summary.as_ref(), &told);
    Ok(())
}

/// An index: nothing is lost with it but time.
async fn group_summary(look: &Look<'_>, group: WalGroup) -> Option<GroupSummary> {
    let name = look.archive.names.group_summary(group);
    let claims = look.archive.claims(ObjectKind::GroupSummary, group.timeline, group.first);
    let keys = look.archive.keys.clone();
    let open = move |bytes: Bytes| {
        let content = open_index(&bytes, &claims, &*keys)?;
        Ok(GroupSummary::decode(&content, group.first)?)
    };
    match look.object(&name, KeyClass::Index, open).await {
        Ok(summary) => {
            look.count(|checked| checked.group_summaries += 1);
            Some(summary)
        }
        Err(trouble) => {
            look.blame(
                &name,
                "the summaries of 4 GiB of WAL: an index, without it listing takes longer",
                trouble,
                Default::default(),
            );
            None
        }
    }
}

/// What the index says of objects, against what they say themselves.
fn compare_summary(look: &Look<'_>, group: WalGroup, summary: Option<&GroupSummary>, told: &BTreeMap<Lsn, [u8; 32]>) {
    let listed = summary.into_iter().flat_map(|summary| &summary.segments);
    let mut wrong = listed.filter(|own: &&Summary| told.get(&own.start).is_some_and(|hash| *hash != own.hash));
    if let Some(first) = wrong.next() {
        let found = Trouble::damaged(format!("it tells of other WAL at {} than the object there", first.start));
        let expected = "the summaries of 4 GiB of WAL, as the objects have them";
        look.blame(&look.archive.names.group_summary(group), expected, found, Default::default());
    }
}

/// Opens an object, compares it with its summary, reads its records.
async fn open(look: &Look<'_>, timeline: TimelineId, entry: &WalEntry) -> Result<Option<Summary>, Trouble> {
    let (archive, of) = (look.archive.clone(), entry.clone());
    let open = move |bytes: Bytes| {
        let examined = archive.examine_wal(timeline, &of, &bytes).map_err(|error| Trouble::of(&error, &of.name))?;
        let (summary, plain) = examined;
        // Whole parts of a large segment lie behind a switch.
        let inside = archive.names.segment_size.offset_of(summary.start) > 0;
        if inside && plain.iter().all(|byte| *byte == 0) {
            return Ok((summary, None));
        }
        let records = scan(&archive, timeline, summary.start, &plain).map_err(Trouble::damaged)?;
        Ok((summary, Some(records)))
    };
    let (summary, records) = look.object(&entry.name, KeyClass::Content, open).await?;
    let records = match records {
        Some(records) => records,
        None => zeros(look, timeline, entry, summary.start).await?,
    };
    look.count(|checked| checked.wal_records += records);
    Ok(Some(summary))
}

/// Zeros are right only behind a switch, where no records are.
async fn zeros(look: &Look<'_>, timeline: TimelineId, entry: &WalEntry, start: Lsn) -> Result<u64, Trouble> {
    let size = look.size();
    let segment = SegmentName::new(timeline, size.segment_of(start), size);
    match look.patient(&entry.name, || look.archive.is_behind_switch(segment, start)).await? {
        true => Ok(0),
        false => Err(Trouble::damaged(format!("zeros at {start}, and no WAL switch is stored before them"))),
    }
}

/// Reads the records that begin in these bytes; how many are whole. Those that begin before or go on behind are not judged here.
fn scan(archive: &Archive, timeline: TimelineId, start: Lsn, bytes: &[u8]) -> std::result::Result<u64, String> {
    let magic = bytes.first_chunk().map(|magic| u16::from_le_bytes(*magic));
    // What begins inside a page says nothing of its version.
    if !start.0.is_multiple_of(PAGE) || bytes.len() < PAGE as usize {
        return Ok(0);
    }
    let version = magic.and_then(MajorVersion::from_wal_magic);
    let version = version.ok_or_else(|| format!("WAL of no known version at {start}"))?;
    let config =
        ScanConfig { version, system: archive.names.system, timeline, segment_size: archive.names.segment_size };
    let mut records = 0;
    let mut scanner = WalScanner::new(config, start);
    scanner.feed(bytes, &mut |_| records += 1).map_err(|invalid| invalid.to_string())?;
    Ok(records)
}

/// Every tail file and piece by itself. One that vanished was replaced by more.
async fn tails(look: &Look<'_>, shelf: &Shelf, stored: &Stored, wanted: Option<&[Stretch]>) {
    let size = look.size();
    let of = |timeline: TimelineId, number, names: &[String]| {
        let segment = SegmentName::new(timeline, number, size);
        names.iter().map(|name| (segment, name.clone())).collect::<Vec<_>>()
    };
    let timelines = stored.inventory.timelines.iter();
    let all = timelines.flat_map(|(timeline, stock)| {
        stock.tails.iter().flat_map(move |(number, names)| of(*timeline, *number, names))
    });
    let inside = |(segment, _): &(SegmentName, String)| {
        let meets = |s: &Stretch| s.timeline == segment.timeline && s.from < segment.end() && segment.start() < s.to;
        wanted.is_none_or(|wanted| wanted.iter().any(meets))
    };
    let check = |(segment, name): (SegmentName, String)| async move {
        let examine = || look.archive.examine_tail(segment, &name, look.options.deep);
        match look.patient(&name, examine).await {
            Ok(Some(())) => look.count(|checked| checked.tails += 1),
            Ok(None) => {}
            Err(trouble) => bad_tail(look, shelf, stored, segment, &name, trouble).await,
        }
    };
    stream::iter(all.filter(inside).map(check)).buffer_unordered(look.options.jobs.max(1)).collect::<Vec<()>>().await;
}

/// A damaged tail hurts only where nothing else holds its bytes: a complete object, or other tails.
async fn bad_tail(look: &Look<'_>, shelf: &Shelf, stored: &Stored, segment: SegmentName, name: &str, trouble: Trouble) {
    let whole = look.patient(name, || look.archive.is_complete(segment)).await.unwrap_or(false);
    let held = stored.stretches.iter().filter(|s| s.timeline == segment.timeline);
    let reached = held.filter(|s| s.from <= segment.start()).map(|s| s.to).max().unwrap_or(segment.start());
    let from = match look.archive.parse(name) {
        Some(WalObject::TailPiece { from, .. }) => segment.start() + from,
        _ => segment.start(),
    };
    let covered = whole || reached >= segment.end();
    // Where nothing of the segment counts, nobody can read what is whole of it either.
    let from = if reached <= segment.start() { segment.start() } else { Lsn(from.0.max(reached.0)) };
    let stretch = Stretch { timeline: segment.timeline, from, to: segment.end() };
    if covered || trouble.flaw == Flaw::Unreadable {
        let expected = "a tail; the WAL that it speaks of is stored elsewhere too";
        let expected = if covered { expected } else { "a tail" };
        return look.blame(name, expected, trouble, Default::default());
    }
    blame(look, shelf, stored, name, stretch, trouble);
}
