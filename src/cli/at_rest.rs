//! A cluster that nobody streams on this host: what its catalog last knew, and what the repository has.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::args::Common;
use super::context::Context;
use super::{list, output};
use crate::archive::Archive;
use crate::archive::holes::Barrier;
use crate::catalog::{LastKnown, path_in};
use crate::config::Settings;
use crate::daemon::holes;
use crate::daemon::report::{Behind, Check, ClusterReport, Ending, LastRun, Positions, Remark, State};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::event::Outcome;
use crate::seal::header::RepositoryId;

/// Where the catalog has an answer, the repository is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nor for a running receiver's last check.
const GLANCE: Duration = Duration::from_secs(2);

/// What is stored.
struct Stored {
    repository: RepositoryId,
    newest: Option<Newest>,
    last_verified: Option<Check>,
    open: Vec<Barrier>,
}

/// Of the newest timeline.
struct Newest {
    timeline: TimelineId,
    durable: Option<Lsn>,
    complete_through: Option<Timestamp>,
    /// When something was stored last.
    at: Option<SystemTime>,
}

/// The catalog is asked first: it is here, and knows how the last run ended. What the repository says of what is stored stands above it.
pub async fn look(common: &Common, settings: &Settings, cluster: &str) -> ClusterReport {
    let mut report = ClusterReport {
        cluster: cluster.to_owned(),
        state: State::NotRunning,
        problem: Some("no receiver is running on this host".to_owned()),
        hint: Some("start `walrecv run`, or `walrecv receive`".to_owned()),
        ..ClusterReport::default()
    };
    let (path, name) = (path_in(&settings.state_dir, cluster), cluster.to_owned());
    let asked = tokio::task::spawn_blocking(move || LastKnown::read(&path, &name)).await;
    let known = match asked.unwrap_or_else(|e| Err(Error::new(Kind::Failed, "the catalog was not read").caused_by(e))) {
        Ok(known) => known,
        Err(error) => {
            report.warning = Some(remark(&error));
            None
        }
    };
    let one = Common { cluster: Some(cluster.to_owned()), ..common.clone() };
    let stored = match &known {
        None => stored(&one).await,
        Some(_) => tokio::time::timeout(PATIENCE, stored(&one)).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Repository, format!("the repository did not answer within {} s", PATIENCE.as_secs())))
        }),
    };
    if let Err(error) = &stored {
        report.warning = Some(remark(error));
    }
    // What another repository was told says nothing of this one.
    let ours =
        |known: &LastKnown| stored.as_ref().map_or(true, |stored| stored.repository == known.identity.repository);
    if let Some(known) = known.filter(ours) {
        tell_last(&mut report, &known);
    }
    if let Ok(stored) = stored {
        tell_stored(&mut report, stored);
    }
    report
}

/// The newest check of a running receiver's archive, where the repository tells that at a glance.
pub async fn last_check(common: &Common, cluster: &str) -> Option<Check> {
    let one = Common { cluster: Some(cluster.to_owned()), ..common.clone() };
    let asked = async {
        let context = Context::open(&one).await?;
        checked(&context.archive(context.index_ring()?).await?).await
    };
    tokio::time::timeout(GLANCE, asked).await.ok()?.ok()?
}

fn remark(error: &Error) -> Remark {
    Remark { at: output::rfc3339(Timestamp::now()), text: error.to_string() }
}

fn told(at: SystemTime) -> Option<String> {
    Timestamp::try_from(at).ok().map(output::rfc3339)
}

fn tell_last(report: &mut ClusterReport, known: &LastKnown) {
    if known.reached.is_none() && known.run.is_none() {
        return;
    }
    let mut last = LastRun::default();
    if let Some(run) = &known.run {
        last.began = told(run.began);
        (last.ended, last.ending, last.problem) = match &run.ended {
            None => (None, Ending::Unknown, None),
            Some((at, None)) => (told(*at), Ending::Stopped, None),
            Some((at, Some(problem))) => (told(*at), Ending::Failed, Some(problem.clone())),
        };
    }
    last.complete_through = known.complete_through.and_then(output::moment).map(output::rfc3339);
    if let Some((timeline, durable, server, at)) = known.reached {
        (last.at, last.timeline) = (told(at), Some(timeline.0));
        (last.durable, last.server) = (Some(durable.to_string()), Some(server.to_string()));
        last.behind_bytes = Some(server.since(durable));
        (report.since, report.timeline) = (last.at.clone(), last.timeline);
        report.positions.durable = last.durable.clone();
        report.complete_through = last.complete_through.clone();
    }
    if last.ending == Ending::Failed {
        report.problem = Some("no receiver is running on this host: the last one ended by an error".to_owned());
        report.hint = Some("mend what ended the last run, then start `walrecv run`, or `walrecv receive`".to_owned());
    }
    report.last_run = Some(last);
}

fn tell_stored(report: &mut ClusterReport, stored: Stored) {
    report.last_verified = stored.last_verified;
    report.hole = holes::words(&stored.open);
    let Some(Newest { timeline, durable, complete_through, at }) = stored.newest else {
        report.problem = report.problem.take().map(|problem| format!("{problem}, and nothing is stored yet"));
        return;
    };
    report.timeline = Some(timeline.0);
    report.positions = Positions { durable: durable.map(|lsn| lsn.to_string()), ..Positions::default() };
    report.complete_through = complete_through.map(output::rfc3339);
    if let Some(at) = at {
        report.since = told(at);
        // By the clocks of this host and of the store.
        let age = at.elapsed().unwrap_or_default().as_secs_f64();
        report.behind = Behind { seconds: Some(age.round()), ..Behind::default() };
    }
}

async fn stored(common: &Common) -> Result<Stored> {
    let context = Context::open(common).await?;
    let mut stored = Stored { repository: context.about.id, newest: None, last_verified: None, open: Vec::new() };
    let archive = match context.archive(context.ring_at_hand().await?.0).await {
        Ok(archive) => archive,
        Err(error) if error.kind() == Kind::Repository && !error.is_transient() => return Ok(stored),
        Err(error) => return Err(error),
    };
    stored.last_verified = checked(&archive).await?;
    stored.open = archive.open_barriers().await?;
    let Some(timeline) = newest_timeline(&archive).await? else { return Ok(stored) };
    let durable = archive.durable_end(timeline).await?;
    let inventory = archive.newest(|_| Lsn(u64::MAX)).await?;
    let catalog = list::noted(&context, &archive);
    let shelf = list::Shelf::of(&archive, &inventory, catalog.as_ref());
    let complete_through = match durable {
        Some(end) => list::through(&shelf, timeline, (Lsn(0), end)).await?.0.and_then(output::moment),
        None => None,
    };
    let at = newest_object(&archive, timeline).await?;
    stored.newest = Some(Newest { timeline, durable, complete_through, at });
    Ok(stored)
}

/// The newest check of everything, else the newest one, and what is known to be hurt of what it and newer ones looked at.
async fn checked(archive: &Archive) -> Result<Option<Check>> {
    let verdicts = archive.verdicts().await?;
    let checks = verdicts.checks();
    let place = checks.iter().position(|noted| noted.check.only.is_none()).unwrap_or(0);
    let Some(newest) = checks.get(place) else { return Ok(None) };
    let seen = checks.iter().take(place + 1).map(|noted| &noted.check);
    let hurt: BTreeSet<&String> = seen
        .flat_map(|check| check.whole.iter().chain(&check.hurt).chain(&check.unknown))
        .filter(|id| verdicts.is_hurt(id))
        .collect();
    let check = &newest.check;
    // By another one: since then, or by a check that this one could not take back.
    let outcome = if hurt.is_empty() || check.outcome != Outcome::Ok { check.outcome } else { Outcome::Corrupt };
    Ok(Some(Check {
        at: output::rfc3339(newest.at),
        deep: check.deep,
        deep_at: verdicts.newest_deep().map(|noted| output::rfc3339(noted.at)),
        only: check.only.clone(),
        outcome: outcome.name().to_owned(),
        problems: check.problems,
        hurt: hurt.into_iter().cloned().collect(),
    }))
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
