//! `walrecv expire`: backups of a real server are deleted, and the others restore.

use std::collections::BTreeSet;
use std::path::Path;

use walrecv::disk::lock::LockFile;
use walrecv::pg::MajorVersion;

use crate::site::{Site, end};
use crate::support::user::as_postgres;
use crate::support::walrecv::Output;
use crate::support::{Server, require_servers};

/// Backups whose packs stand in the repository.
fn owners(site: &Site) -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if let Some(owner) = path.to_string_lossy().split("/packs/").nth(1) {
                found.insert(owner.split('/').next().unwrap_or_default().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&site.repository(), &mut found);
    found
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
    let mut verify = as_postgres(server.bin_dir().join("pg_verifybackup"));
    let output = verify.arg("-n").arg(site.data(name)).output().expect("run pg_verifybackup");
    assert!(output.status.success(), "{id}: {}", String::from_utf8_lossy(&output.stderr));
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
