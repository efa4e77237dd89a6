//! Maps, packs and contents lists that are whole and authentic each, and do not belong together: the worst case is a page from a wrong place.

use std::sync::Arc;

use walrecv::pg::data_page::PAGE;
use walrecv::seal::content::contents::{Piece, Unit};
use walrecv::seal::content::event::Outcome;
use walrecv::seal::content::map::{Entry, EntryKind, PackPlace, Run, Source};
use walrecv::seal::page_hash::PageHash;
use walrecv::verify::{Flaw, Report, State};

use crate::damage::check;
use crate::shop::{Made, Shop, Slice, Truth, at, directory, file, id, page, run};

/// A third backup of two relations in one pack, whose map says what `runs` make of it.
fn with_map(runs: impl Fn(&Arc<PackPlace>) -> (Vec<Run>, Vec<Run>)) -> (Shop, String) {
    with_pack(runs, &|_| ())
}

/// The same, with a contents list that says something else.
fn with_pack(runs: impl Fn(&Arc<PackPlace>) -> (Vec<Run>, Vec<Run>), twist: &dyn Fn(&mut Piece)) -> (Shop, String) {
    let mut shop = Shop::new();
    let span = (shop.backups[1].manifest.start, shop.backups[1].manifest.stop);
    let id = id(3, span.0);
    let bytes = |fill: u8| (0..4).flat_map(|block| page(block, fill)).collect::<Vec<u8>>();
    let slice = |path, fill| Slice { path, unit: Unit::Pages, first: 0, bytes: bytes(fill) };
    let frames = [vec![slice("base/5/1", 1), slice("base/5/2", 2)], vec![control()]];
    let (place, sealed) = shop.pack_with(&id, 0, &frames, twist);
    shop.put(&shop.archive().names.pack(id.as_str(), 0), &sealed.bytes);
    let table = |path: &str, fill| (path.as_bytes().to_vec(), bytes(fill));
    let truth: Truth =
        [table("base/5/1", 1), table("base/5/2", 2), (b"global/pg_control".to_vec(), control().bytes)].into();
    let (one, two) = runs(&place);
    let entries: Vec<Entry> = vec![
        directory("base"),
        directory("base/5"),
        file(&truth, "base/5/1", EntryKind::Pages, one),
        file(&truth, "base/5/2", EntryKind::Pages, two),
        directory("global"),
        file(&truth, "global/pg_control", EntryKind::Bytes, vec![at(0, 8192, &place, 2, 0)]),
    ];
    let map = shop.put_map(&id, &entries);
    let name = shop.archive().names.map(id.as_str(), 0);
    let manifest = shop.manifest(&id, span, vec![map], None, &truth);
    shop.put_manifest(&manifest);
    shop.backups.push(Made { manifest, truth });
    (shop, name)
}

fn control() -> Slice<'static> {
    Slice { path: "global/pg_control", unit: Unit::Bytes, first: 0, bytes: vec![6; 8192] }
}

fn good(place: &Arc<PackPlace>) -> (Vec<Run>, Vec<Run>) {
    (vec![at(0, 4, place, 1, 0)], vec![at(0, 4, place, 1, 4 * PAGE as u32)])
}

fn third(report: &Report) -> State {
    report.backups[2].state
}

#[test]
fn a_map_whose_run_points_to_another_page_is_found() {
    let (shop, _) = with_map(good);
    let report = check(shop.archive(), true);
    assert_eq!((report.outcome, third(&report)), (Outcome::Ok, State::Whole), "{:?}", report.problems);
    assert_eq!(shop.restore(shop.archive(), 2), Ok(()));
    type Twist = fn(&Arc<PackPlace>) -> (Vec<Run>, Vec<Run>);
    let twists: [Twist; 4] = [
        // The other relation's pages.
        |place| (good(place).1, good(place).0),
        // The right relation, one page on.
        |place| {
            (
                vec![at(0, 1, place, 1, 0), at(1, 1, place, 1, 2 * PAGE as u32), at(2, 2, place, 1, 2 * PAGE as u32)],
                good(place).1,
            )
        },
        // A run that goes on into the next relation.
        |place| (vec![at(0, 2, place, 1, 2 * PAGE as u32), at(2, 2, place, 1, 4 * PAGE as u32)], good(place).1),
        // Half a page aside: inside the frame, so that the map reads well.
        |place| (vec![at(0, 4, place, 1, PAGE as u32 / 2)], good(place).1),
    ];
    for (number, twist) in twists.into_iter().enumerate() {
        let (shop, name) = with_map(twist);
        // Every object is authentic and of the right length: names and lengths tell nothing.
        assert_eq!(check(shop.archive(), false).outcome, Outcome::Ok);
        let report = check(shop.archive(), true);
        let found = report.problems.iter().find(|problem| problem.object == name);
        let found = found.unwrap_or_else(|| panic!("twist {number} is not found: {:?}", report.problems));
        assert_eq!((found.flaw, report.outcome, third(&report)), (Flaw::Damaged, Outcome::Corrupt, State::Hurt));
        assert!(found.found.contains("base/5/"), "{found:?}");
        assert_eq!(report.backups[0].state, State::Whole, "the others are not hurt");
        // No page is laid that belongs elsewhere.
        let refusal = shop.restore(shop.archive(), 2).expect_err("a wrong map");
        assert!(refusal.contains("a map says") && refusal.contains("/packs/"), "twist {number}: {refusal}");
    }
}

/// Another pack, sealed by the same keys for the same place, of the same length: the map's copy of the first bytes tells them apart.
#[test]
fn a_pack_replaced_by_another_of_the_same_length_is_found() {
    let (shop, _) = with_map(good);
    let id = shop.archive().names.pack(id(3, shop.backups[1].manifest.start).as_str(), 0);
    let backup = crate::shop::id(3, shop.backups[1].manifest.start);
    let slice = |path, fill| Slice {
        path,
        unit: Unit::Pages,
        first: 0,
        bytes: (0..4).flat_map(|block| page(block, fill)).collect(),
    };
    let (place, sealed) = shop.pack(&backup, 0, &[vec![slice("base/5/1", 3), slice("base/5/2", 4)], vec![control()]]);
    let old = run(shop.archive().repo.head(&id)).expect("a look").expect("a pack");
    assert_eq!(old.size, place.len);
    run(shop.archive().repo.delete(&id)).expect("a delete");
    shop.put(&id, &sealed.bytes);
    assert_eq!(check(shop.archive(), false).outcome, Outcome::Ok, "the length is the same");
    let report = check(shop.archive(), true);
    assert!(report.problems.iter().any(|p| p.object == id && p.hurts.len() == 1), "{:?}", report.problems);
    assert_eq!(third(&report), State::Hurt);
    assert!(shop.restore(shop.archive(), 2).expect_err("another pack").contains(&id));
}

/// A contents list that is authentic and says something else of its pages than they are: what is compared later goes by it.
#[test]
fn a_contents_list_that_does_not_fit_its_pages_is_found() {
    type Twist = fn(&mut Piece);
    let twists: [(Twist, &str); 3] = [
        (|piece| piece.hashes.iter_mut().skip(1).for_each(|hash| hash.0 ^= 1), "hash"),
        (|piece| piece.hashes[0] = PageHash::ZERO, "hash"),
        (|piece| piece.first += u64::from(piece.path.ends_with(b"1")), "stand there"),
    ];
    for (twist, says) in twists {
        let (shop, _) = with_pack(good, &twist);
        assert_eq!(check(shop.archive(), false).outcome, Outcome::Ok);
        let report = check(shop.archive(), true);
        assert!(report.problems.iter().any(|p| p.found.contains(says)), "{:?}", report.problems);
        assert_eq!((third(&report), report.backups[0].state), (State::Hurt, State::Whole), "{:?}", report.problems);
    }
}

/// Maps that are good each and leave a page unnamed together.
#[test]
fn maps_that_do_not_tell_where_a_page_is_are_found_at_once() {
    let (shop, _) = with_map(|place| (vec![at(0, 3, place, 1, 0)], good(place).1));
    let report = check(shop.archive(), false);
    assert_eq!((report.outcome, third(&report)), (Outcome::Corrupt, State::Hurt), "{:?}", report.problems);
    assert!(report.problems[0].found.contains("base/5/1"), "{:?}", report.problems);
    assert_eq!((report.backups[0].state, report.backups[1].state), (State::Whole, State::Whole));
    let zero = Run { first: 3, count: 1, source: Source::Zero };
    let (shop, _) = with_map(move |place| (vec![at(0, 3, place, 1, 0), zero.clone()], good(place).1));
    assert_eq!(check(shop.archive(), true).outcome, Outcome::Ok, "a page of zeros needs no place");
}
