//! The intake without a server: made archives and manifests, whole and wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use super::finish::write_map;
use super::intake::{Expected, Intake, Received};
use super::sealing::Sealing;
use super::upload::{self, Upload};
use crate::archive::Archive;
use crate::error::{Kind, Result};
use crate::keys::ring::{ReaderRing, WriterRing};
use crate::keys::setup;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::repo::{ClusterNames, Repository};
use crate::seal::content::contents::Contents;
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{File, Merge, PackPlace, Source, Step};
use crate::seal::content::{BackupId, hex};
use crate::seal::header::{ObjectKind, RepositoryId};
use crate::seal::opener::{Opener, open_index};
use crate::seal::page_hash::CHUNK;
use crate::seal::sealer::Compression;
use crate::seal::unpack::packed_by_zstd;
use crate::wire::command::{BackupEvent, ServerCompression, TablespaceRow};

const SYSTEM: SystemIdentifier = SystemIdentifier(7);
const START: Lsn = Lsn(0x2000028);

/// Members of the base archive in order, the manifest's lines, and what is cut where.
#[derive(Clone)]
struct Made {
    files: Vec<(String, Vec<u8>)>,
    manifest: Vec<(String, Vec<u8>)>,
    pieces: usize,
}

fn made(files: Vec<(String, Vec<u8>)>) -> Made {
    let mut all = vec![("backup_label".to_owned(), b"label".to_vec())];
    all.extend(files);
    all.push(("global/pg_control".to_owned(), vec![9; 8192]));
    Made { manifest: all.clone(), files: all, pieces: 32_768 }
}

impl Made {
    fn tar(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, content) in &self.files {
            let mut header = Header::new_ustar();
            header.set_path(path).unwrap();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(content);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out
    }

    fn manifest(&self) -> Vec<u8> {
        let line = |(path, content): &(String, Vec<u8>)| {
            let (size, crc) = (content.len(), hex(&crc32c::crc32c(content).to_le_bytes()));
            format!(
                "{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"2026-01-31 02:00:00 GMT\", \
                 \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}"
            )
        };
        let lines: Vec<String> = self.manifest.iter().map(line).collect();
        let text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"{START}\", \"End-LSN\": \"0/2000100\" }}\n],\n",
            lines.join(",\n")
        );
        let sum = hex(&Sha256::digest(text.as_bytes()));
        format!("{text}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
    }

    fn events(&self) -> Vec<BackupEvent> {
        let data = |bytes: Vec<u8>, wrap: fn(Bytes) -> BackupEvent| -> Vec<BackupEvent> {
            bytes.chunks(self.pieces).map(|c| wrap(Bytes::copy_from_slice(c))).collect()
        };
        let mut events = vec![BackupEvent::Archive { index: 0 }];
        events.extend(data(self.tar(), BackupEvent::Data));
        events.push(BackupEvent::Manifest);
        events.extend(data(self.manifest(), BackupEvent::ManifestData));
        events.extend([BackupEvent::End { lsn: Lsn(0x2000100), timeline: TimelineId(1) }, BackupEvent::Complete]);
        events
    }
}

struct Bench {
    archive: Archive,
    ring: Arc<WriterRing>,
    id: BackupId,
    server_compression: Option<ServerCompression>,
}

impl Bench {
    fn new() -> Bench {
        let (keys, id) = (setup::generate(), RepositoryId([3; 16]));
        let ring = WriterRing::new(id, keys.secret.clone(), Some(&keys.public)).unwrap();
        let reader = ReaderRing::new(id, keys.secret.clone(), Some(&keys.identity)).unwrap();
        let names =
            ClusterNames { cluster: "main".into(), system: SYSTEM, segment_size: SegmentSize::new(1 << 20).unwrap() };
        let repo = Repository::open("file:///nowhere", &|_| None).unwrap();
        let id = BackupId::new(jiff::Timestamp::from_second(0).unwrap(), TimelineId(1), START, 1);
        Bench {
            archive: Archive { repo, names, keys: Arc::new(reader) },
            ring: Arc::new(ring),
            id,
            server_compression: None,
        }
    }

    /// Runs the intake and the map over these events; what was received, the map's parts, and every object by name.
    fn take(&self, events: Vec<BackupEvent>) -> Result<(Received, MapRef, BTreeMap<String, Vec<u8>>)> {
        let (to_store, mut uploads) = upload::channel();
        let store = std::thread::spawn(move || {
            let mut objects = BTreeMap::new();
            while let Some(Upload { name, bytes, .. }) = uploads.blocking_recv() {
                assert!(objects.insert(name.clone(), bytes.concat()).is_none(), "{name} twice");
            }
            objects
        });
        let expected = Expected {
            system: SYSTEM,
            start: START,
            tablespaces: vec![TablespaceRow { oid: None, location: String::new(), size_kb: None }],
            pages_per_segment: None,
            compression: Compression::Lz4,
            server_compression: self.server_compression,
            parent: None,
        };
        let (to, from) = mpsc::channel(events.len() + 1);
        events.into_iter().for_each(|e| to.try_send(e).unwrap());
        drop(to);
        let sealing = Sealing::new(self.archive.clone(), self.ring.clone(), self.id.clone()).unwrap();
        let taken = Intake::new(expected, sealing, to_store.clone()).run(from).and_then(|(received, mut sealing)| {
            let maps = write_map(&received.records, &received.packs, None, &mut sealing, &to_store)?;
            Ok((received, maps.into_iter().next().unwrap()))
        });
        drop(to_store);
        let objects = store.join().unwrap();
        taken.map(|(received, map)| (received, map, objects))
    }

    fn files(&self, map: &MapRef, objects: &BTreeMap<String, Vec<u8>>) -> Vec<File> {
        let (mut merge, mut files) = (Merge::new(std::slice::from_ref(map)), Vec::new());
        loop {
            match merge.step().unwrap() {
                Step::Need { part, .. } => {
                    let claims = self.archive.claims(ObjectKind::Map, TimelineId(0), Lsn(part.into()));
                    let object = &objects[&self.archive.names.map(self.id.as_str(), part)];
                    merge.feed(0, &open_index(object, &claims, self.archive.keys.as_ref()).unwrap()).unwrap();
                }
                Step::File(file) => files.push(file),
                Step::End => return files,
            }
        }
    }

    fn content(&self, file: &File, objects: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for run in &file.runs {
            let len = (run.count * file.kind.unit().unwrap().bytes()) as usize;
            match &run.source {
                Source::Zero => bytes.resize(bytes.len() + len, 0),
                Source::Pack { pack, frame, offset } => {
                    let plain = self.frame(pack, *frame, objects);
                    bytes.extend_from_slice(&plain[*offset as usize..*offset as usize + len]);
                }
            }
        }
        bytes
    }

    fn frame(&self, pack: &PackPlace, frame: u32, objects: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let object = &objects[&self.archive.names.pack(pack.backup.as_str(), pack.number)];
        assert_eq!(object.len() as u64, pack.len);
        let claims = self.archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(pack.number.into()));
        let opener = Opener::new(&pack.header, &claims, self.archive.keys.as_ref(), true).unwrap();
        let frame0 = opener.frame0(object).unwrap();
        let contents = Contents::decode(&frame0, &self.id, pack.number).unwrap();
        assert_eq!(contents.frames.len(), pack.frames.len() - 1);
        let place = pack.frames[frame as usize];
        let sealed = &object[place.offset as usize..][..place.len as usize];
        let plain = opener.frame(sealed, frame, pack.is_last(frame)).unwrap();
        let mut rest = plain.as_slice();
        for piece in &contents.frames[frame as usize - 1] {
            let (bytes, after) = rest.split_at((piece.count * piece.unit.bytes()) as usize);
            let hashes: Vec<_> = bytes.chunks(CHUNK).map(|chunk| self.ring.page_hasher().hash(chunk)).collect();
            assert!(hashes == piece.hashes, "{:?}", String::from_utf8_lossy(&piece.path));
            assert_eq!(piece.first * piece.unit.bytes() % CHUNK as u64, 0);
            rest = after;
        }
        assert!(rest.is_empty(), "the list has all of the frame");
        plain
    }

    fn refuses(&self, events: Vec<BackupEvent>, words: &str) {
        let error = self.take(events).err().unwrap_or_else(|| panic!("not refused: {words}"));
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains(words), "{error}, expected {words:?}");
    }
}

/// Bytes that do not compress to nothing and differ from page to page.
fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        out.extend_from_slice(&(seed >> 16).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Pages of noise with zero pages at these places.
fn pages(count: usize, zero: &[usize]) -> Vec<u8> {
    let mut bytes = noise(count * 8192, count as u64);
    zero.iter().for_each(|page| bytes[page * 8192..(page + 1) * 8192].fill(0));
    bytes
}

#[test]
fn odd_sizes_and_zero_pages_come_back() {
    let bench = Bench::new();
    let mut made = made(vec![
        ("PG_VERSION".into(), b"15\n".to_vec()),
        ("base/1/10".into(), pages(100, &[0, 5, 6, 7, 99])),
        ("base/1/11".into(), Vec::new()),
        ("base/1/12".into(), pages(3, &[0, 1, 2])),
        ("base/1/13".into(), noise(8191, 1)),
        ("base/1/14".into(), pages(2200, &[1000])),
        ("pg_xact/0000".into(), noise(262_145, 2)),
        ("pg_subtrans/0000".into(), [noise(8192, 3), vec![0; 16_384], noise(8192, 4), vec![0; 100]].concat()),
        ("zeros".into(), vec![0; 20_000]),
    ]);
    for pieces in [32_768, 1000, 100_003] {
        made.pieces = pieces;
        let (received, map, objects) = bench.take(made.events()).unwrap();
        assert_eq!(received.backup_label, b"label");
        assert_eq!(received.packs.len(), 2);
        let files = bench.files(&map, &objects);
        let found: BTreeMap<_, _> =
            files.iter().map(|f| (String::from_utf8(f.path.clone()).unwrap(), bench.content(f, &objects))).collect();
        let expected: BTreeMap<_, _> = made.files.iter().filter(|(path, _)| path != "backup_label").cloned().collect();
        assert!(found == expected, "pieces of {pieces}");
        let zero = |path: &str| {
            let file = files.iter().find(|f| f.path == path.as_bytes()).unwrap();
            let zeros = file.runs.iter().filter(|r| r.source == Source::Zero);
            zeros.map(|r| (r.first, r.count)).collect::<Vec<_>>()
        };
        assert_eq!(zero("base/1/10"), [(0, 1), (5, 3), (99, 1)]);
        assert_eq!(zero("base/1/12"), [(0, 3)]);
        assert_eq!(zero("base/1/14"), [(1000, 1)]);
        assert_eq!(zero("zeros"), [(0, 20_000)]);
        assert_eq!(zero("pg_subtrans/0000"), [(8192, 16_384), (32_768, 100)]);
        let total: usize = expected.values().map(Vec::len).sum();
        assert_eq!(received.plain + received.zero, total as u64);
    }
}

#[test]
fn very_many_small_files_end_a_pack_before_its_list_is_too_long() {
    let bench = Bench::new();
    let files = (0..9000).map(|n| (format!("{n:05}/{}", "x".repeat(80)), format!("{n}").into_bytes())).collect();
    let made = made(files);
    let (received, map, objects) = bench.take(made.events()).unwrap();
    assert!(received.packs.len() >= 2, "{} packs", received.packs.len());
    let files = bench.files(&map, &objects);
    assert_eq!(files.len(), 9001);
    for file in files.iter().step_by(500) {
        let (_, expected) = made.files.iter().find(|(path, _)| path.as_bytes() == file.path).unwrap();
        assert_eq!(bench.content(file, &objects), *expected);
    }
}

#[test]
fn what_the_server_s_manifest_contradicts_is_refused() {
    let bench = Bench::new();
    let good = made(vec![("base/1/10".into(), pages(4, &[])), ("a".into(), b"abc".to_vec())]);
    assert!(bench.take(good.events()).is_ok());
    let wrong = |change: &dyn Fn(&mut Made), words: &str| {
        let mut made = good.clone();
        change(&mut made);
        bench.refuses(made.events(), words);
    };
    wrong(&|m| m.manifest[1].1[8192] ^= 1, "CRC-32C of \"base/1/10\"");
    wrong(&|m| m.manifest[2].1.push(0), "has 4 bytes, received were 3");
    wrong(&|m| drop(m.manifest.remove(2)), "a was received, but the manifest does not name it");
    wrong(&|m| m.manifest.push(("b".into(), Vec::new())), "names \"b\", which was not received");
    wrong(&|m| m.manifest.push(m.manifest[1].clone()), "twice");
    wrong(&|m| m.manifest[0].1.push(0), "backup_label");
    wrong(&|m| m.files.push(m.files[2].clone()), "was sent twice");
    wrong(&|m| m.files.retain(|f| f.0 != "global/pg_control"), "global/pg_control");
}

#[test]
fn a_stream_out_of_order_or_cut_is_refused() {
    let bench = Bench::new();
    let events = made(vec![("base/1/10".into(), pages(40, &[]))]).events();
    let without = |drop: &dyn Fn(&BackupEvent) -> bool| events.iter().filter(|e| !drop(e)).cloned().collect::<Vec<_>>();
    bench.refuses(without(&|e| *e == BackupEvent::Manifest), "a manifest before it began");
    bench.refuses(without(&|e| matches!(e, BackupEvent::Manifest | BackupEvent::ManifestData(_))), "no manifest");
    bench.refuses(without(&|e| matches!(e, BackupEvent::ManifestData(_))), "ends early");
    let first = events.iter().position(|e| matches!(e, BackupEvent::Data(_))).unwrap();
    let mut cut = events.clone();
    cut.remove(first + 1);
    bench.refuses(cut, "tar archive");
    let mut other = events.clone();
    other[0] = BackupEvent::Archive { index: 1 };
    bench.refuses(other, "an archive of no tablespace");
    let unfinished = without(&|e| *e == BackupEvent::Complete);
    assert_eq!(bench.take(unfinished).err().unwrap().kind(), Kind::Interrupted);
}

/// The same stream, its archive compressed, in pieces.
fn compressed(made: &Made, change: impl Fn(&mut Vec<u8>)) -> Vec<BackupEvent> {
    let mut packed = packed_by_zstd(&made.tar());
    change(&mut packed);
    let mut events = made.events();
    let first = events.iter().position(|e| matches!(e, BackupEvent::Data(_))).unwrap();
    events.retain(|e| !matches!(e, BackupEvent::Data(_)));
    let pieces = packed.chunks(made.pieces).map(|c| BackupEvent::Data(Bytes::copy_from_slice(c)));
    events.splice(first..first, pieces);
    events
}

#[test]
fn what_a_server_compressed_comes_back_and_garbage_is_refused() {
    let bench = Bench { server_compression: Some(ServerCompression::Zstd { level: 3 }), ..Bench::new() };
    let mut made = made(vec![("base/1/10".into(), pages(100, &[0, 5])), ("a".into(), noise(70_000, 3))]);
    for pieces in [32_768, 333] {
        made.pieces = pieces;
        let (_, map, objects) = bench.take(compressed(&made, |_| ())).unwrap();
        for file in bench.files(&map, &objects) {
            let expected = made.files.iter().find(|(path, _)| path.as_bytes() == file.path).map(|(_, content)| content);
            assert!(expected == Some(&bench.content(&file, &objects)), "pieces of {pieces}");
        }
    }
    bench.refuses(compressed(&made, |packed| packed.truncate(packed.len() - 1)), "ends in the middle");
    bench.refuses(compressed(&made, |packed| packed.truncate(packed.len() / 2)), "ends in the middle");
    bench.refuses(compressed(&made, |packed| packed[0] ^= 1), "zstd");
    bench.refuses(compressed(&made, |packed| packed.extend_from_slice(b"garbage")), "zstd");
    // Not compressed at all.
    bench.refuses(made.events(), "zstd");
}
