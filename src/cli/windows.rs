//! `walrecv list --windows`: what can be restored, drawn timeline by timeline, with the holes.

use serde_json::{Value, json};

use super::args::Common;
use super::context::Context;
use super::list::{self, Shelf};
use super::output;
use crate::archive::holes::Barrier;
use crate::error::Result;
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, TimelineId};
use crate::restore::stock;
use crate::restore::windows::{self, Base, Reach, Stretch, Window};
use crate::seal::content::event::Hole;
use crate::seal::content::manifest::Manifest;

/// A drawing is never wider than this.
const WIDEST: usize = 120;

/// A window and the times of its ends.
struct Timed<'a> {
    window: &'a Window,
    /// When its first backup was complete or, behind a fork, of the oldest commit in the segments after that of the fork, which begins with the parent's.
    from: Option<PgTime>,
    /// Of the newest commit or heartbeat.
    through: Option<PgTime>,
}

/// A timeline with the times of its windows.
struct Row<'a> {
    reach: &'a Reach,
    windows: Vec<Timed<'a>>,
}

pub async fn run(common: &Common) -> Result<()> {
    let context = Context::open(common).await?;
    let (ring, unread) = context.ring_at_hand().await?;
    let Some(archive) = context.archive_if_any(ring).await? else {
        let cluster = &context.cluster.name;
        list::nothing(
            common,
            cluster,
            &json!({
                "cluster": cluster, "system_identifier": null, "open_segment_read": unread.is_none(), "minimal_wal": [], "timelines": [],
            }),
        );
        return Ok(());
    };
    let inventory = archive.inventory().await?;
    for (timeline, problem) in inventory.unknown() {
        output::note(format!("warning: where timeline {timeline} comes from is not known: {problem}"));
    }
    let manifests = stock::complete_backups(&archive).await?;
    let bases: Vec<Base> = manifests.iter().map(Base::of).collect();
    let stored = windows::stored(&archive, &inventory).await?;
    let recorded = archive.minimal_wal().await?;
    let minimal: Vec<_> = recorded.iter().map(|one| (one.timeline, one.lsn)).collect();
    let mut reaches = windows::reaches(&stored, &inventory.histories, &bases, &minimal, archive.names.segment_size);
    for reach in &mut reaches {
        let lost = archive.lost_end(&inventory, reach.timeline).await?;
        reach.lost = lost.map(|lost| Stretch { from: lost.from, to: lost.beat.lsn });
    }
    let catalog = list::noted(&context, &archive);
    let shelf = Shelf::of(&archive, &inventory, catalog.as_ref());
    let mut rows = Vec::new();
    for reach in &reaches {
        let mut windows = Vec::new();
        for window in &reach.windows {
            windows.push(timed(&shelf, reach, window, &manifests).await?);
        }
        rows.push(Row { reach, windows });
    }
    let given_up = archive.holes().await?;
    let recorded: Vec<Barrier> = recorded.into_iter().map(Barrier::Minimal).collect();
    let open = archive.open_among(recorded.clone(), &manifests).await?;
    let is_closed = |barrier: &Barrier| !open.contains(barrier);
    if common.output == output::Format::Json {
        let names = &archive.names;
        output::json(&json!({
            "cluster": names.cluster, "system_identifier": names.system.to_string(),
            "open_segment_read": unread.is_none(),
            "minimal_wal": recorded.iter().filter_map(|one| list::minimal_json(one, is_closed(one))).collect::<Vec<_>>(),
            "timelines": rows.iter().map(|row| row_json(row, &given_up)).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    output::line(format!("cluster {}, system identifier {}", archive.names.cluster, archive.names.system));
    if rows.is_empty() {
        output::line("nothing is stored yet");
        return Ok(());
    }
    output::line("");
    draw(&rows, &bases, output::width().min(WIDEST)).iter().for_each(output::line);
    output::line("");
    table(&rows);
    unread.into_iter().for_each(|unread| output::line(unread.text()));
    rows.iter().flat_map(|row| hole_lines(row, &given_up)).for_each(output::line);
    recorded.iter().for_each(|one| output::line(list::barrier_text(one, is_closed(one))));
    Ok(())
}

async fn timed<'a>(shelf: &Shelf<'_>, reach: &Reach, window: &'a Window, manifests: &[Manifest]) -> Result<Timed<'a>> {
    let first = manifests.iter().find(|manifest| Some(&manifest.id) == window.backups.first());
    // A summary speaks of a whole segment: one that lies in the window in part is not asked.
    let segment = shelf.archive.names.segment_size.bytes();
    let (begin, end) = (window.from.align_up(segment), window.to.align_down(segment));
    let from = match first.filter(|manifest| manifest.stop == window.from) {
        Some(manifest) => Some(PgTime::from_unix_micros(manifest.stopped_at.as_microsecond())),
        None => list::oldest_commit(shelf, reach.timeline, begin, end).await?,
    };
    let (through, _) = list::through(shelf, reach.timeline, (window.from, window.to)).await?;
    Ok(Timed { window, from, through })
}

/// One line of characters for each timeline, all on one scale of positions, and what the characters mean.
fn draw(rows: &[Row<'_>], bases: &[Base], width: usize) -> Vec<String> {
    let ends = rows.iter().flat_map(|row| row.reach.stored.iter().chain(&row.reach.lost));
    let first = ends.clone().map(|stretch| stretch.from).min().unwrap_or(Lsn(0));
    let last = ends.map(|stretch| stretch.to).max().unwrap_or(Lsn(0));
    let label = rows.iter().map(|row| row.reach.timeline.to_string().len()).max().unwrap_or(1).max(8);
    let columns = width.saturating_sub(label + 2).max(10);
    let scale = Scale { first, span: last.since(first).max(1), columns };
    let (left, right) = (first.to_string(), last.to_string());
    let gap = columns.saturating_sub(left.len() + right.len()).max(1);
    let mut lines = vec![format!("{:<label$}  {left}{:gap$}{right}", "TIMELINE", "")];
    for row in rows {
        let line: String = (0..columns).map(|column| scale.symbol(column, row.reach, bases)).collect();
        lines.push(format!("{:<label$}  {}", row.reach.timeline.to_string(), line.trim_end()));
    }
    lines.push(String::new());
    lines.push("=  can be restored    B  a backup ends    -  WAL that no backup leads to    !  a hole".to_owned());
    lines
}

/// Positions to columns.
struct Scale {
    first: Lsn,
    span: u64,
    columns: usize,
}

impl Scale {
    /// The column in which a position is drawn.
    fn column(&self, at: Lsn) -> usize {
        let place = u128::from(at.since(self.first)) * self.columns as u128 / u128::from(self.span);
        (place as usize).min(self.columns - 1)
    }

    /// Whether any of a stretch is drawn in a column.
    fn covers(&self, column: usize, from: Lsn, to: Lsn) -> bool {
        // What ends at the beginning of a column is not drawn in it.
        let last = if to > from { self.column(Lsn(to.0 - 1)) } else { self.column(to) };
        (self.column(from)..=last).contains(&column)
    }

    /// A hole is seen however short it is, then a backup, then what can be restored.
    fn symbol(&self, column: usize, reach: &Reach, bases: &[Base]) -> char {
        let drawn = |stretch: &Stretch| self.covers(column, stretch.from, stretch.to);
        let backup = |base: &&Base| base.stop_timeline == reach.timeline && self.column(base.stop) == column;
        match () {
            () if reach.holes().iter().any(drawn) => '!',
            () if bases.iter().any(|base| backup(&base)) => 'B',
            () if reach.windows.iter().any(|window| self.covers(column, window.from, window.to)) => '=',
            () if reach.stored.iter().any(drawn) => '-',
            () => ' ',
        }
    }
}

fn table(rows: &[Row<'_>]) {
    let header = ["TIMELINE", "FROM LSN", "FROM (UTC)", "THROUGH LSN", "THROUGH (UTC)", "BACKUPS"];
    let moment = |time: Option<PgTime>| time.map_or("-".to_owned(), list::short);
    let cells = |timeline: TimelineId, timed: &Timed<'_>| {
        let Timed { window, from, through } = timed;
        let backups = window.backups.len().to_string();
        let (begin, end) = (window.from.to_string(), window.to.to_string());
        vec![timeline.to_string(), begin, moment(*from), end, moment(*through), backups]
    };
    let windows = |row: &Row<'_>| row.windows.iter().map(|timed| cells(row.reach.timeline, timed)).collect::<Vec<_>>();
    let all: Vec<Vec<String>> = rows.iter().flat_map(windows).collect();
    if all.is_empty() {
        output::line("NOTHING CAN BE RESTORED: no complete backup has its WAL; take one with `walrecv backup`");
        return;
    }
    output::line(output::table(&header, &[false, false, false, false, false, true], &all));
    output::line("");
    output::line("THROUGH is the newest commit or heartbeat that is stored.");
    for row in rows {
        if let Some((parent, at)) = row.reach.fork {
            output::line(format!("timeline {} left timeline {parent} at {at}", row.reach.timeline));
        }
    }
}

/// Whether a window begins behind it on its timeline.
fn is_passed(reach: &Reach, hole: &Stretch) -> bool {
    reach.windows.iter().any(|window| window.from >= hole.to)
}

/// Why WAL was given up, where that was recorded.
fn reason<'a>(reach: &Reach, hole: &Stretch, given_up: &'a [Hole]) -> Option<&'a str> {
    let here = |event: &&Hole| event.to_timeline == reach.timeline && event.from < hole.to && event.to > hole.from;
    given_up.iter().rfind(here).map(|event| event.reason.as_str())
}

fn hole_lines(row: &Row<'_>, given_up: &[Hole]) -> Vec<String> {
    let reach = row.reach;
    let line = |hole: &Stretch| {
        let nothing = match reach.lost.as_ref() == Some(hole) {
            true => "a heartbeat shows that it was stored, and it is gone",
            false => "nothing of it is stored",
        };
        let why = reason(reach, hole, given_up).unwrap_or(nothing);
        let advice = match is_passed(reach, hole) {
            true => "a backup behind it can be restored",
            false => "TAKE A NEW BACKUP: none leads past it",
        };
        format!("HOLE on timeline {} from {} to {}: {why}; {advice}", reach.timeline, hole.from, hole.to)
    };
    reach.holes().iter().map(line).collect()
}

fn row_json(row: &Row<'_>, given_up: &[Hole]) -> Value {
    let reach = row.reach;
    let moment = |time: Option<PgTime>| time.and_then(output::moment).map(output::rfc3339);
    let window = |timed: &Timed<'_>| {
        let backups: Vec<String> = timed.window.backups.iter().map(ToString::to_string).collect();
        json!({
            "from_lsn": timed.window.from.to_string(), "from": moment(timed.from),
            "through_lsn": timed.window.to.to_string(), "through": moment(timed.through), "backups": backups,
        })
    };
    let stretch = |own: &Stretch| json!({ "from_lsn": own.from.to_string(), "to_lsn": own.to.to_string() });
    let hole = |hole: &Stretch| {
        let mut value = stretch(hole);
        value["reason"] = reason(reach, hole, given_up).into();
        value["passed_by_backup"] = is_passed(reach, hole).into();
        value
    };
    json!({
        "timeline": reach.timeline.0,
        "parent": reach.fork.map(|(parent, _)| parent.0), "fork_lsn": reach.fork.map(|(_, at)| at.to_string()),
        "wal": reach.stored.iter().map(stretch).collect::<Vec<_>>(),
        "windows": row.windows.iter().map(window).collect::<Vec<_>>(),
        "holes": reach.holes().iter().map(hole).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KB: u64 = 1 << 10;

    #[test]
    fn a_drawing_shows_windows_backups_and_the_shortest_hole() {
        let id = |n| crate::seal::content::BackupId::new(jiff::Timestamp::UNIX_EPOCH, TimelineId(1), Lsn(n), 0);
        let base = |timeline: u32, start: u64, stop: u64| {
            let timeline = TimelineId(timeline);
            Base { id: id(start), timeline, start: Lsn(start), stop_timeline: timeline, stop: Lsn(stop) }
        };
        let stretch = |from: u64, to: u64| Stretch { from: Lsn(from), to: Lsn(to) };
        let window = |from: u64, to: u64| Window { from: Lsn(from), to: Lsn(to), backups: vec![id(0)] };
        let one = Reach {
            timeline: TimelineId(1),
            fork: None,
            stored: vec![stretch(0, 40 * KB), stretch(41 * KB, 80 * KB)],
            lost: None,
            windows: vec![window(10 * KB, 40 * KB)],
        };
        let two = Reach {
            timeline: TimelineId(2),
            fork: Some((TimelineId(1), Lsn(30 * KB))),
            stored: vec![stretch(30 * KB, 100 * KB)],
            lost: None,
            windows: vec![window(30 * KB, 100 * KB)],
        };
        let rows = [&one, &two].map(|reach| Row { reach, windows: Vec::new() });
        let lines = draw(&rows, &[base(1, 5 * KB, 10 * KB), base(2, 60 * KB, 70 * KB)], 30);
        assert_eq!(
            lines[..3],
            ["TIMELINE  0/0          0/19000", "1         --B=====!-------", "2               ========B=====",]
        );
        assert!(lines.iter().take(3).all(|line| line.chars().count() <= 30));
        assert_eq!(hole_lines(&rows[0], &[]).len(), 1);
        assert!(hole_lines(&rows[0], &[])[0].contains("TAKE A NEW BACKUP"));
        let cut = Reach { lost: Some(stretch(100 * KB, 120 * KB)), ..two.clone() };
        let row = Row { reach: &cut, windows: Vec::new() };
        assert!(hole_lines(&row, &[])[0].contains("a heartbeat shows"), "{:?}", hole_lines(&row, &[]));
        assert!(draw(&[row], &[], 30)[1].ends_with('!'));
    }
}
