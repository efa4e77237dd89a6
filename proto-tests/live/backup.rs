//! Base backups of real servers: everything that the server sent can be read back from the repository, byte for byte by its checksums;
//! whatever stops a backup leaves none.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use walrecv::archive::Archive;
use walrecv::backup::{BackupOptions, Outcome, Progress, WalWatch, take, take_with};
use walrecv::error::{Error, Kind, Result};
use walrecv::keys::ring::{ReaderRing, WriterRing};
use walrecv::keys::setup;
use walrecv::pg::control::ControlFile;
use walrecv::pg::manifest::{Checksum, ManifestItem, ManifestReader};
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::repo::{ClusterNames, Repository};
use walrecv::seal::content::contents::Contents;
use walrecv::seal::content::manifest::{Manifest, Raw};
use walrecv::seal::content::map::{EntryKind, File, Merge, PackPlace, Source, Step};
use walrecv::seal::header::{ObjectKind, RepositoryId};
use walrecv::seal::opener::{Opener, open_index};
use walrecv::seal::sealer::Compression;

use super::net::{conninfo, run};
use super::receive::harness::{Receiving, Vault, create_slot, options as options_of};
use crate::support::{Ledger, Server, TempDir, install, require_servers};

/// A repository in a folder, with all keys.
pub(super) struct Fixture {
    pub(super) archive: Archive,
    pub(super) ring: Arc<WriterRing>,
    pub(super) places: TempDir,
}

impl Fixture {
    pub(super) fn new(server: &Server) -> Fixture {
        let places = TempDir::for_postgres("backup");
        let system = server.sql("select system_identifier from pg_control_system()").parse().expect("a number");
        let segment_size = SegmentSize::from_show(&server.sql("show wal_segment_size")).expect("a size");
        let names = ClusterNames { cluster: "main".into(), system: SystemIdentifier(system), segment_size };
        let keys = setup::generate();
        let id = RepositoryId([7; 16]);
        let ring = WriterRing::new(id, keys.secret.clone(), Some(&keys.public)).expect("a ring");
        let reader = ReaderRing::new(id, keys.secret.clone(), Some(&keys.identity)).expect("a ring");
        let url = format!("file://{}", places.join("repository").display());
        let repo = Repository::open(&url, &|_| None).expect("a repository");
        run(repo.make_root()).expect("a folder");
        Fixture { archive: Archive { repo, names, keys: Arc::new(reader) }, ring: Arc::new(ring), places }
    }

    pub(super) fn take(&self, server: &Server, options: &BackupOptions, watch: &dyn WalWatch) -> Result<Outcome> {
        self.take_at(&server.conninfo("postgres"), options, watch)
    }

    fn take_at(&self, server: &str, options: &BackupOptions, watch: &dyn WalWatch) -> Result<Outcome> {
        run(take_with(&self.archive, self.ring.clone(), &conninfo(server), options, watch))
    }

    /// Names below the cluster's folder.
    fn objects(&self, folder: &str) -> Vec<String> {
        let prefix = format!("{}/{folder}", self.archive.names.root());
        run(self.archive.repo.list(&prefix)).expect("a listing").into_iter().map(|l| l.name).collect()
    }

    fn open(&self, name: &str, kind: ObjectKind, number: u32) -> Vec<u8> {
        let object = run(self.archive.repo.get(name)).expect("a read").unwrap_or_else(|| panic!("{name} is there"));
        let claims = self.archive.claims(kind, TimelineId(0), Lsn(number.into()));
        open_index(&object, &claims, self.archive.keys.as_ref()).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(super) fn files(&self, manifest: &Manifest) -> Vec<File> {
        let (mut merge, mut files) = (Merge::new(&manifest.maps), Vec::new());
        loop {
            match merge.step().expect("a good map") {
                Step::Need { map, part } => {
                    let name = self.archive.names.map(manifest.maps[map].backup.as_str(), part);
                    merge.feed(map, &self.open(&name, ObjectKind::Map, part)).expect("a good part");
                }
                Step::File(file) => files.push(file),
                Step::End => return files,
            }
        }
    }

    /// One frame of a pack with nothing but what the map says of it.
    fn frame(&self, pack: &PackPlace, frame: u32) -> Vec<u8> {
        let claims = self.archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(pack.number.into()));
        let opener = Opener::new(&pack.header, &claims, self.archive.keys.as_ref(), true).expect("a pack's header");
        let place = pack.frames[frame as usize];
        let name = self.archive.names.pack(pack.backup.as_str(), pack.number);
        let range = place.offset..place.offset + u64::from(place.len);
        let sealed = run(self.archive.repo.get_range(&name, range)).expect("a read").expect("a pack");
        opener.frame(&sealed, frame, pack.is_last(frame)).unwrap_or_else(|e| panic!("{name} frame {frame}: {e}"))
    }

    /// The bytes of every file, laid together from the map and the packs.
    pub(super) fn contents(&self, files: &[File]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut frames = BTreeMap::new();
        let mut contents = BTreeMap::new();
        for file in files {
            let Some(unit) = file.kind.unit() else { continue };
            let mut bytes = Vec::new();
            for run in &file.runs {
                let len = (run.count * unit.bytes()) as usize;
                match &run.source {
                    Source::Zero => bytes.resize(bytes.len() + len, 0),
                    Source::Pack { pack, frame, offset } => {
                        let plain = frames
                            .entry((pack.backup.clone(), pack.number, *frame))
                            .or_insert_with(|| self.frame(pack, *frame));
                        bytes.extend_from_slice(&plain[*offset as usize..*offset as usize + len]);
                    }
                }
            }
            assert_eq!(bytes.len() as u64, file.size);
            contents.insert(file.path.clone(), bytes);
        }
        contents
    }
}

/// With a receiver in this program, from its archive as every writer sees it: without the identity.
#[test]
fn a_followed_server_gives_a_backup_with_all_its_wal() {
    for version in install::versions() {
        let mut server = Server::start(version);
        create_slot(&server);
        let vault = Vault::new();
        let receiving = Receiving::start(options_of(&server), vault.place());
        receiving.wait_streaming();
        let ledger = Ledger::builder().writers(2).start(&server);
        ledger.wait_for_more(50);
        let place = vault.place();
        let written = Archive { keys: place.reader.clone(), ..vault.archive(&server) };
        let target = conninfo(&server.conninfo("postgres"));
        let outcome = run(take(&written, place.writer.clone(), &target, &BackupOptions::default())).expect("a backup");
        ledger.stop();
        let places = TempDir::new("unused");
        let fixture = Fixture { archive: vault.archive(&server), ring: place.writer.clone(), places };
        let manifest = stored_manifest(&fixture, &outcome);
        let reaches = run(fixture.archive.contiguous_from(manifest.timeline, manifest.start)).expect("an answer");
        assert!(reaches.is_some_and(|end| end >= manifest.stop), "{reaches:?}, needed {}", manifest.stop);
        check_against_server_manifest(&fixture, &manifest, &fixture.contents(&fixture.files(&manifest)), version);
        println!("PostgreSQL {version}: {:?}, of which {:?} for WAL", outcome.elapsed, outcome.waited_for_wal);

        receiving.stop();
        server.switch_wal();
        let impatient = BackupOptions { follow_within: Duration::from_secs(1), ..Default::default() };
        let error = run(take(&written, place.writer, &target, &impatient)).expect_err("nobody follows");
        assert_eq!(error.kind(), Kind::Slot, "{error}");
        server.stop(crate::support::Stop::Fast);
    }
}

/// The archive has everything.
pub(super) struct Always;

impl WalWatch for Always {
    fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        Box::pin(async { Ok(Some(Lsn(u64::MAX))) })
    }
}

/// The archive has what the test says, from the second question on.
struct Later(Mutex<u32>, Option<Lsn>);

impl WalWatch for Later {
    fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        let mut asked = self.0.lock().expect("a lock");
        *asked += 1;
        let answer = if *asked == 1 { Some(Lsn(u64::MAX)) } else { self.1 };
        Box::pin(async move { Ok(answer) })
    }
}

pub(super) fn fill(server: &Server, places: &TempDir) {
    let place = places.postgres_dir("a table space");
    server.sql(&format!("create tablespace extra location '{}'", place.display()));
    server.sql("create table here as select n, repeat('x', 200) from generate_series(1, 20000) n");
    let random = "select n, md5(n::text) || md5(random()::text) as t from generate_series(1, 60000) n";
    server.sql(&format!("create table there tablespace extra as {random}"));
    server.sql("create index on there (t)");
    server.sql("create unlogged table fleeting (n int); insert into fleeting values (1)");
    server.sql("create database \"ünicode\"");
    // The longest name that a server sends, and one that is no text: its manifest encodes that.
    for name in [&[b'n'; 99][..], ODD_NAME] {
        std::fs::write(server.data_dir().join(OsStr::from_bytes(name)), name).expect("write a file");
    }
}

const ODD_NAME: &[u8] = b"no text: \xff\xfe";

#[test]
fn every_file_can_be_read_back_from_map_and_packs() {
    for version in install::versions() {
        let server = Server::builder(version).initdb("--data-checksums").start();
        let fixture = Fixture::new(&server);
        fill(&server, &fixture.places);
        // Pages change and files grow while they are sent.
        let ledger = Ledger::builder().writers(2).start(&server);
        ledger.wait_for_more(50);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let options = BackupOptions {
            label: "it's \"nightly\" \\".into(),
            compression: if version == MajorVersion::V13 { Compression::None } else { Compression::Lz4 },
            progress: Some(Arc::new(move |p| tell.lock().expect("a lock").push(p))),
            ..Default::default()
        };
        let outcome = fixture.take(&server, &options, &Always).expect("a backup");
        ledger.stop();
        let manifest = stored_manifest(&fixture, &outcome);
        check_facts(&server, &manifest, version);
        let files = fixture.files(&manifest);
        let contents = fixture.contents(&files);
        check_against_server_manifest(&fixture, &manifest, &contents, version);
        assert_eq!(contents.get(ODD_NAME).map(Vec::as_slice), Some(ODD_NAME));
        check_packs(&fixture, &manifest, &files);
        check_sizes(&fixture, &manifest, &contents);
        let told = told.lock().expect("a lock");
        assert!(told.iter().any(|p| matches!(p, Progress::Copying { done, total: Some(_) } if *done > 0)));
        println!("PostgreSQL {version}: {:?}, {} files, {:?}", manifest.sizes, files.len(), outcome.elapsed);
    }
}

/// The manifest as it stands in the repository, found by listing.
fn stored_manifest(fixture: &Fixture, outcome: &Outcome) -> Manifest {
    let list = run(fixture.archive.list_backups()).expect("a list");
    assert!(list.unreadable.is_empty() && list.given_up.is_empty(), "{list:?}");
    let [manifest] = list.complete.as_slice() else { panic!("{list:?}") };
    assert_eq!(*manifest, outcome.manifest);
    assert_eq!(fixture.objects("intents").len(), 1);
    manifest.clone()
}

fn check_facts(server: &Server, manifest: &Manifest, version: MajorVersion) {
    assert_eq!(manifest.major(), Some(version));
    assert_eq!(manifest.label, "it's \"nightly\" \\");
    assert!(!manifest.from_standby);
    assert!(manifest.start < manifest.stop && manifest.stop <= server.lsn());
    assert!(manifest.checkpoint >= manifest.start);
    assert_eq!((manifest.id.start(), manifest.id.timeline()), (manifest.start, TimelineId(1)));
    assert_eq!(manifest.control.max_connections, 50);
    assert_eq!(manifest.control.data_checksum_version, 1);
    assert!(manifest.control.track_commit_timestamp);
    assert_eq!((manifest.bad_page_count, manifest.bad_pages.as_slice()), (0, &[][..]));
    let place =
        server.sql("select oid || ' ' || pg_tablespace_location(oid) from pg_tablespace where spcname = 'extra'");
    let [space] = manifest.tablespaces.as_slice() else { panic!("{:?}", manifest.tablespaces) };
    assert_eq!(format!("{} {}", space.oid, String::from_utf8_lossy(&space.location.0)), place);
}

pub(super) fn check_against_server_manifest(
    fixture: &Fixture,
    manifest: &Manifest,
    contents: &BTreeMap<Vec<u8>, Vec<u8>>,
    version: MajorVersion,
) {
    let kept = manifest.server_manifest.as_ref().expect("the server's manifest");
    let id = manifest.id.as_str();
    let name = |part| fixture.archive.names.server_manifest(id, part);
    let text: Vec<u8> = (0..kept.parts).flat_map(|p| fixture.open(&name(p), ObjectKind::ServerManifest, p)).collect();
    assert_eq!(text.len() as u64, kept.len);
    let (mut reader, mut named) = (ManifestReader::new(), 0);
    let mut check = |item| {
        if let ManifestItem::File { path, size, checksum } = item {
            let content = match path.as_slice() {
                b"backup_label" => &manifest.backup_label.0,
                b"tablespace_map" => &manifest.tablespace_map.as_ref().expect("a map").0,
                path => &contents[path],
            };
            assert_eq!(size, content.len() as u64);
            assert_eq!(checksum, Checksum::Crc32c(crc32c::crc32c(content)), "{}", String::from_utf8_lossy(&path));
            named += 1;
        }
        Ok(())
    };
    reader.push(&text, &mut check).expect("a good manifest");
    reader.finish().expect("a whole manifest");
    let labels = 1 + usize::from(manifest.tablespace_map.is_some());
    assert_eq!(named, contents.len() + labels, "{version}: backup_label and tablespace_map are not in the map");
    let control = ControlFile::parse(&contents[&b"global/pg_control"[..]]).expect("a good pg_control");
    assert_eq!(control.system, fixture.archive.names.system);
}

/// Each pack says itself what it holds, without the map, and says the same.
fn check_packs(fixture: &Fixture, manifest: &Manifest, files: &[File]) {
    let mut from_map = BTreeMap::new();
    for file in files {
        for run in &file.runs {
            if let Source::Pack { pack, frame, offset } = &run.source {
                let unit = file.kind.unit().expect("a file");
                let at = (pack.number, *frame, *offset);
                from_map.insert(at, (file.path.clone(), unit, run.first, run.count));
            }
        }
    }
    let mut from_packs = BTreeMap::new();
    for number in 0..manifest.sizes.packs {
        let name = fixture.archive.names.pack(manifest.id.as_str(), number);
        let object = run(fixture.archive.repo.get(&name)).expect("a read").expect("a pack");
        let claims = fixture.archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(number.into()));
        let opener = Opener::new(&object, &claims, fixture.archive.keys.as_ref(), true).expect("a pack");
        let contents = Contents::decode(&opener.frame0(&object).expect("frame 0"), &manifest.id, number);
        let mut plain = Vec::new();
        opener.content(&object, &mut plain).expect("all frames");
        assert!(plain.len() <= 16 << 20);
        for (index, pieces) in contents.expect("a contents list").frames.into_iter().enumerate() {
            let mut offset = 0;
            for piece in pieces {
                let len = piece.count * piece.unit.bytes();
                from_packs
                    .insert((number, index as u32 + 1, offset), (piece.path, piece.unit, piece.first, piece.count));
                offset += len as u32;
            }
        }
    }
    assert_eq!(from_packs.len(), from_map.len());
    assert!(from_packs == from_map, "maps and contents lists agree");
    assert!(manifest.sizes.packs >= 2, "more than one pack");
}

fn check_sizes(fixture: &Fixture, manifest: &Manifest, contents: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let kept = |raw: &Raw| raw.0.len() as u64;
    let labels = kept(&manifest.backup_label) + manifest.tablespace_map.as_ref().map_or(0, kept);
    let all: u64 = contents.values().map(|c| c.len() as u64).sum();
    let sizes = &manifest.sizes;
    assert_eq!((sizes.total, sizes.files), (all + labels, contents.len() as u64 + 2));
    assert_eq!(sizes.changed + sizes.zero, all);
    assert!(sizes.read > all);
    let prefix = format!("{}/", fixture.archive.names.root());
    let objects = run(fixture.archive.repo.list(prefix.trim_end_matches('/'))).expect("a listing");
    let stored = objects
        .iter()
        .filter(|o| ["packs/", "maps/", "manifests/"].iter().any(|f| o.name[prefix.len()..].starts_with(f)));
    assert_eq!(sizes.stored, stored.map(|o| o.size).sum::<u64>());
}

fn fails(fixture: &Fixture, server: &Server, options: &BackupOptions, watch: &dyn WalWatch, kind: Kind) -> Error {
    let error = fixture.take(server, options, watch).expect_err("no backup");
    assert_eq!(error.kind(), kind, "{error}");
    let list = run(fixture.archive.list_backups()).expect("a list");
    assert!(list.complete.is_empty(), "{list:?}");
    error
}

#[test]
fn without_a_receiver_nothing_is_begun() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let fixture = Fixture::new(&server);
    let options = BackupOptions { follow_within: Duration::from_secs(1), ..Default::default() };
    for durable in [None, Some(Lsn(1))] {
        let error = fails(&fixture, &server, &options, &Later(Mutex::new(1), durable), Kind::Slot);
        assert!(error.advice().is_some_and(|a| a.contains("walrecv receive")), "{error}");
    }
    assert_eq!(fixture.objects("intents"), [""; 0]);
    let label = BackupOptions { label: "two\nlines".into(), ..Default::default() };
    fails(&fixture, &server, &label, &Always, Kind::Usage);
    let mut other = Fixture::new(&server);
    other.archive.names.system = SystemIdentifier(1);
    fails(&other, &server, &options, &Always, Kind::Diverged);
    assert_eq!(other.objects("intents"), [""; 0]);
}

#[test]
fn a_backup_whose_wal_does_not_come_is_given_up() {
    require_servers!(MajorVersion::V14);
    let server = Server::start(MajorVersion::V14);
    let fixture = Fixture::new(&server);
    let options = BackupOptions { wal_stall: Duration::from_secs(1), ..Default::default() };
    fails(&fixture, &server, &options, &Later(Mutex::new(0), Some(Lsn(5))), Kind::Slot);
    fails(&fixture, &server, &options, &Later(Mutex::new(0), None), Kind::Gap);
    let list = run(fixture.archive.list_backups()).expect("a list");
    assert_eq!(list.given_up.len(), 2, "{list:?}");
    assert!(list.given_up[0].reason.contains("stands still at 0/5"), "{list:?}");
}

/// While a backup waits for its WAL, an expiry has given it up, and has swept what it left, long ago.
struct Swept(Mutex<u32>, std::path::PathBuf);

impl WalWatch for Swept {
    fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        let mut asked = self.0.lock().expect("a lock");
        *asked += 1;
        if *asked == 2 {
            std::fs::remove_dir_all(&self.1).expect("an intent to remove");
        }
        Box::pin(async { Ok(Some(Lsn(u64::MAX))) })
    }
}

#[test]
fn a_backup_that_was_given_up_long_ago_is_not_completed() {
    require_servers!(MajorVersion::V16);
    let server = Server::start(MajorVersion::V16);
    let fixture = Fixture::new(&server);
    let intents = fixture.places.join("repository").join(fixture.archive.names.root()).join("intents");
    let options = BackupOptions::default();
    let error = fixture.take(&server, &options, &Swept(Mutex::new(0), intents)).expect_err("no backup");
    assert!(error.to_string().contains("gave it up"), "{error}");
    assert!(run(fixture.archive.list_backups()).expect("a list").complete.is_empty());
}

#[test]
fn a_lost_server_and_a_dropped_backup_leave_none() {
    require_servers!(MajorVersion::V17);
    let mut server = Server::start(MajorVersion::V17);
    let fixture = Fixture::new(&server);
    fill(&server, &fixture.places);
    // 4 MB a second, so that it is still running when it is stopped: as soon as the first bytes are there.
    let (first, copying) = std::sync::mpsc::sync_channel(1);
    let begun = Arc::new(Notify::new());
    let tell = begun.clone();
    let progress = move |progress| {
        if matches!(progress, Progress::Copying { done: 1.., .. }) {
            tell.notify_one();
            let _ = first.try_send(());
        }
    };
    let options = BackupOptions { max_rate: Some(4096), progress: Some(Arc::new(progress)), ..Default::default() };
    let target = conninfo(&server.conninfo("postgres"));
    run(async {
        tokio::select! {
            ended = take_with(&fixture.archive, fixture.ring.clone(), &target, &options, &Always) => panic!("{ended:?}"),
            () = begun.notified() => {}
        }
    });
    let list = run(fixture.archive.list_backups()).expect("a list");
    assert!(list.complete.is_empty() && list.given_up.is_empty(), "{list:?}");
    assert_eq!(fixture.objects("intents").len(), 1);
    while copying.try_recv().is_ok() {}

    let taken = std::thread::scope(|scope| {
        let (at, fixture, options) = (server.conninfo("postgres"), &fixture, &options);
        let backup = scope.spawn(move || fixture.take_at(&at, options, &Always));
        copying.recv_timeout(Duration::from_secs(60)).expect("a backup that copies");
        server.kill9();
        backup.join().expect("a thread")
    });
    let error = taken.expect_err("no backup");
    assert_eq!(error.kind(), Kind::Server, "{error}");
    let list = run(fixture.archive.list_backups()).expect("a list");
    assert!(list.complete.is_empty(), "{list:?}");
    assert_eq!(list.given_up.len(), 1, "{list:?}");
}

#[test]
fn one_backup_at_a_time() {
    require_servers!(MajorVersion::V18);
    let server = Server::start(MajorVersion::V18);
    let fixture = Fixture::new(&server);
    let state = fixture.places.join("state");
    let options = BackupOptions { state_dir: Some(state.clone()), ..Default::default() };
    let held = walrecv::disk::lock::LockFile::take(&state.join("backup-main.lock")).expect("a lock").expect("free");
    fails(&fixture, &server, &options, &Always, Kind::Busy);
    drop(held);
    let outcome = fixture.take(&server, &options, &Always).expect("a backup");
    assert_eq!(stored_manifest(&fixture, &outcome).tablespaces, []);
    let names = std::fs::read_dir(&state).expect("a folder").map(|entry| entry.expect("an entry"));
    let note =
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("complete-main-")).map(|e| e.path());
    let notes: Vec<_> = note.map(|path| std::fs::read_to_string(path).expect("a note")).collect();
    assert_eq!(notes, [format!("{}\n", outcome.manifest.id)], "it is known to have been complete");
}

/// Damaged on the server's disk, and later mended there: named by each backup that reads them, and no reason to store anything else again.
#[test]
fn damaged_pages_are_named() {
    require_servers!(MajorVersion::V15, MajorVersion::V17);
    for version in [MajorVersion::V15, MajorVersion::V17] {
        let mut builder = Server::builder(version).initdb("--data-checksums").setting("autovacuum", "off");
        if version == MajorVersion::V17 {
            builder = builder.setting("summarize_wal", "on");
        }
        let mut server = builder.start();
        server.sql("create table t as select n, repeat('x', 500) from generate_series(1, 1000) n; checkpoint");
        let path = server.sql("select pg_relation_filepath('t')");
        server.stop(crate::support::Stop::Fast);
        let file = server.data_dir().join(&path);
        let good = std::fs::read(&file).expect("a table");
        let mut bytes = good.clone();
        for page in [3, 7] {
            bytes[page * 8192 + 4000] ^= 1;
        }
        bytes[5 * 8192..6 * 8192].fill(0);
        // Its position, too, is garbage: from a time that is yet to come.
        bytes[9 * 8192..10 * 8192].fill(0xAB);
        std::fs::write(&file, &bytes).expect("write a table");
        server.start_again();
        let fixture = Fixture::new(&server);
        let options = BackupOptions { state_dir: Some(fixture.places.join("state")), ..Default::default() };
        let take = |bytes: &[u8], bad: &[u64]| {
            let outcome = fixture.take(&server, &options, &Always).expect("a backup");
            let manifest = outcome.manifest;
            let named: Vec<_> = manifest.bad_pages.iter().map(|b| (b.path.0.clone(), b.page)).collect();
            assert_eq!(named, bad.iter().map(|page| (path.clone().into_bytes(), *page)).collect::<Vec<_>>());
            assert_eq!(manifest.bad_page_count, bad.len() as u64);
            let files = fixture.files(&manifest);
            let table = files.iter().find(|f| f.path == path.as_bytes()).expect("the table");
            assert_eq!(table.kind, EntryKind::Pages);
            let zero = table.runs.iter().any(|r| r.source == Source::Zero && (r.first, r.count) == (5, 1));
            assert!(zero, "{:?}", table.runs);
            assert!(fixture.contents(&files)[path.as_bytes()] == bytes);
            manifest
        };
        take(&bytes, &[3, 7, 9]);
        server.sql("create table u as select 1; checkpoint");
        let second = take(&bytes, &[3, 7, 9]);
        let compared = |manifest: &Manifest| {
            let (sizes, why) = (&manifest.sizes, manifest.why_full.as_deref().unwrap_or_default());
            assert!(manifest.parent.is_some() && sizes.changed * 4 < sizes.reused, "{sizes:?}, {why}");
            let expected = if version == MajorVersion::V15 { "no incremental" } else { "with a wrong checksum" };
            assert!(why.contains(expected) && !why.contains("stored"), "{why}");
        };
        compared(&second);
        bytes[3 * 8192..4 * 8192].copy_from_slice(&good[3 * 8192..4 * 8192]);
        std::fs::write(&file, &bytes).expect("mend a page");
        compared(&take(&bytes, &[7, 9]));
        // A file that ends within a page has pages all the same.
        std::fs::write(&file, [&bytes[..], &[1; 100]].concat()).expect("a longer file");
        let outcome = fixture.take(&server, &options, &Always).expect("a backup");
        let mut named: Vec<_> = outcome.manifest.bad_pages.iter().map(|b| (b.path.0.clone(), b.page)).collect();
        named.sort();
        let cut = bytes.len() as u64 / 8192;
        assert_eq!(named, [7, 9, cut].map(|page| (path.clone().into_bytes(), page)));
        std::fs::write(&file, &bytes).expect("the file as it was");
    }
}

#[test]
fn a_standby_can_be_backed_up() {
    require_servers!(MajorVersion::V13);
    let primary = Server::start(MajorVersion::V13);
    primary.sql("create table t as select n from generate_series(1, 100000) n");
    let standby = primary.standby().setting("hot_standby", "on").start();
    standby.wait_sql("select count(*) from t", "100000");
    primary.sql("checkpoint");
    let fixture = Fixture::new(&primary);
    let outcome = fixture.take(&standby, &BackupOptions::default(), &Always).expect("a backup");
    let manifest = stored_manifest(&fixture, &outcome);
    assert!(manifest.from_standby);
    let contents = fixture.contents(&fixture.files(&manifest));
    let kept = manifest.server_manifest.expect("the server's manifest");
    assert!(kept.len > 1000 && contents.len() > 100);
}

#[test]
fn tablespaces_inside_the_data_directory_are_backed_up_once() {
    require_servers!(MajorVersion::V16);
    let server = Server::builder(MajorVersion::V16).setting("allow_in_place_tablespaces", "on").start();
    server.sql("create tablespace inside location ''");
    server.sql("create table t tablespace inside as select n from generate_series(1, 1000) n");
    let path = server.sql("select pg_relation_filepath('t')");
    let fixture = Fixture::new(&server);
    let outcome = fixture.take(&server, &BackupOptions::default(), &Always).expect("a backup");
    let manifest = stored_manifest(&fixture, &outcome);
    let oid = server.sql("select oid from pg_tablespace where spcname = 'inside'");
    let [space] = manifest.tablespaces.as_slice() else { panic!("{:?}", manifest.tablespaces) };
    assert_eq!(
        (space.oid.to_string(), space.location.0.as_slice()),
        (oid.clone(), format!("pg_tblspc/{oid}").as_bytes())
    );
    let contents = fixture.contents(&fixture.files(&manifest));
    server.sql("checkpoint");
    assert_eq!(contents[path.as_bytes()], std::fs::read(server.data_dir().join(&path)).expect("a table"));
}

/// Set in the process that is measured.
const ALONE: &str = "WALRECV_TEST_ALONE";

/// Measures its process, and so runs again in one of its own.
#[test]
fn memory_stays_bounded() {
    require_servers!(MajorVersion::V17);
    if std::env::var_os(ALONE).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().expect("this program"));
        again.args(["backup::memory_stays_bounded", "--exact", "--nocapture"]).env(ALONE, "1");
        assert!(again.status().expect("run it again").success());
        return;
    }
    let server = Server::builder(MajorVersion::V17).setting("max_wal_size", "4GB").start();
    let random =
        "select n, string_agg(md5(random()::text), '') t from generate_series(1, 200000) n, generate_series(1, 30)";
    server.sql(&format!("create table t as {random} group by n"));
    let fixture = Fixture::new(&server);
    let options = BackupOptions { compression: Compression::None, ..Default::default() };
    let outcome = fixture.take(&server, &options, &Always).expect("a backup");
    let status = std::fs::read_to_string("/proc/self/status").expect("what the kernel says");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    println!("{:?} in {:?}, peak {peak:?} kB", outcome.manifest.sizes, outcome.elapsed);
    assert!(outcome.manifest.sizes.total > 200 << 20);
    assert!(peak.is_some_and(|p| p < 128 << 10));
}
