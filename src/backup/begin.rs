//! How a backup begins: what it builds on, the server's first answer, the intent.

use std::sync::Arc;

use jiff::Timestamp;

use super::cache::Shelf;
use super::finish::made_by;
use super::incremental::{self, Asked};
use super::parent::{self, Reuse, Survey};
use super::past::Past;
use super::sealing::Sealing;
use super::state::{host, state_id};
use super::take::blocking;
use super::upload::Upload;
use super::{BackupOptions, Progress};
use crate::archive::Archive;
use crate::disk::scratch::Scratch;
use crate::error::{Error, Kind, Result};
use crate::net::Connection;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::content::intent::Intent;
use crate::seal::content::manifest::Transfer;
use crate::seal::header::ObjectKind;
use crate::wire::command::{BackupEvent, BaseBackupOptions, TablespaceRow};

/// What BASE_BACKUP said at its beginning.
pub struct Begun {
    pub start: Lsn,
    pub timeline: TimelineId,
    pub tablespaces: Vec<TablespaceRow>,
    pub started_at: Timestamp,
    pub transfer: Transfer,
    /// Why everything was sent, or stored.
    pub why_full: Option<String>,
}

/// What of this host a backup uses.
#[derive(Clone)]
pub struct Local {
    /// Where page hashes are kept.
    pub shelf: Option<Shelf>,
    pub scratch: Arc<Scratch>,
    /// The short name of the identity that packs are sealed for.
    pub identity: Option<String>,
}

/// Sends BASE_BACKUP and waits for its beginning: the server makes a checkpoint first. `past` is what a parent has to lie in, or why the server shall send
/// everything, `survey` what the repository tells.
pub async fn begin(
    archive: &Archive,
    connection: &mut Connection,
    local: &Local,
    options: &BackupOptions,
    past: std::result::Result<Past<'_>, String>,
    survey: Survey<'_>,
) -> Result<(Begun, Option<Reuse>)> {
    let choice = parent::choose(archive, connection, local, options, past, survey).await?;
    options.tell(Progress::Checkpoint);
    let command = BaseBackupOptions {
        label: options.label.clone(),
        fast_checkpoint: options.fast_checkpoint,
        max_rate: options.max_rate,
        manifest: true,
        compression: options.server_compression,
        ..BaseBackupOptions::default()
    };
    let Asked { first, why_full } = incremental::ask(connection, archive, choice.wanted(), &command).await?;
    let transfer = if why_full.is_none() { Transfer::Incremental } else { Transfer::Full };
    let (reuse, why_full) = choice.settle(why_full);
    match first {
        BackupEvent::Start { lsn: start, timeline, tablespaces } => {
            let started_at = Timestamp::now();
            Ok((Begun { start, timeline, tablespaces, started_at, transfer, why_full }, reuse))
        }
        other => Err(Error::new(Kind::Server, format!("expected the start of a base backup, found {other:?}"))),
    }
}

/// The intent, sealed: it is to be stored before the first pack, so that an expiry sees it. `dead` are the interrupted backups whose packs may be used.
pub async fn intent(
    archive: &Archive,
    begun: &Begun,
    reuse: Option<&Reuse>,
    dead: &[BackupId],
    local: &Local,
    sealing: &mut Sealing,
    options: &BackupOptions,
) -> Result<Upload> {
    let state_dir = options.state_dir.clone();
    let state = blocking(move || state_id(state_dir.as_deref())).await?;
    let intent = Intent {
        version: Intent::VERSION,
        id: sealing.id.clone(),
        cluster: archive.names.cluster.clone(),
        system: archive.names.system,
        started_at: begun.started_at,
        reuses: reuse.map(|reuse| &reuse.id).into_iter().chain(dead).map(BackupId::to_string).collect(),
        state,
        made_by: made_by(),
        full: options.full,
        identity: local.identity.clone(),
        host: host(),
    };
    sealing.index(ObjectKind::Intent, 0, &intent.encode())
}
