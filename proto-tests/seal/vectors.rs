//! Stored vectors: `proto-tests/vectors/seal/vectors.txt` says of each file how it is opened and what must come out.
//!
//! The list below makes them again: with `WALRECV_WRITE_VECTORS=1` it writes the folder, otherwise it must give the same bytes (those that
//! a compression library made may change with it, and need only open). An independent reader, `reader.py`, checks the folder as well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use sha2::{Digest, Sha256};
use walrecv::keys::ring::ReaderRing;
use walrecv::keys::setup::{self, RepositoryKeys};
use walrecv::pg::{Lsn, TimelineId};
use walrecv::seal::content::group::GroupSummary;
use walrecv::seal::content::hex;
use walrecv::seal::content::repository::{Encryption, RepositoryFile};
use walrecv::seal::content::summary::Summary;
use walrecv::seal::hash::content_hash;
use walrecv::seal::header::{Claims, KeyClass, ObjectKind};
use walrecv::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};
use walrecv::seal::opener::{OpenFailed, Opener, open_index};
use walrecv::seal::sealer::{Compression, Sealer, seal_index};
use walrecv::seal::tail::{TailSealer, open_piece, open_tail};

use crate::support::*;

#[path = "bad_vectors.rs"]
mod bad;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("proto-tests/vectors/seal")
}

/// Whose keys open the vector.
#[derive(Clone, Copy, Debug, PartialEq)]
enum With {
    /// Secret and identity.
    Identity,
    /// The secret alone.
    Secret,
    OtherIdentity,
    OtherSecret,
    /// The published constant.
    Published,
}

const WITH: [(With, &str); 5] = [
    (With::Identity, "identity"),
    (With::Secret, "secret"),
    (With::OtherIdentity, "other-identity"),
    (With::OtherSecret, "other-secret"),
    (With::Published, "published"),
];

/// How the bytes are read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum As {
    /// Frame 0, and all content frames.
    Object,
    Tail,
    Piece,
}

#[derive(Clone)]
struct Vector {
    name: &'static str,
    bytes: Vec<u8>,
    how: As,
    with: With,
    expected: Claims,
    outcome: Outcome,
    /// Made without a compression library.
    exact: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Opens { frame0: Vec<u8>, from: u64, content: Vec<u8> },
    Refused(&'static str),
}

struct Keys {
    identity: RepositoryKeys,
    other: RepositoryKeys,
    writer: WriterKeys,
}

impl Keys {
    /// From the folder: an age file cannot be made twice with the same bytes.
    fn read() -> Keys {
        let read = |name: &str| std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let keys_in = |name: &str| {
            let text = String::from_utf8(read(name)).unwrap();
            let identity = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap().to_owned();
            let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
            RepositoryKeys { identity: identity.into(), public, secret: RepositorySecret(SECRET) }
        };
        let wrapped = read("wrapped-data-key.age");
        let writer = WriterKeys { wrapped, ..writer() };
        Keys { identity: keys_in("identity.txt"), other: keys_in("other-identity.txt"), writer }
    }

    fn write() {
        let save = |name: &str, bytes: &[u8]| std::fs::write(folder().join(name), bytes).unwrap();
        for name in ["identity.txt", "other-identity.txt"] {
            let (text, _) = setup::generate_recipient();
            save(name, text.as_bytes());
            if name == "identity.txt" {
                let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
                let recipient = public.parse::<age::x25519::Recipient>().unwrap();
                save("wrapped-data-key.age", &age::encrypt(&recipient, &DATA_KEY).unwrap());
            }
        }
    }

    fn ring(&self, with: With) -> ReaderRing {
        let (secret, identity) = match with {
            With::Identity => (RepositorySecret(SECRET), Some(&self.identity)),
            With::Secret => (RepositorySecret(SECRET), None),
            With::OtherIdentity => (RepositorySecret(SECRET), Some(&self.other)),
            With::OtherSecret => (RepositorySecret([0x0E; 32]), Some(&self.identity)),
            With::Published => (RepositorySecret::published(), None),
        };
        ReaderRing::new(REPOSITORY, secret, identity.map(|keys| keys.identity.as_str())).unwrap()
    }
}

/// Claims of the vectors: WAL kinds as in [`claims`], others with timeline 0 and a part number.
fn vector_claims(kind: ObjectKind) -> Claims {
    let wal = matches!(kind, ObjectKind::Segment | ObjectKind::Partial | ObjectKind::Tail);
    let history = kind == ObjectKind::History;
    let timeline = if wal || history { TimelineId(3) } else { TimelineId(0) };
    Claims { timeline, start: if wal { claims(kind).start } else { Lsn(7) }, ..claims(kind) }
}

/// Plain bytes of the content of the good vectors, in frames.
fn content() -> [Vec<u8>; 3] {
    [wal_like(40, 1), wal_like(300, 2), wal_like(10, 3)]
}

fn summary() -> Vec<u8> {
    let start = claims(ObjectKind::Segment).start;
    let hash = content_hash(&RepositorySecret(SECRET), &content().concat());
    Summary::of(start, Lsn(start.0 + 350), hash).encode()
}

/// A good object of the content class; each kind under its own salt.
fn content_object(keys: &WriterKeys, kind: ObjectKind, salt: u8, compression: Compression) -> Vec<u8> {
    let mut sealer = Sealer::new(keys, vector_claims(kind), [salt; 32], compression);
    for frame in content() {
        sealer.push(&frame);
        sealer.cut();
    }
    sealer.finish(&summary()).to_vec()
}

fn good(keys: &Keys) -> Vec<Vector> {
    let mut all = Vec::new();
    let mut add = |name, bytes, how, with, expected: ObjectKind, exact, opens: (Vec<u8>, u64, Vec<u8>)| {
        let (frame0, from, content) = opens;
        let outcome = Outcome::Opens { frame0, from, content };
        all.push(Vector { name, bytes, how, with, expected: vector_claims(expected), outcome, exact });
    };
    let opens = || (summary(), 0, content().concat());
    for (name, kind, salt, compression) in [
        ("segment-none", ObjectKind::Segment, 1, Compression::None),
        ("segment-lz4", ObjectKind::Segment, 2, Compression::Lz4),
        ("segment-zstd", ObjectKind::Segment, 3, Compression::Zstd(3)),
        ("partial", ObjectKind::Partial, 4, Compression::None),
        ("pack", ObjectKind::Pack, 5, Compression::None),
    ] {
        let bytes = content_object(&keys.writer, kind, salt, compression);
        add(name, bytes, As::Object, With::Identity, kind, compression == Compression::None, opens());
    }
    let unencrypted = content_object(&unencrypted_writer(), ObjectKind::Segment, 6, Compression::None);
    add("segment-unencrypted", unencrypted, As::Object, With::Published, ObjectKind::Segment, true, opens());
    let empty = Sealer::new(&keys.writer, vector_claims(ObjectKind::Segment), [7; 32], Compression::None);
    let empty = empty.finish(&summary()).to_vec();
    add(
        "segment-without-content",
        empty,
        As::Object,
        With::Identity,
        ObjectKind::Segment,
        true,
        (summary(), 0, vec![]),
    );
    for (kind, name) in INDEX_KINDS {
        let text = format!("{{\"a\":\"{}\"}}", kind.name()).into_bytes();
        let sealed = seal_index(&keys.writer, vector_claims(kind), [16 + kind.number(); 32], Compression::None, &text);
        add(name, sealed.to_vec(), As::Object, With::Secret, kind, true, (vec![], 0, text));
    }
    all.push(group(keys));
    let mut add = |name, bytes, how, with, expected: ObjectKind, exact, opens: (Vec<u8>, u64, Vec<u8>)| {
        let (frame0, from, content) = opens;
        let outcome = Outcome::Opens { frame0, from, content };
        all.push(Vector { name, bytes, how, with, expected: vector_claims(expected), outcome, exact });
    };
    let (tail, plain) = tail(keys);
    add("tail", tail.concat(), As::Tail, With::Identity, ObjectKind::Tail, true, (vec![], 0, plain.concat()));
    let torn = [&tail[..2].concat()[..], &tail[2][..150], &[0; 200]].concat();
    add("tail-torn", torn, As::Tail, With::Identity, ObjectKind::Tail, true, (vec![], 0, plain[0].clone()));
    // Where the next frame would be, the file still has what it held before.
    let mut earlier = TailSealer::new(&keys.writer, vector_claims(ObjectKind::Tail), [0x77; 32], Compression::None);
    let stale: Vec<u8> = tail[1..].iter().flat_map(|flush| earlier.seal(&vec![b'e'; flush.len() - 80])).collect();
    let again = [&tail[..2].concat()[..], &stale[tail[1].len()..]].concat();
    add(
        "tail-over-an-earlier-one",
        again,
        As::Tail,
        With::Identity,
        ObjectKind::Tail,
        true,
        (vec![], 0, plain[0].clone()),
    );
    add("tail-never-written", vec![0; 64], As::Tail, With::Identity, ObjectKind::Tail, true, (vec![], 0, vec![]));
    let piece = [&tail[0][..], &tail[2], &tail[3]].concat();
    let plain = (vec![], 40, plain[1..].concat());
    add("tail-piece", piece, As::Piece, With::Identity, ObjectKind::Tail, true, plain);
    all
}

/// Where the group of [`group`] begins.
const GROUP: Lsn = Lsn(1 << 32);

/// What a group summary really says: two segments, a hole, and the end of the timeline.
fn group_content() -> GroupSummary {
    let at =
        |number: u64, len: u64, hash| Summary::of(GROUP + (number << 20), GROUP + (number << 20) + len, [hash; 32]);
    let segments = vec![at(3, 1 << 20, 0xA3), at(5, 1 << 20, 0xA5)];
    GroupSummary { segments, partials: vec![at(6, 4711, 0xA6)] }
}

fn group(keys: &Keys) -> Vector {
    let expected = Claims { timeline: TimelineId(3), start: GROUP, ..vector_claims(ObjectKind::GroupSummary) };
    let content = group_content().encode();
    let sealed = seal_index(&keys.writer, expected, [65; 32], Compression::None, &content);
    let outcome = Outcome::Opens { frame0: vec![], from: 0, content };
    let (how, with) = (As::Object, With::Secret);
    Vector { name: "group-summary-of-three", bytes: sealed.to_vec(), how, with, expected, outcome, exact: true }
}

#[test]
fn the_stored_group_summary_says_what_it_should() {
    let bytes = std::fs::read(folder().join("group-summary-of-three.bin")).unwrap();
    let vector = group(&Keys::read());
    let plain = open_index(&bytes, &vector.expected, &Keys::read().ring(With::Secret)).unwrap();
    assert_eq!(GroupSummary::decode(&plain, GROUP), Ok(group_content()));
    // The members that docs/format/repository-format.md names.
    let text = String::from_utf8(plain).unwrap();
    assert!(text.starts_with("{\"version\":1,\"segments\":[{\"start\":\"1/300000\",\"end\":\"1/400000\""), "{text}");
    assert!(text.contains("\"partials\":[{\"start\":\"1/600000\",\"end\":\"1/601267\""), "{text}");
}

const INDEX_KINDS: [(ObjectKind, &str); 11] = [
    (ObjectKind::Map, "map"),
    (ObjectKind::Intent, "intent"),
    (ObjectKind::Manifest, "manifest"),
    (ObjectKind::Tombstone, "tombstone"),
    (ObjectKind::ServerManifest, "server-manifest"),
    (ObjectKind::Event, "event"),
    (ObjectKind::History, "history"),
    (ObjectKind::GroupSummary, "group-summary"),
    (ObjectKind::Plan, "plan"),
    (ObjectKind::Cluster, "cluster"),
    (ObjectKind::Heartbeat, "heartbeat"),
];

/// Preamble and three flushes of one frame each, zeros behind the last; their plain bytes.
fn tail(keys: &Keys) -> (Vec<Vec<u8>>, [Vec<u8>; 3]) {
    let claims = vector_claims(ObjectKind::Tail);
    let mut sealer = TailSealer::new(&keys.writer, claims, [64; 32], Compression::None);
    let plain = content();
    let frames = plain.iter().map(|bytes| sealer.seal(bytes).to_vec()).collect::<Vec<_>>();
    let parts = [vec![sealer.preamble().to_vec()], frames].concat();
    (parts, plain)
}

fn open(vector: &Vector, keys: &Keys) -> Outcome {
    let ring = keys.ring(vector.with);
    let opened = match vector.how {
        As::Object if vector.expected.kind.class() == KeyClass::Index => {
            open_index(&vector.bytes, &vector.expected, &ring).map(|content| (vec![], 0, content))
        }
        As::Object => Opener::new(&vector.bytes, &vector.expected, &ring, true).and_then(|opener| {
            let mut content = Vec::new();
            Ok((opener.whole(&vector.bytes, &mut content)?, 0, content))
        }),
        As::Tail => open_tail(&vector.bytes, &vector.expected, &ring).map(|tail| (vec![], 0, tail.plain)),
        As::Piece => open_piece(&vector.bytes, &vector.expected, &ring).map(|piece| (vec![], piece.from, piece.plain)),
    };
    match opened {
        Ok((frame0, from, content)) => Outcome::Opens { frame0, from, content },
        Err(OpenFailed::NotAnObject(_)) => Outcome::Refused("not-an-object"),
        Err(OpenFailed::Version(_)) => Outcome::Refused("version"),
        Err(OpenFailed::Truncated(_)) => Outcome::Refused("truncated"),
        Err(OpenFailed::Claims { .. }) => Outcome::Refused("claims"),
        Err(OpenFailed::Key(_)) => Outcome::Refused("key"),
        Err(OpenFailed::Damaged { .. }) => Outcome::Refused("damaged"),
    }
}

/// One line of `vectors.txt`.
fn line(vector: &Vector) -> String {
    let with = WITH.iter().find(|(with, _)| *with == vector.with).unwrap().1;
    let how = format!("{:?}", vector.how).to_lowercase();
    let claims = vector.expected;
    let mut line = format!(
        "{} {how} {with} {} {} {}",
        vector.name,
        claims.kind.number(),
        claims.timeline,
        claims.start.to_string().to_lowercase()
    );
    match &vector.outcome {
        Outcome::Refused(why) => write!(line, " refused {why}").unwrap(),
        Outcome::Opens { frame0, from, content } => {
            let digest = |bytes: &[u8]| hex(&Sha256::digest(bytes));
            write!(line, " opens {} {from} {}", digest(frame0), digest(content)).unwrap();
        }
    }
    line
}

const MANIFEST_HEAD: &str = "\
# Vectors of docs/format/repository-format.md. One per line:
#   file (.bin)   read as object, tail or piece   with which keys   expected kind, timeline, start   outcome
# Outcome: `opens <SHA-256 of frame 0> <first byte of a piece> <SHA-256 of the content>`, or `refused <why>`.
# For all: repository 7265706f7369746f72792d69642d3136, system 7123456789012345678, segments of 1048576 bytes.
# Secret: 32 bytes 5e (`other-secret`: 32 bytes 0e). Data key: 32 bytes da, wrapped in wrapped-data-key.age for identity.txt.
# `identity`: the secret and identity.txt. `secret`: the secret alone. `other-identity`: the secret and other-identity.txt.
# `published`: the constant of a repository without encryption.
";

fn all(keys: &Keys) -> Vec<Vector> {
    let good = good(keys);
    let by_name: BTreeMap<&str, &Vector> = good.iter().map(|vector| (vector.name, vector)).collect();
    let bad = bad::bad(keys, &|name| by_name[name].clone());
    [good, bad].concat()
}

#[test]
fn stored_vectors_give_their_outcomes() {
    let write = std::env::var_os("WALRECV_WRITE_VECTORS").is_some();
    if write && !folder().join("identity.txt").exists() {
        Keys::write();
    }
    let keys = Keys::read();
    assert_eq!(keys.ring(With::Identity).unwrap_key(&keys.writer.wrapped).unwrap().0, DataKey(DATA_KEY).0);
    let vectors = all(&keys);
    let manifest = vectors.iter().fold(MANIFEST_HEAD.to_owned(), |text, vector| text + &line(vector) + "\n");
    if write {
        std::fs::write(folder().join("vectors.txt"), &manifest).unwrap();
    }
    assert_eq!(std::fs::read_to_string(folder().join("vectors.txt")).unwrap(), manifest);
    let created = "2026-01-02T03:04:05Z".to_owned();
    let about = RepositoryFile::new(REPOSITORY, Encryption::Age, created, &keys.writer.secret);
    if write {
        std::fs::write(folder().join("walrecv.json"), about.encode()).unwrap();
    }
    assert_eq!(std::fs::read(folder().join("walrecv.json")).unwrap(), about.encode());
    for vector in vectors {
        let path = folder().join(format!("{}.bin", vector.name));
        if write {
            std::fs::write(&path, &vector.bytes).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        assert!(!vector.exact || bytes == vector.bytes, "{}: sealing gives other bytes now", vector.name);
        let stored = Vector { bytes, ..vector.clone() };
        assert_eq!(open(&stored, &keys), vector.outcome, "{}", vector.name);
    }
}

/// `reader.py` was written from the format page alone and shares no code with us.
#[test]
fn an_independent_reader_agrees() {
    let output = match Command::new("python3").arg(folder().join("reader.py")).output() {
        Ok(output) => output,
        Err(error) => return skipped(&format!("python3 cannot be run: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.strip_prefix("SKIPPED ")).for_each(skipped);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
