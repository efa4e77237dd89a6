//! A transcript played into the machines, cut in any way.

use std::fmt::Write;

use bytes::{Buf, BytesMut};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::wire::base_backup::BaseBackup;
use walrecv::wire::codec::{Machine, Outbox};
use walrecv::wire::command::{BackupEvent, BaseBackupOptions, Command, Rows};
use walrecv::wire::message::StreamEvent;
use walrecv::wire::require_auth::RequireAuth;
use walrecv::wire::startup::{ChannelBindingPolicy, Login, Startup};
use walrecv::wire::upload_manifest::UploadManifest;
use walrecv::wire::wal_stream::{WalEvent, WalStream};
use walrecv::wire::{ServerError, WireError};

use super::transcript::Turn;

enum Running {
    Nothing,
    Startup(Startup),
    Command(Command),
    Stream(WalStream),
    Backup(BaseBackup),
    Upload(UploadManifest),
}

/// Plays the client's part as recorded, and the machines' answers to the server's.
pub struct Player {
    running: Running,
    input: BytesMut,
    out: Outbox,
    version: MajorVersion,
    /// Data events joined, so that the cuts of messages do not show.
    pub events: Vec<String>,
}

impl Player {
    pub fn new(version: MajorVersion) -> Player {
        let (input, out) = (BytesMut::new(), Outbox::default());
        Player { running: Running::Nothing, input, out, version, events: Vec::new() }
    }

    /// The client's bytes of a turn: begins what they ask for, and compares what the machine sends.
    pub fn client(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if matches!(self.running, Running::Nothing) {
            let mut pairs = rest[8..].split(|b| *b == 0).map(|text| String::from_utf8_lossy(text).into_owned());
            let mut parameters: Vec<(&'static str, String)> = Vec::new();
            let mut user = String::new();
            while let (Some(name), Some(value)) = (pairs.next().filter(|name| !name.is_empty()), pairs.next()) {
                if name == "user" { user = value } else { parameters.push((name.leak(), value)) }
            }
            let channel_binding = ChannelBindingPolicy::Prefer;
            let login = Login {
                user,
                password: None,
                parameters,
                channel_binding,
                require_auth: RequireAuth::default(),
                tls: false,
                end_point: None,
            };
            self.running = Running::Startup(Startup::begin(login, &mut self.out).expect("a startup packet"));
            self.sent(rest);
            return;
        }
        while !rest.is_empty() {
            let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize + 1;
            let (message, after) = rest.split_at(length);
            match message[0] {
                b'Q' => self.query(message),
                b'c' => match &mut self.running {
                    Running::Stream(stream) => {
                        // Either our own wish, or the answer that the machine has put into the outbox already.
                        stream.end(&mut self.out);
                        self.sent(message);
                    }
                    Running::Upload(upload) => {
                        upload.end(&mut self.out);
                        self.sent(message);
                    }
                    _ => panic!("CopyDone without a stream"),
                },
                b'd' => {
                    if let Running::Upload(upload) = &mut self.running {
                        upload.data(&message[5..], &mut self.out);
                        self.sent(message);
                    }
                }
                b'f' => match &mut self.running {
                    Running::Upload(upload) => {
                        upload.fail(&mut self.out);
                        self.sent(message);
                    }
                    _ => panic!("CopyFail without an upload"),
                },
                b'X' => {}
                other => panic!("the client sent {other:#04x}"),
            }
            rest = after;
        }
    }

    fn query(&mut self, message: &[u8]) {
        let text = String::from_utf8_lossy(&message[5..message.len() - 1]).into_owned();
        self.events.push(format!("> {text}"));
        let words: Vec<&str> = text.split(' ').collect();
        self.running = match words[0] {
            "START_REPLICATION" => {
                let slot = (words[1] == "SLOT").then(|| words[2].trim_matches('"'));
                let at = words.iter().position(|w| *w == "PHYSICAL").expect("PHYSICAL") + 1;
                let start: Lsn = words[at].parse().expect("an LSN");
                let timeline = TimelineId(words[at + 2].parse().expect("a timeline"));
                Running::Stream(WalStream::begin(slot, start, timeline, &mut self.out).expect("a stream"))
            }
            "BASE_BACKUP" => {
                let label = "walrecv test".to_owned();
                let incremental = text.contains("INCREMENTAL");
                let options = BaseBackupOptions {
                    label,
                    fast_checkpoint: true,
                    manifest: true,
                    incremental,
                    ..Default::default()
                };
                Running::Backup(BaseBackup::begin(&options, self.version, &mut self.out).expect("a backup"))
            }
            "UPLOAD_MANIFEST" => {
                Running::Upload(UploadManifest::begin(self.version, &mut self.out).expect("an upload"))
            }
            _ => Running::Command(Command::begin(&text, &mut self.out).expect("a command")),
        };
        self.sent(message);
    }

    /// A part of a message is there.
    pub fn is_waiting(&self) -> bool {
        self.input.has_remaining()
    }

    /// What the machines wanted to send is what was sent.
    fn sent(&mut self, recorded: &[u8]) {
        let ours = self.out.bytes.split();
        assert!(ours == recorded, "sent {recorded:02x?}, now {:02x?}", ours.as_ref());
    }

    /// Some of the server's bytes; every event that they complete.
    pub fn server(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.input.extend_from_slice(bytes);
        while self.input.has_remaining() {
            let before = (self.input.len(), self.events.len());
            let event = match &mut self.running {
                Running::Nothing => panic!("the server spoke first"),
                Running::Startup(m) => m.poll(&mut self.input, &mut self.out).map(|e| e.map(|()| "ready".to_owned())),
                Running::Command(m) => m.poll(&mut self.input, &mut self.out).map(|e| e.map(rows)),
                Running::Stream(m) => m.poll(&mut self.input, &mut self.out).map(|e| e.map(stream)),
                Running::Backup(m) => m.poll(&mut self.input, &mut self.out).map(|e| e.map(backup)),
                Running::Upload(m) => {
                    m.poll(&mut self.input, &mut self.out).map(|e| e.map(|e| format!("upload {e:?}")))
                }
            };
            match event {
                Ok(event) => self.events.extend(event),
                // The command failed; the session goes on.
                Err(WireError::Server { error, ready: true }) => self.events.push(refused(&error)),
                Err(error) => return Err(error),
            }
            if before == (self.input.len(), self.events.len()) {
                break;
            }
        }
        Ok(())
    }
}

fn refused(error: &ServerError) -> String {
    format!("error {} {} {:?} from {:?}", error.severity, error.sqlstate, error.message, error.routine)
}

fn rows(answer: Vec<Rows>) -> String {
    let mut text = String::from("answer");
    for set in answer {
        let _ = write!(text, " [{}] {:?}", set.tag, set.columns);
        for row in set.rows {
            let _ = write!(text, " {row:?}");
        }
    }
    text
}

fn stream(event: WalEvent) -> String {
    match event {
        WalEvent::Stream(StreamEvent::Data { start, wal_end, sent_at, bytes }) => {
            let crc = crc32c::crc32c(&bytes);
            format!("wal {start} + {} of {wal_end} at {} crc {crc:08x}", bytes.len(), sent_at.0)
        }
        other => format!("{other:?}"),
    }
}

fn backup(event: BackupEvent) -> String {
    match event {
        BackupEvent::Data(bytes) => format!("data {} crc {:08x}", bytes.len(), crc32c::crc32c(&bytes)),
        BackupEvent::ManifestData(bytes) => format!("manifest {} crc {:08x}", bytes.len(), crc32c::crc32c(&bytes)),
        other => format!("{other:?}"),
    }
}

/// Plays a transcript, with each of the server's turns cut by `cut`.
pub fn play(name: &str, turns: &[Turn], mut cut: impl FnMut(&[u8]) -> Vec<Vec<u8>>) -> Result<Vec<String>, WireError> {
    let number = name.split('-').next().and_then(|v| v.parse().ok()).and_then(MajorVersion::from_number);
    let mut player = Player::new(number.expect("a version"));
    for turn in turns {
        match turn {
            Turn::Client(bytes) => player.client(bytes),
            Turn::Server(bytes) => {
                for piece in cut(bytes) {
                    player.server(&piece)?;
                }
            }
        }
    }
    assert!(!player.is_waiting(), "{name}: bytes without an event");
    Ok(player.events)
}

pub fn whole(bytes: &[u8]) -> Vec<Vec<u8>> {
    vec![bytes.to_vec()]
}
