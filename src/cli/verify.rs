//! `walrecv verify`: read back, check, say what is wrong and which backups that hurts.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::args::{Common, VerifyArgs};
use super::context::Context;
use super::{output, show};
use crate::archive::Archive;
use crate::config::duration;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::ReaderRing;
use crate::seal::content::event::{Outcome, What};
use crate::verify::{self, Checked, Flaw, Options, Problem, Progress, Report, SeenMinimal, Stage, State};

/// How long noting the result may take.
const NOTE: Duration = Duration::from_secs(30);
/// Backups that are named behind a problem.
const NAMED: usize = 5;

pub async fn run(common: &Common, args: &VerifyArgs) -> Result<()> {
    let context = Context::open_with(common, args.identity_file.as_deref()).await?;
    let (ring, deep) = ring(&context, args.deep).await?;
    let archive = context.archive(ring).await?;
    let patience =
        duration::parse(&args.patience).map_err(|problem| Error::new(Kind::Usage, format!("--patience: {problem}")))?;
    let only = match &args.backup {
        Some(text) => Some(show::choose(&archive, text).await?),
        None => None,
    };
    let bar = bar();
    let shown = bar.clone();
    let options = Options {
        deep,
        only,
        identity: context.settings.identity.clone(),
        opens: context.opener(deep),
        jobs: usize::from(args.jobs),
        patience,
        progress: Some(Arc::new(move |progress| tell(&shown, progress))),
    };
    let report = verify::verify(&archive, &options).await;
    bar.finish_and_clear();
    let report = report?;
    if !args.no_record {
        record(&context, &archive, &report).await;
    }
    match common.output {
        output::Format::Json => output::json(&report),
        output::Format::Text => print(&report, context.repo.url()),
    }
    verify::refusal(&report).map_or(Ok(()), Err)
}

/// What opens the archive, and whether that is every byte. Where it is the key files that are damaged, the check goes on without contents and names them.
async fn ring(context: &Context, deep: bool) -> Result<(ReaderRing, bool)> {
    if !deep {
        return Ok((context.index_ring()?, false));
    }
    match context.content_ring().await {
        Err(error) if error.kind() == Kind::Corrupt => {
            output::note(format!(
                "warning: no contents can be opened, only names, lengths and indexes are checked: {error}"
            ));
            Ok((context.index_ring()?, false))
        }
        ring => Ok((ring?, true)),
    }
}

/// That nothing can be written, for lack of rights, must not hide what was found.
async fn record(context: &Context, archive: &Archive, report: &Report) {
    let noted = async {
        let keys = context.writer_ring()?.fresh()?;
        archive.put_event(&keys, What::Verified(report.event()), NOTE).await
    };
    if let Err(error) = noted.await {
        output::note(format!("warning: the result is not noted in the repository: {error}"));
    }
}

/// Hidden unless a person watches.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !output::watched() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar
}

fn tell(bar: &ProgressBar, progress: Progress) {
    let style = match progress.stage {
        Stage::Maps => "{bar:40} map {pos} of {len}",
        Stage::Packs => "{bar:40} packs: {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        Stage::Runs => "{bar:40} map {pos} of {len} against the packs",
        Stage::Wal => "{bar:40} WAL: folder {pos} of {len}, {eta} left",
    };
    if bar.length() != Some(progress.total) || progress.done <= 1 {
        bar.reset();
        bar.set_length(progress.total);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
    }
    bar.set_position(progress.done);
}

fn print(report: &Report, url: &str) {
    let depth = if report.deep { "every byte" } else { "names, lengths, indexes" };
    output::line(format!("cluster {} in {url}: {depth}", report.cluster));
    for verdict in &report.backups {
        let state = match verdict.state {
            State::Whole if verdict.limited => "whole, but WAL behind it is missing or damaged",
            State::Whole => "whole",
            State::Hurt => "HURT: something that it needs is missing or damaged",
            State::Unknown => "UNKNOWN: something of it could not be read",
        };
        output::line(format!("backup  {}  {state}", verdict.id));
    }
    if report.backups.is_empty() {
        output::line("backup  none");
    }
    for range in &report.wal {
        output::line(format!("WAL     timeline {}: {} to {}", range.timeline, range.from, range.to));
    }
    for hole in &report.recorded_holes {
        let (timeline, from, to) = (hole.timeline, &hole.from, &hole.to);
        let advice = advice(hole.closed_by_backup);
        output::line(format!("hole    timeline {timeline}: {from} to {to}, recorded: {}; {advice}", hole.reason));
    }
    for SeenMinimal { timeline, lsn, closed_by_backup } in &report.minimal_wal {
        let advice = advice(*closed_by_backup);
        output::line(format!(
            "minimal timeline {timeline}: from {lsn} on under wal_level = minimal, which leads nowhere; {advice}"
        ));
    }
    report.problems.iter().for_each(problem);
    if report.problems_not_named > 0 {
        output::line(format!("        and {} more", output::count(report.problems_not_named, "problem")));
    }
    keys(&report.checked);
    checked(&report.checked, report.deep);
    if report.left_over.objects > 0 {
        let left = &report.left_over;
        output::line(format!(
            "left    {}, {}, of {} without a manifest or not needed any more: no harm",
            output::count(left.objects, "object"),
            output::bytes(left.bytes),
            output::count(left.backups.len() as u64, "backup")
        ));
    }
    let result = match report.outcome {
        Outcome::Ok if report.recorded_holes.is_empty() => "ok: nothing is missing or damaged",
        Outcome::Ok => "ok: nothing is missing or damaged but what was recorded as given up",
        Outcome::Corrupt => "DAMAGED",
        Outcome::Gap => "GAP in WAL",
        Outcome::Unreadable => "not everything COULD BE READ: no verdict",
    };
    output::line(format!("result  {result} ({})", output::seconds(report.milliseconds as f64 / 1000.0)));
}

/// Of what no restore gets past.
fn advice(closed: bool) -> &'static str {
    if closed { "a backup behind it is complete" } else { "TAKE A NEW BACKUP: no backup reaches past it" }
}

fn problem(problem: &Problem) {
    let flaw = match problem.flaw {
        Flaw::Missing => "MISSING",
        Flaw::Damaged => "DAMAGED",
        Flaw::Unauthentic => "NOT AUTHENTIC",
        Flaw::Gap => "GAP",
        Flaw::Unreadable => "COULD NOT BE READ",
    };
    output::line(format!("{flaw}  {}", problem.object));
    output::line(format!("        expected {}", problem.expected));
    output::line(format!("        found    {}", problem.found));
    let list = |ids: &std::collections::BTreeSet<String>| {
        let named: Vec<&str> = ids.iter().take(NAMED).map(String::as_str).collect();
        let more = ids.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", named.join(", "))
    };
    if !problem.hurts.is_empty() {
        output::line(format!("        hurts    {}", list(&problem.hurts)));
    }
    if !problem.limits.is_empty() {
        output::line(format!("        limits   {}", list(&problem.limits)));
    }
    if problem.hurts.is_empty() && problem.limits.is_empty() {
        output::line("        hurts    no backup");
    }
}

fn keys(checked: &Checked) {
    let opened = match checked.key_files_opened {
        None => "no private key is at hand to open them".to_owned(),
        Some(0) => "NONE OPENS with the private key at hand".to_owned(),
        Some(opened) => format!("{opened} opened with the private key at hand"),
    };
    if checked.key_files > 0 {
        output::line(format!("keys    {}, as stored; {opened}", output::count(checked.key_files, "key file")));
    }
}

fn checked(checked: &Checked, deep: bool) {
    output::line(format!(
        "checked {}, {}, {}, {} with WAL, {}, {}, {}; {} read",
        output::count(checked.manifests, "manifest"),
        output::count(checked.map_parts, "map part"),
        output::count(checked.packs, "pack"),
        output::count(checked.wal_objects, "object"),
        output::count(checked.tails, "tail"),
        output::count(checked.histories, "timeline history"),
        output::count(checked.others, "other"),
        output::bytes(checked.bytes)
    ));
    if deep {
        let (good, newer, torn, bad) = (checked.pages_good, checked.pages_newer, checked.pages_torn, checked.pages_bad);
        let replaced = if torn > 0 { format!(", {torn} torn, which WAL replaces") } else { String::new() };
        let sums = match good + newer + torn + bad {
            0 => "no page has a checksum".to_owned(),
            _ => format!("page checksums: {good} right, {newer} too new to judge{replaced}, {bad} wrong"),
        };
        let Checked { pages, runs, wal_records, .. } = checked;
        let (pages, runs) = (output::count(*pages, "data page"), output::count(*runs, "run"));
        output::line(format!("opened  {pages} in {runs}, {}; {sums}", output::count(*wal_records, "WAL record")));
    }
}
