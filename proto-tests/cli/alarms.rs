//! What somebody has to be told, and for how long: a repository that is away at the start, holes, commits that wait; and what is no alarm.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use walrecv::pg::{Lsn, MajorVersion};

use crate::site::{Site, end, wait_durable};
use crate::support::proxy::Proxy;
use crate::support::walrecv::Running;
use crate::support::{Moto, Server, require_moto, require_servers, wait_for};

/// Adds lines to the table of the only cluster.
fn configure(site: &Site, lines: &str) {
    let text = std::fs::read_to_string(site.config()).expect("a configuration");
    std::fs::write(site.config(), text.replace("[clusters.main]\n", &format!("[clusters.main]\n{lines}\n")))
        .expect("write the configuration");
}

/// A bucket behind a proxy, and a way to start commands that go through it.
struct Away {
    site: Site,
    proxy: Proxy,
}

impl Away {
    fn new(server: &Server, bucket: &str) -> Away {
        Away { site: Site::in_bucket(server, bucket), proxy: Proxy::start(Moto::shared().port()) }
    }

    fn start(&self, command: &str) -> Running {
        let endpoint = format!("http://127.0.0.1:{}", self.proxy.port);
        self.site.walrecv(&[command]).env("AWS_ENDPOINT_URL", &endpoint).env("AWS_ENDPOINT", &endpoint).spawn()
    }
}

#[test]
fn a_repository_that_is_away_at_the_start_is_waited_for() {
    require_servers!(MajorVersion::V17);
    require_moto!();
    let server = Server::start(MajorVersion::V17);
    let away = Away::new(&server, "away-at-start");
    for command in ["receive", "run"] {
        away.proxy.refuse(true);
        let mut running = away.start(command);
        running.wait_logged("trying again in");
        let told = wait_cluster(&away.site, "its state", |cluster| cluster["state"] == "awaiting_repository");
        let problem = told["problem"].as_str().unwrap_or_default();
        assert!(problem.contains("walrecv.json") && told["kind"] == "repository", "{told}");
        assert_eq!(told["process"]["command"], command, "{told}");
        away.proxy.refuse(false);
        running.wait_logged("streaming timeline");
        server.sql("select pg_logical_emit_message(true, 'a', 'b')");
        wait_durable(&server, server.lsn());
        end(running);
        // Asked to stop while it waits.
        away.proxy.refuse(true);
        let mut running = away.start(command);
        running.wait_logged("trying again in");
        end(running);
    }
}

/// Neither in the environment nor from the machine: nobody would ever give them to a process that waits.
#[test]
fn credentials_that_are_nowhere_are_an_error_at_once() {
    require_servers!(MajorVersion::V17);
    require_moto!();
    let server = Server::start(MajorVersion::V17);
    let site = Site::in_bucket(&server, "no-credentials");
    for command in ["receive", "run"] {
        let command = site.walrecv(&[command]).env("AWS_ACCESS_KEY_ID", "").env("AWS_SECRET_ACCESS_KEY", "");
        let told = command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1").run().expect_code(10).stderr;
        assert!(told.contains("set AWS_ACCESS_KEY_ID and"), "{told}");
    }
}

#[test]
fn a_second_signal_leaves_at_once() {
    require_servers!(MajorVersion::V16);
    require_moto!();
    let server = Server::start(MajorVersion::V16);
    let away = Away::new(&server, "second-signal");
    configure(&away.site, "shutdown_grace = \"10m\"\nstall_timeout = \"10m\"");
    for (command, second) in [("receive", Signal::TERM), ("run", Signal::INT)] {
        let mut running = away.start(command);
        running.wait_logged("streaming timeline");
        wait_durable(&server, server.lsn());
        away.proxy.stall(true);
        server.sql("select pg_logical_emit_message(true, 'a', 'b')");
        std::thread::sleep(Duration::from_millis(1500));
        running.signal(Signal::TERM);
        running.wait_logged("a second signal leaves at once");
        std::thread::sleep(Duration::from_secs(1));
        assert!(running.try_wait().is_none(), "it waits for the repository");
        let asked = Instant::now();
        running.signal(second);
        let ended = running.wait().expect_code(130);
        assert!(asked.elapsed() < Duration::from_secs(60), "left after {:?}", asked.elapsed());
        assert!(ended.stderr.contains("left at once by a second SIG"), "{}", ended.stderr);
        away.proxy.stall(false);
    }
}

/// WAL that only waits for its flush is no sign of a repository that takes nothing.
#[test]
fn a_flush_interval_of_minutes_is_no_stall() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    let site = Site::new(&server);
    configure(&site, "stall_timeout = \"3s\"\nflush_interval = \"2m\"");
    let receiver = site.receive(&[]);
    server.sql("create table t as select 1");
    let written = server.lsn();
    std::thread::sleep(Duration::from_secs(6));
    let told = server.sql("select flush_lsn from pg_stat_replication where state = 'streaming'");
    assert!(told.parse::<Lsn>().expect("a position") < written, "flushed before it was due: {told}");
    let status = site.walrecv(&["status", "--output", "json"]).run().expect_code(0).json();
    assert_eq!((&status["clusters"][0]["state"], &status["clusters"][0]["stalls"]), (&"streaming".into(), &0.into()));
    let said = end(receiver).stderr;
    assert!(said.contains("left on the server") && !said.contains("takes nothing"), "{said}");
    let durable = cluster(&site)["positions"]["durable"].as_str().expect("a position").parse::<Lsn>();
    assert!(durable.expect("an LSN") >= written, "a stop does not wait until it is due");
}

/// A script that brings the archive up to a position would hang behind a receiver that has the slot, perhaps for years.
#[test]
fn a_run_that_is_to_end_does_not_wait_for_another_receiver_for_ever() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    let until = server.lsn().to_string();
    let refused = site.walrecv(&["receive", "--until", &until]).run().expect_code(11).stderr;
    assert!(refused.contains("another receiver has had slot") && refused.contains(&until), "{refused}");
    end(receiver);
    site.walrecv(&["receive", "--until", &until]).run().expect_code(0);
}

/// The only cluster as `status` tells it.
fn cluster(site: &Site) -> Value {
    site.walrecv(&["status", "--output", "json"]).run().json()["clusters"][0].clone()
}

#[track_caller]
fn wait_cluster(site: &Site, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, || Some(cluster(site)).filter(&wanted))
}

/// Whoever looks after the hole was recorded has to see it: after a restart, where nobody streams, in `check` and in `list`, until a backup lies behind it.
#[test]
fn a_hole_is_told_until_a_backup_lies_behind_it() {
    require_servers!(MajorVersion::V15);
    let small = Server::builder(MajorVersion::V15).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    let server = small.setting("max_slot_wal_keep_size", "3MB").start();
    let site = Site::new(&server);
    configure(&site, "on_gap = \"new-range\"");
    end(site.receive(&[]));
    wait_for("the slot to be lost", || {
        server.switch_wal();
        server.sql("checkpoint");
        (server.sql("select wal_status from pg_replication_slots") == "lost").then_some(())
    });
    let receiver = site.receive(&[]);
    let told = wait_cluster(&site, "the hole", |cluster| cluster["hole"].is_string());
    assert_eq!((&told["healthy"], &told["problem"]), (&false.into(), &told["hole"]));
    end(receiver);
    assert_eq!(cluster(&site)["hole"], told["hole"], "where nobody streams");
    let listed = |closed: bool| {
        let holes = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json()["holes"].clone();
        assert_eq!(
            (holes.as_array().map(Vec::len), &holes[0]["closed_by_backup"]),
            (Some(1), &closed.into()),
            "{holes}"
        );
    };
    let checked = || {
        let findings = site.walrecv(&["check", "--output", "json"]).run().json()["findings"].clone();
        let finding =
            findings.as_array().and_then(|all| all.iter().find(|finding| finding["check"] == "holes").cloned());
        finding.unwrap_or_else(|| panic!("no word of holes: {findings}"))
    };
    listed(false);
    assert_eq!(checked()["verdict"], "warn");
    let receiver = site.receive(&[]);
    let again = wait_cluster(&site, "the hole after a restart", |cluster| cluster["hole"].is_string());
    assert_eq!((&again["hole"], &again["healthy"]), (&told["hole"], &false.into()));

    site.backup();
    listed(true);
    assert_eq!(checked()["verdict"], "ok");
    end(receiver);
    assert_eq!(cluster(&site)["hole"], Value::Null);
    let receiver = site.receive(&[]);
    // The repository was asked once it says so.
    let healthy = wait_cluster(&site, "health", |cluster| cluster["healthy"] == true);
    assert_eq!(healthy["hole"], Value::Null);
    end(receiver);
}
