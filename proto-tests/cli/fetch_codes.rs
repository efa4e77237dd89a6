//! `wal-fetch` leaves with 0, 1 or a code above 125, whatever happens: 2 or 101 would read as the end of the archive.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::refusals::write;
use crate::site::Site;
use crate::support::Walrecv;
use crate::support::user::as_postgres;

const ABSENT: i32 = 1;
const UNKNOWN: i32 = 200;
/// Of timeline 1, 1 MB: before any server's first.
const TOO_EARLY: &str = "000000010000000000000000";

/// A call from the empty directory `pgdata`.
fn call(pgdata: &Path, args: &[&str]) -> Walrecv {
    Walrecv::new(["wal-fetch"]).args(args).by_postgres().dir(pgdata)
}

#[track_caller]
fn leaves_with(code: i32, command: Walrecv) -> String {
    let output = command.run();
    let found = output.code();
    assert!(found == 0 || found == 1 || found > 125, "{found}: {}", output.stderr);
    assert_eq!(found, code, "{}{}", output.stdout, output.stderr);
    output.stderr
}

#[test]
fn wrong_usage_is_unknown() {
    let site = Site::empty();
    let pgdata = site.places.postgres_dir("pgdata");
    for args in [
        &[][..],
        &["one"],
        &["one", "two", "three"],
        &["--nonsense"],
        &["a", "b", "--standby-wait", "soon"],
        &["a", "b", "--output", "xml"],
    ] {
        leaves_with(UNKNOWN, call(&pgdata, args));
    }
    leaves_with(0, call(&pgdata, &["--help"]));
    // No configuration; one that is not there; one that is wrong; no repository; bytes that are no UTF-8.
    leaves_with(UNKNOWN, call(&pgdata, &[TOO_EARLY, "f"]));
    leaves_with(UNKNOWN, call(&pgdata, &[TOO_EARLY, "f", "--config", "/nonexistent"]));
    write(&pgdata.join("walrecv.toml"), "nonsense");
    leaves_with(UNKNOWN, call(&pgdata, &[TOO_EARLY, "f"]));
    write(&pgdata.join("walrecv.toml"), "repo = \"file:///nonexistent\"\n[clusters.main]\ndsn = \"\"\n");
    leaves_with(UNKNOWN, call(&pgdata, &[TOO_EARLY, "f"]));
    let bytes: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\xfe");
    leaves_with(UNKNOWN, call(&pgdata, &[]).arg(bytes).arg("f"));
    // Nowhere to say it: closed, or full.
    for place in ["2>&-", "2>/dev/full", ">&- 2>&- <&-"] {
        for args in ["one", "000000010000000000000000 f"] {
            let script = format!("exec '{}' wal-fetch {args} {place}", crate::support::walrecv::path().display());
            let status = as_postgres("/bin/sh").args(["-c", &script]).current_dir(&pgdata).status().expect("run sh");
            assert_eq!(status.code(), Some(UNKNOWN), "{script}");
        }
    }
    // A plan that cannot be read binds as well.
    let plan = pgdata.join("pg_wal/walrecv");
    fs::create_dir_all(&plan).expect("a folder");
    write(&plan.join("plan.json"), "{}");
    write(&pgdata.join("recovery.signal"), "");
    fs::remove_file(pgdata.join("walrecv.toml")).expect("remove a file");
    leaves_with(UNKNOWN, call(&pgdata, &[TOO_EARLY, "f"]));
    assert!(!pgdata.join("f").exists());
}

/// Calls without a plan over the archive of `site`, which has complete segments.
pub fn answers(site: &Site) {
    let pgdata = site.places.postgres_dir("fetching");
    let config = site.config().display().to_string();
    let fetch = |name: &str, to: &str| call(&pgdata, &[name, to, "--config", &config]);
    let (first, object) = first_segment(&site.repository());

    leaves_with(0, fetch(&first, "served"));
    assert_eq!(fs::metadata(pgdata.join("served")).expect("a segment").len(), 1 << 20);
    // By the environment, to an absolute path.
    let absolute = pgdata.join("absolute").display().to_string();
    leaves_with(0, call(&pgdata, &[&first, &absolute]).env("WALRECV_CONFIG", &config));
    assert_eq!(leaves_with(ABSENT, fetch("000000010000FFFF00000000", "later")), "", "a standby's log stays quiet");
    leaves_with(ABSENT, fetch("00000002.history", "history"));
    // Something later is stored, so this was once there.
    leaves_with(UNKNOWN, fetch(TOO_EARLY, "early"));
    for name in [
        "",
        ".",
        "../x",
        "RECOVERYXLOG",
        "00000001000000000000001",
        "000000010000000000001000",
        "00000002.histor",
        "x.partial",
    ] {
        leaves_with(UNKNOWN, fetch(name, "bad"));
    }
    leaves_with(UNKNOWN, fetch(&first, "no/such/folder"));

    // A damaged object, a shortened one, and another in its place.
    let whole = fs::read(&object).expect("an object");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() - 1], b"", b"walrecv"] {
        fs::write(&object, bytes).expect("damage an object");
        assert_ne!(leaves_with(UNKNOWN, fetch(&first, "damaged")), "");
    }
    fs::write(&object, &whole).expect("mend an object");

    keys(site, &pgdata, &first);
    away(site, &pgdata, &first);
    for name in ["later", "history", "early", "bad", "damaged"] {
        assert!(!pgdata.join(name).exists(), "{name}");
    }
}

fn keys(site: &Site, pgdata: &Path, first: &str) {
    let config = site.config().display().to_string();
    let file = site.etc().join("walrecv-identity.txt");
    let right = fs::read_to_string(&file).expect("a key");
    let (other, _) = walrecv::keys::setup::generate_recipient();
    for wrong in [other.as_str(), "nonsense"] {
        write(&file, wrong);
        leaves_with(UNKNOWN, call(pgdata, &[first, "wrong", "--config", &config]));
    }
    fs::remove_file(&file).expect("remove a key");
    leaves_with(UNKNOWN, call(pgdata, &[first, "wrong", "--config", &config]));
    write(&file, &right);
    leaves_with(0, call(pgdata, &[first, "again", "--config", &config]));
}

/// The storage is not there: unknown; a standby is told "absent" after its wait; SIGTERM ends the waiting as it ends any program.
fn away(site: &Site, pgdata: &Path, first: &str) {
    let config = site.config().display().to_string();
    let aside = site.places.join("moved away");
    fs::rename(site.repository(), &aside).expect("move the repository");
    leaves_with(UNKNOWN, call(pgdata, &[first, "away", "--config", &config]));

    write(&pgdata.join("standby.signal"), "");
    leaves_with(ABSENT, call(pgdata, &[first, "away", "--config", &config, "--standby-wait", "300ms"]));
    let waiting = call(pgdata, &[first, "away", "--config", &config, "--standby-wait", "60s"]).spawn();
    std::thread::sleep(Duration::from_millis(700));
    let output = waiting.terminate();
    assert_eq!((output.status.signal(), output.code()), (Some(Signal::TERM.as_raw()), 143), "{}", output.stderr);
    fs::remove_file(pgdata.join("standby.signal")).expect("remove a signal file");
    fs::rename(&aside, site.repository()).expect("move the repository back");
    assert!(!pgdata.join("away").exists());
    leaves_with(0, call(pgdata, &[first, "back", "--config", &config]));
}

/// Name of the oldest complete segment, and the file of its object.
fn first_segment(repository: &Path) -> (String, PathBuf) {
    let mut found = Vec::new();
    let mut open = vec![repository.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if let Some(segment) = name.get(..24).filter(|n| n.bytes().all(|b| b.is_ascii_hexdigit()))
                && !name.contains("partial")
                && !path.components().any(|c| c.as_os_str() == "tail")
            {
                found.push((segment.to_owned(), path));
            }
        }
    }
    found.into_iter().min().expect("a complete segment")
}
