//! Opening: what cannot be used is moved aside and made anew, and that is said.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::schema::{self, Found};
use super::{Catalog, Identity, failed};
use crate::disk::durable;
use crate::disk::lock::LockFile;
use crate::disk::medium::{Disk, Medium};
use crate::error::{Error, Kind, Result};

/// How long a call waits for another connection's lock.
const BUSY: Duration = Duration::from_secs(5);

/// What stood where the catalog was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    Kept,
    New,
    /// Something that could not be used, and why; it stands beside, under `.aside`.
    Replaced(String),
}

impl Catalog {
    /// Opens the catalog to write, or makes it. `None` where another process has it open to write.
    pub fn write(path: &Path, identity: &Identity) -> Result<Option<(Catalog, Begun)>> {
        let Some(lock) = lock(path)? else { return Ok(None) };
        let (db, begun) = match open_or_make(path, identity) {
            Ok((db, None)) => (db, Begun::Kept),
            Ok((db, Some(Found::Empty))) => (db, Begun::New),
            Ok((db, Some(other))) => {
                drop(db);
                let why = if let Found::Other(why) = other { why } else { "it cannot be used".to_owned() };
                (make_anew(path, identity)?, Begun::Replaced(why))
            }
            Err(error) if error.kind() == Kind::Corrupt => {
                (make_anew(path, identity)?, Begun::Replaced(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        Ok(Some((Catalog { db, identity: identity.clone(), _lock: Some(lock) }, begun)))
    }

    /// As [`Catalog::write`], with nothing in it: what stands there is moved aside.
    pub fn anew(path: &Path, identity: &Identity) -> Result<Option<Catalog>> {
        let Some(lock) = lock(path)? else { return Ok(None) };
        let db = make_anew(path, identity)?;
        Ok(Some(Catalog { db, identity: identity.clone(), _lock: Some(lock) }))
    }

    /// Opens what stands there to write, whichever server it was of. `None` where there is no catalog of this cluster, or another process writes it.
    pub fn write_known(path: &Path, cluster: &str) -> Result<Option<Catalog>> {
        if !path.exists() {
            return Ok(None);
        }
        let Some(lock) = lock(path)? else { return Ok(None) };
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let identity = schema::identity(&db)?.filter(|identity| identity.cluster == cluster);
        Ok(identity.map(|identity| Catalog { db, identity, _lock: Some(lock) }))
    }

    /// Opens the catalog to read, whoever writes it meanwhile. `None` where there is none that could be used.
    pub fn read(path: &Path, identity: &Identity) -> Result<Option<Catalog>> {
        if !path.exists() {
            return Ok(None);
        }
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let ours = schema::check(&db, identity)? == Found::Ours;
        Ok(ours.then(|| Catalog { db, identity: identity.clone(), _lock: None }))
    }

    /// A catalog without a file.
    pub fn in_memory(identity: &Identity) -> Result<Catalog> {
        let mut db = Connection::open_in_memory().map_err(|e| failed("cannot open one in memory", e))?;
        schema::create(&mut db, identity)?;
        Ok(Catalog { db, identity: identity.clone(), _lock: None })
    }
}

/// Whether a process has the catalog open to write; changes nothing.
pub fn is_written(path: &Path) -> bool {
    LockFile::is_held(&lock_of(path)) == Some(true)
}

fn lock_of(path: &Path) -> PathBuf {
    with_suffix(path, ".lock")
}

fn lock(path: &Path) -> Result<Option<LockFile>> {
    if let Some(above) = path.parent() {
        durable::create_dirs(&Disk, above)?;
        durable::make_private(above)?;
    }
    LockFile::take(&lock_of(path))
}

/// The second value tells what else than a catalog of ours stood there; an empty file is a catalog now.
fn open_or_make(path: &Path, identity: &Identity) -> Result<(Connection, Option<Found>)> {
    let mut db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    match schema::check(&db, identity)? {
        Found::Ours => {
            schema::prepare(&db)?;
            Ok((db, None))
        }
        Found::Empty => {
            schema::prepare(&db)?;
            schema::create(&mut db, identity)?;
            Ok((db, Some(Found::Empty)))
        }
        other => Ok((db, Some(other))),
    }
}

fn make_anew(path: &Path, identity: &Identity) -> Result<Connection> {
    for suffix in ["", "-wal", "-shm"] {
        let from = with_suffix(path, suffix);
        let aside = with_suffix(path, &format!(".aside{suffix}"));
        // Only the last one is kept. A log of writes must never stay behind beside another file.
        durable::remove(&Disk, &aside)?;
        match Disk.rename(&from, &aside) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(durable::failed("cannot move aside", &from, e));
            }
            _ => {}
        }
    }
    match open_or_make(path, identity)? {
        (db, Some(Found::Empty)) => Ok(db),
        _ => Err(Error::new(Kind::Failed, format!("{} cannot be made anew", path.display()))),
    }
}

pub(super) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let what = || format!("cannot open {}", path.display());
    let db =
        Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(|e| failed(&what(), e))?;
    db.busy_timeout(BUSY).map_err(|e| failed(&what(), e))?;
    Ok(db)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
