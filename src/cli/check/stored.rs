//! What is stored, against the server: the same cluster, how far the archive reaches, and a backup to begin a restore with.

use jiff::Timestamp;

use super::report::Report;
use super::server::Seen;
use crate::archive::Archive;
use crate::cli::context::Context;
use crate::cli::output;
use crate::daemon::holes::words;
use crate::error::{Error, Kind, Result};

pub async fn look(context: &Context, seen: Option<&Seen>, report: &mut Report) {
    if let Err(error) = compare(context, seen, report).await {
        report.fail("archive", &error);
    }
}

async fn compare(context: &Context, seen: Option<&Seen>, report: &mut Report) -> Result<()> {
    let stored = Archive::incarnations(&context.repo, &context.cluster.name).await?;
    let Some(first) = stored.first() else {
        let found = format!("nothing is stored of cluster {:?} yet", context.cluster.name);
        report.warn("archive", found, "start `walrecv receive`, then take a backup with `walrecv backup`");
        return Ok(());
    };
    if let Some(seen) = seen {
        let same = |names: &&crate::repo::ClusterNames| {
            names.system == seen.identity.system && seen.segment_size.is_none_or(|size| size == names.segment_size)
        };
        if stored.iter().find(same).is_none() {
            let text = format!(
                "the repository holds system identifier {} with segments of {}, the server is another",
                first.system,
                output::bytes(first.segment_size.bytes())
            );
            let hint = "this is another cluster than before: check dsn, or use a new cluster name";
            report.fail("same cluster", &Error::new(Kind::Diverged, text).hint(hint));
            return Ok(());
        }
        report.ok("same cluster", "the repository holds WAL of this system identifier");
    }
    let archive = context.archive(context.index_ring()?).await?;
    if let Some(seen) = seen {
        let identity = &seen.identity;
        match archive.durable_end(identity.timeline).await? {
            Some(end) => {
                let behind = if end < identity.position { identity.position.since(end) } else { 0 };
                let found = format!(
                    "timeline {} is stored up to {end}, {} behind the server",
                    identity.timeline,
                    output::bytes(behind)
                );
                match behind > archive.names.segment_size.bytes() {
                    false => report.ok("archive", found),
                    true => report.warn(
                        "archive",
                        found,
                        "see with `walrecv status` whether a receiver of this repository streams and comes nearer: whoever uses the slot may fill another one",
                    ),
                }
            }
            None => report.warn(
                "archive",
                format!("nothing is stored of the server's timeline {}", identity.timeline),
                "start `walrecv receive`, which follows the server to its timeline",
            ),
        }
    }
    backups(&archive, report).await?;
    holes(&archive, seen, report).await
}

/// WAL that was lost, or is of no use, is told for as long as nothing can be restored past it.
async fn holes(archive: &Archive, seen: Option<&Seen>, report: &mut Report) -> Result<()> {
    const CHECK: &str = "holes";
    let recorded = archive.barriers().await?;
    let count = recorded.len();
    let mut open = archive.still_open(recorded).await?;
    if let Some(seen) = seen {
        open = archive.barriers_of(open, seen.identity.timeline).await?;
    }
    match words(&open) {
        Some(open) => {
            report.warn(CHECK, open, "take one with `walrecv backup`: nothing can be restored past it before")
        }
        None if count > 0 => report.ok(CHECK, format!("{count} recorded, none of which needs a backup")),
        None => {}
    }
    Ok(())
}

/// Seconds by which the clocks of two hosts may differ without a word.
const CLOCKS: f64 = 5.0;

async fn backups(archive: &Archive, report: &mut Report) -> Result<()> {
    const CHECK: &str = "backups";
    let list = archive.list_backups().await?;
    for (name, error) in &list.unreadable {
        report.warn(CHECK, format!("{name} cannot be read: {error}"), "check the key files; a backup may be behind it");
    }
    match list.complete.last() {
        None => report.warn(CHECK, "none: WAL alone restores nothing", "take one with `walrecv backup`"),
        Some(newest) => {
            let age = Timestamp::now().duration_since(newest.started_at).as_secs_f64();
            let (count, id) = (list.complete.len(), &newest.id);
            let begun = match age < -CLOCKS {
                true => format!("begun {} from now by the clock of its host", output::seconds(-age)),
                false => format!("begun {} ago", output::seconds(age.max(0.0))),
            };
            report.ok(CHECK, format!("{count}, the newest is {id}, {begun}"));
        }
    }
    Ok(())
}
