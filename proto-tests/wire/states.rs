//! Every type of message in every state: accepted, or refused by the names of both.

use bytes::{BufMut, Bytes, BytesMut};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::wire::base_backup::BaseBackup;
use walrecv::wire::codec::{self, Machine, Outbox};
use walrecv::wire::command::{BaseBackupOptions, Command};
use walrecv::wire::require_auth::RequireAuth;
use walrecv::wire::startup::{ChannelBindingPolicy, Login, Startup};
use walrecv::wire::upload_manifest::UploadManifest;
use walrecv::wire::wal_stream::WalStream;
use walrecv::wire::{ServerError, WireError};

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(body.len() as u32 + 4);
    out.extend_from_slice(body);
    out
}

pub fn row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u16(values.len() as u16);
    for value in values {
        body.put_i32(value.map_or(-1, |v| v.len() as i32));
        body.extend_from_slice(value.unwrap_or_default().as_bytes());
    }
    message(b'D', &body)
}

pub fn columns(count: u16) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u16(count);
    for _ in 0..count {
        body.extend_from_slice(b"c\0");
        body.extend_from_slice(&[0; 18]);
    }
    message(b'T', &body)
}

pub fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

pub fn error(severity: &str, sqlstate: &str) -> Vec<u8> {
    message(b'E', format!("S{severity}\0V{severity}\0C{sqlstate}\0Mtext\0Rfunction\0\0").as_bytes())
}

pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

pub fn authentication(code: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes()[..], rest].concat())
}

pub fn wal(start: u64, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(start);
    body.put_u64(start + bytes.len() as u64);
    body.put_i64(5);
    body.extend_from_slice(bytes);
    message(b'd', &body)
}

/// One message of every type that a server of protocol 3 can send.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("Authentication", authentication(0, &[])),
        ("BackendKeyData", message(b'K', &[0; 8])),
        ("BindComplete", message(b'2', &[])),
        ("CloseComplete", message(b'3', &[])),
        ("CommandComplete", complete("SELECT")),
        ("CopyBothResponse", message(b'W', &[0, 0, 0])),
        ("CopyData", message(b'd', b"x")),
        ("CopyDone", message(b'c', &[])),
        ("CopyInResponse", message(b'G', &[0, 0, 0])),
        ("CopyOutResponse", message(b'H', &[0, 0, 0])),
        ("DataRow", row(&[Some("0/1"), Some("1")])),
        ("EmptyQueryResponse", message(b'I', &[])),
        ("ErrorResponse", error("ERROR", "XX000")),
        ("FunctionCallResponse", message(b'V', &[0xff; 4])),
        ("NegotiateProtocolVersion", message(b'v', &[0; 8])),
        ("NoData", message(b'n', &[])),
        ("NoticeResponse", message(b'N', b"SWARNING\0VWARNING\0C01000\0Mtext\0\0")),
        ("NotificationResponse", message(b'A', &[0, 0, 0, 1, b'a', 0, b'b', 0])),
        ("ParameterDescription", message(b't', &[0, 0])),
        ("ParameterStatus", message(b'S', b"name\0value\0")),
        ("ParseComplete", message(b'1', &[])),
        ("PortalSuspended", message(b's', &[])),
        ("ReadyForQuery", ready()),
        ("RowDescription", columns(2)),
    ]
}

/// A machine in the state that `bytes` lead to.
enum Any {
    Startup(Startup),
    Command(Command),
    Stream(WalStream),
    Backup(BaseBackup),
    Upload(UploadManifest),
}

impl Any {
    fn feed(&mut self, bytes: &[u8], out: &mut Outbox) -> Result<bool, WireError> {
        let mut input = BytesMut::from(bytes);
        let mut any = false;
        while !input.is_empty() {
            any |= match self {
                Any::Startup(m) => m.poll(&mut input, out)?.is_some(),
                Any::Command(m) => m.poll(&mut input, out)?.is_some(),
                Any::Stream(m) => m.poll(&mut input, out)?.is_some(),
                Any::Backup(m) => m.poll(&mut input, out)?.is_some(),
                Any::Upload(m) => m.poll(&mut input, out)?.is_some(),
            };
        }
        Ok(any)
    }
}

fn startup(out: &mut Outbox) -> Any {
    let login = Login {
        user: "u".to_owned(),
        password: Some("p".to_owned()),
        parameters: vec![("replication", "true".to_owned())],
        channel_binding: ChannelBindingPolicy::Prefer,
        require_auth: RequireAuth::default(),
        tls: false,
        end_point: None,
    };
    Any::Startup(Startup::begin(login, out).expect("a startup packet"))
}

fn stream(out: &mut Outbox) -> Any {
    Any::Stream(WalStream::begin(None, Lsn(0x100), TimelineId(1), out).expect("a stream"))
}

/// A stream that we have asked to end.
fn asked_to_end(out: &mut Outbox) -> Any {
    let mut machine = WalStream::begin(None, Lsn(0x100), TimelineId(1), out).expect("a stream");
    let mut begin = BytesMut::from(&message(b'W', &[0, 0, 0])[..]);
    machine.poll(&mut begin, out).expect("the beginning");
    machine.end(out);
    Any::Stream(machine)
}

fn backup(out: &mut Outbox, version: MajorVersion) -> Any {
    let options =
        BaseBackupOptions { label: "l".to_owned(), fast_checkpoint: true, manifest: true, ..Default::default() };
    Any::Backup(BaseBackup::begin(&options, version, out).expect("a backup"))
}

fn command(out: &mut Outbox) -> Any {
    Any::Command(Command::begin("IDENTIFY_SYSTEM", out).expect("a command"))
}

fn upload(out: &mut Outbox) -> Any {
    Any::Upload(UploadManifest::begin(MajorVersion::V17, out).expect("an upload"))
}

/// An upload that the server waits for.
fn uploading(out: &mut Outbox) -> UploadManifest {
    let mut machine = UploadManifest::begin(MajorVersion::V17, out).expect("an upload");
    let mut ready = BytesMut::from(&message(b'G', &[0, 0, 0])[..]);
    machine.poll(&mut ready, out).expect("the beginning");
    machine
}

/// All of it was sent.
fn uploaded(out: &mut Outbox) -> Any {
    let mut machine = uploading(out);
    machine.data(b"a manifest", out);
    machine.end(out);
    Any::Upload(machine)
}

type Make = fn(&mut Outbox) -> Any;

/// One state of a machine.
#[derive(Clone)]
struct State {
    make: Make,
    /// The messages that lead to it.
    path: Vec<Vec<u8>>,
    name: &'static str,
    /// The types that it accepts beside ErrorResponse, NoticeResponse and ParameterStatus.
    accepts: &'static [&'static str],
}

fn state(make: Make, path: Vec<Vec<u8>>, name: &'static str, accepts: &'static [&'static str]) -> State {
    State { make, path, name, accepts }
}

fn states_of_sessions() -> Vec<State> {
    let sasl = authentication(10, b"SCRAM-SHA-256\0\0");
    let ok = authentication(0, &[]);
    const ANSWERS: &[&str] = &["CommandComplete", "EmptyQueryResponse", "ReadyForQuery", "RowDescription"];
    vec![
        state(startup, vec![], "startup packet sent", &["Authentication"]),
        state(startup, vec![authentication(3, &[])], "password sent", &["Authentication"]),
        state(startup, vec![authentication(5, b"salt")], "password sent", &["Authentication"]),
        state(startup, vec![sasl], "SCRAM begun", &[]),
        state(startup, vec![ok.clone()], "authenticated", &["BackendKeyData", "ReadyForQuery"]),
        state(startup, vec![ok, ready()], "session ready", &[]),
        state(command, vec![], "command sent", ANSWERS),
        state(command, vec![columns(2)], "result set", &["CommandComplete", "DataRow"]),
        state(command, vec![columns(2), row(&[None, None])], "result set", &["CommandComplete", "DataRow"]),
        state(command, vec![error("ERROR", "XX000")], "command failed", &["ReadyForQuery"]),
        state(command, vec![ready()], "ready for a command", &[]),
    ]
}

fn states_of_streams() -> Vec<State> {
    let begin = || message(b'W', &[0, 0, 0]);
    let done = || message(b'c', &[]);
    let next = || row(&[Some("2"), Some("0/100")]);
    const ROWS: &[&str] = &["CommandComplete", "DataRow"];
    let end = "end of the stream";
    vec![
        state(stream, vec![], "START_REPLICATION sent", &["CopyBothResponse", "RowDescription"]),
        state(stream, vec![begin()], "streaming", &["CopyDone"]),
        state(stream, vec![begin(), done()], end, &["CommandComplete", "RowDescription"]),
        state(stream, vec![begin(), done(), columns(2)], end, ROWS),
        state(stream, vec![columns(2)], end, ROWS),
        state(stream, vec![columns(2), next(), complete("x")], end, &["CommandComplete", "ReadyForQuery"]),
        state(stream, vec![columns(2), next(), complete("x"), complete("x")], end, &["ReadyForQuery"]),
        state(stream, vec![begin(), error("ERROR", "58P01")], "stream failed", &["ReadyForQuery"]),
        state(stream, vec![begin(), complete("COPY 0")], "stream over", &[]),
        state(asked_to_end, vec![], "CopyDone sent", &["CopyDone"]),
    ]
}

fn states_of_backups() -> Vec<State> {
    let position = || vec![columns(2), row(&[Some("0/100"), Some("1")]), complete("SELECT")];
    let list = || vec![columns(3), row(&[None, None, Some("7")]), complete("SELECT")];
    let listed = |rest: &[Vec<u8>]| [&position()[..], &list(), rest].concat();
    let new: Make = |out| backup(out, MajorVersion::V15);
    let old: Make = |out| backup(out, MajorVersion::V14);
    let copy = || message(b'H', &[0, 0, 0]);
    let done = || message(b'c', &[]);
    let copied = |rest: &[Vec<u8>]| {
        let typed = [copy(), message(b'd', b"nbase.tar\0\0"), message(b'd', b"m"), done()];
        listed(&[&typed[..], rest].concat())
    };
    let finished = |rest: &[Vec<u8>]| copied(&[&position()[..], rest].concat());
    let (start, end, archive) =
        ("start position of the backup", "end position of the backup", "before an archive of the backup");
    let plain = [copy(), done(), copy(), done()];
    vec![
        state(new, vec![], "BASE_BACKUP sent", &["RowDescription"]),
        state(new, vec![columns(2)], start, &["CommandComplete", "DataRow"]),
        state(new, position()[..2].to_vec(), start, &["CommandComplete", "DataRow"]),
        state(new, position(), "list of tablespaces", &["RowDescription"]),
        state(new, listed(&[]), archive, &["CopyOutResponse"]),
        state(old, listed(&[]), archive, &["CopyOutResponse"]),
        state(old, listed(&plain[..1]), "inside an archive of the backup", &["CopyData", "CopyDone"]),
        state(old, listed(&plain[..2]), archive, &["CopyOutResponse"]),
        state(old, listed(&plain), end, &["RowDescription"]),
        state(new, listed(&plain[..1]), "inside the copy of the backup", &["CopyDone"]),
        state(new, copied(&[]), end, &["RowDescription"]),
        state(new, finished(&[]), "after the end position of the backup", &["CommandComplete"]),
        state(new, finished(&[complete("BASE_BACKUP")]), "backup complete", &["ReadyForQuery"]),
        state(new, finished(&[complete("BASE_BACKUP"), ready()]), "backup over", &[]),
        state(new, [position(), vec![error("ERROR", "XX001")]].concat(), "backup failed", &["ReadyForQuery"]),
    ]
}

fn states_of_uploads() -> Vec<State> {
    let begin = || message(b'G', &[0, 0, 0]);
    let sent = "manifest sent";
    vec![
        state(upload, vec![], "UPLOAD_MANIFEST sent", &["CopyInResponse"]),
        state(upload, vec![begin()], "sending a manifest", &[]),
        state(upload, vec![begin(), error("ERROR", "XX000")], "upload failed", &["ReadyForQuery"]),
        state(uploaded, vec![], sent, &["CommandComplete"]),
        state(uploaded, vec![error("ERROR", "XX000")], "upload failed", &["ReadyForQuery"]),
        state(uploaded, vec![complete("UPLOAD_MANIFEST")], "manifest taken", &["ReadyForQuery"]),
        state(uploaded, vec![complete("UPLOAD_MANIFEST"), ready()], "upload over", &[]),
    ]
}

/// What is sent of a manifest: nothing before the server waits for it, and nothing after it has refused.
#[test]
fn a_manifest_is_sent_only_while_it_is_waited_for() {
    let sent = |machine: &mut UploadManifest, out: &mut Outbox| {
        out.bytes.clear();
        machine.data(b"{}", out);
        machine.data(b"", out);
        machine.end(out);
        machine.data(b"more", out);
        out.bytes.split().to_vec()
    };
    let mut out = Outbox::default();
    let mut machine = UploadManifest::begin(MajorVersion::V18, &mut out).expect("an upload");
    assert_eq!(out.bytes[5..], b"UPLOAD_MANIFEST\0"[..]);
    assert_eq!(sent(&mut machine, &mut out), b"");
    let mut machine = uploading(&mut out);
    assert_eq!(sent(&mut machine, &mut out), b"d\0\0\0\x06{}c\0\0\0\x04");
    assert!(!machine.is_refused());
    let mut machine = uploading(&mut out);
    let mut refusal = BytesMut::from(&error("ERROR", "XX000")[..]);
    assert_eq!(machine.poll(&mut refusal, &mut out), Ok(None));
    assert!(machine.is_refused());
    assert_eq!(sent(&mut machine, &mut out), b"");
    let mut machine = uploading(&mut out);
    out.bytes.clear();
    machine.fail(&mut out);
    machine.end(&mut out);
    assert_eq!((out.bytes[0], out.bytes.last()), (b'f', Some(&0)));
    assert_eq!(out.bytes.len(), 1 + u32::from_be_bytes(out.bytes[1..5].try_into().expect("a length")) as usize);
}

/// A request for an answer may cross the end of the timeline.
#[test]
fn an_answer_behind_the_end_of_the_stream_is_passed_over_and_wal_is_not() {
    let keepalive = |out: &mut BytesMut| {
        out.put_u8(b'k');
        out.put_u64(0x100);
        out.put_i64(5);
        out.put_u8(0);
    };
    let mut body = BytesMut::new();
    keepalive(&mut body);
    let next = [columns(2), row(&[Some("2"), Some("0/100")]), complete("x"), complete("x"), ready()].concat();
    let ended = || {
        let mut out = Outbox::default();
        let mut machine = stream(&mut out);
        machine.feed(&message(b'W', &[0, 0, 0]), &mut out).expect("the beginning");
        machine.feed(&message(b'c', &[]), &mut out).expect("the end");
        (machine, out)
    };
    let (mut machine, mut out) = ended();
    assert!(!machine.feed(&message(b'd', &body), &mut out).expect("an answer that is late"), "no event");
    assert!(machine.feed(&next, &mut out).expect("the next timeline"));
    let (mut machine, mut out) = ended();
    machine.feed(&wal(0x100, b"late"), &mut out).expect_err("WAL");
    let (mut machine, mut out) = ended();
    machine.feed(&columns(2), &mut out).expect("the result set");
    machine.feed(&message(b'd', &body), &mut out).expect_err("inside the result set");
}

#[test]
fn every_message_in_every_state() {
    let over = ["session ready", "ready for a command", "stream over", "backup over", "upload over"];
    let failed = ["command failed", "stream failed", "backup failed", "upload failed"];
    let all = [states_of_sessions(), states_of_streams(), states_of_backups(), states_of_uploads()].concat();
    for State { make, path, name: state, accepts } in all {
        for (name, bytes) in samples() {
            let mut out = Outbox::default();
            let mut machine = make(&mut out);
            for step in &path {
                machine.feed(step, &mut out).unwrap_or_else(|e| panic!("the way to \"{state}\": {e}"));
            }
            let outcome = machine.feed(&bytes, &mut out);
            let early = ["startup packet sent", "password sent", "SCRAM begun"].contains(&state);
            let expected = match name {
                "NoticeResponse" | "ParameterStatus" => !early,
                "ErrorResponse" => !over.contains(&state) && !failed.contains(&state),
                _ => accepts.contains(&name),
            };
            match outcome {
                Ok(_) => assert!(expected, "{name} in \"{state}\" was accepted"),
                // An answer that makes no sense, or the server's own error, is still a message in its place.
                Err(WireError::Server { .. } | WireError::Answer { .. }) => assert!(expected, "{name} in \"{state}\""),
                Err(WireError::OutOfPlace { message, state: found }) => {
                    assert_eq!((message, found, expected), (name, state, false), "{name} in \"{state}\"");
                }
                // Content of the wrong kind: a CopyData that is neither WAL nor an archive.
                Err(WireError::Malformed { name: found, .. }) => assert_eq!((found, name), ("CopyData", "CopyData")),
                Err(other) => panic!("{name} in \"{state}\": {other}"),
            }
        }
    }
}

fn play(make: Make, messages: &[Vec<u8>]) -> Result<(), WireError> {
    let mut out = Outbox::default();
    let mut machine = make(&mut out);
    messages.iter().try_for_each(|bytes| machine.feed(bytes, &mut out).map(|_| ()))
}

fn refused(make: Make, messages: &[Vec<u8>], text: &str) {
    let error = play(make, messages).expect_err(text);
    assert!(error.to_string().contains(text), "expected {text:?}, found: {error}");
}

#[test]
fn wal_must_continue_at_the_byte() {
    let begin = message(b'W', &[0, 0, 0]);
    assert_eq!(play(stream, &[begin.clone(), wal(0x100, &[1; 8]), wal(0x108, &[2; 9]), wal(0x111, &[3])]), Ok(()));
    for start in [0, 0x0ff, 0x101, 0x200, u64::MAX] {
        let error = play(stream, &[begin.clone(), wal(start.min(u64::MAX - 8), &[1; 8])]).expect_err("a gap");
        assert!(matches!(error, WireError::Discontinuity { expected: Lsn(0x100), .. }), "{error}");
    }
    refused(stream, &[begin.clone(), wal(0x100, &[1; 8]), wal(0x100, &[1; 8])], "expected data at 0/108");
    let last: Make =
        |out| Any::Stream(WalStream::begin(None, Lsn(u64::MAX - 3), TimelineId(1), out).expect("a stream"));
    let mut overflow = wal(0, &[1; 8]);
    overflow[6..14].copy_from_slice(&(u64::MAX - 3).to_be_bytes());
    refused(last, &[begin.clone(), overflow], "passes the last possible LSN");
    let keepalive = |flag| message(b'd', &[&b"k"[..], &[0; 16], &[flag]].concat());
    assert_eq!(play(stream, &[begin.clone(), keepalive(0), keepalive(1)]), Ok(()));
    refused(stream, &[begin.clone(), keepalive(2)], "reply flag");
    refused(stream, &[begin.clone(), message(b'd', b"k")], "keepalive");
    refused(stream, &[begin.clone(), message(b'd', b"w1234")], "XLogData");
    refused(stream, &[begin.clone(), message(b'd', b"")], "empty");
    refused(stream, &[begin, complete("COPY 1")], "CommandComplete");
    refused(stream, &[message(b'W', &[1, 0, 0])], "CopyBothResponse");
}

#[test]
fn the_end_of_a_timeline_must_name_a_later_one() {
    let end = |next, at| {
        vec![columns(2), row(&[next, at]), complete("START_STREAMING"), complete("START_REPLICATION"), ready()]
    };
    assert_eq!(play(stream, &end(Some("2"), Some("0/100"))), Ok(()));
    refused(stream, &end(Some("1"), Some("0/100")), "timeline 1 cannot follow timeline 1");
    refused(stream, &end(Some("0"), Some("0/100")), "timeline 0");
    refused(stream, &end(Some("x"), Some("0/100")), "column 1");
    refused(stream, &end(Some("2"), None), "column 2 is NULL");
    let nothing = [message(b'W', &[0, 0, 0]), message(b'c', &[]), complete("a"), complete("b"), ready()];
    refused(stream, &nothing, "without the next timeline");
}

#[test]
fn a_backup_is_complete_only_with_every_archive_and_the_manifest() {
    let new: Make = |out| backup(out, MajorVersion::V18);
    let old: Make = |out| backup(out, MajorVersion::V13);
    let head = |rows: &[Vec<u8>]| {
        let position = [columns(2), row(&[Some("0/100"), Some("1")]), complete("SELECT")];
        [&position[..], &[columns(3)], rows, &[complete("SELECT")]].concat()
    };
    let base = row(&[None, None, None]);
    let space = row(&[Some("16384"), Some("/space"), Some("1")]);
    let data = |text: &[u8]| message(b'd', text);
    let (copy, done) = (message(b'H', &[0, 0, 0]), message(b'c', &[]));
    refused(new, &head(&[]), "base directory");
    refused(new, &head(&[base.clone(), space.clone()]), "base directory");
    refused(new, &head(&[base.clone(), base.clone()]), "base directory");
    let both = head(&[space, base]);
    let then = |rest: &[Vec<u8>]| [&both[..], std::slice::from_ref(&copy), rest].concat();
    let (first, second) = (data(b"n16384.tar\0/space\0"), data(b"nbase.tar\0\0"));
    refused(new, &then(&[data(b"dx")]), "before the first archive");
    refused(new, &then(std::slice::from_ref(&second)), "expected archive \"16384.tar\", found \"base.tar\"");
    refused(new, &then(&[first.clone(), data(b"m")]), "manifest where none is due");
    refused(new, &then(&[first.clone(), done.clone()]), "after 1 of 2 archives");
    refused(new, &then(&[first.clone(), second.clone(), done.clone()]), "without a manifest");
    refused(new, &then(&[first.clone(), second.clone(), data(b"m"), data(b"m")]), "manifest where none is due");
    refused(new, &then(&[first.clone(), second.clone(), second.clone()]), "where none is due");
    refused(new, &then(&[first.clone(), data(b"p123")]), "progress");
    refused(new, &then(&[first.clone(), data(b"nbase.tar\0")]), "archive header");
    refused(new, &then(&[first.clone(), data(b"z")]), "unknown backup message");
    assert_eq!(
        play(new, &then(&[first, data(b"dx"), data(b"p12345678"), second, data(b"m"), data(b"d{}"), done.clone()])),
        Ok(())
    );
    let three =
        [copy.clone(), data(b"x"), done.clone(), copy.clone(), done.clone(), copy.clone(), data(b"{}"), done.clone()];
    assert_eq!(play(old, &[&both[..], &three].concat()), Ok(()));
    refused(old, &[&both[..], &three, &[copy]].concat(), "CopyOutResponse");
}

#[test]
fn the_servers_error_is_kept_in_parts() {
    let mut out = Outbox::default();
    let mut machine = command(&mut out);
    let body = b"SFEHLER\0VERROR\0C42704\0Mweg\0Ddetail\0Hhint\0Ffile.c\0L7\0RReplicationSlotAcquire\0\0";
    machine.feed(&message(b'E', body), &mut out).expect("the error waits for ReadyForQuery");
    let expected = ServerError {
        severity: "ERROR".to_owned(),
        sqlstate: "42704".to_owned(),
        message: "weg".to_owned(),
        detail: Some("detail".to_owned()),
        hint: Some("hint".to_owned()),
        routine: Some("ReplicationSlotAcquire".to_owned()),
    };
    let error = machine.feed(&ready(), &mut out).expect_err("the error");
    assert_eq!(error, WireError::Server { error: Box::new(expected), ready: true });
    // After a fatal one nothing follows.
    let mut machine = stream(&mut out);
    let error = machine.feed(&error_fatal(), &mut out).expect_err("the error");
    assert!(matches!(error, WireError::Server { ready: false, .. }));
}

fn error_fatal() -> Vec<u8> {
    error("FATAL", "57P01")
}

#[test]
fn methods_of_authentication_are_refused_by_name() {
    for (code, name) in [(2, "Kerberos 5"), (6, "SCM credential"), (7, "GSSAPI"), (9, "SSPI")] {
        refused(startup, &[authentication(code, &[])], name);
    }
    refused(startup, &[authentication(10, b"OAUTHBEARER\0\0")], "OAUTHBEARER");
    refused(startup, &[authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")], "without TLS");
    refused(startup, &[authentication(99, &[])], "malformed message Authentication");
    let begun = authentication(10, b"SCRAM-SHA-256\0\0");
    refused(startup, &[begun.clone(), authentication(0, &[])], "SCRAM begun");
    refused(startup, &[begun.clone(), authentication(12, b"v=x")], "SCRAM begun");
    refused(startup, &[begun.clone(), authentication(11, b"r=other,s=AAAA,i=4096")], "nonce");
    refused(startup, &[begun, authentication(11, b"nonsense")], "SCRAM");
    let none: Make = |out| {
        let login = Login {
            user: "u".to_owned(),
            password: None,
            parameters: vec![],
            channel_binding: ChannelBindingPolicy::Require,
            require_auth: RequireAuth::default(),
            tls: true,
            end_point: Some(vec![1; 32]),
        };
        Any::Startup(Startup::begin(login, out).expect("a startup packet"))
    };
    refused(none, &[authentication(0, &[])], "channel binding is required");
    refused(none, &[authentication(3, &[])], "channel binding is required");
    refused(none, &[authentication(10, b"SCRAM-SHA-256\0\0")], "does not offer SCRAM-SHA-256-PLUS");
    refused(none, &[authentication(10, b"SCRAM-SHA-256-PLUS\0\0")], "none is given");
}

#[test]
fn lengths_are_bounded_before_anything_is_kept() {
    for (tag, length) in [(b'd', 65 << 20), (b'D', u32::MAX), (b'Z', 30_001), (b'S', 40_000), (b'R', 2_001), (b'C', 3)]
    {
        let mut bytes = vec![tag];
        bytes.put_u32(length);
        assert!(matches!(codec::message_length(&bytes, false), Err(WireError::Length { .. })), "{}", char::from(tag));
    }
    assert_eq!(codec::message_length(b"d\x00\x00\x00", false), Ok(None));
    assert!(codec::message_length(b"HTTP/1.1 400", true).is_err());
    assert_eq!(codec::message_length(b"\x15\x03\x01\x00\x02\x02", true), Err(WireError::UnknownTag { tag: 0x15 }));
    // Before the login even long types are short.
    assert!(codec::message_length(b"E\x00\x00\x80\x00", true).is_err());
    assert!(codec::message_length(b"E\x00\x00\x80\x00", false).is_ok());
}

#[test]
fn wal_is_handed_on_without_a_copy() {
    let mut input = BytesMut::from(&wal(0x100, &[7; 4096])[..]);
    let place = input.as_ptr() as usize + 5 + 25;
    let mut out = Outbox::default();
    let mut machine = WalStream::begin(None, Lsn(0x100), TimelineId(1), &mut out).expect("a stream");
    machine.poll(&mut BytesMut::from(&message(b'W', &[0, 0, 0])[..]), &mut out).expect("the beginning");
    let event = machine.poll(&mut input, &mut out).expect("an event");
    use walrecv::wire::message::StreamEvent;
    use walrecv::wire::wal_stream::WalEvent;
    let Some(WalEvent::Stream(StreamEvent::Data { bytes, .. })) = event else { panic!("{event:?}") };
    assert_eq!((bytes.as_ptr() as usize, bytes.len()), (place, 4096));
    assert_eq!(bytes, Bytes::from(vec![7; 4096]));
}

/// A walsender answers a status that asks for it even after its own CopyDone (`ProcessStandbyReplyMessage`).
#[test]
fn a_keepalive_after_the_end_of_a_timeline_is_passed_over() {
    let mut keepalive = vec![b'k'];
    keepalive.put_u64(0x100);
    keepalive.put_i64(5);
    keepalive.put_u8(0);
    let begun = [message(b'W', &[0, 0, 0]), message(b'c', &[])];
    let rest = [columns(2), row(&[Some("2"), Some("0/100")]), complete("SELECT"), complete("x"), ready()];
    let played = |late: Vec<u8>| play(stream, &[&begun[..], &[late], &rest].concat());
    assert!(played(message(b'd', &keepalive)).is_ok());
    assert!(matches!(played(wal(0x100, b"late")), Err(WireError::Answer { .. })), "WAL has no place there");
}
