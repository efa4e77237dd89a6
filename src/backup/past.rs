//! Whether the server has the past that a parent was taken in: only then are pages that it does not send the parent's.
//!
//! The server's summaries of WAL know positions alone. One that was set back to a snapshot, and has since come by that of the parent with other WAL, sends what it
//! changed in its own past, and nothing of what the parent had from the other one. What tells the two apart is the archive: a receiver joins WAL only to what
//! is the same, and what it could not compare lies behind a hole. So the archive has to lead from the parent to the server without one.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::earlier::Earlier;
use super::prepare::Following;
use super::wal::WalWatch;
use crate::archive::Archive;
use crate::archive::path::Path;
use crate::error::{Context, Error, Kind, Result};
use crate::net::Connection;
use crate::pg::{Lsn, TimelineHistory, TimelineId};
use crate::seal::content::manifest::Manifest;

/// Between two questions to a repository that is away.
const AGAIN: Duration = Duration::from_secs(1);

/// The server's past, as far as the archive tells.
pub struct Past<'a> {
    pub watch: &'a dyn WalWatch,
    pub following: &'a mut Following,
}

impl Past<'_> {
    /// The newest of these backups that lies in it.
    pub async fn newest(
        &self,
        archive: &Archive,
        connection: &mut Connection,
        earlier: &mut Earlier<'_>,
    ) -> Result<Option<Manifest>> {
        let path = path(archive, connection, self.following.timeline()).await?;
        while let Some(manifest) = earlier.next().await? {
            if path.holds(manifest.stop_timeline, manifest.stop) {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Whether the archive leads from this backup to where the server was when this one began, as far as it can be seen now. One that is only a little behind
    /// will, unless a hole is known: what it lacks may still be one, which [`demand`] finds before the new backup counts. Any other is waited for. The inner
    /// error is why the server cannot be asked for what has changed since.
    pub async fn leads_from(&mut self, archive: &Archive, parent: &Manifest) -> Result<Result<(), String>> {
        let (timeline, needed) = (self.following.timeline(), self.following.needed());
        let end = reach(self.watch, timeline, parent).await?;
        if end.is_some_and(|end| end >= needed) {
            return Ok(Ok(()));
        }
        let near = |end: Lsn| {
            archive.names.segment_size.segment_of(end).next() >= archive.names.segment_size.segment_of(needed)
        };
        if end.is_some_and(near) && !has_hole(archive, timeline, parent).await {
            return Ok(Ok(()));
        }
        self.following.until_seen(self.watch).await?;
        if reach(self.watch, timeline, parent).await?.is_some_and(|end| end >= needed) {
            return Ok(Ok(()));
        }
        Ok(Err(missing(parent, needed)))
    }
}

fn missing(parent: &Manifest, end: Lsn) -> String {
    format!("not all WAL from backup {} to {end} is stored", parent.id)
}

/// Whether a hole is recorded behind the end of a backup, on the way to a timeline. One that cannot be read may be it.
async fn has_hole(archive: &Archive, timeline: TimelineId, parent: &Manifest) -> bool {
    let recorded = async { archive.barriers_of(archive.barriers().await?, timeline).await };
    recorded.await.map_or(true, |barriers| barriers.iter().any(|barrier| barrier.to().1 > parent.stop))
}

/// The way to a server's timeline.
async fn path(archive: &Archive, connection: &mut Connection, timeline: TimelineId) -> Result<Path> {
    if timeline <= TimelineId(1) {
        return Ok(Path::of(&TimelineHistory::root(timeline)));
    }
    let history = match connection.timeline_history(timeline).await? {
        Some(file) => {
            let invalid = |e| Error::new(Kind::Corrupt, "the server's history file is invalid").caused_by(e);
            Some(TimelineHistory::parse(timeline, &file.content).map_err(invalid)?)
        }
        // Some copied servers lack it.
        None => archive.parsed_history(timeline).await?,
    };
    Ok(Path::of(&history.unwrap_or_else(|| TimelineHistory::root(timeline))))
}

/// How far the archive goes on from the end of a backup without a hole, on the way to a timeline.
async fn reach(watch: &dyn WalWatch, timeline: TimelineId, parent: &Manifest) -> Result<Option<Lsn>> {
    // From the byte before: perhaps nothing has been written at its end yet.
    let from = Lsn(parent.stop.0.saturating_sub(1));
    let end = watch.durable_end(timeline, from).await;
    end.context(format_args!("cannot see whether WAL is stored from backup {} on", parent.id))
}

/// The same question at the end, when the archive reaches `stop` and is known to be this server's there: only then a hole can be told from WAL that was on its
/// way. The inner error is why what the server did not send need not be the parent's; without a parent nothing is.
///
/// Errors: a repository that is away for longer than `outage`.
pub async fn demand(
    watch: &dyn WalWatch,
    (timeline, stop): (TimelineId, Lsn),
    parent: Option<&Manifest>,
    outage: Duration,
) -> Result<Result<(), String>> {
    let Some(parent) = parent else { return Ok(Ok(())) };
    let begun = Instant::now();
    let end = loop {
        match reach(watch, timeline, parent).await {
            Err(error) if error.is_transient() && begun.elapsed() < outage => sleep(AGAIN).await,
            answer => break answer?,
        }
    };
    let led = end.is_some_and(|end| end >= stop);
    Ok(if led { Ok(()) } else { Err(missing(parent, stop)) })
}
