//! No process outlives the tests: a watcher ends it even where the tests themselves are killed.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Kills one process when the test program ends for whatever reason, unless this value was dropped before.
pub struct Guard {
    watcher: Child,
    kept: bool,
}

impl Guard {
    /// `pid` must have been started by this test. The watcher reads a pipe whose other end only this process holds.
    pub fn new(pid: u32) -> Guard {
        Guard::with("read _; kill -9 $1", &pid.to_string())
    }

    /// As [`Guard::new`], for a postmaster: it is given time for an immediate stop, which leaves no shared memory behind.
    pub fn of_server(pid: u32) -> Guard {
        Guard::with("read _; kill -QUIT $1 && sleep 2 && kill -9 $1", &pid.to_string())
    }

    /// As [`Guard::of_server`], for whatever server runs on a data directory by then: one that is yet to be started, by another program.
    pub fn of_data(pgdata: &Path) -> Guard {
        // Where the tests end while it is being started, it is there a moment later.
        let script = "read _; for _ in 1 2 3 4 5 6 7 8 9 10; do \
                      pid=$(head -n 1 \"$1/postmaster.pid\") && kill -QUIT $pid && sleep 2 && { kill -9 $pid; exit; }; \
                      sleep 1; done";
        Guard::with(script, pgdata.to_str().expect("a path in UTF-8"))
    }

    /// Whoever is guarded goes on until the test program ends.
    pub fn keep(&mut self) {
        std::mem::forget(self.watcher.stdin.take());
        self.kept = true;
    }

    /// What the end of the test program does.
    pub fn come_to_the_end(&mut self) {
        drop(self.watcher.stdin.take());
        self.watcher.wait().expect("a watcher");
    }

    fn with(script: &str, whom: &str) -> Guard {
        let watcher = Command::new("/bin/sh")
            .args(["-c", script, "guard", whom])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start /bin/sh");
        Guard { watcher, kept: false }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.watcher.kill();
            let _ = self.watcher.wait();
        }
    }
}
