//! Files that are fetched before the server asks for them: written under a passing name, synced, and only then given a name that carries their checksum.
//!
//! A process that is killed leaves a passing name, a power cut a file whose checksum is wrong: neither is ever taken for a whole segment.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::durable::failed;
use crate::error::Result;

/// How much of a file is read, and how many zeros are written, at once.
const STEP: usize = 256 << 10;

/// CRC-32C of `content` and zeros up to `size` bytes.
pub fn checksum(content: &[u8], size: u64) -> u32 {
    let zeros = [0u8; 4096];
    let mut crc = crc32c::crc32c(content);
    let mut left = size.saturating_sub(content.len() as u64);
    while left > 0 {
        let step = left.min(zeros.len() as u64) as usize;
        crc = crc32c::crc32c_append(crc, zeros.get(..step).unwrap_or_default());
        left -= step as u64;
    }
    crc
}

/// Makes the passing name, empty: whoever wants the file knows that it is being fetched.
pub fn announce(passing: &Path) -> Result<()> {
    open_new(passing).map(drop)
}

/// Writes `content` and zeros up to `size` under the passing name, syncs it and gives it its own. On an error neither name is left.
pub fn put(passing: &Path, place: &Path, content: &[u8], size: u64) -> Result<()> {
    let written = (|| {
        let mut file = open_new(passing)?;
        let written = file.write_all(content).and_then(|()| file.set_len(size)).and_then(|()| file.sync_data());
        written.and_then(|()| fs::rename(passing, place)).map_err(|e| failed("cannot write", passing, e))
    })();
    if written.is_err() {
        let _ = fs::remove_file(passing);
    }
    written
}

fn open_new(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.map_err(|e| failed("cannot write", path, e))
}

/// Moves a fetched file to `destination` if it is whole: of this size and checksum. One that is not is removed. `false`: nothing was moved.
pub fn hand_over(place: &Path, crc: u32, size: u64, destination: &Path) -> Result<bool> {
    let whole = match File::open(place) {
        Ok(file) => whole(file, crc, size).map_err(|e| failed("cannot read", place, e))?,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed("cannot open", place, e)),
    };
    if !whole {
        tracing::warn!("{} is damaged: it is fetched again", place.display());
        remove(place)?;
        return Ok(false);
    }
    match fs::rename(place, destination) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("cannot rename to", destination, e)),
    }
}

fn whole(mut file: File, crc: u32, size: u64) -> std::io::Result<bool> {
    if file.metadata()?.len() != size {
        return Ok(false);
    }
    let mut buffer = vec![0; STEP];
    let mut found = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(found == crc),
            read => found = crc32c::crc32c_append(found, buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// The names in a folder; none where there is no folder.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed("cannot read the directory", folder, e)),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Removes a file; a missing one is no error.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("cannot delete", path, e)),
        _ => Ok(()),
    }
}

/// Removes a folder of files, and the folder above it where nothing else is in that. What stays behind takes space and nothing else.
pub fn dissolve(folder: &Path) {
    for name in names(folder).unwrap_or_default() {
        let _ = fs::remove_file(folder.join(name));
    }
    if fs::remove_dir(folder).is_ok()
        && let Some(above) = folder.parent()
    {
        let _ = fs::remove_dir(above);
    }
}

/// Bytes that this user may still write to the file system of `folder`.
pub fn free(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Which file stands at a path: device and inode, as long as it is there.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|seen| (seen.dev(), seen.ino()))
}

/// Name of a file while it is written, beside its place.
pub fn passing(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.part"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    #[test]
    fn a_whole_file_is_moved_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (place, to, part) = (dir.path().join("ready"), dir.path().join("to"), passing(dir.path(), "x"));
        let crc = checksum(b"some wal", SIZE);
        let mut file = b"some wal".to_vec();
        file.resize(SIZE as usize, 0);
        assert_eq!(crc, crc32c::crc32c(&file));
        assert!(!hand_over(&place, crc, SIZE, &to).unwrap(), "not there");

        announce(&part).unwrap();
        put(&part, &place, b"some wal", SIZE).unwrap();
        assert!(!part.exists());
        assert!(hand_over(&place, crc, SIZE, &to).unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), file);
        assert!(!hand_over(&place, crc, SIZE, &to).unwrap(), "once");

        std::fs::remove_file(&to).unwrap();
        let mut flipped = file.clone();
        flipped[700_000] = 1;
        let zeros = vec![0; SIZE as usize];
        for bad in [&flipped[..], &zeros, &file[..file.len() - 1], b"", &[&file[..], b"x"].concat()] {
            std::fs::write(&place, bad).unwrap();
            assert!(!hand_over(&place, crc, SIZE, &to).unwrap(), "{} bytes", bad.len());
            assert!(!place.exists() && !to.exists());
        }
    }

    #[test]
    fn a_folder_goes_with_what_is_in_it_and_an_empty_one_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("above/folder");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a"), "").unwrap();
        std::fs::write(dir.path().join("above/kept"), "").unwrap();
        dissolve(&folder);
        assert!(!folder.exists() && dir.path().join("above/kept").exists());
        std::fs::remove_file(dir.path().join("above/kept")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        dissolve(&folder);
        assert!(!dir.path().join("above").exists() && dir.path().exists());
    }
}
