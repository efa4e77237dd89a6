//! Memory stays bounded whatever the backlog, with segments of 16 MiB that hardly compress.

use walrecv::pg::MajorVersion;

use super::harness::{self, Vault};
use super::kill::Process;
use crate::support::{Server, require_servers};

/// The bound for a receiver with segments of 16 MiB.
// The bound of 64 MiB is for the optimised build, which the drain bench measures; this one has been seen at 71.
const LIMIT_KIB: u64 = 96 * 1024;

fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status of the receiver");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// User and system time so far, in hundredths of a second.
fn cpu_ticks(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat of the receiver");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    let mut fields = rest.split(' ').skip(11).map(|f| f.parse().expect("ticks"));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

#[test]
fn a_large_backlog_needs_bounded_memory() {
    require_servers!(MajorVersion::V18);
    let server = Server::builder(MajorVersion::V18).segment_size_mb(16).setting("max_wal_size", "2GB").start();
    harness::create_slot(&server);
    let text = "(select string_agg(md5(random()::text), '') from generate_series(1, 40) where i > 0)";
    for table in ["a", "b"] {
        server.sql(&format!("create table {table} as select i, {text} as filler from generate_series(1, 80000) i"));
    }
    let vault = Vault::new();
    let process = Process::start(&vault, &server, 1000);
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("status");
    println!(
        "{}",
        status.lines().filter(|l| l.starts_with("Rss") || l.starts_with("Vm")).collect::<Vec<_>>().join("; ")
    );
    let peak = peak_kib(process.pid());
    let (user, system) = cpu_ticks(process.pid());
    println!("{} MiB of WAL: peak {peak} KiB, {user} + {system} ticks of processor time", end.0 >> 20);
    process.kill();
    assert!(peak < LIMIT_KIB, "{peak} KiB");
}
