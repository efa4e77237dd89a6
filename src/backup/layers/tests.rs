//! Maps of many backups in a row: few, and together what each backup was.

use std::collections::BTreeMap;

use super::super::made_maps::{Packs, Pages, Random, Store, absent, entry, id, same, seed};
use super::*;
use crate::seal::content::manifest::Manifest;

type Cluster = BTreeMap<String, Pages>;

/// One backup's random changes to the cluster, and its delta.
fn change(cluster: &mut Cluster, packs: &mut Packs, random: &mut Random) -> Vec<Entry> {
    let mut delta = Vec::new();
    for number in 0..6 {
        let path = format!("base/5/{number}");
        let old = cluster.get(&path).cloned();
        match (random.below(8), old) {
            (0, Some(_)) => {
                cluster.remove(&path);
                delta.push(absent(&path));
            }
            (1..5, old) => {
                let (before, len) = (old.as_ref().map_or(0, |p| p.len() as u64), random.below(80));
                let mut pages = old.clone().unwrap_or_default();
                pages.resize(len as usize, None);
                let changed: Vec<bool> = (0..len).map(|page| page >= before || random.below(10) == 0).collect();
                for (page, _) in pages.iter_mut().zip(&changed).filter(|(_, changed)| **changed) {
                    *page = (random.below(5) > 0).then(|| packs.store());
                }
                let complete = old.is_none();
                delta.push(entry(&path, &pages, complete, |page| complete || changed[page as usize]));
                cluster.insert(path, pages);
            }
            _ => {}
        }
    }
    delta
}

#[test]
fn sixty_backups_in_a_row_name_few_maps_and_say_what_each_was() {
    let mut random = Random(seed());
    let (store, mut cluster, mut maps) = (Store::new(), Cluster::new(), Vec::new());
    let mut earlier: Vec<(Vec<MapRef>, Cluster)> = Vec::new();
    for backup in 0..60 {
        let delta = change(&mut cluster, &mut Packs::new(id(backup)), &mut random);
        maps = store.write(backup, delta, &maps).unwrap();
        assert!(maps.len() <= Manifest::MAPS && maps[0].backup == id(backup));
        let plain = |m: &MapRef| (0..m.parts).map(|part| store.read(m, part).unwrap().len() as u64).sum::<u64>();
        assert!(maps.iter().all(|m| plain(m) == m.bytes));
        assert!(same(&store.files(&maps), &cluster), "backup {backup}");
        earlier.push((maps.clone(), cluster.clone()));
    }
    for (number, (maps, cluster)) in earlier.iter().enumerate() {
        assert!(same(&store.files(maps), cluster), "backup {number}, looked at again");
    }
}

/// A cluster that is large enough for several maps: a long oldest one stays as it is, small ones are merged.
#[test]
fn a_long_map_is_named_and_small_ones_are_merged() {
    let (store, mut cluster) = (Store::new(), Cluster::new());
    let mut packs = Packs::new(id(0));
    for number in 0..25 {
        let pages: Pages = (0..1000).map(|page| (page % 2 == 0).then(|| packs.store())).collect();
        cluster.insert(format!("base/5/{number:02}"), pages);
    }
    let all = cluster.iter().map(|(path, pages)| entry(path, pages, true, |_| true)).collect();
    let mut maps = store.write(0, all, &[]).unwrap();
    let (first, mut random, mut most) = (maps[0].clone(), Random(1), 0);
    assert!(first.bytes > 100_000, "{first:?}");
    for backup in 1..30 {
        let (mut packs, mut delta) = (Packs::new(id(backup)), Vec::new());
        for (path, pages) in &mut cluster {
            let changed: Vec<u64> = (0..20).map(|_| random.below(1000)).collect();
            changed.iter().for_each(|page| pages[*page as usize] = Some(packs.store()));
            delta.push(entry(path, pages, false, |page| changed.contains(&page)));
        }
        maps = store.write(backup, delta, &maps).unwrap();
        most = most.max(maps.len());
        assert!(maps.last() == Some(&first) || backup > 8, "{maps:?}");
        assert!(backup % 7 > 0 || same(&store.files(&maps), &cluster), "backup {backup}");
    }
    assert!(most > 1 && most < 5, "{most}");
}

#[test]
fn a_delta_that_does_not_fit_is_refused() {
    let store = Store::new();
    let mut packs = Packs::new(id(0));
    let pages: Pages = (0..4).map(|_| Some(packs.store())).collect();
    let whole = entry("f", &pages, true, |_| true);
    let hole = entry("f", &pages, false, |page| page != 2);
    let refused = |delta: Vec<Entry>, parent: &[MapRef]| store.write(9, delta, parent).unwrap_err().kind();
    assert_eq!(refused(vec![hole.clone()], &[]), Kind::Corrupt, "nothing below it");
    let maps = store.write(1, vec![whole.clone()], &[]).unwrap();
    assert_eq!(refused(vec![Entry { complete: true, ..hole.clone() }], &maps), Kind::Corrupt);
    let grown = entry("f", &[pages.clone(), pages.clone()].concat(), false, |page| page < 5);
    assert_eq!(refused(vec![grown], &maps), Kind::Corrupt, "pages that the parent cannot have");
    let other = Entry { path: b"e".to_vec(), ..whole.clone() };
    assert_eq!(refused(vec![whole.clone(), other], &[]), Kind::Failed, "out of order");
    assert_eq!(refused(vec![whole.clone(), whole], &[]), Kind::Failed, "twice");
    assert!(store.write(2, vec![hole], &maps).is_ok());
    let lost = MapRef { backup: id(7), ..maps[0].clone() };
    assert_eq!(refused(Vec::new(), &[lost]), Kind::Corrupt, "a map that is not there");
}
