//! `walrecv backup`: a base backup now, with a progress bar.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use super::args::{BackupArgs, Common};
use super::context::Context;
use super::{list, output};
use crate::backup::{BackupOptions, Outcome, Progress, take};
use crate::config::settings;
use crate::error::{Error, Kind, Result};

pub async fn run(common: &Common, args: &BackupArgs) -> Result<()> {
    let context = Context::open(common).await?;
    let compression = match &args.compression {
        Some(text) => settings::compression(text)
            .map_err(|problem| Error::new(Kind::Usage, format!("--compression: {problem}")))?,
        None => context.cluster.compression,
    };
    let conninfo = context.conninfo()?;
    let writer = Arc::new(context.writer_ring()?);
    let archive = context.archive_for_backup(context.index_ring()?).await?;
    let bar = bar();
    let shown = bar.clone();
    let options = BackupOptions {
        label: args.label.clone(),
        fast_checkpoint: args.checkpoint == "fast",
        max_rate: args.max_rate,
        compression,
        state_dir: Some(context.settings.state_dir.clone()),
        progress: Some(Arc::new(move |progress| show(&shown, progress))),
        ..BackupOptions::default()
    };
    let outcome = take(&archive, writer, &conninfo, &options).await;
    bar.finish_and_clear();
    report(common, &outcome?);
    Ok(())
}

/// Hidden unless a person watches.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !output::watched() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    let spinner = |text: String| {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.set_message(text);
        bar.tick();
    };
    match progress {
        Progress::WaitingForReceiver { durable, needed } => {
            let durable = durable.map_or("nothing".to_owned(), |lsn| lsn.to_string());
            spinner(format!("waiting for the receiver: the archive has {durable}, the server is at {needed}"));
        }
        Progress::Checkpoint => spinner("the server makes its checkpoint".to_owned()),
        Progress::Copying { done, total } => {
            let style = "{bar:40} {bytes} of about {total_bytes}, {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_length(total.unwrap_or(done).max(done));
            bar.set_position(done);
        }
        Progress::Mapping { files } => spinner(format!("writing the map of {files} files")),
        Progress::WaitingForWal { durable, needed } => {
            let durable = durable.map_or("nothing".to_owned(), |lsn| lsn.to_string());
            spinner(format!("waiting for WAL: the archive has {durable}, the backup needs {needed}"));
        }
    }
}

fn report(common: &Common, outcome: &Outcome) {
    let manifest = &outcome.manifest;
    let seconds = outcome.elapsed.as_secs_f64();
    if common.output == output::Format::Json {
        let mut value = list::backup_json(manifest);
        value["elapsed_seconds"] = seconds.into();
        value["waited_for_wal_seconds"] = outcome.waited_for_wal.as_secs_f64().into();
        return output::json(&value);
    }
    let sizes = &manifest.sizes;
    output::line(format!("backup       {}", manifest.id));
    output::line(format!("WAL          {} to {}, timeline {}", manifest.start, manifest.stop, manifest.timeline));
    output::line(format!("data         {} in {} files", output::bytes(sizes.total), sizes.files));
    output::line(format!("stored       {} in {} packs", output::bytes(sizes.stored), sizes.packs));
    let rate = output::bytes((sizes.read as f64 / seconds.max(0.001)) as u64);
    output::line(format!("took         {} ({rate}/s)", output::seconds(seconds)));
    if manifest.bad_page_count > 0 {
        output::line(format!(
            "BAD PAGES    {}: their checksums are wrong on the server itself",
            manifest.bad_page_count
        ));
        for page in manifest.bad_pages.iter().take(10) {
            let path = String::from_utf8_lossy(&page.path.0);
            output::line(format!("             {path} page {}", page.page));
        }
    }
}
