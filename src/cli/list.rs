//! `walrecv list`: the backups, and how far each can be restored.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::args::Common;
use super::context::{Context, Unread};
use super::show::BAD_PAGES;
use super::unfinished::Begun;
use super::{output, show};
use crate::archive::Archive;
use crate::archive::heartbeat::LostEnd;
use crate::archive::holes::Barrier;
use crate::archive::inventory::Inventory;
use crate::archive::path::Path;
use crate::archive::verdicts::{Found, Verdicts};
use crate::catalog::{Catalog, path_in};
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId};
use crate::repo::names::{PART_BYTES, parts_of};
use crate::restore::stock;
use crate::seal::content::event::Drill;
use crate::seal::content::manifest::Manifest;

/// How many segments are looked through for the newest, or the oldest, commit.
const LOOK_BACK: u64 = 64;

/// What one backup can be restored to.
pub(super) struct Window {
    pub manifest: Manifest,
    /// Timeline and end of the WAL that continues the backup without a hole; `None`: not even the backup's own WAL is there.
    pub end: Option<(TimelineId, Lsn)>,
    /// Time of the newest commit that a complete segment's summary tells of; the open segment may hold newer ones.
    pub newest: Option<PgTime>,
    /// Everything that was committed by then is stored: the newest stored commit, or heartbeat.
    pub complete: Option<PgTime>,
}

pub async fn run(common: &Common) -> Result<()> {
    let context = Context::open(common).await?;
    let (ring, unread) = context.ring_at_hand().await?;
    let Some(archive) = context.archive_if_any(ring).await? else {
        nothing(common, &context.cluster.name, &nothing_json(&context.cluster.name, unread));
        return Ok(());
    };
    let inventory = archive.inventory().await?;
    warn(&archive, &inventory).await?;
    let catalog = noted(&context, &archive);
    let shelf = Shelf::of(&archive, &inventory, catalog.as_ref());
    let mut windows = Vec::new();
    let announced = archive.announced().await?;
    let list = stock::backups(&archive).await?;
    let unfinished = archive.unfinished(announced, &list).await?;
    let begun = Begun::new(unfinished, &context.settings.state_dir, &archive.names.cluster);
    for manifest in list.complete {
        windows.push(window(&shelf, manifest).await?);
    }
    let recorded = archive.barriers().await?;
    let backups: Vec<Manifest> = windows.iter().map(|window| window.manifest.clone()).collect();
    let open = archive.open_among(recorded.clone(), &backups).await?;
    let corrupt = archive.corrupt_wal().await?;
    let verdicts = archive.verdicts().await?;
    let drill = archive.last_drill().await?;
    if common.output == output::Format::Json {
        let stored: Vec<Value> = inventory.timelines.keys().map(|t| timeline_json(&inventory, *t, &archive)).collect();
        let backups: Vec<Value> = windows.iter().map(|window| checked_json(window, &verdicts)).collect();
        output::json(&json!({
            "cluster": archive.names.cluster, "system_identifier": archive.names.system.to_string(),
            "wal_segment_size": archive.names.segment_size.bytes(), "backups": backups, "timelines": stored,
            "unfinished": begun.json(), "open_segment_read": unread.is_none(),
            "holes": recorded.iter().filter_map(|one| hole_json(one, !open.contains(one))).collect::<Vec<_>>(),
            "minimal_wal": recorded.iter().filter_map(|one| minimal_json(one, !open.contains(one))).collect::<Vec<_>>(),
            "unreadable": list.unreadable.iter().map(|(name, problem)| json!({
                "object": name, "problem": problem.to_string(),
            })).collect::<Vec<_>>(),
            "last_drill": drill.as_ref().map(|(at, drill)| drill_json(*at, drill)),
            "corrupt_wal": corrupt.iter().map(|(at, found)| json!({
                "timeline": found.timeline.0, "lsn": found.lsn.to_string(), "problem": found.problem,
                "found_at": output::rfc3339(*at),
            })).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    print(&archive, &inventory, &windows, unread);
    begun.lines().into_iter().for_each(output::line);
    tell_checks(&windows, &verdicts);
    for manifest in windows.iter().map(|window| &window.manifest) {
        let id = &manifest.id;
        manifest.absences().for_each(|absence| output::line(format!("FILES ABSENT in {id}: {absence}")));
    }
    tell_bad_pages(&windows);
    for (name, problem) in &list.unreadable {
        output::line(format!("UNREADABLE: {name}: {problem}; a backup may be behind it: put it back from a copy"));
    }
    if let Some((at, drill)) = &drill {
        output::line(drill_text(*at, drill));
    }
    recorded.iter().for_each(|barrier| output::line(barrier_text(barrier, !open.contains(barrier))));
    for (at, found) in &corrupt {
        output::line(format!(
            "CORRUPT WAL was sent at {} of timeline {} and not acknowledged ({at}): {}",
            found.lsn, found.timeline, found.problem
        ));
    }
    Ok(())
}

/// Nothing is stored of a cluster that is configured: between `init` and the first receiver that is as it should be. `shown`: the same, as JSON.
pub(super) fn nothing(common: &Common, cluster: &str, shown: &Value) {
    match common.output {
        output::Format::Json => output::json(shown),
        _ => output::line(format!(
            "nothing is stored of cluster {cluster} yet: start `walrecv receive`, then take a backup"
        )),
    }
}

fn nothing_json(cluster: &str, unread: Option<Unread>) -> Value {
    json!({
        "cluster": cluster, "system_identifier": null, "wal_segment_size": null, "backups": [], "timelines": [],
        "unfinished": [], "open_segment_read": unread.is_none(), "holes": [], "minimal_wal": [],
        "unreadable": [], "last_drill": null, "corrupt_wal": [],
    })
}

/// Of what a restore cannot go past, or along.
async fn warn(archive: &Archive, inventory: &Inventory) -> Result<()> {
    for (timeline, problem) in inventory.unknown() {
        output::note(format!("warning: windows do not go on into timeline {timeline}: {problem}"));
    }
    for timeline in &inventory.beats {
        if let Some(LostEnd { from, beat }) = archive.lost_end(inventory, *timeline).await? {
            let (to, time) = (beat.lsn, beat.time);
            let end = if from == Lsn::INVALID { "is not stored".to_owned() } else { format!("ends at {from}") };
            output::note(format!(
                "warning: WAL of timeline {timeline} {end}, and the heartbeat of {time} shows that it was stored to {to}"
            ));
        }
    }
    Ok(())
}

fn drill_json(at: Timestamp, drill: &Drill) -> Value {
    json!({
        "at": output::rfc3339(at), "backup": drill.backup, "target": drill.target, "passed": drill.passed,
        "corrupt": drill.corrupt, "failed": drill.failed,
        "rpo_seconds": drill.rpo_milliseconds.map(|ms| ms as f64 / 1000.0),
        "rto_seconds": drill.rto_milliseconds.map(|ms| ms as f64 / 1000.0),
    })
}

fn drill_text(at: Timestamp, drill: &Drill) -> String {
    let of = drill.backup.as_ref().map(|id| format!(" of {id}")).unwrap_or_default();
    let result = match (drill.passed, drill.rto_milliseconds) {
        (true, Some(ms)) => format!("passed, restored in {}", output::seconds(ms as f64 / 1000.0)),
        (true, None) => "passed".to_owned(),
        (false, _) => format!("FAILED: {}", drill.failed.join(", ")),
    };
    format!("last drill{of} at {}: {result}", output::time(at))
}

/// Names the backups that hold pages whose checksums were wrong.
fn tell_bad_pages(windows: &[Window]) {
    for manifest in windows.iter().map(|window| &window.manifest).filter(|manifest| manifest.bad_page_count > 0) {
        let (id, count) = (&manifest.id, manifest.bad_page_count);
        output::line(format!("BAD PAGES: {count} in {id}, {BAD_PAGES}; `walrecv show {id}` names them"));
    }
}

/// The window of one backup alone.
pub(super) async fn window_of(context: &Context, archive: &Archive, manifest: Manifest) -> Result<Window> {
    let inventory = archive.inventory().await?;
    if let Err(problem) = inventory.demand_history(manifest.stop_timeline) {
        output::note(format!("warning: it cannot be restored: {problem}"));
    }
    let catalog = noted(context, archive);
    window(&Shelf::of(archive, &inventory, catalog.as_ref()), manifest).await
}

/// What windows are made from.
pub(super) struct Shelf<'a> {
    pub archive: &'a Archive,
    pub inventory: &'a Inventory,
    /// Saves reading summaries of segments that the inventory shows.
    pub catalog: Option<&'a Catalog>,
    /// The newest commit of each open segment that was read.
    open: Mutex<BTreeMap<(SegmentName, Lsn), Option<PgTime>>>,
}

impl<'a> Shelf<'a> {
    pub fn of(archive: &'a Archive, inventory: &'a Inventory, catalog: Option<&'a Catalog>) -> Shelf<'a> {
        Shelf { archive, inventory, catalog, open: Mutex::default() }
    }

    /// The newest commit in the segment in which the WAL of a timeline ends, where no summary tells of it. Nothing where it cannot be read: then what is told is
    /// an earlier moment.
    async fn newest_open(&self, timeline: TimelineId, end: Lsn) -> Option<PgTime> {
        let Shelf { archive, inventory, open, .. } = self;
        let size = archive.names.segment_size;
        let segment = SegmentName::new(timeline, size.segment_before(end), size);
        if end == segment.end() && inventory.timelines.get(&timeline)?.complete.contains(&segment.number) {
            return None;
        }
        let known = || open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(newest) = known().get(&(segment, end)) {
            return *newest;
        }
        let newest = archive.last_in(segment, end, inventory).await.unwrap_or_else(|error| {
            tracing::warn!("which commits {segment} holds is not known: {error}");
            None
        });
        known().insert((segment, end), newest);
        newest
    }
}

/// Through which moment everything is known to be stored that was committed on a timeline: the time of the newest commit, or heartbeat, up to `end`, where the
/// WAL ends that is stored from `start` on. Apart: the newest commit that a summary tells of.
pub(super) async fn through(
    shelf: &Shelf<'_>,
    timeline: TimelineId,
    (start, end): (Lsn, Lsn),
) -> Result<(Option<PgTime>, Option<PgTime>)> {
    // A summary speaks of a whole segment: one that counts in part is read.
    let whole = end.align_down(shelf.archive.names.segment_size.bytes());
    let newest = newest_commit(shelf, timeline, start, whole).await?;
    let beats = shelf.archive.heartbeats(timeline).await?;
    let beat = beats.into_iter().find(|beat| (start..=end).contains(&beat.lsn)).map(|beat| beat.time);
    Ok((newest.max(beat).max(shelf.newest_open(timeline, end).await), newest))
}

/// The catalog that a receiver on this host keeps. Nothing needs it.
pub(super) fn noted(context: &Context, archive: &Archive) -> Option<Catalog> {
    let path = path_in(&context.settings.state_dir, &context.cluster.name);
    Catalog::read(&path, &archive.identity()).unwrap_or_else(|error| {
        tracing::info!("{} is not used: {error}", path.display());
        None
    })
}

async fn window(shelf: &Shelf<'_>, manifest: Manifest) -> Result<Window> {
    let end = match shelf.inventory.demand_history(manifest.stop_timeline) {
        Ok(own) => end_of(shelf, &Path::of(&own), &manifest).await?,
        // No restore takes it, whatever WAL there is.
        Err(_) => None,
    };
    let (complete, newest) = match end {
        Some((timeline, reached)) => through(shelf, timeline, (manifest.start, reached)).await?,
        None => (None, None),
    };
    Ok(Window { manifest, end, newest, complete })
}

/// How far the WAL goes on from a backup, along each child that continues where its parent was left, the newest first. `own` is the way to where it ended.
async fn end_of(shelf: &Shelf<'_>, own: &Path, manifest: &Manifest) -> Result<Option<(TimelineId, Lsn)>> {
    let (mut timeline, mut from, mut end) = (manifest.timeline, manifest.start, None);
    while let Some(reached) = shelf.archive.contiguous_in(shelf.inventory, timeline, from).await? {
        end = Some((timeline, reached));
        let stop = (manifest.stop_timeline, manifest.stop);
        match next_leg(&shelf.inventory.histories, own, stop, (timeline, from, reached)) {
            Some((child, fork)) => (timeline, from) = (child, fork.max(from)),
            None => break,
        }
    }
    Ok(end)
}

/// The newest child of a timeline of which `from` up to `reached` is stored, and where it left. One that left before the end of the backup does not continue it:
/// as a restore has it, the child's path must hold that end, or lead to it.
fn next_leg(
    histories: &BTreeMap<TimelineId, TimelineHistory>,
    own: &Path,
    stop: (TimelineId, Lsn),
    (timeline, from, reached): (TimelineId, Lsn, Lsn),
) -> Option<(TimelineId, Lsn)> {
    histories.values().rev().find_map(|history| {
        let fork = history.ancestors.last().filter(|last| last.timeline == timeline)?.switch_point;
        let leads = own.leg(history.timeline).is_some() || Path::of(history).holds(stop.0, stop.1);
        (leads && (from..=reached).contains(&fork)).then_some((history.timeline, fork))
    })
}

/// The newest commit or abort time that summaries of complete segments tell of, looking back from the end.
async fn newest_commit(shelf: &Shelf<'_>, timeline: TimelineId, start: Lsn, end: Lsn) -> Result<Option<PgTime>> {
    let size = shelf.archive.names.segment_size;
    let (last, first) = (size.segment_before(end).0, size.segment_of(start).0);
    for number in (first.max(last.saturating_sub(LOOK_BACK))..=last).rev() {
        if let Some((_, newest)) = times(shelf, timeline, SegmentNumber(number)).await? {
            return Ok(Some(newest));
        }
    }
    Ok(None)
}

/// The oldest one, looking ahead from the start.
pub(super) async fn oldest_commit(
    shelf: &Shelf<'_>,
    timeline: TimelineId,
    start: Lsn,
    end: Lsn,
) -> Result<Option<PgTime>> {
    let size = shelf.archive.names.segment_size;
    let (last, first) = (size.segment_before(end).0, size.segment_of(start).0);
    for number in first..=last.min(first.saturating_add(LOOK_BACK)) {
        if let Some((oldest, _)) = times(shelf, timeline, SegmentNumber(number)).await? {
            return Ok(Some(oldest));
        }
    }
    Ok(None)
}

/// The oldest and the newest time that the summaries of a complete segment tell of.
async fn times(shelf: &Shelf<'_>, timeline: TimelineId, number: SegmentNumber) -> Result<Option<(PgTime, PgTime)>> {
    let Shelf { archive, inventory, .. } = shelf;
    let segment = SegmentName::new(timeline, number, archive.names.segment_size);
    if !inventory.timelines.get(&timeline).is_some_and(|stock| stock.complete.contains(&number)) {
        return Ok(None);
    }
    let times = match shelf.catalog.and_then(|catalog| noted_times(catalog, segment)) {
        Some(times) => times,
        None => {
            let summaries = archive.summaries(segment).await?;
            summaries.unwrap_or_default().into_iter().map(|summary| summary.times).collect()
        }
    };
    let join = |a: (PgTime, PgTime), b: (PgTime, PgTime)| (a.0.min(b.0), a.1.max(b.1));
    Ok(times.into_iter().flatten().reduce(join))
}

/// Commit times of a segment's objects; `None` unless all of them are noted.
fn noted_times(catalog: &Catalog, segment: SegmentName) -> Option<Vec<Option<(PgTime, PgTime)>>> {
    let parts = u64::from(parts_of(segment.size).unwrap_or(1));
    let object = |part| catalog.object(segment.timeline, segment.start() + part * PART_BYTES).ok().flatten();
    (0..parts).map(|part| object(part).map(|object| object.times)).collect()
}

fn print(archive: &Archive, inventory: &Inventory, windows: &[Window], unread: Option<Unread>) {
    let names = &archive.names;
    output::line(format!(
        "cluster {}, system identifier {}, segments of {}",
        names.cluster,
        names.system,
        output::bytes(names.segment_size.bytes())
    ));
    for timeline in inventory.timelines.keys() {
        if let (Some(first), Some(last)) = (inventory.first(*timeline), inventory.last(*timeline)) {
            let name = |number| SegmentName::new(*timeline, number, names.segment_size);
            output::line(format!("timeline {timeline}: WAL from {} to {}", name(first), name(last)));
        }
    }
    if windows.is_empty() {
        output::line("no backup yet: take one with `walrecv backup`");
        return;
    }
    output::line("");
    let wide = output::width() >= WIDE;
    let columns: Vec<&Column> = COLUMNS.iter().filter(|column| wide || !column.wide).collect();
    let header: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let right: Vec<bool> = columns.iter().map(|column| column.right).collect();
    let rows: Vec<Vec<String>> =
        windows.iter().map(|window| columns.iter().map(|column| (column.cell)(window)).collect()).collect();
    let table = output::table(&header, &right, &rows);
    let (head, lines) = table.split_once('\n').unwrap_or((&table, ""));
    output::line(head);
    for (line, Window { manifest, .. }) in lines.lines().zip(windows) {
        output::line(line);
        output::line(format!("  WAL {}, by {}", show::own_wal(manifest), show::made_by(manifest)));
    }
    output::line("");
    output::line(
        "COMMITS THROUGH (UTC): the newest commit or heartbeat stored; `walrecv show ID` tells the rest of one backup.",
    );
    unread.into_iter().for_each(|unread| output::line(unread.text()));
}

/// A terminal of so many columns gets all of the table's.
const WIDE: usize = 175;

struct Column {
    name: &'static str,
    right: bool,
    wide: bool,
    cell: fn(&Window) -> String,
}

const fn column(name: &'static str, right: bool, wide: bool, cell: fn(&Window) -> String) -> Column {
    Column { name, right, wide, cell }
}

/// Without the wide ones a row has at most 120 columns.
const COLUMNS: [Column; 11] = [
    column("BACKUP", false, false, |window| window.manifest.id.to_string()),
    column("LABEL", false, true, |window| window.manifest.label.clone()),
    column("PG", true, true, |window| (window.manifest.version_num / 10000).to_string()),
    column("KIND", false, false, |window| show::kind(&window.manifest).to_owned()),
    column("DATA", true, false, |window| output::bytes(window.manifest.sizes.total)),
    column("CHANGED", true, false, |window| format!("{:.1} %", show::changed_share(&window.manifest) * 100.0)),
    column("STORED", true, false, |window| output::bytes(window.manifest.sizes.stored)),
    column("TOOK", true, false, |window| output::seconds(show::took(&window.manifest))),
    column("RESTORABLE FROM", true, true, |window| window.manifest.stop.to_string()),
    column("WAL THROUGH", false, true, |window| match usable(window) {
        Some((timeline, end)) => format!("{end} (timeline {timeline})"),
        None => "WAL MISSING".to_owned(),
    }),
    column("COMMITS THROUGH", false, false, |window| match usable(window) {
        Some(_) => window.complete.map_or("-".to_owned(), short),
        None => "WAL MISSING".to_owned(),
    }),
];

/// Where its WAL ends, if it reaches far enough for a restore.
fn usable(window: &Window) -> Option<(TimelineId, Lsn)> {
    window.end.filter(|(_, end)| *end >= window.manifest.stop)
}

/// To the second below: JSON and `show` have the rest.
pub(super) fn short(time: PgTime) -> String {
    output::moment(time).map_or("-".to_owned(), |moment| moment.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// When somebody last read all of it back, and what was found.
fn tell_checks(windows: &[Window], verdicts: &Verdicts) {
    match verdicts.checks().iter().find(|noted| noted.check.only.is_none()) {
        Some(newest) => {
            let depth = if newest.check.deep { "every byte" } else { "names, lengths, indexes" };
            let (at, outcome) = (output::time(newest.at), newest.check.outcome.name());
            let deep = match verdicts.newest_deep() {
                _ if newest.check.deep => String::new(),
                Some(deep) => format!("; every byte last at {}", output::time(deep.at)),
                None => "; every byte never: `walrecv verify --deep`".to_owned(),
            };
            output::line(format!("last verified {at} ({depth}): {outcome}{deep}"));
        }
        None if windows.is_empty() => {}
        None => output::line("never verified: `walrecv verify` reads it back"),
    }
    for id in windows.iter().map(|window| window.manifest.id.as_str()) {
        if let Some((noted, Found::Hurt)) = verdicts.of(id) {
            let at = output::time(noted.at);
            output::line(format!(
                "HURT: {id}: something that it needs was missing or damaged when it was verified at {at}"
            ));
        }
    }
}

fn checked_json(window: &Window, verdicts: &Verdicts) -> Value {
    let mut value = window_json(window);
    value["last_verified"] = verdicts.of(window.manifest.id.as_str()).map_or(Value::Null, show::check_json);
    value
}

/// `closed`: a backup behind it makes it a matter of the past.
pub(super) fn barrier_text(barrier: &Barrier, closed: bool) -> String {
    let advice = match closed {
        true => "a backup behind it is complete",
        false => "TAKE A NEW BACKUP: no backup reaches past it",
    };
    match barrier {
        Barrier::Hole(hole) => format!(
            "HOLE from {} (timeline {}) to {} (timeline {}): {}; {advice}",
            hole.from, hole.from_timeline, hole.to, hole.to_timeline, hole.reason
        ),
        Barrier::Minimal(at) => {
            format!("WAL_LEVEL MINIMAL from {} of timeline {} on, which leads nowhere; {advice}", at.lsn, at.timeline)
        }
    }
}

fn hole_json(barrier: &Barrier, closed: bool) -> Option<Value> {
    let Barrier::Hole(hole) = barrier else { return None };
    Some(json!({
        "from_timeline": hole.from_timeline.0, "from": hole.from.to_string(), "to_timeline": hole.to_timeline.0,
        "to": hole.to.to_string(), "reason": hole.reason, "closed_by_backup": closed,
    }))
}

pub(super) fn minimal_json(barrier: &Barrier, closed: bool) -> Option<Value> {
    let Barrier::Minimal(at) = barrier else { return None };
    Some(json!({ "timeline": at.timeline.0, "lsn": at.lsn.to_string(), "closed_by_backup": closed }))
}

/// One backup as scripts see it.
pub fn backup_json(manifest: &Manifest) -> Value {
    json!({
        "id": manifest.id.to_string(), "label": manifest.label, "server_version_num": manifest.version_num,
        "timeline": manifest.timeline.0, "start_lsn": manifest.start.to_string(), "stop_lsn": manifest.stop.to_string(),
        "started_at": output::rfc3339(manifest.started_at), "stopped_at": output::rfc3339(manifest.stopped_at),
        "total_bytes": manifest.sizes.total, "stored_bytes": manifest.sizes.stored, "read_bytes": manifest.sizes.read,
        "files": manifest.sizes.files, "packs": manifest.sizes.packs, "bad_pages": manifest.bad_page_count,
        "torn_pages": manifest.torn_pages.len(), "absent_tablespaces": manifest.absent_tablespaces,
        "transfer": manifest.transfer, "parent": manifest.parent.as_ref().map(ToString::to_string),
        "changed_bytes": manifest.sizes.changed, "reused_bytes": manifest.sizes.reused,
        "changed_share": show::changed_share(manifest), "copy_seconds": show::took(manifest),
        "from_standby": manifest.from_standby, "why_full": manifest.why_full,
        "made_by": manifest.made_by, "host": manifest.host,
    })
}

pub(super) fn window_json(window: &Window) -> Value {
    let mut value = backup_json(&window.manifest);
    value["restorable_through"] = match &window.end {
        Some((timeline, end)) => json!({ "timeline": timeline.0, "lsn": end.to_string() }),
        None => Value::Null,
    };
    value["restorable"] = usable(window).is_some().into();
    value["complete_through"] = window.complete.and_then(output::moment).map(output::rfc3339).into();
    value["newest_summarised_commit"] = window.newest.and_then(output::moment).map(output::rfc3339).into();
    value
}

fn timeline_json(inventory: &Inventory, timeline: TimelineId, archive: &Archive) -> Value {
    let name = |number: Option<SegmentNumber>| {
        number.map(|n| SegmentName::new(timeline, n, archive.names.segment_size).to_string())
    };
    let problem = inventory.unknown().find(|(unknown, _)| *unknown == timeline).map(|(_, problem)| problem);
    json!({ "timeline": timeline.0, "first": name(inventory.first(timeline)), "last": name(inventory.last(timeline)), "problem": problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::Ancestor;

    #[test]
    fn a_fork_inside_a_backup_does_not_continue_it() {
        let history = |timeline: u32, ancestors: &[(u32, u64)]| {
            let ancestor =
                |(timeline, at): &(u32, u64)| Ancestor { timeline: TimelineId(*timeline), switch_point: Lsn(*at) };
            let timeline = TimelineId(timeline);
            (timeline, TimelineHistory { timeline, ancestors: ancestors.iter().map(ancestor).collect() })
        };
        let histories: BTreeMap<_, _> =
            [history(2, &[(1, 500)]), history(3, &[(1, 300)]), history(4, &[(1, 500), (2, 600)])].into();
        let own = |timeline: u32| match histories.get(&TimelineId(timeline)) {
            Some(history) => Path::of(history),
            None => Path::of(&TimelineHistory::root(TimelineId(timeline))),
        };
        let next = |stop: (u32, u64), at: (u32, u64, u64)| {
            let at = (TimelineId(at.0), Lsn(at.1), Lsn(at.2));
            next_leg(&histories, &own(stop.0), (TimelineId(stop.0), Lsn(stop.1)), at)
                .map(|(child, fork)| (child.0, fork.0))
        };
        assert_eq!(next((1, 300), (1, 100, 900)), Some((3, 300)), "it left at the very end of the backup");
        assert_eq!(next((1, 400), (1, 100, 900)), Some((2, 500)), "timeline 3 left before the backup ended");
        assert_eq!(next((1, 501), (1, 100, 900)), None);
        assert_eq!(next((1, 400), (1, 100, 499)), None, "the WAL does not reach the fork");
        // A standby was promoted during the backup, twice.
        assert_eq!(next((2, 550), (1, 200, 900)), Some((2, 500)), "timeline 3 left timeline 1 on another way");
        assert_eq!(next((2, 550), (2, 500, 900)), Some((4, 600)));
        assert_eq!(next((4, 700), (1, 200, 900)), Some((2, 500)));
        assert_eq!(next((4, 700), (2, 500, 900)), Some((4, 600)));
    }
}
