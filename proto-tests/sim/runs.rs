//! Runs of the world: one seed in one process, so that nothing that happened before can change what happens in it.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use walrecv::seal::sealer::Compression;

use super::chance::govern_randomness;
use super::support::{rounds, temp};
use super::trace::Trace;
use super::world::{Plan, World};
use super::{chaos, trace};

const SEED: &str = "WALRECV_SEED";
const CHILD: &str = "WALRECV_SIM_RUN";
/// A lie of the disk or the store, or a kind of world.
const KIND: &str = "WALRECV_SIM_KIND";
/// Segments in parts, the second of which is just about to begin, of a server that is set back.
const PARTS: &str = "parts";
/// A failover is given up.
const GIVEN_UP: &str = "given up";

fn seed_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a decimal number")))
}

/// Plays one seed on a thread of its own (whose hash maps begin anew), and says what came out.
fn play(seed: u64) -> trace::Trace {
    govern_randomness(seed);
    let playing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let trace = Trace::new(std::env::var_os("WALRECV_SIM_ALOUD").is_some());
            let kind = std::env::var(KIND).unwrap_or_default();
            let world = World::with(seed, trace.clone(), |plan: &mut Plan| {
                match kind.as_str() {
                    // What is written is told at once, and flushed late.
                    "spool" => {
                        (plan.local, plan.spool, plan.synchronous, plan.store_faults) = (false, true, true, true)
                    }
                    PARTS => in_parts(plan),
                    GIVEN_UP => {
                        (plan.roll_back, plan.goes_back, plan.gaps) = (true, true, false);
                        plan.failovers = plan.failovers.max(1);
                    }
                    _ => {}
                }
            });
            match kind.as_str() {
                // Where the repository is a store, the disk is the spool's.
                "sync" | "spool" => world.disk.lie(true, false),
                "directories" => world.disk.lie(false, true),
                "store" => world.store.lie(10),
                _ => {}
            }
            chaos::play(world.clone()).await;
            trace.say(format!("{} promises were kept", world.audit.promises()));
            trace
        })
    });
    playing.join().expect("a run that does not panic")
}

/// Large segments cost much, so these worlds are short and have little else to do.
fn in_parts(plan: &mut Plan) {
    let (segment, part) = (32 << 20, 16 << 20);
    (plan.segment, plan.before) = (segment, part - plan.wal / 4);
    (plan.wal, plan.chaos) = (plan.wal.max(1 << 20), plan.chaos.min(Duration::from_secs(20)));
    (plan.roll_back, plan.goes_back, plan.gaps, plan.compression) = (true, true, false, Compression::Lz4);
}

/// One seed, in the process that [`run_apart`] starts.
#[test]
fn one_run() {
    let Some(seed) = seed_from(CHILD) else { return };
    let trace = play(seed);
    println!("fingerprint {:016x}", trace.fingerprint());
    if let Some(violation) = trace.violation() {
        println!("{}\nseed {seed}: {violation}", trace.last());
        std::process::exit(3);
    }
}

fn run_apart(seed: u64, kind: &str) -> Output {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--exact", "runs::one_run", "--nocapture", "--test-threads=1"]);
    // Catalogs are real files, and what a real disk does is no part of this.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() && std::env::var_os(temp::FOLDER).is_none() {
        command.env(temp::FOLDER, memory);
    }
    command.env(CHILD, seed.to_string()).env(KIND, kind).env("RUST_BACKTRACE", "0");
    command.output().expect("a run")
}

fn complaint(seed: u64, kind: &str, output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let kind = if kind.is_empty() { String::new() } else { format!("{KIND}='{kind}' ") };
    format!("{out}{err}\nreplay with: {kind}{SEED}={seed} cargo test --test sim every_promise_is_kept -- --nocapture\n")
}

/// Runs `count` seeds from `first` on, on every processor; returns those that failed with what they said.
fn run_many(first: u64, count: u64, kind: &str, enough: usize) -> Vec<(u64, String)> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || failed.lock().expect("no panic").len() >= enough {
                        return;
                    }
                    let seed = first.wrapping_add(index);
                    let output = run_apart(seed, kind);
                    if !output.status.success() {
                        failed.lock().expect("no panic").push((seed, complaint(seed, kind, &output)));
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no panic")
}

/// The same ones for every change, so that what fails is the change; in a soak others on every day.
fn first_seed() -> u64 {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    days * 1_000_000 * u64::from(rounds(0, 1)) + 1
}

fn keep_every_promise(kind: &str, usual: u32, soak: u32) {
    let (first, count) = (first_seed(), u64::from(rounds(usual, soak)));
    let count = seed_from("WALRECV_SIM_COUNT").unwrap_or(count);
    let first = seed_from("WALRECV_SIM_FIRST").unwrap_or(first);
    println!("seeds {first} to {}", first + count - 1);
    let begun = Instant::now();
    let failed = run_many(first, count, kind, 5);
    println!("{count} seeds in {:.1} s", begun.elapsed().as_secs_f64());
    let texts: Vec<&str> = failed.iter().map(|(_, text)| text.as_str()).collect();
    assert!(failed.is_empty(), "{}", texts.join("\n\n"));
}

#[test]
fn every_promise_is_kept() {
    if let Some(seed) = seed_from(SEED) {
        let kind = std::env::var(KIND).unwrap_or_default();
        let output = run_apart(seed, &kind);
        println!("{}", complaint(seed, &kind, &output));
        assert!(output.status.success(), "seed {seed}");
        return;
    }
    keep_every_promise("", 2_000, 60_000);
}

/// A part is never rewritten, so what differs from one that is stored must not be acknowledged beside it.
#[test]
fn every_promise_is_kept_where_segments_are_in_parts() {
    keep_every_promise(PARTS, 2, 200);
}

/// The end of the old timeline is stored, and its server goes on with it.
#[test]
fn every_promise_is_kept_where_a_failover_is_given_up() {
    keep_every_promise(GIVEN_UP, 200, 6_000);
}

/// The same seed goes the same way, event by event: else no failure could be replayed.
#[test]
fn a_seed_replays_exactly() {
    for seed in 1..=6 {
        let [one, two] = [run_apart(seed, ""), run_apart(seed, "")].map(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.split_once("fingerprint ").map(|(_, rest)| rest[..16].to_owned())
        });
        assert!(one.is_some() && one == two, "seed {seed}: {one:?}, then {two:?}");
    }
}

/// A disk or a store that lies about what is durable is found out: else nothing here would prove anything.
#[test]
fn lies_are_found_out() {
    for lie in ["sync", "directories", "store", "spool"] {
        let failed = run_many(1, 120, lie, 1);
        let (seed, text) = failed.first().unwrap_or_else(|| panic!("nobody noticed the lie about {lie}"));
        assert!(text.contains("VIOLATION"), "seed {seed}: {text}");
        println!("{lie}: seed {seed}");
    }
}
