use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::error::{Kind, Result};

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        (0..200u32).prop_map(|n| format!("base/{}/{n}", n % 7).into_bytes()),
        prop::collection::vec(any::<u8>(), 1000..1024),
    ]
}

fn pairs() -> impl Strategy<Value = Vec<Pair>> {
    prop::collection::vec((key(), prop::collection::vec(any::<u8>(), 0..400)), 0..400)
}

fn all(mut next: impl FnMut() -> Result<Option<Pair>>) -> Result<Vec<Pair>> {
    let mut found = Vec::new();
    while let Some(pair) = next()? {
        found.push(pair);
    }
    Ok(found)
}

fn write(path: &Path, belongs: &[u8], model: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut writer = SortedWriter::create(path, belongs).unwrap();
    model.iter().for_each(|(key, value)| writer.push(key, value).unwrap());
    writer.finish().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_fits_in_memory_comes_out_in_order(pairs in pairs(), memory in 1usize << 10..1 << 18) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("not yet there");
        let mut sorter = Sorter::new(&folder, memory);
        pairs.iter().for_each(|(key, value)| sorter.push(key, value).unwrap());
        prop_assert_eq!(sorter.len(), pairs.len() as u64);
        let mut merged = sorter.finish().unwrap();
        if let Ok(listing) = std::fs::read_dir(&folder) {
            prop_assert_eq!(listing.count(), 0, "what is sorted there has no name");
        }
        let mut expected = pairs;
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(all(|| merged.next_pair()).unwrap(), expected);
    }

    #[test]
    fn every_key_is_found_and_no_other(pairs in pairs(), others in prop::collection::vec(key(), 50)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let model: BTreeMap<_, _> = pairs.into_iter().collect();
        write(&path, b"me", &model);
        let mut file = SortedFile::open(&path, b"me").unwrap().unwrap();
        prop_assert_eq!(file.len(), model.len() as u64);
        for key in model.keys().chain(&others) {
            prop_assert_eq!(file.get(key).unwrap(), model.get(key).cloned());
        }
        let mut walk = file.walk();
        prop_assert_eq!(all(|| walk.next_pair()).unwrap(), model.into_iter().collect::<Vec<_>>());
        file.verify().unwrap();
    }
}

/// Everything that can be asked of a file; an answer that is not the model's is the one thing that must not be.
fn ask(path: &Path, belongs: &[u8], model: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    let Some(mut file) = SortedFile::open(path, belongs)? else { panic!("it is there") };
    for (key, value) in model {
        assert_eq!(file.get(key)?.as_ref(), Some(value));
        assert_eq!(file.get(&[key.as_slice(), b"!"].concat())?, None);
    }
    let mut walk = file.walk();
    assert_eq!(all(|| walk.next_pair())?, model.clone().into_iter().collect::<Vec<_>>());
    file.verify()
}

#[test]
fn what_is_cut_damaged_or_of_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    assert!(SortedFile::open(&path, b"me").unwrap().is_none());
    let model: BTreeMap<_, _> =
        (0..60u32).map(|n| (format!("base/5/{n:09}").into_bytes(), vec![n as u8; 900])).collect();
    write(&path, b"me", &model);
    ask(&path, b"me", &model).unwrap();
    assert_eq!(ask(&path, b"you", &model).unwrap_err().kind(), Kind::Corrupt);
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.len() > 2 * (16 << 10), "more than two blocks");
    let damaged = dir.path().join("damaged");
    let refuses = |bytes: &[u8], what: &str| {
        std::fs::write(&damaged, bytes).unwrap();
        let refused = ask(&damaged, b"me", &model).expect_err(what);
        assert_eq!(refused.kind(), Kind::Corrupt, "{what}: {refused}");
    };
    for at in (0..whole.len()).step_by(41).chain(whole.len() - 60..whole.len()).chain(0..60) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        refuses(&bytes, &format!("byte {at}"));
        refuses(&whole[..at], &format!("cut at {at}"));
        bytes = whole.clone();
        let end = (at + 4096).min(whole.len());
        if whole[at..end].iter().any(|b| *b != 0) {
            bytes[at..end].fill(0);
            refuses(&bytes, &format!("zeros from {at}"));
        }
    }
    // A block of another file of the same shape.
    let other = dir.path().join("other");
    let again: BTreeMap<_, _> = model.keys().map(|key| (key.clone(), vec![0xEE; 900])).collect();
    write(&other, b"he", &again);
    let theirs = std::fs::read(&other).unwrap();
    let mut mixed = whole.clone();
    mixed[34..20_000].copy_from_slice(&theirs[34..20_000]);
    refuses(&mixed, "blocks of another file");
    std::fs::write(&damaged, &whole).unwrap();
    ask(&damaged, b"me", &model).unwrap();
}

#[test]
fn keys_out_of_order_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SortedWriter::create(&dir.path().join("file"), b"").unwrap();
    writer.push(b"", b"").unwrap();
    writer.push(b"b", b"").unwrap();
    assert!(writer.push(b"b", b"").is_err());
    assert!(writer.push(b"a", b"").is_err());
    drop(writer);
    assert_eq!(SortedFile::open(&dir.path().join("file"), b"").err().map(|e| e.kind()), Some(Kind::Corrupt));
}

#[test]
fn numbers_come_back_from_any_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("numbers");
    assert!(NumberFile::open(&path, b"me").unwrap().is_none());
    for count in [0u64, 1, 1023, 1024, 1025, 5000] {
        let mut writer = NumberWriter::create(&path, b"me").unwrap();
        (0..count).for_each(|n| writer.push(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).unwrap());
        assert_eq!(writer.len(), count);
        writer.finish().unwrap();
        let mut file = NumberFile::open(&path, b"me").unwrap().unwrap();
        assert_eq!(file.len(), count);
        for place in (0..count).step_by(3).chain((0..count).rev().step_by(700)) {
            assert_eq!(file.get(place).unwrap(), place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        assert_eq!(file.get(count).unwrap_err().kind(), Kind::Corrupt);
    }
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(13) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let read = NumberFile::open(&path, b"me").and_then(|file| {
            let mut file = file.expect("it is there");
            (0..file.len()).map(|n| file.get(n)).collect::<Result<Vec<_>>>()
        });
        assert_eq!(read.expect_err("a damaged byte").kind(), Kind::Corrupt, "byte {at}");
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(NumberFile::open(&path, b"me").is_err(), "cut at {at}");
    }
}

#[test]
fn a_long_list_is_sorted_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut sorter = Sorter::new(dir.path(), 64 << 10);
    let keys = (0..100_000u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 50_000);
    keys.clone().for_each(|n| sorter.push(&n.to_be_bytes(), b"value").unwrap());
    let mut merged = sorter.finish().unwrap();
    let mut expected: Vec<u64> = keys.collect();
    expected.sort_unstable();
    for key in expected {
        assert_eq!(merged.next_pair().unwrap(), Some((key.to_be_bytes().to_vec(), b"value".to_vec())));
    }
    assert_eq!(merged.next_pair().unwrap(), None);
}
