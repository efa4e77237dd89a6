//! The files that wrap the repository identity for its recipients. Without any of them nothing that is stored can be opened, by anyone; and a writer, who has
//! no private key, would go on writing. So their names carry a check value, which takes the repository secret alone.

use bytes::Bytes;

use crate::error::{Context as _, Error, Kind, Result};
use crate::keys::setup::{self, RepositoryKeys};
use crate::repo::{Repository, names};
use crate::seal::content::hex;
use crate::seal::hash::key_file_check;
use crate::seal::key::RepositorySecret;

/// What to do about a key file that is not as it was stored.
const PUT_BACK: &str = "Put it back under its name from another copy of the repository. Where no key file is whole, nobody can open what is stored, whatever keys \
    are kept elsewhere: if there is no copy, make a new repository with `walrecv init` and take a backup there.";

/// The names of those of an identity (`age1…`), sorted. What only looks like one is no key file: a folder may be left where its files are gone.
pub async fn listed(repo: &Repository, public: &str) -> Result<Vec<String>> {
    let listed =
        repo.list(&names::key_folder(&setup::short_name(public))).await.context("cannot list the key files")?;
    let mut names: Vec<String> = listed.into_iter().map(|file| file.name).filter(|n| n.ends_with(".age")).collect();
    names.sort_unstable();
    Ok(names)
}

/// Under which name these bytes are stored for the configured identity.
pub fn name_of(secret: &RepositorySecret, public: &str, recipient: &str, file: &[u8]) -> String {
    let identity = setup::short_name(public);
    names::key_file(&identity, recipient, &hex(&key_file_check(secret, &identity, recipient, file)))
}

/// Demands that a key file is what was stored under its name: `Kind::Corrupt` otherwise. It takes no private key.
pub fn demand(secret: &RepositorySecret, name: &str, file: &[u8]) -> Result<()> {
    let damaged = |found: String| Error::new(Kind::Corrupt, format!("{name}: {found}")).hint(PUT_BACK);
    let Some((identity, recipient, check)) = names::parse_key_file(name) else {
        return Err(damaged(
            "its name carries no check value, so nobody can tell without its private key whether it is whole"
                .to_owned(),
        ));
    };
    match hex(&key_file_check(secret, identity, recipient, file)) == check {
        true => Ok(()),
        false => {
            Err(damaged(format!("the key file is damaged: its {} bytes are not those that were stored", file.len())))
        }
    }
}

/// One that was stored. `None`: it is gone. What looks damaged is read a second time before it counts (`Kind::Corrupt`).
pub async fn read(repo: &Repository, secret: &RepositorySecret, name: &str) -> Result<Option<Bytes>> {
    let mut last = Ok(None);
    for _ in 0..2 {
        last = match repo.get(name).await {
            Ok(Some(file)) => match demand(secret, name, &file) {
                Ok(()) => return Ok(Some(file)),
                Err(error) => Err(error),
            },
            Ok(None) => Ok(None),
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            Err(error) => return Err(error),
        };
    }
    last
}

/// What a writer can know of an identity's key files.
pub struct Looked {
    /// How many are as they were stored.
    pub whole: u64,
    /// What is wrong with the others.
    pub damaged: Vec<Error>,
}

/// Looks at all of them.
pub async fn look(repo: &Repository, secret: &RepositorySecret, public: &str) -> Result<Looked> {
    let mut looked = Looked { whole: 0, damaged: Vec::new() };
    for name in listed(repo, public).await? {
        match read(repo, secret, &name).await {
            Ok(found) => looked.whole += u64::from(found.is_some()),
            Err(error) if error.kind() == Kind::Corrupt => looked.damaged.push(error),
            Err(error) => return Err(error.context("cannot see whether a key file is whole")),
        }
    }
    Ok(looked)
}

impl Looked {
    /// Demands that somebody can open what is written from now on: the error where no file is whole. The others are only findings.
    pub fn demand(self, public: &str) -> Result<Vec<Error>> {
        match (self.whole, self.damaged.into_iter()) {
            (0, mut damaged) => Err(damaged.next().unwrap_or_else(|| none(public))),
            (_, damaged) => Ok(damaged.collect()),
        }
    }
}

/// A wrong `identity` would seal everything for a key that this repository cannot open.
pub fn none(public: &str) -> Error {
    let folder = names::key_folder(&setup::short_name(public));
    Error::new(Kind::Key, format!("the repository has no key file of the configured identity ({folder})"))
        .hint("see whether `identity` and `repo` belong together: what is written now could not be opened")
}

/// The identity, by whichever file `private` opens, damaged or not: what opens and is the configured identity is good. The error is that of a damaged file
/// where there is one, since that may be the one that was wrapped for this key.
pub async fn open(
    repo: &Repository,
    secret: &RepositorySecret,
    public: &str,
    private: &(dyn Fn(&[u8]) -> Result<RepositoryKeys> + Sync),
) -> Result<RepositoryKeys> {
    let (mut damaged, mut refused) = (None, None);
    for name in listed(repo, public).await? {
        let opened = match repo.get(&name).await {
            Ok(Some(file)) => private(&file).map_err(|error| demand(secret, &name, &file).err().unwrap_or(error)),
            Ok(None) => continue,
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            Err(error) => return Err(error),
        };
        match opened {
            // Whoever can write to the repository can add a file with an identity of his own, wrapped for our public key.
            Ok(keys) if keys.public == public.trim() => return Ok(keys),
            Ok(_) => {
                let text = format!("{name} is not of the configured identity");
                refused = Some(Error::new(Kind::Key, text).hint("see whether `identity` is this repository's"));
            }
            Err(error) if error.kind() == Kind::Corrupt => damaged = Some(error),
            Err(error) => refused = Some(error),
        }
    }
    Err(damaged.or(refused).unwrap_or_else(|| none(public)))
}
