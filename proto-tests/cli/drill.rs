//! `walrecv drill` and `walrecv extract`: real restores into servers that leave nothing, beside a production that notices nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::{Server, TempDir, install, require_servers, wait_for};

/// A running server with an archive and a backup of it, and the folder in which scratch servers are made.
struct Shop {
    server: Server,
    site: Site,
    work: TempDir,
}

fn entries(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).expect("a folder");
    all.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

impl Shop {
    fn new(server: Server) -> Shop {
        let site = Site::new(&server);
        let mut receiver = site.receive(&["--flush-interval", "200ms"]);
        receiver.wait_logged("streaming timeline");
        server.sql("create table orders (id int primary key, note text)");
        server.sql("insert into orders select n, repeat('x', 100) from generate_series(1, 2000) n");
        site.backup();
        server.sql("insert into orders select n, 'later' from generate_series(2001, 2100) n");
        server.sql("create table \"Odd \"\"Name\" (id int); insert into \"Odd \"\"Name\" values (7)");
        wait_durable(&server, server.lsn());
        end(receiver);
        Shop { server, site, work: TempDir::for_postgres("work") }
    }

    /// The folder of events in the repository.
    fn events(&self) -> PathBuf {
        let mut open = vec![self.site.repository()];
        while let Some(folder) = open.pop() {
            let below = fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path());
            let folders: Vec<PathBuf> = below.filter(|path| path.is_dir()).collect();
            if let Some(events) = folders.iter().find(|path| path.ends_with("events")) {
                return events.clone();
            }
            open.extend(folders);
        }
        panic!("no events");
    }

    /// Whether there was one.
    fn remove_segment(&self, name: &str) -> bool {
        let mut open = vec![self.site.repository()];
        let mut removed = false;
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                let of_it = path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
                match (path.is_dir(), of_it) {
                    (true, false) => open.push(path),
                    (true, true) => fs::remove_dir_all(&path).expect("a removed tail"),
                    (false, true) => {
                        fs::remove_file(&path).expect("a removed segment");
                        removed = true;
                    }
                    (false, false) => {}
                }
            }
        }
        removed
    }

    fn run(&self, args: &[&str]) -> crate::support::walrecv::Walrecv {
        let work = self.work.path().display().to_string();
        let programs = self.server.bin_dir().display().to_string();
        self.site.walrecv(args).args(["--work-dir", &work, "--pg-bindir", &programs, "--output", "json"])
    }

    /// No folder, no process: one that was killed may need a moment to be gone.
    fn nothing_is_left(&self) {
        assert_eq!(entries(self.work.path()), [""; 0]);
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !self.processes().is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.processes(), [""; 0], "processes of a scratch server");
    }

    /// The command lines of those that stand in the work folder, or name it.
    fn processes(&self) -> Vec<String> {
        let work = self.work.path().display().to_string();
        let processes = fs::read_dir("/proc").expect("processes").filter_map(|entry| Some(entry.ok()?.path()));
        let ours = processes.filter_map(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let inside = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.work.path()));
            (inside || line.contains(&work)).then_some(line)
        });
        ours.collect()
    }
}

fn check<'r>(report: &'r Value, name: &str) -> &'r str {
    let all = report["checks"].as_array().expect("checks");
    let one = all.iter().find(|check| check["name"].as_str().expect("a name").starts_with(name));
    one.unwrap_or_else(|| panic!("{name} in {report:#}"))["state"].as_str().expect("a state")
}

/// Aimed as a restore is, and a plan without what drills have measured.
fn aimed(shop: &Shop) {
    // No restore fails for want of an estimate.
    let events = shop.events();
    let may = |mode| fs::set_permissions(&events, fs::Permissions::from_mode(mode)).expect("a mode");
    may(0o000);
    let plan = shop.site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run();
    may(0o700);
    let plan = plan.expect_code(0);
    assert!(plan.stderr.contains("cannot be read"), "{}", plan.stderr);
    let plan = plan.json();
    assert!(plan["estimate"].is_null() && plan["stored_bytes"].as_u64() > Some(0), "{plan:#}");

    // As a restore: just before the last commit, on a timeline.
    let last = plan["landing"]["last_commit"]["xid"].as_u64().expect("a transaction").to_string();
    let without = "select count(*) = 0 from \"Odd \"\"Name\"";
    let before = ["drill", "--target-xid", &last, "--exclusive", "--target-timeline", "1", "--skip", "amcheck"];
    let told = shop.run(&before).args(["--assert", without]).run().json();
    assert!(told["plan"]["target"].as_str().is_some_and(|target| target.ends_with("(exclusive)")), "{told:#}");
    assert_ne!(told["plan"]["landing"]["last_commit"]["xid"].as_u64().map(|xid| xid.to_string()), Some(last));
    shop.run(&["drill", "--target-timeline", "9"]).run().expect_code(19);
    shop.run(&["drill", "--latest", "--exclusive"]).run().expect_code(2);
}

fn drills(version: MajorVersion) {
    let shop = Shop::new(Server::builder(version).initdb("--data-checksums").start());
    let all = "select count(*) = 2100 from orders";
    let report = shop.site.places.join("etc").join("report.json");
    let told = shop.run(&["drill", "--assert", all, "--assert", "select 1 = 1", "--rpo", "1h", "--rto", "5min"]);
    let told = told.args(["--report", &report.display().to_string()]).run().expect_code(0).json();
    assert_eq!(told["passed"], true, "{told:#}");
    for name in [
        "backups",
        "newest backup",
        "landing",
        "assertion 1",
        "assertion 2",
        "amcheck",
        "checksums",
        "nothing is left",
        "rpo",
        "rto",
    ] {
        assert_eq!(check(&told, name), "passed", "{told:#}");
    }
    let (starting, recovery) = (told["rto_starting_seconds"].as_f64(), told["rto_recovery_seconds"].as_f64());
    assert!(starting > Some(0.0) && starting < recovery, "{told:#}");
    assert!(told["rto_seconds"].as_f64() > Some(0.0) && told["rpo_seconds"].as_f64() > Some(0.0), "{told:#}");
    let written: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
    assert_eq!(written, told);
    shop.nothing_is_left();

    let listed = shop.site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!((&listed["last_drill"]["passed"], &listed["last_drill"]["backup"]), (&true.into(), &told["backup"]));

    // What it measured tells how long a restore may take.
    let plan = shop.site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
    let (laying, recovery) = (&plan["estimate"]["laying_seconds"], &plan["estimate"]["recovery_seconds"]);
    assert!(laying.as_f64() > Some(0.0) && recovery.as_f64() > Some(0.0), "{plan:#}");
    assert!(plan["stored_bytes"].as_u64() > Some(0) && plan["stored_bytes"].as_u64() < plan["backup_bytes"].as_u64());
    let text = shop.site.walrecv(&["restore", "--latest", "--plan"]).run().expect_code(0).stdout;
    assert!(text.contains("estimate     ") && text.contains("as fast as the drill of"), "{text}");

    aimed(&shop);

    // The end is not reached by every random time, and never what the backup had is missing.
    let within = "select count(*) between 2000 and 2100 from orders";
    let random = ["drill", "--target-time", "random", "--seed", "7", "--assert", within, "--skip", "amcheck"];
    let told = shop.run(&random).run().expect_code(0).json();
    assert_eq!((check(&told, "assertion"), check(&told, "amcheck")), ("passed", "skipped"));
    assert!(told["plan"]["target"].as_str().expect("a target").starts_with("time "), "{told:#}");

    let wrong = ["drill", "--assert", "select count(*) = 1 from orders", "--rto", "1ms", "--skip", "amcheck"];
    let failed = shop.run(&wrong).run().expect_code(1);
    let told = failed.json();
    assert_eq!((check(&told, "assertion 1"), check(&told, "rto")), ("failed", "failed"));
    assert!(failed.stderr.contains("assertion 1"), "{}", failed.stderr);
    let listed = shop.site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["last_drill"]["failed"], serde_json::json!(["assertion 1", "rto"]));
    shop.nothing_is_left();
}

#[test]
fn a_drill_restores_checks_and_leaves_nothing_on_13() {
    require_servers!(MajorVersion::V13);
    drills(MajorVersion::V13);
}

#[test]
fn a_drill_restores_checks_and_leaves_nothing_on_18() {
    require_servers!(MajorVersion::V18);
    drills(MajorVersion::V18);
}

#[test]
fn a_drill_restores_checks_and_leaves_nothing_on_the_versions_between() {
    install::soaked_between().into_iter().for_each(drills);
}

/// An earlier moment is restored well, and the archive's end cannot be: that is what a drill is there to tell.
#[test]
fn a_drill_to_an_earlier_time_tells_of_a_gap_behind_it() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let shop = Shop::new(server);
    let last = "select count(*) = 2100 from orders";
    let plan = shop.site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
    let landed = plan["landing"]["last_commit"]["lsn"].as_str().or(plan["landing"]["last_commit"]["start"].as_str());
    let landed = landed.unwrap_or_else(|| panic!("a commit in {plan:#}")).to_owned();
    // A segment goes, and WAL behind it stays.
    let receiver = shop.site.receive(&["--flush-interval", "200ms"]);
    shop.server.sql("select pg_switch_wal()");
    shop.server.sql("insert into orders values (5000, 'behind the gap')");
    let middle = shop.server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    for _ in 0..2 {
        shop.server.sql("insert into orders select max(id) + 1, 'more' from orders; select pg_switch_wal()");
    }
    wait_durable(&shop.server, shop.server.lsn());
    end(receiver);
    let gone = shop.remove_segment(&middle);
    assert!(gone, "{middle} is stored");
    let before = ["drill", "--target-lsn", &landed, "--assert", last, "--skip", "amcheck"];
    let failed = shop.run(&before).args(["--rpo", "1h"]).run().expect_code(1);
    let told = failed.json();
    assert_eq!(
        (check(&told, "landing"), check(&told, "coverage"), check(&told, "rpo")),
        ("passed", "failed", "failed")
    );
    let details: Vec<&str> =
        told["checks"].as_array().expect("checks").iter().filter_map(|one| one["detail"].as_str()).collect();
    assert_eq!(details.iter().filter(|detail| detail.contains(&middle)).count(), 2, "{told:#}");
    // Whoever names the backup may mean an older one.
    let backup = told["backup"].as_str().expect("a backup").to_owned();
    let told = shop.run(&before).args(["--backup", &backup]).run().expect_code(0).json();
    assert!(told["remarks"][0].as_str().is_some_and(|remark| remark.contains(&middle)), "{told:#}");
    shop.nothing_is_left();
}

/// Damage that was on the server before the backup read it: a page whose checksum is wrong, and an index that lacks a row.
#[test]
fn a_drill_finds_damage_that_came_from_the_server() {
    require_servers!(MajorVersion::V16);
    let mut server = Server::builder(MajorVersion::V16).initdb("--data-checksums").start();
    server.sql("create table bad (id int primary key); insert into bad select generate_series(1, 5000)");
    server.sql("checkpoint");
    let file = server.data_dir().join(server.sql("select pg_relation_filepath('bad')"));
    server.stop(crate::support::Stop::Fast);
    let mut content = fs::read(&file).expect("a table");
    content[8192 + 5000] ^= 0x55;
    fs::write(&file, content).expect("a damaged table");
    server.start_again();
    let shop = Shop::new(server);
    let failed = shop.run(&["drill"]).run().expect_code(16);
    let told = failed.json();
    assert_eq!((check(&told, "checksums"), check(&told, "amcheck")), ("failed", "failed"), "{told:#}");
    assert!(told["remarks"][0].as_str().expect("a remark").contains("damaged on the server"), "{told:#}");
    shop.nothing_is_left();
}

/// Interrupted by a signal nothing stays; killed, the next run removes it.
#[test]
fn an_interrupted_drill_leaves_nothing_and_a_killed_one_is_cleared_by_the_next() {
    require_servers!(MajorVersion::V17);
    let shop = Shop::new(Server::start(MajorVersion::V17));
    let begin = || {
        // It asks for an hour.
        let running = shop.run(&["drill", "--assert", "select pg_sleep(3600) is not null"]).spawn();
        let up = || {
            let folder = entries(shop.work.path()).into_iter().find(|name| !name.ends_with(".lock"))?;
            let lock = fs::read_to_string(shop.work.path().join(folder).join("data/postmaster.pid")).ok()?;
            lock.contains("ready").then_some(())
        };
        wait_for("a scratch server", up);
        std::thread::sleep(Duration::from_millis(500));
        running
    };
    for signal in [Signal::INT, Signal::TERM] {
        let running = begin();
        running.signal(signal);
        assert_eq!(running.wait().code(), 130);
        wait_for("the last process to go", || entries(shop.work.path()).is_empty().then_some(()));
        shop.nothing_is_left();
    }
    begin().kill();
    assert!(!entries(shop.work.path()).is_empty(), "nobody was there to remove it");
    let next = shop.run(&["drill", "--skip", "amcheck"]).run().expect_code(0);
    assert!(next.stderr.contains("a run that was killed"), "{}", next.stderr);
    shop.nothing_is_left();
}

/// A recovery that stands still is given up, whatever holds it, and nothing of it stays.
#[test]
fn a_recovery_that_stands_still_is_given_up() {
    require_servers!(MajorVersion::V17);
    let shop = Shop::new(Server::start(MajorVersion::V17));
    let mut running = shop.run(&["drill", "--stall-limit", "3s"]).spawn();
    let of_ours = |process: &Path| {
        let title = fs::read(process.join("cmdline")).unwrap_or_default();
        let inside = || fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(shop.work.path()));
        String::from_utf8_lossy(&title).contains("startup") && inside()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    let held = loop {
        let processes = fs::read_dir("/proc").expect("processes").filter_map(|entry| Some(entry.ok()?.path()));
        if let Some(process) = processes.into_iter().find(|process| of_ours(process)) {
            break process.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number");
        }
        assert!(running.try_wait().is_none() && std::time::Instant::now() < deadline, "recovery was not seen");
    };
    let pid = rustix::process::Pid::from_raw(held).expect("a process");
    rustix::process::kill_process(pid, Signal::STOP).expect("it is held");
    let output = running.wait().expect_code(1);
    assert!(
        output.stderr.contains("the drill failed: restore: ") && output.stderr.contains("has replayed nothing for"),
        "{}",
        output.stderr
    );
    assert_eq!(check(&output.json(), "restore"), "failed");
    shop.nothing_is_left();
    let listed = shop.site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["last_drill"]["passed"], false);
}

/// Production archives for itself, waits for a synchronous standby, and subscribes to a publisher: none of them hears of a drill.
#[test]
fn a_drill_does_not_touch_production() {
    require_servers!(MajorVersion::V16);
    let publisher = Server::builder(MajorVersion::V16)
        .setting("wal_level", "logical")
        .setting("log_connections", "on")
        .setting("log_replication_commands", "on")
        .start();
    publisher.sql("create table news (id int primary key); create publication p for table news");
    let taken = TempDir::for_postgres("taken");
    let server = Server::builder(MajorVersion::V16)
        .setting("archive_mode", "on")
        .setting("archive_command", format!("cp %p {}/%f", taken.path().display()))
        .setting("synchronous_standby_names", "walrecv")
        .setting("log_connections", "on")
        .start();
    let site = Site::new(&server);
    let mut receiver = site.receive(&[]);
    receiver.wait_logged("every commit waits");
    server.sql("create table news (id int primary key)");
    let from = format!("{} dbname=postgres", publisher.conninfo("postgres"));
    server.sql(&format!("create subscription s connection '{from}' publication p with (copy_data = off)"));
    site.backup();
    publisher.sql("insert into news values (1)");
    server.wait_sql("select count(*) from news", "1");
    wait_durable(&server, server.lsn());

    let shop = Shop { server, site, work: TempDir::for_postgres("work") };
    let heard = |server: &Server| server.log().lines().filter(|line| line.contains("connection received")).count();
    let sender = |server: &Server| {
        server.sql("select string_agg(pid || application_name, ' ' order by pid) from pg_stat_replication")
    };
    let before = (sender(&publisher), sender(&shop.server));
    let (at_publisher, at_server) = (heard(&publisher), heard(&shop.server));
    let asserted = "select count(*) = 1 from news where pg_sleep(3) is not null";
    let written = "with x as (insert into news values (5) returning 1) select true from x";
    let told = shop.run(&["drill", "--assert", asserted, "--assert", written]).run().expect_code(0).json();
    assert_eq!(told["passed"], true, "{told:#}");
    assert_eq!((heard(&publisher), heard(&shop.server)), (at_publisher, at_server), "somebody asked production");
    assert_eq!((sender(&publisher), sender(&shop.server)), before);
    let foreign = |name: &String| !name.starts_with("00000001");
    assert_eq!(entries(taken.path()).into_iter().find(foreign), None, "WAL of the scratch server's timeline");
    // Production goes on: the subscription brings rows, commits are answered.
    publisher.sql("insert into news values (2)");
    shop.server.wait_sql("select string_agg(id::text, ',' order by id) from news", "1,2");
    shop.nothing_is_left();
    end(receiver);
}

/// PostgreSQL takes a line break in a name.
#[test]
fn a_database_whose_name_holds_a_line_break_is_checked_as_any_other() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::start(version);
        server.sql("create database \"two\nlines\"");
        let shop = Shop::new(server);
        let report = shop.run(&["drill"]).run().expect_code(0).json();
        assert_eq!(check(&report, "amcheck"), "passed", "{report:#}");
        shop.nothing_is_left();
    }
}
