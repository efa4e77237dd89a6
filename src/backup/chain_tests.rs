//! Backup after backup without a server, full and incremental ones: what is laid back is always what the server had, and what is stored is only what changed.

use std::collections::{BTreeMap, BTreeSet};

use super::cache::{Cache, Shelf};
use super::intake_tests::{Bench, Made, Sent, noise};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{MapReader, Source};
use crate::seal::header::RepositoryId;
use crate::seal::page_hash::CHUNK;

type Tree = BTreeMap<String, Vec<u8>>;

/// A small generator (SplitMix64), replayed by its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit.max(1)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn content(&mut self) -> Vec<u8> {
        let len = match self.below(6) {
            0 => 0,
            1 => self.below(300),
            2 => self.below(40_000),
            _ => self.below(14) * CHUNK as u64,
        };
        let mut bytes = noise(len as usize, self.below(u64::MAX));
        for chunk in bytes.chunks_mut(CHUNK) {
            if self.one_in(6) {
                chunk.fill(0);
            }
        }
        bytes
    }
}

/// What a server does between two backups.
fn live(tree: &mut Tree, chance: &mut Chance) {
    for _ in 0..chance.below(6) {
        let (name, content) = (format!("base/{}/{}", chance.below(2), chance.below(12)), chance.content());
        tree.insert(name, content);
        tree.insert(format!("pg_xact/{}", chance.below(4)), chance.content());
    }
    let names: Vec<String> = tree.keys().filter(|name| *name != CONTROL).cloned().collect();
    for name in names {
        let bytes = tree.get_mut(&name).unwrap();
        match chance.below(12) {
            0 => drop(tree.remove(&name)),
            1 => bytes.truncate(chance.below(bytes.len() as u64 + 1) as usize),
            2 => bytes.truncate(chance.below(bytes.len() as u64 / CHUNK as u64 + 1) as usize * CHUNK),
            3 => bytes.extend(chance.content()),
            4 | 5 if !bytes.is_empty() => {
                for _ in 0..chance.below(5) {
                    let at = chance.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1;
                }
            }
            6 => {
                for chunk in bytes.chunks_mut(CHUNK) {
                    if chance.one_in(4) {
                        chunk.fill(0);
                    }
                }
            }
            _ => {}
        }
    }
}

const CONTROL: &str = "global/pg_control";

fn pages(name: &str, bytes: &[u8]) -> bool {
    name.starts_with("base/") && bytes.len().is_multiple_of(CHUNK)
}

/// Bytes that differ from the same place in the parent, zeros not counted; bytes that are the parent's; and bytes that are zero.
fn differences(tree: &Tree, parent: Option<&Tree>) -> (u64, u64, u64) {
    let (mut changed, mut reused, mut zero) = (0, 0, 0);
    for (name, bytes) in tree {
        let before = parent.and_then(|p| p.get(name)).filter(|b| pages(name, b) == pages(name, bytes));
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            let same = before.and_then(|b| b.chunks(CHUNK).nth(number)) == Some(chunk);
            let count = match (chunk.iter().all(|b| *b == 0), same) {
                (true, _) => &mut zero,
                (false, true) => &mut reused,
                (false, false) => &mut changed,
            };
            *count += chunk.len() as u64;
        }
    }
    (changed, reused, zero)
}

/// A file of which only what differs from `before` is sent, and now and then more.
fn increment(name: &str, bytes: &[u8], before: &[u8], chance: &mut Chance) -> (String, Vec<u8>) {
    let len = (bytes.len() / CHUNK) as u64;
    let truncation = if chance.one_in(2) { len } else { chance.below(len + 1) };
    let mut sent = Vec::new();
    for (number, page) in bytes.chunks(CHUNK).enumerate() {
        let inherited = before.chunks(CHUNK).nth(number).filter(|_| (number as u64) < truncation);
        let otherwise = inherited.unwrap_or(&[0; CHUNK]);
        let last = number as u64 + 1 == len && truncation < len;
        if page != otherwise || last || chance.one_in(8) {
            sent.push((number as u32, page));
        }
    }
    let mut out = Vec::new();
    [0xd3ae_1f0d, sent.len() as u32, truncation as u32].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    sent.iter().for_each(|(number, _)| out.extend_from_slice(&number.to_le_bytes()));
    if !sent.is_empty() {
        out.resize(out.len().next_multiple_of(CHUNK), 0);
    }
    sent.iter().for_each(|(_, page)| out.extend_from_slice(page));
    let (folder, file) = name.rsplit_once('/').unwrap();
    (format!("{folder}/INCREMENTAL.{file}"), out)
}

/// A complete backup: what it holds.
struct Taken {
    id: BackupId,
    maps: Vec<MapRef>,
    tree: Tree,
}

struct Story {
    bench: Bench,
    shelf: Shelf,
    taken: Vec<Taken>,
    chance: Chance,
    /// Something happened to what is kept, and no backup has kept its own since.
    damaged: bool,
    /// Backups since the last complete one that died with their packs stored.
    dead: Vec<BackupId>,
    /// Bytes that were found in those.
    found: u64,
    /// Backups that were complete: full and incremental ones, without and with hashes that were kept.
    seen: [[u32; 2]; 2],
    /// Bytes that were stored anew though they had not changed.
    moved: u64,
}

impl Story {
    fn new(seed: u64) -> Story {
        let bench = Bench::new();
        let shelf = bench.shelf();
        Story {
            bench,
            shelf,
            taken: Vec::new(),
            chance: Chance(seed),
            damaged: false,
            dead: Vec::new(),
            found: 0,
            seen: Default::default(),
            moved: 0,
        }
    }

    /// What a server sends that has this tree; over the `parent`'s where it sends incrementally.
    fn sent(&mut self, tree: &Tree, parent: Option<&Tree>) -> Made {
        let file = |(name, bytes): (&String, &Vec<u8>)| {
            let before = parent.and_then(|p| p.get(name)).filter(|before| pages(name, before) && pages(name, bytes));
            match before.filter(|_| !self.chance.one_in(4)) {
                Some(before) => increment(name, bytes, before, &mut self.chance),
                None => (name.clone(), bytes.clone()),
            }
        };
        let mut files: Vec<(String, Vec<u8>)> = tree.iter().map(file).collect();
        // Servers send files in the order of the directory, which is none.
        for at in (1..files.len()).rev() {
            files.swap(at, self.chance.below(at as u64 + 1) as usize);
        }
        files.insert(0, ("backup_label".to_owned(), b"label".to_vec()));
        let mut made = Made { manifest: files.clone(), files, pieces: 1 + self.chance.below(50_000) as usize };
        if self.chance.one_in(4) {
            made.manifest.reverse();
        }
        made
    }

    /// Damages or removes what is kept, as disks and people do; whether anything may be missed now.
    fn mishap(&mut self) -> bool {
        if self.chance.one_in(2) {
            return false;
        }
        let files: Vec<_> = std::fs::read_dir(self.bench.folder()).into_iter().flatten().flatten().collect();
        let Some(file) = files.get(self.chance.below(files.len().max(1) as u64) as usize) else { return false };
        let mut bytes = std::fs::read(file.path()).unwrap();
        match self.chance.below(8) {
            0 => std::fs::remove_dir_all(self.bench.folder()).unwrap(),
            1 => std::fs::remove_file(file.path()).unwrap(),
            2 => {
                bytes.truncate(self.chance.below(bytes.len() as u64) as usize);
                std::fs::write(file.path(), bytes).unwrap();
            }
            3 | 4 if !bytes.is_empty() => {
                let at = self.chance.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << self.chance.below(8);
                std::fs::write(file.path(), bytes).unwrap();
            }
            _ => return false,
        }
        true
    }

    /// The newest complete backup whose hashes are there and whole, as a backup chooses it.
    fn parent(&self) -> Option<(&Taken, Cache)> {
        self.shelf.held().into_iter().find_map(|id| {
            let taken = self.taken.iter().find(|t| t.id == id)?;
            Some((taken, self.shelf.open(&id)?))
        })
    }

    /// The newest complete backup, and its hashes where they are here.
    fn newest(&self) -> Option<(&Taken, Option<Cache>)> {
        self.taken.last().map(|last| (last, self.shelf.open(&last.id)))
    }

    fn backup(&mut self, number: u16, tree: &Tree) {
        self.damaged |= self.mishap();
        let hashed = self.newest().map(|(_, cache)| cache.is_some());
        let incremental = hashed.is_some_and(|hashed| self.chance.one_in(if hashed { 2 } else { 5 }));
        let parent = match incremental {
            true => self.newest(),
            false => self.parent().map(|(taken, cache)| (taken, Some(cache))),
        };
        let (older, before) = parent.as_ref().map_or_else(Default::default, |(t, _)| (t.maps.clone(), t.tree.clone()));
        let (compared, cache) = (parent.is_some(), parent.and_then(|(_, cache)| cache));
        let hashed = cache.is_some();
        let renewed = hashed && !incremental && self.chance.one_in(4);
        let made = self.sent(tree, Some(&before).filter(|_| incremental));
        let (dies, unsettled) = (self.chance.one_in(6), self.chance.one_in(5));
        let mut events = made.events();
        if dies {
            events.truncate(self.chance.below(events.len() as u64) as usize);
        }
        let (changed, reused, zero) = differences(tree, Some(&before).filter(|_| compared));
        let (late, dead) = (self.chance.one_in(4), self.dead.clone());
        let sent = Sent { number, parent: &older, cache, shelf: Some(&self.shelf), incremental, dead: &dead, renewed };
        let id = self.bench.id(number);
        let taken = self.bench.backup(events, sent);
        let Ok((received, maps, kept)) = taken else {
            assert!(dies, "{:?}", taken.err());
            assert!(!self.shelf.held().contains(&id), "a backup that failed keeps nothing");
            return;
        };
        assert!(!dies && maps.len() <= 16 && (!renewed || maps.len() == 1));
        self.moved += received.tally.moved;
        let mut tally = received.tally;
        assert_eq!(tally.changed + tally.reused + tally.zero, tally.total - b"label".len() as u64);
        let missing = (changed + tally.moved).saturating_sub(tally.changed);
        if !dead.is_empty() && tally.found > 0 && missing > 0 {
            // What is found in a dead run's packs need not be stored.
            self.found += missing;
            (tally.changed, tally.reused) = (tally.changed + missing, tally.reused - missing);
        }
        match (hashed || !incremental, self.damaged) {
            (true, false) => {
                assert!(kept);
                let moved = tally.moved;
                assert_eq!((tally.changed - moved, tally.reused + moved, tally.zero), (changed, reused, zero));
                assert!(moved == 0 || renewed);
            }
            (true, true) => assert!(tally.changed >= changed && (kept || incremental), "{tally:?}, {changed}"),
            (false, _) => assert!(tally.changed >= changed && !kept, "{tally:?}, {changed}"),
        }
        self.seen[usize::from(incremental)][usize::from(kept)] += 1;
        if late {
            // Its map arrived perhaps, its manifest did not.
            self.shelf.forget(&id);
            self.dies(id);
            return;
        }
        self.dead.clear();
        self.damaged &= !kept;
        self.taken.push(Taken { id: id.clone(), maps, tree: tree.clone() });
        // Killed between the manifest and this: both stay, and the newer one counts.
        if !unsettled {
            self.shelf.settle(&id, kept);
            assert_eq!(self.shelf.held().first() == Some(&id), kept);
            assert!(!kept || self.shelf.held().len() == 1);
        }
    }
}

impl Story {
    /// Of the packs of a run that dies some are there, and some of these cut.
    fn dies(&mut self, id: BackupId) {
        let packs = self.bench.repository().join(self.bench.archive.names.root()).join("packs").join(id.as_str());
        for pack in std::fs::read_dir(packs).into_iter().flatten().flatten() {
            match self.chance.below(6) {
                0 => std::fs::remove_file(pack.path()).unwrap(),
                1 => {
                    let mut bytes = std::fs::read(pack.path()).unwrap();
                    bytes.truncate(self.chance.below(bytes.len() as u64) as usize);
                    std::fs::write(pack.path(), bytes).unwrap();
                }
                _ => {}
            }
        }
        self.dead.push(id);
    }
}

#[test]
fn whatever_happens_between_backups_each_is_what_was_sent() {
    let first = std::env::var("WALRECV_SEED").ok().map(|text| text.parse::<u64>().expect("a decimal number"));
    let seeds = first.map_or(1..=16, |seed| seed..=seed);
    let (mut seen, mut found, mut moved) = ([[0; 2]; 2], 0, 0);
    for seed in seeds {
        println!("replay with WALRECV_SEED={seed}");
        let mut story = Story::new(seed);
        let mut tree = Tree::from([(CONTROL.to_owned(), vec![9; CHUNK])]);
        for number in 0..12 {
            live(&mut tree, &mut story.chance);
            tree.get_mut(CONTROL).unwrap()[0] = number as u8;
            story.backup(number, &tree);
        }
        for taken in &story.taken {
            let found = story.bench.laid_back(&taken.maps);
            let same = found == taken.tree;
            assert!(same, "seed {seed}: backup {} differs from what was sent", taken.id);
        }
        (found, moved) = (found + story.found, moved + story.moved);
        seen.as_flattened_mut().iter_mut().zip(story.seen.as_flattened()).for_each(|(all, one)| *all += one);
    }
    println!("full, incremental; without and with hashes kept: {seen:?}; {found} bytes found in packs of dead runs");
    println!("{moved} bytes stored anew");
    assert!(first.is_some() || found > 1_000_000 && moved > 0, "{found}, {moved}");
    assert!(first.is_some() || (seen[0][1] > 20 && seen[1][0] > 5 && seen[1][1] > 20), "{seen:?}");
}

#[test]
fn hashes_of_another_backup_or_secret_are_no_parent() {
    let mut story = Story::new(1);
    let tree = Tree::from([(CONTROL.to_owned(), vec![9; CHUNK]), ("a".to_owned(), noise(30_000, 1))]);
    story.chance = Chance(u64::MAX);
    let (one, two) = (story.bench.id(1), story.bench.id(2));
    let made = story.sent(&tree, None);
    let sent = Sent { number: 1, parent: &[], cache: None, shelf: Some(&story.shelf), ..Sent::default() };
    story.bench.backup(made.events(), sent).unwrap();
    assert!(story.shelf.open(&one).is_some());
    for part in ["index", "hashes"] {
        let name = |id: &BackupId| story.bench.folder().join(format!("{id}.{part}"));
        std::fs::copy(name(&one), name(&two)).unwrap();
    }
    assert!(story.shelf.open(&two).is_none(), "renamed");
    let other = Bench::new();
    let elsewhere = other.shelf();
    std::fs::create_dir_all(other.folder()).unwrap();
    for part in ["index", "hashes"] {
        let name = format!("{one}.{part}");
        std::fs::copy(story.bench.folder().join(&name), other.folder().join(&name)).unwrap();
    }
    assert!(elsewhere.open(&one).is_none(), "hashed with another secret");
    assert!(story.shelf.open(&one).is_some());
}

#[test]
fn an_increment_over_damaged_hashes_keeps_none() {
    for damaged in [false, true] {
        let mut story = Story::new(3);
        let table = "base/1/5".to_owned();
        let mut tree = Tree::from([(CONTROL.to_owned(), vec![9; CHUNK]), (table.clone(), noise(6 * CHUNK, 1))]);
        let first = story.sent(&tree, None);
        let whole = Sent { number: 1, parent: &[], cache: None, shelf: Some(&story.shelf), ..Sent::default() };
        let (_, maps, kept) = story.bench.backup(first.events(), whole).unwrap();
        assert!(kept);
        let (one, two) = (story.bench.id(1), story.bench.id(2));
        if damaged {
            let hashes = story.bench.folder().join(format!("{one}.hashes"));
            let mut bytes = std::fs::read(&hashes).unwrap();
            // Behind them stand their number and its head.
            let last = bytes.len() - 17;
            bytes[last] ^= 1;
            std::fs::write(&hashes, bytes).unwrap();
        }
        let before = tree.clone();
        tree.get_mut(&table).unwrap()[3 * CHUNK] ^= 1;
        let (name, bytes) = increment(&table, &tree[&table], &before[&table], &mut Chance(5));
        let files = vec![("backup_label".into(), b"label".to_vec()), (name, bytes), (CONTROL.into(), vec![9; CHUNK])];
        let made = Made { manifest: files.clone(), files, pieces: 1000 };
        let cache = story.shelf.open(&one);
        assert!(cache.is_some(), "blocks of hashes are read when they are needed");
        let shelf = Some(&story.shelf);
        let sent = Sent { number: 2, parent: &maps, cache, shelf, incremental: true, ..Sent::default() };
        let (received, maps, kept) = story.bench.backup(made.events(), sent).unwrap();
        assert!(story.bench.laid_back(&maps) == tree);
        assert_eq!((kept, story.shelf.open(&two).is_some()), (!damaged, !damaged));
        if damaged {
            assert!(received.tally.changed > CHUNK as u64, "{:?}", received.tally);
            continue;
        }
        assert_eq!(received.tally.changed, CHUNK as u64);
        let (third, cache) = (story.sent(&tree, None), story.shelf.open(&two));
        let sent = Sent { number: 3, parent: &maps, cache, ..Sent::default() };
        let (received, _, _) = story.bench.backup(third.events(), sent).unwrap();
        assert_eq!(received.tally.changed, 0);
    }
}

/// All packs that these maps name, covered runs included: what an expiry has to keep for their backup, and how many bytes that is.
fn held(bench: &Bench, maps: &[MapRef]) -> (BTreeSet<BackupId>, u64) {
    let mut packs = BTreeMap::new();
    for map in maps {
        let mut reader = MapReader::new(map.backup.clone(), map.parts);
        for part in 0..map.parts {
            reader.feed(&bench.map_part(map, part)).unwrap();
            while let Some(entry) = reader.next_entry().unwrap() {
                for run in entry.runs {
                    let Source::Pack { pack, .. } = run.source else { continue };
                    packs.insert((pack.backup.clone(), pack.number), pack.len);
                }
            }
        }
    }
    (packs.keys().map(|(backup, _)| backup.clone()).collect(), packs.values().sum())
}

#[test]
fn after_many_backups_the_newest_needs_little_more_than_one_does() {
    let mut story = Story::new(11);
    let chance = &mut Chance(7);
    let name = |number: u64| format!("base/1/{number}");
    let mut tree: Tree = (0..20).map(|number| (name(number), noise(15 * CHUNK, number))).collect();
    tree.insert(CONTROL.to_owned(), vec![9; CHUNK]);
    let (mut maps, mut cache, mut one) = (Vec::new(), None, 0);
    for number in 0..24 {
        for _ in 0..30 {
            let (file, at) = (name(chance.below(20)), chance.below(15 * CHUNK as u64));
            tree.get_mut(&file).unwrap()[at as usize] ^= 1;
        }
        let renewed = number == 23;
        if renewed {
            let dead = held(&story.bench, &maps).1;
            assert!(dead > one * 2, "{dead} bytes are held, one backup has {one}");
        }
        let made = story.sent(&tree, None);
        let sent = Sent { number, parent: &maps, cache, shelf: Some(&story.shelf), renewed, ..Sent::default() };
        let (received, written, kept) = story.bench.backup(made.events(), sent).unwrap();
        assert!(kept && (number % 8 != 7 || story.bench.laid_back(&written) == tree), "backup {number}");
        assert_eq!(received.tally.moved > 0, renewed);
        let id = story.bench.id(number);
        story.shelf.settle(&id, kept);
        (maps, cache) = (written, story.shelf.open(&id));
        one = if number == 0 { held(&story.bench, &maps).1 } else { one };
    }
    let after = held(&story.bench, &maps).1;
    println!("{after} bytes are held, one backup has {one}");
    assert!(after * 4 < one * 5, "{after} bytes are held, one backup has {one}");
}

/// A run that stores survivors anew dies, and its packs serve the next one; but they serve as such only once: when they have emptied themselves, what
/// lives in them moves, and is not found in them again (as it would be where a clock was set back, and the dead run still seems to be a new one).
#[test]
fn what_an_interrupted_renewal_stored_is_used_once() {
    let (mut story, table) = (Story::new(2), "base/1/5".to_owned());
    let mut tree = Tree::from([(CONTROL.to_owned(), vec![9; CHUNK]), (table.clone(), noise(40 * CHUNK, 1))]);
    let ids: Vec<BackupId> = (0..6).map(|number| story.bench.id(number)).collect();
    let (mut maps, mut parent, two) = (Vec::new(), None, [ids[2].clone()]);
    // Pages that change, whether survivors move, dead runs; then pages that are stored, that moved, and that are in packs of dead runs.
    let steps = [
        (0..0, false, &[][..], [41, 0, 0]),
        (0..30, false, &[], [30, 0, 0]),
        (0..0, true, &[], [11, 11, 0]),
        (0..0, true, &two, [0, 0, 11]),
        (30..38, false, &[], [8, 0, 0]),
        (0..0, true, &two, [3, 3, 0]),
    ];
    for (number, (changed, renewed, dead, expected)) in (0..).zip(steps) {
        changed.for_each(|page| tree.get_mut(&table).unwrap()[page * CHUNK] ^= 1);
        let made = story.sent(&tree, None);
        let cache = parent.as_ref().and_then(|id| story.shelf.open(id));
        let shelf = Some(&story.shelf);
        let sent = Sent { number, parent: &maps, cache, shelf, dead, renewed, ..Sent::default() };
        let (received, written, _) = story.bench.backup(made.events(), sent).unwrap();
        let tally = received.tally;
        let pages = [tally.changed, tally.moved, tally.found].map(|bytes| bytes / CHUNK as u64);
        assert_eq!(pages, expected, "backup {number}");
        assert_eq!(tally.changed + tally.reused, 41 * CHUNK as u64, "backup {number}");
        assert!(story.bench.laid_back(&written) == tree, "backup {number}");
        let id = &ids[usize::from(number)];
        if *id == ids[2] {
            story.shelf.forget(id);
            continue;
        }
        story.shelf.settle(id, true);
        (maps, parent) = (written, Some(id.clone()));
        let needs = |id: &BackupId| held(&story.bench, &maps).0.contains(id);
        assert_eq!((needs(&ids[0]), needs(&ids[2])), (number < 3, number == 3 || number == 4), "backup {number}");
    }
}

/// Two repositories, one `state_dir`: what one backup settles is nothing to the other's hashes. Nor are they used where the identity has changed.
#[test]
fn page_hashes_are_one_repository_s_and_one_identity_s() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (Bench::new(), Bench::of(RepositoryId([4; 16])));
    let shelf = |bench: &Bench, identity| Shelf::new(dir.path(), &bench.archive, &here.ring.page_hasher(), identity);
    let (one, other) = (shelf(&here, Some("a1")), shelf(&there, Some("a1")));
    for (shelf, number) in [(&one, 1), (&other, 2)] {
        let id = here.id(number);
        assert!(shelf.begin(&id).unwrap().finish());
        shelf.settle(&id, true);
    }
    assert_eq!((one.held(), other.held()), (vec![here.id(1)], vec![here.id(2)]));
    assert!(one.open(&here.id(1)).is_some() && shelf(&here, Some("b2")).open(&here.id(1)).is_none());
}
