//! Backups of the real program that are killed, and the next one, which uses what they stored.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::walrecv::Running;
use crate::support::{Seed, Server, install, require_servers, wait_for};

const PACK: u64 = 16 << 20;

/// The packs in the repository, with their lengths, by the id of the backup that stored them.
fn packs(site: &Site) -> BTreeMap<String, Vec<u64>> {
    objects(site, "packs")
}

/// The same of any folder that has one for each backup.
fn objects(site: &Site, folder: &str) -> BTreeMap<String, Vec<u64>> {
    let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let clusters = below(site.repository().join("clusters/main"));
    let backups = clusters.flat_map(|cluster| below(cluster.path().join(folder)));
    let staged = |name: &str| !name.bytes().all(|b| b.is_ascii_digit());
    let of_one = |folder: fs::DirEntry| {
        let files = below(folder.path()).filter(|file| !staged(&file.file_name().to_string_lossy()));
        let lengths = files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len());
        (folder.file_name().to_string_lossy().into_owned(), lengths.collect())
    };
    backups.map(of_one).collect()
}

fn count(site: &Site) -> usize {
    packs(site).values().map(Vec::len).sum()
}

#[test]
fn a_killed_backup_is_none_and_the_next_one_uses_what_it_stored() {
    install::story_versions(&[MajorVersion::V15]).into_iter().for_each(killed_and_used);
}

fn killed_and_used(version: MajorVersion) {
    let mut seed = Seed::of_run();
    let server = Server::start(version);
    server.sql(
        "create table noise as select n, md5(random()::text) || md5(random()::text) || md5(random()::text) as t \
         from generate_series(1, 400000) n",
    );
    server.sql("vacuum freeze noise");
    server.sql("checkpoint");
    let site = Site::new(&server);
    let receiving = site.receive(&[]);
    let unfinished = || {
        let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
        let all = listed["unfinished"].as_array().expect("a list").clone();
        all.into_iter().map(|one| (one["state"].as_str().expect("a state").to_owned(), one)).collect::<Vec<_>>()
    };
    let states = || unfinished().into_iter().map(|(state, _)| state).collect::<Vec<_>>();
    assert_eq!(states(), Vec::<String>::new());
    for round in 0..2 {
        let before = count(&site);
        let mut running = site.walrecv(&["backup", "--max-rate", "12000"]).spawn();
        let ended = wait_for("packs to arrive, or the end", || {
            running.try_wait().map(Some).or_else(|| (count(&site) > before).then_some(None))
        });
        assert!(ended.is_none(), "it ended before it could be killed: {ended:?}");
        let told = unfinished();
        let (state, one) = told.last().expect("the backup that is being taken");
        assert_eq!((state.as_str(), told.len()), ("running", round + 1), "{one}");
        assert!(one["packs"].as_u64() >= Some(1) && one["stored_bytes"].as_u64() > Some(0), "{one}");
        std::thread::sleep(Duration::from_millis(seed.below(250)));
        running.kill();
        assert_eq!(states(), vec!["interrupted"; round + 1]);
        let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
        assert_eq!(listed["backups"].as_array().map(Vec::len), Some(0), "{listed}");
    }
    server.sql("update noise set t = md5(t) where n = 1000");
    let arrived = packs(&site);
    let dead: usize = arrived.values().map(Vec::len).sum();
    let told = site.backup();
    let id = told["id"].as_str().expect("an id");
    let (own, total) = (packs(&site)[id].len() as u64, told["total_bytes"].as_u64().expect("a number"));
    println!("{dead} packs of {} dead runs, {own} of the backup, for {total} bytes", arrived.len());
    assert_eq!(told["packs"], own, "what is told is what was stored");
    // Without them there would be one for each 16 MiB. One may be cut by the end of each run, and the last of a run never arrives.
    assert!(own + dead as u64 <= total.div_ceil(PACK) + 1, "{own} packs were stored, {dead} were there");
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(1), "{listed}");

    let sum = "select count(*) || ' ' || md5(string_agg(t, ',' order by n)) from noise";
    site.walrecv(&["verify", "--deep"]).run().expect_code(0);
    let copy = site.land(&server, "copy", &["--latest"]);
    assert_eq!(copy.value(sum), server.sql(sum));
    drop(copy);

    // What of them nothing needs goes by itself, and the rest with the backup that needs it.
    let expire =
        |args: &[&str]| site.walrecv(&["expire", "--yes", "--delete-delay", "0"]).args(args).run().expect_code(0);
    assert_eq!(states(), ["interrupted"; 2]);
    let text = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(text.contains("INTERRUPTED: ") && !text.contains("RUNNING"), "{text}");
    expire(&[]);
    assert_eq!(states(), Vec::<String>::new(), "nothing but what the backup needs is left");
    site.walrecv(&["verify"]).run().expect_code(0);
    assert!(count(&site) as u64 > own, "packs of dead runs that are used stay");
    expire(&["--backup", id, "--force"]);
    assert_eq!(count(&site), 0, "{:?}", packs(&site));
    end(receiving);
}

fn send(running: &Running, signal: Signal) {
    let pid = Pid::from_raw(running.pid() as i32).expect("a process");
    kill_process(pid, signal).expect("a process that can be signalled");
}

/// Everything but its WAL and its manifest is stored by then.
#[test]
fn a_backup_that_is_killed_while_it_waits_for_its_wal_is_none() {
    let version = MajorVersion::V18;
    require_servers!(version);
    let mut seed = Seed::of_run();
    let server = Server::builder(version).setting("summarize_wal", "on").start();
    server.sql("create table t as select n, md5(random()::text) t from generate_series(1, 20000) n");
    let site = Site::new(&server);
    let receiving = site.receive(&[]);
    let first = site.backup();
    for transfer in ["incremental", "full"] {
        server.sql("update t set t = md5(t) where n % 10 = 1");
        wait_durable(&server, server.lsn());
        // It holds the slot, so nobody stands in for it; the server, which would take the slot away after a while, is stopped there too.
        let held = server.hold("select active_pid from pg_replication_slots where active");
        send(&receiving, Signal::STOP);
        let before = objects(&site, "maps").len();
        let args: &[&str] = if transfer == "full" { &["backup", "--full"] } else { &["backup"] };
        let mut running = site.walrecv(args).spawn();
        let ended = wait_for("maps, or the end", || {
            running.try_wait().map(Some).or_else(|| (objects(&site, "maps").len() > before).then_some(None))
        });
        assert!(ended.is_none(), "it ended before it could be killed: {ended:?}");
        std::thread::sleep(Duration::from_millis(seed.below(700)));
        assert!(running.try_wait().is_none(), "a backup without its WAL");
        running.kill();
        send(&receiving, Signal::CONT);
        drop(held);
        let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
        assert_eq!(listed["backups"].as_array().map(Vec::len), Some(1), "{transfer}: {listed}");
    }
    let told = site.backup();
    assert_eq!(told["parent"], first["id"], "{told}");
    assert_eq!(told["transfer"], "incremental", "{told}");
    site.walrecv(&["verify", "--deep"]).run().expect_code(0);
    let sum = "select count(*) || ' ' || md5(string_agg(t, ',' order by n)) from t";
    let copy = site.land(&server, "copy", &["--latest"]);
    assert_eq!(copy.value(sum), server.sql(sum));
    drop(copy);
    end(receiving);
}
