//! A standby that is made from the repository alone, and the targets that are seldom asked for.

use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::user::as_postgres;
use crate::support::{Client, Server, free_port, install, wait_for};

fn insert(server: &Server, from: u32, to: u32) {
    server.sql(&format!("insert into story select generate_series({from}, {to})"));
}

/// Stopped when it goes.
struct Standby<'a> {
    site: &'a Site,
    programs: std::path::PathBuf,
    port: u16,
}

impl<'a> Standby<'a> {
    fn start(site: &'a Site, server: &Server) -> Standby<'a> {
        let standby = Standby { site, programs: server.bin_dir(), port: free_port() };
        let own = format!("-c listen_addresses= -c port={} -k {}", standby.port, site.places.path().display());
        standby.pg_ctl(&["-w", "-l", "standby.log", "-o", &own, "start"]);
        standby
    }

    fn pg_ctl(&self, args: &[&str]) {
        let mut command = as_postgres(self.programs.join("pg_ctl"));
        command.current_dir(self.site.data("standby")).arg("-D").arg(self.site.data("standby")).args(args);
        // Not by a pipe, which the server would keep open.
        let status = command.stdout(std::process::Stdio::null()).status().expect("run pg_ctl");
        let log = std::fs::read_to_string(self.site.data("standby").join("standby.log")).unwrap_or_default();
        assert!(status.success(), "pg_ctl {args:?}\n{log}");
    }

    fn value(&self, sql: &str) -> String {
        let mut client =
            Client::connect(self.site.places.path(), self.port, "postgres", "postgres").expect("a session");
        client.query(sql).expect("an answer")[0][0].clone().unwrap_or_default()
    }

    fn wait(&self, sql: &str, expected: &str) {
        wait_for(&format!("{sql}: {expected}"), || (self.value(sql) == expected).then_some(()));
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        let mut command = as_postgres(self.programs.join("pg_ctl"));
        let _ = command.arg("-D").arg(self.site.data("standby")).args(["-m", "immediate", "stop"]).output();
    }
}

#[test]
fn a_standby_from_the_archive_streams_on_and_can_be_promoted() {
    install::story_versions(&[MajorVersion::V16]).into_iter().for_each(streams_on_and_is_promoted);
}

fn streams_on_and_is_promoted(version: MajorVersion) {
    let mut server = Server::builder(version).setting("max_connections", "150").start();
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    server.sql("create table story (n int)");
    site.backup();
    for number in 0..5 {
        insert(&server, number * 1000 + 1, (number + 1) * 1000);
        server.switch_wal();
    }
    wait_durable(&server, server.lsn());
    let upstream = server.conninfo("postgres");
    let restore = site.restore(&server, "standby", &["--standby", "--primary-conninfo", &upstream]);
    let said = restore.run().expect_code(0).stdout;
    assert!(said.contains("it is a standby"), "{said}");
    let standby = Standby::start(&site, &server);
    assert_eq!(standby.value("select pg_is_in_recovery()"), "t");
    standby.wait("select count(*) from story", "5000");
    standby.wait("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
    insert(&server, 5001, 5500);
    standby.wait("select count(*) from story", "5500");
    server.kill9();
    standby.pg_ctl(&["-w", "promote"]);
    assert_eq!(standby.value("select count(*) from story"), "5500");
    assert_eq!(
        standby.value("show max_logical_replication_workers"),
        "4",
        "it is production's: nothing is neutralised"
    );
    let prefetched = site.data("standby").join("pg_wal/walrecv");
    wait_for("what was fetched ahead to go", || (!prefetched.exists()).then_some(()));
    end(receiver);
}

#[test]
fn seldom_targets_are_planned_and_reached() {
    install::story_versions(&[MajorVersion::V15]).into_iter().for_each(seldom_targets);
}

fn seldom_targets(version: MajorVersion) {
    let mut server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    server.sql("create table story (n int)");
    site.backup();
    insert(&server, 1, 10);
    let xid = server.sql("insert into story values (11) returning xmin");
    insert(&server, 12, 20);
    wait_durable(&server, server.lsn());
    let plan = |aim: &[&str]| site.restore(&server, "none", aim).args(["--plan", "--output", "json"]).run();
    let xid_of = |plan: serde_json::Value| plan["landing"]["last_commit"]["xid"].to_string();
    assert_eq!(xid_of(plan(&["--target-xid", &xid]).expect_code(0).json()), xid);
    let before = plan(&["--target-xid", &xid, "--exclusive"]).expect_code(0).json();
    assert_ne!(xid_of(before), xid);
    // An epoch in front of it, as pg_current_xact_id() tells it.
    let wide = (xid.parse::<u64>().expect("a number") + (3 << 32)).to_string();
    assert_eq!(xid_of(plan(&["--target-xid", &wide]).expect_code(0).json()), xid);
    for timeline in ["current", "latest", "1"] {
        let told = plan(&["--latest", "--target-timeline", timeline]).expect_code(0).json();
        assert_eq!(told["target_timeline"], 1, "{timeline}");
    }
    for wrong in ["01", "0x1", "0", "newest"] {
        plan(&["--latest", "--target-timeline", wrong]).expect_code(2);
    }
    plan(&["--latest", "--target-timeline", "7"]).expect_code(19);
    plan(&["--latest", "--exclusive"]).expect_code(2);
    end(receiver);
    let copy = site.land(&server, "by-xid", &["--target-xid", &xid, "--exclusive"]);
    assert_eq!(copy.value("select count(*) from story"), "10");
    let copy = site.land(&server, "immediate", &["--target-immediate"]);
    assert_eq!(copy.value("select count(*) from story"), "0");
    assert_eq!(copy.told["restored"]["raised"], serde_json::json!([]));
    // A standby is started too; it stands where the archive ends.
    drop(copy);
    server.kill9();
    let begun = site.restore(&server, "standby", &["--standby", "--start", "--output", "json"]).run();
    let standby = Standby { site: &site, programs: server.bin_dir(), port: server.port() };
    let told = begun.expect_code(0).json();
    assert!(told["started"]["pid"].is_number(), "{told}");
    let signal = site.data("standby").join("standby.signal");
    assert!(signal.exists() && site.data("standby").join("pg_wal/walrecv").is_dir(), "{told}");
    drop(standby);
}
