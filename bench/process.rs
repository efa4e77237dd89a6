//! What a command costs: wall time, CPU seconds, peak memory.

// Each bench uses its own part of this.
#![allow(dead_code)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

/// One run of one command.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    pub wall_seconds: f64,
    /// Its own, and those of the processes that it started and waited for.
    pub cpu_seconds: f64,
    /// Its own.
    pub peak_memory_kib: u64,
    pub stored_bytes: u64,
}

/// Runs a command to its end; CPU time and peak memory come from `/proc`, the former after it ended and before it is reaped.
pub fn measure(mut command: Command) -> Sample {
    let begin = Instant::now();
    let what = format!("{command:?}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start");
    let mut stderr = child.stderr.take().expect("a pipe");
    // Read all the time: a full pipe would hold the command up.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let mut peak = 0;
    let (wall, cpu) = loop {
        peak = peak.max(peak_memory_kib(&proc));
        let stat = fs::read_to_string(proc.join("stat")).expect("read the state of the process");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        if fields[0] == "Z" {
            let ticks: u64 = (11..15).map(|i| fields[i].parse::<u64>().expect("ticks")).sum();
            break (begin.elapsed().as_secs_f64(), ticks as f64 / 100.0);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let success = child.wait().unwrap_or_else(|e| panic!("{what}: {e}")).success();
    let text = reader.join().expect("the reader of a pipe");
    assert!(success, "{what} failed:\n{text}");
    Sample { wall_seconds: wall, cpu_seconds: cpu, peak_memory_kib: peak, stored_bytes: 0 }
}

fn peak_memory_kib(proc: &Path) -> u64 {
    let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// Bytes of all files below a folder.
pub fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).map(|e| e.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries
        .iter()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Each figure's own median.
pub fn median(samples: &[Sample]) -> Sample {
    let middle = |value: &dyn Fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        wall_seconds: middle(&|s| s.wall_seconds),
        cpu_seconds: middle(&|s| s.cpu_seconds),
        peak_memory_kib: middle(&|s| s.peak_memory_kib as f64) as u64,
        stored_bytes: middle(&|s| s.stored_bytes as f64) as u64,
    }
}
