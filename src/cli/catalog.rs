//! `walrecv catalog`: make the index anew, compare it with the repository, print it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::Common;
use super::context::Context;
use super::output;
use crate::archive::Archive;
use crate::archive::learn::{Learned, Scope};
use crate::catalog::{Catalog, Dump, Shared, path_in};
use crate::error::{Error, Kind, Result};

/// A receiver notes what it stored a moment after it stored it: a difference counts when it stays.
const LOOKS: usize = 3;
const LOOK_AGAIN: Duration = Duration::from_secs(2);

pub async fn rebuild(common: &Common) -> Result<()> {
    let (archive, path) = open(common).await?;
    let started = Instant::now();
    let catalog = Catalog::anew(&path, &archive.identity())?.ok_or_else(|| held(&path))?;
    let shared = Shared::new(catalog, archive.repo.lane());
    let learned = archive.learn(&shared, Scope::All, &progress(common)).await?;
    end_progress(common);
    for problem in &learned.damaged {
        output::note(format!("warning: not in the catalog: {problem}"));
    }
    if common.output == output::Format::Json {
        let mut value = learned_json(&learned);
        value["catalog"] = path.display().to_string().into();
        value["seconds"] = started.elapsed().as_secs_f64().into();
        output::json(&value);
        return Ok(());
    }
    output::line(format!(
        "{} made in {}: {} objects, of which {} were read one by one and the rest from {} group summaries",
        path.display(),
        output::seconds(started.elapsed().as_secs_f64()),
        learned.objects,
        learned.heads,
        learned.summaries
    ));
    Ok(())
}

pub async fn verify(common: &Common) -> Result<()> {
    let (archive, path) = open(common).await?;
    let (fresh, mut learned) = archive.fresh_catalog(&progress(common)).await?;
    end_progress(common);
    let mut differences = Vec::new();
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
            // What was damaged at the first look is still known to be.
            let damaged = std::mem::take(&mut learned.damaged);
            learned = archive.learn(&fresh, Scope::New, &|_| {}).await?;
            learned.damaged.extend(damaged);
        }
        // The catalog first or last: what is stored in between is noted later, never earlier.
        let noted = stored_dump(&archive, &path)?;
        let repository = fresh.with(|catalog| catalog.dump()).await?;
        differences = noted.differences(&repository);
        if differences.is_empty() {
            break;
        }
    }
    learned.damaged.sort_unstable();
    learned.damaged.dedup();
    if common.output == output::Format::Json {
        output::json(&json!({
            "catalog": path.display().to_string(), "equal": differences.is_empty(), "differences": differences,
            "damaged": learned.damaged,
        }));
    } else {
        for problem in &learned.damaged {
            output::note(format!("warning: damaged in the repository: {problem}"));
        }
        differences.iter().for_each(output::line);
    }
    if !differences.is_empty() {
        return Err(Error::new(Kind::Failed, format!("{} does not agree with the repository", path.display()))
            .hint("make it anew with `walrecv catalog rebuild` while no receiver runs"));
    }
    if common.output == output::Format::Text {
        output::line(format!("{} agrees with the repository", path.display()));
    }
    Ok(())
}

pub async fn dump(common: &Common) -> Result<()> {
    let (archive, path) = open(common).await?;
    let dump = stored_dump(&archive, &path)?;
    if common.output == output::Format::Json {
        output::json(&dump);
        return Ok(());
    }
    let header = ["TLI", "START", "END", "FORM", "STORED", "RECORDS", "COMMITS", "ABORTS"];
    let right = [true, false, false, false, true, true, true, true];
    let rows: Vec<Vec<String>> = dump
        .objects
        .iter()
        .map(|o| {
            let form = if o.partial { "end of timeline" } else { "complete" };
            let numbers = [o.stored_bytes, o.records, o.commits, o.aborts].map(|n| n.to_string());
            [vec![o.timeline.to_string(), o.start.clone(), o.end.clone(), form.to_owned()], numbers.to_vec()].concat()
        })
        .collect();
    output::line(output::table(&header, &right, &rows));
    Ok(())
}

async fn open(common: &Common) -> Result<(Archive, PathBuf)> {
    let context = Context::open(common).await?;
    let archive = context.archive(context.index_ring()?).await?;
    let path = path_in(&context.settings.state_dir, &context.cluster.name);
    Ok((archive, path))
}

fn stored_dump(archive: &Archive, path: &Path) -> Result<Dump> {
    let catalog = Catalog::read(path, &archive.identity())?.ok_or_else(|| {
        Error::new(Kind::Failed, format!("{} is no catalog of this cluster", path.display()))
            .hint("make it with `walrecv catalog rebuild`, or start `walrecv receive`")
    })?;
    catalog.dump()
}

fn held(path: &Path) -> Error {
    Error::new(Kind::Busy, format!("another process writes {}", path.display()))
        .hint("a running receiver keeps it up to date by itself; stop it to make the catalog anew")
}

/// A line that is kept up to date on a terminal.
fn progress(common: &Common) -> impl Fn(&Learned) + Send + Sync + use<> {
    let live = common.output == output::Format::Text && output::watched();
    move |learned| {
        if live {
            let _ = write!(
                std::io::stderr().lock(),
                "\r\x1b[K{} of {} folders, {} objects",
                learned.folders,
                learned.all_folders,
                learned.objects
            );
        }
    }
}

fn end_progress(common: &Common) {
    if common.output == output::Format::Text && output::watched() {
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
}

fn learned_json(learned: &Learned) -> Value {
    json!({
        "folders": learned.folders, "objects": learned.objects, "read_from_group_summaries": learned.summaries,
        "read_one_by_one": learned.heads, "damaged": learned.damaged,
    })
}
