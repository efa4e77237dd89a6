//! Files that are fetched before the server asks for them: written under a passing name, synced, and only then given a name that carries their checksum.
//!
//! A process that is killed leaves a passing name, a power cut a file whose checksum is wrong: neither is ever taken for a whole segment. The server waits
//! while a file is read to compute its checksum, so that is done only where it may tell something: a file that was synced carries a mark as its time of
//! modification, which any write since then has replaced, and which no file has after the system was started again.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::durable::failed;
use crate::error::Result;

/// How much of a file is read, and how many zeros are written, at once.
const STEP: usize = 256 << 10;

/// Says which start of the system this is; another one after each (`random(4)`).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The mark of a synced file with this checksum: a time before 1988, when nobody wrote WAL, to the nanosecond. `None` where the system does not say which start it
/// is. A file system that keeps seconds alone keeps no mark.
fn mark(boot: &str, crc: u32) -> Option<SystemTime> {
    let digits: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
    let start = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    // Never 0, which is what is left of a time whose nanoseconds were cut off.
    let nanoseconds = 1 + ((start ^ u128::from(crc >> 29)) % 999_999_999) as u32;
    Some(SystemTime::UNIX_EPOCH + Duration::new(u64::from(crc & 0x1fff_ffff), nanoseconds))
}

fn boot() -> String {
    fs::read_to_string(BOOT).unwrap_or_default()
}

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

/// Writes `content` and zeros up to `size` under the passing name, syncs and marks it and gives it its own. On an error neither name is left. `crc`
/// is that of the whole file.
pub fn put(passing: &Path, place: &Path, content: &[u8], size: u64, crc: u32) -> Result<()> {
    let write = |file: &mut File| {
        file.write_all(content)?;
        file.set_len(size)?;
        file.sync_data()?;
        // Only now: what could not be written to the disk has been told.
        if let Some(mark) = mark(&boot(), crc) {
            // Without one it is read before it is handed over.
            let _ = file.set_modified(mark);
        }
        fs::rename(passing, place)
    };
    let written =
        open_new(passing).and_then(|mut file| write(&mut file).map_err(|e| failed("cannot write", passing, e)));
    if written.is_err() {
        let _ = fs::remove_file(passing);
    }
    written
}

fn open_new(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.map_err(|e| failed("cannot write", path, e))
}

/// Writes `content` over the beginning of a file, which is made where there is none. Not synced.
pub fn write_over(path: &Path, content: &[u8]) -> Result<()> {
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    open.and_then(|file| file.write_all_at(content, 0)).map_err(|e| failed("cannot write", path, e))
}

/// Moves a fetched file to `destination` if it is whole: of this size, and marked or of this checksum. One that is not is removed. `false`: nothing was moved.
pub fn hand_over(place: &Path, crc: u32, size: u64, destination: &Path) -> Result<bool> {
    let whole = match File::open(place) {
        Ok(file) => whole(file, crc, size, &boot()).map_err(|e| failed("cannot read", place, e))?,
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

fn whole(mut file: File, crc: u32, size: u64, boot: &str) -> std::io::Result<bool> {
    let seen = file.metadata()?;
    if seen.len() != size {
        return Ok(false);
    }
    if mark(boot, crc).is_some_and(|mark| seen.modified().is_ok_and(|modified| modified == mark)) {
        // Whoever lists pg_wal should see when, not a year before PostgreSQL was.
        let _ = file.set_modified(SystemTime::now());
        return Ok(true);
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

/// Has the kernel forget what it keeps in memory of a file that nobody reads again. What is not on the disk yet stays.
pub fn forget(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
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
        put(&part, &place, b"some wal", SIZE, crc).unwrap();
        assert!(!part.exists());
        assert!(hand_over(&place, crc, SIZE, &to).unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), file);
        let age = std::fs::metadata(&to).unwrap().modified().unwrap().elapsed();
        assert!(age.is_ok_and(|age| age < Duration::from_secs(600)), "the mark is gone");
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

    /// Each bit of the checksum, and another start of the system, give another mark; none is a time of today.
    #[test]
    fn a_mark_is_of_one_start_and_one_checksum() {
        let own = "f49e46f5-041e-46b1-92be-b014f8ac6472\n";
        let other = "f49e46f5-041e-46b2-92be-b014f8ac6472\n";
        let marked = mark(own, 0x1234_5678).unwrap();
        assert_eq!(mark(own, 0x1234_5678), Some(marked));
        assert_ne!(mark(other, 0x1234_5678), Some(marked));
        for bit in 0..32 {
            assert_ne!(mark(own, 0x1234_5678 ^ (1 << bit)), Some(marked), "bit {bit}");
        }
        for crc in [0, 1, u32::MAX] {
            let since = mark(own, crc).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            assert!(since < Duration::from_secs(18 * 366 * 86_400) && since.subsec_nanos() > 0);
        }
        for none in ["", "\n", "f49e46f5-041e", "no start at all"] {
            assert_eq!(mark(none, 1), None);
        }
        assert!(mark(&boot(), 1).is_some());
    }

    /// Only what was synced since this start, and not written to after that, is taken unread.
    #[test]
    fn a_marked_file_is_not_read_and_any_other_is() {
        let dir = tempfile::tempdir().unwrap();
        let (place, part) = (dir.path().join("ready"), passing(dir.path(), "x"));
        let crc = checksum(b"some wal", SIZE);
        let marked = |boot: &str| whole(File::open(&place).unwrap(), crc, SIZE, boot).unwrap();
        let damage = |keep: bool| {
            put(&part, &place, b"some wal", SIZE, crc).unwrap();
            let file = File::options().write(true).open(&place).unwrap();
            let time = file.metadata().unwrap().modified().unwrap();
            (&file).write_all(b"S").unwrap();
            if keep {
                file.set_modified(time).unwrap();
            }
        };
        damage(false);
        assert!(!marked(&boot()), "written to since");
        damage(true);
        assert!(!marked("00000000-0000-4000-8000-000000000000"), "of another start");
        assert!(!marked(""), "nobody knows which start this is");
        assert!(marked(&boot()), "not read at all");
        assert!(!marked(&boot()), "the mark is good for once");
    }

    #[test]
    fn what_is_forgotten_is_on_the_disk_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        (&file).write_all(&[7; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let at_hand = || {
            let mut page = [0; 4096];
            let mut pages = [std::io::IoSliceMut::new(&mut page)];
            rustix::io::preadv2(&file, &mut pages, 512 << 10, rustix::io::ReadWriteFlags::NOWAIT)
        };
        // A file system in memory has nothing to forget.
        if at_hand() == Err(rustix::io::Errno::OPNOTSUPP) {
            return;
        }
        assert_eq!(at_hand(), Ok(4096));
        forget(&path);
        assert_eq!(at_hand(), Err(rustix::io::Errno::AGAIN));
        assert_eq!(fs::read(&path).unwrap(), [7; 1 << 20]);
        forget(&dir.path().join("nothing"));
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
