//! `restore --start` and a recovery that stands still: it is told, and the server is left as it is.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::user::as_postgres;
use crate::support::{Server, require_servers};

#[test]
fn a_restore_does_not_wait_for_ever_for_a_recovery_that_stands_still() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    site.backup();
    server.sql("create table later as select generate_series(1, 100) as n");
    wait_durable(&server, server.lsn());
    end(receiver);

    let data = site.data("still");
    let args = ["--latest", "--start", "--scratch", "--stall-limit", "3s"];
    let mut running = site.restore(&server, "still", &args).spawn();
    let recovers = |process: &PathBuf| {
        let title = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&title).contains("startup")
            && fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == data)
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    let held: i32 = loop {
        let mut processes = fs::read_dir("/proc").expect("processes").filter_map(|entry| Some(entry.ok()?.path()));
        if let Some(process) = processes.find(recovers) {
            break process.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
        }
        assert!(running.try_wait().is_none() && Instant::now() < deadline, "recovery was not seen");
    };
    kill_process(Pid::from_raw(held).expect("a process"), Signal::STOP).expect("it is held");
    let output = running.wait();
    let lives = data.join("postmaster.pid").exists();
    kill_process(Pid::from_raw(held).expect("a process"), Signal::CONT).expect("it goes on");
    let mut stop = as_postgres(server.bin_dir().join("pg_ctl"));
    stop.arg("-D").arg(&data).args(["-m", "immediate", "stop"]).output().expect("pg_ctl");
    let output = output.expect_code(1);
    assert!(output.stderr.contains("has replayed nothing for"), "{}", output.stderr);
    assert!(lives, "the server was ended");
}
