//! The directory of a local repository, and whether it is still the one that was there at first: a disk that is unmounted leaves an empty directory of the same
//! name, and what is written there is in no repository.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::folders::Folders;
use super::names;
use crate::disk::durable;
use crate::disk::medium::{Form, Ground};
use crate::error::{Error, Kind, Result};

/// More of `walrecv.json` is not looked at.
const LONGEST: u64 = 64 << 10;

pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) medium: Ground,
    /// Folders whose names are known to be on the disk.
    pub(super) folders: Folders,
    first: Mutex<Option<Known>>,
}

/// What the directory is known by.
enum Known {
    /// What `walrecv.json` says, wherever it is mounted.
    About(Vec<u8>),
    /// Device and inode, where there is none (yet). A directory that was removed and made anew may have the same.
    Place(u64, u64),
}

impl Root {
    pub(super) fn new(path: PathBuf, medium: Ground) -> Root {
        Root { path, medium, folders: Folders::default(), first: Mutex::default() }
    }

    /// Without the directory nothing can be known: "no such file" would be a lie.
    pub(super) fn demand(&self) -> Result<()> {
        let path = self.path.display();
        let found = match self.medium.look(&self.path) {
            Ok(found) if found.form == Form::Directory => found,
            Ok(_) => return Err(missing(format!("repository {path} is not a directory"))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(missing(format!("repository directory {path} does not exist")));
            }
            Err(e) => return Err(durable::failed("cannot open repository", &self.path, e)),
        };
        let about = self.about()?;
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let same = match (&*first, &about) {
            (None, _) => true,
            (Some(Known::About(known)), about) => about.as_ref() == Some(known),
            (Some(Known::Place(device, inode)), _) => (*device, *inode) == (found.device, found.inode),
        };
        if !same {
            return Err(missing(format!("{path} is no longer the directory that the repository was in")));
        }
        *first = Some(about.map_or(Known::Place(found.device, found.inode), Known::About));
        Ok(())
    }

    /// What `walrecv.json` says; `None` where there is none.
    fn about(&self) -> Result<Option<Vec<u8>>> {
        let file = self.path.join(names::REPOSITORY_FILE);
        match self.medium.open(&file).and_then(|file| file.read_at(0, LONGEST)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(durable::failed("cannot read", &file, e)),
        }
    }
}

fn missing(text: String) -> Error {
    Error::new(Kind::Repository, text)
        .hint("Mount the disk that holds the repository, correct the URL, or make a repository with walrecv init.")
}
