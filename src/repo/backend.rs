//! What a store must be able to do. Single attempts, no retries: `Repository` decides what an answer means.

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::Result;

/// What one attempt to create an object ended with, when the store answered clearly. Anything unclear is a transient error, a refusal
/// that will not pass a permanent one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Stored durably, now, by this request.
    Created,
    /// Something may stand there already, or another request is under way: a question.
    Taken,
}

/// Bytes of an object, and how long the whole object is.
#[derive(Clone, Debug)]
pub struct Piece {
    pub bytes: Bytes,
    pub size: u64,
    pub modified: SystemTime,
}

/// An entry of a listing. Listings come in no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// One kind of store. Names are checked before they come here. `None` and an empty listing mean that the store proved the absence: a
/// missing bucket or root directory is an error.
pub trait Backend: Send + Sync {
    /// Creates an object that nobody else created: of several attempts under one name at most one is told `Created`.
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>>;

    /// The whole object, or the bytes of a range (fewer where the object ends).
    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>>;

    /// Everything below a prefix, whole or an error, never a part.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>>;

    /// Names of the folders directly below a prefix.
    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>>;

    /// Deletes; a missing object is no error.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Makes durable what was found under a name: nothing to do where an object that can be read is durable.
    fn settle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Makes the place itself, where that is a directory.
    fn make_root(&self) -> BoxFuture<'_, Result<()>>;
}
