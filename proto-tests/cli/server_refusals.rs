//! Servers that cannot be streamed: each is told apart, and neither repository nor configuration comes into being.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use walrecv::pg::MajorVersion;

use crate::refusals::{Refusal, write};
use crate::site::{SLOT, Site};
use crate::support::{Auth, Server, free_port};

const PASSWORD: &str = "the right one";

fn init<'a>(site: &'a Site, dsn: &str) -> Refusal<'a> {
    Refusal::of(site, &["init", "--repo", &site.url(), "--dsn", dsn, "--slot", SLOT, "--create-slot"])
}

/// `init` in an empty site, then every command that asks the server, in one whose configuration now says `dsn`.
fn refused_everywhere(site: &Site, dsn: &str, password: Option<&str>, code: i32, says: &str) {
    let empty = Site::empty();
    init(&empty, dsn).password(password).is(code, says);
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let other: String = config
        .lines()
        .map(|l| if l.starts_with("dsn = ") { format!("dsn = \"{dsn}\"\n") } else { format!("{l}\n") })
        .collect();
    write(&site.config(), &other);
    Refusal::of(site, &["check"]).password(password).is(code, says);
    Refusal::of(site, &["slot", "show"]).password(password).is(code, says);
    Refusal::of(site, &["backup"]).password(password).is(code, says);
    write(&site.config(), &config);
}

#[test]
fn refusals_of_a_login_are_17_and_say_what_the_server_needs() {
    crate::support::require_servers!(MajorVersion::V15);
    let server = Server::builder(MajorVersion::V15)
        .auth(Auth::Scram(PASSWORD.into()))
        .hba("host replication,postgres unwelcome 127.0.0.1/32 reject")
        .start();
    server.sql(&format!("create role plain login password '{PASSWORD}'; create role unwelcome login replication"));
    let site = Site::new(&server);
    // So that backup has an archive to ask for, and fails for the server's reason.
    let receiver = site.receive(&[]);
    crate::site::wait_durable(&server, server.lsn());
    crate::site::end(receiver);

    refused_everywhere(&site, &server.conninfo_tcp("postgres"), Some("a wrong one"), 17, "password");
    refused_everywhere(&site, &server.conninfo_tcp("postgres"), None, 17, "password");
    refused_everywhere(&site, &server.conninfo_tcp("plain"), Some(PASSWORD), 17, "replication");
    refused_everywhere(&site, &server.conninfo_tcp("unwelcome"), None, 17, "pg_hba.conf");
    refused_everywhere(&site, &server.conninfo_tcp("nobody"), Some("x"), 17, "nobody");
    refused_everywhere(&site, &format!("host=127.0.0.1 port={} user=x", free_port()), None, 17, "127.0.0.1");
    refused_everywhere(&site, "host=/nowhere user=x", None, 17, "/nowhere");
    let old = format!("host=127.0.0.1 port={} user=x sslmode=disable", pretender("12.22"));
    refused_everywhere(&site, &old, None, 14, "12.22");
    // What waiting does not change ends `receive` too.
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let dsn = format!("{} password=wrong", server.conninfo_tcp("postgres"));
    write(&site.config(), &config.replace(&server.conninfo("postgres"), &dsn));
    Refusal::of(&site, &["receive"]).is(17, "password");
    write(&site.config(), &config);

    // The slot is gone, then was never there.
    site.walrecv(&["slot", "drop"]).run().expect_code(0);
    for command in [&["receive"][..], &["check"], &["slot", "show"], &["slot", "drop"]] {
        Refusal::of(&site, command).is(18, SLOT);
    }
    site.walrecv(&["slot", "create"]).run().expect_code(0);
    Refusal::of(&site, &["slot", "create"]).is(18, SLOT);
    write(&site.config(), &config.replace(&format!("slot = \"{SLOT}\"\n"), ""));
    Refusal::of(&site, &["slot", "create"]).is(2, "no slot");
    write(&site.config(), &config);

    other_cluster(&site, &server);
    repositories_that_cannot_be_used(&server);
}

/// The configuration now points to another cluster than the repository was filled from.
fn other_cluster(site: &Site, server: &Server) {
    let other = Server::builder(MajorVersion::V15).own_identity().start();
    other.sql(&format!("select pg_create_physical_replication_slot('{SLOT}', true)"));
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    write(&site.config(), &config.replace(&server.conninfo("postgres"), &other.conninfo("postgres")));
    for command in ["receive", "check", "backup"] {
        Refusal::of(site, &[command]).is(13, "system");
    }
    write(&site.config(), &config);
}

fn repositories_that_cannot_be_used(server: &Server) {
    let dsn = server.conninfo("postgres");
    let options = |site: &Site| [site.etc(), site.repository()];
    // A second init: into the same files, then beside them into the same repository.
    let site = Site::empty();
    site.init(&dsn).run().expect_code(0);
    assert!(options(&site).iter().all(|place| place.exists()));
    Refusal::of(&site, &["init", "--repo", &site.url(), "--dsn", &dsn]).is(2, "exists already");
    site.places.postgres_dir("other");
    let config = site.places.join("other/walrecv.toml").display().to_string();
    Refusal::of(&site, &["init", "--repo", &site.url(), "--dsn", &dsn, "--config", &config]).is(10, "already");
    // Not empty, and no repository.
    let foreign = Site::empty();
    write(&foreign.places.postgres_dir("repository").join("holiday.jpg"), "");
    Refusal::of(&foreign, &["init", "--repo", &foreign.url(), "--dsn", &dsn]).is(10, "not empty");
    // A directory that nothing can be written to.
    let shut = Site::empty();
    let folder = shut.places.postgres_dir("repository");
    set_mode(&folder, 0o500);
    Refusal::of(&shut, &["init", "--repo", &shut.url(), "--dsn", &dsn]).is(10, "repository");
    let below = format!("{}/deeper", shut.url());
    Refusal::of(&shut, &["init", "--repo", &below, "--dsn", &dsn]).is(10, "repository");
    Refusal::of(&shut, &["init", "--repo", "file:///proc/x", "--dsn", &dsn]).is(10, "/proc/x");
    // One that became so later.
    set_mode(&site.repository(), 0o500);
    Refusal::of(&site, &["check"]).is(10, "repository");
    set_mode(&site.repository(), 0o700);
}

fn set_mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
}

#[test]
fn a_server_that_writes_too_little_wal_is_17() {
    crate::support::require_servers!(MajorVersion::V15);
    // With wal_level = minimal a server refuses to start unless walsenders are off.
    let server =
        Server::builder(MajorVersion::V15).setting("wal_level", "minimal").setting("max_wal_senders", 0).start();
    let site = Site::empty();
    init(&site, &server.conninfo("postgres")).is(17, "max_wal_senders");
    let hint = init_hint(&site, &server.conninfo("postgres"));
    assert!(hint.contains("wal_level"), "{hint}");
}

fn init_hint(site: &Site, dsn: &str) -> String {
    let output = site.init(dsn).run();
    output.stderr.lines().find_map(|l| l.strip_prefix("hint: ")).expect("a hint").to_owned()
}

#[test]
fn servers_of_other_versions_are_14() {
    for version in ["12.22", "19.1", "19devel", "9.6.24"] {
        let port = pretender(version);
        let site = Site::empty();
        let dsn = format!("host=127.0.0.1 port={port} user=x sslmode=disable");
        init(&site, &dsn).is(14, version.split('.').next().expect("a number").trim_end_matches("devel"));
    }
}

#[test]
fn something_else_that_answers_is_17() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer_with(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let site = Site::empty();
    init(&site, &format!("host=127.0.0.1 port={port} user=x sslmode=disable")).is(17, "does not speak the protocol");
}

/// Speaks the start of a session as a server of `version` would.
fn pretender(version: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut greeting = message(b'R', &[0; 4]);
        for (name, value) in [("server_version", version), ("server_encoding", "UTF8"), ("client_encoding", "UTF8")] {
            greeting.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
        }
        greeting.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
        greeting.extend(message(b'Z', b"I"));
        for stream in listener.incoming().flatten() {
            let _ = answer_with(stream, &greeting);
        }
    });
    port
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Reads the startup message, answers, and waits for the other side to leave.
fn answer_with(mut stream: TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut startup = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4).min(10_000)];
    stream.read_exact(&mut startup)?;
    stream.write_all(bytes)?;
    stream.read_to_end(&mut startup).map(|_| ())
}

/// Of a cluster of which nothing is stored yet nothing else could tell; and what was sealed with it, nobody with the repository's own keys could ever open.
#[test]
fn the_secret_of_another_repository_is_refused_before_anything_is_written() {
    crate::support::require_servers!(MajorVersion::V17);
    let server = Server::builder(MajorVersion::V17).start();
    let (site, other) = (Site::new(&server), Site::empty());
    other.init(&server.conninfo("postgres")).run().expect_code(0);
    let secret = std::fs::read_to_string(other.etc().join("walrecv-secret")).expect("a secret");
    let own = site.etc().join("walrecv-secret");
    let right = std::fs::read_to_string(&own).expect("a secret");
    write(&own, &secret);
    for command in [
        &["receive"][..],
        &["run"],
        &["backup"],
        &["check"],
        &["list"],
        &["verify"],
        &["repo", "stats"],
        &["expire", "--plan"],
        &["restore", "--latest", "--plan"],
    ] {
        Refusal::of(&site, command).is(12, "is not the secret of this repository");
    }
    write(&own, &right);
    site.walrecv(&["check"]).run().expect_code(0);
    // Who changes the file that tells, stops writers and forges nothing.
    let file = site.repository().join("walrecv.json");
    let about = std::fs::read_to_string(&file).expect("the repository's file");
    let elsewhere = std::fs::read_to_string(other.repository().join("walrecv.json")).expect("the other one's");
    write(&file, &elsewhere);
    Refusal::of(&site, &["receive"]).is(12, "is not the secret of this repository");
    write(&file, &about);
    site.walrecv(&["check"]).run().expect_code(0);
}
