//! Data pages (`storage/bufpage.h`, `storage/checksum_impl.h`) and the names of the files they stand in.

use super::Lsn;

/// Bytes in a data page (`BLCKSZ`); other sizes are refused where pg_control is read.
pub const PAGE: usize = 8192;
/// Pages in a segment file of a server that was built as usual (1 GiB).
pub const SEGMENT_PAGES: u32 = 131_072;

/// Which of a relation's files (`common/relpath.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    Main,
    FreeSpace,
    Visibility,
    Init,
}

/// A file that consists of data pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationFile {
    pub fork: Fork,
    /// Number of the segment: 0 for a name without a dot.
    pub segment: u32,
}

impl RelationFile {
    /// From a path below the data directory: `global/<n>`, `base/<db>/<n>` or `pg_tblspc/<oid>/PG_<version>/<db>/<n>`, where `<n>` is a number, perhaps
    /// followed by a fork and a segment (`1259`, `1259_fsm`, `16384.2`). `None` for any other file.
    pub fn from_path(path: &[u8]) -> Option<RelationFile> {
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        let name = match parts.as_slice() {
            [b"global", name] => name,
            [b"base", database, name] if is_number(database) => name,
            [b"pg_tblspc", oid, version, database, name]
                if is_number(oid) && version.starts_with(b"PG_") && is_number(database) =>
            {
                name
            }
            _ => return None,
        };
        let mut halves = name.splitn(2, |b| *b == b'.');
        let (node, segment) = (halves.next()?, halves.next());
        let segment = match segment {
            None => 0,
            Some(digits) if is_number(digits) && !digits.starts_with(b"0") => {
                std::str::from_utf8(digits).ok()?.parse().ok()?
            }
            Some(_) => return None,
        };
        let mut halves = node.splitn(2, |b| *b == b'_');
        let number = halves.next()?;
        let fork = match halves.next() {
            None => Fork::Main,
            Some(b"fsm") => Fork::FreeSpace,
            Some(b"vm") => Fork::Visibility,
            Some(b"init") => Fork::Init,
            Some(_) => return None,
        };
        is_number(number).then_some(RelationFile { fork, segment })
    }
}

/// A page of a file as PostgreSQL names it in its messages: the relation's path, without the number of a segment, and the block in the relation. `per_segment`
/// is `RELSEG_SIZE` of the server.
pub fn relation_block(path: &[u8], page: u64, per_segment: u32) -> (&[u8], u64) {
    let segment = RelationFile::from_path(path).map_or(0, |file| file.segment);
    let name = path.iter().rposition(|b| *b == b'.').filter(|_| segment > 0).and_then(|dot| path.get(..dot));
    (name.unwrap_or(path), u64::from(segment) * u64::from(per_segment) + page)
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.len() <= 10 && text.iter().all(u8::is_ascii_digit)
}

/// What a page's checksum says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    Good,
    /// All bytes are zero: allocated and not used yet.
    Zero,
    /// Written since the backup began, and whole.
    Newer,
    /// By what stands there as its position written since the backup began, and the checksum is wrong: half of it may be older, and WAL holds an image of it.
    /// Where the position is one that WAL had not reached when the backup ended, it is garbage.
    Torn(Lsn),
    /// By what stands there as its position older than the backup, and the checksum is wrong: damaged on the server, or its first half was read before it was
    /// written and the rest after that: then WAL holds an image of it.
    Bad {
        stored: u16,
        computed: u16,
    },
}

/// `pd_lsn`: the end of the last WAL record that changed the page. High half first (`PageXLogRecPtr`).
pub fn page_lsn(page: &[u8; PAGE]) -> Lsn {
    let half = |at: usize| u64::from(word(page, at));
    Lsn(half(0) << 32 | half(4))
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| *w == [0; 16]) && rest.iter().all(|b| *b == 0)
}

/// Judges a page of a cluster that has checksums. `block` is its number in the whole relation fork (all segments), `backup_start` where the
/// backup's WAL begins.
pub fn judge(page: &[u8; PAGE], block: u32, backup_start: Lsn) -> PageState {
    if is_zero(page) {
        return PageState::Zero;
    }
    let (lsn, stored, computed) = (page_lsn(page), u16::from_le_bytes([page[8], page[9]]), checksum(page, block));
    match (stored == computed, lsn >= backup_start) {
        (true, false) => PageState::Good,
        (true, true) => PageState::Newer,
        (false, true) => PageState::Torn(lsn),
        (false, false) => PageState::Bad { stored, computed },
    }
}

/// What each of the 32 sums starts from.
const BASES: [u32; 32] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C, 0xF8D4474F,
    0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC,
    0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6,
    0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

const PRIME: u32 = 16_777_619;

/// The page's checksum (`pg_checksum_page`): 32 sums run side by side over the page's words, with the stored checksum taken as zero; two rounds of
/// zero words; all are xored together and with the block's number, and brought into 1 to 65535.
pub fn checksum(page: &[u8; PAGE], block: u32) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { checksum_avx2(page, block) };
    }
    checksum_anywhere(page, block)
}

/// Eight sums at a time: without AVX2 there is no multiplication of four-byte words side by side.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn checksum_avx2(page: &[u8; PAGE], block: u32) -> u16 {
    checksum_anywhere(page, block)
}

#[inline(always)]
fn checksum_anywhere(page: &[u8; PAGE], block: u32) -> u16 {
    let mut sums = BASES;
    let (rows, _) = page.as_chunks::<128>();
    for (number, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        for (at, (sum, bytes)) in sums.iter_mut().zip(words).enumerate() {
            let mut word = u32::from_le_bytes(*bytes);
            if number == 0 && at == 2 {
                word &= 0xFFFF_0000;
            }
            *sum = mix(*sum, word);
        }
    }
    for sum in &mut sums {
        *sum = mix(mix(*sum, 0), 0);
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    (folded % 65535 + 1) as u16
}

#[inline(always)]
fn mix(sum: u32, word: u32) -> u32 {
    let mixed = sum ^ word;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

fn word(page: &[u8; PAGE], at: usize) -> u32 {
    page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relation_files() {
        let file = |fork, segment| Some(RelationFile { fork, segment });
        for (path, expected) in [
            ("base/5/1259", file(Fork::Main, 0)),
            ("base/5/16384.12", file(Fork::Main, 12)),
            ("base/5/16384_fsm", file(Fork::FreeSpace, 0)),
            ("global/1262_vm.1", file(Fork::Visibility, 1)),
            ("pg_tblspc/16384/PG_15_202209061/5/16400_init", file(Fork::Init, 0)),
            ("base/5/pg_filenode.map", None),
            ("base/5/PG_VERSION", None),
            ("base/5/t3_16384", None),
            ("base/5/16384.", None),
            ("base/5/16384.0", None),
            ("base/5/16384_x", None),
            ("base/5/16384.1_fsm", None),
            ("base/x/16384", None),
            ("global/pg_control", None),
            ("pg_xact/0000", None),
            ("16384", None),
        ] {
            assert_eq!(RelationFile::from_path(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn pages_are_named_as_blocks_of_relations() {
        for (path, page, per_segment, name, block) in [
            ("base/5/16384", 7, SEGMENT_PAGES, "base/5/16384", 7),
            ("base/5/16384.2", 7, SEGMENT_PAGES, "base/5/16384", 2 * 131_072 + 7),
            ("base/5/16384_fsm.1", 1, 6, "base/5/16384_fsm", 7),
            ("x.1", 3, 6, "x.1", 3),
        ] {
            assert_eq!(relation_block(path.as_bytes(), page, per_segment), (name.as_bytes(), block), "{path}");
        }
    }

    fn page(lsn: u64) -> [u8; PAGE] {
        let mut page = [0x5A; PAGE];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let sum = checksum(&page, 17);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn every_processor_computes_the_same() {
        let mut state = 9u64;
        for block in 0..200 {
            let page = std::array::from_fn(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            });
            assert_eq!(checksum(&page, block), checksum_anywhere(&page, block), "block {block}");
        }
    }

    #[test]
    fn judges_by_checksum_position_and_emptiness() {
        let good = page(0x1_0000_0010);
        let start = Lsn(0x2_0000_0000);
        assert_eq!(page_lsn(&good), Lsn(0x1_0000_0010));
        assert_eq!(judge(&good, 17, start), PageState::Good);
        assert!(matches!(judge(&good, 18, start), PageState::Bad { .. }), "a page in a wrong place");
        assert_eq!(judge(&[0; PAGE], 1, start), PageState::Zero);
        for at in [0, 9, 10, 4096, PAGE - 1] {
            let mut bad = good;
            bad[at] ^= 1;
            let expected = matches!(judge(&bad, 17, start), PageState::Bad { .. });
            assert!(expected, "byte {at}");
        }
        assert_eq!(judge(&good, 17, Lsn(0x1_0000_0010)), PageState::Newer);
        assert_eq!(judge(&good, 99, Lsn(0x1_0000_0010)), PageState::Torn(Lsn(0x1_0000_0010)));
    }
}
