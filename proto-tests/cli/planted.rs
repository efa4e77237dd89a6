//! A scratch server is asked by a superuser: nothing that people have planted in a database may be run by that, and none of production's event triggers.

use std::fs;
use std::path::Path;

use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::{Client, Server, TempDir, install, require_servers};

fn run(session: &mut Client, sql: &str) {
    session.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// What an ordinary owner of a database can do: other meanings for the names and operators that anybody uses. Each leaves a trace where a superuser runs it.
fn plant(session: &mut Client, trace: &Path) {
    let ran = format!(
        "create function ran(what text) returns boolean language plpgsql as $$ begin
           if (select rolsuper from pg_catalog.pg_roles where rolname operator(pg_catalog.=) current_user) then
             execute pg_catalog.format('copy (select %L) to program %L', what, 'cat >> {}');
           end if;
           return true;
         end $$",
        trace.display()
    );
    run(session, "set session authorization joe");
    for sql in [
        ran.as_str(),
        "create function json_build_array(name, name, text, bigint) returns json language sql
         as 'select pg_catalog.json_build_array($1, $2, $3, $4) where public.ran(''json_build_array'')'",
        "create function json_build_array(name, name, text, bigint, text) returns json language sql
         as 'select pg_catalog.json_build_array($1, $2, $3, $4, $5) where public.ran(''json_build_array'')'",
        "create function counted(bigint) returns bigint language sql as 'select $1 + 1 where public.ran(''count'')'",
        "create aggregate count(*) (sfunc = counted, stype = bigint, initcond = '0')",
        "create function same(oid, oid) returns boolean language sql
         as 'select $1 operator(pg_catalog.=) $2 and public.ran(''='')'",
        "create operator public.= (leftarg = oid, rightarg = oid, function = same)",
        "create view pg_namespace as select * from pg_catalog.pg_namespace where public.ran('pg_namespace')",
        // The extension's take a regclass: these suit an object id better.
        "create function bt_index_check(index oid, heapallindexed boolean) returns void language sql
         as 'select from public.ran(''bt_index_check'')'",
        "create function bt_index_check(index oid, heapallindexed boolean, checkunique boolean) returns void language sql
         as 'select from public.ran(''bt_index_check'')'",
        "alter database shop set search_path = public, pg_catalog",
    ] {
        run(session, sql);
    }
    run(session, "reset session authorization");
}

/// Of those who look after production: what was changed, and who came, in a table of another server perhaps. With the search_path of pg_amcheck it fails.
fn audit(session: &mut Client, version: MajorVersion) {
    run(
        session,
        "create function audit() returns event_trigger language plpgsql security definer
         as $$ begin perform ran('audit'); end $$",
    );
    let events =
        if version >= MajorVersion::V17 { &["ddl_command_start", "login"][..] } else { &["ddl_command_start"] };
    for event in events {
        for (name, fires) in [("plain", "enable"), ("Al\"ways", "enable always"), ("replica", "enable replica")] {
            let name = format!("\"{event} {}\"", name.replace('"', "\"\""));
            run(session, &format!("create event trigger {name} on {event} execute function audit()"));
            run(session, &format!("alter event trigger {name} {fires}"));
        }
    }
}

/// What a database may set for its sessions, so that none lasts, waits, or writes.
fn hurry(server: &Server, version: MajorVersion) -> Vec<&'static str> {
    let mut limits = vec!["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
    if version >= MajorVersion::V14 {
        limits.push("idle_session_timeout");
    }
    if version >= MajorVersion::V17 {
        limits.push("transaction_timeout");
    }
    limits.iter().for_each(|limit| drop(server.sql(&format!("alter database shop set {limit} = 1"))));
    server.sql("alter database shop set default_transaction_read_only = on");
    limits.push("default_transaction_read_only");
    limits
}

fn nothing_of_a_database_runs(version: MajorVersion) {
    let server = Server::start(version);
    let places = TempDir::for_postgres("planted");
    let trace = places.path().join("trace");
    let traces = || fs::read_to_string(&trace).unwrap_or_default();
    server.sql("create role joe login");
    server.sql("create database shop owner joe");
    let mut shop = server.connect("shop").expect("a session");
    run(&mut shop, "create extension amcheck with schema public");
    run(&mut shop, "create table orders (id int primary key); insert into orders select generate_series(1, 1000)");
    run(&mut shop, "create table parts (id int) partition by list (id)");
    run(&mut shop, "create table part partition of parts for values in (1)");
    if version < MajorVersion::V17 {
        // Who computes it needs the database's search_path; later versions make no such index.
        for sql in [
            "create function twice(n int) returns int language sql immutable as 'select n * 2'",
            "create function four(n int) returns int language plpgsql immutable as 'begin return twice(twice(n)); end'",
            "create index on orders (four(id))",
        ] {
            run(&mut shop, sql);
        }
    }
    plant(&mut shop, &trace);
    audit(&mut shop, version);
    drop(shop);
    let hurried = hurry(&server, version);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    site.backup();
    wait_durable(&server, server.lsn());
    end(receiver);
    hurried.iter().for_each(|setting| drop(server.sql(&format!("alter database shop reset {setting}"))));
    fs::remove_file(&trace).unwrap_or_default();

    let (work, programs) = (places.path().display().to_string(), server.bin_dir().display().to_string());
    let scratch = |args: &[&str]| site.walrecv(args).args(["--work-dir", &work, "--pg-bindir", &programs]);
    // A person's own question means what it means in production.
    let asked = "select current_setting('search_path') = 'public, pg_catalog' and pg_sleep(0.1) is not null";
    let told = scratch(&["drill", "--database", "shop", "--assert", asked, "--output", "json"]).run();
    assert_eq!(traces(), "", "what a drill ran");
    let told = told.expect_code(0).json();
    assert_eq!(told["passed"], true, "{told:#}");
    for (wish, wanted, file) in
        [("--table", "orders", "o.sql"), ("--table", "parts", "p.sql"), ("--database", "shop", "all.sql")]
    {
        scratch(&["extract", "--latest", wish, wanted, "--file", file]).run().expect_code(0);
        assert_eq!(traces(), "", "what an extract of {wanted} ran");
    }
    let dump = fs::read_to_string(site.etc().join("all.sql")).expect("a dump");
    assert!(
        dump.contains("CREATE EVENT TRIGGER \"ddl_command_start plain\"") && !dump.contains("\" DISABLE"),
        "{dump}"
    );

    // All of it would have left its trace.
    let mut shop = server.connect("shop").expect("a session");
    run(&mut shop, "select count(*) from pg_namespace n where n.oid = n.oid");
    run(&mut shop, "select json_build_array('a'::name, 'b'::name, 'c'::text, 1::bigint)");
    run(&mut shop, "select bt_index_check(i.indexrelid, false) from pg_index i limit 1");
    run(&mut shop, "create table later ()");
    let left = traces();
    for what in ["count", "=", "pg_namespace", "json_build_array", "bt_index_check", "audit"] {
        assert!(left.lines().any(|line| line == what), "{what} leaves no trace: {left}");
    }
}

#[test]
fn nothing_that_was_planted_runs_in_a_scratch_server_of_13() {
    require_servers!(MajorVersion::V13);
    nothing_of_a_database_runs(MajorVersion::V13);
}

#[test]
fn nothing_that_was_planted_runs_in_a_scratch_server_of_18() {
    require_servers!(MajorVersion::V18);
    nothing_of_a_database_runs(MajorVersion::V18);
}

#[test]
fn nothing_that_was_planted_runs_in_a_scratch_server_of_the_versions_between() {
    install::soaked_between().into_iter().for_each(nothing_of_a_database_runs);
}
