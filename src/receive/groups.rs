//! Group summaries, written beside the stream: of groups that this run has filled, and of those that earlier runs left without one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc::UnboundedReceiver;

use super::GIVE_UP;
use super::index::{Feed, Note};
use super::observe::Observer;
use crate::archive::Archive;
use crate::backoff::Backoff;
use crate::error::Result;
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::repo::WalGroup;

/// Groups whose summary is looked for at the same time.
const AT_ONCE: usize = 4;

/// What there is to do.
#[derive(Debug)]
pub enum Work {
    /// What earlier runs stored: groups below `start` on this timeline, and all but the last of any other, are full.
    Began { timeline: TimelineId, start: Lsn },
    /// All of it is stored and acknowledged.
    Ended(WalGroup),
}

/// The task that writes them, one after the other.
pub struct Groups {
    archive: Archive,
    writer: Arc<WriterRing>,
    observer: Observer,
    feed: Feed,
    /// Earlier groups were looked through.
    looked: bool,
}

impl Groups {
    pub fn new(archive: Archive, writer: Arc<WriterRing>, observer: Observer, feed: Feed) -> Groups {
        Groups { archive, writer, observer, feed, looked: false }
    }

    /// Works until the other end is gone. What cannot be done now is tried again for as long as it may pass.
    pub async fn run(mut self, mut work: UnboundedReceiver<Work>) {
        let mut queue = VecDeque::new();
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60), 0);
        loop {
            while let Ok(more) = work.try_recv() {
                queue.push_back(more);
            }
            let Some(next) = queue.front() else {
                match work.recv().await {
                    Some(next) => queue.push_back(next),
                    None => return,
                }
                continue;
            };
            match self.attempt(next).await {
                Err(error) if error.is_transient() => {
                    tracing::info!("group summaries are behind: {error}");
                    tokio::time::sleep(backoff.next_delay()).await;
                    continue;
                }
                Err(error) => self.observer.warn(format!("a group summary is not written: {error}")),
                Ok(()) => backoff.reset(),
            }
            queue.pop_front();
        }
    }

    async fn attempt(&mut self, work: &Work) -> Result<()> {
        match work {
            Work::Began { .. } if self.looked => Ok(()),
            Work::Began { timeline, start } => {
                self.look_back(*timeline, *start).await?;
                self.looked = true;
                Ok(())
            }
            Work::Ended(group) => self.write(*group).await,
        }
    }

    /// Writes what earlier runs left out.
    async fn look_back(&self, current: TimelineId, start: Lsn) -> Result<()> {
        let folders = self.archive.repo.folders(&format!("{}/wal", self.archive.names.root())).await?;
        let mut full: BTreeSet<WalGroup> = BTreeSet::new();
        for timeline in folders.iter().filter_map(|folder| TimelineId::from_folder(folder)) {
            let mut groups = self.archive.groups(timeline).await?;
            let last = groups.pop();
            match timeline == current {
                true => full.extend(groups.into_iter().chain(last).filter(|group| group.ends_by(start))),
                false => full.extend(groups),
            }
        }
        let has = |group: WalGroup| async move {
            let found = self.archive.repo.head(&self.archive.names.group_summary(group)).await?;
            Ok((group, found.is_some()))
        };
        let looks: Vec<_> = full.into_iter().map(has).collect();
        let looked: Vec<Result<(WalGroup, bool)>> = stream::iter(looks).buffered(AT_ONCE).collect().await;
        for found in looked {
            if let (group, false) = found? {
                self.write(group).await?;
            }
        }
        Ok(())
    }

    async fn write(&self, group: WalGroup) -> Result<()> {
        self.archive.put_group_summary(&self.writer.fresh()?, group, GIVE_UP).await?;
        self.feed.tell(Note::Grouped(group));
        Ok(())
    }
}
