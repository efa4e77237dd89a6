//! Base backups over a connection: the manifest of an earlier one goes up, the new one comes down.

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::connection::{Activity, Connection};
use super::link::{Link, LinkError};
use crate::error::{Error, Result};
use crate::wire::base_backup::BaseBackup;
use crate::wire::command::{BackupEvent, BaseBackupOptions};
use crate::wire::error::{ServerError, WireError};
use crate::wire::upload_manifest::{CHUNK, UploadManifest};

const UPLOAD: &str = "UPLOAD_MANIFEST";
const BACKUP: &str = "BASE_BACKUP";

/// A command that the server refused; the connection takes the next one.
#[derive(Debug)]
pub struct Refusal {
    pub server: Box<ServerError>,
    /// The same for people.
    pub error: Error,
}

/// How an upload ended; in every case the connection takes the next command.
#[derive(Debug)]
pub enum Upload {
    Taken,
    Refused(Refusal),
    /// What was to be sent could not be had, and so the server was told to forget it.
    GivenUp(Error),
}

impl Connection {
    /// Sends BASE_BACKUP in this version's grammar; events follow from `next_backup_event`.
    pub async fn base_backup(&mut self, options: &BaseBackupOptions) -> Result<()> {
        self.idle(BACKUP)?;
        let begun = BaseBackup::begin(options, self.version(), &mut self.link.out);
        self.activity = Activity::Backup(self.typed(begun)?);
        Ok(())
    }

    /// The next event of the base backup. Cancel safe.
    pub async fn next_backup_event(&mut self) -> Result<BackupEvent> {
        self.backup_event().await.map_err(|error| self.explain(error, BACKUP))
    }

    /// Sends BASE_BACKUP and waits for its first event, or for the server's refusal.
    pub async fn begin_base_backup(&mut self, options: &BaseBackupOptions) -> Result<Result<BackupEvent, Refusal>> {
        self.base_backup(options).await?;
        match self.backup_event().await {
            Ok(event) => Ok(Ok(event)),
            Err(error) => self.refusal(error, BACKUP).map(Err),
        }
    }

    async fn backup_event(&mut self) -> Result<BackupEvent, LinkError> {
        let Activity::Backup(backup) = &mut self.activity else {
            return Err(LinkError::Misuse("no base backup is running"));
        };
        let outcome = self.link.event(backup).await;
        match &outcome {
            Ok(_) if backup.is_done() => self.activity = Activity::Idle,
            Ok(_) => {}
            Err(error) => self.after(error),
        }
        outcome
    }

    /// Gives the server (17+) the manifest of an earlier backup, for the next BASE_BACKUP with INCREMENTAL in this session. Memory: one of `parts` and
    /// a little more.
    pub async fn upload_manifest(&mut self, parts: impl Stream<Item = Result<Bytes>>) -> Result<Upload> {
        self.idle(UPLOAD)?;
        let begun = UploadManifest::begin(self.version(), &mut self.link.out);
        let mut machine = self.typed(begun)?;
        self.activity = Activity::Command;
        let mut given_up = None;
        let sent = send(&mut self.link, &mut machine, parts, &mut given_up).await;
        self.activity = Activity::Idle;
        match (sent, given_up) {
            (Ok(()), None) => Ok(Upload::Taken),
            (Ok(()), Some(why)) => Ok(Upload::GivenUp(why)),
            (Err(error), why) => {
                self.after(&error);
                let refusal = self.refusal(error, UPLOAD)?;
                Ok(why.map_or(Upload::Refused(refusal), Upload::GivenUp))
            }
        }
    }

    /// What the server refused, where it did and the session goes on; else the error.
    fn refusal(&self, error: LinkError, command: &'static str) -> Result<Refusal> {
        match &error {
            LinkError::Wire(WireError::Server { error: server, ready: true }) => {
                let server = server.clone();
                Ok(Refusal { server, error: self.explain(error, command) })
            }
            _ => Err(self.explain(error, command)),
        }
    }
}

/// From the server's readiness to its last word. The server may refuse at any byte; what it has not taken then is not sent.
async fn send(
    link: &mut Link,
    machine: &mut UploadManifest,
    parts: impl Stream<Item = Result<Bytes>>,
    given_up: &mut Option<Error>,
) -> Result<(), LinkError> {
    link.event(machine).await?;
    let mut parts = std::pin::pin!(parts);
    while let Some(part) = parts.next().await {
        let part = match part {
            Ok(part) => part,
            Err(error) => {
                *given_up = Some(error);
                machine.fail(&mut link.out);
                break;
            }
        };
        for chunk in part.chunks(CHUNK) {
            machine.data(chunk, &mut link.out);
            link.deliver(machine).await?;
        }
        if machine.is_refused() {
            break;
        }
    }
    machine.end(&mut link.out);
    link.event(machine).await.map(|_| ())
}
