//! The fixture itself: what the other live tests rely on.

use std::time::{Duration, Instant};

use walrecv::pg::MajorVersion;

use crate::support::ledger::missing;
use crate::support::server::{Auth, Server, Stop};
use crate::support::{Ledger, Moto, PATIENCE, Walrecv, install, require_moto, require_servers};

#[test]
fn every_version_starts_answers_and_stops() {
    for version in install::versions() {
        let mut server = Server::start(version);
        assert_eq!(server.sql("show wal_segment_size"), "1MB");
        assert_eq!(server.sql("show server_version_num").parse::<u32>().expect("a number") / 10000, version.number());
        assert_eq!(server.psql("select 1, null, 'x'"), server.sql("select 1, null, 'x'"));
        let before = server.lsn();
        assert!(server.switch_wal() > before);
        assert!(server.stop(Stop::Fast) < Duration::from_secs(30));
        assert!(!server.is_running());
        server.start_again();
        assert_eq!(server.sql("select 1"), "1");
    }
}

#[test]
fn acknowledged_commits_survive_a_killed_server() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let mut server = Server::start(version);
    let ledger = Ledger::builder().writers(3).start(&server);
    ledger.wait_for_more(200);
    server.kill9();
    server.start_again();
    ledger.wait_for_more(20);
    let unknown = ledger.unknown().len();
    let entries = ledger.stop();
    assert!(unknown <= 6, "each writer loses at most one answer for each lost connection, not {unknown}");
    assert!(entries.len() >= 220);
    assert_eq!(missing(&entries, &server), []);
    let timed: Vec<_> = entries.iter().filter_map(|e| e.committed_us.map(|us| (e.xid, us))).collect();
    assert!(entries.len() - timed.len() <= 3 * 2, "only the last commit before a lost connection has no time");
    let (xid, us) = timed[timed.len() / 2];
    let asked = format!("select (extract(epoch from pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint");
    assert_eq!(server.sql(&asked), us.to_string());
}

#[test]
fn a_standby_follows_and_is_promoted() {
    for version in install::versions() {
        let primary = Server::start(version);
        primary.sql("create table t as select generate_series(1, 1000) n");
        let standby = primary.standby().setting("hot_standby", "on").start();
        primary.sql("insert into t values (1001)");
        standby.wait_sql("select max(n) from t", "1001");
        assert!(standby.in_recovery());
        standby.promote();
        standby.sql("insert into t values (1002)");
        assert!(standby.sql("select pg_walfile_name(pg_current_wal_lsn())").starts_with("00000002"));
    }
}

#[test]
fn passwords_and_certificates_are_asked_for() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let server = Server::builder(version)
        .auth(Auth::Scram("it's secret".into()))
        .hba("hostnossl all all 127.0.0.1/32 reject")
        .tls()
        .start();
    let psql = |password: &str, mode: &str| {
        let ca = server.ca_file().display();
        let conninfo = format!("{} dbname=postgres sslmode={mode} sslrootcert={ca}", server.conninfo_tcp("postgres"));
        server
            .bin("psql")
            .env("PGPASSWORD", password)
            .args(["-XAtc", "select 1", &conninfo])
            .output()
            .expect("run psql")
    };
    assert!(psql("it's secret", "verify-full").status.success());
    assert!(!psql("it's secret", "disable").status.success());
    assert!(!psql("wrong", "verify-full").status.success());
}

#[test]
fn identities_differ_when_asked_and_sizes_are_kept() {
    let version = MajorVersion::V15;
    require_servers!(version);
    let identity = "select system_identifier from pg_control_system()";
    let (one, other) = (Server::start(version), Server::builder(version).own_identity().segment_size_mb(16).start());
    assert_ne!(one.sql(identity), other.sql(identity));
    assert_eq!(other.sql("show wal_segment_size"), "16MB");
}

#[test]
fn a_server_that_cannot_start_gives_its_log() {
    let version = MajorVersion::V14;
    require_servers!(version);
    let start = Instant::now();
    let log = Server::builder(version).setting("shared_buffers", "many").try_start().err().expect("no start");
    assert!(log.contains("shared_buffers"), "{log}");
    assert!(start.elapsed() < PATIENCE / 3);
}

#[test]
fn the_s3_emulator_makes_buckets() {
    require_moto!();
    let moto = Moto::start();
    assert_eq!(moto.bucket("one"), "s3://one");
    assert_eq!(moto.request("GET", "/one?list-type=2").expect("list").0, 200);
    assert_eq!(moto.request("GET", "/none?list-type=2").expect("list").0, 404);
}

#[test]
fn the_program_runs_for_root_and_for_postgres() {
    require_servers!(MajorVersion::V15);
    for command in [Walrecv::new([""; 0]), Walrecv::new([""; 0]).by_postgres()] {
        let output = command.run();
        assert!(output.status.code().is_some(), "{output:?}");
    }
}
