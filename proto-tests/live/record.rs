//! Records sessions with real servers for `proto-tests/vectors/wire`: only with `WALRECV_RECORD=1`.

use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walrecv::net::{Connection, Mode, Started, Upload};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::wire::command::{BackupEvent, BaseBackupOptions};
use walrecv::wire::message::{Status, StreamEvent};

use crate::net::{connect, run};
use crate::replay;
use crate::support::server::{Server, Stop};
use crate::support::{PATIENCE, install};
use crate::transcript::{self, Turn};

/// A small transaction: a table, even an empty one, would write many pages.
const WRITE: &str = "select pg_logical_emit_message(true, 'walrecv', 'hello')";

/// A port that passes one session on and keeps what both sides said.
struct Recorder {
    port: u16,
    turns: Arc<Mutex<Vec<Turn>>>,
}

impl Recorder {
    async fn start(server: u16) -> Recorder {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let turns = Arc::new(Mutex::new(Vec::new()));
        let kept = turns.clone();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.expect("a client");
            let mut server = TcpStream::connect(("127.0.0.1", server)).await.expect("the server");
            let (mut from_client, mut from_server) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            loop {
                tokio::select! {
                    Ok(n) = client.read(&mut from_client) => {
                        keep(&kept, true, &from_client[..n]);
                        if n == 0 || server.write_all(&from_client[..n]).await.is_err() { break }
                    }
                    Ok(n) = server.read(&mut from_server) => {
                        keep(&kept, false, &from_server[..n]);
                        if n == 0 || client.write_all(&from_server[..n]).await.is_err() { break }
                    }
                    else => break,
                }
            }
        });
        Recorder { port, turns }
    }

    async fn open(&self) -> Connection {
        let text = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", self.port);
        connect(&text, Mode::Physical).await.expect("a connection")
    }

    fn save(&self, version: MajorVersion, scenario: &str, compact: fn(&[u8]) -> Vec<u8>) {
        let name = format!("{version}-{scenario}");
        let mut turns = std::mem::take(&mut *self.turns.lock().expect("the turns"));
        if let Some(Turn::Client(last)) = turns.last()
            && last.first() == Some(&b'X')
        {
            turns.pop();
        }
        let kept: Vec<Turn> = match scenario {
            // The only turns with messages that go on in the next one.
            "backup" | "incremental-backup" => join(turns, compact),
            _ => turns,
        };
        let events = replay::play(&name, &kept, replay::whole).expect("a transcript that can be played");
        std::fs::create_dir_all(transcript::folder()).expect("the folder");
        std::fs::write(transcript::folder().join(format!("{name}.wire")), transcript::write(&kept)).expect("write");
        std::fs::write(transcript::folder().join(format!("{name}.events")), events.join("\n") + "\n").expect("write");
    }
}

fn keep(turns: &Mutex<Vec<Turn>>, client: bool, bytes: &[u8]) {
    let mut turns = turns.lock().expect("the turns");
    match (turns.last_mut(), client) {
        _ if bytes.is_empty() => {}
        (Some(Turn::Client(last)), true) | (Some(Turn::Server(last)), false) => last.extend_from_slice(bytes),
        (_, true) => turns.push(Turn::Client(bytes.to_vec())),
        (_, false) => turns.push(Turn::Server(bytes.to_vec())),
    }
}

fn join(turns: Vec<Turn>, compact: fn(&[u8]) -> Vec<u8>) -> Vec<Turn> {
    turns
        .into_iter()
        .map(|turn| match turn {
            Turn::Server(bytes) => Turn::Server(compact(&bytes)),
            Turn::Client(bytes) => Turn::Client(thin_client(&bytes)),
        })
        .collect()
}

/// Of a backup's data: the first two messages of each archive and every eightieth, and of them the first bytes. Everything else as it was.
fn thin(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut rest, mut count) = (Vec::new(), bytes, 0);
    while rest.len() >= 5 {
        let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize + 1;
        let (message, after) = rest.split_at(length);
        rest = after;
        if message[0] != b'd' || message.len() < 100 {
            out.extend_from_slice(message);
            // An archive, or the manifest, begins.
            if message[0] == b'H' || matches!(message.get(5), Some(b'n' | b'm')) {
                count = 0;
            }
            continue;
        }
        count += 1;
        if count < 3 || count % 80 == 0 {
            let body = &message[5..message.len().min(5 + 300)];
            out.push(b'd');
            out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            out.extend_from_slice(body);
        }
    }
    assert!(rest.is_empty());
    out
}

/// Of the client's data the first bytes of each message; its startup packet has no type byte.
fn thin_client(bytes: &[u8]) -> Vec<u8> {
    if bytes.first() == Some(&0) {
        return bytes.to_vec();
    }
    let (mut out, mut rest) = (Vec::new(), bytes);
    while rest.len() >= 5 {
        let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize + 1;
        let (message, after) = rest.split_at(length);
        rest = after;
        let body = &message[5..];
        let kept = if message[0] == b'd' { &body[..body.len().min(300)] } else { body };
        out.push(message[0]);
        out.extend_from_slice(&(kept.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(kept);
    }
    assert!(rest.is_empty());
    out
}

fn same(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn status(lsn: Lsn, reply_requested: bool) -> Status {
    Status { written: lsn, flushed: lsn, applied: lsn, reply_requested }
}

fn wanted() -> bool {
    std::env::var("WALRECV_RECORD").is_ok_and(|v| v == "1")
}

fn record<F: Future<Output = ()>>(scenario: impl Fn(MajorVersion) -> F) {
    if wanted() {
        for version in install::versions() {
            run(scenario(version));
        }
    }
}

#[test]
fn commands() {
    record(|version| async move {
        let server = Server::start(version);
        let recorder = Recorder::start(server.port()).await;
        let mut c = recorder.open().await;
        c.identify_system().await.expect("identity");
        c.show("wal_segment_size").await.expect("setting");
        c.show("no_such_setting").await.expect_err("no setting");
        c.create_slot("walrecv", false, true).await.expect("a slot");
        c.create_slot("walrecv", false, true).await.expect_err("a slot twice");
        if version >= MajorVersion::V15 {
            c.read_slot("walrecv").await.expect("a slot");
            c.read_slot("absent").await.expect("an answer");
        }
        c.timeline_history(TimelineId(9)).await.expect("an answer");
        c.drop_slot("walrecv").await.expect("the slot is dropped");
        c.drop_slot("walrecv").await.expect_err("no slot");
        c.close().await;
        recorder.save(version, "commands", same);
    });
}

#[test]
fn stream() {
    record(|version| async move {
        let mut server = Server::builder(version).setting("full_page_writes", "off").start();
        let recorder = Recorder::start(server.port()).await;
        let mut c = recorder.open().await;
        c.create_slot("walrecv", false, true).await.expect("a slot");
        let mut position = c.identify_system().await.expect("identity").position;
        c.start_replication(Some("walrecv"), position, TimelineId(1)).await.expect("a stream");
        c.send_status(status(position, false), PATIENCE).await.expect("a status");
        server.sql(WRITE);
        let end: Lsn = server.sql("select pg_current_wal_flush_lsn()").parse().expect("an LSN");
        let mut stop = None;
        loop {
            match tokio::time::timeout(PATIENCE, c.next_event()).await.expect("in time").expect("an event") {
                StreamEvent::Data { start, bytes, .. } => position = start + bytes.len() as u64,
                StreamEvent::Keepalive { .. } => {}
                StreamEvent::Ended { shutdown } => break assert!(shutdown),
                other => panic!("{other:?}"),
            }
            c.send_status(status(position, position >= end && stop.is_none()), PATIENCE).await.expect("a status");
            if position >= end && stop.is_none() {
                server.signal(rustix::process::Signal::INT);
                stop = Some(());
            }
        }
        c.close().await;
        let _ = server.stop(Stop::Immediate);
        recorder.save(version, "stream", same);
    });
}

#[test]
fn timeline() {
    record(|version| async move {
        let primary = Server::builder(version).setting("full_page_writes", "off").start();
        let standby = primary.standby().start();
        let recorder = Recorder::start(standby.port()).await;
        let mut c = recorder.open().await;
        let start = c.identify_system().await.expect("identity").position;
        c.start_replication(None, start, TimelineId(1)).await.expect("a stream");
        primary.sql(WRITE);
        let end: Lsn = primary.sql("select pg_current_wal_flush_lsn()").parse().expect("an LSN");
        let mut position = start;
        while position < end {
            if let StreamEvent::Data { start, bytes, .. } = c.next_event().await.expect("an event") {
                position = start + bytes.len() as u64;
            }
        }
        standby.promote();
        let (next, fork) = loop {
            let event = tokio::time::timeout(PATIENCE, c.next_event()).await.expect("in time").expect("an event");
            if let StreamEvent::EndOfTimeline { next, switch_point } = event {
                break (next, switch_point);
            }
        };
        c.timeline_history(next).await.expect("an answer").expect("a history");
        let again = c.start_replication(None, fork, TimelineId(1)).await.expect("an answer");
        assert_eq!(again, Started::NextTimeline { next, switch_point: fork });
        c.start_replication(None, fork + 8, TimelineId(1)).await.expect_err("past the fork");
        c.start_replication(None, fork, next).await.expect("a stream");
        let first = tokio::time::timeout(PATIENCE, c.next_event()).await.expect("in time").expect("an event");
        assert!(matches!(first, StreamEvent::Data { .. }));
        c.end_stream(PATIENCE).await.expect("the end of the stream");
        if c.start_replication(None, Lsn(0x7700_0000_0000), next).await.is_ok() {
            c.next_event().await.expect_err("ahead of the end");
        }
        c.close().await;
        recorder.save(version, "timeline", same);
    });
}

#[test]
fn backup() {
    record(|version| async move {
        let server = Server::start(version);
        let place = server.data_dir().with_file_name("space");
        std::fs::create_dir(&place).expect("a directory");
        crate::support::user::give_to_postgres(&place);
        server.sql(&format!("create tablespace s location '{}'", place.display()));
        server.sql("create table t tablespace s as select generate_series(1, 1000) i");
        let recorder = Recorder::start(server.port()).await;
        let mut c = recorder.open().await;
        let label = "walrecv test".to_owned();
        let options = BaseBackupOptions { label, fast_checkpoint: true, manifest: true, ..Default::default() };
        c.base_backup(&options).await.expect("a backup");
        while c.next_backup_event().await.expect("an event") != BackupEvent::Complete {}
        c.close().await;
        recorder.save(version, "backup", thin);
    });
}

/// A manifest that makes no sense, one that is given up, a backup without one, one without summaries of its WAL, and one that is taken.
#[test]
fn incremental_backup() {
    record(|version| async move {
        if version < MajorVersion::V17 {
            return;
        }
        let server = Server::builder(version).setting("summarize_wal", "on").start();
        let recorder = Recorder::start(server.port()).await;
        let mut c = recorder.open().await;
        let label = "walrecv test".to_owned();
        let full = BaseBackupOptions { label, fast_checkpoint: true, manifest: true, ..Default::default() };
        let incremental = BaseBackupOptions { incremental: true, ..full.clone() };
        let refused = |upload| match upload {
            Upload::Refused(refusal) => refusal.server.sqlstate,
            other => panic!("{other:?}"),
        };
        let garbage = stream::iter([Ok(Bytes::from_static(b"{ \"no\": manifest }\n"))]);
        assert_eq!(refused(c.upload_manifest(garbage).await.expect("an answer")), "XX000");
        let lost = Err(walrecv::error::Error::new(walrecv::error::Kind::Corrupt, "lost"));
        let given_up = c.upload_manifest(stream::iter([Ok(Bytes::from_static(b"{ ")), lost])).await;
        assert!(matches!(given_up, Ok(Upload::GivenUp(error)) if error.to_string() == "lost"));
        let without = c.begin_base_backup(&incremental).await.expect("an answer").expect_err("no manifest");
        assert_eq!(without.server.sqlstate, "55000");
        let manifest = fetch(&mut c, &full).await;
        server.sql(WRITE);
        let text = String::from_utf8(manifest.clone()).expect("text");
        // As if the earlier backup had begun before the first summary.
        let at = text.find("\"Start-LSN\": \"").expect("a range") + 14;
        let end = at + text[at..].find('"').expect("its end");
        let early = with_checksum(&format!("{}0/28{}", &text[..at], &text[end..]));
        let upload = c.upload_manifest(stream::iter([Ok(Bytes::from(early))])).await.expect("an answer");
        assert!(matches!(upload, Upload::Taken));
        let missing = c.begin_base_backup(&incremental).await.expect("an answer").expect_err("no summaries");
        assert_eq!(missing.server.sqlstate, "55000");
        let upload = c.upload_manifest(stream::iter([Ok(Bytes::from(manifest))])).await.expect("an answer");
        assert!(matches!(upload, Upload::Taken));
        let smaller = fetch(&mut c, &incremental).await;
        assert!(String::from_utf8_lossy(&smaller).contains("INCREMENTAL."));
        c.close().await;
        recorder.save(version, "incremental-backup", thin);
    });
}

/// The manifest of a backup that is taken now.
async fn fetch(c: &mut Connection, options: &BaseBackupOptions) -> Vec<u8> {
    c.base_backup(options).await.expect("a backup");
    let mut manifest = Vec::new();
    loop {
        match c.next_backup_event().await.expect("an event") {
            BackupEvent::ManifestData(bytes) => manifest.extend_from_slice(&bytes),
            BackupEvent::Complete => return manifest,
            _ => {}
        }
    }
}

/// A changed manifest whose last line is right again.
fn with_checksum(text: &str) -> Vec<u8> {
    use sha2::Digest;
    let (body, _) = text.split_at(text.find("\"Manifest-Checksum\"").expect("a last line"));
    let digits: String = sha2::Sha256::digest(body.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("{body}\"Manifest-Checksum\": \"{digits}\"}}\n").into_bytes()
}
