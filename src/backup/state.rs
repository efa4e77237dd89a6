//! Whose backup it is: this host, and the `state_dir` that keeps one backup at a time.

use std::io::ErrorKind;
use std::path::Path;

use super::sealing::fill_random;
use crate::disk::{durable, medium};
use crate::error::{Error, Kind, Result};
use crate::seal::content::{hex, unhex};

/// In `state_dir`: 32 hexadecimal digits.
const FILE: &str = "state-id";

/// The random digits that stand in the intents of every backup taken with this `state_dir`, made by the first. Whoever holds its lock knows by them which
/// intents are of runs that are dead. Without a `state_dir` they are of this run alone. Blocks.
pub fn state_id(state_dir: Option<&Path>) -> Result<String> {
    let mut random = [0; 16];
    fill_random(&mut random)?;
    let fresh = hex(&random);
    let Some(dir) = state_dir else { return Ok(fresh) };
    let path = dir.join(FILE);
    let read = || std::fs::read_to_string(&path);
    let mut kept = read();
    if kept.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        durable::create_dirs(&medium::Disk, dir)?;
        if durable::create_once(&medium::disk(), &path, &[fresh.as_bytes()], 0o600)? {
            return Ok(fresh);
        }
        kept = read();
    }
    let kept = kept.map_err(|e| durable::failed("cannot read", &path, e))?;
    if unhex::<16>(&kept).is_none() {
        return Err(Error::new(Kind::Failed, format!("{} does not hold 32 hexadecimal digits", path.display()))
            .hint("Remove the file: a backup makes it again."));
    }
    Ok(kept)
}

/// Those digits, where a backup has made them. Blocks.
pub fn known_state_id(state_dir: &Path) -> Option<String> {
    let kept = std::fs::read_to_string(state_dir.join(FILE)).ok()?;
    unhex::<16>(&kept).map(|_| kept)
}

/// This host's name, for a person who finds a backup or an intent; empty where it cannot be had.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_dir_keeps_its_digits_and_shares_them_with_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("a/b"), dir.path().join("c"));
        let first = state_id(Some(&here)).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(state_id(Some(&here)).unwrap(), first);
        assert_ne!(state_id(Some(&there)).unwrap(), first);
        assert_ne!(state_id(None).unwrap(), state_id(None).unwrap());
        std::fs::write(here.join(FILE), "zz").unwrap();
        assert!(state_id(Some(&here)).unwrap_err().advice().is_some());
    }
}
