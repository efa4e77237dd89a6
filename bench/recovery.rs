//! Recovery over many segments, side by side: through `wal-fetch`, through `cp`, through pgBackRest and Barman, and with the segments already in pg_wal.
//!
//! `cargo bench --bench recovery -- --mib 3200` (as root, servers and storage emulator installed by `pg-test-env/install`; pgBackRest and Barman are measured
//! where they are found). The same backup and the same WAL for all; measured by the server's own log, from the begin of recovery to its stop. Options after `--`:
//! `--mib N` of WAL (2048), `--rounds N`, `--version N` (15: the last that Debian's pgBackRest knows), `--json FILE`, `--only NAME`: `pg_wal`, `mv` (the
//! floor: every segment is there, synced, and one small program renames it), `cp`, `walrecv`, `walrecv-alone` (nothing is fetched ahead), `pgbackrest`, `barman`, `s3`
//! (with 50 ms of added delay); `--also NAME=FILE`: another build of walrecv.

#[path = "common.rs"]
mod common;
#[path = "peers.rs"]
mod peers;
#[path = "process.rs"]
mod process;
#[path = "slow_store.rs"]
mod slow_store;
#[path = "../proto-tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Options, median};
use serde_json::json;
use slow_store::Store;
use support::user::{as_postgres, give_to_postgres};
use support::{Server, TempDir, Walrecv};

const WAYS: [&str; 8] = ["pg_wal", "mv", "cp", "walrecv", "walrecv-alone", "pgbackrest", "barman", "s3"];
type Env = Vec<(&'static str, String)>;

fn main() {
    let options = Options::parse(0);
    let mut ways: Vec<&str> = WAYS.into_iter().filter(|way| options.wants(way)).collect();
    ways.retain(|way| match *way {
        "pgbackrest" => peers::has_pgbackrest(options.version),
        "barman" => peers::barman().is_some(),
        _ => true,
    });
    ways.extend(options.also.iter().map(|(name, _)| name.as_str()));
    let bench = Bench::new(&options, &ways);
    eprintln!(
        "PostgreSQL {}, {} segments, on {}",
        options.version,
        bench.segments.len(),
        common::file_system(bench.temp.path())
    );
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for round in 0..options.rounds {
        for (index, way) in ways.iter().enumerate() {
            let took = bench.recover(way, options.build(way));
            eprintln!("round {round} {way:<14} {took:.2} s");
            seconds[index].push(took);
        }
    }
    let medians: Vec<f64> = seconds.iter().map(|s| median(s.iter().copied())).collect();
    let reference = ways.iter().position(|way| *way == "pg_wal").map_or(f64::NAN, |at| medians[at]);
    println!("{:<14} {:>8} {:>7}", "way", "wall s", "ratio");
    let mut rows = Vec::new();
    for ((way, median), samples) in ways.iter().zip(&medians).zip(&seconds) {
        println!("{way:<14} {median:>8.2} {:>7.2}", median / reference);
        rows.push(json!({ "way": way, "seconds": median, "ratio": median / reference, "samples": samples }));
    }
    options.write_json(&json!({ "bench": "recovery", "postgresql": options.version.number(), "segments": bench.segments.len(), "rows": rows }));
}

struct Bench {
    temp: TempDir,
    server: Server,
    /// The WAL, as plain files.
    archive: PathBuf,
    segments: Vec<String>,
    target: String,
    store: Option<Store>,
}

impl Bench {
    fn new(options: &Options, ways: &[&str]) -> Bench {
        let s3 = ways.contains(&"s3");
        let server = Server::builder(options.version)
            .segment_size_mb(16)
            .setting("max_wal_size", "40GB")
            .setting("wal_keep_size", "40GB")
            .setting("shared_buffers", "256MB")
            .start();
        let temp = TempDir::for_postgres("bench");
        let store = s3.then(Store::start);
        let mut bench = Bench {
            archive: temp.postgres_dir("archive"),
            temp,
            server,
            segments: Vec::new(),
            target: String::new(),
            store,
        };
        let sites: Vec<&str> = if s3 { vec!["local", "s3"] } else { vec!["local"] };
        let receivers: Vec<_> = sites.iter().map(|site| bench.begin(site)).collect();
        let begun = bench.server.lsn();
        bench.server.sql("CREATE TABLE load (i bigint, t text)");
        let rows = "SELECT i, repeat(md5(i::text), 9) FROM generate_series(1, 100000) i";
        while bench.server.lsn().since(begun) < options.mib << 20 {
            bench.server.sql(&format!("INSERT INTO load {rows}"));
        }
        bench.target = bench.server.lsn().to_string();
        bench.server.sql("INSERT INTO load VALUES (0, 'the end')");
        let end = bench.server.switch_wal();
        let all = "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= ";
        while bench.server.sql(&format!("{all}'{end}'")) != sites.len().to_string() {
            std::thread::sleep(Duration::from_millis(100));
        }
        receivers.into_iter().for_each(|receiver| drop(receiver.terminate()));
        let pg_wal = bench.server.data_dir().join("pg_wal");
        let last = bench.server.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        let entries = fs::read_dir(&pg_wal).expect("list pg_wal");
        let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.retain(|name| name.len() == 24 && *name <= last);
        names.sort();
        for name in &names {
            fs::copy(pg_wal.join(name), bench.archive.join(name)).expect("copy a segment");
            give_to_postgres(&bench.archive.join(name));
        }
        bench.segments = names;
        if ways.contains(&"pgbackrest") {
            bench.push();
        }
        if ways.contains(&"barman") {
            bench.shelve();
        }
        sites.iter().for_each(|site| bench.lay(site));
        bench
    }

    fn config(&self, site: &str) -> String {
        self.temp.join(site).join("walrecv.toml").display().to_string()
    }

    /// Straight to the emulator where it is filled, through the delay where it is read.
    fn env(&self, site: &str, slow: bool) -> Env {
        match &self.store {
            Some(store) if site == "s3" => {
                if slow {
                    store.env()
                } else {
                    store.moto.env()
                }
            }
            _ => Vec::new(),
        }
    }

    /// A repository with a backup, and a receiver that goes on.
    fn begin(&self, site: &str) -> support::walrecv::Running {
        self.temp.postgres_dir(site);
        let config = self.config(site);
        let url = match &self.store {
            Some(store) if site == "s3" => store.moto.bucket("recovery"),
            _ => format!("file://{}", self.temp.join("repository").display()),
        };
        let (dsn, slot) = (self.server.conninfo("postgres"), format!("bench_{site}"));
        let run =
            |args: &[&str]| Walrecv::new(args).by_postgres().envs(self.env(site, false)).args(["--config", &config]);
        run(&["init", "--repo", &url, "--dsn", &dsn, "--slot", &slot, "--create-slot"]).run().expect_code(0);
        let mut receiver = run(&["receive", "--compression", "lz4"]).spawn();
        receiver.wait_logged("streaming timeline");
        run(&["backup"]).run().expect_code(0);
        receiver
    }

    /// A restored data directory to be copied for each recovery.
    fn lay(&self, site: &str) {
        let (data, programs) = (self.temp.join(format!("laid-{site}")), self.server.bin_dir());
        let args =
            ["restore", "--target-lsn", &self.target, "--target-action", "shutdown", "--config", &self.config(site)];
        let restore = Walrecv::new(args).by_postgres().envs(self.env(site, false));
        restore.arg("--pgdata").arg(data).arg("--pg-bindir").arg(programs).run().expect_code(0);
    }

    fn recover(&self, way: &str, build: Option<&Path>) -> f64 {
        let data = self.temp.join("data");
        let laid = self.temp.join(if way == "s3" { "laid-s3" } else { "laid-local" });
        let copied = Command::new("cp").arg("-a").arg(&laid).arg(&data).status().expect("run cp");
        assert!(copied.success());
        let command = match way {
            "pg_wal" => {
                self.copy_segments(&data.join("pg_wal"));
                Some("false".to_owned())
            }
            "mv" => {
                let aside = self.temp.postgres_dir("aside");
                self.copy_segments(&aside);
                Some(format!("mv {}/%f %p", aside.display()))
            }
            "cp" => Some(format!("cp {}/%f %p", self.archive.display())),
            "pgbackrest" => Some(format!("{} --pg1-path={} archive-get %f %p", self.pgbackrest(), data.display())),
            "barman" => Some(format!("{} get-wal bench %f > %p", self.barman())),
            "walrecv-alone" => Some(format!("{} wal-fetch --prefetch 0 %f %p", support::walrecv::path().display())),
            _ => build.map(|build| format!("{} wal-fetch %f %p", build.display())),
        };
        let auto = data.join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&auto).expect("read the settings");
        text += "log_line_prefix = '%n '\nlogging_collector = off\nshared_buffers = '256MB'\nmax_wal_size = '40GB'\n";
        text += "listen_addresses = ''\nhot_standby = off\n";
        text.extend(command.map(|command| format!("restore_command = '{command}'\n")));
        fs::write(&auto, text).expect("write the settings");
        give_to_postgres(&auto);
        let _ = Command::new("sync").status();
        let log = self.temp.join("server.log");
        let file = fs::File::create(&log).expect("make a log");
        let mut postgres = as_postgres(self.server.bin_dir().join("postgres"));
        postgres.args(["-c", "log_destination=stderr", "-c", "log_min_messages=log"]);
        postgres.arg("-D").arg(&data).arg("-k").arg(self.temp.path()).envs(self.env(way, true));
        postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).status().expect("run the server");
        let said = fs::read_to_string(&log).expect("read the log");
        let at = |what: &str| -> f64 {
            let line = said
                .lines()
                .find(|line| line.contains(what))
                .unwrap_or_else(|| panic!("{way}: no {what:?} in\n{said}"));
            line.split(' ').next().and_then(|t| t.parse().ok()).expect("a time")
        };
        let took = at("recovery stopping") - at("starting point-in-time recovery");
        fs::remove_dir_all(&data).expect("remove the copy");
        let _ = fs::remove_dir_all(self.temp.join("aside"));
        took
    }

    fn copy_segments(&self, to: &Path) {
        for name in &self.segments {
            fs::copy(self.archive.join(name), to.join(name)).expect("copy a segment");
            give_to_postgres(&to.join(name));
        }
    }

    fn pgbackrest(&self) -> String {
        format!("pgbackrest --config={} --stanza=bench", self.temp.join("pgbackrest.conf").display())
    }

    /// Its archive, lz4 and encrypted, two processes, fetching ahead as much as walrecv does.
    fn push(&self) {
        let (work, out) = (self.temp.postgres_dir("work"), self.temp.postgres_dir("pgbackrest"));
        let (data, sockets) = (self.server.data_dir().display(), self.server.socket_dir().display());
        let text = format!(
            "[global]\nrepo1-path={}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=0123456789abcdef0123456789abcdef\ncompress-type=lz4\n\
             process-max=2\narchive-async=y\narchive-get-queue-max=512MB\nlog-level-console=warn\nlog-level-file=off\narchive-check=n\n\
             lock-path={work}\nspool-path={work}\n\n[bench]\npg1-path={data}\npg1-port={}\npg1-socket-path={sockets}\npg1-user=postgres\n",
            out.display(),
            self.server.port(),
            work = work.display(),
        );
        let config = self.temp.join("pgbackrest.conf");
        fs::write(&config, text).expect("write a configuration");
        give_to_postgres(&config);
        let run = |line: String| {
            let status = as_postgres("sh").args(["-c", &line]).status().expect("run sh");
            assert!(status.success(), "{line}");
        };
        run(format!("{} stanza-create", self.pgbackrest()));
        for name in &self.segments {
            run(format!("{} --no-archive-async archive-push {}", self.pgbackrest(), self.segment(name).display()));
        }
    }

    fn barman(&self) -> String {
        let program = peers::barman().expect("barman");
        format!("{} --config {}", program.display(), self.temp.join("barman.conf").display())
    }

    /// Where `barman archive-wal` puts segments, as its compression `none` leaves them.
    fn shelve(&self) {
        let out = self.temp.postgres_dir("barman");
        peers::barman_config(&self.server, &self.temp, &out);
        for name in &self.segments {
            let folder = self.temp.postgres_dir(&format!("barman/bench/wals/{}", &name[..16]));
            fs::copy(self.archive.join(name), folder.join(name)).expect("copy a segment");
            give_to_postgres(&folder.join(name));
        }
    }

    fn segment(&self, name: &str) -> PathBuf {
        Path::new(self.server.data_dir()).join("pg_wal").join(name)
    }
}
