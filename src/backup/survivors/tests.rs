//! Space that comes back over many small backups of which only the newest are kept.

use std::collections::{BTreeMap, BTreeSet};

use super::super::made_maps::{FRAME, FRAMES, Packs, Pages, Random, Store, absent, entry, id, same, seed};
use super::*;
use crate::seal::content::map::Entry;

/// Backups that are kept.
const KEPT: usize = 24;
const PACK: u64 = FRAME * FRAMES * 8192;

struct Simulated {
    store: Store,
    cluster: BTreeMap<String, Pages>,
    maps: Vec<MapRef>,
    /// As in the manifest.
    carried: u64,
    stored: u64,
    since: u32,
}

impl Simulated {
    fn live(&self) -> u64 {
        self.cluster.values().flatten().flatten().count() as u64 * 8192
    }

    fn survivors(&self, shreds: bool) -> Survivors {
        let mut held = Held::default();
        self.store.files(&self.maps).iter().for_each(|file| held.note(&file.runs, 8192));
        let read = |map: &MapRef, part: u32| self.store.read(map, part);
        Survivors::find(&self.maps, &read, &held, shreds).unwrap()
    }

    /// A backup that stores what changed, and what `survivors` says.
    fn back_up(&mut self, number: u32, changed: &BTreeMap<String, BTreeSet<u64>>, gone: &[String], due: Option<bool>) {
        let survivors = due.map(|shreds| self.survivors(shreds));
        let mut packs = Packs::new(id(number));
        let mut delta: Vec<Entry> = gone.iter().map(|path| absent(path)).collect();
        for (path, pages) in &mut self.cluster {
            let moves = survivors.as_ref().map(|s| s.of(path.as_bytes()));
            let new = changed.get(path);
            let stored = |page: u64| new.is_some_and(|n| n.contains(&page)) || moves.is_some_and(|m| m.has(page));
            let complete = new.is_some_and(|n| n.contains(&u64::MAX));
            for (number, page) in pages.iter_mut().enumerate() {
                // A page that moves is found not to be zero, as in a real transfer.
                let zero = page.is_none() && !new.is_some_and(|n| n.contains(&(number as u64)));
                if !zero && (stored(number as u64) || complete) {
                    *page = Some(packs.store());
                }
            }
            let entry = entry(path, pages, complete, |page| complete || stored(page));
            if complete || !entry.runs.is_empty() {
                delta.push(entry);
            }
        }
        delta.sort_by(|a, b| a.path.cmp(&b.path));
        self.stored += packs.plain;
        self.since = if due.is_some() { number } else { self.since };
        let written = self.store.write_all(number, delta, &self.maps, due.is_some()).unwrap();
        assert!(due.is_none() || written.held.is_some());
        self.carried = written.held.unwrap_or(self.carried + packs.plain);
        self.maps = written.maps;
        if number.is_multiple_of(10) || due.is_some() {
            assert!(same(&self.store.files(&self.maps), &self.cluster), "backup {number}");
        }
    }

    /// The packs that the newest backup needs.
    fn needs(&self) -> BTreeSet<(BackupId, u32)> {
        let spots = self.cluster.values().flatten().flatten();
        spots.map(|spot| (spot.pack.backup.clone(), spot.pack.number)).collect()
    }

    fn dead(&self) -> u64 {
        self.carried - self.live()
    }
}

/// Changes 2 % of all pages, now and then drops a file or makes one.
fn work(simulated: &mut Simulated, number: u32, random: &mut Random) -> (BTreeMap<String, BTreeSet<u64>>, Vec<String>) {
    let (mut changed, mut gone) = (BTreeMap::new(), Vec::new());
    let paths: Vec<String> = simulated.cluster.keys().cloned().collect();
    for path in &paths {
        let len = simulated.cluster[path].len() as u64;
        changed.insert(path.clone(), (0..len / 50).map(|_| random.below(len)).collect::<BTreeSet<u64>>());
    }
    if random.below(10) == 0 {
        let path = paths[random.below(paths.len() as u64) as usize].clone();
        simulated.cluster.remove(&path);
        changed.remove(&path);
        gone.push(path);
        let path = format!("base/5/{number:05}");
        let len = 150 + random.below(200);
        simulated.cluster.insert(path.clone(), vec![None; len as usize]);
        changed.insert(path, (0..len).filter(|page| page % 10 != 0).chain([u64::MAX]).collect());
    }
    (changed, gone)
}

fn begin(random: &mut Random) -> Simulated {
    let (store, cluster, maps) = (Store::new(), BTreeMap::new(), Vec::new());
    let mut simulated = Simulated { store, cluster, maps, carried: 0, stored: 0, since: 0 };
    let mut changed = BTreeMap::new();
    for number in 0..12 {
        let (path, len) = (format!("base/4/{number:05}"), 150 + random.below(200));
        simulated.cluster.insert(path.clone(), vec![None; len as usize]);
        changed.insert(path, (0..len).filter(|page| page % 7 != 0).chain([u64::MAX]).collect());
    }
    simulated.back_up(0, &changed, &[], None);
    simulated
}

/// Two hundred hourly backups, with a compaction when it is due; the worst share of dead bytes after the first compaction, of the newest backup and of
/// everything that is kept, in a hundred, the bytes stored against those changed, and the number of compactions.
fn simulate(seed: u64, every: u32) -> (u64, u64, f64, u32) {
    let mut random = Random(seed);
    let mut simulated = begin(&mut random);
    let mut kept = Vec::new();
    let (mut worst, mut worst_kept, mut changes, mut compactions) = (0, 0, 0, 0);
    for number in 1..=200 {
        let (changed, gone) = work(&mut simulated, number, &mut random);
        changes += changed.values().flatten().filter(|page| **page != u64::MAX).count() as u64 * 8192;
        let dead_share = simulated.dead() * 100 / simulated.carried;
        let time = number - simulated.since >= every;
        let dead = dead_share > 30 && simulated.since + 1 < number;
        let due = (dead || time).then_some(time);
        simulated.back_up(number, &changed, &gone, due);
        compactions += u32::from(due.is_some());
        let needed = simulated.needs();
        // The manifest's figure is never too small, and exact where everything was merged.
        let all = needed.len() as u64 * PACK;
        assert!(if due.is_some() { all == simulated.carried } else { all <= simulated.carried }, "backup {number}");
        kept.push(needed);
        if kept.len() > KEPT {
            kept.remove(0);
        }
        let live = simulated.live();
        let newest = kept.last().unwrap().len() as u64 * PACK;
        worst = worst.max((newest - live) * 100 / newest);
        let all: BTreeSet<_> = kept.iter().flatten().collect();
        worst_kept = worst_kept.max(all.len() as u64 * PACK * 100 / live);
    }
    (worst, worst_kept, simulated.stored as f64 / changes as f64, compactions)
}

#[test]
fn dead_bytes_stay_bounded_over_two_hundred_backups() {
    let seed = seed();
    let (worst, kept, stored, compactions) = simulate(seed, 168);
    println!(
        "newest: at most {worst} % dead; all kept: {kept} % of the live bytes; stored {stored:.2} of what changed; {compactions} compactions"
    );
    // A threshold of 30 %, and what one backup changes.
    assert!(worst <= 35, "{worst} % dead");
    // 24 backups keep what they changed, and what was stored anew meanwhile: about three times what is live.
    assert!(kept <= 400, "{kept} %");
    assert!(stored < 2.5, "{stored}");
    assert!(compactions > 3, "{compactions}");
}

#[test]
fn without_it_nearly_everything_would_be_dead() {
    let mut random = Random(5);
    let mut simulated = begin(&mut random);
    for number in 1..=60 {
        let (changed, gone) = work(&mut simulated, number, &mut random);
        simulated.back_up(number, &changed, &gone, None);
    }
    let needed = simulated.needs().len() as u64 * PACK;
    assert!((needed - simulated.live()) * 100 / needed > 45, "{} of {needed} live", simulated.live());
    let found = simulated.survivors(true);
    assert!(found.moving > 0);
    // What moves is what lives in packs that do not stay, and shreds.
    let moved: u64 = simulated
        .cluster
        .iter()
        .map(|(path, pages)| {
            let moves = found.of(path.as_bytes());
            (0..pages.len() as u64).filter(|page| moves.has(*page)).count() as u64 * 8192
        })
        .sum();
    assert_eq!(moved, found.moving);
    assert!(!found.of(b"base/none").has(0));
    simulated.back_up(61, &BTreeMap::new(), &[], Some(false));
    let needed = simulated.needs().len() as u64 * PACK;
    assert!((needed - simulated.live()) * 100 / needed <= 21, "{} of {needed} live", simulated.live());
}
