//! A repository with everything that one can hold, made without a server: two backups (the second a delta over the first), WAL of two timelines, tails,
//! events, what an interrupted backup left. And its truth: what each backup must give when it is restored.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use walrecv::archive::Archive;
use walrecv::archive::cluster::write_cluster_file;
use walrecv::disk::lay::{Ground, Over};
use walrecv::pg::data_page::{self, PAGE};
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::repo::{Found, Repository, WalGroup};
use walrecv::restore::{self, Target, Wanted, lay};
use walrecv::seal::content::contents::{ContentsWriter, Piece, Unit};
use walrecv::seal::content::event::{CorruptWal, What};
use walrecv::seal::content::heartbeat::Heartbeat;
use walrecv::seal::content::intent::Intent;
use walrecv::seal::content::manifest::{
    Backup, ControlFacts, Manifest, MapRef, Raw, ServerManifest, Sizes, Tombstone, Transfer,
};
use walrecv::seal::content::map::{Entry, EntryKind, MapWriter, PackPlace, Run, Source};
use walrecv::seal::content::plan::{Plan, PlanId};
use walrecv::seal::content::{BackupId, hex};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::key::WriterKeys;
use walrecv::seal::page_hash::{CHUNK, PageHasher};
use walrecv::seal::sealer::{Compression, Sealed, Sealer, seal_index};
use walrecv::seal::tail::TailSealer;

use crate::support::shelf::Shelf;
use crate::support::wal_maker::{SYSTEM, WalMaker};
use crate::support::{PATIENCE, TempDir};

pub const MB: u64 = 1 << 20;
const ONE: TimelineId = TimelineId(1);
const TWO: TimelineId = TimelineId(2);

pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Files of a backup by path.
pub type Truth = BTreeMap<Vec<u8>, Vec<u8>>;

/// A stored backup.
pub struct Made {
    pub manifest: Manifest,
    pub truth: Truth,
}

pub struct Shop {
    pub places: TempDir,
    pub shelf: Shelf,
    pub keys: WriterKeys,
    pub backups: Vec<Made>,
    /// Its manifest was never written: a tombstone stands there.
    pub given_up: BackupId,
}

/// Bytes of one file inside a frame.
pub struct Slice<'a> {
    pub path: &'a str,
    pub unit: Unit,
    pub first: u64,
    pub bytes: Vec<u8>,
}

/// A page with a right checksum, such as a server wrote before the backups began.
pub fn page(block: u32, fill: u8) -> [u8; PAGE] {
    let mut page = [fill; PAGE];
    page[..4].copy_from_slice(&0u32.to_le_bytes());
    page[4..8].copy_from_slice(&0x100u32.to_le_bytes());
    for (at, byte) in page.iter_mut().enumerate().skip(16) {
        *byte = byte.wrapping_add((at as u8).wrapping_mul(31)).wrapping_add(block as u8);
    }
    let sum = data_page::checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    page
}

fn pages(range: std::ops::Range<u32>, fill: u8) -> Vec<u8> {
    range.flat_map(|block| page(block, fill)).collect()
}

fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).expect("random bytes");
    salt
}

/// WAL from one megabyte on: two backups on timeline 1, a fork, timeline 2.
struct Wal {
    one: WalMaker,
    two: WalMaker,
    fork: Lsn,
    spans: [(Lsn, Lsn); 2],
}

fn wal(system: SystemIdentifier, size: SegmentSize) -> Wal {
    let mut xid = 10;
    let mut grow = |made: &mut WalMaker, until: u64| {
        while made.end() < Lsn(until) {
            made.filler(xid, 20_000);
            made.commit(xid, PgTime(i64::from(xid)));
            xid += 1;
        }
    };
    let mut one = WalMaker::new(MajorVersion::V15, size, ONE, Lsn(MB)).of_system(system);
    let mut span = |one: &mut WalMaker, from: u64, until: u64| {
        grow(one, from);
        let redo = one.checkpoint(false).start;
        grow(one, until);
        (redo, one.backup_end(redo).end)
    };
    let first = span(&mut one, MB, MB + 100_000);
    let second = span(&mut one, 2 * MB + 100_000, 2 * MB + 300_000);
    grow(&mut one, 3 * MB + 400_000);
    let mut two = one.fork(TWO);
    let fork = two.end();
    two.end_of_recovery(PgTime(9000));
    grow(&mut two, 5 * MB + 300_000);
    Wal { one, two, fork, spans: [first, second] }
}

impl Shop {
    pub fn new() -> Shop {
        Shop::of_system(SYSTEM)
    }

    /// With keys of its own.
    pub fn of_system(system: SystemIdentifier) -> Shop {
        let places = TempDir::new("shop");
        let size = SegmentSize::new(MB).expect("a size");
        let shelf = run(Shelf::new(&places.join("repository"), system, size));
        Shop::stock(places, shelf)
    }

    /// Another cluster sealed with the keys of `other`, in a folder of its own.
    pub fn sister(other: &Shop, system: SystemIdentifier) -> Shop {
        let places = TempDir::new("shop");
        let shelf = run(other.shelf.sister(&places.join("repository"), system));
        Shop::stock(places, shelf)
    }

    fn stock(places: TempDir, shelf: Shelf) -> Shop {
        let keys = shelf.ring.fresh().expect("a data key");
        let system = shelf.archive.names.system;
        let wal = wal(system, shelf.archive.names.segment_size);
        let given_up = id(9, wal.spans[1].0);
        let mut shop = Shop { places, shelf, keys, backups: Vec::new(), given_up };
        run(write_cluster_file(&shop.archive().repo, &shop.archive().names, PATIENCE)).expect("a cluster file");
        shop.store_wal(&wal);
        shop.first_backup(wal.spans[0]);
        shop.second_backup(wal.spans[1]);
        shop.leave_behind();
        shop
    }

    pub fn archive(&self) -> &Archive {
        &self.shelf.archive
    }

    /// An archive with other keys: those of a stranger.
    pub fn stranger(&self) -> Archive {
        let names = self.archive().names.clone();
        let other = run(Shelf::new(&self.places.join("stranger"), names.system, names.segment_size));
        Archive { keys: other.archive.keys, ..self.archive().clone() }
    }

    /// With the secret alone.
    pub fn without_identity(&self) -> Archive {
        let keys = self.shelf.index_keys();
        Archive { keys, ..self.archive().clone() }
    }

    pub fn put_manifest(&self, manifest: &Manifest) {
        let sealed = self.index(ObjectKind::Manifest, 0, &manifest.encode());
        self.put(&self.archive().names.backup(manifest.id.as_str()), &sealed.bytes);
    }

    /// The same archive in another store.
    pub fn archive_in(&self, repo: Repository) -> Archive {
        Archive { repo, ..self.archive().clone() }
    }

    pub fn put(&self, name: &str, bytes: &[Bytes]) {
        put(&self.archive().repo, name, bytes);
    }

    fn index(&self, kind: ObjectKind, number: u32, content: &[u8]) -> Sealed {
        let claims = self.archive().claims(kind, TimelineId(0), Lsn(u64::from(number)));
        seal_index(&self.keys, claims, salt(), Compression::Zstd(3), content)
    }

    fn store_wal(&self, wal: &Wal) {
        let end = |made: &WalMaker, number: u64| Lsn(made.end().0.min((number + 1) * MB));
        let put = |made: &WalMaker, timeline, number: u64| {
            let bytes = made.slice(Lsn(number * MB), end(made, number));
            run(self.shelf.put_wal(self.shelf.segment(timeline, Lsn(number * MB)), bytes));
        };
        (1..=3).for_each(|number| put(&wal.one, ONE, number));
        (3..=4).for_each(|number| put(&wal.two, TWO, number));
        run(self.shelf.put_history(TWO, format!("1\t{}\tno recovery target specified\n", wal.fork).as_bytes()));
        let archive = self.archive();
        run(archive.put_group_summary(&self.keys, WalGroup::of(ONE, Lsn(MB)), PATIENCE)).expect("a group summary");
        // The open segment: two pieces of one run.
        let (start, last) = (Lsn(5 * MB), wal.two.end());
        let segment = self.shelf.segment(TWO, start);
        let claims = archive.claims(ObjectKind::Tail, TWO, start);
        let mut sealer = TailSealer::new(&self.keys, claims, salt(), Compression::Lz4);
        let middle = start + 100_000;
        for (from, to) in [(start, middle), (middle, last)] {
            let frames = sealer.seal(wal.two.slice(from, to));
            let name = archive.names.tail_piece(segment, from.since(start), to.since(start), "run1");
            self.put(&name, &[sealer.preamble(), frames]);
        }
        let beat = Heartbeat { lsn: last, time: PgTime(1_000_000) };
        run(archive.put_heartbeat(&self.keys, TWO, beat, PATIENCE)).expect("a heartbeat");
        let event = CorruptWal { timeline: ONE, lsn: Lsn(MB), problem: "once, on the way".into() };
        run(archive.put_event(&self.keys, What::CorruptWal(event), PATIENCE)).expect("an event");
    }

    /// Seals a pack, and says where its frames are; it is not stored.
    pub fn pack(&self, id: &BackupId, number: u32, frames: &[Vec<Slice<'_>>]) -> (Arc<PackPlace>, Sealed) {
        self.pack_with(id, number, frames, &|_| ())
    }

    /// As [`Shop::pack`], with a contents list that says something else.
    pub fn pack_with(
        &self,
        id: &BackupId,
        number: u32,
        frames: &[Vec<Slice<'_>>],
        twist: &dyn Fn(&mut Piece),
    ) -> (Arc<PackPlace>, Sealed) {
        let hasher = PageHasher::new(&self.keys.secret);
        let claims = self.archive().claims(ObjectKind::Pack, TimelineId(0), Lsn(u64::from(number)));
        let mut sealer = Sealer::new(&self.keys, claims, salt(), Compression::None);
        let mut contents = ContentsWriter::new(id, number);
        for frame in frames {
            sealer.cut();
            for (at, slice) in frame.iter().enumerate() {
                sealer.push(&slice.bytes);
                let count = slice.bytes.len() as u64 / slice.unit.bytes();
                let hashes = slice.bytes.chunks(CHUNK).map(|chunk| hasher.hash(chunk)).collect();
                let path = slice.path.as_bytes().to_vec();
                let mut piece = Piece { path, unit: slice.unit, first: slice.first, count, hashes };
                twist(&mut piece);
                contents.push(at == 0, &piece);
            }
        }
        let sealed = sealer.finish(&contents.finish());
        let whole = sealed.to_vec();
        let header = Bytes::copy_from_slice(&whole[..sealed.frames[0].offset as usize]);
        let place = PackPlace { backup: id.clone(), number, len: sealed.len(), header, frames: sealed.frames.clone() };
        (Arc::new(place), sealed)
    }

    fn put_pack(&self, id: &BackupId, number: u32, frames: &[Vec<Slice<'_>>]) -> Arc<PackPlace> {
        let (place, sealed) = self.pack(id, number, frames);
        self.put(&self.archive().names.pack(id.as_str(), number), &sealed.bytes);
        place
    }

    pub fn put_map(&self, id: &BackupId, entries: &[Entry]) -> MapRef {
        let mut writer = MapWriter::new(id.clone());
        let mut parts: Vec<Vec<u8>> = entries.iter().flat_map(|entry| writer.push(entry)).collect();
        parts.extend(writer.finish());
        for (number, part) in parts.iter().enumerate() {
            let sealed = self.index(ObjectKind::Map, number as u32, part);
            self.put(&self.archive().names.map(id.as_str(), number as u32), &sealed.bytes);
        }
        map_ref(id, &parts)
    }

    fn first_backup(&mut self, span: (Lsn, Lsn)) {
        let id = id(1, span.0);
        let mut table = pages(0..40, 7);
        table[10 * PAGE..14 * PAGE].fill(0);
        let truth: Truth = [
            ("PG_VERSION", b"15\n".to_vec()),
            ("base/5/1259", pages(0..12, 1)),
            ("base/5/16384", table.clone()),
            ("base/5/16384.1", pages(data_page::SEGMENT_PAGES..data_page::SEGMENT_PAGES + 3, 9)),
            ("global/pg_control", vec![3; 8192]),
        ]
        .map(|(path, bytes)| (path.as_bytes().to_vec(), bytes))
        .into();
        let whole = |path: &'static str, unit| Slice { path, unit, first: 0, bytes: truth[path.as_bytes()].clone() };
        let part = |first: u64, count: u64| {
            let at = (first as usize * PAGE)..((first + count) as usize * PAGE);
            Slice { path: "base/5/16384", unit: Unit::Pages, first, bytes: table[at].to_vec() }
        };
        let zero = self.put_pack(
            &id,
            0,
            &[
                vec![whole("PG_VERSION", Unit::Bytes), whole("base/5/1259", Unit::Pages), part(0, 10)],
                vec![part(14, 20)],
            ],
        );
        let one = self.put_pack(
            &id,
            1,
            &[vec![part(34, 6), whole("base/5/16384.1", Unit::Pages)], vec![whole("global/pg_control", Unit::Bytes)]],
        );
        let entries = vec![
            file(&truth, "PG_VERSION", EntryKind::Bytes, vec![at(0, 3, &zero, 1, 0)]),
            directory("base"),
            directory("base/5"),
            file(&truth, "base/5/1259", EntryKind::Pages, vec![at(0, 12, &zero, 1, 3)]),
            file(
                &truth,
                "base/5/16384",
                EntryKind::Pages,
                vec![
                    at(0, 10, &zero, 1, 3 + 12 * PAGE as u32),
                    Run { first: 10, count: 4, source: Source::Zero },
                    at(14, 20, &zero, 2, 0),
                    at(34, 6, &one, 1, 0),
                ],
            ),
            file(&truth, "base/5/16384.1", EntryKind::Pages, vec![at(0, 3, &one, 1, 6 * PAGE as u32)]),
            directory("global"),
            file(&truth, "global/pg_control", EntryKind::Bytes, vec![at(0, 8192, &one, 2, 0)]),
        ];
        let map = self.put_map(&id, &entries);
        self.finish(id, span, vec![map], truth);
    }

    /// Two pages changed, a relation gone, a new one, another pg_control: the rest is the first one's.
    fn second_backup(&mut self, span: (Lsn, Lsn)) {
        let id = id(2, span.0);
        let mut truth = self.backups[0].truth.clone();
        truth.remove(&b"base/5/1259"[..]);
        truth.insert(b"base/5/1260".to_vec(), pages(0..4, 5));
        truth.insert(b"global/pg_control".to_vec(), vec![4; 8192]);
        let table = truth.get_mut(&b"base/5/16384"[..]).expect("the table");
        for block in [3u32, 20] {
            table[block as usize * PAGE..(block as usize + 1) * PAGE].copy_from_slice(&page(block, 0x55));
        }
        let changed = |block: u32| Slice {
            path: "base/5/16384",
            unit: Unit::Pages,
            first: u64::from(block),
            bytes: page(block, 0x55).to_vec(),
        };
        let whole = |path: &'static str, unit| Slice { path, unit, first: 0, bytes: truth[path.as_bytes()].clone() };
        let frames = [
            vec![whole("base/5/1260", Unit::Pages), changed(3), changed(20)],
            vec![whole("global/pg_control", Unit::Bytes)],
        ];
        let pack = self.put_pack(&id, 0, &frames);
        let page_at = |page: u32| page * PAGE as u32;
        let mut table = file(
            &truth,
            "base/5/16384",
            EntryKind::Pages,
            vec![at(3, 1, &pack, 1, page_at(4)), at(20, 1, &pack, 1, page_at(5))],
        );
        table.complete = false;
        let gone = Entry { kind: EntryKind::Absent, ..directory("base/5/1259") };
        let entries = [
            gone,
            file(&truth, "base/5/1260", EntryKind::Pages, vec![at(0, 4, &pack, 1, 0)]),
            table,
            file(&truth, "global/pg_control", EntryKind::Bytes, vec![at(0, 8192, &pack, 2, 0)]),
        ];
        let map = self.put_map(&id, &entries);
        let maps = vec![map, self.backups[0].manifest.maps[0].clone()];
        self.finish(id, span, maps, truth);
    }

    /// PostgreSQL's manifest, intent, manifest.
    fn finish(&mut self, id: BackupId, span: (Lsn, Lsn), maps: Vec<MapRef>, truth: Truth) {
        let names = &self.archive().names;
        let told: Vec<u8> = format!("the server's manifest of {id}").repeat(50).into_bytes();
        let halves = told.split_at(told.len() / 2);
        for (part, bytes) in [halves.0, halves.1].into_iter().enumerate() {
            let sealed = self.index(ObjectKind::ServerManifest, part as u32, bytes);
            self.put(&names.server_manifest(id.as_str(), part as u32), &sealed.bytes);
        }
        let stored = ServerManifest { parts: 2, len: told.len() as u64, sha256: hex(&Sha256::digest(&told)) };
        self.put(&names.intent(id.as_str()), &self.index(ObjectKind::Intent, 0, &self.intent(&id).encode()).bytes);
        let manifest = self.manifest(&id, span, maps, Some(stored), &truth);
        self.put_manifest(&manifest);
        self.backups.push(Made { manifest, truth });
    }

    /// A backup that was given up, with a pack; the plan of an expiry.
    /// What stands under the name of a backup that was given up, or deleted.
    pub fn tombstone(&self, id: &BackupId) -> Bytes {
        let tombstone = Tombstone {
            version: Tombstone::VERSION,
            id: id.clone(),
            created_at: now(),
            reason: "the server went away".into(),
            made_by: "a test".into(),
            deleted: false,
        };
        self.index(ObjectKind::Tombstone, 0, &tombstone.encode()).bytes.concat().into()
    }

    fn leave_behind(&self) {
        let names = &self.archive().names;
        let id = &self.given_up;
        let slice = Slice { path: "base/5/1", unit: Unit::Pages, first: 0, bytes: pages(0..2, 1) };
        self.put_pack(id, 0, &[vec![slice]]);
        self.put(&names.backup(id.as_str()), &[self.tombstone(id)]);
        let plan = Plan {
            version: Plan::VERSION,
            id: PlanId::parse("20260101T000000Z-0011223344556677").expect("the name of a plan"),
            cluster: names.cluster.clone(),
            system: names.system,
            created_at: now(),
            delete: Vec::new(),
            sweep: Vec::new(),
            made_by: "a test".into(),
            host: String::new(),
            user: String::new(),
        };
        self.put(&names.plan(plan.id.as_str()), &self.index(ObjectKind::Plan, 0, &plan.encode()).bytes);
    }

    fn intent(&self, id: &BackupId) -> Intent {
        Intent {
            version: Intent::VERSION,
            id: id.clone(),
            cluster: "main".into(),
            system: self.archive().names.system,
            started_at: now(),
            reuses: Vec::new(),
            made_by: "a test".into(),
            full: false,
            identity: None,
            host: "here".into(),
            state: "0123456789abcdef".into(),
        }
    }

    pub fn manifest(
        &self,
        id: &BackupId,
        span: (Lsn, Lsn),
        maps: Vec<MapRef>,
        server_manifest: Option<ServerManifest>,
        truth: &Truth,
    ) -> Manifest {
        let total = truth.values().map(|bytes| bytes.len() as u64).sum();
        Manifest {
            version: Manifest::VERSION,
            id: id.clone(),
            label: "made".into(),
            cluster: "main".into(),
            system: self.archive().names.system,
            segment_size: self.archive().names.segment_size,
            version_num: 150018,
            from_standby: false,
            timeline: ONE,
            start: span.0,
            stop: span.1,
            stop_timeline: ONE,
            checkpoint: span.0,
            started_at: now(),
            stopped_at: now(),
            parent: self.backups.first().map(|first| first.manifest.id.clone()),
            transfer: Transfer::Full,
            why_full: None,
            survivors_at: now(),
            maps,
            tablespaces: Vec::new(),
            backup_label: Raw(Vec::new()),
            tablespace_map: None,
            server_manifest,
            sizes: Sizes { total, files: truth.len() as u64, changed: total, ..Sizes::default() },
            control: ControlFacts {
                control_version: 1300,
                catalog_version: 0,
                data_checksum_version: 1,
                relation_segment_pages: 131_072,
                wal_level: 1,
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 0,
                max_locks_per_transaction: 64,
                min_recovery_point: Lsn(0),
                track_commit_timestamp: true,
            },
            bad_pages: Vec::new(),
            bad_page_count: 0,
            torn_pages: Vec::new(),
            absent_tablespaces: Vec::new(),
            identity: None,
            made_by: "a test".into(),
            host: "here".into(),
        }
    }

    /// Restores a backup as far as files and WAL to its stop go; the refusal where there is one. Other bytes than the truth are a failed test.
    pub fn restore(&self, archive: &Archive, number: usize) -> Result<(), String> {
        let made = &self.backups[number];
        let id = &made.manifest.id;
        let manifest = match run(archive.backup(id)).map_err(|e| e.to_string())? {
            Some(Backup::Complete(manifest)) => *manifest,
            _ => return Err(format!("there is no backup {id}")),
        };
        let target = Target::Lsn { lsn: manifest.stop, inclusive: true };
        let wanted = Wanted { target, timeline: None, backup: Some(id.to_string()) };
        run(restore::prepare(archive, &wanted)).map_err(|e| e.to_string())?;
        let place = TempDir::new("laid");
        let root = place.join("data");
        std::fs::create_dir(&root).expect("a folder");
        let ground = Ground { root: root.clone(), tablespaces: Vec::new(), owner: None, over: Over::Nothing };
        let laid =
            run(lay::lay(archive, &manifest, None, &ground, 2, &|_, _| (), &mut None)).map_err(|e| e.to_string())?;
        run(lay::server_manifest(archive, &manifest, &ground)).map_err(|e| e.to_string())?;
        for (path, bytes) in &made.truth {
            let shown = String::from_utf8_lossy(path);
            let found = match path.as_slice() {
                b"global/pg_control" => laid.control.clone(),
                _ => std::fs::read(root.join(&*shown)).unwrap_or_else(|e| panic!("{shown} of {id} was not laid: {e}")),
            };
            assert!(found == *bytes, "{shown} of {id} was restored with OTHER BYTES");
        }
        assert!(made.truth.contains_key(&b"base/5/1259"[..]) || !root.join("base/5/1259").exists());
        Ok(())
    }
}

pub fn put(repo: &Repository, name: &str, bytes: &[Bytes]) {
    let put = run(repo.put_once(name, bytes, &|_| Found::Different, PATIENCE));
    put.unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_769_824_800).expect("a time")
}

pub fn id(hour: i64, start: Lsn) -> BackupId {
    let time = jiff::Timestamp::from_second(1_769_824_800 + hour * 3600).expect("a time");
    BackupId::new(time, ONE, start, hour as u16)
}

fn map_ref(id: &BackupId, parts: &[Vec<u8>]) -> MapRef {
    MapRef { backup: id.clone(), parts: parts.len() as u32, bytes: parts.iter().map(|part| part.len() as u64).sum() }
}

pub fn directory(path: &str) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::Directory,
        size: 0,
        mode: 0o700,
        mtime: 1,
        link: Vec::new(),
        complete: true,
        runs: Vec::new(),
    }
}

pub fn file(truth: &Truth, path: &str, kind: EntryKind, runs: Vec<Run>) -> Entry {
    let size = truth[path.as_bytes()].len() as u64;
    Entry { kind, size, mode: 0o600, runs, ..directory(path) }
}

pub fn at(first: u64, count: u64, pack: &Arc<PackPlace>, frame: u32, offset: u32) -> Run {
    Run { first, count, source: Source::Pack { pack: pack.clone(), frame, offset } }
}
