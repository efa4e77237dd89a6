//! A repository in a bucket, through object_store: conditional single puts, no retries of its own, our timeouts, and the meaning of
//! every kind of refusal.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use object_store::{PutMode, PutOptions, PutPayload};
use tokio::time::{Instant, timeout};

use super::backend::{Answer, Backend, Children, Listed, Piece};
use super::silence::Silence;
use crate::error::{Error, Kind, Result};

/// How long one request may take: a start, and the time that its bytes need on a slow line. The start is also how long an answer, or the next bytes of one, may
/// let wait for them.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub base: Duration,
    pub bytes_per_second: u64,
    /// A store that answers nothing while so many requests, one after the other, are given their time, is not waited for any longer.
    pub requests: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { base: Duration::from_secs(15), bytes_per_second: 256 << 10, requests: 4 }
    }
}

impl Timeouts {
    /// For who has no more than `wait` for a store that says nothing. One that answers, however slowly, is waited for as ever.
    pub fn within(wait: Duration) -> Timeouts {
        let usual = Timeouts::default();
        let requests = wait.as_secs().div_ceil(usual.base.as_secs()).clamp(1, u64::from(usual.requests)) as u32;
        Timeouts { base: usual.base.min(wait / requests), requests, ..usual }
    }

    fn of(self, bytes: u64) -> Duration {
        self.base + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.max(1) as f64)
    }
}

/// No more than this is made room for before it comes: the largest object.
const LARGEST: u64 = 17 << 20;
/// What a page of a listing may have.
const PAGE: u64 = 1 << 20;

/// A store whose listings come page by page.
pub(super) trait Paged: ObjectStore + PaginatedListStore {}

impl<T: ObjectStore + PaginatedListStore> Paged for T {}

pub(super) struct CloudBackend {
    store: Arc<dyn Paged>,
    /// Below which everything is stored; empty for the whole bucket.
    prefix: String,
    timeouts: Timeouts,
    silence: Silence,
}

impl CloudBackend {
    pub(super) fn new(store: Arc<dyn Paged>, prefix: String, timeouts: Timeouts) -> CloudBackend {
        CloudBackend { store, prefix, timeouts, silence: Silence::new(timeouts.base * timeouts.requests) }
    }

    fn path(&self, name: &str) -> ObjectPath {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => ObjectPath::from(name),
            (false, true) => ObjectPath::from(self.prefix.as_str()),
            (false, false) => ObjectPath::from(format!("{}/{name}", self.prefix)),
        }
    }

    /// The name of an object below our prefix.
    fn name<'a>(&self, path: &'a ObjectPath) -> Option<&'a str> {
        let full: &str = path.as_ref();
        if self.prefix.is_empty() { Some(full) } else { full.strip_prefix(&self.prefix)?.strip_prefix('/') }
    }

    /// One request under our own time limit. When it runs out, nothing is known about the request.
    async fn limited<T>(
        &self,
        bytes: u64,
        what: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> std::result::Result<T, Trouble> {
        let limit = self.timeouts.of(bytes);
        let answer = timeout(limit, request).await.map_err(|_| no_answer(what, limit))?;
        let answer = answer.map_err(|e| trouble(what, e));
        if !matches!(answer, Err(Trouble::NoAnswer(_))) {
            self.silence.is_over();
        }
        answer
    }

    /// The same, of a request that changes nothing, or the same every time: it is not sent to a store that has long been silent, while another one waits for it.
    async fn asked<T>(
        &self,
        bytes: u64,
        what: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> std::result::Result<T, Trouble> {
        let turn = self.silence.turn().map_err(|silent| no_answer(what, silent))?;
        let asked = self.limited(bytes, what, request).await;
        if matches!(asked, Err(Trouble::NoAnswer(_))) {
            turn.unanswered();
        }
        asked
    }

    /// One read; of an object that is longer than `most` the body is left where it is.
    async fn read_once(&self, name: &str, range: Option<Range<u64>>, most: u64) -> std::result::Result<Piece, Trouble> {
        let (path, what) = (self.path(name), format!("read {name}"));
        let options = GetOptions { range: range.map(GetRange::Bounded), ..Default::default() };
        let answer = self.asked(0, &what, self.store.get_opts(&path, options)).await?;
        let meta = answer.meta.clone();
        let bytes = if meta.size > most { Bytes::new() } else { self.body(&what, answer).await? };
        Ok(Piece { bytes, size: meta.size, modified: meta.last_modified.into() })
    }

    /// All bytes of an answer that has begun.
    async fn body(&self, what: &str, answer: GetResult) -> std::result::Result<Bytes, Trouble> {
        let length = answer.range.end.saturating_sub(answer.range.start);
        let mut chunks = answer.into_stream();
        let mut body = BytesMut::with_capacity(length.min(LARGEST) as usize);
        let fill = async {
            loop {
                let asked = Instant::now();
                let next = timeout(self.timeouts.base, chunks.try_next()).await;
                let fell_silent = |_| {
                    self.silence.unanswered(asked);
                    no_answer(what, self.timeouts.base)
                };
                match next.map_err(fell_silent)? {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(trouble(what, error)),
                }
            }
        };
        let limit = self.timeouts.of(length);
        timeout(limit, fill).await.map_err(|_| no_answer(what, limit))??;
        if body.len() as u64 != length {
            let text = format!("cannot {what}: the store sent {} bytes instead of {length}", body.len());
            return Err(Trouble::Error(Error::new(Kind::Repository, text).transient()));
        }
        Ok(body.freeze())
    }

    /// What the answer to a read says of the object.
    async fn found(&self, name: &str, read: std::result::Result<Piece, Trouble>) -> Result<Option<Piece>> {
        match read {
            Ok(piece) => Ok(Some(piece)),
            Err(Trouble::Absent) => Ok(None),
            Err(Trouble::NotFound(doubt)) => self.prove_absence(name, doubt).await,
            Err(other) => Err(other.into_error()),
        }
    }

    /// A "not found" that does not say what was not found may come from a proxy or a wrong endpoint: a listing that works proves it.
    async fn prove_absence(&self, name: &str, doubt: Error) -> Result<Option<Piece>> {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (_, objects) = self.list_folder(folder).await?;
        let wanted = self.path(name);
        if objects.iter().any(|o| o.location == wanted) { Err(doubt.transient()) } else { Ok(None) }
    }

    /// Folders and objects directly below a prefix. The limit is per page, not for a listing of any length.
    async fn list_folder(&self, prefix: &str) -> Result<(BTreeSet<ObjectPath>, Vec<ObjectMeta>)> {
        let path = self.path(prefix);
        let above = (!path.as_ref().is_empty()).then(|| format!("{path}/"));
        let what = format!("list {prefix:?}");
        let (mut folders, mut objects, mut page_token) = (BTreeSet::new(), Vec::new(), None);
        loop {
            let options =
                PaginatedListOptions { delimiter: Some(Cow::Borrowed("/")), page_token, ..Default::default() };
            let request = self.store.list_paginated(above.as_deref(), options);
            let page = self.asked(PAGE, &what, request).await.map_err(Trouble::into_error)?;
            folders.extend(page.result.common_prefixes);
            objects.extend(page.result.objects);
            page_token = page.page_token;
            if page_token.is_none() {
                return Ok((folders, objects));
            }
        }
    }
}

impl Backend for CloudBackend {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        async move {
            let path = self.path(name);
            let payload: PutPayload = parts.iter().cloned().collect();
            let size = payload.content_length() as u64;
            let options = PutOptions { mode: PutMode::Create, ..Default::default() };
            let request = self.store.put_opts(&path, payload, options);
            match self.limited(size, &format!("put {name}"), request).await {
                Ok(_) => Ok(Answer::Created),
                Err(Trouble::Taken) => Ok(Answer::Taken),
                Err(other) => Err(other.into_error()),
            }
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        async move {
            let begin = range.as_ref().map_or(0, |range| range.start);
            match self.read_once(name, range, u64::MAX).await {
                // A range that begins at or after the end: the object is there, and shorter.
                Err(Trouble::Range) => {
                    let whole = self.read_once(name, None, begin).await.map_err(Trouble::into_error)?;
                    Ok(Some(Piece { bytes: Bytes::new(), ..whole }))
                }
                read => self.found(name, read).await,
            }
        }
        .boxed()
    }

    fn whole<'a>(&'a self, name: &'a str, most: u64) -> BoxFuture<'a, Result<Option<Piece>>> {
        async move { self.found(name, self.read_once(name, None, most).await).await }.boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        async move {
            let path = self.path(prefix);
            let path = (!path.as_ref().is_empty()).then_some(path);
            let mut stream = self.store.list(path.as_ref());
            let mut found = Vec::new();
            // One page of a thousand names at a time: the limit is per page, not for a listing of any length.
            let what = format!("list {prefix:?}");
            while let Some(meta) = self.asked(PAGE, &what, stream.try_next()).await.map_err(Trouble::into_error)? {
                if let Some(name) = self.name(&meta.location) {
                    found.push(Listed { name: name.to_owned(), size: meta.size, modified: meta.last_modified.into() });
                }
            }
            Ok(found)
        }
        .boxed()
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        async move {
            let (folders, _) = self.list_folder(prefix).await?;
            Ok(folders.iter().filter_map(|p| p.filename().map(str::to_owned)).collect())
        }
        .boxed()
    }

    fn children<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Children>> {
        async move {
            let (folders, objects) = self.list_folder(prefix).await?;
            let folders = folders.iter().filter_map(|p| p.filename().map(str::to_owned)).collect();
            let objects = objects.iter().filter_map(|meta| {
                let name = self.name(&meta.location)?.to_owned();
                Some(Listed { name, size: meta.size, modified: meta.last_modified.into() })
            });
            Ok(Children { folders, objects: objects.collect() })
        }
        .boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let path = self.path(name);
            match self.asked(0, &format!("delete {name}"), self.store.delete(&path)).await {
                Ok(()) | Err(Trouble::Absent) => Ok(()),
                Err(other) => Err(other.into_error()),
            }
        }
        .boxed()
    }

    fn settle<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn silent_for(&self) -> Option<Duration> {
        self.silence.lasts()
    }
}

/// What an error of the store means.
enum Trouble {
    /// The store says that this object does not exist.
    Absent,
    /// "Not found", without saying that it was the object.
    NotFound(Error),
    /// 409 or 412: a question.
    Taken,
    /// 416: the range lies behind the end.
    Range,
    /// None came, or none that was the store's.
    NoAnswer(Error),
    Error(Error),
}

fn no_answer(what: &str, within: Duration) -> Trouble {
    let text = format!("cannot {what}: no answer from the store within {} s", within.as_secs_f32());
    Trouble::NoAnswer(
        Error::new(Kind::Repository, text)
            .transient()
            .hint("See whether the store works; check the network, and its endpoint."),
    )
}

impl Trouble {
    fn into_error(self) -> Error {
        let plain = |text: &str| Error::new(Kind::Repository, text).transient();
        match self {
            Trouble::Error(error) | Trouble::NotFound(error) | Trouble::NoAnswer(error) => error,
            Trouble::Absent => plain("the store answered that it does not exist"),
            Trouble::Taken => plain("the store answered with a conflict"),
            Trouble::Range => plain("the store refused the range"),
        }
    }
}

/// Error codes of S3, Azure and GCS (in the answer's body) for what passes by itself although the status is in the 400s.
const PASSING: [&str; 7] = [
    "RequestTimeout",
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
    "ExpiredToken",
    "OperationAborted",
    "SlowDown",
];

/// What stands in the URLs of the services that give a virtual machine its credentials: they are asked where the environment has none.
const METADATA: [&str; 4] =
    ["169.254.169.254", "metadata.google.internal", "/latest/api/token", "/latest/meta-data/iam/"];

const NO_CREDENTIALS: &str = "No credentials are in the environment, and this machine has none of its own: set AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY (or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN), GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_KEY. \
    ~/.aws is not read.";

/// Whether no credentials were found. Of a run that had some that may pass; where they never were, somebody has to give them.
pub fn lacks_credentials(error: &Error) -> bool {
    error.advice() == Some(NO_CREDENTIALS)
}

fn trouble(what: &str, error: object_store::Error) -> Trouble {
    let text = flatten(&error);
    let status = status_of(&text);
    let has = |code: &str| text.contains(code);
    let broken = Error::new(Kind::Repository, format!("cannot {what}: {}", shorten(&text)));
    if METADATA.iter().any(|service| has(service)) {
        // Whatever it answered, it speaks of credentials, and not of the store.
        return Trouble::Error(broken.transient().hint(NO_CREDENTIALS));
    }
    if has("NoSuchBucket") || has("ContainerNotFound") || has("The specified bucket does not exist") {
        // The store's own words may be too far behind to be shown.
        let gone = Error::new(Kind::Repository, format!("cannot {what}: there is no such bucket (NoSuchBucket)"));
        return Trouble::Error(
            gone.hint("Make the bucket, or correct the repository URL, the endpoint and the region."),
        );
    }
    let absent = has("NoSuchKey") || has("BlobNotFound");
    if matches!(error, object_store::Error::NotFound { .. }) || status == Some(404) {
        return if absent { Trouble::Absent } else { Trouble::NotFound(broken) };
    }
    let conflict =
        matches!(error, object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. });
    if conflict || matches!(status, Some(409 | 412)) {
        return Trouble::Taken;
    }
    Trouble::Error(match status {
        Some(416) => return Trouble::Range,
        _ if PASSING.iter().any(|code| has(code)) => broken.transient(),
        Some(401) => broken.hint("The store does not know these credentials: check them in the environment."),
        Some(403) if has("RequestTimeTooSkewed") => {
            broken.hint("Set this machine's clock: it is too far from the store's.")
        }
        Some(403) if has("InvalidAccessKeyId") || has("SignatureDoesNotMatch") || has("AuthenticationFailed") => {
            broken.hint("The store does not accept these credentials: check the access key and its secret.")
        }
        Some(403) => {
            broken.hint("Allow these credentials to put, get and list objects of the bucket (delete for expiry).")
        }
        Some(300..=399) => {
            broken.hint("Set the region (AWS_REGION) and the endpoint (AWS_ENDPOINT_URL) of the bucket.")
        }
        Some(501) => {
            broken.hint("This store does not support what walrecv needs: puts that fail when the object exists.")
        }
        Some(408 | 425 | 429) => broken.transient(),
        Some(400..=499) => {
            broken.hint("The store does not accept the request: check the repository URL and the endpoint.")
        }
        Some(_) => broken.transient(),
        None if has("redirect") => {
            broken.hint("Set the region (AWS_REGION) and the endpoint (AWS_ENDPOINT_URL) of the bucket.")
        }
        None => match error {
            object_store::Error::Generic { .. } | object_store::Error::JoinError { .. } => {
                return Trouble::NoAnswer(broken.transient().hint("Check the network, and the endpoint of the store."));
            }
            _ => broken,
        },
    })
}

/// The error with all its causes in one line, each once: the crate repeats most causes in the text of what they caused.
fn flatten(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// For people: without the XML that is longer than any message.
fn shorten(text: &str) -> String {
    const MOST: usize = 400;
    match text.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// The HTTP status that an error speaks of. The crate keeps the type that holds it to itself, so its text has to do; the store suite
/// checks this against a scripted server.
fn status_of(text: &str) -> Option<u16> {
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_found_in_the_text() {
        let text = "Generic S3 error: Error performing PUT http://x/y in 1ms - Server returned non-2xx status code: 503 Service \
                    Unavailable: <Error/>";
        assert_eq!(status_of(text), Some(503));
        assert_eq!(status_of("connection refused"), None);
        assert_eq!(status_of("status code: 5"), None);
    }

    #[test]
    fn what_the_machine_s_own_service_answers_is_about_credentials() {
        let asked = |text: &str| {
            let error = object_store::Error::Generic { store: "S3", source: text.into() };
            trouble("read x", error).into_error()
        };
        for answer in ["status code: 403 Forbidden", "status code: 404 Not Found", "connection refused"] {
            for url in ["http://169.254.169.254/latest/api/token", "http://127.0.0.1:1/latest/meta-data/iam/x"] {
                let error = asked(&format!("Error performing PUT {url} in 1ms - {answer}"));
                assert!(lacks_credentials(&error) && error.is_transient(), "{error:?}");
            }
            assert!(!lacks_credentials(&asked(&format!("Error performing GET http://s3.example/b/k - {answer}"))));
        }
    }

    #[test]
    fn large_requests_get_more_time() {
        let limits = Timeouts::default();
        assert_eq!(limits.of(0), Duration::from_secs(15));
        assert_eq!(limits.of(16 << 20), Duration::from_secs(15 + 64));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        assert!(shorten(&"é".repeat(1000)).chars().count() == 401);
    }
}
