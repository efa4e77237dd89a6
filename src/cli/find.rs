//! `walrecv find`: what was lost when, and the restore that stops just before.

use indicatif::{ProgressBar, ProgressStyle};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::args::{Common, FindArgs};
use super::context::Context;
use super::output::{self, PG_EPOCH_UNIX_MICROS};
use super::target;
use crate::config::duration;
use crate::error::{Error, Kind, Result};
use crate::find::{self, Deed, Finding, Search, Searched, Touched, Wish};
use crate::pg::xact::PgTime;
use crate::pg::{Lsn, TimelineId};
use crate::restore::recovery::shell_word;
use crate::seal::content::manifest::Manifest;

/// Without `--from`.
const LAST: &str = "2h";
/// Relations that are named behind a deed on a line.
const NAMED: usize = 6;

pub async fn run(common: &Common, args: &FindArgs) -> Result<()> {
    let wish = wish(args, Timestamp::now())?;
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
    let told = Told { common, args, backups: &backups.complete, searched: &searched? };
    match common.output {
        output::Format::Json => output::json(&told.json(wish)),
        output::Format::Text => told.print(wish),
    }
    told.refusal()
}

fn wish(args: &FindArgs, now: Timestamp) -> Result<Wish> {
    let read = |text: &String| target::parse(text, now, &TimeZone::system());
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

/// Everything that is told.
struct Told<'a> {
    common: &'a Common,
    args: &'a FindArgs,
    backups: &'a [Manifest],
    searched: &'a Searched,
}

impl Told<'_> {
    fn print(&self, wish: Wish) {
        let Searched { tallied, path, from, to, bytes, missing } = self.searched;
        let until = if wish.to == PgTime(i64::MAX) { "the end".to_owned() } else { target::show(wish.to) };
        output::line(format!("window   {} to {until}", target::show(wish.from)));
        output::line(format!(
            "read     {} of WAL, {from} to {to} on timeline {}: {} commits in the window",
            output::bytes(*bytes),
            path.target(),
            tallied.commits
        ));
        for hole in missing {
            output::line(format!("MISSING  WAL from {} to {}: what was done there is not known", hole.from, hole.to));
        }
        if tallied.overflowed {
            output::line("counts   are too low: more transactions ran at once than are kept track of");
        }
        for finding in &tallied.found {
            output::line("");
            output::line(format!("{}  {}", target::show(finding.time), self.what(finding)));
            output::line(format!("    {}", self.restore(finding)));
        }
        if tallied.left_out > 0 {
            output::line(format!("\nand {} more: make the window smaller", tallied.left_out));
        }
        if tallied.found.is_empty() {
            output::line("\nnothing was dropped, truncated, or deleted or updated in masses");
        }
    }

    /// One line of what was done by whom.
    fn what(&self, finding: &Finding) -> String {
        let Finding { deed, lsn, wal_bytes, .. } = finding;
        let least = if finding.at_least { "at least " } else { "" };
        let rows = format!("{least}{} rows", finding.rows);
        let names = names(&finding.touched);
        let database = finding.database.map_or_else(String::new, |oid| oid.to_string());
        let what = match deed {
            Deed::Drop => format!("DROPPED {names}"),
            Deed::Truncate => format!("EMPTIED (truncated, or dropped and made anew) {names}"),
            Deed::Rewrite => format!("rewritten, or dropped beside something new: {names}"),
            Deed::Delete => format!("DELETED {rows} of {names}"),
            Deed::Update => format!("UPDATED {rows} of {names}"),
            Deed::DropDatabase => format!("DROPPED DATABASE {database}"),
            Deed::CreateDatabase => format!("created database {database}"),
            Deed::RestorePoint => format!("restore point {:?}", finding.name.as_deref().unwrap_or_default()),
            Deed::Large if finding.touched.is_empty() => "large commit".to_owned(),
            Deed::Large => format!("large commit: {rows} written, most of them of {names}"),
        };
        let who = finding.xid.map_or_else(String::new, |xid| {
            format!("transaction {xid}, {least}{} of WAL, ", output::bytes(*wal_bytes))
        });
        format!("{what} ({who}{lsn})")
    }

    /// The line to type for a server as it was just before (for a restore point: at it).
    fn restore(&self, finding: &Finding) -> String {
        if !self.reachable(finding.lsn) {
            return "no backup is older: it cannot be restored".to_owned();
        }
        self.line(finding)
    }

    fn line(&self, finding: &Finding) -> String {
        let mut words = vec!["walrecv".to_owned()];
        let mut option = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{name} {}", shell_word(&value))));
        };
        option("--config", self.common.config.as_ref().map(|path| path.display().to_string()));
        option("--cluster", self.common.cluster.clone());
        option("--repo", self.common.repo.clone());
        words.push("restore".to_owned());
        match &finding.name {
            Some(name) => words.push(format!("--target-name {}", shell_word(name))),
            None => words.push(format!("--target-lsn {} --exclusive", finding.lsn)),
        }
        words.extend(self.args.timeline.map(|timeline| format!("--target-timeline {timeline}")));
        words.push("--pgdata DIR".to_owned());
        words.join(" ")
    }

    /// Whether a backup that is complete ended before it.
    fn reachable(&self, lsn: Lsn) -> bool {
        let path = &self.searched.path;
        self.backups.iter().any(|backup| backup.stop <= lsn && path.holds(backup.stop_timeline, backup.stop))
    }

    fn json(&self, wish: Wish) -> Value {
        let Searched { tallied, path, from, to, bytes, missing } = self.searched;
        let time = |time: PgTime| output::moment(time).map(output::rfc3339);
        let finding = |finding: &Finding| {
            let reachable = self.reachable(finding.lsn);
            json!({
                "what": finding.deed,
                "time": time(finding.time),
                "lsn": finding.lsn.to_string(),
                "timeline": path.timeline_at(finding.lsn).0,
                "xid": finding.xid,
                "database": finding.database,
                "relations": finding.touched.iter().map(relation).collect::<Vec<_>>(),
                "locked": finding.locked.iter().map(|(database, oid)| json!({ "database": database, "oid": oid })).collect::<Vec<_>>(),
                "rows": finding.rows,
                "at_least": finding.at_least,
                "wal_bytes": finding.wal_bytes,
                "name": finding.name,
                "restore": reachable.then(|| self.line(finding)),
            })
        };
        json!({
            "from": time(wish.from),
            "to": time(wish.to),
            "timeline": path.target().0,
            "wal_from": from.to_string(),
            "wal_to": to.to_string(),
            "wal_bytes": bytes,
            "commits": tallied.commits,
            "missing": missing.iter().map(|hole| json!({ "from": hole.from.to_string(), "to": hole.to.to_string() })).collect::<Vec<_>>(),
            "counts_too_low": tallied.overflowed,
            "left_out": tallied.left_out,
            "found": tallied.found.iter().map(finding).collect::<Vec<_>>(),
        })
    }

    /// What is not stored may hide what is looked for.
    fn refusal(&self) -> Result<()> {
        let Some(hole) = self.searched.missing.first() else { return Ok(()) };
        let text = format!("WAL of the window is not stored, from {} to {} at first", hole.from, hole.to);
        Err(Error::new(Kind::Gap, text).hint("what was done there is not known; walrecv verify tells all gaps"))
    }
}

fn relation(touched: &Touched) -> Value {
    json!({
        "database": touched.database,
        "tablespace": touched.file.map(|file| file.tablespace),
        "filenode": touched.file.map(|file| file.number),
        "oid": touched.object,
    })
}

/// `5/16402, 5/16405 and 3 more`: database and relation file, or object.
fn names(touched: &[Touched]) -> String {
    let name = |one: &Touched| match (one.file, one.object) {
        (Some(file), _) => format!("{}/{}", one.database, file.number),
        (None, Some(object)) => format!("{}/{object}", one.database),
        (None, None) => one.database.to_string(),
    };
    let named: Vec<String> = touched.iter().take(NAMED).map(name).collect();
    let more = touched.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}
