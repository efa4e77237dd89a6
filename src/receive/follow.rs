//! Timelines: their history files are stored before their first segment, and one that differs from what is stored ends the run.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::observe::{Observer, ReceiveEvent};
use super::run::Run;
use super::server::{self, Server, answered};
use super::{GIVE_UP, prepare};
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::Connection;
use crate::pg::{Lsn, TimelineHistory, TimelineId};

impl Run {
    /// The timeline has ended: everything of it becomes durable, then the next one's history, and only then its first byte is asked for. `false`: the
    /// repository takes nothing; where the timeline ends will be found again.
    pub(super) async fn follow(
        &mut self,
        archive: &Archive,
        server: &mut Server,
        next: TimelineId,
        switch_point: Lsn,
    ) -> Result<bool> {
        let Some(pipeline) = &self.pipeline else { return Ok(true) };
        let (from, received) = (pipeline.timeline(), pipeline.received());
        if received < switch_point {
            let text =
                format!("the server ended timeline {from} at {received}, before {switch_point}, where it left it");
            return Err(Error::new(Kind::Corrupt, text)
                .hint("Going on would leave a hole: check the server and the network path, then start again."));
        }
        if !self.bring_home(true).await? {
            return Ok(false);
        }
        self.demand_known(server, next).await?;
        self.observer.tell(ReceiveEvent::TimelineSwitch { from, to: next, at: switch_point });
        let writer = self.place.writer.clone();
        let history = self.followed.store_next(archive, &writer, &mut server.stream, next, &self.observer).await?;
        if next > server.identity.timeline {
            server.history = history;
            server.identity = answered("IDENTIFY_SYSTEM", server.stream.identify_system()).await?;
        }
        let start = switch_point.align_down(archive.names.segment_size.bytes());
        let inventory = archive.newest(|_| start).await?;
        let stored = prepare::stored(archive, &inventory, next, start, &self.observer).await?;
        self.begin(archive, server, next, start, stored)?;
        Ok(true)
    }
}

impl Run {
    /// An error where a server is on a timeline that is not to be followed: one that it began itself, or somebody else since the newest that is wanted.
    pub(super) async fn demand_known(&self, server: &mut Server, timeline: TimelineId) -> Result<()> {
        let Some(newest) = self.options.newest.filter(|newest| timeline > *newest) else { return Ok(()) };
        if answered("SHOW", server.stream.is_standby()).await? {
            return Ok(());
        }
        let text = format!(
            "the server became a primary on timeline {timeline}, and only WAL up to timeline {newest} is wanted: nothing of the new one is stored"
        );
        Err(Error::new(Kind::Server, text).hint("Take the backup again, of the server whose timeline is to go on."))
    }
}

/// Which histories of this server are known to be stored.
#[derive(Default)]
pub struct Followed(BTreeSet<TimelineId>);

impl Followed {
    /// Stores the histories of the server's timeline and of all that lead to it, as far as the server has them.
    pub async fn store_all(
        &mut self,
        archive: &Archive,
        writer: &WriterRing,
        server: &mut Server,
        observer: &Observer,
    ) -> Result<()> {
        if let Some(file) = server.history_file.take() {
            self.store(archive, writer, server.identity.timeline, file.content, observer).await?;
        }
        let ancestors: Vec<TimelineId> = server.history.ancestors.iter().map(|a| a.timeline).collect();
        for timeline in ancestors {
            if timeline.0 == 1 || self.0.contains(&timeline) {
                continue;
            }
            if let Some(file) = server::answered("TIMELINE_HISTORY", server.stream.timeline_history(timeline)).await? {
                self.store(archive, writer, timeline, file.content, observer).await?;
            }
        }
        Ok(())
    }

    /// Fetches and stores the history of the timeline that comes next; without it nothing of that timeline may be stored.
    pub async fn store_next(
        &mut self,
        archive: &Archive,
        writer: &WriterRing,
        connection: &mut Connection,
        timeline: TimelineId,
        observer: &Observer,
    ) -> Result<TimelineHistory> {
        let file =
            server::answered("TIMELINE_HISTORY", connection.timeline_history(timeline)).await?.ok_or_else(|| {
                Error::new(Kind::Server, format!("the server has no history file of its timeline {timeline}"))
                    .transient()
            })?;
        let history = server::parse_history(timeline, &file.content)?;
        self.store(archive, writer, timeline, file.content, observer).await?;
        Ok(history)
    }

    async fn store(
        &mut self,
        archive: &Archive,
        writer: &WriterRing,
        timeline: TimelineId,
        content: Bytes,
        observer: &Observer,
    ) -> Result<()> {
        if !self.0.contains(&timeline) {
            archive.put_history(&writer.fresh()?, timeline, &content, GIVE_UP).await?;
            self.0.insert(timeline);
            observer.tell(ReceiveEvent::HistoryStored { timeline });
        }
        Ok(())
    }
}
