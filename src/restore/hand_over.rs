//! `wal-fetch`'s side of fetching ahead: takes what is ready, says what was asked for, and sees to it that somebody fetches ahead.
//!
//! Nothing here can fail a call. Where anything is amiss, the segment is fetched as if nobody fetched ahead.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::ahead::{Piece, Ready};
use super::recovering::{Recovery, folder, folders};
use crate::disk::lock::LockFile;
use crate::disk::{ahead as files, ahead::passing};
use crate::error::{Error, Kind, Result};
use crate::pg::{SegmentName, SegmentSize};

/// Held by the prefetcher.
pub const LOCK: &str = "lock";
/// The segment that the server asked for last, and by which process.
pub const ASKED: &str = "asked";
/// A segment that is on its way is waited for so long; then it is fetched a second time.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);

/// How a prefetcher is started.
#[derive(Clone, Debug)]
pub struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

/// What is fetched ahead for one data directory.
pub struct Ahead<'a> {
    pgdata: &'a Path,
    folder: PathBuf,
    launch: &'a Launch,
}

impl<'a> Ahead<'a> {
    /// `plan`: the mark of the one that binds; `None` for a standby.
    pub fn new(pgdata: &'a Path, plan: Option<u32>, launch: &'a Launch) -> Ahead<'a> {
        Ahead { pgdata, folder: folder(pgdata, plan), launch }
    }

    /// The file of a piece, once it is ready; `None` when nobody is fetching it, or it takes too long. Blocks: the server waits for nothing else.
    pub fn ready(&self, piece: Piece) -> Option<Ready> {
        let begun = Instant::now();
        loop {
            // In this order: it stops being on its way by being ready.
            let coming = passing(&self.folder, &piece.name()).exists();
            if let Some(ready) = listed(&self.folder, piece.segment.size).into_iter().find(|ready| ready.piece == piece)
            {
                return Some(ready);
            }
            if !coming || begun.elapsed() >= PATIENCE || !self.is_held() {
                return None;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Moves a ready file to where the server wants it, unless it is damaged. `false`: nothing was moved.
    pub fn give(&self, ready: Ready, destination: &Path) -> bool {
        let place = self.folder.join(ready.to_string());
        let size = ready.piece.segment.size.bytes();
        files::hand_over(&place, ready.crc, size, destination).unwrap_or_else(|error| {
            tracing::info!("fetched ahead, and cannot be used: {error}");
            false
        })
    }

    /// Says that `segment` was asked for, so that the next ones are fetched: by the prefetcher that runs or, where there is `more` to come, by a new
    /// one. To be called once `segment` was taken, since what lies behind what was asked for goes.
    pub fn go_on(&self, segment: SegmentName, more: bool) {
        if let Err(error) = self.note(segment, more) {
            tracing::info!("nothing is fetched ahead: {error}");
        }
    }

    fn note(&self, segment: SegmentName, more: bool) -> Result<()> {
        let recovers = || self.pgdata.join("pg_wal").is_dir() && Recovery::of(self.pgdata).is_some();
        if !(more || self.folder.exists()) || !recovers() {
            return Ok(());
        }
        let free = take_lock(self.pgdata, &self.folder.join(LOCK))?;
        files::write_over(&self.folder.join(ASKED), note_of(segment, std::process::id()).as_bytes())?;
        let nobody = free.is_some();
        if nobody && !recovers() {
            // It ended meanwhile, and so did whoever fetched ahead, with a folder that was made anew just now.
            files::dissolve(&self.folder);
            return Ok(());
        }
        drop(free);
        if nobody && more { self.start() } else { Ok(()) }
    }

    /// It outlives this process. It has a process group of its own, since the server ends its children by group; and nothing that the server
    /// waits for the end of, such as the pipe of its log.
    fn start(&self) -> Result<()> {
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.arguments).current_dir(self.pgdata).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let spawned = command.spawn();
        let failed = |e| Error::new(Kind::Failed, "cannot start a prefetcher").caused_by(e);
        spawned.map(drop).map_err(failed)
    }

    /// Whether a prefetcher runs.
    fn is_held(&self) -> bool {
        let lock = self.folder.join(LOCK);
        lock.exists() && matches!(take_lock(self.pgdata, &lock), Ok(None))
    }
}

/// Takes the lock of a folder in a data directory, which may be removed meanwhile: nothing of that is made again.
pub fn take_lock(pgdata: &Path, place: &Path) -> Result<Option<LockFile>> {
    LockFile::take_below(&pgdata.join("pg_wal"), place)
}

/// Removes what nobody fetches ahead any more, where no server recovers. What stays behind takes space and nothing else.
pub fn sweep(pgdata: &Path) {
    for folder in folders(pgdata) {
        if let Ok(Some(_held)) = take_lock(pgdata, &folder.join(LOCK)) {
            files::dissolve(&folder);
        }
    }
}

/// What is ready in a folder.
pub fn listed(folder: &Path, size: SegmentSize) -> Vec<Ready> {
    let names = files::names(folder).unwrap_or_default();
    let mut ready: Vec<Ready> = names.iter().filter_map(|name| Ready::parse(name, size)).collect();
    ready.sort();
    ready
}

/// What is noted of a call. It is always as long, so that it is written in place: a file that takes the place of another is written to the disk at once by
/// some file systems (`auto_da_alloc` of ext4), while the server waits. It may be read in the middle of that, hence the checksum.
fn note_of(segment: SegmentName, caller: u32) -> String {
    let text = format!("{segment} {caller:010}");
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// What the server asked for last, and the text that says so: it changes with every call.
pub fn asked(folder: &Path, size: SegmentSize) -> Option<(SegmentName, String)> {
    let text = std::fs::read_to_string(folder.join(ASKED)).ok()?;
    let mut words = text.split(' ');
    let segment = SegmentName::parse(words.next()?, size)?;
    let caller = words.next()?.parse().ok()?;
    (note_of(segment, caller) == text).then_some((segment, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{SegmentNumber, TimelineId};

    #[test]
    fn a_note_is_read_as_it_was_written_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let size = SegmentSize::new(16 << 20).unwrap();
        let segment = |number| SegmentName::new(TimelineId(1), SegmentNumber(number), size);
        let place = dir.path().join(ASKED);
        assert_eq!(asked(dir.path(), size), None);
        let (long, short) = (note_of(segment(0xAB), u32::MAX), note_of(segment(0xAC), 7));
        for note in [&long, &short] {
            files::write_over(&place, note.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&place).unwrap(), *note);
        }
        assert_eq!(asked(dir.path(), size), Some((segment(0xAC), short.clone())));
        for cut in 1..long.len() {
            let torn = [&short[..cut], &long[cut..]].concat();
            std::fs::write(&place, &torn).unwrap();
            let whole = torn == long || torn == short;
            assert_eq!(asked(dir.path(), size).is_some(), whole, "{torn}");
            std::fs::write(&place, &short[..cut]).unwrap();
            assert_eq!(asked(dir.path(), size), None, "{:?}", &short[..cut]);
        }
    }
}
