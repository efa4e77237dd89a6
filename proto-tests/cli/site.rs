//! One installation of walrecv: a folder with its configuration and one with its repository, used as user `postgres`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use walrecv::pg::Lsn;

use crate::support::guard::Guard;
use crate::support::walrecv::{Output, Running};
use crate::support::{Client, Moto, Server, TempDir, Walrecv, wait_for};

pub const SLOT: &str = "walrecv_main";

pub struct Site {
    pub places: TempDir,
    /// A bucket in place of the folder: its URL, and the environment that reaches it.
    bucket: Option<(String, Vec<(&'static str, String)>)>,
}

impl Site {
    /// Two empty folders.
    pub fn empty() -> Site {
        let places = TempDir::for_postgres("site");
        places.postgres_dir("etc");
        Site { places, bucket: None }
    }

    /// After `walrecv init --create-slot`.
    pub fn new(server: &Server) -> Site {
        let site = Site::empty();
        site.init(&server.conninfo("postgres")).args(["--slot", SLOT, "--create-slot"]).run().expect_code(0);
        site
    }

    /// As [`Site::new`], with its repository in a bucket of its own.
    pub fn in_bucket(server: &Server, name: &str) -> Site {
        let moto = Moto::shared();
        let site = Site { bucket: Some((moto.bucket(name), moto.env())), ..Site::empty() };
        site.init(&server.conninfo("postgres")).args(["--slot", SLOT, "--create-slot"]).run().expect_code(0);
        site
    }

    /// The folder of walrecv.toml and the keys.
    pub fn etc(&self) -> PathBuf {
        self.places.join("etc")
    }

    pub fn config(&self) -> PathBuf {
        self.etc().join("walrecv.toml")
    }

    pub fn repository(&self) -> PathBuf {
        self.places.join("repository")
    }

    pub fn url(&self) -> String {
        let folder = || format!("file://{}", self.repository().display());
        self.bucket.as_ref().map_or_else(folder, |(url, _)| url.clone())
    }

    /// Where this site restores to.
    pub fn data(&self, name: &str) -> PathBuf {
        self.places.join(name)
    }

    /// The program in the folder of the configuration, which it finds there.
    pub fn walrecv(&self, args: &[&str]) -> Walrecv {
        let env = self.bucket.iter().flat_map(|(_, env)| env.iter().cloned());
        Walrecv::new(args).by_postgres().dir(&self.etc()).envs(env)
    }

    pub fn init(&self, dsn: &str) -> Walrecv {
        self.walrecv(&["init", "--repo", &self.url(), "--dsn", dsn])
    }

    /// Streams until the value goes.
    pub fn receive(&self, args: &[&str]) -> Running {
        let mut running = self.walrecv(&["receive"]).args(args).spawn();
        running.wait_logged("streaming timeline");
        running
    }

    /// A moment at which nobody writes, by the server's clock, as text and as a time; waits until a running receiver has proven that the archive is complete
    /// through it. What is proven goes with a stop, and what is shown may be a moment ahead of that, so it waits a little longer.
    pub fn idle_time(&self, server: &Server) -> (String, jiff::Timestamp) {
        let text = server.sql("select clock_timestamp()");
        let at: jiff::Timestamp = text.replace("+00", "Z").parse().expect("a time");
        wait_for("the archive to be complete through that time", || {
            let status = self.walrecv(&["status", "--output", "json"]).run().json();
            let through = status["clusters"][0]["complete_through"].as_str()?.parse::<jiff::Timestamp>();
            (through.expect("a time") > at + Duration::from_secs(3)).then_some(())
        });
        (text, at)
    }

    pub fn backup(&self) -> serde_json::Value {
        self.walrecv(&["backup", "--output", "json"]).run().expect_code(0).json()
    }

    /// A restore of `target` into `name`, not yet started.
    pub fn restore(&self, server: &Server, name: &str, target: &[&str]) -> Walrecv {
        let data = self.data(name).display().to_string();
        let programs = server.bin_dir().display().to_string();
        self.walrecv(&["restore", "--pgdata", &data, "--pg-bindir", &programs]).args(target)
    }

    /// Restores, starts a scratch server, and has it at its target.
    pub fn land(&self, server: &Server, name: &str, target: &[&str]) -> Copy {
        let started = ["--start", "--scratch", "--output", "json"];
        let mut guard = Guard::of_data(&self.data(name));
        let output = self.restore(server, name, target).args(started).run();
        if output.code() != 0 {
            // It may run all the same.
            guard.keep();
            // The folder goes with the test.
            let log = std::fs::read_to_string(self.data(name).join("walrecv-start.log")).unwrap_or_default();
            eprintln!("--- the server's log\n{log}---");
        }
        let told = output.expect_code(0).json();
        let restored = &told["restored"];
        if restored["kept"] == 0 {
            assert_eq!(restored["fetched"], told["plan"]["stored_bytes"], "the plan tells what is fetched: {told}");
        }
        Copy { data: self.data(name), pg_ctl: server.bin_dir().join("pg_ctl"), told, _guard: guard }
    }
}

/// Waits until the server knows that everything up to `end` is durable in the repository.
pub fn wait_durable(server: &Server, end: Lsn) {
    let sql = format!(
        "select coalesce(bool_or(flush_lsn >= '{end}'), false) from pg_stat_replication where application_name = 'walrecv'"
    );
    wait_for(&format!("{end} to be durable"), || (server.sql(&sql) == "t").then_some(()));
}

/// A restored scratch server that walrecv has started; stopped when it goes.
pub struct Copy {
    pub data: PathBuf,
    pg_ctl: PathBuf,
    /// What `restore --output json` printed.
    pub told: serde_json::Value,
    _guard: Guard,
}

impl Copy {
    fn client(&self, database: &str) -> Client {
        let started = &self.told["started"];
        let folder = started["socket_directory"].as_str().expect("a socket");
        let port = started["port"].as_u64().expect("a port") as u16;
        Client::connect(Path::new(folder), port, "postgres", database).expect("a session")
    }

    /// The first value of the first row.
    pub fn value(&self, sql: &str) -> String {
        self.value_in("postgres", sql)
    }

    pub fn value_in(&self, database: &str, sql: &str) -> String {
        let rows = self.client(database).query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
    }

    /// What a tool of the server's version says of this copy; panics unless it succeeds.
    pub fn run(&self, server: &Server, tool: &str, args: &[&str]) -> String {
        let started = &self.told["started"];
        let mut command = server.bin(tool);
        command.env("PGHOST", started["socket_directory"].as_str().expect("a socket"));
        command.env("PGPORT", started["port"].to_string());
        let output = command.args(args).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {args:?}: {}\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Stops it as a DBA would; the data directory stays.
    pub fn stop(self) -> PathBuf {
        let mut command = crate::support::user::as_postgres(&self.pg_ctl);
        let output = command.arg("-D").arg(&self.data).args(["-m", "fast", "-w", "stop"]).output().expect("run pg_ctl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.data.clone()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut command = crate::support::user::as_postgres(&self.pg_ctl);
        command.arg("-D").arg(&self.data).args(["-m", "immediate", "stop"]);
        let _ = command.output();
    }
}

/// Has PostgreSQL's own tool compare a copy that was not started with the manifest in it.
pub fn verify(server: &Server, data: &Path) {
    let mut tool = crate::support::user::as_postgres(server.bin_dir().join("pg_verifybackup"));
    let output = tool.arg("-n").arg(data).output().expect("run pg_verifybackup");
    assert!(output.status.success(), "{}: {}", data.display(), String::from_utf8_lossy(&output.stderr));
}

/// Ends a receiver as its supervisor would.
pub fn end(receiver: Running) -> Output {
    receiver.terminate().expect_code(0)
}
