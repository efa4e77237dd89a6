//! Whole stories through the program alone: init, receive, backup, load, loss, restore, count.

use std::fs;
use std::time::{Duration, Instant};

use walrecv::pg::MajorVersion;

use crate::site::{Copy, Site, end, verify};
use crate::support::server::Stop;
use crate::support::user::as_postgres;
use crate::support::{Server, TempDir, install, require_moto, require_servers};

/// Rows of `story` that a restored server has.
fn count(copy: &Copy) -> String {
    copy.value("select count(*) from story")
}

/// Writes rows `from..=to`, one commit each.
fn write(server: &Server, rows: std::ops::RangeInclusive<u32>) {
    let mut client = server.connect("postgres").expect("a session");
    for n in rows {
        client.query(&format!("insert into story values ({n}, repeat('x', 2000))")).expect("a commit");
    }
}

/// A production server for which every commit waits until walrecv has it, and that archives for itself.
struct Production {
    server: Server,
    site: Site,
    space: std::path::PathBuf,
    /// What its own `archive_command` took.
    taken: TempDir,
}

/// What can be aimed at.
struct Aims {
    time: String,
    lsn: String,
}

impl Production {
    fn new(version: MajorVersion) -> Production {
        let taken = TempDir::for_postgres("taken");
        let server = Server::builder(version)
            .initdb("--data-checksums")
            .setting("archive_mode", "on")
            .setting("archive_command", format!("cp %p {}/%f", taken.path().display()))
            .setting("synchronous_standby_names", "walrecv")
            .start();
        let site = Site::new(&server);
        let space = site.places.postgres_dir("production space");
        Production { server, site, space, taken }
    }

    fn fill(&self) {
        let server = &self.server;
        server.sql(&format!("create tablespace extra location '{}'", self.space.display()));
        server.sql("create extension amcheck");
        server.sql("create table story (n bigint primary key, filler text)");
        server.sql("create table aside (n bigint) tablespace extra");
        server.sql("insert into aside select generate_series(1, 3000)");
        write(server, 1..=10);
    }

    fn live(&self) -> Aims {
        let server = &self.server;
        write(server, 11..=20);
        server.sql("select pg_create_restore_point('before the deploy')");
        write(server, 21..=30);
        let lsn = server.lsn().to_string();
        write(server, 31..=40);
        std::thread::sleep(Duration::from_millis(50));
        let time = server.sql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(50));
        server.sql("drop table aside");
        write(server, 41..=60);
        Aims { time, lsn }
    }
}

/// What `pg_dumpall` printed, without what differs from copy to copy.
fn dump(text: &str) -> Vec<String> {
    let other = |line: &&str| line.contains("restrict ") || line.contains("LOCATION");
    text.lines().filter(|line| !other(line)).map(str::to_owned).collect()
}

fn same_dump(ours: &[String], theirs: &[String]) {
    let first = ours.iter().zip(theirs).find(|(ours, theirs)| ours != theirs);
    assert!(ours == theirs, "the dumps of {} and {} lines differ, first in {first:?}", ours.len(), theirs.len());
}

/// Every page of a server that was stopped.
fn page_checksums(server: &Server, data: &std::path::Path) {
    let mut tool = as_postgres(server.bin_dir().join("pg_checksums"));
    let output = tool.arg("--check").arg(data).output().expect("run pg_checksums");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whatever is acknowledged comes back, to the last commit: the server waits for the archive.
fn full(version: MajorVersion) {
    let mut production = Production::new(version);
    let mut receiver = production.site.receive(&["--flush-interval", "600s"]);
    receiver.wait_logged("every commit waits");
    let begun = Instant::now();
    production.fill();
    write(&production.server, 1001..=1020);
    production.server.sql("delete from story where n > 1000");
    let took = begun.elapsed();
    // Not one of them waited for the flush interval.
    assert!(took < Duration::from_secs(120), "36 commits took {took:?}");
    let checked = production.site.walrecv(&["check"]).run().expect_code(0).stdout;
    assert!(checked.contains("commits wait for the repository"), "{checked}");
    let backup = production.site.backup();
    assert_eq!(backup["bad_pages"], 0);
    let aims = production.live();
    let dumped = dump(&production.server.run("pg_dumpall", &[]));
    production.server.kill9();
    end(receiver);
    lists(&production.site, &backup);

    let (server, site) = (&production.server, &production.site);
    let mapping = |name: &str| format!("{}={}", production.space.display(), site.data(name).display());
    let spaces: Vec<String> = (0..4).map(|n| mapping(&format!("space{n}"))).collect();
    let to = |name: &str, aim: &[&str], space: usize| {
        site.land(server, name, &[aim, &["--tablespace-mapping", &spaces[space]]].concat())
    };
    {
        let copy = to("by-time", &["--target-time", &aims.time], 0);
        assert_eq!((count(&copy), copy.value("select count(*) from aside")), ("40".into(), "3000".into()));
        let location = copy.value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'extra'");
        assert_eq!(location, site.data("space0").display().to_string());
    }
    assert_eq!(count(&to("by-name", &["--target-name", "before the deploy"], 1)), "20");
    assert_eq!(count(&to("by-lsn", &["--target-lsn", &aims.lsn], 2)), "30");
    latest(&production, &spaces[3], &dumped);
    println!("PostgreSQL {version}: the full story");
}

fn lists(site: &Site, backup: &serde_json::Value) {
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed["backups"][0]["id"], &listed["backups"][0]["restorable"]), (&backup["id"], &true.into()));
    let text = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(text.contains(backup["id"].as_str().expect("an id")), "{text}");
}

/// Laid back without a start, so that PostgreSQL's own tools look at it before and after.
fn latest(production: &Production, mapping: &str, dumped: &[String]) {
    let (server, site) = (&production.server, &production.site);
    let aim = ["--latest", "--tablespace-mapping", mapping];
    let planned = site.restore(server, "latest", &aim).args(["--plan", "--output", "json"]).run().expect_code(0).json();
    assert!(!site.data("latest").exists(), "a plan changes nothing");
    let text = site.restore(server, "latest", &aim).run().expect_code(0).stdout;
    for said in ["target", "lands after", "archive_mode", "synchronous_standby_names", "next"] {
        assert!(text.contains(said), "{said:?} is not said: {text}");
    }
    let last = planned["landing"]["last_commit"]["lsn"].as_str().expect("a last commit");
    assert!(text.contains(last), "the plan said {last}: {text}");

    let data = site.data("latest");
    verify(server, &data);
    let before = fs::read_dir(production.taken.path()).expect("a folder").count();
    let mut copy = Server::builder(server.version()).on_data_dir(&data).start();
    copy.wait_sql("select pg_is_in_recovery()", "f");
    same_dump(&dump(&copy.run("pg_dumpall", &[])), dumped);
    assert_eq!(copy.sql("select count(*), max(n) from story"), "60|60");
    assert_eq!(copy.sql("select to_regclass('aside') is null"), "t");
    assert_eq!(copy.sql("show archive_mode"), "off");
    assert_eq!(copy.sql("show synchronous_standby_names"), "");
    copy.sql("insert into story values (0, 'not waiting for anybody')");
    copy.switch_wal();
    if server.version() >= MajorVersion::V14 {
        copy.run("pg_amcheck", &["--all", "--heapallindexed"]);
    } else {
        copy.sql(
            "select bt_index_check(c.oid, true) from pg_index i join pg_class c on c.oid = i.indexrelid \
             join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relpersistence <> 't' and i.indisvalid",
        );
    }
    assert_eq!(fs::read_dir(production.taken.path()).expect("a folder").count(), before, "nothing went to production");
    copy.stop(Stop::Fast);
    page_checksums(server, &data);
}

/// The shortest useful path.
fn short(version: MajorVersion, settle: impl Fn(&Server) -> Site) {
    let mut server = Server::builder(version).initdb("--data-checksums").start();
    let site = settle(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table story (n bigint primary key, filler text)");
    write(&server, 1..=20);
    let backup = site.backup();
    assert_eq!((&backup["transfer"], &backup["bad_pages"]), (&"full".into(), &0.into()), "{backup}");
    write(&server, 21..=50);
    server.sql("insert into story select n, repeat('y', 3000) from generate_series(51, 1500) n");
    let dumped = dump(&server.run("pg_dumpall", &[]));
    crate::site::wait_durable(&server, server.lsn());
    server.kill9();
    end(receiver);
    // A full transfer, so the manifest that comes with it is the server's own.
    site.restore(&server, "laid", &["--latest"]).run().expect_code(0);
    verify(&server, &site.data("laid"));
    fs::remove_dir_all(site.data("laid")).expect("the copy goes");
    let copy = site.land(&server, "data", &["--latest"]);
    assert_eq!(count(&copy), "1500");
    same_dump(&dump(&copy.run(&server, "pg_dumpall", &[])), &dumped);
    if version >= MajorVersion::V14 {
        copy.run(&server, "pg_amcheck", &["--all", "--install-missing"]);
    }
    page_checksums(&server, &copy.stop());
    println!("PostgreSQL {version}: the short story");
}

#[test]
fn the_full_story_on_13() {
    require_servers!(MajorVersion::V13);
    full(MajorVersion::V13);
}

#[test]
fn the_full_story_on_18() {
    require_servers!(MajorVersion::V18);
    full(MajorVersion::V18);
}

#[test]
fn the_short_story_on_the_versions_between() {
    let between = MajorVersion::V14..=MajorVersion::V17;
    for version in install::versions().into_iter().filter(|v| between.contains(v)) {
        short(version, Site::new);
    }
}

/// Segments, pieces of the tail, packs and maps in object storage; the restored server's own wal-fetch reads them there.
#[test]
fn the_short_story_in_a_bucket() {
    require_servers!(MajorVersion::V16);
    require_moto!();
    short(MajorVersion::V16, |server| Site::in_bucket(server, "story"));
}
