//! The user that servers run as: PostgreSQL refuses root.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Numeric user and group of `postgres`; none where the tests do not run as root (then servers run as whoever runs the
/// tests).
fn postgres() -> Option<(u32, u32)> {
    static POSTGRES: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *POSTGRES.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let users = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let line =
            users.lines().find(|l| l.starts_with("postgres:")).expect("a user postgres: run pg-test-env/install");
        let mut fields = line.split(':').skip(2).map(|f| f.parse().expect("a numeric id in /etc/passwd"));
        Some((fields.next().expect("user id"), fields.next().expect("group id")))
    })
}

/// A command that runs as `postgres` (directly, so its process id is the program's own).
pub fn as_postgres(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    become_postgres(&mut command);
    command
}

/// Makes `command` run as `postgres`, in a folder that this user can read.
pub fn become_postgres(command: &mut Command) {
    command.current_dir("/");
    if let Some((uid, gid)) = postgres() {
        command.uid(uid).gid(gid).env("HOME", "/var/lib/postgresql").env("USER", "postgres").env("LOGNAME", "postgres");
    }
}

/// Gives `path` (not what is below it) to `postgres`.
pub fn give_to_postgres(path: &Path) {
    if let Some((uid, gid)) = postgres() {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// As [`give_to_postgres`], and everything below.
pub fn give_all_to_postgres(path: &Path) {
    give_to_postgres(path);
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).expect("list a folder") {
            give_all_to_postgres(&entry.expect("read a folder entry").path());
        }
    }
}
