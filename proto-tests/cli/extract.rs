//! `walrecv extract`: what was deleted comes back as SQL, and is what was there.

use std::fs;
use std::path::PathBuf;

use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::walrecv::Walrecv;
use crate::support::{Client, Server, TempDir, install, require_servers};

/// What a table holds, in one number that other rows would change.
fn sum(session: &mut Client, table: &str) -> String {
    let sql = format!("select count(*) || ' ' || coalesce(sum(hashtext(t::text)::numeric), 0) from {table} t");
    let rows = session.query(&sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    rows[0][0].clone().expect("a sum")
}

struct Scene {
    server: Server,
    site: Site,
    work: TempDir,
}

impl Scene {
    fn extract(&self, args: &[&str]) -> Walrecv {
        let work = self.work.path().display().to_string();
        let programs = self.server.bin_dir().display().to_string();
        self.site.walrecv(&["extract"]).args(args).args(["--work-dir", &work, "--pg-bindir", &programs])
    }

    fn file(&self, name: &str) -> PathBuf {
        self.site.places.join("etc").join(name)
    }

    fn load(&self, database: &str, name: &str) {
        let file = self.file(name).display().to_string();
        self.server.run("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", &file]);
    }
}

const TABLES: [&str; 3] = ["shop.orders", "shop.parts", "\"Odd \"\"Name\""];

fn fill(session: &mut Client) {
    let mut run = |sql: &str| drop(session.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}")));
    run("create schema shop");
    run("create table shop.orders (id serial primary key, note text, at timestamptz default now())");
    run("insert into shop.orders (note) select repeat(md5(n::text), 1 + n % 90) from generate_series(1, 3000) n");
    run("create index on shop.orders (note) where id < 10");
    run("create table shop.parts (id int, region text) partition by list (region)");
    run("create table shop.north partition of shop.parts for values in ('n')");
    run("create table shop.south partition of shop.parts for values in ('s') partition by range (id)");
    run("create table shop.south1 partition of shop.south for values from (0) to (1000)");
    run("insert into shop.parts select n, case when n % 2 = 0 then 'n' else 's' end from generate_series(1, 900) n");
    run("create table \"Odd \"\"Name\" (\"Va lue\" text); insert into \"Odd \"\"Name\" values ('ä\\b'), (null)");
}

fn comes_back(version: MajorVersion) {
    let server = Server::start(version);
    server.sql("create database store");
    let mut store = server.connect("store").expect("a session");
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    fill(&mut store);
    site.backup();
    store.query("insert into shop.orders (note) values ('the last one')").expect("a row");
    let before: Vec<String> = TABLES.iter().map(|table| sum(&mut store, table)).collect();
    let rows =
        store.query("begin; select txid_current(); drop schema shop cascade; drop table \"Odd \"\"Name\"; commit");
    let xid = rows.expect("the accident")[0][0].clone().expect("a transaction");
    server.sql("create table shop_orders_of_another_database (id int)");
    wait_durable(&server, server.lsn());
    end(receiver);
    let scene = Scene { server, site, work: TempDir::for_postgres("work") };

    // The database is the one that has them; partitions come with their table.
    let all: Vec<&str> = TABLES.iter().flat_map(|table| ["--table", table]).collect();
    let told = scene.extract(&["--before-xid", &xid, "--file", "lost.sql", "--output", "json"]).args(&all);
    let told = told.run().expect_code(0).json();
    assert_eq!(told["database"], "store");
    assert_eq!(told["tables"].as_array().map(Vec::len), Some(6), "{told:#}");
    assert_eq!(told["bytes"].as_u64(), fs::metadata(scene.file("lost.sql")).ok().map(|meta| meta.len()));
    store.query("create schema shop").expect("a schema");
    scene.load("store", "lost.sql");
    let after: Vec<String> = TABLES.iter().map(|table| sum(&mut store, table)).collect();
    assert_eq!(after, before);
    store.query("insert into shop.orders (note) values ('its sequence goes on')").expect("a row");

    // A whole database, and rows alone.
    scene.extract(&["--before-xid", &xid, "--database", "store", "--file", "all.sql"]).run().expect_code(0);
    scene.server.sql("create database again");
    scene.load("again", "all.sql");
    let mut again = scene.server.connect("again").expect("a session");
    let loaded: Vec<String> = TABLES.iter().map(|table| sum(&mut again, table)).collect();
    assert_eq!(loaded, before);
    again.query("delete from shop.orders where id > 5").expect("another accident");
    let args = ["--before-xid", &xid, "--table", "shop.orders", "--data-only", "--file", "rows.sql"];
    scene.extract(&args).run().expect_code(0);
    again.query("truncate shop.orders").expect("an empty table");
    scene.load("again", "rows.sql");
    assert_eq!(sum(&mut again, "shop.orders"), before[0]);
    refusals(&scene, &xid);
    assert_eq!(fs::read_dir(scene.work.path()).expect("a folder").count(), 0, "nothing stays");
}

fn refusals(scene: &Scene, xid: &str) {
    let refused = |args: &[&str], code: i32, said: &str| {
        let output = scene.extract(args).run().expect_code(code);
        assert!(output.stderr.contains(said), "{said:?} is not said: {}", output.stderr);
    };
    refused(&["--before-xid", xid, "--table", "shop.ordres", "--file", "x.sql"], 2, "shop.orders");
    refused(&["--before-xid", xid, "--table", "orders", "--database", "stor", "--file", "x.sql"], 2, "store");
    refused(&["--before-xid", xid, "--table", "a.b.c", "--file", "x.sql"], 2, "no name of a table");
    refused(&["--before-xid", xid, "--table", "shop.orders", "--file", "lost.sql"], 2, "already exists");
    refused(&["--table", "shop.orders", "--file", "x.sql"], 2, "no point in time");
    refused(&["--before-xid", "4000000", "--table", "shop.orders", "--file", "x.sql"], 19, "transaction 4000000");
    let left: Vec<_> = fs::read_dir(scene.file(""))
        .expect("a folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    assert!(!left.iter().any(|name| name.contains("x.sql")), "half a file: {left:?}");
}

#[test]
fn what_was_dropped_comes_back_as_it_was_on_13() {
    require_servers!(MajorVersion::V13);
    comes_back(MajorVersion::V13);
}

#[test]
fn what_was_dropped_comes_back_as_it_was_on_18() {
    require_servers!(MajorVersion::V18);
    comes_back(MajorVersion::V18);
}

#[test]
fn what_was_dropped_comes_back_as_it_was_on_the_versions_between() {
    install::soaked_between().into_iter().for_each(comes_back);
}

/// What SELECT shows of a table comes back, or it is said what does not.
fn inherited(version: MajorVersion) {
    let server = Server::start(version);
    let mut store = server.connect("postgres").expect("a session");
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    let mut run = |sql: &str| drop(store.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}")));
    run("create table measured (id int, at int)");
    run("create table measured_1 (check (at < 100)) inherits (measured)");
    run("create table measured_1a () inherits (measured_1)");
    run("insert into measured_1 select n, n % 100 from generate_series(1, 500) n");
    run("insert into measured_1a values (7, 7); insert into measured values (8, 8)");
    run("create materialized view summed as select count(*) from measured");
    run("create view seen as select * from measured");
    run("create foreign data wrapper elsewhere; create server other foreign data wrapper elsewhere");
    run("create foreign table far (id int) server other");
    run("create unlogged table volatile as select 1 as id");
    run("create table parts (id int) partition by list (id)");
    run("create table kept partition of parts for values in (1)");
    run("create unlogged table fleeting partition of parts for values in (2)");
    run("insert into parts values (1), (2)");
    let before = sum(&mut store, "measured");
    assert!(before.starts_with("502 "), "{before}");
    site.backup();
    let xid = store.query("begin; select txid_current(); drop table measured cascade; commit").expect("the accident");
    let xid = xid[0][0].clone().expect("a transaction");
    wait_durable(&server, server.lsn());
    end(receiver);
    let scene = Scene { server, site, work: TempDir::for_postgres("work") };
    let ask = |args: &[&str]| scene.extract(&["--before-xid", &xid, "--output", "json"]).args(args).run();

    let told = ask(&["--table", "measured", "--file", "measured.sql"]).expect_code(0).json();
    assert_eq!(told["tables"].as_array().map(Vec::len), Some(3), "{told:#}");
    assert_eq!(told["without_rows"], serde_json::json!([]));
    scene.load("postgres", "measured.sql");
    assert_eq!(sum(&mut store, "measured"), before);

    for (table, why) in [("summed", "materialised view"), ("volatile", "unlogged"), ("seen", "no rows of its own")] {
        let output = ask(&["--table", table, "--file", "x.sql"]).expect_code(2);
        assert!(output.stderr.contains(why) && output.stderr.contains("--schema-only"), "{}", output.stderr);
        let file = format!("{table}.sql");
        ask(&["--table", table, "--schema-only", "--file", &file]).expect_code(0);
        assert!(fs::read_to_string(scene.file(&file)).expect("a file").contains(table));
    }
    // A part that cannot come back does not keep the rest.
    let told = ask(&["--table", "parts", "--file", "parts.sql"]).expect_code(0).json();
    assert_eq!(told["without_rows"][0]["table"], "\"public\".\"fleeting\"", "{told:#}");
    let whole = ["--before-xid", &xid, "--database", "postgres", "--file", "all.sql"];
    let text = scene.extract(&whole).run().expect_code(0).stdout;
    for said in ["volatile\": it is unlogged", "summed\": it is a materialised view", "far\": it is a foreign table"] {
        assert!(text.contains(&format!("NO ROWS    of \"public\".\"{said}")), "{said}: {text}");
    }
    assert!(!text.contains("\"seen\""), "nobody misses the rows of a view: {text}");
}

#[test]
fn a_table_comes_with_what_inherits_from_it_on_13() {
    require_servers!(MajorVersion::V13);
    inherited(MajorVersion::V13);
}

#[test]
fn a_table_comes_with_what_inherits_from_it_on_18() {
    require_servers!(MajorVersion::V18);
    inherited(MajorVersion::V18);
}

#[test]
fn a_table_comes_with_what_inherits_from_it_on_the_versions_between() {
    install::soaked_between().into_iter().for_each(inherited);
}

/// Only the database that is needed is restored; what it was called is what it was called at that time.
#[test]
fn a_database_is_found_by_what_it_was_called_then() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let run = |database: &str, sql: &str| {
        server.connect(database).expect("a session").query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    };
    for (name, what) in [("green", "green"), ("blue", "blue"), ("other", "other")] {
        server.sql(&format!("create database {name}"));
        run(name, &format!("create table {what} as select n, '{what}' from generate_series(1, 2000) n"));
    }
    run("blue", "create table twice (id int)");
    run("other", "create table twice (id int)");
    run("other", "create table pair (id int)");
    run("other", "create table moved as select 'before' as what");
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    site.backup();
    for sql in ["alter database green rename to old", "alter database blue rename to green", "create database later"] {
        server.sql(sql);
    }
    run("later", "create table late as select n from generate_series(1, 100) n");
    // As a DROP DATABASE leaves one that was interrupted: nobody gets in, and it is nobody's.
    server.sql("create database broken");
    server.sql("update pg_database set datconnlimit = -2 where datname = 'broken'");
    run("other", "drop table moved");
    run("green", "create table pair (id int)");
    run("green", "create table moved as select 'after' as what");
    wait_durable(&server, server.lsn());
    end(receiver);
    let scene = Scene { server, site, work: TempDir::for_postgres("work") };
    let extract = |args: &[&str], file: &str| {
        let told =
            scene.extract(&["--latest", "--file", file, "--output", "json"]).args(args).run().expect_code(0).json();
        let left_out = told["plan"]["databases"]["left_out"]
            .as_array()
            .map(|all| all.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>());
        (fs::read_to_string(scene.file(file)).expect("a file"), left_out.map(|names| names.join(" ")))
    };
    // The backup's green is not what was called so: everything is restored then.
    let (dump, left_out) = extract(&["--database", "green"], "green.sql");
    assert!(dump.contains("2000\tblue") && !dump.contains("green"), "{dump:.500}");
    assert_eq!(left_out, None);
    let (dump, left_out) = extract(&["--table", "green"], "table.sql");
    // The backup's blue, green by now, is restored too: a table was made in it.
    assert_eq!((dump.contains("2000\tgreen"), left_out.as_deref()), (true, Some("other")));
    let (dump, left_out) = extract(&["--database", "later"], "later.sql");
    assert_eq!((dump.contains("\n100\n"), left_out.as_deref()), (true, Some("green blue other")));
    // By the backup's catalogs it is in a database that does not have it any more.
    let (dump, left_out) = extract(&["--table", "moved"], "moved.sql");
    assert_eq!((dump.contains("after") && !dump.contains("before"), left_out.as_deref()), (true, Some("green")));
    // Of the second only one database of the backup has such a table, and another one by now.
    for table in ["twice", "pair"] {
        let output = scene.extract(&["--latest", "--table", table, "--file", "two.sql"]).run().expect_code(2);
        let said = output.stderr;
        assert!(said.contains("several databases") && said.contains("green, other"), "{table}: {said}");
    }
    assert_eq!(fs::read_dir(scene.work.path()).expect("a folder").count(), 0, "nothing stays");
}

/// The night in one go: `find` says when, `extract` brings it back.
#[test]
fn what_find_names_is_brought_back_by_extract() {
    require_servers!(MajorVersion::V15);
    let server = Server::start(MajorVersion::V15);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table orders (id int primary key); insert into orders select generate_series(1, 5000)");
    site.backup();
    server.sql("insert into orders values (5001)");
    server.sql("delete from orders");
    server.sql("insert into orders values (1)");
    wait_durable(&server, server.lsn());
    end(receiver);
    let found = site.walrecv(&["find", "--last", "1h", "--output", "json"]).run().expect_code(0).json();
    let deleted = found["found"].as_array().and_then(|all| all.iter().find(|one| one["what"] == "delete"));
    let lsn = deleted.expect("a mass delete")["lsn"].as_str().expect("a position");
    let scene = Scene { server, site, work: TempDir::for_postgres("work") };
    let args = ["--target-lsn", lsn, "--exclusive", "--table", "orders", "--data-only", "--file", "orders.sql"];
    scene.extract(&args).run().expect_code(0);
    scene.server.sql("truncate orders");
    scene.load("postgres", "orders.sql");
    assert_eq!(scene.server.sql("select count(*), max(id) from orders"), "5001|5001");
}
