//! Bad disks under the repository: full, read-only, unmounted, removed, failing. Nothing is acknowledged that is not stored, and it goes on by itself where
//! that is possible.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, MajorVersion};
use walrecv::receive::{Place, ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::{nothing_is_missing, told};
use crate::support::{Server, TempDir, install, require_servers, wait_for};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// In an image file, through a loop device.
    Ext4,
    Tmpfs,
}

/// A file system of its own, unmounted with this value.
pub struct Disk {
    temp: TempDir,
    kind: FileSystem,
}

impl Disk {
    /// `None`, and reported as skipped, where nothing may be mounted.
    pub fn new(kind: FileSystem, mib: u32) -> Option<Disk> {
        let disk = Disk { temp: TempDir::new("disk"), kind };
        std::fs::create_dir(disk.path()).expect("make a mount point");
        if kind == FileSystem::Ext4 {
            let image = std::fs::File::create(disk.image()).expect("make an image");
            image.set_len(u64::from(mib) << 20).expect("size of the image");
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(disk.image())).expect("make a file system");
        }
        match disk.mount(&format!("size={mib}m")) {
            Ok(()) => Some(disk),
            Err(said) => {
                install::forbidden(&format!("this machine does not let root mount: {said}"));
                None
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        self.temp.join("mnt")
    }

    fn image(&self) -> PathBuf {
        self.temp.join("image")
    }

    fn mount(&self, size: &str) -> Result<(), String> {
        let mut mount = Command::new("mount");
        match self.kind {
            FileSystem::Ext4 => mount.args(["-o", "loop"]).arg(self.image()),
            FileSystem::Tmpfs => mount.args(["-t", "tmpfs", "-o", size, "walrecv-test"]),
        };
        run(mount.arg(self.path()))
    }

    fn remount(&self, how: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(self.path())).expect("remount");
    }

    /// Away from its name, whoever still holds files there.
    fn detach(&self) -> Result<(), String> {
        run(Command::new("umount").arg("-l").arg(self.path()))
    }

    /// Fills it up to the last block, in a file of its own.
    pub fn fill(&self) {
        let ballast = self.path().join("ballast");
        // It ends with "no space left", and keeps what it could write.
        let output =
            Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", ballast.display())).output();
        assert!(!output.expect("run dd").status.success(), "the disk was larger than that");
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).expect("remove the ballast");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.detach();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

struct Scene {
    server: Server,
    vault: Vault,
    disk: Disk,
    from: Lsn,
    flush_interval: Duration,
}

impl Scene {
    fn new(version: MajorVersion, disk: Disk) -> Scene {
        let server = Server::builder(version).setting("wal_keep_size", "2GB").setting("max_wal_size", "2GB").start();
        harness::create_slot(&server);
        let from = harness::acknowledged(&server);
        server.sql("create table t (id int, filler text)");
        std::fs::create_dir(disk.path().join("repository")).expect("make the repository");
        // What init leaves there.
        std::fs::write(disk.path().join("repository/walrecv.json"), b"{\"a\": \"repository\"}").expect("write a file");
        Scene { server, vault: Vault::new(), disk, from, flush_interval: Duration::from_millis(100) }
    }

    fn options(&self) -> ReceiveOptions {
        let mut options = harness::options(&self.server);
        options.flush_interval = self.flush_interval;
        options.stall_timeout = Duration::from_secs(1);
        options
    }

    fn folder(&self) -> PathBuf {
        self.disk.path().join("repository")
    }

    fn receive(&self) -> Receiving {
        let repo = harness::open_local(&self.folder());
        let receiving = Receiving::start(self.options(), Place { repo, ..self.vault.place() });
        receiving.wait_streaming();
        receiving
    }

    fn archive(&self) -> Archive {
        self.vault.archive_in(harness::open_local(&self.folder()), &self.server)
    }

    fn nothing_is_missing(&self, upto: Lsn) {
        nothing_is_missing(&self.archive(), &self.server, self.from, upto);
    }

    fn write(&self, rows: u32) -> Lsn {
        self.server.sql(&format!("insert into t select i, md5(random()::text) from generate_series(1, {rows}) i"));
        self.server.lsn()
    }

    /// Writes until the receiver has given up for now; the server's end.
    fn write_until_stalled(&self, receiving: &Receiving) -> Lsn {
        let stalls = || receiving.events().iter().filter(|e| matches!(e, ReceiveEvent::Stalled { .. })).count();
        let before = stalls();
        wait_for("a stall", || {
            self.write(2000);
            (stalls() > before).then_some(())
        });
        self.server.lsn()
    }

    fn end(&self, receiving: Receiving) {
        let end = self.server.switch_wal();
        harness::wait_acknowledged(&self.server, end);
        self.nothing_is_missing(end);
        let (report, _) = receiving.stop();
        assert_eq!(report.behind, 0);
    }
}

fn full(version: MajorVersion, kind: FileSystem, flush_interval: Duration) {
    let Some(disk) = Disk::new(kind, 24) else { return };
    let scene = Scene { flush_interval, ..Scene::new(version, disk) };
    let receiving = scene.receive();
    harness::wait_acknowledged(&scene.server, scene.write(10));
    for _ in 0..2 {
        scene.disk.fill();
        let end = scene.write_until_stalled(&receiving);
        assert!(told(&scene.server) < end, "acknowledged on a full disk");
        scene.nothing_is_missing(told(&scene.server));
        // A put says so when it has been tried for a while.
        let full = |e: &ReceiveEvent| matches!(e, ReceiveEvent::Warning(text) if text.contains("No space left"));
        receiving.wait_event("the reason", full);
        scene.disk.make_room();
        harness::wait_acknowledged(&scene.server, end);
        scene.nothing_is_missing(end);
    }
    scene.end(receiving);
}

#[test]
fn a_full_disk_that_gets_room_again() {
    require_servers!(MajorVersion::V18);
    full(MajorVersion::V18, FileSystem::Ext4, Duration::from_millis(100));
}

#[test]
fn a_full_memory_disk_that_gets_room_again() {
    require_servers!(MajorVersion::V16);
    full(MajorVersion::V16, FileSystem::Tmpfs, Duration::ZERO);
}

/// The kernel makes no file system read-only that is being written to, so the receiver is not there meanwhile.
#[test]
fn a_disk_that_became_read_only_is_refused_until_it_is_writable_again() {
    require_servers!(MajorVersion::V17);
    let Some(disk) = Disk::new(FileSystem::Tmpfs, 64) else { return };
    let scene = Scene::new(MajorVersion::V17, disk);
    let receiving = scene.receive();
    harness::wait_acknowledged(&scene.server, scene.write(10));
    receiving.stop();
    let before = told(&scene.server);
    scene.disk.remount("ro");
    scene.write(10);
    let place = Place { repo: harness::open_local(&scene.folder()), ..scene.vault.place() };
    let error = Receiving::start(scene.options(), place).end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Repository, "{error}");
    assert!(error.to_string().contains("Read-only"), "{error}");
    assert_eq!(told(&scene.server), before, "acknowledged on a read-only disk");
    scene.disk.remount("rw");
    let receiving = scene.receive();
    scene.end(receiving);
}

/// The empty directory under the mount point is no repository, and the files that are still open are in none that anybody will find.
#[test]
fn a_disk_that_is_unmounted_while_streaming_and_mounted_again() {
    require_servers!(MajorVersion::V18);
    let Some(disk) = Disk::new(FileSystem::Ext4, 64) else { return };
    // What would be there without the disk: the same path, on the disk below.
    disk.detach().expect("detach");
    std::fs::create_dir(disk.path().join("repository")).expect("make a directory below");
    disk.mount("").expect("mount again");
    let scene = Scene::new(MajorVersion::V18, disk);
    let receiving = scene.receive();
    let before = scene.write(10);
    harness::wait_acknowledged(&scene.server, before);
    scene.disk.detach().expect("detach");
    let end = scene.write_until_stalled(&receiving);
    let acknowledged = told(&scene.server);
    let below: Vec<_> = std::fs::read_dir(scene.folder()).expect("list").collect();
    assert!(below.is_empty(), "written below the mount point: {below:?}");
    scene.disk.mount("").expect("mount again");
    assert!(acknowledged < end, "acknowledged without the disk");
    scene.nothing_is_missing(acknowledged);
    harness::wait_acknowledged(&scene.server, end);
    scene.end(receiving);
}

#[test]
fn a_repository_that_is_removed_while_streaming_is_no_repository() {
    require_servers!(MajorVersion::V14);
    let server = Server::start(MajorVersion::V14);
    harness::create_slot(&server);
    let vault = Vault::new();
    // What init leaves there, and what tells this directory from another one.
    std::fs::write(vault.temp.join("walrecv.json"), b"{\"a\": \"repository\"}").expect("write a file");
    let mut options = harness::options(&server);
    options.flush_interval = Duration::from_millis(100);
    options.stall_timeout = Duration::from_secs(1);
    let receiving = Receiving::start(options, vault.place());
    receiving.wait_streaming();
    server.sql("create table t (id int)");
    harness::wait_acknowledged(&server, server.lsn());
    std::fs::remove_dir_all(vault.temp.path()).expect("remove the repository");
    server.sql("insert into t values (1)");
    let commit = server.lsn();
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    assert!(told(&server) < commit, "acknowledged without a repository");
    // An empty directory of the same name is not it.
    std::fs::create_dir(vault.temp.path()).expect("make a directory");
    std::thread::sleep(Duration::from_secs(2));
    assert!(told(&server) < commit, "acknowledged into an empty directory");
    assert_eq!(std::fs::read_dir(vault.temp.path()).expect("list").count(), 0, "written into an empty directory");
    let (report, _) = receiving.stop();
    assert!(report.behind > 0);
}
