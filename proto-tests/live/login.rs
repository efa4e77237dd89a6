//! Logins to real servers: every sslmode, every kind of password, and the advice for every refusal.

use std::os::unix::fs::PermissionsExt;

use walrecv::error::{Error, Kind};
use walrecv::net::{Connection, Mode};
use walrecv::pg::{MajorVersion, TimelineId};
use walrecv::wire::command::{BackupEvent, BaseBackupOptions};
use walrecv::wire::message::{Status, StreamEvent};

use crate::net::{connect, run};
use crate::support::server::{Auth, Server};
use crate::support::{TempDir, require_servers};

const VERSIONS: [MajorVersion; 2] = [MajorVersion::V13, MajorVersion::V18];

/// Connects over TCP with more options; whether the session is encrypted, by our word and by the server's.
fn try_login(server: &Server, options: &str) -> Result<bool, Error> {
    let text = format!("{} application_name=login_test {options}", server.conninfo_tcp("postgres"));
    run(async {
        let connection = connect(&text, Mode::Physical).await?;
        let seen = server
            .sql("select ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'login_test'");
        assert_eq!(seen == "t", connection.is_encrypted(), "{options}");
        let encrypted = connection.is_encrypted();
        connection.close().await;
        server.wait_sql("select count(*) from pg_stat_activity where application_name = 'login_test'", "0");
        Ok(encrypted)
    })
}

fn refused(server: &Server, options: &str, kind: Kind, text: &str) -> Error {
    let error = try_login(server, options).expect_err(options);
    assert!(error.kind() == kind && !error.is_transient(), "{options}: {error:?}");
    let all = format!("{error} {}", error.advice().unwrap_or_default());
    assert!(all.contains(text), "{options}: expected {text:?} in: {all}");
    error
}

#[test]
fn sslmode_on_a_server_with_tls() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version).tls().start();
        let stranger = Server::builder(version).tls().start();
        let root = format!("sslrootcert={}", server.ca_file().display());
        let wrong = format!("sslrootcert={}", stranger.ca_file().display());
        for (mode, encrypted) in [("disable", false), ("allow", false), ("prefer", true), ("require", true)] {
            assert_eq!(try_login(&server, &format!("sslmode={mode}")).expect(mode), encrypted, "{mode}");
        }
        assert!(try_login(&server, "").expect("prefer is the default"));
        for mode in ["require", "verify-ca", "verify-full", "prefer"] {
            assert!(try_login(&server, &format!("sslmode={mode} {root}")).expect(mode), "{mode}");
        }
        assert!(try_login(&server, &format!("sslmode=verify-full host=localhost {root}")).expect("a name"));
        // With a root file even `require` verifies; `prefer` then goes on without TLS, as libpq does.
        for mode in ["require", "verify-ca", "verify-full"] {
            refused(&server, &format!("sslmode={mode} {wrong}"), Kind::Server, "sslrootcert=FILE");
        }
        assert!(!try_login(&server, &format!("sslmode=prefer {wrong}")).expect("without TLS"));
        let other = "host=db.example.com hostaddr=127.0.0.1";
        assert!(try_login(&server, &format!("sslmode=verify-ca {other} {root}")).expect("the name does not matter"));
        refused(&server, &format!("sslmode=verify-full {other} {root}"), Kind::Server, "not for db.example.com");
        refused(&server, "sslmode=verify-ca", Kind::Usage, "sslrootcert=FILE");
        refused(&server, "sslmode=verify-full sslrootcert=/does/not/exist", Kind::Usage, "/does/not/exist");
        refused(&server, "sslrootcert=system", Kind::Server, "sslrootcert=FILE");
        for limits in ["ssl_min_protocol_version=TLSv1.3", "ssl_max_protocol_version=TLSv1.2"] {
            assert!(try_login(&server, &format!("sslmode=verify-full {root} {limits}")).expect(limits));
        }
        let direct = format!("sslmode=verify-full {root} sslnegotiation=direct");
        match version {
            MajorVersion::V18 => assert!(try_login(&server, &direct).expect("direct")),
            _ => assert!(try_login(&server, &direct).is_err()),
        }
    }
}

#[test]
fn sslmode_on_a_server_without_tls() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::start(version);
        for mode in ["disable", "allow", "prefer"] {
            assert!(!try_login(&server, &format!("sslmode={mode}")).expect(mode), "{mode}");
        }
        refused(&server, "sslmode=require", Kind::Server, "ssl=on");
        refused(&server, "sslmode=verify-full sslrootcert=/does/not/exist", Kind::Server, "ssl=on");
    }
}

#[test]
fn a_refusal_by_pg_hba_is_tried_again_with_the_other_protection() {
    for version in VERSIONS {
        require_servers!(version);
        let only_tls = Server::builder(version).tls().hba("hostnossl replication all all reject").start();
        for (mode, outcome) in
            [("allow", Some(true)), ("prefer", Some(true)), ("require", Some(true)), ("disable", None)]
        {
            assert_eq!(try_login(&only_tls, &format!("sslmode={mode}")).ok(), outcome, "{mode}");
        }
        let only_plain = Server::builder(version).tls().hba("hostssl replication all all reject").start();
        for (mode, outcome) in
            [("allow", Some(false)), ("prefer", Some(false)), ("require", None), ("disable", Some(false))]
        {
            assert_eq!(try_login(&only_plain, &format!("sslmode={mode}")).ok(), outcome, "{mode}");
        }
        refused(
            &only_plain,
            "sslmode=require",
            Kind::Server,
            "hostssl replication postgres 127.0.0.1/32 scram-sha-256",
        );
    }
}

#[test]
fn scram_with_and_without_channel_binding() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version).tls().auth(Auth::Scram("pass wörd'\\".into())).start();
        let password = r"password='pass wörd\'\\'";
        for options in [
            "sslmode=disable",
            "sslmode=require",
            "sslmode=require channel_binding=require",
            "sslmode=require channel_binding=disable",
            "sslmode=require channel_binding=require ssl_max_protocol_version=TLSv1.2",
        ] {
            let encrypted =
                try_login(&server, &format!("{options} {password}")).unwrap_or_else(|e| panic!("{options}: {e}"));
            assert_eq!(encrypted, options.contains("require"));
        }
        refused(&server, &format!("sslmode=disable channel_binding=require {password}"), Kind::Server, "not encrypted");
        refused(&server, "password=wrong", Kind::Server, "28P01");
        refused(&server, "", Kind::Server, ".pgpass");

        let temp = TempDir::new("pgpass");
        let file = temp.join("pass");
        let line = format!("127.0.0.1:{}:replication:postgres:pass wörd'\\\\\n", server.port());
        std::fs::write(&file, line).expect("write the password file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set its mode");
        let options = format!("passfile={}", file.display());
        assert!(try_login(&server, &options).expect("the password of the file"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("set its mode");
        refused(&server, &options, Kind::Server, ".pgpass");
    }
}

#[test]
fn md5_cleartext_and_trust() {
    for version in VERSIONS {
        require_servers!(version);
        for auth in [Auth::Md5("se:cret".into()), Auth::Clear("se:cret".into())] {
            let server = Server::builder(version).tls().auth(auth).start();
            assert!(try_login(&server, "password=se:cret").expect("the right password"));
            assert!(!try_login(&server, "password=se:cret sslmode=disable").expect("the right password"));
            refused(&server, "password=wrong", Kind::Server, "28P01");
            refused(&server, "", Kind::Server, "PGPASSWORD");
            refused(&server, "password=se:cret channel_binding=require", Kind::Server, "channel binding is required");
        }
        let server = Server::builder(version).tls().start();
        assert!(try_login(&server, "password=ignored").expect("trust"));
        refused(&server, "channel_binding=require", Kind::Server, "channel binding is required");
    }
}

fn socket_login(server: &Server, user: &str, mode: Mode) -> Result<Connection, Error> {
    run(connect(&server.conninfo(user), mode))
}

#[test]
fn peer_knows_the_user_of_the_operating_system() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version).hba("local replication all peer").start();
        let me = std::process::Command::new("id").arg("-un").output().expect("the name of the user").stdout;
        let me = String::from_utf8_lossy(&me).trim().to_owned();
        server.sql(&format!("create role \"{me}x\" login replication"));
        let error = socket_login(&server, &format!("{me}x"), Mode::Physical).err().expect("another user");
        assert!(error.advice().is_some_and(|hint| hint.contains("pg_ident.conf")), "{error:?}");
        server.sql(&format!(
            "do $$ begin create role \"{me}\" login replication; exception when duplicate_object then end $$"
        ));
        socket_login(&server, &me, Mode::Physical).expect("the same name");
    }
}

#[test]
fn advice_for_what_is_missing() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::start(version);
        server.sql("create role plain login");
        let hint = |user: &str, mode| {
            let error = socket_login(&server, user, mode).err().expect("a refusal");
            assert!(error.kind() == Kind::Server && !error.is_transient(), "{error:?}");
            error.advice().unwrap_or_default().to_owned()
        };
        assert!(hint("plain", Mode::Physical).contains("ALTER ROLE \"plain\" REPLICATION"));
        assert!(hint("plain", Mode::Database).contains("ALTER ROLE \"plain\" REPLICATION"));
        assert!(hint("nobody", Mode::Physical).contains("CREATE ROLE \"nobody\" LOGIN REPLICATION"));
        assert!(hint("postgres dbname=absent", Mode::Database).contains("dbname"));

        let few = Server::builder(version).setting("max_wal_senders", 1).start();
        let _first = socket_login(&few, "postgres", Mode::Physical).expect("the only place");
        let error = socket_login(&few, "postgres", Mode::Physical).err().expect("no place is left");
        assert!(error.is_transient() && error.advice().is_some_and(|h| h.contains("max_wal_senders")), "{error:?}");

        let minimal = Server::builder(version).setting("wal_level", "minimal").setting("max_wal_senders", 0).start();
        let error = socket_login(&minimal, "postgres", Mode::Physical).err().expect("no streaming");
        assert!(!error.is_transient() && error.advice().is_some_and(|h| h.contains("wal_level=replica")), "{error:?}");

        let logical = Server::builder(version).setting("max_replication_slots", 0).start();
        let error = run(async {
            let mut c = connect(&logical.conninfo("postgres"), Mode::Physical).await.expect("a connection");
            c.create_slot("a", false, true).await.expect_err("no slots")
        });
        assert!(error.advice().is_some_and(|h| h.contains("max_replication_slots")), "{error:?}");
    }
}

/// The line of the hint, put at the top of the file, lets us in.
#[test]
fn the_advised_line_of_pg_hba_admits_us() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version)
            .auth(Auth::Scram("secret".into()))
            .hba("host replication \"Mixed Name\" all reject")
            .hba("host postgres \"Mixed Name\" all reject")
            .start();
        let encryption = "set password_encryption = 'scram-sha-256'";
        server.sql(&format!("{encryption}; create role \"Mixed Name\" login replication password 'secret'"));
        let text = format!("host=127.0.0.1 port={} user='Mixed Name' password=secret", server.port());
        for mode in [Mode::Physical, Mode::Database] {
            let error = run(connect(&text, mode)).err().expect("a refusal");
            assert_eq!(error.kind(), Kind::Server);
            let hint = error.advice().unwrap_or_default().to_owned();
            let line = hint.rsplit(": ").next().expect("a line").to_owned();
            assert!(line.starts_with("host "), "{hint}");
            let path = server.data_dir().join("pg_hba.conf");
            let old = std::fs::read_to_string(&path).expect("read pg_hba.conf");
            std::fs::write(&path, format!("{line}\n{old}")).expect("write pg_hba.conf");
            server.sql("select pg_reload_conf()");
            crate::support::wait_for("the line to work", || run(connect(&text, mode)).ok());
        }
    }
}

/// Megabytes in one direction and status-sized messages in the other, through TLS of both versions.
#[test]
fn a_backup_and_a_stream_through_tls() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version).tls().start();
        for tls in ["TLSv1.2", "TLSv1.3"] {
            let root = server.ca_file().display();
            let limits = format!("ssl_min_protocol_version={tls} ssl_max_protocol_version={tls}");
            let text = format!("{} sslmode=verify-full sslrootcert={root} {limits}", server.conninfo_tcp("postgres"));
            run(async {
                let mut c = connect(&text, Mode::Physical).await.expect("a session");
                // Keeps the WAL that the backup's checkpoint would let go.
                let slot = if tls == "TLSv1.2" { "tls_12" } else { "tls_13" };
                c.create_slot(slot, true, true).await.expect("a slot");
                let start = c.identify_system().await.expect("identity").position.align_down(1 << 20);
                let label = String::from("tls");
                let options = BaseBackupOptions { label, fast_checkpoint: true, manifest: true, ..Default::default() };
                c.base_backup(&options).await.expect("a backup");
                let mut size = 0;
                loop {
                    match c.next_backup_event().await.expect("an event") {
                        BackupEvent::Data(bytes) => size += bytes.len(),
                        BackupEvent::Complete => break,
                        _ => {}
                    }
                }
                assert!(size > 10 << 20, "{size} bytes");
                let end = server.lsn().align_down(8192);
                c.start_replication(None, start, TimelineId(1)).await.expect("a stream");
                let mut position = start;
                while position < end {
                    if let StreamEvent::Data { start, bytes, .. } = c.next_event().await.expect("an event") {
                        assert_eq!(start, position);
                        position = position + bytes.len() as u64;
                        let status =
                            Status { written: position, flushed: start, applied: start, reply_requested: true };
                        c.send_status(status, std::time::Duration::from_secs(5)).await.expect("a status");
                    }
                }
                c.end_stream(std::time::Duration::from_secs(10)).await.expect("the end of the stream");
            });
        }
    }
}
