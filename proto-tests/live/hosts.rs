//! Several hosts: which one is taken, as libpq decides it, and what an error says of the others.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use walrecv::error::{Error, Kind};
use walrecv::net::{Connection, Mode};
use walrecv::pg::MajorVersion;

use super::net::{connect, run};
use crate::support::server::{Auth, Server};
use crate::support::{TempDir, free_port, install, require_servers};

const TARGETS: [&str; 6] = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];

/// A connection string for these ports of 127.0.0.1.
fn dsn(ports: &[u16], more: &str) -> String {
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("host={hosts} port={} user=postgres {more}", ports.join(","))
}

/// The port of the server that answered.
fn port_of(connection: &Connection) -> u16 {
    let port = connection.server().rsplit_once(':').and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    port.unwrap_or_else(|| panic!("a port in {:?}", connection.server()))
}

fn taken(text: &str, mode: Mode) -> Result<u16, Error> {
    run(async {
        let connection = connect(text, mode).await?;
        let port = port_of(&connection);
        connection.close().await;
        Ok(port)
    })
}

/// The server that psql of `version` chooses.
fn taken_by_libpq(server: &Server, version: MajorVersion, text: &str) -> Option<u16> {
    let mut psql = crate::support::user::as_postgres(install::bin_dir(version).join("psql"));
    let output = psql.args(["-XAtc", "show port", &format!("{text} dbname=postgres")]).output().expect("run psql");
    let text = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
    assert_eq!(text.is_some(), output.status.success(), "{output:?} for {}", server.version());
    text
}

#[test]
fn each_target_takes_the_server_that_libpq_takes() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let primary = Server::start(version);
        let standby = primary.standby().start();
        let dead = free_port();
        for target in TARGETS {
            for ports in [[dead, standby.port(), primary.port()], [primary.port(), dead, standby.port()]] {
                for options in ["", "options='-c default_transaction_read_only=on'"] {
                    let text = dsn(&ports, &format!("target_session_attrs={target} {options}"));
                    let expected = taken_by_libpq(&primary, MajorVersion::V18, &text);
                    for mode in [Mode::Physical, Mode::Database] {
                        let found = taken(&text, mode);
                        assert_eq!(found.as_ref().ok().copied(), expected, "{version} {mode:?} {text}: {found:?}");
                    }
                }
            }
        }
        // A list with no standby in it: prefer-standby takes what there is, standby does not.
        let only = dsn(&[dead, primary.port()], "target_session_attrs=");
        assert_eq!(taken(&format!("{only}prefer-standby"), Mode::Physical).expect("the primary"), primary.port());
        let error = taken(&format!("{only}standby"), Mode::Physical).expect_err("no standby");
        let text = error.to_string();
        assert!(error.is_transient() && error.kind() == Kind::Server, "{error:?}");
        for part in [dead.to_string(), "cannot connect".into(), primary.port().to_string(), "is a primary".into()] {
            assert!(text.contains(&part), "{part} in {text}");
        }
        assert!(error.advice().is_some_and(|hint| hint.contains("target_session_attrs")), "{error:?}");
    }
}

#[test]
fn after_a_promotion_the_other_host_is_taken() {
    for version in [MajorVersion::V13, MajorVersion::V17] {
        require_servers!(version);
        let mut primary = Server::start(version);
        let standby = primary.standby().start();
        let text = dsn(&[standby.port(), primary.port()], "target_session_attrs=read-write");
        assert_eq!(taken(&text, Mode::Physical).expect("the primary"), primary.port());
        run(async {
            for (server, expected) in [(&standby, true), (&primary, false)] {
                for mode in [Mode::Physical, Mode::Database] {
                    let mut connection = connect(&server.conninfo("postgres"), mode).await.expect("a connection");
                    assert_eq!(connection.is_standby().await.expect("an answer"), expected);
                }
            }
        });
        primary.kill9();
        let error = taken(&text, Mode::Physical).expect_err("no primary");
        assert!(error.is_transient(), "{error:?}");
        let words = error.to_string();
        assert!(words.contains("is a standby") && words.contains("cannot connect"), "{words}");
        standby.promote();
        assert_eq!(taken(&text, Mode::Physical).expect("the new primary"), standby.port());
    }
}

/// A second connection goes where the first one went, whatever the list and the dice say.
#[test]
fn a_second_connection_reaches_the_same_server() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let servers = [Server::start(version), Server::start(version)];
    let ports = servers.each_ref().map(Server::port);
    let text = dsn(&ports, "load_balance_hosts=random");
    let mut seen = std::collections::BTreeSet::new();
    run(async {
        for _ in 0..24 {
            let first = connect(&text, Mode::Physical).await.expect("a connection");
            let second = Connection::connect(first.same_server(), Mode::Database, "").await.expect("another");
            assert_eq!(port_of(&second), port_of(&first));
            assert_eq!(first.same_server().describe(), format!("127.0.0.1:{} as postgres", port_of(&first)));
            seen.insert(port_of(&first));
        }
        // Even when only the other one would do.
        let text = dsn(&ports, "target_session_attrs=read-write");
        let first = connect(&text, Mode::Physical).await.expect("a connection");
        servers[0].sql("alter system set default_transaction_read_only = on");
        servers[0].sql("select pg_reload_conf()");
        servers[0].wait_sql("show default_transaction_read_only", "on");
        let second = Connection::connect(first.same_server(), Mode::Physical, "").await.expect("another");
        assert_eq!((port_of(&first), port_of(&second)), (ports[0], ports[0]));
    });
    assert_eq!(seen.len(), 2, "24 connections reached {seen:?}");
    assert_eq!(taken(&text.replace("random", "disable"), Mode::Physical).expect("the first"), ports[0]);
}

#[test]
fn each_host_has_its_own_line_in_the_password_file_and_a_refusal_ends_the_search() {
    let version = MajorVersion::V15;
    require_servers!(version);
    let servers = ["one", "two"].map(|word| Server::builder(version).auth(Auth::Scram(word.into())).start());
    let ports = servers.each_ref().map(Server::port);
    let temp = TempDir::new("pgpass");
    let file = temp.join("pass");
    let lines = format!("127.0.0.1:{}:*:*:one\n127.0.0.1:{}:*:*:two\n", ports[0], ports[1]);
    std::fs::write(&file, lines).expect("write the password file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set its mode");
    let more = format!("passfile={}", file.display());
    for order in [[ports[0], ports[1]], [ports[1], ports[0]]] {
        assert_eq!(taken(&dsn(&order, &more), Mode::Physical).expect("its own password"), order[0]);
    }
    // The second host would take the password, but is not asked.
    let dead = free_port();
    let error = taken(&dsn(&[dead, ports[0], ports[1]], "password=two"), Mode::Physical).expect_err("a refusal");
    let text = error.to_string();
    assert!(!error.is_transient() && text.contains("28P01"), "{error:?}");
    assert!(text.contains(&dead.to_string()) && text.contains(&ports[0].to_string()), "{text}");
    assert!(!text.contains(&ports[1].to_string()), "{text}");
    assert!(error.advice().is_some_and(|hint| hint.contains("password")), "{error:?}");
}

/// A server that is starting up, and one that never answers, are passed over.
#[test]
fn a_host_that_is_not_ready_makes_room_for_the_next() {
    let version = MajorVersion::V18;
    require_servers!(version);
    let server = Server::start(version);
    let starting = listener(fatal("57P03", "the database system is starting up"));
    let text = dsn(&[starting, server.port()], "sslmode=disable");
    assert_eq!(taken(&text, Mode::Physical).expect("the other"), server.port());
    let error = taken(&dsn(&[starting, free_port()], "sslmode=disable"), Mode::Physical).expect_err("nobody");
    assert!(error.is_transient() && error.to_string().contains("starting up"), "{error:?}");
    let silent = listener(Vec::new());
    let begun = std::time::Instant::now();
    let text = dsn(&[silent, server.port()], "sslmode=disable connect_timeout=2");
    assert_eq!(taken(&text, Mode::Physical).expect("the other"), server.port());
    assert!((2..60).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let error = taken("host=no-such-host.invalid,127.0.0.1 port=1 user=postgres", Mode::Physical).expect_err("nobody");
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    let text = format!("host=no-such-host.invalid,127.0.0.1 port={} user=postgres", server.port());
    assert_eq!(taken(&text, Mode::Physical).expect("the one that has an address"), server.port());
}

/// As before a dead server something does that lets everybody in: a tunnel, a balancer, a mesh.
#[test]
fn a_host_that_closes_the_connection_makes_room_for_the_next() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::builder(version).tls().start();
    let (at_once, once_asked, once_agreed) = (closes(None), closes(Some(b"")), closes(Some(b"S")));
    let modes = ["disable", "allow", "prefer", "require", "require sslnegotiation=direct"];
    let all = modes.into_iter().flat_map(|mode| [(mode, at_once), (mode, once_asked)]);
    for (mode, closing) in all.chain([("prefer", once_agreed), ("require", once_agreed)]) {
        let more = format!("sslmode={mode} target_session_attrs=read-write");
        let text = dsn(&[closing, server.port()], &more);
        assert_eq!(taken(&text, Mode::Physical).unwrap_or_else(|e| panic!("{mode}: {e}")), server.port());
        let error = taken(&dsn(&[closing, free_port()], &more), Mode::Physical).expect_err("nobody");
        assert!(error.is_transient() && error.to_string().contains(&closing.to_string()), "{mode}: {error:?}");
    }
}

/// Whoever breaks off the handshake of TLS and refuses in words without it has answered: the next host is not asked.
#[test]
fn a_refusal_in_words_ends_the_search_after_a_handshake_that_broke_off_too() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::start(version);
    let refuses = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = refuses.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in refuses.incoming().flatten() {
            let mut asked = [0; 4096];
            match stream.read(&mut asked) {
                Ok(8) if stream.write_all(b"S").is_ok() => drop(stream.read(&mut asked)),
                _ => drop(
                    stream.write_all(&fatal("28000", "no pg_hba.conf entry for host \"127.0.0.1\", no encryption")),
                ),
            }
        }
    });
    let error = taken(&dsn(&[port, server.port()], "sslmode=prefer"), Mode::Physical).expect_err("a refusal");
    let text = error.to_string();
    assert!(!error.is_transient() && text.contains("28000"), "{error:?}");
    assert!(!text.contains(&server.port().to_string()), "{text}");
}

/// A server's FATAL error, as it goes over the wire.
fn fatal(code: &str, text: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
    [b"E", &(body.len() as u32 + 4).to_be_bytes()[..], body.as_bytes()].concat()
}

/// Closes every connection: at once, or once it was told something. With an answer to a request for TLS, in the handshake.
fn closes(answer: Option<&'static [u8]>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Some(answer) = answer else { continue };
            let mut asked = [0; 4096];
            // Whoever asks for TLS (8 bytes) and is told that there is some says more at once.
            if stream.read(&mut asked).is_ok_and(|count| count == 8) && stream.write_all(answer).is_ok() {
                let _ = if answer.is_empty() { Ok(0) } else { stream.read(&mut asked) };
            }
        }
    });
    port
}

/// Answers whoever connects with these bytes.
fn listener(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut startup = [0; 1024];
                let _ = stream.read(&mut startup);
                let _ = stream.write_all(&bytes);
                // Until the other side leaves.
                let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                while stream.read(&mut startup).is_ok_and(|count| count > 0) {}
            });
        }
    });
    port
}
