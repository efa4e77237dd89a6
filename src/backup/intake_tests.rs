//! The intake without a server: made archives and manifests, whole and wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::cache::{Cache, Shelf};
use super::diff::{Diff, Parent};
use super::finish::write_maps;
use super::intake::{Expected, Intake, Received};
use super::layers::Place;
use super::orphans::Orphans;
use super::parent_files::ParentFiles;
use super::sealing::Sealing;
use super::survivors::Survivors;
use super::upload::{self, Upload};
use crate::archive::Archive;
use crate::disk::scratch::Scratch;
use crate::error::{Kind, Result};
use crate::keys::ring::{ReaderRing, WriterRing};
use crate::keys::setup;
use crate::pg::data_page::SEGMENT_PAGES;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::repo::{ClusterNames, Repository};
use crate::seal::content::contents::Contents;
use crate::seal::content::event::Spoiled;
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
pub(super) struct Made {
    pub(super) files: Vec<(String, Vec<u8>)>,
    pub(super) manifest: Vec<(String, Vec<u8>)>,
    pub(super) pieces: usize,
}

pub(super) fn made(files: Vec<(String, Vec<u8>)>) -> Made {
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

    pub(super) fn events(&self) -> Vec<BackupEvent> {
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

/// How a backup of a [`Bench`] is taken.
#[derive(Default)]
pub(super) struct Sent<'a> {
    pub(super) number: u16,
    /// Maps of the parent.
    pub(super) parent: &'a [MapRef],
    pub(super) cache: Option<Cache>,
    pub(super) shelf: Option<&'a Shelf>,
    /// Only what changed since the parent is sent.
    pub(super) incremental: bool,
    /// Backups that died, whose packs may be used.
    pub(super) dead: &'a [BackupId],
    /// What lives in nearly empty packs is stored anew.
    pub(super) renewed: bool,
}

/// A repository in memory, its packs on disk too, and a `state_dir`.
pub(super) struct Bench {
    pub(super) archive: Archive,
    pub(super) ring: Arc<WriterRing>,
    dir: tempfile::TempDir,
    /// What is stored, by name.
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    server_compression: Option<ServerCompression>,
}

/// Plaintext of frames, by backup, pack and number.
type Frames = BTreeMap<(String, u32, u32), Vec<u8>>;

impl Bench {
    pub(super) fn new() -> Bench {
        Bench::of(RepositoryId([3; 16]))
    }

    pub(super) fn of(id: RepositoryId) -> Bench {
        let keys = setup::generate();
        let ring = WriterRing::new(id, keys.secret.clone(), Some(&keys.public)).unwrap();
        let reader = ReaderRing::new(id, keys.secret.clone(), Some(&keys.identity)).unwrap();
        let names =
            ClusterNames { cluster: "main".into(), system: SYSTEM, segment_size: SegmentSize::new(1 << 20).unwrap() };
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::open(&format!("file://{}/repository", dir.path().display()), &|_| None).unwrap();
        std::fs::create_dir(dir.path().join("repository")).unwrap();
        let archive = Archive { repo, names, keys: Arc::new(reader) };
        Bench { archive, ring: Arc::new(ring), dir, objects: Arc::default(), server_compression: None }
    }

    pub(super) fn id(&self, number: u16) -> BackupId {
        let time = jiff::Timestamp::from_second(i64::from(number)).unwrap();
        BackupId::new(time, TimelineId(1), START, number)
    }

    pub(super) fn shelf(&self) -> Shelf {
        Shelf::new(self.dir.path(), &self.archive, &self.ring.page_hasher(), None)
    }

    /// Where page hashes are kept.
    pub(super) fn folder(&self) -> PathBuf {
        self.dir.path().join(format!("pages-main-{}", hex(&self.archive.keys.repository().0)))
    }

    /// Where the packs are, as a dead run's are found.
    pub(super) fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    /// Runs the intake and the maps over these events: what was received, the maps, and whether page hashes were kept.
    pub(super) fn backup(&self, events: Vec<BackupEvent>, sent: Sent<'_>) -> Result<(Received, Vec<MapRef>, bool)> {
        let Sent { number, parent, cache, shelf, incremental, dead, renewed } = sent;
        let (to_store, mut uploads) = upload::channel();
        let (objects, repository) = (self.objects.clone(), self.repository());
        let store = std::thread::spawn(move || {
            while let Some(Upload { name, bytes, .. }) = uploads.blocking_recv() {
                if name.contains("/packs/") {
                    let file = repository.join(&name);
                    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                    std::fs::write(file, bytes.concat()).unwrap();
                }
                assert!(objects.lock().unwrap().insert(name.clone(), bytes.concat()).is_none(), "{name} twice");
            }
        });
        let scratch = Arc::new(Scratch::at(self.dir.path().join("sort-main")).unwrap());
        let expected = Expected {
            system: SYSTEM,
            start: START,
            tablespaces: vec![TablespaceRow { oid: None, location: String::new(), size_kb: None }],
            checksums: false,
            pages_per_segment: SEGMENT_PAGES,
            compression: Compression::Lz4,
            server_compression: self.server_compression,
            incremental,
            scratch: scratch.clone(),
        };
        let id = self.id(number);
        let sealing = Sealing::new(self.archive.clone(), self.ring.clone(), id.clone()).unwrap();
        let read = |map: &MapRef, part| Ok(self.map_part(map, part));
        let older = || {
            let files = ParentFiles::read(parent, &read, &scratch).unwrap();
            let survivors = renewed.then(|| Survivors::find(parent, &read, &files.held, true).unwrap());
            Parent { files, cache, survivors }
        };
        let older = (!parent.is_empty()).then(older);
        let unseen = incremental && older.as_ref().is_none_or(|parent| parent.cache.is_none());
        let kept = shelf.filter(|_| !unseen).map(|shelf| shelf.begin(&id).unwrap());
        let runtime = runtime();
        let survivors = older.as_ref().and_then(|parent| parent.survivors.as_ref());
        let dead = survivors.map_or_else(|| dead.to_vec(), |survivors| survivors.others(dead));
        let sound = Spoiled::default();
        let gather = || Orphans::gather(&self.archive, runtime.handle(), &dead, &sound, scratch.path()).unwrap();
        let orphans = (!dead.is_empty()).then(gather);
        let diff = Diff::new(self.ring.page_hasher(), older, kept).beside(orphans);
        let mut intake = Intake::new(expected, diff, sealing, to_store.clone());
        let received = events.into_iter().try_for_each(|e| intake.event(e)).and_then(|()| intake.finish());
        let taken = received.and_then(|(received, files, mut sealing)| {
            let mut place = Place { sealing: &mut sealing, outbox: &to_store, read: &read };
            let (written, kept) = write_maps(files, &received.tally, parent, &mut place, renewed)?;
            Ok((received, written.maps, kept))
        });
        drop(to_store);
        store.join().unwrap();
        taken
    }

    /// A backup of its own: what was received, its map, and how many packs it has.
    fn take(&self, events: Vec<BackupEvent>) -> Result<(Received, Vec<MapRef>)> {
        self.objects.lock().unwrap().clear();
        self.backup(events, Sent::default()).map(|(received, maps, _)| (received, maps))
    }

    pub(super) fn map_part(&self, map: &MapRef, part: u32) -> Vec<u8> {
        let claims = self.archive.claims(ObjectKind::Map, TimelineId(0), Lsn(part.into()));
        let objects = self.objects.lock().unwrap();
        let object = &objects[&self.archive.names.map(map.backup.as_str(), part)];
        open_index(object, &claims, self.archive.keys.as_ref()).unwrap()
    }

    fn files(&self, maps: &[MapRef]) -> Vec<File> {
        let (mut merge, mut files) = (Merge::new(maps), Vec::new());
        loop {
            match merge.step().unwrap() {
                Step::Need { map, part } => merge.feed(map, &self.map_part(&maps[map], part)).unwrap(),
                Step::File(file) => files.push(file),
                Step::End => return files,
            }
        }
    }

    /// Every file of a backup, read from the packs.
    pub(super) fn laid_back(&self, maps: &[MapRef]) -> BTreeMap<String, Vec<u8>> {
        let mut frames = BTreeMap::new();
        let files = self.files(maps);
        files.iter().map(|f| (String::from_utf8(f.path.clone()).unwrap(), self.content(f, &mut frames))).collect()
    }

    fn content(&self, file: &File, frames: &mut Frames) -> Vec<u8> {
        let mut bytes = Vec::new();
        for run in &file.runs {
            let len = (run.count * file.kind.unit().unwrap().bytes()) as usize;
            match &run.source {
                Source::Zero => bytes.resize(bytes.len() + len, 0),
                Source::Pack { pack, frame, offset } => {
                    let place = (pack.backup.to_string(), pack.number, *frame);
                    let plain = frames.entry(place).or_insert_with(|| self.frame(pack, *frame));
                    bytes.extend_from_slice(&plain[*offset as usize..*offset as usize + len]);
                }
            }
        }
        assert_eq!(bytes.len() as u64, file.size);
        bytes
    }

    pub(super) fn frame(&self, pack: &PackPlace, frame: u32) -> Vec<u8> {
        let objects = self.objects.lock().unwrap();
        let object = &objects[&self.archive.names.pack(pack.backup.as_str(), pack.number)];
        assert_eq!(object.len() as u64, pack.len);
        let claims = self.archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(pack.number.into()));
        let opener = Opener::new(&pack.header, &claims, self.archive.keys.as_ref(), true).unwrap();
        let frame0 = opener.frame0(object).unwrap();
        let contents = Contents::decode(&frame0, &pack.backup, pack.number).unwrap();
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

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Bytes that do not compress to nothing and differ from page to page.
pub(super) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
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
        let (received, maps) = bench.take(made.events()).unwrap();
        assert_eq!(received.backup_label, b"label");
        assert_eq!(received.tally.packs, 2);
        let (files, found) = (bench.files(&maps), bench.laid_back(&maps));
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
        assert_eq!(received.tally.changed + received.tally.zero, total as u64);
    }
}

#[test]
fn very_many_small_files_end_a_pack_before_its_list_is_too_long() {
    let bench = Bench::new();
    let files = (0..9000).map(|n| (format!("{n:05}/{}", "x".repeat(80)), format!("{n}").into_bytes())).collect();
    let made = made(files);
    let (received, maps) = bench.take(made.events()).unwrap();
    assert!(received.tally.packs >= 2, "{:?}", received.tally);
    let (files, mut frames) = (bench.files(&maps), Frames::new());
    assert_eq!(files.len(), 9001);
    for file in files.iter().step_by(500) {
        let (_, expected) = made.files.iter().find(|(path, _)| path.as_bytes() == file.path).unwrap();
        assert_eq!(bench.content(file, &mut frames), *expected);
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
    wrong(&|m| m.manifest.push(m.manifest[1].clone()), "or not so often");
    wrong(&|m| m.manifest[0].1.push(0), "backup_label");
    wrong(&|m| m.files.push(m.files[2].clone()), "was received, but the manifest does not name it");
    let twice = |m: &mut Made| {
        m.files.push(m.files[2].clone());
        m.manifest = m.files.clone();
    };
    wrong(&twice, "was sent twice");
    // In another order than it was sent, the same is found.
    let reversed = |change: &dyn Fn(&mut Made), words: &str| {
        let change = |m: &mut Made| {
            change(m);
            m.manifest.reverse();
        };
        wrong(&change, words);
    };
    let mut shuffled = good.clone();
    shuffled.manifest.reverse();
    assert!(bench.take(shuffled.events()).is_ok());
    reversed(&|m| m.manifest[1].1[8192] ^= 1, "CRC-32C of \"base/1/10\"");
    reversed(&|m| drop(m.manifest.remove(2)), "a was received, but the manifest does not name it");
    reversed(&|m| m.manifest.push(("b".into(), Vec::new())), "names \"b\", which was not received");
    reversed(
        &|m| m.manifest.push(m.manifest[1].clone()),
        "names \"base/1/10\", which was not received, or not so often",
    );
    reversed(&twice, "was sent twice");
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
        let (_, maps) = bench.take(compressed(&made, |_| ())).unwrap();
        for (path, content) in bench.laid_back(&maps) {
            assert!(made.files.contains(&(path, content)), "pieces of {pieces}");
        }
    }
    bench.refuses(compressed(&made, |packed| packed.truncate(packed.len() - 1)), "ends in the middle");
    bench.refuses(compressed(&made, |packed| packed.truncate(packed.len() / 2)), "ends in the middle");
    bench.refuses(compressed(&made, |packed| packed[0] ^= 1), "zstd");
    bench.refuses(compressed(&made, |packed| packed.extend_from_slice(b"garbage")), "zstd");
    // Not compressed at all.
    bench.refuses(made.events(), "zstd");
}
