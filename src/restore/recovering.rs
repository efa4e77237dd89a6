//! Whether a server recovers in a data directory, and how: what a prefetcher lives by.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};

use super::plan_file::PlanFile;
use crate::disk::ahead;

/// Where WAL that is fetched ahead stands, below the data directory, for a standby.
const AHEAD: &str = "pg_wal/walrecv/ahead";

/// A recovery that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Which file the plan is; `None` in standby mode, which follows none.
    pub plan: Option<(u64, u64)>,
    postmaster: u32,
}

impl Recovery {
    /// The recovery that a running server does in `pgdata`: by a plan, or as a standby. Without either nobody can say what will be asked for next.
    ///
    /// A server that is the first process of a container gets none: it would take the end of a process that is not its own for a crash of one that is.
    pub fn of(pgdata: &Path) -> Option<Recovery> {
        let there = |name: &str| pgdata.join(name).exists();
        let plan = match (there("standby.signal"), there("recovery.signal")) {
            (true, _) => None,
            (false, true) => Some(ahead::identity(&PlanFile::place(pgdata))?),
            (false, false) => return None,
        };
        let lock = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
        let postmaster = lock.lines().next()?.trim().parse().ok()?;
        (postmaster > 1 && lives(postmaster)).then_some(Recovery { plan, postmaster })
    }

    /// Whether it still goes on: the same server, by the same plan.
    pub fn goes_on(&self, pgdata: &Path) -> bool {
        Recovery::of(pgdata).as_ref() == Some(self)
    }
}

/// A process that may not be asked is there.
fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)))
}

/// The folder of one data directory and, where one binds, of one plan: what is fetched by a plan is never taken for another's, even if its prefetcher outlives
/// the directory that it was started in.
pub fn folder(pgdata: &Path, plan: Option<u32>) -> PathBuf {
    match plan {
        Some(mark) => pgdata.join(format!("{AHEAD}-{mark:08x}")),
        None => pgdata.join(AHEAD),
    }
}

/// The folders that are there: of a standby, and of any plan.
pub fn folders(pgdata: &Path) -> Vec<PathBuf> {
    let standby = pgdata.join(AHEAD);
    let Some((above, own)) = standby.parent().zip(standby.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let names = ahead::names(above).unwrap_or_default();
    names.iter().filter(|name| name.starts_with(own)).map(|name| above.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_ends_with_its_signal_its_plan_and_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let write = |name: &str, text: &str| std::fs::write(data.join(name), text).unwrap();
        let remove = |name: &str| std::fs::remove_file(data.join(name)).unwrap();
        std::fs::create_dir_all(data.join("pg_wal/walrecv")).unwrap();
        let own = format!("{}\n/data\n", std::process::id());
        write("postmaster.pid", &own);
        assert_eq!(Recovery::of(data), None, "no recovery");
        write("recovery.signal", "");
        assert_eq!(Recovery::of(data), None, "no plan");
        write("pg_wal/walrecv/plan.json", "{}");
        let planned = Recovery::of(data).expect("a recovery");
        assert!(planned.plan.is_some() && planned.goes_on(data));

        for other in ["", "1\n", "0\n", "-5\n", "999999999\n", "4194303999\n"] {
            write("postmaster.pid", other);
            assert!(!planned.goes_on(data), "{other:?}");
        }
        remove("postmaster.pid");
        assert!(!planned.goes_on(data));
        write("postmaster.pid", &own);
        assert!(planned.goes_on(data));

        std::fs::write(data.join("new"), "{}").unwrap();
        std::fs::rename(data.join("new"), data.join("pg_wal/walrecv/plan.json")).unwrap();
        assert!(!planned.goes_on(data), "another plan");
        let planned = Recovery::of(data).expect("a recovery");
        write("standby.signal", "");
        assert!(!planned.goes_on(data));
        let standby = Recovery::of(data).expect("a standby");
        assert_eq!(standby.plan, None);
        remove("recovery.signal");
        assert!(standby.goes_on(data));
        remove("standby.signal");
        assert!(!standby.goes_on(data), "promoted");
    }
}
