//! What restores, backups and `wal-fetch` refuse over an archive that is there.

use std::fs;
use std::path::Path;

use walrecv::archive::key_files;
use walrecv::keys::setup;
use walrecv::pg::MajorVersion;

use crate::fetch_codes;
use crate::refusals::{Refusal, write};
use crate::site::{Site, end, wait_durable};
use crate::support::Server;
use crate::support::user::give_to_postgres;

#[test]
fn an_archive_answers_what_it_cannot_do() {
    crate::support::require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    let site = Site::new(&server);
    // Nothing has ever been received.
    let listed = site.walrecv(&["list"]).run().expect_code(0).stdout;
    assert!(listed.contains("nothing is stored"), "{listed}");
    Refusal::of(&site, &["restore", "--latest", "--plan"]).is(10, "nothing is stored");

    let receiver = site.receive(&[]);
    server.sql("create table t as select generate_series(1, 1000) as n");
    wait_durable(&server, server.lsn());
    end(receiver);
    for target in [&["--latest"][..], &["--target-time", "1 min ago"], &["--target-lsn", "0/1000000"]] {
        let args = [&["restore", "--pgdata", "/nonexistent/data"], target].concat();
        Refusal::of(&site, &args).is(19, "no complete backup");
    }
    let listed = site.walrecv(&["list"]).run().expect_code(0);
    assert!(listed.stdout.contains("no backup yet"), "{}", listed.stdout);
    for format in ["text", "json"] {
        let told = site.walrecv(&["list", "--output", format]).run_printing_nowhere().expect_code(1).stderr;
        assert!(told.contains("standard output could not be written"), "{told}");
    }

    let receiver = site.receive(&[]);
    let before = server.sql("select now() - interval '1 hour'");
    site.backup();
    server.sql("insert into t select generate_series(1, 20000)");
    server.switch_wal();
    server.sql("insert into t select generate_series(1, 10)");
    wait_durable(&server, server.lsn());
    end(receiver);
    restores(&site, &before);
    keys(&site);
    key_files_that_are_damaged(&site);
    fetch_codes::answers(&site);
}

fn restores(site: &Site, before: &str) {
    let data = site.data("data").display().to_string();
    let refused = |args: &[&str], code: i32, says: &str| {
        Refusal::of(site, &[&["restore", "--pgdata", &data], args].concat()).is(code, says);
        assert!(!Path::new(&data).exists(), "{args:?}");
    };
    refused(&["--target-time", before], 19, "cannot be reached");
    refused(&["--target-time", "2099-01-01 00:00:00+00"], 19, "the archive ends at");
    refused(&["--target-lsn", "0/1000000"], 19, "cannot be reached");
    refused(&["--target-lsn", "FF/0"], 19, "the archive ends at");
    refused(&["--target-name", "never made"], 19, "never made");
    refused(&["--target-timeline", "7", "--latest"], 19, "timeline");
    refused(&["--target-time", "tomorrow"], 2, "tomorrow");
    refused(&["--target-lsn", "nonsense"], 2, "nonsense");
    refused(&["--latest", "--exclusive"], 2, "--exclusive");
    refused(&["--latest", "--backup", "20200101T000000Z-ffff"], 2, "20200101T000000Z-ffff");
    refused(&["--latest", "--tablespace-mapping", "/old"], 2, "/old");
    refused(&["--latest", "--tablespace-mapping", "/old=/new"], 2, "/old");
    refused(&["--latest", "--owner", "no_such_user"], 2, "no_such_user");
    refused(&["--latest", "--start", "--pg-bindir", "/nonexistent"], 14, "18");

    // Occupied: a file in it; a file in its place.
    let occupied = site.places.postgres_dir("occupied");
    write(&occupied.join("precious"), "data");
    let args = ["restore", "--latest", "--pgdata", &occupied.display().to_string()];
    Refusal::of(site, &args).is(2, "occupied");
    let file = occupied.join("precious").display().to_string();
    Refusal::of(site, &["restore", "--latest", "--pgdata", &file]).is(2, "precious");
}

/// Each key missing, then wrong.
fn keys(site: &Site) {
    let restore = ["restore", "--latest", "--plan"];
    let (identity, secret) = (site.etc().join("walrecv-identity.txt"), site.etc().join("walrecv-secret"));
    let aside = site.places.join("aside");
    let missing = |path: &Path, commands: &[&[&str]], says: &str| {
        fs::rename(path, &aside).expect("move a key away");
        for command in commands {
            Refusal::of(site, command).is(12, says);
        }
        fs::rename(&aside, path).expect("put a key back");
    };
    missing(&identity, &[&restore, &["check"]], "walrecv-identity.txt");
    missing(&secret, &[&restore, &["list"], &["receive"], &["backup"], &["check"]], "walrecv-secret");
    // A host that only writes has no identity, and can list.
    let config = fs::read_to_string(site.config()).expect("a configuration");
    fs::rename(&identity, &aside).expect("move a key away");
    site.walrecv(&["list"]).run().expect_code(0);
    write(&site.config(), &config.replace("identity_file", "# identity_file"));
    site.walrecv(&["list"]).run().expect_code(0);
    site.walrecv(&["check"]).run().expect_code(0);
    write(&site.config(), &config);
    fs::rename(&aside, &identity).expect("put a key back");

    let (other, _) = walrecv::keys::setup::generate_recipient();
    let file = site.places.join("other-identity");
    write(&file, &other);
    let path = file.display().to_string();
    Refusal::of(site, &[&restore[..], &["--identity-file", &path]].concat()).is(12, "");
    Refusal::of(site, &restore).env("WALRECV_IDENTITY_FILE", &path).is(12, "");
    write(&file, "no key at all\n");
    Refusal::of(site, &[&restore[..], &["--identity-file", &path]].concat()).is(12, "");

    let right = fs::read_to_string(&secret).expect("a secret");
    for wrong in ["00".repeat(32), "short".to_owned()] {
        write(&secret, &wrong);
        for command in [&["list"][..], &["receive"], &["backup"]] {
            Refusal::of(site, command).is(12, "secret");
        }
    }
    write(&secret, &right);
    give_to_postgres(&secret);
}

/// A file that nobody can open is found before anything is written, without a private key.
fn key_files_that_are_damaged(site: &Site) {
    let folder =
        fs::read_dir(site.repository().join("keys")).expect("keys").next().expect("one").expect("a folder").path();
    let found =
        || fs::read_dir(&folder).expect("key files").map(|file| file.expect("a file").path()).collect::<Vec<_>>();
    let first = found().pop().expect("a key file");
    let name = first.file_name().expect("a name").to_string_lossy().into_owned();
    let whole = fs::read(&first).expect("a key file");
    let put = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).expect("write a key file");
        give_to_postgres(path);
    };
    let verified = |args: &[&str]| {
        let output = site.walrecv(&["verify", "--no-record"]).args(args).run();
        (output.code(), format!("{}{}", output.stdout, output.stderr))
    };
    let middle = whole.len() / 2;
    let mut flipped = whole.clone();
    flipped[middle] ^= 1;
    let refused = |says: &str| {
        for command in [&["backup"][..], &["receive"], &["run"], &["check"]] {
            Refusal::of(site, command).is(16, says);
        }
        for args in [&[][..], &["--deep"]] {
            let (code, said) = verified(args);
            assert!(code == 16 && said.contains(says) && said.contains("HURT"), "{args:?}: {code}\n{said}");
        }
    };
    for bad in [&flipped[..], &whole[..middle]] {
        put(&first, bad);
        refused(&name);
        Refusal::of(site, &["restore", "--latest", "--plan"]).is(16, &name);
        // What needs no contents is told all the same.
        let told = site.walrecv(&["list"]).run().expect_code(0).stdout;
        assert!(told.contains("a key file of the repository is damaged"), "{told}");
    }
    // Under another name only a private key can tell what it is.
    put(&first, &whole);
    let other = folder.join("copy.age");
    fs::rename(&first, &other).expect("another name");
    Refusal::of(site, &["backup"]).is(16, "copy.age: its name carries no check value");
    let (code, said) = verified(&["--deep"]);
    assert!(code == 16 && said.contains("rename it to keys/") && !said.contains("HURT"), "{code}\n{said}");
    site.walrecv(&["restore", "--latest", "--plan"]).run().expect_code(0);
    fs::rename(&other, &first).expect("its own name");

    // Of two recipients one is shut out: told, and everything goes on.
    let private = fs::read_to_string(site.etc().join("walrecv-identity.txt")).expect("a private key");
    let keys = setup::open_with_identity(&whole, &private).expect("the repository identity");
    let recipient = setup::Recipient::Age(setup::generate_recipient().1);
    let (recipient, file) = setup::wrap_for(&keys, &recipient).expect("a key file");
    let name = key_files::name_of(&keys.secret, &keys.public, &recipient, &file);
    put(&site.repository().join(&name), &file[..file.len() - 1]);
    let told = site.walrecv(&["backup"]).run().expect_code(0).stderr;
    assert!(told.contains(&name) && told.contains("another recipient's is whole"), "{told}");
    let told = site.walrecv(&["check"]).run().expect_code(0).stdout;
    assert!(
        told.contains("warn  key files") && told.contains(&name) && told.contains("1 key file, as stored"),
        "{told}"
    );
    for args in [&[][..], &["--deep"]] {
        let (code, said) = verified(args);
        assert!(code == 16 && said.contains(&name) && !said.contains("HURT"), "{args:?}: {code}\n{said}");
        assert!(said.contains("1 key file, as stored; 1 opened with the private key at hand"), "{said}");
    }
    put(&site.repository().join(&name), &file);
    let (code, said) = verified(&["--deep"]);
    assert!(code == 0 && said.contains("2 key files, as stored; 1 opened"), "{code}\n{said}");
}
