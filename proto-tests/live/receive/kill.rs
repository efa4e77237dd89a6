//! SIGKILL at random moments under load: nothing that was acknowledged is missing, and the archive has no hole.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::pg::{Lsn, MajorVersion, SegmentNumber, TimelineId};
use walrecv::receive::{Observer, receive};
use walrecv::seal::header::RepositoryId;

use super::harness::{self, Vault};
use crate::support::guard::Guard;
use crate::support::{Ledger, Seed, Server, TempDir, require_servers, rounds, wait_for};

/// Said before the microseconds that the longest flush or put so far took.
const LONGEST: &str = "longest flush or put: ";

/// Not a test of its own: the receiver as a process that can be killed. Started by this program with what it needs in the environment.
#[test]
fn receiver_process() {
    let Ok(conninfo) = std::env::var("VAULT_CONNINFO") else { return };
    let text = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let secret = walrecv::keys::setup::secret_from_text(&text("VAULT_SECRET")).expect("the secret");
    let repo = match std::env::var("VAULT_ENDPOINT") {
        Ok(endpoint) => harness::open_bucket(&text("VAULT_URL"), &endpoint),
        Err(_) => harness::open_local(&PathBuf::from(text("VAULT_DIR"))),
    };
    let place = harness::place(repo, RepositoryId([7; 16]), secret, &text("VAULT_PUBLIC"));
    let mut options = harness::options_for(&conninfo);
    options.flush_interval = Duration::from_millis(text("VAULT_FLUSH_MS").parse().expect("milliseconds"));
    if let Ok(grace) = std::env::var("VAULT_GRACE_MS") {
        options.shutdown_grace = Duration::from_millis(grace.parse().expect("milliseconds"));
    }
    if let Ok(stall) = std::env::var("VAULT_STALL_MS") {
        options.stall_timeout = Duration::from_millis(stall.parse().expect("milliseconds"));
    }
    options.spool_dir = std::env::var_os("VAULT_SPOOL").map(PathBuf::from);
    options.catalog = std::env::var_os("VAULT_CATALOG").map(PathBuf::from);
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let observer = Observer::new(|event| eprintln!("{event:?}"));
    let stats = observer.stats().clone();
    // It is going to be killed, so it says along the way what somebody may ask for later.
    std::thread::spawn(move || {
        let mut longest = 0;
        loop {
            let now = stats.flush_time.total().max.max(stats.put_time.total().max);
            if now > longest {
                longest = now;
                eprintln!("{LONGEST}{longest}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let outcome = harness::runtime().block_on(receive(options, place, observer, stopped));
    panic!("ended by itself: {outcome:?}");
}

/// The receiver as a process of its own.
pub struct Process {
    child: Child,
    said: TempDir,
    _guard: Guard,
}

impl Process {
    pub fn start(vault: &Vault, server: &Server, flush_ms: u64) -> Process {
        Process::start_with(vault, server, flush_ms, &[])
    }

    /// Into a bucket: its URL, and where it is reached.
    pub fn start_in_bucket(vault: &Vault, server: &Server, flush_ms: u64, url: &str, endpoint: &str) -> Process {
        let place = [("VAULT_URL", url.to_owned()), ("VAULT_ENDPOINT", endpoint.to_owned())];
        Process::start_with(vault, server, flush_ms, &place)
    }

    /// As [`Process::start`], with more in its environment.
    pub fn start_with(vault: &Vault, server: &Server, flush_ms: u64, place: &[(&str, String)]) -> Process {
        let said = TempDir::new("said");
        let log = std::fs::File::create(said.join("stderr")).expect("make a file for what it says");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["receive::kill::receiver_process", "--exact", "--nocapture", "--test-threads=1"]);
        command.envs(vault.texts()).env("VAULT_DIR", vault.temp.path());
        command.env("VAULT_CONNINFO", server.conninfo("postgres")).env("VAULT_FLUSH_MS", flush_ms.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.envs(place.iter().map(|(name, value)| (*name, value.as_str())));
        command.stderr(if std::env::var_os("WALRECV_SHOW").is_some() { Stdio::inherit() } else { Stdio::from(log) });
        let child = command.spawn().expect("start the receiver");
        let guard = Guard::new(child.id());
        Process { child, said, _guard: guard }
    }

    /// What it has said so far: its events.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.said.join("stderr")).unwrap_or_default()
    }

    /// How long its longest flush or put took so far, by its own account.
    fn longest_put(&self) -> Duration {
        let said = self.said();
        let last = said.lines().rev().find_map(|line| line.strip_prefix(LONGEST)?.parse().ok());
        Duration::from_micros(last.unwrap_or_else(|| panic!("it has flushed nothing: {said}")))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("ask after the receiver").is_none()
    }

    pub fn kill(mut self) {
        self.end();
    }

    /// Sends it SIGKILL, and does not wait until it is gone.
    pub fn strike(&mut self) {
        self.child.kill().expect("kill the receiver");
    }

    fn end(&mut self) {
        self.strike();
        self.child.wait().expect("wait for the receiver");
    }

    /// As [`Process::kill`]; how long its longest flush or put took until then.
    pub fn kill_and_ask(mut self) -> Duration {
        self.end();
        self.longest_put()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the receiver\n{}\n---", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Highest position that the server was told is durable: by the slot, or by the connection's own row.
pub fn told(server: &Server) -> Lsn {
    let streamed = server.sql("select max(flush_lsn) from pg_stat_replication where application_name = 'walrecv'");
    streamed.parse::<Lsn>().unwrap_or_default().max(harness::acknowledged(server))
}

/// Compares the archive with the server's own files, from the segment of `from` to the byte before `upto`: all of it is there.
pub fn nothing_is_missing(archive: &Archive, server: &Server, from: Lsn, upto: Lsn) {
    let runtime = harness::runtime();
    let size = archive.names.segment_size;
    for number in (size.segment_of(from).0..=size.segment_before(upto).0).map(SegmentNumber) {
        let own = harness::own_segment(server, TimelineId(1), number, size);
        let (stored, _) = harness::segment(&runtime, archive, TimelineId(1), number);
        let wanted = upto.since(number.start(size)).min(size.bytes()) as usize;
        assert!(stored.len() >= wanted, "segment {number:?}: {} bytes stored, {wanted} acknowledged", stored.len());
        // What the server has not written yet is zero or old on its side.
        assert!(stored[..wanted] == own[..wanted], "segment {number:?} differs below {upto}");
    }
    harness::objects_are_whole(&runtime, archive);
}

fn killed_under_load(version: MajorVersion, flush_ms: u64, kills: u32) {
    // All WAL stays on the server, to compare with.
    let server = Server::builder(version).setting("wal_keep_size", "2GB").setting("max_wal_size", "2GB").start();
    harness::create_slot(&server);
    let vault = Vault::new();
    let mut seed = Seed::of_run();
    let from = harness::acknowledged(&server);
    let ledger = Ledger::builder().writers(2).padding(2000).start(&server);
    for round in 0..kills {
        let mut process = Process::start(&vault, &server, flush_ms);
        let before = told(&server);
        wait_for("the next acknowledgement", || {
            assert!(process.is_running(), "round {round}: the receiver ended by itself");
            (told(&server) > before).then_some(())
        });
        std::thread::sleep(Duration::from_millis(seed.below(600)));
        let acknowledged = told(&server);
        assert!(process.is_running(), "round {round}: the receiver ended by itself");
        process.kill();
        nothing_is_missing(&vault.archive(&server), &server, from, acknowledged.max(told(&server)));
    }
    let entries = ledger.stop();
    assert!(entries.len() > kills as usize, "the load wrote");
    // A last run brings everything, and nothing is left open.
    let receiving = harness::Receiving::start(harness::options(&server), vault.place());
    let end = server.switch_wal();
    harness::wait_acknowledged(&server, end);
    let (report, _) = receiving.stop();
    assert_eq!(report.behind, 0);
    nothing_is_missing(&vault.archive(&server), &server, from, end);
    let inventory = harness::runtime().block_on(vault.archive(&server).inventory()).expect("list");
    let complete = &inventory.timelines[&TimelineId(1)].complete;
    let (first, last) = (complete.first().expect("segments").0, complete.last().expect("segments").0);
    assert_eq!(complete.len() as u64, last - first + 1, "no hole: {complete:?}");
}

#[test]
fn killed_with_every_commit_flushed() {
    require_servers!(MajorVersion::V18);
    killed_under_load(MajorVersion::V18, 0, rounds(6, 50));
}

#[test]
fn killed_with_a_flush_interval() {
    require_servers!(MajorVersion::V13);
    killed_under_load(MajorVersion::V13, 200, rounds(4, 50));
}
