//! A restored server takes production's place, and walrecv streams it into the same archive: its timeline goes on beside the old one, and the old backup
//! reaches both.

use walrecv::pg::MajorVersion;

use crate::check::point_to;
use crate::site::{Site, end, wait_durable};
use crate::support::{Server, install};

fn insert(server: &Server, from: u32, to: u32) {
    server.sql(&format!("insert into story select generate_series({from}, {to})"));
}

#[test]
fn a_restored_server_streams_into_the_same_archive_and_is_restored_by_the_same_backup() {
    install::story_versions(&[MajorVersion::V17]).into_iter().for_each(takes_its_place);
}

fn takes_its_place(version: MajorVersion) {
    let mut server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    server.sql("create table story (n int)");
    site.backup();
    insert(&server, 1, 10);
    let target = server.lsn().to_string();
    insert(&server, 11, 20);
    server.switch_wal();
    insert(&server, 21, 30);
    wait_durable(&server, server.lsn());
    server.kill9();
    end(receiver);

    // As the guide says: restore, start, make the slot, receive.
    site.restore(&server, "first", &["--target-lsn", &target]).run().expect_code(0);
    let mut first = Server::builder(version).on_data_dir(&site.data("first")).start();
    first.wait_sql("select pg_is_in_recovery()", "f");
    assert_eq!(first.sql("select max(n) from story"), "10");
    point_to(&site, &first.conninfo("postgres"));
    site.walrecv(&["slot", "create"]).run().expect_code(0);
    let receiver = site.receive(&[]);
    insert(&first, 101, 110);
    first.switch_wal();
    let behind = first.sql("select clock_timestamp()");
    insert(&first, 111, 120);
    first.switch_wal();
    wait_durable(&first, first.lsn());
    first.kill9();
    let said = end(receiver).stderr;
    assert!(said.contains("timeline 2"), "{said}");

    // The same backup, through the fork: what was committed after it on the old timeline is not there, and what came on the new one is.
    let rows = "select count(*) || ' ' || max(n) from story";
    let second = site.land(&first, "second", &["--latest"]);
    assert_eq!(second.value(rows), "30 120");
    assert_eq!(second.value("select timeline_id from pg_control_checkpoint()"), "3");
    let old = site.land(&first, "old", &["--latest", "--target-timeline", "1"]);
    assert_eq!(old.value(rows), "30 30", "the dead branch is kept whole");
    // The segment of the fork begins with what timeline 1 committed: it does not tell from when on timeline 2 can be restored.
    let drawn = site.walrecv(&["list", "--windows", "--output", "json"]).run().expect_code(0).json();
    let from = drawn["timelines"][1]["windows"][0]["from"].as_str().unwrap_or_else(|| panic!("a time in {drawn:#}"));
    let [from, behind] =
        [from, &behind.replace("+00", "Z")].map(|text| text.parse::<jiff::Timestamp>().expect("a time"));
    assert!(from >= behind, "{from} {behind}");
    // Who pauses is told how to go on.
    let paused = ["--target-lsn", &target, "--target-timeline", "1", "--target-action", "pause"];
    let told = site.restore(&first, "paused", &paused).run().expect_code(0).stdout;
    assert!(told.contains("pg_promote()"), "{told}");
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["holes"].as_array().map(Vec::len), Some(0), "{listed}");
}
