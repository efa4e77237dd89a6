//! An idle time after the last commit is a target like any other: the archive knows that nothing was committed up to it.

use std::time::Duration;

use walrecv::pg::MajorVersion;

use crate::refusals::write;
use crate::site::{Site, end, wait_durable};
use crate::support::{Server, install, require_servers};

fn restored_to_an_idle_time(version: MajorVersion) {
    let mut server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table story as select 1 as n");
    let early = server.sql("select clock_timestamp()");
    std::thread::sleep(Duration::from_millis(1200));
    server.sql("insert into story values (2)");
    site.backup();
    std::thread::sleep(Duration::from_millis(1200));
    server.sql("insert into story values (3)");
    server.sql("checkpoint");
    wait_durable(&server, server.lsn());
    std::thread::sleep(Duration::from_secs(1));
    let (idle, idle_at) = site.idle_time(&server);
    end(receiver);
    let late = server.sql("select clock_timestamp()");
    server.kill9();

    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    let window = &listed["backups"][0];
    let through: jiff::Timestamp =
        window["complete_through"].as_str().and_then(|t| t.parse().ok()).unwrap_or_else(|| panic!("{window}"));
    assert!(through > idle_at, "{through} {idle}");
    let text = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(text.contains(&through.strftime("%Y-%m-%d %H:%M:%SZ").to_string()), "{text}");

    let copy = site.land(&server, "data", &["--target-time", &idle]);
    assert_eq!(copy.value("select count(*) from story"), "3");
    assert_eq!(copy.value("select pg_is_in_recovery()"), "f");
    let refused = site.restore(&server, "late", &["--target-time", &late]).arg("--plan").run().expect_code(19);
    assert!(refused.stderr.contains("complete through"), "{}", refused.stderr);
    // The backup holds a commit that is later than this target.
    let refused = site.restore(&server, "early", &["--target-time", &early]).arg("--plan").run();
    assert_eq!(refused.code(), 19, "{}", refused.stderr);
}

#[test]
fn the_oldest_and_the_newest_reach_an_idle_time() {
    let versions = install::story_versions(&[MajorVersion::V13, MajorVersion::V18]);
    versions.into_iter().for_each(restored_to_an_idle_time);
}

/// A receiver that was stopped, or died, under load: its last commits are in the open segment, and no heartbeat speaks of them.
#[test]
fn every_command_names_one_moment_through_which_the_archive_is_complete() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table story as select 1 as n");
    site.backup();
    // Not idle for long enough to prove anything.
    for _ in 0..10 {
        server.sql("insert into story values (2)");
        std::thread::sleep(Duration::from_millis(200));
    }
    wait_durable(&server, server.lsn());
    end(receiver);

    let shown = |args: &[&str]| site.walrecv(args).args(["--output", "json"]).run().json();
    let moment = |value: &serde_json::Value| -> jiff::Timestamp {
        value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no time: {value}"))
    };
    let planned = shown(&["restore", "--latest", "--plan"]);
    let last = moment(&planned["landing"]["last_commit"]["time"]);
    let through = moment(&shown(&["list"])["backups"][0]["complete_through"]);
    assert!(through >= last, "{through} is before the commit of {last}");
    assert_eq!(moment(&shown(&["show", "latest"])["complete_through"]), through, "show");
    assert_eq!(moment(&shown(&["status"])["clusters"][0]["complete_through"]), through, "status");
    assert_eq!(moment(&shown(&["find", "--last", "1h"])["complete_through"]), through, "find");
    assert_eq!(moment(&shown(&["list", "--windows"])["timelines"][0]["windows"][0]["through"]), through, "windows");
    let now = server.sql("select clock_timestamp() + interval '1 minute'");
    let refused = site.walrecv(&["restore", "--plan", "--target-time", &now]).run().expect_code(19);
    let told = format!("complete through {}", through.strftime("%Y-%m-%d %H:%M:%S%.6f+00"));
    assert!(refused.stderr.contains(&told), "{told}: {}", refused.stderr);

    // Whoever has no private key, or only a passphrase, is told what he can know, and that there may be more.
    let all: [&[&str]; 3] = [&["list"], &["list", "--windows"], &["show", "latest"]];
    let read = |why: Option<&str>| {
        for args in all {
            let text = site.walrecv(args).run().expect_code(0).stdout;
            assert_eq!(text.contains("the open segment was not read"), why.is_some(), "{args:?}: {text}");
            assert!(text.contains(why.unwrap_or_default()), "{args:?}: {text}");
            assert_eq!(shown(args)["open_segment_read"], why.is_none(), "{args:?}");
        }
    };
    read(None);
    std::fs::rename(site.etc().join("walrecv-identity.txt"), site.etc().join("away")).expect("a key that goes");
    let less = &shown(&["list"])["backups"][0]["complete_through"];
    assert!(less.is_null() || moment(less) <= through, "{less}");
    read(Some("no private key here opens it"));
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    write(&site.config(), &config.replace("\nidentity_file", "\npassphrase_file"));
    read(Some("a passphrase opens it"));
}
