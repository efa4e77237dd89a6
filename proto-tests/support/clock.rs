//! A clock that a test sets, for servers: it stands still until it is set again, forwards or back. What PostgreSQL writes as a time (commits, restore points,
//! checkpoints) comes from it; timeouts go by other clocks.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::temp::TempDir;

/// Loaded before the C library: the calls by which PostgreSQL asks for the time of day (`GetCurrentTimestamp`, `time`).
const SOURCE: &str = r#"
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *micros;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("WALRECV_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *shared = mmap(NULL, sizeof *micros, PROT_READ, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED) abort();
    micros = shared;
    close(file);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int64_t at = *micros;
    (void)zone;
    now->tv_sec = at / 1000000;
    now->tv_usec = at % 1000000;
    return 0;
}

time_t time(time_t *to) {
    time_t at = *micros / 1000000;
    if (to) *to = at;
    return at;
}
"#;

pub struct Clock {
    file: File,
    places: TempDir,
}

impl Clock {
    /// Needs a C compiler, as linking Rust does. Shows `micros` since 1970.
    pub fn new(micros: i64) -> Clock {
        let places = TempDir::for_postgres("clock");
        let path = places.join("clock");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("make a clock");
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).expect("let others read the clock");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-shared", "-fPIC", "-x", "c", "-", "-o"]).arg(places.join("clock.so")).stdin(Stdio::piped());
        let mut compiler = cc.spawn().expect("run cc");
        compiler.stdin.take().expect("a pipe").write_all(SOURCE.as_bytes()).expect("write to cc");
        assert!(compiler.wait().expect("wait for cc").success(), "cc failed");
        let clock = Clock { file, places };
        clock.set(micros);
        clock
    }

    pub fn set(&self, micros: i64) {
        self.file.write_all_at(&micros.to_ne_bytes(), 0).expect("set the clock");
    }

    /// What a process needs in its environment to go by this clock.
    pub fn env(&self) -> Vec<(String, PathBuf)> {
        let of = |name: &str, file: &str| (name.to_owned(), self.places.join(file));
        vec![of("LD_PRELOAD", "clock.so"), of("WALRECV_TEST_CLOCK", "clock")]
    }
}
