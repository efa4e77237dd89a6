//! Names that somebody may have meant.

/// How many names are suggested.
const SUGGESTED: usize = 5;

/// The names that are least different, and not very different.
pub fn nearest<'n>(asked: &str, names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let most = (asked.chars().count() / 3).max(2);
    let lower = asked.to_lowercase();
    let mut near: Vec<(usize, &str)> =
        names.map(|name| (distance(&lower, &name.to_lowercase()), name)).filter(|(far, _)| *far <= most).collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(SUGGESTED).map(|(_, name)| name.to_owned()).collect()
}

/// Letters to insert, delete or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let get = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let replaced = get(&row, j) + usize::from(x != *y);
            let least = replaced.min(get(&row, j + 1) + 1).min(get(&next, j) + 1);
            next.push(least);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, far) in [("", "", 0), ("a", "", 1), ("orders", "ordres", 2), ("kitten", "sitting", 3)] {
            assert_eq!((distance(a, b), distance(b, a)), (far, far), "{a} {b}");
        }
    }
}
