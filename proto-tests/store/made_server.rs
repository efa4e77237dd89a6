//! A server that is backed up and is none: a small data directory that changes between two backups, and the replication commands that a backup asks. It sends
//! everything, or, where a manifest was uploaded, what differs from the data that this manifest is of.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use walrecv::net::{Conninfo, Dialer};
use walrecv::pg::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId};

use crate::support::{Seed, walsender_words as words};

const PAGE: usize = 8192;
const SEGMENT: u64 = 1 << 20;
const CONTROL: &str = "global/pg_control";

/// Files of a data directory, by path.
pub type Tree = BTreeMap<String, Vec<u8>>;

struct State {
    tree: Tree,
    /// Of each backup that began, by where it starts.
    sent: BTreeMap<Lsn, Tree>,
    chance: Seed,
}

pub struct MadeServer {
    system: SystemIdentifier,
    version: u32,
    state: Mutex<State>,
}

impl MadeServer {
    pub fn new(system: SystemIdentifier, version: u32, seed: u64) -> Arc<MadeServer> {
        let tree = Tree::from([(CONTROL.to_owned(), control(system))]);
        let state = State { tree, sent: BTreeMap::new(), chance: Seed::from(seed) };
        Arc::new(MadeServer { system, version, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test has died")
    }

    /// What the server held when the backup that starts there was sent.
    pub fn sent(&self, start: Lsn) -> Tree {
        self.state().sent[&start].clone()
    }

    pub fn conninfo(self: &Arc<MadeServer>) -> Conninfo {
        let server = self.clone();
        let dial = move || {
            let server = server.clone();
            async move {
                let (ours, theirs) = tokio::io::duplex(64 << 10);
                tokio::spawn(async move {
                    // Whoever hangs up has what it wanted, or was killed.
                    let _ = Session { server, stream: theirs, parent: None }.serve().await;
                });
                io::Result::Ok(ours)
            }
        };
        Conninfo::parse("host=made user=u", &|_| None).expect("a good text").through(Dialer::new(dial))
    }

    /// Where a new backup starts, and what it sends: path and bytes.
    fn begin(&self, parent: Option<Lsn>) -> (Lsn, Vec<(String, Vec<u8>)>) {
        let mut state = self.state();
        let State { tree, sent, chance } = &mut *state;
        live(tree, chance);
        let start = Lsn((sent.len() as u64 + 2) * SEGMENT + 0x28);
        sent.insert(start, tree.clone());
        let before = parent.map(|start| sent[&start].clone());
        let mut files = vec![("backup_label".to_owned(), label(start))];
        for (path, bytes) in tree {
            let older = before.as_ref().and_then(|tree| tree.get(path)).filter(|_| path.starts_with("base/"));
            files.push(match older.filter(|_| chance.below(4) > 0) {
                Some(older) => increment(path, bytes, older, chance),
                None => (path.clone(), bytes.clone()),
            });
        }
        (start, files)
    }
}

/// What happens between two backups.
fn live(tree: &mut Tree, chance: &mut Seed) {
    for _ in 0..1 + chance.below(4) {
        let pages = chance.below(6) as usize;
        tree.insert(format!("base/1/{}", 16384 + chance.below(10)), noise(pages * PAGE, chance));
    }
    let len = chance.below(20_000) as usize;
    tree.insert("pg_xact/0000".to_owned(), noise(len, chance));
    for (_, bytes) in tree.iter_mut().filter(|(path, bytes)| path.starts_with("base/") && !bytes.is_empty()) {
        let at = chance.below(bytes.len() as u64) as usize;
        match chance.below(8) {
            0 => bytes[at] ^= 1,
            1 => bytes[at / PAGE * PAGE..][..PAGE].fill(0),
            2 => bytes.truncate(at / PAGE * PAGE),
            3 => bytes.extend(noise(PAGE * chance.below(3) as usize, chance)),
            _ => {}
        }
    }
    if chance.below(3) == 0 {
        tree.remove(&format!("base/1/{}", 16384 + chance.below(10)));
    }
}

fn noise(len: usize, chance: &mut Seed) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&chance.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A file of which only what differs from `before` is sent (`blkreftable.c`, `basebackup_incremental.c`): pages that it had and that are not sent are inherited,
/// up to the truncation length.
fn increment(path: &str, bytes: &[u8], before: &[u8], chance: &mut Seed) -> (String, Vec<u8>) {
    let (len, older) = (bytes.len() / PAGE, before.len() / PAGE);
    let truncation =
        if chance.below(2) == 0 { len.min(older) } else { chance.below(len.min(older) as u64 + 1) as usize };
    let differs = |n: usize| n >= truncation || bytes[n * PAGE..][..PAGE] != before[n * PAGE..][..PAGE];
    let sent: Vec<usize> = (0..len).filter(|n| differs(*n)).collect();
    let mut out = Vec::new();
    [0xd3ae_1f0d, sent.len() as u32, truncation as u32].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    sent.iter().for_each(|n| out.extend_from_slice(&(*n as u32).to_le_bytes()));
    if !sent.is_empty() {
        out.resize(out.len().next_multiple_of(PAGE), 0);
    }
    sent.iter().for_each(|n| out.extend_from_slice(&bytes[n * PAGE..][..PAGE]));
    let (folder, file) = path.rsplit_once('/').expect("a file in a folder");
    (format!("{folder}/INCREMENTAL.{file}"), out)
}

fn control(system: SystemIdentifier) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    bytes[..8].copy_from_slice(&system.0.to_le_bytes());
    // Version, block sizes, sizes of segments: `pg_control.h`.
    for (at, value) in [(8, 1800u32), (48, 1), (216, 8192), (220, 131_072), (224, 8192), (228, SEGMENT as u32)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[..292]);
    bytes[292..296].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn label(start: Lsn) -> Vec<u8> {
    let size = SegmentSize::new(SEGMENT).expect("a size");
    let segment = SegmentName::new(TimelineId(1), size.segment_of(start), size);
    format!(
        "START WAL LOCATION: {start} (file {segment})\nCHECKPOINT LOCATION: {start}\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
         START TIME: 2026-01-31 02:00:00 GMT\nLABEL: walrecv\nSTART TIMELINE: 1\n"
    )
    .into_bytes()
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, content) in files {
        let mut header = Header::new_ustar();
        header.set_path(path).expect("a short path");
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifest(start: Lsn, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let line = |(path, content): &(String, Vec<u8>)| {
        let (size, crc) = (content.len(), hex(&crc32c::crc32c(content).to_le_bytes()));
        format!(
            "{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"2026-01-31 02:00:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}"
        )
    };
    let lines: Vec<String> = files.iter().map(line).collect();
    let text = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n\
         {{ \"Timeline\": 1, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{start}\" }}\n],\n",
        lines.join(",\n")
    );
    let sum = hex(&Sha256::digest(text.as_bytes()));
    format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
}

/// One connection.
struct Session {
    server: Arc<MadeServer>,
    stream: DuplexStream,
    /// Where the backup starts whose manifest was uploaded.
    parent: Option<Lsn>,
}

impl Session {
    async fn serve(mut self) -> io::Result<()> {
        let startup = self.stream.read_u32().await?;
        self.stream.read_exact(&mut vec![0; startup as usize - 4]).await?;
        let version = self.server.version;
        self.say(words::welcome(&format!("{version}.1"))).await?;
        loop {
            let (tag, body) = self.heard().await?;
            match tag {
                b'X' => return Ok(()),
                b'Q' => self.command(&String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(&body))).await?,
                // The client ends its stream of WAL.
                b'c' => {
                    let end = [words::copy_done(), words::complete("START_STREAMING"), words::ready()];
                    self.say(end.concat()).await?;
                }
                _ => {}
            }
        }
    }

    async fn heard(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let tag = self.stream.read_u8().await?;
        let mut body = vec![0; self.stream.read_u32().await? as usize - 4];
        self.stream.read_exact(&mut body).await?;
        Ok((tag, body))
    }

    async fn say(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.stream.write_all(&bytes).await
    }

    async fn command(&mut self, text: &str) -> io::Result<()> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let answer = match words[..] {
            ["IDENTIFY_SYSTEM"] => {
                let at = self.server.state().sent.keys().last().copied().unwrap_or(Lsn(SEGMENT));
                let row = [Some(self.server.system.to_string()), Some("1".to_owned()), Some(at.to_string()), None];
                words::result(&["systemid", "timeline", "xlogpos", "dbname"], Some(&row), "IDENTIFY_SYSTEM")
            }
            ["SHOW", name] => {
                let value = match name {
                    "wal_segment_size" => "1MB",
                    "block_size" => "8192",
                    "segment_size" => "1GB",
                    "data_checksums" => "off",
                    "summarize_wal" => "on",
                    _ => "",
                };
                words::result(&[name], Some(&[Some(value.to_owned())]), "SHOW")
            }
            ["UPLOAD_MANIFEST"] => match self.upload().await? {
                true => words::complete("UPLOAD_MANIFEST"),
                false => words::error("ERROR", "57014", "COPY from stdin failed", "HandleUploadManifestPacket"),
            },
            ["BASE_BACKUP", ..] => {
                let parent = self.parent.take().filter(|_| text.contains("INCREMENTAL"));
                self.base_backup(parent).await?;
                words::complete("BASE_BACKUP")
            }
            ["START_REPLICATION", ..] => {
                let at = words.iter().find_map(|word| word.parse::<Lsn>().ok()).unwrap_or_default();
                return self.say([words::copy_both(), words::wal(at, at, &[0; 0x28])].concat()).await;
            }
            _ => words::error("ERROR", "42601", text, "made_server"),
        };
        self.say([answer, words::ready()].concat()).await
    }

    /// Which backup the manifest is of: no two start at one place. `false`: the client could not read all of it.
    async fn upload(&mut self) -> io::Result<bool> {
        self.say(words::message(b'G', &[0, 0, 0])).await?;
        let mut text = Vec::new();
        loop {
            match self.heard().await? {
                (b'd', body) => text.extend(body),
                (b'c', _) => break,
                (b'f', _) => return Ok(false),
                (tag, _) => panic!("{} inside of a manifest", char::from(tag)),
            }
        }
        let text = String::from_utf8(text).expect("the text of a manifest");
        let start = text.split("\"Start-LSN\": \"").nth(1).and_then(|rest| rest.split('"').next());
        self.parent = Some(start.and_then(|lsn| lsn.parse().ok()).expect("where the backup starts"));
        Ok(true)
    }

    async fn base_backup(&mut self, parent: Option<Lsn>) -> io::Result<()> {
        let (start, files) = self.server.begin(parent);
        let position =
            words::result(&["recptr", "tli"], Some(&[Some(start.to_string()), Some("1".to_owned())]), "SELECT");
        let base = [None, None, Some("100".to_owned())];
        let spaces = words::result(&["spcoid", "spclocation", "size"], Some(&base), "SELECT");
        self.say([position.clone(), spaces, words::message(b'H', &[0, 0, 0])].concat()).await?;
        let data = |tag: u8, body: &[u8]| words::message(b'd', &[&[tag], body].concat());
        self.say(data(b'n', b"base.tar\0\0")).await?;
        for piece in tar(&files).chunks(32_768) {
            self.say(data(b'd', piece)).await?;
        }
        self.say([data(b'm', b""), data(b'd', &manifest(start, &files)), words::copy_done(), position].concat()).await
    }
}
