//! Timelines: their history files are stored before their first segment, and one that differs from what is stored ends the run.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::GIVE_UP;
use super::observe::{Observer, ReceiveEvent};
use super::server::{self, Server};
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::Connection;
use crate::pg::{TimelineHistory, TimelineId};

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
