//! System calls of a process made to fail, or to take long, by `strace` (`-e inject`).

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::install::{forbidden, skipped};
use super::wait_for;

/// Lets the process go with this value.
pub struct Strace {
    child: Child,
}

/// Whether calls can be interfered with here; if not, the test is reported as skipped.
pub fn possible() -> bool {
    if !Path::new("/usr/bin/strace").exists() {
        return skipped("strace is not installed");
    }
    let tried = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    let works = tried.is_ok_and(|status| status.success());
    if !works {
        forbidden("this machine does not let a process be traced");
    }
    works
}

impl Strace {
    /// Interferes with all threads of the process from now on. `inject` is such as `fdatasync:error=EIO:when=3`; counts are for each thread. With `path`
    /// only calls on this file or directory are meant.
    pub fn attach(pid: u32, inject: &str, path: Option<&Path>) -> Strace {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string(), "-e", &format!("inject={inject}")]);
        if let Some(path) = path {
            command.arg("-P").arg(path);
        } else {
            command.args(["-e", &format!("trace={}", inject.split(':').next().unwrap_or_default())]);
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("start strace");
        wait_for(&format!("strace to attach to {pid}"), || all_traced(pid).then_some(()));
        Strace { child }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Asked to end, it lets go of what it traces.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn all_traced(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    })
}
