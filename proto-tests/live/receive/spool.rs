//! A spool: commits under `remote_write` go on while the bucket hangs, and outlive the loss of the server and of the receiver together.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::pg::{Lsn, MajorVersion};
use walrecv::receive::{Place, ReceiveEvent};

use super::harness::{self, Vault};
use super::kill::{Process, told};
use super::loss::kept;
use crate::support::proxy::Proxy;
use crate::support::{Ledger, Moto, Server, TempDir, require_moto, require_servers, wait_for};

/// The spool's files, in the order of their names; whoever is not their owner may reach none of them.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Deleted since it was listed.
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if meta.is_dir() {
            assert_eq!(meta.permissions().mode() & 0o777, 0o700, "{}", path.display());
            found.extend(files(&path));
        } else {
            assert_eq!(meta.permissions().mode() & 0o777, 0o600, "{}", path.display());
            found.extend(path.extension().is_some_and(|extension| extension == "open").then_some(path));
        }
    }
    found.sort();
    found
}

/// A server whose commits wait for a receiver with a spool, and its bucket behind a line that can hang.
struct Scene {
    server: Server,
    vault: Vault,
    line: Proxy,
    root: PathBuf,
    _temp: TempDir,
    place: [(&'static str, String); 4],
    /// Where the slot began.
    from: Lsn,
}

impl Scene {
    fn new(version: MajorVersion, bucket: &str) -> Scene {
        let server = Server::builder(version)
            .setting("synchronous_standby_names", "walrecv")
            .setting("synchronous_commit", "remote_write")
            .setting("wal_keep_size", "1GB")
            .start();
        server.sql("set synchronous_commit = local; select pg_create_physical_replication_slot('walrecv', true)");
        let (from, temp) = (harness::acknowledged(&server), TempDir::new("spool"));
        let (line, root) = (Proxy::start(Moto::shared().port()), temp.join("walrecv"));
        let place = [
            ("VAULT_URL", Moto::shared().bucket(bucket)),
            ("VAULT_ENDPOINT", format!("http://127.0.0.1:{}", line.port)),
            ("VAULT_SPOOL", root.display().to_string()),
            ("VAULT_STALL_MS", "4000".to_owned()),
        ];
        Scene { server, vault: Vault::new(), line, root, _temp: temp, place, from }
    }

    fn receive(&self) -> Process {
        Process::start_with(&self.vault, &self.server, 1000, &self.place)
    }

    /// Past the line.
    fn archive(&self) -> Archive {
        let repo = harness::open_bucket(&self.place[0].1, &Moto::shared().endpoint());
        self.vault.archive_in(repo, &self.server)
    }

    fn files(&self) -> Vec<PathBuf> {
        files(&self.root)
    }

    /// Files go when their segment is stored, and new ones come.
    fn end_a_segment(&self) {
        let first = self.files();
        let ended = self.server.switch_wal();
        harness::wait_acknowledged(&self.server, ended);
        wait_for("the files of the first segment to go", || {
            (!self.files().iter().any(|file| first.contains(file))).then_some(())
        });
    }

    /// Over the end of a segment, which then is in the spool whole, and for longer than the limit on stalls.
    fn commits_go_on(&self, ledger: &Ledger, process: &Process) {
        ledger.wait_for_more(50);
        self.server.switch_wal();
        std::thread::sleep(Duration::from_secs(6));
        ledger.wait_for_more(50);
        let state = "select state, write_lsn - flush_lsn > 100000, write_lsn, flush_lsn from pg_stat_replication";
        let state = self.server.sql(state);
        assert!(state.contains("streaming|t"), "{state}: {}", process.said());
        assert!(!process.said().contains("Stalled"), "{}", process.said());
    }
}

#[test]
fn commits_outlive_server_and_receiver_while_the_bucket_hangs() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    let mut scene = Scene::new(MajorVersion::V18, "spooled");
    let (archive, process) = (scene.archive(), scene.receive());
    scene.server.wait_sql("select count(*) from pg_stat_replication where sync_state = 'sync'", "1");
    let ledger = Ledger::builder().writers(2).padding(300).pause(Duration::from_millis(2)).start(&scene.server);
    ledger.wait_for_more(50);
    scene.end_a_segment();
    ledger.wait_for_more(20);
    scene.line.stall(true);
    let flushed = told(&scene.server);
    scene.commits_go_on(&ledger, &process);
    let left = scene.files().len();
    assert!(left >= 2, "one for each segment, {left}");
    process.kill();
    scene.server.kill9();
    let entries = ledger.stop();
    scene.line.reset();
    scene.line.stall(false);

    let answered: HashSet<u32> = entries.iter().map(|entry| entry.xid as u32).collect();
    let (before, end) = kept(&archive, MajorVersion::V18, scene.from);
    let missing = answered.difference(&before).count();
    println!("{} commits were answered, {missing} of them after {flushed}; the bucket ends at {end}", answered.len());
    assert!(missing >= 100, "the bucket has what was answered while it hung: nothing is tried");

    // Nobody answers but the bucket.
    let process = scene.receive();
    wait_for("the spool to be empty", || scene.files().is_empty().then_some(()));
    let (after, end) = kept(&archive, MajorVersion::V18, scene.from);
    let lost = answered.difference(&after).count();
    assert_eq!(lost, 0, "of {} commits that were answered; the bucket ends at {end}", answered.len());
    let recovered = process.said().matches("Recovered").count();
    assert!((2..=left).contains(&recovered), "{recovered} of {left}: {}", process.said());

    // The server comes back after all: what the spool had is compared with what it sends.
    scene.server.start_again();
    let back = scene.server.switch_wal();
    harness::wait_acknowledged(&scene.server, back);
    let (again, end) = kept(&archive, MajorVersion::V18, scene.from);
    assert!(answered.is_subset(&again) && end >= back, "{}", process.said());
    wait_for("what the spool had to go", || {
        let listed = harness::runtime().block_on(archive.repo.list(&archive.names.root())).expect("list");
        (!listed.iter().any(|entry| entry.name.ends_with(".open"))).then_some(())
    });
    process.kill();
}

/// Nobody waits for a flush that is not told apart from what is only written: with a spool a commit under `remote_write` does not wait for the bucket, and
/// without one that can be written it does.
#[test]
fn a_spool_that_fails_leaves_everything_to_the_bucket() {
    require_servers!(MajorVersion::V17);
    require_moto!();
    let server = Server::builder(MajorVersion::V17).setting("synchronous_standby_names", "walrecv").start();
    server.sql("set synchronous_commit = local; select pg_create_physical_replication_slot('walrecv', true)");
    let (vault, temp) = (Vault::new(), TempDir::new("spool"));
    // Not even root can make a folder below a file.
    let file = temp.join("file");
    std::fs::write(&file, "").expect("write a file");
    let moto = Moto::shared();
    let place = Place { repo: harness::open_bucket(&moto.bucket("no-spool"), &moto.endpoint()), ..vault.place() };
    let mut options = harness::options(&server);
    options.spool_dir = Some(file.join("spool"));
    let receiving = harness::Receiving::start(options, place);
    receiving.wait_streaming();
    let ledger = Ledger::builder().start(&server);
    ledger.wait_for_more(20);
    ledger.stop();
    let warned =
        |event: &ReceiveEvent| matches!(event, ReceiveEvent::Warning(text) if text.contains("cannot write the spool"));
    assert!(receiving.saw(warned), "{:#?}", receiving.events());
    let ahead = "select count(*) from pg_stat_replication where write_lsn > flush_lsn";
    assert_eq!(server.sql(ahead), "0");
    assert!(told(&server) > Lsn::INVALID);
    receiving.stop();
}

/// The spool is no buffer for what memory has no room for: then nothing moves any more, and the server is left.
#[test]
fn a_server_is_left_once_memory_is_full_and_the_spool_is_read_back_by_nobody() {
    require_servers!(MajorVersion::V15);
    require_moto!();
    let server = Server::builder(MajorVersion::V15).setting("wal_keep_size", "1GB").start();
    harness::create_slot(&server);
    let (moto, vault, temp) = (Moto::shared(), Vault::new(), TempDir::new("spool"));
    let (line, url, root) = (Proxy::start(moto.port()), moto.bucket("spool-full"), temp.join("spool"));
    let repo = harness::open_bucket(&url, &format!("http://127.0.0.1:{}", line.port));
    let mut options = harness::options(&server);
    (options.memory, options.spool_dir) = (6 << 20, Some(root.clone()));
    (options.flush_interval, options.stall_timeout) = (Duration::from_millis(100), Duration::from_secs(4));
    let receiving = harness::Receiving::start(options, Place { repo, ..vault.place() });
    receiving.wait_streaming();
    server.sql("create table t (x text)");
    harness::wait_acknowledged(&server, server.lsn());
    line.stall(true);
    let stalled = |event: &ReceiveEvent| matches!(event, ReceiveEvent::Stalled { .. });
    let little = "insert into t values (gen_random_uuid()::text)";
    server.sql(little);
    let (written, end) =
        ("select min(write_lsn) from pg_stat_replication where application_name = 'walrecv'", server.lsn());
    wait_for("the spool to have it", || (server.sql(written).parse::<Lsn>().ok()? >= end).then_some(()));
    std::thread::sleep(Duration::from_secs(6));
    assert!(!receiving.saw(stalled) && told(&server) < end, "the spool has everything");
    server.sql("insert into t select string_agg(gen_random_uuid()::text, '') from generate_series(1, 600000) i group by i % 9000");
    receiving.wait_event("a stall", stalled);
    assert!(files(&root).len() < 20, "what the spool takes is bounded");
    line.stall(false);
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    let (report, _) = receiving.stop();
    assert_eq!((report.behind, files(&root)), (0, Vec::new()), "nothing is left of what is stored");
}
