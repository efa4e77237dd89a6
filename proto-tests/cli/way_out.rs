//! A backup of which something is damaged: what that is, and another backup that leads to the same place.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walrecv::pg::MajorVersion;

use crate::backups::rows;
use crate::refusals::Refusal;
use crate::site::{Site, end, wait_durable};
use crate::support::user::{as_postgres, give_to_postgres};
use crate::support::{Server, require_servers};

/// The only object below a folder of the archive, such as `packs/ID`.
fn only(site: &Site, folder: &str) -> PathBuf {
    let path = cluster(site).join(folder);
    let mut files = fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).flatten();
    let file = files.next().expect("an object").path();
    assert!(files.next().is_none(), "more than one in {folder}");
    file
}

fn cluster(site: &Site) -> PathBuf {
    let main = site.repository().join("clusters/main");
    fs::read_dir(main).expect("a cluster").flatten().next().expect("an incarnation").path()
}

/// While it is as `change` makes it.
fn harmed(file: &Path, change: impl Fn(&mut [u8]), then: impl FnOnce()) {
    let whole = fs::read(file).expect("an object");
    let mut bytes = whole.clone();
    change(&mut bytes);
    fs::write(file, &bytes).expect("write it");
    then();
    fs::write(file, whole).expect("write it back");
    give_to_postgres(file);
}

fn flip(bytes: &mut [u8]) {
    *bytes.last_mut().expect("bytes") ^= 1;
}

#[test]
fn another_backup_that_lands_alike_is_taken_or_told() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    rows(&server, "first", 2000);
    let id = |backup: Value| backup["id"].as_str().expect("an id").to_owned();
    let older = id(site.backup());
    rows(&server, "second", 2000);
    let newer = id(site.backup());
    rows(&server, "third", 1000);
    wait_durable(&server, server.lsn());
    end(receiver);

    harmed(&cluster(&site).join("backups").join(&newer), flip, || {
        let object = format!("backups/{newer}");
        for point in [&["--latest"][..], &["--latest", "--target-timeline", "current"]] {
            Refusal::of(&site, &[&["restore", "--backup", &newer, "--plan"], point].concat()).is(16, &object);
        }
    });
    // The plan reads maps.
    harmed(&only(&site, &format!("maps/{newer}")), flip, || {
        let plan = site.walrecv(&["restore", "--latest", "--plan", "--output", "json"]).run().expect_code(0).json();
        assert_eq!(plan["backup"]["id"], older.as_str(), "{plan}");
        let passed = &plan["passed_over"][0];
        let why = passed["why"].as_str().unwrap_or_default();
        assert!(passed["id"] == newer.as_str() && why.contains(&format!("maps/{newer}")), "{plan}");
        let told = site.walrecv(&["restore", "--latest", "--backup", &newer, "--plan"]).run().expect_code(16).stderr;
        assert!(told.contains(&format!("restore --latest --plan --backup {older}")), "{told}");
    });
    // Packs are read when files are laid: the command that is told goes on from there.
    let pack = only(&site, &format!("packs/{newer}"));
    let aside = site.places.join("pack");
    fs::rename(&pack, &aside).expect("take a pack away");
    let told = site.restore(&server, "laid", &["--latest"]).run().expect_code(16).stderr;
    let line = told.split_once("does not need that object: ").expect("a way out").1.lines().next().expect("a line");
    assert!(line.ends_with(&format!("--backup {older}")), "{told}");
    let again = as_postgres(Path::new("/bin/sh")).current_dir(site.etc()).args(["-c", line]).output().expect("run it");
    assert!(again.status.success(), "{line}: {}", String::from_utf8_lossy(&again.stderr));
    fs::rename(&aside, &pack).expect("put it back");
    // Damage in its last frame is told by its place in the object, as a check tells it.
    harmed(
        &pack,
        |bytes| *bytes.last_mut().expect("bytes") ^= 1,
        || {
            let place = |told: &str| -> u64 {
                let place = told.split_once("damaged at offset ").unwrap_or_else(|| panic!("no place in {told}")).1;
                place.split_once(':').and_then(|(number, _)| number.parse().ok()).expect("a number")
            };
            let laid = place(&site.restore(&server, "damaged", &["--latest"]).run().expect_code(16).stderr);
            let checked = site.walrecv(&["verify", "--deep", "--no-record"]).run().expect_code(16);
            assert_eq!(laid, place(&checked.stdout), "{}", checked.stdout);
            assert_ne!(laid, 0);
        },
    );
    // Both need these.
    fs::rename(cluster(&site).join("packs").join(&older), &aside).expect("take packs away");
    let told = site.restore(&server, "none", &["--latest"]).run().expect_code(16).stderr;
    assert!(told.contains(&format!("packs/{older}")) && !told.contains("lands at the same place"), "{told}");
}

/// What PostgreSQL said of a backup's files is no part of them.
#[test]
fn a_backup_whose_own_manifest_of_postgresql_is_lost_is_restored_without() {
    let version = MajorVersion::V18;
    require_servers!(version);
    let server = Server::builder(version).setting("summarize_wal", "on").start();
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    rows(&server, "first", 2000);
    let full = site.backup();
    rows(&server, "second", 1000);
    let incremental = site.backup();
    assert_eq!((&full["transfer"], &incremental["transfer"]), (&"full".into(), &"incremental".into()));
    wait_durable(&server, server.lsn());
    end(receiver);
    let id = |backup: &Value| backup["id"].as_str().expect("an id").to_owned();
    let listed = |name: &str| site.data(name).join("backup_manifest");
    for (number, backup) in [full, incremental].iter().map(id).enumerate() {
        let wanted = ["--latest", "--backup", &backup];
        let copy = format!("copy{number}");
        site.restore(&server, &copy, &wanted).run().expect_code(0);
        assert!(listed(&copy).exists());
        let object = only(&site, &format!("manifests/{backup}"));
        let named = format!("manifests/{backup}/0");
        let lost = |told: &Value| {
            let warning = told["restored"]["warnings"][0].as_str().unwrap_or_default();
            assert!(warning.contains("no backup_manifest") && warning.contains(&named), "{told}");
        };
        harmed(&object, flip, || {
            assert!(site.walrecv(&["verify", "--no-record"]).run().expect_code(16).stdout.contains(&named));
            // The list of an earlier restore is not left to speak of this one.
            let told = site.restore(&server, &copy, &wanted).args(["--delta", "--output", "json"]).run().expect_code(0);
            lost(&told.json());
            assert!(!listed(&copy).exists() && told.stderr.contains(&named), "{}", told.stderr);
        });
        let aside = site.places.join("manifest");
        fs::rename(&object, &aside).expect("take a manifest away");
        let text = site.restore(&server, &format!("told{number}"), &wanted).run().expect_code(0).stdout;
        assert!(text.contains("WARNING ") && text.contains(&named), "{text}");
        let landed = site.land(&server, &format!("without{number}"), &wanted);
        lost(&landed.told);
        assert!(!listed(&format!("without{number}")).exists());
        assert_eq!(landed.value("select count(*) from second"), server.sql("select count(*) from second"));
        drop(landed);
        fs::rename(&aside, &object).expect("put it back");
    }
}

#[test]
fn a_scratch_server_whose_socket_has_too_long_a_path_is_refused_before_anything_is_laid() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    site.backup();
    wait_durable(&server, server.lsn());
    end(receiver);
    let socket = "/walrecv-scratch/.s.PGSQL.5432";
    let name = |bytes: usize| "d".repeat(bytes - socket.len() - site.data("").as_os_str().len());
    let long = name(108);
    for args in [&["--start", "--scratch"][..], &["--start", "--scratch", "--plan"]] {
        let told = site.restore(&server, &long, &["--latest"]).args(args).run().expect_code(2).stderr;
        assert!(told.contains("too long for the path of a socket") && told.contains("a shorter --pgdata"), "{told}");
        assert!(!site.data(&long).exists(), "something was laid");
    }
    drop(site.land(&server, &name(107), &["--latest"]));
    site.restore(&server, &long, &["--latest"]).run().expect_code(0);
}

/// A folder that is gone is no archive in which a backup was never taken.
#[test]
fn backups_whose_manifests_are_all_gone_are_named_and_asked_for() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let receiver = site.receive(&[]);
    rows(&server, "t", 1000);
    let id = |backup: Value| backup["id"].as_str().expect("an id").to_owned();
    let ids = [id(site.backup()), id(site.backup())];
    wait_durable(&server, server.lsn());
    end(receiver);
    let (folder, aside) = (cluster(&site).join("backups"), site.places.join("aside"));
    fs::rename(&folder, &aside).expect("take a folder away");
    let plan = ["restore", "--latest", "--plan"];
    let current = ["restore", "--latest", "--plan", "--target-timeline", "current"];
    let named = ["restore", "--latest", "--plan", "--backup", &ids[0]];
    for command in [&plan[..], &current, &named, &["show", "latest"]] {
        let told = site.walrecv(command).run().expect_code(16).stderr;
        let said = [ids[0].as_str(), &ids[1], "Bring ", "back from a copy of the repository"];
        assert!(said.iter().all(|said| told.contains(said)), "{command:?}: {told}");
    }
    fs::rename(&aside, &folder).expect("bring it back");
    site.walrecv(&plan).run().expect_code(0);
}
