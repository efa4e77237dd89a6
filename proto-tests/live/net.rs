//! Connections of walrecv to real servers: commands, streams, backups, endings.

use std::future::Future;
use std::time::Duration;

use walrecv::error::{Error, Kind};
use walrecv::net::{Connection, Conninfo, Mode, Started};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::wire::command::{BackupEvent, BaseBackupOptions};
use walrecv::wire::message::{Status, StreamEvent};

use crate::support::server::{Server, Stop};
use crate::support::{PATIENCE, install};

pub fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("a test that ends") })
}

pub fn conninfo(text: &str) -> Conninfo {
    Conninfo::parse(text, &|_| None).unwrap_or_else(|error| panic!("{text}: {error}"))
}

pub async fn connect(text: &str, mode: Mode) -> Result<Connection, Error> {
    Connection::connect(&conninfo(text), mode, "").await
}

async fn open(server: &Server, mode: Mode) -> Connection {
    connect(&server.conninfo("postgres"), mode).await.expect("a connection")
}

fn status(lsn: Lsn) -> Status {
    Status { written: lsn, flushed: lsn, applied: lsn, reply_requested: false }
}

async fn next(connection: &mut Connection) -> StreamEvent {
    tokio::time::timeout(PATIENCE, connection.next_event()).await.expect("an event in time").expect("an event")
}

/// Reads WAL, which must be without a gap, until `end`.
async fn read_until(connection: &mut Connection, mut from: Lsn, end: Lsn) -> Vec<u8> {
    let mut all = Vec::new();
    while from < end {
        if let StreamEvent::Data { start, bytes, .. } = next(connection).await {
            assert_eq!(start, from);
            from = from + bytes.len() as u64;
            all.extend_from_slice(&bytes);
        }
    }
    all
}

#[test]
fn commands_of_every_version() {
    for version in install::versions() {
        let server = Server::start(version);
        run(async {
            for mode in [Mode::Physical, Mode::Database] {
                let mut c = open(&server, mode).await;
                assert_eq!(c.version(), version);
                assert_eq!(c.version_num().to_string(), server.sql("show server_version_num"));
                let identity = c.identify_system().await.expect("identity");
                assert_eq!(identity.timeline, TimelineId(1));
                let system = server.sql("select system_identifier from pg_control_system()");
                assert_eq!(identity.system.to_string(), system);
                assert_eq!(c.show("wal_segment_size").await.expect("setting"), "1MB");
                let error = c.show("no_such_setting").await.expect_err("unknown setting");
                assert!(error.kind() == Kind::Server && error.to_string().contains("no_such_setting"), "{error}");
                assert_eq!(c.show("x; y").await.expect_err("not a name").kind(), Kind::Usage);
                assert_eq!(c.timeline_history(TimelineId(7)).await.expect("an answer"), None);
                c.close().await;
            }
        });
    }
}

#[test]
fn slots_of_every_version() {
    for version in install::versions() {
        let server = Server::builder(version).setting("wal_level", "logical").start();
        run(async {
            let mut c = open(&server, Mode::Database).await;
            assert_eq!(c.read_slot("walrecv_a").await.expect("an answer"), None);
            c.create_slot("walrecv_a", false, true).await.expect("a slot");
            let state = c.read_slot("walrecv_a").await.expect("an answer").expect("a slot");
            let restart = server.sql("select restart_lsn from pg_replication_slots");
            assert_eq!(state.restart_lsn.map(|l| l.to_string()), Some(restart));
            assert_eq!(state.restart_timeline, (version >= MajorVersion::V15).then_some(TimelineId(1)));
            let error = c.create_slot("walrecv_a", false, true).await.expect_err("a second slot");
            assert_eq!((error.kind(), error.to_string().contains("42710")), (Kind::Slot, true), "{error}");
            c.create_slot("walrecv_b", true, false).await.expect("a temporary slot");
            assert_eq!(c.read_slot("walrecv_b").await.expect("an answer").expect("a slot").restart_lsn, None);
            server.sql("select pg_create_logical_replication_slot('logical', 'test_decoding')");
            let error = c.read_slot("logical").await.expect_err("a logical slot");
            assert_eq!(error.kind(), Kind::Slot, "{error}");

            let mut other = open(&server, Mode::Physical).await;
            assert!(matches!(
                other.start_replication(Some("walrecv_a"), state.restart_lsn.unwrap_or_default(), TimelineId(1)).await,
                Ok(Started::Streaming)
            ));
            let error = c.drop_slot("walrecv_a").await.expect_err("a slot in use");
            assert!(error.is_transient() && error.kind() == Kind::Slot, "{error}");
            other.end_stream(PATIENCE).await.expect("the end of the stream");
            other.identify_system().await.expect("a command after the stream");
            c.drop_slot("walrecv_a").await.expect("the slot is dropped");
            assert_eq!(c.drop_slot("walrecv_a").await.expect_err("no slot").kind(), Kind::Slot);
            assert_eq!(c.create_slot("a\"b", false, true).await.expect_err("a quote").kind(), Kind::Usage);
            let error = c.create_slot("Wrong Name", false, true).await.expect_err("a bad name");
            assert!(error.to_string().contains("42602"), "{error}");

            let mut physical = open(&server, Mode::Physical).await;
            match physical.read_slot("walrecv_x").await {
                Ok(answer) => assert!(version >= MajorVersion::V15 && answer.is_none()),
                Err(error) => assert!(version < MajorVersion::V15 && error.to_string().contains("SQL"), "{error}"),
            }
            assert_eq!(c.query("select 1 as a, null as b; select 'x', 'y'").await.expect("rows").len(), 2);
            assert_eq!(physical.query("select 1").await.expect_err("no SQL").kind(), Kind::Failed);
        });
    }
}

#[test]
fn streams_wal_as_it_is_written_and_ends_at_a_shutdown() {
    for version in install::versions() {
        let mut server = Server::start(version);
        run(async {
            let mut c = open(&server, Mode::Physical).await;
            let mut sentinel = open(&server, Mode::Physical).await;
            c.create_slot("walrecv", false, true).await.expect("a slot");
            let start = server.switch_wal().align_up(1 << 20);
            server.sql("create table t as select generate_series(1, 20000) i");
            assert_eq!(
                c.start_replication(Some("walrecv"), start, TimelineId(1)).await.expect("a stream"),
                Started::Streaming
            );
            c.send_status(status(start), PATIENCE).await.expect("a status");
            let end = Lsn(server.sql("select pg_current_wal_flush_lsn()").parse::<Lsn>().expect("an LSN").0);
            let wal = read_until(&mut c, start, end).await;
            let name = server.sql(&format!("select pg_walfile_name('{}')", start + 1));
            let file = std::fs::read(server.data_dir().join("pg_wal").join(name)).expect("the segment");
            let length = wal.len().min(file.len());
            assert!(wal[..length] == file[..length], "the stream is what the file holds");
            // A ping is answered with a keepalive.
            c.send_status(Status { reply_requested: true, ..status(end) }, PATIENCE).await.expect("a status");
            let mut position = start + wal.len() as u64;
            loop {
                match next(&mut c).await {
                    StreamEvent::Keepalive { .. } => break,
                    StreamEvent::Data { start, bytes, .. } => position = start + bytes.len() as u64,
                    other => panic!("{other:?}"),
                }
            }
            let stop = std::thread::spawn(move || (server.stop(Stop::Fast), server));
            assert_eq!(
                tokio::time::timeout(PATIENCE, sentinel.closed()).await.expect("a sign"),
                Some("57P01".to_owned())
            );
            let mut gone = false;
            loop {
                match next(&mut c).await {
                    StreamEvent::Data { start, bytes, .. } => {
                        assert_eq!(start, position);
                        position = start + bytes.len() as u64;
                        c.send_status(status(position), PATIENCE).await.expect("a status");
                    }
                    StreamEvent::Keepalive { .. } => {
                        // Once all was confirmed the server may be gone before this is sent.
                        if let Err(error) = c.send_status(status(position), PATIENCE).await {
                            assert!(error.is_transient(), "{error}");
                            gone = true;
                            break;
                        }
                    }
                    StreamEvent::Ended { shutdown } => {
                        assert!(shutdown);
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if !gone {
                let error = c.identify_system().await.expect_err("the server is gone");
                assert!(error.is_transient());
            }
            let (took, _server) = stop.join().expect("the server stops");
            assert!(took < Duration::from_secs(30), "the stop took {took:?}");
        });
    }
}

#[test]
fn follows_the_end_of_a_timeline() {
    for version in install::versions() {
        let primary = Server::start(version);
        let standby = primary.standby().start();
        run(async {
            let mut c = open(&standby, Mode::Physical).await;
            let start = c.identify_system().await.expect("identity").position.align_down(1 << 20);
            c.start_replication(None, start, TimelineId(1)).await.expect("a stream");
            primary.sql("create table t as select generate_series(1, 5000) i");
            standby.promote();
            let (next_timeline, fork) = loop {
                match next(&mut c).await {
                    StreamEvent::EndOfTimeline { next, switch_point } => break (next, switch_point),
                    StreamEvent::Data { .. } | StreamEvent::Keepalive { .. } => {}
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(next_timeline, TimelineId(2));
            let history = c.timeline_history(next_timeline).await.expect("an answer").expect("a history");
            let parsed = walrecv::pg::TimelineHistory::parse(next_timeline, &history.content).expect("a history");
            assert_eq!(parsed.switch_point_of(TimelineId(1)), Some(fork));
            // At the very fork there is nothing left to stream on the old timeline.
            let again = c.start_replication(None, fork, TimelineId(1)).await.expect("an answer");
            assert_eq!(again, Started::NextTimeline { next: next_timeline, switch_point: fork });
            let beyond = c.start_replication(None, fork + 8, TimelineId(1)).await.expect_err("past the fork");
            assert_eq!(beyond.kind(), Kind::Diverged, "{beyond}");
            let begin = fork.align_down(1 << 20);
            assert_eq!(c.start_replication(None, begin, next_timeline).await.expect("a stream"), Started::Streaming);
            read_until(&mut c, begin, fork + 8).await;
            c.end_stream(PATIENCE).await.expect("the end of the stream");
            // Ahead of the server's end: the refusal comes inside the stream, or before it.
            let far = Lsn(0x7700_0000_0000);
            let error = match c.start_replication(None, far, next_timeline).await {
                Ok(_) => c.next_event().await.expect_err("ahead of the end"),
                Err(error) => error,
            };
            assert_eq!(error.kind(), Kind::Diverged, "{error}");
            c.identify_system().await.expect("the connection is still good");
        });
    }
}

#[test]
fn base_backups_give_the_same_events_in_every_version() {
    for version in install::versions() {
        let server = Server::start(version);
        let place = server.data_dir().with_file_name("space");
        std::fs::create_dir(&place).expect("a directory");
        crate::support::user::give_to_postgres(&place);
        server.sql(&format!("create tablespace s location '{}'", place.display()));
        server.sql("create table t tablespace s as select generate_series(1, 1000) i");
        run(async {
            let mut c = open(&server, Mode::Physical).await;
            for manifest in [false, true] {
                let label = "it's a \"label\" \\ ".to_owned();
                let options = BaseBackupOptions {
                    label,
                    fast_checkpoint: true,
                    max_rate: Some(1 << 20),
                    manifest,
                    ..Default::default()
                };
                c.base_backup(&options).await.expect("a backup");
                backup(&mut c, manifest, &place.display().to_string()).await;
                c.identify_system().await.expect("a command after the backup");
            }
            let wrong = BaseBackupOptions { fast_checkpoint: true, max_rate: Some(1), ..Default::default() };
            assert_eq!(c.base_backup(&wrong).await.expect_err("a rate").kind(), Kind::Usage);
        });
    }
}

async fn backup(c: &mut Connection, manifest: bool, place: &str) {
    let mut archives = Vec::new();
    let mut listing = Vec::new();
    let (mut begun, mut ended) = (None, None);
    loop {
        match tokio::time::timeout(PATIENCE, c.next_backup_event()).await.expect("in time").expect("an event") {
            BackupEvent::Start { lsn, timeline, tablespaces } => {
                assert_eq!((timeline, tablespaces.len(), begun), (TimelineId(1), 2, None));
                assert_eq!((tablespaces[0].location.as_str(), tablespaces[1].oid), (place, None));
                assert!(tablespaces.iter().all(|t| t.size_kb.is_some()));
                begun = Some(lsn);
            }
            BackupEvent::Archive { index } => {
                assert_eq!(index, archives.len());
                archives.push(Vec::new());
            }
            BackupEvent::Data(bytes) => archives.last_mut().expect("an archive").extend_from_slice(&bytes),
            BackupEvent::Manifest => assert!(manifest && archives.len() == 2),
            BackupEvent::ManifestData(bytes) => listing.extend_from_slice(&bytes),
            BackupEvent::Progress { bytes_done } => assert!(bytes_done > 0),
            BackupEvent::End { lsn, .. } => ended = Some(lsn),
            BackupEvent::Complete => break,
        }
    }
    assert!(begun < ended);
    let name = |archive: &[u8]| String::from_utf8_lossy(&archive[..12]).into_owned();
    assert_eq!(name(&archives[1]), "backup_label");
    assert!(archives[1].windows(14).any(|w| w == b"tablespace_map"));
    assert_eq!(!listing.is_empty(), manifest);
    if manifest {
        assert!(String::from_utf8_lossy(&listing).contains("\"Manifest-Checksum\""));
    }
}
