//! What a person sees of a repository: `list`, `show`, `verify`, `repo stats`, on a real server's archive that is then damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, wait_durable};
use crate::support::{Server, require_moto, require_servers, rounds};

/// All objects below a folder whose path contains `part`, sorted. A file whose name begins with a dot is none: a receiver that ends while it makes the next tail's
/// leaves it to the next one.
pub fn files(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.display().to_string().contains(part) && !name_of(&path).starts_with('.') {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// Before anything is stored they are no error, and have the same members.
const LISTS: [&[&str]; 2] = [&["list"], &["list", "--windows"]];

fn members(object: &Value) -> Vec<&String> {
    object.as_object().expect("an object").keys().collect()
}

/// An archive with two backups that nobody writes to any more, with a file that a receiver was making when it ended.
fn archive(server: &Server) -> (Site, Value) {
    let site = Site::new(server);
    let nothing = LISTS.map(|args| shown(&site, args));
    let told = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(told.contains("nothing is stored of cluster main yet: start `walrecv receive`"), "{told}");
    site.walrecv(&["show", "latest"]).run().expect_code(10);
    let receiver = site.receive(&["--flush-interval", "200ms"]);
    server.sql("create table story as select n, repeat('x', 500) filler from generate_series(1, 4000) n");
    site.backup();
    server.sql("update story set filler = 'y' where n < 50");
    server.switch_wal();
    let backup = site.backup();
    server.switch_wal();
    wait_durable(server, server.lsn());
    end(receiver);
    for (args, nothing) in LISTS.iter().zip(nothing) {
        let some = shown(&site, args);
        assert_eq!(members(&nothing), members(&some), "{args:?}");
        assert_eq!(
            (&nothing["cluster"], &nothing["timelines"]),
            (&some["cluster"], &serde_json::json!([])),
            "{args:?}"
        );
    }
    let tail = files(&site.repository(), "/tail/00000001/").pop().expect("a tail");
    fs::write(tail.with_file_name(".staging-1-1-1"), [0; 1000]).expect("a file that was being made");
    (site, backup)
}

fn shown(site: &Site, args: &[&str]) -> Value {
    site.walrecv(args).args(["--output", "json"]).run().expect_code(0).json()
}

/// The table fits, and names of each backup the WAL that it cannot be restored without, and who made it.
fn narrow(site: &Site, newest: &Value) {
    let member = |name: &str| newest[name].as_str().expect("a text").to_owned();
    let (id, made_by) = (member("id"), member("made_by"));
    let own = format!("  WAL {} to {}, timeline 1, by {made_by} on ", member("start_lsn"), member("stop_lsn"));
    for width in ["80", "120"] {
        let text = site.walrecv(&["list"]).env("COLUMNS", width).run().expect_code(0).stdout;
        let long = text.lines().find(|line| line.chars().count() > 120);
        assert!(
            long.is_none() && text.contains(&id) && text.contains("CHANGED") && text.contains(&own),
            "{own}: {text}"
        );
    }
}

#[test]
fn a_repository_is_looked_after() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let (site, backup) = archive(&server);
    let id = backup["id"].as_str().expect("an id");
    drop(server);
    assert!(site.walrecv(&["list"]).run().expect_code(0).stdout.contains("never verified"));

    let quick = shown(&site, &["verify"]);
    assert_eq!(
        (&quick["outcome"], &quick["deep"], &quick["problems"]),
        (&"ok".into(), &false.into(), &Value::Array(vec![]))
    );
    let deep = shown(&site, &["verify", "--deep", "--backup", "latest"]);
    assert_eq!((&deep["outcome"], &deep["only"]), (&"ok".into(), &id.into()), "{deep}");
    assert!(
        deep["checked"]["pages"].as_u64() > Some(1000) && deep["checked"]["wal_records"].as_u64() > Some(0),
        "{deep}"
    );
    assert_eq!(deep["checked"]["pages_bad"], 0, "{deep}");

    let listed = shown(&site, &["list"]);
    let newest = &listed["backups"][1];
    assert_eq!(
        (&newest["id"], &newest["last_verified"]["deep"], &newest["last_verified"]["state"]),
        (&id.into(), &true.into(), &"whole".into())
    );
    narrow(&site, newest);
    let wide = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(
        wide.contains("RESTORABLE FROM") && wide.contains("every byte never") && !wide.contains("WAL MISSING"),
        "{wide}"
    );

    windows(&site, &listed);
    let told = shown(&site, &["show", "latest"]);
    assert_eq!(
        (&told["id"], &told["restorable"], &told["last_verified"]["state"]),
        (&id.into(), &true.into(), &"whole".into())
    );
    one_form(&backup, &[newest, &told]);
    assert!(told["changed_share"].as_f64().is_some_and(|share| share > 0.0 && share <= 1.0), "{told}");
    let text = site.walrecv(&["show", &id[..id.len() - 2]]).run().expect_code(0).stdout;
    for word in [id, "transfer", "made by", "restorable", "verified", "PostgreSQL 17."] {
        assert!(text.contains(word), "{word:?} is not said: {text}");
    }
    let many = site.walrecv(&["show", "2"]).run().expect_code(2).stderr;
    assert!(many.contains("2 backups begin with"), "{many}");
    site.walrecv(&["show", "nothing"]).run().expect_code(2);

    let stats = shown(&site, &["repo", "stats"]);
    let classes = &stats["classes"];
    assert!(
        ["packs", "maps", "wal", "manifests"].iter().all(|class| classes[class]["bytes"].as_u64() > Some(0)),
        "{stats}"
    );
    let on_disk: u64 =
        files(&site.repository().join("clusters"), "/").iter().map(|p| fs::metadata(p).expect("a file").len()).sum();
    assert_eq!(stats["bytes"], on_disk, "{stats}");
    assert_eq!((stats["backups"].as_array().map(Vec::len), &stats["forecast"]), (Some(2), &Value::Null), "{stats}");
    let (live, all) = (stats["live_bytes"].as_u64().expect("live"), stats["pack_bytes"].as_u64().expect("all"));
    assert!(live > 0 && live <= all, "{stats}");
    assert!(site.walrecv(&["repo", "stats"]).run().expect_code(0).stdout.contains("COMES BACK"));
    damaged(&site, id);
}

/// One duration under one name, one form of times and versions, in whatever tells of a backup.
fn one_form(backup: &Value, others: &[&Value]) {
    for one in others {
        for name in ["copy_seconds", "started_at", "stopped_at", "server_version_num"] {
            assert_eq!((&one[name], one[name].is_null()), (&backup[name], false), "{name}: {one} {backup}");
        }
        assert_eq!(one["stopped_at"], moment(&one["stopped_at"]));
    }
    assert!(backup["copy_seconds"].as_f64() <= backup["elapsed_seconds"].as_f64(), "{backup}");
}

/// One timeline, one window, from the end of the first backup to the end of WAL.
fn windows(site: &Site, listed: &Value) {
    let drawn = shown(site, &["list", "--windows"]);
    let timeline = &drawn["timelines"][0];
    let window = &timeline["windows"][0];
    let backups = listed["backups"].as_array().expect("backups");
    assert_eq!((&timeline["timeline"], &timeline["parent"]), (&1.into(), &Value::Null), "{drawn}");
    assert_eq!((timeline["windows"].as_array().map(Vec::len), &timeline["holes"]), (Some(1), &Value::Array(vec![])));
    assert_eq!((&window["from_lsn"], &window["from"]), (&backups[0]["stop_lsn"], &moment(&backups[0]["stopped_at"])));
    assert_eq!(window["through_lsn"], backups[1]["restorable_through"]["lsn"], "{drawn}");
    let ids: Vec<&Value> = backups.iter().map(|backup| &backup["id"]).collect();
    assert_eq!(window["backups"].as_array().map(|all| all.iter().collect()), Some(ids), "{drawn}");
    assert!(window["through"].as_str() > window["from"].as_str(), "{drawn}");
    for width in ["80", "120", "400"] {
        let text = site.walrecv(&["list", "--windows"]).env("COLUMNS", width).run().expect_code(0).stdout;
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(120), "{text}");
        let bar = text.lines().find(|line| line.starts_with("1 ")).expect("timeline 1");
        assert!(bar.contains("B=") && !bar.contains('!'), "{text}");
    }
}

/// As `--windows` prints it: microseconds.
fn moment(value: &Value) -> Value {
    let at: jiff::Timestamp = value.as_str().and_then(|text| text.parse().ok()).expect("a time");
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into()
}

/// One byte of a pack, then a segment that is gone.
fn damaged(site: &Site, id: &str) {
    let pack = files(&site.repository(), &format!("/packs/{id}/")).pop().expect("a pack");
    let good = fs::read(&pack).expect("a pack");
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 4;
    fs::write(&pack, &bad).expect("a pack");
    site.walrecv(&["verify"]).run().expect_code(0);
    let refused = site.walrecv(&["verify", "--deep", "--output", "json"]).run().expect_code(16);
    let report: Value = serde_json::from_str(&refused.stdout).expect("a report");
    let leaf = pack.strip_prefix(site.repository()).expect("below it").display().to_string();
    assert_eq!((&report["problems"][0]["object"], &report["problems"][0]["flaw"]), (&leaf.into(), &"damaged".into()));
    assert!(refused.stderr.contains("\"code\":16"), "{}", refused.stderr);
    let text = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(text.contains(&format!("HURT: {id}")) && text.contains("corrupt"), "{text}");
    fs::write(&pack, &good).expect("a pack");
    let text = site.walrecv(&["verify", "--deep"]).run().expect_code(0).stdout;
    assert!(text.contains("result  ok"), "{text}");
    site.walrecv(&["verify"]).run().expect_code(0);
    let text = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(text.contains("every byte last at"), "a quick check does not hide when that was: {text}");

    let manifest = files(&site.repository(), &format!("/backups/{id}")).pop().expect("a manifest");
    let good = fs::read(&manifest).expect("a manifest");
    fs::write(&manifest, &good[..good.len() - 1]).expect("a manifest");
    let told = shown(site, &["list"]);
    let unreadable = &told["unreadable"][0];
    assert!(unreadable["object"].as_str().is_some_and(|name| name.ends_with(id)), "{told}");
    assert!(unreadable["problem"].is_string() && told["backups"].as_array().map(Vec::len) == Some(1), "{told}");
    let text = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(text.lines().any(|line| line.starts_with("UNREADABLE") && line.contains(id)), "{text}");
    fs::write(&manifest, &good).expect("a manifest");

    let segments = files(&site.repository(), "/wal/00000001/0000000100000000/0000");
    let middle = &segments[segments.len() / 2];
    let kept = fs::read(middle).expect("a segment");
    fs::remove_file(middle).expect("a segment");
    let name = name_of(middle);
    let holed = shown(site, &["list", "--windows"]);
    let found = &holed["timelines"][0]["holes"];
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{holed}");
    let number = u64::from_str_radix(&name[16..], 16).expect("a number");
    assert_eq!(found[0]["from_lsn"], format!("0/{:X}", number << 20), "{holed}");
    let drawn = site.walrecv(&["list", "--windows"]).run().expect_code(0).stdout;
    assert!(drawn.contains('!') && drawn.contains("HOLE on timeline 1"), "{drawn}");
    let text = site.walrecv(&["verify"]).run().expect_code(15);
    assert!(text.stdout.contains(&name) && text.stdout.contains("GAP"), "{}", text.stdout);
    fs::write(middle, kept).expect("a segment");
    site.walrecv(&["verify", "--no-record"]).run().expect_code(0);
}

/// Segments are completed, tails merged and deleted while they are looked at: none of that is damage.
fn while_it_is_written(server: &Server, site: &Site) {
    let receiver = site.receive(&["--flush-interval", "20ms"]);
    server.sql("create table story (n int, filler text)");
    site.backup();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = server.connect("postgres").expect("a session");
            while !stop.load(Ordering::Relaxed) {
                client
                    .query("insert into story select 1, repeat('x', 300) from generate_series(1, 40)")
                    .expect("a commit");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let outcomes: Vec<_> = (0..rounds(5, 100))
            .map(|round| {
                let depth: &[&str] = if round % 2 == 0 { &["verify", "--deep"] } else { &["verify"] };
                let output = site.walrecv(depth).args(["--no-record", "--output", "json"]).run();
                (output.code(), output.stdout, output.stderr)
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for (code, stdout, stderr) in outcomes {
            assert_eq!(code, 0, "{stdout}\n{stderr}");
        }
    });
    end(receiver);
}

#[test]
fn a_directory_that_is_written_to_is_no_worse_for_it() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    while_it_is_written(&server, &Site::new(&server));
}

#[test]
fn a_bucket_that_is_written_to_is_no_worse_for_it() {
    require_servers!(MajorVersion::V16);
    require_moto!();
    let server = Server::start(MajorVersion::V16);
    while_it_is_written(&server, &Site::in_bucket(&server, "looking"));
}
