//! Restores, side by side: the same database laid back by walrecv, by pgBackRest, and by `cp -r` and `sync`; and over an old primary, of which most is right.
//!
//! `cargo bench --bench restore` (as root, servers and storage emulator installed by `pg-test-env/install`; pgBackRest is measured where it is found). Files
//! alone: no recovery. Every round runs each way once, in turn, and everything dirty is written out before each. Options after `--`: `--mib N` size of the
//! database (2048), `--rounds N`, `--version N` (15: the last that Debian's pgBackRest knows), `--json FILE`, `--only NAME` (several times),
//! `--also NAME=FILE` (another build of `walrecv`), `--part fresh|delta|s3`.

#[path = "common.rs"]
mod common;
#[path = "database.rs"]
mod database;
#[path = "peers.rs"]
mod peers;
#[path = "process.rs"]
mod process;
#[path = "../proto-tests/support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Options;
use database::{PAGE, database};
use process::{Sample, measure, median, size_of};
use serde_json::{Value, json};
use support::user::give_to_postgres;
use support::{Moto, Server, TempDir, Walrecv, wait_for};

type Env = Vec<(&'static str, String)>;

fn main() {
    let options = Options::parse(0);
    let server = database(&options);
    let bench = Bench::new(&options, &server);
    eprintln!(
        "PostgreSQL {}, {} MiB in base, {} rounds, on {}",
        options.version,
        size_of(&server.data_dir().join("base")) >> 20,
        options.rounds,
        common::file_system(bench.temp.path())
    );
    let mut value = json!({ "bench": "restore", "postgresql": options.version.number(), "rounds": options.rounds });
    if options.wants_part("fresh") {
        value["fresh"] = bench.rounds("a restore into an empty directory", false);
    }
    if options.wants_part("delta") {
        value["delta"] = bench.rounds("a restore over an old primary, a hundredth of the pages differ", true);
    }
    options.write_json(&value);
}

struct Bench<'a> {
    options: &'a Options,
    temp: TempDir,
    ways: Vec<&'a str>,
    config: String,
    pgbackrest: PathBuf,
}

impl<'a> Bench<'a> {
    /// Takes a backup with every tool that is measured.
    fn new(options: &'a Options, server: &Server) -> Bench<'a> {
        let temp = TempDir::for_postgres("bench");
        let mut ways: Vec<&str> =
            ["walrecv", "pgbackrest", "cp"].into_iter().filter(|way| options.wants(way)).collect();
        ways.retain(|way| *way != "pgbackrest" || peers::has_pgbackrest(options.version));
        ways.extend(options.also.iter().map(|(name, _)| name.as_str()));
        if options.wants_part("s3") && options.wants("s3") {
            ways.push("s3");
        }
        let url = format!("file://{}", temp.join("repository").display());
        let config = walrecv_backup(server, &temp, "local", &url, &Env::new());
        if ways.contains(&"s3") {
            let moto = Moto::shared();
            walrecv_backup(server, &temp, "s3", &moto.bucket("bench"), &moto.env());
        }
        let pgbackrest = temp.join("pgbackrest.conf");
        if ways.contains(&"pgbackrest") {
            peers::pgbackrest(server, &temp, &temp.postgres_dir("pgbackrest-repository"));
        }
        Bench { options, temp, ways, config, pgbackrest }
    }

    fn rounds(&self, title: &str, delta: bool) -> Value {
        // `cp` copies what is there; nothing of it can stay.
        let ways: Vec<&str> = self.ways.iter().copied().filter(|way| !delta || *way != "cp").collect();
        let mut samples = vec![Vec::new(); ways.len()];
        let first = self.temp.join("first");
        if !first.exists() {
            measure(self.restore("walrecv", &first, false));
        }
        for round in 0..self.options.rounds {
            for (index, way) in ways.iter().enumerate() {
                let target = self.temp.join(format!("target-{way}"));
                if delta {
                    self.disturb(way, &target, round as u64);
                }
                sync();
                let sample = measure(self.restore(way, &target, delta));
                eprintln!("round {round} {way:<12} {:.2} s", sample.wall_seconds);
                if !delta {
                    fs::remove_dir_all(&target).expect("remove what was restored");
                }
                samples[index].push(sample);
            }
        }
        for way in &ways {
            let _ = fs::remove_dir_all(self.temp.join(format!("target-{way}")));
        }
        println!("{title}");
        table(&ways, &samples)
    }

    /// One restore of files alone.
    fn restore(&self, way: &str, target: &Path, delta: bool) -> Command {
        let shown = target.display().to_string();
        match way {
            "cp" => {
                let mut command = Command::new("sh");
                let line = format!("cp -r '{}' '{shown}' && sync", self.temp.join("first").display());
                command.args(["-c", &line]);
                command
            }
            "pgbackrest" => {
                fs::create_dir_all(target).expect("make a folder");
                give_to_postgres(target);
                let path = format!("--pg1-path={shown}");
                let mut args = vec![path.as_str(), "restore", "--type=immediate"];
                args.extend(delta.then_some("--delta"));
                peers::pgbackrest_command(&self.pgbackrest, &args)
            }
            _ => {
                let build = self.options.build(way).unwrap_or(support::walrecv::path());
                let mut command = Command::new(build);
                let config = if way == "s3" { self.config.replace("local", "s3") } else { self.config.clone() };
                command.args(["restore", "--config", &config, "--target-immediate", "--pgdata", &shown]);
                command.args(delta.then_some("--delta"));
                if way == "s3" {
                    command.envs(Moto::shared().env());
                }
                command
            }
        }
    }

    /// An old primary: what was restored, with a hundredth of its pages changed in place.
    fn disturb(&self, way: &str, target: &Path, round: u64) {
        if !target.exists() {
            measure(self.restore(way, target, false));
        }
        // WAL-less, but with everything else that a data directory has.
        let base = target.join("base");
        let mut folders = vec![base];
        let mut state = round * 7919 + 1;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("list a folder").flatten() {
                let (path, meta) = (entry.path(), entry.metadata().expect("look at a file"));
                if meta.is_dir() {
                    folders.push(path);
                    continue;
                }
                let pages = meta.len() / PAGE as u64;
                let file = fs::File::options().write(true).open(&path).expect("open a file");
                for _ in 0..pages / 100 {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let page = (state >> 33) % pages;
                    file.write_all_at(&state.to_le_bytes(), page * PAGE as u64 + 4000).expect("change a page");
                }
            }
        }
    }
}

/// A repository with one backup in it, and the configuration that names it.
fn walrecv_backup(server: &Server, temp: &TempDir, name: &str, url: &str, env: &Env) -> String {
    let folder = temp.postgres_dir(&format!("etc-{name}"));
    let config = folder.join("walrecv.toml").display().to_string();
    let dsn = server.conninfo("postgres");
    let slot = format!("bench_{name}");
    let run = |args: &[&str]| Walrecv::new(args).dir(&folder).envs(env.iter().cloned());
    run(&["init", "--config", &config, "--repo", url, "--dsn", &dsn, "--slot", &slot, "--create-slot"])
        .run()
        .expect_code(0);
    let text = fs::read_to_string(&config).expect("read the configuration");
    let state = format!("state_dir = \"{}\"\n", folder.join("state").display());
    let kept: String = text.lines().filter(|l| !l.starts_with("state_dir")).map(|l| format!("{l}\n")).collect();
    fs::write(&config, state + &kept).expect("write the configuration");
    let receiver = run(&["receive", "--config", &config, "--compression", "lz4"]).spawn();
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    server.wait_sql(&active, "t");
    run(&["backup", "--config", &config, "--compression", "lz4"]).run().expect_code(0);
    receiver.terminate();
    wait_for("the slot to be free", || server.try_sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).ok());
    config
}

/// Everything dirty is written out, so that no way pays for what another one left.
fn sync() {
    assert!(Command::new("sync").status().expect("run sync").success());
}

/// Medians, and ratios against the first way.
fn table(ways: &[&str], samples: &[Vec<Sample>]) -> Value {
    let medians: Vec<Sample> = samples.iter().map(|s| median(s)).collect();
    let reference = |name: &str| ways.iter().position(|way| *way == name).map(|at| medians[at].clone());
    let (backrest, copy) = (reference("pgbackrest"), reference("cp"));
    println!("{:<12} {:>8} {:>8} {:>9} {:>14} {:>7}", "way", "wall s", "CPU s", "peak MiB", "of pgbackrest", "of cp");
    let mut rows = Vec::new();
    for ((way, median), samples) in ways.iter().zip(&medians).zip(samples) {
        let against =
            |other: &Option<Sample>| other.as_ref().map_or(f64::NAN, |o| median.wall_seconds / o.wall_seconds);
        let (of_backrest, of_copy) = (against(&backrest), against(&copy));
        println!(
            "{way:<12} {:>8.2} {:>8.2} {:>9.1} {of_backrest:>14.2} {of_copy:>7.2}",
            median.wall_seconds,
            median.cpu_seconds,
            median.peak_memory_kib as f64 / 1024.0
        );
        rows.push(
            json!({ "way": way, "median": median, "of_pgbackrest": of_backrest, "of_cp": of_copy, "samples": samples }),
        );
    }
    json!({ "rows": rows })
}
