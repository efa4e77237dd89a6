//! A failover to a standby whose `restore_command` is `wal-fetch`: it replays what only the archive has, and keeps what only it has. No acknowledged row is lost,
//! whichever of the two was further when the primary died.

use rustix::process::Signal;
use walrecv::pg::{Lsn, MajorVersion};

use crate::site::{SLOT, Site, end};
use crate::support::ledger::missing;
use crate::support::server::Stop;
use crate::support::walrecv::{Running, path};
use crate::support::{Ledger, Server, install, wait_for};

/// Where the archive stands beside the standby when the primary dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Archive {
    Ahead,
    Level,
    Behind,
}

/// How the standby becomes the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promotion {
    /// Once it has asked the archive after the primary was gone: a promotion that arrives while a copy from before is replayed ends recovery with that copy.
    Running,
    AfterRestart,
}

/// A primary for which every commit waits for walrecv or the standby, whichever is first.
struct Pair {
    primary: Server,
    standby: Server,
    site: Site,
    receiver: Running,
}

impl Pair {
    fn new(version: MajorVersion) -> Pair {
        let site = Site::empty();
        let primary = Server::builder(version)
            .setting("wal_log_hints", "on")
            .setting("wal_keep_size", "200MB")
            .setting("restore_command", restore_command(&site))
            .start();
        primary.sql("create table ledger (id bigint primary key, filler text not null)");
        let standby = primary
            .standby()
            .setting("cluster_name", "s2")
            .setting("wal_log_hints", "on")
            .setting("wal_keep_size", "200MB")
            .setting("wal_retrieve_retry_interval", "200ms")
            .setting("restore_command", restore_command(&site))
            .start();
        let both = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres sslmode=disable target_session_attrs=primary",
            primary.port(),
            standby.port()
        );
        site.init(&both).args(["--slot", SLOT, "--create-slot"]).run().expect_code(0);
        standby.sql(&format!("select pg_create_physical_replication_slot('{SLOT}', true)"));
        let receiver = site.receive(&["--flush-interval", "0"]);
        set(&primary, "synchronous_standby_names", "ANY 1 (walrecv, s2)");
        primary.wait_sql("select count(*) from pg_stat_replication where sync_state = 'quorum'", "2");
        Pair { primary, standby, site, receiver }
    }

    /// Brings archive and standby to where they shall stand, with more commits that only one of them is told of; then the primary dies under load.
    fn lose_primary(&mut self, archive: Archive, ledger: &Ledger) {
        match archive {
            Archive::Level => ledger.wait_for_more(200),
            Archive::Ahead => {
                // It would fetch from the archive at once: what it has is to stay behind until the primary is gone.
                set(&self.standby, "wal_retrieve_retry_interval", "1h");
                set(&self.standby, "primary_conninfo", "");
                self.standby.wait_sql("select count(*) from pg_stat_wal_receiver", "0");
                ledger.wait_for_more(200);
                assert!(self.standby.lsn() < flushed(&self.primary, "walrecv"), "the archive is to be ahead");
            }
            Archive::Behind => {
                self.receiver.signal(Signal::STOP);
                ledger.wait_for_more(200);
                let (walrecv, s2) = (flushed(&self.primary, "walrecv"), flushed(&self.primary, "s2"));
                assert!(walrecv < s2, "the archive is to be behind: {walrecv}, {s2}");
            }
        }
        self.primary.kill9();
        if archive == Archive::Behind {
            self.receiver.signal(Signal::CONT);
        }
    }

    /// What a person does before promoting a standby that may be behind the archive: waits until it has replayed what `walrecv status` says is durable.
    fn catch_up_with(&self, archive: Archive) {
        if archive != Archive::Ahead {
            return;
        }
        set(&self.standby, "wal_retrieve_retry_interval", "200ms");
        let status = self.site.walrecv(&["status", "--output", "json"]).run().json();
        let durable = status["clusters"][0]["positions"]["durable"].as_str().expect("a position").parse::<Lsn>();
        let durable = durable.expect("an LSN");
        let replayed = || (self.standby.lsn() >= durable).then_some(());
        wait_for(&format!("the standby to replay up to {durable}"), replayed);
    }
}

/// As a person writes it into postgresql.conf.
fn restore_command(site: &Site) -> String {
    format!("{} --config {} wal-fetch %f %p", path().display(), site.config().display())
}

/// ALTER SYSTEM and reload, until it is in force.
fn set(server: &Server, name: &str, value: &str) {
    server.sql(&format!("alter system set {name} = '{value}'"));
    server.sql("select pg_reload_conf()");
    server.wait_sql(&format!("select setting <> '' or '{value}' = '' from pg_settings where name = '{name}'"), "t");
}

/// What a standby has reported to the primary.
fn flushed(primary: &Server, name: &str) -> Lsn {
    let sql = format!("select max(flush_lsn) from pg_stat_replication where application_name = '{name}'");
    primary.sql(&sql).parse().unwrap_or_default()
}

fn failover(version: MajorVersion, archive: Archive, promotion: Promotion) {
    let mut pair = Pair::new(version);
    let ledger = Ledger::builder().writers(3).start(&pair.primary);
    pair.lose_primary(archive, &ledger);
    let told = ledger.stop();
    assert!(told.len() >= 200);
    match promotion {
        Promotion::Running => pair.catch_up_with(archive),
        Promotion::AfterRestart => {
            pair.standby.stop(Stop::Fast);
            pair.standby.start_again();
        }
    }
    pair.standby.promote();
    let lost = missing(&told, &pair.standby);
    assert!(lost.is_empty(), "{version}, archive {archive:?}, {promotion:?}: {} of {} lost", lost.len(), told.len());
    println!("PostgreSQL {version}: archive {archive:?}, promoted {promotion:?}: {} commits, none lost", told.len());
    end(pair.receiver);
}

/// Promoted while it runs and after a restart, on the usual version of each.
fn failovers(archive: Archive, usual: [MajorVersion; 2]) {
    for (promotion, usual) in [Promotion::Running, Promotion::AfterRestart].into_iter().zip(usual) {
        install::story_versions(&[usual]).into_iter().for_each(|version| failover(version, archive, promotion));
    }
}

#[test]
fn a_standby_behind_the_archive_replays_what_only_the_archive_has() {
    failovers(Archive::Ahead, [MajorVersion::V18, MajorVersion::V13]);
}

#[test]
fn a_standby_level_with_the_archive_keeps_everything() {
    failovers(Archive::Level, [MajorVersion::V13, MajorVersion::V18]);
}

#[test]
fn a_standby_ahead_of_the_archive_keeps_what_only_it_has() {
    failovers(Archive::Behind, [MajorVersion::V18, MajorVersion::V13]);
}

/// There and back: the old primary is rewound, follows the new one through the archive, and is promoted when that one dies.
#[test]
fn a_rewound_primary_comes_back_with_every_row() {
    install::story_versions(&[MajorVersion::V17]).into_iter().for_each(rewound_and_back);
}

fn rewound_and_back(version: MajorVersion) {
    let mut pair = Pair::new(version);
    let ledger = Ledger::builder().writers(3).start(&pair.primary);
    pair.lose_primary(Archive::Ahead, &ledger);
    let mut told = ledger.stop();
    pair.catch_up_with(Archive::Ahead);
    pair.standby.promote();
    assert_eq!(missing(&told, &pair.standby), []);

    // walrecv finds the new primary by itself, and every commit waits for it alone.
    let streams = "select count(*) from pg_stat_replication where application_name = 'walrecv' and state = 'streaming'";
    pair.standby.wait_sql(streams, "1");
    set(&pair.standby, "synchronous_standby_names", "walrecv");
    rewind(&mut pair);
    let second = Ledger::builder().writers(3).first_id(1_000_000).start(&pair.standby);
    second.wait_for_more(100);
    pair.primary.wait_sql("select count(*) > 0 from ledger where id > 1000000", "t");
    // Cut off from its new upstream: the rest it has from the archive alone.
    set(&pair.primary, "primary_conninfo", "");
    pair.primary.wait_sql("select count(*) from pg_stat_wal_receiver", "0");
    second.wait_for_more(100);
    pair.standby.kill9();
    told.extend(second.stop());
    // A restart asks the archive for all that it has.
    pair.primary.stop(Stop::Fast);
    pair.primary.start_again();
    pair.primary.promote();
    let lost = missing(&told, &pair.primary);
    assert!(lost.is_empty(), "{} of {} lost", lost.len(), told.len());
    end(pair.receiver);
}

/// `pg_rewind` of the killed primary to the promoted standby, with WAL that it lacks from the archive; then it starts as a standby.
fn rewind(pair: &mut Pair) {
    let data = pair.primary.data_dir().to_path_buf();
    // Up to 15 pg_rewind goes by the timeline of the last checkpoint: without one since the promotion it finds nothing to do.
    pair.standby.sql("checkpoint");
    // It was killed: pg_rewind lets it recover first, which must not end in an open server that waits for standbys.
    let mut command = pair.primary.bin("pg_rewind");
    let source = pair.standby.conninfo("postgres");
    command.arg("--target-pgdata").arg(&data).arg("--source-server").arg(&source);
    let output = command.args(["--restore-target-wal", "--no-sync"]).output().expect("run pg_rewind");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("no rewind required"), "pg_rewind: {said}");
    let own = [
        ("primary_conninfo", source.as_str()),
        ("restore_command", &restore_command(&pair.site)),
        ("recovery_target_timeline", "latest"),
        ("wal_retrieve_retry_interval", "200ms"),
        ("synchronous_standby_names", ""),
    ];
    let own: String = own.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
    std::fs::write(data.join("postgresql.auto.conf"), own).expect("write postgresql.auto.conf");
    std::fs::write(data.join("standby.signal"), "").expect("write standby.signal");
    crate::support::user::give_to_postgres(&data.join("standby.signal"));
    wait_for("the rewound server to start", || pair.primary.try_start_again().ok());
}
