//! Backups without a server: the format's own packs, maps, manifests and intents of a made-up data directory, stored step by step in the order that
//! a backup keeps, with parents, interrupted backups, and maps of several kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use jiff::Timestamp;
use walrecv::archive::Archive;
use walrecv::error::Result;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::repo::names::BackupPart;
use walrecv::repo::names::parse_backup_part;
use walrecv::seal::content::BackupId;
use walrecv::seal::content::contents::{ContentsWriter, Piece};
use walrecv::seal::content::intent::Intent;
use walrecv::seal::content::manifest::{Backup, Manifest, MapRef, ServerManifest, Tombstone};
use walrecv::seal::content::map::{Entry, EntryKind, MapReader, MapWriter, Merge, PackPlace, Run, Source, Step, Unit};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::{Opener, open_index};
use walrecv::seal::page_hash::PageHash;
use walrecv::seal::sealer::{Compression, Sealer};

use crate::archive_pieces::writer;
use crate::support::{PATIENCE, Seed};

const PAGE: usize = 8192;
/// Files of the data directory.
const FILES: u64 = 7;
/// Contents that a file can have: few, so that an interrupted backup often has just what is wanted.
const VERSIONS: u64 = 2;

/// A file's content, and where it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    version: u64,
    pack: Arc<PackPlace>,
}

pub type Data = BTreeMap<String, Stored>;

/// What the test knows of all backups that ever began.
#[derive(Default)]
pub struct Known {
    /// What was to be in a backup whose manifest may exist.
    pub data: BTreeMap<BackupId, Data>,
    /// What each pack holds.
    packs: BTreeMap<(BackupId, u32), (String, Stored)>,
    /// Backups between the look at their own intent and the manifest: no clock jumps then.
    pub committing: BTreeSet<BackupId>,
    pub figures: Figures,
}

/// That the test does not pass by doing nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub complete: u64,
    pub with_parent: u64,
    pub parent_refused: u64,
    pub orphan_packs: u64,
    pub too_late: u64,
}

fn content(path: &str, version: u64) -> Vec<u8> {
    let salt = path.bytes().fold(version, |sum, b| sum.wrapping_mul(131).wrapping_add(u64::from(b)));
    let mut seed = Seed::from(salt);
    let pages = 1 + seed.below(2) as usize;
    let mut out = Vec::with_capacity(pages * PAGE);
    while out.len() < pages * PAGE {
        out.extend_from_slice(&seed.next().to_le_bytes());
    }
    out
}

/// One backup that is being taken.
pub struct Taking {
    pub archive: Archive,
    pub known: Arc<Mutex<Known>>,
    pub seed: Seed,
    pub id: BackupId,
    packs: u32,
}

impl Taking {
    pub fn new(archive: Archive, known: Arc<Mutex<Known>>, mut seed: Seed, now: SystemTime) -> Taking {
        let started = Timestamp::try_from(now).expect("a time");
        let id = BackupId::new(started, TimelineId(1), Lsn(0x2000028), seed.next() as u16);
        Taking { archive, known, seed, id, packs: 0 }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.known.lock().expect("no test has died"))
    }

    /// From the first look to the manifest. What fails may leave a tombstone, or nothing.
    pub async fn run(mut self) -> Result<()> {
        let taken = self.take().await;
        self.with(|known| known.committing.remove(&self.id));
        if let Err(error) = &taken
            && self.seed.below(2) == 0
        {
            let tombstone = Tombstone {
                version: Tombstone::VERSION,
                id: self.id.clone(),
                created_at: Timestamp::UNIX_EPOCH,
                reason: error.to_string(),
                made_by: "test".into(),
                deleted: false,
            };
            let name = self.archive.names.backup(self.id.as_str());
            let _ = self.put(&name, ObjectKind::Tombstone, 0, &tombstone.encode()).await;
        }
        taken
    }

    async fn put(&self, name: &str, kind: ObjectKind, number: u32, content: &[u8]) -> Result<()> {
        let claims = self.archive.claims(kind, TimelineId(0), Lsn(number.into()));
        self.archive.put_index(&writer(), name, claims, content, PATIENCE).await
    }

    async fn take(&mut self) -> Result<()> {
        let names = self.archive.names.clone();
        let id = self.id.clone();
        let (parent, orphan) = self.choose().await?;
        let reuses = parent.iter().chain(&orphan).map(BackupId::to_string).collect();
        self.put(&names.intent(id.as_str()), ObjectKind::Intent, 0, &intent(&self.archive, &id, reuses).encode())
            .await?;

        // Announced: now look.
        let look = self.archive.look_before_reuse(parent.as_ref()).await?;
        if parent.is_some() && look.parent.is_err() {
            self.with(|known| known.figures.parent_refused += 1);
        }
        let orphan = orphan.filter(|id| !look.plans.names(id));
        let usable = match &orphan {
            Some(orphan) => self.packs_of(orphan).await?,
            None => BTreeSet::new(),
        };
        let parent = look.parent.ok();
        let base = parent.as_ref().map(|p| self.with(|known| known.data[&p.id].clone())).unwrap_or_default();
        let changed = self.store_changes(&base, orphan.as_ref(), &usable).await?;
        let mut data = base.clone();
        for (path, stored) in &changed {
            match stored {
                Some(stored) => _ = data.insert(path.clone(), stored.clone()),
                None => _ = data.remove(path),
            }
        }
        let inherited = parent.as_ref().map(|p| p.maps.clone()).unwrap_or_default();
        // Now and then all is written into one map, as where maps are merged: then only packs are shared.
        let whole = inherited.is_empty() || inherited.len() >= 6 || self.seed.below(3) == 0;
        let all: BTreeMap<String, Option<Stored>> = data.iter().map(|(p, s)| (p.clone(), Some(s.clone()))).collect();
        let own = self.store_map(if whole { &all } else { &changed }).await?;
        self.put(&names.server_manifest(id.as_str(), 0), ObjectKind::ServerManifest, 0, b"{}").await?;

        let mut manifest = crate::backups::manifest(&self.archive, &id);
        // It needs no WAL, of which there is none here.
        manifest.stop = manifest.start;
        manifest.parent = parent.as_ref().map(|p| p.id.clone());
        manifest.server_manifest = Some(ServerManifest { parts: 1, len: 2, sha256: String::new() });
        manifest.maps = [vec![own], if whole { Vec::new() } else { inherited }].concat();
        self.with(|known| {
            known.data.insert(id.clone(), data);
            known.committing.insert(id.clone());
        });
        if let Err(error) = self.archive.demand_intent(&id).await {
            self.with(|known| known.figures.too_late += 1);
            return Err(error);
        }
        let stored = self.put(&names.backup(id.as_str()), ObjectKind::Manifest, 0, &manifest.encode()).await;
        self.with(|known| match &stored {
            Ok(()) => {
                known.figures.complete += 1;
                known.figures.with_parent += u64::from(parent.is_some());
            }
            Err(_) => known.figures.too_late += 1,
        });
        stored
    }

    /// Parent and interrupted backup, before anything is announced.
    async fn choose(&mut self) -> Result<(Option<BackupId>, Option<BackupId>)> {
        let list = self.archive.list_backups().await?;
        let plans = self.archive.list_plans().await?;
        let parent = list.complete.iter().rev().map(|m| m.id.clone()).find(|id| !plans.names(id));
        let listed = self.archive.repo.list(&format!("{}/packs", self.archive.names.root())).await?;
        // Most of what was given up has left nothing.
        let left = |id: &BackupId| listed.iter().any(|entry| entry.name.contains(&format!("/packs/{id}/")));
        let given_up = list.given_up.into_iter().map(|t| t.id);
        let dead: Vec<BackupId> = given_up.filter(|id| !plans.names(id) && left(id)).collect();
        let orphan = match dead.len() as u64 {
            0 => None,
            count => Some(dead[self.seed.below(count) as usize].clone()),
        };
        Ok((parent.filter(|_| self.seed.below(8) > 0), orphan.filter(|_| self.seed.below(4) > 0)))
    }

    async fn packs_of(&self, orphan: &BackupId) -> Result<BTreeSet<u32>> {
        let root = self.archive.names.root();
        let listed = self.archive.repo.list(&format!("{root}/packs/{orphan}")).await?;
        let numbers = listed.iter().filter_map(|entry| {
            match parse_backup_part(entry.name.strip_prefix(&root)?.strip_prefix('/')?)? {
                (_, BackupPart::Pack(number)) => Some(number),
                _ => None,
            }
        });
        Ok(numbers.collect())
    }

    /// Some files change, one may vanish. Content that the interrupted backup has is taken from there.
    async fn store_changes(
        &mut self,
        base: &Data,
        orphan: Option<&BackupId>,
        usable: &BTreeSet<u32>,
    ) -> Result<BTreeMap<String, Option<Stored>>> {
        let mut changed = BTreeMap::new();
        for n in 0..FILES {
            let path = format!("base/1/{}", 16384 + n);
            if base.contains_key(&path) && self.seed.below(3) > 0 {
                continue;
            }
            if base.contains_key(&path) && self.seed.below(9) == 0 {
                changed.insert(path, None);
                continue;
            }
            let version = self.seed.below(VERSIONS);
            let same = |stored: &Stored| stored.version == version;
            let found = orphan.and_then(|orphan| {
                self.with(|known| {
                    let there = known.packs.iter().filter(|((id, number), _)| id == orphan && usable.contains(number));
                    there.map(|(_, pack)| pack).find(|(of, s)| *of == path && same(s)).map(|(_, s)| s.clone())
                })
            });
            let stored = match found {
                Some(stored) => {
                    self.with(|known| known.figures.orphan_packs += 1);
                    stored
                }
                None => self.store_pack(&path, version).await?,
            };
            changed.insert(path, Some(stored));
        }
        Ok(changed)
    }

    async fn store_pack(&mut self, path: &str, version: u64) -> Result<Stored> {
        let number = self.packs;
        self.packs += 1;
        let plain = content(path, version);
        let claims = self.archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(number.into()));
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).expect("random bytes");
        let mut sealer = Sealer::new(&writer(), claims, salt, Compression::None);
        sealer.push(&plain);
        let mut contents = ContentsWriter::new(&self.id, number);
        let count = (plain.len() / PAGE) as u64;
        let hashes = vec![PageHash(0); count as usize];
        contents.push(true, &Piece { path: path.as_bytes().to_vec(), unit: Unit::Pages, first: 0, count, hashes });
        let sealed = sealer.finish(&contents.finish());
        let object = Bytes::from(sealed.to_vec());
        let pack = Arc::new(PackPlace {
            backup: self.id.clone(),
            number,
            len: object.len() as u64,
            header: object.slice(..sealed.frames[0].offset as usize),
            frames: sealed.frames,
        });
        let stored = Stored { version, pack };
        self.with(|known| known.packs.insert((self.id.clone(), number), (path.to_owned(), stored.clone())));
        let judge = move |head: &[u8]| match walrecv::seal::opener::read_header(head) {
            Ok((header, _)) if header.salt == salt => walrecv::repo::Found::Ours,
            _ => walrecv::repo::Found::Different,
        };
        self.archive
            .repo
            .put_once(&self.archive.names.pack(self.id.as_str(), number), &[object], &judge, PATIENCE)
            .await?;
        Ok(stored)
    }

    async fn store_map(&self, entries: &BTreeMap<String, Option<Stored>>) -> Result<MapRef> {
        let mut map = MapWriter::new(self.id.clone());
        let mut parts = Vec::new();
        for (path, stored) in entries {
            let pages = stored.as_ref().map_or(0, |s| (content(path, s.version).len() / PAGE) as u64);
            let run = |s: &Stored| Run {
                first: 0,
                count: pages,
                source: Source::Pack { pack: s.pack.clone(), frame: 1, offset: 0 },
            };
            parts.extend(map.push(&Entry {
                path: path.clone().into_bytes(),
                kind: if stored.is_some() { EntryKind::Pages } else { EntryKind::Absent },
                size: pages * PAGE as u64,
                mode: 0o600,
                mtime: 0,
                link: Vec::new(),
                complete: true,
                runs: stored.iter().map(run).collect(),
            }));
        }
        parts.extend(map.finish());
        for (number, part) in (0..).zip(&parts) {
            let name = self.archive.names.map(self.id.as_str(), number);
            self.put(&name, ObjectKind::Map, number, part).await?;
        }
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Ok(MapRef { backup: self.id.clone(), parts: parts.len() as u32, bytes })
    }
}

/// Another manifest in the place of a backup's.
pub async fn rewrite(archive: &Archive, manifest: &Manifest) {
    let name = archive.names.backup(manifest.id.as_str());
    archive.repo.delete(&name).await.expect("a delete");
    let claims = archive.claims(ObjectKind::Manifest, TimelineId(0), Lsn(0));
    archive.put_index(&writer(), &name, claims, &manifest.encode(), PATIENCE).await.expect("a manifest");
}

/// Announces a backup of which nothing else is heard (0), or gives a sign of its life.
pub async fn sign(archive: &Archive, id: &BackupId, number: u32) {
    let name = match number {
        0 => archive.names.intent(id.as_str()),
        number => archive.names.alive(id.as_str(), number),
    };
    let claims = archive.claims(ObjectKind::Intent, TimelineId(0), Lsn(number.into()));
    let content = intent(archive, id, Vec::new()).encode();
    archive.put_index(&writer(), &name, claims, &content, PATIENCE).await.expect("a sign");
}

fn intent(archive: &Archive, id: &BackupId, reuses: Vec<String>) -> Intent {
    let text = serde_json::json!({ "version": 1, "id": id.to_string(), "cluster": "main", "system": archive.names.system.to_string(),
        "started_at": "2026-01-31T02:00:00Z", "reuses": reuses, "state": "", "made_by": "test" });
    Intent::decode(text.to_string().as_bytes(), id).expect("an intent")
}

/// Restores a backup and compares it with what it was taken of; all objects that it took. Panics with what is missing.
pub async fn restore(archive: &Archive, known: &Mutex<Known>, id: &BackupId) -> BTreeSet<String> {
    let data = known.lock().expect("no test has died").data[id].clone();
    let expected = data.into_iter().map(|(path, stored)| (path.clone(), content(&path, stored.version)));
    restore_as(archive, id, &expected.collect()).await
}

/// The same of one that was taken of these files.
pub async fn restore_as(archive: &Archive, id: &BackupId, expected: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    let manifest = match archive.backup(id).await.expect("a backup") {
        Some(Backup::Complete(manifest)) => manifest,
        other => panic!("{id} is {other:?}"),
    };
    let parts = manifest.server_manifest.as_ref().map_or(0, |kept| kept.parts);
    let mut names = (0..parts).map(|part| archive.names.server_manifest(id.as_str(), part)).collect();
    let files = files(archive, &manifest, &mut names).await;
    let paths: Vec<&String> = files.keys().collect();
    assert_eq!(paths, expected.keys().collect::<Vec<_>>(), "{id}");
    for (path, bytes) in expected {
        assert!(files[path] == *bytes, "{path} of {id} is not what it was");
    }
    names
}

async fn files(archive: &Archive, manifest: &Manifest, names: &mut BTreeSet<String>) -> BTreeMap<String, Vec<u8>> {
    let (mut merge, mut files) = (Merge::new(&manifest.maps), BTreeMap::new());
    // What a map names stays, also where a newer map says something else of the same page.
    let reader = |map: &MapRef| MapReader::new(map.backup.clone(), map.parts);
    let mut readers: Vec<MapReader> = manifest.maps.iter().map(reader).collect();
    loop {
        match merge.step().expect("a good map") {
            Step::Need { map, part } => {
                let name = archive.names.map(manifest.maps[map].backup.as_str(), part);
                let object = archive.repo.get(&name).await.expect("a read");
                let object = object.unwrap_or_else(|| panic!("{name} is gone, and {} needs it", manifest.id));
                let claims = archive.claims(ObjectKind::Map, TimelineId(0), Lsn(part.into()));
                let plain = open_index(&object, &claims, archive.keys.as_ref()).expect("a map");
                merge.feed(map, &plain).expect("a good part");
                names.insert(name);
                readers[map].feed(&plain).expect("a good part");
                while let Some(entry) = readers[map].next_entry().expect("a good entry") {
                    let packs = entry.runs.iter().filter_map(|run| match &run.source {
                        Source::Pack { pack, .. } => Some(archive.names.pack(pack.backup.as_str(), pack.number)),
                        _ => None,
                    });
                    names.extend(packs);
                }
            }
            Step::File(file) => {
                let Some(unit) = file.kind.unit() else { continue };
                let mut bytes = Vec::new();
                for run in &file.runs {
                    let len = (run.count * unit.bytes()) as usize;
                    let Source::Pack { pack, frame, offset } = &run.source else {
                        bytes.resize(bytes.len() + len, 0);
                        continue;
                    };
                    let name = archive.names.pack(pack.backup.as_str(), pack.number);
                    let object = archive.repo.get(&name).await.expect("a read");
                    let object = object.unwrap_or_else(|| panic!("{name} is gone, and {} needs it", manifest.id));
                    let claims = archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(pack.number.into()));
                    let opener = Opener::new(&pack.header, &claims, archive.keys.as_ref(), true).expect("a pack");
                    let place = pack.frames[*frame as usize];
                    let sealed = &object[place.offset as usize..][..place.len as usize];
                    let plain = opener.frame(sealed, *frame, pack.is_last(*frame)).expect("a frame");
                    bytes.extend_from_slice(&plain[*offset as usize..][..len]);
                    names.insert(name);
                }
                files.insert(String::from_utf8(file.path).expect("a path"), bytes);
            }
            Step::End => return files,
        }
    }
}
