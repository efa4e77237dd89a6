//! Fifty idle streams and five busy ones in one process: what they cost, and that none disturbs another.

use std::time::{Duration, Instant};

use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::site::Site;
use crate::support::{Ledger, Server, require_servers, wait_for};

const IDLE: usize = 50;
const BUSY: usize = 5;
/// What an idle stream may hold, its share of the process included.
const LIMIT_KIB: u64 = 8 << 10;
/// Bytes in the open segment when the streams fall idle: a stream that keeps what it has stored passes the limit with them.
const OPEN: u64 = 4 << 20;

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status of the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

fn server() -> Server {
    Server::builder(MajorVersion::V17)
        .segment_size_mb(16)
        .setting("max_wal_senders", "120")
        .setting("max_replication_slots", "60")
        .setting("log_replication_commands", "off")
        .start()
}

/// Cluster names stand for archives of their own, so many of them can stream one server.
fn configure(site: &Site, prefix: &str, count: usize, server: &Server) -> String {
    let dsn = toml::Value::String(server.conninfo("postgres"));
    server.sql(&format!(
        "select pg_create_physical_replication_slot('{prefix}' || i, true) from generate_series(1, {count}) i"
    ));
    let table = |n| format!("\n[clusters.{prefix}{n}]\ndsn = {dsn}\nslot = \"{prefix}{n}\"\nstall_timeout = \"60s\"\n");
    let text = std::fs::read_to_string(site.config()).expect("a configuration");
    let (head, rest) = text.split_once("\n[clusters.").unwrap_or((&text, ""));
    let kept = if rest.starts_with("main]") { String::new() } else { format!("\n[clusters.{rest}") };
    let text = format!("{head}\n{kept}{}", (1..=count).map(table).collect::<String>());
    std::fs::write(site.config(), &text).expect("write the configuration");
    text
}

fn clusters(site: &Site) -> Vec<Value> {
    let told = site.walrecv(&["status", "--output", "json"]).run();
    // It may not be listening yet.
    let told: Value = serde_json::from_str(&told.stdout).unwrap_or_default();
    told["clusters"].as_array().cloned().unwrap_or_default()
}

fn sum(clusters: &[Value], prefix: &str, number: impl Fn(&Value) -> u64) -> u64 {
    clusters.iter().filter(|c| c["cluster"].as_str().is_some_and(|name| name.starts_with(prefix))).map(number).sum()
}

#[test]
fn an_idle_stream_costs_little_and_a_busy_one_does_not_hold_it_up() {
    require_servers!(MajorVersion::V17);
    let (idle, busy) = (server(), server());
    let site = Site::new(&idle);
    configure(&site, "idle", IDLE, &idle);
    configure(&site, "busy", BUSY, &busy);
    idle.sql("create table t as select i, repeat('x', 1000) as filler from generate_series(1, 4200) i");
    let begun = Instant::now();
    let running = site.walrecv(&["run"]).spawn();
    let caught_up = || {
        let all = clusters(&site);
        let quiet = |c: &&Value| c["healthy"] == true && c["behind"]["seconds"] == 0.0;
        (all.iter().filter(quiet).count() == IDLE + BUSY).then_some(all)
    };
    let all = wait_for("all streams to have caught up", caught_up);
    assert!(sum(&all, "idle", |c| c["received_bytes"].as_u64().unwrap_or(0)) > IDLE as u64 * OPEN);
    let took = begun.elapsed();
    let each = wait_for("the idle streams to let go of their buffers", || {
        let each = resident_kib(running.pid()) / (IDLE + BUSY) as u64;
        if std::env::var_os("WALRECV_SHOW").is_some() {
            eprintln!("{each} KiB each");
        }
        (each < LIMIT_KIB).then_some(each)
    });
    println!("{} streams caught up in {took:?}; {each} KiB for each of them", IDLE + BUSY);

    let disturbed =
        |all: &[Value]| sum(all, "idle", |c| c["reconnects"].as_u64().unwrap_or(9) + c["stalls"].as_u64().unwrap_or(9));
    let before = disturbed(&clusters(&site));
    let ledger = Ledger::builder().writers(2).padding(2000).start(&busy);
    std::thread::sleep(Duration::from_secs(8));
    let under_load = resident_kib(running.pid());
    let entries = ledger.stop();
    let healthy = |all: &Vec<Value>| all.iter().all(|c| c["healthy"] == true);
    let all = wait_for("all streams to be healthy", || Some(clusters(&site)).filter(healthy));
    println!("{} commits for {BUSY} streams: {under_load} KiB in all", entries.len());
    assert_eq!(disturbed(&all), before, "no idle stream notices");
    assert!(sum(&all, "busy", |c| c["commits"].as_u64().unwrap_or(0)) > entries.len() as u64);
    assert!(under_load < IDLE as u64 * LIMIT_KIB + BUSY as u64 * (64 << 10), "{under_load} KiB");
    let narrow = site.walrecv(&["status"]).env("COLUMNS", "80").run().expect_code(0).stdout;
    assert!(narrow.lines().count() > IDLE + BUSY && narrow.lines().all(|l| l.chars().count() <= 80), "{narrow}");
    running.terminate().expect_code(0);
}
