//! One backup of a cluster at a time on this host. Others are not known: two backups at once cost time and space, and do no harm.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::BackupOptions;
use super::state::{host, known_state_id};
use super::take::blocking;
use crate::archive::Archive;
use crate::disk::lock::LockFile;
use crate::error::{Error, Kind, Result};

/// A lock that is let go may be held a little longer: by a process that another thread was just starting, until that has become its own program.
const LINGERS: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(20);

/// Takes the lock; `Kind::Busy`, with what the holder has noted, where another backup has it.
pub async fn lock(archive: &Archive, options: &BackupOptions) -> Result<Option<LockFile>> {
    let Some(dir) = options.state_dir.clone() else { return Ok(None) };
    let path = place(&dir, &archive.names.cluster);
    let (id, host) = (std::process::id(), host());
    let since = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S+00");
    let note = format!("process {id} on {host}, since {since}, label {:?}", options.label);
    let (taken, holder, path) = blocking(move || {
        let taken = take(&path)?;
        let holder = match &taken {
            Some(lock) => {
                lock.note(&note);
                None
            }
            None => LockFile::noted(&path),
        };
        Ok((taken, holder, path))
    })
    .await?;
    if taken.is_none() {
        let holder = holder.unwrap_or_else(|| format!("{} is locked", path.display()));
        let text = format!("a backup of cluster {} is running: {holder}", archive.names.cluster);
        return Err(Error::new(Kind::Busy, text).hint("Wait for it to end, or stop it."));
    }
    Ok(taken)
}

fn place(state_dir: &Path, cluster: &str) -> PathBuf {
    state_dir.join(format!("backup-{cluster}.lock"))
}

/// What a host and its `state_dir` know of who takes backups of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The digits in the intents of this `state_dir`; `None`: no backup was taken with it.
    pub state: Option<String>,
    pub host: String,
    /// Whether a backup holds the lock; `None`: not known.
    pub busy: Option<bool>,
    /// What it noted: its process, since when, its label.
    pub note: Option<String>,
}

/// Looks, and changes nothing. Blocks.
pub fn here(state_dir: &Path, cluster: &str) -> Here {
    let lock = place(state_dir, cluster);
    let busy = LockFile::is_held(&lock);
    let note = busy.filter(|busy| *busy).and_then(|_| LockFile::noted(&lock));
    Here { state: known_state_id(state_dir), host: host(), busy, note }
}

fn take(path: &Path) -> Result<Option<LockFile>> {
    let begun = Instant::now();
    loop {
        match LockFile::take(path)? {
            None if begun.elapsed() < LINGERS => std::thread::sleep(AGAIN),
            taken => return Ok(taken),
        }
    }
}
