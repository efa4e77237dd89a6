//! A made-up cluster whose maps are written, stored and read back by the real code; its packs are only places.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::layers::{self, Place, Written};
use super::sealing::Sealing;
use super::upload::{self, Upload};
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::{ReaderRing, WriterRing};
use crate::keys::setup;
use crate::pg::{Lsn, SegmentSize, SystemIdentifier, TimelineId};
use crate::repo::{ClusterNames, Repository};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{Entry, EntryKind, File, Merge, PackPlace, Run, Source, Step};
use crate::seal::header::{ObjectKind, RepositoryId};
use crate::seal::opener::open_index;
use crate::seal::sealer::FramePlace;

/// Pages in a frame, and frames in a pack: so few that the last pack of a backup is not mostly empty.
pub const FRAME: u64 = 8;
pub const FRAMES: u64 = 2;

pub fn id(number: u32) -> BackupId {
    let time = jiff::Timestamp::from_second(1_769_824_800 + 3600 * i64::from(number)).unwrap();
    BackupId::new(time, TimelineId(1), Lsn(0x2000028), number as u16)
}

/// Where a page is: frame and page in it.
#[derive(Clone, Debug)]
pub struct Spot {
    pub pack: Arc<PackPlace>,
    pub frame: u32,
    pub page: u32,
}

/// The pages of each file; `None` is zero.
pub type Pages = Vec<Option<Spot>>;

/// Stores the pages of one backup.
pub struct Packs {
    backup: BackupId,
    used: u64,
    open: Option<Arc<PackPlace>>,
    /// Plain bytes of all packs, which are full but the last.
    pub plain: u64,
}

impl Packs {
    pub fn new(backup: BackupId) -> Packs {
        Packs { backup, used: 0, open: None, plain: 0 }
    }

    pub fn store(&mut self) -> Spot {
        let (number, within) = (self.used / (FRAME * FRAMES), self.used % (FRAME * FRAMES));
        if within == 0 {
            let bytes = FRAME as u32 * 8192;
            let place = |n: u64| FramePlace { offset: 40 + n * 1000, len: 1000, plain_len: bytes };
            let frames: Vec<FramePlace> = (0..=FRAMES).map(place).collect();
            let (backup, header) = (self.backup.clone(), Bytes::from(vec![7; 40]));
            self.open = Some(Arc::new(PackPlace {
                backup,
                number: number as u32,
                len: 40 + 1000 * (FRAMES + 1),
                header,
                frames,
            }));
            self.plain += u64::from(bytes) * FRAMES;
        }
        self.used += 1;
        let pack = self.open.clone().unwrap();
        Spot { pack, frame: 1 + (within / FRAME) as u32, page: (within % FRAME) as u32 }
    }
}

/// The entry for the pages that `named` says.
pub fn entry(path: &str, pages: &Pages, complete: bool, named: impl Fn(u64) -> bool) -> Entry {
    let mut runs: Vec<Run> = Vec::new();
    for (number, page) in pages.iter().enumerate().filter(|(number, _)| named(*number as u64)) {
        let source = page.as_ref().map_or(Source::Zero, |spot| Source::Pack {
            pack: spot.pack.clone(),
            frame: spot.frame,
            offset: spot.page * 8192,
        });
        runs.push(Run { first: number as u64, count: 1, source });
    }
    let (path, size) = (path.as_bytes().to_vec(), pages.len() as u64 * 8192);
    Entry { path, kind: EntryKind::Pages, size, mode: 0o600, mtime: 1, link: Vec::new(), complete, runs }
}

pub fn absent(path: &str) -> Entry {
    Entry { kind: EntryKind::Absent, ..entry(path, &Vec::new(), false, |_| false) }
}

/// Objects of maps, sealed as ever, in memory.
pub struct Store {
    archive: Archive,
    ring: Arc<WriterRing>,
    pub objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Store {
    pub fn new() -> Store {
        let (keys, id) = (setup::generate(), RepositoryId([3; 16]));
        let ring = WriterRing::new(id, keys.secret.clone(), Some(&keys.public)).unwrap();
        let reader = ReaderRing::new(id, keys.secret.clone(), None).unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let names = ClusterNames { cluster: "main".into(), system: SystemIdentifier(7), segment_size };
        let repo = Repository::open("file:///nowhere", &|_| None).unwrap();
        Store {
            archive: Archive { repo, names, keys: Arc::new(reader) },
            ring: Arc::new(ring),
            objects: Arc::default(),
        }
    }

    /// Writes the maps of a backup; those that its manifest names.
    pub fn write(&self, backup: u32, delta: Vec<Entry>, parent: &[MapRef]) -> Result<Vec<MapRef>> {
        self.write_all(backup, delta, parent, false).map(|written| written.maps)
    }

    /// `renewed`: all maps of the parent are merged.
    pub fn write_all(&self, backup: u32, delta: Vec<Entry>, parent: &[MapRef], renewed: bool) -> Result<Written> {
        let (outbox, mut uploads) = upload::channel();
        let objects = self.objects.clone();
        let store = std::thread::spawn(move || {
            while let Some(Upload { name, bytes, .. }) = uploads.blocking_recv() {
                assert!(objects.lock().unwrap().insert(name.clone(), bytes.concat()).is_none(), "{name} twice");
            }
        });
        let mut sealing = Sealing::new(self.archive.clone(), self.ring.clone(), id(backup)).unwrap();
        let read = |map: &MapRef, part: u32| self.read(map, part);
        let mut place = Place { sealing: &mut sealing, outbox: &outbox, read: &read };
        let runs = delta.iter().map(|e| e.runs.len() as u64).sum();
        let bytes = if renewed { u64::MAX } else { layers::estimate(delta.len() as u64, runs) };
        let written = layers::write(&mut place, delta.into_iter().map(Ok), bytes, parent);
        drop(outbox);
        store.join().unwrap();
        written
    }

    pub fn read(&self, map: &MapRef, part: u32) -> Result<Vec<u8>> {
        let name = self.archive.names.map(map.backup.as_str(), part);
        let objects = self.objects.lock().unwrap();
        let object = objects.get(&name).ok_or_else(|| Error::new(Kind::Corrupt, format!("{name} is missing")))?;
        let claims = self.archive.claims(ObjectKind::Map, TimelineId(0), Lsn(part.into()));
        Ok(open_index(object, &claims, self.archive.keys.as_ref()).unwrap())
    }

    pub fn files(&self, maps: &[MapRef]) -> Vec<File> {
        let (mut merge, mut files) = (Merge::new(maps), Vec::new());
        loop {
            match merge.step().unwrap() {
                Step::Need { map, part } => merge.feed(map, &self.read(&maps[map], part).unwrap()).unwrap(),
                Step::File(file) => files.push(file),
                Step::End => return files,
            }
        }
    }
}

/// Whether the files that maps tell are these.
pub fn same(files: &[File], cluster: &BTreeMap<String, Pages>) -> bool {
    let place = |run: &Run, n: u64| match &run.source {
        Source::Zero => None,
        Source::Pack { pack, frame, offset } => {
            Some((pack.backup.clone(), pack.number, *frame, u64::from(*offset) / 8192 + n))
        }
    };
    let spot = |s: &Spot| (s.pack.backup.clone(), s.pack.number, s.frame, u64::from(s.page));
    files.len() == cluster.len()
        && files.iter().zip(cluster).all(|(file, (path, pages))| {
            let told = file.runs.iter().flat_map(|run| (0..run.count).map(move |n| place(run, n)));
            file.path == path.as_bytes() && told.eq(pages.iter().map(|page| page.as_ref().map(spot)))
        })
}

/// Small random numbers that a seed repeats.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// `WALRECV_SEED`, or the usual one; told, so that a failure can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("WALRECV_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(0x5eed);
    println!("WALRECV_SEED={seed}");
    seed
}
