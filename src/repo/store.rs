//! One repository: a local directory or a bucket, through object_store. `put_once` is the only retry loop.

use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;

use crate::error::Result;
use crate::pg::{DurableLsn, Lsn, SystemIdentifier, TimelineId};

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

/// An entry of a listing. Listings come in no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// Shared handle (cheap to clone).
#[derive(Clone)]
pub struct Repository {}

impl Repository {
    /// `file:///path`, `s3://bucket/prefix`, `gs://…`, `az://…`; credentials from the environment through `env`. Reaches nothing yet.
    pub fn open(_url: &str, _env: &dyn Fn(&str) -> Option<String>) -> Result<Repository> {
        todo!()
    }

    pub fn url(&self) -> &str {
        todo!()
    }

    /// The directory of a `file://` repository: where tail files live.
    pub fn local_root(&self) -> Option<&Path> {
        todo!()
    }

    /// Creates `name` once. `judge` is shown the first bytes (up to 8 KiB) of what stands there when the answer is "already exists" or unclear.
    /// Retries with backoff until it is settled or `give_up` has passed; a different object is `Kind::Diverged`.
    pub async fn put_once(
        &self,
        _name: &str,
        _bytes: &[Bytes],
        _judge: &(dyn Fn(&[u8]) -> Found + Send + Sync),
        _give_up: std::time::Duration,
    ) -> Result<Put> {
        todo!()
    }

    /// As `put_once`, and the witness that every byte up to `end` is durable (the caller states that all before it is).
    pub async fn put_wal(
        &self,
        _name: &str,
        _bytes: &[Bytes],
        _judge: &(dyn Fn(&[u8]) -> Found + Send + Sync),
        _give_up: std::time::Duration,
        _claim: (SystemIdentifier, TimelineId, Lsn),
    ) -> Result<DurableLsn> {
        todo!()
    }

    /// `None` only when the store answered that the object does not exist.
    pub async fn get(&self, _name: &str) -> Result<Option<Bytes>> {
        todo!()
    }

    /// The bytes of the range, shorter where the object ends; `None` as for `get`.
    pub async fn get_range(&self, _name: &str, _range: std::ops::Range<u64>) -> Result<Option<Bytes>> {
        todo!()
    }

    /// Everything below a prefix (`a/b` lists `a/b/...`), recursively.
    pub async fn list(&self, _prefix: &str) -> Result<Vec<Listed>> {
        todo!()
    }

    /// Names of the folders directly below a prefix.
    pub async fn folders(&self, _prefix: &str) -> Result<Vec<String>> {
        todo!()
    }

    /// Durable where the store is a local disk; a missing object is no error.
    pub async fn delete(&self, _name: &str) -> Result<()> {
        todo!()
    }
}
