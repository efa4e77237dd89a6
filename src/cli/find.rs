//! `walrecv find`: what was lost when, and the restore that stops just before.

use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::args::{Common, FindArgs};
use super::context::Context;
use super::found::Told;
use super::output::{self, PG_EPOCH_UNIX_MICROS};
use super::target;
use crate::config::duration;
use crate::error::{Error, Kind, Result};
use crate::find::{self, Book, Known, Search, Searched, Wish};
use crate::pg::TimelineId;
use crate::pg::xact::PgTime;

/// Without `--from`.
const LAST: &str = "2h";

pub async fn run(common: &Common, args: &FindArgs) -> Result<()> {
    let now = Timestamp::now();
    let wish = wish(args, now)?;
    let context = Context::open_with(common, args.identity_file.as_deref()).await?;
    let archive = context.archive(context.content_ring().await?).await?;
    let mut backups = archive.list_backups().await?;
    for (name, error) in backups.unreadable.drain(..) {
        output::note(format!("warning: {name}: {error}"));
    }
    let bar = bar();
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let timeline = args.timeline.map(TimelineId);
    let search = Search { wish, timeline, backups: &backups.complete, progress: &progress };
    let searched = find::search(&archive, &search).await;
    bar.finish_and_clear();
    let searched = searched?;
    let book = match args.no_names {
        true => Book::default(),
        false => Book::of(&archive, &backups.complete, &searched).await,
    };
    for (backup, error) in &book.unread {
        output::note(format!("warning: names of backup {backup} are not known: {error}"));
    }
    let told = Told { common, args, backups: &backups.complete, searched: &searched, book: &book };
    match common.output {
        output::Format::Json => output::json(&json(&told, wish)),
        output::Format::Text => print(&told, wish),
    }
    refusal(&searched)?;
    behind(&searched, wish, PgTime(now.as_microsecond() - PG_EPOCH_UNIX_MICROS))
}

fn wish(args: &FindArgs, now: Timestamp) -> Result<Wish> {
    let read = |text: &String| target::parse(text, now, &target::here);
    let from = match &args.from {
        Some(text) => read(text)?,
        None => {
            let last = duration::parse(args.last.as_deref().unwrap_or(LAST));
            let last = last.map_err(|problem| Error::new(Kind::Usage, format!("--last: {problem}")))?;
            let begin = SignedDuration::try_from(last).ok().and_then(|last| now.checked_sub(last).ok());
            PgTime(begin.map_or(i64::MIN, |begin| begin.as_microsecond() - PG_EPOCH_UNIX_MICROS))
        }
    };
    let to = args.to.as_ref().map_or(Ok(PgTime(i64::MAX)), read)?;
    if to < from {
        return Err(Error::new(Kind::Usage, format!("the window ends at {to}, before it begins at {from}")));
    }
    Ok(Wish { from, to, rows: args.rows, largest: usize::from(args.largest) })
}

/// Hidden unless a person watches.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !output::watched() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} segment {pos} of {len}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn print(told: &Told<'_>, wish: Wish) {
    let Searched { tallied, path, from, to, bytes, missing, complete_through, .. } = told.searched;
    let until = if wish.to == PgTime(i64::MAX) { "the end".to_owned() } else { target::show(wish.to) };
    output::line(format!("window   {} to {until}", target::show(wish.from)));
    output::line(format!(
        "read     {} of WAL, {from} to {to} on timeline {}: {} commits in the window",
        output::bytes(*bytes),
        path.target(),
        tallied.commits
    ));
    let known = complete_through.map_or("an unknown moment".to_owned(), target::show);
    output::line(format!("complete through {known}; nothing is known here of what was done later"));
    for hole in missing {
        output::line(format!("MISSING  WAL from {} to {}: what was done there is not known", hole.from, hole.to));
    }
    for at in &tallied.minimal {
        output::line(format!(
            "MINIMAL  from {at} on the server ran under wal_level = minimal: what was done then is not all in WAL, and no backup from before leads past it"
        ));
    }
    if tallied.overflowed {
        output::line("counts   are too low: more transactions ran at once than are kept track of");
    }
    let shown = told.shown();
    for finding in &shown {
        output::line("");
        output::line(format!("{}  {}", target::show(finding.time), told.what(finding)));
        told.lines(finding).iter().for_each(|line| output::line(format!("    {line}")));
    }
    if tallied.left_out > 0 {
        output::line(format!("\nand {} more: make the window smaller", tallied.left_out));
    }
    let hidden = told.hidden();
    if shown.is_empty() {
        let of = if hidden > 0 { "of what was asked for " } else { "" };
        output::line(format!("\nnothing {of}was dropped, truncated, or deleted or updated in masses"));
    }
    if hidden > 0 {
        output::line(format!("\n{hidden} more were found: leave --table and --database out to see them"));
    }
}

fn json(told: &Told<'_>, wish: Wish) -> Value {
    let Searched { tallied, path, from, to, bytes, missing, complete_through, .. } = told.searched;
    let time = |time: PgTime| output::moment(time).map(output::rfc3339);
    let holes = missing.iter().map(|hole| json!({ "from": hole.from.to_string(), "to": hole.to.to_string() }));
    json!({
        "from": time(wish.from),
        "to": time(wish.to),
        "timeline": path.target().0,
        "wal_from": from.to_string(),
        "wal_to": to.to_string(),
        "wal_bytes": bytes,
        "commits": tallied.commits,
        "complete_through": complete_through.and_then(time),
        "missing": holes.collect::<Vec<_>>(),
        "minimal_wal": tallied.minimal.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "counts_too_low": tallied.overflowed,
        "left_out": tallied.left_out,
        "not_asked_for": told.hidden(),
        "found": told.shown().into_iter().map(|finding| told.json(finding)).collect::<Vec<_>>(),
    })
}

/// A window of which nothing is stored any more, or yet, says nothing; one whose end is not stored yet says too little.
fn behind(searched: &Searched, wish: Wish, now: PgTime) -> Result<()> {
    if let Some(begins) = searched.begins.filter(|begins| wish.to < *begins && searched.tallied.commits == 0) {
        let text = format!(
            "nothing is stored that is known to be older than {}, which is after the window",
            target::show(begins)
        );
        return Err(Error::new(Kind::Gap, text)
            .hint("what was done before is not known; walrecv list --windows shows what is stored"));
    }
    let through = searched.complete_through.map_or("an unknown moment".to_owned(), target::show);
    let text = format!("the archive is known to be complete through {through} only");
    let hint = "what was done later is not known: see walrecv status, and whether a receiver streams";
    match find::known(searched.complete_through, wish, now) {
        Known::Whole => Ok(()),
        Known::Begin => {
            output::note(format!("warning: {text}; {hint}"));
            Ok(())
        }
        Known::Nothing => Err(Error::new(Kind::Gap, format!("{text}, which is before the window")).hint(hint)),
    }
}

/// What is not stored may hide what is looked for.
fn refusal(searched: &Searched) -> Result<()> {
    let Some(hole) = searched.missing.first() else { return Ok(()) };
    let text = format!("WAL of the window is not stored, from {} to {} at first", hole.from, hole.to);
    Err(Error::new(Kind::Gap, text).hint("what was done there is not known; walrecv verify tells all gaps"))
}
