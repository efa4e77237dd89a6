//! Timeline history files: stored once, the same for everyone.

use std::time::Duration;

use bytes::Bytes;

use super::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineHistory, TimelineId};
use crate::repo::{Found, Put};
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;
use crate::seal::opener::{open_index, read_header};
use crate::seal::sealer::{Compression, seal_index};

impl Archive {
    /// Raw bytes of a history file.
    pub async fn history(&self, timeline: TimelineId) -> Result<Option<Bytes>> {
        let name = self.names.history(timeline);
        let Some(object) = self.repo.get(&name).await? else { return Ok(None) };
        let claims = self.claims(ObjectKind::History, timeline, Lsn(0));
        let content = open_index(&object, &claims, &*self.keys).map_err(|e| refused(&name, e))?;
        Ok(Some(Bytes::from(content)))
    }

    /// The history of a timeline as its file tells it; `None` when no file is stored. One that PostgreSQL would refuse is `Kind::Corrupt`.
    pub async fn parsed_history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let Some(content) = self.history(timeline).await? else { return Ok(None) };
        TimelineHistory::parse(timeline, &content).map(Some).map_err(|e| {
            Error::new(Kind::Corrupt, format!("{}: {e}", self.names.history(timeline)))
                .hint("Compare it with the history file in the pg_wal folder of a server of this timeline.")
        })
    }

    /// Stores a history file once. One that tells the same history is accepted; another one (two servers were promoted to the same
    /// timeline) is `Kind::Diverged` and names both.
    pub async fn put_history(
        &self,
        keys: &WriterKeys,
        timeline: TimelineId,
        content: &[u8],
        give_up: Duration,
    ) -> Result<()> {
        if let Some(stored) = self.history(timeline).await? {
            return self.demand_same(timeline, &stored, content);
        }
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let claims = self.claims(ObjectKind::History, timeline, Lsn(0));
        let sealed = seal_index(keys, claims, salt, Compression::None, content);
        let judge = |head: &[u8]| match read_header(head) {
            Ok((header, _)) if header.salt == salt => Found::Ours,
            // What it says is compared below, when all of it is read.
            Ok((header, _)) if header.claims == claims => Found::Equal,
            _ => Found::Different,
        };
        match self.repo.put_once(&self.names.history(timeline), &sealed.bytes, &judge, give_up).await? {
            Put::Created | Put::Ours => Ok(()),
            Put::Equal => match self.history(timeline).await? {
                Some(stored) => self.demand_same(timeline, &stored, content),
                None => Err(Error::new(Kind::Repository, format!("history of timeline {timeline} was just deleted"))
                    .transient()),
            },
        }
    }

    fn demand_same(&self, timeline: TimelineId, stored: &[u8], new: &[u8]) -> Result<()> {
        let parse = |content: &[u8]| TimelineHistory::parse(timeline, content);
        // The reason in the third column is a comment.
        let same = match (parse(stored), parse(new)) {
            (Ok(stored), Ok(new)) => stored == new,
            _ => stored == new,
        };
        if same {
            return Ok(());
        }
        let show = |content: &[u8]| match parse(content) {
            Ok(history) if history.ancestors.is_empty() => "no ancestors".to_owned(),
            Ok(history) => {
                let forks = history.ancestors.iter().map(|a| format!("{} left at {}", a.timeline, a.switch_point));
                forks.collect::<Vec<_>>().join(", ")
            }
            Err(problem) => problem.to_string(),
        };
        let text = format!(
            "timeline {timeline} is stored with another history: stored in {}: {}; this server: {}",
            self.names.history(timeline),
            show(stored),
            show(new)
        );
        Err(Error::new(Kind::Diverged, text).hint(
            "Two servers were promoted to the same timeline: archive this one under another cluster name, or promote it again.",
        ))
    }
}
