//! The WAL of a backup: of the server that was backed up, and durable, or there is no backup.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use walrecv::archive::Archive;
use walrecv::backup::{BackupOptions, WalWatch, take};
use walrecv::error::{Kind, Result};
use walrecv::pg::{Lsn, MajorVersion, SegmentName, TimelineId};
use walrecv::repo::Repository;

use super::backup::Fixture;
use super::net::{conninfo, run};
use super::receive::harness::{self, Receiving, Vault};
use crate::support::server::Held;
use crate::support::{Call, HookedDisk, Server, Stop, require_servers};

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(status.success());
}

/// The archive has all positions that the backup of a server needs which was set back, but from another history: in complete segments, or in a tail.
#[test]
fn a_server_that_was_set_back_gives_no_backup() {
    require_servers!(MajorVersion::V16);
    for lost in [
        "insert into t select i, repeat('first history', 10) from generate_series(1, 30000) i",
        "do $$ begin perform pg_switch_wal(); insert into t select i, 'first history' from generate_series(1, 2000) i; end $$",
    ] {
        let mut server = Server::builder(MajorVersion::V16).setting("autovacuum", "off").start();
        harness::create_slot(&server);
        server.sql("create table t (id int, filler text)");
        let vault = Vault::new();
        let options = harness::options(&server);
        let receiving = Receiving::start(options.clone(), vault.place());
        harness::wait_acknowledged(&server, server.lsn());
        receiving.stop();
        server.stop(Stop::Fast);
        let saved = vault.temp.join("../").join(format!("walrecv-set-back-{}-{}", std::process::id(), lost.len()));
        copy(server.data_dir(), &saved);
        server.start_again();
        let receiving = Receiving::start(options, vault.place());
        receiving.wait_streaming();
        server.sql(lost);
        harness::wait_acknowledged(&server, server.lsn());
        let place = vault.place();
        // As every writer sees it: without the identity.
        let archive = Archive { keys: place.reader.clone(), ..vault.archive(&server) };
        let target = conninfo(&server.conninfo("postgres"));
        let backup = |options| run(take(&archive, place.writer.clone(), &target, &options));
        let good = backup(BackupOptions::default()).expect("a backup of the first history");
        harness::wait_acknowledged(&server, good.manifest.stop);
        server.sql("insert into t select i, 'and more' from generate_series(1, 1000) i");
        harness::wait_acknowledged(&server, server.lsn());
        receiving.stop();
        server.stop(Stop::Fast);
        std::fs::remove_dir_all(server.data_dir()).expect("remove the data");
        copy(&saved, server.data_dir());
        std::fs::remove_dir_all(&saved).expect("remove the copy");
        server.start_again();
        server.sql("insert into t values (2, 'another history')");
        let stalled = BackupOptions { wal_stall: Duration::from_secs(5), ..BackupOptions::default() };
        let error = backup(stalled).expect_err("no backup of another history");
        assert_eq!(error.kind(), Kind::Diverged, "{error}");
        assert!(error.to_string().contains("holds other WAL"), "{error}");
        let list = run(archive.list_backups()).expect("a list");
        assert_eq!((list.complete.len(), list.given_up.len()), (1, 1), "{list:?}");
    }
}

/// A primary that has just switched to its next segment and writes nothing more, and a standby that has replayed that.
struct AtSwitch {
    _quiet: Held,
    primary: Server,
    standby: Server,
    switched: Lsn,
}

impl AtSwitch {
    fn begin(segment_mb: u32) -> AtSwitch {
        let builder = Server::builder(MajorVersion::V16).setting("autovacuum", "off").setting("wal_keep_size", "256MB");
        let primary = builder.segment_size_mb(segment_mb).start();
        harness::create_slot(&primary);
        let standby = primary.standby().setting("hot_standby", "on").start();
        primary.sql("create table t (id int)");
        primary.sql("checkpoint");
        // It says now and then which transactions run.
        let _quiet = primary.hold("select pid from pg_stat_activity where backend_type = 'background writer'");
        primary.sql("insert into t values (1)");
        let switched: Lsn = primary.sql("select pg_switch_wal()").parse().expect("a position");
        standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{switched}'"), "t");
        AtSwitch { _quiet, primary, standby, switched }
    }

    /// Receives what the primary has by then, to be seen as by every writer: without the identity.
    fn received(&self, vault: &Vault) -> Archive {
        let archive = vault.archive(&self.primary);
        let size = archive.names.segment_size;
        let receiving = Receiving::start(harness::options(&self.primary), vault.place());
        harness::wait_acknowledged(&self.primary, size.segment_before(self.switched).end(size));
        receiving.stop();
        Archive { keys: vault.place().reader, ..archive }
    }
}

/// A standby may have replayed a switch before the zeros behind it came, and has in their place what its file held before. In a large segment that may be all of
/// the object that the backup ends in.
#[test]
fn what_a_standby_has_behind_a_switch_is_no_other_history() {
    require_servers!(MajorVersion::V16);
    for segment_mb in [16, 64] {
        let (servers, vault) = (AtSwitch::begin(segment_mb), Vault::new());
        let archive = servers.received(&vault);
        let (standby, switched) = (&servers.standby, servers.switched);
        let size = archive.names.segment_size;
        let number = size.segment_before(switched);
        let name = SegmentName::new(TimelineId(1), number, size).to_string();
        let file = std::fs::OpenOptions::new().write(true).open(standby.data_dir().join("pg_wal").join(name));
        let left = size.bytes() - size.offset_of(switched);
        let older = vec![0x5A; left as usize];
        file.expect("its file").write_all_at(&older, size.offset_of(switched)).expect("write what it held before");

        let target = conninfo(&standby.conninfo("postgres"));
        let taken = run(take(&archive, vault.place().writer, &target, &BackupOptions::default())).expect("a backup");
        assert_eq!(size.segment_before(taken.manifest.stop), number, "it ends there: {}", taken.manifest.stop);
    }
}

/// The end of the segment is zeros whoever left it: the record before them tells.
#[test]
fn zeros_behind_a_switch_do_not_make_another_history_the_same() {
    require_servers!(MajorVersion::V16);
    let (one, vault) = (AtSwitch::begin(64), Vault::new());
    let archive = one.received(&vault);
    let other = AtSwitch::begin(64);
    let target = conninfo(&other.standby.conninfo("postgres"));
    let stalled = BackupOptions { wal_stall: Duration::from_secs(5), ..BackupOptions::default() };
    let error = run(take(&archive, vault.place().writer, &target, &stalled)).expect_err("another server's WAL");
    assert!(error.kind() == Kind::Diverged && error.to_string().contains("holds other WAL"), "{error}");
}

/// A receiver that has written what the backup needs, and has not synced it yet.
struct Unsynced {
    archive: Archive,
    root: PathBuf,
    /// How often the end was asked for, and what was written.
    asked: Mutex<(u32, Vec<PathBuf>)>,
}

impl WalWatch for Unsynced {
    fn durable_end(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        let mut asked = self.asked.lock().expect("a lock");
        asked.0 += 1;
        if asked.0 == 2 {
            let names = &self.archive.names;
            let segment = SegmentName::new(timeline, names.segment_size.segment_of(from), names.segment_size);
            for name in [names.segment(segment, None), names.tail_open(segment, "0123456789abcdef")] {
                let path = self.root.join(name);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
                std::fs::write(&path, "WAL").expect("write a file");
                asked.1.push(path);
            }
        }
        Box::pin(async { Ok(Some(Lsn(u64::MAX))) })
    }
}

#[test]
fn what_was_seen_of_wal_is_synced_before_the_backup_counts() {
    require_servers!(MajorVersion::V17);
    let server = Server::start(MajorVersion::V17);
    let mut fixture = Fixture::new(&server);
    let (root, calls) = (fixture.places.join("repository"), Arc::new(Mutex::new(Vec::new())));
    let noted = calls.clone();
    let watched = HookedDisk::new(move |call| {
        noted.lock().expect("a lock").push(call);
        Ok(())
    });
    fixture.archive.repo = Repository::in_directory(root.clone(), Arc::new(watched));
    let watch = Unsynced { archive: fixture.archive.clone(), root: root.clone(), asked: Mutex::new((0, Vec::new())) };
    let outcome = fixture.take(&server, &BackupOptions::default(), &watch).expect("a backup");
    let calls = calls.lock().expect("a lock").clone();
    let manifest = root.join(fixture.archive.names.backup(outcome.manifest.id.as_str()));
    let counts = calls.iter().position(|call| *call == Call::Link(manifest.clone())).expect("a manifest");
    let (asked, written) = &*watch.asked.lock().expect("a lock");
    assert_eq!(written.len(), 2);
    for path in written {
        let first = calls.iter().position(|call| *call == Call::Sync(path.clone()));
        let first = first.unwrap_or_else(|| panic!("{} is not synced", path.display()));
        for above in path.ancestors().take_while(|above| above.starts_with(&root)) {
            let synced = calls[first..counts].contains(&Call::Sync(above.to_path_buf()));
            assert!(synced, "{} is not synced before the manifest", above.display());
        }
    }
    // What was seen before it was synced is looked at again.
    assert!(*asked >= 3, "asked {asked} times");
}
