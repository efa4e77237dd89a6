//! What the live benches share: options, receivers as processes, medians, tables.

// Each bench uses its own part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use walrecv::pg::MajorVersion;

use crate::support::guard::Guard;
use crate::support::{Server, TempDir, wait_for};

/// What every live bench can be told.
pub struct Options {
    pub rounds: usize,
    pub version: MajorVersion,
    /// How long one measurement takes.
    pub seconds: u64,
    pub json: Option<PathBuf>,
    pub only: Vec<String>,
    /// Other builds of walrecv that are measured beside this one.
    pub also: Vec<(String, PathBuf)>,
    pub cells: Vec<String>,
    /// Size of what is measured, where the bench has one to choose.
    pub mib: u64,
    /// Parts of the bench to run; none: all.
    pub parts: Vec<String>,
}

impl Options {
    /// From the command line, with this length of one measurement unless it says otherwise.
    pub fn parse(seconds: u64) -> Options {
        let version = MajorVersion::V18;
        let (only, also, cells, parts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut options = Options { rounds: 7, version, seconds, json: None, only, also, cells, mib: 2048, parts };
        let mut rest = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(name) = rest.next() {
            let mut value = || rest.next().unwrap_or_else(|| panic!("{name} needs a value"));
            match name.as_str() {
                "--rounds" => options.rounds = value().parse().expect("a number of rounds"),
                "--seconds" => options.seconds = value().parse().expect("a number of seconds"),
                "--version" => {
                    options.version = MajorVersion::from_number(value().parse().expect("a version")).expect("13 to 18")
                }
                "--json" => options.json = Some(value().into()),
                "--only" => options.only.push(value()),
                "--cell" => options.cells.push(value()),
                "--mib" => options.mib = value().parse().expect("a number of MiB"),
                "--part" => options.parts.push(value()),
                "--also" => {
                    let value = value();
                    let (name, file) = value.split_once('=').expect("NAME=FILE");
                    options.also.push((name.to_owned(), file.into()));
                }
                other => panic!("unknown option {other}"),
            }
        }
        options
    }

    /// The file of another build of walrecv.
    pub fn build(&self, name: &str) -> Option<&Path> {
        self.also.iter().find(|(also, _)| also == name).map(|(_, file)| file.as_path())
    }

    /// Whether these loads (bytes, clients) are among those to measure.
    pub fn has_cell(&self, (bytes, clients): (u32, u32)) -> bool {
        self.cells.is_empty() || self.cells.contains(&format!("{bytes}x{clients}"))
    }

    pub fn wants_part(&self, name: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| part == name)
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    pub fn write_json(&self, value: &serde_json::Value) {
        if let Some(path) = &self.json {
            std::fs::write(path, format!("{value:#}\n")).expect("write the JSON file");
        }
    }
}

/// A receiver that runs beside the load; asked to stop, and waited for, when dropped.
pub struct Receiver {
    child: Child,
    _guard: Guard,
}

impl Receiver {
    pub fn start(mut command: Command) -> Receiver {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start");
        Receiver { _guard: Guard::new(child.id()), child }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a process id");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.child.wait();
    }
}

/// `walrecv receive` of this build or another into `url` through `slot`, with what `init` makes and nothing else, in this environment.
pub fn walrecv(
    temp: &TempDir,
    build: Option<&Path>,
    url: &str,
    dsn: &str,
    slot: &str,
    env: &[(&'static str, String)],
) -> Command {
    // `init` overwrites nothing: each run has a folder of its own.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let folder = temp.join(format!("run{}", RUNS.fetch_add(1, Ordering::SeqCst)));
    std::fs::create_dir_all(&folder).expect("make a folder");
    let config = folder.join("walrecv.toml").display().to_string();
    let init = ["init", "--config", &config, "--repo", url, "--dsn", dsn, "--slot", slot];
    crate::support::Walrecv::new(init).envs(env.iter().cloned()).run().expect_code(0);
    let mut command = Command::new(build.unwrap_or(crate::support::walrecv::path()));
    command.args(["receive", "--config", &config]).envs(env.iter().cloned());
    command
}

/// A slot that holds WAL from here on; an old one of this name goes as soon as its walsender has noticed that its client has.
pub fn fresh_slot(server: &Server, slot: &str) {
    wait_for("the slot to be free", || {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ";
        server.try_sql(&format!("{drop}'{slot}'")).ok()
    });
    server.sql(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)"));
}

/// The kind of file system of a folder, as `stat -f` names it. Memory is no disk: that is refused.
pub fn file_system(folder: &Path) -> String {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output().expect("run stat");
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(!name.starts_with("tmpfs") && name != "ramfs", "{} is in memory: name a disk", folder.display());
    name
}

/// `values` in order: the one below which this share of them lies.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(&mut values.into_iter().collect::<Vec<f64>>(), 0.5)
}
