//! Whether a server works in a data directory that is to be overwritten.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// `Kind::Usage` where a process of PostgreSQL is at work in `root`: the one that `postmaster.pid` names, or any other, such as one that its postmaster left behind.
/// The file alone says little: after a power cut it stands there, and its number may be anyone's.
pub fn demand_none(root: &Path) -> Result<()> {
    let Ok(root) = std::fs::canonicalize(root) else { return Ok(()) };
    let named = std::fs::read_to_string(root.join("postmaster.pid")).unwrap_or_default();
    let named: Option<u32> = named.lines().next().and_then(|line| line.trim().parse().ok());
    let processes = std::fs::read_dir("/proc")
        .map_err(|cause| Error::new(Kind::Failed, "cannot tell whether a server runs: no /proc").caused_by(cause))?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    match pids.into_iter().find(|pid| works_in(*pid, &root, named == Some(*pid))) {
        None => Ok(()),
        Some(pid) => {
            let message = format!("a server is running on {}: process {pid}", root.display());
            Err(Error::new(Kind::Usage, message).hint("stop it first; nothing was changed"))
        }
    }
}

/// Every process of a server stays in its data directory (`ChangeToDataDir`). One that `postmaster.pid` names and that hides where it works is taken for the server.
fn works_in(pid: u32, root: &Path, named: bool) -> bool {
    let proc = Path::new("/proc").join(pid.to_string());
    match std::fs::read_link(proc.join("cwd")) {
        Ok(directory) if directory != root => false,
        Ok(_) => named || is_server(&std::fs::read_to_string(proc.join("comm")).unwrap_or_default()),
        Err(e) => named && e.kind() == ErrorKind::PermissionDenied,
    }
}

fn is_server(name: &str) -> bool {
    ["postgres", "postmaster", "edb-postgres"].contains(&name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_lock_file_is_no_server_and_a_process_at_work_there_is_one() {
        let root = tempfile::tempdir().unwrap();
        demand_none(root.path()).unwrap();
        // Of a process that runs, elsewhere.
        std::fs::write(root.path().join("postmaster.pid"), format!("{}\n/data\n", std::process::id())).unwrap();
        demand_none(root.path()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(root.path()).spawn().unwrap();
        demand_none(root.path()).unwrap();
        std::fs::write(root.path().join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let refused = demand_none(root.path()).map_err(|e| (e.kind(), e.to_string()));
        child.kill().unwrap();
        child.wait().unwrap();
        let (kind, text) = refused.unwrap_err();
        assert!(kind == Kind::Usage && text.contains(&format!("process {}", child.id())), "{text}");
        assert!(is_server("postgres\n") && !is_server("bash\n"));
    }
}
