//! `walrecv status --metrics`: the numbers of all streams in the text format that Prometheus reads, and node_exporter from a file.
//!
//! What is not known is left out, never told as zero: an alarm on it would be a lie, and so would its silence.

use std::fmt::Write;

use super::status::Told;
use crate::daemon::report::{ClusterReport, Spread, State};
use crate::pg::Lsn;

/// As in the JSON document.
const STATES: [(State, &str); 10] = [
    (State::Starting, "starting"),
    (State::AwaitingRepository, "awaiting_repository"),
    (State::Streaming, "streaming"),
    (State::CatchingUp, "catching_up"),
    (State::StandingBy, "standing_by"),
    (State::Stalled, "stalled"),
    (State::ServerAway, "server_away"),
    (State::Failed, "failed"),
    (State::Stopped, "stopped"),
    (State::NotRunning, "not_running"),
];
/// As `pg_replication_slots` names them.
const WAL_STATUS: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// One line of a family, for one cluster.
struct Line {
    /// What the family's name goes on with.
    part: &'static str,
    label: Option<(&'static str, &'static str)>,
    value: f64,
}

impl Line {
    fn of(value: f64) -> Line {
        Line { part: "", label: None, value }
    }

    fn labelled(name: &'static str, label: &'static str, value: f64) -> Line {
        Line { part: "", label: Some((name, label)), value }
    }
}

/// The page. `silent`: so many processes do not answer.
pub fn page(told: &[Told], silent: usize) -> String {
    let mut page = Page { told, text: String::new() };
    page.head("walrecv_silent_processes", "gauge", "Processes that do not answer: what they stream is not known");
    let _ = writeln!(page.text, "walrecv_silent_processes {silent}");
    page.health();
    page.positions();
    page.delays();
    page.work();
    page.slots();
    page.text
}

struct Page<'a> {
    told: &'a [Told],
    text: String,
}

impl Page<'_> {
    fn health(&mut self) {
        self.gauge("walrecv_running", "Whether a process streams this cluster here", |told| {
            Some(yes(told.process.is_some()))
        });
        self.report("walrecv_healthy", "0: needs attention; walrecv status says why", |r| Some(yes(r.healthy)));
        self.family("walrecv_state", "gauge", "1 for the state that it is in", |told| {
            let line = |(state, name)| Line::labelled("state", name, yes(told.report.state == state));
            STATES.into_iter().map(line).collect()
        });
        self.report("walrecv_hole", "WAL is gone for good, or says too little, and no backup lies behind it", |r| {
            Some(yes(r.hole.is_some()))
        });
        self.report("walrecv_synchronous", "Commits wait for the repository", |r| r.synchronous.map(yes));
        self.report("walrecv_last_verify_timestamp_seconds", "When walrecv verify looked at it last", |r| {
            seconds(&r.last_verified.as_ref()?.at)
        });
        self.report("walrecv_last_verify_problems", "What it found", |r| {
            Some(r.last_verified.as_ref()?.problems as f64)
        });
    }

    fn positions(&mut self) {
        self.report("walrecv_timeline", "Timeline that is streamed", |r| r.timeline.map(f64::from));
        let help =
            "Positions in the WAL, as bytes: received, verified, durable, reported as flushed, held by the server";
        self.family("walrecv_wal_position_bytes", "gauge", help, |told| {
            let of = &told.report.positions;
            let all = [
                ("received", &of.received),
                ("verified", &of.verified),
                ("durable", &of.durable),
                ("reported", &of.reported),
                ("server", &of.server),
            ];
            let known = |(name, text): (&'static str, &Option<String>)| {
                let lsn: Lsn = text.as_ref()?.parse().ok()?;
                Some(Line::labelled("position", name, lsn.0 as f64))
            };
            all.into_iter().filter_map(known).collect()
        });
    }

    fn delays(&mut self) {
        let help = "Bytes that the server holds and the repository does not";
        self.report("walrecv_behind_bytes", help, |r| r.behind.bytes.map(|bytes| bytes as f64));
        self.report("walrecv_behind_seconds", "By the server's clock", |r| r.behind.seconds);
        let help = "Age of the oldest commit that arrived and is not durable";
        self.report("walrecv_oldest_commit_seconds", help, |r| r.behind.oldest_commit_seconds);
        let help = "Everything that the server had flushed by then, on its clock, is durable";
        self.report("walrecv_complete_through_timestamp_seconds", help, |r| seconds(r.complete_through.as_ref()?));
        self.report("walrecv_clock_skew_seconds", "The server's clock less this host's", |r| r.clock_skew_seconds);
        let help = "From the arrival of a commit to its durability, over the last five minutes; count since start";
        self.summary("walrecv_time_to_durable_seconds", help, |r| {
            (&r.time_to_durable.recent, r.time_to_durable.total.count)
        });
        let help = "Flushes of the open segment's tail";
        self.summary("walrecv_flush_seconds", help, |r| (&r.flushes.milliseconds.recent, r.flushes.count));
        let help = "Objects put into the repository, until each was settled";
        self.summary("walrecv_put_seconds", help, |r| (&r.puts.milliseconds.recent, r.puts.count));
    }

    fn work(&mut self) {
        self.counter("walrecv_received_bytes_total", "WAL received", |r| r.received_bytes);
        self.counter("walrecv_durable_bytes_total", "WAL made durable", |r| r.durable_bytes);
        self.counter("walrecv_flushed_bytes_total", "WAL flushed to tails", |r| r.flushes.bytes);
        self.counter("walrecv_put_bytes_total", "Bytes put into the repository", |r| r.puts.bytes);
        self.counter("walrecv_put_errors_total", "Attempts to put that failed", |r| r.put_errors);
        self.counter("walrecv_commits_total", "Commits received", |r| r.commits);
        self.counter("walrecv_reconnects_total", "Connections that were lost", |r| r.reconnects);
        self.counter("walrecv_stalls_total", "Times that nothing became durable", |r| r.stalls);
        self.running("walrecv_held_bytes", "In memory and not handed on", |r| Some(r.held_bytes as f64));
        self.running("walrecv_queued_bytes", "Handed on and not durable", |r| Some(r.queued_bytes as f64));
    }

    fn slots(&mut self) {
        let help = "WAL that the server keeps for the slot";
        self.report("walrecv_slot_retained_bytes", help, |r| Some(r.slot.as_ref()?.retained_bytes? as f64));
        let help = "WAL that can be written before the slot may lose what it needs";
        self.report("walrecv_slot_safe_wal_bytes", help, |r| Some(r.slot.as_ref()?.safe_wal_size? as f64));
        let help = "How long that lasts at the server's pace";
        self.report("walrecv_slot_full_in_seconds", help, |r| Some(r.slot.as_ref()?.full_in_seconds? as f64));
        self.family("walrecv_slot_wal_status", "gauge", "1 for the slot's wal_status", |told| {
            let Some(found) = told.report.slot.as_ref().and_then(|slot| slot.wal_status.as_ref()) else {
                return Vec::new();
            };
            WAL_STATUS.iter().map(|status| Line::labelled("wal_status", status, yes(found == status))).collect()
        });
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A family of lines, with its head if there is any. Where several processes have a cluster their lines are told apart by the process.
    fn family(&mut self, name: &str, kind: &str, help: &str, lines: impl Fn(&Told) -> Vec<Line>) {
        let told = self.told;
        let mut begun = false;
        for one in told {
            let several = told.iter().filter(|other| other.report.cluster == one.report.cluster).count() > 1;
            for Line { part, label, value } in lines(one) {
                if !std::mem::replace(&mut begun, true) {
                    self.head(name, kind, help);
                }
                let mut labels = format!("cluster=\"{}\"", escaped(&one.report.cluster));
                if let Some((pid, _)) = one.process.as_ref().filter(|_| several) {
                    let _ = write!(labels, ",pid=\"{pid}\"");
                }
                if let Some((label, of)) = label {
                    let _ = write!(labels, ",{label}=\"{of}\"");
                }
                let _ = writeln!(self.text, "{name}{part}{{{labels}}} {value}");
            }
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&Told) -> Option<f64>) {
        self.family(name, "gauge", help, |told| value(told).map(Line::of).into_iter().collect());
    }

    /// Known whether or not a process runs.
    fn report(&mut self, name: &str, help: &str, value: impl Fn(&ClusterReport) -> Option<f64>) {
        self.gauge(name, help, |told| value(&told.report));
    }

    /// What only a process that runs has.
    fn running(&mut self, name: &str, help: &str, value: impl Fn(&ClusterReport) -> Option<f64>) {
        self.gauge(name, help, |told| told.process.as_ref().and_then(|_| value(&told.report)));
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&ClusterReport) -> u64) {
        self.family(name, "counter", help, |told| {
            told.process.iter().map(|_| Line::of(value(&told.report) as f64)).collect()
        });
    }

    /// Quantiles of the last minutes, where there were any, and how many there were since start.
    fn summary(&mut self, name: &str, help: &str, times: impl Fn(&ClusterReport) -> (&Spread, u64)) {
        self.family(name, "summary", help, |told| {
            if told.process.is_none() {
                return Vec::new();
            }
            let (recent, count) = times(&told.report);
            let line = |(quantile, millis): (_, f64)| Line::labelled("quantile", quantile, millis / 1000.0);
            let quantiles = [("0.5", recent.p50), ("0.99", recent.p99), ("0.999", recent.p999), ("1", recent.max)];
            let mut lines: Vec<Line> = quantiles.into_iter().filter(|_| recent.count > 0).map(line).collect();
            lines.push(Line { part: "_count", ..Line::of(count as f64) });
            lines
        });
    }
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Since 1970.
fn seconds(rfc3339: &str) -> Option<f64> {
    let time: jiff::Timestamp = rfc3339.parse().ok()?;
    Some(time.as_microsecond() as f64 / 1e6)
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::report::{Positions, SlotReport};

    fn told(cluster: &str, pid: Option<u32>, report: ClusterReport) -> Told {
        let report = ClusterReport { cluster: cluster.to_owned(), ..report };
        Told { report, process: pid.map(|pid| (pid, "receive".to_owned())) }
    }

    #[test]
    fn a_family_stands_together_and_what_is_not_known_is_left_out() {
        let slot = SlotReport { wal_status: Some("extended".to_owned()), ..SlotReport::default() };
        let one = ClusterReport {
            state: State::Streaming,
            healthy: true,
            positions: Positions { durable: Some("1/10".to_owned()), ..Positions::default() },
            complete_through: Some("1970-01-01T00:00:12.5Z".to_owned()),
            time_to_durable: crate::daemon::report::Times {
                recent: Spread { count: 3, p50: 1.5, p99: 250.0, p999: 250.0, max: 251.0 },
                total: Spread { count: 7, ..Spread::default() },
            },
            slot: Some(slot),
            hole: Some("gone".to_owned()),
            ..ClusterReport::default()
        };
        let all = [told("a\"b\\c\nd", Some(5), one), told("other", None, ClusterReport::default())];
        let page = page(&all, 2);
        let a = r#"{cluster="a\"b\\c\nd""#;
        for line in [
            "walrecv_silent_processes 2".to_owned(),
            format!("walrecv_running{a}}} 1"),
            "walrecv_running{cluster=\"other\"} 0".to_owned(),
            format!("walrecv_hole{a}}} 1"),
            format!("walrecv_state{a},state=\"streaming\"}} 1"),
            format!("walrecv_state{a},state=\"stalled\"}} 0"),
            format!("walrecv_wal_position_bytes{a},position=\"durable\"}} 4294967312"),
            format!("walrecv_complete_through_timestamp_seconds{a}}} 12.5"),
            format!("walrecv_time_to_durable_seconds{a},quantile=\"0.99\"}} 0.25"),
            format!("walrecv_time_to_durable_seconds_count{a}}} 7"),
            format!("walrecv_slot_wal_status{a},wal_status=\"extended\"}} 1"),
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        for absent in ["received\"", "behind_bytes", "commits_total{cluster=\"other\"", "walrecv_put_seconds{", "NaN"] {
            assert!(!page.contains(absent), "{absent}\n{page}");
        }
        let mut families = std::collections::BTreeSet::new();
        let mut current = String::new();
        for line in page.lines() {
            match line.strip_prefix("# HELP ") {
                Some(head) => {
                    current = head.split(' ').next().unwrap().to_owned();
                    assert!(families.insert(current.clone()), "{current} twice");
                }
                None => assert!(line.trim_start_matches("# TYPE ").starts_with(&current), "{line} in {current}"),
            }
        }
    }

    #[test]
    fn every_state_is_told_by_its_name() {
        for (state, name) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), name);
        }
    }

    #[test]
    fn two_processes_of_one_cluster_are_told_apart() {
        let all = [7, 8].map(|pid| told("main", Some(pid), ClusterReport::default()));
        let page = page(&all, 0);
        let running: Vec<&str> = page.lines().filter(|line| line.starts_with("walrecv_running")).collect();
        assert_eq!(
            running,
            ["walrecv_running{cluster=\"main\",pid=\"7\"} 1", "walrecv_running{cluster=\"main\",pid=\"8\"} 1"]
        );
        assert_eq!(page.lines().filter(|line| line.starts_with("walrecv_state")).count(), 2 * STATES.len());
    }
}
