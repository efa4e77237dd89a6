//! Incremental files, whole and damaged, given to what the fuzzer gives its own to.

use walrecv::pg::data_page::PAGE;

use crate::incremental_file::{PAGES, look};
use crate::support::{Seed, rounds};

/// A file as a server sends it.
fn made(seed: &mut Seed) -> Vec<u8> {
    let last = seed.below(u64::from(PAGES)) as u32;
    let mut blocks: Vec<u32> = (0..seed.below(5)).map(|_| seed.below(u64::from(last) + 1) as u32).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let truncation = seed.below(u64::from(PAGES) + 1) as u32;
    let mut file: Vec<u8> =
        [0xd3ae_1f0d, blocks.len() as u32, truncation].iter().flat_map(|n: &u32| n.to_le_bytes()).collect();
    file.extend(blocks.iter().flat_map(|n| n.to_le_bytes()));
    if !blocks.is_empty() {
        file.resize(file.len().next_multiple_of(PAGE), 0);
    }
    file.extend(blocks.iter().flat_map(|n| [(*n % 251) as u8; PAGE]));
    file
}

/// Mostly near its beginning, where what is said of the rest stands.
fn place(seed: &mut Seed, len: usize) -> usize {
    let limit = if seed.below(4) == 0 { len } else { len.min(40) };
    seed.below(limit as u64 + 1) as usize
}

fn damage(seed: &mut Seed, file: &mut Vec<u8>) {
    let at = place(seed, file.len());
    let some = seed.between(1, 9) as usize;
    match seed.below(6) {
        0 if at < file.len() => file[at] ^= 1 << seed.below(8),
        1 if at < file.len() => file[at] = seed.next() as u8,
        2 => file.truncate(at),
        3 => drop(file.drain(at..(at + some).min(file.len()))),
        4 => drop(file.splice(at..at, (0..some).map(|_| seed.next() as u8).collect::<Vec<_>>())),
        _ => {
            // A page too many, or one that is moved.
            let page = place(seed, file.len()) / PAGE * PAGE;
            let moved: Vec<u8> = file.drain(page..(page + PAGE).min(file.len())).collect();
            file.extend_from_slice(&moved);
            file.resize(file.len() + if seed.below(2) == 0 { PAGE } else { 0 }, 7);
        }
    }
}

#[test]
fn damaged_files_are_refused_or_mean_what_they_say() {
    let mut seed = Seed::of_run();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..rounds(5000, 200_000) {
        let file = made(&mut seed);
        let cut = [seed.next() as u8, seed.below(70) as u8];
        let given = |file: &[u8], claimed: u8| look(&[&[cut[0], cut[1], claimed][..], file].concat());
        assert!(given(&file, 0), "a whole file is taken");
        let mut damaged = file.clone();
        (0..seed.between(1, 3)).for_each(|_| damage(&mut seed, &mut damaged));
        let claimed = if seed.below(10) == 0 { 200 + seed.below(56) as u8 } else { 0 };
        *if given(&damaged, claimed) { &mut taken } else { &mut refused } += 1;
    }
    println!("{taken} taken, {refused} refused");
    // A byte of a page may be any, and so may be the truncation length, within bounds.
    assert!(taken > 100 && refused > 1000, "{taken} taken, {refused} refused");
}
