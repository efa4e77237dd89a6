//! What a commit costs that waits for the archive: `walrecv` beside `pg_receivewal --synchronous`, each the only synchronous standby in its turn.
//!
//! `cargo bench --bench commit` (as root, servers installed by `pg-test-env/install`). In every round each receiver serves all loads: 1, 8 and 32 clients that
//! commit 300 bytes, 8 KiB or 64 KiB at a time. Ratios are made within a round, and medians of them printed. Beside it stand the same commits without a standby
//! and a bare write and `fdatasync` on the same disk.
//! Options after `--`: `--rounds N`, `--seconds N` of one load, `--version N`, `--json FILE`, `--only NAME` (several times), `--also NAME=FILE` (another
//! build of `walrecv`, measured beside this one), `--cell BYTESxCLIENTS` (several times; all nine otherwise).

#[path = "common.rs"]
mod common;
#[path = "../proto-tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Options, Receiver, fresh_slot, median, percentile};
use serde_json::json;
use support::{Server, TempDir};

/// No standby at all; what the ratios are against; ours.
const RECEIVERS: [&str; 3] = ["none", REFERENCE, "walrecv"];
const REFERENCE: &str = "pg_receivewal";
const CLIENTS: [u32; 3] = [1, 8, 32];
const SIZES: [u32; 3] = [300, 8 << 10, 64 << 10];
/// Name by which a receiver is listed, and its slot.
const NAME: &str = "bench_commit";
/// Goals: p50 and p99 against the reference.
const GOALS: [f64; 2] = [1.1, 1.5];

/// Milliseconds.
#[derive(Clone, Copy)]
struct Latency {
    p50: f64,
    p99: f64,
    commits: usize,
}

fn main() {
    let options = Options::parse(2);
    let server = Server::builder(options.version)
        .segment_size_mb(16)
        .setting("max_wal_size", "20GB")
        .setting("shared_buffers", "256MB")
        .setting("synchronous_commit", "on")
        .setting("checkpoint_timeout", "1h")
        .start();
    let temp = TempDir::new("bench");
    eprintln!("PostgreSQL {} and repository on {}", options.version, common::file_system(temp.path()));
    let scripts = prepare(&server);

    let cells: Vec<(u32, u32)> =
        SIZES.iter().flat_map(|s| CLIENTS.iter().map(|c| (*s, *c))).filter(|cell| options.has_cell(*cell)).collect();
    let mut chosen: Vec<&str> = RECEIVERS.into_iter().filter(|r| options.wants(r)).collect();
    chosen.extend(options.also.iter().map(|(name, _)| name.as_str()));
    // By receiver, then by cell, one for each round.
    let mut measured: Vec<Vec<Vec<Latency>>> = vec![vec![Vec::new(); cells.len()]; chosen.len()];
    let mut disk = Vec::new();
    for round in 0..options.rounds {
        disk.push(bare_disk(&temp.join("bare")));
        // The one that comes first is another one in each round.
        for turn in 0..chosen.len() {
            let index = (turn + round) % chosen.len();
            let receiver = serve(&server, &temp, chosen[index], options.build(chosen[index]));
            for (cell, (size, clients)) in cells.iter().enumerate() {
                let latency = load(&server, scripts.path(), *size, *clients, options.seconds);
                eprintln!(
                    "round {round} {:<14} {clients:>2} x {size:>5}: p50 {:.2} ms, p99 {:.2} ms, {} commits",
                    chosen[index], latency.p50, latency.p99, latency.commits
                );
                measured[index][cell].push(latency);
            }
            server.sql("ALTER SYSTEM RESET synchronous_standby_names");
            server.sql("SELECT pg_reload_conf()");
            drop(receiver);
            // Segments that were sent are used again or removed now, not in the middle of the next turn.
            if chosen[index] != "none" {
                fresh_slot(&server, NAME);
            }
            server.sql("CHECKPOINT");
            fs::remove_dir_all(temp.join("out")).expect("remove what was received");
        }
    }
    report(&options, &cells, &chosen, &measured, &mut disk);
}

/// Contents to commit (text of hexadecimal digits, stored uncompressed) and one pgbench script for each size.
fn prepare(server: &Server) -> TempDir {
    server.sql("CREATE TABLE payload (size int, n int, bytes text, PRIMARY KEY (size, n))");
    server.sql("ALTER TABLE payload ALTER bytes SET STORAGE EXTERNAL");
    let scripts = TempDir::for_postgres("commit");
    for size in SIZES {
        server.sql(&format!(
            "INSERT INTO payload SELECT {size}, n, left((SELECT string_agg(md5(n || ' ' || i || 'x{size}'), '') \
             FROM generate_series(1, {size} / 32 + 1) i), {size}) FROM generate_series(1, 64) n"
        ));
        let text = format!(
            "\\set n random(1, 64)\n\
             SELECT pg_logical_emit_message(true, 'bench', bytes) FROM payload WHERE size = {size} AND n = :n;\n"
        );
        fs::write(scripts.join(format!("{size}.sql")), text).expect("write a script");
    }
    server.sql("VACUUM ANALYZE payload");
    scripts
}

/// Starts a receiver and makes it the synchronous standby.
fn serve(server: &Server, temp: &TempDir, name: &str, build: Option<&Path>) -> Option<Receiver> {
    let out = temp.join("out");
    fs::create_dir_all(&out).expect("make a folder");
    if name == "none" {
        return None;
    }
    fresh_slot(server, NAME);
    let dsn = format!("{} application_name={NAME}", server.conninfo("postgres"));
    let command = if name == REFERENCE {
        let mut command = Command::new(server.bin_dir().join("pg_receivewal"));
        command.args(["-d", &dsn, "--slot", NAME, "--synchronous", "--no-loop", "-D"]).arg(&out);
        command
    } else {
        common::walrecv(temp, build, &format!("file://{}", out.display()), &dsn, NAME, &[])
    };
    server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{NAME}'"));
    server.sql("SELECT pg_reload_conf()");
    let receiver = Receiver::start(command);
    let state = format!(
        "SELECT max(sync_state) FROM pg_stat_replication WHERE application_name = '{NAME}' AND state = 'streaming'"
    );
    server.wait_sql(&state, "sync");
    // The first commit waits until everything is in place.
    server.sql("SELECT pg_logical_emit_message(true, 'bench', 'first')");
    Some(receiver)
}

/// One load: every transaction's latency comes from pgbench's log. The first tenth is left out: connections and caches are new.
fn load(server: &Server, scripts: &Path, size: u32, clients: u32, seconds: u64) -> Latency {
    let log = TempDir::for_postgres("log");
    let prefix = log.join("t").display().to_string();
    let script = scripts.join(format!("{size}.sql")).display().to_string();
    let (clients, seconds) = (clients.to_string(), seconds.to_string());
    let threads = if clients == "1" { "1" } else { "2" };
    server.pgbench(&[
        "-n",
        "-M",
        "prepared",
        "-c",
        &clients,
        "-j",
        threads,
        "-T",
        &seconds,
        "-l",
        "--log-prefix",
        &prefix,
        "-f",
        &script,
    ]);
    let mut latencies = Vec::new();
    for file in fs::read_dir(log.path()).expect("list logs").flatten() {
        let text = fs::read_to_string(file.path()).expect("read a log");
        let all: Vec<f64> = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()).collect();
        latencies.extend(all.iter().skip(all.len() / 10).map(|micros| micros / 1000.0));
    }
    let commits = latencies.len();
    Latency { p50: percentile(&mut latencies, 0.5), p99: percentile(&mut latencies, 0.99), commits }
}

/// What the disk alone takes to make 8 KiB durable in a file that is there: the least that a commit can cost.
fn bare_disk(path: &Path) -> Latency {
    let file = File::create(path).expect("make a file");
    file.write_all_at(&vec![0; 16 << 20], 0).and_then(|()| file.sync_all()).expect("fill a file");
    let begun = Instant::now();
    let mut latencies = Vec::new();
    for block in (0..).map(|n| n % 2048 * 8192) {
        let start = Instant::now();
        file.write_all_at(&[1; 8192], block).and_then(|()| file.sync_data()).expect("write and sync");
        latencies.push(start.elapsed().as_secs_f64() * 1000.0);
        if begun.elapsed() > Duration::from_secs(1) {
            break;
        }
    }
    fs::remove_file(path).expect("remove a file");
    let commits = latencies.len();
    Latency { p50: percentile(&mut latencies, 0.5), p99: percentile(&mut latencies, 0.99), commits }
}

fn report(
    options: &Options,
    cells: &[(u32, u32)],
    chosen: &[&str],
    measured: &[Vec<Vec<Latency>>],
    disk: &mut [Latency],
) {
    let bare = [median(disk.iter().map(|l| l.p50)), median(disk.iter().map(|l| l.p99))];
    println!("bare write and fdatasync of 8 KiB: p50 {:.2} ms, p99 {:.2} ms", bare[0], bare[1]);
    print!("{:<22}", "bytes x clients");
    chosen.iter().for_each(|receiver| print!("{:>22}", format!("{receiver} p50/p99")));
    let reference = chosen.iter().position(|r| *r == REFERENCE);
    let ours: Vec<usize> = (0..chosen.len()).filter(|r| !RECEIVERS[..2].contains(&chosen[*r])).collect();
    ours.iter().for_each(|_| print!("{:>12} {:>10}", "ratio p50", "p99"));
    println!("   (goals {} and {})", GOALS[0], GOALS[1]);
    let mut rows = Vec::new();
    for (cell, (size, clients)) in cells.iter().enumerate() {
        print!("{:<22}", format!("{size} x {clients}"));
        let mut by_receiver = serde_json::Map::new();
        for (index, receiver) in chosen.iter().enumerate() {
            let rounds = &measured[index][cell];
            let (p50, p99) = (median(rounds.iter().map(|l| l.p50)), median(rounds.iter().map(|l| l.p99)));
            print!("{:>22}", format!("{p50:.2} / {p99:.2}"));
            let samples: Vec<_> =
                rounds.iter().map(|l| json!({"p50_ms": l.p50, "p99_ms": l.p99, "commits": l.commits})).collect();
            by_receiver.insert((*receiver).to_owned(), json!({"p50_ms": p50, "p99_ms": p99, "rounds": samples}));
        }
        let mut ratios = serde_json::Map::new();
        for (reference, ours) in reference.iter().flat_map(|reference| ours.iter().map(move |ours| (reference, ours))) {
            let pairs = || measured[*ours][cell].iter().zip(&measured[*reference][cell]);
            let (p50, p99) = (median(pairs().map(|(a, b)| a.p50 / b.p50)), median(pairs().map(|(a, b)| a.p99 / b.p99)));
            print!("{p50:>12.2} {p99:>10.2}");
            ratios.insert(chosen[*ours].to_owned(), json!({"p50": p50, "p99": p99}));
        }
        println!();
        rows.push(json!({"bytes": size, "clients": clients, "ratios": ratios, "receivers": by_receiver}));
    }
    options.write_json(&json!({
        "bench": "commit", "postgresql": options.version.number(), "rounds": options.rounds, "seconds": options.seconds,
        "reference": REFERENCE, "goals": {"p50": GOALS[0], "p99": GOALS[1]}, "bare_disk": {"p50_ms": bare[0], "p99_ms": bare[1]},
        "rows": rows,
    }));
}
