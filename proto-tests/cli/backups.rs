//! `walrecv backup` in every situation: without a receiver, with one that dies, from standbys, in the middle of everything that can go wrong.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use walrecv::pg::{Lsn, MajorVersion};

use crate::site::{SLOT, Site, end, wait_durable};
use crate::support::server::{Held, Stop};
use crate::support::strace::{self, Strace};
use crate::support::walrecv::Running;
use crate::support::{Server, require_servers, wait_for};

/// A site whose configuration names no slot.
pub fn without_slot(server: &Server) -> Site {
    let site = Site::empty();
    site.init(&server.conninfo("postgres")).run().expect_code(0);
    site
}

pub fn edit(site: &Site, change: impl Fn(&str) -> String) {
    let text = std::fs::read_to_string(site.config()).expect("a configuration");
    std::fs::write(site.config(), change(&text)).expect("write the configuration");
}

fn slots(server: &Server) -> String {
    server.sql("select coalesce(string_agg(slot_name || ' ' || coalesce(active_pid::text, 'free'), ','), '') from pg_replication_slots")
}

/// A backup that copies; the server goes on sending it with the end of the second value.
fn held(site: &Site, server: &Server, args: &[&str]) -> (Running, Held) {
    let running = slow(site, server, "4096", args);
    (running, server.hold("select pid from pg_stat_replication where state = 'backup'"))
}

/// A backup that copies so many kB a second.
pub fn slow(site: &Site, server: &Server, rate: &str, args: &[&str]) -> Running {
    let mut running = site.walrecv(&["backup", "--max-rate", rate, "--progress"]).args(args).spawn();
    running.wait_logged("cop");
    wait_for("the server to send a backup", || {
        (server.sql("select count(*) from pg_stat_replication where state = 'backup'") == "1").then_some(())
    });
    running
}

pub fn rows(server: &Server, name: &str, count: u32) {
    server.sql(&format!("create table {name} as select n, repeat('x', 100) from generate_series(1, {count}) n"));
}

/// What JSON says of it: complete, and restorable.
pub fn listed(site: &Site, count: usize) -> serde_json::Value {
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    let backups = listed["backups"].as_array().expect("backups");
    assert_eq!(backups.len(), count, "{listed}");
    assert!(backups.iter().all(|backup| backup["restorable"] == true), "{listed}");
    listed
}

/// The configured slot is free: it is used, moves on, and the archive goes on without a hole.
#[test]
fn without_a_receiver_the_free_slot_is_streamed_on() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::start(version);
        let site = Site::new(&server);
        rows(&server, "before", 20_000);
        server.switch_wal();
        // Nothing was ever received.
        let backup = site.backup();
        assert_eq!(backup["wal_streamed_here"], serde_json::json!({ "slot": SLOT, "temporary": false }), "{version}");
        assert_eq!(slots(&server), format!("{SLOT} free"), "{version}");
        let stop = backup["stop_lsn"].as_str().expect("a position");
        let at = format!("select restart_lsn >= '{stop}' from pg_replication_slots");
        assert_eq!(server.sql(&at), "t", "{version}: what is stored was reported, {backup}");

        rows(&server, "between", 1000);
        server.switch_wal();
        rows(&server, "between_too", 1000);
        site.backup();
        let receiver = site.receive(&[]);
        rows(&server, "after", 1000);
        wait_durable(&server, server.lsn());
        // Somebody streams: nothing of this happens.
        let third = site.backup();
        assert!(third["wal_streamed_here"].is_null(), "{third}");
        wait_durable(&server, server.lsn());
        end(receiver);
        let listed = listed(&site, 3);
        assert_eq!(listed["holes"].as_array().map(Vec::len), Some(0), "{listed}");
        let first = listed["backups"][0]["id"].as_str().expect("an id");
        let copy = site.land(&server, "latest", &["--latest", "--backup", first]);
        assert_eq!(copy.value("select count(*) from after"), "1000", "{version}: from the first backup to the end");
    }
}

/// No slot at all: a temporary one holds the WAL back while the backup runs, and nothing is left behind. The server's own archiving is stuck.
#[test]
fn where_there_is_no_slot_a_temporary_one_holds_the_wal_back() {
    for version in [MajorVersion::V13, MajorVersion::V15, MajorVersion::V18] {
        require_servers!(version);
        let stuck = Server::builder(version).setting("archive_mode", "on").setting("archive_command", "false");
        let server = stuck.start();
        let site = without_slot(&server);
        rows(&server, "before", 20_000);
        let (running, held) = held(&site, &server, &["--output", "json"]);
        let sql = "select count(*) from pg_replication_slots where temporary and active and restart_lsn is not null";
        assert_eq!(server.sql(sql), "1", "{version}: {}", slots(&server));
        rows(&server, "during", 1000);
        server.switch_wal();
        drop(held);
        // Nothing waits for the server's archiving, which never ends.
        let output = running.wait().expect_code(0);
        let backup = output.json();
        assert_eq!(backup["wal_streamed_here"]["temporary"], true, "{backup}");
        wait_for("the slot to go", || slots(&server).is_empty().then_some(()));
        listed(&site, 1);
        let copy = site.land(&server, "latest", &["--latest"]);
        assert_eq!(copy.value("select count(*) from during"), "1000", "{version}");
    }
}

/// The configured slot was dropped: the backup makes none that lasts.
#[test]
fn a_configured_slot_that_is_missing_is_not_made() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    wait_durable(&server, server.lsn());
    end(receiver);
    site.walrecv(&["slot", "drop"]).run().expect_code(0);
    let output = site.walrecv(&["backup"]).run().expect_code(0);
    assert!(output.stderr.contains("does not exist") && output.stderr.contains("temporary slot"), "{}", output.stderr);
    assert!(output.stdout.contains("temporary slot"), "{}", output.stdout);
    wait_for("the slot to go", || slots(&server).is_empty().then_some(()));
    let quiet = site.walrecv(&["backup", "--quiet"]).run().expect_code(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    listed(&site, 2);
}

/// Where no SQL is allowed nobody sees who streams, and on 13 not even whether there is a slot: an archive that stands still tells.
#[test]
fn without_sql_an_archive_that_stands_still_is_the_sign() {
    require_servers!(MajorVersion::V13);
    let server = Server::builder(MajorVersion::V13).setting("wal_keep_size", "100MB").start();
    let site = Site::empty();
    let dsn = format!("{} dbname=nowhere", server.conninfo("postgres"));
    site.init(&dsn).args(["--slot", SLOT, "--create-slot"]).run().expect_code(0);
    rows(&server, "t", 1000);
    let backup = site.backup();
    assert_eq!(backup["wal_streamed_here"], serde_json::json!({ "slot": SLOT, "temporary": false }));
    assert_eq!(slots(&server), format!("{SLOT} free"));
    server.sql(&format!("select pg_drop_replication_slot('{SLOT}')"));
    rows(&server, "u", 1000);
    let backup = site.backup();
    assert_eq!(backup["wal_streamed_here"]["temporary"], true, "{backup}");
    wait_for("the slot to go", || slots(&server).is_empty().then_some(()));
    listed(&site, 2);
}

/// A receiver that follows when the backup begins, and is killed while it copies.
#[test]
fn a_receiver_that_dies_in_the_middle_is_stood_in_for() {
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let server = Server::start(version);
        let site = Site::new(&server);
        let receiver = site.receive(&[]);
        rows(&server, "before", 1000);
        wait_durable(&server, server.lsn());
        let (running, held) = held(&site, &server, &[]);
        assert!(!running.stderr().contains("streaming WAL here"), "{version}");
        receiver.kill();
        rows(&server, "during", 1000);
        server.switch_wal();
        drop(held);
        let output = running.wait().expect_code(0);
        assert!(output.stderr.contains(&format!("streaming WAL here on slot {SLOT}")), "{version}: {}", output.stderr);
        assert_eq!(slots(&server), format!("{SLOT} free"), "{version}");
        let copy = site.land(&server, "latest", &["--latest"]);
        assert_eq!(copy.value("select count(*) from during"), "1000", "{version}");
    }
}

/// Without a slot the server removes WAL between two backups: `on_gap` decides, and the hole is told.
#[test]
fn wal_that_is_gone_before_a_backup_is_a_hole_that_is_told() {
    require_servers!(MajorVersion::V18);
    let small = Server::builder(MajorVersion::V18).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    let server = small.start();
    let site = without_slot(&server);
    site.backup();
    rows(&server, "lost", 1000);
    let forget = || {
        for _ in 0..10 {
            server.switch_wal();
            server.sql("checkpoint");
        }
    };
    forget();
    edit(&site, |text| text.replace("[clusters.main]", "[clusters.main]\non_gap = \"stop\""));
    let refused = site.walrecv(&["backup"]).run().expect_code(18);
    assert!(refused.stderr.contains("removed") && refused.stderr.contains("on_gap"), "{}", refused.stderr);
    listed(&site, 1);
    // Nothing said: without a slot nothing else can be expected, and it is told.
    edit(&site, |text| text.replace("on_gap = \"stop\"\n", ""));
    let told = site.walrecv(&["backup"]).run().expect_code(0);
    assert!(told.stdout.contains("HOLE"), "{}", told.stdout);
    // The refusal took the temporary slot with it. It is made again on the same connection: only to look at the archive once more another one was made.
    let again = told.stderr.matches("connecting again").count();
    assert!(again <= 1, "{}", told.stderr);
    let listed = listed(&site, 2);
    assert_eq!(listed["holes"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(slots(&server), "");
    let copy = site.land(&server, "latest", &["--latest"]);
    assert_eq!(copy.value("select count(*) from lost"), "1000");
}

/// Rows that were loaded then are in no WAL; recovery ends in an error there, and 13 goes on without them where nobody may read meanwhile.
#[test]
fn wal_that_was_written_under_minimal_leads_nowhere() {
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let mut server = Server::builder(version).setting("wal_keep_size", "1GB").setting("autovacuum", "off").start();
        let site = without_slot(&server);
        server.sql("create table story as select 1 as n");
        let first = site.backup()["id"].as_str().expect("an id").to_owned();
        server.sql("insert into story values (2)");
        let before = server.sql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        let mut under = |level: &str, senders: &str| {
            server.sql(&format!("alter system set wal_level = {level}"));
            server.sql(&format!("alter system set max_wal_senders = {senders}"));
            server.stop(Stop::Fast);
            server.start_again();
            server.sql("insert into story values (3)");
        };
        under("minimal", "0");
        under("replica", "10");
        let after = server.lsn();
        let told = |closed: bool| {
            let cluster = site.walrecv(&["status", "--output", "json"]).run().json()["clusters"][0].clone();
            let hole = cluster["hole"].as_str().unwrap_or_default();
            assert!(hole.contains("wal_level = minimal") != closed, "{version}: {cluster}");
            let list = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
            let alarms = list["minimal_wal"].as_array().expect("a list").clone();
            assert_eq!((alarms.len(), &alarms[0]["closed_by_backup"]), (1, &closed.into()), "{version}: {list}");
            assert_eq!(list["holes"].as_array().map(Vec::len), Some(0), "{version}");
            let lines = site.walrecv(&["list"]).run().expect_code(0).stdout;
            let line = lines.lines().find(|line| line.starts_with("WAL_LEVEL MINIMAL")).expect("a line");
            assert_eq!(line.contains("TAKE A NEW BACKUP"), !closed, "{line}");
            let drawn = site.walrecv(&["list", "--windows"]).run().expect_code(0).stdout;
            assert_eq!(drawn.lines().find(|line| line.starts_with("WAL_LEVEL MINIMAL")), Some(line), "{drawn}");
            let drawn = site.walrecv(&["list", "--windows", "--output", "json"]).run().expect_code(0).json();
            assert_eq!(drawn["minimal_wal"], list["minimal_wal"]);
            let windows = drawn["timelines"][0]["windows"].as_array().expect("windows").clone();
            assert_eq!((windows.len(), &windows[0]["through_lsn"]), (1 + usize::from(closed), &alarms[0]["lsn"]));
            let found = site.walrecv(&["find", "--from", &before, "--output", "json"]).run().json();
            assert_eq!(found["minimal_wal"][0], alarms[0]["lsn"], "{found}");
            let found = site.walrecv(&["find", "--from", &before]).run().stdout;
            assert!(found.contains("MINIMAL  from "), "{found}");
            let checked = site.walrecv(&["check", "--output", "json"]).run().json()["findings"].clone();
            let finding = checked.as_array().and_then(|all| all.iter().find(|one| one["check"] == "holes").cloned());
            assert_eq!(finding.expect("a finding")["verdict"], if closed { "ok" } else { "warn" }, "{version}");
        };
        let said = site.walrecv(&["receive", "--until", &after.to_string()]).run().expect_code(0).stderr;
        assert!(said.contains("TAKE A NEW BACKUP"), "{version}: {said}");
        told(false);
        site.backup();
        told(true);
        let plan = |aim: &[&str]| site.restore(&server, "none", aim).arg("--plan").run();
        let lsn = after.to_string();
        for aim in [&["--latest", "--backup", &first][..], &["--target-lsn", &lsn], &["--target-time", &before]] {
            let refused = plan(aim).expect_code(19).stderr;
            assert!(refused.contains("wal_level = minimal"), "{version} {aim:?}: {refused}");
            let last =
                refused.split_once("--target-lsn ").and_then(|(_, rest)| rest.split_once(' ')).expect("an LSN").0;
            plan(&["--target-lsn", last, "--exclusive"]).expect_code(0);
        }
        plan(&["--latest"]).expect_code(0);
    }
}

/// The temporary slot goes with its connection. What the server still has is streamed on; what it has removed meanwhile ends the backup.
#[test]
fn a_lost_connection_of_the_temporary_slot_is_made_again_or_ends_the_backup() {
    require_servers!(MajorVersion::V16);
    let small = Server::builder(MajorVersion::V16).setting("max_wal_size", "4MB").setting("min_wal_size", "2MB");
    let server = small.start();
    server.sql("create role streamer login replication");
    let site = Site::empty();
    site.init(&server.conninfo("streamer")).run().expect_code(0);
    edit(&site, |text| text.replace("[clusters.main]", "[clusters.main]\non_gap = \"stop\""));
    rows(&server, "before", 20_000);
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_replication where state <> 'backup'";
    let (running, copies) = held(&site, &server, &[]);
    assert_ne!(server.sql(cut), "0");
    rows(&server, "during", 1000);
    drop(copies);
    let output = running.wait().expect_code(0);
    assert!(output.stderr.contains("connecting again"), "{}", output.stderr);

    let (running, copies) = held(&site, &server, &[]);
    // It comes to itself when the server has removed what the slot held.
    running.signal(Signal::STOP);
    drop(copies);
    server.sql(cut);
    wait_for("the slot to go", || slots(&server).is_empty().then_some(()));
    for _ in 0..10 {
        server.switch_wal();
        server.sql("checkpoint");
    }
    running.signal(Signal::CONT);
    let output = running.wait().expect_code(18);
    assert!(output.stderr.contains("removed"), "{}", output.stderr);
    listed(&site, 1);
    wait_for("the slot to go", || slots(&server).is_empty().then_some(()));
}

#[test]
fn a_signal_ends_backup_and_stream_and_leaves_no_slot() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let site = without_slot(&server);
    // The server does not answer, and is not waited for.
    let (running, copies) = held(&site, &server, &[]);
    running.signal(Signal::INT);
    running.wait().expect_code(130);
    drop(copies);
    wait_for("everybody to go", || {
        (slots(&server).is_empty() && server.sql("select count(*) from pg_stat_replication") == "0").then_some(())
    });
    // A kill leaves it to the server to notice.
    let (running, copies) = held(&site, &server, &[]);
    running.kill();
    drop(copies);
    wait_for("everybody to go", || slots(&server).is_empty().then_some(()));
    listed(&site, 0);
    site.backup();
    listed(&site, 1);
}

#[test]
fn a_server_that_goes_away_in_the_middle_ends_the_backup() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let mut server = Server::start(version);
        let site = without_slot(&server);
        let (running, held) = held(&site, &server, &[]);
        if version == MajorVersion::V13 {
            server.kill9();
            drop(held);
        } else {
            drop(held);
            server.stop(Stop::Fast);
        }
        let begun = Instant::now();
        let output = running.wait().expect_code(17);
        assert!(begun.elapsed() < Duration::from_secs(20), "{version}: {:?}", begun.elapsed());
        assert!(output.stderr.contains("walrecv: error"), "{version}: {}", output.stderr);
        listed(&site, 0);
        server.start_again();
        assert_eq!(slots(&server), "", "{version}");
        site.backup();
        listed(&site, 1);
    }
}

/// A quiet primary; its standby is backed up, and nothing is done on the primary.
#[test]
fn a_standby_of_a_quiet_primary_is_backed_up_with_its_wal() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let primary = Server::start(version);
        rows(&primary, "t", 1000);
        let standby = primary.standby().setting("hot_standby", "on").start();
        standby.wait_sql("select count(*) from t", "1000");
        primary.sql("checkpoint");
        rows(&primary, "u", 10);
        standby.wait_sql("select count(*) from u", "10");
        let site = without_slot(&standby);
        let backup = site.backup();
        assert_eq!(backup["from_standby"], true, "{version}: {backup}");
        listed(&site, 1);
        let copy = site.land(&standby, "latest", &["--latest"]);
        assert_eq!(copy.value("select count(*) from u"), "10", "{version}");
    }
}

/// pg_control is the last file that is copied; what the standby writes until the backup is stopped belongs to the backup, and recovery is consistent before.
#[test]
fn a_standby_that_goes_on_while_it_is_backed_up_is_consistent_before_the_end() {
    if !strace::possible() {
        return;
    }
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let primary = Server::start(version);
        rows(&primary, "t", 1000);
        // What it removes meanwhile it cannot send.
        let standby = primary.standby().setting("hot_standby", "on").setting("wal_keep_size", "1GB").start();
        standby.wait_sql("select count(*) from t", "1000");
        let site = without_slot(&standby);
        let control = standby.data_dir().join("global/pg_control");
        let slow = Strace::attach(standby.pid(), "read,pread64:delay_exit=2000000:when=1", Some(&control));
        let mut running = site.walrecv(&["backup", "--output", "json"]).spawn();
        let mut count = 0;
        let backup = loop {
            if let Some(output) = running.try_wait() {
                break output.expect_code(0).json();
            }
            count += 1;
            primary.sql(&format!("create table t{count} as select generate_series(1, 100) n"));
            primary.sql("checkpoint");
            standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{}'", primary.lsn()), "t");
            standby.sql("checkpoint");
            std::thread::sleep(Duration::from_millis(100));
        };
        drop(slow);
        let copy = site.land(&standby, "immediate", &["--target-immediate"]);
        let (plan, started) = (&copy.told["plan"], &copy.told["started"]);
        assert_eq!(started["landed"], plan["landing"]["lsn"], "{version}");
        let lsn = |value: &serde_json::Value| value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Lsn(0));
        let (landed, stop) = (lsn(&plan["landing"]["lsn"]), lsn(&plan["backup"]["stop_lsn"]));
        assert!(Lsn(0) < landed && landed < stop, "{version}: {landed} {stop} {backup}");
    }
}

#[test]
fn a_standby_that_is_promoted_or_sees_torn_pages_gives_no_backup() {
    for version in [MajorVersion::V14, MajorVersion::V18] {
        require_servers!(version);
        let primary = Server::start(version);
        rows(&primary, "t", 1000);
        let standby = primary.standby().setting("hot_standby", "on").start();
        standby.wait_sql("select count(*) from t", "1000");
        let site = without_slot(&standby);
        // Written without images of pages, and replayed in the middle of the backup.
        let (running, copies) = held(&site, &standby, &[]);
        primary.sql("alter system set full_page_writes = off");
        primary.sql("select pg_reload_conf()");
        primary.wait_sql("show full_page_writes", "off");
        rows(&primary, "torn", 1000);
        standby.wait_sql("select count(*) from torn", "1000");
        drop(copies);
        let output = running.wait().expect_code(17);
        assert!(output.stderr.contains("full_page_writes = on"), "{version}: {}", output.stderr);
        primary.sql("alter system reset full_page_writes");
        primary.sql("select pg_reload_conf()");
        primary.wait_sql("show full_page_writes", "on");
        std::thread::sleep(Duration::from_millis(500));
        primary.sql("checkpoint");
        standby.wait_sql("select count(*) from torn", "1000");
        let lsn = primary.lsn();
        standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"), "t");
        standby.sql("checkpoint");

        let (running, copies) = held(&site, &standby, &[]);
        standby.promote();
        drop(copies);
        let output = running.wait().expect_code(17);
        assert!(output.stderr.contains("became a primary"), "{version}: {}", output.stderr);
        listed(&site, 0);
        site.backup();
        listed(&site, 1);
    }
}

/// Relations come, go and change size while they are copied; what the restored server has is what was committed.
#[test]
fn relations_that_change_while_they_are_copied() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let site = without_slot(&server);
    for name in ["dropped", "emptied", "rewritten", "grown", "cut"] {
        rows(&server, name, 40_000);
    }
    let running = slow(&site, &server, "256", &["--server-compression", "zstd"]);
    server.sql("drop table dropped");
    server.sql("truncate emptied");
    server.sql("vacuum full rewritten");
    server.sql("insert into grown select n, repeat('y', 100) from generate_series(1, 40000) n");
    server.sql("delete from cut where n > 100");
    server.sql("vacuum cut");
    server.sql("create table new as select 1 as n");
    running.wait().expect_code(0);
    let copy = site.land(&server, "latest", &["--latest"]);
    let count = |table: &str| copy.value(&format!("select count(*) from {table}"));
    let counts = ["emptied", "rewritten", "grown", "cut", "new"].map(count);
    assert_eq!(counts, ["0", "40000", "80000", "100", "1"]);
    assert_eq!(copy.value("select to_regclass('dropped') is null"), "t");
}

/// What the server compresses comes back byte by byte: the checksums of its own manifest are compared on the way. 15 is installed without zstd.
#[test]
fn what_the_server_compresses_is_stored_all_the_same() {
    for (version, methods) in [(MajorVersion::V15, &["lz4"][..]), (MajorVersion::V18, &["lz4", "zstd", "zstd:9"])] {
        require_servers!(version);
        let server = Server::start(version);
        let site = Site::new(&server);
        let place = site.places.postgres_dir("space");
        server.sql(&format!("create tablespace extra location '{}'", place.display()));
        rows(&server, "t", 20_000);
        server.sql("create table far tablespace extra as select n from generate_series(1, 1000) n");
        let backup = |how: &str| site.walrecv(&["backup", "--output", "json", "--server-compression", how]).run();
        let plain = site.backup();
        for how in methods {
            let packed = backup(how).expect_code(0).json();
            let read = |of: &serde_json::Value| of["read_bytes"].as_u64().expect("a number");
            assert!(read(&packed) < read(&plain) / 2, "{how}: {packed}, without {plain}");
            assert_eq!(packed["files"], plain["files"]);
        }
        if version == MajorVersion::V15 {
            let refused = backup("zstd").expect_code(2);
            assert!(refused.stderr.contains("built without that method"), "{}", refused.stderr);
        }
        let mapping = format!("{}={}", place.display(), site.data("space2").display());
        let copy = site.land(&server, "latest", &["--latest", "--tablespace-mapping", &mapping]);
        assert_eq!(copy.value("select count(*) from t"), "20000");
        copy.run(&server, "pg_dumpall", &[]);
    }
    require_servers!(MajorVersion::V14);
    let old = Server::start(MajorVersion::V14);
    let site = Site::new(&old);
    let refused = site.walrecv(&["backup", "--server-compression", "zstd"]).run().expect_code(2);
    assert!(refused.stderr.contains("from 15 on"), "{}", refused.stderr);
}

/// The second of two says who runs the first one.
#[test]
fn a_second_backup_is_told_who_is_at_work() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let (running, held) = held(&site, &server, &["--label", "the first", "--output", "json"]);
    let refused = site.walrecv(&["backup"]).run().expect_code(11);
    for said in [&format!("process {}", running.pid()), "since", "the first"] {
        assert!(refused.stderr.contains(said), "{said:?} is not said: {}", refused.stderr);
    }
    drop(held);
    let output = running.wait().expect_code(0);
    // Progress for scripts, on standard error; the result alone on standard output.
    let lines: Vec<serde_json::Value> = output.stderr.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let copying = lines.iter().filter(|l| l["phase"] == "copying");
    let told: Vec<_> = copying.filter_map(|l| l["done_bytes"].as_u64().zip(l["total_bytes"].as_u64())).collect();
    assert!(told.is_sorted() && told.last().is_some_and(|(done, total)| *done > 0 && *total > 0), "{lines:?}");
    assert!(lines.iter().any(|l| l["event"] == "serving" && l["slot"] == SLOT), "{lines:?}");
    assert!(output.json()["id"].is_string());
}

/// From the moment that its manifest stands in the repository it is a backup: whoever stops the command then does not give it up.
#[test]
fn a_signal_that_comes_when_the_backup_is_complete_does_not_give_it_up() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    site.backup();
    let cluster = std::fs::read_dir(site.repository().join("clusters/main")).expect("a folder").next();
    let cluster = cluster.expect("an incarnation").expect("an incarnation").path();
    // That the backup is complete is noted there, too, which takes ten seconds to fail.
    let alive = cluster.join("alive");
    std::fs::remove_dir_all(&alive).expect("remove the signs of life");
    std::os::unix::fs::symlink(site.places.join("nowhere/at/all"), &alive).expect("a link to nowhere");
    let manifests = || std::fs::read_dir(cluster.join("backups")).expect("backups").count();
    for twice in [false, true] {
        let before = manifests();
        let running = site.walrecv(&["backup", "--output", "json"]).spawn();
        wait_for("the manifest", || (manifests() > before).then_some(()));
        running.signal(Signal::TERM);
        if twice {
            std::thread::sleep(Duration::from_millis(500));
            running.signal(Signal::TERM);
            let output = running.wait().expect_code(130);
            assert!(output.stderr.contains("not known") && !output.stderr.contains("given up"), "{}", output.stderr);
        } else {
            let backup = running.wait().expect_code(0).json();
            assert!(backup["id"].is_string(), "{backup}");
        }
    }
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(3), "{listed}");
}

/// What was read, changed and stored is told where the backup is taken, and where it is shown.
#[test]
fn a_backup_tells_what_was_read_changed_and_stored() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let site = Site::new(&server);
    assert!(site.backup().get("why_full").is_some());
    let taken = site.walrecv(&["backup"]).run().expect_code(0).stdout;
    let shown = site.walrecv(&["show", "latest"]).run().expect_code(0).stdout;
    for told in [&taken, &shown] {
        for row in ["read         ", "changed      ", "stored       "] {
            assert_eq!(told.lines().filter(|line| line.starts_with(row)).count(), 1, "{row}: {told}");
        }
    }
}
