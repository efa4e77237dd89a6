//! What a store must be able to do. Single attempts, no retries: `Repository` decides what an answer means.

use std::ops::Range;
use std::time::{Duration, SystemTime};

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

/// What stands directly below a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// Last components.
    pub folders: Vec<String>,
    pub objects: Vec<Listed>,
}

/// One kind of store. Names are checked before they come here. `None` and an empty listing mean that the store proved the absence: a
/// missing bucket or root directory is an error.
pub trait Backend: Send + Sync {
    /// Creates an object that nobody else created: of several attempts under one name at most one is told `Created`.
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>>;

    /// The whole object, or the bytes of a range (fewer where the object ends).
    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>>;

    /// The whole object. Of one that is longer than `most` bytes nothing is taken into memory: it comes without its bytes, and with its size.
    fn whole<'a>(&'a self, name: &'a str, most: u64) -> BoxFuture<'a, Result<Option<Piece>>> {
        Box::pin(async move {
            let piece = self.read(name, None).await?;
            Ok(piece.map(|piece| if piece.size > most { Piece { bytes: Bytes::new(), ..piece } } else { piece }))
        })
    }

    /// Everything below a prefix, whole or an error, never a part.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>>;

    /// Names of the folders directly below a prefix.
    fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>>;

    /// What stands directly below a prefix, without what is deeper. Stores that can ask for just that do.
    fn children<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Children>> {
        Box::pin(async move {
            let folders = self.folders(prefix).await?;
            let mut objects = self.list(prefix).await?;
            let direct = |name: &str| {
                let rest = if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix) };
                rest.is_some_and(|rest| !rest.trim_start_matches('/').contains('/'))
            };
            objects.retain(|object| direct(&object.name));
            Ok(Children { folders, objects })
        })
    }

    /// Deletes; a missing object is no error.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Makes durable what was found under a name: nothing to do where an object that can be read is durable.
    fn settle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Makes the place itself, where that is a directory.
    fn make_root(&self) -> BoxFuture<'_, Result<()>>;

    /// For how long nothing has been answered, where that is so long that nobody should wait for one object after the other. `None` where it answers, or where that
    /// is not told.
    fn silent_for(&self) -> Option<Duration> {
        None
    }
}
