//! An S3 server in memory: conditional puts are atomic, object lock and versions work, signatures and checksums are not
//! checked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::guard::Guard;
use super::install::{home, skipped};
use super::{free_port, wait_for};

/// Whether the emulator is there; if not, the test is reported as skipped, or fails with `CI=true`.
pub fn present() -> bool {
    home().join("moto/bin/moto_server").exists() || skipped("the S3 emulator is not installed")
}

/// The Python that it runs under, which has a Prometheus client too.
pub fn python() -> PathBuf {
    home().join("moto/bin/python")
}

/// One running emulator.
pub struct Moto {
    port: u16,
    child: Child,
    _guard: Guard,
}

impl Moto {
    /// One for all tests of a test program: each test takes buckets of its own. It goes with the program.
    pub fn shared() -> &'static Moto {
        static SHARED: OnceLock<Moto> = OnceLock::new();
        SHARED.get_or_init(Moto::start)
    }

    /// A separate one, for a test that stops it.
    pub fn start() -> Moto {
        // It ends where another program was given its port meanwhile.
        (0..5).find_map(|_| Moto::try_start()).expect("an S3 emulator that does not end at once")
    }

    fn try_start() -> Option<Moto> {
        let port = free_port();
        let mut command = Command::new(home().join("moto/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start moto_server");
        let mut moto = Moto { port, _guard: Guard::new(child.id()), child };
        let answers = wait_for("the S3 emulator", || {
            let ended = moto.child.try_wait().expect("ask after the S3 emulator").is_some();
            if ended { Some(false) } else { moto.request("GET", "/moto-api/").is_ok().then_some(true) }
        });
        answers.then_some(moto)
    }

    /// Makes a bucket (which may be there already) and returns its URL.
    pub fn bucket(&self, name: &str) -> String {
        let answer = self.request("PUT", &format!("/{name}")).expect("make a bucket");
        assert!(answer.0 == 200 || answer.0 == 409, "make a bucket: {answer:?}");
        format!("s3://{name}")
    }

    /// What a client needs in its environment.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ENDPOINT", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_DEFAULT_REGION", "us-east-1".into()),
        ]
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it; all that was stored is gone. To make a store unreachable for a while, use [`Moto::pause`].
    pub fn stop(self) {}

    /// Stops it answering (connections hang) until [`Moto::resume`].
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("signal the S3 emulator");
    }

    /// One request without a body or a signature: status and answer.
    pub fn request(&self, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let host = format!("127.0.0.1:{}", self.port);
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok((status, body.to_string()))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
