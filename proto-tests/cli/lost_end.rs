//! What a repository has lost at its end, or of a timeline's history, is told from an end where there was never more.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walrecv::pg::{Lsn, MajorVersion};

use crate::check::point_to;
use crate::site::{Site, end, wait_durable};
use crate::support::proxy::Proxy;
use crate::support::walrecv::Output;
use crate::support::{Server, Walrecv, require_servers};

/// The folder of the one cluster.
fn cluster(site: &Site) -> PathBuf {
    let below = fs::read_dir(site.repository().join("clusters/main")).expect("a cluster");
    let mut all = below.map(|entry| entry.expect("an entry").path());
    all.next().expect("a folder")
}

/// The tail's segments, without the heartbeats.
fn tails(site: &Site) -> Vec<PathBuf> {
    let below = fs::read_dir(cluster(site).join("tail/00000001")).expect("a tail");
    let all = below.map(|entry| entry.expect("an entry").path());
    all.filter(|path| !path.ends_with("heartbeats")).collect()
}

fn plan(site: &Site, args: &[&str]) -> Output {
    site.walrecv(&["restore", "--plan"]).args(args).run()
}

/// A heartbeat is stored after the WAL that it speaks of: where that is gone, the end of what is left is not the end.
#[test]
fn wal_that_a_heartbeat_speaks_of_is_missed() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table story (n int)");
    site.backup();
    server.sql("insert into story values (1)");
    server.switch_wal();
    server.sql("insert into story values (2)");
    wait_durable(&server, server.lsn());
    let (idle, _) = site.idle_time(&server);
    end(receiver);

    let well = || {
        plan(&site, &["--latest"]).expect_code(0);
        site.walrecv(&["verify"]).run().expect_code(0);
        site.walrecv(&["find", "--last", "1h"]).run().expect_code(0);
        for args in [&["list"][..], &["list", "--windows"]] {
            let told = site.walrecv(args).run().expect_code(0);
            assert!(!told.stdout.contains("heartbeat shows") && !told.stderr.contains("heartbeat"), "{}", told.stderr);
        }
    };
    well();
    let away = site.places.postgres_dir("away");
    let moved: Vec<(PathBuf, PathBuf)> =
        tails(&site).into_iter().map(|from| (from.clone(), away.join(from.file_name().expect("a name")))).collect();
    assert!(!moved.is_empty());
    moved.iter().for_each(|(from, to)| fs::rename(from, to).expect("a tail that goes"));
    let gone = |output: Output| {
        let output = output.expect_code(15);
        assert!(
            format!("{}{}", output.stdout, output.stderr).contains("heartbeat"),
            "{}{}",
            output.stdout,
            output.stderr
        );
        output.stderr
    };
    let said = gone(plan(&site, &["--latest"]));
    gone(plan(&site, &["--target-time", &idle]));
    gone(site.walrecv(&["verify"]).run());
    let missing = site.walrecv(&["find", "--last", "1h"]).run().expect_code(15);
    assert!(missing.stdout.contains("MISSING"), "{}", missing.stdout);
    let windows = site.walrecv(&["list", "--windows"]).run().expect_code(0).stdout;
    assert!(windows.contains("HOLE") && windows.contains("a heartbeat shows"), "{windows}");
    assert!(site.walrecv(&["list"]).run().expect_code(0).stderr.contains("heartbeat"));
    // What is there can be had by its name, as the hint says.
    let lsn = said.split("--target-lsn ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a position");
    plan(&site, &["--target-lsn", lsn]).expect_code(0);
    moved.iter().for_each(|(from, to)| fs::rename(to, from).expect("a tail that comes back"));
    well();
}

fn fetch(site: &Site, pgdata: &Path, name: &str) -> i32 {
    let config = site.config().display().to_string();
    let args = ["wal-fetch", name, "fetched", "--standby-wait", "1s", "--config", &config];
    Walrecv::new(args).by_postgres().dir(pgdata).run().code()
}

/// A timeline of which WAL is stored has a history, which was stored before: "absent" would make another timeline of that number.
#[test]
fn a_history_that_is_gone_is_not_absent() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let mut server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    site.backup();
    wait_durable(&server, server.lsn());
    server.kill9();
    end(receiver);
    site.restore(&server, "first", &["--latest"]).run().expect_code(0);
    let first = Server::builder(version).on_data_dir(&site.data("first")).start();
    first.wait_sql("select pg_is_in_recovery()", "f");
    point_to(&site, &first.conninfo("postgres"));
    site.walrecv(&["slot", "create"]).run().expect_code(0);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    first.sql("create table story (n int)");
    wait_durable(&first, first.lsn());
    let open = first.sql("select pg_walfile_name(pg_current_wal_lsn())");
    end(receiver);

    let pgdata = site.places.postgres_dir("recovering");
    fs::write(pgdata.join("recovery.signal"), "").expect("a signal");
    let history = cluster(&site).join("wal/00000002.history");
    let away = site.places.postgres_dir("away").join("history");
    assert_eq!(fetch(&site, &pgdata, "00000002.history"), 0);
    fs::rename(&history, &away).expect("a history that goes");
    assert!(fetch(&site, &pgdata, "00000002.history") > 125, "a recovery that would end on timeline 1");
    assert_eq!(fetch(&site, &pgdata, &open), 0, "WAL of that timeline");
    assert_eq!(fetch(&site, &pgdata, "00000003.history"), 1, "nothing of it was ever stored");
    let later = format!("00000001{}", &open[8..]);
    assert!(fetch(&site, &pgdata, &later) > 125, "it may be where timeline 2 left");
    fs::rename(pgdata.join("recovery.signal"), pgdata.join("standby.signal")).expect("a standby");
    assert_eq!(fetch(&site, &pgdata, "00000002.history"), 1, "a standby asks again");
    fs::rename(&away, &history).expect("a history that comes back");
    assert_eq!(fetch(&site, &pgdata, "00000002.history"), 0);
}

/// A server that dies while it sends the zeros behind a WAL switch: all that was written is stored, and nothing is missed.
#[test]
fn an_end_among_the_zeros_behind_a_switch_is_whole() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let mut server = Server::builder(version).segment_size_mb(16).start();
    let site = Site::new(&server);
    let proxy = Proxy::start(server.port());
    point_to(&site, &format!("host=127.0.0.1 port={} user=postgres", proxy.port));
    let receiver = site.receive(&["--flush-interval", "100ms"]);
    server.sql("create table story (n int)");
    site.backup();
    server.sql("insert into story select generate_series(1, 10)");
    let before = server.lsn();
    wait_durable(&server, before);
    proxy.trickle(500_000);
    let border = server.switch_wal();
    // What comes is stored and not reported, until it is known to be all of the segment.
    std::thread::sleep(Duration::from_secs(3));
    server.kill9();
    proxy.refuse(true);
    proxy.cut();
    end(receiver);
    let listed = site.walrecv(&["list", "--windows", "--output", "json"]).run().expect_code(0).json();
    let stored: Lsn = listed["timelines"][0]["wal"][0]["to_lsn"].as_str().expect("an end").parse().expect("a position");
    assert!(before <= stored && stored < Lsn(border.0.next_multiple_of(16 << 20)), "{before} {stored} {border}");

    for args in [&["verify"][..], &["verify", "--deep"], &["find", "--last", "1h"], &["list"]] {
        let told = site.walrecv(args).run().expect_code(0);
        assert!(!told.stdout.contains("MISSING") && !told.stdout.contains("HOLE"), "{args:?}: {}", told.stdout);
    }
    let copy = site.land(&server, "latest", &["--latest"]);
    assert_eq!(copy.value("select count(*) from story"), "10");
    drop(copy);

    // The server comes back and sends the same zeros again.
    server.start_again();
    proxy.refuse(false);
    proxy.trickle(0);
    let receiver = site.receive(&[]);
    server.sql("insert into story values (11)");
    wait_durable(&server, server.lsn());
    end(receiver);
    let copy = site.land(&server, "again", &["--latest"]);
    assert_eq!(copy.value("select count(*) from story"), "11");
}
