//! `walrecv drill`: restore for real, ask, check, measure, remove, report.

use std::time::Duration;

use super::args::{Common, DrillArgs, Skip};
use super::context::{Context, env};
use super::scratch::{self, Ticker};
use super::{expire, output, show, target};
use crate::archive::Archive;
use crate::config::duration;
use crate::disk::durable::Replacement;
use crate::drill::{self, Aim, Demands, Drilled, Point, Watch};
use crate::error::{Error, Kind, Result};
use crate::seal::content::event::What;

/// How long noting the result may take.
const NOTE: Duration = Duration::from_secs(30);

pub async fn run(common: &Common, args: &DrillArgs) -> Result<()> {
    let point = point(args)?;
    // A place that cannot be written shows before hours of restoring.
    let place = args.report.as_deref().map(|path| Replacement::begin(path, 0o644)).transpose()?;
    let context = Context::open_with(common, args.scratch.identity_file.as_deref()).await?;
    let demands = demands(&context, args)?;
    let setup = scratch::setup(common, &context, &args.scratch)?;
    let (access, ring) = context.content_access().await?;
    let archive = context.archive(ring).await?;
    let backup = show::chosen(&archive, args.backup.as_ref()).await?;
    let timeline = target::timeline(&archive, args.target_timeline.as_deref(), backup.as_deref()).await?;
    let ticker = Ticker::new();
    let say = |text: &str| ticker.say(text);
    let moved = |done: u64, total: u64| ticker.moved(done, total);
    let watch = Watch { stage: &say, moved: &moved };
    let (report, ended) =
        drill::drill(&archive, access, &setup, Aim { point, backup, timeline }, &demands, &watch).await;
    ticker.end();
    if !args.no_record {
        record(&context, &archive, &report).await;
    }
    match common.output {
        output::Format::Json => output::json(&report),
        output::Format::Text => print(&report),
    }
    let written = place.map_or(Ok(()), |place| write(place, &report));
    match (ended.or_else(|| drill::refusal(&report)), written) {
        (Some(error), written) => {
            // What the drill came to counts more.
            if let Err(unwritten) = written {
                output::note(format!("warning: {unwritten}"));
            }
            Err(error)
        }
        (None, written) => written,
    }
}

fn write(place: Replacement, report: &Drilled) -> Result<()> {
    let text = serde_json::to_vec_pretty(report)
        .map_err(|e| Error::new(Kind::Failed, "cannot write the report").caused_by(e))?;
    place.finish(&text)
}

fn point(args: &DrillArgs) -> Result<Point> {
    if args.point.target_time.as_deref() == Some("random") {
        if args.exclusive {
            return Err(Error::new(Kind::Usage, "--exclusive means nothing with --target-time random"));
        }
        let drawn = || {
            let mut token = [0; 4];
            getrandom::fill(&mut token).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
            Ok::<_, Error>(u64::from(u32::from_le_bytes(token)))
        };
        return Ok(Point::Random(args.seed.map_or_else(drawn, Ok)?));
    }
    if args.seed.is_some() {
        return Err(Error::new(Kind::Usage, "--seed means something with --target-time random only"));
    }
    let target = target::wanted(&args.point, args.exclusive)?;
    Ok(Point::Target(target.unwrap_or(crate::restore::Target::Latest)))
}

/// Flags stand above the configuration; assertions come together.
fn demands(context: &Context, args: &DrillArgs) -> Result<Demands> {
    let configured = &context.cluster.drill;
    let limit = |name: &str, text: &Option<String>, configured: Option<Duration>| match text {
        Some(text) => {
            duration::parse(text).map(Some).map_err(|problem| Error::new(Kind::Usage, format!("{name}: {problem}")))
        }
        None => Ok(configured),
    };
    Ok(Demands {
        assertions: configured.assertions.iter().chain(&args.assert).cloned().collect(),
        database: args.database.clone().or(configured.database.clone()).unwrap_or_else(|| "postgres".to_owned()),
        amcheck: !args.skip.contains(&Skip::Amcheck),
        checksums: !args.skip.contains(&Skip::Checksums),
        rpo: limit("--rpo", &args.rpo, configured.rpo)?,
        rto: limit("--rto", &args.rto, configured.rto)?,
        jobs: usize::from(args.scratch.jobs),
    })
}

/// That nothing can be written, for lack of rights, must not hide what was found.
async fn record(context: &Context, archive: &Archive, report: &Drilled) {
    let user = env("USER").or_else(|| env("LOGNAME")).unwrap_or_default();
    let noted = async {
        let keys = context.writer_ring()?.fresh()?;
        archive.put_event(&keys, What::Drill(report.event(expire::host(), user)), NOTE).await
    };
    if let Err(error) = noted.await {
        output::note(format!("warning: the drill is not noted in the repository: {error}"));
    }
}

fn print(report: &Drilled) {
    let seconds = |value: Option<f64>| value.map_or("not known".to_owned(), output::seconds);
    if let Some(plan) = &report.plan {
        output::line(format!("drill    of backup {} to {}", plan.backup.id, plan.target));
        for passed in &plan.passed_over {
            output::line(format!("passed over {}: {}", passed.id, passed.why));
        }
        for warning in &plan.warnings {
            output::line(format!("WARNING  {warning}"));
        }
        let landing = match &plan.landing.last_commit {
            Some(commit) => format!("after the commit of transaction {} at {}", commit.xid, commit.time),
            None => "at the end of the backup".to_owned(),
        };
        let so = if report.rto_seconds.is_some() { "landed " } else { "planned" };
        output::line(format!("{so}  {landing}, {} on timeline {}", plan.landing.lsn, plan.landing.timeline));
    }
    if let Some(seed) = report.seed {
        output::line(format!("seed     {seed}: --seed {seed} draws the same time while the archive has not grown"));
    }
    for remark in &report.remarks {
        output::line(format!("remark   {remark}"));
    }
    for check in &report.checks {
        let state = if check.failed() { "FAILED" } else { check.state };
        let took = output::seconds(check.milliseconds as f64 / 1000.0);
        output::line(format!("{state:<7}  {}: {} ({took})", check.name, check.detail));
    }
    let through = report.covered_through.as_deref().unwrap_or("an unknown moment");
    output::line(format!("RPO      {}: the archive covers everything through {through}", seconds(report.rpo_seconds)));
    match report.rto_seconds {
        Some(_) => output::line(format!(
            "RTO      {}: planning {}, laying back {}, recovery {}",
            seconds(report.rto_seconds),
            seconds(report.rto_planning_seconds),
            seconds(report.rto_laying_seconds),
            seconds(report.rto_recovery_seconds)
        )),
        None => output::line("RTO      not known: nothing was restored"),
    }
    let result = if report.passed { "PASSED" } else { "FAILED" };
    output::line(format!("result   {result} ({})", output::seconds(report.milliseconds as f64 / 1000.0)));
}
