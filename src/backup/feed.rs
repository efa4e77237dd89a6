//! From the socket to the outbox, on the one thread that reads: what arrives is looked at where it was read.

use std::time::{Duration, Instant};

use super::intake::{Files, Intake, Received};
use super::sealing::Sealing;
use super::{BackupOptions, Progress};
use crate::error::{Error, Kind, Result};
use crate::net::Connection;
use crate::pg::{Lsn, TimelineId};
use crate::wire::command::BackupEvent;

/// How often copying is told.
const TELL: Duration = Duration::from_millis(200);

/// A base backup that has begun, and who takes it.
pub struct Feed {
    pub connection: Connection,
    pub intake: Intake,
    pub options: BackupOptions,
    /// Bytes, as the server estimates.
    pub total: Option<u64>,
}

/// All of it has come.
pub struct Fed {
    /// Ready for the next command.
    pub connection: Connection,
    pub stop: Lsn,
    pub stop_timeline: TimelineId,
    /// Bytes that the server sent.
    pub read: u64,
    pub received: Received,
    pub files: Files,
    pub sealing: Sealing,
}

impl Feed {
    /// Gives the intake what comes until the server has said that the backup is complete. Between two messages this computes, and waits for whoever stores.
    pub async fn run(self) -> Result<Fed> {
        let Feed { mut connection, mut intake, options, total } = self;
        // What the server compresses it counts itself, before it does.
        let counted = options.server_compression.is_some();
        let (mut read, mut done, mut end, mut told) = (0, 0, None, Instant::now());
        options.tell(Progress::Copying { done, total });
        loop {
            let event = connection.next_backup_event().await?;
            match &event {
                BackupEvent::Data(bytes) => read += bytes.len() as u64,
                BackupEvent::Progress { bytes_done } if counted => done = *bytes_done,
                BackupEvent::End { lsn, timeline } => end = Some((*lsn, *timeline)),
                _ => {}
            }
            if !counted {
                done = read;
            }
            if told.elapsed() >= TELL {
                options.tell(Progress::Copying { done, total });
                told = Instant::now();
            }
            let complete = event == BackupEvent::Complete;
            intake.event(event)?;
            if complete {
                break;
            }
        }
        options.tell(Progress::Copying { done, total });
        let (received, files, sealing) = intake.finish()?;
        let (stop, stop_timeline) =
            end.ok_or_else(|| Error::new(Kind::Server, "the server ended a base backup without saying where"))?;
        Ok(Fed { connection, stop, stop_timeline, read, received, files, sealing })
    }
}
