//! `walrecv repo stats`: how much is stored, of what, and how it grows.

use super::args::Common;
use super::context::Context;
use super::output;
use crate::error::Result;
use crate::verify::Options;
use crate::verify::stats::{self, Class, Stats};

/// Days that are shown; JSON has all.
const DAYS: usize = 14;

pub async fn stats(common: &Common) -> Result<()> {
    let context = Context::open(common).await?;
    let archive = context.archive(context.index_ring()?).await?;
    let stats = stats::stats(&archive, &Options::default()).await?;
    match common.output {
        output::Format::Json => output::json(&stats),
        output::Format::Text => print(&stats, context.repo.url()),
    }
    Ok(())
}

fn print(stats: &Stats, url: &str) {
    output::line(format!(
        "cluster {} in {url}: {} in {}",
        stats.cluster,
        output::bytes(stats.bytes),
        output::count(stats.objects, "object")
    ));
    output::line("");
    let classes = &stats.classes;
    let class =
        |name: &str, class: &Class| vec![name.to_owned(), class.objects.to_string(), output::bytes(class.bytes)];
    let rows = [
        class("packs", &classes.packs),
        class("maps", &classes.maps),
        class("WAL", &classes.wal),
        class("tails", &classes.tails),
        class("manifests", &classes.manifests),
        class("other", &classes.other),
    ];
    output::line(output::table(&["KIND", "OBJECTS", "BYTES"], &[false, true, true], &rows));
    if !stats.backups.is_empty() {
        output::line("");
        let row = |share: &stats::Share| {
            vec![share.id.clone(), output::bytes(share.stored_bytes), output::bytes(share.alone_bytes)]
        };
        let rows: Vec<Vec<String>> = stats.backups.iter().map(row).collect();
        output::line(output::table(&["BACKUP", "STORED", "COMES BACK"], &[false, true, true], &rows));
        output::line("COMES BACK: if this one alone were deleted, without WAL.");
    }
    if let (Some(live), Some(dead)) = (stats.live_bytes, stats.dead_share) {
        output::line("");
        output::line(format!(
            "packs hold {} of file contents, of which backups need {}: {:.1} % is needed by none",
            output::bytes(stats.pack_bytes),
            output::bytes(live),
            dead * 100.0
        ));
    }
    if let Some(dead) = stats.newest_dead_share {
        output::line(format!(
            "of the packs of the newest backup {:.1} % is not needed by itself: beyond 30 % a later one brings that space back",
            dead * 100.0
        ));
    }
    trend(stats);
    for problem in &stats.problems {
        output::note(format!("warning: {} ({}): figures are incomplete", problem.object, problem.found));
    }
}

fn trend(stats: &Stats) {
    if stats.days.is_empty() {
        return;
    }
    output::line("");
    let newest = stats.days.iter().skip(stats.days.len().saturating_sub(DAYS));
    let row = |day: &stats::Day| {
        vec![day.day.clone(), day.backups.to_string(), output::bytes(day.backup_bytes), output::bytes(day.wal_bytes)]
    };
    let rows: Vec<Vec<String>> = newest.map(row).collect();
    output::line(output::table(&["DAY (UTC)", "BACKUPS", "BY BACKUPS", "BY WAL"], &[false, true, true, true], &rows));
    output::line("Stored on that day and still there, whichever backup needs it now.");
    match &stats.forecast {
        Some(forecast) => output::line(format!(
            "growth    {} a day, from {:.1} days without the oldest backup; if nothing is deleted {} in 30 days, {} in 90",
            output::bytes(forecast.bytes_per_day),
            forecast.basis_days,
            output::bytes(forecast.bytes_in_30_days),
            output::bytes(forecast.bytes_in_90_days)
        )),
        None => output::line("growth    not told: less than a day is stored since the oldest backup"),
    }
}
