//! Rows of the catalogs that name things, read from the pages of their heaps as a backup has them (`storage/bufpage.h`, `access/htup_details.h`).

use super::MajorVersion;
use super::cursor::Cursor;

/// `BLCKSZ`.
pub const PAGE: usize = 8192;
/// `NAMEDATALEN`.
const NAME: usize = 64;
/// `SizeOfPageHeaderData`.
const PAGE_HEADER: usize = 24;
/// `HEAP_XMAX_INVALID`: nobody has deleted the row, as far as the page knows.
const XMAX_INVALID: u16 = 0x0800;
/// `LP_NORMAL`.
const NORMAL: u32 = 1;
/// Object ids of the catalogs whose files only `pg_filenode.map` tells (`catalog/pg_class.h`, `catalog/pg_database.h`), and of `pg_namespace`.
pub const PG_CLASS: u32 = 1259;
pub const PG_DATABASE: u32 = 1262;
pub const PG_NAMESPACE: u32 = 2615;

/// A row of `pg_class`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassRow {
    pub oid: u32,
    pub name: String,
    pub namespace: u32,
    /// 0 for what has no file, and for catalogs that `pg_filenode.map` tells of.
    pub file: u32,
    /// `relkind`: `r` table, `i` index, `t` TOAST table, …
    pub kind: char,
}

/// A row of `pg_namespace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRow {
    pub oid: u32,
    pub name: String,
}

/// A row of `pg_database`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRow {
    pub oid: u32,
    pub name: String,
    /// `datistemplate`: whoever may create databases may copy it.
    pub template: bool,
}

/// Calls `see` for each row version of a page, with whether nobody has deleted it. A page that is new, or none, has no rows.
fn rows<'p>(page: &'p [u8], see: &mut dyn FnMut(bool, &'p [u8])) {
    let u16_at = |at: usize| page.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    let u32_at = |at: usize| page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let lower = usize::from(u16_at(12)).min(page.len());
    for at in (PAGE_HEADER..lower.saturating_sub(3)).step_by(4) {
        // `ItemIdData`: 15 bits of place, 2 of state, 15 of length.
        let item = u32_at(at);
        let (from, state, length) = ((item & 0x7FFF) as usize, item >> 15 & 3, (item >> 17) as usize);
        let Some(row) = page.get(from..from + length).filter(|_| state == NORMAL) else { continue };
        let infomask = row.get(20..22).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
        let deleter = row.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let header = row.get(22).copied().map_or(usize::MAX, usize::from);
        if let Some(columns) = row.get(header..) {
            see(deleter == 0 || infomask & XMAX_INVALID != 0, columns);
        }
    }
}

fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// The rows of `pg_class` in a page: whether the version counts (nobody has deleted it), and the row.
pub fn classes(page: &[u8], version: MajorVersion, see: &mut dyn FnMut(bool, ClassRow)) {
    rows(page, &mut |counts, columns| {
        if let Some(row) = class(columns, version) {
            see(counts, row);
        }
    });
}

/// `FormData_pg_class`: the columns up to `relkind` have fixed places.
fn class(columns: &[u8], version: MajorVersion) -> Option<ClassRow> {
    let mut fields = Cursor::new(columns);
    let oid = fields.u32()?;
    let relname = name(fields.take(NAME)?);
    let namespace = fields.u32()?;
    let _type_oftype_owner_am = fields.take(16)?;
    let file = fields.u32()?;
    // Tablespace, pages, rows, all-visible pages; with 18 also all-frozen ones; the TOAST table.
    let _sizes = fields.take(if version >= MajorVersion::V18 { 24 } else { 20 })?;
    // Has an index, is shared, persistence.
    let _flags = fields.take(3)?;
    let kind = char::from(fields.u8()?);
    Some(ClassRow { oid, name: relname, namespace, file, kind })
}

/// The rows of `pg_namespace` in a page: whether the version counts, and the row.
pub fn names(page: &[u8], see: &mut dyn FnMut(bool, NameRow)) {
    rows(page, &mut |counts, columns| {
        let mut fields = Cursor::new(columns);
        if let (Some(oid), Some(text)) = (fields.u32(), fields.take(NAME)) {
            see(counts, NameRow { oid, name: name(text) });
        }
    });
}

/// The rows of `pg_database` in a page: whether the version counts, and the row.
pub fn databases(page: &[u8], version: MajorVersion, see: &mut dyn FnMut(bool, DatabaseRow)) {
    // Before 15 two names stand in front of `datistemplate`, since then one letter.
    let template_at = if version >= MajorVersion::V15 { 77 } else { 204 };
    rows(page, &mut |counts, columns| {
        let mut fields = Cursor::new(columns);
        let row = fields.u32().zip(fields.take(NAME)).zip(columns.get(template_at));
        if let Some(((oid, text), template)) = row {
            see(counts, DatabaseRow { oid, name: name(text), template: *template != 0 });
        }
    });
}

/// The file of a mapped catalog, by a `pg_filenode.map` (`RelMapFile`, `utils/cache/relmapper.c`).
pub fn mapped(map: &[u8], oid: u32) -> Option<u32> {
    const MAGIC: u32 = 0x0059_2717;
    let mut fields = Cursor::new(map);
    if fields.u32()? != MAGIC {
        return None;
    }
    let count = fields.u32()?;
    for _ in 0..count {
        let (object, file) = (fields.u32()?, fields.u32()?);
        if object == oid {
            return Some(file);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with these row versions: deleter, infomask, columns.
    fn page(versions: &[(u32, u16, Vec<u8>)]) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        let mut end = PAGE;
        for (number, (deleter, infomask, columns)) in versions.iter().enumerate() {
            let mut row = vec![0; 24];
            row[4..8].copy_from_slice(&deleter.to_le_bytes());
            row[20..22].copy_from_slice(&infomask.to_le_bytes());
            row[22] = 24;
            row.extend_from_slice(columns);
            end -= row.len().next_multiple_of(8);
            page[end..end + row.len()].copy_from_slice(&row);
            let item = end as u32 | NORMAL << 15 | (row.len() as u32) << 17;
            page[PAGE_HEADER + 4 * number..][..4].copy_from_slice(&item.to_le_bytes());
        }
        page[12..14].copy_from_slice(&((PAGE_HEADER + 4 * versions.len()) as u16).to_le_bytes());
        page
    }

    fn named(oid: u32, text: &str) -> Vec<u8> {
        let mut columns = oid.to_le_bytes().to_vec();
        columns.extend_from_slice(text.as_bytes());
        columns.resize(4 + NAME, 0);
        columns
    }

    #[test]
    fn versions_that_were_deleted_are_told_from_those_that_count() {
        let versions = [(0, 0, named(7, "new")), (9, 0, named(7, "old")), (9, XMAX_INVALID, named(8, "kept"))];
        let mut seen = Vec::new();
        names(&page(&versions), &mut |counts, row| seen.push((counts, row.oid, row.name)));
        let row = |counts, oid, name: &str| (counts, oid, name.to_owned());
        assert_eq!(seen, [row(true, 7, "new"), row(false, 7, "old"), row(true, 8, "kept")]);
    }

    #[test]
    fn templates_are_told_in_either_layout() {
        for (version, at) in [(MajorVersion::V14, 204), (MajorVersion::V15, 77)] {
            let row = |oid, text: &str, template: u8| {
                let mut columns = named(oid, text);
                columns.resize(220, 7);
                columns[at] = template;
                (0, 0, columns)
            };
            let mut seen = Vec::new();
            let rows = [row(1, "template1", 1), row(16384, "shop", 0)];
            databases(&page(&rows), version, &mut |_, row| seen.push((row.oid, row.name, row.template)));
            assert_eq!(seen, [(1, "template1".to_owned(), true), (16384, "shop".to_owned(), false)], "{version}");
        }
    }

    #[test]
    fn whatever_a_page_holds_nothing_panics() {
        let mut all = Vec::new();
        for seed in 0..200u32 {
            let mut page = page(&[(0, 0, named(seed, "x"))]);
            let mut state = seed.wrapping_mul(2_654_435_761).max(1);
            for byte in page.iter_mut().take(64) {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                *byte = state as u8;
            }
            names(&page, &mut |_, row| all.push(row.oid));
            classes(&page, MajorVersion::V18, &mut |_, row| all.push(row.oid));
            databases(&page, MajorVersion::V18, &mut |_, row| all.push(row.oid));
            let _ = mapped(&page, seed);
        }
        names(&[], &mut |_, row| all.push(row.oid));
    }

    #[test]
    fn a_map_tells_its_files() {
        let words = [0x0059_2717u32, 2, 1259, 16400, 1249, 1249];
        let map: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!((mapped(&map, 1259), mapped(&map, 1262)), (Some(16400), None));
        assert_eq!((mapped(&map[..10], 1259), mapped(&[0; 512], 1259)), (None, None));
    }
}
