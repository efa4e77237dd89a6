//! What a receiver tells, for people on standard error, for scripts as one JSON object a line on standard output.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::Common;
use super::{exit, output};
use crate::error::Error;
use crate::receive::{ReceiveEvent, ReceiveReport};

/// Where events become lines: for people on standard error, one JSON object a line on standard output.
pub struct Screen {
    format: output::Format,
    verbose: bool,
    /// A progress line is kept at the bottom of a terminal.
    live: bool,
    /// Lines begin with the cluster's name.
    named: bool,
    /// Whether that line is there now.
    dirty: AtomicBool,
}

impl Screen {
    /// `single`: of one cluster, whose progress is one line.
    pub fn new(common: &Common, single: bool) -> Screen {
        let live = single && common.output == output::Format::Text && output::watched();
        let (format, verbose) = (common.output, common.verbose > 0);
        Screen { format, verbose, live, named: !single, dirty: AtomicBool::new(false) }
    }

    pub fn show(&self, cluster: &str, event: &ReceiveEvent) {
        if self.format == output::Format::Json {
            return self.json(cluster, as_json(event));
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
                    self.tell(cluster, &text);
                }
            }
        }
    }

    /// A line about one cluster.
    fn tell(&self, cluster: &str, text: &str) {
        if self.named { self.say(&format!("{cluster}: {text}")) } else { self.say(text) }
    }

    /// An event with its time and cluster in front.
    fn json(&self, cluster: &str, event: Value) {
        let mut line = json!({ "time": output::rfc3339(jiff::Timestamp::now()), "cluster": cluster });
        if let (Some(line), Value::Object(event)) = (line.as_object_mut(), event) {
            line.extend(event);
        }
        output::json(&line);
    }

    /// A line for people; scripts have the events.
    pub fn say(&self, text: &str) {
        if self.format == output::Format::Json {
            return;
        }
        if self.dirty.swap(false, Ordering::Relaxed) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
        output::note(format!("{} {text}", output::time(jiff::Timestamp::now())));
    }

    /// The repository cannot be reached yet; it is tried again after a wait.
    pub fn waiting(&self, error: &Error, wait: Duration) {
        if self.format == output::Format::Json {
            let (time, wait_ms) = (output::rfc3339(jiff::Timestamp::now()), wait.as_millis() as u64);
            let (message, hint) = (error.to_string(), error.advice());
            let event =
                json!({ "time": time, "event": "waiting", "message": message, "hint": hint, "wait_ms": wait_ms });
            return output::json(&event);
        }
        let hint = error.advice().map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.say(&format!("{error}{hint}; trying again in {}", output::seconds(wait.as_secs_f64())));
    }

    /// A signal asked for the end.
    pub fn stopping(&self, signal: &str) {
        if self.format == output::Format::Json {
            let time = output::rfc3339(jiff::Timestamp::now());
            return output::json(&json!({ "time": time, "event": "stopping", "signal": signal }));
        }
        self.say(&format!("{signal}: making everything received durable; a second signal leaves at once"));
    }

    /// A cluster's run ended with an error and is begun anew after a wait, if at all.
    pub fn failed(&self, cluster: &str, error: &Error, wait: Option<Duration>) {
        if self.format == output::Format::Json {
            let kind = format!("{:?}", error.kind()).to_lowercase();
            let event = json!({ "event": "failed", "message": error.to_string(), "hint": error.advice(), "kind": kind,
                "code": exit::code(error.kind()), "wait_ms": wait.map(|wait| wait.as_millis() as u64) });
            return self.json(cluster, event);
        }
        let hint = error.advice().map(|hint| format!(" ({hint})")).unwrap_or_default();
        let again = wait.map(|wait| format!("; trying again in {}", output::seconds(wait.as_secs_f64())));
        self.tell(cluster, &format!("FAILED: {error}{hint}{}", again.unwrap_or_default()));
    }

    pub fn stopped(&self, cluster: &str, report: &ReceiveReport) {
        if self.format == output::Format::Json {
            let report = json!({
                "event": "report", "timeline": report.timeline.map(|t| t.0), "received": report.received.to_string(),
                "durable": report.durable.to_string(), "behind_bytes": report.behind,
            });
            return self.json(cluster, report);
        }
        if report.timeline.is_some() {
            let behind = output::bytes(report.behind);
            self.tell(
                cluster,
                &format!("stopped: durable through {}, {behind} left on the server for the next run", report.durable),
            );
        }
    }
}

pub fn as_text(event: &ReceiveEvent) -> Option<String> {
    Some(match event {
        ReceiveEvent::Connected { server, version, system, timeline } => {
            format!("connected to {server}: PostgreSQL {version}, system identifier {system}, timeline {timeline}")
        }
        ReceiveEvent::Watching { sql: true } => "watching the server, with SQL".to_owned(),
        ReceiveEvent::Watching { sql: false } => {
            "watching the server, without SQL (allow the database in pg_hba.conf to see the slot's health)".to_owned()
        }
        ReceiveEvent::Streaming { timeline, from, slot, standby, .. } => {
            let standby = if *standby { ", from a standby" } else { "" };
            let slot = slot.as_ref().map_or("without a slot".to_owned(), |slot| format!("slot {slot}"));
            format!("streaming timeline {timeline} from {from}, {slot}{standby}")
        }
        ReceiveEvent::StandingBy { slot, holder, .. } => {
            let holder = holder.map_or(String::new(), |pid| format!(" (process {pid} of the server)"));
            format!("another receiver uses slot {slot}{holder}: standing by, to take over when it ends")
        }
        ReceiveEvent::Durable { durable, server_end, .. } => {
            format!("durable through {durable}, {} behind", output::bytes(server_end.since(*durable)))
        }
        ReceiveEvent::SlotCreated { slot, reason } => format!("created slot {slot}: {reason}"),
        ReceiveEvent::GaveUp { slot, retained } => format!(
            "GAVE UP: {} of WAL waited on slot {slot} while nothing could be stored; it was dropped and created anew, which leaves a hole",
            output::bytes(*retained)
        ),
        ReceiveEvent::Hole(hole) => format!(
            "HOLE: WAL from {} (timeline {}) to {} (timeline {}) is not stored and never will be ({}); TAKE A NEW BACKUP: nothing older can be restored past {}",
            hole.from, hole.from_timeline, hole.to, hole.to_timeline, hole.reason, hole.from
        ),
        ReceiveEvent::MinimalWal(at) => format!(
            "WAL_LEVEL MINIMAL at {} (timeline {}): not all that was done then is in WAL; TAKE A NEW BACKUP: nothing older is restored past that",
            at.lsn, at.timeline
        ),
        ReceiveEvent::SegmentStored { segment, stored_bytes } => {
            format!("stored {segment} ({})", output::bytes(*stored_bytes))
        }
        ReceiveEvent::Recovered { segment, upto } => {
            format!("stored what the spool had of {segment}, up to {upto}")
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

pub fn as_json(event: &ReceiveEvent) -> Value {
    match event {
        ReceiveEvent::Connected { server, version, system, timeline } => json!({
            "event": "connected", "server": server, "version": version.number(), "system_identifier": system.to_string(),
            "timeline": timeline.0 }),
        ReceiveEvent::Watching { sql } => json!({ "event": "watching", "sql": sql }),
        ReceiveEvent::Streaming { timeline, from, slot, standby, lags } => json!({
            "event": "streaming", "timeline": timeline.0, "from": from.to_string(), "slot": slot, "standby": standby,
            "lags_behind": lags.as_ref().map(|lags| lags.upto.to_string()),
            "lags_behind_timeline": lags.as_ref().map(|lags| lags.timeline.0) }),
        ReceiveEvent::StandingBy { slot, holder, synchronous } => {
            json!({ "event": "standing_by", "slot": slot, "holder_pid": holder, "synchronous": synchronous })
        }
        ReceiveEvent::Durable { timeline, durable, verified, server_end } => json!({
            "event": "durable", "timeline": timeline.0, "durable": durable.to_string(), "verified": verified.to_string(),
            "server_end": server_end.to_string(),
            "behind_bytes": server_end.since(*durable) }),
        ReceiveEvent::SlotCreated { slot, reason } => {
            json!({ "event": "slot_created", "slot": slot, "reason": reason })
        }
        ReceiveEvent::GaveUp { slot, retained } => {
            json!({ "event": "gave_up", "slot": slot, "retained_bytes": retained })
        }
        ReceiveEvent::Hole(hole) => json!({
            "event": "hole", "from_timeline": hole.from_timeline.0, "from": hole.from.to_string(),
            "to_timeline": hole.to_timeline.0, "to": hole.to.to_string(), "reason": hole.reason }),
        ReceiveEvent::MinimalWal(at) => {
            json!({ "event": "minimal_wal", "timeline": at.timeline.0, "lsn": at.lsn.to_string() })
        }
        ReceiveEvent::SegmentStored { segment, stored_bytes } => {
            json!({ "event": "segment_stored", "segment": segment.to_string(), "stored_bytes": stored_bytes })
        }
        ReceiveEvent::Recovered { segment, upto } => {
            json!({ "event": "recovered", "segment": segment.to_string(), "upto": upto.to_string() })
        }
        ReceiveEvent::HistoryStored { timeline } => json!({ "event": "history_stored", "timeline": timeline.0 }),
        ReceiveEvent::TimelineSwitch { from, to, at } => {
            json!({ "event": "timeline_switch", "from": from.0, "to": to.0, "at": at.to_string() })
        }
        ReceiveEvent::Synchronous(on) => json!({ "event": "synchronous", "listed": on }),
        ReceiveEvent::Slot(slot) => json!({
            "event": "slot", "restart_lsn": slot.restart_lsn.map(|lsn| lsn.to_string()),
            "retained_bytes": slot.retained_bytes, "wal_status": slot.wal_status, "safe_wal_size": slot.safe_wal_size,
            "limit_bytes": slot.limit, "full_in_seconds": slot.full_in_seconds,
            "wal_bytes_per_second": slot.wal_bytes_per_second }),
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
