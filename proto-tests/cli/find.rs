//! `walrecv find`: what a person did on a bad night is told, with a restore that has it undone.

use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::{Client, Server, install, require_servers, wait_for};

/// What was done, as the server told it.
struct Night {
    from: String,
    to: String,
    dropped: u64,
    truncated: u64,
    deleted: u64,
    in_parts: u64,
    updated: u64,
    loaded: u64,
    orders: u32,
    items: u32,
    audit: u32,
}

/// Runs statements in one transaction; its id.
fn transaction(session: &mut Client, statements: &str) -> u64 {
    let rows = session.query(&format!("begin; select txid_current(); {statements}; commit"));
    let rows = rows.unwrap_or_else(|e| panic!("{statements}: {e}"));
    rows[0][0].as_ref().expect("a transaction id").parse().expect("a number")
}

fn fill(server: &Server) {
    server.sql("create table orders (id int primary key, what text); insert into orders select n, repeat('x', 50) from generate_series(1, 5000) n");
    server.sql("create table items (id int primary key); insert into items select generate_series(1, 3000)");
    server.sql("create table audit (id int); insert into audit select generate_series(1, 6000)");
    server.sql("create table kept (id int); insert into kept select generate_series(1, 3000)");
    server.sql("create table bulk (id int)");
    server.sql("create database aside");
    let mut aside = server.connect("aside").expect("a session");
    aside.query("create table within (id int); insert into within select generate_series(1, 77)").expect("rows");
}

fn live(server: &Server) -> Night {
    let now = || server.sql("select clock_timestamp()");
    let number = |sql: &str| server.sql(sql).parse().expect("a number");
    let [orders, items, audit] =
        ["orders", "items", "audit"].map(|name| number(&format!("select pg_relation_filenode('{name}')")));
    let mut session = server.connect("postgres").expect("a session");
    server.sql("drop table if exists nothing; create table early (id int)");
    server.sql("drop table early");
    let from = now();
    let dropped = transaction(&mut session, "drop table orders");
    let truncated = transaction(&mut session, "truncate items");
    let deleted = transaction(&mut session, "delete from audit where id <= 2000");
    let in_parts = transaction(
        &mut session,
        "savepoint a; delete from audit where id <= 2700; release a; \
         savepoint b; delete from audit where id > 5000; rollback to b; \
         savepoint c; delete from audit where id <= 3400; release c",
    );
    let updated = transaction(&mut session, "update audit set id = id + 10000 where id <= 5000");
    let loaded = transaction(&mut session, "insert into bulk select generate_series(1, 3000)");
    session.query("insert into bulk values (0)").expect("a row");
    session.query("begin; drop table kept; rollback").expect("a rollback");
    session.query("begin; delete from kept; rollback").expect("a rollback");
    session.query("select pg_create_restore_point('before the deploy')").expect("a restore point");
    session.query("drop database aside").expect("a database that goes");
    session.query("vacuum full kept").expect("a table written anew");
    let to = now();
    server.sql("drop table items");
    Night { from, to, dropped, truncated, deleted, in_parts, updated, loaded, orders, items, audit }
}

fn found<'f>(told: &'f Value, what: &str) -> Vec<&'f Value> {
    told["found"].as_array().expect("a list").iter().filter(|one| one["what"] == what).collect()
}

/// The transaction, rows and relation files of each.
fn deeds(told: &Value, what: &str) -> Vec<(u64, u64, Vec<u64>)> {
    let of = |one: &&Value| {
        let files = one["relations"].as_array().expect("a list").iter().filter_map(|file| file["filenode"].as_u64());
        (one["xid"].as_u64().unwrap_or_default(), one["rows"].as_u64().expect("a number"), files.collect())
    };
    found(told, what).iter().map(of).collect()
}

/// The tables that were hit, by the names that the backup gives them.
fn tables(told: &Value, what: &str) -> Vec<String> {
    let names = found(told, what).into_iter().flat_map(|one| one["tables"].as_array().expect("a list"));
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn names(site: &Site, night: &Night, told: &Value) {
    assert_eq!(tables(told, "drop"), ["public.orders"]);
    assert_eq!(tables(told, "truncate"), ["public.items"]);
    assert_eq!(tables(told, "delete"), ["public.audit", "public.audit"]);
    assert_eq!(tables(told, "rewrite"), ["public.kept"]);
    assert_eq!(found(told, "drop-database")[0]["database_name"], "aside");
    let drop = &found(told, "drop")[0];
    let index = drop["relations"].as_array().expect("a list").iter().find(|one| one["name"] == "public.orders_pkey");
    assert_eq!(index.expect("its index")["kind"], "i");
    let line = drop["extract"].as_str().expect("a line");
    assert!(line.ends_with("--exclusive --database postgres --table public.orders --file FILE"), "{line}");

    let window = ["find", "--from", &night.from, "--output", "json"];
    let asked = |args: &[&str]| site.walrecv(&window).args(args).run().expect_code(0).json();
    // Its file has been another one since it was truncated: the object that was locked is a hint, and no more. A database takes its tables along.
    let items = asked(&["--table", "items"]);
    let told: Vec<_> = items["found"].as_array().expect("a list").iter().map(|one| one["what"].clone()).collect();
    assert_eq!(told, ["truncate", "drop-database", "drop"], "{items:#}");
    assert_eq!((tables(&items, "drop").len(), &found(&items, "drop")[0]["extract"]), (0, &Value::Null));
    assert_eq!(found(&items, "drop")[0]["locked"][0]["name"], "public.items");
    let aside = asked(&["--database", "aside", "--table", "public.orders"]);
    assert_eq!((found(&aside, "drop").len(), found(&aside, "delete").len()), (0, 0), "{aside:#}");
    let numbers = asked(&["--no-names"]);
    assert_eq!((tables(&numbers, "drop").len(), found(&numbers, "drop").len()), (0, 2));
}

fn compare(site: &Site, night: &Night) -> Value {
    let window = ["find", "--from", &night.from, "--to", &night.to];
    let told = site.walrecv(&window).args(["--output", "json"]).run().expect_code(0).json();
    let drops = deeds(&told, "drop");
    assert_eq!(drops.len(), 1, "{told:#}");
    assert!(drops[0].0 == night.dropped && drops[0].2.contains(&night.orders.into()), "{drops:?}");
    let large: Vec<_> = deeds(&told, "large").into_iter().map(|(xid, rows, _)| (xid, rows)).collect();
    assert_eq!(large, [(night.loaded, 3000)], "what is small is not large, and the night had few commits: {told:#}");
    let all = site.walrecv(&["find", "--from", "2000-01-01", "--output", "json"]).run().expect_code(0).json();
    let made: Vec<_> = found(&all, "create-database").iter().map(|one| one["database"].as_u64()).collect();
    assert!(made.len() == 1 && made[0] >= Some(16384), "those of initdb are no news: {all:#}");
    assert!(found(&all, "large").iter().all(|one| one["rows"].as_u64() >= Some(1000)), "{all:#}");
    let emptied = deeds(&told, "truncate");
    assert_eq!(emptied.len(), 1, "{told:#}");
    assert!(emptied[0].0 == night.truncated && emptied[0].2.contains(&night.items.into()), "{emptied:?}");
    let audit = vec![u64::from(night.audit)];
    assert_eq!(deeds(&told, "delete"), [(night.deleted, 2000, audit.clone()), (night.in_parts, 1400, audit.clone())]);
    assert_eq!(deeds(&told, "update"), [(night.updated, 1600, audit)]);
    assert_eq!(deeds(&told, "rewrite").len(), 1, "{told:#}");
    let points: Vec<_> = found(&told, "restore-point").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(points, ["before the deploy"]);
    let point = &found(&told, "restore-point")[0];
    let line = format!(" --target-lsn {} --pgdata DIR", point["lsn"].as_str().expect("a position"));
    assert!(point["restore"].as_str().expect("a line").ends_with(&line), "{point:#}");
    assert_eq!(found(&told, "drop-database").len(), 1);

    let text = site.walrecv(&window).run().expect_code(0).stdout;
    for said in [
        "DROPPED public.orders (",
        "EMPTIED (truncated, or dropped and made anew) public.items",
        "DELETED 2000 rows of public.audit (database postgres, transaction",
        "UPDATED 1600 rows",
        "DROPPED DATABASE aside",
        "--exclusive",
    ] {
        assert!(text.contains(said), "{said:?} is not said: {text}");
    }
    let few = site.walrecv(&window).args(["--rows", "1700", "--output", "json"]).run().expect_code(0).json();
    assert_eq!((found(&few, "delete").len(), found(&few, "update").len()), (1, 0));
    let later = site.walrecv(&["find", "--from", &night.to, "--output", "json"]).run().expect_code(0).json();
    assert_eq!(deeds(&later, "drop").len(), 1, "only what was dropped after the window: {later:#}");
    names(site, night, &told);
    told
}

/// The words of a line for a shell without quotes.
fn words(line: &Value) -> Vec<String> {
    let line = line.as_str().expect("a line to type").strip_prefix("walrecv restore ").expect("a restore");
    line.strip_suffix(" --pgdata DIR").expect("a place").split(' ').map(str::to_owned).collect()
}

fn night(version: MajorVersion, level: &str) {
    let mut server = Server::builder(version).setting("wal_level", level).setting("autovacuum", "off").start();
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    fill(&server);
    site.backup();
    let night = live(&server);
    wait_durable(&server, server.lsn());
    server.kill9();
    end(receiver);
    let told = compare(&site, &night);

    let line = words(&found(&told, "drop")[0]["restore"]);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let copy = site.land(&server, "orders", &line);
    assert_eq!(copy.value("select count(*) from orders"), "5000");
    drop(copy);
    let line = words(&found(&told, "drop-database")[0]["restore"]);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let copy = site.land(&server, "aside", &line);
    assert_eq!(copy.value("select to_regclass('orders') is null and count(*) = 0 from items"), "t");
    assert_eq!(copy.value_in("aside", "select count(*) from within"), "77");
}

#[test]
fn what_was_lost_is_told_and_comes_back_on_13() {
    require_servers!(MajorVersion::V13);
    night(MajorVersion::V13, "replica");
}

#[test]
fn what_was_lost_is_told_and_comes_back_on_18() {
    require_servers!(MajorVersion::V18);
    night(MajorVersion::V18, "logical");
}

#[test]
fn what_was_lost_is_told_and_comes_back_on_the_versions_between() {
    install::soaked_between().into_iter().for_each(|version| night(version, "replica"));
}

/// A prepared transaction outlives a restart, and what its subtransactions did belongs to it.
fn prepared(version: MajorVersion) {
    let mut server =
        Server::builder(version).setting("autovacuum", "off").setting("max_prepared_transactions", "3").start();
    server.sql("create table audit (id int); insert into audit select generate_series(1, 6000)");
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    site.backup();
    let from = server.sql("select clock_timestamp()");
    let xid = {
        let mut session = server.connect("postgres").expect("a session");
        let prepared = session.query(
            "begin; select txid_current(); savepoint a; delete from audit where id <= 2000; release a; \
             savepoint b; delete from audit where id > 5000; rollback to b; \
             prepare transaction 'a name of an odd length'",
        );
        prepared.expect("a prepared transaction")[0][0].clone().expect("a transaction id")
    };
    server.stop(crate::support::Stop::Fast);
    end(receiver);
    server.start_again();
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("commit prepared 'a name of an odd length'");
    wait_durable(&server, server.lsn());
    end(receiver);
    let told = site.walrecv(&["find", "--from", &from, "--output", "json"]).run().expect_code(0).json();
    let deleted: Vec<_> = deeds(&told, "delete").into_iter().map(|(xid, rows, _)| (xid.to_string(), rows)).collect();
    assert_eq!(deleted, [(xid, 2000)], "{told:#}");
}

#[test]
fn what_a_prepared_transaction_did_in_parts_is_told_over_a_restart_on_13() {
    require_servers!(MajorVersion::V13);
    prepared(MajorVersion::V13);
}

#[test]
fn what_a_prepared_transaction_did_in_parts_is_told_over_a_restart_on_18() {
    require_servers!(MajorVersion::V18);
    prepared(MajorVersion::V18);
}

#[test]
fn what_a_prepared_transaction_did_in_parts_is_told_over_a_restart_on_the_versions_between() {
    install::soaked_between().into_iter().for_each(prepared);
}

/// Indexes that have several pages while they are empty, tables that were only locked, and what a filter leaves out.
#[test]
fn no_kind_of_index_hides_a_truncation_and_nothing_is_blamed_for_a_lock() {
    require_servers!(MajorVersion::V16);
    let server = Server::builder(MajorVersion::V16).setting("autovacuum", "off").start();
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    let kinds = [("a", "gin (to_tsvector('simple', what))"), ("b", "spgist (what)"), ("c", "hash (what)")];
    for (name, index) in kinds {
        server.sql(&format!("create table {name} (id int primary key, what text)"));
        server.sql(&format!("insert into {name} select n, repeat('word ', n % 9) from generate_series(1, 900) n"));
        server.sql(&format!("create index {name}_what on {name} using {index}"));
    }
    server.sql("create table customers (id int primary key); insert into customers select generate_series(1, 100)");
    server.sql("create table parts (id int) partition by range (id)");
    server.sql("create table part1 partition of parts for values from (0) to (9000)");
    server.sql("insert into parts select generate_series(1, 2000)");
    server.sql("create database aside");
    site.backup();
    server.sql("create table made_since (id int primary key references customers)");
    let from = server.sql("select clock_timestamp()");
    for (name, _) in kinds {
        server.sql(&format!("reindex table {name}"));
        server.sql(&format!("truncate {name}"));
    }
    server.sql("drop table made_since");
    server.sql("delete from parts");
    server.sql("vacuum full customers");
    server.sql("drop database aside");
    wait_durable(&server, server.lsn());
    end(receiver);

    let ask = |args: &[&str]| site.walrecv(&["find", "--from", &from]).args(args).run().expect_code(0);
    let told = ask(&["--output", "json"]).json();
    let whats = told["found"].as_array().expect("a list").iter().map(|one| one["what"].as_str().expect("a word"));
    let whats: Vec<&str> = whats.filter(|what| ["truncate", "rewrite", "drop"].contains(what)).collect();
    assert_eq!(whats.concat(), "rewritetruncate".repeat(3) + "drop" + "rewrite", "{told:#}");
    // The index files are new since they were made anew; the table's are what they were.
    assert_eq!(tables(&told, "truncate"), ["public.a", "public.b", "public.c"]);
    assert!(found(&told, "truncate").iter().all(|one| one["extract"].is_string()), "{told:#}");
    let rewritten = found(&told, "rewrite").pop().expect("a table that was written anew");
    assert!(rewritten["extract"].as_str().is_some_and(|line| line.contains("--table public.customers")), "{told:#}");

    let drop = &found(&told, "drop")[0];
    assert_eq!((&drop["tables"], &drop["extract"]), (&serde_json::json!([]), &Value::Null), "{drop:#}");
    assert!(drop["extract_guess"].as_str().is_some_and(|line| line.contains("--table public.customers")), "{drop:#}");
    let text = ask(&[]).stdout;
    let line = text.lines().find(|line| line.contains("DROPPED files")).expect("a drop");
    assert!(line.contains("DROPPED files of no known name (") && line.contains("); it had locked: public.customers"));
    assert!(text.contains("a guess, by what it had locked: walrecv extract"), "{text}");

    let parts = ask(&["--table", "parts", "--output", "json"]).json();
    assert_eq!(found(&parts, "drop-database").len(), 1, "{parts:#}");
    let hidden = parts["not_asked_for"].as_u64().expect("a number");
    let shown = parts["found"].as_array().expect("a list").len() as u64;
    assert!(hidden > 0 && hidden + shown == told["found"].as_array().expect("a list").len() as u64, "{parts:#}");
    // Of a time that nothing is stored of nothing is said to have been well.
    let later = site.walrecv(&["find", "--from", "2100-01-01"]).run().expect_code(15);
    assert!(later.stderr.contains("before the window"), "{}", later.stderr);
    let text = ask(&["--table", "parts"]).stdout;
    assert!(text.contains("complete through 20"), "{text}");
    assert!(text.contains(&format!("{hidden} more were found")), "{text}");
}

/// What no earlier backup knows has the name that a later one has for it, and that is said.
#[test]
fn what_was_made_since_the_backup_is_named_by_the_next_one() {
    require_servers!(MajorVersion::V16);
    let server = Server::builder(MajorVersion::V16).setting("autovacuum", "off").start();
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table orders (id int); insert into orders select generate_series(1, 3000)");
    let first = site.backup()["id"].as_str().expect("an id").to_owned();
    server.sql("create table made_since (id int); insert into made_since select generate_series(1, 3000)");
    let from = server.sql("select clock_timestamp()");
    server.sql("delete from orders where id <= 1500");
    server.sql("delete from made_since where id <= 2000");
    server.sql("alter table made_since rename to called_otherwise");
    let next = site.backup()["id"].as_str().expect("an id").to_owned();
    site.backup();
    wait_durable(&server, server.lsn());
    end(receiver);

    let ask = |args: &[&str]| site.walrecv(&["find", "--from", &from]).args(args).run().expect_code(0);
    let named = || {
        let told = ask(&["--output", "json"]).json();
        let of = |one: &&Value| (one["relations"][0]["name"].clone(), one["relations"][0]["named_by"].clone());
        let deleted = found(&told, "delete");
        assert!(
            deleted.iter().all(|one| one["relations"][0]["named_later"] == (one["relations"][0]["named_by"] == next))
        );
        deleted.iter().map(of).collect::<Vec<_>>()
    };
    let (orders, made) = (Value::from("public.orders"), Value::from("public.called_otherwise"));
    let [by_first, by_next] = [&first, &next].map(|id| Value::from(id.as_str()));
    assert_eq!(named(), [(orders.clone(), by_first), (made.clone(), by_next.clone())]);
    let text = ask(&[]).stdout;
    let told: Vec<&str> = text.lines().filter(|line| line.contains("DELETED")).collect();
    assert!(told[1].contains("DELETED 2000 rows of public.called_otherwise (database postgres"), "{text}");
    assert!(told[1].ends_with(&format!("; named as in {next}, which was taken later")), "{text}");
    assert!(!told[0].contains("named as in"), "{text}");
    // It may have been called otherwise, and was.
    let cases = [
        ("called_otherwise", &[false][..]),
        ("public.called_otherwise", &[false]),
        ("made_since", &[true]),
        ("orders", &[false, true]),
    ];
    for (table, unsure) in cases {
        let told = ask(&["--table", table, "--output", "json"]).json();
        let shown: Vec<bool> = found(&told, "delete").iter().map(|one| one["unsure"] == true).collect();
        assert_eq!(shown, unsure, "{table}: {told:#}");
        let text = ask(&["--table", table]).stdout;
        let told = text.lines().filter(|line| line.contains("DELETED") && line.contains("may be what was asked for"));
        assert_eq!(told.count(), unsure.iter().filter(|unsure| **unsure).count(), "{text}");
    }
    assert!(!ask(&[]).stdout.contains("asked for"), "nothing was");

    // Names outlive the backup that had them first.
    site.walrecv(&["expire", "--backup", &first, "--delete-delay", "0"]).run().expect_code(0);
    assert_eq!(named(), [(orders, by_next.clone()), (made, by_next)]);
}

/// Nothing was done for a while, and then something was: what is stored of that proves that the quiet time is known.
#[test]
fn a_quiet_window_is_known_by_what_came_after_it() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    site.backup();
    server.sql("create table story (n int)");
    let write = || {
        server.sql("insert into story values (1)");
        server.switch_wal();
    };
    write();
    let from = server.sql("select clock_timestamp()");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let to = server.sql("select clock_timestamp()");
    let stored = || crate::looking::files(&site.repository(), "/wal/00000001/").len();
    let before = stored();
    (0..3).for_each(|_| write());
    // Sooner than a heartbeat could prove anything.
    wait_for("the segments behind it", || (stored() >= before + 3).then_some(()));
    receiver.kill();
    let found = site.walrecv(&["find", "--from", &from, "--to", &to, "--output", "json"]).run().expect_code(0);
    let time = |text: &str| text.replace(' ', "T").replace("+00", "Z").parse::<jiff::Timestamp>().expect("a time");
    let through = found.json()["complete_through"].as_str().map(time).unwrap_or_else(|| panic!("{found:?}"));
    assert!(through >= time(&to) && !found.stderr.contains("complete through"), "{to}: {found:?}");
    // Of a time before everything that is stored nothing is known.
    let before = ["find", "--from", "2020-01-01 00:00:00+00", "--to", "2020-01-02 00:00:00+00"];
    let refused = site.walrecv(&before).run().expect_code(15);
    assert!(refused.stderr.contains("nothing is stored that is known to be older than"), "{refused:?}");
}
