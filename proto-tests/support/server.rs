//! A real PostgreSQL server for one test: on a Unix socket and 127.0.0.1, as user `postgres`, ended with this value.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walrecv::pg::{Lsn, MajorVersion};

pub use super::builder::{Auth, Builder};
use super::client::{Client, Failure, Row};
use super::guard::Guard;
use super::temp::TempDir;
use super::user::as_postgres;
use super::{PATIENCE, free_port, install, wait_for};

/// How a server is asked to stop, as `pg_ctl stop -m` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

/// Where the parts of a server are.
pub(super) struct Files {
    pub data: PathBuf,
    pub sockets: PathBuf,
    pub ca: Option<PathBuf>,
    pub command_line: Vec<String>,
    pub env: Vec<(String, PathBuf)>,
    pub listen: &'static str,
}

/// A server. Where the test fails, its log is printed.
pub struct Server {
    version: MajorVersion,
    files: Files,
    port: u16,
    temp: TempDir,
    running: Option<(Child, Guard)>,
    /// What it left in memory when it was killed; its next start would remove it.
    left: Vec<SharedMemory>,
}

impl Server {
    pub fn builder(version: MajorVersion) -> Builder {
        Builder::new(version)
    }

    /// With the defaults: 1 MB segments, trust.
    pub fn start(version: MajorVersion) -> Server {
        Server::builder(version).start()
    }

    /// A streaming standby of this server, made by `pg_basebackup -R`; settings can be added before it starts.
    pub fn standby(&self) -> Builder {
        Builder::new(self.version).standby_of(self.conninfo("postgres"))
    }

    pub(super) fn launch(version: MajorVersion, files: Files, temp: TempDir) -> Result<Server, String> {
        let mut server = Server { version, files, port: 0, temp, running: None, left: Vec::new() };
        // Another test may have taken the port since it was free.
        for attempt in 0.. {
            server.port = free_port();
            match server.try_start_again() {
                Err(log) if attempt < 5 && log.contains("could not bind") => continue,
                Err(log) => return Err(log),
                Ok(()) => break,
            }
        }
        Ok(server)
    }

    /// Starts a stopped or killed server, on the same port. Panics, with the log, if it does not come up.
    pub fn start_again(&mut self) {
        if let Err(log) = self.try_start_again() {
            panic!("PostgreSQL {} did not start again:\n{log}", self.version);
        }
    }

    /// As [`Server::start_again`]; its log if it ends instead of accepting connections.
    pub fn try_start_again(&mut self) -> Result<(), String> {
        assert!(self.running.is_none(), "the server is running");
        let log = File::options().create(true).append(true).open(self.log_file()).expect("open the server's log");
        let before = log.metadata().expect("size of the server's log").len();
        let mut command = as_postgres(self.bin_dir().join("postgres"));
        command.arg("-D").arg(&self.files.data);
        command.arg("-c").arg(format!("listen_addresses={}", self.files.listen));
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.files.sockets.display()));
        command.arg("-c").arg(format!("port={}", self.port));
        for setting in &self.files.command_line {
            command.arg("-c").arg(setting);
        }
        command.envs(self.files.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let guard = Guard::of_server(child.id());
        self.running = Some((child, guard));
        self.left.clear();
        self.wait_until_ready(before)
    }

    fn wait_until_ready(&mut self, log_before: u64) -> Result<(), String> {
        let start = Instant::now();
        loop {
            if self.connect("postgres").is_ok() {
                return Ok(());
            }
            let log_since = |server: &Server| {
                let text = server.log();
                text.get(log_before as usize..).unwrap_or(&text).to_string()
            };
            if let Some(status) = self.exited() {
                return Err(format!("{}\nended with {status}", log_since(self)));
            }
            if start.elapsed() > PATIENCE {
                self.kill9();
                return Err(format!("{}\ndid not accept connections within {PATIENCE:?}", log_since(self)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The exit status, if the server has ended by itself (such as `recovery_target_action = shutdown`).
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let (child, _) = self.running.as_mut()?;
        let status = child.try_wait().expect("ask after the server")?;
        self.running = None;
        Some(status)
    }

    pub fn is_running(&mut self) -> bool {
        self.exited();
        self.running.is_some()
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the server is running").0.id()
    }

    /// Asks it to stop and waits: how long that took, without its last checkpoint, for which only the disk is to blame. Panics where it was more than 60 s, which
    /// is what a receiver that holds a server up looks like.
    pub fn stop(&mut self, how: Stop) -> Duration {
        let (start, logged) = (Instant::now(), self.log().len());
        self.signal(match how {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        });
        let what = format!("PostgreSQL {} to stop ({how:?})\n{}", self.version, self.log_tail());
        wait_for(&what, || self.exited());
        let took = start.elapsed().saturating_sub(self.last_checkpoint(logged));
        assert!(took < Duration::from_secs(60), "{what}: it took {took:?}");
        took
    }

    /// How long the last checkpoint, or restartpoint, took of those whose end was logged behind the first `logged` bytes.
    fn last_checkpoint(&self, logged: usize) -> Duration {
        let log = self.log();
        let lines = log.get(logged..).unwrap_or_default().lines().rev();
        let total =
            |line: &str| line.split_once("point complete: ")?.1.split_once("total=")?.1.split(' ').next()?.parse().ok();
        Duration::from_secs_f64(lines.filter_map(total).next().unwrap_or(0.0))
    }

    /// Stops the process whose id `sql` gives, until the value goes.
    pub fn hold(&self, sql: &str) -> Held {
        let pid = self.sql(sql).parse().unwrap_or_else(|e| panic!("one process id from {sql}: {e}"));
        kill(pid, Signal::STOP);
        Held(pid)
    }

    /// Sends a signal to the postmaster.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Ends every process of the server at once, as a power cut would (what the kernel was given stays).
    pub fn kill9(&mut self) {
        self.kill9_and(|| ());
    }

    /// As [`Server::kill9`]; does `then` when all of them were sent the signal, without waiting until they are gone.
    pub fn kill9_and(&mut self, then: impl FnOnce()) {
        let Some((mut child, _guard)) = self.running.take() else { return then() };
        // Stopped first, so that it starts no new process while the old ones are found.
        kill(child.id(), Signal::STOP);
        self.left = SharedMemory::of(child.id());
        let children = children_of(child.id());
        for pid in &children {
            kill(*pid, Signal::KILL);
        }
        kill(child.id(), Signal::KILL);
        then();
        child.wait().expect("wait for the killed server");
        // A new postmaster refuses to start while one of them still holds the shared memory.
        wait_for("killed backends to go", || children.iter().all(|pid| !alive(*pid)).then_some(()));
    }

    /// Removes the shared memory of a killed server, which its next start would do otherwise.
    pub fn release_memory(&mut self) {
        self.left.drain(..).for_each(|left| left.remove());
    }

    /// Ends recovery, and waits until it has ended.
    pub fn promote(&self) {
        assert_eq!(self.sql("select pg_promote(true, 60)"), "t", "promotion of PostgreSQL {}", self.version);
    }

    /// A new session over the Unix socket.
    pub fn connect(&self, database: &str) -> Result<Client, Failure> {
        Client::connect(&self.files.sockets, self.port, "postgres", database)
    }

    /// Runs statements in a session of their own and returns what `psql -At` would print. Panics on an error.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// As [`Server::sql`], with the failure.
    pub fn try_sql(&self, sql: &str) -> Result<String, Failure> {
        let lines = |rows: Vec<Row>| rows.iter().map(line).collect::<Vec<_>>().join("\n");
        self.connect("postgres")?.query(sql).map(lines)
    }

    /// Through the `psql` of this version (`-XAt`), for what only it can do. Panics on an error.
    pub fn psql(&self, script: &str) -> String {
        self.run("psql", &["-XAt", "-v", "ON_ERROR_STOP=1", "-c", script])
    }

    pub fn pgbench(&self, args: &[&str]) -> String {
        self.run("pgbench", args)
    }

    /// Runs a tool of this version against this server as `postgres`; its standard output. Panics if it fails.
    pub fn run(&self, tool: &str, args: &[&str]) -> String {
        let output = self.bin(tool).args(args).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{tool} {args:?}: {}\n{out}{err}", output.status);
        out.trim_end().to_string()
    }

    /// A tool of this version, as `postgres`, with the environment that reaches this server.
    pub fn bin(&self, tool: &str) -> Command {
        let mut command = as_postgres(self.bin_dir().join(tool));
        command.env("PGHOST", &self.files.sockets).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("PGTZ", "UTC");
        command
    }

    /// Over the Unix socket, without a database.
    pub fn conninfo(&self, user: &str) -> String {
        format!("host={} port={} user={user}", self.files.sockets.display(), self.port)
    }

    /// Over TCP, without a database; add `password=`, `sslmode=` as the test needs.
    pub fn conninfo_tcp(&self, user: &str) -> String {
        format!("host=127.0.0.1 port={} user={user}", self.port)
    }

    pub fn version(&self) -> MajorVersion {
        self.version
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket_dir(&self) -> &Path {
        &self.files.sockets
    }

    pub fn data_dir(&self) -> &Path {
        &self.files.data
    }

    pub fn bin_dir(&self) -> PathBuf {
        install::bin_dir(self.version)
    }

    /// The authority that signed the server's certificate. Panics without [`Builder::tls`].
    pub fn ca_file(&self) -> &Path {
        self.files.ca.as_deref().expect("a server with TLS")
    }

    /// A file that was made beside the authority's: `client.pem`, `client.key`, `empty.crl`, `server.crl`.
    pub fn beside_ca(&self, name: &str) -> PathBuf {
        self.ca_file().with_file_name(name)
    }

    pub fn in_recovery(&self) -> bool {
        self.sql("select pg_is_in_recovery()") == "t"
    }

    /// End of WAL: the insert position, or on a standby the last one replayed.
    pub fn lsn(&self) -> Lsn {
        let asked = "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end";
        let text = self.sql(&format!("select {asked}"));
        text.parse().unwrap_or_else(|_| panic!("an LSN, not '{text}'"))
    }

    /// Ends the current segment (after writing something, since on an idle border it would do nothing): the LSN where
    /// it ended.
    pub fn switch_wal(&self) -> Lsn {
        let text = self.sql("select pg_switch_wal() from (select txid_current()) t");
        text.parse().unwrap_or_else(|_| panic!("an LSN, not '{text}'"))
    }

    /// Waits until `sql` answers `expected`.
    pub fn wait_sql(&self, sql: &str, expected: &str) {
        let what = format!("'{sql}' to answer '{expected}'");
        wait_for(&what, || self.try_sql(sql).is_ok_and(|found| found == expected).then_some(()));
    }

    pub fn log_file(&self) -> PathBuf {
        self.temp.join("log")
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of PostgreSQL {} on port {}\n{}\n---", self.version, self.port, self.log_tail());
        }
        // Unlike a kill, an immediate stop leaves no shared memory behind.
        if self.is_running() {
            self.signal(Signal::QUIT);
            let start = Instant::now();
            while self.is_running() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill9();
        self.release_memory();
    }
}

/// A process that does nothing, and goes on with the end of this value.
pub struct Held(u32);

impl Drop for Held {
    fn drop(&mut self) {
        kill(self.0, Signal::CONT);
    }
}

/// A segment that outlives its server: small, but their number is limited.
enum SharedMemory {
    /// Number of a System V segment.
    SystemV(String),
    Posix(PathBuf),
}

impl SharedMemory {
    /// What the postmaster `pid` has mapped.
    fn of(pid: u32) -> Vec<SharedMemory> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let segment = |line: &str| {
            let mut fields = line.split_whitespace().skip(4);
            let (inode, path) = (fields.next()?, fields.next()?);
            match path {
                _ if path.starts_with("/SYSV") => Some(SharedMemory::SystemV(inode.to_string())),
                _ if path.starts_with("/dev/shm/PostgreSQL.") => Some(SharedMemory::Posix(path.into())),
                _ => None,
            }
        };
        maps.lines().filter_map(segment).collect()
    }

    /// It may be gone already.
    fn remove(&self) {
        match self {
            SharedMemory::SystemV(id) => {
                let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
            }
            SharedMemory::Posix(path) => {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn line(row: &Row) -> String {
    row.iter().map(|v| v.as_deref().unwrap_or("")).collect::<Vec<_>>().join("|")
}

fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// The processes that `pid` has started and that still run.
fn children_of(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let listed = fs::read_dir("/proc").expect("list processes");
    let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|p| parent(*p) == Some(pid)).collect()
}

/// Whether a process is there and not just waiting to be collected.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
