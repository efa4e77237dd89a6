//! What restores, backups and `wal-fetch` refuse over an archive that is there.

use std::fs;
use std::path::Path;

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
    Refusal::of(&site, &["list"]).is(10, "nothing is stored");
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
