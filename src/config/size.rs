//! Sizes as people type them and as PostgreSQL means them: `64MB` is 64 times 1024 times 1024 bytes.

const UNITS: [(&str, u32); 5] = [("kB", 10), ("MB", 20), ("GB", 30), ("TB", 40), ("B", 0)];

/// Reads one size; the error says what was expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as \"512MB\", \"50GB\" or \"1TB\", found {text:?}");
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let (_, power) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(expected)?;
    number.checked_mul(1 << power).filter(|bytes| *bytes > 0).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_type() {
        for (text, bytes) in [("1B", 1), ("2kB", 2048), ("512 MB", 512 << 20), ("50GB", 50 << 30), ("1TB", 1 << 40)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "1", "GB", "-1GB", "1.5GB", "0GB", "1GiB", "99999999TB"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
