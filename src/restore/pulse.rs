//! Whether a recovery goes on: seen from outside, since before it is consistent no server answers, and what it logs it says in any language.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(1);
/// Who is at work in a recovery, as the titles of processes say (`MyBackendType`, `utils/init/miscinit.c`).
const WORKERS: [&[u8]; 2] = [b"startup", b"checkpointer"];

/// What was seen last, and since when nothing else was.
pub struct Pulse {
    signs: Vec<u8>,
    moved: Instant,
    looked: Option<Instant>,
}

impl Pulse {
    pub fn begin() -> Pulse {
        Pulse { signs: Vec::new(), moved: Instant::now(), looked: None }
    }

    /// For how long the recovery of this postmaster has not gone on.
    pub fn resting(&mut self, pgdata: &Path, postmaster: Option<u32>) -> Duration {
        if self.looked.is_none_or(|looked| looked.elapsed() >= EVERY) {
            let signs = signs(pgdata, postmaster);
            self.looked = Some(Instant::now());
            if signs != self.signs {
                (self.signs, self.moved) = (signs, Instant::now());
            }
        }
        self.moved.elapsed()
    }
}

/// What changes while WAL is replayed: pg_control, and what the processes at work are called (the segment that they are at) and have read and written.
/// Whoever waits for a segment, or for nothing, reads and writes nothing.
fn signs(pgdata: &Path, postmaster: Option<u32>) -> Vec<u8> {
    let mut signs = std::fs::read(pgdata.join("global/pg_control")).unwrap_or_default();
    let Some(postmaster) = postmaster else { return signs };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    for process in processes.filter(|process| parent(process) == Some(postmaster)) {
        let title = std::fs::read(process.join("cmdline")).unwrap_or_default();
        if WORKERS.iter().any(|worker| title.windows(worker.len()).any(|part| part == *worker)) {
            signs.extend_from_slice(&title);
            signs.extend(std::fs::read(process.join("io")).unwrap_or_default());
        }
    }
    signs
}

/// From `/proc/<pid>/stat`: the name of the program, which may hold anything, stands in brackets.
fn parent(process: &Path) -> Option<u32> {
    let stat = std::fs::read(PathBuf::from(process).join("stat")).ok()?;
    let end = stat.iter().rposition(|b| *b == b')')?;
    let rest = String::from_utf8_lossy(stat.get(end + 1..)?).into_owned();
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_told_from_work() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("global")).unwrap();
        let mut pulse = Pulse::begin();
        let look = |pulse: &mut Pulse| {
            pulse.looked = None;
            pulse.resting(dir.path(), None)
        };
        look(&mut pulse);
        std::thread::sleep(Duration::from_millis(300));
        let rested = look(&mut pulse);
        assert!(rested >= Duration::from_millis(300));
        std::fs::write(dir.path().join("global/pg_control"), "moved").unwrap();
        assert!(look(&mut pulse) < rested);
    }

    #[test]
    fn a_child_knows_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = parent(&PathBuf::from(format!("/proc/{}", child.id())));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(std::process::id()));
    }
}
