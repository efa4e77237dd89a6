//! `walrecv restore --databases`: what was asked for is as it was, the WAL of everything else is replayed over holes, and nobody takes those for a database.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::site::{Copy, Site, end, verify, wait_durable};
use crate::support::user::give_to_postgres;
use crate::support::{Client, Server, install, require_servers};

/// `logs` lies in `base`, `spaced` in a tablespace; neither is asked for. The files of `source` are copied after the backup, `gone` is dropped then.
const MADE: [&str; 6] = ["shop", "logs", "spaced", "source", "gone", "\"Odd \"\"One\""];

fn in_database(server: &Server, database: &str, script: &[&str]) {
    let mut session = server.connect(database).unwrap_or_else(|e| panic!("{database}: {e:?}"));
    for sql in script {
        session.query(sql).unwrap_or_else(|e| panic!("{database}: {sql}: {e}"));
    }
}

const FILL: [&str; 5] = [
    "create table big (id int primary key, note text)",
    "insert into big select n, repeat(md5(n::text), 8) from generate_series(1, 3000) n",
    "create table emptied as select * from big",
    "create table dropped as select * from big",
    "create table shrunk as select * from big",
];

/// What is done to a database that nobody asked for: every kind of change to what the backup has of it.
const CHURN: [&str; 12] = [
    // Pages are noted as visible to all: without checksums their images are not in the WAL.
    "vacuum big",
    "update big set note = 'new' where id % 7 = 0",
    "delete from big where id % 5 = 0",
    "vacuum big",
    "truncate emptied",
    "insert into emptied values (1, 'x')",
    "drop table dropped",
    "delete from shrunk where id > 100",
    "vacuum shrunk",
    "create index on big (note)",
    "create table made as select * from big",
    // Its file map is written anew, and would look whole.
    "vacuum full pg_class",
];

fn story(version: MajorVersion) -> (Server, Site) {
    let mut builder = Server::builder(version).setting("autovacuum", "off");
    if version >= MajorVersion::V18 {
        builder = builder.initdb("--no-data-checksums");
    }
    let server = builder.start();
    let site = Site::new(&server);
    let space = site.places.postgres_dir("space");
    server.sql(&format!("create tablespace space location '{}'", space.display()));
    for name in MADE {
        let place = if name == "spaced" { "tablespace space" } else { "" };
        server.sql(&format!("create database {name} {place}"));
        in_database(&server, name.trim_matches('"').replace("\"\"", "\"").as_str(), &FILL);
    }
    // One on the default tablespace with something elsewhere too.
    in_database(&server, "logs", &["create table away (id int) tablespace space", "insert into away values (1)"]);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    site.backup();
    for name in ["logs", "spaced"] {
        in_database(&server, name, &CHURN);
    }
    server.sql("drop database gone");
    let by_files = if version >= MajorVersion::V15 { "strategy file_copy" } else { "" };
    server.sql(&format!("create database copied template source {by_files}"));
    server.sql("create database since");
    in_database(&server, "since", &FILL);
    in_database(&server, "shop", &["update big set note = 'sold' where id < 500", "vacuum big", "drop table dropped"]);
    in_database(&server, "logs", &["vacuum big", "update big set note = 'newest' where id % 3 = 0"]);
    wait_durable(&server, server.lsn());
    end(receiver);
    (server, site)
}

/// What the tables of a database hold.
fn sums(session: &mut Client) -> Vec<String> {
    let names = "select relname from pg_class where relkind = 'r' and oid >= 16384 order by 1";
    let tables = session.query(names).expect("tables");
    let sum = |table: &str| {
        format!(
            "select '{table} ' || count(*) || ' ' || coalesce(sum(hashtext(t::text)::numeric), 0) from \"{table}\" t"
        )
    };
    let mut value = |sql: String| session.query(&sql).unwrap_or_else(|e| panic!("{sql}: {e}"))[0][0].clone();
    tables.iter().filter_map(|row| value(sum(row[0].as_deref().expect("a name")))).collect()
}

fn names(told: &Value) -> Vec<&str> {
    told.as_array().expect("databases").iter().map(|one| one["name"].as_str().expect("a name")).collect()
}

fn client(copy: &Copy, database: &str) -> Result<Client, String> {
    let started = &copy.told["started"];
    let folder = Path::new(started["socket_directory"].as_str().expect("a socket"));
    let port = started["port"].as_u64().expect("a port") as u16;
    Client::connect(folder, port, "postgres", database).map_err(|e| e.to_string())
}

/// Bytes of the files below a folder: as they look, and on the disk.
fn sizes(folder: &Path) -> (u64, u64) {
    let files =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").metadata().expect("a size"));
    files.fold((0, 0), |(looks, takes), file| (looks + file.len(), takes + file.blocks() * 512))
}

fn restores_some(version: MajorVersion) {
    let (server, site) = story(version);
    let before: Vec<Vec<String>> =
        ["shop", "since", "copied"].iter().map(|name| sums(&mut server.connect(name).expect("a session"))).collect();
    let oid = |name: &str| server.sql(&format!("select oid from pg_database where datname = '{name}'"));
    let mapping = |place: &str| format!("{}={}", site.data("space").display(), site.data(place).display());

    let whole = site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
    let plan = ["restore", "--latest", "--plan", "--databases", "shop", "--output", "json"];
    let plan = site.walrecv(&plan).run().expect_code(0).json();
    let told = &plan["databases"];
    let mut left_out = names(&told["left_out"]);
    left_out.sort_unstable();
    assert_eq!(left_out, ["Odd \"One", "gone", "logs", "spaced"], "{told:#}");
    let laid = names(&told["laid"]);
    for name in ["shop", "source", "postgres", "template0", "template1"] {
        assert!(laid.contains(&name), "{told:#}");
    }
    assert!(plan["backup_bytes"].as_u64() < whole["backup_bytes"].as_u64().map(|all| all * 6 / 10), "{plan:#}");
    assert!(told["pages"].as_u64() > Some(100), "the pages that VACUUM noted: {told:#}");

    // Files alone: what was laid is what the manifest lists.
    let files = site.restore(&server, "files", &["--latest", "--databases", "shop"]);
    let output = files.args(["--tablespace-mapping", &mapping("files-space")]).run().expect_code(0);
    let (says, oid_of_logs) = (&output.stdout, oid("logs"));
    assert!(says.contains("DROP DATABASE %I") && says.contains(&oid_of_logs) && says.contains("\\gexec"), "{says}");
    verify(&server, &site.data("files"));
    let (looks, takes) = sizes(&site.data("files").join("base").join(oid("logs")));
    assert!(looks > 8 << 20 && takes * 2 < looks, "holes: {takes} of {looks} bytes");

    let mapped = mapping("copy-space");
    let copy = site.land(&server, "copy", &["--latest", "--databases", "shop", "--tablespace-mapping", &mapped]);
    for (name, before) in ["shop", "since", "copied"].iter().zip(&before) {
        assert_eq!(sums(&mut client(&copy, name).expect("a session")), *before, "{name}");
    }
    // Nobody gets in, so nobody sees an empty table where rows were.
    for name in ["logs", "spaced", "Odd \"One"] {
        let refused = client(&copy, name).err().expect("a database that was left out lets nobody in");
        assert!(refused.contains("is not a valid data directory"), "{name}: {refused}");
    }
    assert_eq!(copy.value("select count(*) from pg_database where datname = 'gone'"), "0");
    let mut session = client(&copy, "postgres").expect("a session");
    let drops = copy.told["plan"]["databases"]["drop"].as_str().expect("a query");
    let drops = session.query(drops).unwrap_or_else(|e| panic!("{drops}: {e}"));
    assert_eq!(drops.len(), 3, "what the WAL has dropped is not there: {drops:?}");
    for drop in drops.concat().iter().flatten() {
        session.query(drop).unwrap_or_else(|e| panic!("{drop}: {e}"));
    }
    assert!(!copy.data.join("base").join(oid("logs")).exists());
    copy.run(&server, "vacuumdb", &["--all", "--freeze", "--quiet"]);
    if version >= MajorVersion::V14 {
        copy.run(&server, "pg_amcheck", &["--all", "--install-missing"]);
    }
}

#[test]
fn some_databases_are_restored_on_13() {
    require_servers!(MajorVersion::V13);
    restores_some(MajorVersion::V13);
}

#[test]
fn some_databases_are_restored_on_18() {
    require_servers!(MajorVersion::V18);
    restores_some(MajorVersion::V18);
}

#[test]
fn some_databases_are_restored_on_the_versions_between() {
    install::soaked_between().into_iter().for_each(restores_some);
}

/// A name that is wrong costs nothing; what was begun with some databases is gone on with, and with all.
#[test]
fn names_are_refused_before_anything_is_copied_and_what_was_begun_can_be_completed() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    for name in ["shop", "logs"] {
        server.sql(&format!("create database {name}"));
        in_database(&server, name, &FILL);
    }
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    site.backup();
    in_database(&server, "logs", &["update big set note = 'new'"]);
    server.sql("alter database shop rename to store");
    wait_durable(&server, server.lsn());
    end(receiver);

    for (wrong, hint) in [("stor", "shop, logs"), ("shop,nothing", "shop, logs"), ("99", "shop, logs")] {
        let output = site.restore(&server, "none", &["--latest", "--databases", wrong]).run().expect_code(2);
        assert!(output.stderr.contains("has no database") && output.stderr.contains(hint), "{}", output.stderr);
        assert!(!site.data("none").exists(), "something was made");
    }
    // Interrupted where nothing is complete yet: pg_control comes last.
    let begun = ["--latest", "--databases", "shop"];
    site.restore(&server, "copy", &begun).run().expect_code(0);
    let control = site.data("copy").join("global/pg_control");
    fs::rename(&control, site.data("pg_control")).expect("taken away");
    mark(&server, &site);
    let again = site.restore(&server, "copy", &begun).args(["--output", "json"]).run().expect_code(0).json();
    assert!(again["restored"]["kept"].as_u64() > Some(1 << 20), "{again:#}");
    assert_eq!(again["plan"]["databases"]["renamed"], true, "{again:#}");

    // The other way round: holes are filled.
    fs::remove_file(&control).expect("taken away");
    mark(&server, &site);
    let copy = site.land(&server, "copy", &["--latest"]);
    let of = |name: &str| sums(&mut server.connect(name).expect("a session"));
    for name in ["store", "logs"] {
        assert_eq!(sums(&mut client(&copy, name).expect("a session")), of(name), "{name}");
    }
}

/// Leaves what an interrupted restore would, to say whose it is.
fn mark(server: &Server, site: &Site) {
    let system: u64 = server.sql("select system_identifier from pg_control_system()").parse().expect("a number");
    let text = serde_json::json!({ "system": system, "root": site.data("copy"), "backup": "", "target": "" });
    let place = site.data("copy").join(".walrecv-restore");
    fs::write(&place, text.to_string()).expect("a mark");
    give_to_postgres(&place);
}
