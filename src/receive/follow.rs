//! Timelines: their history files are stored before their first segment, and one that differs from what is stored ends the run.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::observe::{Observer, ReceiveEvent};
use super::salt;
use super::server::{self, Server};
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::Connection;
use crate::pg::{Lsn, TimelineHistory, TimelineId};
use crate::repo::Found;
use crate::seal::header::ObjectKind;
use crate::seal::opener::{open_index, read_header};
use crate::seal::sealer::{Compression, seal_index};

/// After so long an unsettled put is an error that may pass.
const GIVE_UP: std::time::Duration = std::time::Duration::from_secs(10);

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
            if let Some(file) = server.stream.timeline_history(timeline).await? {
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
        let file = connection.timeline_history(timeline).await?.ok_or_else(|| {
            Error::new(Kind::Server, format!("the server has no history file of its timeline {timeline}")).transient()
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
            store(archive, writer, timeline, &content, observer).await?;
            self.0.insert(timeline);
        }
        Ok(())
    }
}

async fn store(
    archive: &Archive,
    writer: &WriterRing,
    timeline: TimelineId,
    content: &Bytes,
    observer: &Observer,
) -> Result<()> {
    if let Some(stored) = archive.history(timeline).await? {
        return if stored == *content { Ok(()) } else { Err(differs(timeline, &stored, content)) };
    }
    let claims = archive.claims(ObjectKind::History, timeline, Lsn(0));
    let sealed = seal_index(&writer.fresh()?, claims, salt::random()?, Compression::None, content);
    let judge = |head: &[u8]| match read_header(head) {
        Ok((header, _)) if header.salt == sealed.header.salt => Found::Ours,
        _ => match open_index(head, &claims, &*archive.keys) {
            Ok(stored) if stored == content[..] => Found::Equal,
            _ => Found::Different,
        },
    };
    archive.repo.put_once(&archive.names.history(timeline), &sealed.bytes, &judge, GIVE_UP).await?;
    observer.tell(ReceiveEvent::HistoryStored { timeline });
    Ok(())
}

fn differs(timeline: TimelineId, stored: &[u8], sent: &[u8]) -> Error {
    let fork = |content: &[u8]| match TimelineHistory::parse(timeline, content) {
        Ok(history) => {
            history.ancestors.last().map_or("nowhere".to_owned(), |a| format!("{}@{}", a.timeline, a.switch_point))
        }
        Err(_) => "an unreadable place".to_owned(),
    };
    let text = format!(
        "timeline {timeline} of this server is not the one that is stored: it forks from {}, the stored one from {}",
        fork(sent),
        fork(stored)
    );
    Error::new(Kind::Diverged, text).hint("Stream this server under a cluster name of its own.")
}
