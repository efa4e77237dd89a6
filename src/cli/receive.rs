//! `walrecv receive`: stream in the foreground until a signal, or until `--until` is durable.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinError;

use super::args::{Common, ReceiveArgs};
use super::context::{Context, Signals};
use super::output;
use crate::config::{duration, settings};
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::receive::{Observer, Place, ReceiveEvent, ReceiveOptions, ReceiveReport, receive};

pub async fn run(common: &Common, args: &ReceiveArgs) -> Result<()> {
    let context = Context::open(common).await?;
    let options = options(&context, args)?;
    let repo = context.repo.clone();
    // What crashed runs left; nothing waits for it, and nothing depends on it.
    tokio::spawn(async move { repo.clean_staging().await });
    let place = Place {
        repo: context.repo.clone(),
        cluster: context.cluster.name.clone(),
        writer: Arc::new(context.writer_ring()?),
        reader: Arc::new(context.index_ring()?),
    };
    let (ask, stop) = watch::channel(false);
    let screen = Arc::new(Screen::new(common));
    let shown = screen.clone();
    let observer = Observer::new(move |event| shown.show(&event));
    let mut signals = Signals::new()?;
    // On a worker, where the sockets are polled: what arrives wakes no second thread.
    let mut job = tokio::spawn(receive(options, place, observer, stop));
    let report = tokio::select! {
        outcome = &mut job => ended(outcome)?,
        name = signals.next() => {
            screen.say(&format!("{name}: making everything received durable; a second signal leaves at once"));
            let _ = ask.send(true);
            tokio::select! {
                outcome = &mut job => ended(outcome)?,
                name = signals.next() => {
                    return Err(Error::new(Kind::Interrupted, format!("left at once by a second {name}"))
                        .hint("nothing acknowledged is lost; the slot holds what is not stored"));
                }
            }
        }
    };
    screen.stopped(&report);
    Ok(())
}

/// A panic of the job goes on as one.
fn ended(outcome: std::result::Result<Result<ReceiveReport>, JoinError>) -> Result<ReceiveReport> {
    outcome.unwrap_or_else(|died| match died.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(died) => Err(Error::new(Kind::Failed, "the receiver has ended").caused_by(died)),
    })
}

fn options(context: &Context, args: &ReceiveArgs) -> Result<ReceiveOptions> {
    let usage = |flag: &str, problem: String| Error::new(Kind::Usage, format!("{flag}: {problem}"));
    let cluster = &context.cluster;
    let mut options = ReceiveOptions::new(context.conninfo()?);
    options.slot = cluster.slot.clone();
    options.flush_interval = match &args.flush_interval {
        Some(text) => duration::parse(text).map_err(|problem| usage("--flush-interval", problem))?,
        None => cluster.flush_interval,
    };
    options.compression = match &args.compression {
        Some(text) => settings::compression(text).map_err(|problem| usage("--compression", problem))?,
        None => cluster.compression,
    };
    options.shutdown_grace = cluster.shutdown_grace;
    options.stall_timeout = cluster.stall_timeout;
    options.until = match &args.until {
        Some(text) => Some(text.parse::<Lsn>().map_err(|problem| usage("--until", problem.to_string()))?),
        None => None,
    };
    Ok(options)
}

/// Where events become lines: for people on standard error, one JSON object a line on standard output.
struct Screen {
    format: output::Format,
    verbose: bool,
    /// A progress line is kept at the bottom of a terminal.
    live: bool,
    /// Whether that line is there now.
    dirty: AtomicBool,
}

impl Screen {
    fn new(common: &Common) -> Screen {
        let live = common.output == output::Format::Text && output::watched();
        Screen { format: common.output, verbose: common.verbose > 0, live, dirty: AtomicBool::new(false) }
    }

    fn show(&self, event: &ReceiveEvent) {
        if self.format == output::Format::Json {
            return output::json(&as_json(event));
        }
        match event {
            ReceiveEvent::Durable { timeline, durable, server_end, .. } if self.live => {
                let behind = output::bytes(server_end.since(*durable));
                self.dirty.store(true, Ordering::Relaxed);
                let mut stderr = std::io::stderr().lock();
                let _ = write!(stderr, "\r\x1b[Ktimeline {timeline}, durable through {durable}, {behind} behind");
                let _ = stderr.flush();
            }
            ReceiveEvent::Durable { .. }
            | ReceiveEvent::SegmentStored { .. }
            | ReceiveEvent::Watching { .. }
            | ReceiveEvent::Slot(_)
                if !self.verbose => {}
            event => {
                if let Some(text) = as_text(event) {
                    self.say(&text);
                }
            }
        }
    }

    fn say(&self, text: &str) {
        if self.dirty.swap(false, Ordering::Relaxed) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
        output::note(format!("{} {text}", output::time(jiff::Timestamp::now())));
    }

    fn stopped(&self, report: &ReceiveReport) {
        if self.format == output::Format::Json {
            return output::json(&json!({
                "event": "report", "timeline": report.timeline.map(|t| t.0), "received": report.received.to_string(),
                "durable": report.durable.to_string(), "behind_bytes": report.behind,
            }));
        }
        if report.timeline.is_some() {
            let behind = output::bytes(report.behind);
            self.say(&format!(
                "stopped: durable through {}, {behind} left on the server for the next run",
                report.durable
            ));
        }
    }
}

fn as_text(event: &ReceiveEvent) -> Option<String> {
    Some(match event {
        ReceiveEvent::Connected { server, version, system, timeline } => {
            format!("connected to {server}: PostgreSQL {version}, system identifier {system}, timeline {timeline}")
        }
        ReceiveEvent::Watching { sql: true } => "watching the server, with SQL".to_owned(),
        ReceiveEvent::Watching { sql: false } => {
            "watching the server, without SQL (allow the database in pg_hba.conf to see the slot's health)".to_owned()
        }
        ReceiveEvent::Streaming { timeline, from, slot } => {
            let slot = slot.as_ref().map_or("without a slot".to_owned(), |slot| format!("slot {slot}"));
            format!("streaming timeline {timeline} from {from}, {slot}")
        }
        ReceiveEvent::StandingBy { slot, holder } => {
            let holder = holder.map_or(String::new(), |pid| format!(" (process {pid} of the server)"));
            format!("another receiver uses slot {slot}{holder}: standing by, to take over when it ends")
        }
        ReceiveEvent::Durable { durable, server_end, .. } => {
            format!("durable through {durable}, {} behind", output::bytes(server_end.since(*durable)))
        }
        ReceiveEvent::SegmentStored { segment, stored_bytes } => {
            format!("stored {segment} ({})", output::bytes(*stored_bytes))
        }
        ReceiveEvent::HistoryStored { timeline } => format!("stored {}", timeline.history_name()),
        ReceiveEvent::TimelineSwitch { from, to, at } => {
            format!("timeline {from} ended at {at}; following timeline {to}")
        }
        ReceiveEvent::Synchronous(true) => {
            "listed in synchronous_standby_names: every commit waits for the repository".to_owned()
        }
        ReceiveEvent::Synchronous(false) => "no longer listed in synchronous_standby_names".to_owned(),
        ReceiveEvent::Slot(slot) => {
            let retained = slot.retained_bytes.map_or("an unknown amount of WAL".to_owned(), output::bytes);
            format!("the slot holds {retained}, {}", slot.wal_status.as_deref().unwrap_or("state unknown"))
        }
        ReceiveEvent::ServerStopping => "the server is shutting down".to_owned(),
        ReceiveEvent::Reconnecting { why, wait_ms } => format!("{why}; connecting again in {wait_ms} ms"),
        ReceiveEvent::Stalled { behind } => {
            format!("the repository takes nothing: left the server, {} wait on its slot", output::bytes(*behind))
        }
        ReceiveEvent::Resumed => "the repository takes objects again".to_owned(),
        ReceiveEvent::CorruptWal { problem } => {
            format!("CORRUPT WAL, not acknowledged: {problem}; receiving the segment once more")
        }
        ReceiveEvent::Warning(text) => format!("warning: {text}"),
        ReceiveEvent::Stopped { .. } => return None,
    })
}

fn as_json(event: &ReceiveEvent) -> Value {
    match event {
        ReceiveEvent::Connected { server, version, system, timeline } => json!({
            "event": "connected", "server": server, "version": version.number(), "system_identifier": system.to_string(),
            "timeline": timeline.0 }),
        ReceiveEvent::Watching { sql } => json!({ "event": "watching", "sql": sql }),
        ReceiveEvent::Streaming { timeline, from, slot } => {
            json!({ "event": "streaming", "timeline": timeline.0, "from": from.to_string(), "slot": slot })
        }
        ReceiveEvent::StandingBy { slot, holder } => {
            json!({ "event": "standing_by", "slot": slot, "holder_pid": holder })
        }
        ReceiveEvent::Durable { timeline, durable, verified, server_end } => json!({
            "event": "durable", "timeline": timeline.0, "durable": durable.to_string(), "verified": verified.to_string(),
            "server_end": server_end.to_string(),
            "behind_bytes": server_end.since(*durable) }),
        ReceiveEvent::SegmentStored { segment, stored_bytes } => {
            json!({ "event": "segment_stored", "segment": segment.to_string(), "stored_bytes": stored_bytes })
        }
        ReceiveEvent::HistoryStored { timeline } => json!({ "event": "history_stored", "timeline": timeline.0 }),
        ReceiveEvent::TimelineSwitch { from, to, at } => {
            json!({ "event": "timeline_switch", "from": from.0, "to": to.0, "at": at.to_string() })
        }
        ReceiveEvent::Synchronous(on) => json!({ "event": "synchronous", "listed": on }),
        ReceiveEvent::Slot(slot) => json!({
            "event": "slot", "restart_lsn": slot.restart_lsn.map(|lsn| lsn.to_string()),
            "retained_bytes": slot.retained_bytes, "wal_status": slot.wal_status, "safe_wal_size": slot.safe_wal_size,
            "limit_bytes": slot.limit, "full_in_seconds": slot.full_in_seconds }),
        ReceiveEvent::ServerStopping => json!({ "event": "server_stopping" }),
        ReceiveEvent::Reconnecting { why, wait_ms } => {
            json!({ "event": "reconnecting", "why": why, "wait_ms": wait_ms })
        }
        ReceiveEvent::Stalled { behind } => json!({ "event": "stalled", "behind_bytes": behind }),
        ReceiveEvent::Resumed => json!({ "event": "resumed" }),
        ReceiveEvent::CorruptWal { problem } => json!({ "event": "corrupt_wal", "problem": problem }),
        ReceiveEvent::Warning(text) => json!({ "event": "warning", "text": text }),
        ReceiveEvent::Stopped { timeline, durable, behind } => json!({
            "event": "stopped", "timeline": timeline.0, "durable": durable.to_string(), "behind_bytes": behind }),
    }
}
