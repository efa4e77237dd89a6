//! Base backups, side by side: a full backup of the same server by walrecv and by what a user would otherwise take, then a second one after a hundredth of the
//! pages has changed.
//!
//! `cargo bench --bench backup` (as root, servers installed by `pg-test-env/install`; pgBackRest and Barman are measured where they are found). Every round
//! runs each tool once, in turn. Full backups go into a new, empty repository each time. Options after `--`: `--mib N` size of the database (2048),
//! `--rounds N`, `--version N` (15: the last that Debian's pgBackRest knows), `--json FILE`, `--only NAME` (several times), `--also NAME=FILE` (another build of
//! `walrecv`), `--part full|second`.

mod common;
mod database;
mod peers;
mod process;
#[path = "../proto-tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Options;
use database::{PAGE, ROWS_ON_A_PAGE, database};
use process::{Sample, measure, median, size_of};
use serde_json::{Value, json};
use support::walrecv::Running;
use support::{Server, TempDir, Walrecv, wait_for};
use walrecv::pg::MajorVersion;

/// What the ratios are against.
const REFERENCE: &str = "pg_basebackup-lz4";
/// What the changed pages are compressed in, for the comparison.
const BLOCK: usize = 256 << 10;

fn main() {
    let options = Options::parse(0);
    let server = database(&options);
    let total = size_of(&server.data_dir().join("base"));
    eprintln!("PostgreSQL {}, {} MiB in base, {} rounds", options.version, total >> 20, options.rounds);
    let mut value = json!({ "bench": "backup", "postgresql": options.version.number(), "base_bytes": total, "rounds": options.rounds });
    if options.wants_part("full") {
        value["full"] = full(&options, &server);
    }
    if options.wants_part("second") {
        value["second"] = second(&options, &server);
    }
    options.write_json(&value);
}

/// The options of this run that name what to measure.
fn chosen<'a>(options: &'a Options, all: &[&'a str]) -> Vec<&'a str> {
    let found = |name: &&str| match *name {
        "pgbackrest" => peers::has_pgbackrest(options.version),
        "barman" => peers::barman().is_some(),
        "pg_basebackup-lz4" => options.version >= MajorVersion::V15,
        _ => true,
    };
    let mut chosen: Vec<&str> = all.iter().copied().filter(|name| options.wants(name)).collect();
    for missing in chosen.iter().filter(|name| !found(name)) {
        eprintln!("{missing} is not here, or does not know PostgreSQL {}: not measured", options.version);
    }
    chosen.retain(found);
    chosen.extend(options.also.iter().map(|(name, _)| name.as_str()));
    chosen
}

fn full(options: &Options, server: &Server) -> Value {
    let tools = ["pg_basebackup", "pg_basebackup-lz4", "walrecv-lz4", "walrecv-zstd", "pgbackrest", "barman"];
    let tools = chosen(options, &tools);
    let mut samples = vec![Vec::new(); tools.len()];
    for round in 0..options.rounds {
        for (index, tool) in tools.iter().enumerate() {
            let sample = full_once(options, server, tool);
            eprintln!("round {round} {tool:<18} {:.2} s", sample.wall_seconds);
            samples[index].push(sample);
        }
    }
    println!("a full backup of {} MiB", size_of(&server.data_dir().join("base")) >> 20);
    table(&tools, &samples)
}

fn full_once(options: &Options, server: &Server, tool: &str) -> Sample {
    let temp = TempDir::for_postgres("bench");
    let out = temp.postgres_dir("out");
    let build = options.build(tool);
    let mut sample = match tool {
        "pg_basebackup" => measure(pg_basebackup(server, &out, &[])),
        "pg_basebackup-lz4" => measure(pg_basebackup(server, &out, &["--compress=client-lz4"])),
        "pgbackrest" => peers::pgbackrest(server, &temp, &out),
        "barman" => peers::barman_backup(server, &temp, &out),
        _ => {
            let compression = if tool == "walrecv-zstd" { "zstd:1" } else { "lz4" };
            let site = Site::new(server, &temp, compression, build);
            let sample = measure(site.backup());
            return Sample { stored_bytes: site.stored(), ..sample };
        }
    };
    sample.stored_bytes = size_of(&out);
    sample
}

fn pg_basebackup(server: &Server, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(server.bin_dir().join("pg_basebackup"));
    command.args(["-d", &server.conninfo("postgres"), "-Ft", "--checkpoint=fast", "-D"]).arg(out).args(more);
    command
}

/// A repository, a configuration and a receiver that runs.
struct Site {
    config: String,
    repository: PathBuf,
    compression: &'static str,
    build: PathBuf,
    slot: String,
    receiver: Option<Running>,
    conninfo: String,
    bin: PathBuf,
}

impl Site {
    fn new(server: &Server, temp: &TempDir, compression: &'static str, build: Option<&Path>) -> Site {
        let config = temp.join("walrecv.toml").display().to_string();
        let repository = temp.join("repository");
        let url = format!("file://{}", repository.display());
        let slot = "bench".to_owned();
        let dsn = server.conninfo("postgres");
        let init = ["init", "--config", &config, "--repo", &url, "--dsn", &dsn, "--slot", &slot, "--create-slot"];
        Walrecv::new(init).run().expect_code(0);
        // The state stands in the temporary folder too, so that nothing is known of an earlier round.
        let text = fs::read_to_string(&config).expect("read the configuration");
        let state = format!("state_dir = \"{}\"\n", temp.join("state").display());
        let kept: String = text.lines().filter(|l| !l.starts_with("state_dir")).map(|l| format!("{l}\n")).collect();
        fs::write(&config, state + &kept).expect("write the configuration");
        let receiver = Some(Walrecv::new(["receive", "--config", &config, "--compression", "lz4"]).spawn());
        let build = build.unwrap_or(support::walrecv::path()).to_path_buf();
        let (conninfo, bin) = (dsn, server.bin_dir());
        let site = Site { config, repository, compression, build, slot, receiver, conninfo, bin };
        server.wait_sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'bench'", "t");
        site
    }

    fn backup(&self) -> Command {
        let mut command = Command::new(&self.build);
        command.args(["backup", "--config", &self.config, "--compression", self.compression, "--output", "json"]);
        command
    }

    /// Bytes of everything that backups have stored: packs, maps, manifests, intents.
    fn stored(&self) -> u64 {
        let root = self.repository.join("clusters/main");
        let system = fs::read_dir(&root).expect("list the cluster").flatten().next().expect("a cluster").path();
        ["packs", "maps", "manifests", "backups", "intents"].iter().map(|f| size_of(&system.join(f))).sum()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.terminate();
        }
        let drop = format!("SELECT pg_drop_replication_slot('{}')", self.slot);
        wait_for("the slot to be free", || {
            let mut psql = Command::new(self.bin.join("psql"));
            psql.args([&self.conninfo, "-c", &drop]).stdout(Stdio::null()).stderr(Stdio::null());
            psql.status().is_ok_and(|s| s.success()).then_some(())
        });
    }
}

/// Medians, and ratios against the reference.
fn table(tools: &[&str], samples: &[Vec<Sample>]) -> Value {
    let medians: Vec<Sample> = samples.iter().map(|s| median(s)).collect();
    let reference = tools.iter().position(|t| *t == REFERENCE).map(|i| medians[i].clone());
    println!(
        "{:<20} {:>8} {:>8} {:>9} {:>11} {:>7} {:>7}",
        "tool", "wall s", "CPU s", "peak MiB", "stored MiB", "ratio", "of CPU"
    );
    let mut rows = Vec::new();
    for ((tool, median), samples) in tools.iter().zip(&medians).zip(samples) {
        let against = |value: fn(&Sample) -> f64| reference.as_ref().map_or(f64::NAN, |r| value(median) / value(r));
        let (wall, cpu) = (against(|s| s.wall_seconds), against(|s| s.cpu_seconds));
        println!(
            "{tool:<20} {:>8.2} {:>8.2} {:>9.1} {:>11.1} {wall:>7.2} {cpu:>7.2}",
            median.wall_seconds,
            median.cpu_seconds,
            median.peak_memory_kib as f64 / 1024.0,
            median.stored_bytes as f64 / (1 << 20) as f64,
        );
        rows.push(json!({ "tool": tool, "median": median, "wall_ratio": wall, "cpu_ratio": cpu, "samples": samples }));
    }
    json!({ "reference": REFERENCE, "rows": rows })
}

/// What one more backup took after a hundredth of the pages had changed.
struct Round {
    /// Pages whose bytes differ from those at the backup before.
    changed: u64,
    /// The same, compressed.
    compressed: u64,
    ours: Sample,
    /// Bytes that the server sent.
    read: u64,
    theirs: Option<Sample>,
}

fn second(options: &Options, server: &Server) -> Value {
    let temp = TempDir::for_postgres("bench");
    let build = options.also.first().map(|(_, file)| file.as_path());
    let site = Site::new(server, &temp, "lz4", build);
    measure(site.backup());
    let incremental = options.version >= MajorVersion::V17;
    let mut manifest = incremental.then(|| {
        measure(pg_basebackup(server, &temp.postgres_dir("first"), &["--compress=client-lz4"]));
        temp.join("first/backup_manifest")
    });
    let mut rounds = Vec::new();
    let mut pages = hashes(server);
    for round in 0..options.rounds {
        change(server, options.mib, round as u64);
        let (changed, compressed) = changed_pages(server, &mut pages);
        let ours = || {
            let before = site.stored();
            let (sample, said) = measured_json(site.backup());
            let read = said["read_bytes"].as_u64().expect("bytes read");
            (Sample { stored_bytes: site.stored() - before, ..sample }, read)
        };
        let mut theirs = || {
            let out = temp.postgres_dir(&format!("round{round}"));
            let from = format!("--incremental={}", manifest.as_ref()?.display());
            let mut sample = measure(pg_basebackup(server, &out, &["--compress=client-lz4", &from]));
            sample.stored_bytes = size_of(&out);
            manifest = Some(out.join("backup_manifest"));
            Some(sample)
        };
        // Who comes first finds the pages that were read for the comparison: each in turn.
        let ((ours, read), theirs) = if round % 2 == 0 {
            let ours = ours();
            (ours, theirs())
        } else {
            let theirs = theirs();
            (ours(), theirs)
        };
        eprintln!(
            "round {round}: {changed} pages, {:.1} MiB compressed; stored {:.1} MiB in {:.2} s, read {:.1} MiB",
            mib(compressed),
            mib(ours.stored_bytes),
            ours.wall_seconds,
            mib(read)
        );
        rounds.push(Round { changed, compressed, ours, read, theirs });
    }
    report_second(&rounds)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn report_second(rounds: &[Round]) -> Value {
    let middle = |value: &dyn Fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let stored = middle(&|r| r.ours.stored_bytes as f64 / r.compressed as f64);
    let read = middle(&|r| r.read as f64 / (r.changed * PAGE as u64) as f64);
    let wall = middle(&|r| r.ours.wall_seconds);
    let theirs = rounds.iter().all(|r| r.theirs.is_some());
    let of_theirs = |r: &Round| r.theirs.as_ref().map_or(f64::NAN, |s| r.ours.wall_seconds / s.wall_seconds);
    println!("a second backup, a hundredth of the pages changed: {:.0} pages", middle(&|r| r.changed as f64));
    println!("stored against the changed pages compressed   {stored:>6.2}   (goal 1.15)");
    println!("read against the changed pages                {read:>6.2}");
    println!("wall {wall:.2} s, peak {:.1} MiB", middle(&|r| r.ours.peak_memory_kib as f64 / 1024.0));
    if theirs {
        println!("wall against pg_basebackup --incremental      {:>6.2}   (goal 1.2)", middle(&of_theirs));
        let size =
            |r: &Round| r.theirs.as_ref().map_or(f64::NAN, |s| r.ours.stored_bytes as f64 / s.stored_bytes as f64);
        println!("stored against pg_basebackup --incremental    {:>6.2}", middle(&size));
    }
    let samples: Vec<Value> = rounds
        .iter()
        .map(|r| {
            json!({ "changed_pages": r.changed, "compressed_bytes": r.compressed, "ours": r.ours, "read_bytes": r.read,
                "incremental": r.theirs })
        })
        .collect();
    json!({ "stored_ratio": stored, "read_ratio": read, "wall_seconds": wall, "rounds": samples })
}

/// Runs a command that prints JSON.
fn measured_json(mut command: Command) -> (Sample, Value) {
    let temp = TempDir::new("bench-json");
    let path = temp.join("out");
    // `measure` throws the output away: a shell keeps it.
    let words: Vec<String> = command.get_args().map(|a| format!("'{}'", a.to_string_lossy())).collect();
    let line = format!("exec '{}' {} > '{}'", command.get_program().to_string_lossy(), words.join(" "), path.display());
    command = Command::new("sh");
    command.args(["-c", &line]);
    let sample = measure(command);
    let text = fs::read_to_string(&path).expect("read what was printed");
    let last = text.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
    (sample, last.or_else(|| serde_json::from_str(&text).ok()).unwrap_or_else(|| panic!("no JSON: {text}")))
}

/// Updates one row on a hundredth of the pages of both tables, uniformly chosen; the row stays on its page.
fn change(server: &Server, mib: u64, round: u64) {
    let pages = (mib << 20) / 2 / PAGE as u64;
    for table in ["noise", "orders"] {
        server.sql(&format!(
            "SELECT setseed(0.{round}1); UPDATE {table} SET n = n + 1 WHERE id IN \
             (SELECT (random() * ({pages} - 1))::int * {ROWS_ON_A_PAGE} + 1 FROM generate_series(1, {pages} / 100))"
        ));
    }
    server.sql("CHECKPOINT");
}

/// Every file of pages, with a hash of each of them.
fn hashes(server: &Server) -> HashMap<PathBuf, Vec<[u8; 16]>> {
    let mut all = HashMap::new();
    each_page(server, &mut |file, _, page| all.entry(file.to_owned()).or_insert_with(Vec::new).push(hash(page)));
    all
}

fn hash(page: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(page).as_bytes()[..16]);
    short
}

/// How many pages differ from what was noted, and how small they are together; notes what they are now.
fn changed_pages(server: &Server, noted: &mut HashMap<PathBuf, Vec<[u8; 16]>>) -> (u64, u64) {
    let (mut changed, mut compressed, mut block) = (0, 0, Vec::new());
    each_page(server, &mut |file, number, page| {
        let pages = noted.entry(file.to_owned()).or_default();
        let now = hash(page);
        if pages.get(number) == Some(&now) {
            return;
        }
        pages.resize(pages.len().max(number + 1), [0; 16]);
        pages[number] = now;
        changed += 1;
        block.extend_from_slice(page);
        if block.len() == BLOCK {
            compressed += lz4_flex::block::compress(&block).len() as u64;
            block.clear();
        }
    });
    (changed, compressed + lz4_flex::block::compress(&block).len() as u64)
}

/// Calls back for every page of every relation that is not all zero.
fn each_page(server: &Server, seen: &mut dyn FnMut(&Path, usize, &[u8])) {
    let mut folders = vec![server.data_dir().join("base"), server.data_dir().join("global")];
    let mut bytes = vec![0; BLOCK];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("list a folder").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("look at a file"));
            if meta.is_dir() {
                folders.push(path);
                continue;
            }
            let numbered =
                path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()));
            if !numbered || meta.len() % PAGE as u64 != 0 {
                continue;
            }
            let file = fs::File::open(&path).expect("open a file");
            for at in (0..meta.len()).step_by(BLOCK) {
                let len = (meta.len() - at).min(BLOCK as u64) as usize;
                file.read_exact_at(&mut bytes[..len], at).expect("read a file");
                for (index, page) in bytes[..len].chunks(PAGE).enumerate() {
                    seen(&path, at as usize / PAGE + index, page);
                }
            }
        }
    }
}
