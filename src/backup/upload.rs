//! Storing objects: each created once, a few at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result};
use crate::repo::{Found, Repository};
use crate::seal::opener::read_header;

/// Objects that are being put. One more waits to be handed over and one fills, so that a backup holds at most five packs in memory.
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
pub async fn store_all(repo: &Repository, mut uploads: Inbox, limit: std::time::Duration) -> Result<u64> {
    let mut running = FuturesUnordered::new();
    let (mut stored, mut open) = (0, true);
    while open || !running.is_empty() {
        tokio::select! {
            next = uploads.from.recv(), if open => match next {
                Some(upload) => running.push(upload.put(repo, limit)),
                None => open = false,
            },
            Some(done) = running.next() => {
                stored += done?;
                uploads.leave();
            }
        }
    }
    Ok(stored)
}

/// A channel for [`store_all`].
pub fn channel() -> (Outbox, Inbox) {
    let (to, from) = mpsc::unbounded_channel();
    let room = Arc::new(Room { state: Mutex::new(State { under_way: 0, closed: false }), left: Condvar::new() });
    (Outbox { to, room: room.clone() }, Inbox { from, room })
}

/// How many objects are under way. A channel's own limit cannot be waited for by a thread that has tasks of its own.
struct Room {
    state: Mutex<State>,
    left: Condvar,
}

struct State {
    under_way: usize,
    closed: bool,
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where finished objects are handed over; blocks while too many are under way.
#[derive(Clone)]
pub struct Outbox {
    to: mpsc::UnboundedSender<Upload>,
    room: Arc<Room>,
}

impl Outbox {
    /// Only from threads that may block.
    pub fn send(&self, upload: Upload) -> Result<()> {
        let ended = || Error::new(Kind::Interrupted, "storing objects was ended");
        let mut state = self.room.lock();
        while state.under_way >= IN_FLIGHT && !state.closed {
            state = self.room.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(ended());
        }
        state.under_way += 1;
        drop(state);
        self.to.send(upload).map_err(|_| ended())
    }
}

/// Where they come out.
pub struct Inbox {
    from: mpsc::UnboundedReceiver<Upload>,
    room: Arc<Room>,
}

impl Inbox {
    /// The next one, whose place is free again at once; `None` when no other comes.
    #[cfg(test)]
    pub fn blocking_recv(&mut self) -> Option<Upload> {
        let next = self.from.blocking_recv()?;
        self.leave();
        Some(next)
    }

    /// One of those that were handed over needs no memory any more.
    fn leave(&self) {
        self.room.lock().under_way -= 1;
        self.room.left.notify_one();
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.room.lock().closed = true;
        self.room.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel as words};
    use std::time::Duration;

    use super::*;

    fn upload(number: usize) -> Upload {
        Upload { name: number.to_string(), salt: [0; 32], bytes: Vec::new() }
    }

    #[test]
    fn whoever_hands_over_waits_while_others_do_and_learns_of_the_end() {
        let (outbox, mut inbox) = channel();
        let (tell, told) = words();
        let sending = std::thread::spawn(move || {
            for number in 0.. {
                let sent = outbox.send(upload(number));
                let over = sent.is_err();
                tell.send(sent.map(|()| number)).unwrap();
                if over {
                    return;
                }
            }
        });
        let next = |limit| told.recv_timeout(Duration::from_millis(limit));
        for number in 0..IN_FLIGHT {
            assert_eq!(next(10_000).unwrap().unwrap(), number);
        }
        assert_eq!(next(50).err(), Some(RecvTimeoutError::Timeout), "so many are under way");
        assert_eq!(inbox.blocking_recv().unwrap().name, "0");
        assert_eq!(next(10_000).unwrap().unwrap(), IN_FLIGHT);
        assert_eq!(next(50).err(), Some(RecvTimeoutError::Timeout));
        drop(inbox);
        assert_eq!(next(10_000).unwrap().unwrap_err().kind(), Kind::Interrupted);
        sending.join().unwrap();
    }

    #[test]
    fn what_was_handed_over_comes_out_after_the_last_outbox_went() {
        let (outbox, mut inbox) = channel();
        outbox.send(upload(7)).unwrap();
        drop(outbox);
        assert_eq!(inbox.blocking_recv().unwrap().name, "7");
        assert!(inbox.blocking_recv().is_none());
    }
}
