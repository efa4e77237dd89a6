//! What most commands begin with: settings, the repository, its keys, the chosen cluster.

use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use zeroize::Zeroizing;

use super::args::Common;
use crate::archive::Archive;
use crate::archive::key_files::{self, Looked};
use crate::catalog::path_in;
use crate::config::{ClusterSettings, Overrides, Settings};
use crate::error::{Context as _, Error, Kind, Result};
use crate::keys::ring::{ReaderRing, WriterRing};
use crate::keys::setup::{self, RepositoryKeys};
use crate::net::Conninfo;
use crate::pg::{Lsn, SegmentName};
use crate::repo::cloud::Timeouts;
use crate::repo::{ClusterNames, Repository, names};
use crate::restore::Access;
use crate::seal::content::hex;
use crate::seal::content::repository::{Encryption, RepositoryFile};
use crate::seal::key::RepositorySecret;
use crate::verify::Opens;

/// Settings, and the repository they name, opened.
#[derive(Clone)]
pub struct Context {
    pub settings: Settings,
    pub cluster: ClusterSettings,
    pub repo: Repository,
    pub about: RepositoryFile,
    secret: RepositorySecret,
}

/// Why a command that is quick opened no contents: the open segment, of which nothing else tells the commits, was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// A passphrase opens them, at the cost of a second and much memory.
    Passphrase,
    /// No private key that fits is configured.
    Key,
    /// The file below `keys/` that a private key would open is damaged.
    Damaged,
}

impl Unread {
    /// What a person is told.
    pub fn text(self) -> &'static str {
        match self {
            Unread::Passphrase => {
                "the open segment was not read, since a passphrase opens it: newer commits may be stored; `walrecv restore --latest --plan` looks"
            }
            Unread::Key => {
                "the open segment was not read, since no private key here opens it: newer commits may be stored, and a restore needs that key"
            }
            Unread::Damaged => {
                "the open segment was not read, since a key file of the repository is damaged, which `walrecv verify` names: newer commits may be stored"
            }
        }
    }
}

/// The environment, as the lower floors ask for it.
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Context {
    /// Reads the configuration, opens the repository, reads `walrecv.json` and the repository secret, which must be this repository's (`Kind::Key`).
    pub async fn open(common: &Common) -> Result<Context> {
        Context::open_with(common, None).await
    }

    /// As [`Context::open`], with another private key file than the configured one.
    pub async fn open_with(common: &Common, identity_file: Option<&Path>) -> Result<Context> {
        Context::open_within(common, identity_file, Timeouts::default()).await
    }

    /// As [`Context::open_with`], with other limits on how long the store may take to answer.
    pub async fn open_within(common: &Common, identity_file: Option<&Path>, timeouts: Timeouts) -> Result<Context> {
        let settings = settings(common, identity_file)?;
        let cluster = settings.cluster(common.cluster.as_deref())?.clone();
        Context::in_repository(Repository::open_with(&settings.repo, &env, timeouts)?, settings, cluster).await
    }

    /// As [`Context::open`], with a configuration that was read already.
    pub async fn of(settings: Settings, cluster: ClusterSettings) -> Result<Context> {
        Context::in_repository(Repository::open(&settings.repo, &env)?, settings, cluster).await
    }

    async fn in_repository(repo: Repository, settings: Settings, cluster: ClusterSettings) -> Result<Context> {
        let about = repository_file(&repo).await?;
        let secret = secret(&settings, &about)?;
        known_identity(&settings, &repo).await?;
        Ok(Context { settings, cluster, repo, about, secret })
    }

    /// One for each of these clusters. Keys and repository are opened once.
    pub async fn of_all(settings: &Settings, meant: &[ClusterSettings]) -> Result<Vec<Context>> {
        let Some(first) = meant.first() else { return Ok(Vec::new()) };
        let context = Context::of(settings.clone(), first.clone()).await?;
        Ok(meant.iter().map(|cluster| Context { cluster: cluster.clone(), ..context.clone() }).collect())
    }

    /// Whether objects are encrypted: as configured. Whoever can write to the repository can write `walrecv.json`.
    pub fn encrypted(&self) -> bool {
        self.settings.identity.is_some()
    }

    pub fn conninfo(&self) -> Result<Conninfo> {
        Conninfo::parse(&self.cluster.dsn, &env).context(format!("clusters.{}.dsn", self.cluster.name))
    }

    /// What a writer seals with: the public key comes from the configuration, never from the repository.
    pub fn writer_ring(&self) -> Result<WriterRing> {
        WriterRing::new(self.about.id, self.secret.clone(), self.settings.identity.as_deref())
    }

    /// What opens names, times and sizes: the secret alone.
    pub fn index_ring(&self) -> Result<ReaderRing> {
        ReaderRing::new(self.about.id, self.secret.clone(), None)
    }

    /// What opens everything: needs a recipient's private key, or the passphrase.
    pub async fn content_ring(&self) -> Result<ReaderRing> {
        self.content_access().await.map(|(_, ring)| ring)
    }

    /// As [`Context::content_ring`] where a private key is at hand that nobody has to be asked for, else as [`Context::index_ring`], and why.
    pub async fn ring_at_hand(&self) -> Result<(ReaderRing, Option<Unread>)> {
        if self.encrypted() && self.settings.identity_file.is_none() {
            let why = if self.settings.passphrase_file.is_some() { Unread::Passphrase } else { Unread::Key };
            return Ok((self.index_ring()?, Some(why)));
        }
        match self.content_ring().await {
            Err(error) if error.kind() == Kind::Key => Ok((self.index_ring()?, Some(Unread::Key))),
            Err(error) if error.kind() == Kind::Corrupt => Ok((self.index_ring()?, Some(Unread::Damaged))),
            ring => Ok((ring?, None)),
        }
    }

    /// What a restore leaves to `wal-fetch`, and the ring to read with.
    pub async fn content_access(&self) -> Result<(Access, ReaderRing)> {
        let identity = match self.encrypted() {
            true => Some(self.repository_keys().await?.identity.clone()),
            false => None,
        };
        // The configured secret, never the stored one: it is what makes objects authentic.
        let secret = self.secret.clone();
        let ring = ReaderRing::new(self.about.id, secret.clone(), identity.as_ref().map(|i| i.as_str()))?;
        let access = Access { url: self.repo.url().to_owned(), repository: self.about.id, secret, identity };
        Ok((access, ring))
    }

    /// For whoever is going to write: somebody must be able to open it. `Kind::Corrupt` where no key file is whole, which the secret tells; one that is
    /// damaged beside whole ones is a warning.
    pub async fn demand_readers(&self) -> Result<()> {
        let Some(public) = self.settings.identity.as_deref() else { return Ok(()) };
        for damaged in key_files::look(&self.repo, &self.secret, public).await?.demand(public)? {
            tracing::warn!("{damaged}; another recipient's is whole");
        }
        Ok(())
    }

    /// What can be told of the key files without any private key; `None` without encryption.
    pub async fn key_files(&self) -> Result<Option<Looked>> {
        let Some(public) = self.settings.identity.as_deref() else { return Ok(None) };
        key_files::look(&self.repo, &self.secret, public).await.map(Some)
    }

    /// Opens the repository identity with the configured private key or passphrase.
    pub async fn repository_keys(&self) -> Result<RepositoryKeys> {
        let private = private_key(&self.settings)?;
        let public = self.settings.identity.as_deref().unwrap_or_default();
        key_files::open(&self.repo, &self.secret, public, &|file| private.open(file)).await
    }

    /// Whether a key file opens to the configured identity, by the private key of this host, or where asked for by the passphrase. `None`: there is none here.
    pub fn opener(&self, ask: bool) -> Option<Opens> {
        let at_hand = self.settings.identity_file.is_some() || ask;
        let (private, public) =
            (private_key(&self.settings).ok().filter(|_| at_hand)?, self.settings.identity.clone()?);
        Some(Arc::new(move |file| private.open(file).is_ok_and(|keys| keys.public == public.trim())))
    }

    /// The one incarnation of the cluster that is stored. `Kind::Repository` when there is none.
    pub async fn archive(&self, ring: ReaderRing) -> Result<Archive> {
        self.archive_if_any(ring).await?.ok_or_else(|| {
            Error::new(Kind::Repository, format!("nothing is stored of cluster {:?}", self.cluster.name))
                .hint("start `walrecv receive`, then take a backup")
        })
    }

    /// As [`Context::archive`]; `None` where nothing is stored of this cluster: its repository may be a new one.
    pub async fn archive_if_any(&self, ring: ReaderRing) -> Result<Option<Archive>> {
        let mut found = Archive::incarnations(&self.repo, &self.cluster.name).await?;
        match (found.pop(), found.is_empty()) {
            (Some(names), true) => Ok(Some(self.archive_of(names, ring))),
            (None, _) if path_in(&self.settings.state_dir, &self.cluster.name).exists() => {
                let text =
                    format!("nothing is stored of cluster {:?}, of which there is a catalog here", self.cluster.name);
                Err(Error::new(Kind::Repository, text).hint(
                    "see whether this is the repository that was written to; if it is, its objects are gone: put them back from a copy of it",
                ))
            }
            (None, _) => Ok(None),
            (Some(_), false) => {
                Err(Error::new(Kind::Diverged, format!("cluster {:?} has several incarnations", self.cluster.name))
                    .hint("use a new cluster name after pg_upgrade or a new initdb"))
            }
        }
    }

    /// As [`Context::archive`]; `None` where nothing is stored yet: the first backup may come before the first receiver.
    pub async fn archive_for_backup(&self, ring: ReaderRing) -> Result<Option<Archive>> {
        if Archive::incarnations(&self.repo, &self.cluster.name).await?.is_empty() {
            return Ok(None);
        }
        let archive = self.archive(ring).await?;
        // A backup sealed with another secret than its WAL could never be restored. Any stored segment tells.
        let inventory = archive.newest(|_| Lsn(u64::MAX)).await?;
        let newest = inventory.timelines.iter().rev().find_map(|(t, stock)| Some((*t, *stock.complete.last()?)));
        if let Some((timeline, number)) = newest {
            archive.summaries(SegmentName::new(timeline, number, archive.names.segment_size)).await?;
        }
        Ok(Some(archive))
    }

    pub fn archive_of(&self, names: ClusterNames, ring: ReaderRing) -> Archive {
        Archive { repo: self.repo.clone(), names, keys: Arc::new(ring) }
    }
}

/// The named cluster, else all of them.
pub fn meant(common: &Common, all: &Settings) -> Result<Vec<ClusterSettings>> {
    Ok(match (common.cluster.as_deref(), all.clusters.as_slice()) {
        (None, [_, _, ..]) => all.clusters.clone(),
        (named, _) => vec![all.cluster(named)?.clone()],
    })
}

/// The configuration alone, for commands that need no repository.
pub fn settings(common: &Common, identity_file: Option<&Path>) -> Result<Settings> {
    Settings::load(&Overrides {
        config: common.config.clone(),
        repo: common.repo.clone(),
        cluster: common.cluster.clone(),
        identity_file: identity_file.map(Path::to_owned),
    })
}

/// Reads `walrecv.json`; `Kind::Repository` when there is none.
pub async fn repository_file(repo: &Repository) -> Result<RepositoryFile> {
    let bytes = repo.get(names::REPOSITORY_FILE).await?.ok_or_else(|| {
        Error::new(Kind::Repository, format!("no repository at {}: it has no {}", repo.url(), names::REPOSITORY_FILE))
            .hint("make one with `walrecv init`, or correct `repo` in the configuration")
    })?;
    RepositoryFile::decode(&bytes).map_err(|problem| {
        Error::new(Kind::Repository, format!("{}/{}: {problem}", repo.url(), names::REPOSITORY_FILE))
            .hint("put walrecv.json back from a copy, or use a walrecv that knows this version of the format")
    })
}

/// A wrong `identity` would show only at a restore.
async fn known_identity(settings: &Settings, repo: &Repository) -> Result<()> {
    let Some(public) = settings.identity.as_deref() else { return Ok(()) };
    if key_files::listed(repo, public).await?.is_empty() { Err(key_files::none(public)) } else { Ok(()) }
}

fn secret(settings: &Settings, about: &RepositoryFile) -> Result<RepositorySecret> {
    match (&settings.identity, about.encryption) {
        (None, Encryption::None) => return own(RepositorySecret::published(), about, "the published secret"),
        (Some(_), Encryption::Age) => {}
        (None, Encryption::Age) => {
            return Err(Error::new(Kind::Key, "the repository is encrypted, and no identity is configured")
                .hint("put `identity = \"age1…\"` of this repository into the configuration"));
        }
        (Some(_), Encryption::None) => {
            return Err(Error::new(
                Kind::Key,
                "an identity is configured, and walrecv.json says that the repository is not encrypted",
            )
            .hint("either another repository is meant, or somebody changed walrecv.json: nothing was written"));
        }
    }
    let path = settings.secret_file.as_deref().ok_or_else(|| {
        Error::new(Kind::Key, "the repository is encrypted, and no secret_file is configured")
            .hint("copy the secret file from a host that writes, or print it with an identity")
    })?;
    let text = read_private(path, "repository secret")?;
    let secret = setup::secret_from_text(&text).context(path.display())?;
    own(secret, about, &format!("the repository secret in {}", path.display()))
}

/// Tried before anything is written: what another repository's secret seals, nobody with this repository's keys could ever open.
fn own(secret: RepositorySecret, about: &RepositoryFile, what: &str) -> Result<RepositorySecret> {
    if about.is_opened_by(&secret) {
        return Ok(secret);
    }
    let text = format!("{what} is not the secret of this repository ({})", hex(&about.id.0));
    Err(Error::new(Kind::Key, text).hint(format!(
        "copy the secret file from a host that writes to this repository, or correct `repo`; if somebody changed {}, put it back from a copy",
        names::REPOSITORY_FILE
    )))
}

/// A private key or passphrase as configured.
enum Private {
    Identity(Zeroizing<String>),
    Passphrase(Zeroizing<String>),
}

impl Private {
    fn open(&self, file: &[u8]) -> Result<RepositoryKeys> {
        match self {
            Private::Identity(text) => setup::open_with_identity(file, text),
            Private::Passphrase(text) => setup::open_with_passphrase(file, text.trim_end_matches(['\r', '\n'])),
        }
    }
}

fn private_key(settings: &Settings) -> Result<Private> {
    match (&settings.identity_file, &settings.passphrase_file) {
        (Some(path), _) => read_private(path, "private key").map(Private::Identity),
        (None, Some(path)) => read_private(path, "passphrase").map(Private::Passphrase),
        (None, None) => {
            Err(Error::new(Kind::Key, "contents are encrypted, and no identity_file or passphrase_file is configured")
                .hint("give the private key of a recipient with --identity-file"))
        }
    }
}

/// Reads a small secret file.
pub fn read_private(path: &Path, what: &str) -> Result<Zeroizing<String>> {
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
        Error::new(Kind::Key, format!("cannot read the {what} in {}", path.display()))
            .caused_by(error)
            .hint("put the file back from your own safe copy, or correct the configuration")
    })
}

/// SIGTERM and SIGINT, and where asked for SIGHUP.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Option<Signal>,
}

impl Signals {
    pub fn new() -> Result<Signals> {
        Ok(Signals { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())?, hup: None })
    }

    /// For what must not be left behind when a terminal goes. Under nohup it goes on.
    pub fn with_hangup() -> Result<Signals> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hup = if hangup_ignored(&status) { None } else { Some(listen(SignalKind::hangup())?) };
        Ok(Signals { hup, ..Signals::new()? })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            Some(_) = async { self.hup.as_mut()?.recv().await } => "SIGHUP",
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::new(Kind::Failed, "cannot listen for signals").caused_by(e))
}

/// By the mask `SigIgn` of `/proc/PID/status`, whose lowest bit is signal 1.
fn hangup_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_respected() {
        assert!(hangup_ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"));
        assert!(!hangup_ignored("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\n") && !hangup_ignored(""));
    }
}
