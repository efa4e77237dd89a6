//! Other tools, set up as their manuals say for the same job: full backups, lz4, two processes, encrypted where they can.

// Each bench uses its own part of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use walrecv::pg::MajorVersion;

use crate::process::{Sample, measure};
use crate::support::user::{as_postgres, give_to_postgres};
use crate::support::{Server, TempDir, wait_for};

/// The newest server that Debian 12's pgBackRest (2.45) knows.
const NEWEST: MajorVersion = MajorVersion::V15;

pub fn has_pgbackrest(version: MajorVersion) -> bool {
    let found = Command::new("pgbackrest").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version <= NEWEST && found.is_ok_and(|s| s.success())
}

/// Barman's program: `BARMAN` names it, or it is on the path.
pub fn barman() -> Option<PathBuf> {
    let named = std::env::var_os("BARMAN").map(PathBuf::from);
    let path = named.unwrap_or_else(|| "barman".into());
    let found = Command::new(&path).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|s| s.success()).then_some(path)
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write a configuration");
    give_to_postgres(path);
}

/// `pgbackrest backup --type=full`; making the stanza is not measured. WAL is not archived, so its check is off: that makes it only faster.
pub fn pgbackrest(server: &Server, temp: &TempDir, out: &Path) -> Sample {
    let config = pgbackrest_config(server, temp, out);
    measure(pgbackrest_command(&config, &["stanza-create"]));
    measure(pgbackrest_command(&config, &["--type=full", "backup"]))
}

/// Writes the configuration of a repository in `out`.
pub fn pgbackrest_config(server: &Server, temp: &TempDir, out: &Path) -> PathBuf {
    let work = temp.postgres_dir("pgbackrest");
    let config = temp.join("pgbackrest.conf");
    write(
        &config,
        &format!(
            "[global]\nrepo1-path={}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=0123456789abcdef0123456789abcdef\n\
             compress-type=lz4\nprocess-max=2\nstart-fast=y\narchive-check=n\nlog-level-console=warn\nlog-level-file=off\n\
             lock-path={work}\nspool-path={work}\n\n[bench]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=postgres\n",
            out.display(),
            server.data_dir().display(),
            server.port(),
            server.socket_dir().display(),
            work = work.display(),
        ),
    );
    config
}

pub fn pgbackrest_command(config: &Path, args: &[&str]) -> Command {
    let mut command = as_postgres("pgbackrest");
    command.arg(format!("--config={}", config.display())).arg("--stanza=bench").args(args);
    command
}

/// The configuration of a server `bench` whose backups and WAL lie in `out`.
pub fn barman_config(server: &Server, temp: &TempDir, out: &Path) -> PathBuf {
    let folder = temp.postgres_dir("barman.d");
    let main = temp.join("barman.conf");
    write(
        &main,
        &format!(
            "[barman]\nbarman_user = postgres\nconfiguration_files_directory = {}\nbarman_home = {}\ncloud_staging_directory = {}\n\
             log_file = {}\nlog_level = WARNING\n",
            folder.display(),
            out.display(),
            // Its check looks at that folder whatever the method.
            temp.postgres_dir("staging").display(),
            temp.postgres_dir("log").join("barman.log").display(),
        ),
    );
    let conninfo =
        format!("host={} port={} user=postgres dbname=postgres", server.socket_dir().display(), server.port());
    write(
        &folder.join("bench.conf"),
        &format!(
            "[bench]\ndescription = bench\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\nbackup_method = postgres\n\
             backup_compression = lz4\nbackup_compression_location = client\nstreaming_archiver = on\nslot_name = barman\n\
             create_slot = auto\npath_prefix = {}\nimmediate_checkpoint = true\n",
            server.bin_dir().display()
        ),
    );
    main
}

/// `barman backup` over the replication protocol, with WAL streamed beside it.
pub fn barman_backup(server: &Server, temp: &TempDir, out: &Path) -> Sample {
    let main = barman_config(server, temp, out);
    let program = barman().expect("barman");
    let run = |args: &[&str]| {
        let mut command = as_postgres(&program);
        command.arg("-c").arg(&main).args(args).stdout(Stdio::null());
        command
    };
    let mut receiver = run(&["receive-wal", "--create-slot", "bench"]);
    receiver.status().expect("run barman");
    let mut receiver = run(&["receive-wal", "bench"]).stderr(Stdio::null()).spawn().expect("start barman");
    server.wait_sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'barman'", "t");
    // It makes a backup only where it has seen one archived segment.
    measure(run(&["switch-wal", "--force", "bench"]));
    wait_for("barman to archive", || {
        let _ = run(&["archive-wal", "bench"]).stderr(Stdio::null()).status();
        run(&["check", "bench"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()).then_some(())
    });
    let sample = measure(run(&["backup", "bench"]));
    let _ = run(&["receive-wal", "--stop", "bench"]).stderr(Stdio::null()).status();
    let _ = receiver.wait();
    wait_for("the slot to be free", || server.try_sql("SELECT pg_drop_replication_slot('barman')").ok());
    sample
}
