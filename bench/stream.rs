//! Streaming, side by side: how long it takes to drain the same backlog of WAL from a copied slot.
//!
//! `cargo bench --bench stream` (as root, servers installed by `pg-test-env/install`). Every round runs each receiver once, in turn, so that what else the
//! machine does hits all of them alike. Printed are medians, ratios against `pg_receivewal` lz4, CPU seconds, peak memory and bytes stored; then what checking
//! the same bytes costs alone.
//! Options after `--`: `--mib N` backlog, `--rounds N`, `--version N`, `--json FILE`, `--only NAME` (several times), `--also NAME=FILE` (another build of
//! `walrecv`, measured beside this one).

mod process;
#[path = "../proto-tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use process::{Sample, measure, median, size_of};
use serde::Serialize;
use support::{Server, TempDir};
use walrecv::net::{Connection, Conninfo, Mode};
use walrecv::pg::record::Record;
use walrecv::pg::scan::{ScanConfig, WalScanner};
use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentSize, SystemIdentifier, TimelineId, xact};
use walrecv::wire::message::{Status, StreamEvent};

const RECEIVERS: [&str; 5] = ["null", "pg_receivewal", "pg_receivewal-lz4", "walrecv-lz4", "walrecv-zstd"];
/// What the ratios are against.
const REFERENCE: &str = "pg_receivewal-lz4";
/// Whose time the share of checking is taken of.
const OURS: &str = "walrecv-lz4";

struct Options {
    mib: u64,
    rounds: usize,
    version: MajorVersion,
    json: Option<PathBuf>,
    only: Vec<String>,
    also: Vec<(String, PathBuf)>,
}

#[derive(Serialize)]
struct Row {
    receiver: String,
    median: Sample,
    wall_ratio: f64,
    cpu_ratio: f64,
    samples: Vec<Sample>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.first().map(String::as_str) == Some("--null") {
        return null_receiver(&args[1], &args[2], &args[3]);
    }
    let options = parse(&args);
    let server = Server::builder(options.version)
        .segment_size_mb(16)
        .setting("max_wal_size", "20GB")
        .setting("max_replication_slots", 20)
        .setting("max_wal_senders", 20)
        .setting("shared_buffers", "256MB")
        .start();
    let (start, end) = backlog(&server, options.mib);
    let bytes = end.since(start);
    eprintln!(
        "backlog {} MiB of pgbench WAL on PostgreSQL {}, {} rounds",
        bytes >> 20,
        options.version,
        options.rounds
    );

    let wanted = |r: &&str| options.only.is_empty() || options.only.iter().any(|o| o == r);
    let mut chosen: Vec<&str> = RECEIVERS.into_iter().filter(wanted).collect();
    chosen.extend(options.also.iter().map(|(name, _)| name.as_str()));
    let mut checking = Vec::new();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); chosen.len()];
    for round in 0..options.rounds {
        checking.push(check_alone(&server, start, end));
        for (index, receiver) in chosen.iter().enumerate() {
            let sample = run(&server, receiver, &options, end);
            eprintln!("round {round} {receiver:<18} {:.2} s", sample.wall_seconds);
            samples[index].push(sample);
        }
    }
    report(&options, bytes, &chosen, samples, checking);
}

fn parse(args: &[String]) -> Options {
    let mut options =
        Options { mib: 1024, rounds: 7, version: MajorVersion::V18, json: None, only: Vec::new(), also: Vec::new() };
    let mut rest = args.iter();
    while let Some(name) = rest.next() {
        let mut value = || rest.next().unwrap_or_else(|| panic!("{name} needs a value"));
        match name.as_str() {
            "--mib" => options.mib = value().parse().expect("a number of MiB"),
            "--rounds" => options.rounds = value().parse().expect("a number of rounds"),
            "--version" => {
                options.version = MajorVersion::from_number(value().parse().expect("a version")).expect("13 to 18")
            }
            "--json" => options.json = Some(value().into()),
            "--only" => options.only.push(value().clone()),
            "--also" => {
                let (name, file) = value().split_once('=').expect("NAME=FILE");
                options.also.push((name.to_owned(), file.into()));
            }
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// A slot that holds at least `mib` of pgbench's WAL, and the range.
fn backlog(server: &Server, mib: u64) -> (Lsn, Lsn) {
    server.pgbench(&["-i", "-q", "-s", "20"]);
    server.sql("CHECKPOINT");
    server.switch_wal();
    server.sql("SELECT pg_create_physical_replication_slot('bench_base', true)");
    let start: Lsn = server.sql("SELECT restart_lsn FROM pg_replication_slots").trim().parse().expect("an LSN");
    while server.lsn().since(start) < mib << 20 {
        // A checkpoint now and then gives the share of full-page images that a real server has.
        server.sql("CHECKPOINT");
        server.pgbench(&["-n", "-c", "4", "-t", "5000"]);
    }
    server.switch_wal();
    server.sql("CREATE TABLE after_the_end ()");
    let end = Lsn(server.lsn().0 & !0xFF_FFFF);
    (start, end)
}

/// Seconds that checking the backlog takes alone, from memory, in messages as the server sends them.
fn check_alone(server: &Server, start: Lsn, end: Lsn) -> f64 {
    let system = server.sql("SELECT system_identifier FROM pg_control_system()").parse().expect("a number");
    let segment_size = SegmentSize::new(16 << 20).expect("16 MiB");
    let timeline = TimelineId(1);
    let config = ScanConfig { version: server.version(), system: SystemIdentifier(system), timeline, segment_size };
    let first = segment_size.segment_of(start);
    let mut scanner = WalScanner::new(config, first.start(segment_size));
    let (mut spent, mut records) = (0.0, 0u64);
    while scanner.received() < end {
        let name = SegmentName::new(timeline, segment_size.segment_of(scanner.received()), segment_size);
        let bytes = fs::read(server.data_dir().join("pg_wal").join(name.to_string())).expect("read a segment");
        let before = Instant::now();
        for message in bytes.chunks(128 << 10) {
            let counted = &mut |record: &Record<'_>| {
                records += 1;
                std::hint::black_box(xact::note(record, config.version)).expect("a record that can be read");
            };
            scanner.feed(message, counted).expect("valid WAL");
        }
        spent += before.elapsed().as_secs_f64();
    }
    assert!(records > 0);
    spent
}

fn run(server: &Server, receiver: &str, options: &Options, end: Lsn) -> Sample {
    server.sql("SELECT pg_copy_physical_replication_slot('bench_base', 'bench_run')");
    let temp = TempDir::new("bench");
    let out = temp.join("out");
    fs::create_dir_all(&out).expect("make a folder");
    let conninfo = server.conninfo("postgres");
    let command = match receiver {
        "null" => {
            let mut me = Command::new(std::env::current_exe().expect("own path"));
            me.args(["--null", &conninfo, "bench_run", &end.to_string()]);
            me
        }
        "pg_receivewal" => pg_receivewal(server, &out, end, None),
        "pg_receivewal-lz4" => pg_receivewal(server, &out, end, Some("lz4")),
        OURS => walrecv_receive(&temp, &out, &conninfo, end, "lz4", None),
        "walrecv-zstd" => walrecv_receive(&temp, &out, &conninfo, end, "zstd:1", None),
        other => {
            let also = options.also.iter().find(|(name, _)| name == other).expect("a receiver");
            walrecv_receive(&temp, &out, &conninfo, end, "lz4", Some(&also.1))
        }
    };
    let mut sample = measure(command);
    sample.stored_bytes = size_of(&out);
    // The walsender notices that its client has gone a moment later.
    support::wait_for("the slot to be free", || server.try_sql("SELECT pg_drop_replication_slot('bench_run')").ok());
    sample
}

fn pg_receivewal(server: &Server, out: &Path, end: Lsn, compress: Option<&str>) -> Command {
    let mut command = Command::new(server.bin_dir().join("pg_receivewal"));
    command.args(["-d", &server.conninfo("postgres"), "--slot", "bench_run", "--no-loop", "-D"]).arg(out);
    command.args(["--endpos", &end.to_string()]);
    if let Some(method) = compress {
        command.arg(format!("--compress={method}"));
    }
    command
}

fn walrecv_receive(
    temp: &TempDir,
    out: &Path,
    conninfo: &str,
    end: Lsn,
    compression: &str,
    build: Option<&Path>,
) -> Command {
    let config = temp.join("walrecv.toml");
    let url = format!("file://{}", out.display());
    let config_text = config.display().to_string();
    let made = support::Walrecv::new([
        "init",
        "--config",
        &config_text,
        "--repo",
        &url,
        "--dsn",
        conninfo,
        "--slot",
        "bench_run",
    ]);
    made.run().expect_code(0);
    let mut command = Command::new(build.unwrap_or(support::walrecv::path()));
    command.args(["receive", "--config", &config_text, "--compression", compression, "--until", &end.to_string()]);
    command
}

fn report(options: &Options, bytes: u64, chosen: &[&str], samples: Vec<Vec<Sample>>, mut checking: Vec<f64>) {
    let medians: Vec<Sample> = samples.iter().map(|s| median(s)).collect();
    let of = |name: &str| chosen.iter().position(|r| *r == name).map(|i| &medians[i]);
    let reference = of(REFERENCE).map(|m| (m.wall_seconds, m.cpu_seconds));
    checking.sort_by(f64::total_cmp);
    let checking = checking[checking.len() / 2];
    let share = of(OURS).map(|m| checking / m.wall_seconds);
    println!(
        "{:<18} {:>8} {:>8} {:>8} {:>9} {:>10} {:>7} {:>7}",
        "receiver", "wall s", "MiB/s", "CPU s", "peak MiB", "stored MiB", "ratio", "of CPU"
    );
    let mut rows = Vec::new();
    for ((receiver, median), samples) in chosen.iter().zip(medians.iter().cloned()).zip(samples) {
        let ratio = reference.map_or(f64::NAN, |r| median.wall_seconds / r.0);
        let cpu_ratio = reference.map_or(f64::NAN, |r| median.cpu_seconds / r.1);
        println!(
            "{receiver:<18} {:>8.2} {:>8.0} {:>8.2} {:>9.1} {:>10.1} {ratio:>7.2} {cpu_ratio:>7.2}",
            median.wall_seconds,
            bytes as f64 / median.wall_seconds / (1 << 20) as f64,
            median.cpu_seconds,
            median.peak_memory_kib as f64 / 1024.0,
            median.stored_bytes as f64 / (1 << 20) as f64,
        );
        rows.push(Row { receiver: receiver.to_string(), median, wall_ratio: ratio, cpu_ratio, samples });
    }
    let text = share.map_or(String::new(), |share| format!(", {:.1} % of the time of {OURS}", share * 100.0));
    println!("checking alone     {checking:>8.2}{text}");
    if let Some(path) = &options.json {
        let value = serde_json::json!({
            "bench": "stream", "postgresql": options.version.number(), "backlog_bytes": bytes,
            "rounds": options.rounds, "reference": REFERENCE, "rows": rows,
            "checking_seconds": checking, "checking_share": share,
        });
        fs::write(path, format!("{value:#}\n")).expect("write the JSON file");
    }
}

/// Reads the stream and throws it away: what the server and the protocol allow at most.
fn null_receiver(conninfo: &str, slot: &str, end: &str) {
    let end: Lsn = end.parse().expect("an LSN");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let info = Conninfo::parse(conninfo, &|_| None).expect("a connection string");
        let mut connection = Connection::connect(&info, Mode::Physical, "").await.expect("connect");
        let identity = connection.identify_system().await.expect("IDENTIFY_SYSTEM");
        let state = connection.read_slot(slot).await.expect("the slot").expect("the slot exists");
        let start = Lsn(state.restart_lsn.expect("a reserved slot").0 & !0xFF_FFFF);
        connection.start_replication(Some(slot), start, identity.timeline).await.expect("START_REPLICATION");
        let (mut at, mut said) = (start, Instant::now());
        while at < end {
            if let StreamEvent::Data { start, bytes, .. } = connection.next_event().await.expect("an event") {
                at = start + bytes.len() as u64;
            }
            if said.elapsed() > Duration::from_secs(1) {
                said = Instant::now();
                let status = Status { written: at, flushed: at, applied: at, reply_requested: false };
                connection.send_status(status, Duration::from_secs(1)).await.expect("a status");
            }
        }
    });
}
