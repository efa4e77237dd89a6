//! One repository: a local directory or a bucket. `put_once` is the only retry loop for creates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::backend::{Answer, Backend, Children, Listed};
use super::local::LocalBackend;
use super::root::Root;
use super::trouble::Trouble;
use super::{cloud, names, open};
use crate::backoff::Backoff;
use crate::disk::durable;
use crate::disk::lane::Lane;
use crate::disk::medium::{Ground, disk};
use crate::error::{Error, Kind, Result};
use crate::pg::{DurableLsn, Lsn, SystemIdentifier, TimelineId};

/// How much of an object is read back to judge what it is: always enough for header and frame 0 of a segment.
pub const HEAD_BYTES: u64 = 8 << 10;
/// How often a read is tried while its error may pass.
const READ_ATTEMPTS: u32 = 4;
/// What took so long to fail is told while it is tried again.
const SLOW: Duration = Duration::from_secs(5);
/// A staging file that nobody holds is left over from a crash when it is as old as this.
const STAGING_AGE: Duration = Duration::from_secs(60);

/// What the object that already stands under a name turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Same salt: our own put, whose answer was lost.
    Ours,
    /// Same claims and content hash: an equal copy of another run.
    Equal,
    /// Anything else.
    Different,
}

/// How a put ended. Either way the object is durable under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Created,
    Ours,
    Equal,
}

/// How what stands under a name already is judged.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// By its first bytes (up to 8 KiB).
    pub head: &'a (dyn Fn(&[u8]) -> Found + Send + Sync),
    /// An equal copy, by all of its bytes.
    pub whole: &'a (dyn Fn(&[u8]) -> Result<()> + Send + Sync),
}

/// Shared handle (cheap to clone).
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    local_root: Option<Arc<Root>>,
    medium: Ground,
    backend: Box<dyn Backend>,
    /// Attempts to create an object that failed.
    failures: AtomicU64,
    trouble: Trouble,
}

impl Repository {
    /// `file:///path`, `s3://bucket/prefix`, `gs://…`, `az://…`; credentials from the environment through `env`. Reaches nothing yet.
    pub fn open(url: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Repository> {
        Repository::open_with(url, env, cloud::Timeouts::default())
    }

    /// As `open`, with other limits on how long one request may take.
    pub fn open_with(url: &str, env: &dyn Fn(&str) -> Option<String>, timeouts: cloud::Timeouts) -> Result<Repository> {
        let parsed = url::Url::parse(url).map_err(|e| bad_url(url).caused_by(e))?;
        let extra = parsed.query().is_some() || parsed.fragment().is_some() || !parsed.username().is_empty();
        if extra || parsed.password().is_some() {
            return Err(bad_url("with a user, a password, a query or a fragment"));
        }
        if parsed.scheme() == "file" {
            let root = parsed.to_file_path().map_err(|()| bad_url(url))?;
            return Ok(Repository::in_directory(root, disk()));
        }
        let backend = Box::new(open::open(&parsed, env, timeouts)?.ok_or_else(|| bad_url(url))?);
        Ok(Repository::with_backend(url, backend))
    }

    /// A repository on a store of the caller's own: wrappers that fail on purpose, generated listings.
    pub fn with_backend(url: &str, backend: Box<dyn Backend>) -> Repository {
        Repository::beside(url, backend, disk())
    }

    /// As `with_backend`, where everything else that computes or waits for a disk goes by `medium`.
    pub fn beside(url: &str, backend: Box<dyn Backend>, medium: Ground) -> Repository {
        Repository::with(url.to_owned(), None, medium, backend)
    }

    /// A repository in a directory of any medium.
    pub fn in_directory(root: PathBuf, medium: Ground) -> Repository {
        let url = format!("file://{}", root.display());
        let root = Arc::new(Root::new(root, medium.clone()));
        Repository::with(url, Some(root.clone()), medium, Box::new(LocalBackend::new(root)))
    }

    fn with(url: String, local_root: Option<Arc<Root>>, medium: Ground, backend: Box<dyn Backend>) -> Repository {
        let (failures, trouble) = (AtomicU64::new(0), Trouble::default());
        Repository { inner: Arc::new(Inner { url, local_root, medium, backend, failures, trouble }) }
    }

    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The directory of a `file://` repository: where tail files live.
    pub fn local_root(&self) -> Option<&Path> {
        self.inner.local_root.as_ref().map(|root| root.path.as_path())
    }

    /// Demands that the directory of a `file://` repository is there, and still the one that was there at first: for who writes files below it.
    pub fn demand_local_root(&self) -> Result<()> {
        self.inner.local_root.as_ref().map_or(Ok(()), |root| root.demand())
    }

    /// How many attempts to create an object have failed so far. A store that was away may have come back as another one.
    pub fn failures(&self) -> u64 {
        self.inner.failures.load(Ordering::SeqCst)
    }

    /// The disk that tail files are written to.
    pub fn medium(&self) -> &Ground {
        &self.inner.medium
    }

    /// Where work runs that computes or waits for a disk.
    pub fn lane(&self) -> Lane {
        self.inner.medium.lane()
    }

    /// Makes the directory of a `file://` repository, durably; buckets are made by their owner. Everything else refuses a missing
    /// directory, since its disk may only not be mounted: `init` calls this, nobody else.
    pub async fn make_root(&self) -> Result<()> {
        self.inner.backend.make_root().await
    }

    /// Creates `name` once. `judge` is shown the first bytes (up to 8 KiB) of what stands there when the answer is "already exists" or unclear.
    /// Retries with backoff until it is settled or `give_up` has passed (then the error is transient); a different object is
    /// `Kind::Diverged`, and a refusal that will not pass is a permanent `Kind::Repository`.
    pub async fn put_once(
        &self,
        name: &str,
        bytes: &[Bytes],
        judge: &(dyn Fn(&[u8]) -> Found + Send + Sync),
        give_up: Duration,
    ) -> Result<Put> {
        let put = self.put_until(name, bytes, judge, give_up).await?;
        if let Some(line) = self.inner.trouble.stored() {
            tracing::warn!("{line}");
        }
        Ok(put)
    }

    async fn put_until(
        &self,
        name: &str,
        bytes: &[Bytes],
        judge: &(dyn Fn(&[u8]) -> Found + Send + Sync),
        give_up: Duration,
    ) -> Result<Put> {
        demand_name(name)?;
        let mut pending = None;
        let size: u64 = bytes.iter().map(|b| b.len() as u64).sum();
        let started = Instant::now();
        let mut backoff = backoff();
        loop {
            let created = self.inner.backend.create(name, bytes).await;
            if created.is_err() {
                self.inner.failures.fetch_add(1, Ordering::SeqCst);
            }
            let unclear = match created {
                Ok(Answer::Created) => return Ok(Put::Created),
                Ok(Answer::Taken) => None,
                Err(error) if error.is_transient() => Some(error),
                Err(error) => return Err(error.context(format!("cannot store {name}"))),
            };
            let unclear = match self.look(name, size, judge).await {
                Ok(Some(put)) => return Ok(put),
                Ok(None) => unclear.unwrap_or_else(|| conflict_without_object(name)),
                Err(error) if error.is_transient() => unclear.unwrap_or(error),
                Err(error) => return Err(error),
            };
            if started.elapsed() >= give_up {
                return Err(given_up(name, give_up, unclear));
            }
            pending.get_or_insert_with(|| self.inner.trouble.pending());
            if let Some(line) = self.inner.trouble.failed(name, &unclear) {
                tracing::warn!("{line}");
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Answers the question what stands under a name, and makes it durable before it counts. `None`: nothing.
    async fn look(&self, name: &str, size: u64, judge: &(dyn Fn(&[u8]) -> Found + Send + Sync)) -> Result<Option<Put>> {
        let Some(head) = self.inner.backend.read(name, Some(0..HEAD_BYTES)).await? else { return Ok(None) };
        let put = match judge(&head.bytes) {
            Found::Ours if head.size != size => {
                let text = format!("object {name} is ours by its header but has {} bytes instead of {size}", head.size);
                return Err(Error::new(Kind::Corrupt, text));
            }
            Found::Ours => Put::Ours,
            Found::Equal => Put::Equal,
            Found::Different => {
                return Err(Error::new(Kind::Diverged, format!("object {name} exists with different content")).hint(
                    "Two writers disagree: find out which history is right before anything is stored or deleted.",
                ));
            }
        };
        self.inner.backend.settle(name).await?;
        Ok(Some(put))
    }

    /// As `put_once`, and the witness that every byte up to `end` is durable (the caller states that all before it is). An equal copy of another run counts
    /// only when `whole`, which is shown all of it, has nothing against it: its first bytes do not say whether the rest is there.
    pub async fn put_wal(
        &self,
        name: &str,
        bytes: &[Bytes],
        judge: Judge<'_>,
        give_up: Duration,
        claim: (SystemIdentifier, TimelineId, Lsn),
    ) -> Result<(DurableLsn, Put)> {
        let put = self.put_once(name, bytes, judge.head, give_up).await?;
        if put == Put::Equal {
            let gone = || conflict_without_object(name);
            (judge.whole)(&self.get(name).await?.ok_or_else(gone)?)?;
        }
        Ok((DurableLsn::witness(claim.0, claim.1, claim.2), put))
    }

    /// `None` only when the store answered that the object does not exist. One that is longer than any of its kind ([`names::largest`]) is `Kind::Corrupt`,
    /// and not read: whoever can write to the repository must not be able to fill a reader's memory.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        demand_name(name)?;
        let most = names::largest(name);
        let piece = self.retry(|| self.inner.backend.whole(name, most)).await?;
        match piece {
            Some(piece) if piece.size > most => Err(too_long(name, piece.size, most)),
            piece => Ok(piece.map(|p| p.bytes)),
        }
    }

    /// The bytes of the range, shorter where the object ends; `None` as for `get`.
    pub async fn get_range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Option<Bytes>> {
        demand_name(name)?;
        let piece = self.retry(|| self.inner.backend.read(name, Some(range.clone()))).await?;
        Ok(piece.map(|p| p.bytes))
    }

    /// Size and time of an object; `None` as for `get`.
    pub async fn head(&self, name: &str) -> Result<Option<Listed>> {
        demand_name(name)?;
        let piece = self.retry(|| self.inner.backend.read(name, Some(0..1))).await?;
        Ok(piece.map(|p| Listed { name: name.to_owned(), size: p.size, modified: p.modified }))
    }

    /// Everything below a prefix (`a/b` lists `a/b/...`, the empty one everything), recursively, in no order. Names that walrecv would
    /// not give are left out.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        demand_prefix(prefix)?;
        let mut listed = self.retry(|| self.inner.backend.list(prefix)).await?;
        listed.retain(|l| names::valid_name(&l.name));
        Ok(listed)
    }

    /// Names of the folders directly below a prefix.
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        demand_prefix(prefix)?;
        let mut folders = self.retry(|| self.inner.backend.folders(prefix)).await?;
        folders.retain(|f| names::valid_name(f));
        Ok(folders)
    }

    /// Folders and objects directly below a prefix, in no order.
    pub async fn children(&self, prefix: &str) -> Result<Children> {
        demand_prefix(prefix)?;
        let mut children = self.retry(|| self.inner.backend.children(prefix)).await?;
        children.folders.retain(|folder| names::valid_name(folder));
        children.objects.retain(|object| names::valid_name(&object.name));
        Ok(children)
    }

    /// Makes an object durable that an earlier run may have left and that was found under its name: on a local disk a name can be seen before it is.
    pub async fn settle(&self, name: &str) -> Result<()> {
        demand_name(name)?;
        self.retry(|| self.inner.backend.settle(name)).await
    }

    /// Durable where the store is a local disk; a missing object is no error.
    pub async fn delete(&self, name: &str) -> Result<()> {
        demand_name(name)?;
        self.retry(|| self.inner.backend.delete(name)).await
    }

    /// For how long the store has answered nothing, once that is longer than the patience of one request: whoever has many objects to ask for should not wait for
    /// each of them.
    pub fn silent_for(&self) -> Option<Duration> {
        self.inner.backend.silent_for()
    }

    /// Tries what has no effect, or the same effect every time, again while the error may pass.
    async fn retry<'a, T>(&self, attempt: impl Fn() -> futures::future::BoxFuture<'a, Result<T>>) -> Result<T> {
        let mut backoff = backoff();
        let mut tried = 1;
        loop {
            let asked = Instant::now();
            match attempt().await {
                Err(error) if error.is_transient() && tried < READ_ATTEMPTS && self.silent_for().is_none() => {
                    // Whoever sits before it should know what is waited for.
                    match asked.elapsed() >= SLOW {
                        true => tracing::warn!("{error}; trying again ({tried} of {READ_ATTEMPTS})"),
                        false => tracing::debug!(error = %error, tried, "request failed, trying again"),
                    }
                    tried += 1;
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                settled => return settled,
            }
        }
    }

    /// Deletes what crashed writers left in a local repository (files under staging names that nobody holds); says how many.
    pub async fn clean_staging(&self) -> Result<u64> {
        let Some(root) = self.local_root().map(Path::to_path_buf) else { return Ok(0) };
        let medium = self.inner.medium.clone();
        self.lane().run(move || durable::clean_staging(&*medium, &root, STAGING_AGE)).await?
    }
}

fn backoff() -> Backoff {
    // Only spreads the attempts of several processes: without randomness they go on in step.
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5), getrandom::u64().unwrap_or_default())
}

fn demand_name(name: &str) -> Result<()> {
    if names::valid_name(name) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{name:?} cannot be the name of an object"))
        .hint("Use letters, digits and . _ - + = in names, and do not begin them with a dot."))
}

fn demand_prefix(prefix: &str) -> Result<()> {
    if prefix.is_empty() { Ok(()) } else { demand_name(prefix) }
}

fn bad_url(url: &str) -> Error {
    Error::new(Kind::Usage, format!("repository URL {url} is not supported"))
        .hint("Use file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.")
}

fn conflict_without_object(name: &str) -> Error {
    Error::new(Kind::Repository, format!("the store says that {name} conflicts, but nothing is stored there"))
        .transient()
}

fn too_long(name: &str, size: u64, most: u64) -> Error {
    Error::new(Kind::Corrupt, format!("{name} has {size} bytes, and no object of its kind has more than {most}"))
        .hint("Find out who can write to the repository: walrecv did not store this.")
}

fn given_up(name: &str, after: Duration, last: Error) -> Error {
    let advice = last.advice().unwrap_or("Check that the repository can be reached and written.").to_owned();
    let text = format!("{name} is not known to be stored after {} s", after.as_secs_f32());
    Error::new(Kind::Repository, text).transient().caused_by(last).hint(advice)
}
