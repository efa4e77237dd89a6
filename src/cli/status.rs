//! `walrecv status`: how every cluster's stream is, told by the running receivers, and by the repository where none runs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::args::{Common, StatusArgs};
use super::context::{Context, Signals, settings};
use super::{health, output};
use crate::archive::Archive;
use crate::daemon::board::rfc3339;
use crate::daemon::report::{Behind, ClusterReport, Document, Positions, Remark, State};
use crate::daemon::socket;
use crate::error::{Kind, Result};
use crate::pg::TimelineId;

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);
/// Not everything is well.
const UNHEALTHY: u8 = 1;

/// A report, and the process that made it.
pub struct Told {
    pub report: ClusterReport,
    /// Process id and command.
    pub process: Option<(u32, String)>,
}

pub async fn run(common: &Common, args: &StatusArgs) -> Result<u8> {
    if !args.watch {
        let told = look(common).await?;
        show(common, &told);
        return Ok(code(&told));
    }
    let mut signals = Signals::new()?;
    let clear = common.output == output::Format::Text && output::paged();
    loop {
        let told = tokio::select! {
            told = look(common) => told?,
            _ = signals.next() => return Ok(0),
        };
        if clear {
            output::line("\x1b[H\x1b[2J");
        }
        show(common, &told);
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = signals.next() => return Ok(0),
        }
    }
}

fn code(told: &[Told]) -> u8 {
    if told.iter().all(|told| told.report.healthy) { 0 } else { UNHEALTHY }
}

/// Running receivers first asked; then, for configured clusters that none of them has, the repository.
async fn look(common: &Common) -> Result<Vec<Told>> {
    let settings = settings(common, None)?;
    let meant = |name: &str| common.cluster.as_deref().is_none_or(|cluster| cluster == name);
    if let Some(name) = &common.cluster {
        settings.cluster(Some(name))?;
    }
    let mut told: BTreeMap<(String, u32), Told> = BTreeMap::new();
    for Document { clusters, pid, command, .. } in socket::ask_all(&settings.state_dir).await? {
        for report in clusters.into_iter().filter(|report| meant(&report.cluster)) {
            told.insert((report.cluster.clone(), pid), Told { report, process: Some((pid, command.clone())) });
        }
    }
    for cluster in settings.clusters.iter().filter(|cluster| meant(&cluster.name)) {
        if !told.keys().any(|(name, _)| *name == cluster.name) {
            let report = from_repository(common, &cluster.name).await;
            told.insert((cluster.name.clone(), 0), Told { report, process: None });
        }
    }
    Ok(told.into_values().collect())
}

/// What the repository tells of a cluster that nobody streams here.
async fn from_repository(common: &Common, cluster: &str) -> ClusterReport {
    let mut report = ClusterReport {
        cluster: cluster.to_owned(),
        state: State::NotRunning,
        problem: Some("no receiver is running on this host".to_owned()),
        hint: Some("start `walrecv run`, or `walrecv receive`".to_owned()),
        ..ClusterReport::default()
    };
    let one = Common { cluster: Some(cluster.to_owned()), ..common.clone() };
    match stored(&one, &mut report).await {
        Ok(()) => {}
        Err(error) => report.warning = Some(Remark { at: rfc3339(jiff::Timestamp::now()), text: error.to_string() }),
    }
    report
}

async fn stored(common: &Common, report: &mut ClusterReport) -> Result<()> {
    let context = Context::open(common).await?;
    let archive = match context.archive(context.index_ring()?).await {
        Ok(archive) => archive,
        Err(error) if error.kind() == Kind::Repository && !error.is_transient() => {
            report.problem = Some("no receiver is running on this host, and nothing is stored yet".to_owned());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let Some(timeline) = newest_timeline(&archive).await? else { return Ok(()) };
    report.timeline = Some(timeline.0);
    let durable = archive.durable_end(timeline).await?;
    report.positions = Positions { durable: durable.map(|lsn| lsn.to_string()), ..Positions::default() };
    let complete = archive.complete_through(timeline).await?;
    report.complete_through = complete.and_then(|beat| output::moment(beat.time)).map(output::rfc3339);
    if let Some(at) = newest_object(&archive, timeline).await? {
        report.since = jiff::Timestamp::try_from(at).ok().map(rfc3339);
        // By the clocks of this host and of the store.
        let age = at.elapsed().unwrap_or_default().as_secs_f64();
        report.behind = Behind { seconds: Some(age.round()), ..Behind::default() };
    }
    Ok(())
}

async fn newest_timeline(archive: &Archive) -> Result<Option<TimelineId>> {
    let mut newest = None;
    for folder in ["wal", "tail"] {
        let folders = archive.repo.folders(&format!("{}/{folder}", archive.names.root())).await?;
        let numbers = folders.iter().filter_map(|name| {
            let leaf = name.trim_end_matches('/').rsplit('/').next()?;
            u32::from_str_radix(leaf, 16).ok().filter(|number| *number > 0)
        });
        newest = newest.max(numbers.max());
    }
    Ok(newest.map(TimelineId))
}

/// When something was stored last: in a tail, or in the newest 4 GiB of WAL.
async fn newest_object(archive: &Archive, timeline: TimelineId) -> Result<Option<SystemTime>> {
    let root = archive.names.root();
    let mut listed = archive.repo.list(&format!("{root}/tail/{:08X}", timeline.0)).await?;
    if let Some(group) = archive.repo.folders(&format!("{root}/wal/{:08X}", timeline.0)).await?.iter().max() {
        let leaf = group.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        listed.extend(archive.repo.list(&format!("{root}/wal/{:08X}/{leaf}", timeline.0)).await?);
    }
    Ok(listed.iter().map(|object| object.modified).max())
}

fn show(common: &Common, told: &[Told]) {
    if common.output == output::Format::Json {
        return output::json(&as_json(told));
    }
    let colour = output::coloured();
    match told {
        [one] => output::line(health::card(one, colour)),
        all => {
            output::line(health::table(all, output::width(), colour));
            let cards = all.iter().filter(|told| !told.report.healthy || common.verbose > 0);
            cards.for_each(|told| output::line(format!("\n{}", health::card(told, colour))));
        }
    }
}

fn as_json(told: &[Told]) -> Value {
    let clusters: Vec<Value> = told
        .iter()
        .map(|told| {
            let mut value = serde_json::to_value(&told.report).unwrap_or_default();
            value["process"] = match &told.process {
                Some((pid, command)) => json!({ "pid": pid, "command": command }),
                None => Value::Null,
            };
            value
        })
        .collect();
    json!({
        "version": crate::daemon::report::VERSION, "at": rfc3339(jiff::Timestamp::now()), "healthy": code(told) == 0,
        "clusters": clusters,
    })
}
