//! WAL by its names and summaries: complete ranges, gaps, what events explain, and what each backup needs.

use std::collections::BTreeSet;
use std::time::Duration;

use super::backups::Shelf;
use super::look::{Look, Trouble};
use super::report::{Flaw, Problem, Range, SeenHole, SeenMinimal};
use crate::archive::heartbeat::LostEnd;
use crate::archive::holes::Barrier;
use crate::archive::inventory::{Inventory, TimelineStock};
use crate::archive::refused;
use crate::error::{Context, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use crate::repo::names::WalObject;
use crate::seal::content::event::Hole;
use crate::seal::content::manifest::Manifest;
use crate::seal::header::{KeyClass, ObjectKind};
use crate::seal::opener::open_index;

/// A gap counts when it is still there after so long: what a receiver is storing comes in any order.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// WAL of one timeline, from one byte to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch {
    pub timeline: TimelineId,
    pub from: Lsn,
    pub to: Lsn,
}

/// What is stored.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    pub inventory: Inventory,
    pub stretches: Vec<Stretch>,
    pub recorded: Vec<SeenHole>,
    pub minimal: Vec<SeenMinimal>,
}

impl Stored {
    pub fn ranges(&self) -> Vec<Range> {
        let range = |s: &Stretch| Range { timeline: s.timeline.0, from: s.from.to_string(), to: s.to.to_string() };
        self.stretches.iter().map(range).collect()
    }

    fn covers(&self, timeline: TimelineId, from: Lsn, to: Lsn) -> bool {
        from >= to || self.stretches.iter().any(|s| s.timeline == timeline && s.from <= from && s.to >= to)
    }

    /// Backups that WAL from `from` to `to` of a timeline matters to: those that need it to be consistent, and those that reach further with it.
    pub fn affected(&self, shelf: &Shelf, stretch: Stretch) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut hurts, mut limits) = (BTreeSet::new(), BTreeSet::new());
        for manifest in &shelf.manifests {
            let id = manifest.id.to_string();
            if legs(manifest, &self.inventory).iter().any(|leg| overlap(leg, &stretch)) {
                hurts.insert(id);
            } else if self.follows(manifest, stretch) {
                limits.insert(id);
            }
        }
        (hurts, limits)
    }

    /// Whether recovery from this backup can come through there.
    fn follows(&self, manifest: &Manifest, stretch: Stretch) -> bool {
        if stretch.timeline == manifest.stop_timeline {
            return stretch.to > manifest.stop;
        }
        let history = self.inventory.histories.get(&stretch.timeline);
        history.and_then(|h| h.switch_point_of(manifest.stop_timeline)).is_some_and(|fork| fork >= manifest.stop)
    }
}

fn overlap(a: &Stretch, b: &Stretch) -> bool {
    a.timeline == b.timeline && a.from < b.to && b.from < a.to
}

/// The WAL from a backup's start to its stop, timeline by timeline.
pub fn legs(manifest: &Manifest, inventory: &Inventory) -> Vec<Stretch> {
    let (mut legs, mut from) = (Vec::new(), manifest.start);
    let history = inventory.histories.get(&manifest.stop_timeline);
    for ancestor in history.iter().flat_map(|h| &h.ancestors) {
        let to = ancestor.switch_point.0.min(manifest.stop.0);
        if ancestor.timeline >= manifest.timeline && ancestor.switch_point > from {
            legs.push(Stretch { timeline: ancestor.timeline, from, to: Lsn(to) });
            from = Lsn(to);
        }
    }
    if from < manifest.stop || legs.is_empty() {
        legs.push(Stretch { timeline: manifest.stop_timeline, from, to: manifest.stop });
    }
    legs
}

/// Looks at all WAL by name, and at what the backups need.
pub async fn look(look: &Look<'_>, shelf: &Shelf) -> Result<Stored> {
    let mut stored = Stored { inventory: stock(look, shelf, true).await?, ..Stored::default() };
    let mut gaps;
    (stored.stretches, gaps) = stretches(look, &stored, shelf, true).await;
    let barriers = barriers(look, shelf).await;
    let holes: Vec<(Hole, bool)> = barriers
        .iter()
        .filter_map(|(barrier, closed)| match barrier {
            Barrier::Hole(hole) => Some((hole.clone(), *closed)),
            Barrier::Minimal(_) => None,
        })
        .collect();
    let unexplained = |gaps: &[Stretch]| gaps.iter().any(|gap| explains(&holes, gap, look.size()).is_none());
    if unexplained(&gaps) {
        tokio::time::sleep(LOOK_AGAIN.min(look.options.patience)).await;
        let again = Stored { inventory: stock(look, shelf, false).await?, ..Stored::default() };
        let (now, still) = stretches(look, &again, shelf, false).await;
        gaps.retain(|gap| still.contains(gap));
        (stored.inventory, stored.stretches) = (again.inventory, now);
    }
    if look.options.only.is_none() {
        for gap in gaps {
            match explains(&holes, &gap, look.size()) {
                Some((hole, closed)) => stored.recorded.push(SeenHole {
                    timeline: gap.timeline.0,
                    from: gap.from.to_string(),
                    to: gap.to.to_string(),
                    reason: hole.reason.clone(),
                    closed_by_backup: *closed,
                }),
                None => note_gap(look, shelf, &stored, gap),
            }
        }
        let minimal = barriers.iter().filter_map(|(barrier, closed)| match barrier {
            Barrier::Minimal(at) => Some((at.timeline.0, at.lsn.to_string(), *closed)),
            Barrier::Hole(_) => None,
        });
        stored.minimal =
            minimal.map(|(timeline, lsn, closed_by_backup)| SeenMinimal { timeline, lsn, closed_by_backup }).collect();
    }
    for (number, manifest) in shelf.manifests.iter().enumerate() {
        needs(look, shelf, &stored, number, manifest);
    }
    if look.options.only.is_none() {
        for timeline in &stored.inventory.beats {
            lost_end(look, shelf, &stored, *timeline).await;
        }
    }
    Ok(stored)
}

/// What was recorded that no restore gets past, and whether a backup lies behind it. Where that cannot be told, none does.
async fn barriers(look: &Look<'_>, shelf: &Shelf) -> Vec<(Barrier, bool)> {
    let recorded = match look.patient("events", || look.archive.barriers()).await {
        Ok(recorded) => recorded,
        Err(trouble) => {
            look.blame("events", "what was recorded that no restore gets past", trouble, BTreeSet::new());
            return Vec::new();
        }
    };
    let open = look.patient("histories", || look.archive.open_among(recorded.clone(), &shelf.manifests)).await;
    let open = open.unwrap_or_else(|_| recorded.clone());
    recorded.into_iter().map(|barrier| (barrier.clone(), !open.contains(&barrier))).collect()
}

/// WAL behind the end of a timeline that a heartbeat speaks of.
async fn lost_end(look: &Look<'_>, shelf: &Shelf, stored: &Stored, timeline: TimelineId) {
    let archive = look.archive;
    let folder = archive.names.heartbeat_folder(timeline);
    // What of its WAL cannot be read is told with the WAL.
    let Ok(Some(lost)) = look.patient(&folder, || archive.lost_end(&stored.inventory, timeline)).await else { return };
    let LostEnd { from, beat } = lost;
    let Some(from) = unnamed(look, stored, (timeline, from), beat.lsn).await else { return };
    let (hurts, limits) = stored.affected(shelf, Stretch { timeline, from, to: beat.lsn });
    let (at, span, found) = match from {
        // Where the first timeline begins nobody knows.
        Lsn::INVALID => (Lsn(beat.lsn.0.saturating_sub(1)), format!("WAL up to {}", beat.lsn), "none of it".to_owned()),
        from => (from, format!("WAL from {from} to {}", beat.lsn), format!("it is stored up to {from}")),
    };
    look.note(Problem {
        object: SegmentName::new(timeline, look.size().segment_of(at), look.size()).to_string(),
        flaw: Flaw::Gap,
        expected: format!("{span} of timeline {timeline}: a heartbeat shows that it was stored"),
        found,
        hurts,
        limits,
    });
}

/// Where WAL is missing, up to `to`, beside what damaged tails held: those are told by their names.
async fn unnamed(look: &Look<'_>, stored: &Stored, (timeline, end): (TimelineId, Lsn), to: Lsn) -> Option<Lsn> {
    let size = look.size();
    let Some(stock) = stored.inventory.timelines.get(&timeline) else { return Some(end) };
    // Where nothing of the timeline can be read, it begins with what is there.
    let first = next_held(stock, SegmentNumber(0)).map(|number| number.start(size)).filter(|first| *first < to);
    let mut from = end.max(first.unwrap_or_default());
    while from < to {
        let segment = SegmentName::new(timeline, size.segment_of(from), size);
        let told = stock.tails.get(&segment.number).filter(|_| !stock.partial.contains(&segment.number));
        // What cannot be read may stand twice in the report, never nowhere: a tail that came after the listing was not looked at.
        let damage = || async {
            let damage = look.archive.damage_in(segment).await?;
            Ok((damage, look.archive.tails_of(segment).await?))
        };
        match (told, look.patient(&segment.to_string(), damage).await) {
            (Some(told), Ok((Some(_), there))) if there.iter().all(|name| told.contains(name)) => from = segment.end(),
            _ => return Some(from),
        }
    }
    None
}

impl Look<'_> {
    pub fn size(&self) -> SegmentSize {
        self.archive.names.segment_size
    }
}

/// What is stored, by name, and every history read.
async fn stock(look: &Look<'_>, shelf: &Shelf, first: bool) -> Result<Inventory> {
    let archive = look.archive;
    let (mut inventory, histories) = look.patiently(|| archive.stock()).await.context("cannot list the WAL")?;
    // What a restore will ask for is looked for by name, listed or not.
    let stops = shelf.manifests.iter().map(|manifest| manifest.stop_timeline);
    let of_wal = inventory.with_a_past().into_iter().filter(|_| look.options.only.is_none());
    let wanted = stops.filter(|timeline| *timeline > TimelineId(1)).chain(of_wal);
    let timelines: BTreeSet<TimelineId> = wanted.chain(histories).collect();
    for timeline in timelines {
        let name = archive.names.history(timeline);
        let (claims, keys) = (archive.claims(ObjectKind::History, timeline, Lsn(0)), archive.keys.clone());
        let whole_name = name.clone();
        let open = move |bytes: bytes::Bytes| {
            let content = open_index(&bytes, &claims, &*keys)
                .map_err(|failed| Trouble::of(&refused(&whole_name, failed), &whole_name))?;
            TimelineHistory::parse(timeline, &content).map_err(Trouble::damaged)
        };
        match look.object(&name, KeyClass::Index, open).await {
            Ok(history) => {
                look.count(|checked| checked.histories += u64::from(first));
                inventory.histories.insert(timeline, history);
            }
            Err(trouble) => {
                inventory.damaged.insert(timeline, trouble.found.clone());
                if first {
                    bad_history(look, shelf, &name, timeline, trouble);
                }
            }
        }
    }
    Ok(inventory)
}

/// The server asks for the history of the timeline that it shall reach: backups of that timeline cannot be restored without it, older ones to their own
/// timelines only. Which of those lead there only that file tells.
fn bad_history(look: &Look<'_>, shelf: &Shelf, name: &str, timeline: TimelineId, trouble: Trouble) {
    let of = |wanted: &dyn Fn(&Manifest) -> bool| {
        shelf.manifests.iter().filter(|manifest| wanted(manifest)).map(|manifest| manifest.id.to_string()).collect()
    };
    look.note(Problem {
        object: name.to_owned(),
        flaw: trouble.flaw,
        expected: format!("the history of timeline {timeline}: no restore can follow that timeline without it"),
        found: trouble.found,
        hurts: of(&|manifest| manifest.stop_timeline == timeline),
        limits: of(&|manifest| manifest.stop_timeline < timeline),
    });
}

/// All stretches without a hole, and the gaps between them.
async fn stretches(look: &Look<'_>, stored: &Stored, shelf: &Shelf, tell: bool) -> (Vec<Stretch>, Vec<Stretch>) {
    let (mut found, mut gaps) = (Vec::new(), Vec::new());
    let (size, inventory) = (look.size(), &stored.inventory);
    for (timeline, stock) in &inventory.timelines {
        let timeline = *timeline;
        let Some(mut number) = next_held(stock, SegmentNumber(0)) else { continue };
        let before = found.len();
        loop {
            let from = number.start(size);
            let name = SegmentName::new(timeline, number, size).to_string();
            let mut unknown = None;
            let reached = look.patient(&name, || look.archive.contiguous_in(inventory, timeline, from)).await;
            let to = match reached {
                Ok(to) => to.unwrap_or(from),
                // The open segment could not be looked at. What is complete before it is there.
                Err(trouble) => {
                    let open = inventory.first_open(timeline, number);
                    if tell {
                        let within = Stretch { timeline, from: open.start(size), to: open.end(size) };
                        note_unjoined(look, shelf, stored, within, trouble);
                    }
                    unknown = Some(open);
                    open.start(size)
                }
            };
            if to > from {
                found.push(Stretch { timeline, from, to });
            }
            gaps.extend(piece_gap(look, inventory, timeline, to));
            // What is stored of the segment in which it ended has been seen.
            let after = match unknown {
                Some(open) => open.next(),
                None if size.offset_of(to) == 0 && to > from => size.segment_of(to),
                None => size.segment_of(to).next(),
            };
            let Some(next) = next_held(stock, after) else { break };
            if next.start(size) > to {
                gaps.push(Stretch { timeline, from: to, to: next.start(size) });
            }
            number = next;
        }
        gaps.extend(fork_gap(inventory, timeline, found.get(before), &found, size));
    }
    gaps.sort_unstable();
    gaps.dedup();
    (found, gaps)
}

/// A piece of the segment in which a stretch ended that begins behind that end.
fn piece_gap(look: &Look<'_>, inventory: &Inventory, timeline: TimelineId, to: Lsn) -> Option<Stretch> {
    let segment = SegmentName::new(timeline, look.size().segment_of(to), look.size());
    let spans = inventory.tails(segment).iter().filter_map(|name| match look.archive.parse(name) {
        Some(WalObject::TailPiece { from, to, .. }) => Some((segment.start() + from, segment.start() + to)),
        _ => None,
    });
    let spans: Vec<(Lsn, Lsn)> = spans.collect();
    // One that is there and damaged is told by its name.
    if spans.iter().any(|(begin, end)| *begin <= to && to < *end) {
        return None;
    }
    let next = spans.into_iter().map(|(begin, _)| begin).filter(|begin| *begin > to).min()?;
    Some(Stretch { timeline, from: to, to: next })
}

/// A tail that cannot be read where nothing else holds its bytes.
fn note_unjoined(look: &Look<'_>, shelf: &Shelf, stored: &Stored, stretch: Stretch, trouble: Trouble) {
    let segment = SegmentName::new(stretch.timeline, look.size().segment_of(stretch.from), look.size());
    let (hurts, limits) = stored.affected(shelf, stretch);
    let (object, expected) = (look.archive.names.tail_folder(segment), "tails that give one run of bytes".to_owned());
    look.note(Problem { object, flaw: trouble.flaw, expected, found: trouble.found, hurts, limits });
}

/// The lowest segment from `from` on of which anything is stored.
fn next_held(stock: &TimelineStock, from: SegmentNumber) -> Option<SegmentNumber> {
    let first = [
        stock.complete.range(from..).next(),
        stock.parts.range(from..).next().map(|(number, _)| number),
        stock.partial.range(from..).next(),
        stock.tails.range(from..).next().map(|(number, _)| number),
    ];
    first.into_iter().flatten().min().copied()
}

/// Between a timeline and the one that it left: what neither holds.
fn fork_gap(
    inventory: &Inventory,
    timeline: TimelineId,
    first: Option<&Stretch>,
    all: &[Stretch],
    size: SegmentSize,
) -> Option<Stretch> {
    let parent = inventory.histories.get(&timeline)?.ancestors.last()?;
    let (fork, first) = (parent.switch_point, first?);
    // Of a parent that is not stored at all, or only from later on, nothing was expected here.
    let reached = all.iter().rfind(|s| s.timeline == parent.timeline && s.from <= fork)?;
    let from = Lsn(reached.to.0.min(fork.0));
    // The child's first segment begins with what the parent had of it.
    let joined = first.from <= from || (from >= fork && size.segment_of(first.from) <= size.segment_of(fork));
    (!joined).then_some(Stretch { timeline, from, to: first.from })
}

/// The recorded hole that a gap lies in.
fn explains<'h>(holes: &'h [(Hole, bool)], gap: &Stretch, size: SegmentSize) -> Option<&'h (Hole, bool)> {
    holes.iter().find(|(hole, _)| {
        let here = (hole.from_timeline..=hole.to_timeline).contains(&gap.timeline);
        here && gap.from.0 >= hole.from.align_down(size.bytes()).0 && gap.to <= hole.to
    })
}

fn note_gap(look: &Look<'_>, shelf: &Shelf, stored: &Stored, gap: Stretch) {
    let size = look.size();
    let name = |number| SegmentName::new(gap.timeline, number, size).to_string();
    let (first, last) = (size.segment_of(gap.from), size.segment_before(gap.to));
    let object = if first == last { name(first) } else { format!("{} to {}", name(first), name(last)) };
    let (hurts, limits) = stored.affected(shelf, gap);
    let expected = format!("WAL from {} to {} of timeline {}", gap.from, gap.to, gap.timeline);
    let found = "it is not stored, WAL behind it is, and no hole is recorded".to_owned();
    look.note(Problem { object, flaw: Flaw::Gap, expected, found, hurts, limits });
}

/// The WAL of one backup, from its start to its stop.
fn needs(look: &Look<'_>, shelf: &Shelf, stored: &Stored, number: usize, manifest: &Manifest) {
    let legs = legs(manifest, &stored.inventory);
    let all = stored.covers(manifest.stop_timeline, manifest.start, manifest.stop);
    let Some(short) = legs.iter().find(|leg| !stored.covers(leg.timeline, leg.from, leg.to)).filter(|_| !all) else {
        return;
    };
    let reached = stored.stretches.iter().filter(|s| s.timeline == short.timeline && s.from <= short.from);
    let reached = reached.map(|s| s.to).filter(|to| *to > short.from).max();
    let missing = look.size().segment_of(reached.unwrap_or(short.from));
    let object = SegmentName::new(short.timeline, missing, look.size()).to_string();
    let expected = format!(
        "WAL from {} to {} of timeline {}, which backup {} needs",
        short.from, short.to, short.timeline, manifest.id
    );
    let found = match reached {
        Some(to) => format!("it is stored up to {to}"),
        None => format!("what begins at {} is not stored", short.from),
    };
    let hurts = shelf.names(&super::bits::Bits::of(number));
    look.note(Problem { object, flaw: Flaw::Gap, expected, found, hurts, limits: BTreeSet::new() });
}
