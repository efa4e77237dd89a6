//! Storing objects: each created once, a few at a time.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result};
use crate::repo::{Found, Repository};
use crate::seal::opener::read_header;

/// Objects being put. One more waits in the channel and one fills, so that a backup holds at most five packs in memory.
const IN_FLIGHT: usize = 3;

/// A sealed object and its name.
#[derive(Clone, Debug)]
pub struct Upload {
    pub name: String,
    pub salt: [u8; 32],
    pub bytes: Vec<Bytes>,
}

impl Upload {
    pub fn len(&self) -> u64 {
        self.bytes.iter().map(|b| b.len() as u64).sum()
    }

    /// Creates the object, or finds that an earlier try has. Names carry random digits: anything else under the name is `Kind::Diverged`.
    pub async fn put(self, repo: &Repository, limit: std::time::Duration) -> Result<u64> {
        let salt = self.salt;
        let judge = move |head: &[u8]| match read_header(head) {
            Ok((header, _)) if header.salt == salt => Found::Ours,
            _ => Found::Different,
        };
        repo.put_once(&self.name, &self.bytes, &judge, limit).await?;
        Ok(self.len())
    }
}

/// Stores what comes until the other side is done; the bytes stored. The first failure ends it, and with it whoever fills the channel.
pub async fn store_all(
    repo: &Repository,
    mut uploads: mpsc::Receiver<Upload>,
    limit: std::time::Duration,
) -> Result<u64> {
    let mut running = FuturesUnordered::new();
    let (mut stored, mut open) = (0, true);
    while open || !running.is_empty() {
        tokio::select! {
            next = uploads.recv(), if open && running.len() < IN_FLIGHT => match next {
                Some(upload) => running.push(upload.put(repo, limit)),
                None => open = false,
            },
            Some(done) = running.next() => stored += done?,
        }
    }
    Ok(stored)
}

/// A channel for [`store_all`].
pub fn channel() -> (Outbox, mpsc::Receiver<Upload>) {
    let (to, from) = mpsc::channel(1);
    (Outbox(to), from)
}

/// Where finished objects are handed over; blocks while too many are under way.
#[derive(Clone)]
pub struct Outbox(mpsc::Sender<Upload>);

impl Outbox {
    /// Only from threads that may block.
    pub fn send(&self, upload: Upload) -> Result<()> {
        self.0.blocking_send(upload).map_err(|_| Error::new(Kind::Interrupted, "storing objects was ended"))
    }
}
