//! Maps written and read back, and several read together against a plain model of files.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::seal::content::Malformed;
use crate::seal::content::manifest::MapRef;
use crate::seal::sealer::{FRAME_BYTES, OBJECT_BYTES};

pub(super) fn id(number: u16) -> BackupId {
    let time = jiff::Timestamp::from_second(1_769_824_800 + i64::from(number)).unwrap();
    BackupId::new(time, crate::pg::TimelineId(1), crate::pg::Lsn(40), number)
}

pub(super) fn pack(backup: u16, number: u32) -> Arc<PackPlace> {
    let place = |offset, len, plain_len| FramePlace { offset, len, plain_len };
    let frames = vec![place(300, 90, 70), place(390, 5000, FRAME_BYTES as u32), place(5390, 6000, FRAME_BYTES as u32)];
    Arc::new(PackPlace { backup: id(backup), number, len: 11390, header: Bytes::from(vec![7; 300]), frames })
}

pub(super) fn entry(path: impl Into<Vec<u8>>, kind: EntryKind, size: u64, runs: Vec<Run>) -> Entry {
    Entry { path: path.into(), kind, size, mode: 0o600, mtime: -5, link: Vec::new(), complete: false, runs }
}

pub(super) fn write(backup: &BackupId, entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut writer = MapWriter::new(backup.clone());
    let mut parts: Vec<_> = entries.iter().flat_map(|e| writer.push(e)).collect();
    parts.extend(writer.finish());
    parts
}

fn read(backup: &BackupId, parts: &[Vec<u8>]) -> Result<Vec<Entry>, Malformed> {
    let (mut reader, mut entries) = (MapReader::new(backup.clone(), parts.len() as u32), Vec::new());
    loop {
        if let Some(part) = reader.wants_part()? {
            reader.feed(&parts[part as usize])?;
        } else if let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        } else {
            return Ok(entries);
        }
    }
}

pub(super) fn map_ref(backup: &BackupId, parts: &[Vec<u8>]) -> MapRef {
    MapRef { backup: backup.clone(), parts: parts.len() as u32, bytes: parts.iter().map(|p| p.len() as u64).sum() }
}

pub(super) fn merged(maps: &[(BackupId, Vec<Vec<u8>>)]) -> Result<Vec<File>, Malformed> {
    let refs: Vec<_> = maps.iter().map(|(b, parts)| map_ref(b, parts)).collect();
    let (mut merge, mut files) = (Merge::new(&refs), Vec::new());
    loop {
        match merge.step()? {
            Step::Need { map, part } => merge.feed(map, &maps[map].1[part as usize])?,
            Step::File(file) => files.push(file),
            Step::End => return Ok(files),
        }
    }
}

fn stored(pack: &Arc<PackPlace>, first: u64, count: u64, frame: u32, offset: u32) -> Run {
    Run { first, count, source: Source::Pack { pack: pack.clone(), frame, offset } }
}

#[test]
fn a_map_of_many_parts_comes_back() {
    // Long headers fill parts; runs that cannot be joined, more of them than a record holds, different ones in any two files.
    let long = |n: u32| PackPlace { header: Bytes::from(vec![n as u8; 6000]), ..(*pack((n % 3) as u16, n)).clone() };
    let packs: Vec<_> = (0..4000).map(|n| Arc::new(long(n))).collect();
    let mut entries = vec![entry("base", EntryKind::Directory, 0, Vec::new())];
    for file in 0..20u64 {
        let place =
            |n: u64| stored(&packs[((n / 10 + file * 200) % 4000) as usize], n * 2, 1, 1 + (n % 2) as u32, 8192);
        let runs = (0..5000).map(place).collect();
        entries.push(entry(format!("base/5/{file:05}"), EntryKind::Pages, 10_000 * 8192, runs));
    }
    entries.push(Entry { link: b"../x".to_vec(), ..entry("link", EntryKind::Symlink, 0, Vec::new()) });
    let parts = write(&id(1), &entries);
    assert!(parts.len() >= 2, "{} parts", parts.len());
    assert!(parts.iter().all(|p| p.len() as u64 <= OBJECT_BYTES));
    assert_eq!(read(&id(1), &parts).unwrap(), entries);
    assert!(read(&id(2), &parts).is_err(), "another backup's map");
    let swapped: Vec<_> = parts.iter().rev().cloned().collect();
    assert!(read(&id(1), &swapped).is_err(), "parts in another order");
}

#[test]
fn a_map_without_entries_has_one_part() {
    let parts = write(&id(1), &[]);
    assert_eq!((parts.len(), read(&id(1), &parts).unwrap()), (1, Vec::new()));
    assert!(MapReader::new(id(1), 1).feed(b"").is_err());
}

#[test]
fn paths_and_runs_that_would_do_harm_are_refused() {
    let pack = pack(1, 0);
    let one = |path: &str, kind, size, runs| read(&id(1), &write(&id(1), &[entry(path, kind, size, runs)]));
    for path in ["", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a/", "./a", "a\0b"] {
        assert!(one(path, EntryKind::Directory, 0, Vec::new()).is_err(), "{path:?}");
    }
    let page = 8192;
    for (problem, size, run) in [
        ("past the end of the file", 8 * page, stored(&pack, 8, 1, 1, 0)),
        ("past the end of the frame", 99 * page, stored(&pack, 0, 32, 1, 8)),
        ("in the contents list", 99 * page, stored(&pack, 0, 1, 0, 0)),
        ("in a frame that is not there", 99 * page, stored(&pack, 0, 1, 3, 0)),
        ("empty", 99 * page, stored(&pack, 0, 0, 1, 0)),
        ("past every number", u64::MAX / page * page, stored(&pack, u64::MAX - 5, 5, 1, 0)),
    ] {
        assert!(one("a", EntryKind::Pages, size, vec![run]).is_err(), "a run {problem}");
    }
    assert!(one("a", EntryKind::Pages, 8191, Vec::new()).is_err(), "half a page");
    assert!(one("a", EntryKind::Directory, 99, vec![stored(&pack, 0, 1, 1, 0)]).is_err(), "a folder with content");
    let overlap = vec![stored(&pack, 0, 5, 1, 0), stored(&pack, 4, 1, 1, 0)];
    assert!(one("a", EntryKind::Pages, 99 * page, overlap).is_err(), "runs that overlap");
    let twice = [entry("b", EntryKind::Directory, 0, Vec::new()), entry("a", EntryKind::Directory, 0, Vec::new())];
    assert!(read(&id(1), &write(&id(1), &twice)).is_err(), "paths out of order");
}

#[test]
fn no_cut_or_changed_byte_makes_the_reader_panic() {
    let pack = pack(1, 3);
    let runs = vec![stored(&pack, 0, 7, 1, 0), Run { first: 7, count: 2, source: Source::Zero }];
    let entries = [entry("base/5/1", EntryKind::Pages, 9 * 8192, runs), entry("x", EntryKind::Absent, 0, Vec::new())];
    let parts = write(&id(1), &entries);
    for at in 0..parts[0].len() {
        for bit in 0..8 {
            let mut damaged = parts[0].clone();
            damaged[at] ^= 1 << bit;
            // The object's seal finds every changed byte; here it is enough that nothing breaks.
            let _ = read(&id(1), &[damaged]);
        }
        if let Ok(found) = read(&id(1), &[parts[0][..at].to_vec()]) {
            assert!(found.len() < 2, "cut at {at}");
        }
    }
}

#[test]
fn what_no_map_names_is_an_error() {
    let (new, old) = (pack(2, 0), pack(1, 0));
    let page = 8192;
    let maps = |top: Vec<Run>, complete: bool, below: Entry| {
        let top = Entry { complete, ..entry("f", EntryKind::Pages, 8 * page, top) };
        merged(&[(id(2), write(&id(2), &[top])), (id(1), write(&id(1), &[below]))])
    };
    let whole = || entry("f", EntryKind::Pages, 8 * page, vec![stored(&old, 0, 8, 1, 0)]);
    let changed = || vec![stored(&new, 3, 1, 1, 8192)];
    let files = maps(changed(), false, whole()).unwrap();
    let expected = vec![stored(&old, 0, 3, 1, 0), stored(&new, 3, 1, 1, 8192), stored(&old, 4, 4, 1, 4 * 8192)];
    assert_eq!(files[0].runs, expected);
    assert!(maps(changed(), true, whole()).is_err(), "a complete entry asks no older map");
    assert!(maps(changed(), false, entry("f", EntryKind::Absent, 0, Vec::new())).is_err());
    assert!(maps(changed(), false, entry("f", EntryKind::Bytes, 8 * page, Vec::new())).is_err());
    let shorter = entry("f", EntryKind::Pages, 4 * page, vec![stored(&old, 0, 4, 1, 0)]);
    assert!(maps(changed(), false, shorter).is_err(), "pages that the older map cannot know");
}

/// What a generated backup does to one file: gone, or so many pages of which these are stored anew, as a complete entry or not.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Gone,
    Pages { len: u64, changed: Vec<bool>, complete: bool },
}

fn change() -> impl Strategy<Value = Change> {
    let pages = (0..20u64, prop::collection::vec(any::<bool>(), 20), any::<bool>())
        .prop_map(|(len, changed, complete)| Change::Pages { len, changed, complete });
    prop_oneof![2 => Just(Change::Nothing), 1 => Just(Change::Gone), 4 => pages]
}

/// A page is told apart by who stored it: (backup, page in the file), or zero.
type Model = BTreeMap<String, Vec<Option<(u16, u64)>>>;

/// Applies one backup's changes to the model and gives the entries that its map needs.
fn apply(model: &mut Model, backup: u16, changes: &[Change]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (file, change) in changes.iter().enumerate() {
        let path = format!("f{file}");
        match change {
            Change::Nothing => {}
            Change::Gone => {
                model.remove(&path);
                entries.push(entry(path, EntryKind::Absent, 0, Vec::new()));
            }
            Change::Pages { len, changed, complete } => {
                let complete = *complete || !model.contains_key(&path);
                let pages = model.entry(path.clone()).or_default();
                let before = pages.len() as u64;
                pages.resize(*len as usize, None);
                let mut runs = Vec::new();
                for page in 0..*len {
                    if complete || page >= before || changed[page as usize] {
                        // Each page of a file has a frame place of its own, so that a wrong run shows.
                        let zero = page % 5 == 4;
                        let source = Source::Pack { pack: pack(backup, 9), frame: 1, offset: page as u32 * 8192 };
                        pages[page as usize] = (!zero).then_some((backup, page));
                        runs.push(Run { first: page, count: 1, source: if zero { Source::Zero } else { source } });
                    }
                }
                entries.push(Entry { complete, ..entry(path, EntryKind::Pages, len * 8192, runs) });
            }
        }
    }
    entries
}

fn backups() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 4), 1..=16)
}

proptest! {
    #[test]
    fn sixteen_maps_read_together_equal_the_model(backups in backups()) {
        let (mut model, mut maps) = (Model::new(), Vec::new());
        for (number, changes) in backups.iter().enumerate() {
            let entries = apply(&mut model, number as u16, changes);
            maps.insert(0, (id(number as u16), write(&id(number as u16), &entries)));
        }
        let mut found = Model::new();
        for file in merged(&maps).unwrap() {
            let mut pages = Vec::new();
            for run in &file.runs {
                prop_assert_eq!(run.first, pages.len() as u64, "no gaps");
                for page in 0..run.count {
                    pages.push(match &run.source {
                        Source::Zero => None,
                        Source::Pack { pack, offset, .. } => {
                            let number = maps.len() - 1 - maps.iter().position(|(b, _)| *b == pack.backup).unwrap();
                            Some((number as u16, u64::from(*offset) / 8192 + page))
                        }
                    });
                }
            }
            prop_assert_eq!(pages.len() as u64 * 8192, file.size);
            found.insert(String::from_utf8(file.path).unwrap(), pages);
        }
        prop_assert_eq!(found, model);
    }
}
