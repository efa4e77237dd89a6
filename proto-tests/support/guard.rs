//! No process outlives the tests: a watcher ends it even where the tests themselves are killed.

use std::process::{Child, Command, Stdio};

/// Kills one process when the test program ends for whatever reason, unless this value was dropped before.
pub struct Guard {
    watcher: Child,
}

impl Guard {
    /// `pid` must have been started by this test. The watcher reads a pipe whose other end only this process holds.
    pub fn new(pid: u32) -> Guard {
        Guard::with("read _; kill -9 $1", pid)
    }

    /// As [`Guard::new`], for a postmaster: it is given time for an immediate stop, which leaves no shared memory behind.
    pub fn of_server(pid: u32) -> Guard {
        Guard::with("read _; kill -QUIT $1 && sleep 2 && kill -9 $1", pid)
    }

    fn with(script: &str, pid: u32) -> Guard {
        let watcher = Command::new("/bin/sh")
            .args(["-c", script, "guard", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start /bin/sh");
        Guard { watcher }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}
