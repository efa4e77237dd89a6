//! The built program, run as a user would: arguments, environment, exit code, what it prints.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};

use super::guard::Guard;
use super::temp::{TempDir, base};
use super::user::become_postgres;
use super::wait_for;

/// The program, at a path that user `postgres` can run too: what a `restore_command` has to name.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_walrecv"));
        let passable = |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        if built.ancestors().all(passable) {
            return built;
        }
        // Under the home of root, for example. One copy for each build, kept for the next run.
        let meta = fs::metadata(&built).expect("look at the built program");
        let changed =
            meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
        let dir = base().join(format!("walrecv-built-{:x}-{:x}", meta.len(), changed.as_nanos()));
        let copy = dir.join("walrecv");
        if !copy.exists() {
            fs::create_dir_all(&dir).expect("make a folder");
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("set the mode of a folder");
            let staged = dir.join(format!(".{}", std::process::id()));
            fs::copy(&built, &staged).expect("copy the program");
            fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).expect("set the mode of the program");
            fs::rename(&staged, &copy).expect("put the program in place");
        }
        copy
    })
}

/// A command that has ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The exit code, or 128 and the signal, as a shell tells it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Panics, with what was printed, unless it ended with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Output {
        assert_eq!(self.code(), code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.stdout))
    }
}

/// A command to be run. The environment is empty but for `PATH`, `HOME`, `RUST_LOG` and what is set here.
pub struct Walrecv {
    command: Command,
}

impl Walrecv {
    pub fn new<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Walrecv {
        let mut command = Command::new(path());
        command.args(args).env_clear().env("RUST_BACKTRACE", "1");
        for name in ["PATH", "HOME", "RUST_LOG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        Walrecv { command }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn envs<V: AsRef<OsStr>>(mut self, pairs: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        self.command.envs(pairs);
        self
    }

    /// Runs under `strace`, which interferes with calls on this file or directory, such as `fsync:error=EIO`. Call before [`Walrecv::by_postgres`].
    pub fn interfered(self, inject: &str, path: &Path) -> Self {
        let mut command = Command::new("strace");
        let call = inject.split(':').next().unwrap_or_default();
        command.args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={inject}"), "-P"]).arg(path);
        command.arg(self.command.get_program()).args(self.command.get_args()).env_clear();
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Walrecv { command }
    }

    /// Runs as user `postgres`. Call before [`Walrecv::dir`], since it changes to `/`.
    pub fn by_postgres(mut self) -> Self {
        become_postgres(&mut self.command);
        self
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Output {
        self.spawn().wait()
    }

    /// Runs it to its end where nothing can be printed: every write says that the disk is full.
    pub fn run_printing_nowhere(mut self) -> Output {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        self.command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
        let output = self.command.output().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Output { status: output.status, stdout: String::new(), stderr }
    }

    /// Starts it.
    pub fn spawn(mut self) -> Running {
        let printed = TempDir::new("out");
        let file = |name: &str| File::create(printed.join(name)).expect("make a file for output");
        self.command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        let what = format!("{:?}", self.command);
        Running { what, guard: Some(Guard::new(child.id())), child, printed, ended: None }
    }
}

/// A command that was started; killed with this value. Where the test fails, what it printed is shown.
pub struct Running {
    what: String,
    child: Child,
    guard: Option<Guard>,
    printed: TempDir,
    ended: Option<ExitStatus>,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it has logged so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.printed.join(name)).unwrap_or_default()).into_owned()
    }

    /// The result, if it has ended.
    pub fn try_wait(&mut self) -> Option<Output> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("ask after the program");
        }
        let status = self.ended?;
        self.guard = None;
        Some(Output { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        let what = format!("the end of {}", self.what);
        wait_for(&what, || self.try_wait())
    }

    /// Waits until what it has logged contains `text`; panics when it ends first.
    #[track_caller]
    pub fn wait_logged(&mut self, text: &str) {
        wait_for(&format!("'{text}' to be logged"), || {
            let ended = self.try_wait();
            let logged = self.stderr().contains(text);
            assert!(logged || ended.is_none(), "ended before logging '{text}': {ended:?}");
            logged.then_some(())
        });
    }

    /// Any signal, by process id.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Some(pid) = Pid::from_raw(self.child.id() as i32)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub fn terminate(self) -> Output {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL, and its end.
    #[track_caller]
    pub fn kill(self) -> Output {
        self.signal(Signal::KILL);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.guard = None;
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}{}\n---", self.what, self.stdout(), self.stderr());
        }
    }
}
