//! What `pg-test-env/install` has put on this machine, and the rule for what it has not: say so; where CI asks, fail.

use std::io::Write;
use std::path::PathBuf;

use walrecv::pg::MajorVersion;

use super::soaks;

/// Where the servers are: `WALRECV_PG_HOME`, or `/var/cache/walrecv-pg`.
pub fn home() -> PathBuf {
    std::env::var_os("WALRECV_PG_HOME").map_or_else(|| PathBuf::from("/var/cache/walrecv-pg"), PathBuf::from)
}

/// The folder of a version's programs.
pub fn bin_dir(version: MajorVersion) -> PathBuf {
    home().join(version.to_string()).join("bin")
}

/// Whether this version is there; if not, the test is reported as skipped, or fails with `CI=true`.
pub fn servers_present(version: MajorVersion) -> bool {
    bin_dir(version).join("postgres").exists() || skipped(&format!("PostgreSQL {version} is not installed"))
}

/// The versions to test: all, or those in `WALRECV_PG_VERSIONS` (such as `13,17`); what is not installed is reported as
/// skipped.
pub fn versions() -> Vec<MajorVersion> {
    let asked = std::env::var("WALRECV_PG_VERSIONS").unwrap_or_default();
    let asked: Vec<u32> =
        asked.split(',').filter(|s| !s.is_empty()).map(|s| s.trim().parse().expect("a major version")).collect();
    // Nothing would be tested, and pass.
    let unknown = asked.iter().find(|number| MajorVersion::ALL.iter().all(|version| version.number() != **number));
    assert!(unknown.is_none(), "WALRECV_PG_VERSIONS: there is no PostgreSQL {unknown:?} to test");
    let wanted = MajorVersion::ALL.into_iter().filter(|v| asked.is_empty() || asked.contains(&v.number()));
    wanted.filter(|v| servers_present(*v)).collect()
}

/// The versions of a story: the `usual` ones; all of [`versions`] in a soak, and where `WALRECV_PG_VERSIONS` asks for some.
pub fn story_versions(usual: &[MajorVersion]) -> Vec<MajorVersion> {
    match soaks() || std::env::var_os("WALRECV_PG_VERSIONS").is_some() {
        true => versions(),
        false => usual.iter().copied().filter(|v| servers_present(*v)).collect(),
    }
}

/// The versions between the oldest and the newest, of a story that has tests of its own on these: in a soak, and none otherwise.
pub fn soaked_between() -> Vec<MajorVersion> {
    let between = MajorVersion::V14..=MajorVersion::V17;
    let all = if soaks() { versions() } else { Vec::new() };
    all.into_iter().filter(|version| between.contains(version)).collect()
}

/// Reports a skip because this machine does not let the tests do something (mount, trace): nothing that could be installed. It is counted, and allowed
/// with `CI=true` too.
pub fn forbidden(reason: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {reason}", thread.name().unwrap_or("?"));
}

/// Reports a skip past the test harness, which would hide it, and answers false. With `CI=true` it panics.
pub fn skipped(reason: &str) -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    let ci = std::env::var("CI").is_ok_and(|v| v == "true" || v == "1");
    assert!(!ci, "{reason}, and CI allows no skipped test: run pg-test-env/install");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason} (run pg-test-env/install)");
    false
}
