//! What `walrecv status` says of receivers that run, that have ended, and that never began; and many clusters in one process.

use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use walrecv::pg::{Lsn, MajorVersion};

use crate::site::{Site, end, wait_durable};
use crate::support::walrecv::Running;
use crate::support::{Server, Walrecv, moto, require_moto, require_servers, wait_for};

/// The only cluster, and the exit code.
fn status(site: &Site, args: &[&str]) -> (Value, i32) {
    let output = site.walrecv(&["status", "--output", "json"]).args(args).run();
    let told = output.json();
    assert_eq!(told["healthy"] == true, output.code() == 0, "{told}");
    assert!(matches!(output.code(), 0 | 1), "{}", output.stderr);
    (told["clusters"][0].clone(), output.code())
}

/// Waits until the cluster is in a state, and everything that it was asked to be.
fn wait_state(site: &Site, args: &[&str], wanted: impl Fn(&Value) -> bool) -> (Value, i32) {
    let mut last = Value::Null;
    let found = wait_for("a state", || {
        let (cluster, code) = status(site, args);
        last = cluster.clone();
        if std::env::var_os("WALRECV_SHOW").is_some() {
            eprintln!("{}", site.walrecv(&["status"]).args(args).run().stdout);
        }
        wanted(&cluster).then_some((cluster, code))
    });
    assert!(found.0["cluster"].is_string(), "{last}");
    found
}

fn durable(cluster: &Value) -> Lsn {
    cluster["positions"]["durable"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn a_receiver_is_seen_streaming_without_its_server_and_dead() {
    require_servers!(MajorVersion::V17);
    let mut server = Server::start(MajorVersion::V17);
    let site = Site::new(&server);
    let (before, code) = status(&site, &[]);
    assert_eq!((before["state"].as_str(), code), (Some("not_running"), 1));
    assert!(before["problem"].as_str().is_some_and(|problem| problem.contains("nothing is stored")), "{before}");

    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table t as select 1");
    wait_durable(&server, server.lsn());
    // The server writes a little now and then by itself.
    let quiet = |cluster: &Value| {
        let positions = &cluster["positions"];
        let caught_up =
            positions["durable"] == positions["verified"] && positions["server"] == server.lsn().to_string();
        caught_up && cluster["behind"]["seconds"] == 0.0 && cluster["complete_through"].is_string()
    };
    let (streaming, code) = wait_state(&site, &[], quiet);
    assert_eq!((streaming["state"].as_str(), code), (Some("streaming"), 0), "{streaming}");
    assert_eq!(
        (&streaming["behind"]["bytes"], &streaming["behind"]["oldest_commit_seconds"]),
        (&0.into(), &Value::Null)
    );
    assert_eq!((&streaming["server"]["version"], &streaming["server"]["standby"]), (&17.into(), &false.into()));
    let recent = &streaming["time_to_durable"]["recent"];
    assert!(number(&recent["count"]) >= 1.0 && number(&recent["p50"]) < 60_000.0, "{recent}");
    assert!(number(&streaming["clock_skew_seconds"]).abs() < 30.0, "both clocks are this host's");
    assert_eq!(
        (&streaming["process"]["command"], number(&streaming["process"]["pid"])),
        (&"receive".into(), f64::from(receiver.pid()))
    );
    assert_eq!((&streaming["slot"]["name"], &streaming["synchronous"]), (&"walrecv_main".into(), &false.into()));
    let text = site.walrecv(&["status"]).run().expect_code(0).stdout;
    for said in [
        "cluster main: streaming since",
        "0 B, 0.0 s by the server's clock",
        "complete through",
        "time to durable",
        "no commit waits",
    ] {
        assert!(text.contains(said), "{said:?} is not said: {text}");
    }

    server.kill9();
    let (away, _) = wait_state(&site, &[], |cluster| cluster["healthy"] == false);
    assert_eq!(away["state"], "server_away", "{away}");
    assert!(number(&away["behind"]["seconds"]) > 5.0, "its clock goes on: {away}");
    server.start_again();
    server.sql("insert into t values (2)");
    let (again, _) = wait_state(&site, &[], |cluster| cluster["state"] == "streaming");
    assert!(number(&again["reconnects"]) >= 1.0, "{again}");
    let written = server.lsn();
    wait_durable(&server, written);

    receiver.kill();
    let (dead, code) = status(&site, &[]);
    assert_eq!((dead["state"].as_str(), code), (Some("not_running"), 1), "{dead}");
    assert!(durable(&dead) >= written, "the repository knows: {dead}");
    assert!(number(&dead["behind"]["seconds"]) < 60.0 && dead["since"].is_string(), "{dead}");
    let leftover = || std::fs::read_dir(site.etc().join("walrecv-state/status")).expect("a folder").count();
    let last = &dead["last_run"];
    assert_eq!((&last["ending"], &last["ended"]), (&"unknown".into(), &Value::Null), "it could not say so: {last}");
    assert_eq!(leftover(), 1, "a killed process cannot clear away");
    end(site.receive(&[]));
    assert!(leftover() <= 1, "the next one clears away what is old enough");
}

/// What a Prometheus client understands of the page: values by line, labels in the order in which they stand.
fn metrics(site: &Site) -> (Value, String) {
    let page = site.walrecv(&["status", "--metrics"]).run().expect_code(0).stdout;
    let script = "import json, sys; from prometheus_client.parser import text_string_to_metric_families as parse\n\
        families = list(parse(sys.stdin.read()))\n\
        assert all(family.type != 'unknown' and family.documentation for family in families)\n\
        line = lambda s: ' '.join([s.name] + [v for k, v in s.labels.items() if k != 'cluster'])\n\
        print(json.dumps({line(s): s.value for family in families for s in family.samples}))";
    let mut command = Command::new(moto::python());
    let mut python = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python");
    python.stdin.take().expect("a pipe").write_all(page.as_bytes()).expect("write");
    let output = python.wait_with_output().expect("python");
    assert!(output.status.success(), "a client does not understand:\n{page}");
    (serde_json::from_slice(&output.stdout).expect("JSON"), page)
}

/// Whatever the numbers say, they can be scraped: that something is wrong is one of them.
#[test]
fn a_prometheus_client_reads_the_numbers_of_a_receiver_that_runs_and_of_one_that_does_not() {
    require_servers!(MajorVersion::V16);
    require_moto!();
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table t as select 1");
    wait_durable(&server, server.lsn());
    let (seen, page) = metrics(&site);
    for (line, value) in [
        ("walrecv_running", 1.0),
        ("walrecv_healthy", 1.0),
        ("walrecv_hole", 0.0),
        ("walrecv_synchronous", 0.0),
        ("walrecv_state streaming", 1.0),
        ("walrecv_state not_running", 0.0),
        ("walrecv_timeline", 1.0),
        ("walrecv_silent_processes", 0.0),
        ("walrecv_put_errors_total", 0.0),
        ("walrecv_slot_wal_status reserved", 1.0),
    ] {
        assert_eq!(seen[line], value, "{line}\n{page}");
    }
    let at_least = |line: &str, least: f64| assert!(number(&seen[line]) >= least, "{line} below {least}\n{page}");
    at_least("walrecv_commits_total", 1.0);
    at_least("walrecv_time_to_durable_seconds_count", 1.0);
    at_least("walrecv_time_to_durable_seconds 0.99", 0.0001);
    at_least("walrecv_durable_bytes_total", 100_000.0);
    let (now, _) = status(&site, &[]);
    let (then, now) = (number(&seen["walrecv_wal_position_bytes durable"]), durable(&now).0 as f64);
    assert!(then <= now && then > now - 1e6, "{then} {now}");
    receiver.kill();
    let (seen, page) = metrics(&site);
    for (line, value) in [("walrecv_running", 0.0), ("walrecv_healthy", 0.0), ("walrecv_state not_running", 1.0)] {
        assert_eq!(seen[line], value, "{line}\n{page}");
    }
    assert_eq!(seen["walrecv_commits_total"], Value::Null, "nobody counts now\n{page}");
    assert!(number(&seen["walrecv_wal_position_bytes durable"]) >= then, "{page}");
}

/// A slot that is there is to be used, not to be dropped.
fn there_already(server: &Server, site: &Site) {
    let create = || site.walrecv(&["slot", "create"]).run().expect_code(18).stderr;
    let said = create();
    let at = server.sql("select restart_lsn from pg_replication_slots");
    assert!(said.contains(&format!("is there already: it holds WAL from {at} on, and nobody uses it")), "{said}");
    assert!(said.contains("can be used as it is") && !said.contains("drop"), "{said}");
    let receiver = site.receive(&[]);
    let (said, pid) = (create(), server.sql("select active_pid from pg_replication_slots"));
    assert!(said.contains(&format!("and process {pid} (")) && !said.contains("drop"), "{said}");
    end(receiver);
}

/// What a slot holds back, and when it is lost, in the server's own figures.
#[test]
fn a_slot_is_shown_with_what_it_holds_back_and_when_it_is_lost() {
    require_servers!(MajorVersion::V18);
    let server = Server::builder(MajorVersion::V18).setting("max_slot_wal_keep_size", "256MB").start();
    let site = Site::new(&server);
    site.walrecv(&["slot", "drop"]).run().expect_code(0);
    let again = site.walrecv(&["slot", "drop"]).run().expect_code(18).stderr;
    assert!(again.contains("nothing to drop") && !again.contains("slot create"), "{again}");
    site.walrecv(&["slot", "show"]).run().expect_code(18);
    site.walrecv(&["slot", "create"]).run().expect_code(0);
    there_already(&server, &site);
    server.sql("create table t as select i, repeat('x', 500) as filler from generate_series(1, 20000) i");
    let shown = || {
        let output = site.walrecv(&["slot", "show", "--output", "json"]).run().expect_code(0);
        serde_json::from_str::<Value>(&output.stdout).expect("JSON")
    };
    let slot = shown();
    let row = server.sql(
        "select restart_lsn, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, safe_wal_size, wal_status from pg_replication_slots",
    );
    let columns: Vec<&str> = row.split('|').collect();
    assert_eq!((slot["name"].as_str(), slot["active"].as_bool()), (Some("walrecv_main"), Some(false)));
    assert_eq!((slot["restart_lsn"].as_str(), slot["wal_status"].as_str()), (Some(columns[0]), Some(columns[3])));
    // A server that does nothing writes a few records all the same.
    let near = |name: &str, wanted: &str| {
        let wanted: f64 = wanted.parse().expect("a number");
        assert!((number(&slot[name]) - wanted).abs() < 100_000.0, "{name} is {}, the server says {wanted}", slot[name]);
    };
    near("retained", columns[1]);
    near("safe_wal_size", columns[2]);
    assert!(number(&slot["retained"]) > 10e6, "{slot}");
    let text = site.walrecv(&["slot", "show"]).run().expect_code(0).stdout;
    assert!(text.contains("lost after") && text.contains("retained"), "{text}");

    let receiver = site.receive(&["--flush-interval", "200ms"]);
    wait_durable(&server, server.lsn());
    assert_eq!(shown()["active"], true);
    let busy = site.walrecv(&["slot", "drop"]).run().expect_code(18).stderr;
    assert!(busy.contains("end the receiver that uses it") && !busy.contains("tried again"), "{busy}");
    // Looked at 5 s after the start, then once a minute.
    let (streaming, _) = wait_state(&site, &[], |cluster| cluster["slot"]["safe_wal_size"].is_number());
    let told = &streaming["slot"];
    assert!(number(&told["retained_bytes"]) < 20e6 && number(&told["safe_wal_size"]) > 200e6, "{told}");
    end(receiver);
}

/// Where none runs, the catalog tells how the last one ended and how far it was, also while the repository cannot be reached; and a check of the archive is told.
#[test]
fn what_the_last_receiver_knew_is_told_without_it_and_without_the_repository() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let site = Site::new(&server);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table t as select 1");
    wait_durable(&server, server.lsn());
    site.walrecv(&["verify"]).run().expect_code(0);
    let (running, _) = status(&site, &[]);
    let check = &running["last_verified"];
    assert_eq!((&check["outcome"], &check["problems"], &check["deep"]), (&"ok".into(), &0.into(), &false.into()));
    assert_eq!(check["deep_at"], Value::Null, "none opened every byte");
    assert_eq!(running["last_run"], Value::Null, "one runs");
    end(receiver);
    let stopped = |cluster: &Value| {
        let last = &cluster["last_run"];
        assert_eq!((&last["ending"], &last["problem"]), (&"stopped".into(), &Value::Null), "{cluster}");
        assert_eq!((&last["timeline"], &last["behind_bytes"]), (&1.into(), &0.into()), "{cluster}");
        assert!(last["began"].is_string() && last["ended"].is_string() && last["at"].is_string(), "{cluster}");
        last["durable"].clone()
    };
    let (clean, code) = status(&site, &[]);
    assert_eq!((&clean["state"], code), (&"not_running".into(), 1));
    assert_eq!(clean["positions"]["durable"], stopped(&clean));
    assert_eq!(clean["last_verified"]["outcome"], "ok");
    let text = site.walrecv(&["status"]).run().expect_code(1).stdout;
    for said in ["last run         stopped as asked at", "all that the server had", "verified", ": ok"] {
        assert!(text.contains(said), "{said:?} is not said: {text}");
    }
    // The repository's disk is gone.
    let aside = site.places.join("aside");
    std::fs::rename(site.repository(), &aside).expect("move the repository away");
    let (away, _) = status(&site, &[]);
    assert_eq!(away["positions"]["durable"], stopped(&away), "the catalog is here");
    assert!(away["warning"]["text"].as_str().is_some_and(|text| text.contains("repository")), "{away}");
    std::fs::rename(&aside, site.repository()).expect("move it back");

    // An end that nobody asked for.
    server.sql("select pg_drop_replication_slot('walrecv_main')");
    site.walrecv(&["receive"]).run().expect_code(18);
    let (failed, _) = status(&site, &[]);
    let last = &failed["last_run"];
    assert_eq!(last["ending"], "failed", "though it never came so far that it streamed: {last}");
    assert!(last["problem"].as_str().is_some_and(|problem| problem.contains("does not exist")), "{last}");
    let said = |key: &str| failed[key].as_str().unwrap_or_default().to_owned();
    assert!(said("problem").contains("ended by an error") && said("hint").contains("mend"), "{failed}");
    assert_eq!(last["durable"], clean["last_run"]["durable"], "what an earlier run knew is not forgotten");
    server.sql("select pg_create_physical_replication_slot('walrecv_main', true)");
    let receiver = site.receive(&[]);
    let (_, code) = wait_state(&site, &[], |cluster| cluster["state"] == "streaming");
    assert_eq!(code, 0);
    // It comes back at once, so this may take a few attempts.
    server.sql(
        "do $$ begin loop begin perform pg_terminate_backend(active_pid) from pg_replication_slots where active; \
         perform pg_drop_replication_slot('walrecv_main'); return; exception when object_in_use then null; end; end loop; end $$",
    );
    receiver.wait().expect_code(18);
    let (failed, _) = status(&site, &[]);
    let last = &failed["last_run"];
    assert_eq!(last["ending"], "failed", "{last}");
    assert!(last["problem"].as_str().is_some_and(|problem| problem.contains("walrecv_main")), "{last}");
    assert!(site.walrecv(&["status"]).run().stdout.contains("by an error"), "said to people too");
}

/// Another cluster in the site's configuration.
fn add_cluster(site: &Site, name: &str, server: &Server, slot: &str) {
    let mut text = std::fs::read_to_string(site.config()).expect("a configuration");
    let dsn = toml::Value::String(server.conninfo("postgres"));
    text.push_str(&format!("\n[clusters.{name}]\ndsn = {dsn}\nslot = \"{slot}\"\nflush_interval = \"200ms\"\n"));
    std::fs::write(site.config(), text).expect("write the configuration");
}

fn start_all(site: &Site) -> Running {
    let mut running = site.walrecv(&["run"]).spawn();
    running.wait_logged("main: streaming timeline");
    running
}

fn ended(running: Running, signal: Signal, code: i32) -> String {
    running.signal(signal);
    running.wait().expect_code(code).stderr
}

#[test]
fn one_cluster_that_fails_leaves_the_others_alone() {
    require_servers!(MajorVersion::V17);
    let (first, second) = (Server::start(MajorVersion::V17), Server::start(MajorVersion::V17));
    let site = Site::new(&first);
    add_cluster(&site, "second", &second, "absent");
    let running = start_all(&site);
    let (failed, code) = wait_state(&site, &["--cluster", "second"], |cluster| cluster["state"] == "failed");
    assert_eq!((failed["kind"].as_str(), code), (Some("slot"), 1), "{failed}");
    assert!(failed["hint"].as_str().is_some_and(|hint| hint.contains("slot create")), "{failed}");
    first.sql("create table t as select 1");
    wait_durable(&first, first.lsn());
    let (main, code) = status(&site, &["--cluster", "main"]);
    assert_eq!((main["state"].as_str(), code), (Some("streaming"), 0), "{main}");
    let table = site.walrecv(&["status"]).env("COLUMNS", "80").run().expect_code(1).stdout;
    assert!(table.contains("CLUSTER") && table.contains("cluster second: failed"), "{table}");
    let said = ended(running, Signal::TERM, 18);
    assert!(said.contains("second: FAILED") && said.contains("main: stopped: durable through"), "{said}");

    second.sql("select pg_create_physical_replication_slot('absent', true)");
    let running = start_all(&site);
    wait_state(&site, &["--cluster", "second"], |cluster| cluster["state"] == "streaming");
    let all = site.walrecv(&["status", "--output", "json"]).run().expect_code(0).json();
    let pids: Vec<&Value> = all["clusters"].as_array().expect("a list").iter().map(|c| &c["process"]["pid"]).collect();
    assert_eq!(pids, [running.pid(), running.pid()]);
    second.sql("create table t as select 1");
    let written = second.lsn();
    wait_durable(&second, written);
    ended(running, Signal::INT, 0);
    let (one, _) = status(&site, &["--cluster", "second"]);
    assert!(durable(&one) >= written, "{one}");

    // Nor does one whose settings are wrong.
    let text = std::fs::read_to_string(site.config()).expect("a configuration");
    std::fs::write(site.config(), format!("{text}\n[clusters.third]\ndsn = \"db1\"\n"))
        .expect("write the configuration");
    let running = start_all(&site);
    let (third, code) = wait_state(&site, &["--cluster", "third"], |cluster| cluster["state"] == "failed");
    assert_eq!((third["kind"].as_str(), code), (Some("usage"), 1), "{third}");
    let (main, code) = status(&site, &["--cluster", "main"]);
    assert_eq!((main["state"].as_str(), code), (Some("streaming"), 0), "{main}");
    let said = ended(running, Signal::TERM, 2);
    assert!(said.contains("third: FAILED") && said.contains("main: stopped: durable through"), "{said}");
}

#[test]
fn events_for_scripts_carry_their_time_and_cluster() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let site = Site::new(&server);
    let lsn = server.lsn().to_string();
    let args = ["receive", "--output", "json", "--flush-interval", "100ms", "--until", &lsn];
    let told = Walrecv::run(site.walrecv(&args)).expect_code(0).stdout;
    let events: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    for event in &events {
        let time = event["time"].as_str().expect("a time");
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{event}");
        assert_eq!(event["cluster"], "main", "{event}");
    }
    for name in ["connected", "watching", "streaming", "durable", "stopped", "report"] {
        assert!(events.iter().any(|event| event["event"] == name), "no {name}: {told}");
    }
}
