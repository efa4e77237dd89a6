//! How a backup goes: a bar for a person, lines for a log, JSON lines for scripts. Always on standard error; standard output has the result alone.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::{BackupArgs, Common};
use super::{events, output};
use crate::backup::Progress;
use crate::daemon::stand_in::Told;
use crate::pg::Lsn;
use crate::receive::ReceiveEvent;

/// How often a line tells how far the same phase is.
const LINES: Duration = Duration::from_secs(5);

/// Where progress goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Bar,
    Lines,
    Json,
    None,
}

/// Tells how a backup goes.
pub struct Teller {
    cluster: String,
    form: Form,
    /// Remarks are for people who asked for no silence.
    remarks: bool,
    verbose: bool,
    bar: ProgressBar,
    state: Mutex<State>,
}

/// The phase that is shown.
struct State {
    phase: &'static str,
    /// Since when, and how much was copied then.
    since: Instant,
    told: Option<Instant>,
}

impl Teller {
    pub fn new(common: &Common, args: &BackupArgs, cluster: &str) -> Teller {
        let json = common.output == output::Format::Json;
        let form = match (args.quiet, json, output::watched()) {
            (true, _, _) => Form::None,
            (_, true, _) if args.progress => Form::Json,
            (_, true, _) => Form::None,
            (_, _, true) => Form::Bar,
            _ if args.progress => Form::Lines,
            _ => Form::None,
        };
        let bar = ProgressBar::new(0);
        if form != Form::Bar {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let state = Mutex::new(State { phase: "", since: Instant::now(), told: None });
        let (remarks, verbose) = (!args.quiet && !json, common.verbose > 0);
        Teller { cluster: cluster.to_owned(), form, remarks, verbose, bar, state }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Of the backup itself.
    pub fn progress(&self, progress: Progress) {
        if self.form == Form::None {
            return;
        }
        let (phase, elapsed, due) = self.enter(phase(&progress));
        match self.form {
            Form::Bar => self.draw(&progress),
            Form::Lines if due => output::note(format!("{} {}", now(), line(&progress, elapsed))),
            Form::Json if due => self.json(as_json(phase, &progress, elapsed)),
            _ => {}
        }
    }

    /// The phase, how long it has lasted, and whether it is time for a line.
    fn enter(&self, phase: &'static str) -> (&'static str, Duration, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.phase != phase {
            *state = State { phase, since: Instant::now(), told: None };
        }
        let due = state.told.is_none_or(|at| at.elapsed() >= LINES);
        if due {
            state.told = Some(Instant::now());
        }
        (phase, state.since.elapsed(), due)
    }

    fn draw(&self, progress: &Progress) {
        let Progress::Copying { done, total } = *progress else {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                self.bar.set_style(style);
            }
            self.bar.set_message(text(progress));
            return self.bar.tick();
        };
        let style = "copying {bar:40} {bytes} of about {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.bar.set_style(style);
        }
        self.bar.set_length(total.unwrap_or(done).max(done));
        self.bar.set_position(done);
    }

    /// Of whoever streams the WAL in this process.
    pub fn told(&self, told: &Told) {
        match told {
            Told::Serving { slot, temporary, why } => {
                let on = if *temporary { "a temporary slot".to_owned() } else { format!("slot {slot}") };
                self.say(&format!(
                    "no receiver follows ({why}): streaming WAL here on {on} until the backup is complete"
                ));
                if self.form == Form::Json {
                    self.json(json!({ "event": "serving", "slot": slot, "temporary": temporary, "why": why }));
                }
            }
            Told::Receiver(event) => self.receiver(event),
        }
    }

    /// What a person should see of it; scripts that follow the progress see everything.
    fn receiver(&self, event: &ReceiveEvent) {
        if self.form == Form::Json {
            return self.json(events::as_json(event));
        }
        let usual = matches!(
            event,
            ReceiveEvent::Connected { .. }
                | ReceiveEvent::Watching { .. }
                | ReceiveEvent::Streaming { .. }
                | ReceiveEvent::Durable { .. }
                | ReceiveEvent::SegmentStored { .. }
                | ReceiveEvent::HistoryStored { .. }
                | ReceiveEvent::Slot(_)
        );
        if let Some(text) = events::as_text(event).filter(|_| !usual || self.verbose) {
            self.say(&text);
        }
    }

    fn say(&self, text: &str) {
        if self.remarks {
            self.bar.suspend(|| output::note(format!("{} {text}", now())));
        }
    }

    /// One line, with its time and cluster in front.
    fn json(&self, event: Value) {
        let mut line = json!({ "time": output::rfc3339(jiff::Timestamp::now()), "cluster": self.cluster });
        if let (Some(line), Value::Object(event)) = (line.as_object_mut(), event) {
            line.extend(event);
        }
        output::note(line.to_string());
    }
}

fn now() -> String {
    output::time(jiff::Timestamp::now())
}

/// The stable name of a phase.
fn phase(progress: &Progress) -> &'static str {
    match progress {
        Progress::WaitingForReceiver { .. } => "following",
        Progress::Checkpoint => "checkpoint",
        Progress::Copying { .. } => "copying",
        Progress::Mapping { .. } => "mapping",
        Progress::WaitingForWal { .. } => "waiting-for-wal",
        Progress::Completing => "completing",
    }
}

/// For people.
fn text(progress: &Progress) -> String {
    let has = |durable: &Option<Lsn>| durable.map_or("nothing of it".to_owned(), |lsn| lsn.to_string());
    match progress {
        Progress::WaitingForReceiver { durable, needed } => {
            format!("waiting for WAL: the archive has {}, the server is at {needed}", has(durable))
        }
        Progress::Checkpoint => "the server makes its checkpoint".to_owned(),
        Progress::Copying { done, total } => match total {
            Some(total) => format!("copied {} of about {}", output::bytes(*done), output::bytes(*total)),
            None => format!("copied {}", output::bytes(*done)),
        },
        Progress::Mapping { files } => format!("writing the map of {files} files"),
        Progress::WaitingForWal { durable, needed } => {
            format!("waiting for WAL: the archive has {}, the backup needs {needed}", has(durable))
        }
        Progress::Completing => "storing the manifest".to_owned(),
    }
}

/// Bytes a second, and the seconds that are left at this rate.
fn pace(done: u64, total: Option<u64>, elapsed: Duration) -> Option<(u64, Option<u64>)> {
    let seconds = elapsed.as_secs_f64();
    if seconds < 0.5 || done == 0 {
        return None;
    }
    let rate = done as f64 / seconds;
    Some((rate as u64, total.map(|total| (total.saturating_sub(done) as f64 / rate) as u64)))
}

fn line(progress: &Progress, elapsed: Duration) -> String {
    let mut line = text(progress);
    if let Progress::Copying { done, total } = progress
        && let Some((rate, left)) = pace(*done, *total, elapsed)
    {
        line.push_str(&format!(", {}/s", output::bytes(rate)));
        if let Some(left) = left {
            line.push_str(&format!(", about {} left", output::seconds(left as f64)));
        }
    }
    line
}

fn as_json(phase: &str, progress: &Progress, elapsed: Duration) -> Value {
    let mut value = json!({ "event": "progress", "phase": phase });
    match progress {
        Progress::WaitingForReceiver { durable, needed } | Progress::WaitingForWal { durable, needed } => {
            value["durable"] = durable.map(|lsn| lsn.to_string()).into();
            value["needed"] = needed.to_string().into();
        }
        Progress::Copying { done, total } => {
            value["done_bytes"] = (*done).into();
            value["total_bytes"] = (*total).into();
            let pace = pace(*done, *total, elapsed);
            value["bytes_per_second"] = pace.map(|(rate, _)| rate).into();
            value["seconds_left"] = pace.and_then(|(_, left)| left).into();
        }
        Progress::Mapping { files } => value["files"] = (*files).into(),
        Progress::Checkpoint | Progress::Completing => {}
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_come_from_what_was_copied() {
        let copying = Progress::Copying { done: 30 << 20, total: Some(90 << 20) };
        assert_eq!(
            line(&copying, Duration::from_secs(10)),
            "copied 30.0 MiB of about 90.0 MiB, 3.0 MiB/s, about 20.0 s left"
        );
        let value = as_json("copying", &copying, Duration::from_secs(10));
        assert_eq!((&value["bytes_per_second"], &value["seconds_left"]), (&json!(3 << 20), &json!(20)));
        // More than was expected, and nothing yet.
        assert_eq!(pace(10, Some(5), Duration::from_secs(1)), Some((10, Some(0))));
        assert_eq!(pace(0, Some(5), Duration::from_secs(1)), None);
        assert_eq!(as_json("copying", &copying, Duration::ZERO)["seconds_left"], Value::Null);
    }
}
