//! The worst day: the database's host and walrecv's process are gone at once, and only the repository and the keys are left.

use std::time::Duration;

use rustix::process::Signal;
use walrecv::pg::MajorVersion;

use super::site::{Site, wait_durable};
use crate::support::{Ledger, Seed, Server, require_moto, require_servers};

const WRITERS: usize = 3;

/// Everything that a client was told of is in the restored server, where commits waited for the repository.
fn restored(version: MajorVersion, bucket: Option<&str>) {
    let mut seed = Seed::of_run();
    let mut server = Server::builder(version).setting("max_wal_size", "1GB").start();
    let site = match bucket {
        Some(name) => Site::in_bucket(&server, name),
        None => Site::new(&server),
    };
    let receiver = site.receive(&[]);
    site.backup();
    server.sql("create table ledger (id bigint primary key, filler text not null)");
    server.sql("alter system set synchronous_standby_names = 'walrecv'");
    server.sql("select pg_reload_conf()");
    super::site::end(receiver);
    let ledger = Ledger::builder().writers(WRITERS).padding(300).start(&server);
    // Commits wait once the checkpointer has read the setting, whenever that is; what is answered before may be lost. From here on all of them do.
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    server.wait_sql(waiting, &WRITERS.to_string());
    // Read at its start: it flushes at every commit.
    let receiver = site.receive(&[]);
    ledger.wait_for_more(50);
    wait_durable(&server, server.lsn());
    std::thread::sleep(Duration::from_millis(seed.below(1000)));
    if seed.below(2) == 0 {
        receiver.kill();
        server.kill9();
    } else {
        server.signal(Signal::STOP);
        receiver.kill();
        server.kill9();
    }
    let entries = ledger.stop();
    std::fs::remove_dir_all(server.data_dir()).expect("lose the data");
    let copy = site.land(&server, "restored", &["--latest"]);
    let found = copy.value("select string_agg(id::text, ',') from ledger");
    let found: std::collections::HashSet<u64> = found.split(',').map(|id| id.parse().expect("an id")).collect();
    let lost: Vec<_> = entries.iter().filter(|e| !found.contains(&e.id)).collect();
    println!("{} commits were answered, {} rows restored", entries.len(), found.len());
    assert!(lost.is_empty(), "lost {lost:?} of {}", entries.len());
}

#[test]
fn nothing_answered_is_missing_after_a_restore_from_a_directory() {
    require_servers!(MajorVersion::V17);
    restored(MajorVersion::V17, None);
}

#[test]
fn nothing_answered_is_missing_after_a_restore_from_a_bucket() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    restored(MajorVersion::V18, Some("disaster"));
}
