//! Tables that stand in two places: the server versions and the exit codes.

/// The first column of a table of the test environment: major versions, once each, in order.
pub fn majors(table: &str) -> Vec<u32> {
    let lines = table.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    let mut majors: Vec<u32> = lines.filter_map(|l| l.split_whitespace().next()?.parse().ok()).collect();
    majors.sort();
    majors.dedup();
    majors
}

/// The rows `| code | meaning |` of a page, in order. Codes may be set in backquotes.
pub fn exit_codes(page: &str) -> Vec<(u8, String)> {
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.trim().strip_prefix('|')?.splitn(2, '|');
        let code = cells.next()?.trim().trim_matches('`').parse().ok()?;
        let meaning = cells.next()?.trim().trim_end_matches('|').trim();
        Some((code, meaning.to_string()))
    });
    rows.collect()
}

/// The entries `(code, "meaning"),` of the constant `TABLE` in a source.
pub fn exit_table(source: &str) -> Vec<(u8, String)> {
    let table =
        source.split_once("const TABLE").and_then(|(_, rest)| rest.split_once("];")).map_or("", |(table, _)| table);
    let entries = table.lines().filter_map(|line| {
        let (code, meaning) = line.trim().strip_prefix('(')?.split_once(", \"")?;
        Some((code.parse().ok()?, meaning.trim_end_matches("\"),").to_string()))
    });
    entries.collect()
}

#[test]
fn tables_are_read() {
    assert_eq!(majors("# 12 none\n14 a\n13 b\n14 c\n\n"), [13, 14]);
    let page = "# Codes\n\n| code | meaning |\n|---|---|\n| 0 | done |\n| `10` | no repository |\n";
    assert_eq!(exit_codes(page), [(0, "done".to_string()), (10, "no repository".to_string())]);
    let source =
        "pub const TABLE: [(u8, &str); 2] = [\n    (0, \"done\"),\n    (10, \"no repository\"),\n];\n(1, \"x\"),";
    assert_eq!(exit_table(source), exit_codes(page));
}
