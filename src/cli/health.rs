//! The state of streams in plain words: one card, or a table of many.

use super::output;
use super::status::Told;
use crate::daemon::report::{Check, ClusterReport, Ending, LastRun, SlotReport, Spread, State};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";
/// What a wide table needs.
const WIDE: usize = 110;

/// Everything about one cluster.
pub fn card(told: &Told, colour: bool) -> String {
    let report = &told.report;
    let mut lines = vec![format!("cluster {}: {}{}", report.cluster, state(report, colour), since(told))];
    let mut line = |name: &str, text: Option<String>| {
        lines.extend(text.map(|text| format!("  {name:<17}{text}")));
    };
    line("problem", report.problem.clone().filter(|_| !report.healthy));
    line("what to do", report.hint.clone().filter(|_| !report.healthy));
    line("last problem", report.problem.clone().filter(|_| report.healthy));
    line("hole", report.hole.clone().filter(|hole| report.problem.as_ref() != Some(hole)));
    line("server", server(report));
    line("behind", behind(report));
    line("complete through", report.complete_through.as_deref().map(people));
    line(
        "durable through",
        report.positions.durable.as_ref().map(|durable| match &report.positions.verified {
            Some(verified) => format!("{durable}, every record verified through {verified}"),
            None => durable.clone(),
        }),
    );
    if told.process.is_some() {
        line("time to durable", Some(to_durable(report)));
        line("repository", Some(puts(report)));
        line("slot", report.slot.as_ref().map(slot));
        line("synchronous", Some(synchronous(report)));
        let (held, queued) = (output::bytes(report.held_bytes), output::bytes(report.queued_bytes));
        line("memory", Some(format!("{held} of WAL held, {queued} on the way to the repository")));
        let (reconnects, stalls) = (report.reconnects, report.stalls);
        line("since start", (reconnects + stalls > 0).then(|| format!("{reconnects} reconnects, {stalls} stalls")));
    }
    line("last run", report.last_run.as_ref().map(last_run));
    line("last known", report.last_run.as_ref().and_then(last_known));
    line("verified", report.last_verified.as_ref().map(verified));
    line("warning", report.warning.as_ref().map(|warning| format!("{} ({})", warning.text, people(&warning.at))));
    lines.join("\n")
}

/// One line for each cluster. A narrow table leaves out what the card tells.
pub fn table(all: &[Told], width: usize, colour: bool) -> String {
    let wide = width >= WIDE;
    let mut header = vec!["CLUSTER", "STATE", "BEHIND", "", "DURABLE IN"];
    let mut right = vec![false, false, true, true, true];
    if wide {
        header.extend(["VERIFIED THROUGH", "PUT ERRORS"]);
        right.extend([false, true]);
    }
    header.push("SLOT HOLDS");
    right.push(true);
    let rows: Vec<Vec<String>> = all.iter().map(|told| row(&told.report, wide)).collect();
    let text = output::table(&header, &right, &rows);
    if !colour {
        return text;
    }
    let mut lines = text.lines();
    let mut out = vec![lines.next().unwrap_or_default().to_owned()];
    let name = all.iter().map(|told| told.report.cluster.chars().count()).max().unwrap_or(0).max("CLUSTER".len());
    out.extend(lines.zip(all).map(|(line, told)| {
        let at = line.char_indices().nth(name + 2).map_or(line.len(), |(at, _)| at);
        let (before, after) = line.split_at(at);
        format!("{before}{}", after.replacen(told.report.state.words(), &state(&told.report, true), 1))
    }));
    out.join("\n")
}

fn row(report: &ClusterReport, wide: bool) -> Vec<String> {
    let unknown = || "-".to_owned();
    let recent = &report.time_to_durable.recent;
    let mut cells = vec![
        report.cluster.clone(),
        report.state.words().to_owned(),
        report.behind.bytes.map_or_else(unknown, output::bytes),
        report.behind.seconds.map_or_else(unknown, output::seconds),
        if recent.count > 0 { millis(recent.p99) } else { unknown() },
    ];
    if wide {
        cells.push(report.positions.verified.clone().unwrap_or_else(unknown));
        cells.push(report.put_errors.to_string());
    }
    cells.push(report.slot.as_ref().and_then(|slot| slot.retained_bytes).map_or_else(unknown, output::bytes));
    cells
}

fn state(report: &ClusterReport, colour: bool) -> String {
    let words = report.state.words();
    if !colour {
        return words.to_owned();
    }
    let paint = match (report.healthy, report.state) {
        (false, _) => RED,
        (true, State::Streaming | State::StandingBy) => GREEN,
        (true, _) => YELLOW,
    };
    format!("{paint}{words}{PLAIN}")
}

fn since(told: &Told) -> String {
    let process = told.process.as_ref().map(|(pid, command)| format!(" (`{command}`, process {pid})"));
    let since = told.report.since.as_deref().map(people);
    match (told.report.state, since) {
        (State::NotRunning, Some(since)) => format!(", last stored at {since}"),
        (_, Some(since)) => format!(" since {since}{}", process.unwrap_or_default()),
        (_, None) => process.unwrap_or_default(),
    }
}

fn server(report: &ClusterReport) -> Option<String> {
    let server = report.server.as_ref()?;
    let timeline = report.timeline.map_or(String::new(), |timeline| format!(", timeline {timeline}"));
    let standby = if server.standby { ", a standby: all numbers are as of the standby" } else { "" };
    let skew = match report.clock_skew_seconds {
        Some(skew) if skew.abs() >= 1.0 => {
            let side = if skew > 0.0 { "ahead of" } else { "behind" };
            format!(", its clock {} {side} this host's", output::seconds(skew.abs()))
        }
        _ => String::new(),
    };
    Some(format!("{}, PostgreSQL {}{timeline}{standby}{skew}", server.name, server.version))
}

fn behind(report: &ClusterReport) -> Option<String> {
    let seconds = report.behind.seconds.map(output::seconds);
    if report.state == State::NotRunning {
        return seconds.map(|age| format!("nothing was stored for {age}"));
    }
    let bytes = report.behind.bytes.map(output::bytes)?;
    let seconds = seconds.map_or("time not known yet".to_owned(), |seconds| format!("{seconds} by the server's clock"));
    let commit = report.behind.oldest_commit_seconds.map(output::seconds);
    let commit = commit.map_or(String::new(), |age| format!("; the oldest commit waits for {age}"));
    Some(format!("{bytes}, {seconds}{commit}"))
}

fn last_run(last: &LastRun) -> String {
    let at = |time: &Option<String>| time.as_deref().map_or("at an unknown time".to_owned(), people);
    match (last.ending, &last.problem) {
        (Ending::Stopped, _) => format!("stopped as asked at {}", at(&last.ended)),
        (Ending::Failed, problem) => {
            format!("ended at {} by an error: {}", at(&last.ended), problem.as_deref().unwrap_or("unknown"))
        }
        (Ending::Unknown, _) => "ended without a word: it was killed, or its host went down".to_owned(),
    }
}

fn last_known(last: &LastRun) -> Option<String> {
    let (at, durable) = (people(last.at.as_deref()?), last.durable.as_deref()?);
    let timeline = last.timeline.map_or(String::new(), |timeline| format!(" of timeline {timeline}"));
    let behind = match last.behind_bytes {
        Some(0) => "all that the server had".to_owned(),
        Some(behind) => format!("{} behind the server", output::bytes(behind)),
        None => "the server's end not known".to_owned(),
    };
    Some(format!("durable through {durable}{timeline} at {at}, {behind}"))
}

fn verified(check: &Check) -> String {
    let depth = if check.deep { "every byte" } else { "names, lengths, indexes" };
    let only = check.only.as_ref().map_or(String::new(), |id| format!(", only {id}"));
    let hurt = match check.hurt.len() {
        0 => String::new(),
        _ => format!("; CANNOT BE RESTORED: {}", check.hurt.join(", ")),
    };
    let deep = match &check.deep_at {
        _ if check.deep => String::new(),
        Some(at) => format!("; every byte last at {}", people(at)),
        None => "; every byte never".to_owned(),
    };
    format!("{} ({depth}{only}): {}{deep}{hurt}", people(&check.at), check.outcome)
}

fn to_durable(report: &ClusterReport) -> String {
    let spread = |name: &str, of: &Spread| {
        let (p50, p99, p999) = (millis(of.p50), millis(of.p99), millis(of.p999));
        format!("p50 {p50}, p99 {p99}, p99.9 {p999} ({name})")
    };
    let times = &report.time_to_durable;
    match (times.recent.count, times.total.count) {
        (0, 0) => "no commit yet".to_owned(),
        (0, _) => format!("no commit for minutes; {}", spread("since start", &times.total)),
        _ => spread("last five minutes", &times.recent),
    }
}

fn puts(report: &ClusterReport) -> String {
    let times = &report.puts.milliseconds;
    let p99 = if times.recent.count > 0 { &times.recent } else { &times.total };
    let took = if p99.count > 0 { format!(", p99 {}", millis(p99.p99)) } else { String::new() };
    let flushes = &report.flushes;
    format!(
        "{} objects put ({}{took}), {} errors; {} flushes of {}",
        report.puts.count,
        output::bytes(report.puts.bytes),
        report.put_errors,
        flushes.count,
        output::bytes(flushes.bytes)
    )
}

fn slot(slot: &SlotReport) -> String {
    let name = slot.name.as_deref().unwrap_or("?");
    if slot.wal_status.as_deref() == Some("lost") {
        return format!("{name} is lost: the server has let go of its WAL");
    }
    let Some(retained) = slot.retained_bytes.map(output::bytes) else {
        return format!("{name}: not asked yet (needs SQL on the second connection)");
    };
    let status = slot.wal_status.as_deref().unwrap_or("state unknown");
    let pace =
        slot.wal_bytes_per_second.map_or(String::new(), |rate| format!("; WAL grows by {}/s", output::bytes(rate)));
    let limit = match (slot.limit_bytes, slot.full_in_seconds) {
        (_, Some(0)) => "; the server's next checkpoint may remove what it holds".to_owned(),
        (Some(limit), Some(left)) => {
            let (limit, left) = (output::bytes(limit), output::seconds(left as f64));
            format!("{pace}; if it stands still, its limit of {limit} is reached in {left}")
        }
        (Some(limit), None) => format!("{pace}; its limit is {}", output::bytes(limit)),
        // How large that is no connection tells.
        (None, _) => format!("{pace}; its limit is the server's disk"),
    };
    format!("{name} holds {retained}, {status}{limit}")
}

fn synchronous(report: &ClusterReport) -> String {
    let standing_by = report.state == State::StandingBy;
    let words = match report.synchronous {
        Some(true) if standing_by => {
            "yes: commits wait for the receiver that has the slot, and for this one when it takes over"
        }
        Some(true) => "yes: commits wait until they are durable in the repository, and would wait if this stopped",
        Some(false) => "no: no commit waits for the repository",
        None => "unknown: whether commits wait for the repository, no server says now",
    };
    words.to_owned()
}

fn millis(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.1} ms"),
        ..1000.0 => format!("{value:.0} ms"),
        _ => output::seconds(value / 1000.0),
    }
}

/// A time of the document, for people.
fn people(text: &str) -> String {
    text.parse().map_or_else(|_| text.to_owned(), output::time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::report::{Behind, Positions, ServerReport, Times};

    fn told(cluster: &str, state: State, healthy: bool) -> Told {
        let recent = Spread { count: 12, p50: 104.2, p99: 218.0, p999: 1230.0, max: 1300.0 };
        let report = ClusterReport {
            cluster: cluster.to_owned(),
            state,
            healthy,
            since: Some("2026-11-21T14:05:10.000000Z".to_owned()),
            problem: (!healthy).then(|| "the repository takes nothing".to_owned()),
            behind: Behind { bytes: Some(3 << 20), seconds: Some(125.0), oldest_commit_seconds: Some(2.5) },
            positions: Positions {
                verified: Some("16/B374D848".to_owned()),
                durable: Some("16/B374D000".to_owned()),
                ..Positions::default()
            },
            time_to_durable: Times { recent, ..Times::default() },
            server: Some(ServerReport { name: "db1:5432".to_owned(), version: 17, ..ServerReport::default() }),
            slot: Some(SlotReport {
                name: Some("walrecv".to_owned()),
                retained_bytes: Some(16 << 20),
                ..SlotReport::default()
            }),
            ..ClusterReport::default()
        };
        Told { report, process: Some((4711, "run".to_owned())) }
    }

    #[test]
    fn a_table_fits_the_terminal_and_says_more_on_a_wide_one() {
        let all = [told("main", State::Streaming, true), told("a-rather-long-name", State::CatchingUp, true)];
        let narrow = table(&all, 80, false);
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(narrow.contains("catching up  3.0 MiB  2 min 5 s      218 ms"), "{narrow}");
        let wide = table(&all, 120, false);
        assert!(wide.lines().all(|line| line.chars().count() <= 120) && wide.contains("16/B374D848"), "{wide}");
    }

    #[test]
    fn colours_change_nothing_else() {
        let all = [told("streaming", State::Streaming, true), told("b", State::Stalled, false)];
        let (plain, painted) = (table(&all, 80, false), table(&all, 80, true));
        assert!(painted.contains(&format!("streaming  {GREEN}streaming{PLAIN}")), "{painted}");
        assert!(painted.contains(&format!("{RED}stalled{PLAIN}")), "{painted}");
        let bare = [RED, GREEN, YELLOW, PLAIN].iter().fold(painted, |text, code| text.replace(code, ""));
        assert_eq!(bare, plain);
    }

    #[test]
    fn whether_commits_wait_is_not_made_up() {
        let said = |state, known| {
            let mut told = told("main", state, true);
            told.report.synchronous = known;
            synchronous(&told.report)
        };
        assert!(said(State::ServerAway, None).starts_with("unknown"));
        assert!(said(State::Streaming, Some(false)).starts_with("no"));
        assert!(said(State::Streaming, Some(true)).contains("would wait if this stopped"));
        assert!(said(State::StandingBy, Some(true)).contains("the receiver that has the slot"));
    }

    #[test]
    fn a_slot_s_forecast_says_which_limit_it_speaks_of() {
        let known = |status: &str, limit: Option<u64>, full: Option<u64>, pace: Option<u64>| SlotReport {
            name: Some("s".to_owned()),
            retained_bytes: Some(16 << 20).filter(|_| status != "lost"),
            wal_status: Some(status.to_owned()),
            limit_bytes: limit,
            full_in_seconds: full,
            wal_bytes_per_second: pace,
            ..SlotReport::default()
        };
        let gib = Some(1 << 30);
        for (report, words) in [
            (known("reserved", None, None, None), "s holds 16.0 MiB, reserved; its limit is the server's disk"),
            (
                known("reserved", None, None, Some(2 << 20)),
                "s holds 16.0 MiB, reserved; WAL grows by 2.0 MiB/s; its limit is the server's disk",
            ),
            (known("reserved", gib, None, None), "s holds 16.0 MiB, reserved; its limit is 1.0 GiB"),
            (
                known("extended", gib, Some(125), Some(2 << 20)),
                "s holds 16.0 MiB, extended; WAL grows by 2.0 MiB/s; if it stands still, its limit of 1.0 GiB is reached in 2 min 5 s",
            ),
            (
                known("unreserved", gib, Some(0), Some(2 << 20)),
                "s holds 16.0 MiB, unreserved; the server's next checkpoint may remove what it holds",
            ),
            (known("lost", gib, Some(0), None), "s is lost: the server has let go of its WAL"),
            (known("lost", None, Some(0), None), "s is lost: the server has let go of its WAL"),
        ] {
            assert_eq!(slot(&report), words);
        }
    }

    #[test]
    fn a_card_says_what_is_wrong_first() {
        let card = card(&told("b", State::Stalled, false), false);
        let second = card.lines().nth(1).unwrap_or_default();
        assert_eq!(second, "  problem          the repository takes nothing");
        assert!(card.contains("since 2026-11-21 14:05:10.000000+00 (`run`, process 4711)"), "{card}");
        assert!(card.contains("p50 104 ms, p99 218 ms, p99.9 1.2 s"), "{card}");
        assert!(card.contains("3.0 MiB, 2 min 5 s by the server's clock; the oldest commit waits for 2.5 s"), "{card}");
    }
}
