//! `walrecv extract`: a table, or a database, as it was, in a file of SQL.

use super::args::{Common, ExtractArgs};
use super::context::Context;
use super::scratch::{self, Ticker};
use super::{output, show, target};
use crate::error::{Error, Kind, Result};
use crate::extract::{self, Extracted, Part, Watch, Wish};
use crate::restore::{self, Target, Wanted};

pub async fn run(common: &Common, args: &ExtractArgs) -> Result<()> {
    let target = wanted(args)?;
    let context = Context::open_with(common, args.scratch.identity_file.as_deref()).await?;
    let setup = scratch::setup(common, &context, &args.scratch)?;
    let (access, ring) = context.content_access().await?;
    let archive = context.archive(ring).await?;
    let backup = show::chosen(&archive, args.backup.as_ref()).await?;
    let timeline = target::timeline(&archive, args.target_timeline.as_deref(), backup.as_deref()).await?;
    let ticker = Ticker::new();
    ticker.say("planning");
    let prepared = restore::prepare(&archive, &Wanted { target, timeline, backup }).await;
    let prepared = prepared.inspect_err(|_| ticker.end())?;
    let wish = Wish {
        tables: args.table.clone(),
        database: args.database.clone(),
        part: match (args.schema_only, args.data_only) {
            (true, _) => Part::Schema,
            (_, true) => Part::Data,
            _ => Part::All,
        },
    };
    let say = |text: &str| ticker.say(text);
    let moved = |done: u64, total: u64| ticker.moved(done, total);
    let watch = Watch { stage: &say, moved: &moved };
    let extracted = extract::extract(&archive, access, &setup, &prepared, &wish, &args.file, &watch).await;
    ticker.end();
    let extracted = extracted?;
    match common.output {
        output::Format::Json => output::json(&extracted),
        output::Format::Text => print(&extracted),
    }
    Ok(())
}

fn wanted(args: &ExtractArgs) -> Result<Target> {
    if let Some(xid) = args.before_xid {
        // The server compares 32 bits, whatever epoch is in front of them.
        return Ok(Target::Xid { xid: xid as u32, inclusive: false });
    }
    target::wanted(&args.point, args.exclusive)?.ok_or_else(|| {
        Error::new(Kind::Usage, "no point in time is given")
            .hint("name one with --target-time, --target-lsn, --target-xid, --before-xid, --target-name or --latest; walrecv find tells where something was lost")
    })
}

fn print(extracted: &Extracted) {
    let landing = &extracted.plan.landing;
    let commit = match &landing.last_commit {
        Some(commit) => format!("after the commit of transaction {} at {}", commit.xid, commit.time),
        None => "at the end of the backup".to_owned(),
    };
    let of = match extracted.tables.as_slice() {
        [] => "the whole database".to_owned(),
        tables => tables.join(", "),
    };
    output::line(format!("as of      {commit}, {}", landing.lsn));
    for warning in &extracted.plan.warnings {
        output::line(format!("WARNING    {warning}"));
    }
    output::line(format!("extracted  {of}, of database {}", extracted.database));
    for lacking in &extracted.without_rows {
        output::line(format!("NO ROWS    of {}: {}", lacking.table, lacking.why));
    }
    let took = output::seconds(extracted.milliseconds as f64 / 1000.0);
    output::line(format!("written    {}, {} ({took})", extracted.file, output::bytes(extracted.bytes)));
    output::line(format!("next       read it, then: psql -d {} -f {}", extracted.database, extracted.file));
}
