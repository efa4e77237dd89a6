//! Maps merged: one of several adjacent ones says what they said, over whatever lies below and under whatever lies above.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{entry, id, map_ref, merged, pack, write};
use super::*;
use crate::seal::content::Malformed;

/// What a generated backup does to one path.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Gone,
    Directory,
    /// Mode and time alone.
    Touched,
    File {
        pages: bool,
        len: u64,
        changed: Vec<bool>,
        complete: bool,
    },
}

/// Most pages (or bytes) of a file.
const LONGEST: u64 = 12;
const PATHS: usize = 3;

fn change() -> impl Strategy<Value = Change> {
    let file =
        (prop::bool::weighted(0.6), 0..=LONGEST, prop::collection::vec(prop::bool::weighted(0.3), LONGEST as usize));
    let file = (file, prop::bool::weighted(0.1)).prop_map(|((pages, len, changed), complete)| Change::File {
        pages,
        len,
        changed,
        complete,
    });
    prop_oneof![
        3 => Just(Change::Nothing),
        1 => Just(Change::Gone),
        1 => Just(Change::Directory),
        1 => Just(Change::Touched),
        8 => file,
    ]
}

/// What stands at a path, and who wrote its mode: files by their pages, told apart by who stored them (backup, number), or zero.
type Model = BTreeMap<String, (EntryKind, u16, Vec<Option<(u16, u64)>>)>;

/// Applies one backup's changes to the model and gives the entries that its map needs.
fn apply(model: &mut Model, backup: u16, changes: &[Change]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        let path = format!("f{number}");
        let mut new = entry(path.clone(), EntryKind::Absent, 0, Vec::new());
        (new.mode, new.mtime) = (u32::from(backup), i64::from(backup));
        match change {
            Change::Nothing => continue,
            Change::Gone => drop(model.remove(&path)),
            Change::Directory => {
                new.kind = EntryKind::Directory;
                model.insert(path, (EntryKind::Directory, backup, Vec::new()));
            }
            Change::Touched => {
                let Some((kind, by, pages)) = model.get_mut(&path) else { continue };
                let unit = kind.unit().map_or(0, Unit::bytes);
                (*by, new.kind, new.size) = (backup, *kind, pages.len() as u64 * unit);
            }
            Change::File { pages, len, changed, complete } => {
                let kind = if *pages { EntryKind::Pages } else { EntryKind::Bytes };
                let old = model.get(&path).filter(|(was, ..)| *was == kind).map(|(.., pages)| pages.clone());
                new.complete = *complete || old.is_none();
                (new.kind, new.size) = (kind, len * kind.unit().unwrap().bytes());
                let old = old.unwrap_or_default();
                let stored = |page: u64| new.complete || page >= old.len() as u64 || changed[page as usize];
                let place = |page: u64| (page % 5 != 4).then_some((backup, slot(page)));
                new.runs = (0..*len).filter(|p| stored(*p)).map(|p| run(kind, p, place(p))).collect();
                let now = (0..*len).map(|p| if stored(p) { place(p) } else { old[p as usize] });
                let now = (kind, backup, now.collect());
                model.insert(path, now);
            }
        }
        entries.push(new);
    }
    entries
}

/// Where a page stands among those of its file and backup: not all in order.
fn slot(page: u64) -> u64 {
    if page % 4 < 2 { page } else { page ^ 1 }
}

/// One page (or byte), each in a place of its own, so that a wrong one shows.
fn run(kind: EntryKind, first: u64, place: Option<(u16, u64)>) -> Run {
    let unit = kind.unit().unwrap().bytes();
    let source = place.map_or(Source::Zero, |(backup, page)| {
        let offset = u32::try_from(page * unit).unwrap();
        Source::Pack { pack: pack(backup, 9), frame: 1, offset }
    });
    Run { first, count: 1, source }
}

/// What files there are, as the model has them.
fn as_model(files: &[File]) -> Model {
    let mut found = Model::new();
    for file in files {
        let mut pages = Vec::new();
        for run in &file.runs {
            assert_eq!(run.first, pages.len() as u64, "a gap");
            let unit = file.kind.unit().unwrap().bytes();
            pages.extend((0..run.count).map(|n| match &run.source {
                Source::Zero => None,
                Source::Pack { pack, offset, .. } => {
                    let backup = (0..99).find(|b| id(*b) == pack.backup).unwrap();
                    Some((backup, u64::from(*offset) / unit + n))
                }
            }));
        }
        assert_eq!(pages.len() as u64 * file.kind.unit().map_or(1, Unit::bytes), file.size);
        assert_eq!((i64::from(file.mode), file.mode), (file.mtime, file.mtime as u32));
        found.insert(String::from_utf8(file.path.clone()).unwrap(), (file.kind, file.mode as u16, pages));
    }
    found
}

/// Maps newest first, with the number that each is called by.
type Stack = Vec<(u16, Vec<Entry>)>;

fn read(stack: &[(u16, Vec<Entry>)]) -> Result<Vec<File>, Malformed> {
    let maps: Vec<_> = stack.iter().map(|(number, entries)| (id(*number), write(&id(*number), entries))).collect();
    merged(&maps)
}

/// What the format says of such maps, page by page; `None`: a page is nowhere.
fn as_said(stack: &[(u16, Vec<Entry>)]) -> Option<Model> {
    let mut said = Model::new();
    for number in 0..PATHS {
        let path = format!("f{number}");
        let in_map = |(_, entries): &(u16, Vec<Entry>)| entries.iter().find(|e| e.path == path.as_bytes()).cloned();
        let entries: Vec<Entry> = stack.iter().filter_map(in_map).collect();
        let Some(top) = entries.first().filter(|e| e.kind != EntryKind::Absent) else { continue };
        let unit = top.kind.unit().map(Unit::bytes);
        let pages = (0..unit.map_or(0, |unit| top.size / unit)).map(|page| {
            for (depth, entry) in entries.iter().enumerate() {
                let reaches = entry.kind == top.kind && page * unit? < entry.size;
                if !reaches {
                    return None;
                }
                if let Some(run) = entry.runs.iter().find(|r| (r.first..r.first + r.count).contains(&page)) {
                    let Source::Pack { pack, offset, .. } = &run.source else { return Some(None) };
                    let backup = (0..99).find(|b| id(*b) == pack.backup)?;
                    return Some(Some((backup, u64::from(*offset) / unit? + page - run.first)));
                }
                if entry.complete || depth + 1 == entries.len() {
                    return None;
                }
            }
            None
        });
        said.insert(path, (top.kind, top.mode as u16, pages.collect::<Option<Vec<_>>>()?));
    }
    Some(said)
}

/// One map of these, by way of their stored form.
fn layers(stack: &[(u16, Vec<Entry>)]) -> Result<Vec<Entry>, Malformed> {
    let maps: Vec<_> = stack.iter().map(|(number, entries)| (id(*number), write(&id(*number), entries))).collect();
    let refs: Vec<_> = maps.iter().map(|(b, parts)| map_ref(b, parts)).collect();
    let (mut layers, mut out) = (Layers::new(&refs), Vec::new());
    loop {
        match layers.step()? {
            LayerStep::Need { map, part } => layers.feed(map, &maps[map].1[part as usize])?,
            LayerStep::Entry(entry) => out.push(entry),
            LayerStep::End => return Ok(out),
        }
    }
}

/// What they say when nothing lies below.
fn oldest(entries: Vec<Entry>) -> Result<Vec<Entry>, Malformed> {
    entries.into_iter().filter_map(|e| combine(vec![e], true).transpose()).collect()
}

fn stack(backups: &[Vec<Change>]) -> (Stack, Model) {
    let (mut model, mut stack) = (Model::new(), Stack::new());
    for (number, changes) in backups.iter().enumerate() {
        let entries = apply(&mut model, number as u16, changes);
        stack.insert(0, (number as u16, entries));
    }
    (stack, model)
}

fn backups() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), PATHS), 1..=9)
}

/// The stack with the maps `from..to` made one.
fn with_merged(stack: &Stack, from: usize, to: usize, merged: Vec<Entry>) -> Stack {
    let mut out = stack.clone();
    let newest = out[from].0;
    out.splice(from..to, [(newest, merged)]);
    out
}

fn covers(entry: &Entry) -> bool {
    entry.kind.unit().is_some_and(|u| entry.runs.iter().map(|r| r.count).sum::<u64>() * u.bytes() == entry.size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_maps_merged_say_what_they_said(backups in backups(), from in 0..9usize, count in 1..=9usize) {
        let (stack, model) = stack(&backups);
        let before = read(&stack).unwrap();
        prop_assert_eq!(&as_model(&before), &model);
        let from = from % stack.len();
        let to = (from + count).min(stack.len());
        let mut merged = layers(&stack[from..to]).unwrap();
        for entry in merged.iter().filter(|e| e.kind.unit().is_some()) {
            prop_assert_eq!(entry.complete, covers(entry), "{:?}", entry);
        }
        if to == stack.len() {
            merged = oldest(merged).unwrap();
            prop_assert!(merged.iter().all(|e| e.kind != EntryKind::Absent && e.complete));
        }
        prop_assert_eq!(&read(&with_merged(&stack, from, to, merged)).unwrap(), &before);
    }

    /// Of maps that do not fit together, too: what was an error stays one, and nothing shines through.
    #[test]
    fn merging_hides_no_damage(
        backups in backups(),
        from in 0..9usize,
        count in 1..=9usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4u8), 1..4),
    ) {
        let (mut stack, _) = stack(&backups);
        for (map, place, what) in damage {
            let entries = &mut map.get_mut(stack.as_mut_slice()).1;
            if entries.is_empty() {
                continue;
            }
            let at = place.index(entries.len());
            let runs = entries[at].runs.len();
            match what {
                0 => drop(entries.remove(at)),
                1 => entries[at].complete ^= true,
                2 if runs > 0 => drop(entries[at].runs.remove(place.index(runs))),
                _ => entries[at].runs.clear(),
            }
        }
        prop_assert_eq!(read(&stack).ok().map(|files| as_model(&files)), as_said(&stack));
        let from = from % stack.len();
        let to = (from + count).min(stack.len());
        match layers(&stack[from..to]) {
            Ok(merged) => prop_assert_eq!(read(&with_merged(&stack, from, to, merged)).ok(), read(&stack).ok()),
            // Newer maps may cover it.
            Err(_) => prop_assert!(read(&stack[from..]).is_err()),
        }
    }
}

/// A file that was cut and grew again: what stood there before must not come back, even where the map that should name the new pages does not.
#[test]
fn what_a_file_lost_between_two_maps_does_not_come_back() {
    let page = |n: u64, backup| run(EntryKind::Pages, n, Some((backup, n)));
    let pages = |backup, len: u64, runs: &[u64], complete| {
        let runs = runs.iter().map(|n| page(*n, backup)).collect();
        Entry { complete, ..entry("f", EntryKind::Pages, len * 8192, runs) }
    };
    let old = pages(1, 6, &[0, 1, 2, 3, 4, 5], true);
    let cut = pages(2, 2, &[1], false);
    let grown = |runs: &[u64]| pages(3, 6, runs, false);
    let good = [(3, vec![grown(&[2, 3, 4, 5])]), (2, vec![cut.clone()]), (1, vec![old.clone()])];
    let merged = layers(&good[..2]).unwrap();
    assert_eq!(merged[0].runs, [page(1, 2), Run { count: 4, ..page(2, 3) }]);
    assert_eq!(read(&[(3, merged), (1, vec![old.clone()])]).unwrap(), read(&good).unwrap());
    let bad = [(3, vec![grown(&[2, 3, 5])]), (2, vec![cut]), (1, vec![old])];
    assert!(read(&bad).is_err());
    assert!(layers(&bad[..2]).is_err(), "page 4 of the oldest map would shine through");
}

#[test]
fn zero_runs_and_neighbours_are_joined() {
    let zero = |first, count| Run { first, count, source: Source::Zero };
    let file = |runs| entry("f", EntryKind::Pages, 8 * 8192, runs);
    let one = |n| run(EntryKind::Pages, n, Some((1, n)));
    let other = |n| run(EntryKind::Pages, n, Some((2, n)));
    let newer = file(vec![zero(0, 1), one(3), zero(6, 1)]);
    let older = file(vec![zero(1, 1), one(2), other(4), other(5), zero(7, 1)]);
    let found = combine(vec![newer, older], true).unwrap().unwrap();
    let joined = [zero(0, 2), Run { count: 2, ..one(2) }, Run { count: 2, ..other(4) }, zero(6, 2)];
    assert_eq!(found.runs, joined);
}
