//! How long after a commit its WAL is durable in the repository, at the default flush interval, under full load: on a local disk, and on S3 with added delay.
//!
//! `cargo bench --bench durable` (as root, servers and storage emulator installed by `pg-test-env/install`). Measured from outside: one session asks the
//! server every few milliseconds how far its own WAL is flushed and how far walrecv has said that the repository is; a position is durable at the first answer in
//! which the second has passed it. Every answer counts the same, so moments, not bytes, are weighed. For S3 a proxy holds every byte of the way there back
//! for 50 ms.
//! Options after `--`: `--rounds N`, `--seconds N` of one load, `--version N`, `--json FILE`, `--only local|s3`.

#[path = "common.rs"]
mod common;
#[path = "slow_store.rs"]
mod slow_store;
#[path = "../proto-tests/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Options, Receiver, fresh_slot, median, percentile};
use serde_json::json;
use slow_store::{DELAY, Store};
use support::{Server, TempDir, wait_for};
use walrecv::pg::Lsn;

const PLACES: [&str; 2] = ["local", "s3"];
const NAME: &str = "bench_durable";
/// Between two questions.
const ASK: Duration = Duration::from_millis(5);
/// Seconds: goal for p99.
const GOAL: f64 = 1.5;
/// The load's first part is not counted: the receiver and its connections are new.
const WARM_UP: Duration = Duration::from_secs(2);

/// Seconds.
#[derive(Clone, Copy)]
struct Durable {
    p50: f64,
    p99: f64,
    worst: f64,
    tps: f64,
    wal_mib_per_second: f64,
}

fn main() {
    let options = Options::parse(8);
    let server = Server::builder(options.version)
        .segment_size_mb(16)
        .setting("max_wal_size", "20GB")
        .setting("shared_buffers", "256MB")
        .start();
    server.pgbench(&["-i", "-q", "-s", "20"]);
    let temp = TempDir::new("bench");
    eprintln!("PostgreSQL {} and local repository on {}", options.version, common::file_system(temp.path()));
    let chosen: Vec<&str> = PLACES.into_iter().filter(|p| options.wants(p)).collect();
    let store = chosen.contains(&"s3").then(Store::start);
    let mut measured: Vec<Vec<Durable>> = vec![Vec::new(); chosen.len()];
    for round in 0..options.rounds {
        for (index, place) in chosen.iter().enumerate() {
            server.sql("CHECKPOINT");
            fresh_slot(&server, NAME);
            let local = temp.join(format!("out{round}"));
            let (url, env) = match (&store, *place) {
                (Some(store), "s3") => (store.moto.bucket(&format!("bench-{round}")), store.env()),
                _ => (format!("file://{}", local.display()), Vec::new()),
            };
            let dsn = format!("{} application_name={NAME}", server.conninfo("postgres"));
            let receiver = Receiver::start(common::walrecv(&temp, None, &url, &dsn, NAME, &env));
            let found = measure(&server, options.seconds);
            eprintln!(
                "round {round} {place:<6} p50 {:.2} s, p99 {:.2} s, longest {:.2} s; {:.0} transactions and {:.1} MiB a second",
                found.p50, found.p99, found.worst, found.tps, found.wal_mib_per_second
            );
            measured[index].push(found);
            drop(receiver);
            let _ = std::fs::remove_dir_all(&local);
        }
    }
    report(&options, &chosen, &measured);
}

/// Load, and beside it the questions; then until what was asked about last is durable.
fn measure(server: &Server, seconds: u64) -> Durable {
    let mut session = server.connect("postgres").expect("connect");
    let question = format!(
        "SELECT pg_current_wal_flush_lsn(), (SELECT max(flush_lsn) FROM pg_stat_replication WHERE application_name = '{NAME}')"
    );
    let mut ask = || -> (Lsn, Lsn) {
        let rows = session.query(&question).expect("an answer");
        let lsn = |column: usize| rows[0][column].as_deref().map_or(Lsn(0), |text| text.parse().expect("an LSN"));
        (lsn(0), lsn(1))
    };
    wait_for("the receiver to catch up", || {
        let (flushed, durable) = ask();
        (durable >= flushed).then_some(())
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let length = (WARM_UP.as_secs() + seconds).to_string();
            let told = server.pgbench(&["-n", "-c", "8", "-j", "2", "-T", &length]);
            over.store(true, Ordering::SeqCst);
            let tps = told.lines().find_map(|line| line.strip_prefix("tps = "));
            tps.and_then(|text| text.split(' ').next()?.parse::<f64>().ok()).expect("pgbench tells its rate")
        });
        let begun = Instant::now();
        let first = ask().0;
        let (mut waiting, mut ages) = (VecDeque::<(Instant, Lsn)>::new(), Vec::<f64>::new());
        let mut last = first;
        loop {
            let (flushed, durable) = ask();
            let now = Instant::now();
            while waiting.front().is_some_and(|(_, lsn)| *lsn <= durable) {
                ages.extend(waiting.pop_front().map(|(at, _)| (now - at).as_secs_f64()));
            }
            if over.load(Ordering::SeqCst) {
                if waiting.is_empty() {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(seconds + 120), "the receiver does not come to the end");
            } else if begun.elapsed() > WARM_UP {
                waiting.push_back((now, flushed));
                last = flushed;
            }
            std::thread::sleep(ASK);
        }
        let tps = load.join().expect("the load ran");
        let rate = last.since(first) as f64 / (1 << 20) as f64 / (WARM_UP.as_secs() + seconds) as f64;
        Durable {
            p50: percentile(&mut ages, 0.5),
            p99: percentile(&mut ages, 0.99),
            worst: percentile(&mut ages, 1.0),
            tps,
            wal_mib_per_second: rate,
        }
    })
}

fn report(options: &Options, chosen: &[&str], measured: &[Vec<Durable>]) {
    println!(
        "{:<8} {:>8} {:>8} {:>10} {:>8} {:>10}   (goal for p99: {GOAL} s)",
        "place", "p50 s", "p99 s", "longest s", "tps", "WAL MiB/s"
    );
    let mut rows = Vec::new();
    for (place, rounds) in chosen.iter().zip(measured) {
        let of = |value: fn(&Durable) -> f64| median(rounds.iter().map(value));
        let (p50, p99) = (of(|d| d.p50), of(|d| d.p99));
        let worst = rounds.iter().map(|d| d.worst).fold(0.0, f64::max);
        println!(
            "{place:<8} {p50:>8.2} {p99:>8.2} {worst:>10.2} {:>8.0} {:>10.1}",
            of(|d| d.tps),
            of(|d| d.wal_mib_per_second)
        );
        let samples: Vec<_> = rounds
            .iter()
            .map(|d| {
                json!({"p50_s": d.p50, "p99_s": d.p99, "longest_s": d.worst, "tps": d.tps,
                    "wal_mib_per_second": d.wal_mib_per_second})
            })
            .collect();
        rows.push(json!({"place": place, "p50_s": p50, "p99_s": p99, "longest_s": worst, "rounds": samples}));
    }
    options.write_json(&json!({
        "bench": "durable", "postgresql": options.version.number(), "rounds": options.rounds, "seconds": options.seconds,
        "goal_p99_s": GOAL, "delay_ms": DELAY.as_millis() as u64, "rows": rows,
    }));
}
