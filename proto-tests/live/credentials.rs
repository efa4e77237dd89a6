//! Who we are and who the server is: client certificates, revocation lists, the system's authorities, required methods, peers, service files, IPv6.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use walrecv::error::{Error, Kind};
use walrecv::net::{Conninfo, Mode};
use walrecv::pg::MajorVersion;

use crate::net::{connect, run};
use crate::support::server::{Auth, Server};
use crate::support::{TempDir, Walrecv, require_servers};

const VERSIONS: [MajorVersion; 2] = [MajorVersion::V13, MajorVersion::V18];

fn try_login(text: &str) -> Result<bool, Error> {
    run(async {
        let connection = connect(text, Mode::Physical).await?;
        let encrypted = connection.is_encrypted();
        connection.close().await;
        Ok(encrypted)
    })
}

fn refused(text: &str, kind: Kind, words: &str) {
    let error = try_login(text).expect_err(text);
    let all = format!("{error} {}", error.advice().unwrap_or_default());
    assert!(error.kind() == kind && !error.is_transient(), "{text}: {error:?}");
    assert!(all.contains(words), "{text}: expected {words:?} in: {all}");
}

/// A copy of `from` with a mode of its own.
fn copy(from: &Path, to: &Path, mode: u32) -> String {
    std::fs::copy(from, to).expect("copy a file");
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode)).expect("set its mode");
    to.display().to_string()
}

#[test]
fn client_certificates_are_shown_and_their_keys_kept() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version).client_certificates().hba("hostssl replication,all all all cert").start();
        let stranger = Server::builder(version).tls().start();
        let temp = TempDir::new("client");
        let (cert, key) = (server.beside_ca("client.pem").display().to_string(), server.beside_ca("client.key"));
        let base = format!("{} sslmode=require", server.conninfo_tcp("postgres"));
        let with = |key: &str| format!("{base} sslcert={cert} sslkey={key}");
        let good = copy(&key, &temp.join("good.key"), 0o600);
        for more in ["", "sslcertmode=require", "ssl_max_protocol_version=TLSv1.2", "require_auth=none"] {
            assert!(try_login(&format!("{} {more}", with(&good))).expect(more), "{more}");
        }
        refused(&with(&copy(&key, &temp.join("open.key"), 0o640 | 0o004)), Kind::Usage, "chmod 0600");
        refused(&with("/does/not/exist"), Kind::Usage, "/does/not/exist");
        let other = copy(&stranger.beside_ca("client.key"), &temp.join("other.key"), 0o600);
        refused(&with(&other), Kind::Usage, "does not belong to the certificate");
        let encrypted = temp.join("encrypted.key");
        std::fs::write(
            &encrypted,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIF\n-----END ENCRYPTED PRIVATE KEY-----\n",
        )
        .expect("write a key");
        let encrypted = copy(&encrypted, &temp.join("mode.key"), 0o600);
        refused(&format!("{} sslpassword=x", with(&encrypted)), Kind::Usage, "openssl pkey");
        // None shown: not configured, not there, or switched off.
        for more in ["", "sslcert=/does/not/exist sslkey=/does/not/exist", "sslcertmode=disable"] {
            let text = if more.contains("disable") { with(&good) } else { base.clone() };
            refused(&format!("{text} {more}"), Kind::Server, "sslcert");
        }
        refused(&format!("{base} sslcertmode=require"), Kind::Server, "no client certificate to show");
        // Signed by someone whom the server does not know.
        let foreign = stranger.beside_ca("client.pem").display().to_string();
        for tls in ["TLSv1.2", "TLSv1.3"] {
            let text = format!("{base} sslcert={foreign} sslkey={other} ssl_max_protocol_version={tls}");
            let error = try_login(&text).expect_err("a certificate of another authority");
            assert!(!error.is_transient(), "{tls}: {error:?}");
        }
        // A name that the certificate does not say.
        server.sql("create role other login replication");
        let text = with(&good).replace("user=postgres", "user=other");
        refused(&text, Kind::Server, "common name is \"other\"");
        // A server that never asks.
        let text = format!("{} sslmode=require sslcertmode=require", stranger.conninfo_tcp("postgres"));
        refused(&text, Kind::Server, "did not ask for a client certificate");
        let text = format!("{} sslmode=disable sslcertmode=require", stranger.conninfo_tcp("postgres"));
        refused(&text, Kind::Server, "not encrypted");
    }
}

#[test]
fn revoked_certificates_are_refused() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::builder(version).tls().start();
    let stranger = Server::builder(version).tls().start();
    let root = server.ca_file().display().to_string();
    let text =
        |more: &str| format!("{} sslmode=verify-full sslrootcert={root} {more}", server.conninfo_tcp("postgres"));
    let list = |server: &Server, name: &str| server.beside_ca(name).display().to_string();
    let empty = list(&server, "empty.crl");
    assert!(try_login(&text(&format!("sslcrl={empty}"))).expect("not revoked"));
    // The name is verified all the same.
    let named = text(&format!("sslcrl={empty} host=db.example.com hostaddr=127.0.0.1"));
    refused(&named, Kind::Server, "not for db.example.com");
    assert!(try_login(&named.replace("verify-full", "verify-ca")).expect("the name does not matter"));
    refused(&text(&format!("sslcrl={}", list(&server, "server.crl"))), Kind::Server, "Revoked");
    // A chain without a list of its own.
    refused(&text(&format!("sslcrl={}", list(&stranger, "empty.crl"))), Kind::Server, "sslcrldir");
    let temp = TempDir::new("crl");
    copy(&server.beside_ca("server.crl"), &temp.join("0a1b2c3d.r0"), 0o644);
    refused(&text(&format!("sslcrldir={}", temp.path().display())), Kind::Server, "Revoked");
    refused(&text("sslcrl=/does/not/exist"), Kind::Usage, "/does/not/exist");
    refused(&text(&format!("sslcrl={root}")), Kind::Usage, "no list in it");
    // libpq's default places, under HOME.
    let home = temp.join(".postgresql");
    std::fs::create_dir(&home).expect("make a folder");
    copy(server.ca_file(), &home.join("root.crt"), 0o644);
    let at_home = || {
        let env = |name: &str| (name == "HOME").then(|| temp.path().display().to_string());
        let text = format!("{} sslmode=verify-full", server.conninfo_tcp("postgres"));
        let info = Conninfo::parse(&text, &env).expect("a connection string");
        run(async { walrecv::net::Connection::connect(&info, Mode::Physical, "").await.map(drop) })
    };
    at_home().expect("root.crt");
    copy(&server.beside_ca("server.crl"), &home.join("root.crl"), 0o644);
    assert!(at_home().expect_err("root.crl").to_string().contains("Revoked"));
}

#[test]
fn the_systems_authorities_and_ipv6() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let server = Server::builder(version).tls().ipv6().start();
    let root = server.ca_file().display();
    for place in ["host=::1", "host=localhost hostaddr=::1", "hostaddr=::1 host=::1"] {
        let text = format!("{place} port={} user=postgres sslmode=verify-full sslrootcert={root}", server.port());
        assert!(try_login(&text).expect(place), "{place}");
    }
    let uri = format!("postgresql://postgres@[::1]:{}/?sslmode=verify-full&sslrootcert={root}", server.port());
    assert!(try_login(&uri).expect("a URI"));
    server.sql("create role stranger login");
    let text = format!("host=::1 port={} user=stranger", server.port());
    refused(&text, Kind::Server, "ALTER ROLE");

    // In a process of its own, because the variable is the process's.
    let temp = TempDir::for_postgres("system");
    let config = temp.join("walrecv.toml");
    let dsn = format!("host=localhost port={} user=postgres sslrootcert=system", server.port());
    let text =
        format!("repo = \"file://{}\"\n[clusters.main]\ndsn = \"{dsn}\"\nslot = \"walrecv\"\n", temp.path().display());
    std::fs::write(&config, text).expect("write a configuration");
    let show = |authorities: &Path| {
        Walrecv::new(["slot", "create", "--config", &config.display().to_string()])
            .env("SSL_CERT_FILE", authorities.display().to_string())
            .env("SSL_CERT_DIR", "/nowhere")
            .run()
    };
    let output = show(server.ca_file());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stranger = Server::builder(version).tls().start();
    let output = show(stranger.ca_file());
    assert!(output.status.code() == Some(17) && output.stderr.contains("sslrootcert=FILE"), "{output:?}");
}

#[test]
fn only_the_required_method_is_used() {
    let version = MajorVersion::V15;
    require_servers!(version);
    let scram = Server::builder(version).auth(Auth::Scram("secret".into())).start();
    let clear = Server::builder(version).auth(Auth::Clear("secret".into())).start();
    let md5 = Server::builder(version).auth(Auth::Md5("secret".into())).start();
    let trust = Server::start(version);
    for (server, method) in [(&scram, "scram-sha-256"), (&clear, "password"), (&md5, "md5"), (&trust, "none")] {
        let text = |more: &str| format!("{} password=secret require_auth={more}", server.conninfo_tcp("postgres"));
        for allowed in [method.to_owned(), format!("{method},gss"), "!sspi".to_owned()] {
            try_login(&text(&allowed)).unwrap_or_else(|error| panic!("{method} with {allowed}: {error}"));
        }
        for other in [format!("!{method}"), "gss,oauth".to_owned()] {
            refused(&text(&other), Kind::Server, &format!("does not allow what the server asks for: {method}"));
        }
    }
}

#[test]
fn the_peer_behind_a_socket_file_is_looked_at() {
    let version = MajorVersion::V14;
    require_servers!(version);
    let server = Server::start(version);
    try_login(&format!("{} requirepeer=postgres", server.conninfo("postgres"))).expect("the server runs as postgres");
    refused(&format!("{} requirepeer=daemon", server.conninfo("postgres")), Kind::Server, "found postgres");
    // As libpq: only where there is a socket file.
    try_login(&format!("{} requirepeer=daemon", server.conninfo_tcp("postgres"))).expect("TCP has no peer");
}

#[test]
fn a_service_stands_between_the_string_and_the_variables() {
    let version = MajorVersion::V15;
    require_servers!(version);
    let server = Server::start(version);
    let temp = TempDir::new("service");
    let file = temp.join("pg_service.conf");
    let section = format!("[db]\nhost=127.0.0.1\nport={}\nuser=nobody\n", server.port());
    std::fs::write(&file, section).expect("write the service file");
    let env = |name: &str| match name {
        "PGSERVICEFILE" => Some(file.display().to_string()),
        "PGSERVICE" => Some("db".to_owned()),
        "PGPORT" => Some("1".to_owned()),
        _ => None,
    };
    let info = Conninfo::parse("user=postgres", &env).expect("a connection string");
    assert_eq!(info.describe(), format!("127.0.0.1:{} as postgres", server.port()));
    run(async { walrecv::net::Connection::connect(&info, Mode::Physical, "").await.map(drop) }).expect("a session");
    let info = Conninfo::parse("service=db", &|name| env(name).filter(|_| name == "PGSERVICEFILE")).expect("a service");
    assert!(info.describe().ends_with("as nobody"));
    std::fs::write(&file, "[db]\nhots=x\n").expect("write the service file");
    let error = Conninfo::parse("service=db", &env).expect_err("a typing error");
    assert!(error.to_string().contains("hots") && error.to_string().contains("db"), "{error}");
}

/// What `openssl x509 -req` makes by default.
#[test]
fn certificates_of_version_1() {
    let version = MajorVersion::V15;
    require_servers!(version);
    let temp = TempDir::for_postgres("v1");
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(temp.path()).output().expect("run openssl");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let request = "req -new -newkey rsa:2048 -nodes -keyout v1.key -subj /CN=localhost -out v1.csr";
    openssl(&request.split(' ').collect::<Vec<_>>());
    openssl(&"x509 -req -in v1.csr -signkey v1.key -days 30 -out v1.pem".split(' ').collect::<Vec<_>>());
    for name in ["v1.key", "v1.pem"] {
        crate::support::user::give_to_postgres(&temp.join(name));
    }
    let server = Server::builder(version)
        .setting("ssl", "on")
        .setting("ssl_cert_file", temp.join("v1.pem").display())
        .setting("ssl_key_file", temp.join("v1.key").display())
        .start();
    let text = |more: &str| format!("{} {more}", server.conninfo_tcp("postgres"));
    assert!(try_login(&text("sslmode=require")).expect("any certificate will do"));
    let root = format!("sslrootcert={}", temp.join("v1.pem").display());
    assert!(
        try_login(&text(&format!("sslmode=verify-full host=localhost hostaddr=127.0.0.1 {root}"))).expect("itself")
    );
    refused(&text("sslmode=require ssl_max_protocol_version=TLSv1.2"), Kind::Server, "X.509 version 3");
}
