//! Servers that misbehave, and what the connection makes of each.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walrecv::error::{Error, Kind};
use walrecv::net::{Connection, Conninfo, Mode, Upload};
use walrecv::pg::{Lsn, TimelineId};
use walrecv::wire::message::{Status, StreamEvent};

use super::states::{authentication, complete, error, message, ready, row, wal};
use crate::support::PATIENCE;

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("a test that ends") })
}

/// A port whose every client is served by `serve`.
async fn listen<F: Future<Output = ()> + Send + 'static>(serve: fn(TcpStream) -> F) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

async fn connect(port: u16, options: &str) -> Result<Connection, Error> {
    let text = format!("host=127.0.0.1 port={port} user=u {options}");
    Connection::connect(&Conninfo::parse(&text, &|_| None).expect("a connection string"), Mode::Physical, "").await
}

/// Reads a startup packet, an SSLRequest or a message.
async fn hear(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).await.unwrap_or(0);
    bytes.truncate(count);
    bytes
}

async fn say(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes).await;
}

fn welcome(version: &str) -> Vec<u8> {
    let parameter = message(b'S', format!("server_version\0{version}\0").as_bytes());
    [authentication(0, &[]), parameter, message(b'K', &[0; 8]), ready()].concat()
}

/// Refuses TLS, then answers the startup packet with `answer`.
async fn greet(stream: &mut TcpStream, answer: &[u8]) {
    let mut heard = hear(stream).await;
    if heard.len() == 8 {
        say(stream, b"N").await;
        heard = hear(stream).await;
    }
    assert!(heard.windows(4).any(|w| w == b"user"));
    say(stream, answer).await;
}

fn refusal(outcome: Result<Connection, Error>) -> Error {
    outcome.err().expect("a refusal")
}

fn all(error: &Error) -> String {
    format!("{error} | {}", error.advice().unwrap_or_default())
}

#[test]
fn another_program_answers() {
    async fn http(mut stream: TcpStream) {
        hear(&mut stream).await;
        say(&mut stream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    }
    async fn ssh(mut stream: TcpStream) {
        say(&mut stream, b"SSH-2.0-OpenSSH_9.2\r\n").await;
        hear(&mut stream).await;
    }
    run(async {
        let (http, ssh) = (listen(http).await, listen(ssh).await);
        for (port, options) in
            [(http, ""), (http, "sslmode=disable"), (http, "sslmode=require"), (ssh, "sslmode=disable")]
        {
            let error = refusal(connect(port, options).await);
            assert!(!error.is_transient() && error.kind() == Kind::Server, "{error:?}");
            assert!(all(&error).contains("does not speak the protocol of PostgreSQL"), "{}", all(&error));
            assert!(all(&error).contains("another program"), "{}", all(&error));
        }
        // "S" of "SSH" looks like a yes to TLS; then the handshake fails.
        assert_eq!(refusal(connect(ssh, "sslmode=require").await).kind(), Kind::Server);
    });
}

#[test]
fn versions_outside_the_table() {
    run(async {
        async fn old(mut stream: TcpStream) {
            greet(&mut stream, &welcome("12.22 (Debian)")).await;
            hear(&mut stream).await;
        }
        async fn new(mut stream: TcpStream) {
            greet(&mut stream, &welcome("19devel")).await;
            hear(&mut stream).await;
        }
        async fn nameless(mut stream: TcpStream) {
            greet(&mut stream, &[authentication(0, &[]), ready()].concat()).await;
            hear(&mut stream).await;
        }
        for (port, found) in
            [(listen(old).await, "12.22"), (listen(new).await, "19devel"), (listen(nameless).await, "not name")]
        {
            let error = refusal(connect(port, "").await);
            assert_eq!(error.kind(), Kind::Version);
            assert!(error.to_string().contains(found) && error.to_string().contains("13 to 18"), "{error}");
        }
    });
}

#[test]
fn what_may_pass_is_transient() {
    async fn starting(mut stream: TcpStream) {
        greet(&mut stream, &error("FATAL", "57P03")).await;
    }
    async fn closing(mut stream: TcpStream) {
        greet(&mut stream, b"").await;
    }
    async fn half(mut stream: TcpStream) {
        greet(&mut stream, &welcome("15.1")[..7]).await;
    }
    async fn crowded(mut stream: TcpStream) {
        hear(&mut stream).await;
        say(&mut stream, &error("FATAL", "53300")).await;
    }
    run(async {
        for port in [listen(starting).await, listen(closing).await, listen(half).await] {
            let error = refusal(connect(port, "").await);
            assert!(error.is_transient() && error.kind() == Kind::Server, "{error:?}");
        }
        // An error in answer to SSLRequest is unprotected: its text is not shown.
        let error = refusal(connect(listen(crowded).await, "sslmode=require").await);
        assert!(error.is_transient() && !error.to_string().contains("53300"), "{error:?}");
        let unused =
            TcpListener::bind(("127.0.0.1", 0)).await.expect("a port").local_addr().expect("its address").port();
        let error = refusal(connect(unused, "").await);
        assert!(error.is_transient() && all(&error).contains("listen_addresses"), "{error:?}");
        let nowhere = Conninfo::parse("host=/does/not/exist user=u", &|_| None).expect("a connection string");
        let error = refusal(Connection::connect(&nowhere, Mode::Physical, "").await);
        assert!(error.is_transient() && error.to_string().contains("/does/not/exist/.s.PGSQL.5432"), "{error:?}");
    });
}

#[test]
fn a_silent_server_is_left_after_the_connect_timeout() {
    async fn silent(mut stream: TcpStream) {
        hear(&mut stream).await;
        tokio::time::sleep(PATIENCE * 10).await;
    }
    async fn slow_login(mut stream: TcpStream) {
        greet(&mut stream, &authentication(0, &[])).await;
        tokio::time::sleep(PATIENCE * 10).await;
    }
    run(async {
        for port in [listen(silent).await, listen(slow_login).await] {
            let start = Instant::now();
            let error = refusal(connect(port, "connect_timeout=1").await);
            assert!(error.is_transient() && error.to_string().contains("no session within 2 s"), "{error:?}");
            assert!(start.elapsed() < Duration::from_secs(30));
        }
    });
}

#[test]
fn bytes_smuggled_in_before_tls_end_it() {
    async fn smuggler(mut stream: TcpStream) {
        hear(&mut stream).await;
        say(&mut stream, &[b"S".to_vec(), welcome("15.1")].concat()).await;
        hear(&mut stream).await;
    }
    run(async {
        let error = refusal(connect(listen(smuggler).await, "sslmode=require").await);
        assert_eq!(error.kind(), Kind::Server);
        assert!(error.to_string().contains("TLS"), "{error}");
    });
}

/// A stream of 200 messages of WAL from 0/100, then `after`.
async fn streaming(mut stream: TcpStream, dribble: bool, after: &[u8]) {
    greet(&mut stream, &welcome("15.1")).await;
    hear(&mut stream).await;
    let mut bytes = message(b'W', &[0, 0, 0]);
    for n in 0..200u64 {
        bytes.extend_from_slice(&wal(0x100 + n * 64, &[n as u8; 64]));
    }
    bytes.extend_from_slice(after);
    if dribble {
        for piece in bytes.chunks(23) {
            say(&mut stream, piece).await;
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    } else {
        say(&mut stream, &bytes).await;
    }
    while !hear(&mut stream).await.is_empty() {}
}

async fn start(port: u16) -> Connection {
    let mut connection = connect(port, "sslmode=disable").await.expect("a session");
    connection.start_replication(None, Lsn(0x100), TimelineId(1)).await.expect("a stream");
    connection
}

#[test]
fn an_event_that_was_not_waited_for_is_not_lost() {
    async fn serve(stream: TcpStream) {
        streaming(stream, true, &complete("COPY 0")).await;
    }
    run(async {
        let mut connection = start(listen(serve).await).await;
        let (mut position, mut dropped) = (0x100, 0);
        loop {
            let event = tokio::select! {
                biased;
                event = connection.next_event() => event.expect("an event"),
                () = tokio::time::sleep(Duration::from_micros(100)) => {
                    dropped += 1;
                    continue;
                }
            };
            match event {
                StreamEvent::Data { start, bytes, .. } => {
                    assert_eq!(start, Lsn(position));
                    assert!(bytes.iter().all(|b| u64::from(*b) == (position - 0x100) / 64));
                    position += 64;
                }
                StreamEvent::Ended { shutdown: true } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(position, 0x100 + 200 * 64);
        assert!(dropped > 50, "{dropped} waits were dropped");
    });
}

#[test]
fn ends_of_a_stream() {
    async fn fatal(stream: TcpStream) {
        streaming(stream, false, &error("FATAL", "57P01")).await;
    }
    async fn gap(stream: TcpStream) {
        streaming(stream, false, &wal(0x10, &[1; 8])).await;
    }
    async fn removed(stream: TcpStream) {
        streaming(stream, false, &[error("ERROR", "58P01"), ready()].concat()).await;
    }
    async fn garbage(stream: TcpStream) {
        streaming(stream, false, &[0xff; 64]).await;
    }
    async fn first_error(port: u16) -> (Error, Connection) {
        let mut connection = start(port).await;
        loop {
            match connection.next_event().await {
                Ok(StreamEvent::Data { .. }) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => return (error, connection),
            }
        }
    }
    run(async {
        let (error, mut connection) = first_error(listen(fatal).await).await;
        assert!(error.is_transient() && error.to_string().contains("57P01"), "{error:?}");
        assert!(connection.next_event().await.expect_err("nothing more").is_transient());
        let (error, _) = first_error(listen(gap).await).await;
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("expected data at 0/3300, the server sent data at 0/10"), "{error}");
        let (error, mut connection) = first_error(listen(removed).await).await;
        assert!(error.kind() == Kind::Gap && !error.is_transient(), "{error:?}");
        assert_eq!(connection.next_event().await.expect_err("no stream").kind(), Kind::Failed);
        let (error, _) = first_error(listen(garbage).await).await;
        assert_eq!(error.kind(), Kind::Corrupt);
    });
}

#[test]
fn a_server_that_does_not_read_does_not_hang_a_status() {
    async fn deaf(mut stream: TcpStream) {
        let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(4096);
        greet(&mut stream, &welcome("15.1")).await;
        hear(&mut stream).await;
        say(&mut stream, &message(b'W', &[0, 0, 0])).await;
        tokio::time::sleep(PATIENCE * 10).await;
    }
    run(async {
        let mut connection = start(listen(deaf).await).await;
        let status = Status { written: Lsn(1), flushed: Lsn(1), applied: Lsn(1), reply_requested: false };
        let mut sent = 0u64;
        let (error, took) = loop {
            let start = Instant::now();
            match connection.send_status(status, Duration::from_millis(200)).await {
                Ok(()) => sent += 1,
                Err(error) => break (error, start.elapsed()),
            }
            assert!(sent < 10_000_000);
        };
        assert!(error.is_transient(), "{error:?}");
        assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(20), "{took:?}");
        let start = Instant::now();
        connection.close().await;
        assert!(start.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn the_sentinel_hears_why_it_was_ended() {
    async fn farewell(mut stream: TcpStream) {
        let parameter = message(b'S', b"in_hot_standby\0off\0");
        greet(&mut stream, &[welcome("15.1"), parameter, error("FATAL", "57P01")].concat()).await;
    }
    async fn wordless(mut stream: TcpStream) {
        greet(&mut stream, &welcome("15.1")).await;
    }
    run(async {
        let mut connection = connect(listen(farewell).await, "").await.expect("a session");
        assert_eq!(connection.closed().await.as_deref(), Some("57P01"));
        assert_eq!(connection.parameter("in_hot_standby"), Some("off"));
        let mut connection = connect(listen(wordless).await, "").await.expect("a session");
        assert_eq!(connection.closed().await, None);
        assert!(connection.identify_system().await.expect_err("it is over").is_transient());
    });
}

#[test]
fn a_command_that_was_given_up_ends_the_use_of_the_connection() {
    async fn slow(mut stream: TcpStream) {
        greet(&mut stream, &welcome("15.1")).await;
        hear(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answer = [super::states::columns(1), row(&[Some("1MB")]), complete("SHOW"), ready()].concat();
        say(&mut stream, &answer).await;
        while !hear(&mut stream).await.is_empty() {}
    }
    run(async {
        let mut connection = connect(listen(slow).await, "").await.expect("a session");
        let given_up = tokio::time::timeout(Duration::from_millis(20), connection.show("wal_segment_size")).await;
        assert!(given_up.is_err());
        assert!(connection.show("wal_segment_size").await.expect_err("not its answer").to_string().contains("busy"));
        let mut connection = connect(listen(slow).await, "").await.expect("a session");
        assert_eq!(connection.show("wal_segment_size").await.expect("an answer"), "1MB");
    });
}

/// Waits for an upload, and gives the answer to it after some of its bytes; then to SHOW.
async fn upload_server(mut stream: TcpStream, answer: &[u8], until: &[u8]) {
    greet(&mut stream, &welcome("17.1")).await;
    assert_eq!(&hear(&mut stream).await[5..], b"UPLOAD_MANIFEST\0");
    say(&mut stream, &message(b'G', &[0, 0, 0])).await;
    let mut heard = hear(&mut stream).await;
    while !heard.windows(until.len()).any(|w| w == until) {
        heard = hear(&mut stream).await;
    }
    say(&mut stream, answer).await;
    while !hear(&mut stream).await.windows(4).any(|w| w == b"SHOW") {}
    let answer = [super::states::columns(1), row(&[Some("1MB")]), complete("SHOW"), ready()].concat();
    say(&mut stream, &answer).await;
    hear(&mut stream).await;
}

#[test]
fn a_manifest_that_is_refused_in_the_middle_is_not_sent_to_its_end() {
    async fn refuses(stream: TcpStream) {
        upload_server(stream, &[error("ERROR", "XX000"), ready()].concat(), b"part").await;
    }
    run(async {
        let mut connection = connect(listen(refuses).await, "").await.expect("a session");
        let taken = std::cell::Cell::new(0);
        let parts = stream::iter((0..1000).map(|_| {
            taken.set(taken.get() + 1);
            Ok(Bytes::from(b"part".repeat(1 << 18)))
        }));
        match connection.upload_manifest(parts).await.expect("an answer") {
            Upload::Refused(refusal) => assert_eq!(refusal.server.sqlstate, "XX000"),
            other => panic!("{other:?}"),
        }
        assert!(taken.get() < 100, "{} MiB were taken", taken.get());
        assert_eq!(connection.show("wal_segment_size").await.expect("the next command"), "1MB");
    });
}

#[test]
fn a_manifest_that_cannot_be_read_is_given_up_and_the_session_goes_on() {
    async fn told(stream: TcpStream) {
        upload_server(stream, &[error("ERROR", "57014"), ready()].concat(), b"f\0\0\0").await;
    }
    async fn gone(mut stream: TcpStream) {
        greet(&mut stream, &welcome("17.1")).await;
        hear(&mut stream).await;
        say(&mut stream, &[message(b'G', &[0, 0, 0]), error("FATAL", "57P01")].concat()).await;
    }
    run(async {
        let parts = || stream::iter([Ok(Bytes::from_static(b"part")), Err(Error::new(Kind::Corrupt, "damaged"))]);
        let mut connection = connect(listen(told).await, "").await.expect("a session");
        let outcome = connection.upload_manifest(parts()).await.expect("an answer");
        assert!(matches!(&outcome, Upload::GivenUp(error) if error.to_string() == "damaged"), "{outcome:?}");
        assert_eq!(connection.show("wal_segment_size").await.expect("the next command"), "1MB");
        let mut connection = connect(listen(gone).await, "").await.expect("a session");
        let error = connection.upload_manifest(parts()).await.expect_err("the session is over");
        assert!(error.is_transient() && error.to_string().contains("57P01"), "{error}");
        assert!(connection.show("wal_segment_size").await.is_err());
    });
}
