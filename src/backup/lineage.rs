//! Whether the WAL in the archive is that of the server that was backed up.
//!
//! A server that was set back to a snapshot writes other WAL at positions which the archive has had since before. The wait for WAL is over at once then, and the
//! backup could never be recovered. So the server is asked for the WAL in which the backup ends, as soon as it has ended, and what is stored there has to be
//! the same bytes.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep, timeout};

use super::reader::Reader;
use super::wal::WalWatch;
use crate::archive::same::{Agreement, Stretch};
use crate::error::{Context, Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode, Started};
use crate::pg::scan::ScanConfig;
use crate::pg::switch::blanked;
use crate::pg::{Lsn, TimelineId};
use crate::repo::ClusterNames;
use crate::wire::message::StreamEvent;

/// Between two looks at what is stored, or two tries to reach the server.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(2);
/// So many zeros behind the end of a backup stand behind a switch: every page of WAL begins with a header.
const ZEROS: usize = 32 << 10;
/// How long the server may take to send at most 16 MiB, and to end that.
const SENDING: Duration = Duration::from_secs(60);
const ENDING: Duration = Duration::from_secs(1);

/// The server that was backed up.
pub struct Origin {
    pub reader: Reader,
    pub server: Conninfo,
    pub names: ClusterNames,
    /// The end of the backup.
    pub timeline: TimelineId,
    pub stop: Lsn,
}

impl Origin {
    /// Returns when what is stored up to the end of the backup is known to be this server's; it has reached that position. `sent` is what
    /// [`Origin::ask_for`] gave.
    ///
    /// Errors: other WAL is `Kind::Diverged`; what still cannot be compared when the server has sent nothing new for `patience` `Kind::Failed`; a server that does
    /// not answer for so long is its own error.
    pub async fn demand(&self, watch: &dyn WalWatch, mut sent: Stretch, patience: Duration) -> Result<()> {
        let mut moved = Instant::now();
        let (mut pause, mut doubted) = (FIRST_PAUSE, false);
        loop {
            let end_of_object = self.object_at(sent.start).1;
            let found = match watch.agrees(&sent, self.stop.min(end_of_object)).await {
                Err(error) if error.is_transient() && moved.elapsed() < patience => {
                    tracing::warn!("cannot compare what is stored: {error}; looking again");
                    Agreement::Unknown
                }
                found => found.context("cannot compare the stored WAL with the server's")?,
            };
            match found {
                Agreement::Same => return Ok(()),
                Agreement::Below(start) => {
                    sent = self.ask_for_object(self.object_at(start), None, patience).await?;
                    continue;
                }
                Agreement::Differs(name) if doubted => return Err(self.other(&format!("{name} holds other WAL"))),
                // A bit that flipped on the way is no other history.
                Agreement::Differs(_) => doubted = true,
                Agreement::Unknown if moved.elapsed() >= patience => return Err(self.unknown(sent.end())),
                Agreement::Unknown => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE);
                }
            }
            if doubted || sent.end() < end_of_object {
                let end = sent.end();
                sent = self.ask_for_object(self.object_at(sent.start), None, patience).await?;
                if sent.end() > end {
                    moved = Instant::now();
                }
            }
        }
    }

    /// From where to where the object reaches that holds the byte at `start`.
    fn object_at(&self, start: Lsn) -> (Lsn, Lsn) {
        Stretch::around(start + 1, self.names.segment_size)
    }

    fn other(&self, what: &str) -> Error {
        let text = format!(
            "the WAL in the archive at {} of timeline {} is not known to be that of this server: {what}",
            self.stop, self.timeline
        );
        Error::new(Kind::Diverged, text).hint(
            "A server that was set back to an earlier state needs an archive of its own (another cluster name); a standby that lags has to catch up first.",
        )
    }

    /// Nothing speaks against the archive, and nothing for it.
    fn unknown(&self, end: Lsn) -> Error {
        let text = format!(
            "the WAL in the archive at {} of timeline {} cannot be compared with this server's, which ends at {end}",
            self.stop, self.timeline
        );
        Error::new(Kind::Failed, text).hint(
            "Take the backup again when the server's WAL has come so far; a server that was set back needs an archive of its own (another cluster name).",
        )
    }

    /// The server's WAL around the end of the backup; tried for so long where the server goes away. `connection` is the one that the backup came by: asked at
    /// once, the server still has that WAL.
    pub async fn ask_for(&self, connection: Option<Connection>, patience: Duration) -> Result<Stretch> {
        let object = Stretch::around(self.stop, self.names.segment_size);
        self.ask_for_object(object, connection, patience).await
    }

    async fn ask_for_object(
        &self,
        object: (Lsn, Lsn),
        mut connection: Option<Connection>,
        patience: Duration,
    ) -> Result<Stretch> {
        let begun = Instant::now();
        loop {
            match self.ask(object, connection.take()).await {
                Err(error) if error.is_transient() && begun.elapsed() < patience => {
                    tracing::warn!("cannot read the server's WAL: {error}; trying again");
                    sleep(PAUSE).await;
                }
                sent => return sent.context("cannot compare the stored WAL with the server's"),
            }
        }
    }

    async fn ask(&self, object: (Lsn, Lsn), connection: Option<Connection>) -> Result<Stretch> {
        let (server, timeline, stop) = (self.server.clone(), self.timeline, self.stop);
        let (system, segment_size) = (self.names.system, self.names.segment_size);
        // What was assumed and differs is asked for.
        let assume = connection.is_some();
        let bytes = self.reader.run(async move {
            let mut connection = match connection {
                Some(connection) => connection,
                None => Connection::connect(&server, Mode::Physical, "").await?,
            };
            let late = |_| Error::new(Kind::Server, format!("the server sends no WAL up to {stop}")).transient();
            let read = read(&mut connection, timeline, stop, object, assume);
            let (bytes, zeros) = timeout(SENDING, read).await.map_err(late)??;
            let config = ScanConfig { version: connection.version(), system, timeline, segment_size };
            if connection.end_stream(ENDING).await.is_ok() {
                connection.close().await;
            }
            // A standby may have something else there than is stored.
            let stored = match blanked(config, object.0, &bytes) {
                Cow::Owned(blanked) => Some(Bytes::from(blanked)),
                Cow::Borrowed(_) => None,
            };
            Ok((stored.unwrap_or(bytes), zeros))
        });
        let (bytes, zeros) = bytes.await?;
        Ok(Stretch { timeline, start: object.0, bytes, zeros })
    }
}

/// What the server has of an object, which is all of it where the backup has switched to the next segment. With `assume` what follows on a switch is not
/// waited for: how many zeros that is.
async fn read(
    connection: &mut Connection,
    timeline: TimelineId,
    stop: Lsn,
    (start, end): (Lsn, Lsn),
    assume: bool,
) -> Result<(Bytes, u64)> {
    let mut bytes = BytesMut::new();
    // No status is sent: a walsender that was told no position counts as nobody's synchronous standby.
    if let Started::NextTimeline { .. } = connection.start_replication(None, start, timeline).await? {
        return Ok((bytes.freeze(), 0));
    }
    loop {
        let (known, more) = match connection.next_event().await? {
            StreamEvent::Data { wal_end, bytes: sent, .. } => (wal_end, sent),
            StreamEvent::Keepalive { wal_end, .. } => (wal_end, Bytes::new()),
            StreamEvent::EndOfTimeline { .. } | StreamEvent::Ended { .. } => {
                return Ok((bytes.freeze(), 0));
            }
        };
        let room = end.since(start) as usize - bytes.len();
        bytes.extend_from_slice(more.get(..room).unwrap_or(&more));
        let position = start + bytes.len() as u64;
        if position >= end || position >= stop && position >= known {
            return Ok((bytes.freeze(), 0));
        }
        let behind = bytes.get(stop.since(start) as usize..).unwrap_or_default();
        let last = behind.len().checked_sub(ZEROS).and_then(|from| behind.get(from..));
        if assume && known >= end && last.is_some_and(|last| last.iter().all(|byte| *byte == 0)) {
            return Ok((bytes.freeze(), end.since(position)));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;
    use crate::pg::{SegmentSize, SystemIdentifier};

    struct Finds(Agreement);

    impl WalWatch for Finds {
        fn durable_end(&self, _: TimelineId, _: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
            Box::pin(async { Ok(None) })
        }

        fn agrees<'a>(&'a self, _: &'a Stretch, _: Lsn) -> BoxFuture<'a, Result<Agreement>> {
            Box::pin(async { Ok(self.0.clone()) })
        }
    }

    /// Exit code 13 is for WAL that was seen to be another history's.
    #[tokio::test]
    async fn what_cannot_be_compared_is_no_other_history() {
        let origin = Origin {
            reader: Reader::start().unwrap(),
            server: Conninfo::parse("host=/nowhere user=u", &|_| None).unwrap(),
            names: ClusterNames {
                cluster: "main".into(),
                system: SystemIdentifier(7),
                segment_size: SegmentSize::new(1 << 20).unwrap(),
            },
            timeline: TimelineId(1),
            stop: Lsn(0x0300_1000),
        };
        let start = origin.object_at(origin.stop).0;
        let sent = Stretch { timeline: origin.timeline, start, bytes: vec![0; 1 << 20].into(), zeros: 0 };
        let demand = async |found| origin.demand(&Finds(found), sent.clone(), Duration::ZERO).await;
        demand(Agreement::Same).await.unwrap();
        let error = demand(Agreement::Unknown).await.unwrap_err();
        assert!(error.kind() == Kind::Failed && error.advice().is_some(), "{error}");
        assert!(error.to_string().contains("cannot be compared"), "{error}");
    }
}
