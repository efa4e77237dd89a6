//! `walrecv status`: how every cluster's stream is, told by the running receivers, and by catalog and repository where none runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{Common, StatusArgs};
use super::context::{Signals, settings};
use super::{at_rest, health, metrics, output};
use crate::daemon::report::{Check, ClusterReport, Document};
use crate::daemon::socket;
use crate::error::{Error, Kind, Result};

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);
/// How often it asks for the newest check meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Not everything is well.
const UNHEALTHY: u8 = 1;

/// A report, and the process that made it.
pub struct Told {
    pub report: ClusterReport,
    /// Process id and command.
    pub process: Option<(u32, String)>,
}

pub async fn run(common: &Common, args: &StatusArgs) -> Result<u8> {
    let mut checks = Checks::default();
    if args.metrics {
        if common.output == output::Format::Json {
            return Err(Error::new(Kind::Usage, "--metrics has a format of its own, and --output json asks for another")
                .hint("for the same numbers as JSON leave out --metrics; for Prometheus leave out --output json, or unset WALRECV_OUTPUT"));
        }
        let seen = look(common, &mut checks).await?;
        warn(&seen);
        output::line(metrics::page(&seen.told, seen.silent.len()).trim_end());
        return Ok(0);
    }
    if !args.watch {
        let seen = look(common, &mut checks).await?;
        show(common, &seen);
        return Ok(code(&seen));
    }
    let mut signals = Signals::new()?;
    let clear = common.output == output::Format::Text && output::paged();
    loop {
        let seen = tokio::select! {
            seen = look(common, &mut checks) => seen?,
            _ = signals.next() => return Ok(0),
        };
        if clear {
            output::line("\x1b[H\x1b[2J");
        }
        show(common, &seen);
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = signals.next() => return Ok(0),
        }
    }
}

/// Everything that could be learned.
struct Seen {
    told: Vec<Told>,
    /// Processes that do not answer: what they stream, nobody knows.
    silent: Vec<Error>,
}

fn code(seen: &Seen) -> u8 {
    let healthy = seen.silent.is_empty() && seen.told.iter().all(|told| told.report.healthy);
    if healthy { 0 } else { UNHEALTHY }
}

/// The newest checks, asked for from time to time.
#[derive(Default)]
struct Checks(BTreeMap<String, (Instant, Option<Check>)>);

impl Checks {
    async fn of(&mut self, common: &Common, cluster: &str) -> Option<Check> {
        if let Some((_, known)) = self.0.get(cluster).filter(|(at, _)| at.elapsed() < ASK_AGAIN) {
            return known.clone();
        }
        let check = at_rest::last_check(common, cluster).await;
        self.0.insert(cluster.to_owned(), (Instant::now(), check.clone()));
        check
    }
}

/// Running receivers first asked; then, for configured clusters that none of them has, catalog and repository.
async fn look(common: &Common, checks: &mut Checks) -> Result<Seen> {
    let settings = settings(common, None)?;
    let meant = |name: &str| common.cluster.as_deref().is_none_or(|cluster| cluster == name);
    if let Some(name) = &common.cluster {
        settings.cluster(Some(name))?;
    }
    let mut told: BTreeMap<(String, u32), Told> = BTreeMap::new();
    let (documents, silent) = socket::ask_all(&settings.state_dir).await?;
    for Document { clusters, pid, command, .. } in documents {
        for report in clusters.into_iter().filter(|report| meant(&report.cluster)) {
            told.insert((report.cluster.clone(), pid), Told { report, process: Some((pid, command.clone())) });
        }
    }
    for cluster in settings.clusters.iter().filter(|cluster| meant(&cluster.name)) {
        if !told.keys().any(|(name, _)| *name == cluster.name) {
            let report = at_rest::look(common, &settings, &cluster.name).await;
            told.insert((cluster.name.clone(), 0), Told { report, process: None });
        }
    }
    for told in told.values_mut().filter(|told| told.process.is_some()) {
        // A configuration may name other clusters than a process that runs does.
        if settings.clusters.iter().any(|cluster| cluster.name == told.report.cluster) {
            told.report.last_verified = checks.of(common, &told.report.cluster).await;
        }
    }
    Ok(Seen { told: told.into_values().collect(), silent })
}

/// Of processes that do not answer.
fn warn(seen: &Seen) {
    for error in &seen.silent {
        let hint = error.advice().map(|hint| format!("; {hint}")).unwrap_or_default();
        output::note(format!("warning: {error}{hint}"));
    }
}

fn show(common: &Common, seen: &Seen) {
    if common.output == output::Format::Json {
        return output::json(&as_json(seen));
    }
    warn(seen);
    let colour = output::coloured();
    match seen.told.as_slice() {
        [one] => output::line(health::card(one, colour)),
        all => {
            output::line(health::table(all, output::width(), colour));
            let cards = all.iter().filter(|told| !told.report.healthy || common.verbose > 0);
            cards.for_each(|told| output::line(format!("\n{}", health::card(told, colour))));
        }
    }
}

fn as_json(seen: &Seen) -> Value {
    let clusters: Vec<Value> = seen
        .told
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
        "version": crate::daemon::report::VERSION, "at": output::rfc3339(jiff::Timestamp::now()), "healthy": code(seen) == 0,
        "clusters": clusters, "silent": seen.silent.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
