//! `walrecv expire`: backups of a real server are deleted, and the others restore.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use walrecv::disk::lock::LockFile;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end, verify};
use crate::support::walrecv::Output;
use crate::support::{Server, require_servers};

/// Bytes of the packs in the repository, by the backup that stored them.
fn packs(site: &Site) -> BTreeMap<String, u64> {
    fn walk(folder: &Path, found: &mut BTreeMap<String, u64>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if let Some(owner) = path.to_string_lossy().split("/packs/").nth(1) {
                let owner = owner.split('/').next().unwrap_or_default().to_owned();
                *found.entry(owner).or_default() += std::fs::metadata(&path).expect("a pack").len();
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&site.repository(), &mut found);
    found
}

/// Backups whose packs stand in the repository.
fn owners(site: &Site) -> BTreeSet<String> {
    packs(site).into_keys().collect()
}

fn listed(site: &Site) -> Vec<String> {
    let told = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    let backups = told["backups"].as_array().expect("a list");
    backups.iter().map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect()
}

fn expire(site: &Site, args: &[&str]) -> Output {
    site.walrecv(&["expire"]).args(args).run()
}

/// Lays a backup back, and has PostgreSQL's own tool compare it with the server's manifest.
fn restores(site: &Site, server: &Server, id: &str, name: &str) {
    site.restore(server, name, &["--latest", "--backup", id]).run().expect_code(0);
    verify(server, &site.data(name));
    std::fs::remove_dir_all(site.data(name)).expect("the copy goes");
}

/// And not as one that was interrupted, though all that it left is there.
fn is_told_as_deleted(site: &Site, id: &str) {
    let shown = site.walrecv(&["show", id]).run().expect_code(2).stderr;
    assert!(shown.contains(&format!("backup {id} was deleted at ")) && !shown.contains("given up"), "{shown}");
    let named = site.walrecv(&["restore", "--latest", "--plan", "--backup", id]).run().expect_code(2).stderr;
    assert!(named.contains(&format!("backup {id} was deleted at ")), "{named}");
    let listed = site.walrecv(&["list", "--output", "json"]).run().expect_code(0).json();
    assert_eq!(listed["unfinished"], serde_json::json!([]), "{listed}");
}

#[test]
fn any_backup_can_be_deleted_and_the_others_restore() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    server.sql("create table story (n bigint primary key, filler text)");
    let mut ids = Vec::new();
    for round in 0..4 {
        server.sql(&format!("insert into story select n, repeat(md5(n::text), 20) from generate_series({round} * 2000 + 1, {round} * 2000 + 2000) n"));
        server.sql("update story set filler = md5(filler) where n % 50 = 0");
        ids.push(site.backup()["id"].as_str().expect("an id").to_owned());
    }
    let [first, second, third, last] = ids.as_slice() else { panic!("four backups") };

    // Nothing happens but words.
    let planned = expire(&site, &["--backup", second, "--plan", "--output", "json"]).expect_code(0).json();
    assert_eq!((&planned["delete"][0]["id"], &planned["kept"]), (&second.as_str().into(), &3.into()), "{planned}");
    assert!(planned["done"].is_null() && planned["frees_later"]["bytes"].as_u64() > Some(0), "{planned}");
    let refused = expire(&site, &["--backup", "20260131T020000Z-00000001-0000000003000028-1a2b"]).expect_code(2);
    assert!(ids.iter().all(|id| refused.stderr.contains(id.as_str())), "{}", refused.stderr);
    let refused = expire(&site, &["--backup", "yesterday"]).expect_code(2);
    assert!(refused.stderr.contains(last.as_str()), "{}", refused.stderr);
    for (said, meant) in [("latest", last), (&second[..second.len() - 2], second)] {
        let planned = expire(&site, &["--backup", said, "--plan", "--output", "json"]).expect_code(0).json();
        assert_eq!(planned["delete"][0]["id"], meant.as_str(), "{planned}");
    }
    let all: Vec<&str> = ids.iter().flat_map(|id| ["--backup", id.as_str()]).collect();
    let refused = expire(&site, &all).expect_code(20);
    assert!(refused.stderr.contains("take a new backup"), "{}", refused.stderr);
    let lock =
        LockFile::take(&site.etc().join("walrecv-state/expire-main.lock")).expect("a lock").expect("a free lock");
    expire(&site, &["--backup", second]).expect_code(11);
    drop(lock);
    assert_eq!(listed(&site), ids);
    let nothing = expire(&site, &[]).expect_code(0).stdout;
    assert!(nothing.contains("nothing to do now"), "{nothing}");

    // The second goes; what it stored stays for a day.
    let before = owners(&site);
    let text = expire(&site, &["--backup", second]).expect_code(0).stdout;
    assert!(text.contains("deletes") && text.contains("frees later") && text.contains("plan"), "{text}");
    assert_eq!((listed(&site), owners(&site)), (vec![first.clone(), third.clone(), last.clone()], before));
    is_told_as_deleted(&site, second);
    let again = expire(&site, &["--backup", second]).expect_code(0).stdout;
    assert!(again.contains("is none") && again.contains("nothing to do now"), "{again}");
    restores(&site, &server, third, "beside");

    // The first goes with all that is free by then.
    let told = expire(&site, &["--backup", first, "--delete-delay", "0", "--output", "json"]).expect_code(0).json();
    let freed = &told["done"]["freed"]["bytes"];
    assert_eq!((&told["done"]["deleted"][0], freed), (&first.as_str().into(), &told["frees_now"]["bytes"]), "{told}");
    assert!(freed.as_u64() > Some(0) && told["done"]["unfinished"] == false, "{told}");
    restores(&site, &server, third, "third");
    restores(&site, &server, last, "last");

    // And the third; the last one alone is a whole backup.
    expire(&site, &["--backup", third, "--delete-delay", "0", "--yes"]).expect_code(0);
    restores(&site, &server, last, "alone");
    let copy = site.land(&server, "landed", &["--latest", "--backup", last]);
    assert_eq!(copy.value("select count(*) || ' ' || max(n) from story"), "8000 8000");
    expire(&site, &["--backup", last]).expect_code(20);
    expire(&site, &["--backup", last, "--force", "--delete-delay", "0"]).expect_code(0);
    assert_eq!((listed(&site), owners(&site)), (Vec::new(), BTreeSet::new()));
    end(receiver);
}

/// Increments leave packs behind of which they need a little. When `full_every` has passed everything is sent, says why, and is freed of them: then deleting the
/// older backups gives nearly all of their space back.
#[test]
fn after_full_every_the_space_of_older_backups_comes_back() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::builder(version).setting("summarize_wal", "on").setting("autovacuum", "off").start();
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    server.sql(
        "create table churn as select n, md5(random()::text) || md5(random()::text) || md5(random()::text) as t \
         from generate_series(1, 200000) n",
    );
    server.sql("vacuum (freeze) churn");
    let id = |told: &serde_json::Value| told["id"].as_str().expect("an id").to_owned();
    let first = site.backup();
    // In place, seven pages in ten; the dead rows of the old versions stay.
    server.sql("update churn set n = -n where (ctid::text::point)[0]::int % 10 < 7");
    let second = site.backup();
    assert_eq!((&second["transfer"], &second["parent"]), (&"incremental".into(), &first["id"]), "{second}");
    let frees = |ids: &[&str]| {
        let args: Vec<&str> = ids.iter().flat_map(|id| ["--backup", id]).collect();
        let planned = expire(&site, &[&args[..], &["--plan", "--delete-delay", "0", "--output", "json"]].concat());
        planned.expect_code(0).json()["frees_now"]["bytes"].as_u64().expect("bytes")
    };
    let kept = packs(&site)[&id(&first)];
    assert!(frees(&[&id(&first)]) < kept / 10, "the increment needs nearly all packs of the first");

    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let often = config.replace("[clusters.main]", "[clusters.main]\nbackup.full_every = \"1s\"");
    assert_ne!(often, config);
    std::fs::write(site.config(), &often).expect("write the configuration");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let third = site.backup();
    let why = third["why_full"].as_str().expect("a reason");
    assert_eq!(third["transfer"], "full", "{third}");
    assert!(why.contains("space was last brought back at") && why.contains("every 1 seconds"), "{why}");
    let shown = site.walrecv(&["show", &id(&third)]).run().expect_code(0).stdout;
    assert!(shown.contains(why) && shown.contains("so that space comes back"), "{shown}");
    let moved =
        site.walrecv(&["show", &id(&third), "--output", "json"]).run().expect_code(0).json()["moved_bytes"].clone();
    assert!(moved.as_u64() > Some(4 << 20), "{moved}");

    let told = expire(&site, &["--backup", &id(&first), "--backup", &id(&second), "--delete-delay", "0", "--yes"]);
    told.expect_code(0);
    let left = packs(&site);
    let of_first = left.get(&id(&first)).copied().unwrap_or_default();
    println!("{kept} bytes of packs of the first backup, {of_first} are left: {left:?}, {moved} moved");
    assert!(of_first < kept / 2, "{of_first} of {kept} are left");
    assert_eq!(listed(&site), [id(&third)]);
    site.walrecv(&["verify", "--deep"]).run().expect_code(0);
    restores(&site, &server, &id(&third), "whole");
    let sum = "select count(*) || ' ' || md5(string_agg(t, ',' order by n)) from churn";
    assert_eq!(site.land(&server, "landed", &["--latest"]).value(sum), server.sql(sum));
    end(receiver);
}
