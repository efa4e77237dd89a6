//! `walrecv check` explains: each thing that is missing has its own line, and that line says what to do.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use walrecv::net::{Connection, Conninfo, Mode};
use walrecv::pg::MajorVersion;

use crate::refusals::write;
use crate::site::{SLOT, Site, end, wait_durable};
use crate::support::{Auth, Server, require_servers};

const VERSIONS: [MajorVersion; 3] = [MajorVersion::V13, MajorVersion::V15, MajorVersion::V18];

/// Verdict, and text with advice, of each check.
type Findings = BTreeMap<String, (String, String)>;

/// Runs it as JSON; the exit code must be `code`.
#[track_caller]
fn check(site: &Site, code: i32) -> Findings {
    let output = site.walrecv(&["check", "--output", "json"]).run();
    assert_eq!(output.code(), code, "{}{}", output.stdout, output.stderr);
    let json: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON on standard output");
    let text = |finding: &serde_json::Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let findings = json["findings"].as_array().expect("findings").iter();
    findings
        .map(|f| (text(f, "check"), (text(f, "verdict"), format!("{} → {}", text(f, "found"), text(f, "advice")))))
        .collect()
}

#[track_caller]
fn says(findings: &Findings, check: &str, verdict: &str, words: &str) {
    let (found, text) = findings.get(check).unwrap_or_else(|| panic!("no {check:?} in {findings:#?}"));
    assert!(found == verdict && text.contains(words), "{check}: expected {verdict}, {words:?}, found {found}: {text}");
}

/// The configuration now says `dsn`.
pub fn point_to(site: &Site, dsn: &str) {
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let line = |l: &str| if l.starts_with("dsn = ") { format!("dsn = \"{dsn}\"\n") } else { format!("{l}\n") };
    write(&site.config(), &config.lines().map(line).collect::<String>());
}

#[test]
fn a_server_that_is_in_order_before_and_after_first_use() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version).setting("max_slot_wal_keep_size", "1GB").start();
        let site = Site::new(&server);
        let before = check(&site, 0);
        for name in [
            "repository",
            "keys to write",
            "keys to restore",
            "repository can be written",
            "objects are created once",
            "speed of the repository",
            "clock of the storage",
            "replication connection",
            "database connection",
            "encryption",
            "authentication",
            "grants",
            "clock of the server",
            "wal_level",
            "max_wal_senders",
            "max_replication_slots",
            "wal_sender_timeout",
            "synchronous standby",
            "synchronous_commit",
            "full_page_writes",
            "fsync",
            "wal_compression",
            "archive_mode",
        ] {
            says(&before, name, "ok", "");
        }
        says(&before, "server", "ok", &format!("primary, PostgreSQL {version}"));
        says(&before, "objects are created once", "ok", "refused");
        says(&before, "max_wal_senders", "ok", "10, 0 of them in use");
        says(&before, "max_slot_wal_keep_size", "ok", "1GB");
        says(&before, "slot", "warn", "not in use");
        says(&before, "archive", "warn", "walrecv receive");
        // initdb of 18 switches them on.
        let checksums = if version >= MajorVersion::V18 { "ok" } else { "warn" };
        says(&before, "data_checksums", checksums, "");
        assert_eq!(before.contains_key("idle_replication_slot_timeout"), version >= MajorVersion::V18);
        assert!(before.contains_key("space of the repository"));
        assert_eq!(before.contains_key("summarize_wal"), version >= MajorVersion::V17);
        assert!(!site.repository().join("probe").exists(), "the probes are gone");

        let receiver = site.receive(&[]);
        server.sql("create table t as select 1");
        wait_durable(&server, server.lsn());
        let running = check(&site, 0);
        says(&running, "slot", "ok", "in use by process");
        says(&running, "max_wal_senders", "ok", "10, 2 of them in use");
        says(&running, "same cluster", "ok", "");
        says(&running, "archive", "ok", "timeline 1 is stored up to");
        says(&running, "backups", "warn", "walrecv backup");
        end(receiver);
        let text = site.walrecv(&["check"]).run().expect_code(0).stdout;
        assert!(text.contains("warn  slot ") && text.contains("→ start `walrecv receive`"), "{text}");
        assert!(text.contains(" failed\n"), "{text}");
        if version == VERSIONS[0] {
            wal_that_nobody_takes(&site, &server);
            keys_that_others_can_read(&site);
            keys_that_are_not_there(&site);
        }
    }
}

/// More than a segment.
fn wal_that_nobody_takes(site: &Site, server: &Server) {
    for n in 0..3 {
        server.sql(&format!("create table more{n} as select 1"));
        server.switch_wal();
    }
    says(&check(site, 0), "archive", "warn", "whoever uses the slot");
}

fn keys_that_others_can_read(site: &Site) {
    assert!(!check(site, 0).contains_key("mode of key files"));
    let identity = site.etc().join("walrecv-identity.txt");
    let set = |mode| std::fs::set_permissions(&identity, Permissions::from_mode(mode)).expect("set the mode");
    set(0o640);
    let open = check(site, 0);
    says(&open, "mode of key files", "warn", "walrecv-identity.txt can be read by others: its mode is 0640");
    says(&open, "mode of key files", "warn", "chmod 0600");
    set(0o600);
}

fn keys_that_are_not_there(site: &Site) {
    let config = std::fs::read_to_string(site.config()).expect("a configuration");
    let key = site.etc().join("walrecv-identity.txt");
    std::fs::rename(&key, site.etc().join("away")).expect("the private key");
    says(&check(site, 12), "keys to restore", "fail", "private key");
    let without: String =
        config.lines().filter(|l| !l.starts_with("identity_file")).map(|l| format!("{l}\n")).collect();
    write(&site.config(), &without);
    says(&check(site, 0), "keys to restore", "warn", "no private key is configured");
    // The folder of an identity is no key.
    for folder in
        std::fs::read_dir(site.repository().join("keys")).expect("keys").map(|folder| folder.expect("a folder").path())
    {
        for file in std::fs::read_dir(folder).expect("files").map(|file| file.expect("a file").path()) {
            std::fs::remove_file(file).expect("a key file");
        }
    }
    let refused = site.walrecv(&["check"]).run().expect_code(12).stderr;
    assert!(refused.contains("no key file of the configured identity"), "{refused}");
}

#[test]
fn lines_of_pg_hba_and_grants_that_are_missing() {
    for version in VERSIONS {
        require_servers!(version);
        let server = Server::builder(version)
            .auth(Auth::Scram("secret".into()))
            .hba("host postgres nosql all reject")
            .hba("host replication nophysical all reject")
            .hba("host all nothing all reject")
            .hba("host replication nothing all reject")
            .start();
        let site = Site::new(&server);
        for role in ["nosql replication", "nophysical replication", "nothing replication", "plain"] {
            let encryption = "set password_encryption = 'scram-sha-256'";
            server.sql(&format!("{encryption}; create role {role} login password 'secret'"));
        }
        let dsn = |role: &str| format!("{} password=secret", server.conninfo_tcp(role));
        // No SQL: what that costs, and the line that is missing.
        point_to(&site, &dsn("nosql"));
        let found = check(&site, 0);
        says(&found, "replication connection", "ok", "as nosql");
        says(&found, "database connection", "warn", "host postgres nosql 127.0.0.1/32 scram-sha-256");
        says(&found, "database connection", "warn", "whether the slot is lost");
        says(&found, "authentication", "ok", "scram-sha-256");
        says(&found, "max_wal_senders", "ok", "takes SQL to see");
        match version >= MajorVersion::V15 {
            true => says(&found, "slot", "ok", "its state takes SQL to see"),
            false => says(&found, "slot", "warn", "by SQL alone"),
        }
        assert!(!found.contains_key("grants") && !found.contains_key("clock of the server"));
        // No stream: the line, and everything else all the same.
        point_to(&site, &dsn("nophysical"));
        let found = check(&site, 17);
        says(&found, "replication connection", "fail", "host replication nophysical 127.0.0.1/32 scram-sha-256");
        says(&found, "database connection", "ok", "");
        says(&found, "grants", "warn", "GRANT pg_monitor TO \"nophysical\"");
        says(&found, "slot", "warn", "not in use");
        server.sql("grant pg_monitor to nophysical");
        says(&check(&site, 17), "grants", "ok", "pg_monitor");
        // Neither: both lines at once.
        point_to(&site, &dsn("nothing"));
        let found = check(&site, 17);
        says(&found, "replication connection", "fail", "host replication nothing");
        says(&found, "database connection", "fail", "host postgres nothing");
        // A role without the right.
        point_to(&site, &dsn("plain"));
        says(&check(&site, 17), "replication connection", "fail", "ALTER ROLE \"plain\" REPLICATION");
    }
}

#[test]
fn servers_that_are_set_up_for_something_else() {
    for version in VERSIONS {
        require_servers!(version);
        // Without walsenders nobody can even ask.
        let minimal = Server::builder(version).setting("wal_level", "minimal").setting("max_wal_senders", 0).start();
        let server = Server::builder(version)
            .setting("max_wal_senders", 4)
            .setting("full_page_writes", "off")
            .setting("fsync", "off")
            .setting("archive_mode", "on")
            .setting("archive_command", "false")
            .start();
        let mut site = Site::new(&server);
        point_to(&site, &minimal.conninfo("postgres"));
        says(&check(&site, 17), "replication connection", "fail", "wal_level=replica");
        point_to(&site, &server.conninfo("postgres"));
        if version >= MajorVersion::V18 {
            server.sql("alter system set idle_replication_slot_timeout = '2h'");
            server.sql("select pg_reload_conf()");
            server.wait_sql("show idle_replication_slot_timeout", "2h");
        }
        server.switch_wal();
        server.wait_sql("select failed_count > 0 from pg_stat_archiver", "t");
        let found = check(&site, 0);
        says(&found, "full_page_writes", "warn", "torn pages");
        says(&found, "fsync", "warn", "fsync = on");
        says(&found, "max_slot_wal_keep_size", "warn", "the server's disk is full");
        says(&found, "archive_mode", "warn", "mend archive_command");
        if version >= MajorVersion::V18 {
            says(&found, "idle_replication_slot_timeout", "warn", "2h");
        }
        full(&mut site, &server);
    }
}

/// Walsenders run out: for a backup, for the second connection, for the first.
fn full(site: &mut Site, server: &Server) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let info = Conninfo::parse(&server.conninfo("postgres"), &|_| None).expect("a connection string");
    let hold = || runtime.block_on(Connection::connect(&info, Mode::Physical, "")).expect("a connection");
    let mut held = vec![hold(), hold()];
    let advice = "a stream takes two, a backup one more";
    says(&check(site, 0), "max_wal_senders", "warn", &format!("4, 2 of them in use → {advice}"));
    held.push(hold());
    let found = check(site, 0);
    says(&found, "database connection", "warn", "raise max_wal_senders");
    held.push(hold());
    says(&check(site, 17), "replication connection", "fail", "raise max_wal_senders");
}

#[test]
fn a_standby_is_told_apart_and_passed_over_where_a_primary_is_wanted() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::builder(version).tls().setting("synchronized_standby_slots", SLOT).start();
    let site = Site::new(&server);
    let standby = server.standby().start();
    standby.sql(&format!("select pg_create_physical_replication_slot('{SLOT}', true)"));
    point_to(&site, &standby.conninfo("postgres"));
    let found = check(&site, 0);
    says(&found, "server", "ok", "standby, PostgreSQL 17");
    says(&found, "synchronous standby", "ok", "the server is a standby");
    let hosts = format!("host=127.0.0.1,127.0.0.1 port={},{} user=postgres", standby.port(), server.port());
    point_to(&site, &format!("{hosts} target_session_attrs=read-write"));
    let found = check(&site, 0);
    says(&found, "server", "ok", "primary, PostgreSQL 17");
    says(&found, "replication connection", "ok", &format!(":{}", server.port()));
    says(&found, "encryption", "ok", "TLSv1.3, ");
    says(&found, "synchronized_standby_slots", "warn", SLOT);
    let root = server.ca_file().display();
    point_to(&site, &format!("{hosts} target_session_attrs=primary sslmode=verify-full sslrootcert={root}"));
    says(&check(&site, 0), "encryption", "ok", "certificate and name are verified");
    // Nobody is what is wanted: every host is named.
    point_to(
        &site,
        &format!("host=127.0.0.1,127.0.0.1 port=1,{} user=postgres target_session_attrs=standby", server.port()),
    );
    let found = check(&site, 17);
    says(&found, "replication connection", "fail", "is a primary");
    says(&found, "replication connection", "fail", "127.0.0.1:1 as postgres: cannot connect");
}

/// The repository cannot be used, and the server is explained all the same.
#[test]
fn a_repository_that_is_away_does_not_hide_the_server() {
    let version = MajorVersion::V15;
    require_servers!(version);
    let server = Server::start(version);
    let site = Site::new(&server);
    let aside = site.places.join("aside");
    std::fs::rename(site.repository(), &aside).expect("move the repository away");
    let begun = std::time::Instant::now();
    let found = check(&site, 10);
    assert!(begun.elapsed() < Duration::from_secs(20));
    says(&found, "repository", "fail", &site.repository().display().to_string());
    says(&found, "server", "ok", "primary");
    says(&found, "slot", "warn", SLOT);
}
