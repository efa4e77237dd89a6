//! Whether a server works in a data directory that is to be overwritten.

use std::path::Path;

use super::server;
use super::start::LockFile;
use crate::disk::ahead;
use crate::error::{Error, Kind, Result};

/// `Kind::Usage` where a process of PostgreSQL is at work in `root`, or `postmaster.pid` stands there. Its number may be anyone's, since it may come from
/// a container or another host, whose processes cannot be seen: so only a person can say that no server runs.
pub fn demand_none(root: &Path) -> Result<()> {
    let Some(place) = ahead::identity(root) else { return Ok(()) };
    let lock = root.join("postmaster.pid");
    let named = LockFile::parse(&std::fs::read_to_string(&lock).unwrap_or_default()).pid;
    let shown = root.display();
    if let Some(pid) = pids()?.find(|pid| works_in(*pid, place, named == Some(*pid))) {
        let message = format!("a server is running on {shown}: process {pid}");
        return Err(Error::new(Kind::Usage, message).hint("stop it first; nothing was changed"));
    }
    if lock.symlink_metadata().is_ok() {
        let message =
            format!("{shown} has a postmaster.pid: a server may be running on it, in a container or on another host");
        return Err(Error::new(Kind::Usage, message)
            .hint("stop it; where none runs, as after a power cut, remove that file; nothing was changed"));
    }
    Ok(())
}

/// Processes of PostgreSQL on this host, those in containers among them.
pub fn servers() -> Result<impl Iterator<Item = u32> + use<>> {
    Ok(pids()?.filter(|pid| is_server(&name_of(*pid))))
}

fn pids() -> Result<impl Iterator<Item = u32> + use<>> {
    let processes = std::fs::read_dir("/proc")
        .map_err(|cause| Error::new(Kind::Failed, "cannot tell whether a server runs: no /proc").caused_by(cause))?;
    Ok(processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()))
}

fn name_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

fn works_in(pid: u32, place: (u64, u64), named: bool) -> bool {
    server::stands_in(pid, place) && (named || is_server(&name_of(pid)))
}

fn is_server(name: &str) -> bool {
    ["postgres", "postmaster", "edb-postgres"].contains(&name.trim())
}

/// A process that looks like a server which works in `root`. The kernel lets whoever starts a program go on before that has its name.
#[cfg(test)]
pub fn stand_in(root: &Path, folder: &Path) -> std::process::Child {
    let program = folder.join("postgres");
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let child = std::process::Command::new(&program).arg("60").current_dir(root).spawn().unwrap();
    let begun = std::time::Instant::now();
    while !is_server(&name_of(child.id())) && begun.elapsed().as_secs() < 60 {
        std::thread::yield_now();
    }
    child
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_at_work_there_is_named_and_a_lock_file_alone_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        demand_none(&root).unwrap();
        std::fs::create_dir(&root).unwrap();
        demand_none(&root).unwrap();
        let refused = || {
            let refused = demand_none(&root).unwrap_err();
            assert_eq!(refused.kind(), Kind::Usage);
            refused.to_string()
        };
        // Of a process that runs, elsewhere, and of one that does not.
        for pid in [std::process::id(), u32::MAX] {
            std::fs::write(root.join("postmaster.pid"), format!("{pid}\n/data\n")).unwrap();
            assert!(refused().contains("has a postmaster.pid"));
        }
        std::fs::remove_file(root.join("postmaster.pid")).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&root).spawn().unwrap();
        let free = demand_none(&root);
        std::fs::write(root.join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let text = refused();
        child.kill().unwrap();
        child.wait().unwrap();
        free.unwrap();
        assert!(text.contains(&format!("process {}", child.id())), "{text}");
        assert!(is_server("postgres\n") && !is_server("bash\n"));
    }

    #[test]
    fn a_server_is_seen_under_another_path() {
        let root = tempfile::tempdir().unwrap();
        let place = ahead::identity(root.path()).unwrap();
        let mut child = stand_in(root.path(), root.path());
        let seen = (works_in(child.id(), place, false), works_in(child.id(), (place.0, place.1 + 1), true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, (true, false));
    }
}
