//! `walrecv list`: the backups, and how far each can be restored.

use serde_json::{Value, json};

use super::args::Common;
use super::context::Context;
use super::{output, target};
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::catalog::{Catalog, path_in};
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use crate::repo::names::{PART_BYTES, parts_of};
use crate::restore::stock;
use crate::seal::content::event::Hole;
use crate::seal::content::manifest::Manifest;

/// How many segments are looked back through for the newest commit.
const LOOK_BACK: u64 = 64;

/// What one backup can be restored to.
struct Window {
    manifest: Manifest,
    /// Timeline and end of the WAL that continues the backup without a hole; `None`: not even the backup's own WAL is there.
    end: Option<(TimelineId, Lsn)>,
    /// Time of the newest commit that a complete segment's summary tells of; the open segment may hold newer ones.
    newest: Option<PgTime>,
    /// Everything that was committed by then is stored: told by a heartbeat.
    complete: Option<PgTime>,
}

pub async fn run(common: &Common) -> Result<()> {
    let context = Context::open(common).await?;
    let archive = context.archive(context.index_ring()?).await?;
    let inventory = archive.inventory().await?;
    for (timeline, problem) in &inventory.damaged {
        output::note(format!("warning: windows do not go on into timeline {timeline}: {problem}"));
    }
    let catalog = noted(&context, &archive);
    let shelf = Shelf { archive: &archive, inventory: &inventory, catalog: catalog.as_ref() };
    let mut windows = Vec::new();
    for manifest in stock::complete_backups(&archive).await? {
        windows.push(window(&shelf, manifest).await?);
    }
    let holes = archive.holes().await?;
    let corrupt = archive.corrupt_wal().await?;
    if common.output == output::Format::Json {
        let stored: Vec<Value> = inventory.timelines.keys().map(|t| timeline_json(&inventory, *t, &archive)).collect();
        let backups: Vec<Value> = windows.iter().map(window_json).collect();
        output::json(&json!({
            "cluster": archive.names.cluster, "system_identifier": archive.names.system.to_string(),
            "wal_segment_size": archive.names.segment_size.bytes(), "backups": backups, "timelines": stored,
            "holes": holes.iter().map(|hole| hole_json(hole, &windows)).collect::<Vec<_>>(),
            "corrupt_wal": corrupt.iter().map(|(at, found)| json!({
                "timeline": found.timeline.0, "lsn": found.lsn.to_string(), "problem": found.problem, "found_at": at.to_string(),
            })).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    show(&archive, &inventory, &windows);
    holes.iter().for_each(|hole| output::line(hole_text(hole, &windows)));
    for (at, found) in &corrupt {
        output::line(format!(
            "CORRUPT WAL was sent at {} of timeline {} and not acknowledged ({at}): {}",
            found.lsn, found.timeline, found.problem
        ));
    }
    Ok(())
}

/// What windows are made from.
struct Shelf<'a> {
    archive: &'a Archive,
    inventory: &'a Inventory,
    /// Saves reading summaries of segments that the inventory shows.
    catalog: Option<&'a Catalog>,
}

/// The catalog that a receiver on this host keeps. Nothing needs it.
fn noted(context: &Context, archive: &Archive) -> Option<Catalog> {
    let path = path_in(&context.settings.state_dir, &context.cluster.name);
    Catalog::read(&path, &archive.identity()).unwrap_or_else(|error| {
        tracing::info!("{} is not used: {error}", path.display());
        None
    })
}

async fn window(shelf: &Shelf<'_>, manifest: Manifest) -> Result<Window> {
    let Shelf { archive, inventory, .. } = shelf;
    let mut end = None;
    let (mut timeline, mut from) = (manifest.timeline, manifest.start);
    // Along each child that continues where its parent was left, the newest first.
    while let Some(reached) = archive.contiguous_in(inventory, timeline, from).await? {
        end = Some((timeline, reached));
        let child = inventory.histories.values().rev().find_map(|history| {
            let last = history.ancestors.last().filter(|a| a.timeline == timeline)?;
            (last.switch_point >= from && last.switch_point <= reached).then_some((history.timeline, last.switch_point))
        });
        match child {
            Some((next, fork)) => (timeline, from) = (next, fork.max(from)),
            None => break,
        }
    }
    let newest = match end {
        Some((timeline, reached)) => newest_commit(shelf, timeline, manifest.start, reached).await?,
        None => None,
    };
    let complete = match end {
        Some((timeline, reached)) => {
            let beats = archive.heartbeats(timeline).await?;
            beats.into_iter().find(|beat| beat.lsn <= reached).map(|beat| beat.time)
        }
        None => None,
    };
    Ok(Window { manifest, end, newest, complete })
}

/// The newest commit or abort time that summaries of complete segments tell of, looking back from the end.
async fn newest_commit(shelf: &Shelf<'_>, timeline: TimelineId, start: Lsn, end: Lsn) -> Result<Option<PgTime>> {
    let Shelf { archive, inventory, .. } = shelf;
    let size = archive.names.segment_size;
    let (last, first) = (size.segment_before(end).0, size.segment_of(start).0);
    for number in (first.max(last.saturating_sub(LOOK_BACK))..=last).rev() {
        let segment = SegmentName::new(timeline, SegmentNumber(number), size);
        let complete = inventory.timelines.get(&timeline).is_some_and(|stock| stock.complete.contains(&segment.number));
        let noted = shelf.catalog.filter(|_| complete).and_then(|catalog| noted_times(catalog, segment));
        let times = match noted {
            Some(times) => times,
            None if complete => {
                let summaries = archive.summaries(segment).await?;
                summaries.unwrap_or_default().into_iter().map(|summary| summary.times).collect()
            }
            None => continue,
        };
        if let Some(time) = times.into_iter().flatten().map(|(_, newest)| newest).max() {
            return Ok(Some(time));
        }
    }
    Ok(None)
}

/// Commit times of a segment's objects; `None` unless all of them are noted.
fn noted_times(catalog: &Catalog, segment: SegmentName) -> Option<Vec<Option<(PgTime, PgTime)>>> {
    let parts = u64::from(parts_of(segment.size).unwrap_or(1));
    let object = |part| catalog.object(segment.timeline, segment.start() + part * PART_BYTES).ok().flatten();
    (0..parts).map(|part| object(part).map(|object| object.times)).collect()
}

fn show(archive: &Archive, inventory: &Inventory, windows: &[Window]) {
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
        output::line("no backup yet: take one with `walrecv backup` while `walrecv receive` runs");
        return;
    }
    output::line("");
    let header =
        ["BACKUP", "LABEL", "PG", "STOPPED", "DATA", "STORED", "RESTORABLE FROM", "THROUGH", "COMMITS THROUGH"];
    let right = [false, false, true, false, true, true];
    let rows: Vec<Vec<String>> = windows.iter().map(row).collect();
    output::line(output::table(&header, &right, &rows));
    output::line("");
    output::line(
        "COMMITS THROUGH is what complete segments and heartbeats tell; the open segment may hold newer ones. `walrecv restore --latest --plan` looks.",
    );
}

/// Whether a backup behind the hole makes it a matter of the past.
fn is_closed(hole: &Hole, windows: &[Window]) -> bool {
    let behind = |window: &Window| {
        let manifest = &window.manifest;
        (manifest.timeline, manifest.start) >= (hole.to_timeline, hole.to) && window.end.is_some()
    };
    windows.iter().any(behind)
}

fn hole_text(hole: &Hole, windows: &[Window]) -> String {
    let advice = match is_closed(hole, windows) {
        true => "a backup behind it is complete",
        false => "TAKE A NEW BACKUP: no backup reaches past it",
    };
    format!(
        "HOLE from {} (timeline {}) to {} (timeline {}): {}; {advice}",
        hole.from, hole.from_timeline, hole.to, hole.to_timeline, hole.reason
    )
}

fn hole_json(hole: &Hole, windows: &[Window]) -> Value {
    json!({
        "from_timeline": hole.from_timeline.0, "from": hole.from.to_string(), "to_timeline": hole.to_timeline.0,
        "to": hole.to.to_string(), "reason": hole.reason, "closed_by_backup": is_closed(hole, windows),
    })
}

fn row(window: &Window) -> Vec<String> {
    let manifest = &window.manifest;
    let usable = window.end.filter(|(_, end)| *end >= manifest.stop);
    vec![
        manifest.id.to_string(),
        manifest.label.clone(),
        (manifest.version_num / 10000).to_string(),
        output::time(manifest.stopped_at),
        output::bytes(manifest.sizes.total),
        output::bytes(manifest.sizes.stored),
        manifest.stop.to_string(),
        usable.map_or("WAL MISSING".to_owned(), |(timeline, end)| format!("{end} (timeline {timeline})")),
        window.newest.max(window.complete).map_or("-".to_owned(), target::show),
    ]
}

/// One backup as scripts see it.
pub fn backup_json(manifest: &Manifest) -> Value {
    json!({
        "id": manifest.id.to_string(), "label": manifest.label, "server_version": manifest.version_num,
        "timeline": manifest.timeline.0, "start_lsn": manifest.start.to_string(), "stop_lsn": manifest.stop.to_string(),
        "started_at": manifest.started_at.to_string(), "stopped_at": manifest.stopped_at.to_string(),
        "total_bytes": manifest.sizes.total, "stored_bytes": manifest.sizes.stored, "read_bytes": manifest.sizes.read,
        "files": manifest.sizes.files, "packs": manifest.sizes.packs, "bad_pages": manifest.bad_page_count,
    })
}

fn window_json(window: &Window) -> Value {
    let mut value = backup_json(&window.manifest);
    value["restorable_through"] = match &window.end {
        Some((timeline, end)) => json!({ "timeline": timeline.0, "lsn": end.to_string() }),
        None => Value::Null,
    };
    value["restorable"] = window.end.is_some_and(|(_, end)| end >= window.manifest.stop).into();
    value["complete_through"] = window.complete.and_then(output::moment).map(output::rfc3339).into();
    value["newest_summarised_commit"] = window.newest.and_then(output::moment).map(output::rfc3339).into();
    value
}

fn timeline_json(inventory: &Inventory, timeline: TimelineId, archive: &Archive) -> Value {
    let name = |number: Option<SegmentNumber>| {
        number.map(|n| SegmentName::new(timeline, n, archive.names.segment_size).to_string())
    };
    json!({ "timeline": timeline.0, "first": name(inventory.first(timeline)), "last": name(inventory.last(timeline)) })
}
