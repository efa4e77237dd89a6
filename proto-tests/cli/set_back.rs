//! A server that was set back to a snapshot of its disk, and has since written other WAL.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walrecv::pg::{Lsn, MajorVersion};

use crate::site::{Site, end, wait_durable};
use crate::support::server::Stop;
use crate::support::{Server, require_servers};

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success());
}

/// By summaries of WAL alone the pages that only the first history changed are as the first backup has them. Nobody compares that history with the other one: the
/// server has let go of the WAL in which they part.
#[test]
fn an_increment_is_not_built_on_another_history_behind_a_hole() {
    let version = MajorVersion::V18;
    require_servers!(version);
    let builder = Server::builder(version).segment_size_mb(1).setting("autovacuum", "off");
    let builder = builder.setting("summarize_wal", "on").setting("min_wal_size", "2MB").setting("max_wal_size", "8MB");
    let mut server = builder.start();
    let site = Site::empty();
    site.init(&server.conninfo("postgres")).run().expect_code(0);
    server.sql("create table kept as select n, repeat('before', 100) word from generate_series(1, 500) n");
    server.sql("create table other as select n from generate_series(1, 10) n");
    server.sql("vacuum freeze");
    server.stop(Stop::Fast);
    let snapshot = site.places.join("snapshot");
    copy(server.data_dir(), &snapshot);
    server.start_again();

    server.sql("update kept set word = repeat('first!', 100) where n % 20 = 0");
    let first = site.backup();
    let stop: Lsn = first["stop_lsn"].as_str().and_then(|text| text.parse().ok()).expect("a position");

    server.stop(Stop::Fast);
    std::fs::remove_dir_all(server.data_dir()).expect("remove the data");
    copy(&snapshot, server.data_dir());
    server.start_again();
    while server.lsn() < stop + (12 << 20) {
        server.sql("insert into other select n from generate_series(1, 5000) n");
        server.switch_wal();
        server.sql("checkpoint");
    }
    let kept = "select string_agg(name, ',' order by name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'";
    let past = server.sql(&format!("select pg_walfile_name('{stop}')"));
    assert!(server.sql(kept).split(',').all(|name| name > past.as_str()), "{} of {past}", server.sql(kept));

    let second = site.backup();
    assert_eq!((&second["transfer"], &second["parent"]), (&"full".into(), &first["id"]), "{second}");
    let shown = site.walrecv(&["show", "latest", "--output", "json"]).run().expect_code(0).json();
    let why = shown["why_full"].as_str().unwrap_or_default();
    assert!(why.contains("not all WAL from backup") && why.contains(first["id"].as_str().unwrap_or("?")), "{shown}");
    let (reused, changed) = (second["reused_bytes"].as_u64(), second["changed_bytes"].as_u64());
    assert!(reused > changed, "only what differs is stored: {second}");
    let landed = site.land(&server, "copy", &["--latest"]);
    assert_eq!(landed.value("select count(*) from kept where word like 'first!%'"), "0");
    assert_eq!(landed.value("select count(*) from kept"), "500");

    // Behind the hole everything is as ever.
    server.sql("insert into other select 1");
    let third = site.backup();
    assert_eq!((&third["transfer"], &third["parent"]), (&"incremental".into(), &second["id"]), "{third}");
}

/// What such a server says while it is behind what is stored tells nothing of the archive: every command
/// names a moment before it was set back.
#[test]
fn a_server_behind_what_is_stored_proves_no_moment() {
    // In one segment, and over several.
    for (version, rows) in [(MajorVersion::V13, 1000), (MajorVersion::V18, 40_000)] {
        require_servers!(version);
        let mut server = Server::start(version);
        let site = Site::new(&server);
        let receiver = site.receive(&["--flush-interval", "100ms"]);
        server.sql("create table story (n int)");
        site.backup();
        server.stop(Stop::Fast);
        let snapshot = site.places.join("snapshot");
        copy(server.data_dir(), &snapshot);
        server.start_again();
        server.sql(&format!("insert into story select generate_series(1, {rows})"));
        wait_durable(&server, server.lsn());
        let until: jiff::Timestamp =
            server.sql("select clock_timestamp()").replace("+00", "Z").parse().expect("a time");
        server.stop(Stop::Immediate);
        std::fs::remove_dir_all(server.data_dir()).expect("remove the data");
        copy(&snapshot, server.data_dir());
        server.start_again();
        server.wait_sql("select count(*) from pg_stat_replication where state = 'streaming'", "1");
        std::thread::sleep(Duration::from_secs(6));
        let shown = |args: &[&str]| site.walrecv(args).args(["--output", "json"]).run().json();
        let running = shown(&["status"])["clusters"][0]["complete_through"].clone();
        end(receiver);

        let planned = shown(&["restore", "--latest", "--plan"])["landing"]["last_commit"]["time"].clone();
        let last: jiff::Timestamp = planned.as_str().and_then(|text| text.parse().ok()).expect("a time");
        let at_most = |what: &str, told: &serde_json::Value| {
            let told: Option<jiff::Timestamp> = told.as_str().map(|text| text.parse().expect("a time"));
            assert!(
                told.is_none_or(|told| told <= until),
                "{version}: {what} says {told:?}, it was set back at {until}"
            );
            told
        };
        at_most("the running receiver", &running);
        let through = at_most("list", &shown(&["list"])["backups"][0]["complete_through"]);
        assert!(through >= Some(last), "{version}: {through:?}, the last commit is of {last}");
        at_most("show", &shown(&["show", "latest"])["complete_through"]);
        at_most("status", &shown(&["status"])["clusters"][0]["complete_through"]);
        at_most("windows", &shown(&["list", "--windows"])["timelines"][0]["windows"][0]["through"]);
    }
}
