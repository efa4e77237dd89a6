//! One module per outside package, and one for each kind of effect.

use super::paths::named;
use super::{Finding, Source};

/// A name, and the modules that may use it.
struct Rule {
    name: &'static str,
    only: &'static [&'static str],
}

const fn rule(name: &'static str, only: &'static [&'static str]) -> Rule {
    Rule { name, only }
}

/// Packages and parts of packages.
const PACKAGES: [Rule; 24] = [
    rule("object_store", &["repo"]),
    rule("reqwest", &["repo"]),
    rule("age", &["keys"]),
    rule("rusqlite", &["catalog"]),
    rule("socket2", &["net"]),
    rule("tokio::net", &["net", "daemon"]),
    rule("std::net::TcpStream", &["net"]),
    rule("std::os::unix::net", &["net"]),
    rule("rustls", &["net"]),
    rule("tokio_rustls", &["net"]),
    rule("rustls_native_certs", &["net"]),
    rule("x509_cert", &["net"]),
    rule("postgres_protocol", &["wire", "net"]),
    rule("chacha20poly1305", &["seal"]),
    rule("ring", &["seal"]),
    rule("hkdf", &["seal"]),
    rule("zstd", &["seal"]),
    rule("lz4_flex", &["seal"]),
    rule("tar", &["pg"]),
    rule("clap", &["cli"]),
    rule("indicatif", &["cli"]),
    rule("tracing_subscriber", &["cli", "main"]),
    rule("axum", &["daemon"]),
    rule("hdrhistogram", &["stats"]),
];

/// What changes a file system.
const WRITES: [&str; 26] = [
    "std::fs::write",
    "std::fs::rename",
    "std::fs::copy",
    "std::fs::hard_link",
    "std::fs::remove_file",
    "std::fs::remove_dir",
    "std::fs::remove_dir_all",
    "std::fs::create_dir",
    "std::fs::create_dir_all",
    "std::fs::set_permissions",
    "std::fs::DirBuilder",
    "std::fs::OpenOptions",
    "std::fs::File::create",
    "std::fs::File::create_new",
    "std::fs::File::options",
    "std::os::unix::fs::symlink",
    "std::os::unix::fs::chown",
    "std::os::unix::fs::lchown",
    "tokio::fs",
    "rustix::fs::open",
    "rustix::fs::openat",
    "rustix::fs::rename",
    "rustix::fs::renameat",
    "rustix::fs::unlink",
    "rustix::fs::fallocate",
    "tempfile",
];

/// Servers of our own.
const LISTENERS: [&str; 5] = [
    "std::net::TcpListener",
    "std::os::unix::net::UnixListener",
    "tokio::net::TcpListener",
    "tokio::net::UnixListener",
    "tokio::net::TcpSocket",
];

/// Packages, file writes, listeners and durable positions stay where they belong. Tests may use what they need.
pub fn check(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let user = source.module();
    let mut found = Vec::new();
    for name in named(source) {
        if source.is_test(name.line) {
            continue;
        }
        let mut refuse = |rule, message| found.push(source.finding(rule, name.line, message));
        for rule in PACKAGES.iter().filter(|rule| name.is_in(rule.name) && !rule.only.contains(&user)) {
            refuse("packages", format!("{} belongs to {}", rule.name, rule.only.join(", ")));
        }
        if user != "disk"
            && let Some(write) = WRITES.iter().find(|write| name.is_in(write))
        {
            refuse("writes", format!("{write}: file writes go through disk"));
        }
        if user != "daemon"
            && let Some(listener) = LISTENERS.iter().find(|listener| name.is_in(listener))
        {
            refuse("listeners", format!("{listener}: only daemon listens"));
        }
        let makes = name.path.ends_with("::witness");
        if makes && !matches!(user, "disk" | "repo") {
            refuse("witness", format!("{}: only disk and repo know that bytes are durable", name.path));
        }
    }
    found
}

#[cfg(test)]
fn rules(path: &str, text: &str) -> Vec<(&'static str, usize)> {
    check(&Source::new(path, text)).into_iter().map(|f| (f.rule, f.line)).collect()
}

#[test]
fn packages_stay_in_their_module() {
    let text = "use object_store::{path::Path, ObjectStore};\nfn f() { age::Encryptor::new() }";
    assert_eq!(rules("src/archive/read.rs", text), [("packages", 1), ("packages", 1), ("packages", 2)]);
    assert_eq!(rules("src/repo/open.rs", "use object_store::ObjectStore;"), []);
    assert_eq!(rules("src/receive/x.rs", "use tokio::{sync::mpsc, net::TcpStream};"), [("packages", 1)]);
}

#[test]
fn only_disk_writes_files() {
    let text = "use std::fs::{self, File};\nfn f() { fs::rename(a, b); File::create(c); File::open(d); fs::read(e) }";
    assert_eq!(rules("src/config/file.rs", text), [("writes", 2), ("writes", 2)]);
    assert_eq!(rules("src/disk/durable.rs", text), []);
}

#[test]
fn nobody_else_listens_or_vouches() {
    let text = "fn f() { tokio::net::TcpListener::bind(a); DurableLsn::witness(s, t, l) }";
    assert_eq!(rules("src/net/socket.rs", text), [("listeners", 1), ("witness", 1)]);
    assert_eq!(
        rules("src/receive/x.rs", "use crate::pg::DurableLsn as D;\nfn f() { D::witness(s, t, l) }"),
        [("witness", 2)]
    );
    assert_eq!(rules("src/disk/x.rs", "fn f() { DurableLsn::witness(s, t, l) }"), []);
}
