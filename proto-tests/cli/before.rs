//! What would fail after hours of copying is refused before anything is laid: too little room, a program or a key that the server's user cannot get to, a
//! port that is taken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use walrecv::pg::MajorVersion;

use crate::site::Site;
use crate::support::walrecv::path;
use crate::support::{Server, TempDir, install, require_servers};

/// In memory, as long as this value lives.
struct Small(PathBuf);

impl Small {
    /// `None`, and reported as skipped, where nothing may be mounted.
    fn mount(place: PathBuf) -> Option<Small> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m,mode=700", "walrecv-test"]).arg(&place);
        let output = mount.output().expect("run mount");
        if !output.status.success() {
            install::forbidden(&format!("this machine does not let root mount: {output:?}"));
            return None;
        }
        let given = Command::new("chown").arg("postgres").arg(&place).status().expect("run chown");
        assert!(given.success());
        Some(Small(place))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Root restores for `postgres`.
fn by_root(program: &Path, config: &Path, data: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(program);
    command.arg("restore").arg("--config").arg(config).arg("--pgdata").arg(data).args(args);
    let Output { status, stderr, .. } = command.output().expect("run walrecv");
    (status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn what_would_fail_after_hours_is_refused_before_anything_is_laid() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    server.sql(&format!("alter system set port = {}", server.port()));
    site.backup();

    let refused = site.restore(&server, "port", &["--latest", "--start"]).run().expect_code(2).stderr;
    assert!(refused.contains(&format!("port {}", server.port())) && refused.contains("--scratch"), "{refused}");
    assert!(!site.data("port").exists());

    let small = site.places.postgres_dir("small");
    if let Some(small) = Small::mount(small) {
        let refused = site.restore(&server, "small", &["--latest"]).run().expect_code(1).stderr;
        assert!(refused.contains("are to be laid there"), "{refused}");
        assert_eq!(fs::read_dir(&small.0).expect("a folder").count(), 0);
    }
    rights(&site);
}

fn rights(site: &Site) {
    let hidden = TempDir::new("root");
    fs::set_permissions(hidden.path(), fs::Permissions::from_mode(0o700)).expect("a mode");
    let (program, copy) = (path(), hidden.path().join("walrecv"));
    // By another process: what this one had open for writing could not be run while any child of its other tests still has it.
    let copied = Command::new("cp").arg("-r").args([program, &site.etc(), hidden.path()]).status().expect("run cp");
    assert!(copied.success());
    let (config, unreadable) = (site.config(), hidden.path().join("etc/walrecv.toml"));
    let left = || {
        let names = fs::read_dir(site.places.path()).expect("a folder").flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with("walrecv-")).count()
    };
    let data = site.data("rights");
    let cases: [(&Path, &Path, &[&str]); 2] = [(&copy, &config, &["--latest"]), (program, &unreadable, &["--standby"])];
    for (program, config, args) in cases {
        let (code, said) = by_root(program, config, &data, args);
        assert_eq!(code, 1, "{args:?}: {said}");
        assert!(said.contains("wal-fetch as postgres") && said.contains("nothing was changed"), "{args:?}: {said}");
        assert!(!data.exists() && left() == 0, "{args:?}");
    }
    // A plan has all that is needed, and so has a standby whose configuration can be read.
    let fine: [(&str, &Path, &[&str]); 2] =
        [("plan", &unreadable, &["--latest"]), ("standby", &config, &["--standby"])];
    for (name, config, args) in fine {
        let (code, said) = by_root(program, config, &site.data(name), args);
        assert_eq!((code, left()), (0, 0), "{name}: {said}");
    }
}
